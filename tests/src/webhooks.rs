//! Webhooks: receivers of every temper, servers that die, and what is promised nevertheless.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::{
    client::Client,
    receiver::{Received, Receiver},
    world::{DEADLINE, Server, World},
};

/// What servers need to reach a receiver of a test, with retries that do not take long.
const SETTINGS: [(&str, &str); 4] = [
    ("SELFSAME__WEBHOOKS__ALLOW_HTTP", "true"),
    ("SELFSAME__WEBHOOKS__ALLOWED_RANGES", r#"["127.0.0.1/32"]"#),
    ("SELFSAME__WEBHOOKS__BACKOFF_MIN_SECONDS", "1"),
    ("SELFSAME__WEBHOOKS__BACKOFF_MAX_SECONDS", "1"),
];

/// Named points at which these tests end a server.
pub const VISITED: [&str; 2] = ["after_webhook_claim", "after_webhook_answer"];

async fn server(world: &World, more: &[(&str, &str)]) -> Result<Server> {
    world.server_with(&[&SETTINGS, more].concat()).await
}

/// An endpoint of these events; answers its path.
async fn endpoint(client: &Client, url: &str, events: &[&str]) -> Result<String> {
    let body = json!({"url": url, "enabled_events": events});
    let made = client.post("/v1/webhook_endpoints", &body).await?;
    let id = made["id"].as_str().context("an id")?;
    Ok(format!("/v1/webhook_endpoints/{id}"))
}

/// Something that is told of as `agent.created`.
async fn agent(client: &Client) -> Result<String> {
    let body = json!({"name": "told of", "model": "mock"});
    let made = client.post("/v1/agents", &body).await?;
    Ok(made["id"].as_str().context("an id")?.to_owned())
}

async fn deliveries(client: &Client, endpoint: &str) -> Result<Vec<Value>> {
    let page = client
        .get(&format!("{endpoint}/deliveries?limit=100"))
        .await?;
    Ok(page["data"].as_array().context("data")?.clone())
}

/// Waits for something that is seen by asking.
async fn until<T>(what: &str, mut ask: impl AsyncFnMut() -> Result<(T, bool)>) -> Result<T> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let (seen, enough) = ask().await?;
        if enough {
            return Ok(seen);
        }
        ensure!(Instant::now() < deadline, "never: {what}");
        sleep(std::time::Duration::from_millis(20)).await;
    }
}

/// Waits until no delivery to the endpoint is pending, and there are so many.
async fn settled(client: &Client, endpoint: &str, count: usize) -> Result<Vec<Value>> {
    until("all deliveries are over", async || {
        let all = deliveries(client, endpoint).await?;
        let over = all.iter().all(|delivery| delivery["status"] != "pending");
        let enough = over && all.len() >= count;
        Ok((all, enough))
    })
    .await
}

async fn wait_state(client: &Client, endpoint: &str, state: &str) -> Result<Value> {
    until(state, async || {
        let shown = client.get(endpoint).await?;
        let enough = shown["state"] == state;
        Ok((shown, enough))
    })
    .await
}

fn ids(requests: &[Received]) -> BTreeSet<String> {
    requests.iter().map(|request| request.id.clone()).collect()
}

