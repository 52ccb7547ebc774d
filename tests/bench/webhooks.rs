//! Figure: queued deliveries to a fast receiver, beside endpoints that are dead.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use anyhow::{Context as _, Result, ensure};
use axum::{Router, extract::State, http::StatusCode, routing::post};
use serde_json::json;
use tokio::{
    net::TcpListener,
    sync::Notify,
    time::{Duration, Instant, timeout},
};

use crate::{Bench, client::Client, floor, report::Figure, world::Server};

const COUNT: usize = 10_000;
const ROUNDS: usize = 5;
/// The machine may be busy with other things.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Default)]
struct Seen {
    count: AtomicUsize,
    changed: Notify,
}

pub(crate) async fn webhooks(bench: &mut Bench) -> Result<()> {
    let server = bench
        .server(&[
            ("SELFSAME__WEBHOOKS__ALLOW_HTTP", "true"),
            ("SELFSAME__WEBHOOKS__ALLOWED_RANGES", r#"["127.0.0.1/32"]"#),
        ])
        .await?;
    let client = server.client();
    let seen = Arc::new(Seen::default());
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let good = format!("http://{}/hook", listener.local_addr()?);
    let router = Router::new()
        .route("/hook", post(receive))
        .with_state(seen.clone());
    let receiver = tokio::spawn(async move { axum::serve(listener, router).await });
    // Takes connections and never says anything; and nobody at all.
    let silent = TcpListener::bind("127.0.0.1:0").await?;
    let nobody = TcpListener::bind("127.0.0.1:0").await?.local_addr()?;
    let silent_url = format!("http://{}/hook", silent.local_addr()?);
    let endpoint = endpoint(&client, &good).await?;
    for dead in [silent_url, format!("http://{nobody}/hook")] {
        let dead = self::endpoint(&client, &dead).await?;
        queue(bench, &dead, COUNT / 10).await?;
    }
    let mut rates = Vec::new();
    for _ in 0..ROUNDS {
        rates.push(round(bench, &server, &endpoint, &seen).await?);
    }
    receiver.abort();
    rates.sort_by(f64::total_cmp);
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let all: Vec<_> = rates.iter().map(|rate| format!("{rate:.0}")).collect();
    let figure = Figure::rate(
        "webhooks: queued deliveries to a fast receiver",
        rates[ROUNDS / 2],
        "per second",
    )
    .target(1500.0)
    .note(format!("{COUNT} each time, median of {}", all.join(", ")))
    .note("beside an endpoint that never answers and one that is not there")
    .note(format!("load {}", load.split(' ').next().unwrap_or("?")));
    bench.report.add(figure);
    Ok(())
}

async fn receive(State(seen): State<Arc<Seen>>) -> StatusCode {
    seen.count.fetch_add(1, Ordering::Relaxed);
    seen.changed.notify_one();
    StatusCode::NO_CONTENT
}

/// An endpoint of this address; answers its id as the database has it.
async fn endpoint(client: &Client, url: &str) -> Result<String> {
    let body = json!({"url": url, "enabled_events": ["agent.created"], "name": url});
    client.post("/v1/webhook_endpoints", &body).await?;
    Ok(url.to_owned())
}

/// Puts deliveries to the endpoint with this name into the outbox, in one transaction.
async fn queue(bench: &Bench, name: &str, count: usize) -> Result<()> {
    let body = r#"{"type":"event","id":"whe_01111111111111111111111","created_at":"2026-01-01T00:00:00.000000Z","data":{"type":"agent.created","id":"agent_011111111111111111111111","organization_id":"org_011111111111111111111111","workspace_id":"wrkspc_011111111111111111111111"}}"#;
    let sql = format!(
        "WITH endpoint AS (SELECT id, workspace_id FROM webhook_endpoints WHERE name = '{name}'), \
         made AS (INSERT INTO webhook_events (id, workspace_id, type, body, created_at) \
                  SELECT gen_random_uuid(), workspace_id, 'agent.created', '{body}', clock_timestamp() \
                  FROM endpoint, generate_series(1, {count}) RETURNING id) \
         INSERT INTO webhook_deliveries (endpoint_id, event_id, next_at) \
         SELECT endpoint.id, made.id, clock_timestamp() FROM endpoint, made"
    );
    floor::query(&bench.world, &sql).await?;
    Ok(())
}

/// From the first delivery to the last one, per second.
async fn round(bench: &Bench, server: &Server, endpoint: &str, seen: &Seen) -> Result<f64> {
    let before = seen.count.load(Ordering::Relaxed);
    queue(bench, endpoint, COUNT).await?;
    wait(server, seen, before + 1).await?;
    let begin = Instant::now();
    let at_begin = seen.count.load(Ordering::Relaxed);
    wait(server, seen, before + COUNT).await?;
    let took = begin.elapsed();
    let delivered = before + COUNT - at_begin;
    // Not before they are on record, or the next round would have their work, too.
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = floor::query(
            &bench.world,
            &format!(
                "SELECT count(*) FROM webhook_deliveries d JOIN webhook_endpoints w ON w.id = d.endpoint_id \
                 WHERE w.name = '{endpoint}' AND d.status <> 'delivered'"
            ),
        )
        .await?;
        if left == "0" {
            break;
        }
        ensure!(
            Instant::now() < deadline,
            "{left} are never recorded:\n{}",
            server.log()
        );
    }
    #[expect(clippy::cast_precision_loss, reason = "a few thousand")]
    Ok(delivered as f64 / took.as_secs_f64())
}

async fn wait(server: &Server, seen: &Seen, count: usize) -> Result<()> {
    let reached = async {
        while seen.count.load(Ordering::Relaxed) < count {
            seen.changed.notified().await;
        }
    };
    timeout(PATIENCE, reached)
        .await
        .with_context(|| format!("not delivered in time:\n{}", server.log()))
}
