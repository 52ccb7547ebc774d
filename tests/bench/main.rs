//! The figures of speed of the design, each beside its floor from the same run: `./dev bench`.
//!
//! The server is the binary that `SELFSAME_BIN` names (an optimised build, or the figures mean little), its database
//! a fresh one on `DATABASE_URL` with fsync on, its model the scripted one in this process, which answers at once.
//! All times are taken here, by this process's monotonic clock: from the first byte sent to the read that brought
//! the last one.

#[path = "../src/client.rs"]
#[expect(dead_code, reason = "shared with the tests")]
mod client;
#[path = "../src/stream.rs"]
#[expect(dead_code, reason = "shared with the tests")]
mod stream;
#[path = "../src/world.rs"]
#[expect(dead_code, reason = "shared with the tests")]
mod world;

mod docker;
mod door;
mod figures;
mod first;
mod floor;
mod load;
mod report;
mod tap;
mod webhooks;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use client::Client;
use docker::Docker;
use report::{Report, Sample};
use tap::Tap;
use world::{Server, World};

/// What all figures share.
struct Bench {
    world: World,
    report: Report,
    docker: Option<Docker>,
    /// Floor: one durable commit.
    commit: Sample,
}

#[tokio::main]
async fn main() -> Result<()> {
    let begin = std::time::Instant::now();
    let world = World::new().await?;
    script(&world)?;
    let docker = match world::variable("SELFSAME_BENCH_BACKEND").as_deref() {
        Some("process") => None,
        _ => Some(Docker::connect()?),
    };
    let commit = floor::commits(&world).await?;
    let mut bench = Bench {
        world,
        report: Report::default(),
        docker,
        commit,
    };
    bench.conditions().await?;
    let measured = bench.run().await;
    // Whatever happened, no container stays.
    bench.clear().await?;
    measured?;
    let took = begin.elapsed().as_secs();
    bench.report.condition(format!("the run took {took} s"));
    bench.report.print();
    if let Some(path) = world::variable("SELFSAME_BENCH_JSON") {
        let text = serde_json::to_string_pretty(&bench.report.json())?;
        std::fs::write(&path, text + "\n").with_context(|| path.clone())?;
        println!("\nas JSON: {path}");
    }
    let missed = bench.report.missed();
    if missed > 0 {
        println!("\n{missed} further from the target than twice");
    }
    Ok(())
}

/// What the model says. Rules go by the text, so that every figure has its own.
fn script(world: &World) -> Result<()> {
    let call = json!({"tool": {"name": "bash", "input": {"command": "true"}}});
    let run = |command: &str| json!([{"tool": {"name": "bash", "input": {"command": command}}}]);
    world.script(&json!([
        {"name": "alone", "when": {"last_user_contains": "bulk alone", "tool_results": 0},
         "answer": run(door::ALONE)},
        {"name": "beside", "when": {"last_user_contains": "bulk beside", "tool_results": 0},
         "answer": run(door::BESIDE)},
        {"name": "meanwhile", "when": {"last_user_contains": "bulk beside"}, "times": 60, "answer": [call]},
        {"name": "calls", "when": {"last_user_contains": "sixty calls", "turn": 0}, "answer": [call]},
        {"name": "call", "when": {"last_user_contains": "one call", "tool_results": 0}, "answer": [call]},
        {"name": "more", "when": {"last_user_contains": "sixty calls"}, "times": 59, "answer": [call]},
        {"answer": "ok"},
    ]))
}

impl Bench {
    async fn run(&mut self) -> Result<()> {
        let wanted = world::variable("SELFSAME_BENCH_ONLY");
        let wants = |name: &str| wanted.as_deref().is_none_or(|only| only.contains(name));
        if wants("start") {
            load::start(self).await?;
        }
        let server = self.server(&[]).await?;
        if wants("create") {
            figures::creates(self, &server).await?;
        }
        if wants("call") {
            figures::calls(self, &server).await?;
        }
        if wants("turn") {
            figures::turns(self, &server).await?;
        }
        if wants("append") {
            figures::appends(self, &server).await?;
        }
        if wants("request") {
            first::requests(self, &server).await?;
        }
        drop(server);
        if wants("result") {
            first::results(self).await?;
        }
        if wants("fifty") {
            load::fifty(self).await?;
        }
        if wants("door") {
            door::door(self).await?;
        }
        if wants("webhooks") {
            webhooks::webhooks(self).await?;
        }
        if wants("throughput") {
            load::throughput(self).await?;
        }
        Ok(())
    }

    /// A server as the figures use it. Settings come last and win.
    async fn server(&self, settings: &[(&str, &str)]) -> Result<Server> {
        let backend = if self.docker.is_some() {
            "docker"
        } else {
            "process"
        };
        let mut all = vec![
            ("SELFSAME__SANDBOX__BACKEND", backend),
            ("SELFSAME__LOG__LEVEL", "warn"),
            ("SELFSAME__LEASE__TTL_SECONDS", "10"),
        ];
        all.extend(settings);
        self.world.server_with(&all).await
    }

    /// Removes all sandboxes of servers that are gone.
    async fn clear(&self) -> Result<()> {
        let Some(docker) = &self.docker else {
            return Ok(());
        };
        let known = floor::query(&self.world, "SELECT to_regclass('deployment')").await?;
        if !known.is_empty() {
            let deployment = floor::query(&self.world, "SELECT id FROM deployment").await?;
            docker.remove_all(&deployment).await?;
            floor::query(&self.world, "DELETE FROM sandboxes").await?;
        }
        Ok(())
    }

    async fn conditions(&mut self) -> Result<()> {
        let report = &mut self.report;
        let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let load = load.split(' ').next().unwrap_or("?").to_owned();
        let cores = std::thread::available_parallelism()?;
        let postgres = floor::query(&self.world, "SHOW server_version").await?;
        let fsync = floor::query(
            &self.world,
            "SELECT 'fsync ' || current_setting('fsync') || ', synchronous_commit ' || \
             current_setting('synchronous_commit')",
        )
        .await?;
        report.condition(format!(
            "{cores} cores, load {load} before the run; Postgres {postgres}, {fsync}; the server, Postgres, \
             sandboxes, the scripted model and the clients share the cores"
        ));
        let commit = &self.commit;
        report.condition(format!(
            "floor, one durable commit: p50 {} ms, p99 {} ms",
            report::millis(commit.p50()),
            report::millis(commit.p99())
        ));
        Ok(())
    }
}

/// An agent and an environment to make sessions of.
async fn parts(client: &Client, tools: &Value) -> Result<(Value, Value)> {
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

fn bash() -> Value {
    json!([{"type": "agent_toolset_20260401"}])
}

/// The body of a session that begins with a message.
fn opening(agent: &Value, environment: &Value, text: &str) -> Value {
    let message = json!({"type": "user.message", "content": [{"type": "text", "text": text}]});
    json!({"agent": agent, "environment_id": environment, "initial_events": [message]})
}

/// Listens to a session.
async fn listen(client: &Client, session: &str) -> Result<Tap> {
    let path = format!("/v1/sessions/{session}/events/stream");
    let request = client.request(reqwest::Method::GET, &path).build()?;
    let url = request.url();
    let address = format!(
        "{}:{}",
        url.host_str().context("a host")?,
        url.port().context("a port")?
    );
    let headers: Vec<_> = request
        .headers()
        .iter()
        .filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)))
        .collect();
    Tap::open(&address, &path, &headers).await
}

fn id(object: &Value) -> Result<&str> {
    object["id"].as_str().context("an id")
}