/// Receivers that are down, slow and wrong beside one that is well: a session's work and the good one notice
/// nothing, and the others are tried as often as is promised.
#[tokio::test]
async fn bad_receivers_delay_nobody() -> Result<()> {
    let world = World::new().await?;
    world.script(&json!([{"answer": "ok"}]))?;
    let receiver = Receiver::start().await?;
    // A port that nobody listens on.
    let nobody = {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        format!("http://{}", listener.local_addr()?)
    };
    let server = server(&world, &[("SELFSAME__WEBHOOKS__TIMEOUT_SECONDS", "2")]).await?;
    let client = server.client();
    let events = ["session.status_run_started", "session.status_idled"];
    let mut paths = BTreeMap::new();
    for name in ["good", "wrong", "hang", "flaky"] {
        let url = format!("{}/{name}", receiver.url);
        paths.insert(name, endpoint(&client, &url, &events).await?);
    }
    paths.insert("down", endpoint(&client, &nobody, &events).await?);

    let session = client.session(json!([])).await?;
    client.say(&session, "hello").await?;
    receiver.wait_count("/good", 2).await?;
    client.wait_status(&session, "idle").await?;
    // All that while somebody has been waiting for an answer that never comes.
    receiver.wait_count("/hang", 1).await?;

    let good = settled(&client, &paths["good"], 2).await?;
    for delivery in &good {
        ensure!(delivery["status"] == "delivered", "{delivery}");
        ensure!(delivery["attempts"][0]["status_code"] == 204, "{delivery}");
        ensure!(
            delivery["event"]["data"]["id"] == session.as_str(),
            "{delivery}"
        );
    }
    for (name, error, response) in [
        ("wrong", "status 500", "no such table "),
        ("hang", "no answer within 2 s", ""),
        ("down", "onnection refused", ""),
    ] {
        for delivery in settled(&client, &paths[name], 2).await? {
            ensure!(delivery["status"] == "failed", "{name}: {delivery}");
            let attempts = delivery["attempts"].as_array().context("attempts")?;
            ensure!(attempts.len() == 3, "{name}: {delivery}");
            for attempt in attempts {
                let said = attempt["error"].as_str().unwrap_or_default();
                ensure!(said.contains(error), "{name}: {attempt}");
                ensure!(attempt["response"] == response, "{name}: {attempt}");
            }
        }
        let shown = client.get(&paths[name]).await?;
        ensure!(shown["state"] == "enabled", "{shown}");
        ensure!(shown["consecutive_failures"] == 6, "{shown}");
        ensure!(shown["failing_since"].is_string(), "{shown}");
    }
    let flaky = settled(&client, &paths["flaky"], 2).await?;
    ensure!(
        flaky
            .iter()
            .all(|delivery| delivery["status"] == "delivered"),
        "{flaky:?}"
    );
    let shown = client.get(&paths["flaky"]).await?;
    ensure!(
        shown["consecutive_failures"] == 0 && shown["failing_since"].is_null(),
        "{shown}"
    );

    // Each attempt of one event has its id, and a time and a signature of its own.
    let wrong = receiver.requests("/wrong");
    ensure!(
        ids(&wrong) == ids(&receiver.requests("/good")),
        "{wrong:#?}"
    );
    let of_one: Vec<_> = wrong
        .iter()
        .filter(|request| request.id == wrong[0].id)
        .collect();
    let different: BTreeSet<_> = of_one
        .iter()
        .map(|r| (&r.timestamp, &r.signature))
        .collect();
    ensure!(of_one.len() == 3 && different.len() == 3, "{of_one:#?}");
    let metrics = client.text("/metrics").await?;
    for wanted in [
        r#"selfsame_webhook_attempts_total{outcome="timeout"} 6"#,
        r#"selfsame_webhook_attempts_total{outcome="unreachable"} 6"#,
        "selfsame_webhook_lag_seconds",
        "selfsame_webhook_backlog",
    ] {
        ensure!(metrics.contains(wanted), "{wanted}:\n{metrics}");
    }
    Ok(())
}

