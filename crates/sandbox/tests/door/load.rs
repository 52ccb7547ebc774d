//! Much at once. Figures are printed, see `--no-capture`.

use std::time::{Duration, Instant};

use futures_util::FutureExt;
use serde_json::json;
use tokio::{io::AsyncWriteExt, net::TcpStream};
use uuid::Uuid;

use crate::harness::{bulk, inside, serve, server};

/// What a call beside anything may take. Far more than it does, far less than a stall.
const PROMPT: Duration = Duration::from_millis(250);

// With threads, as a server has them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bulk_is_fast_and_calls_beside_it_are_prompt() {
    const SIZE: usize = 200 << 20;
    inside(async |inside| {
        let bulk = bulk().await;
        let drain = server(async |mut stream: TcpStream| {
            let mut sink = tokio::io::sink();
            let read = tokio::io::copy(&mut stream, &mut sink).await.unwrap();
            stream.write_all(read.to_string().as_bytes()).await.unwrap();
        })
        .await;
        serve(inside.sandbox.outgoing().unwrap(), move |host| {
            Some(if host == "bulk.example" { bulk } else { drain })
        });
        let (p50, _, _) = inside
            .calls_beside(async {
                for _ in 0..100 {
                    inside
                        .run_in(Uuid::from_u128(1), "bash", json!({"command": "true"}))
                        .await;
                }
            })
            .await;
        eprintln!("calls beside calls: p50 {p50:?}");
        for (what, script) in [
            (
                "download",
                format!("print(len(ask('bulk.example', 80, b'{SIZE}\\n')))"),
            ),
            (
                "upload",
                format!("print(int(ask('sink.example', 80, bytes({SIZE}))))"),
            ),
        ] {
            let start = Instant::now();
            let mut took = Duration::ZERO;
            let (p50, max, calls) = inside
                .calls_beside(async {
                    let said = inside.python(&script).await;
                    took = start.elapsed();
                    assert_eq!(said, SIZE.to_string());
                })
                .await;
            let speed = (SIZE >> 20) as f64 / took.as_secs_f64();
            eprintln!(
                "{what}: {speed:.0} MiB/s; {calls} calls beside it: p50 {p50:?}, max {max:?}"
            );
            assert!(p50 < PROMPT, "{p50:?}");
        }
    })
    .await;
}

// With threads, as a server has them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stalled_connections_harm_nobody() {
    inside(async |inside| {
        let bulk = bulk().await;
        serve(inside.sandbox.outgoing().unwrap(), move |host| {
            (host == "bulk.example").then_some(bulk)
        });
        let resident = async || {
            let line = inside.bash("grep VmRSS /proc/1/status").await;
            let kib: u32 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
            kib >> 10
        };
        let before = resident().await;
        // More than are carried at once, and a few more than may wait. Nobody reads.
        let stalled = inside.python(
            "
many = []
for _ in range(486):
    try:
        many.append(dial('bulk.example', 80, b'99999999\\n'))
    except ConnectionResetError:
        pass
assert len(many) >= 480
open('/tmp/stalled', 'w').close()
while not os.path.exists('/tmp/enough'):
    time.sleep(0.01)
",
        );
        let (p50, max, calls) = inside
            .calls_beside(async {
                tokio::select! {
                    said = stalled => panic!("{said}"),
                    () = async {
                        inside.run_in(Uuid::from_u128(1), "bash", json!({
                            "command": "until [ -e /tmp/stalled ]; do sleep 0.01; done"
                        })).await;
                        for _ in 0..100 {
                            inside.run_in(Uuid::from_u128(1), "bash", json!({"command": "true"}))
                                .await;
                        }
                    } => {}
                }
            })
            .await;
        let after = resident().await;
        eprintln!(
            "486 stalled connections: {calls} calls beside them: p50 {p50:?}, max {max:?}; \
             resident {before} -> {after} MiB"
        );
        assert!(p50 < PROMPT, "{p50:?}");
        // A window of the stream and what the socket takes, for each one that is carried.
        assert!(after < 160, "{after} MiB");
        inside.bash("touch /tmp/enough").await;

        // A flood, and after it everything is as before.
        let said = inside
            .python(
                "
import selectors
for _ in range(10):
    many = []
    for _ in range(1000):
        s = socket.socket()
        s.setblocking(False)
        s.connect_ex((f'192.0.2.{len(many) % 200}', 80))
        many.append(s)
    for s in many:
        s.close()
def again():
    while True:
        try:
            return len(ask('bulk.example', 80, b'1000\\n'))
        except ConnectionResetError:
            time.sleep(0.01)
t('again', again)
",
            )
            .await;
        assert!(said.starts_with("again 1000"), "{said}");
        let end = resident().await;
        eprintln!("10,000 connects later: resident {end} MiB");
        let again = inside.calls_beside(inside.python("t('', lambda: 1)").map(drop));
        let (p50, _, _) = again.await;
        assert!(p50 < PROMPT, "{p50:?}");
    })
    .await;
}
