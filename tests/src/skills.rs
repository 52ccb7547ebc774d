//! Skills of an agent in a real container: there, read-only, announced, and of use.

use anyhow::{Context as _, Result, ensure};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    client::{Client, check_order, settled},
    docker,
    world::World,
};

/// Uploads a skill whose directory is `directory`; `says` is what its script prints.
async fn upload(client: &Client, directory: &str, title: &str, says: &str) -> Result<String> {
    let front = "---\nname: tables\ndescription: Reads tables.\n---\nRun scripts/read.sh.\n";
    let script = format!("#!/bin/sh\necho {says}\n");
    let mut body = format!(
        "--edge\r\ncontent-disposition: form-data; name=\"display_title\"\r\n\r\n{title}\r\n"
    );
    for (path, text) in [("SKILL.md", front), ("scripts/read.sh", &*script)] {
        body += &format!(
            "--edge\r\ncontent-disposition: form-data; name=\"files[]\"; filename=\"{directory}/{path}\"\r\n\
             content-type: application/octet-stream\r\n\r\n{text}\r\n"
        );
    }
    body += "--edge--\r\n";
    let response = client
        .request(Method::POST, "/v1/skills")
        .header("content-type", "multipart/form-data; boundary=edge")
        .body(body)
        .send()
        .await?;
    ensure!(response.status().is_success(), "{}", response.text().await?);
    let skill: Value = response.json().await?;
    Ok(skill["id"].as_str().context("an id")?.to_owned())
}

#[tokio::test]
async fn skills_of_one_name_are_there_read_only_and_announced() -> Result<()> {
    let world = World::new().await?;
    let (server, _deployment) = docker::server(&world, &[]).await?;
    let client = server.client();
    let first = upload(&client, "tables", "The first", "first").await?;
    let second = upload(&client, "tables", "The second", "second").await?;
    let name = uuid::Uuid::now_v7().to_string();
    let environment = json!({"name": name});
    let environment = client.post("/v1/environments", &environment).await?;
    let agent = json!({
        "name": "reader", "model": "mock", "tools": [{"type": "agent_toolset_20260401"}],
        "skills": [
            {"type": "custom", "skill_id": first, "version": "latest"},
            {"type": "custom", "skill_id": second, "version": "latest"},
        ],
    });
    let agent = client.post("/v1/agents", &agent).await?;
    let session = json!({"agent": agent["id"], "environment_id": environment["id"]});
    let session = client.post("/v1/sessions", &session).await?;
    let session = session["id"].as_str().context("an id")?;

    // Where they are is what the model is told, and nothing else.
    client.say(session, "hello").await?;
    settled(&server, session).await?;
    let request = world.model.requests(None).pop().context("a request")?;
    let body: Value = serde_json::from_str(&request.body)?;
    let system = body["system"].to_string();
    let mut places: Vec<&str> = system
        .split(|c: char| c.is_whitespace() || "`()\"\\<>".contains(c))
        .filter_map(|word| word.strip_suffix("/SKILL.md"))
        .collect();
    places.sort_unstable();
    places.dedup();
    ensure!(places.len() == 2, "two skills are announced: {system}");
    ensure!(system.contains("Reads tables."), "{system}");

    let mut commands = Vec::new();
    for place in &places {
        commands.push(format!("!bash sh {place}/scripts/read.sh"));
        commands.push(format!("!bash stat -c %a {place}/SKILL.md"));
        commands.push(format!("!write {place}/SKILL.md mine"));
    }
    client.say(session, &commands.join("\n")).await?;
    let events = settled(&server, session).await?;
    check_order(&events).await?;
    let said: Vec<(&str, bool)> = events
        .iter()
        .filter(|event| event["type"] == "agent.tool_result")
        .map(|event| {
            let text = event["content"][0]["text"].as_str().unwrap_or("");
            (text.trim(), event["is_error"] == true)
        })
        .collect();
    ensure!(said.len() == commands.len(), "{said:#?}");
    let mut read: Vec<&str> = said.iter().step_by(3).map(|(text, _)| *text).collect();
    read.sort_unstable();
    ensure!(read == ["first", "second"], "{said:#?}");
    for (text, failed) in said.iter().skip(1).step_by(3) {
        ensure!(!failed && *text == "444", "{said:#?}");
    }
    for (text, failed) in said.iter().skip(2).step_by(3) {
        ensure!(*failed && text.contains("read-only"), "{said:#?}");
    }
    Ok(())
}
