//! Vaults and the credentials in them.
//!
//! Whoever changes a vault locks its row, then those of its credentials; whoever changes one credential locks that
//! row alone, and so does whoever refreshes its token. Nobody locks the other way round.

mod credentials;
mod opened;
mod refresh;

use selfsame_types::{
    CredentialId, Metadata, Position, VaultId, WorkspaceId,
    vault::{Vault, VaultSpec, VaultType},
    webhook::{WebhookEvent, WebhookEventType},
};
use sqlx::PgConnection;
use uuid::Uuid;

pub use credentials::CREDENTIAL_KEY;
pub use opened::{OpenCredential, RefreshState};
pub use refresh::{CredentialRefresh, RefreshedTokens};

use crate::{Actor, Audit, Store, StoreError, agents::column, keys::audit, time, webhooks::emit};

/// Which vaults, or which credentials of a vault, a list shows.
#[derive(Debug, Clone)]
pub struct VaultFilter {
    pub include_archived: bool,
    /// Only what comes after this in descending order; [`Position::NEWEST`] for the first page.
    pub after: Position,
    /// Most rows.
    pub limit: usize,
}

struct Row {
    id: Uuid,
    display_name: String,
    metadata: String,
    created_at: jiff_sqlx::Timestamp,
    updated_at: jiff_sqlx::Timestamp,
    archived_at: Option<jiff_sqlx::Timestamp>,
}

impl TryFrom<Row> for Vault {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        let id = VaultId(row.id);
        let metadata: Metadata = serde_json::from_str(&row.metadata)
            .map_err(StoreError::corrupt("vaults", "metadata", id))?;
        Ok(Self {
            r#type: VaultType,
            id,
            display_name: row.display_name,
            metadata,
            created_at: time(row.created_at),
            updated_at: time(row.updated_at),
            archived_at: row.archived_at.map(time),
        })
    }
}

fn write<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value)
        .expect("metadata and settings are strings, booleans, lists and maps")
}

/// One vault, locked against every other change of it.
async fn lock(
    tx: &mut PgConnection,
    workspace: WorkspaceId,
    id: VaultId,
) -> Result<Option<Vault>, StoreError> {
    sqlx::query_as!(
        Row,
        r#"
        SELECT id, display_name, metadata, created_at, updated_at, archived_at
        FROM vaults
        WHERE workspace_id = $1 AND id = $2
        FOR UPDATE
        "#,
        workspace.0,
        id.0,
    )
    .fetch_optional(tx)
    .await?
    .map(Vault::try_from)
    .transpose()
}

/// An audit row about a vault or a credential.
async fn note(
    tx: &mut PgConnection,
    workspace: WorkspaceId,
    actor: &Actor,
    action: &'static str,
    target: impl std::fmt::Display,
    detail: serde_json::Value,
) -> Result<(), StoreError> {
    let entry = Audit {
        workspace: Some(workspace),
        actor,
        action,
        target: target.to_string(),
        detail,
    };
    audit(tx, entry).await
}

impl Store {
    /// # Errors
    /// Database faults.
    pub async fn vault_create(
        &self,
        workspace: WorkspaceId,
        spec: VaultSpec,
        actor: &Actor,
    ) -> Result<Vault, StoreError> {
        let mut tx = self.pool.begin().await?;
        let vault: Vault = sqlx::query_as!(
            Row,
            r#"
            WITH now AS MATERIALIZED (SELECT clock_timestamp() AS at)
            INSERT INTO vaults (id, workspace_id, display_name, metadata, created_at, updated_at)
            SELECT $1, $2, $3, $4, at, at FROM now
            RETURNING id, display_name, metadata, created_at, updated_at, archived_at
            "#,
            VaultId::new().0,
            workspace.0,
            spec.display_name,
            write(&spec.metadata),
        )
        .fetch_one(&mut *tx)
        .await?
        .try_into()?;
        let detail = serde_json::json!({"display_name": vault.display_name});
        note(&mut tx, workspace, actor, "vault.create", vault.id, detail).await?;
        let told = [WebhookEvent::new(WebhookEventType::VaultCreated, vault.id)];
        let hooked = emit(&mut tx, self, workspace, Some(vault.created_at), &told).await?;
        tx.commit().await?;
        self.emitted(hooked);
        Ok(vault)
    }

    /// # Errors
    /// Database faults.
    pub async fn vault_get(
        &self,
        workspace: WorkspaceId,
        id: VaultId,
    ) -> Result<Option<Vault>, StoreError> {
        sqlx::query_as!(
            Row,
            r#"
            SELECT id, display_name, metadata, created_at, updated_at, archived_at
            FROM vaults
            WHERE workspace_id = $1 AND id = $2
            "#,
            workspace.0,
            id.0,
        )
        .fetch_optional(&self.pool)
        .await?
        .map(Vault::try_from)
        .transpose()
    }

