//! `mcp_oauth_validate`: whether a credential works, tried where it is used.

use secrecy::{ExposeSecret as _, SecretString};
use selfsame_store::OpenCredential;
use selfsame_types::{
    ApiError, CredentialId, VaultId, WorkspaceId,
    vault::{
        CredentialAuth, CredentialValidation, CredentialValidationType, McpProbe, RefreshAttempt,
        RefreshStatus, ValidationStatus,
    },
};
use url::Url;

use super::{
    Vaults, VaultsError,
    probe::{self, Failed},
    refresh::{Attempt, Why},
    scrub::Scrubber,
    token,
};

/// Why there is no validation.
#[derive(Debug, thiserror::Error)]
pub enum ValidateError {
    #[error(transparent)]
    Api(#[from] ApiError),
    #[error(transparent)]
    Vaults(#[from] VaultsError),
}

impl From<selfsame_store::StoreError> for ValidateError {
    fn from(error: selfsame_store::StoreError) -> Self {
        Self::Vaults(error.into())
    }
}

/// What was found out.
struct Findings {
    status: ValidationStatus,
    mcp_probe: Option<McpProbe>,
    refresh: Option<RefreshAttempt>,
}

impl Vaults {
    /// Probes the MCP server of an `mcp_oauth` credential with its access token, refreshing it once if it is
    /// refused. `None`: there is no such credential.
    ///
    /// # Errors
    /// [`ApiError`] for credentials of another type and for archived ones; faults of ours.
    pub async fn validate(
        &self,
        workspace: WorkspaceId,
        vault: VaultId,
        id: CredentialId,
    ) -> Result<Option<CredentialValidation>, ValidateError> {
        let store = &self.0.store;
        let Some(shown) = store.credential_get(workspace, vault, id).await? else {
            return Ok(None);
        };
        let CredentialAuth::McpOauth(auth) = &shown.auth else {
            return Err(ApiError::invalid(format!(
                "only credentials of type `mcp_oauth` can be validated, and `{id}` is of type `{}`",
                shown.auth.kind().as_str()
            ))
            .into());
        };
        let Some(open) = store.credential_open(workspace, vault, id).await? else {
            return Err(ApiError::invalid(format!(
                "credential `{id}` is archived and its secrets are gone; create another one"
            ))
            .into());
        };
        let url = auth.mcp_server_url.parse();
        let url: Url = url.map_err(|_| ApiError::invalid("`mcp_server_url` is not a URL"))?;
        let validated_at = store.now().await?;
        let findings = self.find_out(&open, &url).await?;
        let label = match findings.status {
            ValidationStatus::Valid => "valid",
            ValidationStatus::Invalid => "invalid",
            ValidationStatus::Unknown => "unknown",
        };
        metrics::counter!("selfsame_vault_validations_total", "status" => label).increment(1);
        Ok(Some(CredentialValidation {
            r#type: CredentialValidationType,
            credential_id: id,
            vault_id: vault,
            validated_at,
            has_refresh_token: open.secrets.refresh_token.is_some(),
            status: findings.status,
            mcp_probe: findings.mcp_probe,
            refresh: findings.refresh,
        }))
    }

    async fn find_out(&self, open: &OpenCredential, url: &Url) -> Result<Findings, VaultsError> {
        let probe = async |token: &SecretString| probe::probe(&self.0.client, url, token).await;
        let mut secrets = secrets(open);
        let failed = match probe(&open.secrets.secret).await {
            Ok(()) => return Ok(Findings::of(ValidationStatus::Valid, None, None)),
            Err(failed) => failed,
        };
        if failed.status() != 401 {
            let probe = show(&failed, &secrets);
            return Ok(Findings::of(verdict(&failed), Some(probe), None));
        }
        let attempt = self.refresh(open, Why::Validation).await?;
        let (status, refresh) = match attempt {
            Attempt::Fresh(fresh) => {
                secrets.extend(self::secrets(&fresh));
                let refresh = tried(RefreshStatus::Succeeded);
                return Ok(match probe(&fresh.secrets.secret).await {
                    Ok(()) => Findings::of(ValidationStatus::Valid, None, Some(refresh)),
                    Err(failed) => {
                        let probe = show(&failed, &secrets);
                        Findings::of(verdict(&failed), Some(probe), Some(refresh))
                    }
                });
            }
            Attempt::Failed(failure) => {
                let status = if failure.is_permanent {
                    ValidationStatus::Invalid
                } else {
                    ValidationStatus::Unknown
                };
                let http_response = failure
                    .answer
                    .map(|answer| scrubber(&secrets).show(&answer));
                let refresh = match http_response {
                    Some(_) => RefreshAttempt {
                        status: RefreshStatus::Failed,
                        http_response,
                    },
                    None => tried(RefreshStatus::ConnectError),
                };
                (status, Some(refresh))
            }
            Attempt::Impossible => (
                ValidationStatus::Invalid,
                Some(tried(RefreshStatus::NoRefreshToken)),
            ),
            // Archived or deleted since it was read.
            Attempt::Gone | Attempt::Resting => (ValidationStatus::Invalid, None),
        };
        let probe = show(&failed, &secrets);
        Ok(Findings::of(status, Some(probe), refresh))
    }
}

impl Findings {
    fn of(
        status: ValidationStatus,
        mcp_probe: Option<McpProbe>,
        refresh: Option<RefreshAttempt>,
    ) -> Self {
        Self {
            status,
            mcp_probe,
            refresh,
        }
    }
}

/// The token was refused, or nothing is said of it.
fn verdict(failed: &Failed) -> ValidationStatus {
    match failed.status() {
        401 | 403 => ValidationStatus::Invalid,
        _ => ValidationStatus::Unknown,
    }
}

fn tried(status: RefreshStatus) -> RefreshAttempt {
    RefreshAttempt {
        status,
        http_response: None,
    }
}

fn show(failed: &Failed, secrets: &[SecretString]) -> McpProbe {
    McpProbe {
        method: failed.method.to_owned(),
        http_response: failed
            .answer
            .as_ref()
            .map(|answer| scrubber(secrets).show(answer)),
    }
}

fn scrubber(secrets: &[SecretString]) -> Scrubber {
    Scrubber::new(secrets.iter().map(|secret| secret.expose_secret()))
}

/// Everything that a server may have been shown.
fn secrets(open: &OpenCredential) -> Vec<SecretString> {
    let mut secrets = vec![open.secrets.secret.clone()];
    secrets.extend(open.secrets.refresh_token.clone());
    if let Some(secret) = &open.secrets.client_secret {
        secrets.push(secret.clone());
        if let CredentialAuth::McpOauth(auth) = &open.credential.auth
            && let Some(refresh) = &auth.refresh
        {
            let pair = token::basic_pair(&refresh.client_id, secret.expose_secret());
            secrets.push(SecretString::from(pair));
        }
    }
    secrets
}
