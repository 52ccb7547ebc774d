//! Images and documents by file id and by address: what the log keeps, and what the model is shown.

use anyhow::{Context as _, Result, ensure};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    client::{Client, settled},
    site::{PNG, Site},
    workbench::upload,
    world::{Server, World},
};

async fn server(world: &World, site: &Site) -> Result<Server> {
    let settings = site.settings();
    let settings: Vec<_> = settings.iter().map(|(k, v)| (*k, v.as_str())).collect();
    world.server_with(&settings).await
}

/// The blocks of the messages that the model's latest request had.
fn shown(world: &World) -> Result<Vec<Value>> {
    let requests = world.model.requests(None);
    let body: Value = serde_json::from_str(&requests.last().context("a request")?.body)?;
    Ok(body["messages"]
        .as_array()
        .context("messages")?
        .iter()
        .filter(|message| message["role"] == "user")
        .flat_map(|message| message["content"].as_array().cloned().unwrap_or_default())
        .map(|mut block| {
            if let Some(block) = block.as_object_mut() {
                block.remove("cache_control");
            }
            block
        })
        .collect())
}

fn message(blocks: Value) -> Value {
    json!([{"type": "user.message", "content": blocks}])
}

fn by_id(block: &str, id: &str) -> Value {
    json!({"type": block, "source": {"type": "file", "file_id": id}})
}

fn by_url(block: &str, url: &str) -> Value {
    json!({"type": block, "source": {"type": "url", "url": url}})
}

const PNG_BASE64: &str = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJ";

fn png() -> Value {
    json!({
        "type": "image",
        "source": {"type": "base64", "media_type": "image/png", "data": PNG_BASE64},
    })
}

async fn post(client: &Client, session: &str, events: Value) -> Result<(u16, String)> {
    let path = format!("/v1/sessions/{session}/events");
    let request = client
        .request(Method::POST, &path)
        .json(&json!({"events": events}));
    let response = request.send().await?;
    Ok((response.status().as_u16(), response.text().await?))
}

#[tokio::test]
async fn addresses_are_read_once_and_for_all() -> Result<()> {
    let (world, site) = (World::new().await?, Site::start().await?);
    let server = server(&world, &site).await?;
    let client = server.client();
    let session = client.session(json!([])).await?;
    let url = |path: &str| format!("{}{path}", site.url);
    let blocks = json!([
        by_url("image", &url("/image.png")),
        {"type": "document", "title": "Paper", "context": "c", "source": {"type": "url", "url": url("/paper.pdf")}},
        by_url("document", &url("/notes.txt")),
        by_url("document", &url("/page")),
        by_url("image", &url("/gone")),
        by_url("image", &url("/notes.txt")),
        by_url("image", "http://10.0.0.1/inside.png"),
        {"type": "text", "text": "look"},
    ]);
    client.events(&session, message(blocks.clone())).await?;
    let events = settled(&server, &session).await?;
    let kept = events
        .iter()
        .find(|event| event["type"] == "user.message")
        .context("the message")?;
    ensure!(
        kept["content"] == blocks,
        "the log keeps what was sent: {kept:#}"
    );

    let first = shown(&world)?;
    ensure!(first[0] == png(), "{:#}", first[0]);
    ensure!(
        first[1]
            == json!({
                "type": "document", "title": "Paper", "context": "c",
                "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0xLjQgcGFwZXI="},
            }),
        "{:#}",
        first[1]
    );
    let text = |data: &str| json!({"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": data}});
    ensure!(first[2] == text("just notes"), "{:#}", first[2]);
    ensure!(
        first[3]["source"]["data"]
            .as_str()
            .is_some_and(|page| page.starts_with("# Heading")),
        "{:#}",
        first[3]
    );
    for (block, words) in [
        (&first[4], "HTTP 404"),
        (&first[5], "it is not an image"),
        (&first[6], "`10.0.0.1` is not a public address"),
    ] {
        ensure!(
            block["type"] == "text"
                && block["text"]
                    .as_str()
                    .is_some_and(|text| text.contains(words)),
            "{words}: {block:#}"
        );
    }

    // The next turn shows the same, and nobody is asked again: not by another server, either.
    let asked = site.requests().len();
    client.say(&session, "again").await?;
    settled(&server, &session).await?;
    ensure!(
        shown(&world)?[..first.len()] == first[..],
        "the prompt's beginning has changed"
    );
    drop(server);
    let server = self::server(&world, &site).await?;
    server.client().say(&session, "and again").await?;
    settled(&server, &session).await?;
    ensure!(
        shown(&world)?[..first.len()] == first[..],
        "the prompt's beginning has changed"
    );
    ensure!(site.requests().len() == asked, "{:?}", site.requests());
    Ok(())
}

