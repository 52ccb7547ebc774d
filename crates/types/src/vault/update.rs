//! What an update makes of a stored credential.

use secrecy::SecretString;
use serde::Deserialize;
use utoipa::ToSchema;

use super::{
    ClientAuthType, Credential, CredentialAuth, CredentialNetworking, CredentialSecrets,
    CredentialSpec, EnvironmentVariableAuth, EnvironmentVariableType, InjectionLocationParams,
    McpOauthAuth, McpOauthRefresh, McpOauthType, StaticBearerAuth, StaticBearerType,
    create::{ClientSecretBasicType, ClientSecretPostType},
    rules::{
        CLIENT_SECRET, MAX_DISPLAY_NAME, MAX_PARAMETER, check_expiry, check_networking, check_same,
        checked, immutable, merge_location,
    },
};
use crate::{ApiError, EmptyValue, MetadataPatch, Patch, Timestamp, check, wire};

/// The body of `POST /v1/vaults/{vault_id}/credentials/{credential_id}`. What is absent or null stays.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateCredential {
    #[schema(nullable = false)]
    pub auth: Option<CredentialAuthUpdate>,
    #[schema(min_length = 1, max_length = 255)]
    pub display_name: Option<String>,
    pub metadata: Option<MetadataPatch>,
}

/// Its `type` must be the credential's.
#[derive(Debug, Clone, ToSchema)]
#[schema(discriminator(property_name = "type", mapping(
    ("static_bearer" = "#/components/schemas/StaticBearerUpdate"),
    ("mcp_oauth" = "#/components/schemas/McpOauthUpdate"),
    ("environment_variable" = "#/components/schemas/EnvironmentVariableUpdate"),
)))]
#[serde(untagged)]
pub enum CredentialAuthUpdate {
    StaticBearer(StaticBearerUpdate),
    McpOauth(McpOauthUpdate),
    EnvironmentVariable(EnvironmentVariableUpdate),
}

wire::tagged_union! { CredentialAuthUpdate:
    "static_bearer" => StaticBearer,
    "mcp_oauth" => McpOauth,
    "environment_variable" => EnvironmentVariable,
}

#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StaticBearerUpdate {
    #[schema(inline)]
    pub r#type: StaticBearerType,
    /// Write-only.
    #[schema(value_type = Option<String>, min_length = 1, max_length = 16384)]
    pub token: Option<SecretString>,
    /// Cannot be changed: anything but the stored value is refused.
    pub mcp_server_url: Option<String>,
}

#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct McpOauthUpdate {
    #[schema(inline)]
    pub r#type: McpOauthType,
    /// Write-only.
    #[schema(value_type = Option<String>, min_length = 1, max_length = 16384)]
    pub access_token: Option<SecretString>,
    /// In the future. Null: it does not expire. Without it the old one stays, for a new access token, too.
    #[serde(default)]
    #[schema(value_type = Option<Timestamp>)]
    pub expires_at: Patch<Timestamp>,
    pub refresh: Option<McpOauthRefreshUpdate>,
    /// Cannot be changed: anything but the stored value is refused.
    pub mcp_server_url: Option<String>,
}

#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct McpOauthRefreshUpdate {
    /// Write-only.
    #[schema(value_type = Option<String>, min_length = 1, max_length = 16384)]
    pub refresh_token: Option<SecretString>,
    /// An empty string removes it.
    #[schema(max_length = 2048)]
    pub scope: Option<String>,
    #[schema(nullable = false)]
    pub token_endpoint_auth: Option<ClientAuthUpdate>,
    /// Cannot be changed: anything but the stored value is refused.
    pub client_id: Option<String>,
    /// Cannot be changed: anything but the stored value is refused.
    pub token_endpoint: Option<String>,
    /// Cannot be changed: anything but the stored value is refused.
    pub resource: Option<String>,
}

