//! Carrying a connection that a program inside opens to the world.
//!
//! ```text
//! hands                                   server
//!   Open { host, port }             ──►
//!                                   ◄──   Answer: accepted, or refused
//!   records                         ◄─►   records
//!                                   ◄──   drops the substream
//! ```
//!
//! A record is its length (u32, big endian) and that many bytes; length 0 ends its direction and
//! leaves the other one open. yamux shows resets and lost connections as a clean end, so an end
//! without such a record is an error: a truncated download never looks complete. For the same
//! reason yamux's own half-close is not used: after it, a dropped stream is not reset, and a peer
//! that writes would block for ever.
//!
//! The server drops first, always. Until then the hands count the connection, so that the server
//! never has more of their substreams than they may open, however fast programs connect and abort.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Most connections of one sandbox at once. With the calls, controls and transfers of the server
/// it stays below [`MAX_STREAMS`](crate::mux::MAX_STREAMS), and by itself below the 256 substreams
/// that yamux lets wait for their first answer.
pub const MAX_CONNECTIONS: usize = 224;
/// Longest [`Open`] or [`Answer`], in bytes.
pub const MAX_FRAME: usize = 2048;
/// Longest name of a host, without a dot at its end.
pub const MAX_NAME: usize = 253;

/// Longest record sent: with its length it is one frame of yamux.
const RECORD: usize = (16 << 10) - 4;
/// Longest record taken.
const MAX_RECORD: u32 = 64 << 10;
/// In place of a length: the connection is aborted.
const ABORT: u32 = u32::MAX;

/// Where a program inside wants to go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Open {
    /// A DNS name in lower case and without a dot at its end, or an IPv4 address.
    pub host: String,
    pub port: u16,
}

/// What the server says to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    Accepted,
    Refused { message: String },
}

/// Whether `name` can be the name of a host: labels of lower-case letters, digits, `-` and `_`.
/// What a resolver might take for an address (a last label of digits only, or hexadecimal) is none.
#[must_use]
pub fn is_host_name(name: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_'))
    };
    let last = name.rsplit('.').next().unwrap_or_default();
    let numeric = match last.strip_prefix("0x") {
        Some(digits) => digits.bytes().all(|byte| byte.is_ascii_hexdigit()),
        None => last.bytes().all(|byte| byte.is_ascii_digit()),
    };
    name.len() <= MAX_NAME && name.split('.').all(label) && !numeric
}

/// A connection on a substream: bytes both ways, and an end of each way that can be told from a
/// loss.
///
/// Reading fails with `ConnectionReset` when the other side aborted or the session was lost.
/// Shutting down ends the own direction only. Dropping it before both directions have ended is an
/// abort.
#[derive(Debug)]
pub struct Records<S> {
    stream: S,
    inbound: Inbound,
    /// What has been accepted for writing and is not in the stream yet: at most one record.
    pending: Vec<u8>,
    written: usize,
    ended: bool,
}

#[derive(Debug, Clone, Copy)]
enum Inbound {
    Length { bytes: [u8; 4], filled: usize },
    Body { left: u32 },
    Ended,
    Broken,
}

const NEXT: Inbound = Inbound::Length {
    bytes: [0; 4],
    filled: 0,
};

fn aborted() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, "the connection was aborted")
}

impl<S: AsyncRead + AsyncWrite + Unpin> Records<S> {
    /// `stream` after the answer.
    pub fn new(stream: S) -> Self {
        Self {
            stream,
            inbound: NEXT,
            pending: Vec::new(),
            written: 0,
            ended: false,
        }
    }

    /// Waits until the other side has let go of the substream. Unless both directions have ended, it
    /// is told first that the connection is aborted. What arrives meanwhile is dropped.
    pub async fn finish(mut self) {
        if !(self.ended && matches!(self.inbound, Inbound::Ended)) {
            self.pending.extend_from_slice(&ABORT.to_be_bytes());
            self.ended = true;
        }
        let mut scratch = [0; 4 << 10];
        poll_fn(|cx| {
            // A failure means that the other side is gone, which reading shows, too.
            let _ = Pin::new(&mut self).poll_flush(cx);
            loop {
                let mut dropped = ReadBuf::new(&mut scratch);
                match ready!(Pin::new(&mut self.stream).poll_read(cx, &mut dropped)) {
                    Ok(()) if !dropped.filled().is_empty() => {}
                    _ => return Poll::Ready(()),
                }
            }
        })
        .await;
    }

    /// Whether the other side, whose direction has ended, has aborted since: all that it may still
    /// send is that, or it drops the stream.
    fn poll_aborted(&mut self, cx: &mut Context<'_>) -> bool {
        let mut bytes = [0; 4];
        let gone = matches!(self.inbound, Inbound::Ended)
            && Pin::new(&mut self.stream)
                .poll_read(cx, &mut ReadBuf::new(&mut bytes))
                .is_ready();
        if gone {
            self.inbound = Inbound::Broken;
        }
        gone
    }

