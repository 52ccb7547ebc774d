//! Secrets of vaults go through everything that is done with them, and are looked for in everything that a server
//! shows, writes or starts.
//!
//! Known secrets are searched for in clear, in base64, hexadecimal and percent-encoded. That the search works is
//! known, because in each place something is planted that it must find.

mod search;

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use axum::{Router, extract::Request};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use reqwest::Method;
use selfsame_mock::oauth::{ClientAuth, Endpoint, Instead, Standing, Terms};
use serde_json::{Value, json};
use tokio::{
    process::Command,
    time::{Instant, sleep},
};

use self::search::{Needle, Places};
use crate::{
    client::Client,
    docker::{self, docker},
    standins::Authority,
    world::{World, psql_program},
};

const HOST: &str = "api.example.test";
const PATIENCE: Duration = Duration::from_secs(200);

/// A server that is talked to, with all that it answers.
struct Talk {
    client: Client,
    said: Mutex<String>,
    /// Every secret there ever was.
    secrets: Mutex<BTreeSet<String>>,
}

impl Talk {
    /// A secret that no other has a part of.
    fn secret(&self, what: &str) -> String {
        // With what URLs and JSON write in other ways.
        let secret = format!("canary/{what}+{}", uuid::Uuid::now_v7().simple());
        self.secrets().insert(secret.clone());
        secret
    }

    fn secrets(&self) -> std::sync::MutexGuard<'_, BTreeSet<String>> {
        self.secrets.lock().expect("nobody panics here")
    }

    async fn send(&self, method: Method, path: &str, body: Option<String>) -> Result<(u16, Value)> {
        let mut request = self.client.request(method.clone(), path);
        if let Some(body) = body {
            request = request
                .header("content-type", "application/json")
                .body(body);
        }
        let response = request.send().await?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let text = response.text().await?;
        let mut said = self.said.lock().expect("nobody panics here");
        said.push_str(&format!("{method} {path}: {status} {headers:?} {text}\n"));
        Ok((status, serde_json::from_str(&text).unwrap_or_default()))
    }

    async fn post(&self, path: &str, body: Value) -> Result<Value> {
        let (status, answer) = self
            .send(Method::POST, path, Some(body.to_string()))
            .await?;
        ensure!(status == 200, "{path}: {status} {answer}");
        Ok(answer)
    }

    /// What is refused.
    async fn refused(&self, path: &str, body: impl ToString) -> Result<()> {
        let (status, answer) = self
            .send(Method::POST, path, Some(body.to_string()))
            .await?;
        ensure!((400..500).contains(&status), "{path}: {status} {answer}");
        Ok(())
    }
}

fn id(object: &Value) -> Result<&str> {
    object["id"].as_str().context("an id")
}

/// A host that a variable is meant for. It keeps what it was shown.
fn site(seen: Arc<Mutex<String>>) -> Router {
    Router::new().fallback(move |request: Request| {
        let shown = request.headers().get("x-secret");
        let shown = shown.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
        *seen.lock().expect("nobody panics here") = shown.unwrap_or_default();
        async { "thanks" }
    })
}

fn said(status: u16, body: String) -> Instead {
    Instead {
        status,
        body,
        ..Instead::default()
    }
}

#[tokio::test]
async fn no_secret_of_a_vault_is_anywhere() -> Result<()> {
    let world = World::new().await?;
    let authority = Authority::new()?;
    let bundle = world.path("ca.pem");
    authority.bundle(&bundle)?;
    let shown = Arc::new(Mutex::new(String::new()));
    let port = authority.serve(&[HOST], site(Arc::clone(&shown))).await?;
    let hosts = format!("[{{name = \"{HOST}\", address = \"127.0.0.1:{port}\"}}]");
    let settings = [
        ("SELFSAME__NET__HOSTS", &*hosts),
        ("SELFSAME__NET__ALLOWED_RANGES", "[\"127.0.0.1/32\"]"),
        (
            "SELFSAME__NET__EXTRA_CA_FILE",
            &*bundle.display().to_string(),
        ),
        ("SELFSAME__LOG__LEVEL", "trace"),
    ];
    let (server, deployment) = docker::server(&world, &settings).await?;
    let talk = Talk {
        client: server.client(),
        said: Mutex::default(),
        secrets: Mutex::default(),
    };

    let (first, second) = in_vaults(&world, &talk).await?;
    let mut places = Places::new()?;
    let planted = in_a_session(&world, &talk, [&first, &second], &deployment, &mut places).await?;
    let value = shown.lock().expect("nobody panics here").clone();
    ensure!(
        talk.secrets().contains(&value),
        "the host was shown {value:?}:\n{}",
        server.log()
    );
    validated_and_gone(&world, &talk, &first).await?;
    for grant in [&first, &second] {
        talk.secrets().extend(standing(&world, grant)?.issued);
    }

    let metrics = server.client().text("/metrics").await?;
    ensure!(
        metrics.contains("selfsame_vault_refreshes_total"),
        "{metrics}"
    );
    places.add("metrics", metrics)?;
    places.add(
        "answers",
        talk.said.lock().expect("nobody panics here").clone(),
    )?;
    places.add("log", server.whole_log())?;
    places.add("database", dump(&world).await?)?;
    places.add_files(&world.path("data"))?;
    places.add(
        "server's arguments",
        std::fs::read(format!("/proc/{}/cmdline", server.pid()?))?,
    )?;

    let secrets = talk.secrets().clone();
    ensure!(secrets.len() > 20, "{secrets:?}");
    for secret in secrets {
        let found = places.find(&Needle::new(&secret))?;
        ensure!(found.is_empty(), "{secret} is in {found:?}");
    }
    // The search finds what is there to be found.
    for (secret, wanted) in planted {
        let found = places.find(&Needle::new(&secret))?;
        for place in wanted {
            ensure!(
                found.contains(&place),
                "{secret} should be in {place}, and is in {found:?}"
            );
        }
    }
    let known = first["credential"].as_str().context("an id")?;
    let found = places.find(&Needle::new(known))?;
    for place in ["answers", "log", "database"] {
        ensure!(
            found.contains(&place),
            "{known} should be in {place}, and is in {found:?}"
        );
    }
    Ok(())
}

