//! The log: append and read.
//!
//! [`Store::append`] is the only way an event comes into being. It locks the session's state row,
//! lets the caller decide from what it finds there, and writes events and new state in the same
//! transaction. Hence sequence order is commit order within a session, a reader after `seq > n` never
//! misses an event, and `GET session` never contradicts the log.

use std::{sync::Arc, time::Duration};

use selfsame_types::{
    ApiError, EventId, ServerId, SessionId, ThreadId, Timestamp, WorkspaceId,
    event::{EventType, NewEvent, Processed},
};
use sqlx::{Postgres, Transaction};
use uuid::Uuid;

use crate::{Actor, Audit, Store, StoreError, keys::audit, resources, time, webhooks};

/// No pool is larger.
const BROKEN_CONNECTIONS: u32 = 100;
/// An append whose commit broke off is looked for this often ..
const LANDED_LOOKS: u32 = 20;
/// .. with this much time in between.
const LANDED_PAUSE: Duration = Duration::from_millis(250);

/// Who appends, and by what right.
#[derive(Debug, Clone, Copy)]
pub enum Guard {
    /// A client of this workspace. With `cold`, the decision also sees [`Head::cold`].
    Client { workspace: WorkspaceId, cold: bool },
    /// The runner that holds the session's lease with this epoch.
    Runner { server: ServerId, epoch: i64 },
}

/// The locked state that a decision is made from.
#[derive(Debug)]
pub struct Head {
    pub session: SessionId,
    pub workspace: WorkspaceId,
    pub primary: ThreadId,
    /// The database's clock, and never before an earlier event of this session.
    pub now: Timestamp,
    pub last_seq: i64,
    /// Saved state of the engine.
    pub machine: String,
    pub queued: Vec<i64>,
    pub owner: Option<ServerId>,
    pub epoch: i64,
    pub archived: bool,
    /// For clients: where the session's sandbox lives, if it has one.
    pub backend: Option<String>,
    /// For clients: the session has, or had, something to mount.
    pub equipped: bool,
    pub cold: Option<Cold>,
    /// With `cold`: the environment's configuration as JSON text.
    pub environment: Option<String>,
}

/// The parts of a session that clients edit.
#[derive(Debug, Clone)]
pub struct Cold {
    pub title: Option<String>,
    /// JSON text.
    pub metadata: String,
    /// The agent snapshot as JSON text.
    pub agent: String,
}

/// What becomes of the lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseChange {
    Keep,
    /// This server takes a session that nobody drives.
    Claim(ServerId),
    /// The runner is done, or hands over; `unclean` when something was still in flight.
    Release {
        unclean: bool,
    },
}

/// A thread whose row changes with an append.
#[derive(Debug, Clone)]
pub struct ThreadChange {
    pub id: ThreadId,
    pub status: &'static str,
    pub view: String,
    /// A client ends it with this.
    pub archived: bool,
}

/// A thread that begins with an append.
#[derive(Debug, Clone)]
pub struct NewThread {
    pub parent: ThreadId,
    /// Among the session's threads, by creation; the primary one is 0.
    pub position: i32,
    /// What the thread shows as its `agent`, as JSON text.
    pub agent: String,
    pub change: ThreadChange,
}

/// What an append writes.
#[derive(Debug)]
pub struct Change {
    pub events: Vec<NewEvent>,
    pub machine: String,
    pub status: &'static str,
    pub view: String,
    /// Those that change; others keep what they have.
    pub threads: Vec<ThreadChange>,
    pub spawned: Vec<NewThread>,
    /// Positions of inputs that are still unprocessed, new ones included.
    pub queued: Vec<i64>,
    pub wake_at: Option<Timestamp>,
    pub lease: LeaseChange,
    /// The session's `updated_at` moves.
    pub touched: bool,
    /// A client's input was accepted: a stream opened shortly afterwards begins here.
    pub accepted: bool,
    /// Replaces what clients edit.
    pub cold: Option<Cold>,
    pub end: Option<End>,
    /// For the ledger.
    pub requests: Vec<ModelRequest>,
}

/// How a session ends for its clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Archive,
    /// Hidden at once; the rows are purged in the background.
    Delete,
}

