//! A receiver of webhooks on loopback that does as its path says.

use std::sync::{Arc, Mutex};

use anyhow::{Context as _, Result};
use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use serde_json::Value;
use tokio::{
    net::TcpListener,
    sync::Notify,
    task::AbortHandle,
    time::{Instant, timeout_at},
};

use crate::world::DEADLINE;

/// One request, as it came.
#[derive(Debug, Clone)]
pub struct Received {
    pub path: String,
    pub id: String,
    pub timestamp: String,
    pub signature: String,
    pub body: Value,
}

impl Received {
    pub fn event(&self) -> &str {
        self.body["data"]["type"].as_str().unwrap_or_default()
    }
}

#[derive(Default)]
struct Seen {
    all: Mutex<Vec<Received>>,
    arrived: Notify,
    open: Mutex<bool>,
    opened: Notify,
}

pub struct Receiver {
    pub url: String,
    pub port: u16,
    seen: Arc<Seen>,
    server: AbortHandle,
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Receiver {
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let seen = Arc::new(Seen::default());
        let router = Router::new().fallback(answer).with_state(seen.clone());
        let server = tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(Self {
            url: format!("http://127.0.0.1:{port}"),
            port,
            seen,
            server: server.abort_handle(),
        })
    }

    /// All requests so far whose path has this in it.
    pub fn requests(&self, part: &str) -> Vec<Received> {
        let all = self.seen.all.lock().unwrap();
        let found = all.iter().filter(|received| received.path.contains(part));
        found.cloned().collect()
    }

    /// Waits until the requests satisfy a condition.
    pub async fn wait(
        &self,
        part: &str,
        what: &str,
        enough: impl Fn(&[Received]) -> bool,
    ) -> Result<Vec<Received>> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let arrived = self.seen.arrived.notified();
            let requests = self.requests(part);
            if enough(&requests) {
                return Ok(requests);
            }
            timeout_at(deadline, arrived)
                .await
                .with_context(|| format!("never {what}: {requests:#?}"))?;
        }
    }

    /// Waits for so many requests.
    pub async fn wait_count(&self, part: &str, count: usize) -> Result<Vec<Received>> {
        let what = format!("{count} requests at {part}");
        self.wait(part, &what, |requests| requests.len() >= count)
            .await
    }

    /// Lets what hangs be answered, now and from now on.
    pub fn open(&self) {
        *self.seen.open.lock().unwrap() = true;
        self.seen.opened.notify_waiters();
    }
}

async fn answer(
    State(seen): State<Arc<Seen>>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let header = |name: &str| {
        let value = headers.get(name).and_then(|value| value.to_str().ok());
        value.unwrap_or_default().to_owned()
    };
    let path = uri.path().to_owned();
    let before = {
        let mut all = seen.all.lock().unwrap();
        let before = all.iter().filter(|received| received.path == path).count();
        all.push(Received {
            path: path.clone(),
            id: header("webhook-id"),
            timestamp: header("webhook-timestamp"),
            signature: header("webhook-signature"),
            body: serde_json::from_slice(&body).unwrap_or_default(),
        });
        before
    };
    seen.arrived.notify_waiters();
    if path.starts_with("/hang") {
        let opened = seen.opened.notified();
        if !*seen.open.lock().unwrap() {
            opened.await;
        }
    }
    if path.starts_with("/wrong") {
        return (StatusCode::INTERNAL_SERVER_ERROR, "no such table\0").into_response();
    }
    if path.starts_with("/redirect") {
        return (StatusCode::FOUND, [(header::LOCATION, "/elsewhere")]).into_response();
    }
    // The first request alone.
    if path.starts_with("/flaky") && before == 0 {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    StatusCode::NO_CONTENT.into_response()
}
