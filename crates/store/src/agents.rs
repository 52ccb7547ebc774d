//! Agents and their versions.

use selfsame_types::{
    AgentId, Position, Timestamp, WorkspaceId,
    agent::{Agent, AgentConfig},
    multiagent::{Members, Reference},
    webhook::{WebhookEvent, WebhookEventType},
};
use sqlx::PgExecutor;
use uuid::Uuid;

use crate::{Store, StoreError, time};

/// Which agents a list shows.
#[derive(Debug, Clone)]
pub struct AgentFilter {
    pub include_archived: bool,
    /// Inclusive.
    pub created_from: Option<Timestamp>,
    /// Inclusive.
    pub created_until: Option<Timestamp>,
    /// Only what comes after this in descending order; [`Position::NEWEST`] for the first page.
    pub after: Position,
    /// Most rows.
    pub limit: usize,
}

/// One version of an agent, with what belongs to the agent as a whole.
pub(crate) struct Row {
    pub(crate) id: Uuid,
    pub(crate) version: i32,
    pub(crate) config: String,
    pub(crate) created_at: jiff_sqlx::Timestamp,
    pub(crate) updated_at: jiff_sqlx::Timestamp,
    pub(crate) archived_at: Option<jiff_sqlx::Timestamp>,
}

impl TryFrom<Row> for Agent {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        let id = AgentId(row.id);
        let config: AgentConfig =
            serde_json::from_str(&row.config).map_err(StoreError::corrupt(
                "agent_versions",
                "config",
                format_args!("{id} version {}", row.version),
            ))?;
        Ok(Self::new(
            id,
            row.version,
            config,
            time(row.created_at),
            time(row.updated_at),
            row.archived_at.map(time),
        ))
    }
}

fn write(config: &AgentConfig) -> String {
    serde_json::to_string(config).expect("configurations are strings, numbers, lists and maps")
}

impl Store {
    /// Saves version 1 of the new agent `id`.
    pub async fn agent_create(
        &self,
        workspace: WorkspaceId,
        id: AgentId,
        config: AgentConfig,
    ) -> Result<Agent, StoreError> {
        let told = [WebhookEvent::new(WebhookEventType::AgentCreated, id)];
        let happened = self.happened(workspace, &told).await?;
        // One statement, one commit.
        let row = sqlx::query!(
            r#"
            WITH
                now AS MATERIALIZED (SELECT clock_timestamp() AS at),
                agent AS (
                    INSERT INTO agents (id, workspace_id, current_version, created_at, updated_at)
                    SELECT $1, $2, 1, at, at FROM now
                )
            INSERT INTO agent_versions (agent_id, version, config, created_at)
            SELECT $1, 1, $3, at FROM now
            RETURNING created_at, webhook_emit($2, created_at, $4) AS hooked
            "#,
            id.0,
            workspace.0,
            write(&config),
            happened as _,
        )
        .fetch_one(&self.pool)
        .await?;
        self.emitted(row.hooked);
        let at = row.created_at;
        Ok(Agent::new(id, 1, config, time(at), time(at), None))
    }

    /// One version of an agent; the latest when `version` is `None`.
    pub async fn agent_get(
        &self,
        workspace: WorkspaceId,
        id: AgentId,
        version: Option<i64>,
    ) -> Result<Option<Agent>, StoreError> {
        let Ok(version) = version.map(i32::try_from).transpose() else {
            return Ok(None);
        };
        sqlx::query_as!(
            Row,
            r#"
            SELECT a.id, v.version, v.config, a.created_at,
                CASE WHEN v.version = a.current_version THEN a.updated_at ELSE v.created_at END
                    AS "updated_at!",
                a.archived_at
            FROM agents a
            JOIN agent_versions v
                ON v.agent_id = a.id AND v.version = COALESCE($3, a.current_version)
            WHERE a.workspace_id = $1 AND a.id = $2
            "#,
            workspace.0,
            id.0,
            version,
        )
        .fetch_optional(&self.pool)
        .await?
        .map(Agent::try_from)
        .transpose()
    }

    /// The agents of a workspace that these references mean. What means nothing is left out.
    pub async fn agent_members(
        &self,
        workspace: WorkspaceId,
        references: &[Reference],
    ) -> Result<Members, StoreError> {
        members(&self.pool, workspace, references).await
    }

