//! The way out of a sandbox is the door's and nobody else's: what a program inside may try, tried on real
//! containers, under `limited` and under `unrestricted`.
//!
//! Each probe has a control: a place where the very same probe gets through, so that one that has stopped
//! working cannot pass for one that is blocked. And what must not be reached notes its visitors: they are
//! counted, whatever the probes say.

mod standin;

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use crate::{
    docker::{self, docker, image},
    world::{Server, World},
};

const PROBES: &str = include_str!("escape/probes.py");
const STAND: &str = include_str!("escape/stand.py");
const PATIENCE: Duration = Duration::from_secs(100);

/// Where a probe gets through, when it must not from a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Control {
    /// An ordinary container, on an ordinary network of Docker's.
    Bridge,
    /// A container on the host's network.
    Host,
    /// A container with the capabilities that a sandbox must not have.
    Capable,
    /// A container that has the metadata address itself.
    Metadata,
    /// An unrestricted sandbox whose server allows the machine's private addresses.
    Open,
    /// The same sandbox, in the row named so, or the unrestricted one in this row.
    Row(&'static str),
}

/// One line of the table: what to try, and whether it must work.
struct Probe {
    name: &'static str,
    what: Value,
    control: Control,
    limited: bool,
    unrestricted: bool,
}

/// What there is to reach.
struct Goals {
    /// Docker's gateway: this machine, as containers see it.
    gateway: String,
    /// On all addresses of this machine.
    open: u16,
    datagrams: u16,
    /// On this machine's loopback.
    loopback: u16,
    /// Allowed, at an address that the operator lists.
    allowed: u16,
    container: String,
    tunnel: String,
}

