//! Threads of a session: beside each other, and across `kill -9`.
//!
//! What must hold whenever a server dies: the session goes on by itself, each thread was started once, each message
//! between threads was sent once and received once, and each child's command ran once.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::{
    client::{Client, count, settled, shape},
    world::{Server, World},
};

fn start(message: &str) -> Value {
    json!({"tool": {"name": "create_agent", "input": {"agent_name": "worker", "message": message}}})
}

fn bash(command: &str) -> Value {
    json!({"tool": {"name": "bash", "input": {"command": command}}})
}

/// A session of an agent that leads, with one that has these tools in its roster.
async fn session(client: &Client, tools: Value) -> Result<String> {
    let name = uuid::Uuid::now_v7().to_string();
    let environment = client
        .post("/v1/environments", &json!({"name": name}))
        .await?;
    let worker = json!({"name": "worker", "model": "mock", "system": "You work.", "tools": tools});
    let worker = client.post("/v1/agents", &worker).await?;
    let lead = json!({
        "name": "lead", "model": "mock", "system": "You lead.",
        "multiagent": {"type": "coordinator", "agents": [worker["id"]]},
    });
    let lead = client.post("/v1/agents", &lead).await?;
    let body = json!({"agent": lead["id"], "environment_id": environment["id"]});
    let session = client.post("/v1/sessions", &body).await?;
    Ok(session["id"].as_str().context("an id")?.to_owned())
}

/// The threads of a session, the primary one first, each with its own list of events.
async fn threads(client: &Client, session: &str) -> Result<Vec<(Value, Vec<Value>)>> {
    let listed = client
        .get(&format!("/v1/sessions/{session}/threads"))
        .await?;
    let mut threads = Vec::new();
    for thread in listed["data"].as_array().context("data")? {
        let id = thread["id"].as_str().context("an id")?;
        let path = format!("/v1/sessions/{session}/threads/{id}/events");
        let events = client.get(&path).await?;
        let events = events["data"].as_array().context("data")?.clone();
        threads.push((thread.clone(), events));
    }
    Ok(threads)
}

/// Two children that each run a command, and the server dead at `point`.
async fn killed(point: &str) -> Result<()> {
    const CHILDREN: usize = 2;
    let world = World::new().await?;
    let marks = world.path("marks");
    let command = format!("echo mark >> {}; echo ran", marks.display());
    world.script(&json!([
        {"when": {"system_contains": "You work.", "turn": 0}, "answer": [bash(&command)]},
        {"when": {"system_contains": "You work."}, "answer": "it is done"},
        {"when": {"system_contains": "You lead.", "turn": 0},
            "answer": [{"text": "go"}, start("one"), start("two")]},
        {"when": {"system_contains": "You lead."}, "answer": "noted"},
    ]))?;
    let mut first = world.failing(point).await?;
    let client = first.client();
    let session = session(&client, json!([{"type": "agent_toolset_20260401"}])).await?;
    client.say(&session, "begin").await?;
    first.ended().await?;
    let second = world.server().await?;
    let events = settled(&second, &session)
        .await
        .with_context(|| second.log())?;
    let kinds = shape(&events);
    ensure!(
        kinds
            .last()
            .is_some_and(|last| last == "session.status_idle(end_turn)"),
        "{kinds:#?}"
    );
    for (name, wanted) in [
        ("session.thread_created", CHILDREN),
        ("agent.thread_message_sent", CHILDREN),
        ("agent.thread_message_received", CHILDREN),
        ("session.status_idle", 1),
        ("user.message", 1),
    ] {
        ensure!(count(&events, name) == wanted, "{name}: {kinds:#?}");
    }
    let threads = threads(&second.client(), &session).await?;
    ensure!(threads.len() == 1 + CHILDREN, "{threads:#?}");
    for (thread, events) in &threads[1..] {
        ensure!(thread["status"] == "idle", "{thread:#}");
        let kinds = shape(events);
        for name in [
            "agent.thread_message_received",
            "agent.tool_use",
            "agent.tool_result",
            "agent.thread_message_sent",
            "session.thread_status_idle",
        ] {
            ensure!(count(events, name) == 1, "{name}: {kinds:#?}");
        }
        let result = events
            .iter()
            .find(|event| event["type"] == "agent.tool_result");
        let result = result.context("a result")?;
        ensure!(result["is_error"] == false, "{result:#}");
    }
    ensure!(
        std::fs::read_to_string(&marks)?.lines().count() == CHILDREN,
        "a command ran again, or not at all"
    );
    Ok(())
}

async fn killed_at(points: &[&str]) -> Result<()> {
    for point in points {
        killed(point).await.with_context(|| (*point).to_owned())?;
    }
    Ok(())
}