/// Vaults with every kind of credential: made, refused, changed.
async fn in_vaults(world: &World, talk: &Talk) -> Result<(Value, Value)> {
    let vault = talk
        .post("/v1/vaults", json!({"display_name": "canary"}))
        .await?;
    let vault = id(&vault)?.to_owned();
    let path = format!("/v1/vaults/{vault}/credentials");

    // What is wrong with a request is said without its secrets.
    let url = "https://mcp.example.test/mcp";
    for auth in [
        json!({"type": "static_bearer", "mcp_server_url": "no url", "token": talk.secret("bad-url")}),
        json!({"type": "static_bearer", "mcp_server_url": url, "token": [talk.secret("list")]}),
        json!({"type": "static_bearer", "mcp_server_url": url, "tokens": talk.secret("unknown-field")}),
        json!({"type": "mcp_oauth", "mcp_server_url": url, "access_token": talk.secret("past"), "expires_at": "2001-01-01T00:00:00Z"}),
        json!({"type": "environment_variable", "secret_name": "1X", "secret_value": talk.secret("bad-name"),
               "networking": {"type": "unrestricted"}}),
        json!(talk.secret("no-object")),
    ] {
        talk.refused(&path, json!({"auth": auth})).await?;
    }
    talk.refused(
        &path,
        format!(r#"{{"auth": {{"token": "{}""#, talk.secret("broken")),
    )
    .await?;

    let fixed =
        json!({"type": "static_bearer", "mcp_server_url": url, "token": talk.secret("static")});
    let fixed = talk.post(&path, json!({"auth": fixed})).await?;
    let twin =
        json!({"type": "static_bearer", "mcp_server_url": url, "token": talk.secret("twin")});
    talk.refused(&path, json!({"auth": twin})).await?;
    let change = json!({"auth": {"type": "static_bearer", "token": talk.secret("static-2")}});
    talk.post(&format!("{path}/{}", id(&fixed)?), change)
        .await?;

    let mut variables = Vec::new();
    for (name, hosts) in [("CANARY", HOST), ("ELSEWHERE", "elsewhere.example.test")] {
        let auth = json!({"type": "environment_variable", "secret_name": name, "secret_value": talk.secret(name),
            "networking": {"type": "limited", "allowed_hosts": [hosts]}});
        variables.push(talk.post(&path, json!({"auth": auth})).await?);
    }
    let value = json!({"auth": {"type": "environment_variable", "secret_value": talk.secret("variable-2")}});
    talk.post(&format!("{path}/{}", id(&variables[0])?), value)
        .await?;

    let mut grants = Vec::new();
    for (index, auth) in [ClientAuth::ClientSecretBasic, ClientAuth::ClientSecretPost]
        .into_iter()
        .enumerate()
    {
        let client_secret = talk.secret("client");
        let grant = world.model.oauth().grant(Terms {
            client_secret: client_secret.clone(),
            auth,
            expires_in: Some(3600),
            prefix: format!("canary/grant{index}"),
            ..Terms::default()
        });
        let base = world.mock_url();
        let kind = match auth {
            ClientAuth::ClientSecretBasic => "client_secret_basic",
            _ => "client_secret_post",
        };
        let auth = json!({
            "type": "mcp_oauth",
            "mcp_server_url": format!("{base}{}", grant.mcp_server),
            "access_token": grant.access_token,
            "refresh": {
                "client_id": "client",
                "refresh_token": grant.refresh_token,
                "token_endpoint": format!("{base}{}", grant.token_endpoint),
                "token_endpoint_auth": {"type": kind, "client_secret": client_secret},
            },
        });
        let credential = talk.post(&path, json!({"auth": auth})).await?;
        grants.push(
            json!({"vault": vault, "credential": id(&credential)?, "grant": grant.name, "secret": client_secret,
            "url": format!("{base}{}", grant.mcp_server)}),
        );
    }
    for object in ["", "?limit=1", "?include_archived=true"] {
        talk.send(Method::GET, &format!("{path}{object}"), None)
            .await?;
    }
    for credential in [&fixed, &variables[0]] {
        talk.send(Method::GET, &format!("{path}/{}", id(credential)?), None)
            .await?;
    }
    let [first, second] = grants
        .try_into()
        .map_err(|_| anyhow::anyhow!("two grants"))?;
    Ok((first, second))
}

fn standing(world: &World, grant: &Value) -> Result<Standing> {
    let name = grant["grant"].as_str().context("a grant")?;
    world.model.oauth().standing(name).context("a standing")
}

/// A session whose programs use what they do not have. Returns what was planted, and where it must be found.
async fn in_a_session(
    world: &World,
    talk: &Talk,
    grants: [&Value; 2],
    deployment: &docker::Deployment,
    places: &mut Places,
) -> Result<Vec<(String, Vec<&'static str>)>> {
    let file = format!("planted/file+{}", uuid::Uuid::now_v7().simple());
    let variable = format!("planted/variable+{}", uuid::Uuid::now_v7().simple());
    let command = format!(
        "env | sort; ps auxeww 2>/dev/null; cat /proc/*/environ /proc/*/cmdline 2>/dev/null | tr '\\0' '\\n'; \
         printf %s '{file}' >/tmp/planted; \
         curl -sS -H \"x-secret: $CANARY\" https://{HOST}/; \
         PLANTED='{variable}' sleep 600 >/dev/null 2>&1 & disown; echo started"
    );
    let name = uuid::Uuid::now_v7().to_string();
    let environment = talk.post("/v1/environments", json!({"name": name})).await?;
    let mut servers = Vec::new();
    let mut tools = vec![json!({"type": "agent_toolset_20260401"})];
    for (index, grant) in grants.iter().enumerate() {
        let name = format!("grant{index}");
        servers.push(json!({"type": "url", "name": name, "url": grant["url"]}));
        tools.push(json!({"type": "mcp_toolset", "mcp_server_name": name,
            "default_config": {"permission_policy": {"type": "always_allow"}}}));
    }
    let agent = json!({"name": "canary", "model": "mock", "tools": tools, "mcp_servers": servers});
    let agent = talk.post("/v1/agents", agent).await?;
    let body = json!({"agent": agent["id"], "environment_id": environment["id"], "vault_ids": [grants[0]["vault"]]});
    let session = talk.post("/v1/sessions", body).await?;
    let session = id(&session)?.to_owned();
    // A token that its server refuses, and is refreshed.
    let oauth = world.model.oauth();
    oauth.expire(grants[0]["grant"].as_str().context("a grant")?);
    world.script(&json!([
        {"when": {"last_user_contains": "go", "turn": 0}, "answer": [
            {"tool": {"name": "bash", "input": {"command": command}}},
        ]},
        {"when": {"last_user_contains": "go"}, "answer": "done"},
    ]))?;
    talk.client.say(&session, "go").await?;
    let deadline = Instant::now() + PATIENCE;
    while talk.client.status_of(&session).await? != "idle" {
        ensure!(Instant::now() < deadline, "never idle");
        sleep(Duration::from_millis(20)).await;
    }
    let events = talk.client.list(&session).await?;
    let text = serde_json::to_string(&events)?;
    ensure!(
        text.contains("thanks") && text.contains("CANARY="),
        "{events:#?}"
    );
    ensure!(
        standing(world, grants[0])?.token_requests.len() == 1,
        "{events:#?}"
    );
    ensure!(!text.contains("session.error"), "{events:#?}");
    places.add("events", text)?;
    places.add(
        "models",
        serde_json::to_string(&world.model.requests(None))?,
    )?;

    let containers = deployment.containers().await?;
    ensure!(!containers.is_empty(), "the session has no container");
    for container in containers {
        places.add("container", docker(&["inspect", &container]).await?)?;
        // What is not of the image: each path that no other one is below of.
        let changes = docker(&["diff", &container]).await?;
        let paths: Vec<&str> = changes.lines().filter_map(|line| line.get(2..)).collect();
        for path in &paths {
            if paths
                .iter()
                .any(|other| other.starts_with(&format!("{path}/")))
            {
                continue;
            }
            let file = format!("{container}:{path}");
            let copied = Command::new("docker")
                .args(["cp", &file, "-"])
                .output()
                .await?;
            places.add("files", copied.stdout)?;
        }
        let processes = docker(&["top", &container, "-eo", "pid"]).await?;
        for pid in processes
            .lines()
            .filter_map(|line| line.trim().parse::<u32>().ok())
        {
            places.add("memory", memory(pid))?;
            for name in ["environ", "cmdline"] {
                places.add(
                    "processes",
                    std::fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default(),
                )?;
            }
        }
    }
    Ok(vec![
        (file, vec!["files", "events", "database", "models"]),
        (variable, vec!["processes", "memory", "events", "database"]),
    ])
}

/// Everything in a process's memory that can be read.
fn memory(pid: u32) -> Vec<u8> {
    use std::os::unix::fs::FileExt as _;
    // A process may end at any time.
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    let Ok(file) = std::fs::File::open(format!("/proc/{pid}/mem")) else {
        return Vec::new();
    };
    let mut all = Vec::new();
    for line in maps.lines().filter(|line| line.contains(" rw")) {
        let range = line
            .split(' ')
            .next()
            .and_then(|range| range.split_once('-'));
        let Some((start, end)) = range else { continue };
        let hex = |text| u64::from_str_radix(text, 16).unwrap_or(0);
        let (mut at, end) = (hex(start), hex(end));
        let mut page = vec![0; 64 << 10];
        while at < end {
            let count = usize::try_from(end - at)
                .unwrap_or(usize::MAX)
                .min(page.len());
            match file.read_at(&mut page[..count], at) {
                // A page of zeros has no secrets; most of a stack is that.
                Ok(read) if read > 0 => {
                    if page[..read].iter().any(|byte| *byte != 0) {
                        all.extend_from_slice(&page[..read]);
                    }
                    at += read as u64;
                }
                _ => break,
            }
        }
    }
    all
}

/// Validations that succeed and fail while the servers repeat what they were shown, and the end of a vault.
async fn validated_and_gone(world: &World, talk: &Talk, grant: &Value) -> Result<()> {
    let (vault, credential) = (
        grant["vault"].as_str().context("a vault")?,
        &grant["credential"],
    );
    let credential = format!(
        "/v1/vaults/{vault}/credentials/{}",
        credential.as_str().context("an id")?
    );
    let validate = format!("{credential}/mcp_oauth_validate");
    let name = grant["grant"].as_str().context("a grant")?;
    let oauth = world.model.oauth();
    let secret = grant["secret"].as_str().context("a secret")?;
    let echo = |status| -> Result<Instead> {
        let Standing {
            access_token,
            refresh_token,
            ..
        } = standing(world, grant)?;
        let pair = STANDARD.encode(format!("client:{secret}"));
        let encoded = STANDARD.encode(format!("Bearer {access_token}"));
        let form = refresh_token.replace('/', "%2F");
        let body = format!(
            "{access_token} {refresh_token} {secret} {pair} {encoded} refresh_token={form}"
        );
        Ok(said(status, body))
    };
    let status = async |wanted: &str| -> Result<()> {
        let found = talk.post(&validate, json!({})).await?;
        ensure!(found["status"] == wanted, "{found}");
        Ok(())
    };
    status("valid").await?;
    oauth.expire(name);
    status("valid").await?;
    oauth.expire(name);
    oauth.instead(name, Endpoint::Mcp, vec![echo(401)?]);
    oauth.instead(name, Endpoint::Token, vec![echo(503)?]);
    status("unknown").await?;
    oauth.instead(name, Endpoint::Mcp, vec![echo(401)?]);
    oauth.instead(name, Endpoint::Token, vec![echo(200)?]);
    status("invalid").await?;
    oauth.instead(name, Endpoint::Token, vec![echo(400)?]);
    status("invalid").await?;
    let refresh = json!({"refresh_token": talk.secret("by-hand"),
        "token_endpoint_auth": {"type": "client_secret_basic", "client_secret": talk.secret("client-2")}});
    let change = json!({"auth": {"type": "mcp_oauth", "access_token": talk.secret("by-hand"), "refresh": refresh}});
    talk.post(&credential, change).await?;
    status("invalid").await?;
    talk.post(&format!("{credential}/archive"), json!({}))
        .await?;
    talk.refused(&validate, "{}").await?;
    talk.send(Method::DELETE, &credential, None).await?;
    Ok(())
}

/// The whole database as text.
async fn dump(world: &World) -> Result<Vec<u8>> {
    let program = psql_program().with_file_name("pg_dump");
    let url = world.database_settings();
    let url = url.get("SELFSAME__DATABASE__URL").context("a database")?;
    let output = Command::new(&program)
        .args(["--data-only", "--inserts", "-d", url])
        .output()
        .await
        .with_context(|| format!("{}", program.display()))?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(output.stdout)
}
