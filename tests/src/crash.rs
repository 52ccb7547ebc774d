//! `kill -9` at every named point, and at any other moment: then start again and carry on.
//!
//! What must hold every time: the session goes on by itself, the command ran once, its real output is in the log, and
//! a client that reconnects with the position it had sees every event once.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::{
    client::{Client, check_order, count, settled, shape},
    stream::Record,
    world::{Server, World, until},
};

const TOOLS: &str = "agent_toolset_20260401";

fn tools() -> Value {
    json!([{"type": TOOLS}])
}

/// A command that leaves a mark each time it runs, then waits for a file, then says how often it ran.
fn command(marks: &Path, go: &Path) -> String {
    let (marks, go) = (marks.display(), go.display());
    format!(
        "echo mark >> {marks}; while [ ! -e {go} ]; do sleep 0.02; done; echo ran $(wc -l < {marks})"
    )
}

fn call(command: &str) -> Value {
    json!({"tool": {"name": "bash", "input": {"command": command}}})
}

/// A session, also when the server died while it made it.
async fn session(server: &mut Server, world: &World) -> Result<(String, Option<Server>)> {
    match server.client().session(tools()).await {
        Ok(session) => Ok((session, None)),
        Err(_) => {
            server.ended().await?;
            let next = world.server().await?;
            let client = next.client();
            let listed = client.get("/v1/sessions?limit=1").await?;
            let session = match listed["data"][0]["id"].as_str() {
                Some(id) => id.to_owned(),
                None => client.session(tools()).await?,
            };
            Ok((session, Some(next)))
        }
    }
}

/// One turn with one command, and the server dead at `point`.
async fn turn(point: &str) -> Result<()> {
    let world = World::new().await?;
    let (marks, go) = (world.path("marks"), world.path("go"));
    world.script(&json!([
        {"when": {"turn": 0}, "answer": [{"text": "looking"}, call(&command(&marks, &go))]},
        {"answer": "done"},
    ]))?;
    if point != "call_running" {
        std::fs::write(&go, "")?;
    }
    let mut first = world.failing(point).await?;
    let (session, survivor) = session(&mut first, &world).await?;
    let mut seen = Vec::new();
    let second = match survivor {
        Some(server) => {
            server.client().say(&session, "go").await?;
            server
        }
        None => {
            // A sandbox is made in the background: the server may be gone before the stream is open.
            let stream = first.client().stream(&session).await;
            // The answer may be lost with the server.
            let said = first.client().say(&session, "go").await;
            first.ended().await?;
            if let Ok(stream) = stream {
                seen = stream.end().await?;
            }
            let second = world.server().await?;
            let known = second.client().list(&session).await?;
            if count(&known, "user.message") == 0 {
                ensure!(said.is_err(), "an accepted message is gone");
                second.client().say(&session, "go").await?;
            }
            second
        }
    };
    std::fs::write(&go, "")?;
    finish(&second, &session, &marks, seen).await
}

/// Waits for the end of the turn and checks what must hold.
async fn finish(server: &Server, session: &str, marks: &Path, seen: Vec<Record>) -> Result<()> {
    let client = server.client();
    let events = settled(server, session)
        .await
        .with_context(|| server.log())?;
    let kinds = shape(&events);
    ensure!(count(&events, "session.status_idle") == 1, "{kinds:#?}");
    ensure!(
        kinds
            .last()
            .is_some_and(|last| last == "session.status_idle(end_turn)"),
        "{kinds:#?}"
    );
    ensure!(
        count(&events, "user.message") == 1 && count(&events, "agent.tool_use") == 1,
        "{kinds:#?}"
    );
    ensure!(count(&events, "agent.message") == 2, "{kinds:#?}");
    let results: Vec<_> = events
        .iter()
        .filter(|event| event["type"] == "agent.tool_result")
        .collect();
    ensure!(results.len() == 1, "{kinds:#?}");
    let text = results[0]["content"][0]["text"]
        .as_str()
        .unwrap_or_default();
    ensure!(text.trim() == "ran 1", "the result is {:#}", results[0]);
    ensure!(
        std::fs::read_to_string(marks)?.lines().count() == 1,
        "the command ran again"
    );
    resumed(&client, session, &events, seen).await
}

