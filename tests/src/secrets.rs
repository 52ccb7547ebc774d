//! Environment variables of vaults: real programs in real sandboxes use secrets that they never have. They speak
//! to a host of the test's own, whose certificate is from an authority that the operator names.

mod astray;
mod inside;
pub mod packages;
mod programs;
pub mod site;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use self::site::{Seen, Site};
use crate::{
    client::{Client, check_order, count, shape},
    docker::{self, Deployment},
    standins::{self, Authority},
    world::{Server, World},
};

const SECRET: &str = "canary-Vz81-secret-that-must-stay-outside";
const ROTATED: &str = "canary-Kq27-secret-that-came-later";
const PATIENCE: Duration = Duration::from_secs(200);
/// Listed by the credential; the others are not.
const LISTED: &str = "api.example.test";
const UNLISTED: &str = "other.example.test";

struct Setting {
    world: World,
    server: Server,
    site: Site,
    /// Where the names lead that no credential lists.
    other: Site,
    settings: Vec<(&'static str, String)>,
    _deployment: Deployment,
}

impl Setting {
    async fn new() -> Result<Self> {
        let world = World::new().await?;
        let authority = Authority::new()?;
        let bundle = world.path("ca.pem");
        authority.bundle(&bundle)?;
        let names = [LISTED, UNLISTED, "a.wild.example.test"];
        let site = Site::start(&authority, &names).await?;
        let other = Site::start(&authority, &names).await?;
        let hosts = [
            (LISTED, Some(site.port)),
            ("a.wild.example.test", Some(site.port)),
            ("closed.example.test", Some(site.port)),
            (UNLISTED, Some(other.port)),
            ("plain.example.test", Some(other.plain_port)),
        ];
        let settings = vec![
            ("SELFSAME__NET__HOSTS", standins::hosts(&hosts)),
            ("SELFSAME__NET__ALLOWED_RANGES", standins::ranges()?),
            ("SELFSAME__NET__EXTRA_CA_FILE", bundle.display().to_string()),
        ];
        let borrowed: Vec<_> = settings.iter().map(|(k, v)| (*k, v.as_str())).collect();
        let (server, deployment) = docker::server(&world, &borrowed).await?;
        Ok(Self {
            world,
            server,
            site,
            other,
            settings,
            _deployment: deployment,
        })
    }

    fn client(&self) -> Client {
        self.server.client()
    }

    async fn vault(&self) -> Result<String> {
        vault(&self.client()).await
    }

    async fn credential(&self, vault: &str, auth: Value) -> Result<String> {
        credential(&self.client(), vault, auth).await
    }

    async fn session(&self, vaults: &[&str], networking: Value) -> Result<String> {
        let client = self.client();
        let name = uuid::Uuid::now_v7().to_string();
        let config = json!({"type": "cloud", "networking": networking});
        let environment = json!({"name": name, "config": config});
        let environment = client.post("/v1/environments", &environment).await?;
        session(&client, &id(&environment)?, vaults).await
    }

    async fn bash(&self, session: &str, command: &str) -> Result<(String, Vec<Value>)> {
        bash(&self.world, &self.server, session, command).await
    }

