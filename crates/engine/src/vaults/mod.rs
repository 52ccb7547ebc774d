//! Credentials of sessions: which one a request gets, and tokens that are fresh when they are needed.
//!
//! Other parts of the engine ask here for a secret at the moment they use it and keep none. A session's
//! `vault_ids` are looked through in order; the first active credential that fits wins. What was found is
//! remembered for a short while ([`cache`]); access tokens are refreshed before they expire, by whoever uses
//! them and by a loop of the background, and once when a server refuses one ([`refresh`]).

mod cache;
mod probe;
mod refresh;
mod scrub;
#[cfg(test)]
mod tests;
mod token;
mod validate;

use std::{fmt, sync::Arc, time::Duration};

use secrecy::{ExposeSecret as _, SecretString};
use selfsame_net::{Hosts, Limits, NetError, Policy, guarded_client_with, reqwest::Client};
use selfsame_store::{OpenCredential, Store, StoreError};
use selfsame_types::{
    CredentialId, SessionId, VaultId,
    vault::{CredentialAuth, CredentialNetworking, EnvironmentVariableAuth, server_key},
};
use tokio_util::task::TaskTracker;
use url::Url;

pub use selfsame_types::vault::InjectionLocation;

use crate::notifier::Notifier;
use cache::Cache;
use refresh::{Attempt, Flights, Why};

pub use validate::ValidateError;

/// For a token endpoint or an MCP server to answer a question of ours.
const PATIENCE: Duration = Duration::from_secs(20);

/// What an MCP server is shown.
#[derive(Debug, Clone)]
pub struct Bearer {
    pub credential: CredentialId,
    pub vault: VaultId,
    pub token: SecretString,
}

/// An `environment_variable` credential that a session has.
#[derive(Debug, Clone)]
pub struct Variable {
    pub credential: CredentialId,
    pub vault: VaultId,
    pub secret_name: String,
    pub secret_value: SecretString,
    pub networking: Networking,
    /// Which parts of a request the value may be put into. At least one is true.
    pub injection_location: InjectionLocation,
}

/// Where a variable's value may go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Networking {
    Unrestricted,
    Limited(Hosts),
}

/// A fault of ours. That a token cannot be refreshed is none: its server will say what it thinks of it.
#[derive(Debug, thiserror::Error)]
pub enum VaultsError {
    #[error("credentials cannot be read")]
    Store(#[from] StoreError),
    #[error("a refresh was interrupted")]
    Interrupted,
}

/// How credentials are handled.
#[derive(Debug, Clone)]
pub struct VaultsConfig {
    /// For addresses that users name.
    client: Client,
    /// What a session has is looked up again after this.
    cache: Duration,
}

impl VaultsConfig {
    /// `policy` is for what users name.
    ///
    /// # Errors
    /// When a client cannot be built.
    pub fn new(policy: &Policy, cache: Duration) -> Result<Self, NetError> {
        let limits = Limits {
            total: Some(PATIENCE),
            // A secret in a request is meant for one host.
            redirects: 0,
            ..Limits::default()
        };
        Ok(Self {
            client: guarded_client_with(policy, &limits)?,
            cache,
        })
    }
}

/// The credentials of sessions. Cheap to clone.
#[derive(Clone)]
pub struct Vaults(Arc<Inner>);

struct Inner {
    store: Store,
    client: Client,
    notifier: Notifier,
    cache: Cache,
    flights: Flights,
    tasks: TaskTracker,
}

impl fmt::Debug for Vaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vaults").finish_non_exhaustive()
    }
}

impl Vaults {
    pub(crate) fn new(
        store: Store,
        notifier: Notifier,
        tasks: TaskTracker,
        config: VaultsConfig,
    ) -> Self {
        Self(Arc::new(Inner {
            store,
            client: config.client,
            notifier,
            cache: Cache::new(config.cache),
            flights: Flights::default(),
            tasks,
        }))
    }

