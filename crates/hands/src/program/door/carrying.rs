//! From a connection of a program inside to a substream, and back.

use std::{
    io,
    net::{Ipv4Addr, SocketAddrV4},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rustix::net::sockopt;
use selfsame_hands::{
    carry::{self, Answer, Open, Records},
    mux::{Opener, Substream},
    wire,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, tcp},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{Instant, timeout, timeout_at},
};

use super::names::{Held, Names};

/// Connections that wait: for a server, or because as many as may be are carried already.
const MAX_WAITING: usize = 256;
/// How long one waits to be offered to a server.
const WAIT: Duration = Duration::from_secs(60);
/// Time for the server's answer. It resolves and dials meanwhile.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(150);
/// How long a program may go on sending after the server has said all it had to. One that forgets
/// to close would hold its place for ever.
const HALF_CLOSED: Duration = Duration::from_secs(600);
/// How long a program is listened to after the server has gone, so that it can read what the
/// server sent before a reset takes it away.
const LINGER: Duration = Duration::from_secs(5);
/// Bytes moved at once.
const BUFFER: usize = 16 << 10;

/// What carries connections; one for the whole program.
#[derive(Debug)]
pub(super) struct Carrier {
    names: Names,
    /// The newest session with a server, and its number.
    session: watch::Sender<Option<(u64, Opener)>>,
    sessions: AtomicU64,
    /// Those that have a substream.
    slots: Semaphore,
    /// All of them.
    seats: Arc<Semaphore>,
}

/// A server is attached for as long as this lives.
#[derive(Debug)]
pub(crate) struct Attached {
    carrier: Arc<Carrier>,
    number: u64,
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.carrier.session.send_if_modified(|session| {
            // A newer session may have taken its place.
            let own = session
                .as_ref()
                .is_some_and(|(number, _)| *number == self.number);
            if own {
                *session = None;
            }
            own
        });
    }
}

/// Where a connection goes, and what keeps its name from changing meanwhile.
pub(super) struct Destination {
    pub(super) open: Open,
    /// What has been read of the program already.
    pub(super) begin: Vec<u8>,
    /// What the program is told first, when it speaks to a proxy: of success, or why there is none.
    greeting: Option<&'static [u8]>,
    _held: Option<Held>,
}

impl Destination {
    /// One that the program has told a proxy.
    pub(super) fn through_proxy(open: Open, begin: Vec<u8>, greeting: &'static [u8]) -> Self {
        Self {
            open,
            begin,
            greeting: Some(greeting),
            _held: None,
        }
    }
}

/// Why a connection is not carried.
enum Refusal {
    /// The server says so, or nobody answers. The seat is free at once.
    Over,
    /// The substream, which must be finished first.
    Unanswered(Substream),
}

impl Carrier {
    pub(super) fn new(names: Names) -> Self {
        Self {
            names,
            session: watch::Sender::new(None),
            sessions: AtomicU64::new(0),
            slots: Semaphore::new(carry::MAX_CONNECTIONS),
            seats: Arc::new(Semaphore::new(carry::MAX_CONNECTIONS + MAX_WAITING)),
        }
    }

    /// From now on connections go over `opener`.
    pub(super) fn attach(self: &Arc<Self>, opener: Opener) -> Attached {
        let number = self.sessions.fetch_add(1, Ordering::Relaxed);
        self.session.send_replace(Some((number, opener)));
        Attached {
            carrier: Arc::clone(self),
            number,
        }
    }

    /// Takes connections, for ever. `wanted` says where one was to go.
    pub(super) async fn accept(
        self: Arc<Self>,
        listener: TcpListener,
        wanted: fn(&TcpStream) -> io::Result<SocketAddrV4>,
    ) {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                // Too many open files, or a peer that is gone again: neither is for ever.
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            };
            let destination = wanted(&stream)
                .ok()
                .and_then(|wanted| self.destination(wanted));
            match (destination, self.seat()) {
                (Some(destination), Some(seat)) => {
                    let carrier = Arc::clone(&self);
                    tokio::spawn(carrier.carry(stream, destination, seat));
                }
                _ => reset(stream),
            }
        }
    }

    /// A place for a connection, if there is one left.
    pub(super) fn seat(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.seats).try_acquire_owned().ok()
    }

    fn destination(&self, wanted: SocketAddrV4) -> Option<Destination> {
        let (address, port) = (*wanted.ip(), wanted.port());
        let held = self.names.hold(address);
        let host = match &held {
            Some(held) => held.name().to_owned(),
            // A fake address that stands for nothing (any more), or this sandbox.
            None if self.names.covers(address) || is_here(address) => return None,
            None => address.to_string(),
        };
        Some(Destination {
            open: Open { host, port },
            begin: Vec::new(),
            greeting: None,
            _held: held,
        })
    }

    /// Carries a connection to its end.
    pub(super) async fn carry(
        self: Arc<Self>,
        mut stream: TcpStream,
        destination: Destination,
        _seat: OwnedSemaphorePermit,
    ) {
        let deadline = Instant::now() + WAIT;
        let Ok(Ok(slot)) = timeout_at(deadline, self.slots.acquire()).await else {
            return deny(stream, &destination).await;
        };
        let substream = match self.offer(&destination.open, deadline).await {
            Ok(substream) => substream,
            Err(refusal) => {
                deny(stream, &destination).await;
                if let Refusal::Unanswered(substream) = refusal {
                    Records::new(substream).finish().await;
                }
                return;
            }
        };
        let _ = stream.set_nodelay(true);
        let mut records = Records::new(substream);
        let begun = async {
            stream
                .write_all(destination.greeting.unwrap_or_default())
                .await?;
            records.write_all(&destination.begin).await?;
            records.flush().await
        };
        let end = match begun.await {
            Ok(()) => pump(&mut stream, &mut records).await,
            Err(_) => End::Aborted,
        };
        if end == End::Aborted {
            reset(stream);
            records.finish().await;
        } else {
            records.finish().await;
            drop(slot);
            if end == End::Unheard {
                linger(&stream).await;
            }
        }
    }

    /// Offers a connection to the server, or to the next one when that is lost before it answers:
    /// nothing has been sent until then.
    async fn offer(&self, open: &Open, deadline: Instant) -> Result<Substream, Refusal> {
        let mut session = self.session.subscribe();
        loop {
            let attached = timeout_at(deadline, session.wait_for(Option::is_some)).await;
            let Ok(Ok(Some((number, opener)))) = attached.map(|found| found.map(|s| s.clone()))
            else {
                return Err(Refusal::Over);
            };
            if let Some(mut substream) = opener.open().await {
                let exchange = async {
                    wire::write_frame(&mut substream, open, carry::MAX_FRAME).await?;
                    wire::read_frame(&mut substream, carry::MAX_FRAME).await
                };
                match timeout(ANSWER_TIMEOUT, exchange).await {
                    Ok(Ok(Answer::Accepted)) => return Ok(substream),
                    Ok(Ok(Answer::Refused { .. })) | Err(_) => {
                        return Err(Refusal::Unanswered(substream));
                    }
                    Ok(Err(_)) => {}
                }
            }
            // The session is over, and noticed to be: what ends it and what takes it away here are
            // one step. If it is not, the server has dropped this connection.
            let current = session.borrow().as_ref().map(|(number, _)| *number);
            if current == Some(number) {
                return Err(Refusal::Over);
            }
        }
    }
}

