//! The door: the server's half of the only way out of a sandbox.
//!
//! ```text
//! inside                              │ server
//! program ─ connect ─► hands ─ offer ─┼─► Door::serve ─ a task for each connection:
//!                                     │     access.rs   may this session go there?
//!                                     │     net::dial   resolve, judge the addresses, connect
//!                                     │     splice.rs   copy both ways, each with its own end
//!                                     │       inspect.rs  `limited`: does TLS or HTTP name another host?
//!                                     │     git.rs      the name that adds repositories' tokens
//! ```
//!
//! A sandbox has no interface to the world. What its programs want to reach arrives here as a name
//! (or a written-out address) and a port, and everything about it is decided here: nothing that a
//! program inside can do to its own network changes who resolves, who judges and who dials. The name
//! is whatever the program says, so it is judged as hostile text.
//!
//! A refused connection is reset, which programs report as such; on port 80 it is answered with a
//! readable 403 instead. A connection that cannot be made is reset, too.

mod access;
mod authority;
mod git;
mod http;
mod inspect;
mod meter;
mod offer;
mod refuse;
mod secrets;
mod splice;
#[cfg(test)]
mod tests;
mod ways;

use std::{sync::Arc, time::Duration};

use selfsame_net::{DialError, Hosts, Policy, hosts::normal};
use selfsame_types::SessionId;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::{Semaphore, mpsc, watch},
    task::JoinSet,
    time::timeout,
};
use url::Url;

pub use access::{Access, Network, Repository};
pub use authority::{Authority, AuthorityError};
pub use offer::Offer;
pub use secrets::Wallet;
pub(crate) use ways::tell;

use self::{
    git::Git,
    inspect::Inspector,
    meter::{Ended, Measured, Meter},
    secrets::{Placeholders, Secrets},
    splice::Broken,
};
use crate::vaults::Vaults;

/// The name that programs inside reach the door itself by. It exists nowhere else.
pub const OWN_DOMAIN: &str = "selfsame.internal";
/// The proxy that git inside uses for the hosts of repositories.
pub const GIT_PROXY: &str = "http://git.selfsame.internal:3128";

/// Connections of one sandbox at once; the hands open fewer.
const MAX_CONNECTIONS: usize = 256;
/// Lookups of one sandbox at once, so that names without an answer do not use up everybody's.
const MAX_LOOKUPS: usize = 8;
/// How long a connection waits for its session's rights, which are loaded while it is attached, and
/// for room among all sandboxes' connections.
const PATIENCE: Duration = Duration::from_secs(30);

/// What all sessions of a server have in common.
#[derive(Debug, Clone)]
pub struct DoorConfig {
    /// The addresses that may be reached.
    pub policy: Policy,
    /// What `allow_package_managers` opens.
    pub package_hosts: Hosts,
    /// Connections of all sandboxes at once; further ones wait.
    pub max_connections: usize,
    /// The hosts that the git service stands in for.
    pub repository_hosts: Vec<RepositoryHost>,
}

/// A host that sessions may have repositories from.
#[derive(Debug, Clone)]
pub struct RepositoryHost {
    pub name: String,
    /// Where its requests really go: the operator's choice, so it may be a private address. `None` is
    /// `https://<name>`.
    pub upstream: Option<Url>,
}

/// The door cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum DoorError {
    #[error(transparent)]
    Client(#[from] selfsame_net::NetError),
    #[error(transparent)]
    Authority(#[from] AuthorityError),
}

/// The way out of this server's sandboxes. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Door(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: DoorConfig,
    certificate: String,
    git: Git,
    secrets: Secrets,
    placeholders: Placeholders,
    connections: Semaphore,
}

impl Door {
    /// # Errors
    /// When TLS cannot be set up.
    pub fn new(config: DoorConfig, authority: Authority) -> Result<Self, DoorError> {
        Ok(Self(Arc::new(Inner {
            certificate: authority.certificate().to_owned(),
            git: Git::new(&config.policy, &config.repository_hosts, &authority)?,
            placeholders: authority.placeholders(),
            secrets: Secrets::new(&config.policy, authority)?,
            connections: Semaphore::new(config.max_connections.max(1)),
            config,
        })))
    }

    /// What git inside must trust for the hosts of repositories, and all programs of a session whose
    /// vaults have variables; in PEM.
    #[must_use]
    pub fn certificate(&self) -> &str {
        &self.0.certificate
    }

    /// A session's variables, for its [`Access`].
    #[must_use]
    pub fn wallet(&self, session: SessionId, vaults: Vaults) -> Wallet {
        Wallet::new(session, self.0.placeholders.clone(), vaults)
    }

    /// Serves one attached sandbox until its stream is lost. What is still open then is reset.
    ///
    /// Each connection is judged by what `access` holds when it is opened; while that is `None`,
    /// connections wait.
    pub async fn serve<O: Offer>(
        &self,
        mut offers: mpsc::Receiver<O>,
        access: watch::Receiver<Option<Arc<Access>>>,
    ) {
        let session = Arc::new(Session {
            door: self.clone(),
            access,
            lookups: Arc::new(Semaphore::new(MAX_LOOKUPS)),
            meter: Meter::default(),
        });
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                offer = offers.recv(), if connections.len() < MAX_CONNECTIONS => match offer {
                    Some(offer) => {
                        connections.spawn(Arc::clone(&session).carry(offer));
                    }
                    None => break,
                },
                Some(_) = connections.join_next() => {}
            }
        }
        connections.shutdown().await;
        if let Some(access) = &*session.access.borrow() {
            session.meter.report(access.session);
        }
    }
}

