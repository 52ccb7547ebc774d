//! Programs inside a sandbox reach what they may without any setting, and an environment's packages are
//! there: real containers, real package managers, real registries or servers that speak their protocols.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use axum::{Router, routing::get};
use serde_json::{Value, json};
use tokio::{net::TcpStream, process::Command, sync::Semaphore};

use crate::{
    client::{Client, check_order, count, shape},
    docker::{self, Deployment, Helper},
    secrets::{packages, site::Site},
    standins::{self, Authority},
    world::{Server, World, until},
};

/// For an installation on a busy machine.
const PATIENCE: Duration = Duration::from_secs(400);

/// One program, and what it must print.
type Probe<'a> = (&'a str, &'a str, &'a str);

async fn environment(client: &Client, config: &Value) -> Result<String> {
    let name = uuid::Uuid::now_v7().to_string();
    let body = json!({"name": name, "config": config});
    let environment = client.post("/v1/environments", &body).await?;
    Ok(environment["id"].as_str().context("an id")?.to_owned())
}

async fn session(client: &Client, environment: &str) -> Result<String> {
    let tools = json!([{"type": "agent_toolset_20260401"}]);
    let agent = json!({"name": "black box", "model": "mock", "tools": tools});
    let agent = client.post("/v1/agents", &agent).await?;
    let body = json!({"agent": agent["id"], "environment_id": environment});
    let session = client.post("/v1/sessions", &body).await?;
    Ok(session["id"].as_str().context("an id")?.to_owned())
}

