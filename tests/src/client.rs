//! The API as these tests use it: JSON in, JSON out, and no retries, so that nothing is hidden.

use std::{process::Stdio, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt as _, process::Command, time::Instant};

use crate::{
    stream::Stream,
    world::{DEADLINE, Server},
};

#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    url: String,
    key: String,
}

impl Client {
    #[expect(
        clippy::disallowed_methods,
        reason = "the tests are a client like any other"
    )]
    pub fn new(url: &str, key: &str) -> Self {
        let http = reqwest::Client::builder()
            .no_proxy()
            .connect_timeout(Duration::from_secs(5))
            .build()
            .expect("a plain client");
        Self {
            http,
            url: url.to_owned(),
            key: key.to_owned(),
        }
    }

    pub fn request(&self, method: reqwest::Method, path: &str) -> reqwest::RequestBuilder {
        self.http
            .request(method, format!("{}{path}", self.url))
            .header("authorization", format!("Bearer {}", self.key))
            .header("anthropic-version", "2026-10-21")
            .header("anthropic-beta", "managed-agents-2026-04-01")
    }

    /// The status of a GET; `None` without a connection.
    pub async fn status(&self, path: &str) -> Option<u16> {
        let request = self
            .request(reqwest::Method::GET, path)
            .timeout(Duration::from_secs(2));
        request
            .send()
            .await
            .ok()
            .map(|response| response.status().as_u16())
    }

    pub async fn get(&self, path: &str) -> Result<Value> {
        self.send(self.request(reqwest::Method::GET, path)).await
    }

    /// The body of a GET that is no JSON.
    pub async fn text(&self, path: &str) -> Result<String> {
        let request = self.request(reqwest::Method::GET, path).timeout(DEADLINE);
        Ok(request.send().await?.error_for_status()?.text().await?)
    }

    pub async fn post(&self, path: &str, body: &Value) -> Result<Value> {
        self.send(self.request(reqwest::Method::POST, path).json(body))
            .await
    }

    pub async fn send(&self, request: reqwest::RequestBuilder) -> Result<Value> {
        let response = request.timeout(DEADLINE).send().await?;
        let (status, url) = (response.status(), response.url().clone());
        let text = response.text().await?;
        ensure!(status.is_success(), "{url}: {status} {text}");
        Ok(serde_json::from_str(&text)?)
    }

    /// A session of a fresh agent with these tools.
    pub async fn session(&self, tools: Value) -> Result<String> {
        let name = uuid::Uuid::now_v7().to_string();
        let environment = self
            .post("/v1/environments", &json!({"name": name}))
            .await?;
        let agent = json!({"name": "black box", "model": "mock", "tools": tools});
        let agent = self.post("/v1/agents", &agent).await?;
        let body = json!({"agent": agent["id"], "environment_id": environment["id"]});
        let session = self.post("/v1/sessions", &body).await?;
        Ok(session["id"].as_str().context("an id")?.to_owned())
    }

    /// Sends events and returns them as they were accepted.
    pub async fn events(&self, session: &str, events: Value) -> Result<Vec<Value>> {
        let path = format!("/v1/sessions/{session}/events");
        let accepted = self.post(&path, &json!({"events": events})).await?;
        Ok(accepted["data"].as_array().context("data")?.clone())
    }

    pub async fn say(&self, session: &str, text: &str) -> Result<String> {
        let events = json!([{"type": "user.message", "content": [{"type": "text", "text": text}]}]);
        let accepted = self.events(session, events).await?;
        Ok(accepted[0]["id"].as_str().context("an id")?.to_owned())
    }

    pub async fn list(&self, session: &str) -> Result<Vec<Value>> {
        let mut events = Vec::new();
        let mut page = String::new();
        loop {
            let path = format!("/v1/sessions/{session}/events?limit=1000{page}");
            let body = self.get(&path).await?;
            events.extend(body["data"].as_array().context("data")?.iter().cloned());
            match body["next_page"].as_str() {
                Some(next) => page = format!("&page={next}"),
                None => return Ok(events),
            }
        }
    }

    pub async fn status_of(&self, session: &str) -> Result<String> {
        let session = self.get(&format!("/v1/sessions/{session}")).await?;
        Ok(session["status"].as_str().context("status")?.to_owned())
    }

    /// Waits until the session has this status.
    pub async fn wait_status(&self, session: &str, wanted: &str) -> Result<()> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let status = self.status_of(session).await?;
            if status == wanted {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "{session} is {status}, never {wanted}: {:#?}",
                shape(&self.list(session).await?)
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Opens the stream and returns when its headers are here.
    pub async fn stream(&self, session: &str) -> Result<Stream> {
        self.stream_from(session, None, &[]).await
    }

    pub async fn stream_from(
        &self,
        session: &str,
        position: Option<&str>,
        previews: &[&str],
    ) -> Result<Stream> {
        let path = format!("/v1/sessions/{session}/events/stream");
        let mut request = self.request(reqwest::Method::GET, &path);
        if let Some(position) = position {
            request = request.header("last-event-id", position);
        }
        let previews: Vec<_> = previews
            .iter()
            .map(|name| ("event_deltas[]", *name))
            .collect();
        let response = request.query(&previews).send().await?;
        ensure!(response.status() == 200, "{path}: {}", response.status());
        Ok(Stream::read(response))
    }
}

/// The types of events, for messages and comparisons.
pub fn shape(events: &[Value]) -> Vec<String> {
    events
        .iter()
        .map(|event| {
            let reason = event["stop_reason"]["type"].as_str();
            let error = event["error"]["retry_status"]["type"].as_str();
            let name = event["type"].as_str().unwrap_or("?");
            reason
                .or(error)
                .map_or_else(|| name.to_owned(), |more| format!("{name}({more})"))
        })
        .collect()
}

pub fn count(events: &[Value], name: &str) -> usize {
    events.iter().filter(|event| event["type"] == name).count()
}

/// Hands a log to the one order checker there is, which is the Python suite's.
pub async fn check_order(events: &[Value]) -> Result<()> {
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/sdk/python/support/order.py");
    let mut child = Command::new("python3")
        .arg(program)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("python3 runs the order checker")?;
    let mut input = child.stdin.take().context("stdin")?;
    input.write_all(&serde_json::to_vec(events)?).await?;
    drop(input);
    let output = child.wait_with_output().await?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "illegal order:\n{text}\n{:#?}",
        shape(events)
    );
    Ok(())
}

/// The end of a session's story: idle, its log legal. Returns the log.
pub async fn settled(server: &Server, session: &str) -> Result<Vec<Value>> {
    let client = server.client();
    client.wait_status(session, "idle").await?;
    let events = client.list(session).await?;
    check_order(&events).await?;
    Ok(events)
}
