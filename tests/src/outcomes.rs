//! `kill -9` in the life of an outcome: while the agent works, before, during and after a grading. The next server goes
//! on by itself, the outcome ends as it would have, and no evaluation stands in the log twice.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::{
    client::{count, settled, shape},
    world::World,
};

const VERDICT: &str = "submit_verdict";
const REPORT: &str = "/mnt/session/outputs/report.md";

fn verdict(result: &str) -> Value {
    let criterion = match result {
        "satisfied" => json!({"criterion": "Good", "finding": "It is.", "met": true}),
        _ => {
            json!({"criterion": "Good", "finding": "Not yet.", "met": false, "gap": "g", "change": "c"})
        }
    };
    let input = json!({"criteria": [criterion], "result": result, "summary": "s"});
    json!({"tool": {"name": VERDICT, "input": input}})
}

fn write(text: &str) -> Value {
    json!({"tool": {"name": "write", "input": {"file_path": REPORT, "content": text}}})
}

/// The first work needs revision, the second is good. What a grader says follows from what it sees, so one that begins
/// anew comes to the same verdict.
fn script(world: &World) -> Result<()> {
    let read =
        json!({"tool": {"name": "read", "input": {"file_path": "/mnt/session/outputs/report.md"}}});
    world.script(&json!([
        {"when": {"forced": VERDICT, "contains": "second"}, "answer": [verdict("satisfied")]},
        {"when": {"forced": VERDICT}, "answer": [verdict("needs_revision")]},
        {"when": {"tool": VERDICT, "turn": 0}, "answer": [read]},
        {"when": {"tool": VERDICT}, "answer": "seen"},
        {"when": {"turn": 0}, "answer": [write("first")]},
        {"when": {"turn": 1}, "answer": "one"},
        {"when": {"turn": 2}, "answer": [write("second")]},
        {"answer": "two"},
    ]))
}

async fn crash(point: &str) -> Result<()> {
    let world = World::new().await?;
    script(&world)?;
    let mut first = world.failing(point).await?;
    let client = first.client();
    let session = client
        .session(json!([{"type": "agent_toolset_20260401"}]))
        .await?;
    let rubric = json!({"type": "text", "content": "- Good"});
    let define = json!({"type": "user.define_outcome", "description": "d", "rubric": rubric});
    // The answer may be lost with the server.
    let sent = client.events(&session, json!([define])).await;
    first.ended().await?;
    let second = world.server().await?;
    let client = second.client();
    if client.list(&session).await?.is_empty() {
        ensure!(sent.is_err(), "an accepted outcome is gone");
        client.events(&session, json!([define])).await?;
    }
    let events = settled(&second, &session)
        .await
        .with_context(|| second.log())?;
    let kinds = shape(&events);
    let spans: Vec<_> = events
        .iter()
        .filter(|event| {
            let name = event["type"].as_str().unwrap_or_default();
            name.starts_with("span.outcome_evaluation") && !name.ends_with("ongoing")
        })
        .map(|event| json!([event["iteration"], event["result"]]))
        .collect();
    let expected = [
        json!([0, null]),
        json!([0, "needs_revision"]),
        json!([1, null]),
        json!([1, "satisfied"]),
    ];
    ensure!(spans == expected, "{spans:?} {kinds:#?}");
    ensure!(count(&events, "session.status_idle") == 1, "{kinds:#?}");
    ensure!(count(&events, "agent.tool_result") == 2, "{kinds:#?}");
    let shown = client.get(&format!("/v1/sessions/{session}")).await?;
    let outcome = &shown["outcome_evaluations"][0];
    ensure!(
        outcome["result"] == "satisfied" && outcome["iteration"] == 1,
        "{outcome:#}"
    );
    // With the idle event the list of files is complete.
    let files = client.get(&format!("/v1/files?scope_id={session}")).await?;
    ensure!(
        files["data"]
            .as_array()
            .is_some_and(|files| files.len() == 1),
        "{files:#}"
    );
    let id = files["data"][0]["id"].as_str().context("a file")?;
    let text = client.text(&format!("/v1/files/{id}/content")).await?;
    ensure!(text == "second", "{text:?}");
    Ok(())
}

macro_rules! points {
    ($($name:ident)*) => {
        /// The points that are visited here.
        pub const VISITED: &[&str] = &[$(stringify!($name)),*];
        $(
            #[tokio::test]
            async fn $name() -> Result<()> {
                crash(stringify!($name)).await
            }
        )*
    };
}

points! {
    before_grading
    mid_grading
    before_verdict_commit
    after_verdict_commit
}

/// While the agent works, and in the second grading.
#[tokio::test]
async fn at_other_moments() -> Result<()> {
    for point in [
        "after_input_commit",
        "before_result_commit",
        "before_response_commit:2",
        "after_response_commit:2",
        "before_grading:2",
        "mid_grading:2",
        "before_verdict_commit:2",
        "after_verdict_commit:2",
    ] {
        crash(point).await.with_context(|| point.to_owned())?;
    }
    Ok(())
}
