//! What clients do to credentials.

use selfsame_types::{
    CredentialId, Metadata, Timestamp, VaultId, WorkspaceId,
    vault::{Credential, CredentialAuth, CredentialChange, CredentialType, NewCredential, Vault},
    webhook::{WebhookEvent, WebhookEventType},
};
use sqlx::{PgConnection, PgExecutor};
use uuid::Uuid;

use super::{VaultFilter, lock, note, opened, write};
use crate::{Actor, Store, StoreError, agents::column, time, webhooks::emit};

/// The constraint that keeps the keys of a vault's credentials apart.
pub const CREDENTIAL_KEY: &str = "vault_credentials_key_key";

/// Everything of a credential.
pub(super) struct Row {
    pub(super) id: Uuid,
    pub(super) vault_id: Uuid,
    pub(super) workspace_id: Uuid,
    pub(super) display_name: Option<String>,
    pub(super) metadata: String,
    pub(super) auth: String,
    pub(super) expires_at: Option<jiff_sqlx::Timestamp>,
    pub(super) ciphertext: Option<Vec<u8>>,
    pub(super) data_key: Option<Vec<u8>>,
    pub(super) master_key: Option<String>,
    pub(super) generation: i64,
    pub(super) refreshed_at: Option<jiff_sqlx::Timestamp>,
    pub(super) refresh_failed_at: Option<jiff_sqlx::Timestamp>,
    pub(super) refresh_failure: Option<String>,
    pub(super) refresh_next_at: Option<jiff_sqlx::Timestamp>,
    pub(super) created_at: jiff_sqlx::Timestamp,
    pub(super) updated_at: jiff_sqlx::Timestamp,
    pub(super) archived_at: Option<jiff_sqlx::Timestamp>,
    pub(super) now: jiff_sqlx::Timestamp,
}

impl Row {
    /// What the API shows of it.
    pub(super) fn shown(&self) -> Result<Credential, StoreError> {
        let id = CredentialId(self.id);
        let corrupt = |column| StoreError::corrupt("vault_credentials", column, id);
        let metadata: Metadata =
            serde_json::from_str(&self.metadata).map_err(corrupt("metadata"))?;
        let mut auth: CredentialAuth = serde_json::from_str(&self.auth).map_err(corrupt("auth"))?;
        if let CredentialAuth::McpOauth(oauth) = &mut auth {
            oauth.expires_at = self.expires_at.map(time);
        }
        Ok(Credential {
            r#type: CredentialType,
            id,
            vault_id: VaultId(self.vault_id),
            display_name: self.display_name.clone(),
            metadata,
            auth,
            created_at: time(self.created_at),
            updated_at: time(self.updated_at),
            archived_at: self.archived_at.map(time),
        })
    }
}

/// These credentials, in this order; those that are not there are left out.
pub(super) async fn fetch(
    executor: impl PgExecutor<'_>,
    ids: &[Uuid],
) -> Result<Vec<Row>, sqlx::Error> {
    sqlx::query_as!(
        Row,
        r#"
        SELECT id, vault_id, workspace_id, display_name, metadata, auth, expires_at,
               ciphertext, data_key, master_key, generation, refreshed_at, refresh_failed_at,
               refresh_failure, refresh_next_at, created_at, updated_at, archived_at,
               clock_timestamp() AS "now!: jiff_sqlx::Timestamp"
        FROM vault_credentials
        WHERE id = ANY ($1)
        ORDER BY array_position($1, id)
        "#,
        ids,
    )
    .fetch_all(executor)
    .await
}

async fn fetch_one(executor: impl PgExecutor<'_>, id: CredentialId) -> Result<Row, StoreError> {
    let row = fetch(executor, &[id.0]).await?.pop();
    Ok(row.ok_or(sqlx::Error::RowNotFound)?)
}

/// `auth` as it is stored, and the expiry, which is stored beside it.
fn split(auth: &CredentialAuth) -> (String, Option<Timestamp>) {
    match auth {
        CredentialAuth::McpOauth(oauth) => {
            let mut oauth = oauth.clone();
            let expires_at = oauth.expires_at.take();
            (write(&oauth), expires_at)
        }
        other => (write(other), None),
    }
}