    /// Writes what is pending.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.pending.len() {
            let left = &self.pending[self.written..];
            match ready!(Pin::new(&mut self.stream).poll_write(cx, left))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.written += count,
            }
        }
        self.written = 0;
        // Given back: hundreds of idle connections hold no buffer.
        self.pending = Vec::new();
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Records<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            match &mut this.inbound {
                Inbound::Length { bytes, filled } => {
                    let mut rest = ReadBuf::new(&mut bytes[*filled..]);
                    ready!(Pin::new(&mut this.stream).poll_read(cx, &mut rest))?;
                    let count = rest.filled().len();
                    *filled += count;
                    let complete = *filled == bytes.len();
                    this.inbound = match u32::from_be_bytes(*bytes) {
                        _ if count == 0 => Inbound::Broken,
                        _ if !complete => continue,
                        0 => Inbound::Ended,
                        left @ 1..=MAX_RECORD => Inbound::Body { left },
                        _ => Inbound::Broken,
                    };
                }
                Inbound::Body { left } => {
                    let most = (*left as usize).min(buf.remaining());
                    let mut part = ReadBuf::new(buf.initialize_unfilled_to(most));
                    ready!(Pin::new(&mut this.stream).poll_read(cx, &mut part))?;
                    let count = part.filled().len();
                    buf.advance(count);
                    if count == 0 {
                        this.inbound = Inbound::Broken;
                        continue;
                    }
                    // At most what was left, which is a u32.
                    *left -= count as u32;
                    if *left == 0 {
                        this.inbound = NEXT;
                    }
                    return Poll::Ready(Ok(()));
                }
                Inbound::Ended => return Poll::Ready(Ok(())),
                Inbound::Broken => return Poll::Ready(Err(aborted())),
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Records<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.ended {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        if this.poll_aborted(cx) {
            return Poll::Ready(Err(aborted()));
        }
        ready!(this.poll_drain(cx))?;
        let count = buf.len().min(RECORD);
        this.pending.reserve_exact(count + 4);
        // At most RECORD.
        this.pending
            .extend_from_slice(&(count as u32).to_be_bytes());
        this.pending.extend_from_slice(&buf[..count]);
        match this.poll_drain(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            // What is left goes out before the next record, or with a flush.
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(count)),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_drain(cx))?;
        Pin::new(&mut this.stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.ended {
            ready!(this.poll_drain(cx))?;
            this.ended = true;
            this.pending.extend_from_slice(&0_u32.to_be_bytes());
        }
        ready!(this.poll_drain(cx))?;
        Pin::new(&mut this.stream).poll_flush(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    fn pair() -> (Records<DuplexStream>, Records<DuplexStream>) {
        let (one, other) = duplex(1000);
        (Records::new(one), Records::new(other))
    }

    #[test]
    fn names_of_hosts() {
        for name in [
            "a",
            "pypi.org",
            "_dmarc.a-b.example",
            "1.2.3.4.in-addr.arpa",
            "xn--p1ai.a0",
        ] {
            assert!(is_host_name(name), "{name}");
        }
        let long = "a.".repeat(126) + "ab";
        let label = "a".repeat(64);
        for name in [
            "", ".", "a.", ".a", "a..b", "A.org", "a b", "a\n", "a\0.org", "a/b", "a:80", "[::1]",
            "ü.de", "1.2.3.4", "1", "a.0x7f", "a.0x", "127.1", &long, &label,
        ] {
            assert!(!is_host_name(name), "{name}");
        }
        assert!(is_host_name(&long[1 + 1..]));
    }

    #[tokio::test]
    async fn each_direction_ends_by_itself() {
        let (mut inside, mut server) = pair();
        let question = vec![7; 100_000];
        let asked = question.clone();
        let server = tokio::spawn(async move {
            let mut read = Vec::new();
            server.read_to_end(&mut read).await.unwrap();
            assert_eq!(read, asked);
            // Long after the other direction has ended.
            server.write_all(&read).await.unwrap();
            server.shutdown().await.unwrap();
            server.shutdown().await.unwrap();
            assert!(server.write_all(b"more").await.is_err());
            server.finish().await;
        });
        inside.write_all(&question).await.unwrap();
        inside.shutdown().await.unwrap();
        let mut read = Vec::new();
        inside.read_to_end(&mut read).await.unwrap();
        assert_eq!(read, question);
        assert_eq!(inside.read(&mut [0; 9]).await.unwrap(), 0);
        drop(inside);
        server.await.unwrap();
    }

    #[tokio::test]
    async fn a_loss_is_never_an_end() {
        let (mut inside, mut server) = pair();
        server.write_all(b"half of").await.unwrap();
        server.flush().await.unwrap();
        drop(server);
        let mut read = Vec::new();
        let error = inside.read_to_end(&mut read).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(read, b"half of");

        // Also in the middle of a record.
        for cut in [&b"\0\0\0\x04abc"[..], b"\0\0", b"\0\0\0\x01"] {
            let (mut raw, other) = duplex(1000);
            raw.write_all(cut).await.unwrap();
            drop(raw);
            let error = Records::new(other).read_to_end(&mut Vec::new()).await;
            assert_eq!(error.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        }
    }

    #[tokio::test]
    async fn records_that_are_too_long_are_not_read() {
        let (mut raw, other) = duplex(1000);
        raw.write_all(&(MAX_RECORD + 1).to_be_bytes())
            .await
            .unwrap();
        raw.write_all(b"x").await.unwrap();
        let mut other = Records::new(other);
        assert!(other.read_u8().await.is_err());
        assert!(other.read_u8().await.is_err());
    }

    #[tokio::test]
    async fn an_abort_is_seen_while_reading_and_while_writing() {
        // The one that aborts waits until the other one has dropped.
        let (inside, mut server) = pair();
        let abort = tokio::spawn(inside.finish());
        assert!(server.read_u8().await.is_err());
        assert!(!abort.is_finished());
        drop(server);
        abort.await.unwrap();

        // After its own end, too: a download that nobody wants any more stops.
        let (mut inside, mut server) = pair();
        inside.shutdown().await.unwrap();
        let abort = tokio::spawn(inside.finish());
        assert_eq!(server.read(&mut [0; 9]).await.unwrap(), 0);
        let endless = async { while server.write_all(&[0; 999]).await.is_ok() {} };
        tokio::time::timeout(std::time::Duration::from_secs(10), endless)
            .await
            .unwrap();
        drop(server);
        abort.await.unwrap();
    }
}