/// A ledger row of one request to a model.
#[derive(Debug, Clone)]
pub struct ModelRequest {
    pub id: EventId,
    pub thread: ThreadId,
    pub model: String,
    pub route: String,
    pub started_at: Timestamp,
    pub outcome: &'static str,
    pub input_tokens: i64,
    pub output_tokens: i64,
    pub cache_read_input_tokens: i64,
    pub cache_creation_input_tokens: i64,
}

/// An event as it stands in the log.
#[derive(Debug, Clone)]
pub struct Row {
    pub seq: i64,
    pub id: EventId,
    pub thread: ThreadId,
    pub on_session: bool,
    pub event_type: EventType,
    pub processed_at: Option<Timestamp>,
    pub body: Arc<str>,
    pub private: Option<Arc<str>>,
}

/// What an append did.
#[derive(Debug)]
pub struct Appended {
    pub rows: Vec<Row>,
    pub epoch: i64,
    pub at: Timestamp,
    /// The one who let go of the lease did so in the middle of something.
    pub unclean: bool,
}

/// Why nothing was appended.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// No such session in this workspace.
    #[error("no such session")]
    NotFound,
    /// The decision refused.
    #[error(transparent)]
    Refused(#[from] ApiError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<sqlx::Error> for AppendError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

impl Store {
    /// Decides and appends under the session's lock. `decide` runs between lock and write; it must
    /// not block. Answering no change (`None`) writes nothing.
    ///
    /// # Errors
    /// [`AppendError::Refused`] is the decision's own. After a transient [`StoreError`] nothing was
    /// written, unless the database was away for longer than this looked whether the commit had
    /// happened.
    pub async fn append<F>(
        &self,
        session: SessionId,
        guard: Guard,
        actor: &Actor,
        decide: F,
    ) -> Result<Option<Appended>, AppendError>
    where
        F: FnOnce(&Head) -> Result<Option<Change>, ApiError> + Send,
    {
        let (mut tx, head, was_unclean) = self.lock(session, guard).await?;
        let Some(change) = decide(&head)? else {
            return Ok(None);
        };
        let rows = render_rows(&change.events, head.last_seq, head.now);
        let (owner, epoch, unclean) = match change.lease {
            LeaseChange::Keep => (head.owner, head.epoch, None),
            LeaseChange::Claim(server) => (Some(server), head.epoch + 1, None),
            LeaseChange::Release { unclean } => (None, head.epoch, Some(unclean)),
        };
        let columns = Columns::of(&rows);
        if !change.spawned.is_empty() {
            insert_threads(&mut tx, &head, &change.spawned).await?;
        }
        let told = webhooks::of_session(session, head.primary, &change.events, change.end);
        let happened = self.happened(head.workspace, &told).await?;
        // One statement, one round trip: the events, their threads, the state, the outbox.
        let hooked = sqlx::query_scalar!(
            r#"
            WITH appended AS (
                INSERT INTO events (session_id, seq, event_id, thread_id, on_session, type,
                                    processed_at, body, private, actor_key, request_id)
                SELECT $1, seq, event_id, thread_id, on_session, type,
                       CASE WHEN processed THEN $2::timestamptz END, body, private, $3, $4
                FROM unnest($5::bigint[], $6::uuid[], $7::uuid[], $8::boolean[], $9::text[],
                            $10::boolean[], $11::text[], $12::text[])
                  AS e (seq, event_id, thread_id, on_session, type, processed, body, private)
            ), moved AS (
                UPDATE session_threads t
                SET status = c.status, view = c.view,
                    updated_at = CASE WHEN t.status <> c.status THEN $2 ELSE t.updated_at END,
                    archived_at = CASE WHEN c.archived THEN COALESCE(t.archived_at, $2)
                                       ELSE t.archived_at END
                FROM unnest($13::boolean[], $14::uuid[], $15::text[], $16::text[])
                  AS c (archived, id, status, view)
                WHERE t.id = c.id
            )
            UPDATE session_state
            SET status = $17, last_seq = $18, queued = $19, view = $20, machine = $21,
                owner = $22, epoch = $23, unclean = COALESCE($24, unclean),
                -- Due is due: a time that need not move leaves the index alone.
                wake_at = CASE WHEN wake_at <= $2 AND $25 <= $2 THEN wake_at ELSE $25 END,
                last_processed_at = $2,
                updated_at = CASE WHEN $26 OR status <> $17 THEN $2 ELSE updated_at END,
                accepted_seq = CASE WHEN $27 THEN last_seq ELSE accepted_seq END,
                accepted_at = CASE WHEN $27 THEN $2 ELSE accepted_at END
            WHERE session_id = $1
            RETURNING webhook_emit($28, $2, $29)
            "#,
            session.0,
            jiff_sqlx::Timestamp::from(head.now.inner()) as _,
            actor.key.map(|key| key.0),
            actor.request,
            &columns.seqs,
            &columns.ids,
            &columns.threads,
            &columns.on_session,
            &columns.types as _,
            &columns.processed,
            &columns.bodies as _,
            &columns.privates as _,
            &change
                .threads
                .iter()
                .map(|t| t.archived)
                .collect::<Vec<_>>(),
            &change.threads.iter().map(|t| t.id.0).collect::<Vec<_>>(),
            &change.threads.iter().map(|t| t.status).collect::<Vec<_>>() as _,
            &change
                .threads
                .iter()
                .map(|t| t.view.as_str())
                .collect::<Vec<_>>() as _,
            change.status,
            rows.last().map_or(head.last_seq, |row| row.seq),
            &change.queued,
            change.view,
            change.machine,
            owner.map(|server| server.0),
            epoch,
            unclean,
            change
                .wake_at
                .map(|at| jiff_sqlx::Timestamp::from(at.inner())) as _,
            change.touched,
            change.accepted,
            head.workspace.0,
            happened as _,
        )
        .fetch_one(&mut *tx)
        .await?;
        if let Some(cold) = &change.cold {
            sqlx::query!(
                "UPDATE sessions SET title = $2, metadata = $3, agent = $4 WHERE id = $1",
                session.0,
                cold.title,
                cold.metadata,
                cold.agent,
            )
            .execute(&mut *tx)
            .await?;
        }
        if let Some(end) = change.end {
            sqlx::query!(
                r#"
                UPDATE sessions
                SET archived_at = CASE WHEN $3 THEN archived_at ELSE COALESCE(archived_at, $2) END,
                    deleted_at = CASE WHEN $3 THEN $2 ELSE deleted_at END
                WHERE id = $1
                "#,
                session.0,
                jiff_sqlx::Timestamp::from(head.now.inner()) as _,
                end == End::Delete,
            )
            .execute(&mut *tx)
            .await?;
            if end == End::Archive {
                sqlx::query!(
                    r#"
                    UPDATE session_threads SET archived_at = $2
                    WHERE session_id = $1 AND archived_at IS NULL
                    "#,
                    session.0,
                    jiff_sqlx::Timestamp::from(head.now.inner()) as _,
                )
                .execute(&mut *tx)
                .await?;
            }
            if head.equipped {
                // What is over needs no tokens.
                resources::forget_tokens(&mut tx, session).await?;
            }
        }
        if change.end == Some(End::Delete) {
            // Their contents go with the sweep. Made after this, a file finds no session.
            sqlx::query!("DELETE FROM files WHERE session_id = $1", session.0)
                .execute(&mut *tx)
                .await?;
        }
        if let (Some(end), Guard::Client { workspace, .. }) = (change.end, guard) {
            let entry = Audit {
                workspace: Some(workspace),
                actor,
                action: match end {
                    End::Archive => "session.archive",
                    End::Delete => "session.delete",
                },
                target: session.to_string(),
                detail: serde_json::json!({}),
            };
            audit(&mut *tx, entry).await?;
        }
        for request in &change.requests {
            sqlx::query!(
                r#"
                INSERT INTO model_requests (id, workspace_id, session_id, thread_id, key_id,
                    agent_id, model, route, started_at, ended_at, outcome, input_tokens,
                    output_tokens, cache_read_input_tokens, cache_creation_input_tokens)
                SELECT $1, $2, $3, $4, c.created_by, c.agent_id, $5, $6, $7, $8, $9, $10, $11, $12, $13
                FROM sessions c WHERE c.id = $3
                ON CONFLICT (id) DO NOTHING
                "#,
                request.id.0,
                head.workspace.0,
                session.0,
                request.thread.0,
                request.model,
                request.route,
                jiff_sqlx::Timestamp::from(request.started_at.inner()) as _,
                jiff_sqlx::Timestamp::from(head.now.inner()) as _,
                request.outcome,
                request.input_tokens,
                request.output_tokens,
                request.cache_read_input_tokens,
                request.cache_creation_input_tokens,
            )
            .execute(&mut *tx)
            .await?;
        }
        if let Err(error) = tx.commit().await {
            let error = StoreError::from(error);
            if !error.is_transient() || !self.landed(session, rows.last()).await {
                return Err(error.into());
            }
        }
        self.emitted(hooked);
        Ok(Some(Appended {
            rows,
            epoch,
            at: head.now,
            unclean: was_unclean,
        }))
    }

    /// Locks a session's state and reads it.
    async fn lock(
        &self,
        session: SessionId,
        guard: Guard,
    ) -> Result<(Transaction<'static, Postgres>, Head, bool), AppendError> {
        let mut broken = 0;
        let (mut tx, row) = loop {
            match self.lock_once(session).await {
                // After a restart of the database every connection of the pool is broken, and each
                // shows it only when it is used.
                Err(error) if is_broken(&error) && broken < BROKEN_CONNECTIONS => broken += 1,
                locked => break locked?,
            }
        };
        let row = row.ok_or(AppendError::NotFound)?;
        let mut head = Head {
            session,
            workspace: WorkspaceId(row.workspace_id),
            primary: ThreadId(row.primary_thread),
            now: time(row.now).max(time(row.last_processed_at)),
            last_seq: row.last_seq,
            machine: row.machine,
            queued: row.queued,
            owner: row.owner.map(ServerId),
            epoch: row.epoch,
            archived: false,
            backend: None,
            equipped: false,
            cold: None,
            environment: None,
        };
        match guard {
            Guard::Client { workspace, .. } if workspace != head.workspace => {
                return Err(AppendError::NotFound);
            }
            Guard::Runner { server, epoch }
                if head.owner != Some(server) || head.epoch != epoch =>
            {
                return Err(StoreError::LeaseLost.into());
            }
            // A runner's session is neither archived nor deleted: both take the lease away.
            Guard::Runner { .. } => {}
            Guard::Client { cold, .. } => read_cold(&mut tx, &mut head, cold).await?,
        }
        Ok((tx, head, row.unclean))
    }

    async fn lock_once(
        &self,
        session: SessionId,
    ) -> Result<(Transaction<'static, Postgres>, Option<LockedRow>), sqlx::Error> {
        let mut tx = self.pool.begin().await?;
        let row = sqlx::query_as!(
            LockedRow,
            r#"
            SELECT workspace_id, primary_thread, clock_timestamp() AS "now!: jiff_sqlx::Timestamp",
                   last_processed_at, last_seq, machine, queued, owner, epoch, unclean
            FROM session_state
            WHERE session_id = $1
            FOR UPDATE
            "#,
            session.0,
        )
        .fetch_optional(&mut *tx)
        .await?;
        Ok((tx, row))
    }

    /// Whether an append whose commit broke off has happened after all, by its last row. A transaction
    /// that the database has not ended yet holds the lock, so this waits for its end.
    async fn landed(&self, session: SessionId, last: Option<&Row>) -> bool {
        let Some(last) = last else { return false };
        for _ in 0..LANDED_LOOKS {
            match self.landed_once(session, last).await {
                Ok(landed) => return landed,
                Err(error) if error.is_transient() => tokio::time::sleep(LANDED_PAUSE).await,
                Err(_) => return false,
            }
        }
        false
    }

    async fn landed_once(&self, session: SessionId, last: &Row) -> Result<bool, StoreError> {
        let mut tx = self.pool.begin().await?;
        sqlx::query!(
            "SELECT last_seq FROM session_state WHERE session_id = $1 FOR UPDATE",
            session.0,
        )
        .fetch_optional(&mut *tx)
        .await?;
        Ok(sqlx::query_scalar!(
            r#"
            SELECT EXISTS (SELECT FROM events WHERE session_id = $1 AND seq = $2 AND event_id = $3)
                AS "exists!"
            "#,
            session.0,
            last.seq,
            last.id.0,
        )
        .fetch_one(&mut *tx)
        .await?)
    }
}

struct LockedRow {
    workspace_id: Uuid,
    primary_thread: Uuid,
    now: jiff_sqlx::Timestamp,
    last_processed_at: jiff_sqlx::Timestamp,
    last_seq: i64,
    machine: String,
    queued: Vec<i64>,
    owner: Option<Uuid>,
    epoch: i64,
    unclean: bool,
}

/// The connection is at fault, not the database: another one may do.
fn is_broken(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::Protocol(_) => true,
        // The server's last word on a connection when it shuts down.
        sqlx::Error::Database(error) => error.code().is_some_and(|code| code == "57P01"),
        _ => false,
    }
}

