use std::fs;

use selfsame_sandbox::{Backend, ProcessBackend, Sandbox, SandboxError, Spec, Status};
use selfsame_types::SandboxId;
use serde_json::json;

use crate::harness::{Bench, success, until};

#[tokio::test]
async fn stopping_keeps_files_and_starting_makes_new_hands() {
    let bench = Bench::new().await;
    bench
        .ok("echo kept > file; (setsid sleep 1000 & echo $! > pid)")
        .await;
    until("the sleep runs", || {
        fs::read_to_string(bench.path("pid")).is_ok_and(|p| p.ends_with('\n'))
    })
    .await;
    assert_eq!(
        bench.backend.status(&bench.handle).await.unwrap(),
        Status::Running
    );
    bench.backend.start(&bench.handle).await.unwrap();

    bench.backend.stop(&bench.handle).await.unwrap();
    bench.backend.stop(&bench.handle).await.unwrap();
    assert_eq!(
        bench.backend.status(&bench.handle).await.unwrap(),
        Status::Stopped
    );
    bench.sandbox.closed().await;
    let pid = fs::read_to_string(bench.path("pid"))
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    assert!(selfsame_hands::procs::Stat::read(pid).is_none_or(|stat| stat.dead));
    assert!(matches!(bench.attach(2).await, Err(SandboxError::Stopped)));

    bench.backend.start(&bench.handle).await.unwrap();
    let sandbox = bench.attach(1).await.unwrap();
    assert_ne!(sandbox.boot_id(), bench.sandbox.boot_id());
    let call = bench.make("bash", json!({ "command": "cat file" }));
    assert_eq!(success(sandbox.call(&call).await.unwrap()), "kept");
}

#[tokio::test]
async fn killed_hands_are_a_stopped_sandbox_that_starts_again() {
    let bench = Bench::new().await;
    bench.ok("(setsid sleep 1000 & echo $! > pid)").await;
    let call = bench.make("bash", json!({ "command": "kill -9 $PPID; sleep 1000" }));
    assert!(matches!(
        bench.sandbox.call(&call).await,
        Err(SandboxError::Lost)
    ));
    bench.sandbox.closed().await;
    until("the hands are gone", || {
        !fs::read_to_string(bench.directory().join("hands.json")).is_ok_and(|json| {
            let json: serde_json::Value = serde_json::from_str(&json).unwrap();
            let pid = json["pid"].as_i64().unwrap().try_into().unwrap();
            selfsame_hands::procs::Stat::read(pid).is_some_and(|stat| !stat.dead)
        })
    })
    .await;
    assert_eq!(
        bench.backend.status(&bench.handle).await.unwrap(),
        Status::Stopped
    );
    bench.backend.start(&bench.handle).await.unwrap();
    let pid = fs::read_to_string(bench.path("pid"))
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    assert!(selfsame_hands::procs::Stat::read(pid).is_none_or(|stat| stat.dead));
    bench.attach(1).await.unwrap();
}

#[tokio::test]
async fn removing_leaves_nothing_and_may_be_repeated() {
    let bench = Bench::new().await;
    let listed = bench.backend.list().await.unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].handle, bench.handle);
    bench.ok("sleep 1000 & echo $! > /dev/null").await;
    bench.backend.remove(&bench.handle).await.unwrap();
    assert!(!bench.directory().exists());
    assert_eq!(
        bench.backend.status(&bench.handle).await.unwrap(),
        Status::Gone
    );
    assert!(bench.backend.list().await.unwrap().is_empty());
    bench.backend.remove(&bench.handle).await.unwrap();
    assert!(matches!(bench.attach(2).await, Err(SandboxError::Gone)));
    assert!(matches!(
        bench.backend.start(&bench.handle).await,
        Err(SandboxError::Gone)
    ));
    assert!(matches!(
        bench.backend.stop(&bench.handle).await,
        Err(SandboxError::Gone)
    ));
}

#[tokio::test]
async fn another_server_finds_the_sandbox_by_its_handle() {
    let bench = Bench::new().await;
    let hands = env!("CARGO_BIN_EXE_selfsame-hands");
    let base = bench.directory().parent().unwrap().to_owned();
    let other = ProcessBackend::new(hands, base).unwrap();
    assert_eq!(other.name(), bench.backend.name());
    let sandbox = Sandbox::attach(&other, &bench.handle, &bench.key, 2)
        .await
        .unwrap();
    assert_eq!(sandbox.boot_id(), bench.sandbox.boot_id());
}

#[tokio::test]
async fn a_failed_creation_leaves_nothing() {
    let base = tempfile::tempdir().unwrap();
    let backend = ProcessBackend::new("/bin/false", base.path()).unwrap();
    let spec = Spec::new(SandboxId::new(), "");
    assert!(matches!(
        backend.create(&spec).await,
        Err(SandboxError::Backend { .. })
    ));
    assert_eq!(fs::read_dir(base.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn handles_of_others_are_gone() {
    let bench = Bench::new().await;
    for handle in ["", "/", "/etc", "../x"] {
        let handle = selfsame_sandbox::Handle(handle.into());
        assert_eq!(bench.backend.status(&handle).await.unwrap(), Status::Gone);
        bench.backend.remove(&handle).await.unwrap();
        assert!(matches!(
            bench.backend.connect(&handle).await,
            Err(SandboxError::Gone)
        ));
    }
}
