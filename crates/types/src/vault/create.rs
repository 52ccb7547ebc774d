//! Credentials as requests name them.

use secrecy::SecretString;
use serde::Deserialize;
use utoipa::ToSchema;

use super::{
    ClientAuth, ClientAuthType, CredentialAuth, CredentialNetworking, CredentialSecrets,
    EnvironmentVariableAuth, EnvironmentVariableType, InjectionLocation, McpOauthAuth,
    McpOauthRefresh, McpOauthType, StaticBearerAuth, StaticBearerType,
    rules::{
        CLIENT_SECRET, MAX_DISPLAY_NAME, MAX_NAME, MAX_PARAMETER, check_expiry, check_networking,
        check_secret, merge_location,
    },
    server_key, server_url,
};
use crate::{ApiError, Metadata, Patch, Timestamp, check, wire};

wire::literals! {
    NoneType = "none";
    ClientSecretBasicType = "client_secret_basic";
    ClientSecretPostType = "client_secret_post";
}

/// The body of `POST /v1/vaults/{vault_id}/credentials`.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateCredential {
    pub auth: CredentialAuthParams,
    #[schema(max_length = 255)]
    pub display_name: Option<String>,
    #[serde(default)]
    pub metadata: Metadata,
}

#[derive(Debug, Clone, ToSchema)]
#[schema(discriminator(property_name = "type", mapping(
    ("static_bearer" = "#/components/schemas/StaticBearerParams"),
    ("mcp_oauth" = "#/components/schemas/McpOauthParams"),
    ("environment_variable" = "#/components/schemas/EnvironmentVariableParams"),
)))]
#[serde(untagged)]
pub enum CredentialAuthParams {
    StaticBearer(StaticBearerParams),
    McpOauth(McpOauthParams),
    EnvironmentVariable(EnvironmentVariableParams),
}

wire::tagged_union! { CredentialAuthParams:
    "static_bearer" => StaticBearer,
    "mcp_oauth" => McpOauth,
    "environment_variable" => EnvironmentVariable,
}

#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StaticBearerParams {
    #[schema(inline)]
    pub r#type: StaticBearerType,
    #[schema(min_length = 1, max_length = 2048)]
    pub mcp_server_url: String,
    /// Write-only.
    #[schema(value_type = String, min_length = 1, max_length = 16384)]
    pub token: SecretString,
}

#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct McpOauthParams {
    #[schema(inline)]
    pub r#type: McpOauthType,
    #[schema(min_length = 1, max_length = 2048)]
    pub mcp_server_url: String,
    /// Write-only.
    #[schema(value_type = String, min_length = 1, max_length = 16384)]
    pub access_token: SecretString,
    /// Of the access token; in the future.
    pub expires_at: Option<Timestamp>,
    pub refresh: Option<McpOauthRefreshParams>,
}

#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct McpOauthRefreshParams {
    #[schema(min_length = 1, max_length = 2048)]
    pub client_id: String,
    /// Write-only.
    #[schema(value_type = String, min_length = 1, max_length = 16384)]
    pub refresh_token: SecretString,
    #[schema(min_length = 1, max_length = 2048)]
    pub token_endpoint: String,
    pub token_endpoint_auth: ClientAuthParams,
    /// As in RFC 8707.
    #[schema(max_length = 2048)]
    pub resource: Option<String>,
    #[schema(max_length = 2048)]
    pub scope: Option<String>,
}

#[derive(Debug, Clone, ToSchema)]
#[schema(discriminator(property_name = "type", mapping(
    ("none" = "#/components/schemas/NoClientAuthParams"),
    ("client_secret_basic" = "#/components/schemas/ClientSecretBasicParams"),
    ("client_secret_post" = "#/components/schemas/ClientSecretPostParams"),
)))]
#[serde(untagged)]
pub enum ClientAuthParams {
    None(NoClientAuthParams),
    ClientSecretBasic(ClientSecretBasicParams),
    ClientSecretPost(ClientSecretPostParams),
}

wire::tagged_union! { ClientAuthParams:
    "none" => None,
    "client_secret_basic" => ClientSecretBasic,
    "client_secret_post" => ClientSecretPost,
}

/// The client shows the token endpoint nothing.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NoClientAuthParams {
    #[schema(inline)]
    pub r#type: NoneType,
}

/// HTTP Basic.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ClientSecretBasicParams {
    #[schema(inline)]
    pub r#type: ClientSecretBasicType,
    /// Write-only.
    #[schema(value_type = String, min_length = 1, max_length = 16384)]
    pub client_secret: SecretString,
}

/// In the body of the request.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ClientSecretPostParams {
    #[schema(inline)]
    pub r#type: ClientSecretPostType,
    /// Write-only.
    #[schema(value_type = String, min_length = 1, max_length = 16384)]
    pub client_secret: SecretString,
}

#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EnvironmentVariableParams {
    #[schema(inline)]
    pub r#type: EnvironmentVariableType,
    #[schema(min_length = 1, max_length = 255, pattern = "^[A-Za-z_][A-Za-z0-9_]*$")]
    pub secret_name: String,
    /// Write-only.
    #[schema(value_type = String, min_length = 1, max_length = 16384)]
    pub secret_value: SecretString,
    pub networking: CredentialNetworking,
    /// Without it, everywhere.
    #[serde(default)]
    #[schema(value_type = InjectionLocationParams, required = false)]
    pub injection_location: Patch<InjectionLocationParams>,
}

/// At least one must be true. On creation, a place that is not named is false; later, it stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InjectionLocationParams {
    #[serde(default)]
    #[schema(value_type = bool, required = false)]
    pub header: Patch<bool>,
    #[serde(default)]
    #[schema(value_type = bool, required = false)]
    pub body: Patch<bool>,
}