    /// Those of these vaults that the workspace has, each with whether it is archived.
    ///
    /// # Errors
    /// Database faults.
    pub async fn vaults_known(
        &self,
        workspace: WorkspaceId,
        ids: &[VaultId],
    ) -> Result<Vec<(VaultId, bool)>, StoreError> {
        let ids: Vec<Uuid> = ids.iter().map(|id| id.0).collect();
        let rows = sqlx::query!(
            r#"
            SELECT id, archived_at IS NOT NULL AS "archived!"
            FROM vaults WHERE workspace_id = $1 AND id = ANY ($2)
            "#,
            workspace.0,
            &ids,
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(rows
            .into_iter()
            .map(|row| (VaultId(row.id), row.archived))
            .collect())
    }

    /// Newest first.
    ///
    /// # Errors
    /// Database faults.
    pub async fn vault_list(
        &self,
        workspace: WorkspaceId,
        filter: &VaultFilter,
    ) -> Result<Vec<Vault>, StoreError> {
        sqlx::query_as!(
            Row,
            r#"
            SELECT id, display_name, metadata, created_at, updated_at, archived_at
            FROM vaults
            WHERE workspace_id = $1 AND ($2 OR archived_at IS NULL)
                AND (created_at, id) < ($3, $4)
            ORDER BY created_at DESC, id DESC
            LIMIT $5
            "#,
            workspace.0,
            filter.include_archived,
            column(filter.after.created_at) as _,
            filter.after.id,
            i64::try_from(filter.limit).unwrap_or(i64::MAX),
        )
        .fetch_all(&self.pool)
        .await?
        .into_iter()
        .map(Vault::try_from)
        .collect()
    }

    /// Saves what `change` makes of the vault. While `change` decides, no other change of it does.
    /// Nothing is saved when it returns what is there already, or an error. `None`: there is no such
    /// vault.
    ///
    /// # Errors
    /// Database faults, and what `change` refuses.
    pub async fn vault_update<E: From<StoreError>>(
        &self,
        workspace: WorkspaceId,
        id: VaultId,
        actor: &Actor,
        change: impl FnOnce(&Vault) -> Result<VaultSpec, E> + Send,
    ) -> Result<Option<Vault>, E> {
        let mut tx = self.pool.begin().await.map_err(StoreError::from)?;
        let Some(current) = lock(&mut tx, workspace, id).await? else {
            return Ok(None);
        };
        let spec = change(&current)?;
        if spec == current.spec() {
            return Ok(Some(current));
        }
        let row = sqlx::query_as!(
            Row,
            r#"
            UPDATE vaults
            SET display_name = $2, metadata = $3, updated_at = clock_timestamp()
            WHERE id = $1
            RETURNING id, display_name, metadata, created_at, updated_at, archived_at
            "#,
            id.0,
            spec.display_name,
            write(&spec.metadata),
        )
        .fetch_one(&mut *tx)
        .await
        .map_err(StoreError::from)?;
        let detail = serde_json::json!({"display_name": spec.display_name});
        note(&mut tx, workspace, actor, "vault.update", id, detail).await?;
        tx.commit().await.map_err(StoreError::from)?;
        Ok(Some(row.try_into()?))
    }

    /// Archives a vault for good, and with it the credentials that it has in use: their secrets are
    /// gone. A vault that is archived already stays as it is.
    ///
    /// # Errors
    /// Database faults.
    pub async fn vault_archive(
        &self,
        workspace: WorkspaceId,
        id: VaultId,
        actor: &Actor,
    ) -> Result<Option<Vault>, StoreError> {
        let mut tx = self.pool.begin().await?;
        let Some(current) = lock(&mut tx, workspace, id).await? else {
            return Ok(None);
        };
        if current.archived_at.is_some() {
            return Ok(Some(current));
        }
        let ids = sqlx::query_scalar!(
            r#"
            SELECT id FROM vault_credentials
            WHERE vault_id = $1 AND archived_at IS NULL
            ORDER BY created_at, id
            "#,
            id.0,
        )
        .fetch_all(&mut *tx)
        .await?;
        let mut told = Vec::new();
        for credential in ids.into_iter().map(CredentialId) {
            credentials::archive(&mut tx, workspace, id, credential, actor).await?;
            let event = WebhookEvent::new(WebhookEventType::VaultCredentialArchived, credential);
            told.push(event.vault(id));
        }
        told.push(WebhookEvent::new(WebhookEventType::VaultArchived, id));
        let row = sqlx::query_as!(
            Row,
            r#"
            WITH now AS MATERIALIZED (SELECT clock_timestamp() AS at)
            UPDATE vaults SET archived_at = now.at, updated_at = now.at
            FROM now
            WHERE id = $1
            RETURNING id, display_name, metadata, created_at, updated_at, archived_at
            "#,
            id.0,
        )
        .fetch_one(&mut *tx)
        .await?;
        let detail = serde_json::json!({});
        note(&mut tx, workspace, actor, "vault.archive", id, detail).await?;
        let hooked = emit(&mut tx, self, workspace, Some(time(row.updated_at)), &told).await?;
        tx.commit().await?;
        self.emitted(hooked);
        Ok(Some(row.try_into()?))
    }

    /// Deletes a vault with all its credentials. `false`: there is no such vault.
    ///
    /// # Errors
    /// Database faults.
    pub async fn vault_delete(
        &self,
        workspace: WorkspaceId,
        id: VaultId,
        actor: &Actor,
    ) -> Result<bool, StoreError> {
        let mut tx = self.pool.begin().await?;
        if lock(&mut tx, workspace, id).await?.is_none() {
            return Ok(false);
        }
        let ids = sqlx::query_scalar!(
            "SELECT id FROM vault_credentials WHERE vault_id = $1 ORDER BY created_at, id",
            id.0,
        )
        .fetch_all(&mut *tx)
        .await?;
        let mut told = Vec::new();
        for credential in ids.into_iter().map(CredentialId) {
            credentials::delete(&mut tx, workspace, id, credential, actor).await?;
            let event = WebhookEvent::new(WebhookEventType::VaultCredentialDeleted, credential);
            told.push(event.vault(id));
        }
        told.push(WebhookEvent::new(WebhookEventType::VaultDeleted, id));
        sqlx::query!("DELETE FROM vaults WHERE id = $1", id.0)
            .execute(&mut *tx)
            .await?;
        let detail = serde_json::json!({});
        note(&mut tx, workspace, actor, "vault.delete", id, detail).await?;
        let hooked = emit(&mut tx, self, workspace, None, &told).await?;
        tx.commit().await?;
        self.emitted(hooked);
        Ok(true)
    }
}

#[cfg(test)]
mod tests;
