//! Creating a session: one query for what it is made of, one statement and one commit to make it.

use selfsame_types::{
    AgentId, EnvironmentId, KeyId, ServerId, SessionId, ThreadId, Timestamp, VaultId, WorkspaceId,
    agent::Agent,
    environment::Environment,
    event::NewEvent,
    webhook::{WebhookEvent, WebhookEventType},
};

use sqlx::PgExecutor;

use crate::{
    AddError, NewResource, Row, SessionRecord, SkillMount, Store, StoreError, agents, environments,
    log::{Columns, render_rows},
    resources, skills, time,
    webhooks::{self, Happened},
};

/// The constraint that breaks when a skill's archive went while a session was being created with it.
pub const SESSION_SKILL_BLOB_KEY: &str = "session_skills_blob_id_fkey";

/// What a session is made of, and when it was looked up.
#[derive(Debug)]
pub struct SessionParts {
    pub agent: Option<Agent>,
    pub environment: Option<Environment>,
    /// The database's clock.
    pub now: Timestamp,
}

/// A session to create, with the first events of its log.
#[derive(Debug)]
pub struct NewSession {
    pub id: SessionId,
    pub workspace: WorkspaceId,
    pub agent_id: AgentId,
    pub agent_version: i32,
    pub environment_id: EnvironmentId,
    /// JSON texts, as stored and shown.
    pub agent: String,
    pub environment: String,
    pub title: Option<String>,
    pub metadata: String,
    pub created_by: Option<KeyId>,
    pub request_id: Option<String>,
    pub created_at: Timestamp,
    pub thread: ThreadId,
    pub thread_agent: String,
    /// Something has to be made ready before its model is asked.
    pub equipped: bool,
    pub resources: Vec<NewResource>,
    /// What it keeps of its agent's skills, in their order.
    pub skills: Vec<SkillMount>,
    /// In the order in which they are searched.
    pub vault_ids: Vec<VaultId>,
}

/// The hot half of a new session.
#[derive(Debug)]
pub struct FirstState {
    pub events: Vec<NewEvent>,
    pub status: &'static str,
    pub thread_status: &'static str,
    pub machine: String,
    pub view: String,
    pub thread_view: String,
    pub queued: Vec<i64>,
    pub wake_at: Option<Timestamp>,
    /// The server that starts driving it at once.
    pub owner: Option<ServerId>,
}

/// A created session: its record, the first rows of its log, and the epoch of its first lease.
#[derive(Debug)]
pub struct Created {
    pub record: SessionRecord,
    pub rows: Vec<Row>,
}

impl Store {
    /// The agent (at its latest version when `version` is `None`) and the environment of a session to
    /// be, each `None` when this workspace has no such one.
    ///
    /// # Errors
    /// Database faults.
    pub async fn session_parts(
        &self,
        workspace: WorkspaceId,
        agent: AgentId,
        version: Option<i64>,
        environment: EnvironmentId,
    ) -> Result<SessionParts, StoreError> {
        // No agent has a version that does not fit.
        let version = version.map(|version| i32::try_from(version).unwrap_or(i32::MAX));
        let row = sqlx::query!(
            r#"
            SELECT clock_timestamp() AS "now!: jiff_sqlx::Timestamp",
                   v.version AS "version?", v.config AS "agent_config?",
                   a.created_at AS "agent_created_at?: jiff_sqlx::Timestamp",
                   CASE WHEN v.version = a.current_version THEN a.updated_at ELSE v.created_at END
                       AS "agent_updated_at?: jiff_sqlx::Timestamp",
                   a.archived_at AS "agent_archived_at?: jiff_sqlx::Timestamp",
                   e.name AS "name?", e.description AS "description?", e.config AS "config?",
                   e.metadata AS "metadata?", e.created_at AS "created_at?: jiff_sqlx::Timestamp",
                   e.updated_at AS "updated_at?: jiff_sqlx::Timestamp",
                   e.archived_at AS "archived_at?: jiff_sqlx::Timestamp"
            FROM (VALUES (1)) AS one
            LEFT JOIN agents a ON a.workspace_id = $1 AND a.id = $2
            LEFT JOIN agent_versions v
                ON v.agent_id = a.id AND v.version = COALESCE($3, a.current_version)
            LEFT JOIN environments e
                ON e.workspace_id = $1 AND e.id = $4 AND e.deleted_at IS NULL
            "#,
            workspace.0,
            agent.0,
            version,
            environment.0,
        )
        .fetch_one(&self.pool)
        .await?;
        let agent = match (
            row.version,
            row.agent_config,
            row.agent_created_at.zip(row.agent_updated_at),
        ) {
            (Some(version), Some(config), Some((created_at, updated_at))) => Some(
                agents::Row {
                    id: agent.0,
                    version,
                    config,
                    created_at,
                    updated_at,
                    archived_at: row.agent_archived_at,
                }
                .try_into()?,
            ),
            _ => None,
        };
        let environment = match (
            row.name.zip(row.config).zip(row.metadata),
            row.created_at.zip(row.updated_at),
        ) {
            (Some(((name, config), metadata)), Some((created_at, updated_at))) => Some(
                environments::Row {
                    id: environment.0,
                    name,
                    description: row.description,
                    config,
                    metadata,
                    created_at,
                    updated_at,
                    archived_at: row.archived_at,
                }
                .try_into()?,
            ),
            _ => None,
        };
        Ok(SessionParts {
            agent,
            environment,
            now: time(row.now),
        })
    }

