//! Requests that are answered before their body was read: a refusal does not wait for it.
//!
//! On a connection that stays open the rest of such a body stands in the way of the next request, so
//! it would have to be closed, and a client that has just sent its next request would get no answer.
//! Hence a short rest is read to its end, as it is on its way already; for a long one the answer says
//! that the connection closes, and `linger` sees to it that the client comes to read that.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::{Body, Bytes, HttpBody},
    extract::Request,
    http::{HeaderValue, header},
    middleware::Next,
    response::Response,
};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::{Frame, SizeHint};

use crate::linger::Linger;

/// Most that is read for nothing, bytes. A stock client's send buffer holds about as much.
const SHORT: usize = 256 * 1024;
/// How long a rest may take to arrive: it was sent together with the head.
const PATIENCE: Duration = Duration::from_secs(2);

/// Where a body goes that nobody read to its end.
type Rest = Arc<Mutex<Option<Body>>>;

/// A body that is kept when it is dropped too early.
struct Watched {
    body: Option<Body>,
    rest: Rest,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let Some(body) = &mut self.body else {
            return Poll::Ready(None);
        };
        let frame = std::task::ready!(Pin::new(body).poll_frame(context));
        if !matches!(frame, Some(Ok(_))) {
            self.body = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body
            .as_ref()
            .map_or_else(SizeHint::default, HttpBody::size_hint)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let body = self.body.take().filter(|body| !body.is_end_stream());
        *self.rest.lock().unwrap_or_else(PoisonError::into_inner) = body;
    }
}

/// The layer.
pub(crate) async fn layer(request: Request, next: Next) -> Response {
    if request.body().is_end_stream() {
        return next.run(request).await;
    }
    let rest = Rest::default();
    let linger = request.extensions().get::<Linger>().cloned();
    let request = request.map(|body| {
        Body::new(Watched {
            body: Some(body),
            rest: rest.clone(),
        })
    });
    let mut response = next.run(request).await;
    let left = rest.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(body) = left
        && (body.size_hint().lower() > SHORT as u64 || !read(body).await)
    {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(header::CONNECTION, close);
        if let Some(linger) = linger {
            linger.ask();
        }
    }
    response
}

/// Whether the body ended in time and was short.
async fn read(body: Body) -> bool {
    let mut body = Limited::new(body, SHORT);
    let end = async {
        loop {
            match body.frame().await {
                Some(Ok(_)) => {}
                Some(Err(_)) => return false,
                None => return true,
            }
        }
    };
    tokio::time::timeout(PATIENCE, end).await.unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use axum::{Router, middleware::from_fn, routing::post};
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::{TcpListener, TcpStream},
    };
    use tokio_util::sync::CancellationToken;

    use super::*;

    async fn connect() -> TcpStream {
        let router = Router::new()
            .route("/refuse", post(|| async { "no" }))
            .route("/echo", post(|body: String| async { body }))
            .layer(from_fn(layer));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let never = CancellationToken::new();
        tokio::spawn(crate::listen::serve(
            listener,
            router,
            never,
            Duration::ZERO,
        ));
        TcpStream::connect(address).await.unwrap()
    }

    fn head(path: &str, length: usize) -> String {
        format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n")
    }

    /// Reads until the answer ends with `end`.
    async fn answer(stream: &mut TcpStream, end: &str) -> String {
        let mut text = String::new();
        while !text.ends_with(end) {
            let mut chunk = [0; 1024];
            let count = stream.read(&mut chunk).await.unwrap();
            assert_ne!(count, 0, "closed after {text:?}");
            text.push_str(std::str::from_utf8(&chunk[..count]).unwrap());
        }
        text
    }

    #[tokio::test]
    async fn a_connection_survives_a_refusal_before_the_body() {
        let mut stream = connect().await;
        for _ in 0..20 {
            // In two packets, as HTTP clients do.
            let head = head("/refuse", 4);
            stream.write_all(head.as_bytes()).await.unwrap();
            tokio::task::yield_now().await;
            stream.write_all(b"body").await.unwrap();
            let text = answer(&mut stream, "no").await;
            assert!(text.starts_with("HTTP/1.1 200"), "{text}");
            assert!(!text.contains("connection: close"), "{text}");
        }
        let request = head("/echo", 2) + "hi";
        stream.write_all(request.as_bytes()).await.unwrap();
        let text = answer(&mut stream, "hi").await;
        assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    }

    #[tokio::test]
    async fn a_long_body_is_not_waited_for() {
        let mut stream = connect().await;
        let head = head("/refuse", SHORT + 1);
        stream.write_all(head.as_bytes()).await.unwrap();
        let text = answer(&mut stream, "no").await;
        assert!(text.contains("connection: close"), "{text}");
        assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn who_sends_all_of_it_before_reading_reads_the_refusal() {
        let mut stream = connect().await;
        // Far more than fits into the buffers between client and server.
        let length = 64 * 1024 * 1024;
        let head = head("/refuse", length);
        stream.write_all(head.as_bytes()).await.unwrap();
        let piece = vec![b'x'; 1024 * 1024];
        for _ in 0..length / piece.len() {
            stream.write_all(&piece).await.unwrap();
        }
        let text = answer(&mut stream, "no").await;
        assert!(text.contains("connection: close"), "{text}");
    }
}
