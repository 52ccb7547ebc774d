use std::{process::Stdio, time::Duration};

use selfsame_hands::{
    hello::introduce,
    mux::{Side, session},
    wire::{MAX_REPLY, MAX_REQUEST, Reply, Request, read_frame, write_frame},
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, join},
    process::{Child, Command},
    time::timeout,
};

use crate::harness::{Bench, PATIENCE, until};

fn relay(bench: &Bench) -> Child {
    Command::new(env!("CARGO_BIN_EXE_selfsame-hands"))
        .args(["connect", "--socket"])
        .arg(bench.directory().join("hands.sock"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

async fn ended(mut relay: Child) {
    let status = timeout(PATIENCE, relay.wait()).await.unwrap().unwrap();
    assert!(status.success(), "{status}");
}

#[tokio::test]
async fn the_relay_carries_a_session() {
    let bench = Bench::new().await;
    let mut relay = relay(&bench);
    let mut stream = join(relay.stdout.take().unwrap(), relay.stdin.take().unwrap());
    let boot_id = introduce(&mut stream, &bench.key, 2).await.unwrap();
    assert_eq!(boot_id, bench.sandbox.boot_id());
    bench.sandbox.closed().await;
    let (opener, _inbound, work) = session(stream, Side::Server);
    let work = tokio::spawn(work);
    // Much in both directions at once.
    let content = "x".repeat(4 << 20);
    bench.put("big.pdf", vec![7; 4 << 20]);
    let write = bench.make("write", json!({ "file_path": "x", "content": content }));
    let calls = [bench.make("read", json!({ "file_path": "big.pdf" })), write];
    let replies = calls.into_iter().map(|call| {
        let opener = &opener;
        async move {
            let mut substream = opener.open().await.unwrap();
            write_frame(&mut substream, &Request::Call(call), MAX_REQUEST)
                .await
                .unwrap();
            read_frame::<Reply>(&mut substream, MAX_REPLY)
                .await
                .unwrap()
        }
    });
    for reply in futures_util::future::join_all(replies).await {
        let Reply::Result(result) = reply else {
            panic!("{reply:?}")
        };
        assert!(!result.is_error);
    }
    // The server ends the session, and the relay with it.
    drop(opener);
    work.await.unwrap();
    ended(relay).await;
}

#[tokio::test]
async fn the_relay_ends_with_its_client() {
    let bench = Bench::new().await;
    let mut silent = relay(&bench);
    drop(silent.stdin.take());
    ended(silent).await;
}

#[tokio::test]
async fn the_relay_ends_with_the_hands_even_when_nobody_reads() {
    let bench = Bench::new().await;
    let mut relay = relay(&bench);
    let (mut stdin, mut stdout) = (relay.stdin.take().unwrap(), relay.stdout.take().unwrap());
    introduce(&mut join(&mut stdout, &mut stdin), &bench.key, 2)
        .await
        .unwrap();
    // A reply far larger than all pipes, and nobody to take it.
    bench.put("big.pdf", vec![7; 4 << 20]);
    let (opener, _inbound, work) = session(join(tokio::io::empty(), stdin), Side::Server);
    tokio::select! {
        () = work => {}
        substream = opener.open() => {
            let call = bench.make("read", json!({ "file_path": "big.pdf" }));
            let _ = write_frame(&mut substream.unwrap(), &Request::Call(call), MAX_REQUEST).await;
        }
    }
    bench.attach(3).await.unwrap();
    ended(relay).await;
    drop(stdout);
}

#[tokio::test]
async fn the_relay_waits_for_hands_that_are_just_starting() {
    let bench = Bench::new().await;
    let socket = bench.directory().join("late.sock");
    let mut relay = Command::new(env!("CARGO_BIN_EXE_selfsame-hands"))
        .args(["connect", "--socket"])
        .arg(&socket)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = i32::try_from(relay.id().unwrap()).unwrap();
    // It has begun to try: it sleeps.
    until("the relay waits", || {
        std::fs::read_to_string(format!("/proc/{pid}/wchan"))
            .is_ok_and(|at| at.contains("nanosleep"))
    })
    .await;
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    let (mut stream, _) = timeout(PATIENCE, listener.accept()).await.unwrap().unwrap();
    stream.write_all(b"hello").await.unwrap();
    drop(stream);
    let mut said = Vec::new();
    let mut stdout = relay.stdout.take().unwrap();
    timeout(Duration::from_secs(20), stdout.read_to_end(&mut said))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(said, b"hello");
    ended(relay).await;
}
