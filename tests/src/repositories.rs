//! Repositories: cloned inside by real git, through the door, from a real git server that wants a token. The
//! token is the server's secret: the sandbox works with it and never has it.

use std::{
    path::Path,
    sync::{Arc, Mutex},
};

use anyhow::{Context as _, Result, ensure};
use axum::{
    Router,
    extract::{Request, State},
    http::{HeaderValue, StatusCode, header},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse as _, Response},
};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::{
    client::{Client, check_order, count, shape},
    docker::{self, Deployment},
    standins,
    world::{Server, World},
};

const TOKEN: &str = "ghp_Canary7Qm2xTokenThatMustStayOutside";

/// The git host's mind: which token it takes. Some repositories answer as a host does that will not have us.
#[derive(Debug)]
struct Gate {
    token: Mutex<String>,
}

async fn guard(State(gate): State<Arc<Gate>>, request: Request, next: Next) -> Response {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let path = request.uri().path().to_owned();
    if path.starts_with("/acme/forbidden/") {
        return StatusCode::FORBIDDEN.into_response();
    }
    if path.starts_with("/acme/gone/") {
        return StatusCode::NOT_FOUND.into_response();
    }
    if path.starts_with("/acme/broken/") {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    }
    let token = gate.token.lock().expect("a token").clone();
    let expected = format!(
        "Basic {}",
        STANDARD.encode(format!("x-access-token:{token}"))
    );
    if request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        != Some(expected.as_str())
    {
        let mut response = StatusCode::UNAUTHORIZED.into_response();
        response.headers_mut().insert(
            header::WWW_AUTHENTICATE,
            HeaderValue::from_static("Basic realm=\"git\""),
        );
        return response;
    }
    next.run(request).await
}

