//! Secrets that programs inside use and never have.
//!
//! ```text
//! inside                         │ the door                                    │ the host
//! TOKEN=selfsame_placeholder_..  │                                             │
//! curl -H "Bearer $TOKEN" ───────┼─► hello.rs    TLS, to the name dialled?     │
//!                                │   mod.rs      answers it as the host ───────┼─► TLS, verified
//!                                │   forward.rs  one request: host, framing    │
//!                                │   wallet.rs   which secrets may go there?   │
//!                                │   scan.rs     placeholder ─► secret ────────┼─► header, body
//! ```
//!
//! A session's `environment_variable` credentials are placeholders inside. TLS is opened for connections to
//! hosts that some credential of the session lists, and for no others; everything else is carried as it is,
//! with its own certificate. What `unrestricted` credentials list is every host that the session may
//! reach. The session's own network has been asked before: a host that it does not cover is never dialled.
//!
//! Secrets go where the connection goes: to the name that was dialled, whose certificate has been verified,
//! and only in requests that name no other host. They go into values of headers (also behind the base64 of
//! `Basic`) and into bodies, as the credential says; never into targets, names of headers, trailers or
//! anything in clear: plain HTTP is carried untouched. Answers are not looked at: a host that echoes a
//! secret shows it to the program, and so a credential should list no host that does.
//!
//! HTTP/1.1 is spoken on both sides. A program that offers only HTTP/2 reaches the host as if nobody had
//! listed it, and without secrets.

mod body;
mod forward;
mod hello;
mod placeholder;
mod scan;
#[cfg(test)]
mod tests;
mod wallet;

use std::{
    io,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use hyper::{
    client::conn::http1::{self as client, SendRequest},
    server::conn::http1,
    service::service_fn,
    upgrade::OnUpgrade,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use selfsame_net::{Policy, tls_client};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::{
    TlsAcceptor, TlsConnector,
    client::TlsStream,
    rustls::{ClientConfig, pki_types::ServerName},
    server,
};

use self::body::Outbound;
pub use self::wallet::Wallet;
pub(super) use self::{forward::replace, placeholder::Placeholders, wallet::Part};
use super::{
    Access, Authority, DoorError,
    meter::{Ended, Measured},
};

/// For both TLS handshakes.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two requests.
const KEEP_ALIVE: Duration = Duration::from_secs(5 * 60);
/// Most bytes of a request's head.
const MAX_BUFFER: usize = 64 << 10;

/// What it takes to stand between programs and hosts.
pub(super) struct Secrets {
    authority: Authority,
    client: Arc<ClientConfig>,
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secrets").finish_non_exhaustive()
    }
}

/// A connection whose two TLS ends are here.
struct Opened {
    access: Arc<Access>,
    wallet: Arc<Wallet>,
    host: String,
    port: u16,
    /// The host, or why it is not to be had.
    upstream: Result<tokio::sync::Mutex<SendRequest<Outbound>>, String>,
    /// Connections that speak something else by now.
    tunnels: Mutex<JoinSet<()>>,
}

impl Opened {
    /// The host as a request names it.
    fn authority(&self) -> String {
        match self.port {
            443 => self.host.clone(),
            port => format!("{}:{port}", self.host),
        }
    }

    /// Carries what two upgraded connections say, for as long as this one is served.
    fn join(&self, inside: OnUpgrade, world: OnUpgrade) {
        self.tunnels().spawn(async move {
            let (Ok(inside), Ok(world)) = (inside.await, world.await) else {
                return;
            };
            let (mut inside, mut world) = (TokioIo::new(inside), TokioIo::new(world));
            let _ = tokio::io::copy_bidirectional(&mut inside, &mut world).await;
        });
    }

    fn tunnels(&self) -> MutexGuard<'_, JoinSet<()>> {
        self.tunnels.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Secrets {
    pub(super) fn new(policy: &Policy, authority: Authority) -> Result<Self, DoorError> {
        Ok(Self {
            authority,
            client: Arc::new(tls_client(policy)?),
        })
    }

    /// Whether this connection is to be opened: its host gets secrets, and it begins as TLS for HTTP.
    ///
    /// # Errors
    /// The connection cannot go on.
    pub(super) async fn wants<S: AsyncRead + Unpin>(
        wallet: &Wallet,
        carried: &mut Measured<S>,
        tcp: &TcpStream,
        host: &str,
    ) -> io::Result<bool> {
        let known = wallet.known().await.map_err(io::Error::other)?;
        Ok(known.lists(host) && hello::wants_http(carried, tcp, host).await?)
    }

    /// Serves an opened connection to its end.
    pub(super) async fn serve<S>(
        &self,
        access: &Arc<Access>,
        wallet: &Arc<Wallet>,
        (host, port): (&str, u16),
        carried: Measured<S>,
        tcp: TcpStream,
    ) -> Ended
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let handshakes = async { tokio::join!(self.inside(host, carried), self.world(host, tcp)) };
        let Ok((Ok(inside), world)) = timeout(PATIENCE, handshakes).await else {
            return Ended::Reset;
        };
        let world = match world {
            Ok(world) => Ok(client::Builder::new()
                .preserve_header_case(true)
                .handshake(TokioIo::new(world))
                .await),
            Err(error) => Err(format!("No TLS with `{host}`: {error}")),
        };
        let (upstream, connection) = match world {
            Ok(Ok((upstream, connection))) => (Ok(upstream.into()), Some(connection)),
            Ok(Err(_)) => return Ended::Reset,
            Err(reason) => (Err(reason), None),
        };
        let opened = Arc::new(Opened {
            access: Arc::clone(access),
            wallet: Arc::clone(wallet),
            host: host.to_owned(),
            port,
            upstream,
            tunnels: Mutex::default(),
        });
        let world = async move {
            match connection {
                // How it ended is told by the answer that did not come.
                Some(connection) => drop(connection.with_upgrades().await),
                None => std::future::pending().await,
            }
        };
        exchange(&opened, inside, world).await
    }

    async fn inside<S>(&self, host: &str, carried: S) -> io::Result<server::TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let config = self.authority.serve_as(host).map_err(io::Error::other)?;
        TlsAcceptor::from(Arc::new(config)).accept(carried).await
    }

    async fn world(&self, host: &str, tcp: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        let connector = TlsConnector::from(Arc::clone(&self.client));
        connector.connect(name, tcp).await
    }
}