/// A redirect disables at once and is not followed; what waits is given up, what comes later is never sent, and
/// after the endpoint is enabled again it hears of what happens from then on.
#[tokio::test]
async fn a_redirect_disables() -> Result<()> {
    let world = World::new().await?;
    let receiver = Receiver::start().await?;
    let server = server(&world, &[]).await?;
    let client = server.client();
    let url = format!("{}/redirect", receiver.url);
    let path = endpoint(&client, &url, &["agent.created"]).await?;
    agent(&client).await?;
    let shown = wait_state(&client, &path, "disabled").await?;
    let reason = "auto-disabled: endpoint URL returned a redirect (3xx)";
    ensure!(shown["disabled_reason"] == reason, "{shown}");
    let first = settled(&client, &path, 1).await?;
    ensure!(first[0]["status"] == "failed", "{first:?}");
    ensure!(
        first[0]["attempts"].as_array().map(Vec::len) == Some(1),
        "{first:?}"
    );
    agent(&client).await?;
    ensure!(deliveries(&client, &path).await?.len() == 1);
    ensure!(receiver.requests("/elsewhere").is_empty());
    ensure!(receiver.requests("/redirect").len() == 1);

    let good = format!("{}/good", receiver.url);
    let update = json!({"state": "enabled", "url": good});
    let shown = client.post(&path, &update).await?;
    ensure!(
        shown["disabled_reason"] == "" && shown["consecutive_failures"] == 0,
        "{shown}"
    );
    let later = agent(&client).await?;
    let received = receiver.wait_count("/good", 1).await?;
    ensure!(
        received[0].body["data"]["id"] == later.as_str(),
        "{received:?}"
    );
    // The one that failed can be had, under the id it had.
    let event = first[0]["id"].as_str().context("an id")?;
    client
        .post(&format!("{path}/deliveries/{event}/redeliver"), &json!({}))
        .await?;
    let received = receiver.wait_count("/good", 2).await?;
    ensure!(
        received[1].id == event && ids(&received).len() == 2,
        "{received:#?}"
    );
    let again = settled(&client, &path, 2).await?;
    ensure!(
        again[1]["attempts"].as_array().map(Vec::len) == Some(2),
        "{again:?}"
    );
    Ok(())
}

/// A name that leads inside by the time something is sent disables its endpoint, and nothing arrives.
#[tokio::test]
async fn an_address_inside_disables() -> Result<()> {
    let world = World::new().await?;
    let receiver = Receiver::start().await?;
    let hosts = format!(
        r#"[{{ name = "hooks.example.com", address = "127.0.0.1:{}" }}]"#,
        receiver.port
    );
    let open = [("SELFSAME__NET__HOSTS", hosts.as_str())];
    let mut first = server(&world, &open).await?;
    let client = first.client();
    let path = endpoint(&client, "http://hooks.example.com/good", &["agent.created"]).await?;
    agent(&client).await?;
    receiver.wait_count("/good", 1).await?;
    settled(&client, &path, 1).await?;
    first.kill().await?;

    let closed = [open[0], ("SELFSAME__WEBHOOKS__ALLOWED_RANGES", "[]")];
    let second = server(&world, &closed).await?;
    let client = second.client();
    agent(&client).await?;
    let shown = wait_state(&client, &path, "disabled").await?;
    let reason = "auto-disabled: endpoint URL resolved to an invalid address";
    ensure!(shown["disabled_reason"] == reason, "{shown}");
    let all = settled(&client, &path, 2).await?;
    ensure!(
        all[0]["attempts"].as_array().map(Vec::len) == Some(1),
        "{all:?}"
    );
    ensure!(all[0]["status"] == "failed", "{all:?}");
    ensure!(receiver.requests("/").len() == 1);
    Ok(())
}

#[tokio::test]
async fn sustained_failure_disables() -> Result<()> {
    let world = World::new().await?;
    let receiver = Receiver::start().await?;
    let settings = [
        ("SELFSAME__WEBHOOKS__DISABLE_AFTER_SECONDS", "1"),
        ("SELFSAME__WEBHOOKS__DISABLE_AFTER_FAILURES", "5"),
    ];
    let server = server(&world, &settings).await?;
    let client = server.client();
    let url = format!("{}/wrong", receiver.url);
    let path = endpoint(&client, &url, &["agent.created"]).await?;
    for _ in 0..4 {
        agent(&client).await?;
    }
    let shown = wait_state(&client, &path, "disabled").await?;
    let reason = "auto-disabled after sustained delivery failures";
    ensure!(shown["disabled_reason"] == reason, "{shown}");
    let all = settled(&client, &path, 4).await?;
    ensure!(
        all.iter().any(|delivery| delivery["status"] == "canceled"),
        "{all:?}"
    );
    let metrics = client.text("/metrics").await?;
    ensure!(
        metrics.contains("selfsame_webhook_endpoints_disabled_total 1"),
        "{metrics}"
    );
    Ok(())
}

