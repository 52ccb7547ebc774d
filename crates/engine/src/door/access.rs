//! What one session may reach.

use std::{net::IpAddr, sync::Arc};

use secrecy::SecretString;
use selfsame_net::Hosts;
use selfsame_types::SessionId;

use super::Wallet;

/// The rights of a session, as its environment and its resources give them.
#[derive(Debug, Clone)]
pub struct Access {
    pub session: SessionId,
    pub network: Network,
    /// Reached through the door's git service, whatever `network` says.
    pub repositories: Vec<Repository>,
    /// What its vaults' variables are, and where they may go. `None` where there are no vaults.
    pub wallet: Option<Arc<Wallet>>,
}

/// An environment's `networking`.
#[derive(Debug, Clone)]
pub enum Network {
    /// Every public address.
    Unrestricted,
    /// Nothing but the hosts listed, on any port.
    Limited {
        allowed_hosts: Hosts,
        /// The configured hosts of package managers, too.
        package_hosts: bool,
        /// Those of the agent's MCP servers.
        extra_hosts: Hosts,
    },
}

/// A repository of the session. `https://<host>/<owner>/<name>`, without `.git`.
#[derive(Debug, Clone)]
pub struct Repository {
    pub host: String,
    pub owner: String,
    pub name: String,
    pub token: Option<SecretString>,
}

impl Access {
    /// Whether the network policy lets the session reach `host`; the address it turns out to have is
    /// judged later, whatever this says.
    pub(super) fn judge(&self, host: &str, package_hosts: &Hosts) -> Result<(), String> {
        if self.covers(host, package_hosts) {
            return Ok(());
        }
        Err(format!(
            "`{host}` is not among the hosts that this environment allows; its network is `limited`"
        ))
    }

    pub(super) fn covers(&self, host: &str, package_hosts: &Hosts) -> bool {
        match &self.network {
            Network::Unrestricted => true,
            Network::Limited {
                allowed_hosts,
                package_hosts: with_packages,
                extra_hosts,
            } => {
                allowed_hosts.covers(host)
                    || extra_hosts.covers(host)
                    || (*with_packages && package_hosts.covers(host))
            }
        }
    }

    /// Notes that a host cannot be reached, in case a variable is meant for it.
    pub(super) async fn unreachable(&self, host: &str, reason: &str) {
        if let Some(wallet) = &self.wallet {
            wallet.unreachable(host, reason).await;
        }
    }

    /// Whether a connection must not name another host than the one it goes to. Of a written-out
    /// address nobody knows which names it serves.
    pub(super) fn holds_to_names(&self, host: &str) -> bool {
        matches!(self.network, Network::Limited { .. }) && host.parse::<IpAddr>().is_err()
    }
}
