use std::{
    fs,
    io::Cursor,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    time::{Duration, Instant},
};

use selfsame_sandbox::{Got, Put, Sandbox, SandboxError};
use serde_json::json;
use tokio::io::{AsyncReadExt, repeat};

use crate::harness::{Bench, PATIENCE, failure, success, until};

const LIMIT: u64 = 1 << 30;

fn file(path: &str, size: usize) -> Put {
    Put {
        path: path.to_owned(),
        mode: 0o644,
        size: size as u64,
    }
}

async fn put(sandbox: &Sandbox, path: &str, content: &[u8]) -> Result<(), SandboxError> {
    let file = file(path, content.len());
    tokio::time::timeout(PATIENCE, sandbox.put(&file, content))
        .await
        .unwrap()
}

async fn get(sandbox: &Sandbox, path: &str) -> Result<Vec<u8>, String> {
    let got = tokio::time::timeout(PATIENCE, sandbox.get(path, LIMIT)).await;
    let mut got: Got = got.unwrap().map_err(|error| error.to_string())?;
    let mut content = Vec::new();
    let read = tokio::time::timeout(PATIENCE, got.read_to_end(&mut content)).await;
    read.unwrap().map_err(|error| error.to_string())?;
    assert_eq!(content.len() as u64, got.size);
    Ok(content)
}

/// Nothing but what is meant to be there.
#[track_caller]
fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[tokio::test]
async fn what_is_put_can_be_got() {
    let bench = Bench::new().await;
    let sandbox = &bench.sandbox;
    for size in [0, 1, (128 << 10) - 1, 128 << 10, (128 << 10) + 1, 1_000_003] {
        let content: Vec<u8> = (0..size).map(|at: u32| (at % 251) as u8).collect();
        let path = format!("/mnt/session/uploads/deep/er/{size}.csv");
        put(sandbox, &path, &content).await.unwrap();
        assert_eq!(fs::read(bench.place(&path)).unwrap(), content);
        assert_eq!(get(sandbox, &path).await.unwrap(), content);
    }
    let uploads = bench.place("/mnt/session/uploads/deep/er");
    assert_eq!(names(&uploads).len(), 6);

    // The mode is as given, and what was there before is replaced, not written to.
    let path = "/workspace/skills/a/run.sh";
    for (mode, text) in [(0o444, "one"), (0o555, "two")] {
        let put = Put {
            mode,
            ..file(path, text.len())
        };
        sandbox.put(&put, text.as_bytes()).await.unwrap();
        let metadata = fs::metadata(bench.place(path)).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o7777, mode);
        assert_eq!(fs::read_to_string(bench.place(path)).unwrap(), text);
    }
    // A link at the place itself is replaced as well.
    fs::write(bench.path("precious"), "precious").unwrap();
    symlink(bench.path("precious"), bench.path("link")).unwrap();
    put(sandbox, "/workspace/link", b"new").await.unwrap();
    assert_eq!(fs::read(bench.path("precious")).unwrap(), b"precious");
    assert_eq!(get(sandbox, "/workspace/link").await.unwrap(), b"new");
}

#[tokio::test]
async fn no_path_leads_anywhere_else() {
    let bench = Bench::new().await;
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "secret").unwrap();
    symlink(outside.path(), bench.path("out")).unwrap();
    symlink(outside.path().join("secret"), bench.path("file")).unwrap();
    let sandbox = &bench.sandbox;
    for path in [
        "",
        "relative",
        "/workspace/../../escape",
        "/..",
        "/workspace/..",
        "/workspace/a\0b",
        "/workspace/out/secret",
        "/workspace/out/new/file",
    ] {
        let error = put(sandbox, path, b"x").await.unwrap_err();
        assert!(
            matches!(error, SandboxError::Failed(_)),
            "{path}: {error:?}"
        );
        let error = get(sandbox, path).await.unwrap_err();
        assert!(!error.contains("secret\n"), "{path}: {error}");
    }
    let error = get(sandbox, "/workspace/file").await.unwrap_err();
    assert_eq!(error, "/workspace/file: is a link");
    sandbox.walk("/workspace/out", 10).await.unwrap_err();
    sandbox.walk("/workspace/../..", 10).await.unwrap_err();
    assert!(!sandbox.link("/workspace/out/link", "/x").await.unwrap());
    sandbox.link("/workspace/../link", "/x").await.unwrap_err();
    sandbox.remove("/workspace/out/secret").await.unwrap();
    sandbox.remove("/workspace/../x").await.unwrap_err();
    assert_eq!(names(outside.path()), ["secret"]);
}

