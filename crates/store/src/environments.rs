//! Environments.

use selfsame_types::{
    EnvironmentId, Metadata, Position, WorkspaceId,
    environment::{
        Environment, EnvironmentConfig, EnvironmentScope, EnvironmentSpec, EnvironmentType,
    },
    webhook::{WebhookEvent, WebhookEventType},
};
use uuid::Uuid;

use crate::{Actor, Audit, Store, StoreError, agents::column, keys::audit, time, webhooks::emit};

/// The constraint that keeps names of live environments apart.
pub const ENVIRONMENT_NAME_KEY: &str = "environments_name_key";

/// Which environments a list shows.
#[derive(Debug, Clone)]
pub struct EnvironmentFilter {
    pub include_archived: bool,
    /// Only what comes after this in descending order; [`Position::NEWEST`] for the first page.
    pub after: Position,
    /// Most rows.
    pub limit: usize,
}

/// What became of a deletion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deletion {
    Deleted,
    NotFound,
    /// Sessions refer to it.
    InUse,
}

pub(crate) struct Row {
    pub(crate) id: Uuid,
    pub(crate) name: String,
    pub(crate) description: Option<String>,
    pub(crate) config: String,
    pub(crate) metadata: String,
    pub(crate) created_at: jiff_sqlx::Timestamp,
    pub(crate) updated_at: jiff_sqlx::Timestamp,
    pub(crate) archived_at: Option<jiff_sqlx::Timestamp>,
}

impl TryFrom<Row> for Environment {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        let id = EnvironmentId(row.id);
        let config: EnvironmentConfig = serde_json::from_str(&row.config)
            .map_err(StoreError::corrupt("environments", "config", id))?;
        let metadata: Metadata = serde_json::from_str(&row.metadata)
            .map_err(StoreError::corrupt("environments", "metadata", id))?;
        Ok(Self {
            r#type: EnvironmentType,
            id,
            name: row.name,
            description: row.description,
            config,
            metadata,
            scope: EnvironmentScope::Organization,
            created_at: time(row.created_at),
            updated_at: time(row.updated_at),
            archived_at: row.archived_at.map(time),
        })
    }
}

fn write<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("configurations are strings, numbers, lists and maps")
}

impl Store {
    /// Fails with constraint [`ENVIRONMENT_NAME_KEY`] when a live environment has this name.
    pub async fn environment_create(
        &self,
        workspace: WorkspaceId,
        spec: EnvironmentSpec,
    ) -> Result<Environment, StoreError> {
        let id = EnvironmentId::new();
        let told = [WebhookEvent::new(WebhookEventType::EnvironmentCreated, id)];
        let happened = self.happened(workspace, &told).await?;
        let (config, metadata) = (write(&spec.config), write(&spec.metadata));
        let made = sqlx::query!(
            r#"
            WITH now AS MATERIALIZED (SELECT clock_timestamp() AS at)
            INSERT INTO environments
                (id, workspace_id, name, description, config, metadata, created_at, updated_at)
            SELECT $1, $2, $3, $4, $5, $6, at, at FROM now
            RETURNING created_at, webhook_emit($2, created_at, $7) AS hooked
            "#,
            id.0,
            workspace.0,
            spec.name,
            spec.description,
            config,
            metadata,
            happened as _,
        )
        .fetch_one(&self.pool)
        .await?;
        self.emitted(made.hooked);
        Row {
            id: id.0,
            name: spec.name,
            description: spec.description,
            config,
            metadata,
            created_at: made.created_at,
            updated_at: made.created_at,
            archived_at: None,
        }
        .try_into()
    }

    pub async fn environment_get(
        &self,
        workspace: WorkspaceId,
        id: EnvironmentId,
    ) -> Result<Option<Environment>, StoreError> {
        sqlx::query_as!(
            Row,
            r#"
            SELECT id, name, description, config, metadata, created_at, updated_at, archived_at
            FROM environments
            WHERE workspace_id = $1 AND id = $2 AND deleted_at IS NULL
            "#,
            workspace.0,
            id.0,
        )
        .fetch_optional(&self.pool)
        .await?
        .map(Environment::try_from)
        .transpose()
    }

