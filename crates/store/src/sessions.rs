//! Sessions: reading, lists, title and metadata, deletion.
//!
//! The cold row (`sessions`) and the hot one (`session_state`) are read together and always give one
//! session object. Everything that appends events goes through [`Store::append`](crate::Store::append).

use selfsame_types::{
    AgentId, EnvironmentId, SessionId, ThreadId, Timestamp, VaultId, WorkspaceId, page::Order,
};
use sqlx::{Postgres, QueryBuilder};

use crate::{Store, StoreError, time};

/// A session as read: JSON texts are still texts.
#[derive(Debug, Clone)]
pub struct SessionRecord {
    pub id: SessionId,
    pub workspace: WorkspaceId,
    pub environment_id: EnvironmentId,
    pub agent: String,
    pub environment: String,
    pub title: Option<String>,
    pub metadata: String,
    pub status: String,
    pub view: String,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    pub archived_at: Option<Timestamp>,
    /// The database's clock when it was read.
    pub now: Timestamp,
    pub primary_thread: ThreadId,
    pub last_seq: i64,
    pub machine: String,
    pub epoch: i64,
    /// It has, or had, something to mount.
    pub equipped: bool,
    /// Its resources as the API shows them: a JSON array.
    pub resources: String,
    /// In the order in which they are searched.
    pub vault_ids: Vec<VaultId>,
}

#[derive(sqlx::FromRow)]
struct SessionRow {
    id: uuid::Uuid,
    workspace_id: uuid::Uuid,
    environment_id: uuid::Uuid,
    agent: String,
    environment: String,
    title: Option<String>,
    metadata: String,
    status: String,
    view: String,
    created_at: jiff_sqlx::Timestamp,
    updated_at: jiff_sqlx::Timestamp,
    archived_at: Option<jiff_sqlx::Timestamp>,
    now: jiff_sqlx::Timestamp,
    primary_thread: uuid::Uuid,
    last_seq: i64,
    machine: String,
    epoch: i64,
    equipped: bool,
    resources: String,
    vault_ids: Vec<uuid::Uuid>,
}

impl From<SessionRow> for SessionRecord {
    fn from(row: SessionRow) -> Self {
        Self {
            id: SessionId(row.id),
            workspace: WorkspaceId(row.workspace_id),
            environment_id: EnvironmentId(row.environment_id),
            agent: row.agent,
            environment: row.environment,
            title: row.title,
            metadata: row.metadata,
            status: row.status,
            view: row.view,
            created_at: time(row.created_at),
            updated_at: time(row.updated_at),
            archived_at: row.archived_at.map(time),
            now: time(row.now),
            primary_thread: ThreadId(row.primary_thread),
            last_seq: row.last_seq,
            machine: row.machine,
            epoch: row.epoch,
            equipped: row.equipped,
            resources: row.resources,
            vault_ids: row.vault_ids.into_iter().map(VaultId).collect(),
        }
    }
}

const COLUMNS: &str = "c.id, c.workspace_id, c.environment_id, c.agent, c.environment, c.title, \
     c.metadata, s.status, s.view, c.created_at, s.updated_at, c.archived_at, \
     clock_timestamp() AS now, s.primary_thread, s.last_seq, s.machine, s.epoch, \
     c.equipped, CASE WHEN c.equipped THEN session_resources(c.id) ELSE '[]' END AS resources, \
     c.vault_ids";

/// Position in a list by creation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CreatedKey {
    pub created_at: Timestamp,
    pub id: SessionId,
}

/// Which sessions to list.
#[derive(Debug, Clone)]
pub struct SessionQuery {
    pub workspace: WorkspaceId,
    pub agent: Option<AgentId>,
    pub agent_version: Option<i32>,
    /// Comparison (`>`, `>=`, `<`, `<=`) and time.
    pub created: Vec<(&'static str, Timestamp)>,
    /// Empty: any.
    pub statuses: Vec<&'static str>,
    pub include_archived: bool,
    pub order: Order,
    /// Only what lies behind this one, in `order`.
    pub after: Option<CreatedKey>,
    pub limit: i64,
}

impl Store {
    /// One session of a workspace.
    ///
    /// # Errors
    /// Database faults.
    pub async fn session_get(
        &self,
        workspace: WorkspaceId,
        id: SessionId,
    ) -> Result<Option<SessionRecord>, StoreError> {
        Ok(self
            .session_load(id)
            .await?
            .filter(|session| session.workspace == workspace))
    }

    /// One session, whoever's it is: for the engine, never for a client.
    ///
    /// # Errors
    /// Database faults.
    pub async fn session_load(&self, id: SessionId) -> Result<Option<SessionRecord>, StoreError> {
        let row = sqlx::query_as!(
            SessionRow,
            r#"
            SELECT c.id, c.workspace_id, c.environment_id, c.agent, c.environment, c.title,
                   c.metadata, s.status, s.view, c.created_at, s.updated_at, c.archived_at,
                   clock_timestamp() AS "now!: jiff_sqlx::Timestamp", s.primary_thread, s.last_seq,
                   s.machine, s.epoch, c.equipped,
                   CASE WHEN c.equipped THEN session_resources(c.id) ELSE '[]' END AS "resources!",
                   c.vault_ids
            FROM sessions c JOIN session_state s ON s.session_id = c.id
            WHERE c.id = $1 AND c.deleted_at IS NULL
            "#,
            id.0,
        )
        .fetch_optional(&self.pool)
        .await?;
        Ok(row.map(Into::into))
    }