/// One sandbox while it is attached.
struct Session {
    door: Door,
    access: watch::Receiver<Option<Arc<Access>>>,
    lookups: Arc<Semaphore>,
    meter: Meter,
}

impl Session {
    async fn carry<O: Offer>(self: Arc<Self>, offer: O) {
        let host = normal(offer.host());
        let port = offer.port();
        let Some(access) = self.access().await else {
            offer.refuse("the session is not ready").await;
            return;
        };
        let room = timeout(PATIENCE, self.door.0.connections.acquire()).await;
        let Ok(Ok(_room)) = room else {
            self.meter.ended(Ended::Failed);
            offer.refuse("too many connections at once").await;
            return;
        };
        let _open = self.meter.opened();
        if git::is_service(&host, port) {
            let stream = self.meter.measure(offer.accept().await);
            git::serve(&self, &access, stream).await;
            return;
        }
        match self.open(&access, &host, port).await {
            Ok(tcp) => {
                let carried = self.meter.measure(offer.accept().await);
                self.join(&access, &host, port, carried, tcp).await;
            }
            Err(Closed::Refused(reason)) if port == 80 => {
                refuse::explain(offer.accept().await, &reason).await;
            }
            Err(Closed::Refused(reason) | Closed::Failed(reason)) => offer.refuse(&reason).await,
        }
    }

    /// Connects, if the session may go there.
    async fn open(&self, access: &Access, host: &str, port: u16) -> Result<TcpStream, Closed> {
        let dialled = match self.may_reach(access, host) {
            Ok(()) => self.dial(host, port).await,
            Err(reason) => {
                self.meter.refused(access, host, port, &reason);
                access.unreachable(host, &reason).await;
                return Err(Closed::Refused(reason));
            }
        };
        let error = match dialled {
            Ok(tcp) => return Ok(tcp),
            Err(error) => error,
        };
        let reason = error.to_string();
        if let DialError::Refused(_) | DialError::Unknown(..) = error {
            access.unreachable(host, &reason).await;
        }
        if let DialError::Refused(_) = error {
            self.meter.refused(access, host, port, &reason);
            return Err(Closed::Refused(reason));
        }
        self.meter.ended(Ended::Failed);
        tracing::debug!(session = %access.session, host, port, %error, "unreachable");
        Err(Closed::Failed(reason))
    }

    /// Carries an accepted connection to its end.
    async fn join<S>(
        &self,
        access: &Arc<Access>,
        host: &str,
        port: u16,
        mut carried: Measured<S>,
        tcp: TcpStream,
    ) where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        if let Some(wallet) = &access.wallet {
            match Secrets::wants(wallet, &mut carried, &tcp, host).await {
                Ok(false) => {}
                Ok(true) => {
                    let secrets = &self.door.0.secrets;
                    let serving = secrets.serve(access, wallet, (host, port), carried, tcp);
                    return self.meter.ended(serving.await);
                }
                Err(error) => {
                    tracing::debug!(session = %access.session, host, port, %error, "not opened");
                    return self.meter.ended(Ended::Reset);
                }
            }
        }
        let before = carried.written();
        let mut inspector = Inspector::for_access(access, host, &self.door.0.config.package_hosts);
        match splice::splice(&mut carried, tcp, inspector.as_mut()).await {
            Err(Broken::Mismatch(mismatch)) => {
                let reason = mismatch.to_string();
                self.meter.refused(access, host, port, &reason);
                if mismatch.is_http && carried.written() == before {
                    refuse::answer(carried, &reason).await;
                }
            }
            Err(Broken::Io(error)) => {
                self.meter.ended(Ended::Reset);
                tracing::trace!(session = %access.session, host, port, %error, "reset");
            }
            Ok(()) => self.meter.ended(Ended::Well),
        }
    }

    /// What the session may reach, once that is known.
    async fn access(&self) -> Option<Arc<Access>> {
        let mut access = self.access.clone();
        let known = timeout(PATIENCE, access.wait_for(Option::is_some)).await;
        known.ok()?.ok()?.clone()
    }

    fn may_reach(&self, access: &Access, host: &str) -> Result<(), String> {
        if host == OWN_DOMAIN || host.ends_with(&format!(".{OWN_DOMAIN}")) {
            return Err(format!("`{host}` does not offer that port"));
        }
        access.judge(host, &self.door.0.config.package_hosts)
    }

    async fn dial(&self, host: &str, port: u16) -> Result<TcpStream, DialError> {
        let lookup = Arc::clone(&self.lookups).acquire_owned();
        let permit = match timeout(PATIENCE, lookup).await {
            Ok(Ok(permit)) => permit,
            _ => return Err(DialError::Timeout(host.to_owned())),
        };
        self.door.0.config.policy.dial(host, port, permit).await
    }
}

/// Why there is no connection.
enum Closed {
    /// It must not be.
    Refused(String),
    /// It could not be made.
    Failed(String),
}
