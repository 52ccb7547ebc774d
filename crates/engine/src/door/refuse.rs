//! A refusal in words, where they can be read: plain HTTP.

use std::time::Duration;

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    time::timeout,
};

/// Longest head of a request that is read before it is answered.
const MAX_HEAD: usize = 16 << 10;
const MAX_REST: u64 = 1 << 20;
/// For the request to come, and for the answer to be taken.
const PATIENCE: Duration = Duration::from_secs(5);

/// Answers the first request with 403 and `reason`. Whoever does not speak HTTP is reset.
pub(super) async fn explain<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, reason: &str) {
    let mut head = Vec::new();
    let request = async {
        let mut buffer = [0; 2048];
        while head.len() < MAX_HEAD && !ends(&head) {
            match stream.read(&mut buffer).await {
                Ok(count) if count > 0 => head.extend_from_slice(&buffer[..count]),
                _ => break,
            }
        }
    };
    let _ = timeout(PATIENCE, request).await;
    let line = head.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.ends_with(b" HTTP/1.1") || line.ends_with(b" HTTP/1.0") {
        answer(stream, reason).await;
    }
}

fn ends(head: &[u8]) -> bool {
    let blank = |end: &[u8]| head.windows(end.len()).any(|window| window == end);
    blank(b"\r\n\r\n") || blank(b"\n\n")
}

/// Writes a 403 and ends the connection.
pub(super) async fn answer<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, reason: &str) {
    let body = format!("Refused by the sandbox's network policy: {reason}.\n");
    let response = format!(
        "HTTP/1.1 403 Forbidden\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    );
    let exchange = async {
        stream.write_all(response.as_bytes()).await?;
        stream.shutdown().await?;
        // An answer that overtakes the request's body would be lost with the reset it causes.
        tokio::io::copy(&mut (&mut stream).take(MAX_REST), &mut tokio::io::sink()).await
    };
    let _ = timeout(PATIENCE, exchange).await;
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::*;

    async fn ask(request: &[u8]) -> String {
        let (mut inside, server) = duplex(64 << 10);
        let explained = tokio::spawn(async move { explain(server, "no").await });
        inside.write_all(request).await.unwrap();
        inside.shutdown().await.unwrap();
        let mut answer = String::new();
        inside.read_to_string(&mut answer).await.unwrap();
        explained.await.unwrap();
        answer
    }

    #[tokio::test]
    async fn a_request_is_answered_and_others_are_not() {
        let answer = ask(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 403 Forbidden\r\n"), "{answer}");
        assert!(answer.ends_with("\r\n\r\nRefused by the sandbox's network policy: no.\n"));
        assert!(ask(b"POST /x HTTP/1.0\n\nbody").await.contains("403"));
        for other in [
            &b"SSH-2.0-x\r\n"[..],
            b"",
            b"\x16\x03\x01\0\0",
            &[b'x'; 20_000],
        ] {
            assert_eq!(ask(other).await, "");
        }
    }
}