/// Answers the program while `world` drives the connection to the host.
async fn exchange<S>(
    opened: &Arc<Opened>,
    inside: server::TlsStream<S>,
    world: impl Future<Output = ()>,
) -> Ended
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(|request| {
        let opened = Arc::clone(opened);
        async move { forward::forward(&opened, request).await }
    });
    let mut served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(KEEP_ALIVE)
        .max_buf_size(MAX_BUFFER)
        .preserve_header_case(true)
        .auto_date_header(false)
        .serve_connection(TokioIo::new(inside), service)
        .with_upgrades();
    let mut world = pin!(world);
    let mut open = true;
    let done = loop {
        tokio::select! {
            done = &mut served => break done,
            // No further request would be answered: the program hears it as from the host itself.
            () = &mut world, if open => {
                open = false;
                Pin::new(&mut served).graceful_shutdown();
            }
        }
    };
    let mut tunnels = std::mem::take(&mut *opened.tunnels());
    while !tunnels.is_empty() {
        tokio::select! {
            _ = tunnels.join_next() => {}
            () = &mut world, if open => open = false,
        }
    }
    if done.is_err() {
        return Ended::Reset;
    }
    let Some(parts) = served.into_parts() else {
        return Ended::Well;
    };
    // What is dropped before the other side has ended is reset, and a reset may overtake an answer.
    let mut inside = parts.io.into_inner();
    let mut nowhere = tokio::io::sink();
    match timeout(PATIENCE, tokio::io::copy(&mut inside, &mut nowhere)).await {
        Ok(Ok(_)) => Ended::Well,
        _ => Ended::Reset,
    }
}
