use std::fs;

use selfsame_hands::{
    Key,
    hello::introduce,
    mux::{Side, session},
    wire::{MAX_REPLY, Reply, read_frame},
};
use selfsame_sandbox::{Backend, DoorState, Sandbox, SandboxError};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::{Bench, failure, success, until};

#[tokio::test]
async fn a_call_outlives_its_connection_and_runs_once() {
    let bench = Bench::new().await;
    let command = "echo run >> log; until [ -e go ]; do sleep 0.01; done; echo result";
    let call = bench.make("bash", json!({ "command": command }));
    let waiting = tokio::spawn({
        let (sandbox, call) = (bench.sandbox.clone(), call.clone());
        async move { sandbox.call(&call).await }
    });
    until("the command runs", || bench.path("log").exists()).await;

    let second = bench.attach(2).await.unwrap();
    bench.sandbox.closed().await;
    assert!(matches!(waiting.await.unwrap(), Err(SandboxError::Lost)));
    assert_eq!(second.boot_id(), bench.sandbox.boot_id());

    bench.put("go", "");
    // Collected while it runs, when it is done, and again.
    for _ in 0..2 {
        assert_eq!(success(second.call(&call).await.unwrap()), "result");
    }
    let third = bench.attach(3).await.unwrap();
    assert_eq!(success(third.call(&call).await.unwrap()), "result");
    assert_eq!(fs::read_to_string(bench.path("log")).unwrap(), "run\n");

    // Once it is acknowledged, the id is spent.
    third.ack(call.id).await.unwrap();
    third.ack(call.id).await.unwrap();
    assert!(matches!(
        third.call(&call).await,
        Err(SandboxError::Refused(_))
    ));
    assert_eq!(fs::read_to_string(bench.path("log")).unwrap(), "run\n");
}

#[tokio::test]
async fn a_call_that_is_not_done_cannot_be_acknowledged_away() {
    let bench = Bench::new().await;
    let call = bench.make(
        "bash",
        json!({ "command": "touch up; until [ -e go ]; do sleep 0.01; done; echo x" }),
    );
    let waiting = bench.sandbox.call(&call);
    let acknowledge = async {
        until("the command runs", || bench.path("up").exists()).await;
        bench.sandbox.ack(call.id).await.unwrap();
        bench.put("go", "");
    };
    let (result, ()) = tokio::join!(waiting, acknowledge);
    assert_eq!(success(result.unwrap()), "x");
}

#[tokio::test]
async fn cancelling_ends_the_whole_group() {
    let bench = Bench::new().await;
    let command =
        "(trap '' TERM; echo partial; sleep 1000 & echo $! > pid; wait; wait) & wait; wait";
    let call = bench.make("bash", json!({ "command": command }));
    let waiting = bench.sandbox.call(&call);
    let cancel = async {
        until("the command runs", || {
            fs::read_to_string(bench.path("pid")).is_ok_and(|pid| pid.ends_with('\n'))
        })
        .await;
        bench.sandbox.cancel(call.id).await.unwrap();
    };
    let (result, ()) = tokio::join!(waiting, cancel);
    let text = failure(result.unwrap());
    let expected = "Tool execution was interrupted before completion. Please retry.\n\npartial";
    assert!(text.starts_with(expected), "{text}");
    let pid = fs::read_to_string(bench.path("pid"))
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    assert!(selfsame_hands::procs::Stat::read(pid).is_none_or(|stat| stat.dead));
    let text = bench.ok("echo next").await;
    assert!(
        text.starts_with("[new bash session: the previous command was interrupted"),
        "{text}"
    );
}