#[rustfmt::skip]
fn probes(goals: &Goals) -> Vec<Probe> {
    use Control::{Bridge, Capable, Host, Metadata, Open, Row};
    let (gateway, open, loopback) = (&goals.gateway, goals.open, goals.loopback);
    let mapped = format!("::ffff:{gateway}");
    let to_gateway = format!("http://{gateway}:{open}/");
    let through = |target: &str, request: &str| json!(["connect", "git.selfsame.internal", 3128, target, request]);
    let git = |path: &str, host: &str| through(
        "git.test:443",
        &format!("GET {path}?service=git-upload-pack HTTP/1.1\nHost: {host}\nConnection: close\n\n"),
    );
    let get = "GET / HTTP/1.0\r\n\r\n";
    let moved = |to: &str| json!(["follow", format!("http://allowed.test/to?{to}")]);
    let ask = |request: &str| json!(["http", "allowed.test", 80, request]);
    let probe = |name, what, control, limited, unrestricted| Probe { name, what, control, limited, unrestricted };
    vec![
        // Around the door.
        probe("this machine, by Docker's gateway", json!(["tcp", gateway, open]), Bridge, false, false),
        probe("the same, in IPv6 clothes", json!(["tcp6", mapped, open]), Bridge, false, false),
        probe("UDP", json!(["udp", gateway, goals.datagrams]), Bridge, false, false),
        probe("a DNS question to a server of one's own", json!(["dns", gateway, goals.datagrams, goals.tunnel]), Bridge, false, false),
        probe("the same, over TCP", json!(["dns_tcp", gateway, open, goals.tunnel]), Bridge, false, false),
        probe("ICMP", json!(["icmp", gateway]), Bridge, false, false),
        probe("a packet socket", json!(["packet"]), Bridge, false, false),
        probe("another container", json!(["tcp", goals.container, 8000]), Bridge, false, false),
        probe("a network namespace", json!(["namespace"]), Capable, false, false),
        probe("an interface", json!(["link"]), Capable, false, false),
        probe("the metadata address", json!(["tcp", "169.254.169.254", 80]), Metadata, false, false),
        // The server's loopback, however it is spelled.
        probe("127.0.0.1", json!(["tcp", "127.0.0.1", loopback]), Host, false, false),
        probe("localhost", json!(["tcp", "localhost", loopback]), Host, false, false),
        probe("127.1", json!(["tcp", "127.1", loopback]), Host, false, false),
        probe("0.0.0.0", json!(["tcp", "0.0.0.0", loopback]), Host, false, false),
        probe("2130706433", json!(["tcp", "2130706433", loopback]), Host, false, false),
        probe("0x7f.1", json!(["tcp", "0x7f.1", loopback]), Host, false, false),
        probe("::ffff:127.0.0.1", json!(["tcp6", "::ffff:127.0.0.1", loopback]), Host, false, false),
        // Through the door.
        probe("a listed name", json!(["tcp", "allowed.test", 80]), Row("a listed name"), true, true),
        probe("the same, on another port", json!(["tcp", "allowed.test", goals.allowed]), Row("a listed name"), true, true),
        probe("a name below a listed wildcard", json!(["tcp", "a.wild.test", 80]), Row("a listed name"), true, true),
        probe("the wildcard's own name", json!(["tcp", "wild.test", 80]), Row("a listed name"), false, true),
        probe("a name that is not listed", json!(["tcp", "unlisted.test", 80]), Row("a listed name"), false, true),
        probe("a name that leads to loopback", json!(["tcp", "inner.test", 80]), Open, false, false),
        probe("a private address that the operator lists", json!(["tcp", gateway, open]), Open, false, false),
        probe("a redirect to a listed name", moved("http://allowed.test/x"), Row("a listed name"), true, true),
        probe("a redirect to a private address", moved(&to_gateway), Open, false, false),
        probe("a redirect to a name that leads to loopback", moved("http://inner.test/"), Open, false, false),
        probe("HTTP that names the host it goes to", ask("GET / HTTP/1.1\nHost: allowed.test\n\n"), Row("a listed name"), true, true),
        probe("HTTP that names another", ask("GET / HTTP/1.1\nHost: unlisted.test\n\n"), Row("HTTP that names another"), false, true),
        probe("a target in absolute form", ask("GET http://unlisted.test/ HTTP/1.1\nHost: allowed.test\n\n"), Row("a target in absolute form"), false, true),
        probe("CONNECT, to a listed name", ask("CONNECT unlisted.test:443 HTTP/1.1\n\n"), Row("CONNECT, to a listed name"), false, true),
        probe("TLS that names the host it goes to", json!(["sni", "allowed.test", 443, "allowed.test"]), Row("a listed name"), true, true),
        probe("TLS that names another", json!(["sni", "allowed.test", 443, "unlisted.test"]), Row("TLS that names another"), false, true),
        // Through git's proxy.
        probe("git's proxy, to a listed name", through("allowed.test:80", get), Row("a listed name"), true, true),
        probe("git's proxy, to another name", through("unlisted.test:80", get), Row("git's proxy, to another name"), false, true),
        probe("git's proxy, to a name that leads to loopback", through("inner.test:80", get), Open, false, false),
        probe("git's proxy, to a private address", through(&format!("{gateway}:{open}"), get), Open, false, false),
        probe("the session's repository", git("/o/r/info/refs", "git.test"), Row("the session's repository"), true, true),
        probe("another repository of its host", git("/o/other/info/refs", "git.test"), Row("the session's repository"), false, false),
        probe("a path that climbs out of it", git("/o/r/../other/info/refs", "git.test"), Row("the session's repository"), false, false),
        probe("the same connection for another host", git("/o/r/info/refs", "unlisted.test"), Row("the session's repository"), false, false),
    ]
}

/// What each probe said, by name: whether it got through, and why not.
type Outcome = BTreeMap<String, (bool, String)>;

fn outcome(text: &str) -> Result<Outcome> {
    let line = text.lines().rfind(|line| line.starts_with("[["));
    let line = line.with_context(|| format!("no outcome in {text:?}"))?;
    let rows: Vec<(String, bool, String)> = serde_json::from_str(line)?;
    Ok(rows
        .into_iter()
        .map(|(name, through, why)| (name, (through, why)))
        .collect())
}

