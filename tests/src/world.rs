//! What a test runs in: a database of its own, a scripted model, and servers that can be killed, frozen and
//! started again.
//!
//! `DATABASE_URL` names a PostgreSQL where databases may be created; `SELFSAME_BIN` the server, else the one
//! that cargo built.

use std::{
    collections::BTreeMap,
    fs::File,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use selfsame_mock::{Running, Script};
use tokio::{
    net::TcpListener,
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};

use crate::client::Client;

/// No wait is meant to last: a passing test needs a fraction of it.
pub const DEADLINE: Duration = Duration::from_secs(30);
/// A server that is silent for so long loses its sessions.
pub const LEASE: Duration = Duration::from_secs(1);
/// Any text of enough characters: the servers of a test are told to accept it.
const KEY: &str = "key-of-the-black-box-tests";
/// 32 bytes in base64: servers with a data directory each share one database.
const MASTER_KEY: &str = "bWFzdGVyIGtleSBvZiB0aGUgYmxhY2stYm94IHRlc3Q=";

/// One test's world. Everything goes with it.
pub struct World {
    pub model: Script,
    mock: Running,
    database: Database,
    directory: tempfile::TempDir,
}

impl World {
    pub async fn new() -> Result<Self> {
        let model = Script::new();
        Ok(Self {
            mock: selfsame_mock::spawn(model.clone()).await?,
            model,
            database: Database::create().await?,
            directory: tempfile::Builder::new().prefix("selfsame-").tempdir()?,
        })
    }

    /// Where the scripted model and the scripted OAuth server are.
    pub fn mock_url(&self) -> &str {
        self.mock.url()
    }

    /// A path in the test's own directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Adds rules of the scripted model, in JSON.
    pub fn script(&self, rules: &serde_json::Value) -> Result<()> {
        self.model
            .add_json(&rules.to_string())
            .map_err(|error| anyhow::anyhow!("bad rules: {error:?}"))?;
        Ok(())
    }

    pub async fn server(&self) -> Result<Server> {
        self.server_with(&[]).await
    }

    /// A server on the world's database that ends itself at a named point.
    pub async fn failing(&self, point: &str) -> Result<Server> {
        self.server_with(&[("SELFSAME_FAIL", point)]).await
    }

    /// A server on the world's database and its directory. Settings come last and win.
    pub async fn server_with(&self, settings: &[(&str, &str)]) -> Result<Server> {
        self.server_in("data", settings).await
    }

    /// The same with another data directory, below the world's.
    pub async fn server_in(&self, data: &str, settings: &[(&str, &str)]) -> Result<Server> {
        let mut environment = self.database_settings();
        let data = self.path(data).display().to_string();
        environment.insert("SELFSAME__DATA_DIR".into(), data);
        environment.extend(settings.iter().map(|(k, v)| ((*k).into(), (*v).into())));
        Server::start(&environment, self.directory.path()).await
    }

    /// What a command needs that works on the world's database.
    pub fn database_settings(&self) -> BTreeMap<String, String> {
        let mut environment = self.settings(&self.path("data"));
        environment.insert("SELFSAME__DATABASE__URL".into(), self.database.url.clone());
        environment
    }

    /// The settings all servers of the tests share.
    pub fn settings(&self, data: &Path) -> BTreeMap<String, String> {
        [
            ("SELFSAME__DATA_DIR", data.display().to_string()),
            ("SELFSAME__AUTH__KEY", KEY.into()),
            ("SELFSAME__SECRETS__MASTER_KEY", MASTER_KEY.into()),
            ("SELFSAME__MODEL__BASE_URL", self.mock.url().into()),
            ("SELFSAME__MODEL__API_KEY", "scripted".into()),
            ("SELFSAME__SANDBOX__BACKEND", "process".into()),
            ("SELFSAME__LEASE__TTL_SECONDS", LEASE.as_secs().to_string()),
            ("SELFSAME__LOG__LEVEL", "info,selfsame=debug".into()),
        ]
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect()
    }
}

/// Sandboxes outlive their servers on purpose, so they are ended here, before their files go.
impl Drop for World {
    fn drop(&mut self) {
        let entries = |path: &Path| std::fs::read_dir(path).into_iter().flatten().flatten();
        for data in entries(self.directory.path()) {
            for sandbox in entries(&data.path().join("sandboxes")) {
                end_hands(&sandbox.path());
            }
        }
    }
}

/// Ends the hands of a plain-process sandbox, if they run.
fn end_hands(sandbox: &Path) {
    let Ok(record) = std::fs::read(sandbox.join("hands.json")) else {
        return;
    };
    let record: serde_json::Value = serde_json::from_slice(&record).unwrap_or_default();
    let Some(pid) = record["pid"].as_u64() else {
        return;
    };
    // The number may belong to somebody else by now.
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    if String::from_utf8_lossy(&command).contains(&sandbox.display().to_string()) {
        let _ = std::process::Command::new("kill")
            .arg(pid.to_string())
            .status();
    }
}

/// One `selfsame serve`.
pub struct Server {
    child: Child,
    pub url: String,
    log: PathBuf,
    listen: String,
}

impl Server {
    /// Starts a server on a free port and returns when it is ready.
    pub async fn start(environment: &BTreeMap<String, String>, directory: &Path) -> Result<Self> {
        let mut server = Self::launch(environment, directory).await?;
        server.ready().await?;
        Ok(server)
    }

    /// Starts a server without waiting for anything.
    pub async fn launch(environment: &BTreeMap<String, String>, directory: &Path) -> Result<Self> {
        let listen = format!("127.0.0.1:{}", free_port().await?);
        let log = directory.join(format!(
            "serve-{}.log",
            listen.rsplit(':').next().unwrap_or("")
        ));
        let output = File::create(&log)?;
        let child = Command::new(binary()?)
            .arg("serve")
            .current_dir(directory)
            .env_remove("DATABASE_URL")
            .env("SELFSAME__SERVER__LISTEN", &listen)
            .envs(environment)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .kill_on_drop(true)
            .spawn()
            .context("the server does not start")?;
        let url = format!("http://{listen}");
        Ok(Self {
            child,
            url,
            log,
            listen,
        })
    }

    async fn ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + DEADLINE;
        let client = self.client();
        loop {
            if client.status("/readyz").await == Some(200) {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("the server ended with {status}:\n{}", self.log());
            }
            ensure!(Instant::now() < deadline, "never ready:\n{}", self.log());
            sleep(Duration::from_millis(10)).await;
        }
    }

    pub fn client(&self) -> Client {
        Client::new(&self.url, KEY)
    }

    pub fn pid(&self) -> Result<u32> {
        self.child.id().context("the server has ended")
    }

    pub fn whole_log(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&text).into_owned()
    }

    /// The end of it.
    pub fn log(&self) -> String {
        let text = self.whole_log();
        let start = text.char_indices().rev().nth(8000).map_or(0, |(at, _)| at);
        text[start..].to_owned()
    }

    /// `kill -9`, and waits until it is gone.
    pub async fn kill(&mut self) -> Result<()> {
        self.child.kill().await.context("kill")
    }

    /// Waits until the server ends by itself.
    pub async fn ended(&mut self) -> Result<std::process::ExitStatus> {
        match timeout(DEADLINE, self.child.wait()).await {
            Ok(status) => Ok(status?),
            Err(_) => bail!("{} goes on:\n{}", self.listen, self.log()),
        }
    }

    pub async fn signal(&self, name: &str) -> Result<()> {
        let id = self.pid()?.to_string();
        let status = Command::new("kill")
            .args(["-s", name, &id])
            .status()
            .await?;
        ensure!(status.success(), "kill -s {name} {id}: {status}");
        Ok(())
    }

    /// SIGSTOP: the process stays, and does nothing.
    pub async fn freeze(&self) -> Result<()> {
        self.signal("STOP").await
    }

    pub async fn thaw(&self) -> Result<()> {
        self.signal("CONT").await
    }
}

