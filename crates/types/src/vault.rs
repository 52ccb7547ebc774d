//! Vaults: the credentials with which agents reach other people's services.
//!
//! What is secret goes in and never comes out: requests have it as [`SecretString`](secrecy::SecretString), which
//! does not print, and no type of a response has a place for it.

mod create;
mod credential;
mod rules;
mod server_url;
mod update;
mod validation;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use create::{CreateCredential, CredentialSpec, InjectionLocationParams, NewCredential};
pub use credential::{
    ClientAuth, ClientAuthType, Credential, CredentialAuth, CredentialDeletedType, CredentialKind,
    CredentialNetworking, CredentialSecrets, CredentialType, DeletedCredential,
    EnvironmentVariableAuth, EnvironmentVariableType, InjectionLocation,
    LimitedCredentialNetworking, McpOauthAuth, McpOauthRefresh, McpOauthType, StaticBearerAuth,
    StaticBearerType,
};
pub use server_url::server_key;
pub use update::{CredentialChange, SecretsChange, UpdateCredential};
pub use validation::{
    CredentialValidation, CredentialValidationType, McpProbe, ProbeResponse, RefreshAttempt,
    RefreshStatus, ValidationStatus,
};

use crate::{ApiError, EmptyValue, Metadata, MetadataPatch, Timestamp, VaultId, check, wire};

/// Most credentials in use of one vault.
pub const MAX_CREDENTIALS: usize = 20;
const DISPLAY_NAME: std::ops::RangeInclusive<usize> = 1..=255;

wire::literals! {
    VaultType = "vault";
    VaultDeletedType = "vault_deleted";
}

/// A vault, as the API shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Vault {
    #[schema(inline)]
    pub r#type: VaultType,
    pub id: VaultId,
    pub display_name: String,
    pub metadata: Metadata,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    #[schema(required)]
    pub archived_at: Option<Timestamp>,
}

/// The answer to a deletion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct DeletedVault {
    pub id: VaultId,
    #[schema(inline)]
    pub r#type: VaultDeletedType,
}

/// The body of `POST /v1/vaults`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateVault {
    #[schema(min_length = 1, max_length = 255)]
    pub display_name: String,
    #[serde(default)]
    pub metadata: Metadata,
}

/// The body of `POST /v1/vaults/{vault_id}`. What is absent or null stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateVault {
    #[schema(min_length = 1, max_length = 255)]
    pub display_name: Option<String>,
    pub metadata: Option<MetadataPatch>,
}

/// The part of a vault that requests decide.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VaultSpec {
    pub display_name: String,
    pub metadata: Metadata,
}

impl CreateVault {
    /// Checks everything.
    pub fn resolve(self) -> Result<VaultSpec, ApiError> {
        check::text("display_name", &self.display_name, DISPLAY_NAME)?;
        self.metadata.validate()?;
        Ok(VaultSpec {
            display_name: self.display_name,
            metadata: self.metadata,
        })
    }
}

impl UpdateVault {
    /// What the vault becomes. Equal to its present spec when nothing changes effectively.
    pub fn change(self, vault: &Vault) -> Result<VaultSpec, ApiError> {
        vault.check_in_use()?;
        let mut spec = vault.spec();
        if let Some(name) = self.display_name {
            check::text("display_name", &name, DISPLAY_NAME)?;
            spec.display_name = name;
        }
        if let Some(patch) = self.metadata {
            spec.metadata = patch.apply(&spec.metadata, EmptyValue::IsStored)?;
        }
        Ok(spec)
    }
}

impl Vault {
    /// The part of it that requests decide.
    #[must_use]
    pub fn spec(&self) -> VaultSpec {
        VaultSpec {
            display_name: self.display_name.clone(),
            metadata: self.metadata.clone(),
        }
    }

    fn check_in_use(&self) -> Result<(), ApiError> {
        if self.archived_at.is_none() {
            return Ok(());
        }
        Err(ApiError::invalid(format!(
            "vault `{}` is archived and can no longer be changed; create another one",
            self.id
        ))
        .with_code("vault_archived"))
    }

    /// Whether it takes one more credential, having `active` ones that are not archived.
    pub fn check_room(&self, active: usize) -> Result<(), ApiError> {
        self.check_in_use()?;
        if active < MAX_CREDENTIALS {
            return Ok(());
        }
        Err(ApiError::invalid(format!(
            "vault `{}` has {MAX_CREDENTIALS} credentials, which is the most; archive or delete one, or use \
             another vault",
            self.id
        )))
    }
}

#[cfg(test)]
mod tests;