fn plan<'a>(marker: &str, probes: impl Iterator<Item = &'a Probe>) -> String {
    let probes: Vec<Value> = probes
        .map(|probe| {
            let mut row = vec![json!(probe.name)];
            row.extend(probe.what.as_array().into_iter().flatten().cloned());
            Value::from(row)
        })
        .collect();
    json!({"marker": marker, "probes": probes}).to_string()
}

/// Runs probes in a container that is no sandbox, on `network` if it is to have one of its own.
async fn in_container(
    control: Control,
    network: &str,
    marker: &str,
    plan: &str,
) -> Result<Outcome> {
    let image = image();
    let mut arguments = vec!["run", "--rm", "--init", "--entrypoint=bash"];
    match control {
        Control::Host => arguments.push("--network=host"),
        Control::Capable => {
            arguments.extend([
                "--network=none",
                "--cap-add=SYS_ADMIN",
                "--cap-add=NET_ADMIN",
            ]);
        }
        Control::Metadata => arguments.extend(["--network=none", "--cap-add=NET_ADMIN"]),
        _ => arguments.extend(["--network", network]),
    }
    let run = match control {
        Control::Metadata => {
            "python3 -c \"$3\" \"$1\" 80 169.254.169.254 & \
             for _ in $(seq 200); do (: </dev/tcp/127.0.0.1/80) 2>/dev/null && break; sleep 0.05; done; \
             python3 -c \"$4\" \"$2\""
        }
        _ => "exec python3 -c \"$4\" \"$2\"",
    };
    arguments.extend([&*image, "-c", run, "-", marker, plan, STAND, PROBES]);
    outcome(&docker(&arguments).await?)
}

