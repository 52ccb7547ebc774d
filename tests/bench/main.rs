//! The figures of speed, each beside its floor from the same run: `cargo bench -p selfsame-tests`.
//!
//! The server is the binary that `SELFSAME_BIN` names (a release build, or the figures mean little), its database a
//! fresh one on `DATABASE_URL` with fsync on, its model the scripted one in this process, which answers at once.
//! `SELFSAME_BENCH_BACKEND` is `docker` (the default) or `process`.

#[path = "../src/client.rs"]
#[expect(dead_code, reason = "shared with the tests")]
mod client;
#[path = "../src/stream.rs"]
#[expect(dead_code, reason = "shared with the tests")]
mod stream;
#[path = "../src/world.rs"]
#[expect(dead_code, reason = "shared with the tests")]
mod world;

use std::{
    process::Stdio,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt as _, process::Command, task::JoinSet, time::Instant};

use client::Client;
use world::{Server, World};

const BASH: &str = r#"[{"type": "agent_toolset_20260401"}]"#;

#[tokio::main]
async fn main() -> Result<()> {
    let mut table = Table::default();
    let world = World::new().await?;
    world.script(&json!([
        {"name": "tools", "when": {"last_user_contains": "forty calls"}, "times": 40,
         "answer": [{"tool": {"name": "bash", "input": {"command": "true"}}}]},
        {"name": "one", "when": {"last_user_contains": "one call", "tool_results": 0},
         "answer": [{"tool": {"name": "bash", "input": {"command": "true"}}}]},
        {"answer": "ok"},
    ]))?;
    let backend = world::variable("SELFSAME_BENCH_BACKEND").unwrap_or_else(|| "docker".into());
    let settings = [
        ("SELFSAME__SANDBOX__BACKEND", backend.as_str()),
        ("SELFSAME__LOG__LEVEL", "warn"),
        ("SELFSAME__LEASE__TTL_SECONDS", "10"),
    ];
    let server = world.server_with(&settings).await?;
    let commit = commits(&world).await?;
    table.note(&format!(
        "one durable commit: p50 {}, p99 {}",
        ms(p50(&commit)),
        ms(p99(&commit))
    ));

    creates(&server, &commit, &mut table).await?;
    calls(&server, &commit, &backend, &mut table).await?;
    turns(&server, &commit, &mut table).await?;
    appends(&server, &mut table).await?;
    first_requests(&world, &server, &mut table).await?;
    many_at_once(&server, &backend, &mut table).await?;
    drop(server);
    first_results(&world, &backend, &settings, &mut table).await?;
    table.print();
    Ok(())
}

/// Figure 1.
async fn creates(server: &Server, commit: &[Duration], table: &mut Table) -> Result<()> {
    let client = server.client();
    let environment = client
        .post("/v1/environments", &json!({"name": "bench"}))
        .await?["id"]
        .clone();
    let body = json!({"name": "bench", "model": "mock", "system": "You are a bench."});
    let mut agent = Value::Null;
    let mut agents = Vec::new();
    for _ in 0..200 {
        let start = Instant::now();
        agent = client.post("/v1/agents", &body).await?["id"].clone();
        agents.push(start.elapsed());
    }
    let body = json!({"agent": agent, "environment_id": environment});
    let mut sessions = Vec::new();
    for _ in 0..200 {
        let start = Instant::now();
        client.post("/v1/sessions", &body).await?;
        sessions.push(start.elapsed());
    }
    for (name, times) in [
        ("create an agent, p50", agents),
        ("create a session, p50", sessions),
    ] {
        let ratio = p50(&times).as_secs_f64() / p50(commit).as_secs_f64();
        table.row(
            name,
            p50(&times),
            Duration::from_micros(1500),
            &format!("{ratio:.1} commits (target 2)"),
        );
    }
    Ok(())
}