/// Reads what clients edit, *after* the lock was had: a join in the locking statement would still show
/// what stood there before a wait.
async fn read_cold(
    tx: &mut sqlx::PgConnection,
    head: &mut Head,
    wanted: bool,
) -> Result<(), AppendError> {
    let row = sqlx::query!(
        r#"
        SELECT archived_at AS "archived_at: jiff_sqlx::Timestamp", title, equipped,
               CASE WHEN $2 THEN environment END AS environment,
               CASE WHEN $2 THEN metadata END AS metadata, CASE WHEN $2 THEN agent END AS agent,
               CASE WHEN $2 THEN (SELECT backend FROM sandboxes WHERE session_id = $1) END AS backend
        FROM sessions
        WHERE id = $1 AND deleted_at IS NULL
        "#,
        head.session.0,
        wanted,
    )
    .fetch_optional(tx)
    .await?
    .ok_or(AppendError::NotFound)?;
    head.archived = row.archived_at.is_some();
    head.backend = row.backend;
    head.equipped = row.equipped;
    head.environment = row.environment;
    head.cold = row.metadata.zip(row.agent).map(|(metadata, agent)| Cold {
        title: row.title,
        metadata,
        agent,
    });
    Ok(())
}

async fn insert_threads(
    tx: &mut sqlx::PgConnection,
    head: &Head,
    threads: &[NewThread],
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        r#"
        INSERT INTO session_threads (id, session_id, parent_thread_id, position, agent, status,
                                     view, created_at, updated_at)
        SELECT id, $1, parent, position, agent, status, view, $2::timestamptz, $2
        FROM unnest($3::uuid[], $4::uuid[], $5::integer[], $6::text[], $7::text[], $8::text[])
          AS t (id, parent, position, agent, status, view)
        "#,
        head.session.0,
        jiff_sqlx::Timestamp::from(head.now.inner()) as _,
        &threads.iter().map(|t| t.change.id.0).collect::<Vec<_>>(),
        &threads.iter().map(|t| t.parent.0).collect::<Vec<_>>(),
        &threads.iter().map(|t| t.position).collect::<Vec<_>>(),
        &threads.iter().map(|t| t.agent.as_str()).collect::<Vec<_>>() as _,
        &threads.iter().map(|t| t.change.status).collect::<Vec<_>>() as _,
        &threads
            .iter()
            .map(|t| t.change.view.as_str())
            .collect::<Vec<_>>() as _,
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// The rows that `events` become behind `last_seq`.
pub(crate) fn render_rows(events: &[NewEvent], last_seq: i64, at: Timestamp) -> Vec<Row> {
    events
        .iter()
        .zip(last_seq + 1..)
        .map(|(event, seq)| Row {
            seq,
            id: event.id,
            thread: event.thread,
            on_session: event.on_session,
            event_type: event.event_type,
            processed_at: (event.processed == Processed::Now).then_some(at),
            body: event.render(at).into(),
            private: event.private.as_deref().map(Into::into),
        })
        .collect()
}

/// Rows turned into the arrays that `unnest` takes.
pub(crate) struct Columns<'a> {
    pub(crate) seqs: Vec<i64>,
    pub(crate) ids: Vec<Uuid>,
    pub(crate) threads: Vec<Uuid>,
    pub(crate) on_session: Vec<bool>,
    pub(crate) types: Vec<&'static str>,
    pub(crate) processed: Vec<bool>,
    pub(crate) bodies: Vec<&'a str>,
    pub(crate) privates: Vec<Option<&'a str>>,
}

impl<'a> Columns<'a> {
    pub(crate) fn of(rows: &'a [Row]) -> Self {
        Self {
            seqs: rows.iter().map(|row| row.seq).collect(),
            ids: rows.iter().map(|row| row.id.0).collect(),
            threads: rows.iter().map(|row| row.thread.0).collect(),
            on_session: rows.iter().map(|row| row.on_session).collect(),
            types: rows.iter().map(|row| row.event_type.as_str()).collect(),
            processed: rows.iter().map(|row| row.processed_at.is_some()).collect(),
            bodies: rows.iter().map(|row| &*row.body).collect(),
            privates: rows.iter().map(|row| row.private.as_deref()).collect(),
        }
    }
}