/// A server that ends as by `kill -9` between a claim and its result. Whatever it had begun is delivered by the next
/// one: once, or twice under one id.
async fn dies_at(point: &str, most: usize) -> Result<()> {
    let world = World::new().await?;
    let receiver = Receiver::start().await?;
    let settings = [("SELFSAME_FAIL", point)];
    let mut first = server(&world, &settings).await?;
    let client = first.client();
    let url = format!("{}/good", receiver.url);
    let path = endpoint(&client, &url, &["agent.created"]).await?;
    // The answer may not come any more.
    let _ = agent(&client).await;
    first.ended().await?;
    let second = server(&world, &[]).await?;
    let client = second.client();
    let all = settled(&client, &path, 1).await?;
    ensure!(all.len() == 1 && all[0]["status"] == "delivered", "{all:?}");
    let requests = receiver.requests("/good");
    ensure!((1..=most).contains(&requests.len()), "{requests:#?}");
    ensure!(ids(&requests).len() == 1 && all[0]["id"] == requests[0].id.as_str());
    Ok(())
}

#[tokio::test]
async fn dies_after_a_claim() -> Result<()> {
    dies_at("after_webhook_claim", 1).await
}

#[tokio::test]
async fn dies_after_an_answer() -> Result<()> {
    dies_at("after_webhook_answer", 2).await
}

/// `kill -9` with a backlog of which a part is under way.
#[tokio::test]
async fn a_backlog_survives() -> Result<()> {
    const COUNT: usize = 30;
    let world = World::new().await?;
    let receiver = Receiver::start().await?;
    let settings = [("SELFSAME__WEBHOOKS__CONCURRENCY_PER_ENDPOINT", "4")];
    let mut first = server(&world, &settings).await?;
    let client = first.client();
    let url = format!("{}/hang", receiver.url);
    let path = endpoint(&client, &url, &["agent.created"]).await?;
    let mut agents = BTreeSet::new();
    for _ in 0..COUNT {
        agents.insert(agent(&client).await?);
    }
    receiver.wait_count("/hang", 4).await?;
    first.kill().await?;
    let under_way = ids(&receiver.requests("/hang"));
    ensure!(under_way.len() == 4, "{under_way:?}");
    receiver.open();
    let second = server(&world, &[]).await?;
    let client = second.client();
    let all = settled(&client, &path, COUNT).await?;
    ensure!(all.iter().all(|delivery| delivery["status"] == "delivered"));
    let requests = receiver.requests("/hang");
    let told: BTreeSet<_> = requests
        .iter()
        .filter_map(|request| request.body["data"]["id"].as_str().map(str::to_owned))
        .collect();
    ensure!(told == agents);
    // Those that were under way came twice, each under its one id.
    ensure!(ids(&requests).len() == COUNT && requests.len() <= COUNT + 4);
    Ok(())
}

/// Two servers, while both are well, deliver nothing twice.
#[tokio::test]
async fn two_servers_share_the_work() -> Result<()> {
    const COUNT: usize = 60;
    let world = World::new().await?;
    let receiver = Receiver::start().await?;
    let settings = [("SELFSAME__WEBHOOKS__CONCURRENCY_PER_ENDPOINT", "2")];
    let first = server(&world, &settings).await?;
    let second = world
        .server_in("other", &[&SETTINGS, settings.as_slice()].concat())
        .await?;
    let (one, two) = (first.client(), second.client());
    let url = format!("{}/good", receiver.url);
    let path = endpoint(&one, &url, &["agent.created"]).await?;
    for number in 0..COUNT {
        agent(if number % 2 == 0 { &one } else { &two }).await?;
    }
    let all = settled(&one, &path, COUNT).await?;
    ensure!(all.len() == COUNT);
    let requests = receiver.requests("/good");
    ensure!(requests.len() == COUNT && ids(&requests).len() == COUNT);
    for server in [&one, &two] {
        let metrics = server.text("/metrics").await?;
        let delivered = r#"selfsame_webhook_attempts_total{outcome="delivered"}"#;
        ensure!(metrics.contains(delivered), "one of them did nothing");
    }
    Ok(())
}