/// Figure 2: from one event's time to the other's, both given by the database under the lock.
async fn calls(
    server: &Server,
    commit: &[Duration],
    backend: &str,
    table: &mut Table,
) -> Result<()> {
    let client = server.client();
    let session = client.session(serde_json::from_str(BASH)?).await?;
    let stream = client.stream(&session).await?;
    client.say(&session, "forty calls").await?;
    stream.wait_idle("end_turn").await?;
    let events = client.list(&session).await?;
    let mut times = Vec::new();
    for result in events
        .iter()
        .filter(|event| event["type"] == "agent.tool_result")
    {
        let call = events
            .iter()
            .find(|event| event["id"] == result["tool_use_id"])
            .context("its call")?;
        times.push(at(result)?.saturating_sub(at(call)?));
    }
    ensure!(times.len() >= 40, "only {} calls", times.len());
    // The first one waited for the sandbox.
    let times = &times[1..];
    let mut floor = format!("commit {}", ms(p50(commit)));
    if backend == "docker" {
        floor.push_str(&format!(", docker exec true {}", docker_exec().await));
    }
    table.row(
        "bash true, call to durable result, p50",
        p50(times),
        Duration::from_millis(5),
        &floor,
    );
    Ok(())
}

/// Figure 3.
async fn turns(server: &Server, commit: &[Duration], table: &mut Table) -> Result<()> {
    let client = server.client();
    let session = client.session(json!([])).await?;
    let mut times = Vec::new();
    for turn in 1..=100 {
        let stream = client.stream(&session).await?;
        let start = Instant::now();
        let id = client.say(&session, &format!("turn {turn}")).await?;
        let idle = stream.wait_idle("end_turn").await?;
        times.push(start.elapsed());
        ensure!(!id.is_empty() && idle.position.is_some());
    }
    let floor = format!("3 commits {}", ms(p50(commit) * 3));
    table.row(
        "a whole turn, send to idle at the client, p50",
        p50(&times),
        Duration::from_millis(8),
        &floor,
    );
    Ok(())
}

/// Figure 4: the time given under the lock against the clock of this machine at the first byte.
async fn appends(server: &Server, table: &mut Table) -> Result<()> {
    const SUBSCRIBERS: usize = 1000;
    let client = server.client();
    let session = client.session(json!([])).await?;
    let mut one = Vec::new();
    {
        let stream = client.stream(&session).await?;
        for number in 0..100 {
            let title = format!("one {number}");
            update(&client, &session, &title).await?;
            let seen = stream
                .wait("the update", |event| event["title"] == title.as_str())
                .await?;
            one.push(seen.received.saturating_sub(at(&seen.event)?));
        }
    }
    table.row(
        "append to the first byte at a client, p50",
        p50(&one),
        Duration::from_millis(3),
        "",
    );
    let mut opening = JoinSet::new();
    for _ in 0..SUBSCRIBERS {
        let (client, session) = (client.clone(), session.clone());
        opening.spawn(async move { client.stream(&session).await });
    }
    let mut streams = Vec::new();
    while let Some(stream) = opening.join_next().await {
        streams.push(stream??);
    }
    let mut last = Vec::new();
    for number in 0..50 {
        let title = format!("many {number}");
        update(&client, &session, &title).await?;
        let mut latest = Duration::ZERO;
        for stream in &streams {
            let seen = stream
                .wait("the update", |event| event["title"] == title.as_str())
                .await?;
            latest = latest.max(seen.received.saturating_sub(at(&seen.event)?));
        }
        last.push(latest);
    }
    table.row(
        "append to the last of 1,000 clients, p99",
        p99(&last),
        Duration::from_millis(25),
        "its clients share the cores",
    );
    Ok(())
}

async fn update(client: &Client, session: &str, title: &str) -> Result<()> {
    client
        .post(&format!("/v1/sessions/{session}"), &json!({"title": title}))
        .await?;
    Ok(())
}

fn opening(agent: &Value, environment: &Value, text: &str) -> Value {
    let message = json!({"type": "user.message", "content": [{"type": "text", "text": text}]});
    json!({"agent": agent, "environment_id": environment, "initial_events": [message]})
}

/// An agent and an environment to make sessions of.
async fn parts(client: &Client, tools: &str) -> Result<(Value, Value)> {
    let tools: Value = serde_json::from_str(tools)?;
    let name = uuid::Uuid::now_v7().to_string();
    let environment = client
        .post("/v1/environments", &json!({"name": name}))
        .await?;
    let agent = client
        .post(
            "/v1/agents",
            &json!({"name": "bench", "model": "mock", "tools": tools}),
        )
        .await?;
    Ok((agent["id"].clone(), environment["id"].clone()))
}

