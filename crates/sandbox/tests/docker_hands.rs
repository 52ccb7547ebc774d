//! The real hands in a real container: what an engine does with a sandbox, over the Docker backend.

use std::{path::PathBuf, sync::Arc, time::Duration};

use selfsame_sandbox::{
    Backend, Call, CallResult, Content, DockerBackend, DockerOptions, Key, Limits, Sandbox,
    SandboxError, Spec,
};
use selfsame_types::SandboxId;
use serde_json::json;
use tokio::time::timeout;
use uuid::Uuid;

const PATIENCE: Duration = Duration::from_secs(60);

/// The static hands: `./dev hands` builds them and `./dev` names them.
fn hands() -> PathBuf {
    if let Some(path) = std::env::var_os("SELFSAME_HANDS") {
        return path.into();
    }
    let path = format!(
        "{}/../../target/{}-unknown-linux-gnu/hands/selfsame-hands",
        env!("CARGO_MANIFEST_DIR"),
        std::env::consts::ARCH
    );
    assert!(
        std::fs::exists(&path).unwrap(),
        "build the hands first: ./dev hands"
    );
    path.into()
}

fn image() -> String {
    std::env::var_os("SELFSAME_SANDBOX_IMAGE").map_or_else(
        || "selfsame-sandbox:latest".to_owned(),
        |name| name.into_string().unwrap(),
    )
}

fn call(tool: &str, input: serde_json::Value) -> Call {
    let id = Uuid::now_v7();
    Call {
        id,
        shell: Uuid::nil(),
        tool: tool.to_owned(),
        input,
        spill_name: id.to_string(),
    }
}

fn text(result: &CallResult) -> String {
    let parts: Vec<_> = result
        .content
        .iter()
        .map(|part| match part {
            Content::Text(text) => text.as_str(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert!(!result.is_error, "{parts:?}");
    parts.concat()
}

async fn bash(sandbox: &Sandbox, command: &str) -> String {
    let call = call("bash", json!({ "command": command }));
    let result = sandbox.call(&call).await.unwrap();
    sandbox.ack(call.id).await.unwrap();
    text(&result)
}

#[tokio::test]
async fn a_session_in_a_container() {
    let backend = DockerBackend::connect(DockerOptions {
        host: None,
        deployment: format!("test-{}", Uuid::now_v7().simple()),
        hands: hands(),
        runtime: None,
        pull: false,
        limits: Limits::default(),
        start_concurrency: 4,
    })
    .await
    .unwrap();
    let backend = Arc::new(backend);
    let used = Arc::clone(&backend);
    let outcome = tokio::spawn(async move { timeout(PATIENCE, session(&used)).await }).await;
    for left in backend.list().await.unwrap() {
        backend.remove(&left.handle).await.unwrap();
    }
    match outcome {
        Ok(outcome) => outcome.expect("the test took too long"),
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

async fn session(backend: &DockerBackend) {
    let spec = Spec::new(SandboxId::new(), image());
    let handle = backend.create(&spec).await.unwrap();
    let key = Key([7; 32]);
    let sandbox = Sandbox::attach(backend, &handle, &key, 1).await.unwrap();

    // The shell of a thread is one shell, in the directory that agents are told about.
    assert_eq!(
        bash(&sandbox, "pwd; export A=1; cd /mnt").await.trim(),
        "/workspace"
    );
    assert_eq!(bash(&sandbox, "echo $A $PWD").await.trim(), "1 /mnt");
    let write = call(
        "write",
        json!({"file_path": "/workspace/a.txt", "content": "kept\n"}),
    );
    text(&sandbox.call(&write).await.unwrap());

    // What tools run is as confined as PID 1.
    let facts = bash(
        &sandbox,
        "grep -E '^(CapEff|NoNewPrivs):' /proc/self/status | awk '{print $2}'",
    )
    .await;
    assert_eq!(facts.trim(), "00000000800000fb\n1");

    // A successor takes over, and what was begun before is collected, not repeated.
    let slow = call(
        "bash",
        json!({"command": "echo once >> /workspace/count; cat /workspace/count"}),
    );
    let first = sandbox.call(&slow).await.unwrap();
    let boot = sandbox.boot_id();
    let next = Sandbox::attach(backend, &handle, &key, 2).await.unwrap();
    timeout(PATIENCE, sandbox.closed()).await.unwrap();
    assert_eq!(next.boot_id(), boot);
    let again = next.call(&slow).await.unwrap();
    assert_eq!(text(&again), text(&first));
    let stale = Sandbox::attach(backend, &handle, &key, 1)
        .await
        .unwrap_err();
    assert!(
        matches!(stale, SandboxError::StaleEpoch { .. }),
        "{stale:?}"
    );
    let foreign = Sandbox::attach(backend, &handle, &Key([8; 32]), 3)
        .await
        .unwrap_err();
    assert!(matches!(foreign, SandboxError::WrongKey), "{foreign:?}");

    // A stop ends the stream at once, and keeps the files.
    backend.stop(&handle).await.unwrap();
    timeout(PATIENCE, next.closed()).await.unwrap();
    backend.start(&handle).await.unwrap();
    let after = Sandbox::attach(backend, &handle, &key, 3).await.unwrap();
    assert_ne!(after.boot_id(), boot);
    assert_eq!(bash(&after, "cat /workspace/a.txt").await.trim(), "kept");
}