/// A new client secret. The kind of authentication stays as it is, whichever of the two is named.
#[derive(Debug, Clone, ToSchema)]
#[schema(discriminator(property_name = "type", mapping(
    ("client_secret_basic" = "#/components/schemas/ClientSecretBasicUpdate"),
    ("client_secret_post" = "#/components/schemas/ClientSecretPostUpdate"),
)))]
#[serde(untagged)]
pub enum ClientAuthUpdate {
    ClientSecretBasic(ClientSecretBasicUpdate),
    ClientSecretPost(ClientSecretPostUpdate),
}

wire::tagged_union! { ClientAuthUpdate:
    "client_secret_basic" => ClientSecretBasic,
    "client_secret_post" => ClientSecretPost,
}

#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ClientSecretBasicUpdate {
    #[schema(inline)]
    pub r#type: ClientSecretBasicType,
    /// Write-only.
    #[schema(value_type = Option<String>, min_length = 1, max_length = 16384)]
    pub client_secret: Option<SecretString>,
}

#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ClientSecretPostUpdate {
    #[schema(inline)]
    pub r#type: ClientSecretPostType,
    /// Write-only.
    #[schema(value_type = Option<String>, min_length = 1, max_length = 16384)]
    pub client_secret: Option<SecretString>,
}

#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EnvironmentVariableUpdate {
    #[schema(inline)]
    pub r#type: EnvironmentVariableType,
    /// Write-only.
    #[schema(value_type = Option<String>, min_length = 1, max_length = 16384)]
    pub secret_value: Option<SecretString>,
    /// Replaces the whole.
    pub networking: Option<CredentialNetworking>,
    #[serde(default)]
    #[schema(value_type = InjectionLocationParams, required = false)]
    pub injection_location: Patch<InjectionLocationParams>,
    /// Cannot be changed: anything but the stored value is refused.
    pub secret_name: Option<String>,
}

/// What an update does to a credential.
#[derive(Debug, Clone)]
pub struct CredentialChange {
    pub spec: CredentialSpec,
    pub secrets: SecretsChange,
}

/// The secrets that are replaced; the others stay.
#[derive(Debug, Clone, Default)]
pub struct SecretsChange {
    /// The bearer token, the access token, or the variable's value.
    pub secret: Option<SecretString>,
    pub refresh_token: Option<SecretString>,
    pub client_secret: Option<SecretString>,
}

impl SecretsChange {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.secret.is_none() && self.refresh_token.is_none() && self.client_secret.is_none()
    }

    /// The new secrets.
    #[must_use]
    pub fn apply(self, current: CredentialSecrets) -> CredentialSecrets {
        CredentialSecrets {
            secret: self.secret.unwrap_or(current.secret),
            refresh_token: self.refresh_token.or(current.refresh_token),
            client_secret: self.client_secret.or(current.client_secret),
        }
    }
}

impl Credential {
    /// The part of it that requests decide.
    #[must_use]
    pub fn spec(&self) -> CredentialSpec {
        CredentialSpec {
            display_name: self.display_name.clone(),
            metadata: self.metadata.clone(),
            auth: self.auth.clone(),
        }
    }
}

impl UpdateCredential {
    /// What the credential becomes.
    pub fn change(
        self,
        credential: &Credential,
        now: Timestamp,
    ) -> Result<CredentialChange, ApiError> {
        if credential.archived_at.is_some() {
            return Err(ApiError::invalid(format!(
                "credential `{}` is archived and can no longer be changed; create another one",
                credential.id
            ))
            .with_code("vault_credential_archived"));
        }
        let mut spec = credential.spec();
        let mut secrets = SecretsChange::default();
        if let Some(name) = self.display_name {
            check::text("display_name", &name, 1..=MAX_DISPLAY_NAME)?;
            spec.display_name = Some(name);
        }
        if let Some(patch) = self.metadata {
            spec.metadata = patch.apply(&spec.metadata, EmptyValue::IsStored)?;
        }
        match (self.auth, &mut spec.auth) {
            (None, _) => {}
            (
                Some(CredentialAuthUpdate::StaticBearer(update)),
                CredentialAuth::StaticBearer(auth),
            ) => {
                update.apply(auth, &mut secrets)?;
            }
            (Some(CredentialAuthUpdate::McpOauth(update)), CredentialAuth::McpOauth(auth)) => {
                update.apply(auth, &mut secrets, now)?;
            }
            (
                Some(CredentialAuthUpdate::EnvironmentVariable(update)),
                CredentialAuth::EnvironmentVariable(auth),
            ) => update.apply(auth, &mut secrets)?,
            (Some(_), auth) => return Err(immutable("auth.type", auth.kind().as_str())),
        }
        Ok(CredentialChange { spec, secrets })
    }
}

