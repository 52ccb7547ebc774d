//! Environment variables of vaults: real programs in real sandboxes use secrets that they never have. They speak
//! to a host of the test's own, whose certificate is from an authority that the operator names.

mod site;

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
const PATIENCE: Duration = Duration::from_secs(100);
/// Listed by the credential; the others are not.
const LISTED: &str = "api.example.test";
const UNLISTED: &str = "other.example.test";

struct Setting {
    world: World,
    server: Server,
    site: Site,
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
        let mut hosts: Vec<_> = names.iter().map(|name| (*name, Some(site.port))).collect();
        hosts.push(("plain.example.test", Some(site.plain_port)));
        hosts.push(("closed.example.test", Some(site.port)));
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
            settings,
            _deployment: deployment,
        })
    }

    fn client(&self) -> Client {
        self.server.client()
    }

    async fn vault(&self) -> Result<String> {
        let vault = json!({"display_name": "secrets"});
        id(&self.client().post("/v1/vaults", &vault).await?)
    }

    async fn credential(&self, vault: &str, auth: Value) -> Result<String> {
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
        let credential = self.client().post(&path, &json!({"auth": whole})).await?;
        ensure!(!credential.to_string().contains("canary-"), "{credential}");
        id(&credential)
    }

    async fn session(&self, vaults: &[&str], networking: Value) -> Result<String> {
        let client = self.client();
        let name = uuid::Uuid::now_v7().to_string();
        let config = json!({"type": "cloud", "networking": networking});
        let environment = json!({"name": name, "config": config});
        let environment = client.post("/v1/environments", &environment).await?;
        let tools = json!([{"type": "agent_toolset_20260401"}]);
        let agent = json!({"name": "secrets", "model": "mock", "tools": tools});
        let agent = client.post("/v1/agents", &agent).await?;
        let body = json!({
            "agent": agent["id"], "environment_id": environment["id"], "vault_ids": vaults,
        });
        id(&client.post("/v1/sessions", &body).await?)
    }

    /// Runs a command in a turn of its own. Answers what it said, and the turn.
    async fn bash(&self, session: &str, command: &str) -> Result<(String, Vec<Value>)> {
        let marker = uuid::Uuid::now_v7().to_string();
        self.world.script(&json!([
            {"when": {"last_user_contains": marker, "tool_results": 0},
             "answer": [{"tool": {"name": "bash", "input": {"command": command}}}]},
            {"when": {"last_user_contains": marker}, "answer": "done"},
        ]))?;
        let client = self.client();
        let before = client.list(session).await?.len();
        client.say(session, &marker).await?;
        let deadline = Instant::now() + PATIENCE;
        while client.status_of(session).await? != "idle" {
            ensure!(
                Instant::now() < deadline,
                "never idle\n{}",
                self.server.log()
            );
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

fn id(object: &Value) -> Result<String> {
    Ok(object["id"].as_str().context("an id")?.to_owned())
}

fn limited(hosts: &[&str]) -> Value {
    json!({"type": "limited", "allowed_hosts": hosts})
}

fn basic(pair: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(pair))
}

/// A request by hand, in pieces of so many bytes, over Python's TLS.
fn by_hand(cut: usize, request: &str) -> String {
    format!(
        r#"python3 - <<'PROGRAM'
import os, socket, ssl
request = b"""{request}""".replace(b"\n", b"\r\n").replace(b"TOKEN", os.environb[b"TOKEN"])
tls = ssl.create_default_context().wrap_socket(socket.create_connection(("{LISTED}", 443)), server_hostname="{LISTED}")
for at in range(0, len(request), {cut}):
    tls.send(request[at:at + {cut}])
said = b""
while True:
    more = tls.recv(4096)
    said += more
    if not more: break
print(said.decode())
PROGRAM"#
    )
}

/// Whose header `Authorization`, or whose body, is to have the secret.
enum Where {
    Bearer,
    Basic(&'static str),
    Body(&'static str),
}

#[rustfmt::skip]
const PROGRAMS: &[(&str, &str, Where)] = &[
    ("curl", "curl -sS -H \"Authorization: Bearer $TOKEN\" https://api.example.test/x", Where::Bearer),
    ("curl, another host", "curl -sS -H \"Authorization: Bearer $TOKEN\" https://a.wild.example.test/", Where::Bearer),
    ("curl, HTTP/1.1 alone", "curl -sS --http1.1 --oauth2-bearer \"$TOKEN\" https://api.example.test/", Where::Bearer),
    ("curl, HTTP/2 at best", "curl -sS --http2 -H \"Authorization: Bearer $TOKEN\" https://api.example.test/", Where::Bearer),
    ("curl, TLS 1.2", "curl -sS --tls-max 1.2 -H \"Authorization: Bearer $TOKEN\" https://api.example.test/", Where::Bearer),
    ("curl, as a user", "curl -sS -u \"me:$TOKEN\" https://api.example.test/", Where::Basic("me:")),
    ("curl, in the address", "curl -sS \"https://me:$TOKEN@api.example.test/\"", Where::Basic("me:")),
    ("curl, a form", "curl -sS -d \"token=$TOKEN\" -d more=1 https://api.example.test/", Where::Body("token=SECRET&more=1")),
    ("curl, chunked", "printf '{\"t\":\"%s\"}' \"$TOKEN\" | curl -sS -H 'Transfer-Encoding: chunked' --data-binary @- https://api.example.test/", Where::Body("{\"t\":\"SECRET\"}")),
    ("curl, expecting", "curl -sS -H 'Expect: 100-continue' -d \"$TOKEN\" https://api.example.test/", Where::Body("SECRET")),
    ("wget", "wget -qO- --header=\"Authorization: Bearer $TOKEN\" https://api.example.test/", Where::Bearer),
    ("a program that starts a program", "env -i TOKEN=\"$TOKEN\" PATH=\"$PATH\" bash -c 'curl -sS -H \"Authorization: Bearer $TOKEN\" https://api.example.test/'", Where::Bearer),
    ("Python's urllib", "python3 -c 'import os, urllib.request as u; print(u.urlopen(u.Request(\"https://api.example.test/\", headers={\"Authorization\": \"Bearer \" + os.environ[\"TOKEN\"]})).status)'", Where::Bearer),
    ("Python's http.client, a body in pieces", "python3 -c 'import os, http.client as h; c = h.HTTPSConnection(\"api.example.test\"); t = os.environ[\"TOKEN\"].encode(); c.request(\"POST\", \"/\", iter([t[:10], t[10:11], t[11:]]), encode_chunked=True, headers={\"Transfer-Encoding\": \"chunked\"}); print(c.getresponse().status)'", Where::Body("SECRET")),
    ("Node's fetch", "node -e 'fetch(\"https://api.example.test/\", {headers: {authorization: `Bearer ${process.env.TOKEN}`}}).then(r => console.log(r.status))'", Where::Bearer),
    ("Node's fetch, JSON", "node -e 'fetch(\"https://api.example.test/\", {method: \"POST\", body: JSON.stringify({t: process.env.TOKEN})}).then(r => console.log(r.status))'", Where::Body("{\"t\":\"SECRET\"}")),
    ("Node's https", "node -e 'require(\"https\").get(\"https://api.example.test/\", {headers: {authorization: `Bearer ${process.env.TOKEN}`}}, r => r.on(\"data\", () => 0).on(\"end\", () => console.log(r.statusCode)))'", Where::Bearer),
    ("openssl", "printf 'GET / HTTP/1.1\\r\\nHost: api.example.test\\r\\nAuthorization: Bearer %s\\r\\nConnection: close\\r\\n\\r\\n' \"$TOKEN\" | openssl s_client -quiet -verify_return_error -connect api.example.test:443 -servername api.example.test 2>/dev/null", Where::Bearer),
    ("git", "git -c credential.helper= ls-remote \"https://me:$TOKEN@api.example.test/o/r\"; true", Where::Basic("me:")),
];

#[tokio::test]
async fn programs_use_secrets_that_they_do_not_have() -> Result<()> {
    let setting = Setting::new().await?;
    let vault = setting.vault().await?;
    setting.credential(&vault, json!({})).await?;
    let session = setting
        .session(&[&vault], limited(&["*.example.test"]))
        .await?;
    let (placeholder, _) = setting.bash(&session, "printf %s \"$TOKEN\"").await?;
    ensure!(
        placeholder.starts_with("selfsame_placeholder_") && placeholder.len() == 53,
        "{placeholder}\n{}",
        setting.server.log()
    );
    for (name, command, place) in PROGRAMS {
        // git asks without credentials first.
        setting.site.take_seen();
        let (said, _) = setting.bash(&session, command).await?;
        let seen = setting.site.take_seen();
        let context = || format!("{name}\n{said}\n{seen:#?}");
        let last = seen.last().with_context(context)?;
        let authorization = last.header("authorization").unwrap_or_default();
        match place {
            Where::Bearer => ensure!(authorization == format!("Bearer {SECRET}"), context()),
            Where::Basic(user) => {
                ensure!(
                    authorization == basic(&format!("{user}{SECRET}")),
                    context()
                );
            }
            Where::Body(body) => ensure!(last.body == body.replace("SECRET", SECRET), context()),
        }
    }

    // Where it does not go: the address, what is compressed, what is in clear, and other hosts.
    let seen = setting
        .seen(
            &session,
            "curl -sS \"https://api.example.test/$TOKEN?q=$TOKEN\"",
        )
        .await?;
    ensure!(
        seen.target == format!("/{placeholder}?q={placeholder}"),
        "{seen:?}"
    );
    let command = "printf %s \"$TOKEN\" | gzip | curl -sS -H 'Content-Encoding: gzip' --data-binary @- https://api.example.test/";
    let seen = setting.seen(&session, command).await?;
    ensure!(
        seen.header("content-encoding") == Some("gzip") && !seen.body.contains(SECRET),
        "{seen:?}"
    );
    for url in [
        "https://other.example.test/",
        "http://plain.example.test/",
        "http://api.example.test:PORT/",
    ] {
        let url = url.replace("PORT", &setting.site.plain_port.to_string());
        let command = format!("curl -sS -H \"Authorization: Bearer $TOKEN\" -d \"$TOKEN\" {url}");
        let seen = setting.seen(&session, &command).await?;
        let expected = format!("Bearer {placeholder}");
        ensure!(
            seen.header("authorization") == Some(&*expected),
            "{url}: {seen:?}"
        );
        ensure!(seen.body == placeholder, "{url}: {seen:?}");
    }
    // A host that is not listed shows its own certificate, and a listed one the door's.
    let issuer = "openssl s_client -connect HOST:443 -servername HOST </dev/null 2>/dev/null | openssl x509 -noout -issuer";
    let (own, _) = setting
        .bash(&session, &issuer.replace("HOST", UNLISTED))
        .await?;
    ensure!(own.contains("Selfsame test authority"), "{own}");
    let (doors, _) = setting
        .bash(&session, &issuer.replace("HOST", LISTED))
        .await?;
    ensure!(doors.contains("Selfsame sandbox authority"), "{doors}");

    // Split anywhere; and what comes after a change of protocol is carried as it is.
    let split = by_hand(
        7,
        "POST / HTTP/1.1\nHost: api.example.test\nX-Key: TOKEN\nTransfer-Encoding: chunked\nConnection: close\n\n35\nTOKEN\n0\n\n",
    );
    let seen = setting.seen(&session, &split).await?;
    ensure!(
        seen.header("x-key") == Some(SECRET) && seen.body == SECRET,
        "{seen:?}"
    );
    let upgrade = by_hand(
        1000,
        "GET /upgrade HTTP/1.1\nHost: api.example.test\nConnection: Upgrade\nUpgrade: shouting\nSec-WebSocket-Protocol: TOKEN\n\nhello TOKEN\n.",
    );
    setting.site.take_seen();
    let (said, _) = setting.bash(&session, &upgrade).await?;
    let seen = setting.site.take_seen().pop().context("a request")?;
    ensure!(
        seen.header("sec-websocket-protocol") == Some(SECRET),
        "{seen:?}"
    );
    let shouted = format!("HELLO {}", placeholder.to_uppercase());
    ensure!(
        said.contains("101 Switching Protocols") && said.contains(&shouted),
        "{said}"
    );

    let metrics = setting.client().text("/metrics").await?;
    let name = "selfsame_door_secret_requests_total{outcome=\"replaced\"}";
    ensure!(metrics.contains(name), "{name} is not in\n{metrics}");
    Ok(())
}

/// Looks for a text wherever a program inside could find it, memories of processes among them. Prints where it
/// was found, never the text itself.
const SEARCH: &str = r#"
python3 - "$half" "$rest" <<'PROGRAM'
import os, sys
needle = (sys.argv[1] + sys.argv[2]).encode()
for pid in filter(str.isdigit, os.listdir("/proc")):
    if int(pid) == os.getpid(): continue
    try:
        with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
            for line in maps:
                at, end = (int(part, 16) for part in line.split()[0].split("-"))
                if line.split()[1][0] != "r" or end - at > 1 << 28: continue
                try:
                    memory.seek(at)
                    if needle in memory.read(end - at): print("memory", open(f"/proc/{pid}/comm").read().strip())
                except (OSError, ValueError, OverflowError): pass
    except OSError: pass
PROGRAM
needle="$half$rest"
grep -rlsaF --exclude-dir=proc --exclude-dir=sys "$needle" / 2>/dev/null | sed 's/^/file /'
for process in /proc/[0-9]*; do
  grep -qsaF "$needle" $process/environ && echo "environment $process"
  grep -qsaF "$needle" $process/cmdline && echo "command line $process"
done
true
"#;

/// Where `text` is inside a session's sandbox. It comes in by halves, so that the search does not find itself.
async fn search(setting: &Setting, session: &str, text: &str) -> Result<String> {
    let (half, rest) = text.split_at(text.len() / 2);
    let command = format!("half={half}; rest={rest}\n{SEARCH}");
    let (found, _) = setting.bash(session, &command).await?;
    Ok(found.replace("(no output)", "").trim().to_owned())
}

#[tokio::test]
async fn a_secret_is_nowhere_inside() -> Result<()> {
    let setting = Setting::new().await?;
    let vault = setting.vault().await?;
    setting.credential(&vault, json!({})).await?;
    let session = setting
        .session(&[&vault], json!({"type": "unrestricted"}))
        .await?;
    // A program that has used it and stays.
    let stays = "node -e 'fetch(\"https://api.example.test/\", {method: \"POST\", body: process.env.TOKEN, \
        headers: {authorization: process.env.TOKEN}}).then(() => setInterval(() => 0, 1000))' >/dev/null 2>&1 & \
        while [ ! -e /tmp/seen ]; do curl -sS -H \"Authorization: $TOKEN\" https://api.example.test/ && touch /tmp/seen; done";
    setting.bash(&session, stays).await?;
    let deadline = Instant::now() + PATIENCE;
    let mut seen = Vec::new();
    while !seen.iter().any(|seen: &Seen| seen.body == SECRET) {
        ensure!(
            Instant::now() < deadline,
            "Node's request never came: {seen:#?}"
        );
        seen.extend(setting.site.take_seen());
        sleep(Duration::from_millis(20)).await;
    }
    let found = search(&setting, &session, SECRET).await?;
    ensure!(found.is_empty(), "{found}");
    // The search is not blind.
    let (half, rest) = SECRET.split_at(9);
    let plant = format!(
        "printf '%s%s' {half} {rest} > /workspace/planted; \
         node -e 'const kept = Buffer.from(process.argv[1] + process.argv[2]); setInterval(() => kept, 1000)' {half} {rest} \
         >/dev/null 2>&1 & sleep 0; until pgrep -f {half} >/dev/null; do :; done; \
         env PLANTED=$(printf %s%s {half} {rest}) tail -f /dev/null >/dev/null 2>&1 &"
    );
    setting.bash(&session, &plant).await?;
    let found = search(&setting, &session, SECRET).await?;
    for kind in ["file /workspace/planted", "environment /proc/", "memory "] {
        ensure!(
            found.contains(kind),
            "the search does not see {kind}: {found}"
        );
    }
    // Nor is it in what the session tells, or in the server's log.
    let events = setting.client().list(&session).await?;
    let told: Vec<String> = events.iter().map(Value::to_string).collect();
    let told = told.iter().filter(|event| event.contains(SECRET)).count();
    ensure!(told == 0, "{told} events have it");
    ensure!(
        !setting.server.whole_log().contains(SECRET),
        "the log has it"
    );
    Ok(())
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