/// Whether an address is one of the sandbox's own, and not of the world.
fn is_here(address: Ipv4Addr) -> bool {
    address.is_loopback() || address.is_unspecified() || address == super::redirect::OWN
}

/// Where a redirected connection was to go.
pub(super) fn redirected_from(stream: &TcpStream) -> io::Result<SocketAddrV4> {
    Ok(sockopt::ip_original_dst(stream)?)
}

/// Lets the program know that it is not carried.
async fn deny(mut stream: TcpStream, destination: &Destination) {
    if destination.greeting.is_none() {
        return reset(stream);
    }
    let status = "403 Forbidden";
    let message = "this connection is not allowed, or cannot be made";
    let _ = timeout(LINGER, super::ports::refuse(&mut stream, (status, message))).await;
}

/// Closes so that the program sees a reset.
fn reset(stream: TcpStream) {
    let _ = stream.set_zero_linger();
}

/// Takes what a program still sends, for a while.
async fn linger(stream: &TcpStream) {
    let drain = async {
        let mut scratch = [0; 1024];
        while stream.readable().await.is_ok() {
            match stream.try_read(&mut scratch) {
                Ok(1..) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                _ => return,
            }
        }
    };
    let _ = timeout(LINGER, drain).await;
}

/// How a carried connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Both directions.
    Clean,
    /// The server has said all it had to say, and did not want to hear the rest.
    Unheard,
    /// One side has gone, or the session.
    Aborted,
}

/// How one direction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Ended,
    SourceLost,
    TargetLost,
}

async fn pump(stream: &mut TcpStream, records: &mut Records<Substream>) -> End {
    let (program_reader, program_writer) = stream.split();
    let (server_reader, server_writer) = tokio::io::split(records);
    let mut outward = pin!(outward(program_reader, server_writer));
    let mut inward = pin!(inward(server_reader, program_writer));
    let mut heard = None;
    // The server's direction decides: when it has gone without an end, reading shows it.
    let answered = loop {
        tokio::select! {
            way = &mut outward, if heard.is_none() => match way {
                Way::SourceLost => return End::Aborted,
                way => heard = Some(way),
            },
            way = &mut inward => break way,
        }
    };
    if answered != Way::Ended {
        return End::Aborted;
    }
    let heard = match heard {
        Some(way) => Ok(way),
        None => timeout(HALF_CLOSED, outward).await,
    };
    match heard {
        Ok(Way::Ended) => End::Clean,
        Ok(Way::TargetLost) => End::Unheard,
        Ok(Way::SourceLost) | Err(_) => End::Aborted,
    }
}

async fn outward(
    program: tcp::ReadHalf<'_>,
    mut server: tokio::io::WriteHalf<&mut Records<Substream>>,
) -> Way {
    loop {
        if program.readable().await.is_err() {
            return Way::SourceLost;
        }
        // Only for as long as there is something to read: idle connections hold no buffer.
        let mut buffer = Vec::with_capacity(BUFFER);
        match program.try_read_buf(&mut buffer) {
            Ok(0) => {
                return match server.shutdown().await {
                    Ok(()) => Way::Ended,
                    Err(_) => Way::TargetLost,
                };
            }
            Ok(_) => {
                if server.write_all(&buffer).await.is_err() || server.flush().await.is_err() {
                    return Way::TargetLost;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return Way::SourceLost,
        }
    }
}

async fn inward(
    mut server: tokio::io::ReadHalf<&mut Records<Substream>>,
    mut program: tcp::WriteHalf<'_>,
) -> Way {
    let mut buffer = vec![0; BUFFER];
    loop {
        match server.read(&mut buffer).await {
            Ok(0) => {
                return match program.shutdown().await {
                    Ok(()) => Way::Ended,
                    Err(_) => Way::TargetLost,
                };
            }
            Ok(length) => {
                if program.write_all(&buffer[..length]).await.is_err() {
                    return Way::TargetLost;
                }
            }
            Err(_) => return Way::SourceLost,
        }
    }
}
