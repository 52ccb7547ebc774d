//! The process itself: its own Postgres, its keys, its configuration, and how it stops.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use crate::{
    client::{Client, count, settled},
    world::{Server, World, run},
};

/// Without `DATABASE_URL` the server runs a Postgres in its data directory. One left by a killed server is used again.
#[tokio::test]
async fn a_private_postgres_survives_a_killed_server() -> Result<()> {
    let world = World::new().await?;
    world.script(&json!([{"answer": "hello"}]))?;
    let directory = world.path("private");
    std::fs::create_dir(&directory)?;
    let settings = world.settings(&directory.join("data"));
    let mut first = Server::start(&settings, &directory).await?;
    let session = first.client().session(json!([])).await?;
    first.client().say(&session, "hi").await?;
    settled(&first, &session).await?;
    first.kill().await?;
    let mut second = Server::start(&settings, &directory).await?;
    second.client().say(&session, "again").await?;
    let events = settled(&second, &session).await?;
    ensure!(count(&events, "agent.message") == 2);
    // The first signal lets it end in order, its Postgres too.
    second.signal("TERM").await?;
    let status = second.ended().await?;
    ensure!(status.success(), "{status}:\n{}", second.log());
    let left = directory
        .join("data")
        .join("postgres")
        .join("postmaster.pid");
    ensure!(!left.exists(), "its Postgres is still there");
    let mut third = Server::start(&settings, &directory).await?;
    ensure!(third.client().list(&session).await?.len() == events.len());
    third.signal("TERM").await?;
    third.ended().await?;
    Ok(())
}

#[tokio::test]
async fn keys_are_made_listed_and_revoked() -> Result<()> {
    let world = World::new().await?;
    let server = world.server().await?;
    let settings = world.database_settings();
    let directory = world.path("");
    let selfsame = async |arguments: &[&str]| -> Result<String> {
        let (status, text) = run(arguments, &settings, &directory).await?;
        ensure!(status.success(), "{arguments:?}: {text}");
        Ok(text)
    };
    let made = selfsame(&[
        "keys",
        "create",
        "--name",
        "black box",
        "--scope",
        "standard",
    ])
    .await?;
    let key = made
        .split_whitespace()
        .find(|word| word.len() > 30)
        .context("a key")?
        .to_owned();
    let client = Client::new(&server.url, &key);
    ensure!(client.status("/v1/agents").await == Some(200));
    let listed = selfsame(&["keys", "list"]).await?;
    ensure!(listed.contains("black box"), "{listed}");
    ensure!(!listed.contains(&key), "a key is shown once");
    let id = listed
        .lines()
        .find(|line| line.contains("black box"))
        .and_then(|line| {
            line.split_whitespace()
                .find(|word| word.starts_with("apikey_"))
        })
        .context("an id")?;
    selfsame(&["keys", "revoke", id]).await?;
    let deadline = tokio::time::Instant::now() + crate::world::DEADLINE;
    while client.status("/v1/agents").await != Some(401) {
        ensure!(
            tokio::time::Instant::now() < deadline,
            "the revoked key goes on working"
        );
    }
    Ok(())
}

#[tokio::test]
async fn an_unknown_setting_stops_the_start_and_is_named() -> Result<()> {
    let world = World::new().await?;
    let directory = world.path("");
    let file = world.path("wrong.toml");
    std::fs::write(
        &file,
        "[server]\nlisten = \"127.0.0.1:0\"\nlissten = \"typo\"\n",
    )?;
    let path = file.display().to_string();
    let (status, text) = run(&["serve", "--config", &path], &BTreeMap::new(), &directory).await?;
    ensure!(!status.success() && text.contains("lissten"), "{text}");
    let wrong = BTreeMap::from([("SELFSAME__SERVER__LISSTEN".to_owned(), "x".to_owned())]);
    let (status, text) = run(&["serve"], &wrong, &directory).await?;
    ensure!(
        !status.success() && text.to_lowercase().contains("lissten"),
        "{text}"
    );
    let wrong = BTreeMap::from([("SELFSAME_FAIL".to_owned(), "nowhere".to_owned())]);
    let (status, text) = run(&["serve"], &wrong, &directory).await?;
    ensure!(!status.success() && text.contains("nowhere"), "{text}");
    Ok(())
}

/// The first signal finishes what is under way, takes nothing new, and closes streams.
#[tokio::test]
async fn the_first_signal_drains() -> Result<()> {
    let world = World::new().await?;
    world.script(&json!([
        {"when": {"nth": 1}, "answer": [{"start": true}, {"gate": "slow"}, {"text": "finished"}]},
        {"answer": "after"},
    ]))?;
    let mut first = world.server().await?;
    let client = first.client();
    let session = client.session(json!([])).await?;
    let stream = client.stream(&session).await?;
    client.say(&session, "hi").await?;
    world.model.wait_gate("slow").await;
    first.signal("TERM").await?;
    stream.end().await?;
    world.model.release("slow", None);
    let status = first.ended().await?;
    ensure!(status.success(), "{status}");
    let second = world.server().await?;
    let events = settled(&second, &session)
        .await
        .with_context(|| second.log())?;
    ensure!(count(&events, "agent.message") == 1);
    ensure!(
        count(&events, "session.error") == 0,
        "a drain is no failure"
    );
    Ok(())
}

/// The second signal does not wait.
#[tokio::test]
async fn the_second_signal_stops() -> Result<()> {
    let world = World::new().await?;
    world.script(&json!([{"answer": [{"start": true}, {"hang": true}]}]))?;
    let mut server = world.server().await?;
    let client = server.client();
    let session = client.session(json!([])).await?;
    let stream = client.stream(&session).await?;
    client.say(&session, "hi").await?;
    world.model.wait_requests(None, 1, false).await;
    server.signal("TERM").await?;
    stream.end().await?;
    server.signal("TERM").await?;
    server.ended().await?;
    Ok(())
}

#[tokio::test]
async fn health_readiness_and_metrics_need_no_key() -> Result<()> {
    let world = World::new().await?;
    let server = world.server().await?;
    let stranger = Client::new(&server.url, "nobody");
    for path in ["/healthz", "/readyz", "/metrics", "/openapi.json"] {
        ensure!(stranger.status(path).await == Some(200), "{path}");
    }
    ensure!(stranger.status("/v1/agents").await == Some(401));
    Ok(())
}
