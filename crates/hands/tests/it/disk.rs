use std::{fs, path::PathBuf, sync::Arc};

use async_trait::async_trait;
use selfsame_sandbox::{Backend, Duplex, Handle, Listed, Put, Run, SandboxError, Spec, Status};
use serde_json::json;
use uuid::Uuid;

use crate::harness::{Bench, PATIENCE, failure, success, until};

const MIB: u64 = 1 << 20;

/// Knows what is in a directory, and nothing else.
#[derive(Debug)]
struct Measured(PathBuf);

#[async_trait]
impl Backend for Measured {
    fn name(&self) -> &str {
        "measured"
    }

    async fn create(&self, _: &Spec) -> Result<Handle, SandboxError> {
        Err(SandboxError::Gone)
    }

    async fn start(&self, _: &Handle) -> Result<(), SandboxError> {
        Err(SandboxError::Gone)
    }

    async fn stop(&self, _: &Handle) -> Result<(), SandboxError> {
        Err(SandboxError::Gone)
    }

    async fn remove(&self, _: &Handle) -> Result<(), SandboxError> {
        Err(SandboxError::Gone)
    }

    async fn status(&self, _: &Handle) -> Result<Status, SandboxError> {
        Ok(Status::Gone)
    }

    async fn list(&self) -> Result<Vec<Listed>, SandboxError> {
        Ok(Vec::new())
    }

    async fn connect(&self, _: &Handle) -> Result<Box<dyn Duplex>, SandboxError> {
        Err(SandboxError::Gone)
    }

    async fn disk_used(&self, _: &Handle) -> Result<Option<u64>, SandboxError> {
        let files = fs::read_dir(&self.0).unwrap().flatten();
        Ok(Some(
            files
                .filter_map(|file| Some(file.metadata().ok()?.len()))
                .sum(),
        ))
    }
}

fn watch(bench: &Bench, limit: u64) {
    let backend = Arc::new(Measured(bench.path("")));
    bench
        .sandbox
        .watch_disk(backend, bench.handle.clone(), limit);
}

async fn put(bench: &Bench) -> Result<(), SandboxError> {
    let file = Put {
        path: "/workspace/put".into(),
        mode: 0o644,
        size: 4,
    };
    bench.sandbox.put(&file, &b"text"[..]).await
}

fn touch() -> Run {
    Run {
        id: Uuid::now_v7(),
        argv: vec!["touch".into(), "touched".into()],
        env: Vec::new(),
        cwd: None,
        timeout: PATIENCE,
        output_limit: 100,
    }
}

/// Everything that writes is refused.
async fn refused(bench: &Bench, why: &str) {
    let write = json!({ "file_path": "a", "content": "text" });
    let edit = json!({ "file_path": "note", "old_string": "a", "new_string": "b" });
    for text in [
        failure(bench.run("write", write).await),
        failure(bench.run("edit", edit).await),
        put(bench).await.unwrap_err().to_string(),
        bench.sandbox.run(&touch()).await.unwrap_err().to_string(),
        failure(bench.bash("cat note > copy; cat note").await),
    ] {
        assert!(text.contains(why), "{text}");
    }
    let text = failure(bench.bash("cat note").await);
    assert!(text.starts_with("a\n") && text.contains(why), "{text}");
    let read = json!({ "file_path": "note" });
    assert_eq!(success(bench.run("read", read).await), "a\n");
    assert!(!bench.path("a").exists() && !bench.path("touched").exists());
    assert_eq!(
        fs::metadata(bench.path("copy")).map_or(0, |file| file.len()),
        0
    );
}

#[tokio::test]
async fn a_full_disk_takes_nothing_until_something_is_deleted() {
    let bench = Bench::new().await;
    bench.ok("echo a > note; export KEPT=1").await;
    watch(&bench, 8 * MIB);
    let fill = "for i in $(seq 200); do head -c 1000000 /dev/zero > big$i; sleep 0.05; done";
    let text = failure(bench.bash(fill).await);
    assert!(
        text.contains("the command was killed") && text.contains("disk is full"),
        "{text}"
    );
    refused(&bench, "the sandbox's disk is full").await;
    // Not enough, and then enough.
    failure(bench.bash("rm big1").await);
    assert_eq!(success(bench.bash("rm big*").await), "(no output)");
    let write = json!({ "file_path": "a", "content": "text" });
    success(bench.run("write", write).await);
    assert_eq!(bench.ok("echo b > b; cat b").await, "b");
    put(&bench).await.unwrap();
    assert_eq!(bench.sandbox.run(&touch()).await.unwrap().code, Some(0));
    // More than there is room for is refused before it is sent.
    let large = Put {
        path: "/workspace/large".into(),
        mode: 0o644,
        size: 8 * MIB,
    };
    let error = bench
        .sandbox
        .put(&large, tokio::io::repeat(0))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("disk is full"), "{error}");
}

/// What goes on in the background is ended when it fills a disk that is full already.
#[tokio::test]
async fn nothing_grows_behind_a_full_disk() {
    let bench = Bench::new().await;
    watch(&bench, MIB);
    let fill = "(for i in $(seq 100000); do head -c 20000000 /dev/zero > big$i; sleep 0.05; done) & \
                echo $! > pid";
    bench.ok(fill).await;
    let pid = fs::read_to_string(bench.path("pid"))
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    // The watch goes on for as long as there are calls.
    let mut results = Vec::new();
    while selfsame_hands::procs::Stat::read(pid).is_some_and(|stat| !stat.dead) {
        results.push(bench.bash("sleep 0.5").await);
        assert!(
            results.len() < 60,
            "it fills the disk for ever: {results:?}"
        );
    }
    bench.bash("rm -f big*").await;
    assert_eq!(
        bench.ok("echo here > x; cat x").await.lines().last(),
        Some("here")
    );
}

#[tokio::test]
async fn a_machine_without_room_is_only_read_and_deleted_from() {
    let bench = Bench::with_low_water(1 << 60).await;
    fs::write(bench.path("note"), "a\n").unwrap();
    refused(&bench, "the disk of the machine").await;
    failure(bench.bash("rm note").await);
    assert!(!bench.path("note").exists());
}

/// The hands of a directory that is gone are of no use to anybody.
#[tokio::test]
async fn hands_do_not_outlive_their_directory() {
    let bench = Bench::new().await;
    let record = fs::read(bench.directory().join("hands.json")).unwrap();
    let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
    let pid = record["pid"].as_i64().unwrap().try_into().unwrap();
    bench.ok("sleep 1000 & echo $! > pid").await;
    let child = fs::read_to_string(bench.path("pid"))
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    fs::remove_dir_all(bench.directory()).unwrap();
    let ended = |pid| selfsame_hands::procs::Stat::read(pid).is_none_or(|stat| stat.dead);
    until("they end", || ended(pid) && ended(child)).await;
}