/// Reconnects from where the client was: nothing is missing, nothing comes twice.
async fn resumed(
    client: &Client,
    session: &str,
    events: &[Value],
    seen: Vec<Record>,
) -> Result<()> {
    let Some(position) = seen.last().and_then(|record| record.position.clone()) else {
        return Ok(());
    };
    let stream = client.stream_from(session, Some(&position), &[]).await?;
    if seen
        .iter()
        .all(|record| record.event["type"] != "session.status_idle")
    {
        stream.wait_idle("end_turn").await?;
    }
    let mut all = seen;
    all.extend(stream.records());
    once(events, &all)
}

/// Each event once in each form, in the order of the list.
fn once(events: &[Value], records: &[Record]) -> Result<()> {
    let mut forms: Vec<_> = records.iter().map(Record::form).collect();
    let whole = forms.len();
    let processed: Vec<_> = records
        .iter()
        .filter(|r| r.form().1)
        .map(|r| r.event["id"].clone())
        .collect();
    let listed: Vec<_> = events.iter().map(|event| event["id"].clone()).collect();
    ensure!(
        processed == listed,
        "the streams gave {processed:?}, the list has {listed:?}"
    );
    forms.sort();
    forms.dedup();
    ensure!(forms.len() == whole, "something came twice");
    Ok(())
}

macro_rules! points {
    ($($name:ident)*) => {
        /// The points that `turn` visits.
        const VISITED: &[&str] = &[$(stringify!($name)),*];
        $(
            #[tokio::test]
            async fn $name() -> Result<()> {
                turn(stringify!($name)).await
            }
        )*
    };
}

points! {
    before_model_request
    mid_model_stream
    before_response_commit
    after_response_commit
    before_call_send
    call_running
    before_result_commit
    after_result_commit
    before_input_commit
    after_input_commit
    before_sandbox_create
    after_sandbox_create
}

/// The same at the second passage: after the command, while the model is asked again.
#[tokio::test]
async fn second_passages() -> Result<()> {
    for point in [
        "before_model_request:2",
        "mid_model_stream:2",
        "before_response_commit:2",
        "after_response_commit:2",
    ] {
        turn(point).await.with_context(|| point.to_owned())?;
    }
    Ok(())
}

/// This point is on the way of an interrupt.
#[tokio::test]
async fn before_idle_commit() -> Result<()> {
    let world = World::new().await?;
    world.script(&json!([
        {"when": {"nth": 1}, "answer": [{"text": ["half"]}, {"hang": true}]},
        {"answer": "fresh"},
    ]))?;
    let mut first = world.failing("before_idle_commit").await?;
    let client = first.client();
    let session = client.session(json!([])).await?;
    let stream = client
        .stream_from(&session, None, &["agent.message"])
        .await?;
    client.say(&session, "hi").await?;
    stream.wait_type("event_delta").await?;
    client
        .events(&session, json!([{"type": "user.interrupt"}]))
        .await?;
    first.ended().await?;
    let second = world.server().await?;
    let events = settled(&second, &session)
        .await
        .with_context(|| second.log())?;
    let kinds = shape(&events);
    ensure!(
        count(&events, "agent.message") == 0,
        "a partial text was kept: {kinds:#?}"
    );
    ensure!(count(&events, "user.interrupt") == 1, "{kinds:#?}");
    ensure!(
        kinds
            .last()
            .is_some_and(|last| last == "session.status_idle(end_turn)"),
        "{kinds:#?}"
    );
    let client = second.client();
    client.say(&session, "again").await?;
    client.stream(&session).await?.wait_idle("end_turn").await?;
    Ok(())
}