#[tokio::test]
async fn only_regular_files_are_read_and_nothing_blocks() {
    let bench = Bench::new().await;
    bench.ok("mkdir dir; mkfifo fifo; ln -s /dev/zero zero; python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"sock\")'").await;
    let sandbox = &bench.sandbox;
    for (path, phrase) in [
        ("nothing", "no such file or directory"),
        ("dir", "is a directory"),
        ("fifo", "not a regular file"),
        ("sock", "not a regular file"),
        ("zero", "is a link"),
    ] {
        let path = format!("/workspace/{path}");
        let error = get(sandbox, &path).await.unwrap_err();
        assert_eq!(error, format!("{path}: {phrase}"));
    }
    put(sandbox, "/workspace/big", &[0; 1000]).await.unwrap();
    let error = sandbox.get("/workspace/big", 999).await.unwrap_err();
    assert!(
        error
            .to_string()
            .contains("1000 bytes, and the limit is 999"),
        "{error}"
    );

    // What is put replaces a FIFO and does not wait for its reader; a directory stays.
    put(sandbox, "/workspace/fifo", b"x").await.unwrap();
    assert_eq!(get(sandbox, "/workspace/fifo").await.unwrap(), b"x");
    let error = put(sandbox, "/workspace/dir", b"x").await.unwrap_err();
    assert_eq!(error.to_string(), "/workspace/dir: is a directory");
    let error = put(sandbox, "/workspace/big/x", b"x").await.unwrap_err();
    assert_eq!(error.to_string(), "/workspace/big/x: not a directory");
    assert_eq!(
        names(&bench.path("")),
        ["big", "dir", "fifo", "sock", "zero"]
    );
}

/// The content or its sender fails in the middle: the file of before stays, and nothing else.
#[tokio::test]
async fn an_incomplete_file_is_no_file() {
    let bench = Bench::new().await;
    let sandbox = &bench.sandbox;
    put(sandbox, "/workspace/a", b"before").await.unwrap();
    let broken = half_broken();
    let error = sandbox.put(&file("/workspace/a", 1 << 20), broken).await;
    assert!(matches!(error, Err(SandboxError::Content(_))), "{error:?}");
    for (size, content) in [(10, vec![0; 9]), (10, vec![0; 11]), (0, vec![0])] {
        let file = file("/workspace/a", size);
        let put = sandbox.put(&file, Cursor::new(content));
        assert!(matches!(put.await, Err(SandboxError::Content(_))));
    }
    // Given up in the middle.
    let large = file("/workspace/a", 1 << 30);
    let endless = sandbox.put(&large, repeat(1).take(1 << 20).chain(never()));
    assert!(
        tokio::time::timeout(Duration::from_millis(50), endless)
            .await
            .is_err()
    );
    until("nothing is left", || names(&bench.path("")) == ["a"]).await;
    assert_eq!(get(sandbox, "/workspace/a").await.unwrap(), b"before");
    // Many of those leave the sandbox as usable as it was.
    for _ in 0..50 {
        let stuck = sandbox.put(&large, repeat(1));
        assert!(
            tokio::time::timeout(Duration::from_millis(2), stuck)
                .await
                .is_err()
        );
    }
    put(sandbox, "/workspace/a", b"after").await.unwrap();
    until("nothing is left", || names(&bench.path("")) == ["a"]).await;
}

/// A content whose first half comes and whose second fails.
fn half_broken() -> impl tokio::io::AsyncRead + Unpin + Send {
    let error = std::io::Error::other("the disk is gone");
    let parts = [Ok(Cursor::new(vec![7; 512 << 10])), Err(error)];
    tokio_util::io::StreamReader::new(futures_util::stream::iter(parts))
}

/// A content that does not come.
fn never() -> impl tokio::io::AsyncRead + Unpin + Send {
    tokio_util::io::StreamReader::new(futures_util::stream::pending::<std::io::Result<&[u8]>>())
}

