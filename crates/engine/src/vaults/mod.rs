//! Credentials of sessions: which one a request gets, and tokens that are fresh when they are needed.
//!
//! Other parts of the engine ask here for a secret at the moment they use it and keep none. A session's
//! `vault_ids` are looked through in order; the first active credential that fits wins.

use secrecy::SecretString;
use selfsame_net::Hosts;
use selfsame_store::StoreError;
use selfsame_types::{CredentialId, SessionId, VaultId};
use url::Url;

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
    pub injection_location: InjectionLocation,
}

/// Where a variable's value may go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Networking {
    Unrestricted,
    Limited(Hosts),
}

/// Which parts of a request a variable's value may be put into. At least one is true.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InjectionLocation {
    pub header: bool,
    pub body: bool,
}

/// A fault of ours. That a token cannot be refreshed is none: its server will say what it thinks of it.
#[derive(Debug, thiserror::Error)]
pub enum VaultsError {
    #[error("credentials cannot be read")]
    Store(#[from] StoreError),
}

/// The credentials of sessions. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Vaults {}

impl Vaults {
    /// What a session shows the MCP server at `server_url`, refreshed when that is due; `None` when none of
    /// its vaults has a credential for it.
    ///
    /// # Errors
    /// [`VaultsError`].
    #[expect(clippy::unused_async, reason = "there are no vaults yet")]
    pub async fn bearer(
        &self,
        _session: SessionId,
        _server_url: &Url,
    ) -> Result<Option<Bearer>, VaultsError> {
        Ok(None)
    }

    /// What to show instead of a `bearer` that was answered with 401: what somebody else has changed it to
    /// meanwhile, or what one refresh brings. `None` when there is nothing better.
    ///
    /// # Errors
    /// [`VaultsError`].
    #[expect(clippy::unused_async, reason = "there are no vaults yet")]
    pub async fn refused(
        &self,
        _session: SessionId,
        _bearer: &Bearer,
        _server_url: &Url,
    ) -> Result<Option<Bearer>, VaultsError> {
        Ok(None)
    }

    /// The environment variables of a session, each name once: the first vault's wins.
    ///
    /// # Errors
    /// [`VaultsError`].
    #[expect(clippy::unused_async, reason = "there are no vaults yet")]
    pub async fn variables(&self, _session: SessionId) -> Result<Vec<Variable>, VaultsError> {
        Ok(Vec::new())
    }
}