impl StaticBearerUpdate {
    fn apply(self, auth: &StaticBearerAuth, secrets: &mut SecretsChange) -> Result<(), ApiError> {
        check_same(
            "auth.mcp_server_url",
            self.mcp_server_url,
            Some(&auth.mcp_server_url),
        )?;
        secrets.secret = checked("auth.token", self.token)?;
        Ok(())
    }
}

impl McpOauthUpdate {
    fn apply(
        self,
        auth: &mut McpOauthAuth,
        secrets: &mut SecretsChange,
        now: Timestamp,
    ) -> Result<(), ApiError> {
        check_same(
            "auth.mcp_server_url",
            self.mcp_server_url,
            Some(&auth.mcp_server_url),
        )?;
        secrets.secret = checked("auth.access_token", self.access_token)?;
        let expires_at = match self.expires_at {
            Patch::Value(at) => Patch::Value(check_expiry(at, now)?),
            other => other,
        };
        auth.expires_at = expires_at.apply(auth.expires_at);
        match (self.refresh, &mut auth.refresh) {
            (None, _) => Ok(()),
            (Some(update), Some(refresh)) => update.apply(refresh, secrets),
            (Some(_), None) => Err(ApiError::invalid(
                "auth.refresh: this credential was created without `refresh`; archive it and create another one",
            )),
        }
    }
}

impl McpOauthRefreshUpdate {
    fn apply(
        self,
        refresh: &mut McpOauthRefresh,
        secrets: &mut SecretsChange,
    ) -> Result<(), ApiError> {
        for (at, sent, stored) in [
            (
                "auth.refresh.client_id",
                self.client_id,
                Some(&refresh.client_id),
            ),
            (
                "auth.refresh.token_endpoint",
                self.token_endpoint,
                Some(&refresh.token_endpoint),
            ),
            (
                "auth.refresh.resource",
                self.resource,
                refresh.resource.as_ref(),
            ),
        ] {
            check_same(at, sent, stored)?;
        }
        secrets.refresh_token = checked("auth.refresh.refresh_token", self.refresh_token)?;
        if let Some(scope) = self.scope {
            check::text("auth.refresh.scope", &scope, 0..=MAX_PARAMETER)?;
            refresh.scope = Some(scope).filter(|scope| !scope.is_empty());
        }
        let Some(update) = self.token_endpoint_auth else {
            return Ok(());
        };
        if refresh.token_endpoint_auth.r#type == ClientAuthType::None {
            return Err(immutable("auth.refresh.token_endpoint_auth.type", "none"));
        }
        let secret = match update {
            ClientAuthUpdate::ClientSecretBasic(update) => update.client_secret,
            ClientAuthUpdate::ClientSecretPost(update) => update.client_secret,
        };
        secrets.client_secret = checked(CLIENT_SECRET, secret)?;
        Ok(())
    }
}

impl EnvironmentVariableUpdate {
    fn apply(
        self,
        auth: &mut EnvironmentVariableAuth,
        secrets: &mut SecretsChange,
    ) -> Result<(), ApiError> {
        check_same(
            "auth.secret_name",
            self.secret_name,
            Some(&auth.secret_name),
        )?;
        secrets.secret = checked("auth.secret_value", self.secret_value)?;
        if let Some(networking) = self.networking {
            check_networking(&networking)?;
            auth.networking = networking;
        }
        auth.injection_location = merge_location(self.injection_location, auth.injection_location)?;
        Ok(())
    }
}