#[tokio::test]
async fn a_file_that_changes_while_it_is_read_is_an_error() {
    let bench = Bench::new().await;
    let sandbox = &bench.sandbox;
    // More than fits on the way, so that the hands are not done when it changes.
    const SIZE: u64 = 8 << 20;
    type Change = fn(&Path);
    let changes: [(&str, Change); 5] = [
        ("became shorter", |path| {
            fs::OpenOptions::new()
                .write(true)
                .open(path)
                .unwrap()
                .set_len(1 << 20)
                .unwrap();
        }),
        ("became longer", |path| {
            fs::OpenOptions::new()
                .write(true)
                .open(path)
                .unwrap()
                .set_len(SIZE + 1)
                .unwrap();
        }),
        ("was changed", |path| {
            let file = fs::OpenOptions::new().write(true).open(path).unwrap();
            std::os::unix::fs::FileExt::write_all_at(&file, b"x", 0).unwrap();
        }),
        ("was removed", |path| fs::remove_file(path).unwrap()),
        ("was removed", |path| {
            fs::write(path.with_extension("new"), vec![1; SIZE as usize]).unwrap();
            fs::rename(path.with_extension("new"), path).unwrap();
        }),
    ];
    for (how, change) in changes {
        let path = bench.path("file");
        fs::write(&path, vec![1; SIZE as usize]).unwrap();
        let mut got = sandbox.get("/workspace/file", LIMIT).await.unwrap();
        assert_eq!(got.size, SIZE);
        got.read_exact(&mut [0; 1000]).await.unwrap();
        // Another clock step than the one in which it was written.
        let written = fs::metadata(&path).unwrap().modified().unwrap();
        until("the clock moves", || {
            written
                .elapsed()
                .is_ok_and(|age| age > Duration::from_millis(20))
        })
        .await;
        change(&path);
        let error = got.read_to_end(&mut Vec::new()).await.unwrap_err();
        let text = error.to_string();
        assert_eq!(
            text,
            format!("/workspace/file: the file {how} while it was read")
        );
    }
    // A reader that goes away in the middle harms nobody.
    fs::write(bench.path("file"), vec![1; SIZE as usize]).unwrap();
    for _ in 0..50 {
        drop(sandbox.get("/workspace/file", LIMIT).await.unwrap());
    }
    assert_eq!(
        get(sandbox, "/workspace/file").await.unwrap().len() as u64,
        SIZE
    );
}

#[tokio::test]
async fn a_lost_stream_is_no_end() {
    let bench = Bench::new().await;
    fs::write(bench.path("file"), vec![1; 8 << 20]).unwrap();
    let mut got = bench.sandbox.get("/workspace/file", LIMIT).await.unwrap();
    let put = bench.sandbox.clone();
    let putting = tokio::spawn(async move {
        put.put(
            &file("/workspace/new", 1 << 30),
            repeat(1).take(1 << 20).chain(never()),
        )
        .await
    });
    until("it is being written", || names(&bench.path("")).len() == 2).await;
    bench.attach(2).await.unwrap();
    got.read_to_end(&mut Vec::new()).await.unwrap_err();
    assert!(matches!(putting.await.unwrap(), Err(SandboxError::Lost)));
    until("nothing is left", || names(&bench.path("")) == ["file"]).await;
}

#[tokio::test]
async fn walking_finds_regular_files_only() {
    let bench = Bench::new().await;
    let sandbox = &bench.sandbox;
    assert_eq!(sandbox.walk("/mnt/session/outputs", 10).await.unwrap(), []);
    bench
        .ok("cd ../mnt/session/outputs; mkdir -p a/b empty; echo 1 > a/b/one; printf 22 > two; \
             chmod +x two; ln -s two link; ln -s /etc dir; mkfifo fifo; touch $'bad\\xff'; touch zero")
        .await;
    let found = sandbox.walk("/mnt/session/outputs", 10).await.unwrap();
    let facts: Vec<_> = found
        .iter()
        .map(|file| (file.path.as_str(), file.size, file.executable))
        .collect();
    assert_eq!(
        facts,
        [("a/b/one", 2, false), ("two", 2, true), ("zero", 0, false)]
    );
    // A change right after it is seen by the next one.
    for round in 0..20 {
        let before = sandbox.walk("/mnt/session/outputs", 10).await.unwrap();
        fs::write(
            bench.place("/mnt/session/outputs/two"),
            format!("{:02}", round),
        )
        .unwrap();
        assert_ne!(
            sandbox.walk("/mnt/session/outputs", 10).await.unwrap(),
            before
        );
    }
    assert_eq!(
        sandbox.walk("/mnt/session/outputs", 2).await.unwrap().len(),
        2
    );
    let error = sandbox.walk("/mnt/nothing", 10).await.unwrap_err();
    assert_eq!(error.to_string(), "/mnt/nothing: no such file or directory");
    bench
        .ok("deep=$(yes d | head -n 300 | paste -sd /); mkdir -p $deep; touch $deep/x")
        .await;
    assert_eq!(
        sandbox
            .walk("/mnt/session/outputs", 10)
            .await
            .unwrap()
            .len(),
        3
    );
    // As many as are asked for, and no more than one answer holds.
    bench
        .ok("mkdir -p ../../../workspace/many; cd ../../../workspace/many; seq 20000 | xargs touch")
        .await;
    assert_eq!(
        sandbox.walk("/workspace/many", 20_000).await.unwrap().len(),
        20_000
    );
}