/// Figure 5.
async fn first_requests(world: &World, server: &Server, table: &mut Table) -> Result<()> {
    let client = server.client();
    let (agent, environment) = parts(&client, "[]").await?;
    let mut times = Vec::new();
    for _ in 0..100 {
        let asked = world.model.requests(None).len();
        let start = Instant::now();
        let (model, body) = (world.model.clone(), opening(&agent, &environment, "hi"));
        let arrived = tokio::spawn(async move {
            model.wait_requests(None, asked + 1, false).await;
            Instant::now()
        });
        let session = client.post("/v1/sessions", &body).await?;
        times.push(arrived.await? - start);
        client
            .wait_status(session["id"].as_str().context("id")?, "idle")
            .await?;
    }
    table.row(
        "create a session to its first model request, p50",
        p50(&times),
        Duration::from_millis(10),
        "",
    );
    Ok(())
}

/// Figure 7.
async fn many_at_once(server: &Server, backend: &str, table: &mut Table) -> Result<()> {
    const SESSIONS: usize = 50;
    let client = server.client();
    let (agent, environment) = parts(&client, BASH).await?;
    let start = Instant::now();
    let mut running = JoinSet::new();
    for _ in 0..SESSIONS {
        let (client, body) = (client.clone(), opening(&agent, &environment, "hi"));
        running.spawn(async move {
            let session = client.post("/v1/sessions", &body).await?;
            client
                .wait_status(session["id"].as_str().context("id")?, "idle")
                .await
        });
    }
    while let Some(done) = running.join_next().await {
        done??;
    }
    table.row(
        "50 sessions of one turn at once, all idle",
        start.elapsed(),
        Duration::from_millis(300),
        backend,
    );
    Ok(())
}

/// Figure 6: with a warm pool, without, and after the sandbox was stopped for being idle.
async fn first_results(
    world: &World,
    backend: &str,
    settings: &[(&str, &str)],
    table: &mut Table,
) -> Result<()> {
    for (name, extra, target) in [
        (
            "create a session to its first bash result, warm, p50",
            ("SELFSAME__SANDBOX__WARM", "3"),
            20,
        ),
        (
            "create a session to its first bash result, cold, p50",
            ("SELFSAME__SANDBOX__WARM", "0"),
            300,
        ),
    ] {
        let mut all = settings.to_vec();
        all.push(extra);
        let server = world.server_with(&all).await?;
        let client = server.client();
        let (agent, environment) = parts(&client, BASH).await?;
        let mut times = Vec::new();
        for _ in 0..8 {
            // The pool is full again.
            tokio::time::sleep(Duration::from_secs(3)).await;
            let start = Instant::now();
            let session = client
                .post("/v1/sessions", &opening(&agent, &environment, "one call"))
                .await?;
            let session = session["id"].as_str().context("id")?;
            let stream = client.stream(session).await?;
            stream.wait_type("agent.tool_result").await?;
            times.push(start.elapsed());
            stream.wait_idle("end_turn").await?;
        }
        table.row(name, p50(&times), Duration::from_millis(target), backend);
    }
    let mut all = settings.to_vec();
    all.push(("SELFSAME__SANDBOX__IDLE_STOP_SECONDS", "1"));
    let server = world.server_with(&all).await?;
    let client = server.client();
    let session = client.session(serde_json::from_str(BASH)?).await?;
    let mut times = Vec::new();
    for round in 0..4 {
        let stream = client.stream(&session).await?;
        let start = Instant::now();
        client.say(&session, &format!("one call {round}")).await?;
        stream.wait_type("agent.tool_result").await?;
        times.push(start.elapsed());
        stream.wait_idle("end_turn").await?;
        drop(stream);
        // Longer than the idle time, the reconciler's own period included.
        tokio::time::sleep(Duration::from_secs(15)).await;
    }
    table.row(
        "first bash result after an idle stop, p50",
        p50(&times[1..]),
        Duration::from_millis(300),
        backend,
    );
    Ok(())
}

