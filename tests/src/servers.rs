//! Two servers on one database: either serves any request, a dead one's sessions move over, a frozen one that wakes up
//! is refused.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    client::{count, settled, shape},
    world::{LEASE, Server, World, until},
};

/// The lease's time, a heartbeat, and some for a busy machine.
const TAKEOVER: Duration = Duration::from_secs(LEASE.as_secs() + 6);

/// Two servers, each with a data directory of its own.
async fn two(world: &World) -> Result<(Server, Server)> {
    let first = world.server_in("one", &[]).await?;
    let second = world.server_in("two", &[]).await?;
    Ok((first, second))
}

#[tokio::test]
async fn either_serves_any_request() -> Result<()> {
    let world = World::new().await?;
    world.script(&json!([{"answer": "hello"}]))?;
    let (first, second) = two(&world).await?;
    let (a, b) = (first.client(), second.client());
    let session = a.session(json!([])).await?;
    ensure!(b.status_of(&session).await? == "idle");
    for (speaker, number) in [(&a, 1), (&b, 2), (&a, 3), (&b, 4)] {
        let (left, right) = (a.stream(&session).await?, b.stream(&session).await?);
        let id = speaker.say(&session, &format!("message {number}")).await?;
        for stream in [&left, &right] {
            stream
                .wait("the processed message", |event| {
                    event["id"] == id.as_str() && !event["processed_at"].is_null()
                })
                .await?;
            stream
                .wait("an idle after it", |event| {
                    event["type"] == "session.status_idle"
                })
                .await?;
        }
        a.wait_status(&session, "idle").await?;
    }
    let events = settled(&second, &session).await?;
    ensure!(events == a.list(&session).await?, "both list the same");
    ensure!(
        count(&events, "agent.message") == 4 && count(&events, "user.message") == 4,
        "{:#?}",
        shape(&events)
    );
    Ok(())
}

#[tokio::test]
async fn events_and_deltas_are_seen_from_both() -> Result<()> {
    let world = World::new().await?;
    world.script(
        &json!([{"answer": [{"text": ["one ", "two "]}, {"gate": "middle"}, {"text": ["three"]}]}]),
    )?;
    let (first, second) = two(&world).await?;
    let session = first.client().session(json!([])).await?;
    let previews = ["agent.message"];
    let streams = [
        first
            .client()
            .stream_from(&session, None, &previews)
            .await?,
        second
            .client()
            .stream_from(&session, None, &previews)
            .await?,
    ];
    first.client().say(&session, "count").await?;
    for stream in &streams {
        stream.wait_type("event_delta").await?;
    }
    world.model.release("middle", None);
    for stream in &streams {
        stream.wait_idle("end_turn").await?;
        let events = stream.events();
        let message = events
            .iter()
            .find(|event| event["type"] == "agent.message")
            .context("a message")?;
        let mut text = String::new();
        let at = |name: &str| events.iter().position(|event| event["type"] == name);
        ensure!(
            at("event_start") < at("event_delta") && at("event_delta") < at("agent.message"),
            "{:?}",
            shape(&events)
        );
        for delta in events
            .iter()
            .filter(|event| event["type"] == "event_delta" && event["event_id"] == message["id"])
        {
            text.push_str(
                delta["delta"]["content"]["text"]
                    .as_str()
                    .unwrap_or_default(),
            );
        }
        let whole = message["content"][0]["text"].as_str().context("text")?;
        ensure!(
            !text.is_empty() && whole.starts_with(&text),
            "{text:?} is no beginning of {whole:?}"
        );
    }
    Ok(())
}

/// The model is asked again by the other server, within the time of the lease.
#[tokio::test]
async fn a_dead_servers_session_moves_over() -> Result<()> {
    let world = World::new().await?;
    world.script(&json!([
        {"when": {"nth": 1}, "answer": [{"start": true}, {"hang": true}]},
        {"answer": "from the other"},
    ]))?;
    let mut first = world.server_in("one", &[]).await?;
    let session = first.client().session(json!([])).await?;
    first.client().say(&session, "hi").await?;
    world.model.wait_requests(None, 1, false).await;
    let second = world.server_in("two", &[]).await?;
    let stream = second.client().stream(&session).await?;
    let died = Instant::now();
    first.kill().await?;
    stream
        .wait_idle("end_turn")
        .await
        .with_context(|| second.log())?;
    let took = died.elapsed();
    ensure!(took < TAKEOVER, "it took {took:?}");
    let events = settled(&second, &session).await?;
    ensure!(
        count(&events, "session.status_rescheduled") == 1,
        "{:#?}",
        shape(&events)
    );
    ensure!(count(&events, "agent.message") == 1);
    Ok(())
}

/// Everything a dead server was driving goes on, and what it accepted and had not begun begins.
#[tokio::test]
async fn many_sessions_move_over() -> Result<()> {
    let world = World::new().await?;
    world.script(&json!([{"answer": [{"start": true}, {"gate": "all"}, {"text": "done"}]}]))?;
    let mut first = world.server_in("one", &[]).await?;
    let client = first.client();
    let mut sessions = Vec::new();
    for _ in 0..20 {
        let session = client.session(json!([])).await?;
        client.say(&session, "hi").await?;
        sessions.push(session);
    }
    world.model.wait_requests(None, 20, false).await;
    let second = world.server_in("two", &[]).await?;
    first.kill().await?;
    world.model.release("all", None);
    for session in &sessions {
        let events = settled(&second, session)
            .await
            .with_context(|| second.log())?;
        ensure!(
            count(&events, "agent.message") == 1,
            "{:#?}",
            shape(&events)
        );
    }
    Ok(())
}