    /// Saves what `change` makes of the latest version as the next one, from the agents that
    /// `references` asks for. While it decides, no other update of this agent does. Nothing is saved
    /// when it returns what is there already, or an error. `None`: there is no such agent.
    pub async fn agent_update<E: From<StoreError>>(
        &self,
        workspace: WorkspaceId,
        id: AgentId,
        references: impl FnOnce(&Agent) -> Vec<Reference> + Send,
        change: impl FnOnce(&Agent, &Members) -> Result<AgentConfig, E> + Send,
    ) -> Result<Option<Agent>, E> {
        let mut tx = self.pool.begin().await.map_err(StoreError::from)?;
        // Locked in a statement of its own: the next one then sees what the holder before us saved.
        // A join would look for the new version in the old snapshot and find nothing.
        sqlx::query!(
            "SELECT id FROM agents WHERE workspace_id = $1 AND id = $2 FOR NO KEY UPDATE",
            workspace.0,
            id.0,
        )
        .fetch_optional(&mut *tx)
        .await
        .map_err(StoreError::from)?;
        let row = sqlx::query_as!(
            Row,
            r#"
            SELECT a.id, v.version, v.config, a.created_at, a.updated_at, a.archived_at
            FROM agents a
            JOIN agent_versions v ON v.agent_id = a.id AND v.version = a.current_version
            WHERE a.workspace_id = $1 AND a.id = $2
            "#,
            workspace.0,
            id.0,
        )
        .fetch_optional(&mut *tx)
        .await
        .map_err(StoreError::from)?;
        let Some(row) = row else { return Ok(None) };
        let current = Agent::try_from(row)?;
        let references = references(&current);
        let found = members(&mut *tx, workspace, &references).await?;
        let mut config = change(&current, &found)?;
        if config == current.config {
            return Ok(Some(current));
        }
        let version = current.version + 1;
        if let Some(multiagent) = &mut config.multiagent {
            multiagent.pin_self(id, version);
        }
        let told = [WebhookEvent::new(WebhookEventType::AgentUpdated, id)];
        let happened = self.happened(workspace, &told).await?;
        let row = sqlx::query!(
            r#"
            WITH saved AS (
                INSERT INTO agent_versions (agent_id, version, config) VALUES ($1, $2, $3)
                RETURNING created_at
            )
            UPDATE agents SET current_version = $2, updated_at = saved.created_at
            FROM saved
            WHERE id = $1
            RETURNING updated_at, webhook_emit($4, updated_at, $5) AS hooked
            "#,
            id.0,
            version,
            write(&config),
            workspace.0,
            happened as _,
        )
        .fetch_one(&mut *tx)
        .await
        .map_err(StoreError::from)?;
        tx.commit().await.map_err(StoreError::from)?;
        self.emitted(row.hooked);
        let at = row.updated_at;
        Ok(Some(Agent::new(
            id,
            version,
            config,
            current.created_at,
            time(at),
            None,
        )))
    }

    /// Archives for good. An agent that is archived already stays as it is.
    pub async fn agent_archive(
        &self,
        workspace: WorkspaceId,
        id: AgentId,
    ) -> Result<Option<Agent>, StoreError> {
        let told = [WebhookEvent::new(WebhookEventType::AgentArchived, id)];
        let happened = self.happened(workspace, &told).await?;
        let hooked = sqlx::query_scalar!(
            r#"
            WITH now AS MATERIALIZED (SELECT clock_timestamp() AS at)
            UPDATE agents SET archived_at = now.at, updated_at = now.at
            FROM now
            WHERE workspace_id = $1 AND id = $2 AND archived_at IS NULL
            RETURNING webhook_emit($1, now.at, $3)
            "#,
            workspace.0,
            id.0,
            happened as _,
        )
        .fetch_optional(&self.pool)
        .await?;
        self.emitted(hooked.flatten());
        self.agent_get(workspace, id, None).await
    }