/// Every point in the code has a test.
#[test]
fn every_point_is_visited() -> Result<()> {
    let source = std::fs::read_to_string(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../crates/engine/src/fail.rs"
    ))?;
    let list = source
        .split("POINTS: &[&str] = &[")
        .nth(1)
        .context("the list of points")?;
    let list = list.split("];").next().unwrap_or_default();
    let points: Vec<_> = list.split('"').skip(1).step_by(2).collect();
    ensure!(points.len() > 5, "the list was not found");
    for point in points {
        ensure!(
            VISITED.contains(&point)
                || crate::outcomes::VISITED.contains(&point)
                || crate::webhooks::VISITED.contains(&point)
                || point == "before_idle_commit",
            "{point} has no crash test"
        );
    }
    Ok(())
}

/// A message that waits for the end of a turn is processed after the crash, once; a client that has seen only its queued
/// form gets the processed one.
#[tokio::test]
async fn between_the_queued_and_the_processed_form() -> Result<()> {
    let world = World::new().await?;
    world.script(&json!([
        {"when": {"nth": 1}, "answer": [{"start": true}, {"gate": "first"}, {"text": "one"}]},
        {"answer": "more"},
    ]))?;
    let mut first = world.server().await?;
    let client = first.client();
    let session = client.session(json!([])).await?;
    let stream = client.stream(&session).await?;
    client.say(&session, "one").await?;
    world.model.wait_gate("first").await;
    let second_id = client.say(&session, "two").await?;
    let queued = stream
        .wait("the queued form", |event| event["id"] == second_id.as_str())
        .await?;
    ensure!(queued.event["processed_at"].is_null());
    first.kill().await?;
    let seen = stream.end().await?;
    world.model.release("first", None);

    let second = world.server().await?;
    let client = second.client();
    let position = queued.position.as_deref().context("a position")?;
    let stream = client.stream_from(&session, Some(position), &[]).await?;
    let processed =
        |event: &Value| event["id"] == second_id.as_str() && !event["processed_at"].is_null();
    stream.wait("the processed form", processed).await?;
    let events = settled(&second, &session)
        .await
        .with_context(|| second.log())?;
    ensure!(count(&events, "user.message") == 2);
    stream
        .wait("the last event", |event| {
            Some(&event["id"]) == events.last().map(|last| &last["id"])
        })
        .await?;
    let mut all = seen;
    all.extend(stream.records());
    once(&events, &all)
}

/// A session that waits for answers waits on after a crash, and takes them.
#[tokio::test]
async fn while_waiting_for_answers() -> Result<()> {
    let world = World::new().await?;
    let marks = world.path("marks");
    let run = format!("echo mark >> {}; echo ran", marks.display());
    world.script(&json!([
        {"when": {"turn": 0}, "answer": [call(&run), {"tool": {"name": "lookup", "input": {}}}]},
        {"answer": "done"},
    ]))?;
    let mut first = world.server().await?;
    let client = first.client();
    let ask = json!([
        {"type": TOOLS, "default_config": {"permission_policy": {"type": "always_ask"}}},
        {"type": "custom", "name": "lookup", "description": "d", "input_schema": {"type": "object"}},
    ]);
    let session = client.session(ask).await?;
    let stream = client.stream(&session).await?;
    client.say(&session, "hi").await?;
    let idle = stream.wait_idle("requires_action").await?.event;
    let ids = idle["stop_reason"]["event_ids"]
        .as_array()
        .context("ids")?
        .clone();
    ensure!(ids.len() == 2);
    first.kill().await?;
    drop(stream);

    let mut second = world.server().await?;
    let client = second.client();
    ensure!(client.status_of(&session).await? == "idle");
    let allow = json!({"type": "user.tool_confirmation", "tool_use_id": ids[0], "result": "allow"});
    client.events(&session, json!([allow])).await?;
    client.wait_status(&session, "idle").await?;
    second.kill().await?;

    let third = world.server().await?;
    let client = third.client();
    let answer = json!({"type": "user.custom_tool_result", "custom_tool_use_id": ids[1]});
    client.events(&session, json!([answer])).await?;
    let events = settled(&third, &session)
        .await
        .with_context(|| third.log())?;
    ensure!(
        shape(&events)
            .last()
            .is_some_and(|last| last == "session.status_idle(end_turn)")
    );
    ensure!(std::fs::read_to_string(&marks)?.lines().count() == 1);
    Ok(())
}

