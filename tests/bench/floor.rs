//! Floors: what the disk and a server without anything to do cost on this machine, in this run.

use std::{convert::Infallible, process::Stdio, time::Duration};

use anyhow::{Context as _, Result, ensure};
use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    response::Response,
    routing::{get, post},
};
use futures_util::stream;
use tokio::{
    io::AsyncWriteExt as _, net::TcpListener, process::Command, sync::broadcast, time::Instant,
};

use crate::{
    report::Sample,
    world::{self, World},
};

/// Single-row transactions over one connection to the same Postgres: what a durable step costs at least.
pub async fn commits(world: &World) -> Result<Sample> {
    const COUNT: usize = 150;
    let mut script = String::from(
        "SET client_min_messages = error;\n\
         CREATE TABLE IF NOT EXISTS floor (n bigint, body text);\n\\timing on\n",
    );
    for number in 0..COUNT {
        script.push_str(&format!(
            "INSERT INTO floor VALUES ({number}, repeat('x', 500));\n"
        ));
    }
    let output = psql(world, &["-q"], script).await?;
    let times: Vec<_> = output
        .lines()
        .filter_map(|line| {
            let rest = line.strip_prefix("Time: ")?;
            rest.split_whitespace().next()?.parse::<f64>().ok()
        })
        .map(|millis| Duration::from_secs_f64(millis / 1000.0))
        .collect();
    ensure!(
        times.len() == COUNT,
        "psql timed {} statements",
        times.len()
    );
    Ok(Sample::new(times))
}

/// Commits per second over many connections at once: what sessions side by side may have.
pub async fn commits_at_once(world: &World) -> Result<f64> {
    const CONNECTIONS: usize = 16;
    const EACH: usize = 250;
    let begin = Instant::now();
    let mut running = tokio::task::JoinSet::new();
    for _ in 0..CONNECTIONS {
        let url = world.database_settings()["SELFSAME__DATABASE__URL"].clone();
        let script = "INSERT INTO floor VALUES (0, repeat('x', 500));\n".repeat(EACH);
        running.spawn(async move { psql_on(&url, &["-q"], script).await });
    }
    while let Some(done) = running.join_next().await {
        done??;
    }
    #[expect(clippy::cast_precision_loss, reason = "a few thousand")]
    Ok((CONNECTIONS * EACH) as f64 / begin.elapsed().as_secs_f64())
}

/// One value of the world's database.
pub async fn query(world: &World, sql: &str) -> Result<String> {
    Ok(psql(world, &["-qAt"], format!("{sql};\n"))
        .await?
        .trim()
        .to_owned())
}

async fn psql(world: &World, arguments: &[&str], script: String) -> Result<String> {
    let url = &world.database_settings()["SELFSAME__DATABASE__URL"];
    psql_on(url, arguments, script).await
}

async fn psql_on(url: &str, arguments: &[&str], script: String) -> Result<String> {
    let mut child = Command::new(world::psql_program())
        .args(["-X", "-d", url])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut input = child.stdin.take().context("stdin")?;
    // Written beside the reading: the output of a long script does not fit into a pipe.
    tokio::spawn(async move { input.write_all(script.as_bytes()).await });
    let output = child.wait_with_output().await?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A bare axum server: it answers a body with the body, and broadcasts it to whoever listens.
pub struct Bare {
    pub address: String,
    task: tokio::task::JoinHandle<std::io::Result<()>>,
}

impl Drop for Bare {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Bare {
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?.to_string();
        let (send, _) = broadcast::channel::<Bytes>(64);
        let router = Router::new()
            .route("/echo", post(async |body: Bytes| body))
            .route("/publish", post(publish))
            .route("/stream", get(subscribe))
            .with_state(send);
        let task = tokio::spawn(async move {
            use axum::serve::ListenerExt as _;
            let listener = listener.tap_io(|socket| {
                let _ = socket.set_nodelay(true);
            });
            axum::serve(listener, router).await
        });
        Ok(Self { address, task })
    }
}

async fn publish(State(send): State<broadcast::Sender<Bytes>>, body: Bytes) {
    let frame = [b"event: session.updated\ndata: ", &*body, b"\n\n"].concat();
    let _ = send.send(frame.into());
}

async fn subscribe(State(send): State<broadcast::Sender<Bytes>>) -> Response {
    let frames = stream::unfold(send.subscribe(), |mut receive| async move {
        let frame = receive.recv().await.ok()?;
        Some((Ok::<_, Infallible>(frame), receive))
    });
    let mut response = Response::new(Body::from_stream(frames));
    response.headers_mut().insert(
        "content-type",
        axum::http::HeaderValue::from_static("text/event-stream"),
    );
    response
}

/// One request with a small JSON body to the bare server and back.
pub async fn echo(bare: &Bare, http: &reqwest::Client) -> Result<Sample> {
    let url = format!("http://{}/echo", bare.address);
    let body = serde_json::json!({"name": "bench", "text": "x".repeat(400)});
    let mut times = Vec::new();
    for _ in 0..300 {
        let begin = Instant::now();
        let response = http.post(&url).json(&body).send().await?;
        let answer: serde_json::Value = response.json().await?;
        times.push(begin.elapsed());
        ensure!(answer == body);
    }
    Ok(Sample::new(times))
}
