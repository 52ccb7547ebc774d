//! Figures 1 to 4: creating, a tool call, a turn, an append as its listeners see it.

use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tokio::{
    sync::Notify,
    task::JoinSet,
    time::{Duration, Instant, timeout},
};

use crate::{
    Bench, bash,
    client::Client,
    floor::{self, Bare},
    id, listen,
    report::{Figure, Sample, millis},
    tap::Tap,
    world::{DEADLINE, Server},
};

pub(crate) async fn creates(bench: &mut Bench, server: &Server) -> Result<()> {
    const COUNT: usize = 200;
    let client = server.client();
    let environment = client
        .post("/v1/environments", &json!({"name": "bench"}))
        .await?["id"]
        .clone();
    let agent_body = json!({"name": "bench", "model": "mock", "system": "You are a bench."});
    let agent = client.post("/v1/agents", &agent_body).await?["id"].clone();
    let session_body = json!({"agent": agent, "environment_id": environment});
    let (mut agents, mut sessions) = (Vec::new(), Vec::new());
    for _ in 0..COUNT {
        let begin = Instant::now();
        client.post("/v1/agents", &agent_body).await?;
        agents.push(begin.elapsed());
        let begin = Instant::now();
        client.post("/v1/sessions", &session_body).await?;
        sessions.push(begin.elapsed());
    }
    // Once more, because a disk changes its mind.
    let commit = floor::commits(&bench.world).await?;
    bench.commit = bench.commit.clone().join(&commit);
    let bare = Bare::start().await?;
    #[expect(clippy::disallowed_methods, reason = "a client of the bare server")]
    let http = reqwest::Client::builder().no_proxy().build()?;
    let echo = floor::echo(&bare, &http).await?;
    let target = 2.0 * millis(bench.commit.p50());
    for (name, times) in [
        ("1 create an agent", agents),
        ("1 create a session", sessions),
    ] {
        let figure = Figure::p50(name, &Sample::new(times))
            .target(target)
            .floor("commit", bench.commit.p50())
            .floor("bare echo", echo.p50())
            .note("target: two commits, and 1.5 ms on an ordinary disk");
        bench.report.add(figure);
    }
    Ok(())
}

/// From the arrival of the call to the arrival of its result, which is sent when it is durable.
pub(crate) async fn calls(bench: &mut Bench, server: &Server) -> Result<()> {
    let client = server.client();
    let session = client.session(bash()).await?;
    let mut tap = listen(&client, &session).await?;
    client.say(&session, "sixty calls").await?;
    let (mut times, mut rounds) = (Vec::new(), Vec::new());
    let (mut called, mut last) = (None::<(Instant, Value)>, None::<Instant>);
    let mut by_server = Vec::new();
    loop {
        let seen = tap.next().await?;
        if seen.is("agent.tool_use") {
            called = Some((seen.at, seen.data()?));
        } else if seen.is("agent.tool_result") {
            let (at, call) = called.take().context("a call")?;
            let result = seen.data()?;
            ensure!(result["is_error"] != true, "{result}");
            times.push(seen.at - at);
            by_server.push(micros(&result)?.saturating_sub(micros(&call)?));
            if let Some(last) = last.replace(seen.at) {
                rounds.push(seen.at - last);
            }
        } else if seen.is("session.status_idle") {
            break;
        }
    }
    ensure!(times.len() == 60, "{} calls", times.len());
    // The first ones wait for the sandbox and for its shell.
    let (times, rounds) = (times.split_off(3), rounds.split_off(3));
    let by_server = Sample::new(by_server.split_off(3));
    let mut figure = Figure::p50("2 bash true: call to durable result", &Sample::new(times))
        .target(5.0)
        .floor("commit", bench.commit.p50());
    if let Some(docker) = &bench.docker {
        let floors = docker.floors().await?;
        figure = figure.floor("docker exec true", floors.exec.p50());
    }
    let rounds = Sample::new(rounds);
    bench.report.add(
        figure
            .note(format!("by processed_at {} ms", millis(by_server.p50())))
            .note(format!(
                "with the model's request between, result to result: {} ms",
                millis(rounds.p50())
            )),
    );
    Ok(())
}

/// `processed_at`, within its day: no bench lasts over midnight.
fn micros(event: &Value) -> Result<Duration> {
    let text = event["processed_at"].as_str().context("processed_at")?;
    let clock = text
        .split('T')
        .nth(1)
        .and_then(|rest| rest.strip_suffix('Z'))
        .context("a time")?;
    let mut parts = clock.split(':').map(str::parse::<f64>);
    let mut part = || parts.next().context("a part")?.context("a number");
    Ok(Duration::from_secs_f64(
        part()? * 3600.0 + part()? * 60.0 + part()?,
    ))
}

/// Ten turns each in a few sessions: what a turn costs, not what a long conversation does.
pub(crate) async fn turns(bench: &mut Bench, server: &Server) -> Result<()> {
    let client = server.client();
    let mut times = Vec::new();
    for _ in 0..15 {
        let session = client.session(json!([])).await?;
        let mut tap = listen(&client, &session).await?;
        for turn in 0..10 {
            times.push(turn_of(&client, &session, &mut tap, turn).await?);
        }
    }
    // The first ones open connections.
    let sample = Sample::new(times.split_off(5));
    let figure = Figure::p50("3 a turn: message sent to idle", &sample)
        .target(8.0)
        .floor("commit", bench.commit.p50());
    bench.report.add(figure);
    Ok(())
}