#[tokio::test]
async fn a_cancellation_may_come_at_any_time() {
    let bench = Bench::new().await;
    let interrupted = "Tool execution was interrupted before completion. Please retry.";

    // Before its call.
    let call = bench.make("bash", json!({ "command": "touch ran" }));
    bench.sandbox.cancel(call.id).await.unwrap();
    assert_eq!(
        failure(bench.sandbox.call(&call).await.unwrap()),
        interrupted
    );
    assert!(!bench.path("ran").exists());

    // While the call waits for its shell.
    let first = bench.make(
        "bash",
        json!({ "command": "touch up; until [ -e go ]; do sleep 0.01; done" }),
    );
    let second = bench.make("bash", json!({ "command": "touch ran" }));
    let (first, ()) = tokio::join!(bench.sandbox.call(&first), async {
        until("the first one runs", || bench.path("up").exists()).await;
        let (second, cancelled) =
            tokio::join!(bench.sandbox.call(&second), bench.sandbox.cancel(second.id));
        cancelled.unwrap();
        assert_eq!(failure(second.unwrap()), interrupted);
        bench.put("go", "");
    });
    success(first.unwrap());
    assert!(!bench.path("ran").exists());

    // Afterwards.
    let call = bench.make("bash", json!({ "command": "echo x" }));
    success(bench.sandbox.call(&call).await.unwrap());
    bench.sandbox.cancel(call.id).await.unwrap();
    assert_eq!(success(bench.sandbox.call(&call).await.unwrap()), "x");
}

#[tokio::test]
async fn lower_epochs_and_wrong_keys_are_refused() {
    let bench = Bench::new().await;
    let newer = bench.attach(7).await.unwrap();
    bench.sandbox.closed().await;
    let refused = bench.attach(6).await;
    assert!(
        matches!(
            refused,
            Err(SandboxError::StaleEpoch {
                epoch: 6,
                current: 7
            })
        ),
        "{refused:?}"
    );
    let wrong = Sandbox::attach(&*bench.backend, &bench.handle, &Key([0; 32]), 8).await;
    assert!(matches!(wrong, Err(SandboxError::WrongKey)), "{wrong:?}");
    // Neither disturbed the one that is in charge.
    let call = bench.make("bash", json!({ "command": "echo fine" }));
    assert_eq!(success(newer.call(&call).await.unwrap()), "fine");
    // The same epoch is the same server, back again.
    bench.attach(7).await.unwrap();
    newer.closed().await;
}

#[tokio::test]
async fn processes_inside_are_not_let_in() {
    let bench = Bench::new().await;
    bench.put(
        "dial.py",
        "import socket, sys\ns = socket.socket(socket.AF_UNIX)\ns.connect(sys.argv[1])\n\
         s.sendall(b'selfsame-srv-1\\r\\n' + bytes(24))\nprint(len(s.recv(100)))\n",
    );
    let socket = bench.directory().join("hands.sock");
    let command = format!("python3 dial.py {}", socket.display());
    let inside = bench.bash(&command).await.joined_text();
    // Closed without a word: a clean end, or a reset of the bytes that nobody read.
    assert!(
        inside == "0" || inside.contains("ConnectionResetError") || inside.contains("BrokenPipe"),
        "{inside}"
    );
    // The control: the same program is answered when it comes from outside.
    let outside = std::process::Command::new("python3")
        .arg(bench.path("dial.py"))
        .arg(&socket)
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8_lossy(&outside.stdout).trim(),
        "65",
        "{outside:?}"
    );
}

