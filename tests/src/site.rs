//! A small web of one host: pages, and the search of a SearXNG, on loopback.

use std::sync::{Arc, Mutex};

use anyhow::{Context as _, Result};
use axum::{
    Router,
    body::Body,
    extract::State,
    http::{Request, Response},
};
use serde_json::json;
use tokio::{
    net::TcpListener,
    sync::Notify,
    task::AbortHandle,
    time::{Instant, timeout_at},
};

use crate::world::DEADLINE;

/// The smallest PNG there is, nearly.
pub const PNG: &[u8] =
    b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x01\0\0\0\x01\x08\x06\0\0\0\x1f\x15\xc4\x89";

#[derive(Default)]
struct Seen {
    paths: Mutex<Vec<String>>,
    arrived: Notify,
    /// From now on nothing hangs.
    open: Mutex<bool>,
    opened: Notify,
}

pub struct Site {
    pub url: String,
    seen: Arc<Seen>,
    server: AbortHandle,
}

impl Drop for Site {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Site {
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let seen = Arc::new(Seen::default());
        let router = Router::new()
            .fallback(answer)
            .with_state((Arc::clone(&seen), url.clone()));
        let server = tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(Self {
            url,
            seen,
            server: server.abort_handle(),
        })
    }

    /// Paths and queries of all requests so far.
    pub fn requests(&self) -> Vec<String> {
        self.seen.paths.lock().unwrap().clone()
    }

    pub fn count(&self, part: &str) -> usize {
        self.requests()
            .iter()
            .filter(|path| path.contains(part))
            .count()
    }

    /// Waits until so many requests have had this in their path.
    pub async fn wait(&self, part: &str, count: usize) -> Result<()> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let arrived = self.seen.arrived.notified();
            if self.count(part) >= count {
                return Ok(());
            }
            timeout_at(deadline, arrived)
                .await
                .with_context(|| format!("never {part}: {:?}", self.requests()))?;
        }
    }

    /// Lets what hangs go on, now and from now on.
    pub fn open(&self) {
        *self.seen.open.lock().unwrap() = true;
        self.seen.opened.notify_waiters();
    }

    /// What a server needs to reach this.
    pub fn settings(&self) -> Vec<(&'static str, String)> {
        vec![
            (
                "SELFSAME__NET__ALLOWED_RANGES",
                r#"["127.0.0.1/32"]"#.to_owned(),
            ),
            ("SELFSAME__WEB__SEARCH_BACKEND", "searxng".to_owned()),
            ("SELFSAME__WEB__SEARCH_URL", self.url.clone()),
        ]
    }
}

async fn answer(
    State((seen, url)): State<(Arc<Seen>, String)>,
    request: Request<Body>,
) -> Response<Body> {
    let path = request.uri().to_string();
    seen.paths.lock().unwrap().push(path.clone());
    seen.arrived.notify_waiters();
    if path.contains("slow") {
        let opened = seen.opened.notified();
        if !*seen.open.lock().unwrap() {
            opened.await;
        }
    }
    let (content_type, body) = match request.uri().path() {
        "/search" => (
            "application/json",
            json!({"query": "q", "results": [
                {"url": format!("{url}/found"), "title": "Found", "content": "What was sought."},
                {"url": "https://elsewhere.test/", "title": "Elsewhere", "content": "Not this."},
            ]})
            .to_string()
            .into_bytes(),
        ),
        "/image.png" => ("image/png", PNG.to_vec()),
        "/paper.pdf" => ("application/pdf", b"%PDF-1.4 paper".to_vec()),
        "/notes.txt" => ("text/plain", b"just notes".to_vec()),
        "/long" => ("text/plain", b"0123456789".repeat(20_000)),
        "/gone" => {
            let mut gone = Response::new(Body::empty());
            *gone.status_mut() = axum::http::StatusCode::NOT_FOUND;
            return gone;
        }
        _ => (
            "text/html; charset=utf-8",
            format!(
                "<html><head><title>A page</title></head><body><nav>menu</nav><h1>Heading</h1>\
                 <p>Read <a href=\"/next\">on</a>.</p><script>evil()</script><p>{path}</p></body></html>"
            )
            .into_bytes(),
        ),
    };
    Response::builder()
        .header("content-type", content_type)
        .body(Body::from(body))
        .expect("a response")
}