/// The part of a credential that requests decide, without the secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CredentialSpec {
    pub display_name: Option<String>,
    pub metadata: Metadata,
    pub auth: CredentialAuth,
}

/// A checked [`CreateCredential`].
#[derive(Debug, Clone)]
pub struct NewCredential {
    pub spec: CredentialSpec,
    /// What no two credentials in use of a vault share.
    pub key: String,
    pub secrets: CredentialSecrets,
}

impl CreateCredential {
    /// Checks everything and fills in defaults.
    pub fn resolve(self, now: Timestamp) -> Result<NewCredential, ApiError> {
        if let Some(name) = &self.display_name {
            check::text("display_name", name, 0..=MAX_DISPLAY_NAME)?;
        }
        self.metadata.validate()?;
        let (auth, key, secrets) = match self.auth {
            CredentialAuthParams::StaticBearer(params) => params.resolve(),
            CredentialAuthParams::McpOauth(params) => params.resolve(now),
            CredentialAuthParams::EnvironmentVariable(params) => params.resolve(),
        }?;
        Ok(NewCredential {
            spec: CredentialSpec {
                display_name: self.display_name,
                metadata: self.metadata,
                auth,
            },
            key,
            secrets,
        })
    }
}

type Resolved = (CredentialAuth, String, CredentialSecrets);

impl StaticBearerParams {
    fn resolve(self) -> Result<Resolved, ApiError> {
        let url = server_url::parse("auth.mcp_server_url", &self.mcp_server_url)?;
        check_secret("auth.token", &self.token)?;
        let auth = StaticBearerAuth {
            r#type: StaticBearerType,
            mcp_server_url: self.mcp_server_url,
        };
        let secrets = CredentialSecrets {
            secret: self.token,
            refresh_token: None,
            client_secret: None,
        };
        Ok((
            CredentialAuth::StaticBearer(auth),
            server_key(&url),
            secrets,
        ))
    }
}

impl McpOauthParams {
    fn resolve(self, now: Timestamp) -> Result<Resolved, ApiError> {
        let url = server_url::parse("auth.mcp_server_url", &self.mcp_server_url)?;
        check_secret("auth.access_token", &self.access_token)?;
        let expires_at = self
            .expires_at
            .map(|at| check_expiry(at, now))
            .transpose()?;
        let (mut refresh_token, mut client_secret) = (None, None);
        let refresh = match self.refresh {
            None => None,
            Some(params) => {
                let at = "auth.refresh";
                check::text(
                    format_args!("{at}.client_id"),
                    &params.client_id,
                    1..=MAX_PARAMETER,
                )?;
                check_secret("auth.refresh.refresh_token", &params.refresh_token)?;
                server_url::parse("auth.refresh.token_endpoint", &params.token_endpoint)?;
                for (name, value) in [("resource", &params.resource), ("scope", &params.scope)] {
                    if let Some(value) = value {
                        check::text(format_args!("{at}.{name}"), value, 0..=MAX_PARAMETER)?;
                    }
                }
                let auth_type;
                (auth_type, client_secret) = match params.token_endpoint_auth {
                    ClientAuthParams::None(_) => (ClientAuthType::None, None),
                    ClientAuthParams::ClientSecretBasic(auth) => {
                        (ClientAuthType::ClientSecretBasic, Some(auth.client_secret))
                    }
                    ClientAuthParams::ClientSecretPost(auth) => {
                        (ClientAuthType::ClientSecretPost, Some(auth.client_secret))
                    }
                };
                if let Some(secret) = &client_secret {
                    check_secret(CLIENT_SECRET, secret)?;
                }
                refresh_token = Some(params.refresh_token);
                Some(McpOauthRefresh {
                    client_id: params.client_id,
                    token_endpoint: params.token_endpoint,
                    token_endpoint_auth: ClientAuth { r#type: auth_type },
                    resource: params.resource.filter(|resource| !resource.is_empty()),
                    scope: params.scope.filter(|scope| !scope.is_empty()),
                })
            }
        };
        let auth = McpOauthAuth {
            r#type: McpOauthType,
            mcp_server_url: self.mcp_server_url,
            expires_at,
            refresh,
        };
        let secrets = CredentialSecrets {
            secret: self.access_token,
            refresh_token,
            client_secret,
        };
        Ok((CredentialAuth::McpOauth(auth), server_key(&url), secrets))
    }
}

impl EnvironmentVariableParams {
    fn resolve(self) -> Result<Resolved, ApiError> {
        let name = &self.secret_name;
        check::text("auth.secret_name", name, 1..=MAX_NAME)?;
        let letter = |c: char| c.is_ascii_alphabetic() || c == '_';
        if !name.starts_with(letter) || !name.chars().all(|c| letter(c) || c.is_ascii_digit()) {
            return Err(ApiError::invalid(
                "auth.secret_name: must be the name of a variable: letters A-Z and a-z, digits and `_`, not \
                 beginning with a digit",
            ));
        }
        check_secret("auth.secret_value", &self.secret_value)?;
        check_networking(&self.networking)?;
        let nowhere = InjectionLocation {
            header: false,
            body: false,
        };
        let injection_location = match self.injection_location {
            Patch::Absent => InjectionLocation {
                header: true,
                body: true,
            },
            given => merge_location(given, nowhere)?,
        };
        let key = self.secret_name.clone();
        let auth = EnvironmentVariableAuth {
            r#type: EnvironmentVariableType,
            secret_name: self.secret_name,
            networking: self.networking,
            injection_location,
        };
        let secrets = CredentialSecrets {
            secret: self.secret_value,
            refresh_token: None,
            client_secret: None,
        };
        Ok((CredentialAuth::EnvironmentVariable(auth), key, secrets))
    }
}