    /// What a session shows the MCP server at `server_url`, refreshed when that is due; `None` when none of
    /// its vaults has a credential for it.
    ///
    /// # Errors
    /// [`VaultsError`].
    pub async fn bearer(
        &self,
        session: SessionId,
        server_url: &Url,
    ) -> Result<Option<Bearer>, VaultsError> {
        let key = server_key(server_url);
        let found = match self.0.cache.server(session, &key) {
            Some(found) => found,
            None => self.look_up(session, key).await?,
        };
        let Some(found) = found else { return Ok(None) };
        let why = match found.refresh_due() {
            refresh::Due::No => return Ok(Some(bearer(&found.credential))),
            // Good for a while: nobody has to wait for a new one.
            refresh::Due::Soon => {
                self.refresh_later(&found.credential, Why::Expiry);
                return Ok(Some(bearer(&found.credential)));
            }
            refresh::Due::Now => Why::Expiry,
        };
        Ok(match self.refresh(&found.credential, why).await? {
            Attempt::Fresh(fresh) => Some(bearer(&fresh)),
            Attempt::Gone => {
                let key = server_key(server_url);
                let next = self.look_up(session, key).await?;
                next.map(|next| bearer(&next.credential))
            }
            // The server may take it all the same; if not, it says so.
            Attempt::Failed(_) | Attempt::Resting | Attempt::Impossible => {
                Some(bearer(&found.credential))
            }
        })
    }

    /// What to show instead of a `bearer` that was answered with 401: what somebody else has changed it to
    /// meanwhile, or what one refresh brings. `None` when there is nothing better.
    ///
    /// # Errors
    /// [`VaultsError`].
    pub async fn refused(
        &self,
        session: SessionId,
        refused: &Bearer,
        server_url: &Url,
    ) -> Result<Option<Bearer>, VaultsError> {
        let Some(found) = self.look_up(session, server_key(server_url)).await? else {
            return Ok(None);
        };
        let found = &found.credential;
        if is_other(found, refused) {
            return Ok(Some(bearer(found)));
        }
        Ok(match self.refresh(found, Why::Refused).await? {
            Attempt::Fresh(fresh) if is_other(&fresh, refused) => Some(bearer(&fresh)),
            _ => None,
        })
    }

    /// The environment variables of a session, each name once: the first vault's wins.
    ///
    /// # Errors
    /// [`VaultsError`].
    pub async fn variables(&self, session: SessionId) -> Result<Vec<Variable>, VaultsError> {
        if let Some(variables) = self.0.cache.variables(session) {
            return Ok(variables);
        }
        let ticket = self.0.cache.ticket();
        let found = self.0.store.session_variables(session).await?;
        let variables: Vec<_> = found.into_iter().filter_map(variable).collect();
        self.0
            .cache
            .put_variables(ticket, session, variables.clone());
        Ok(variables)
    }

    /// Somebody has changed a vault or a credential: what is remembered may be wrong.
    pub(crate) fn forget_all(&self) {
        self.0.cache.clear();
    }

    /// A credential has a new token.
    pub(crate) fn forget(&self, credential: CredentialId) {
        self.0.cache.forget(credential);
    }

    async fn look_up(
        &self,
        session: SessionId,
        key: String,
    ) -> Result<Option<cache::Found>, VaultsError> {
        let ticket = self.0.cache.ticket();
        let found = self
            .0
            .store
            .session_server_credential(session, &key)
            .await?;
        let found = found.map(cache::Found::new);
        self.0.cache.put_server(ticket, session, key, found.clone());
        Ok(found)
    }
}

fn bearer(open: &OpenCredential) -> Bearer {
    Bearer {
        credential: open.credential.id,
        vault: open.credential.vault_id,
        token: open.secrets.secret.clone(),
    }
}

fn is_other(open: &OpenCredential, refused: &Bearer) -> bool {
    open.secrets.secret.expose_secret() != refused.token.expose_secret()
}

fn variable(open: OpenCredential) -> Option<Variable> {
    let CredentialAuth::EnvironmentVariable(EnvironmentVariableAuth {
        secret_name,
        networking,
        injection_location,
        ..
    }) = open.credential.auth
    else {
        return None;
    };
    Some(Variable {
        credential: open.credential.id,
        vault: open.credential.vault_id,
        secret_name,
        secret_value: open.secrets.secret,
        networking: match networking {
            CredentialNetworking::Unrestricted(_) => Networking::Unrestricted,
            // They were checked when they were stored; what does not parse is nowhere.
            CredentialNetworking::Limited(limited) => {
                Networking::Limited(Hosts::parse(limited.allowed_hosts).unwrap_or_default())
            }
        },
        injection_location,
    })
}
