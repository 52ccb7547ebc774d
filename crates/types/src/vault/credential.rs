//! Credentials as the API shows them: everything but the secrets.

use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    CredentialId, Metadata, Timestamp, VaultId,
    environment::{LimitedType, UnrestrictedNetwork},
    wire,
};

wire::literals! {
    CredentialType = "vault_credential";
    CredentialDeletedType = "vault_credential_deleted";
    StaticBearerType = "static_bearer";
    McpOauthType = "mcp_oauth";
    EnvironmentVariableType = "environment_variable";
}

/// A credential, as the API shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Credential {
    #[schema(inline)]
    pub r#type: CredentialType,
    pub id: CredentialId,
    pub vault_id: VaultId,
    #[schema(required)]
    pub display_name: Option<String>,
    pub metadata: Metadata,
    pub auth: CredentialAuth,
    pub created_at: Timestamp,
    /// Of the last change by a client; refreshing a token is none.
    pub updated_at: Timestamp,
    #[schema(required)]
    pub archived_at: Option<Timestamp>,
}

/// The answer to a deletion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct DeletedCredential {
    pub id: CredentialId,
    #[schema(inline)]
    pub r#type: CredentialDeletedType,
}

/// How a credential authenticates, without the secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(untagged)]
#[schema(discriminator(property_name = "type", mapping(
    ("static_bearer" = "#/components/schemas/StaticBearerAuth"),
    ("mcp_oauth" = "#/components/schemas/McpOauthAuth"),
    ("environment_variable" = "#/components/schemas/EnvironmentVariableAuth"),
)))]
pub enum CredentialAuth {
    StaticBearer(StaticBearerAuth),
    McpOauth(McpOauthAuth),
    EnvironmentVariable(EnvironmentVariableAuth),
}

wire::tagged_union! { CredentialAuth:
    "static_bearer" => StaticBearer,
    "mcp_oauth" => McpOauth,
    "environment_variable" => EnvironmentVariable,
}

/// The three kinds of credentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CredentialKind {
    StaticBearer,
    McpOauth,
    EnvironmentVariable,
}

impl CredentialKind {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::StaticBearer => "static_bearer",
            Self::McpOauth => "mcp_oauth",
            Self::EnvironmentVariable => "environment_variable",
        }
    }
}

impl CredentialAuth {
    #[must_use]
    pub fn kind(&self) -> CredentialKind {
        match self {
            Self::StaticBearer(_) => CredentialKind::StaticBearer,
            Self::McpOauth(_) => CredentialKind::McpOauth,
            Self::EnvironmentVariable(_) => CredentialKind::EnvironmentVariable,
        }
    }
}

/// A token that an MCP server takes as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StaticBearerAuth {
    #[schema(inline)]
    pub r#type: StaticBearerType,
    pub mcp_server_url: String,
}

/// An access token for an MCP server, and perhaps the means to get the next one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct McpOauthAuth {
    #[schema(inline)]
    pub r#type: McpOauthType,
    pub mcp_server_url: String,
    #[serde(default)]
    #[schema(required)]
    pub expires_at: Option<Timestamp>,
    #[schema(required)]
    pub refresh: Option<McpOauthRefresh>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct McpOauthRefresh {
    pub client_id: String,
    pub token_endpoint: String,
    pub token_endpoint_auth: ClientAuth,
    #[schema(required)]
    pub resource: Option<String>,
    #[schema(required)]
    pub scope: Option<String>,
}

/// How the client shows the token endpoint who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ClientAuth {
    pub r#type: ClientAuthType,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ClientAuthType {
    None,
    ClientSecretBasic,
    ClientSecretPost,
}

/// A value that programs in the sandbox use without ever having it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EnvironmentVariableAuth {
    #[schema(inline)]
    pub r#type: EnvironmentVariableType,
    pub secret_name: String,
    pub networking: CredentialNetworking,
    pub injection_location: InjectionLocation,
}

/// Where the value may go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(untagged)]
#[schema(discriminator(property_name = "type", mapping(
    ("unrestricted" = "#/components/schemas/UnrestrictedNetwork"),
    ("limited" = "#/components/schemas/LimitedCredentialNetworking"),
)))]
pub enum CredentialNetworking {
    /// To any host that the session's environment lets it reach.
    Unrestricted(UnrestrictedNetwork),
    Limited(LimitedCredentialNetworking),
}

wire::tagged_union! { CredentialNetworking:
    "unrestricted" => Unrestricted,
    "limited" => Limited,
}

/// To these hosts alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LimitedCredentialNetworking {
    #[schema(inline)]
    pub r#type: LimitedType,
    /// Host names, IPv4 addresses, or `*.` and a host name. No scheme, port or path.
    #[schema(max_items = 16)]
    pub allowed_hosts: Vec<String>,
}

/// Where in a request the value may stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InjectionLocation {
    pub header: bool,
    pub body: bool,
}

/// The half of a credential that the API takes and never gives. It does not print.
#[derive(Debug, Clone)]
pub struct CredentialSecrets {
    /// The bearer token, the access token, or the variable's value.
    pub secret: SecretString,
    /// Of `mcp_oauth`, where there is a `refresh`.
    pub refresh_token: Option<SecretString>,
    /// Of `mcp_oauth`, where the token endpoint wants one.
    pub client_secret: Option<SecretString>,
}