/// Single-row transactions over one connection of the same Postgres: what a durable step costs at least.
async fn commits(world: &World) -> Result<Vec<Duration>> {
    let mut script = String::from("CREATE TABLE floor (n bigint, body text);\n\\timing on\n");
    for number in 0..300 {
        script.push_str(&format!(
            "INSERT INTO floor VALUES ({number}, repeat('x', 500));\n"
        ));
    }
    let url = &world.database_settings()["SELFSAME__DATABASE__URL"];
    let mut child = Command::new(world::psql_program())
        .args(["-qX", "-d", url])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut input = child.stdin.take().context("stdin")?;
    // Written beside the reading: the output of a long script does not fit into a pipe.
    tokio::spawn(async move { input.write_all(script.as_bytes()).await });
    let output = child.wait_with_output().await?;
    let output = String::from_utf8_lossy(&output.stdout).into_owned();
    let times: Vec<_> = output
        .lines()
        .filter_map(|line| {
            line.strip_prefix("Time: ")?
                .split_whitespace()
                .next()?
                .parse::<f64>()
                .ok()
        })
        .map(|millis| Duration::from_secs_f64(millis / 1000.0))
        .collect();
    ensure!(times.len() == 300, "psql timed {} statements", times.len());
    Ok(times)
}

/// What a call would cost without hands: `docker exec true` in some running container of ours.
async fn docker_exec() -> String {
    let docker = async |arguments: &[&str]| Command::new("docker").args(arguments).output().await;
    let Ok(listed) = docker(&["ps", "-q", "-n", "1"]).await else {
        return "?".into();
    };
    let id = String::from_utf8_lossy(&listed.stdout).trim().to_owned();
    let mut times = Vec::new();
    for _ in 0..10 {
        let start = Instant::now();
        match docker(&["exec", &id, "true"]).await {
            Ok(output) if output.status.success() => times.push(start.elapsed()),
            _ => return "?".into(),
        }
    }
    ms(p50(&times))
}

/// An event's `processed_at`, since the epoch.
fn at(event: &Value) -> Result<Duration> {
    let text = event["processed_at"].as_str().context("processed_at")?;
    // 2026-11-20T10:00:00.123456Z of today: only the time of day is compared, and midnight is not benched.
    let clock = text
        .split('T')
        .nth(1)
        .and_then(|rest| rest.strip_suffix('Z'))
        .context("a time")?;
    let mut parts = clock.split(':').map(str::parse::<f64>);
    let mut part = || parts.next().context("a part")?.context("a number");
    let seconds = part()? * 3600.0 + part()? * 60.0 + part()?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    Ok(Duration::from_secs(now - now % 86_400) + Duration::from_secs_f64(seconds))
}

fn percentile(times: &[Duration], share: f64) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index"
    )]
    let index = ((sorted.len() as f64 - 1.0) * share).round() as usize;
    sorted[index]
}

fn p50(times: &[Duration]) -> Duration {
    percentile(times, 0.5)
}

fn p99(times: &[Duration]) -> Duration {
    percentile(times, 0.99)
}

fn ms(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1000.0)
}

#[derive(Default)]
struct Table {
    notes: Vec<String>,
    rows: Vec<[String; 5]>,
}

impl Table {
    fn note(&mut self, text: &str) {
        eprintln!("{text}");
        self.notes.push(text.to_owned());
    }

    fn row(&mut self, name: &str, measured: Duration, target: Duration, floor: &str) {
        let ratio = measured.as_secs_f64() / target.as_secs_f64();
        let row = [
            name.to_owned(),
            ms(measured),
            ms(target),
            format!("{ratio:.2}"),
            floor.to_owned(),
        ];
        eprintln!("{}", row.join("  "));
        self.rows.push(row);
    }

    fn print(&self) {
        println!("{}\n", self.notes.join("\n"));
        println!(
            "| figure | measured | target | measured / target | floor |\n| --- | ---: | ---: | ---: | --- |"
        );
        for row in &self.rows {
            println!("| {} |", row.join(" | "));
        }
    }
}