    /// A page of sessions, and whether more follow in the same direction.
    ///
    /// # Errors
    /// Database faults.
    pub async fn session_list(
        &self,
        query: &SessionQuery,
    ) -> Result<(Vec<SessionRecord>, bool), StoreError> {
        let mut sql = QueryBuilder::<Postgres>::new("SELECT ");
        sql.push(COLUMNS)
            .push(
                " FROM sessions c JOIN session_state s ON s.session_id = c.id \
                 WHERE c.deleted_at IS NULL AND c.workspace_id = ",
            )
            .push_bind(query.workspace.0);
        if !query.include_archived {
            sql.push(" AND c.archived_at IS NULL");
        }
        if let Some(agent) = query.agent {
            sql.push(" AND c.agent_id = ").push_bind(agent.0);
        }
        if let Some(version) = query.agent_version {
            sql.push(" AND c.agent_version = ").push_bind(version);
        }
        for (comparison, at) in &query.created {
            sql.push(" AND c.created_at ")
                .push(*comparison)
                .push(" ")
                .push_bind(jiff_sqlx::Timestamp::from(at.inner()));
        }
        if !query.statuses.is_empty() {
            sql.push(" AND s.status = ANY (")
                .push_bind(query.statuses.clone())
                .push(")");
        }
        let (comparison, direction) = match query.order {
            Order::Asc => (" > ", " ASC"),
            Order::Desc => (" < ", " DESC"),
        };
        if let Some(key) = query.after {
            sql.push(" AND (c.created_at, c.id)")
                .push(comparison)
                .push("(")
                .push_bind(jiff_sqlx::Timestamp::from(key.created_at.inner()))
                .push(", ")
                .push_bind(key.id.0)
                .push(")");
        }
        sql.push(" ORDER BY c.created_at")
            .push(direction)
            .push(", c.id")
            .push(direction)
            .push(" LIMIT ")
            .push_bind(query.limit + 1);
        let mut rows: Vec<SessionRow> = sql.build_query_as().fetch_all(&self.pool).await?;
        let limit = usize::try_from(query.limit).unwrap_or(usize::MAX);
        let more = rows.len() > limit;
        rows.truncate(limit);
        Ok((rows.into_iter().map(Into::into).collect(), more))
    }

    /// Purges up to `limit` deleted sessions whose events are few enough, and up to `chunk` events of
    /// the others. Answers how many rows went; 0 means nothing is left to purge.
    ///
    /// # Errors
    /// Database faults.
    pub async fn session_purge(&self, limit: i64, chunk: i64) -> Result<u64, StoreError> {
        let events = sqlx::query!(
            r#"
            DELETE FROM events e
            USING (
                SELECT e.session_id, e.seq
                FROM (SELECT id FROM sessions WHERE deleted_at IS NOT NULL
                      ORDER BY deleted_at LIMIT $1) s
                JOIN events e ON e.session_id = s.id
                LIMIT $2
            ) gone
            WHERE e.session_id = gone.session_id AND e.seq = gone.seq
            "#,
            limit,
            chunk,
        )
        .execute(&self.pool)
        .await?
        .rows_affected();
        let sessions = sqlx::query!(
            r#"
            DELETE FROM sessions s
            WHERE s.id IN (SELECT id FROM sessions WHERE deleted_at IS NOT NULL
                           ORDER BY deleted_at LIMIT $1)
              AND NOT EXISTS (SELECT FROM events e WHERE e.session_id = s.id)
            "#,
            limit,
        )
        .execute(&self.pool)
        .await?
        .rows_affected();
        Ok(events + sessions)
    }

    /// The log position of a session, and whether the session is finished for good.
    ///
    /// # Errors
    /// Database faults.
    pub async fn session_position(
        &self,
        workspace: WorkspaceId,
        id: SessionId,
        window: std::time::Duration,
    ) -> Result<Option<Position>, StoreError> {
        let micros = i64::try_from(window.as_micros()).unwrap_or(i64::MAX);
        Ok(sqlx::query!(
            r#"
            SELECT s.last_seq, s.status, s.primary_thread,
                   CASE WHEN s.accepted_at > clock_timestamp() - $3 * interval '1 microsecond'
                        THEN s.accepted_seq END AS accepted_seq
            FROM session_state s JOIN sessions c ON c.id = s.session_id
            WHERE s.session_id = $1 AND c.workspace_id = $2 AND c.deleted_at IS NULL
            "#,
            id.0,
            workspace.0,
            micros as f64,
        )
        .fetch_optional(&self.pool)
        .await?
        .map(|row| Position {
            last_seq: row.last_seq,
            accepted_seq: row.accepted_seq,
            terminated: row.status == "terminated",
            primary_thread: ThreadId(row.primary_thread),
        }))
    }
}

/// Where a session's log stands.
#[derive(Debug, Clone, Copy)]
pub struct Position {
    pub last_seq: i64,
    /// Where it stood before a client's input that came within the asked window.
    pub accepted_seq: Option<i64>,
    pub terminated: bool,
    pub primary_thread: ThreadId,
}