    /// What the site saw of the one request that a command makes.
    async fn seen(&self, session: &str, command: &str) -> Result<Seen> {
        self.site.take_seen();
        let (said, _) = self.bash(session, command).await?;
        let mut seen = self.site.take_seen();
        ensure!(
            seen.len() == 1,
            "{command}\n{said}\n{seen:#?}\n{}",
            self.server.log()
        );
        Ok(seen.remove(0))
    }
}

async fn vault(client: &Client) -> Result<String> {
    let vault = json!({"display_name": "secrets"});
    id(&client.post("/v1/vaults", &vault).await?)
}

/// A variable `TOKEN`, unless `auth` says otherwise.
async fn credential(client: &Client, vault: &str, auth: Value) -> Result<String> {
    let mut whole = json!({
        "type": "environment_variable",
        "secret_name": "TOKEN",
        "secret_value": SECRET,
        "networking": {"type": "limited", "allowed_hosts": [LISTED, "*.wild.example.test"]},
    });
    for (key, value) in auth.as_object().into_iter().flatten() {
        whole[key] = value.clone();
    }
    let path = format!("/v1/vaults/{vault}/credentials");
    let credential = client.post(&path, &json!({"auth": whole})).await?;
    ensure!(!credential.to_string().contains("canary-"), "{credential}");
    id(&credential)
}

async fn session(client: &Client, environment: &str, vaults: &[&str]) -> Result<String> {
    let tools = json!([{"type": "agent_toolset_20260401"}]);
    let agent = json!({"name": "secrets", "model": "mock", "tools": tools});
    let agent = client.post("/v1/agents", &agent).await?;
    let body = json!({
        "agent": agent["id"], "environment_id": environment, "vault_ids": vaults,
    });
    id(&client.post("/v1/sessions", &body).await?)
}

/// Runs a command in a turn of its own. Answers what it said, and the turn.
async fn bash(
    world: &World,
    server: &Server,
    session: &str,
    command: &str,
) -> Result<(String, Vec<Value>)> {
    let marker = uuid::Uuid::now_v7().to_string();
    world.script(&json!([
        {"when": {"last_user_contains": marker, "tool_results": 0},
         "answer": [{"tool": {"name": "bash", "input": {"command": command}}}]},
        {"when": {"last_user_contains": marker}, "answer": "done"},
    ]))?;
    let client = server.client();
    let before = client.list(session).await?.len();
    client.say(session, &marker).await?;
    let deadline = Instant::now() + PATIENCE;
    while client.status_of(session).await? != "idle" {
        ensure!(Instant::now() < deadline, "never idle\n{}", server.log());
        sleep(Duration::from_millis(20)).await;
    }
    let events = client.list(session).await?;
    check_order(&events).await?;
    let turn = events[before..].to_vec();
    let result = turn
        .iter()
        .find(|event| event["type"] == "agent.tool_result");
    let result = result.with_context(|| format!("a result: {:#?}", shape(&turn)))?;
    let text = result["content"][0]["text"]
        .as_str()
        .unwrap_or("")
        .to_owned();
    Ok((text, turn))
}

fn id(object: &Value) -> Result<String> {
    Ok(object["id"].as_str().context("an id")?.to_owned())
}

fn limited(hosts: &[&str]) -> Value {
    json!({"type": "limited", "allowed_hosts": hosts})
}

fn basic(pair: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(pair))
}

#[tokio::test]
async fn what_changes_in_a_vault_reaches_a_running_session() -> Result<()> {
    let mut setting = Setting::new().await?;
    let (vault, second) = (setting.vault().await?, setting.vault().await?);
    let credential = setting.credential(&vault, json!({})).await?;
    let later = setting
        .credential(
            &second,
            json!({"secret_value": "canary-of-the-second-vault"}),
        )
        .await?;
    let headers_only = json!({"secret_name": "IN_HEADER", "injection_location": {"header": true}});
    setting.credential(&second, headers_only).await?;
    let vaults = [vault.as_str(), second.as_str()];
    let session = setting
        .session(&vaults, limited(&["*.example.test"]))
        .await?;
    let request = "curl -sS -H \"Authorization: $TOKEN\" -H \"X-Other: $IN_HEADER\" -d \"$IN_HEADER\" https://api.example.test/";
    let arrives = async |setting: &Setting, expected: &str| -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let seen = setting.seen(&session, request).await?;
            if seen.header("authorization") == Some(expected) {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "{expected} never arrives: {seen:?}"
            );
        }
    };
    // Of two vaults with one name the first wins.
    let seen = setting.seen(&session, request).await?;
    ensure!(seen.header("authorization") == Some(SECRET), "{seen:?}");
    ensure!(seen.header("x-other") == Some(SECRET), "{seen:?}");
    ensure!(seen.body.starts_with("selfsame_placeholder_"), "{seen:?}");
    let (placeholder, _) = setting.bash(&session, "printf %s \"$TOKEN\"").await?;

    let path = format!("/v1/vaults/{vault}/credentials/{credential}");
    let auth = json!({"type": "environment_variable", "secret_value": ROTATED});
    setting.client().post(&path, &json!({"auth": auth})).await?;
    arrives(&setting, ROTATED).await?;
    // Another server, another life of the connection: the placeholder is the same and works.
    setting.server.kill().await?;
    let borrowed: Vec<_> = setting
        .settings
        .iter()
        .map(|(k, v)| (*k, v.as_str()))
        .collect();
    let (server, _same) = docker::server(&setting.world, &borrowed).await?;
    setting.server = server;
    arrives(&setting, ROTATED).await?;
    let (again, _) = setting
        .bash(&session, "bash -c 'printf %s \"$TOKEN\"'")
        .await?;
    ensure!(again == placeholder, "{again} {placeholder}");

    setting
        .client()
        .post(&format!("{path}/archive"), &json!({}))
        .await?;
    arrives(&setting, &placeholder).await?;
    // Its place is taken by the next vault's for programs that start with a new shell; the running one keeps its
    // own. What is deleted is gone, too.
    let other = format!("/v1/vaults/{second}/credentials/{later}");
    let client = setting.client();
    let request = client.request(reqwest::Method::DELETE, &other);
    client.send(request).await?;
    arrives(&setting, &placeholder).await
}