#[tokio::test]
async fn files_are_kept_for_the_session() -> Result<()> {
    let (world, site) = (World::new().await?, Site::start().await?);
    let server = server(&world, &site).await?;
    let client = server.client();
    let image = upload(&client, "i.bin", PNG).await?;
    let paper = upload(&client, "p.pdf", "%PDF-1.4 paper").await?;
    let notes = upload(&client, "n.md", "# notes").await?;
    let zip = upload(&client, "z.zip", &b"PK\x03\x04\0\0"[..]).await?;
    let custom = json!([{"type": "custom", "name": "ask", "description": "d", "input_schema": {"type": "object"}}]);
    let session = client.session(custom).await?;

    for (block, words) in [
        (by_id("document", &image), "use an `image` block"),
        (by_id("image", &paper), "is not an image"),
        (by_id("document", &zip), "is not a document"),
        (by_id("image", "file_011111111111111111111111"), "file_id"),
    ] {
        let events = message(json!([{"type": "text", "text": "x"}, block]));
        let (status, text) = post(&client, &session, events).await?;
        ensure!(
            status == 400 && text.contains(words),
            "{words}: {status} {text}"
        );
        ensure!(
            text.contains("user.message event at events[0]: content[1]"),
            "{text}"
        );
    }
    let hundred: Vec<_> = (0..101).map(|_| by_id("document", &notes)).collect();
    let (status, text) = post(&client, &session, message(json!(hundred))).await?;
    ensure!(
        status == 400 && text.contains("at most 100 documents"),
        "{status} {text}"
    );
    ensure!(
        client.list(&session).await?.is_empty(),
        "something was accepted"
    );

    let blocks = json!([by_id("image", &image), by_id("document", &paper), {"type": "text", "text": "!tool ask"}]);
    client.events(&session, message(blocks.clone())).await?;
    client.wait_status(&session, "idle").await?;
    let events = client.list(&session).await?;
    let call = events
        .iter()
        .find(|e| e["type"] == "agent.custom_tool_use")
        .context("a call")?;
    // The files may go now.
    for id in [&image, &paper] {
        let gone = client
            .request(Method::DELETE, &format!("/v1/files/{id}"))
            .send()
            .await?;
        ensure!(gone.status().is_success(), "{}", gone.status());
    }
    let answer = json!([{
        "type": "user.custom_tool_result", "custom_tool_use_id": call["id"],
        "content": [by_id("document", &notes)],
    }]);
    client.events(&session, answer).await?;
    let events = settled(&server, &session).await?;
    ensure!(
        events.iter().any(|event| event["content"] == blocks),
        "the log keeps what was sent"
    );
    let first = shown(&world)?;
    ensure!(first[0] == png(), "{:#}", first[0]);
    ensure!(
        first[1]["source"]["media_type"] == "application/pdf",
        "{:#}",
        first[1]
    );
    let result = first
        .iter()
        .find(|block| block["type"] == "tool_result")
        .context("a result")?;
    ensure!(
        result["content"][0]["source"]
            == json!({"type": "text", "media_type": "text/plain", "data": "# notes"}),
        "{result:#}"
    );

    // A file that is gone cannot be named any more; what was shown stays.
    let (status, text) = post(&client, &session, message(json!([by_id("image", &image)]))).await?;
    ensure!(
        status == 400 && text.contains("there is no file"),
        "{status} {text}"
    );
    client.say(&session, "again").await?;
    settled(&server, &session).await?;
    ensure!(
        shown(&world)?[..first.len()] == first[..],
        "the prompt's beginning has changed"
    );

    // A session may begin with one.
    let session = client.get(&format!("/v1/sessions/{session}")).await?;
    let body = json!({
        "agent": session["agent"]["id"], "environment_id": session["environment_id"],
        "initial_events": message(json!([by_id("document", &notes)])),
    });
    let begun = client.post("/v1/sessions", &body).await?;
    settled(&server, begun["id"].as_str().context("id")?).await?;
    ensure!(
        shown(&world)?[0]["source"]["data"] == "# notes",
        "{:#?}",
        shown(&world)?
    );
    let body = json!({
        "agent": session["agent"]["id"], "environment_id": session["environment_id"],
        "initial_events": message(json!([by_id("document", &image)])),
    });
    let response = client
        .request(Method::POST, "/v1/sessions")
        .json(&body)
        .send()
        .await?;
    let (status, text) = (response.status(), response.text().await?);
    ensure!(
        status == 400 && text.contains("event at initial_events[0]: content[0]"),
        "{text}"
    );
    Ok(())
}
