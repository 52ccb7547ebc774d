//! What goes through: counted for a session, and for all of them in the metrics.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use selfsame_types::SessionId;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

use super::Access;

/// Refusals of a session that are logged as they come; after them one in each [`PAUSE`].
const LOGGED: u32 = 20;
const PAUSE: Duration = Duration::from_secs(60);

/// How a connection that was let through came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// Both directions said that they were done.
    Well,
    /// One side broke it off, or neither said anything for very long.
    Reset,
    /// It was never made.
    Failed,
}

/// One session's counters.
#[derive(Debug, Default)]
pub(super) struct Meter {
    connections: AtomicU64,
    refused: AtomicU64,
    bytes: Arc<Bytes>,
    log: Mutex<LogBudget>,
}

#[derive(Debug, Default)]
struct Bytes {
    /// From inside to the world.
    sent: AtomicU64,
    received: AtomicU64,
}

#[derive(Debug, Default)]
struct LogBudget {
    logged: u32,
    last: Option<Instant>,
    suppressed: u64,
}

impl LogBudget {
    /// Whether to log now, and how many were not logged before.
    fn take(&mut self, now: Instant) -> Option<u64> {
        let fresh = self.last.is_none_or(|last| now - last >= PAUSE);
        if self.logged >= LOGGED && !fresh {
            self.suppressed += 1;
            return None;
        }
        self.logged = self.logged.saturating_add(1);
        self.last = Some(now);
        Some(std::mem::take(&mut self.suppressed))
    }
}

impl Meter {
    /// One more connection, until what this returns is dropped.
    pub(super) fn opened(&self) -> Open {
        self.connections.fetch_add(1, Ordering::Relaxed);
        metrics::gauge!("selfsame_door_open_connections").increment(1.0);
        Open(())
    }

    pub(super) fn ended(&self, how: Ended) {
        let outcome = match how {
            Ended::Well => "ended",
            Ended::Reset => "reset",
            Ended::Failed => "failed",
        };
        metrics::counter!("selfsame_door_connections_total", "outcome" => outcome).increment(1);
    }

    pub(super) fn refused(&self, access: &Access, host: &str, port: u16, reason: &str) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        metrics::counter!("selfsame_door_connections_total", "outcome" => "refused").increment(1);
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(suppressed) = log.take(Instant::now()) {
            tracing::info!(
                session = %access.session, host, port, reason, suppressed,
                "a sandbox's connection was refused"
            );
        }
    }

    /// `stream`, with what goes through it counted.
    pub(super) fn measure<S>(&self, stream: S) -> Measured<S> {
        Measured {
            stream,
            unread: Vec::new(),
            written: 0,
            bytes: Arc::clone(&self.bytes),
        }
    }

    pub(super) fn report(&self, session: SessionId) {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let connections = read(&self.connections);
        if connections == 0 {
            return;
        }
        tracing::info!(
            %session,
            connections,
            refused = read(&self.refused),
            bytes_sent = read(&self.bytes.sent),
            bytes_received = read(&self.bytes.received),
            "a sandbox's use of the network"
        );
    }
}

/// An open connection.
#[derive(Debug)]
pub(super) struct Open(());

impl Drop for Open {
    fn drop(&mut self) {
        metrics::gauge!("selfsame_door_open_connections").decrement(1.0);
    }
}

/// A program's connection whose bytes are counted.
#[derive(Debug)]
pub(super) struct Measured<S> {
    stream: S,
    /// What has been read, and is to be read again.
    unread: Vec<u8>,
    written: u64,
    bytes: Arc<Bytes>,
}

impl<S> Measured<S> {
    /// Bytes that the program was sent.
    pub(super) fn written(&self) -> u64 {
        self.written
    }

    /// Makes this what is read next. It has been counted.
    pub(super) fn unread(&mut self, bytes: Vec<u8>) {
        self.unread = bytes;
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Measured<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.unread.is_empty() {
            let count = buf.remaining().min(self.unread.len());
            buf.put_slice(&self.unread[..count]);
            self.unread.drain(..count);
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        let count = (buf.filled().len() - before) as u64;
        self.bytes.sent.fetch_add(count, Ordering::Relaxed);
        metrics::counter!("selfsame_door_bytes_total", "direction" => "sent").increment(count);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Measured<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let count = ready!(Pin::new(&mut self.stream).poll_write(cx, buf))?;
        let bytes = count as u64;
        self.written += bytes;
        self.bytes.received.fetch_add(bytes, Ordering::Relaxed);
        metrics::counter!("selfsame_door_bytes_total", "direction" => "received").increment(bytes);
        Poll::Ready(Ok(count))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storm_of_refusals_is_not_a_storm_of_lines() {
        let start = Instant::now();
        let mut budget = LogBudget::default();
        for _ in 0..LOGGED {
            assert_eq!(budget.take(start), Some(0));
        }
        for _ in 0..1000 {
            assert_eq!(budget.take(start), None);
        }
        assert_eq!(budget.take(start + PAUSE), Some(1000));
        assert_eq!(budget.take(start + PAUSE), None);
        assert_eq!(budget.take(start + 2 * PAUSE), Some(1));
    }
}