/// A server that is told to stop waits for the answer to what it has sent.
#[tokio::test]
async fn a_drain_waits_for_answers() -> Result<()> {
    let world = World::new().await?;
    let receiver = Receiver::start().await?;
    let mut first = server(&world, &[]).await?;
    let client = first.client();
    let url = format!("{}/hang", receiver.url);
    let path = endpoint(&client, &url, &["agent.created"]).await?;
    agent(&client).await?;
    receiver.wait_count("/hang", 1).await?;
    first.signal("TERM").await?;
    until("it drains", async || {
        Ok(((), client.status("/readyz").await != Some(200)))
    })
    .await?;
    receiver.open();
    let status = first.ended().await?;
    ensure!(status.success(), "{status}: {}", first.log());
    let second = server(&world, &[]).await?;
    let all = settled(&second.client(), &path, 1).await?;
    ensure!(all[0]["status"] == "delivered", "{all:?}");
    ensure!(receiver.requests("/hang").len() == 1);
    Ok(())
}

/// While a new secret overlaps an old one, deliveries carry both signatures.
#[tokio::test]
async fn two_secrets_sign_for_a_while() -> Result<()> {
    let world = World::new().await?;
    let receiver = Receiver::start().await?;
    let server = server(&world, &[]).await?;
    let client = server.client();
    let url = format!("{}/good", receiver.url);
    let path = endpoint(&client, &url, &["agent.created"]).await?;
    let regenerate = format!("{path}/regenerate_signing_secret");
    for (overlap, signatures) in [(3600, 2), (0, 1)] {
        client
            .post(&regenerate, &json!({"overlap_seconds": overlap}))
            .await?;
        let sent = client
            .post(&format!("{path}/test_event"), &json!({}))
            .await?;
        let id = sent["id"].as_str().context("an id")?.to_owned();
        let all = receiver
            .wait("/good", "the test event", |all| {
                all.iter().any(|r| r.id == id)
            })
            .await?;
        let received = all.last().context("a request")?;
        ensure!(received.event() == "agent.created");
        let found: Vec<_> = received.signature.split(' ').collect();
        ensure!(found.len() == signatures, "{found:?}");
        ensure!(
            found
                .iter()
                .all(|each| each.starts_with("v1,") && each.len() == 47)
        );
    }
    Ok(())
}

/// The command line works on the same endpoints.
#[tokio::test]
async fn endpoints_by_the_command_line() -> Result<()> {
    let world = World::new().await?;
    let receiver = Receiver::start().await?;
    let _server = server(&world, &[]).await?;
    let mut environment = world.database_settings();
    environment.extend(SETTINGS.map(|(name, value)| (name.to_owned(), value.to_owned())));
    let directory = world.path("");
    let url = format!("{}/good", receiver.url);
    let create = ["webhooks", "create", &url, "--event", "agent.created"];
    let (status, made) = crate::world::run(&create, &environment, &directory).await?;
    ensure!(status.success(), "{made}");
    let id = made.lines().next().context("an id")?.to_owned();
    let test = ["webhooks", "test", &id];
    let (status, sent) = crate::world::run(&test, &environment, &directory).await?;
    ensure!(status.success(), "{sent}");
    let received = receiver.wait_count("/good", 1).await?;
    ensure!(received[0].id == sent.trim(), "{sent} {received:?}");
    let log = ["webhooks", "deliveries", &id];
    until("the log tells of it", async || {
        let (status, log) = crate::world::run(&log, &environment, &directory).await?;
        ensure!(status.success(), "{log}");
        let told = log.contains("delivered") && log.contains("204");
        Ok((log, told))
    })
    .await?;
    Ok(())
}
