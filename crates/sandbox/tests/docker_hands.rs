//! The real hands in a real container: what an engine does with a sandbox, over the Docker backend.

mod support;

use selfsame_sandbox::{Backend, DockerBackend, Key, Limits, Sandbox, SandboxError, Spec};
use selfsame_types::SandboxId;
use serde_json::json;
use support::{PATIENCE, bash, call, deployment, image, text};
use tokio::time::timeout;

#[tokio::test]
async fn a_session_in_a_container() {
    deployment(Limits::default(), |backend| async move {
        session(&backend).await
    })
    .await;
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
