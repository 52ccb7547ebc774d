//! The other figures: starting, many sessions at once, memory.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tokio::{
    task::JoinSet,
    time::{Duration, Instant},
};

use crate::{
    Bench, bash, floor, id, listen, opening, parts,
    report::{Figure, Sample},
};

/// From the start of the process to its first `ready`, and what it holds then.
pub(crate) async fn start(bench: &mut Bench) -> Result<()> {
    // The first one brings the schema.
    drop(bench.server(&[]).await?);
    let (mut times, mut resident) = (Vec::new(), 0);
    for _ in 0..5 {
        let begin = Instant::now();
        let server = bench.server(&[]).await?;
        times.push(begin.elapsed());
        tokio::time::sleep(Duration::from_millis(300)).await;
        resident = resident_kb(server.pid()?)?;
    }
    bench.report.add(
        Figure::p50("ready after start, warm database", &Sample::new(times))
            .target(150.0)
            .note("asked every 10 ms; with the check of the Docker daemon"),
    );
    #[expect(clippy::cast_precision_loss, reason = "megabytes")]
    let figure =
        Figure::number("server at rest, resident", resident as f64 / 1024.0, "MB").target(40.0);
    bench.report.add(figure);
    Ok(())
}

/// Fifty sessions with tools, created at once, each listened to until it is idle.
pub(crate) async fn fifty(bench: &mut Bench) -> Result<()> {
    const SESSIONS: usize = 50;
    let server = bench.server(&[]).await?;
    let client = server.client();
    let mut times = Vec::new();
    for _ in 0..2 {
        let (agent, environment) = parts(&client, &bash()).await?;
        let body = opening(&agent, &environment, "hi");
        let begin = Instant::now();
        let mut running = JoinSet::new();
        for _ in 0..SESSIONS {
            let (client, body) = (client.clone(), body.clone());
            running.spawn(async move {
                let session = client.post("/v1/sessions", &body).await?;
                let mut tap = listen(&client, id(&session)?).await?;
                anyhow::Ok((
                    tap.until("session.status_idle").await?.at,
                    id(&session)?.to_owned(),
                ))
            });
        }
        let (mut last, mut sessions) = (begin, Vec::new());
        while let Some(done) = running.join_next().await {
            let (at, session) = done??;
            last = last.max(at);
            sessions.push(session);
        }
        times.push(last - begin);
        // Their sandboxes are still being made: they must not be there in the next round.
        if let Some(docker) = &bench.docker {
            let deployment = floor::query(&bench.world, "SELECT id FROM deployment").await?;
            let made = "SELECT count(*) FROM sandboxes WHERE status = 'creating'";
            let deadline = Instant::now() + Duration::from_secs(40);
            loop {
                let rows = floor::query(&bench.world, made).await?;
                if rows == "0" && docker.sandboxes(&deployment).await?.len() >= SESSIONS {
                    break;
                }
                ensure!(
                    Instant::now() < deadline,
                    "{rows} sandboxes are being made for ever"
                );
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    let figure = Figure::p50(
        "50 sessions of one turn at once, tools enabled, all idle",
        &Sample::new(times),
    )
    .target(300.0)
    .floor("commit", bench.commit.p50());
    bench.report.add(figure);
    Ok(())
}

/// Sessions run to completion with one turn and one call each, 64 at once, on plain processes.
pub(crate) async fn throughput(bench: &mut Bench) -> Result<()> {
    const AT_ONCE: usize = 64;
    const SESSIONS: usize = 320;
    let settings = [("SELFSAME__SANDBOX__BACKEND", "process")];
    let server = bench.server(&settings).await?;
    let client = server.client();
    let (agent, environment) = parts(&client, &bash()).await?;
    let commits = floor::commits_at_once(&bench.world).await?;
    let body = opening(&agent, &environment, "one call");
    let next = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let directory = bench.world.path("data").canonicalize()?;
    let before = ticks(server.pid()?, &directory)?;
    let begin = Instant::now();
    let mut running = JoinSet::new();
    for _ in 0..AT_ONCE {
        let (client, body, next) = (client.clone(), body.clone(), next.clone());
        running.spawn(async move {
            let mut sessions = Vec::new();
            while next.fetch_add(1, std::sync::atomic::Ordering::Relaxed) < SESSIONS {
                let session = client.post("/v1/sessions", &body).await?;
                let mut tap = listen(&client, id(&session)?).await?;
                tap.until("session.status_idle").await?;
                sessions.push(id(&session)?.to_owned());
            }
            anyhow::Ok(sessions)
        });
    }
    let mut sessions = Vec::new();
    while let Some(done) = running.join_next().await {
        sessions.extend(done??);
    }
    let took = begin.elapsed();
    let after = ticks(server.pid()?, &directory)?;
    // A hundredth of a second is a tick on Linux.
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    let share = |ticks: u64| ticks as f64 / 100.0 / took.as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "a few hundred")]
    let per_second = sessions.len() as f64 / took.as_secs_f64();
    bench.report.add(
        Figure::rate(
            "sessions with one call, 64 at once, process backend",
            per_second,
            "/s",
        )
        .target(150.0)
        .note(format!("{commits:.0} commits/s over 16 connections"))
        .note(format!(
            "CPU: server {:.2} cores, sandbox processes {:.2} cores",
            share(after.server - before.server),
            share(after.sandboxes.saturating_sub(before.sandboxes))
        )),
    );
    // Their processes outlive a killed server: they go with their sessions.
    for session in sessions {
        let request = client.request(reqwest::Method::DELETE, &format!("/v1/sessions/{session}"));
        ensure!(
            request.send().await?.status().is_success(),
            "cannot delete {session}"
        );
    }
    let deadline = Instant::now() + Duration::from_secs(40);
    while floor::query(
        &bench.world,
        "SELECT count(*) FROM sandboxes WHERE backend LIKE 'process%'",
    )
    .await?
        != "0"
    {
        ensure!(Instant::now() < deadline, "sandboxes stay");
        tokio::time::sleep(Duration::from_millis(100)).await;
        // Deleting is noticed once per session; the reaper takes a few at a time.
        let body = json!({"agent": agent, "environment_id": environment});
        let session = client.post("/v1/sessions", &body).await?;
        let request = client.request(
            reqwest::Method::DELETE,
            &format!("/v1/sessions/{}", id(&session)?),
        );
        request.send().await?;
    }
    Ok(())
}

fn resident_kb(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .context("VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse()?)
}

/// CPU time of the server, and of the processes in the sandboxes of this run, in ticks.
struct Ticks {
    server: u64,
    sandboxes: u64,
}

fn ticks(server: u32, directory: &Path) -> Result<Ticks> {
    // The fields behind the name, which may hold anything; own time, and that of children which ended.
    let of = |path: &Path| {
        let stat = fs::read_to_string(path.join("stat")).ok()?;
        let fields: Vec<_> = stat.rsplit(')').next()?.split_whitespace().collect();
        let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
        Some((number(11)? + number(12)?, number(13)? + number(14)?))
    };
    let directory = directory.as_os_str().as_encoded_bytes();
    let mut sandboxes = 0;
    for entry in fs::read_dir("/proc")?.flatten() {
        // Each has the sandbox's directory in its environment.
        let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
        let inside = environment
            .split(|byte| *byte == 0)
            .filter_map(|line| line.strip_prefix(b"HANDS_SANDBOX="))
            .any(|value| value.starts_with(directory));
        if inside {
            let (own, ended) = of(&entry.path()).unwrap_or_default();
            sandboxes += own + ended;
        }
    }
    let (own, _) = of(Path::new(&format!("/proc/{server}"))).context("the server is gone")?;
    Ok(Ticks {
        server: own,
        sandboxes,
    })
}
