//! A program's connection and one to the world, made one.

use std::{
    io,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, split},
    net::TcpStream,
    time::{Instant, sleep_until},
};

use super::inspect::{Inspector, Mismatch, Verdict};

/// Two records of the sandbox's stream.
const BUFFER: usize = 32 << 10;
/// A connection may be silent for this long. Peers that have vanished are found by keep-alive.
const IDLE: Duration = Duration::from_secs(6 * 60 * 60);

/// Why a connection did not come to a good end.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Mismatch(#[from] Mismatch),
}

/// Copies both ways until both directions have ended, each by itself. What breaks one side off
/// resets the other: `carried` by being dropped, `tcp` here.
pub(super) async fn splice<S>(
    carried: &mut S,
    mut tcp: TcpStream,
    inspector: Option<&mut Inspector>,
) -> Result<(), Broken>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    // From now on closing it resets it: also when this future is dropped half-way.
    SockRef::from(&tcp).set_linger(Some(Duration::ZERO))?;
    let clock = Clock::start();
    {
        let (mut inside_read, mut inside_write) = split(carried);
        let (mut world_read, mut world_write) = tcp.split();
        let up = copy(&mut inside_read, &mut world_write, inspector, &clock);
        let down = copy(&mut world_read, &mut inside_write, None, &clock);
        tokio::select! {
            both = async { tokio::try_join!(up, down) } => both?,
            () = clock.ran_out() => return Err(io::Error::from(io::ErrorKind::TimedOut).into()),
        };
    }
    SockRef::from(&tcp).set_linger(None)?;
    Ok(())
}

async fn copy<R, W>(
    from: &mut R,
    to: &mut W,
    mut inspector: Option<&mut Inspector>,
    clock: &Clock,
) -> Result<(), Broken>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut buffer = vec![0; BUFFER];
    let mut held = Vec::new();
    loop {
        let count = from.read(&mut buffer).await?;
        clock.touch();
        if let Some(watching) = &mut inspector {
            held.extend_from_slice(&buffer[..count]);
            if count > 0 && watching.judge(&held)? == Verdict::NotYet {
                continue;
            }
            inspector = None;
            to.write_all(&std::mem::take(&mut held)).await?;
        } else {
            to.write_all(&buffer[..count]).await?;
        }
        if count == 0 {
            return Ok(to.shutdown().await?);
        }
        to.flush().await?;
    }
}

/// When something last moved.
struct Clock {
    start: Instant,
    /// Milliseconds after `start`.
    last: AtomicU64,
}

impl Clock {
    fn start() -> Self {
        Self {
            start: Instant::now(),
            last: AtomicU64::new(0),
        }
    }

    fn touch(&self) {
        let passed = self.start.elapsed().as_millis();
        self.last
            .store(u64::try_from(passed).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    async fn ran_out(&self) {
        loop {
            let last = Duration::from_millis(self.last.load(Ordering::Relaxed));
            let end = self.start + last + IDLE;
            if Instant::now() >= end {
                return;
            }
            sleep_until(end).await;
        }
    }
}
