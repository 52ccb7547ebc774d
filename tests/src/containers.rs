//! Sandboxes as containers: what a crash of one means to its session, and what a crash of the server means to it.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tokio::{process::Command, time::Instant};

use crate::{
    client::{count, settled, shape},
    world::{DEADLINE, Server, World, psql_program, variable},
};

const TOOLS: &str = "agent_toolset_20260401";

/// A world whose servers use the Docker daemon. Its containers go with it.
struct Daemon {
    world: World,
    hands: String,
    image: String,
}

impl Daemon {
    async fn new() -> Result<Self> {
        Ok(Self {
            world: World::new().await?,
            hands: hands()?.display().to_string(),
            image: variable("SELFSAME_SANDBOX_IMAGE")
                .unwrap_or_else(|| "selfsame-sandbox:latest".into()),
        })
    }

    async fn server(&self) -> Result<Server> {
        self.server_with(&[]).await
    }

    async fn server_with(&self, more: &[(&str, &str)]) -> Result<Server> {
        let mut settings = vec![
            ("SELFSAME__SANDBOX__BACKEND", "docker"),
            ("SELFSAME__SANDBOX__HANDS", self.hands.as_str()),
            ("SELFSAME__SANDBOX__IMAGE", self.image.as_str()),
            ("SELFSAME__SANDBOX__MEMORY_BYTES", "536870912"),
        ];
        settings.extend(more);
        self.world.server_with(&settings).await
    }

    /// The containers of this deployment's sandboxes that run.
    async fn containers(&self) -> Result<Vec<String>> {
        let label = format!("label=dev.selfsame.deployment={}", self.deployment()?);
        let sandbox = "label=dev.selfsame.sandbox";
        let listed = docker(&["ps", "-q", "--filter", &label, "--filter", sandbox]).await?;
        Ok(listed.lines().map(str::to_owned).collect())
    }

    /// Waits until one command's mark is in one container, and answers which.
    async fn begun(&self) -> Result<String> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            for container in self.containers().await? {
                let test = ["exec", &container, "test", "-e", "/workspace/begun"];
                if docker(&test).await.is_ok() {
                    return Ok(container);
                }
            }
            ensure!(Instant::now() < deadline, "no command begins");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }

    fn deployment(&self) -> Result<String> {
        let settings = self.world.database_settings();
        let url = settings
            .get("SELFSAME__DATABASE__URL")
            .context("a database")?;
        let output = std::process::Command::new(psql_program())
            .args(["-qtAX", "-d", url, "-c", "SELECT id FROM deployment"])
            .output()?;
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let Ok(deployment) = self.deployment() else {
            return;
        };
        if deployment.is_empty() {
            return;
        }
        let label = format!("label=dev.selfsame.deployment={deployment}");
        let listed = std::process::Command::new("docker")
            .args(["ps", "-aq", "--filter", &label])
            .output();
        let listed = listed.map(|output| output.stdout).unwrap_or_default();
        for container in String::from_utf8_lossy(&listed).lines() {
            let _ = std::process::Command::new("docker")
                .args(["rm", "-fv", container])
                .output();
        }
    }
}