#[tokio::test]
async fn killed_while_models_are_asked() -> Result<()> {
    killed_at(&[
        "before_model_request:2",
        "before_model_request:4",
        "mid_model_stream:3",
    ])
    .await
}

#[tokio::test]
async fn killed_before_responses_are_written() -> Result<()> {
    // The first one starts the threads, later ones report.
    killed_at(&[
        "before_response_commit:1",
        "before_response_commit:2",
        "before_response_commit:4",
        "before_response_commit:6",
    ])
    .await
}

#[tokio::test]
async fn killed_after_responses_were_written() -> Result<()> {
    killed_at(&[
        "after_response_commit:1",
        "after_response_commit:2",
        "after_response_commit:4",
        "after_response_commit:6",
    ])
    .await
}

#[tokio::test]
async fn killed_around_the_commands_of_children() -> Result<()> {
    killed_at(&[
        "before_call_send:2",
        "before_result_commit:1",
        "before_result_commit:2",
        "after_result_commit:2",
    ])
    .await
}

/// An interrupt of the session, and the server dead while it is carried out thread by thread.
#[tokio::test]
async fn killed_while_an_interrupt_is_carried_out() -> Result<()> {
    for point in [
        "before_idle_commit:1",
        "before_idle_commit:2",
        "before_idle_commit:3",
    ] {
        interrupted(point).await.with_context(|| point.to_owned())?;
    }
    Ok(())
}

async fn interrupted(point: &str) -> Result<()> {
    let world = World::new().await?;
    world.script(&json!([
        {"when": {"system_contains": "You work."}, "answer": [{"start": true}, {"hang": true}]},
        {"when": {"system_contains": "You lead.", "turn": 0}, "answer": [start("one"), start("two")]},
        {"when": {"system_contains": "You lead."}, "answer": "noted"},
    ]))?;
    let mut first = world.failing(point).await?;
    let client = first.client();
    let session = session(&client, json!([])).await?;
    client.say(&session, "begin").await?;
    // The leader has ended its turn, and two wait for their models.
    world.model.wait_requests(None, 4, false).await;
    let stream = client.stream(&session).await?;
    loop {
        let events = client.list(&session).await?;
        if count(&events, "session.thread_status_idle") > 0 {
            break;
        }
        stream.wait_type("session.thread_status_idle").await?;
    }
    client
        .events(&session, json!([{"type": "user.interrupt"}]))
        .await?;
    first.ended().await?;
    let second = world.server().await?;
    let events = settled(&second, &session)
        .await
        .with_context(|| second.log())?;
    let kinds = shape(&events);
    ensure!(count(&events, "user.interrupt") == 1, "{kinds:#?}");
    ensure!(
        count(&events, "agent.thread_message_received") == 0,
        "{kinds:#?}"
    );
    ensure!(
        kinds
            .last()
            .is_some_and(|last| last == "session.status_idle(end_turn)"),
        "{kinds:#?}"
    );
    for (thread, events) in threads(&second.client(), &session).await? {
        ensure!(thread["status"] == "idle", "{thread:#}");
        ensure!(
            count(&events, "agent.message") <= 1,
            "{:#?}",
            shape(&events)
        );
    }
    Ok(())
}

/// Each of twenty-five children waits in its command until all of them are there: they can only end beside each other.
#[tokio::test]
async fn twenty_five_children_work_beside_each_other() -> Result<()> {
    const CHILDREN: usize = 25;
    let world = World::new().await?;
    let here = world.path("here");
    std::fs::create_dir(&here)?;
    let here = here.display();
    let command = format!(
        "touch {here}/$$; while [ $(ls {here} | wc -l) -lt {CHILDREN} ]; do sleep 0.05; done; echo ran"
    );
    let begin: Vec<_> = (0..CHILDREN).map(|n| start(&format!("part {n}"))).collect();
    world.script(&json!([
        {"when": {"system_contains": "You work.", "turn": 0}, "answer": [bash(&command)]},
        {"when": {"system_contains": "You work."}, "answer": "it is done"},
        {"when": {"system_contains": "You lead.", "turn": 0}, "answer": begin},
        {"when": {"system_contains": "You lead."}, "answer": "noted"},
    ]))?;
    let server: Server = world.server().await?;
    let client = server.client();
    let session = session(&client, json!([{"type": "agent_toolset_20260401"}])).await?;
    client.say(&session, "begin").await?;
    let events = settled(&server, &session)
        .await
        .with_context(|| server.log())?;
    ensure!(count(&events, "agent.thread_message_received") == CHILDREN);
    for (_, events) in &threads(&client, &session).await?[1..] {
        let result = events
            .iter()
            .find(|event| event["type"] == "agent.tool_result");
        let result = result.context("a result")?;
        ensure!(
            result["content"][0]["text"]
                .as_str()
                .unwrap_or_default()
                .trim()
                == "ran",
            "{result:#}"
        );
    }
    Ok(())
}
