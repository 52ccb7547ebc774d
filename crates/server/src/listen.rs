//! The accept loop.
//!
//! Our own, because an idle event stream should cost little: small buffers, nothing per connection
//! beyond one task. HTTP/1.1 alone; a reverse proxy in front may speak what it likes.

use std::{io, time::Duration};

use axum::Router;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt as _;

use crate::linger::{Linger, Lingering};

/// Buffers begin at 8 KiB and grow to this: the largest request head we take.
const LARGEST_HEAD: usize = 16 * 1024;
/// How long a connection may stay between requests, and how long a request head may take.
const IDLE: Duration = Duration::from_secs(75);
/// A write that makes no progress for this long ends the connection.
const STALLED: Duration = Duration::from_secs(60);
/// Pause after the system refused to give us a connection (too many open files).
const REFUSED: Duration = Duration::from_millis(100);

/// Serves until `shutdown`; then lets requests under way finish, at most for `patience`. Long-lived
/// responses are expected to watch `shutdown` themselves.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    shutdown: CancellationToken,
    patience: Duration,
) {
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                connections.spawn(connection(stream, router.clone(), shutdown.clone()));
            }
            // That one connection is gone; the next one may be well.
            Err(error) if is_of_the_connection(&error) => {}
            Err(error) => {
                tracing::error!(%error, "cannot accept connections");
                tokio::time::sleep(REFUSED).await;
            }
        }
    }
    // From here on new connections are refused, so that a load balancer goes elsewhere.
    drop(listener);
    connections.close();
    if tokio::time::timeout(patience, connections.wait())
        .await
        .is_err()
    {
        tracing::warn!(
            connections = connections.len(),
            "cut off what did not finish in time"
        );
    }
}

fn is_of_the_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
    )
}

async fn connection(stream: TcpStream, router: Router, shutdown: CancellationToken) {
    // Events are small, and must not wait for the acknowledgement of the ones before.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "no TCP_NODELAY");
    }
    // A reader that has stopped reading is cut off when nothing of what it was sent arrives any more.
    if let Err(error) = SockRef::from(&stream).set_tcp_user_timeout(Some(STALLED)) {
        tracing::debug!(%error, "no TCP_USER_TIMEOUT");
    }
    let open = metrics::gauge!("http_connections");
    open.increment(1.0);
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE)
        .max_buf_size(LARGEST_HEAD);
    let linger = Linger::default();
    let stream = Lingering::new(stream, linger.clone());
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(linger.clone());
        router.clone().oneshot(request)
    });
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke");
    }
    open.decrement(1.0);
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use axum::routing::get;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        sync::Notify,
    };

    use super::*;

    struct Server {
        address: std::net::SocketAddr,
        shutdown: CancellationToken,
        task: tokio::task::JoinHandle<()>,
        entered: Arc<Notify>,
        go_on: Arc<Notify>,
    }

    async fn server(patience: Duration) -> Server {
        let (entered, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (inside, gate) = (entered.clone(), go_on.clone());
        let slow = move || async move {
            inside.notify_one();
            gate.notified().await;
            "done"
        };
        let router = Router::new()
            .route("/", get(|| async { "here" }))
            .route("/slow", get(slow));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(serve(listener, router, shutdown.clone(), patience));
        Server {
            address,
            shutdown,
            task,
            entered,
            go_on,
        }
    }

    async fn ask(server: &Server, head: &str) -> TcpStream {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        stream
    }

    #[tokio::test]
    async fn a_drain_finishes_what_is_under_way_and_takes_nothing_new() {
        let server = server(Duration::from_secs(60)).await;
        let mut slow = ask(&server, "GET /slow HTTP/1.1\r\nhost: x\r\n\r\n").await;
        server.entered.notified().await;
        // An idle connection does not hold the drain up.
        let mut idle = ask(&server, "GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
        let mut byte = [0; 1];
        idle.read_exact(&mut byte).await.unwrap();

        server.shutdown.cancel();
        let mut rest = String::new();
        idle.read_to_string(&mut rest).await.unwrap();
        assert!(rest.ends_with("here"), "{rest}");
        while TcpStream::connect(server.address).await.is_ok() {
            tokio::task::yield_now().await;
        }

        server.go_on.notify_one();
        let mut answer = String::new();
        slow.read_to_string(&mut answer).await.unwrap();
        assert!(
            answer.starts_with("HTTP/1.1 200") && answer.ends_with("done"),
            "{answer}"
        );
        server.task.await.unwrap();
    }

    #[tokio::test]
    async fn a_drain_ends_in_time() {
        let server = server(Duration::ZERO).await;
        let _slow = ask(&server, "GET /slow HTTP/1.1\r\nhost: x\r\n\r\n").await;
        server.entered.notified().await;
        server.shutdown.cancel();
        server.task.await.unwrap();
    }

    #[tokio::test]
    async fn large_and_broken_heads_are_refused_by_an_answer() {
        let server = server(Duration::ZERO).await;
        let large = format!(
            "GET / HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n",
            "y".repeat(20_000)
        );
        for (head, status) in [(&*large, "431"), ("nonsense\r\n\r\n", "400")] {
            let mut stream = ask(&server, head).await;
            let mut answer = String::new();
            let _ = stream.read_to_string(&mut answer).await;
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {status}")),
                "{answer}"
            );
        }
    }
}