async fn docker(arguments: &[&str]) -> Result<String> {
    let output = Command::new("docker")
        .args(arguments)
        .output()
        .await
        .context("the Docker client")?;
    ensure!(
        output.status.success(),
        "docker {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}

/// The static hands, as `./dev hands` builds them.
fn hands() -> Result<PathBuf> {
    if let Some(path) = variable("SELFSAME_HANDS") {
        return Ok(path.into());
    }
    let own = std::env::current_exe()?;
    let target = own.ancestors().nth(3).context("no target directory")?;
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let path = target.join(triple).join("hands/selfsame-hands");
    ensure!(path.exists(), "build the hands first: ./dev hands");
    Ok(path)
}

fn call(command: &str) -> Value {
    json!({"tool": {"name": "bash", "input": {"command": command}}})
}

/// The results of tools: whether each is an error, and its text.
fn results(events: &[Value]) -> Vec<(bool, String)> {
    events
        .iter()
        .filter(|event| event["type"] == "agent.tool_result")
        .map(|event| {
            let text = event["content"][0]["text"].as_str().unwrap_or_default();
            (event["is_error"] == true, text.trim().to_owned())
        })
        .collect()
}

/// From the error to running again, in this order.
const REBUILT: [&str; 5] = [
    "session.error(retrying)",
    "session.status_rescheduled",
    "session.thread_status_rescheduled",
    "session.status_running",
    "session.thread_status_running",
];

/// A container dies under a command: the call says so, the session goes on in a new life of the sandbox.
async fn dies(how: &[&str], text: &str, file: &str) -> Result<()> {
    let daemon = Daemon::new().await?;
    daemon.world.script(&json!([
        {"when": {"nth": 1}, "answer": [call("echo kept > note; touch begun; sleep 1000")]},
        {"when": {"nth": 3}, "answer": [call("cat note 2>/dev/null || echo no note")]},
        {"answer": "done"},
    ]))?;
    let server = daemon.server().await?;
    let client = server.client();
    let session = client.session(json!([{"type": TOOLS}])).await?;
    client.say(&session, "go").await?;
    let container = daemon.begun().await?;
    let mut command = how.to_vec();
    command.push(&container);
    docker(&command).await?;
    let events = settled(&server, &session)
        .await
        .with_context(|| server.log())?;
    let kinds = shape(&events);
    let first = &results(&events)[0];
    ensure!(first.0 && first.1.contains(text), "{first:?}");
    let at = kinds
        .iter()
        .position(|kind| kind == REBUILT[0])
        .with_context(|| format!("{kinds:#?}"))?;
    ensure!(
        kinds[at..].starts_with(&REBUILT.map(str::to_owned)),
        "{kinds:#?}"
    );
    ensure!(
        count(&events, "session.status_rescheduled") == 1,
        "{kinds:#?}"
    );
    ensure!(count(&events, "session.status_idle") == 1, "{kinds:#?}");
    ensure!(
        kinds
            .last()
            .is_some_and(|last| last == "session.status_idle(end_turn)"),
        "{kinds:#?}"
    );
    client.say(&session, "and the file?").await?;
    let events = settled(&server, &session).await?;
    let last = results(&events).pop().context("a result")?;
    ensure!(last == (false, file.to_owned()), "{last:?}");
    ensure!(daemon.containers().await?.len() == 1, "one sandbox");
    Ok(())
}

#[tokio::test]
async fn a_killed_container_is_started_again() -> Result<()> {
    dies(&["kill"], "restarted while this call was under way", "kept").await
}

#[tokio::test]
async fn a_removed_container_is_replaced() -> Result<()> {
    dies(&["rm", "-f"], "replaced by a new one", "no note").await
}

/// `kill -9` of the server while a command runs in a container: its successor collects the one real result.
#[tokio::test]
async fn a_command_outlives_its_server() -> Result<()> {
    let daemon = Daemon::new().await?;
    let command = "echo mark >> marks; touch begun; while [ ! -e go ]; do sleep 0.02; done; \
                   echo ran $(wc -l < marks)";
    daemon.world.script(&json!([
        {"when": {"turn": 0}, "answer": [{"text": "looking"}, call(command)]},
        {"answer": "done"},
    ]))?;
    let mut first = daemon.server().await?;
    let session = first.client().session(json!([{"type": TOOLS}])).await?;
    first.client().say(&session, "go").await?;
    let container = daemon.begun().await?;
    first.kill().await?;
    let second = daemon.server().await?;
    docker(&["exec", &container, "touch", "/workspace/go"]).await?;
    let events = settled(&second, &session)
        .await
        .with_context(|| second.log())?;
    ensure!(
        results(&events) == [(false, "ran 1".to_owned())],
        "{:#?}",
        shape(&events)
    );
    ensure!(
        count(&events, "session.status_rescheduled") == 1,
        "{:#?}",
        shape(&events)
    );
    ensure!(daemon.containers().await? == [container]);
    Ok(())
}

/// Server and container die together: nobody knows what became of the call, and the session goes on.
#[tokio::test]
async fn both_die_at_once() -> Result<()> {
    let daemon = Daemon::new().await?;
    daemon.world.script(&json!([
        {"when": {"turn": 0}, "answer": [call("touch begun; sleep 1000")]},
        {"answer": "done"},
    ]))?;
    let mut first = daemon.server().await?;
    let session = first.client().session(json!([{"type": TOOLS}])).await?;
    first.client().say(&session, "go").await?;
    let container = daemon.begun().await?;
    first.kill().await?;
    docker(&["kill", &container]).await?;
    let second = daemon.server().await?;
    let events = settled(&second, &session)
        .await
        .with_context(|| second.log())?;
    let results = results(&events);
    ensure!(
        results.len() == 1 && results[0].0 && results[0].1.contains("restarted while this call"),
        "{results:?}"
    );
    ensure!(
        count(&events, "agent.message") == 1,
        "{:#?}",
        shape(&events)
    );
    Ok(())
}

/// A server that dies while it makes a container: the next one makes another, and none stays without a session.
#[tokio::test]
async fn a_half_made_sandbox_is_replaced() -> Result<()> {
    for point in ["before_sandbox_create", "after_sandbox_create"] {
        let daemon = Daemon::new().await?;
        daemon.world.script(&json!([
            {"when": {"turn": 0}, "answer": [call("echo here")]},
            {"answer": "done"},
        ]))?;
        let mut first = daemon.server_with(&[("SELFSAME_FAIL", point)]).await?;
        let made = first.client().session(json!([{"type": TOOLS}])).await;
        if let Ok(session) = &made {
            let _ = first.client().say(session, "go").await;
        }
        first.ended().await?;
        let second = daemon.server().await?;
        let client = second.client();
        let session = match made {
            Ok(session) => session,
            Err(_) => {
                let listed = client.get("/v1/sessions?limit=1").await?;
                listed["data"][0]["id"]
                    .as_str()
                    .context("a session")?
                    .to_owned()
            }
        };
        if count(&client.list(&session).await?, "user.message") == 0 {
            client.say(&session, "go").await?;
        }
        let events = settled(&second, &session)
            .await
            .with_context(|| second.log())?;
        ensure!(
            results(&events) == [(false, "here".to_owned())],
            "{:#?}",
            shape(&events)
        );
        // The reaper looks once a minute for what no row knows, and at each start.
        drop(second);
        let _third = daemon.server().await?;
        let deadline = Instant::now() + DEADLINE;
        while daemon.containers().await?.len() != 1 {
            ensure!(
                Instant::now() < deadline,
                "{point}: {:?}",
                daemon.containers().await?
            );
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }
    Ok(())
}