fn refreshable(auth: &CredentialAuth) -> bool {
    matches!(auth, CredentialAuth::McpOauth(oauth) if oauth.refresh.is_some())
}

/// Archives one credential of a vault and purges its secrets. `false`: none that is in use.
pub(super) async fn archive(
    tx: &mut PgConnection,
    workspace: WorkspaceId,
    vault: VaultId,
    id: CredentialId,
    actor: &Actor,
) -> Result<bool, StoreError> {
    let done = sqlx::query!(
        r#"
        WITH now AS MATERIALIZED (SELECT clock_timestamp() AS at)
        UPDATE vault_credentials
        SET archived_at = now.at, updated_at = now.at, generation = generation + 1,
            ciphertext = NULL, data_key = NULL, master_key = NULL
        FROM now
        WHERE id = $1 AND vault_id = $2 AND workspace_id = $3 AND archived_at IS NULL
        "#,
        id.0,
        vault.0,
        workspace.0,
    )
    .execute(&mut *tx)
    .await?;
    if done.rows_affected() == 0 {
        return Ok(false);
    }
    let detail = serde_json::json!({"vault": vault});
    note(tx, workspace, actor, "vault_credential.archive", id, detail).await?;
    Ok(true)
}

/// Deletes one credential of a vault. `false`: there is none.
pub(super) async fn delete(
    tx: &mut PgConnection,
    workspace: WorkspaceId,
    vault: VaultId,
    id: CredentialId,
    actor: &Actor,
) -> Result<bool, StoreError> {
    let done = sqlx::query!(
        "DELETE FROM vault_credentials WHERE id = $1 AND vault_id = $2 AND workspace_id = $3",
        id.0,
        vault.0,
        workspace.0,
    )
    .execute(&mut *tx)
    .await?;
    if done.rows_affected() == 0 {
        return Ok(false);
    }
    let detail = serde_json::json!({"vault": vault});
    note(tx, workspace, actor, "vault_credential.delete", id, detail).await?;
    Ok(true)
}

impl Store {
    /// Saves the credential that `make` makes for the vault, given how many it has in use and the
    /// time. No other is added meanwhile. `None`: there is no such vault. Fails with constraint
    /// [`CREDENTIAL_KEY`] when the vault has one for the same server or variable.
    ///
    /// # Errors
    /// Database faults, a master key that cannot be used, and what `make` refuses.
    pub async fn credential_create<E: From<StoreError>>(
        &self,
        workspace: WorkspaceId,
        vault: VaultId,
        actor: &Actor,
        make: impl FnOnce(&Vault, usize, Timestamp) -> Result<NewCredential, E> + Send,
    ) -> Result<Option<Credential>, E> {
        let mut tx = self.pool.begin().await.map_err(StoreError::from)?;
        let Some(found) = lock(&mut tx, workspace, vault).await? else {
            return Ok(None);
        };
        let (active, now) = credentials_in_use(&mut tx, vault).await?;
        let new = make(&found, active, now)?;
        let id = CredentialId::new();
        let credential = self.insert(&mut tx, workspace, vault, id, &new).await?;
        let detail = serde_json::json!({
            "vault": vault,
            "type": new.spec.auth.kind().as_str(),
            "key": new.key,
        });
        note(
            &mut tx,
            workspace,
            actor,
            "vault_credential.create",
            id,
            detail,
        )
        .await?;
        let event = WebhookEvent::new(WebhookEventType::VaultCredentialCreated, id);
        let at = Some(credential.created_at);
        let hooked = emit(&mut tx, self, workspace, at, &[event.vault(vault)]).await?;
        tx.commit().await.map_err(StoreError::from)?;
        self.emitted(hooked);
        Ok(Some(credential))
    }