/// Says something and waits for the end of the turn. Returns the turn's events.
async fn turn(server: &Server, session: &str, text: &str) -> Result<Vec<Value>> {
    let client = server.client();
    let before = client.list(session).await?.len();
    client.say(session, text).await?;
    let deadline = Instant::now() + PATIENCE;
    while client.status_of(session).await? != "idle" {
        ensure!(
            Instant::now() < deadline,
            "never idle: {:#?}\n{}",
            shape(&client.list(session).await?),
            server.log()
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let events = client.list(session).await?;
    check_order(&events).await?;
    Ok(events[before..].to_vec())
}

/// Lets the agent run one command after the other in one turn; each must print what it is to print.
async fn probe(world: &World, server: &Server, session: &str, probes: &[Probe<'_>]) -> Result<()> {
    let marker = uuid::Uuid::now_v7().to_string();
    let calls: Vec<Value> = probes
        .iter()
        .map(|(_, command, _)| json!({"tool": {"name": "bash", "input": {"command": command}}}))
        .collect();
    world.script(&json!([
        {"when": {"last_user_contains": marker, "tool_results": 0}, "answer": calls},
        {"when": {"last_user_contains": marker}, "answer": "done"},
    ]))?;
    let events = turn(server, session, &marker).await?;
    let results: Vec<&Value> = events
        .iter()
        .filter(|event| event["type"] == "agent.tool_result")
        .collect();
    ensure!(
        results.len() == probes.len(),
        "{:#?}\n{}",
        shape(&events),
        complaints(&events)
    );
    let mut failures = Vec::new();
    for ((name, _, expected), result) in probes.iter().zip(results) {
        let text = result["content"][0]["text"].as_str().unwrap_or_default();
        let passed = result["is_error"] == false && text.contains(expected);
        println!("{name:<24} {}", if passed { "ok" } else { "FAILED" });
        if !passed {
            failures.push(format!("== {name}\n{text}"));
        }
    }
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}

/// What a session says went wrong.
fn complaints(events: &[Value]) -> String {
    let errors = events
        .iter()
        .filter(|event| event["type"] == "session.error");
    let messages = errors.filter_map(|event| event["error"]["message"].as_str());
    messages.collect::<Vec<_>>().join("\n")
}

/// How often a server has begun to install packages.
fn installations(server: &Server) -> usize {
    server.whole_log().matches("installing packages").count()
}

#[tokio::test]
async fn programs_need_no_settings() -> Result<()> {
    let world = World::new().await?;
    let authority = Authority::new()?;
    let bundle = world.path("ca.pem");
    authority.bundle(&bundle)?;
    let root = world.path("git");
    let bare = root.join("team/app.git");
    let made = Command::new("git")
        .args(["init", "-q", "--bare", "-b", "main"])
        .arg(&bare)
        .status()
        .await?;
    ensure!(made.success(), "git init");
    let git = authority
        .serve(&["git.example.test"], standins::repositories(&root))
        .await?;
    let hosts = standins::hosts(&[("git.example.test", Some(git))]);
    let bundle = bundle.display().to_string();
    let (server, _deployment) = docker::server(
        &world,
        &[
            ("SELFSAME__NET__HOSTS", &hosts),
            ("SELFSAME__NET__ALLOWED_RANGES", &standins::ranges()?),
            ("SELFSAME__NET__EXTRA_CA_FILE", &bundle),
        ],
    )
    .await?;
    let client = server.client();
    let environment = environment(&client, &json!({"type": "cloud"})).await?;
    let session = session(&client, &environment).await?;
    probe(
        &world,
        &server,
        &session,
        &[
            ("curl", "curl -sSf https://pypi.org/simple/idna/ | tail -c 300", "idna-"),
            ("wget", "wget -qO- https://pypi.org/simple/idna/ | tail -c 300", "idna-"),
            (
                "apt",
                "apt-get update -qq && cd /tmp && apt-get download -qq hello && ls hello_*",
                ".deb",
            ),
            ("pip", "pip download -q --no-deps -d /tmp/pip idna && ls /tmp/pip", "idna-"),
            ("npm", "npm view is-odd@3.0.1 version", "3.0.1"),
            (
                "Node's fetch",
                "node -e 'fetch(\"https://registry.npmjs.org/is-odd\").then(r => r.json()).then(j => console.log(j.name))'",
                "is-odd",
            ),
            (
                "Node's https",
                "node -e 'require(\"https\").get(\"https://registry.npmjs.org/is-odd\", r => { let b = \"\"; r.on(\"data\", d => b += d).on(\"end\", () => console.log(JSON.parse(b).name)) })'",
                "is-odd",
            ),
            (
                "Python's urllib",
                "python3 -c 'import urllib.request as u; print(u.urlopen(\"https://pypi.org/simple/idna/\").status)'",
                "200",
            ),
            (
                "git over https",
                "cd /tmp && git clone -q https://git.example.test/team/app.git && cd app && echo hello > greeting \
                 && git add greeting && git -c user.name=a -c user.email=a@b commit -qm greeting && git push -q \
                 && git ls-remote origin && git remote -v",
                "refs/heads/main",
            ),
        ],
    )
    .await?;
    let pushed = Command::new("git")
        .args(["show", "main:greeting"])
        .env("GIT_DIR", &bare)
        .output()
        .await?;
    ensure!(pushed.stdout == b"hello\n", "{pushed:?}");
    Ok(())
}

/// The sandbox image with one setting for Go, which has no checksum database for modules of tests.
async fn base_image() -> Result<Base> {
    let name = format!("selfsame-test-base:{}", uuid::Uuid::now_v7().simple());
    let container = docker::docker(&["create", &docker::image(), "true"]).await?;
    let change = "ENV GONOSUMDB=*.example.test";
    let made = docker::docker(&["commit", "--change", change, &container, &name]).await;
    docker::docker(&["rm", &container]).await?;
    made?;
    Ok(Base(name))
}

struct Base(String);

impl Drop for Base {
    fn drop(&mut self) {
        let _ = std::process::Command::new("docker")
            .args(["rmi", "-f", &self.0])
            .output();
    }
}

#[tokio::test]
async fn packages_are_installed_once_and_their_programs_work() -> Result<()> {
    const MODULE: &str = "go.example.test/greeting";
    let world = World::new().await?;
    let base = base_image().await?;
    let authority = Authority::new()?;
    let bundle = world.path("ca.pem");
    authority.bundle(&bundle)?;
    let gems = authority
        .serve(&["rubygems.org", "index.rubygems.org"], standins::gems())
        .await?;
    let modules = authority
        .serve(&["proxy.golang.org"], standins::modules(MODULE)?)
        .await?;
    let (database, user) = standins::postgres().await?;
    let secret = Site::start(&authority, &[packages::HOST]).await?;
    let hosts = standins::hosts(&[
        ("rubygems.org", Some(gems)),
        ("index.rubygems.org", Some(gems)),
        ("proxy.golang.org", Some(modules)),
        ("database.example.test", None),
        ("shell.example.test", None),
        (packages::HOST, Some(secret.port)),
    ]);
    let bundle = bundle.display().to_string();
    let settings = [
        ("SELFSAME__SANDBOX__IMAGE", base.0.as_str()),
        ("SELFSAME__NET__HOSTS", &hosts),
        ("SELFSAME__NET__ALLOWED_RANGES", &standins::ranges()?),
        ("SELFSAME__NET__EXTRA_CA_FILE", &bundle),
    ];
    let (server, deployment) = docker::server(&world, &settings).await?;
    let client = server.client();
    let packages = json!({
        "apt": ["openssh-server", "postgresql-client"],
        "cargo": ["helloworld@0.1.0"],
        "gem": ["gem-says-hello:1.0.0"],
        "go": [format!("{MODULE}@v1.0.0")],
        "npm": ["is-odd@3.0.1"],
        "pip": ["uv", "requests", "httpx", "aiohttp"],
    });
    let environment = environment(
        &client,
        &json!({
            "type": "cloud",
            "packages": packages,
            "networking": {
                "type": "limited",
                "allow_package_managers": true,
                "allowed_hosts": ["database.example.test", "shell.example.test", packages::HOST],
            },
        }),
    )
    .await?;
    let begun = Instant::now();
    let first = session(&client, &environment).await?;
    let postgres = format!(
        "psql \"host=database.example.test port={database} user={user} dbname=postgres\" -Atc \"select 40 + 2\""
    );
    probe(
        &world,
        &server,
        &first,
        &[
            ("a program of cargo's", "helloworld", "Hello"),
            ("a program of gem's", "gem-says-hello", "hello from a gem"),
            ("a program of go's", "greeting", "hello from a module"),
            ("a package of npm's", "cd /tmp && node -e 'console.log(require(\"is-odd\")(3))'", "true"),
            (
                "the same, as a module",
                "cd /tmp && echo 'import odd from \"is-odd\"; console.log(odd(3))' > odd.mjs && node odd.mjs",
                "true",
            ),
        ],
    )
    .await?;
    println!("first session: {:.1} s", begun.elapsed().as_secs_f64());
    probe(
        &world,
        &server,
        &first,
        &[
            (
                "cargo",
                "cd /tmp && cargo new -q --bin app && cd app && cargo add -q itoa@1 && cargo fetch && cargo tree",
                "itoa v1",
            ),
            ("gem", "gem install --no-document --install-dir /tmp/gems gem-says-hello:1.0.0", "Successfully installed gem-says-hello-1.0.0"),
            (
                "go",
                "export GOPATH=/tmp/go && go install go.example.test/greeting@latest && /tmp/go/bin/greeting",
                "hello from a module",
            ),
            ("uv", "uv pip install -q --target /tmp/uv idna && ls /tmp/uv", "idna"),
            (
                "requests",
                "python3 -c 'import requests; print(requests.get(\"https://pypi.org/simple/idna/\").status_code)'",
                "200",
            ),
            (
                "httpx",
                "python3 -c 'import httpx; print(httpx.get(\"https://pypi.org/simple/idna/\").status_code)'",
                "200",
            ),
            (
                "aiohttp",
                "python3 -c '\nimport aiohttp, asyncio\nasync def main():\n  async with aiohttp.ClientSession() as s:\n    async with s.get(\"https://pypi.org/simple/idna/\") as r: print(r.status)\nasyncio.run(main())'",
                "200",
            ),
            ("psql", &postgres, "42"),
            (
                "nothing else",
                "curl -sS -m 10 https://example.com/ || echo refused",
                "refused",
            ),
        ],
    )
    .await?;
    ssh(&world, &server, &deployment, &first).await?;
    let images = deployment.images().await?;
    packages::use_secrets(&world, &server, &environment, &images[0], &secret).await?;
    second(&world, &server, &environment).await
}

/// A real sshd, from the environment's own image.
async fn ssh(world: &World, server: &Server, deployment: &Deployment, session: &str) -> Result<()> {
    let key = "ssh-keygen -q -t ed25519 -N '' -f ~/.ssh/id_ed25519 && cat ~/.ssh/id_ed25519.pub";
    world.script(&json!([
        {"when": {"last_user_contains": "make a key", "tool_results": 0},
         "answer": [{"tool": {"name": "bash", "input": {"command": key}}}]},
        {"when": {"last_user_contains": "make a key"}, "answer": "done"},
    ]))?;
    let events = turn(server, session, "make a key").await?;
    let result = events.iter().find(|e| e["type"] == "agent.tool_result");
    let key = result.context("a key")?["content"][0]["text"].clone();
    let images = deployment.images().await?;
    ensure!(images.len() == 1, "{images:?}");
    let port = {
        let free = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        free.local_addr()?.port()
    };
    let script = "mkdir -p /run/sshd ~/.ssh; echo \"$KEY\" > ~/.ssh/authorized_keys; \
        exec /usr/sbin/sshd -D -e -p \"$PORT\" -o ListenAddress=127.0.0.1 -o PermitRootLogin=yes";
    let environment = BTreeMap::from([
        ("KEY", key.as_str().context("text")?.trim().to_owned()),
        ("PORT", port.to_string()),
    ]);
    let sshd = Helper::start(&images[0], script, &environment).await?;
    let deadline = Instant::now() + Duration::from_secs(10);
    while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
        ensure!(Instant::now() < deadline, "no sshd: {}", sshd.log().await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let command = format!(
        "ssh -o StrictHostKeyChecking=accept-new -p {port} root@shell.example.test 'echo over $((40 + 2))'"
    );
    probe(world, server, session, &[("ssh", &command, "over 42")]).await
}

/// The second session on an environment with packages starts as one on an environment without.
async fn second(world: &World, server: &Server, environment_id: &str) -> Result<()> {
    let client = server.client();
    let plain = environment(&client, &json!({"type": "cloud"})).await?;
    let mut times = Vec::new();
    for round in 0..6 {
        let environment = if round % 2 == 0 {
            &plain
        } else {
            environment_id
        };
        let begun = Instant::now();
        let session = session(&client, environment).await?;
        probe(world, server, &session, &[("a start", "echo here", "here")]).await?;
        times.push((begun.elapsed().as_millis(), round % 2));
    }
    let best = |kind| {
        let of_kind = times.iter().filter(|(_, k)| *k == kind).map(|(t, _)| *t);
        of_kind.min().unwrap_or_default()
    };
    println!(
        "best start: plain {} ms, with packages {} ms",
        best(0),
        best(1)
    );
    ensure!(installations(server) == 1, "{}", server.log());
    // Generous: what must not happen is an installation.
    ensure!(best(1) < best(0) * 3 + 500, "{times:?}");
    Ok(())
}

#[tokio::test]
async fn packages_that_cannot_be_installed_end_the_turn_with_a_clear_error() -> Result<()> {
    let world = World::new().await?;
    let (server, deployment) = docker::server(&world, &[]).await?;
    let client = server.client();
    let config = json!({"type": "cloud", "packages": {"apt": ["no-such-package-anywhere"]}});
    let environment = environment(&client, &config).await?;
    let session = session(&client, &environment).await?;
    for _ in 0..2 {
        let events = turn(&server, &session, "hello").await?;
        let errors: Vec<&Value> = events
            .iter()
            .filter(|event| event["type"] == "session.error")
            .collect();
        ensure!(errors.len() == 1, "{:#?}", shape(&events));
        let error = &errors[0]["error"];
        ensure!(
            error["type"] == "unknown_error" && error["retry_status"]["type"] == "exhausted",
            "{error:#}"
        );
        let message = error["message"].as_str().unwrap_or_default();
        ensure!(
            message.contains("apt") && message.contains("no-such-package-anywhere"),
            "{message}"
        );
        let last = shape(&events).pop();
        ensure!(last.as_deref() == Some("session.status_idle(retries_exhausted)"));
        ensure!(count(&events, "span.model_request_start") == 0);
    }
    // The second answer came from memory, and nothing is left of the first attempt.
    ensure!(installations(&server) == 1, "{}", server.log());
    ensure!(deployment.images().await?.is_empty());
    let deadline = Instant::now() + Duration::from_secs(30);
    while !deployment.containers().await?.is_empty() {
        ensure!(Instant::now() < deadline, "a container is left");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

/// A server dies while it installs packages: another one does it, and the session goes on there.
#[tokio::test]
async fn an_installation_survives_its_server() -> Result<()> {
    let world = World::new().await?;
    let authority = Authority::new()?;
    let bundle = world.path("ca.pem");
    authority.bundle(&bundle)?;
    // The first download hangs until the test is over, the second does not.
    let asked = Arc::new(AtomicUsize::new(0));
    let held = Arc::new(Semaphore::new(0));
    let wheel = standins::wheel()?;
    let count_of = Arc::clone(&asked);
    let download = move || {
        let (first, held) = (
            count_of.fetch_add(1, Ordering::SeqCst) == 0,
            Arc::clone(&held),
        );
        let wheel = wheel.clone();
        async move {
            if first {
                let _ = held.acquire().await;
            }
            wheel
        }
    };
    let name = "hello_wheel-1.0-py3-none-any.whl";
    let router = Router::new().route(&format!("/{name}"), get(download));
    let port = authority.serve(&["files.example.test"], router).await?;
    let hosts = standins::hosts(&[("files.example.test", Some(port))]);
    let bundle = bundle.display().to_string();
    let settings = [
        ("SELFSAME__NET__HOSTS", hosts.as_str()),
        ("SELFSAME__NET__ALLOWED_RANGES", &standins::ranges()?),
        ("SELFSAME__NET__EXTRA_CA_FILE", &bundle),
    ];
    let (mut first, deployment) = docker::server(&world, &settings).await?;
    let client = first.client();
    let url = format!("https://files.example.test/{name}");
    let config = json!({"type": "cloud", "packages": {"pip": [url]}});
    let environment = environment(&client, &config).await?;
    let session = session(&client, &environment).await?;
    let command = json!({"name": "bash", "input": {"command": "python3 -m hello_wheel"}});
    world.script(&json!([
        {"when": {"tool_results": 0}, "answer": [{"tool": command}]},
        {"answer": "done"},
    ]))?;
    client.say(&session, "hello").await?;
    until("the installation downloads", || {
        asked.load(Ordering::SeqCst) == 1
    })
    .await
    .with_context(|| first.log())?;
    first.kill().await?;
    let (second, _same) = docker::server(&world, &settings).await?;
    let client = second.client();
    let deadline = Instant::now() + PATIENCE;
    let events = loop {
        let events = client.list(&session).await?;
        if count(&events, "session.status_idle") > 0 {
            break events;
        }
        if Instant::now() > deadline {
            bail!("never idle: {:#?}\n{}", shape(&events), second.log());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    check_order(&events).await?;
    let results: Vec<&Value> = events
        .iter()
        .filter(|event| event["type"] == "agent.tool_result")
        .collect();
    let text = results.first().map(|result| &result["content"][0]["text"]);
    ensure!(
        text.and_then(|text| text.as_str())
            .is_some_and(|t| t.contains("hello from a wheel")),
        "{events:#?}"
    );
    ensure!(deployment.images().await?.len() == 1);
    Ok(())
}