    /// Saves what `change` makes of the environment. While `change` decides, no other update of it
    /// does. Nothing is saved when it returns what is there already, or an error. `None`: there is
    /// no such environment. Fails with constraint [`ENVIRONMENT_NAME_KEY`] when the name is taken.
    pub async fn environment_update<E: From<StoreError>>(
        &self,
        workspace: WorkspaceId,
        id: EnvironmentId,
        change: impl FnOnce(&Environment) -> Result<EnvironmentSpec, E> + Send,
    ) -> Result<Option<Environment>, E> {
        let mut tx = self.pool.begin().await.map_err(StoreError::from)?;
        let row = sqlx::query_as!(
            Row,
            r#"
            SELECT id, name, description, config, metadata, created_at, updated_at, archived_at
            FROM environments
            WHERE workspace_id = $1 AND id = $2 AND deleted_at IS NULL
            FOR NO KEY UPDATE
            "#,
            workspace.0,
            id.0,
        )
        .fetch_optional(&mut *tx)
        .await
        .map_err(StoreError::from)?;
        let Some(row) = row else { return Ok(None) };
        let current = Environment::try_from(row)?;
        let spec = change(&current)?;
        if spec == current.spec() {
            return Ok(Some(current));
        }
        let row = sqlx::query_as!(
            Row,
            r#"
            UPDATE environments
            SET name = $2, description = $3, config = $4, metadata = $5,
                updated_at = clock_timestamp()
            WHERE id = $1
            RETURNING id, name, description, config, metadata, created_at, updated_at, archived_at
            "#,
            id.0,
            spec.name,
            spec.description,
            write(&spec.config),
            write(&spec.metadata),
        )
        .fetch_one(&mut *tx)
        .await
        .map_err(StoreError::from)?;
        let told = [WebhookEvent::new(WebhookEventType::EnvironmentUpdated, id)];
        let hooked = emit(&mut tx, self, workspace, Some(time(row.updated_at)), &told).await?;
        tx.commit().await.map_err(StoreError::from)?;
        self.emitted(hooked);
        Ok(Some(row.try_into()?))
    }

    /// Archives for good. An environment that is archived already stays as it is.
    pub async fn environment_archive(
        &self,
        workspace: WorkspaceId,
        id: EnvironmentId,
    ) -> Result<Option<Environment>, StoreError> {
        let told = [WebhookEvent::new(WebhookEventType::EnvironmentArchived, id)];
        let happened = self.happened(workspace, &told).await?;
        let hooked = sqlx::query_scalar!(
            r#"
            WITH now AS MATERIALIZED (SELECT clock_timestamp() AS at)
            UPDATE environments SET archived_at = now.at, updated_at = now.at
            FROM now
            WHERE workspace_id = $1 AND id = $2 AND archived_at IS NULL AND deleted_at IS NULL
            RETURNING webhook_emit($1, now.at, $3)
            "#,
            workspace.0,
            id.0,
            happened as _,
        )
        .fetch_optional(&self.pool)
        .await?;
        self.emitted(hooked.flatten());
        self.environment_get(workspace, id).await
    }

    /// Deletes for good, unless a session that is not deleted refers to it.
    pub async fn environment_delete(
        &self,
        workspace: WorkspaceId,
        id: EnvironmentId,
        actor: &Actor,
    ) -> Result<Deletion, StoreError> {
        let mut tx = self.pool.begin().await?;
        // Waits for sessions that are being created on it, and makes later ones wait.
        let found = sqlx::query_scalar!(
            r#"
            SELECT id FROM environments
            WHERE workspace_id = $1 AND id = $2 AND deleted_at IS NULL
            FOR UPDATE
            "#,
            workspace.0,
            id.0,
        )
        .fetch_optional(&mut *tx)
        .await?;
        if found.is_none() {
            return Ok(Deletion::NotFound);
        }
        let told = [WebhookEvent::new(WebhookEventType::EnvironmentDeleted, id)];
        let happened = self.happened(workspace, &told).await?;
        let deleted = sqlx::query_scalar!(
            r#"
            UPDATE environments SET deleted_at = clock_timestamp()
            WHERE id = $1 AND NOT EXISTS (
                SELECT 1 FROM sessions WHERE environment_id = $1 AND deleted_at IS NULL
            )
            RETURNING webhook_emit($2, deleted_at, $3)
            "#,
            id.0,
            workspace.0,
            happened as _,
        )
        .fetch_optional(&mut *tx)
        .await?;
        let Some(hooked) = deleted else {
            return Ok(Deletion::InUse);
        };
        audit(
            &mut *tx,
            Audit {
                workspace: Some(workspace),
                actor,
                action: "environment.delete",
                target: id.to_string(),
                detail: serde_json::json!({}),
            },
        )
        .await?;
        tx.commit().await?;
        self.emitted(hooked);
        Ok(Deletion::Deleted)
    }

    /// Newest first.
    pub async fn environment_list(
        &self,
        workspace: WorkspaceId,
        filter: &EnvironmentFilter,
    ) -> Result<Vec<Environment>, StoreError> {
        sqlx::query_as!(
            Row,
            r#"
            SELECT id, name, description, config, metadata, created_at, updated_at, archived_at
            FROM environments
            WHERE workspace_id = $1 AND deleted_at IS NULL
                AND ($2 OR archived_at IS NULL)
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
        .map(Environment::try_from)
        .collect()
    }
}

#[cfg(test)]
mod tests;