    async fn insert(
        &self,
        tx: &mut PgConnection,
        workspace: WorkspaceId,
        vault: VaultId,
        id: CredentialId,
        new: &NewCredential,
    ) -> Result<Credential, StoreError> {
        let sealed = opened::seal(self.sealer()?, workspace, vault, id, &new.secrets).await?;
        let (auth, expires_at) = split(&new.spec.auth);
        sqlx::query!(
            r#"
            WITH now AS MATERIALIZED (SELECT clock_timestamp() AS at)
            INSERT INTO vault_credentials (id, vault_id, workspace_id, key, type, display_name,
                metadata, auth, expires_at, refreshable, ciphertext, data_key, master_key,
                created_at, updated_at)
            SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, at, at FROM now
            "#,
            id.0,
            vault.0,
            workspace.0,
            new.key,
            new.spec.auth.kind().as_str(),
            new.spec.display_name,
            write(&new.spec.metadata),
            auth,
            expires_at.map(column) as _,
            refreshable(&new.spec.auth),
            sealed.ciphertext,
            sealed.data_key,
            sealed.master_key,
        )
        .execute(&mut *tx)
        .await?;
        fetch_one(tx, id).await?.shown()
    }

    /// One credential of a vault.
    ///
    /// # Errors
    /// Database faults.
    pub async fn credential_get(
        &self,
        workspace: WorkspaceId,
        vault: VaultId,
        id: CredentialId,
    ) -> Result<Option<Credential>, StoreError> {
        let row = fetch(&self.pool, &[id.0]).await?.pop();
        row.filter(|row| row.workspace_id == workspace.0 && row.vault_id == vault.0)
            .map(|row| row.shown())
            .transpose()
    }

    /// The credentials of a vault, newest first.
    ///
    /// # Errors
    /// Database faults.
    pub async fn credential_list(
        &self,
        workspace: WorkspaceId,
        vault: VaultId,
        filter: &VaultFilter,
    ) -> Result<Vec<Credential>, StoreError> {
        let ids = sqlx::query_scalar!(
            r#"
            SELECT id FROM vault_credentials
            WHERE vault_id = $1 AND workspace_id = $2 AND ($3 OR archived_at IS NULL)
                AND (created_at, id) < ($4, $5)
            ORDER BY created_at DESC, id DESC
            LIMIT $6
            "#,
            vault.0,
            workspace.0,
            filter.include_archived,
            column(filter.after.created_at) as _,
            filter.after.id,
            i64::try_from(filter.limit).unwrap_or(i64::MAX),
        )
        .fetch_all(&self.pool)
        .await?;
        fetch(&self.pool, &ids)
            .await?
            .iter()
            .map(Row::shown)
            .collect()
    }

    /// Saves what `change` makes of the credential at this time. While `change` decides, no other
    /// change of it does, and no token of it is refreshed. Nothing is saved when it changes nothing,
    /// or refuses. `None`: there is no such credential.
    ///
    /// # Errors
    /// Database faults, a sealed value that does not open, and what `change` refuses.
    pub async fn credential_update<E: From<StoreError>>(
        &self,
        workspace: WorkspaceId,
        vault: VaultId,
        id: CredentialId,
        actor: &Actor,
        change: impl FnOnce(&Credential, Timestamp) -> Result<CredentialChange, E> + Send,
    ) -> Result<Option<Credential>, E> {
        let mut tx = self.pool.begin().await.map_err(StoreError::from)?;
        let Some(row) = locked(&mut tx, id).await? else {
            return Ok(None);
        };
        if row.workspace_id != workspace.0 || row.vault_id != vault.0 {
            return Ok(None);
        }
        let current = row.shown()?;
        let change = change(&current, time(row.now))?;
        if change.spec == current.spec() && change.secrets.is_empty() {
            return Ok(Some(current));
        }
        let saved = self.save(&mut tx, &row, &current, change, actor).await?;
        tx.commit().await.map_err(StoreError::from)?;
        Ok(Some(saved))
    }