#[tokio::test]
async fn links_are_made_where_nothing_is() {
    let bench = Bench::new().await;
    let sandbox = &bench.sandbox;
    put(sandbox, "/mnt/session/uploads/data.csv", b"1,2\n")
        .await
        .unwrap();
    assert!(
        sandbox
            .link("/some/where/data.csv", "/mnt/session/uploads/data.csv")
            .await
            .unwrap()
    );
    assert_eq!(
        fs::read(bench.place("/some/where/data.csv")).unwrap(),
        b"1,2\n"
    );
    assert!(
        !sandbox
            .link("/some/where/data.csv", "/other")
            .await
            .unwrap()
    );
    assert!(
        !sandbox
            .link("/some/where/data.csv/x", "/other")
            .await
            .unwrap()
    );
    assert!(
        sandbox
            .link("/uploads", "/mnt/session/uploads")
            .await
            .unwrap()
    );
    let read = bench
        .run("read", json!({ "file_path": "/uploads/data.csv" }))
        .await;
    assert_eq!(success(read), "1,2\n");
    for (link, target) in [("/", "/x"), ("/a", ""), ("/a", "b\0"), ("a", "/x")] {
        sandbox.link(link, target).await.unwrap_err();
    }
    sandbox.remove("/uploads").await.unwrap();
    sandbox.remove("/uploads").await.unwrap();
    sandbox.remove("/no/where").await.unwrap();
    sandbox.remove("/some/where").await.unwrap_err();
    assert!(bench.place("/mnt/session/uploads/data.csv").exists());
}

#[tokio::test]
async fn the_tools_do_not_write_what_a_server_has_put() {
    let bench = Bench::new().await;
    let locked = Put {
        mode: 0o444,
        ..file("/mnt/session/uploads/a", 3)
    };
    bench.sandbox.put(&locked, &b"one"[..]).await.unwrap();
    let skill = Put {
        path: "/workspace/skills/s/SKILL.md".into(),
        ..locked
    };
    bench.sandbox.put(&skill, &b"one"[..]).await.unwrap();
    bench
        .sandbox
        .link("/uploads", "/mnt/session/uploads")
        .await
        .unwrap();
    for path in [
        "/mnt/session/uploads/a",
        "/mnt/session/uploads/new",
        "../mnt/session/uploads/new",
        "/uploads/a",
        "/uploads/new/er",
        "/workspace/skills/s/SKILL.md",
        "skills/s/SKILL.md",
    ] {
        let input = json!({ "file_path": path, "content": "two" });
        let text = failure(bench.run("write", input).await);
        assert_eq!(text, format!("write: {path}: read-only file"));
        let input = json!({ "file_path": path, "old_string": "one", "new_string": "two" });
        let text = failure(bench.run("edit", input).await);
        assert_eq!(text, format!("edit: {path}: read-only file"));
    }
    assert_eq!(names(&bench.place("/mnt/session/uploads")), ["a"]);
    let input = json!({ "file_path": "/workspace/skills/own/a", "content": "" });
    success(bench.run("write", input).await);
    let input = json!({ "file_path": "/mnt/session/outputs/a", "content": "" });
    success(bench.run("write", input).await);
    assert!(bench.place("/mnt/session/outputs/a").exists());
}