async fn turn_of(client: &Client, session: &str, tap: &mut Tap, turn: usize) -> Result<Duration> {
    let text = format!("turn {turn}");
    let begin = Instant::now();
    let (said, idle) = tokio::join!(client.say(session, &text), tap.until("session.status_idle"));
    said?;
    Ok(idle?.at - begin)
}

/// From the request that appends to the first byte at a listener: request and commit included.
pub(crate) async fn appends(bench: &mut Bench, server: &Server) -> Result<()> {
    let client = server.client();
    let session = client.session(json!([])).await?;
    let mut tap = listen(&client, &session).await?;
    let mut times = Vec::new();
    for number in 0..150 {
        let begin = Instant::now();
        let (updated, seen) = tokio::join!(
            update(&client, &session, number),
            tap.until("session.updated")
        );
        updated?;
        times.push(seen?.at - begin);
    }
    drop(tap);
    let sample = Sample::new(times.split_off(5));
    let figure = Figure::p50("4 append to the first byte at a client", &sample)
        .target(3.0)
        .floor("commit", bench.commit.p50())
        .note("from the request being sent");
    bench.report.add(figure);

    let mut taps = JoinSet::new();
    for _ in 0..SUBSCRIBERS {
        let (client, session) = (client.clone(), session.clone());
        taps.spawn(async move { listen(&client, &session).await });
    }
    let crowd = Crowd::gather(taps).await?;
    let mut last = Vec::new();
    for number in 0..ROUNDS {
        let begin = Instant::now();
        update(&client, &session, 1000 + number).await?;
        last.push(crowd.last(number, begin).await?);
    }
    drop(crowd);
    // The same crowd at a server that does nothing else, in this process.
    let bare = Bare::start().await?;
    #[expect(clippy::disallowed_methods, reason = "a client of the bare server")]
    let http = reqwest::Client::builder().no_proxy().build()?;
    let mut taps = JoinSet::new();
    for _ in 0..SUBSCRIBERS {
        let address = bare.address.clone();
        taps.spawn(async move { Tap::open(&address, "/stream", &[]).await });
    }
    let crowd = Crowd::gather(taps).await?;
    let mut floor = Vec::new();
    for number in 0..ROUNDS {
        let begin = Instant::now();
        let url = format!("http://{}/publish", bare.address);
        http.post(url).body("x".repeat(300)).send().await?;
        floor.push(crowd.last(number, begin).await?);
    }
    let sample = Sample::new(last);
    let figure = Figure::p99("4 append to the last of 1,000 clients", &sample)
        .target(25.0)
        .floor("bare broadcast, p99", Sample::new(floor).p99())
        .note("from the request being sent; its 1,000 clients share the cores");
    bench.report.add(figure);
    Ok(())
}

const SUBSCRIBERS: usize = 1000;
const ROUNDS: usize = 60;

async fn update(client: &Client, session: &str, number: usize) -> Result<()> {
    let title = json!({"title": format!("title {number}")});
    let updated = client
        .post(&format!("/v1/sessions/{session}"), &title)
        .await?;
    ensure!(id(&updated)? == session);
    Ok(())
}

/// Many listeners, and when the last of them has heard of each event.
struct Crowd {
    state: Arc<Rounds>,
    _tasks: JoinSet<Result<()>>,
}

struct Rounds {
    epoch: Instant,
    /// By event: how many have it, and when the last one got it.
    heard: Vec<(AtomicUsize, AtomicU64)>,
    whole: Notify,
}

impl Crowd {
    async fn gather(mut opening: JoinSet<Result<Tap>>) -> Result<Self> {
        let state = Arc::new(Rounds {
            epoch: Instant::now(),
            heard: (0..ROUNDS).map(|_| Default::default()).collect(),
            whole: Notify::new(),
        });
        let mut tasks = JoinSet::new();
        let mut taps = Vec::new();
        while let Some(tap) = opening.join_next().await {
            taps.push(tap??);
        }
        for mut tap in taps {
            let state = state.clone();
            tasks.spawn(async move {
                for (count, latest) in &state.heard {
                    let at = tap.until("session.updated").await?.at;
                    let nanos = (at - state.epoch).as_nanos();
                    latest.fetch_max(u64::try_from(nanos)?, Ordering::Relaxed);
                    if count.fetch_add(1, Ordering::AcqRel) + 1 == SUBSCRIBERS {
                        state.whole.notify_one();
                    }
                }
                Ok(())
            });
        }
        Ok(Self {
            state,
            _tasks: tasks,
        })
    }

    /// How long after `begin` the last listener had this event.
    async fn last(&self, number: usize, begin: Instant) -> Result<Duration> {
        timeout(DEADLINE, self.state.whole.notified())
            .await
            .context("not every listener has heard of it")?;
        let (_, latest) = &self.state.heard[number];
        let at = self.state.epoch + Duration::from_nanos(latest.load(Ordering::Relaxed));
        Ok(at - begin)
    }
}