/// Many sessions, and a server that dies whenever some progress was made: every command runs once.
#[tokio::test]
async fn again_and_again_under_load() -> Result<()> {
    const SESSIONS: usize = 6;
    let world = World::new().await?;
    world.script(&json!([
        {"when": {"tool_results": 1, "turn": 1}, "answer": [call("echo b >> marks; echo $(cat marks)")]},
        {"when": {"tool_results": 1, "turn": 2}, "answer": [call("echo c >> marks; sleep 0.1; echo $(cat marks)")]},
        {"when": {"turn": 0}, "answer": [{"text": "go"}, call("echo a >> marks; sleep 0.1; echo $(cat marks)")]},
        {"answer": "done"},
    ]))?;
    let mut server = world.server().await?;
    let mut sessions = Vec::new();
    for _ in 0..SESSIONS {
        let client = server.client();
        let session = client.session(tools()).await?;
        client.say(&session, "go").await?;
        sessions.push(session);
    }
    // Each round lets the model be asked a few more times, so that every kill meets another moment.
    for round in 1..=5_usize {
        let asked = SESSIONS * round / 2;
        tokio::time::timeout(
            crate::world::DEADLINE,
            world.model.wait_requests(None, asked, false),
        )
        .await
        .with_context(|| {
            format!(
                "only {} requests\n{}",
                world.model.requests(None).len(),
                server.log()
            )
        })?;
        server.kill().await?;
        server = world.server().await?;
    }
    for session in &sessions {
        let events = settled(&server, session)
            .await
            .with_context(|| server.log())?;
        let results: Vec<_> = events
            .iter()
            .filter(|event| event["type"] == "agent.tool_result")
            .map(|event| {
                event["content"][0]["text"]
                    .as_str()
                    .unwrap_or_default()
                    .trim()
                    .to_owned()
            })
            .collect();
        ensure!(
            results == ["a", "a b", "a b c"],
            "{session}: {results:?} {:#?}",
            shape(&events)
        );
    }
    Ok(())
}

/// The files of a session survive the server and the restart of its sandbox.
#[tokio::test]
async fn hands_that_die_with_the_server_leave_an_honest_result() -> Result<()> {
    let world = World::new().await?;
    let (marks, go) = (world.path("marks"), world.path("go"));
    world.script(&json!([
        {"when": {"turn": 0}, "answer": [call(&command(&marks, &go))]},
        {"answer": "done"},
    ]))?;
    let mut first = world.server().await?;
    let client = first.client();
    let session = client.session(tools()).await?;
    client.say(&session, "go").await?;
    until("the command runs", || marks.exists()).await?;
    first.kill().await?;
    kill_hands(&world).await?;
    let second = world.server().await?;
    let events = settled(&second, &session)
        .await
        .with_context(|| second.log())?;
    check_order(&events).await?;
    let result = events
        .iter()
        .find(|event| event["type"] == "agent.tool_result")
        .context("a result")?;
    ensure!(result["is_error"] == true, "{result:#}");
    let text = result["content"][0]["text"].as_str().unwrap_or_default();
    ensure!(
        text.contains("unknown"),
        "the outcome is unknown, and it says: {text}"
    );
    ensure!(
        std::fs::read_to_string(&marks)?.lines().count() == 1,
        "never a silent repeat"
    );
    Ok(())
}

/// Kills the hands of this world, found by what they wrote down beside their socket.
async fn kill_hands(world: &World) -> Result<()> {
    let mut killed = 0;
    for sandbox in std::fs::read_dir(world.path("data/sandboxes"))?.flatten() {
        let Ok(text) = std::fs::read_to_string(sandbox.path().join("hands.json")) else {
            continue;
        };
        let hands: Value = serde_json::from_str(&text)?;
        let id = hands["pid"].as_i64().context("pid")?.to_string();
        let status = tokio::process::Command::new("kill")
            .args(["-9", &id])
            .status()
            .await?;
        ensure!(status.success());
        killed += 1;
    }
    ensure!(killed > 0, "no hands were found");
    Ok(())
}