    async fn save(
        &self,
        tx: &mut PgConnection,
        row: &Row,
        current: &Credential,
        change: CredentialChange,
        actor: &Actor,
    ) -> Result<Credential, StoreError> {
        let workspace = WorkspaceId(row.workspace_id);
        let (id, vault) = (current.id, current.vault_id);
        let rotated = !change.secrets.is_empty();
        let auth_changed = rotated || change.spec.auth != current.auth;
        let sealed = if rotated {
            let secrets = opened::open(self.sealer()?, row).await?;
            let secrets = change
                .secrets
                .apply(secrets.ok_or(sqlx::Error::RowNotFound)?);
            Some(opened::seal(self.sealer()?, workspace, vault, id, &secrets).await?)
        } else {
            None
        };
        let (auth, expires_at) = split(&change.spec.auth);
        // What a client changes may cure what made refreshing fail.
        sqlx::query!(
            r#"
            UPDATE vault_credentials
            SET display_name = $2, metadata = $3, auth = $4, expires_at = $5,
                updated_at = clock_timestamp(),
                ciphertext = COALESCE($6, ciphertext), data_key = COALESCE($7, data_key),
                master_key = COALESCE($8, master_key),
                generation = generation + CASE WHEN $9 THEN 1 ELSE 0 END,
                refresh_failed_at = CASE WHEN $9 THEN NULL ELSE refresh_failed_at END,
                refresh_failure = CASE WHEN $9 THEN NULL ELSE refresh_failure END,
                refresh_next_at = CASE WHEN $9 THEN NULL ELSE refresh_next_at END
            WHERE id = $1
            "#,
            id.0,
            change.spec.display_name,
            write(&change.spec.metadata),
            auth,
            expires_at.map(column) as _,
            sealed.as_ref().map(|sealed| &*sealed.ciphertext),
            sealed.as_ref().map(|sealed| &*sealed.data_key),
            sealed.as_ref().map(|sealed| &*sealed.master_key),
            auth_changed,
        )
        .execute(&mut *tx)
        .await?;
        let action = if rotated {
            "vault_credential.rotate"
        } else {
            "vault_credential.update"
        };
        let detail = serde_json::json!({"vault": vault});
        note(tx, workspace, actor, action, id, detail).await?;
        fetch_one(tx, id).await?.shown()
    }

    /// Archives a credential for good: its secrets are gone, its key is free. One that is archived
    /// already stays as it is.
    ///
    /// # Errors
    /// Database faults.
    pub async fn credential_archive(
        &self,
        workspace: WorkspaceId,
        vault: VaultId,
        id: CredentialId,
        actor: &Actor,
    ) -> Result<Option<Credential>, StoreError> {
        let mut tx = self.pool.begin().await?;
        let mut told = Vec::new();
        if archive(&mut tx, workspace, vault, id, actor).await? {
            let event = WebhookEvent::new(WebhookEventType::VaultCredentialArchived, id);
            told.push(event.vault(vault));
        }
        let hooked = emit(&mut tx, self, workspace, None, &told).await?;
        tx.commit().await?;
        self.emitted(hooked);
        self.credential_get(workspace, vault, id).await
    }

    /// Deletes a credential. `false`: there is no such credential.
    ///
    /// # Errors
    /// Database faults.
    pub async fn credential_delete(
        &self,
        workspace: WorkspaceId,
        vault: VaultId,
        id: CredentialId,
        actor: &Actor,
    ) -> Result<bool, StoreError> {
        let mut tx = self.pool.begin().await?;
        let done = delete(&mut tx, workspace, vault, id, actor).await?;
        let mut told = Vec::new();
        if done {
            let event = WebhookEvent::new(WebhookEventType::VaultCredentialDeleted, id);
            told.push(event.vault(vault));
        }
        let hooked = emit(&mut tx, self, workspace, None, &told).await?;
        tx.commit().await?;
        self.emitted(hooked);
        Ok(done)
    }
}

/// One credential, locked.
pub(super) async fn locked(
    tx: &mut PgConnection,
    id: CredentialId,
) -> Result<Option<Row>, StoreError> {
    // Two statements: the second one sees what was committed while the first one waited.
    let found = sqlx::query_scalar!(
        "SELECT id FROM vault_credentials WHERE id = $1 FOR NO KEY UPDATE",
        id.0,
    )
    .fetch_optional(&mut *tx)
    .await?;
    match found {
        Some(id) => Ok(fetch(tx, &[id]).await?.pop()),
        None => Ok(None),
    }
}

async fn credentials_in_use(
    tx: &mut PgConnection,
    vault: VaultId,
) -> Result<(usize, Timestamp), StoreError> {
    let row = sqlx::query!(
        r#"
        SELECT count(*) AS "active!", clock_timestamp() AS "now!: jiff_sqlx::Timestamp"
        FROM vault_credentials WHERE vault_id = $1 AND archived_at IS NULL
        "#,
        vault.0,
    )
    .fetch_one(tx)
    .await?;
    Ok((
        usize::try_from(row.active).unwrap_or(usize::MAX),
        time(row.now),
    ))
}