/// A server that was stopped in the middle of a model's answer wakes up late: its answer is not taken.
#[tokio::test]
async fn a_frozen_server_is_refused_when_it_wakes_up() -> Result<()> {
    let world = World::new().await?;
    world.script(&json!([
        {"when": {"nth": 1}, "answer": [{"start": true}, {"gate": "old"}, {"text": "too late"}]},
        {"answer": "in time"},
    ]))?;
    let first = world.server_in("one", &[]).await?;
    let session = first.client().session(json!([])).await?;
    first.client().say(&session, "hi").await?;
    world.model.wait_gate("old").await;
    let second = world.server_in("two", &[]).await?;
    let stream = second.client().stream(&session).await?;
    first.freeze().await?;
    stream
        .wait_idle("end_turn")
        .await
        .with_context(|| second.log())?;
    world.model.release("old", None);
    first.thaw().await?;
    // It is alive, serves again, and can drive what is new.
    let client = first.client();
    until_ready(&client).await?;
    let events = settled(&first, &session)
        .await
        .with_context(|| first.log())?;
    ensure!(
        !events
            .iter()
            .any(|event| event.to_string().contains("too late")),
        "{events:#?}"
    );
    ensure!(
        count(&events, "agent.message") == 1 && count(&events, "session.status_idle") == 1,
        "{:#?}",
        shape(&events)
    );
    client.say(&session, "and now").await?;
    client.wait_status(&session, "idle").await?;
    ensure!(count(&client.list(&session).await?, "agent.message") == 2);
    Ok(())
}

async fn until_ready(client: &crate::client::Client) -> Result<()> {
    let deadline = Instant::now() + crate::world::DEADLINE;
    while client.status("/readyz").await != Some(200) {
        ensure!(
            Instant::now() < deadline,
            "the thawed server is never ready"
        );
    }
    Ok(())
}

/// The same while a command runs: the other server collects its output, and it ran once.
#[tokio::test]
async fn a_running_command_is_collected_by_the_other_server() -> Result<()> {
    for freeze in [false, true] {
        let world = World::new().await?;
        let (marks, go) = (world.path("marks"), world.path("go"));
        let (m, g) = (marks.display(), go.display());
        let command = format!(
            "echo mark >> {m}; while [ ! -e {g} ]; do sleep 0.02; done; echo ran $(wc -l < {m})"
        );
        world.script(&json!([
            {"when": {"turn": 0}, "answer": [{"tool": {"name": "bash", "input": {"command": command}}}]},
            {"answer": "done"},
        ]))?;
        // Both see the same sandboxes, as they would through one Docker daemon.
        let mut first = world.server_in("shared", &[]).await?;
        let client = first.client();
        let session = client
            .session(json!([{"type": "agent_toolset_20260401"}]))
            .await?;
        client.say(&session, "go").await?;
        until("the command runs", || marks.exists()).await?;
        let second = world.server_in("shared", &[]).await?;
        let stream = second.client().stream(&session).await?;
        if freeze {
            first.freeze().await?;
        } else {
            first.kill().await?;
        }
        // The other has it as soon as the log says so.
        stream
            .wait_type("session.status_rescheduled")
            .await
            .with_context(|| second.log())?;
        std::fs::write(&go, "")?;
        stream
            .wait_idle("end_turn")
            .await
            .with_context(|| second.log())?;
        if freeze {
            first.thaw().await?;
            until_ready(&first.client()).await?;
        }
        let events = settled(&second, &session).await?;
        let results: Vec<&Value> = events
            .iter()
            .filter(|event| event["type"] == "agent.tool_result")
            .collect();
        ensure!(results.len() == 1, "{:#?}", shape(&events));
        let text = results[0]["content"][0]["text"]
            .as_str()
            .unwrap_or_default();
        ensure!(text.trim() == "ran 1", "frozen: {freeze}: {text}");
        ensure!(std::fs::read_to_string(&marks)?.lines().count() == 1);
    }
    Ok(())
}

/// An answer may come to the server that does not drive the session.
#[tokio::test]
async fn answers_and_interrupts_reach_the_driver() -> Result<()> {
    let world = World::new().await?;
    world.script(&json!([
        {"when": {"nth": 1}, "answer": [{"text": ["half"]}, {"hang": true}]},
        {"when": {"nth": 2}, "answer": [{"tool": {"name": "lookup", "input": {}}}]},
        {"answer": "done"},
    ]))?;
    let (first, second) = two(&world).await?;
    let (a, b) = (first.client(), second.client());
    let custom = json!([{"type": "custom", "name": "lookup", "description": "d", "input_schema": {"type": "object"}}]);
    let session = a.session(custom).await?;
    let stream = b.stream_from(&session, None, &["agent.message"]).await?;
    a.say(&session, "hi").await?;
    stream.wait_type("event_delta").await?;
    b.events(&session, json!([{"type": "user.interrupt"}]))
        .await?;
    stream.wait_idle("end_turn").await?;
    a.say(&session, "ask me").await?;
    let idle = stream.wait_idle("requires_action").await?.event;
    let id = &idle["stop_reason"]["event_ids"][0];
    b.events(
        &session,
        json!([{"type": "user.custom_tool_result", "custom_tool_use_id": id}]),
    )
    .await?;
    let events = settled(&first, &session).await?;
    ensure!(
        shape(&events)
            .last()
            .is_some_and(|last| last == "session.status_idle(end_turn)")
    );
    Ok(())
}