#[tokio::test]
async fn hostile_bytes_end_only_their_own_connection() {
    let bench = Bench::new().await;
    for garbage in [
        &b"GET / HTTP/1.1\r\n\r\n...................."[..],
        &[0xff; 4096],
    ] {
        let mut stream = bench.backend.connect(&bench.handle).await.unwrap();
        let _ = stream.write_all(garbage).await;
        let mut said = Vec::new();
        let _ = stream.read_to_end(&mut said).await;
        assert!(said.is_empty(), "{said:?}");
    }
    // A stranger that says nothing takes up a place, and no more.
    let _silent = bench.backend.connect(&bench.handle).await.unwrap();

    // Admitted, and then no yamux: ends that session.
    let mut stream = bench.backend.connect(&bench.handle).await.unwrap();
    introduce(&mut stream, &bench.key, 2).await.unwrap();
    stream.write_all(&[0xee; 1000]).await.unwrap();
    let mut said = Vec::new();
    let _ = stream.read_to_end(&mut said).await;

    // Admitted, and frames that are none: each is refused in a frame, the session goes on.
    let mut stream = bench.backend.connect(&bench.handle).await.unwrap();
    introduce(&mut stream, &bench.key, 3).await.unwrap();
    let (opener, _inbound, work) = session(stream, Side::Server);
    let work = tokio::spawn(work);
    for frame in [
        &b"\xff\xff\xff\xff"[..],
        b"\0\0\0\x02{}",
        b"\0\0\0\x04junk",
        b"\0\0\0\x08{\"ack\":1",
    ] {
        let mut substream = opener.open().await.unwrap();
        substream.write_all(frame).await.unwrap();
        substream.flush().await.unwrap();
        let reply: Reply = read_frame(&mut substream, MAX_REPLY).await.unwrap();
        assert!(matches!(reply, Reply::Refused { .. }), "{reply:?}");
    }
    // A substream that ends early.
    let mut substream = opener.open().await.unwrap();
    substream.write_all(b"\0\0\0\x10{").await.unwrap();
    substream.shutdown().await.unwrap();
    let reply: Reply = read_frame(&mut substream, MAX_REPLY).await.unwrap();
    assert!(matches!(reply, Reply::Refused { .. }), "{reply:?}");
    drop(opener);
    work.await.unwrap();

    let sandbox = bench.attach(4).await.unwrap();
    let call = bench.make("bash", json!({ "command": "echo fine" }));
    assert_eq!(success(sandbox.call(&call).await.unwrap()), "fine");
}

#[tokio::test]
async fn a_call_that_is_too_long_is_refused_before_it_is_sent() {
    let bench = Bench::new().await;
    let call = bench.make(
        "write",
        json!({ "file_path": "x", "content": "x".repeat(33 << 20) }),
    );
    assert!(matches!(
        bench.sandbox.call(&call).await,
        Err(SandboxError::Refused(_))
    ));
    let call = bench.make(
        "write",
        json!({ "file_path": "x", "content": "x".repeat(20 << 20) }),
    );
    success(bench.sandbox.call(&call).await.unwrap());
}

#[tokio::test]
async fn more_calls_than_substreams_wait_their_turn() {
    let bench = Bench::new().await;
    let calls: Vec<_> = (0..600)
        .map(|_| bench.make("glob", json!({ "pattern": "*" })))
        .collect();
    let results = calls.iter().map(|call| bench.sandbox.call(call));
    for result in futures_util::future::join_all(results).await {
        assert_eq!(success(result.unwrap()), "no matches");
    }
}

#[tokio::test]
async fn plain_processes_have_no_door_and_change_no_trust() {
    let bench = Bench::new().await;
    let door = bench.sandbox.door().await.unwrap();
    assert!(matches!(door, DoorState::None { .. }), "{door:?}");
    // Not even looked at: the files would be this machine's.
    bench.sandbox.trust("no certificate").await.unwrap();
    let told = bench.ok("echo [$SSL_CERT_FILE$http_proxy]").await;
    assert_eq!(told.trim(), "[]");
}

#[tokio::test]
async fn variables_are_there_for_what_starts_later() {
    let bench = Bench::new().await;
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let say = "echo \"[$TOKEN] [$OTHER] [${HOME:+home}]\"; bash -c 'echo \"[$TOKEN]\"'";
    assert_eq!(bench.ok(say).await.trim(), "[] [] [home]\n[]");
    let variables = vec![
        pair("TOKEN", "a $b 'c'"),
        pair("OTHER", "d"),
        // No program can be given these.
        pair("", "e"),
        pair("a=b", "f"),
        pair("NUL", "g\0h"),
    ];
    bench.sandbox.set_variables(variables).await.unwrap();
    // A shell keeps what it started with.
    assert_eq!(bench.ok(say).await.trim(), "[] [] [home]\n[]");
    bench.run("bash", json!({"restart": true})).await;
    let expected = "[a $b 'c'] [d] [home]\n[a $b 'c']";
    assert_eq!(bench.ok(say).await.trim(), expected);
    let variables = vec![pair("TOKEN", "last")];
    bench.sandbox.set_variables(variables).await.unwrap();
    bench.run("bash", json!({"restart": true})).await;
    assert_eq!(bench.ok(say).await.trim(), "[last] [] [home]\n[last]");
}
