//! What `mcp_oauth_validate` answers.

use serde::Serialize;
use utoipa::ToSchema;

use crate::{CredentialId, Timestamp, VaultId, wire};

wire::literals! {
    CredentialValidationType = "vault_credential_validation";
}

/// What came of trying an `mcp_oauth` credential.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct CredentialValidation {
    #[schema(inline)]
    pub r#type: CredentialValidationType,
    pub credential_id: CredentialId,
    pub vault_id: VaultId,
    pub validated_at: Timestamp,
    pub has_refresh_token: bool,
    pub status: ValidationStatus,
    /// The step that failed. Null when all went well.
    #[schema(required)]
    pub mcp_probe: Option<McpProbe>,
    /// Null when no refresh was tried.
    #[schema(required)]
    pub refresh: Option<RefreshAttempt>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ValidationStatus {
    Valid,
    /// It was refused.
    Invalid,
    /// Nobody could be asked.
    Unknown,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct McpProbe {
    /// Of MCP: `initialize`, `tools/list`.
    pub method: String,
    /// Null when there was none.
    #[schema(required)]
    pub http_response: Option<ProbeResponse>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct RefreshAttempt {
    pub status: RefreshStatus,
    /// Only of a failed one.
    #[schema(required)]
    pub http_response: Option<ProbeResponse>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RefreshStatus {
    Succeeded,
    Failed,
    ConnectError,
    NoRefreshToken,
}

/// What a server said, without secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct ProbeResponse {
    pub status_code: u16,
    pub content_type: String,
    pub body: String,
    pub body_truncated: bool,
}
