//! Sandboxes that fill their disk, on a daemon without quotas and on one with.

mod support;

use std::sync::Arc;

use selfsame_sandbox::{
    Backend, CallResult, Content, DiskLimit, DockerBackend, Key, Limits, Put, Sandbox,
    SandboxError, Spec,
};
use selfsame_types::SandboxId;
use serde_json::json;
use support::{bash, call, deployment, image, options};
use tokio::io::{AsyncReadExt, repeat};

const MIB: u64 = 1 << 20;

fn limits(disk_bytes: u64) -> Limits {
    Limits {
        memory_bytes: Some(512 * MIB),
        disk_bytes: Some(disk_bytes),
        ..Limits::default()
    }
}

async fn started(backend: &Arc<DockerBackend>, limit: u64) -> Sandbox {
    let spec = Spec::new(SandboxId::new(), image());
    let handle = backend.create(&spec).await.unwrap();
    let sandbox = Sandbox::attach(&**backend, &handle, &Key([7; 32]), 1)
        .await
        .unwrap();
    sandbox.watch_disk(Arc::clone(backend) as Arc<dyn Backend>, handle, limit);
    sandbox
}

async fn result(sandbox: &Sandbox, tool: &str, input: serde_json::Value) -> CallResult {
    let call = call(tool, input);
    let result = sandbox.call(&call).await.unwrap();
    sandbox.ack(call.id).await.unwrap();
    result
}

fn text(result: &CallResult) -> &str {
    match result.content.first() {
        Some(Content::Text(text)) => text,
        other => panic!("{other:?}"),
    }
}

async fn put(sandbox: &Sandbox, size: u64) -> Result<(), SandboxError> {
    let file = Put {
        path: "/workspace/put".into(),
        mode: 0o644,
        size,
    };
    sandbox.put(&file, repeat(1).take(size)).await
}

/// Many files that together are too much.
#[tokio::test]
async fn the_sum_of_all_files_is_bounded() {
    deployment(limits(64 * MIB), |backend| async move {
        let (sandbox, other) = (started(&backend, 64 * MIB).await, started(&backend, 64 * MIB).await);
        let fill = "for i in $(seq 100); do dd if=/dev/zero of=/opt/big$i bs=1M count=20; sleep 0.2; done";
        let filled = result(&sandbox, "bash", json!({ "command": fill })).await;
        // With quotas the writes themselves fail, and that is all.
        if backend.disk_limit() == DiskLimit::Quota {
            assert!(text(&filled).contains("No space left") || text(&filled).contains("quota"), "{filled:?}");
            return;
        }
        let why = "the sandbox's disk is full";
        assert!(filled.is_error, "{filled:?}");
        assert!(text(&filled).contains("the command was killed") && text(&filled).contains(why), "{filled:?}");
        let write = json!({ "file_path": "/workspace/a", "content": "x" });
        let refused = result(&sandbox, "write", write.clone()).await;
        assert!(refused.is_error && text(&refused).contains(why), "{refused:?}");
        let refused = put(&sandbox, 10).await.unwrap_err();
        assert!(refused.to_string().contains(why), "{refused}");
        let tried = json!({ "command": "cat /etc/hostname > /workspace/b || rm -f /workspace/b; ls /opt | wc -l" });
        let tried = result(&sandbox, "bash", tried).await;
        assert!(tried.is_error && text(&tried).contains(why), "{tried:?}");

        // Nobody else is harmed.
        bash(&other, "dd if=/dev/zero of=/opt/some bs=1M count=20 status=none").await;
        put(&other, MIB).await.unwrap();

        // And what to do about it works.
        assert_eq!(bash(&sandbox, "rm /opt/big*; ls /workspace | wc -l").await, "0");
        result(&sandbox, "write", write).await;
        put(&sandbox, MIB).await.unwrap();
        assert_eq!(bash(&sandbox, "cat /workspace/a; stat -c %s /workspace/put").await, "x1048576");
    })
    .await;
}

/// One file that is too much.
#[tokio::test]
async fn the_size_of_a_file_is_bounded() {
    deployment(limits(16 * MIB), |backend| async move {
        // Nothing is measured here.
        let sandbox = started(&backend, u64::MAX).await;
        let input = json!({ "command": "dd if=/dev/zero of=/opt/big bs=1M count=40; echo $?; stat -c %s /opt/big" });
        let full = result(&sandbox, "bash", input).await;
        assert!(!text(&full).contains("\n0\n"), "{full:?}");
        let error = put(&sandbox, 40 * MIB).await.unwrap_err();
        assert!(matches!(error, SandboxError::Failed(_)), "{error:?}");
        let rest = "rm /opt/big; ls -A /workspace | wc -l";
        assert_eq!(bash(&sandbox, rest).await, "0");
        put(&sandbox, MIB).await.unwrap();
        assert_eq!(bash(&sandbox, "stat -c %s /workspace/put").await, "1048576");
    })
    .await;
}

#[tokio::test]
async fn without_room_on_the_machine_no_sandbox_is_made() {
    let mut options = options(Limits::default());
    options.low_water_bytes = u64::MAX / 2;
    let backend = DockerBackend::connect(options).await.unwrap();
    let error = backend
        .create(&Spec::new(SandboxId::new(), image()))
        .await
        .unwrap_err();
    assert!(
        matches!(&error, SandboxError::NoRoom(text) if text.contains("low_water")),
        "{error:?}"
    );
    assert_eq!(backend.list().await.unwrap(), []);
}

/// What is written to a container's own layer, and not what is in the image or in memory.
#[tokio::test]
async fn what_a_sandbox_has_written_is_measured() {
    deployment(limits(256 * MIB), |backend| async move {
        backend.settle(&image()).await;
        assert_ne!(backend.disk_limit(), DiskLimit::Unknown);
        let spec = Spec::new(SandboxId::new(), image());
        let handle = backend.create(&spec).await.unwrap();
        let sandbox = Sandbox::attach(&*backend, &handle, &Key([7; 32]), 1)
            .await
            .unwrap();
        let Some(before) = backend.disk_used(&handle).await.unwrap() else {
            assert_eq!(backend.disk_limit(), DiskLimit::Quota);
            return;
        };
        assert!(before < MIB, "{before}");
        bash(
            &sandbox,
            "head -c 5000000 /dev/zero > /opt/a; head -c 5000000 /dev/zero > /dev/shm/b",
        )
        .await;
        let written = backend.disk_used(&handle).await.unwrap().unwrap();
        assert!((5_000_000..6_000_000).contains(&written), "{written}");
        bash(&sandbox, "rm /opt/a").await;
        assert!(backend.disk_used(&handle).await.unwrap().unwrap() < MIB);
        backend.remove(&handle).await.unwrap();
        assert!(matches!(
            backend.disk_used(&handle).await,
            Err(SandboxError::Gone)
        ));
    })
    .await;
}
