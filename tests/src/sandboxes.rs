//! The life of a session's sandbox, on the process backend: made ahead, stopped when idle, resumed with its
//! files, removed at the end.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::{
    client::settled,
    world::{Server, World, until},
};

fn tools() -> Value {
    json!([{"type": "agent_toolset_20260401"}])
}

/// Every sandbox's directory, and its process while it runs.
fn sandboxes(world: &World) -> Vec<(PathBuf, Option<i64>)> {
    let Ok(found) = std::fs::read_dir(world.path("data/sandboxes")) else {
        return Vec::new();
    };
    found
        .flatten()
        .filter_map(|entry| {
            let text = std::fs::read_to_string(entry.path().join("hands.json")).ok()?;
            let hands: Value = serde_json::from_str(&text).ok()?;
            let pid = hands["pid"].as_i64()?;
            let status = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok();
            // A zombie has ended; only its parent has not looked yet.
            let runs = status.is_some_and(|status| !status.contains(") Z "));
            Some((entry.path(), runs.then_some(pid)))
        })
        .collect()
}

/// Says something that makes the scripted model run a command, and gives the command's output.
async fn bash(server: &Server, session: &str, command: &str) -> Result<String> {
    server
        .client()
        .say(session, &format!("!bash {command}"))
        .await?;
    let events = settled(server, session).await?;
    let result = events
        .iter()
        .rfind(|event| event["type"] == "agent.tool_result")
        .context("a result")?;
    ensure!(result["is_error"] == false, "{result:#}");
    Ok(result["content"][0]["text"]
        .as_str()
        .context("text")?
        .trim()
        .to_owned())
}

#[tokio::test]
async fn an_idle_sandbox_is_stopped_and_resumed_with_its_files() -> Result<()> {
    let world = World::new().await?;
    let server = world
        .server_with(&[("SELFSAME__SANDBOX__IDLE_STOP_SECONDS", "1")])
        .await?;
    let session = server.client().session(tools()).await?;
    ensure!(bash(&server, &session, "export A=1; echo kept > note; cat note").await? == "kept");
    let before = sandboxes(&world);
    ensure!(before.len() == 1, "{before:?}");
    until("the sandbox stops", || {
        sandboxes(&world).iter().all(|(_, pid)| pid.is_none())
    })
    .await?;
    ensure!(server.client().status_of(&session).await? == "idle");
    // The shell is another one, the files are the same.
    ensure!(bash(&server, &session, "cat note; echo [$A]").await? == "kept\n[]");
    let after = sandboxes(&world);
    ensure!(
        after.len() == 1 && after[0].0 == before[0].0 && after[0].1.is_some(),
        "{before:?} {after:?}"
    );
    Ok(())
}

#[tokio::test]
async fn an_ended_sessions_sandbox_is_removed() -> Result<()> {
    let world = World::new().await?;
    let server = world.server().await?;
    for end in ["archive", "delete"] {
        let client = server.client();
        let session = client.session(tools()).await?;
        bash(&server, &session, "echo here").await?;
        let made = sandboxes(&world);
        ensure!(made.len() == 1, "{made:?}");
        match end {
            "archive" => {
                client
                    .post(&format!("/v1/sessions/{session}/archive"), &json!({}))
                    .await?;
            }
            _ => {
                let path = format!("/v1/sessions/{session}");
                let response = client
                    .request(reqwest::Method::DELETE, &path)
                    .send()
                    .await?;
                ensure!(response.status().is_success(), "{}", response.status());
            }
        }
        until("the sandbox is gone", || !made[0].0.exists()).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_session_takes_a_warm_sandbox() -> Result<()> {
    let world = World::new().await?;
    let server = world
        .server_with(&[("SELFSAME__SANDBOX__WARM", "1")])
        .await?;
    until("one is warm", || sandboxes(&world).len() == 1).await?;
    let warm = sandboxes(&world)[0].0.clone();
    let session = server.client().session(tools()).await?;
    let used = bash(&server, &session, "pwd").await?;
    ensure!(
        PathBuf::from(&used).starts_with(&warm),
        "{used} is not in {}",
        warm.display()
    );
    // The pool fills up again.
    until("another is warm", || sandboxes(&world).len() == 2).await
}
