//! Figures 5 and 6: how soon a new session asks the model, and how soon it has run a command.

use anyhow::{Result, ensure};
use serde_json::json;
use tokio::time::{Duration, Instant};

use crate::{
    Bench, bash, floor, id, listen, opening, parts,
    report::{Figure, Sample},
    world::Server,
};

pub(crate) async fn requests(bench: &mut Bench, server: &Server) -> Result<()> {
    let client = server.client();
    let (_, environment) = parts(&client, &json!([])).await?;
    let mut times = Vec::new();
    for number in 0..80 {
        // A model of its own, so that its first request is found without looking through all others.
        let model = format!("mock-first-{number}");
        let agent = json!({"name": "bench", "model": model});
        let agent = client.post("/v1/agents", &agent).await?["id"].clone();
        let script = bench.world.model.clone();
        let arrived = tokio::spawn(async move {
            script.wait_requests(Some(&model), 1, false).await;
            Instant::now()
        });
        let begin = Instant::now();
        let session = client
            .post("/v1/sessions", &opening(&agent, &environment, "hi"))
            .await?;
        times.push(arrived.await? - begin);
        client.wait_status(id(&session)?, "idle").await?;
    }
    let sample = Sample::new(times.split_off(5));
    let figure = Figure::p50("5 create a session to its first model request", &sample)
        .target(10.0)
        .floor("commit", bench.commit.p50());
    bench.report.add(figure);
    Ok(())
}

/// From the request that creates a session to the arrival of its first result at a listener that opened its stream
/// as soon as it knew the session's id.
pub(crate) async fn results(bench: &mut Bench) -> Result<()> {
    const WARM: usize = 2;
    const WARM_ROUNDS: usize = 12;
    const COLD_ROUNDS: usize = 10;
    let floors = match &bench.docker {
        Some(docker) => Some(docker.floors().await?),
        None => None,
    };
    let with = |figure: Figure| match &floors {
        Some(floors) => figure
            .floor("docker create+start+exec", floors.all.p50())
            .floor("docker create+start", floors.start.p50())
            .floor("docker exec true", floors.exec.p50()),
        None => figure,
    };

    let server = bench.server(&[]).await?;
    let (agent, environment) = parts(&server.client(), &bash()).await?;
    // The first one of a server fills the volume of the hands.
    first(&server, &agent, &environment).await?;
    let mut times = Vec::new();
    for _ in 0..COLD_ROUNDS {
        times.push(first(&server, &agent, &environment).await?);
    }
    drop(server);
    bench.report.add(with(
        Figure::p50(
            "6 create a session to its first bash result, cold",
            &Sample::new(times),
        )
        .target(300.0),
    ));

    let server = bench.server(&[("SELFSAME__SANDBOX__WARM", "2")]).await?;
    let (agent, environment) = parts(&server.client(), &bash()).await?;
    let mut times = Vec::new();
    for _ in 0..WARM_ROUNDS {
        full(bench, WARM).await?;
        times.push(first(&server, &agent, &environment).await?);
    }
    drop(server);
    bench.report.add(with(
        Figure::p50(
            "6 create a session to its first bash result, warm",
            &Sample::new(times),
        )
        .target(20.0),
    ));
    stopped(bench).await
}

/// Waits until the warm pool is full and at rest.
async fn full(bench: &Bench, size: usize) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    let sql = "SELECT count(*) FROM sandboxes WHERE session_id IS NULL AND status = 'running'";
    while floor::query(&bench.world, sql).await? != size.to_string() {
        ensure!(Instant::now() < deadline, "the warm pool never fills");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // The row says running when the container does; the connection comes after that.
    tokio::time::sleep(Duration::from_millis(600)).await;
    Ok(())
}

async fn first(
    server: &Server,
    agent: &serde_json::Value,
    environment: &serde_json::Value,
) -> Result<Duration> {
    let client = server.client();
    let body = opening(agent, environment, "one call");
    // Its connection is open, as an SDK's is after it has made the agent.
    client.get("/v1/models").await?;
    let begin = Instant::now();
    let session = client.post("/v1/sessions", &body).await?;
    let mut tap = listen(&client, id(&session)?).await?;
    let result = tap.until("agent.tool_result").await?;
    let took = result.at - begin;
    let result = result.data()?;
    ensure!(result["is_error"] != true, "{result}");
    tap.until("session.status_idle").await?;
    Ok(took)
}

/// A message to a session whose sandbox was stopped for being idle.
async fn stopped(bench: &mut Bench) -> Result<()> {
    const SESSIONS: usize = 6;
    bench.clear().await?;
    let server = bench
        .server(&[("SELFSAME__SANDBOX__IDLE_STOP_SECONDS", "1")])
        .await?;
    let client = server.client();
    let (agent, environment) = parts(&client, &bash()).await?;
    let mut sessions = Vec::new();
    for _ in 0..SESSIONS {
        let body = opening(&agent, &environment, "one call");
        let session = client.post("/v1/sessions", &body).await?;
        listen(&client, id(&session)?)
            .await?
            .until("session.status_idle")
            .await?;
        sessions.push(id(&session)?.to_owned());
    }
    // The reaper looks every ten seconds or so.
    match &bench.docker {
        Some(docker) => {
            let deployment = floor::query(&bench.world, "SELECT id FROM deployment").await?;
            docker.wait_stopped(&deployment).await?;
        }
        None => return Ok(()),
    }
    let mut times = Vec::new();
    for session in &sessions {
        let mut tap = listen(&client, session).await?;
        let begin = Instant::now();
        let (said, result) = tokio::join!(
            client.say(session, "one call again"),
            tap.until("agent.tool_result")
        );
        said?;
        let result = result?;
        times.push(result.at - begin);
        let result = result.data()?;
        ensure!(result["is_error"] != true, "{result}");
        tap.until("session.status_idle").await?;
    }
    bench.report.add(
        Figure::p50(
            "6 first bash result after an idle stop",
            &Sample::new(times),
        )
        .target(300.0),
    );
    Ok(())
}