#[tokio::test]
async fn results_tell_whether_outputs_have_changed() {
    let bench = Bench::new().await;
    assert_eq!(bench.sandbox.outputs().await.unwrap(), 0);
    assert_eq!(bench.bash("true").await.outputs, 0);
    let one = bench
        .bash("echo 1 > ../mnt/session/outputs/a")
        .await
        .outputs;
    assert_ne!(one, 0);
    let input = json!({ "file_path": "/mnt/session/outputs/b", "content": "x" });
    let two = bench.run("write", input).await.outputs;
    assert!(two != one && two != 0);
    let input =
        json!({ "file_path": "/mnt/session/outputs/b", "old_string": "x", "new_string": "y" });
    let three = bench.run("edit", input).await.outputs;
    assert!(three != two && three != 0);
    let read = json!({ "file_path": "/mnt/session/outputs/b" });
    assert_eq!(bench.run("read", read).await.outputs, 0);
    // Nothing happens: the number stays what it is.
    let deadline = Instant::now() + PATIENCE;
    while bench.sandbox.outputs().await.unwrap() != bench.bash("true").await.outputs {
        assert!(Instant::now() < deadline, "it never settles");
    }
    assert_eq!(bench.bash("rm -r ../mnt/session/outputs").await.outputs, 0);
}

/// Resident memory of a process, in KiB.
fn resident(pid: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// 200 MB in and out: neither side's memory grows with it, and calls go on beside it.
#[tokio::test(flavor = "multi_thread")]
async fn large_files_take_no_memory_and_hold_up_no_call() {
    const SIZE: u64 = 200 << 20;
    let bench = Bench::new().await;
    let record = fs::read(bench.directory().join("hands.json")).unwrap();
    let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
    let hands = record["pid"].to_string();
    // What there is to be had for a first transfer is there.
    put(&bench.sandbox, "/workspace/warm", &vec![0; 4 << 20])
        .await
        .unwrap();
    get(&bench.sandbox, "/workspace/warm").await.unwrap();
    let before = (resident(&hands), resident("self"));
    let mut peak = before;
    let sandbox = bench.sandbox.clone();
    let moving = tokio::spawn(async move {
        let started = Instant::now();
        sandbox
            .put(
                &file("/workspace/large", SIZE as usize),
                repeat(42).take(SIZE),
            )
            .await
            .unwrap();
        let put = started.elapsed();
        let mut got = sandbox.get("/workspace/large", SIZE).await.unwrap();
        let read = tokio::io::copy(&mut got, &mut tokio::io::sink())
            .await
            .unwrap();
        assert_eq!(read, SIZE);
        (put, started.elapsed() - put)
    });
    let mut slowest = Duration::ZERO;
    let mut calls = 0;
    while !moving.is_finished() {
        let call = bench.make("bash", json!({ "command": "true" }));
        let started = Instant::now();
        bench.sandbox.call(&call).await.unwrap();
        slowest = slowest.max(started.elapsed());
        bench.sandbox.ack(call.id).await.unwrap();
        calls += 1;
        peak = (peak.0.max(resident(&hands)), peak.1.max(resident("self")));
    }
    let (put, got) = moving.await.unwrap();
    println!(
        "200 MB: put {put:?}, get {got:?}; hands {} -> {} KiB, client {} -> {} KiB; {calls} calls \
         beside it, the slowest {slowest:?}",
        before.0, peak.0, before.1, peak.1
    );
    assert!(
        peak.0 < before.0 + 8 * 1024,
        "the hands grew from {} to {} KiB",
        before.0,
        peak.0
    );
    assert!(
        peak.1 < before.1 + 16 * 1024,
        "the client grew from {} to {} KiB",
        before.1,
        peak.1
    );
    assert!(calls > 10, "{calls} calls in {:?}", put + got);
}

/// More transfers than there are permits, on either side.
#[tokio::test]
async fn many_at_once_all_arrive() {
    let bench = Bench::new().await;
    let mut all = tokio::task::JoinSet::new();
    for number in 0..64_u8 {
        let sandbox = bench.sandbox.clone();
        all.spawn(async move {
            let path = format!("/workspace/many/{}/{number}", number % 7);
            let content = vec![number; 300_000];
            put(&sandbox, &path, &content).await.unwrap();
            assert_eq!(get(&sandbox, &path).await.unwrap(), content);
        });
    }
    bench.ok("true").await;
    all.join_all().await;
    assert_eq!(
        bench
            .sandbox
            .walk("/workspace/many", 100)
            .await
            .unwrap()
            .len(),
        64
    );
}