/// Runs `selfsame` with arguments to its end and returns its status and what it said.
pub async fn run(
    arguments: &[&str],
    environment: &BTreeMap<String, String>,
    directory: &Path,
) -> Result<(std::process::ExitStatus, String)> {
    let output = Command::new(binary()?)
        .args(arguments)
        .current_dir(directory)
        .env_remove("DATABASE_URL")
        .envs(environment)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = timeout(DEADLINE, output)
        .await
        .context("it does not end")??;
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    Ok((output.status, text))
}

#[expect(
    clippy::disallowed_methods,
    reason = "a test's settings come from its environment"
)]
pub fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// The program that is tested.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = variable("SELFSAME_BIN") {
        return Ok(path.into());
    }
    // target/<profile>/deps/selfsame-<hash> is this program.
    let own = std::env::current_exe()?;
    let path = own
        .ancestors()
        .nth(2)
        .context("no target directory")?
        .join("selfsame");
    ensure!(
        path.exists(),
        "{} is missing: cargo build --workspace --bins",
        path.display()
    );
    Ok(path)
}

async fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0").await?.local_addr()?.port())
}

/// A database that is dropped with its test.
struct Database {
    server: String,
    name: String,
    url: String,
}

impl Database {
    async fn create() -> Result<Self> {
        let server = variable("DATABASE_URL")
            .context("DATABASE_URL must name a PostgreSQL where tests may create databases")?;
        let name = format!("test_{}", uuid::Uuid::now_v7().simple());
        psql(&server, &format!("CREATE DATABASE {name}")).await?;
        // postgres://user@host/database?options
        let (base, options) = server
            .split_once('?')
            .map_or((server.as_str(), ""), |(b, o)| (b, o));
        let scheme = base.find("://").map_or(0, |at| at + 3);
        let base = base[scheme..]
            .find('/')
            .map_or(base, |at| &base[..scheme + at]);
        let mark = if options.is_empty() { "" } else { "?" };
        let url = format!("{base}/{name}{mark}{options}");
        Ok(Self { server, name, url })
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        // The servers were killed before, or are being killed: FORCE does not wait for their connections.
        let statement = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name);
        let _ = std::process::Command::new(psql_program())
            .args(["-qX", "-d", &self.server, "-c", &statement])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
    }
}

async fn psql(server: &str, statement: &str) -> Result<()> {
    let arguments = [
        "-qX",
        "-v",
        "ON_ERROR_STOP=1",
        "-d",
        server,
        "-c",
        statement,
    ];
    let output = Command::new(psql_program())
        .args(arguments)
        .output()
        .await
        .context("psql")?;
    ensure!(
        output.status.success(),
        "{statement}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// From PATH, else from where Debian puts it.
pub fn psql_program() -> PathBuf {
    let path = variable("PATH").unwrap_or_default();
    let mut places = std::env::split_paths(&path).map(|place| place.join("psql"));
    places
        .find(|program| program.exists())
        .or_else(|| {
            let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
            let mut found: Vec<_> = versions
                .flatten()
                .map(|v| v.path().join("bin/psql"))
                .collect();
            found.sort();
            found.pop()
        })
        .unwrap_or_else(|| "psql".into())
}

/// Waits for a condition of the world that nothing announces, such as a file.
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        ensure!(Instant::now() < deadline, "never: {what}");
        sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}