#[tokio::test]
async fn a_host_that_cannot_be_reached_is_said_once() -> Result<()> {
    let setting = Setting::new().await?;
    let vault = setting.vault().await?;
    let hosts = json!({"type": "limited", "allowed_hosts": [LISTED, "closed.example.test"]});
    let credential = setting
        .credential(&vault, json!({"networking": hosts}))
        .await?;
    let session = setting.session(&[&vault], limited(&[LISTED])).await?;
    let closed = "curl -sS -m 20 -H \"Authorization: $TOKEN\" https://closed.example.test/; true";
    let (_, turn) = setting.bash(&session, closed).await?;
    let errors: Vec<&Value> = turn
        .iter()
        .filter(|event| event["type"] == "session.error")
        .collect();
    ensure!(
        errors.len() == 1,
        "{:#?}\n{}",
        shape(&turn),
        setting.server.log()
    );
    let error = &errors[0]["error"];
    ensure!(
        error["type"] == "credential_host_unreachable_error",
        "{error}"
    );
    ensure!(
        error["credential_id"] == *credential && error["vault_id"] == *vault,
        "{error}"
    );
    ensure!(error["retry_status"]["type"] == "retrying", "{error}");
    let message = error["message"].as_str().unwrap_or_default();
    ensure!(
        message.contains("`TOKEN`") && message.contains("`closed.example.test`"),
        "{message}"
    );
    let (_, turn) = setting.bash(&session, closed).await?;
    ensure!(count(&turn, "session.error") == 0, "{:#?}", shape(&turn));
    // The other host of the same credential gets it.
    let good = "curl -sS -H \"Authorization: $TOKEN\" https://api.example.test/";
    let seen = setting.seen(&session, good).await?;
    ensure!(seen.header("authorization") == Some(SECRET), "{seen:?}");
    ensure!(setting.site.take_seen().is_empty());
    Ok(())
}

/// Sessions without variables trust what they trusted before, and nothing is opened for them.
#[tokio::test]
async fn sessions_without_variables_are_left_alone() -> Result<()> {
    let setting = Setting::new().await?;
    let session = setting
        .session(&[], json!({"type": "unrestricted"}))
        .await?;
    let issuer = "openssl s_client -connect api.example.test:443 -servername api.example.test </dev/null 2>/dev/null | openssl x509 -noout -issuer; \
        grep -c 'BEGIN CERT' /run/selfsame/ca-bundle.pem /etc/ssl/certs/ca-certificates.crt; env | grep selfsame_placeholder";
    let (bare, _) = setting.bash(&session, issuer).await?;
    ensure!(bare.contains("Selfsame test authority"), "{bare}");
    ensure!(!bare.contains("placeholder_"), "{bare}");
    let vault = setting.vault().await?;
    setting.credential(&vault, json!({})).await?;
    let with = setting
        .session(&[&vault], json!({"type": "unrestricted"}))
        .await?;
    let (more, _) = setting.bash(&with, issuer).await?;
    let count = |text: &str, file: &str| -> Option<u32> {
        let line = text.lines().find(|line| line.starts_with(file))?;
        line.rsplit(':').next()?.trim().parse().ok()
    };
    for file in [
        "/run/selfsame/ca-bundle.pem",
        "/etc/ssl/certs/ca-certificates.crt",
    ] {
        let (before, after) = (count(&bare, file), count(&more, file));
        ensure!(
            before.is_some() && after == before.map(|n| n + 1),
            "{file}: {bare}\n{more}"
        );
    }
    ensure!(more.contains("TOKEN=selfsame_placeholder_"), "{more}");
    Ok(())
}
