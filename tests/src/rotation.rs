//! The master key is changed while two servers work: no request is lost, also when the command is killed half-way.

use std::{
    collections::BTreeMap,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use anyhow::{Context as _, Result, bail, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::Command,
};

use crate::{
    client::Client,
    world::{Server, World, binary, run, until},
};

/// How many clients work at once, each with a vault of its own.
const CLIENTS: usize = 4;

/// A server with a key file of its own.
struct Site {
    name: &'static str,
    file: std::path::PathBuf,
    settings: BTreeMap<String, String>,
}

impl Site {
    fn new(world: &World, name: &'static str) -> Self {
        let file = world.path(&format!("{name}-keys"));
        let mut settings = world.database_settings();
        let own = [
            ("SELFSAME__DATA_DIR", world.path(name)),
            ("SELFSAME__SECRETS__MASTER_KEY_FILE", file.clone()),
        ];
        settings.extend(own.map(|(key, path)| (key.to_owned(), path.display().to_string())));
        settings.insert("SELFSAME__SECRETS__MASTER_KEY".into(), String::new());
        Self {
            name,
            file,
            settings,
        }
    }

    /// Another file in one step, as a careful operator does it.
    fn keys(&self, keys: &[&str]) -> Result<()> {
        let aside = self.file.with_extension("new");
        std::fs::write(&aside, keys.join("\n"))?;
        Ok(std::fs::rename(aside, &self.file)?)
    }

    async fn start(&self, world: &World) -> Result<Server> {
        Server::start(&self.settings, &world.path("")).await
    }
}

fn new_key(byte: u8) -> String {
    STANDARD.encode([byte; 32])
}

fn oauth(url: &str, access: &str) -> Value {
    json!({"auth": {"type": "mcp_oauth", "mcp_server_url": url, "access_token": access,
        "refresh": {"client_id": "c", "refresh_token": "r", "token_endpoint": "https://auth.example/token",
                    "token_endpoint_auth": {"type": "client_secret_post", "client_secret": "s"}}}})
}

/// One client's life: credentials are made, rotated in part (what stays must be opened and sealed again), read,
/// archived. The first thing that goes wrong ends it.
async fn work(
    clients: Vec<Client>,
    kept: Vec<String>,
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
) -> Result<()> {
    let vault = clients[0]
        .post("/v1/vaults", &json!({"display_name": "load"}))
        .await?;
    let path = format!(
        "/v1/vaults/{}/credentials",
        vault["id"].as_str().context("an id")?
    );
    let mut round = 0;
    while !stop.load(Ordering::Relaxed) {
        // What one server has sealed, the other one opens.
        let (one, other) = (
            &clients[round % clients.len()],
            &clients[(round + 1) % clients.len()],
        );
        let url = format!("https://mcp.example/{round}");
        let made = one.post(&path, &oauth(&url, "a")).await?;
        let own = format!("{path}/{}", made["id"].as_str().context("an id")?);
        let rotated = json!({"auth": {"type": "mcp_oauth", "access_token": "b"}});
        other.post(&own, &rotated).await?;
        let old = &kept[round % kept.len()];
        one.post(old, &rotated).await?;
        ensure!(other.get(&own).await?["id"] == made["id"]);
        one.post(&format!("{own}/archive"), &json!({})).await?;
        round += 1;
        done.fetch_add(5, Ordering::Relaxed);
    }
    Ok(())
}

#[tokio::test]
async fn a_rotation_under_load_loses_no_request() -> Result<()> {
    let world = World::new().await?;
    let (old, new) = (new_key(1), new_key(2));
    let sites = [Site::new(&world, "one"), Site::new(&world, "two")];
    let mut servers = Vec::new();
    for site in &sites {
        site.keys(&[&old])?;
        servers.push(site.start(&world).await?);
    }
    let clients: Vec<_> = servers.iter().map(Server::client).collect();
    // Enough to be rewrapped in several steps.
    let mut kept = Vec::new();
    for number in 0..120 {
        if number % 20 == 0 {
            let body = json!({"display_name": format!("kept {number}")});
            let vault = clients[0].post("/v1/vaults", &body).await?;
            kept.push((
                vault["id"].as_str().context("an id")?.to_owned(),
                Vec::new(),
            ));
        }
        let (vault, paths) = kept.last_mut().context("a vault")?;
        let path = format!("/v1/vaults/{vault}/credentials");
        let url = format!("https://kept.example/{number}");
        let made = clients[number % 2].post(&path, &oauth(&url, "a")).await?;
        paths.push(format!("{path}/{}", made["id"].as_str().context("an id")?));
    }
    let kept: Vec<String> = kept.into_iter().flat_map(|(_, paths)| paths).collect();

    let (stop, done) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicUsize::new(0)),
    );
    let mut load = tokio::task::JoinSet::new();
    for _ in 0..CLIENTS {
        let (clients, kept) = (clients.clone(), kept.clone());
        load.spawn(work(clients, kept, Arc::clone(&stop), Arc::clone(&done)));
    }
    let progress = async |more: usize| {
        let from = done.load(Ordering::Relaxed);
        until("progress under load", || {
            done.load(Ordering::Relaxed) >= from + more
        })
        .await
    };
    progress(20).await?;

    // One server has not got the new key: nothing is changed, and the message names it.
    sites[0].keys(&[&new, &old])?;
    let directory = world.path("");
    let rotate = async |wait: &str| {
        let arguments = ["vault", "rotate-key", "--wait", wait];
        run(&arguments, &sites[0].settings, &directory).await
    };
    let (status, said) = rotate("3").await?;
    ensure!(
        !status.success() && said.contains("do not have the new key yet"),
        "{said}"
    );
    let (_, said) = run(&["vault", "keys"], &sites[0].settings, &directory).await?;
    ensure!(said.contains("1 of 2") && said.contains("2 of 2"), "{said}");
    progress(10).await?;

    // Killed as soon as it has begun.
    sites[1].keys(&[&new, &old])?;
    let mut command = Command::new(binary()?)
        .args(["vault", "rotate-key"])
        .current_dir(&directory)
        .env_remove("DATABASE_URL")
        .envs(&sites[0].settings)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut lines = BufReader::new(command.stdout.take().context("stdout")?).lines();
    loop {
        match lines.next_line().await? {
            Some(line) if line.contains("New secrets are sealed with it") => break,
            Some(_) => {}
            None => bail!("it ended early: {:?}", command.wait().await?),
        }
    }
    command.kill().await?;
    progress(20).await?;
    // Now the database needs both keys.
    let one = Site::new(&world, "three");
    for key in [&old, &new] {
        one.keys(&[key])?;
        let (status, said) = run(&["vault", "rotate-key"], &one.settings, &directory).await?;
        ensure!(
            !status.success() && said.contains("servers need both keys"),
            "{said}"
        );
    }

    // And again, to the end.
    let (status, said) = rotate("30").await?;
    ensure!(status.success() && said.contains("it is retired"), "{said}");
    progress(20).await?;
    let (status, again) = rotate("30").await?;
    ensure!(
        status.success() && again.contains("0 secrets were sealed"),
        "{again}"
    );
    progress(20).await?;
    stop.store(true, Ordering::Relaxed);
    while let Some(client) = load.join_next().await {
        client?.context("a request failed while keys were rotated")?;
    }

    // The old key is not needed any more, and no server starts with it alone.
    for server in &mut servers {
        server.kill().await?;
    }
    let site = &sites[1];
    site.keys(&[&old])?;
    let mut refused = Server::launch(&site.settings, &directory).await?;
    ensure!(
        !refused.ended().await?.success(),
        "{} started with the old key",
        site.name
    );
    let log = refused.log();
    ensure!(
        log.contains("sealed with the master key") && !log.contains(&old) && !log.contains(&new),
        "{log}"
    );
    site.keys(&[&new])?;
    let server = site.start(&world).await?;
    let rotated = json!({"auth": {"type": "mcp_oauth", "access_token": "c"}});
    for path in &kept {
        server.client().post(path, &rotated).await?;
    }
    Ok(())
}