async fn git(directory: &Path, arguments: &[&str]) -> Result<String> {
    let output = Command::new("git")
        .args(["-c", "user.name=test", "-c", "user.email=test@example.com"])
        .args(arguments)
        .current_dir(directory)
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .output()
        .await?;
    ensure!(
        output.status.success(),
        "git {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// A git host with one repository of two branches, and a server that clones from it.
struct Host {
    world: World,
    server: Server,
    gate: Arc<Gate>,
    bare: std::path::PathBuf,
    /// The first commit, which is not the newest one of any branch.
    first: String,
    _deployment: Deployment,
}

impl Host {
    async fn start() -> Result<Self> {
        let world = World::new().await?;
        let (root, work) = (world.path("git"), world.path("work"));
        let bare = root.join("acme/tool");
        std::fs::create_dir_all(&bare)?;
        std::fs::create_dir_all(work.join(".claude/skills/release"))?;
        git(&bare, &["init", "-q", "--bare", "-b", "main", "."]).await?;
        git(&work, &["init", "-q", "-b", "main", "."]).await?;
        std::fs::write(work.join("README"), "first\n")?;
        std::fs::write(
            work.join(".claude/skills/release/SKILL.md"),
            "---\nname: release\ndescription: How we release.\n---\nSlowly.\n",
        )?;
        git(&work, &["add", "."]).await?;
        git(&work, &["commit", "-qm", "first"]).await?;
        let first = git(&work, &["rev-parse", "HEAD"]).await?;
        std::fs::write(work.join("README"), "second\n")?;
        git(&work, &["commit", "-qam", "second"]).await?;
        git(&work, &["branch", "-q", "feature/x"]).await?;
        let target = bare.display().to_string();
        git(&work, &["push", "-q", &target, "main", "feature/x"]).await?;

        let gate = Arc::new(Gate {
            token: Mutex::new(TOKEN.to_owned()),
        });
        let router: Router =
            standins::repositories(&root).layer(from_fn_with_state(gate.clone(), guard));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        tokio::spawn(async move { axum::serve(listener, router).await });
        let upstreams = format!("[{{ host = \"github.com\", url = \"http://127.0.0.1:{port}\" }}]");
        let settings = [("SELFSAME__REPOSITORIES__UPSTREAMS", upstreams.as_str())];
        let (server, deployment) = docker::server(&world, &settings).await?;
        Ok(Self {
            world,
            server,
            gate,
            bare,
            first,
            _deployment: deployment,
        })
    }

    fn client(&self) -> Client {
        self.server.client()
    }

    async fn session(&self, resources: &Value) -> Result<Value> {
        let client = self.client();
        let name = uuid::Uuid::now_v7().to_string();
        let environment = client
            .post("/v1/environments", &json!({"name": name}))
            .await?;
        let tools = json!([{"type": "agent_toolset_20260401"}]);
        let agent = json!({"name": "git", "model": "mock", "tools": tools});
        let agent = client.post("/v1/agents", &agent).await?;
        let body = json!({
            "agent": agent["id"], "environment_id": environment["id"], "resources": resources,
        });
        client.post("/v1/sessions", &body).await
    }

    /// Runs a command in a turn of its own. Answers whether it failed, what it said, and the turn.
    async fn bash(&self, session: &str, command: &str) -> Result<(bool, String, Vec<Value>)> {
        let marker = uuid::Uuid::now_v7().to_string();
        self.world.script(&json!([
            {"when": {"last_user_contains": marker, "tool_results": 0},
             "answer": [{"tool": {"name": "bash", "input": {"command": command}}}]},
            {"when": {"last_user_contains": marker}, "answer": "done"},
        ]))?;
        let client = self.client();
        let before = client.list(session).await?.len();
        client.say(session, &marker).await?;
        client.wait_status(session, "idle").await?;
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
        Ok((result["is_error"] == true, text, turn))
    }
}

fn repository(name: &str, token: Option<&str>, checkout: Value) -> Value {
    let mut resource = json!({
        "type": "github_repository", "url": format!("https://github.com/acme/{name}"),
    });
    if let Some(token) = token {
        resource["authorization_token"] = json!(token);
    }
    if !checkout.is_null() {
        resource["checkout"] = checkout;
    }
    resource
}

/// Looks for a text wherever a program inside could find it: files, environments, command lines, and what git
/// is told. Prints where it was found, never the text itself.
const SEARCH: &str = r#"
grep -rlIsF --exclude-dir=proc --exclude-dir=sys "$needle" / 2>/dev/null | sed 's/^/file /'
grep -rlsaF --exclude-dir=proc --exclude-dir=sys "$needle" /workspace /root /etc /run /tmp /var /mnt 2>/dev/null | sed 's/^/raw /'
for process in /proc/[0-9]*; do
  [ "$process" = "/proc/$$" ] && continue
  grep -qsaF "$needle" $process/environ && echo "environment $process"
  grep -qsaF "$needle" $process/cmdline && echo "command line $process"
done
env -u needle | grep -F "$needle" && echo variable
git -C /workspace/tool config --list --show-origin | grep -F "$needle" && echo configuration
true
"#;

#[tokio::test]
async fn a_repository_works_and_its_token_is_nowhere_inside() -> Result<()> {
    let host = Host::start().await?;
    let checkout = json!({"type": "branch", "name": "feature/x"});
    let session = host
        .session(&json!([repository("tool", Some(TOKEN), checkout)]))
        .await?;
    ensure!(!session.to_string().contains(TOKEN));
    let resource = session["resources"][0]["id"]
        .as_str()
        .context("an id")?
        .to_owned();
    let session = session["id"].as_str().context("an id")?.to_owned();
    let (failed, text, turn) = host
        .bash(
            &session,
            "cd /workspace/tool && git rev-parse --abbrev-ref HEAD && cat README && git remote -v && \
             git config remote.origin.url && git status --short",
        )
        .await?;
    ensure!(!failed, "{text}\n{}", host.server.log());
    let url = "https://github.com/acme/tool";
    let expected = format!("feature/x\nsecond\norigin\t{url} (fetch)\norigin\t{url} (push)\n{url}");
    ensure!(text.trim_end() == expected, "{text}");
    ensure!(count(&turn, "session.error") == 0, "{:#?}", shape(&turn));

    // Pull, commit, push: all without credentials inside.
    let (failed, text, _) = host
        .bash(
            &session,
            "cd /workspace/tool && git pull -q && git config user.email a@b.c && git config user.name A && \
             echo more >> README && git commit -qam 'from inside' && git push -q && git rev-parse HEAD",
        )
        .await?;
    ensure!(!failed, "{text}");
    let pushed = git(&host.bare, &["rev-parse", "feature/x"]).await?;
    ensure!(text.trim() == pushed, "{text} is not {pushed}");

    // The search finds nothing, and finds what is planted. The text to look for comes in by halves.
    let (half, rest) = TOKEN.split_at(10);
    let search = format!("needle={half}; needle=\"${{needle}}{rest}\"\n{SEARCH}");
    let (_, found, _) = host.bash(&session, &search).await?;
    ensure!(
        found.trim() == "(no output)" || found.trim().is_empty(),
        "{found}"
    );
    let plant = format!("printf '%s%s' {half} {rest} > /workspace/planted; ");
    let (_, found, _) = host.bash(&session, &(plant + &search)).await?;
    ensure!(
        found.contains("file /workspace/planted"),
        "the search is blind: {found}"
    );
    // Nor is it in the log of the session or of the server.
    let events = host.client().list(&session).await?;
    ensure!(!json!(events).to_string().contains(TOKEN));
    ensure!(!host.server.whole_log().contains(TOKEN));

    // The host takes another token from now on; so does the session, without a restart.
    "ghp_second".clone_into(&mut host.gate.token.lock().expect("a token"));
    let (failed, text, _) = host
        .bash(&session, "cd /workspace/tool && git fetch 2>&1")
        .await?;
    ensure!(failed, "the old token still opens: {text}");
    let path = format!("/v1/sessions/{session}/resources/{resource}");
    host.client()
        .post(&path, &json!({"authorization_token": "ghp_second"}))
        .await?;
    let (failed, text, _) = host
        .bash(&session, "cd /workspace/tool && git fetch 2>&1")
        .await?;
    ensure!(!failed, "{text}");
    Ok(())
}

#[tokio::test]
async fn commits_are_checked_out_and_their_skills_announced() -> Result<()> {
    let host = Host::start().await?;
    let mut resource = repository(
        "tool",
        Some(TOKEN),
        json!({"type": "commit", "sha": &host.first[..12]}),
    );
    resource["mount_path"] = json!("/workspace/src/old");
    let session = host.session(&json!([resource])).await?;
    let session = session["id"].as_str().context("an id")?.to_owned();
    let (failed, text, _) = host
        .bash(
            &session,
            "cd /workspace/src/old && git rev-parse HEAD && cat README",
        )
        .await?;
    ensure!(
        !failed && text.trim() == format!("{}\nfirst", host.first),
        "{text}"
    );
    let request = host.world.model.requests(None).pop().context("a request")?;
    for said in [
        "/workspace/src/old (https://github.com/acme/tool)",
        "/workspace/src/old/.claude/skills/release/SKILL.md",
        "How we release.",
    ] {
        ensure!(
            request.body.contains(said),
            "{said} is not in {}",
            request.body
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_session_goes_on_without_a_repository_that_cannot_be_had() -> Result<()> {
    let host = Host::start().await?;
    let missing = json!({"type": "branch", "name": "no-such-branch"});
    let cases = [
        (
            "tool",
            Some("ghp_wrong"),
            Value::Null,
            "repository_authentication_error",
        ),
        ("tool", None, Value::Null, "repository_authentication_error"),
        (
            "forbidden",
            Some(TOKEN),
            Value::Null,
            "repository_forbidden_error",
        ),
        (
            "gone",
            Some(TOKEN),
            Value::Null,
            "repository_not_found_error",
        ),
        ("tool", Some(TOKEN), missing, "repository_checkout_error"),
        (
            "tool",
            Some(TOKEN),
            json!({"type": "commit", "sha": "0123456789abcdef"}),
            "repository_checkout_error",
        ),
        ("broken", Some(TOKEN), Value::Null, "repository_clone_error"),
    ];
    for (name, token, checkout, expected) in cases {
        let resource = repository(name, token, checkout);
        let session = host.session(&json!([resource])).await?;
        let session = session["id"].as_str().context("an id")?.to_owned();
        let (failed, text, turn) = host.bash(&session, "ls -A /workspace").await?;
        let errors: Vec<&Value> = turn
            .iter()
            .filter(|event| event["type"] == "session.error")
            .collect();
        ensure!(errors.len() == 1, "{expected}: {turn:#?}");
        let error = &errors[0]["error"];
        ensure!(error["type"] == expected, "{error}");
        ensure!(error["retry_status"]["type"] == "retrying", "{error}");
        ensure!(error["repository_url"] == resource["url"], "{error}");
        ensure!(!error.to_string().contains(TOKEN), "{error}");
        // Nothing half-cloned is left.
        ensure!(!failed && !text.contains(name), "{expected}: {text}");
    }
    Ok(())
}
