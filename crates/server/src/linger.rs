//! Closing a connection on a client that is still sending.
//!
//! A refusal of a large upload is sent at once, and the connection closed. Were its socket closed with
//! unread bytes in it, the system would reset the connection, and the reset takes the answer with it before
//! the client has read it. So our half is closed first, and what still comes is thrown away for a while.

use std::{
    fmt, io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep},
};

/// How long a client that keeps sending is listened to, and how long one that is silent.
const LONGEST: Duration = Duration::from_secs(30);
const SILENT: Duration = Duration::from_secs(2);

/// Said by whoever answers before the whole request was read.
#[derive(Debug, Clone, Default)]
pub(crate) struct Linger(Arc<AtomicBool>);

impl Linger {
    pub(crate) fn ask(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A connection that waits for its client when it is shut down and was asked to.
pub(crate) struct Lingering {
    stream: TcpStream,
    asked: Linger,
    /// Our half is closed; the times when we are done with the other.
    waiting: Option<Waiting>,
}

struct Waiting {
    until: Instant,
    silence: Pin<Box<Sleep>>,
}

impl fmt::Debug for Lingering {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.stream.fmt(f)
    }
}

impl Lingering {
    pub(crate) fn new(stream: TcpStream, asked: Linger) -> Self {
        Self {
            stream,
            asked,
            waiting: None,
        }
    }
}

impl AsyncRead for Lingering {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Lingering {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.waiting.is_none() {
            ready!(Pin::new(&mut this.stream).poll_shutdown(context))?;
            if !this.asked.0.load(Ordering::Relaxed) {
                return Poll::Ready(Ok(()));
            }
        }
        let waiting = this.waiting.get_or_insert_with(|| Waiting {
            until: Instant::now() + LONGEST,
            silence: Box::pin(tokio::time::sleep(SILENT)),
        });
        let mut nowhere = [0; 8192];
        loop {
            let mut buffer = ReadBuf::new(&mut nowhere);
            match Pin::new(&mut this.stream).poll_read(context, &mut buffer) {
                Poll::Ready(Ok(())) if buffer.filled().is_empty() => return Poll::Ready(Ok(())),
                Poll::Ready(Ok(())) => {
                    let next = (Instant::now() + SILENT).min(waiting.until);
                    waiting.silence.as_mut().reset(next);
                }
                // It has gone; there is nobody left to wait for.
                Poll::Ready(Err(_)) => return Poll::Ready(Ok(())),
                Poll::Pending => break,
            }
        }
        waiting.silence.as_mut().poll(context).map(Ok)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
