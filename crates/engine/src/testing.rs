//! Web servers for tests that say exactly what they are told to.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use selfsame_net::Policy;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

/// What is sent when a path is asked for.
#[derive(Debug, Clone)]
pub(crate) enum Say {
    /// These bytes, then the end.
    Bytes(Vec<u8>),
    /// These bytes, then these again and again.
    Endless(Vec<u8>, Vec<u8>),
    /// These bytes one at a time, with a pause between them, for ever.
    Drip(Vec<u8>),
}

/// A server on loopback. It notes the head of every request.
pub(crate) struct Site {
    pub address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Site {
    pub(crate) async fn start(answer: impl Fn(&str) -> Say + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let heads = Arc::new(Mutex::new(Vec::new()));
        let (seen, answer) = (Arc::clone(&heads), Arc::new(answer));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (seen, answer) = (Arc::clone(&seen), Arc::clone(&answer));
                tokio::spawn(async move { serve(stream, &seen, &*answer).await });
            }
        });
        Self { address, heads }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// The requests so far: first line, headers, body.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }
}

async fn serve(
    mut stream: TcpStream,
    seen: &Mutex<Vec<String>>,
    answer: &(dyn Fn(&str) -> Say + Send + Sync),
) {
    let mut request = Vec::new();
    let length = loop {
        let text = String::from_utf8_lossy(&request);
        if let Some((head, _)) = text.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .filter_map(|line| line.split_once(": "))
                .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
                .map_or(0, |(_, length)| length.parse::<usize>().unwrap());
            if request.len() >= head.len() + 4 + length {
                break head.len() + 4 + length;
            }
        }
        if stream.read_buf(&mut request).await.unwrap_or(0) == 0 {
            return;
        }
    };
    let text = String::from_utf8_lossy(&request[..length]).into_owned();
    let path = text.split(' ').nth(1).unwrap_or_default().to_owned();
    seen.lock().unwrap().push(text);
    // The other side may have had enough at any time.
    let _ = match answer(&path) {
        Say::Bytes(bytes) => stream.write_all(&bytes).await,
        Say::Endless(first, then) => {
            let mut sent = stream.write_all(&first).await;
            while sent.is_ok() {
                sent = stream.write_all(&then).await;
            }
            sent
        }
        Say::Drip(bytes) => {
            let mut sent = Ok(());
            for byte in bytes.iter().cycle() {
                if sent.is_err() {
                    break;
                }
                sent = stream.write_all(&[*byte]).await;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            sent
        }
    };
}

/// A complete answer.
pub(crate) fn page(content_type: &str, body: impl AsRef<[u8]>) -> Say {
    let body = body.as_ref();
    let mut bytes = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: {content_type}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    )
    .into_bytes();
    bytes.extend_from_slice(body);
    Say::Bytes(bytes)
}

/// An answer of this status line and these headers, without a body.
pub(crate) fn head(status: &str, headers: &str) -> Say {
    Say::Bytes(
        format!("HTTP/1.1 {status}\r\n{headers}content-length: 0\r\nconnection: close\r\n\r\n")
            .into_bytes(),
    )
}

/// Loopback may be reached; nothing else that is special.
pub(crate) fn loopback() -> Policy {
    Policy::new(vec!["127.0.0.1/32".parse().unwrap()], &[]).unwrap()
}