    /// The latest version of each agent, newest agent first.
    pub async fn agent_list(
        &self,
        workspace: WorkspaceId,
        filter: &AgentFilter,
    ) -> Result<Vec<Agent>, StoreError> {
        // Bounds that are not given are sentinels, so that the whole condition is one index range.
        let from = filter
            .created_from
            .unwrap_or(Timestamp::from_micros(i64::MIN));
        let until = filter.created_until.unwrap_or(Timestamp::LATEST);
        sqlx::query_as!(
            Row,
            r#"
            SELECT a.id, v.version, v.config, a.created_at, a.updated_at, a.archived_at
            FROM agents a
            JOIN agent_versions v ON v.agent_id = a.id AND v.version = a.current_version
            WHERE a.workspace_id = $1
                AND ($2 OR a.archived_at IS NULL)
                AND a.created_at >= $3 AND a.created_at <= $4
                AND (a.created_at, a.id) < ($5, $6)
            ORDER BY a.created_at DESC, a.id DESC
            LIMIT $7
            "#,
            workspace.0,
            filter.include_archived,
            column(from) as _,
            column(until) as _,
            column(filter.after.created_at) as _,
            filter.after.id,
            i64::try_from(filter.limit).unwrap_or(i64::MAX),
        )
        .fetch_all(&self.pool)
        .await?
        .into_iter()
        .map(Agent::try_from)
        .collect()
    }

    /// Versions of one agent below `below`, newest first; `None`: there is no such agent.
    pub async fn agent_versions(
        &self,
        workspace: WorkspaceId,
        id: AgentId,
        below: Option<i32>,
        limit: usize,
    ) -> Result<Option<Vec<Agent>>, StoreError> {
        let versions = sqlx::query_as!(
            Row,
            r#"
            SELECT a.id, v.version, v.config, a.created_at,
                CASE WHEN v.version = a.current_version THEN a.updated_at ELSE v.created_at END
                    AS "updated_at!",
                a.archived_at
            FROM agents a
            JOIN agent_versions v ON v.agent_id = a.id
            WHERE a.workspace_id = $1 AND a.id = $2 AND v.version < $3
            ORDER BY v.version DESC
            LIMIT $4
            "#,
            workspace.0,
            id.0,
            below.unwrap_or(i32::MAX),
            i64::try_from(limit).unwrap_or(i64::MAX),
        )
        .fetch_all(&self.pool)
        .await?
        .into_iter()
        .map(Agent::try_from)
        .collect::<Result<Vec<_>, _>>()?;
        if versions.is_empty() && self.agent_get(workspace, id, None).await?.is_none() {
            return Ok(None);
        }
        Ok(Some(versions))
    }
}

async fn members(
    executor: impl PgExecutor<'_>,
    workspace: WorkspaceId,
    references: &[Reference],
) -> Result<Members, StoreError> {
    // Most agents have none, and must not pay for this.
    if references.is_empty() {
        return Ok(Members::default());
    }
    let ids: Vec<Uuid> = references.iter().map(|reference| reference.id.0).collect();
    // No agent has a version that does not fit.
    let versions: Vec<Option<i32>> = references
        .iter()
        .map(|r| r.version.map(|version| i32::try_from(version).unwrap_or(0)))
        .collect();
    let rows = sqlx::query!(
        r#"
        SELECT r.position AS "position!", a.id, v.version, v.config, a.created_at,
            CASE WHEN v.version = a.current_version THEN a.updated_at ELSE v.created_at END
                AS "updated_at!: jiff_sqlx::Timestamp",
            a.archived_at
        FROM unnest($2::uuid[], $3::integer[]) WITH ORDINALITY AS r (id, version, position)
        JOIN agents a ON a.workspace_id = $1 AND a.id = r.id
        JOIN agent_versions v
            ON v.agent_id = a.id AND v.version = COALESCE(r.version, a.current_version)
        "#,
        workspace.0,
        &ids,
        &versions as _,
    )
    .fetch_all(executor)
    .await?;
    let found = rows.into_iter().map(|row| {
        let at = usize::try_from(row.position - 1).unwrap_or_default();
        let agent = Agent::try_from(Row {
            id: row.id,
            version: row.version,
            config: row.config,
            created_at: row.created_at,
            updated_at: row.updated_at,
            archived_at: row.archived_at,
        })?;
        Ok::<_, StoreError>((references[at], agent))
    });
    Ok(Members::new(found.collect::<Result<Vec<_>, _>>()?))
}

/// An API time as a column value.
pub(crate) fn column(at: Timestamp) -> jiff_sqlx::Timestamp {
    jiff_sqlx::ToSqlx::to_sqlx(at.storable().inner())
}

#[cfg(test)]
mod tests;