/// Runs probes as commands of an agent.
async fn in_sandbox(world: &World, server: &Server, session: &str, plan: &str) -> Result<Outcome> {
    let client = server.client();
    let marker = uuid::Uuid::now_v7().to_string();
    let text = |name, text| format!("\"$(cat <<'{name}'\n{text}\n{name}\n)\"");
    let command = format!(
        "python3 -c {} {}",
        text("PROBES", PROBES),
        text("PLAN", plan)
    );
    world.script(&json!([
        {"when": {"last_user_contains": marker, "tool_results": 0},
         "answer": [{"tool": {"name": "bash", "input": {"command": command}}}]},
        {"when": {"last_user_contains": marker}, "answer": "done"},
    ]))?;
    client.say(session, &marker).await?;
    let deadline = Instant::now() + PATIENCE;
    while client.status_of(session).await? != "idle" {
        ensure!(Instant::now() < deadline, "never idle\n{}", server.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let events = client.list(session).await?;
    let result = events
        .iter()
        .rfind(|event| event["type"] == "agent.tool_result");
    let text = result.and_then(|result| result["content"][0]["text"].as_str());
    outcome(text.with_context(|| format!("no result: {events:#?}"))?)
}

async fn session(server: &Server, networking: Value, resources: Value) -> Result<String> {
    let client = server.client();
    let name = uuid::Uuid::now_v7().to_string();
    let config = json!({"type": "cloud", "networking": networking});
    let environment = json!({"name": name, "config": config});
    let environment = client.post("/v1/environments", &environment).await?;
    let tools = json!([{"type": "agent_toolset_20260401"}]);
    let agent = json!({"name": "black box", "model": "mock", "tools": tools});
    let agent = client.post("/v1/agents", &agent).await?;
    let body = json!({
        "agent": agent["id"],
        "environment_id": environment["id"],
        "resources": resources,
    });
    let session = client.post("/v1/sessions", &body).await?;
    Ok(session["id"].as_str().context("an id")?.to_owned())
}

/// A container that answers on port 8000, on a network of its own making: a daemon may have no default one.
struct Neighbour {
    id: String,
    network: String,
    address: String,
    /// This machine, as containers see it.
    gateway: String,
    /// The network's addresses.
    range: String,
}

impl Neighbour {
    async fn start(marker: &str) -> Result<Self> {
        let mut neighbour = Self {
            id: String::new(),
            network: format!("selfsame-escape-{marker}"),
            address: String::new(),
            gateway: String::new(),
            range: String::new(),
        };
        docker(&["network", "create", &neighbour.network]).await?;
        let mut arguments = vec!["run", "-d", "--rm", "--init", "--entrypoint=python3"];
        let image = image();
        arguments.extend(["--network", &neighbour.network]);
        arguments.extend([&*image, "-c", STAND, marker, "8000"]);
        neighbour.id = docker(&arguments).await?;
        let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{.Gateway}} {{.IPPrefixLen}}{{end}}";
        let found = docker(&["inspect", "--format", format, &neighbour.id]).await?;
        let [address, gateway, bits] = found.split(' ').collect::<Vec<_>>()[..] else {
            bail!("a container's network is {found:?}");
        };
        ensure!(
            !address.is_empty() && !gateway.is_empty(),
            "a container has no address: {found:?}"
        );
        neighbour.range = format!("{address}/{bits}");
        address.clone_into(&mut neighbour.address);
        gateway.clone_into(&mut neighbour.gateway);
        Ok(neighbour)
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        for arguments in [["rm", "-f", &self.id], ["network", "rm", &self.network]] {
            let _ = std::process::Command::new("docker")
                .args(arguments)
                .output();
        }
    }
}

#[tokio::test]
async fn nothing_gets_out_but_through_the_door() -> Result<()> {
    let marker = uuid::Uuid::now_v7().simple().to_string();
    let token = uuid::Uuid::now_v7().simple().to_string();
    let (open, open_visits) = standin::tcp("0.0.0.0", &marker).await?;
    let (datagrams, datagram_visits) = standin::udp("0.0.0.0", &marker).await?;
    let (loopback, loopback_visits) = standin::tcp("127.0.0.1", &marker).await?;
    // Loopback, too, but a part of it that is the operator's to list.
    let (allowed, allowed_visits) = standin::tcp("127.77.0.1", &marker).await?;
    let (git, git_visits) = standin::tcp("127.0.0.1", &marker).await?;
    let neighbour = Neighbour::start(&marker).await?;
    let goals = Goals {
        gateway: neighbour.gateway.clone(),
        open,
        datagrams,
        loopback,
        allowed,
        container: neighbour.address.clone(),
        tunnel: format!("{}.tunnel.test", "4a6f7921".repeat(6)),
    };
    let table = probes(&goals);

    let mut hosts: Vec<String> = ["allowed.test", "unlisted.test", "a.wild.test", "wild.test"]
        .map(|name| format!("{{name = \"{name}\", address = \"127.77.0.1:{allowed}\"}}"))
        .to_vec();
    hosts.push(format!(
        "{{name = \"inner.test\", address = \"127.0.0.1:{loopback}\"}}"
    ));
    let hosts = format!("[{}]", hosts.join(", "));
    let upstreams = format!("[{{host = \"git.test\", url = \"http://127.0.0.1:{git}\"}}]");
    let listed = format!("[\"127.0.0.0/8\", \"{}\"]", neighbour.range);
    let settings = |ranges| {
        [
            ("SELFSAME__NET__HOSTS", &*hosts),
            ("SELFSAME__REPOSITORIES__HOSTS", "[\"git.test\"]"),
            ("SELFSAME__REPOSITORIES__UPSTREAMS", &*upstreams),
            ("SELFSAME__NET__ALLOWED_RANGES", ranges),
        ]
    };
    let world = World::new().await?;
    let (server, _deployment) = docker::server(&world, &settings("[\"127.77.0.0/16\"]")).await?;
    let open_world = World::new().await?;
    let (open_server, _open_deployment) = docker::server(&open_world, &settings(&listed)).await?;

    // The controls.
    let mut controls = Outcome::new();
    for control in [
        Control::Bridge,
        Control::Host,
        Control::Capable,
        Control::Metadata,
    ] {
        let plan = plan(
            &marker,
            table.iter().filter(|probe| probe.control == control),
        );
        controls.extend(in_container(control, &neighbour.network, &marker, &plan).await?);
    }
    let unrestricted = json!({"type": "unrestricted"});
    let session_there = session(&open_server, unrestricted.clone(), json!([])).await?;
    let plan_there = plan(
        &marker,
        table.iter().filter(|probe| probe.control == Control::Open),
    );
    controls.extend(in_sandbox(&open_world, &open_server, &session_there, &plan_there).await?);
    for visits in [&open_visits, &datagram_visits, &loopback_visits] {
        ensure!(
            !visits.take().is_empty(),
            "the controls have not been noted"
        );
    }

    // The sandboxes.
    let plan = plan(&marker, table.iter());
    let resources = json!([{
        "type": "github_repository",
        "url": "https://git.test/o/r",
        "authorization_token": token,
    }]);
    let limited = json!({"type": "limited", "allowed_hosts": ["allowed.test", "*.wild.test"]});
    let inside_limited = session(&server, limited, resources.clone()).await?;
    let limited = in_sandbox(&world, &server, &inside_limited, &plan).await?;
    let inside_unrestricted = session(&server, unrestricted, resources).await?;
    let unrestricted = in_sandbox(&world, &server, &inside_unrestricted, &plan).await?;

    let broken = judge(&table, &controls, &limited, &unrestricted);
    ensure!(broken.is_empty(), "{}\n{}", broken.join("\n"), server.log());
    for (what, visits) in [
        ("this machine's open port", &open_visits),
        ("UDP", &datagram_visits),
        ("loopback", &loopback_visits),
    ] {
        let visits = visits.take();
        ensure!(visits.is_empty(), "{what} was reached: {visits:#?}");
    }
    ensure!(
        !allowed_visits.take().is_empty(),
        "the allowed host was not reached"
    );
    for visit in git_visits.take() {
        ensure!(visit.starts_with("GET /o/r/info/refs?service="), "{visit}");
        // In base64 it is another text; only that there is one is seen here.
        ensure!(
            visit.to_lowercase().contains("authorization: basic "),
            "{visit}"
        );
    }
    let metrics = server.client().text("/metrics").await?;
    for name in [
        "selfsame_door_connections_total{outcome=\"refused\"}",
        "selfsame_door_connections_total{outcome=\"ended\"}",
        "selfsame_door_bytes_total{direction=\"sent\"}",
        "selfsame_door_bytes_total{direction=\"received\"}",
    ] {
        ensure!(metrics.contains(name), "{name} is not in\n{metrics}");
    }
    let log = server.whole_log();
    ensure!(
        log.contains("a sandbox's connection was refused"),
        "refusals are not logged"
    );
    for secret in [&token, &marker] {
        ensure!(!log.contains(secret.as_str()), "{secret} is in the log");
    }
    Ok(())
}

/// Prints the table and names the rows that are wrong.
fn judge(
    table: &[Probe],
    controls: &Outcome,
    limited: &Outcome,
    unrestricted: &Outcome,
) -> Vec<String> {
    let mut broken = Vec::new();
    let said = |through: bool| if through { "reached" } else { "blocked" };
    let row = |outcome: &Outcome, name: &str| -> (bool, String) {
        let none = || (false, "not tried".to_owned());
        outcome.get(name).cloned().unwrap_or_else(none)
    };
    println!(
        "{:<48} {:<10} {:<10} {:<12} where the control is",
        "", "control", "limited", "unrestricted"
    );
    for probe in table {
        let (control, place) = match probe.control {
            Control::Row(name) => (row(unrestricted, name), format!("here: {name}")),
            other => (row(controls, probe.name), format!("{other:?}")),
        };
        let (in_limited, in_unrestricted) =
            (row(limited, probe.name), row(unrestricted, probe.name));
        println!(
            "{:<48} {:<10} {:<10} {:<12} {place}",
            probe.name,
            said(control.0),
            said(in_limited.0),
            said(in_unrestricted.0)
        );
        for (what, (through, why), wanted) in [
            ("control", &control, true),
            ("limited", &in_limited, probe.limited),
            ("unrestricted", &in_unrestricted, probe.unrestricted),
        ] {
            if *through != wanted || why == "not tried" {
                broken.push(format!(
                    "{} ({what}) is {}: {why}",
                    probe.name,
                    said(*through)
                ));
            }
        }
    }
    broken
}