    /// Creates a session, its primary thread and its first events. `None` when the environment is not
    /// there or not in use any more.
    ///
    /// # Errors
    /// A file that is not there, and database faults; a vanished agent or environment shows as a
    /// foreign key constraint.
    pub async fn session_create(
        &self,
        new: NewSession,
        first: FirstState,
    ) -> Result<Option<Created>, AddError> {
        let rows = render_rows(&first.events, 0, new.created_at);
        let mut told = vec![WebhookEvent::new(WebhookEventType::SessionCreated, new.id)];
        told.extend(webhooks::of_session(
            new.id,
            new.thread,
            &first.events,
            None,
        ));
        let happened = self.happened(new.workspace, &told).await?;
        let mut shown = Vec::with_capacity(new.resources.len());
        // Most sessions have nothing beside them and are one statement.
        if new.resources.is_empty() && new.skills.is_empty() {
            let Some(hooked) = insert_session(&self.pool, &new, &first, &rows, happened).await?
            else {
                return Ok(None);
            };
            self.emitted(hooked);
        } else {
            let mut tx = self.pool.begin().await?;
            let Some(hooked) = insert_session(&mut *tx, &new, &first, &rows, happened).await?
            else {
                return Ok(None);
            };
            for resource in &new.resources {
                shown.push(
                    resources::insert(&mut tx, new.workspace, new.id, resource, new.created_at)
                        .await?,
                );
            }
            skills::keep(&mut tx, new.id, &new.skills).await?;
            tx.commit().await?;
            self.emitted(hooked);
        }
        let record = SessionRecord {
            id: new.id,
            workspace: new.workspace,
            environment_id: new.environment_id,
            equipped: new.equipped,
            resources: resources::text(&shown),
            agent: new.agent,
            vault_ids: new.vault_ids,
            environment: new.environment,
            title: new.title,
            metadata: new.metadata,
            status: first.status.to_owned(),
            view: first.view,
            created_at: new.created_at,
            updated_at: new.created_at,
            archived_at: None,
            now: new.created_at,
            primary_thread: new.thread,
            last_seq: rows.last().map_or(0, |row| row.seq),
            machine: first.machine,
            epoch: i64::from(first.owner.is_some()),
        };
        Ok(Some(Created { record, rows }))
    }
}

/// `None` when the environment is not in use any more; else what the outbox says.
async fn insert_session(
    executor: impl PgExecutor<'_>,
    new: &NewSession,
    first: &FirstState,
    rows: &[Row],
    happened: Happened,
) -> Result<Option<Option<i32>>, sqlx::Error> {
    let columns = Columns::of(rows);
    let last_seq = rows.last().map_or(0, |row| row.seq);
    let epoch = i64::from(first.owner.is_some());
    let vaults: Vec<_> = new.vault_ids.iter().map(|vault| vault.0).collect();
    // One statement is a transaction by itself, and a round trip instead of four. The shared lock
    // holds off whoever archives or deletes the environment meanwhile.
    sqlx::query_scalar!(
        r#"
            WITH environment AS (
                SELECT id FROM environments
                WHERE id = $5 AND workspace_id = $2 AND archived_at IS NULL AND deleted_at IS NULL
                FOR SHARE
            ), session AS (
                INSERT INTO sessions (id, workspace_id, agent_id, agent_version, environment_id,
                                      agent, environment, title, metadata, created_by, created_at,
                                      equipped, vault_ids)
                SELECT $1, $2, $3, $4, id, $6, $7, $8, $9, $10, $11::timestamptz, $33, $34
                FROM environment
                RETURNING id
            ), state AS (
                INSERT INTO session_state (session_id, workspace_id, status, updated_at, last_seq,
                    last_processed_at, queued, view, machine, primary_thread, owner, epoch, wake_at,
                    accepted_seq, accepted_at)
                SELECT id, $2, $12, $11, $13, $11, $14, $15, $16, $17, $18, $19, $20,
                       CASE WHEN $13::bigint > 0 THEN 0 END,
                       CASE WHEN $13::bigint > 0 THEN $11::timestamptz END
                FROM session
            ), thread AS (
                INSERT INTO session_threads (id, session_id, position, agent, status, view,
                                             created_at, updated_at)
                SELECT $17, id, 0, $21, $22, $23, $11, $11 FROM session
            ), appended AS (
                INSERT INTO events (session_id, seq, event_id, thread_id, on_session, type,
                                    processed_at, body, private, actor_key, request_id)
                SELECT session.id, seq, event_id, thread_id, on_session, type,
                       CASE WHEN processed THEN $11::timestamptz END, body, private, $10, $24
                FROM session, unnest($25::bigint[], $26::uuid[], $27::uuid[], $28::boolean[],
                                     $29::text[], $30::boolean[], $31::text[], $32::text[])
                  AS e (seq, event_id, thread_id, on_session, type, processed, body, private)
            )
            SELECT webhook_emit($2, $11, $35) FROM session
            "#,
        new.id.0,
        new.workspace.0,
        new.agent_id.0,
        new.agent_version,
        new.environment_id.0,
        new.agent,
        new.environment,
        new.title,
        new.metadata,
        new.created_by.map(|key| key.0),
        jiff_sqlx::Timestamp::from(new.created_at.inner()) as _,
        first.status,
        last_seq,
        &first.queued,
        first.view,
        first.machine,
        new.thread.0,
        first.owner.map(|server| server.0),
        epoch,
        first
            .wake_at
            .map(|at| jiff_sqlx::Timestamp::from(at.inner())) as _,
        new.thread_agent,
        first.thread_status,
        first.thread_view,
        new.request_id,
        &columns.seqs,
        &columns.ids,
        &columns.threads,
        &columns.on_session,
        &columns.types as _,
        &columns.processed,
        &columns.bodies as _,
        &columns.privates as _,
        new.equipped,
        &vaults,
        happened as _,
    )
    .fetch_optional(executor)
    .await
}
