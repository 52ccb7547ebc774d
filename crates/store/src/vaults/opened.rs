//! Credentials with their secrets: the one way by which these leave the store.

use secrecy::{ExposeSecret, SecretString};
use selfsame_types::{
    CredentialId, SessionId, Timestamp, VaultId, WorkspaceId,
    vault::{Credential, CredentialSecrets},
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use zeroize::Zeroizing;

use super::credentials::{Row, fetch};
use crate::{Sealed, Sealer, Store, StoreError, time};

/// A credential in use with its secrets, which do not print.
#[derive(Debug, Clone)]
pub struct OpenCredential {
    pub workspace: WorkspaceId,
    /// As the API shows it.
    pub credential: Credential,
    pub secrets: CredentialSecrets,
    /// Grows when anything changes that a holder of the secrets must know of.
    pub generation: i64,
    pub refresh: RefreshState,
    /// The database's clock when it was read.
    pub now: Timestamp,
}

/// What became of refreshing a credential's token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefreshState {
    pub refreshed_at: Option<Timestamp>,
    /// Since when it fails for good: until a client changes the credential.
    pub failed_at: Option<Timestamp>,
    /// Why it failed the last time, for good or for a while. No secret.
    pub failure: Option<String>,
    /// Before this the background does not try again.
    pub next_at: Option<Timestamp>,
}

/// The words that bind the secrets to their place.
fn context(workspace: WorkspaceId, vault: VaultId, id: CredentialId) -> String {
    format!("vault_credential:{workspace}:{vault}:{id}")
}

#[derive(Serialize)]
struct Plain<'a> {
    secret: &'a str,
    refresh_token: Option<&'a str>,
    client_secret: Option<&'a str>,
}

#[derive(Deserialize)]
struct Opened {
    secret: SecretString,
    refresh_token: Option<SecretString>,
    client_secret: Option<SecretString>,
}

pub(super) async fn seal(
    sealer: &Sealer,
    workspace: WorkspaceId,
    vault: VaultId,
    id: CredentialId,
    secrets: &CredentialSecrets,
) -> Result<Sealed, StoreError> {
    let plain = Plain {
        secret: secrets.secret.expose_secret(),
        refresh_token: secrets
            .refresh_token
            .as_ref()
            .map(ExposeSecret::expose_secret),
        client_secret: secrets
            .client_secret
            .as_ref()
            .map(ExposeSecret::expose_secret),
    };
    let text = Zeroizing::new(serde_json::to_vec(&plain).expect("strings serialize"));
    Ok(sealer.seal(&text, &context(workspace, vault, id)).await?)
}

/// `None`: they were purged.
pub(super) async fn open(
    sealer: &Sealer,
    row: &Row,
) -> Result<Option<CredentialSecrets>, StoreError> {
    let (Some(ciphertext), Some(data_key), Some(master_key)) =
        (&row.ciphertext, &row.data_key, &row.master_key)
    else {
        return Ok(None);
    };
    let sealed = Sealed {
        ciphertext: ciphertext.clone(),
        data_key: data_key.clone(),
        master_key: master_key.clone(),
    };
    let id = CredentialId(row.id);
    let context = context(WorkspaceId(row.workspace_id), VaultId(row.vault_id), id);
    let text = sealer.open(&sealed, &context).await?;
    let opened: Opened = serde_json::from_slice(&text)
        // The error could name what it read.
        .map_err(|_| crate::SealError::Broken)?;
    Ok(Some(CredentialSecrets {
        secret: opened.secret,
        refresh_token: opened.refresh_token,
        client_secret: opened.client_secret,
    }))
}

/// `None`: it is archived.
pub(super) async fn open_row(
    sealer: &Sealer,
    row: &Row,
) -> Result<Option<OpenCredential>, StoreError> {
    let Some(secrets) = open(sealer, row).await? else {
        return Ok(None);
    };
    Ok(Some(OpenCredential {
        workspace: WorkspaceId(row.workspace_id),
        credential: row.shown()?,
        secrets,
        generation: row.generation,
        refresh: RefreshState {
            refreshed_at: row.refreshed_at.map(time),
            failed_at: row.refresh_failed_at.map(time),
            failure: row.refresh_failure.clone(),
            next_at: row.refresh_next_at.map(time),
        },
        now: time(row.now),
    }))
}

impl Store {
    /// The credential in use with which a session authenticates at an MCP server: of the first of its
    /// vaults that has one for this [`server_key`](selfsame_types::vault::server_key).
    ///
    /// # Errors
    /// Database faults, and a sealed value that does not open.
    pub async fn session_server_credential(
        &self,
        session: SessionId,
        server_key: &str,
    ) -> Result<Option<OpenCredential>, StoreError> {
        let ids = self
            .session_credential_ids(session, false, Some(server_key))
            .await?;
        Ok(self.open_all(&ids).await?.pop())
    }

    /// A session's variables, in the order of its vaults. Of two with one name, the first vault's.
    ///
    /// # Errors
    /// Database faults, and a sealed value that does not open.
    pub async fn session_variables(
        &self,
        session: SessionId,
    ) -> Result<Vec<OpenCredential>, StoreError> {
        let ids = self.session_credential_ids(session, true, None).await?;
        self.open_all(&ids).await
    }

    async fn session_credential_ids(
        &self,
        session: SessionId,
        variables: bool,
        key: Option<&str>,
    ) -> Result<Vec<Uuid>, StoreError> {
        Ok(sqlx::query_scalar!(
            r#"
            SELECT id AS "id!" FROM (
                SELECT DISTINCT ON (c.key) c.id, v.position, c.created_at
                FROM sessions s
                CROSS JOIN unnest(s.vault_ids) WITH ORDINALITY AS v (id, position)
                JOIN vault_credentials c ON c.vault_id = v.id AND c.workspace_id = s.workspace_id
                WHERE s.id = $1 AND s.deleted_at IS NULL AND c.archived_at IS NULL
                  AND (c.type = 'environment_variable') = $2
                  AND ($3::text IS NULL OR c.key = $3)
                ORDER BY c.key, v.position
            ) first
            ORDER BY position, created_at, id
            "#,
            session.0,
            variables,
            key,
        )
        .fetch_all(&self.pool)
        .await?)
    }

    async fn open_all(&self, ids: &[Uuid]) -> Result<Vec<OpenCredential>, StoreError> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let sealer = self.sealer()?;
        let mut credentials = Vec::with_capacity(ids.len());
        for row in fetch(&self.pool, ids).await? {
            credentials.extend(open_row(sealer, &row).await?);
        }
        Ok(credentials)
    }

    /// One credential in use of a workspace, with its secrets.
    ///
    /// # Errors
    /// Database faults, and a sealed value that does not open.
    pub async fn credential_open(
        &self,
        workspace: WorkspaceId,
        vault: VaultId,
        id: CredentialId,
    ) -> Result<Option<OpenCredential>, StoreError> {
        let found = self.open_all(&[id.0]).await?.pop();
        Ok(found.filter(|open| open.workspace == workspace && open.credential.vault_id == vault))
    }
}
