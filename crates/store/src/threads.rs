//! Threads of a session: reading and lists. They come and change with [`Store::append`].

use selfsame_types::{SessionId, ThreadId, Timestamp, event::EventType};

use crate::{Row, Store, StoreError, time};

/// A thread as read.
#[derive(Debug, Clone)]
pub struct ThreadRecord {
    pub id: ThreadId,
    pub session: SessionId,
    pub parent: Option<ThreadId>,
    pub position: i32,
    pub agent: String,
    pub status: String,
    pub view: String,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    pub archived_at: Option<Timestamp>,
    pub now: Timestamp,
}

struct ThreadRow {
    id: uuid::Uuid,
    session_id: uuid::Uuid,
    parent_thread_id: Option<uuid::Uuid>,
    position: i32,
    agent: String,
    status: String,
    view: String,
    created_at: jiff_sqlx::Timestamp,
    updated_at: jiff_sqlx::Timestamp,
    archived_at: Option<jiff_sqlx::Timestamp>,
    now: jiff_sqlx::Timestamp,
}

impl From<ThreadRow> for ThreadRecord {
    fn from(row: ThreadRow) -> Self {
        Self {
            id: ThreadId(row.id),
            session: SessionId(row.session_id),
            parent: row.parent_thread_id.map(ThreadId),
            position: row.position,
            agent: row.agent,
            status: row.status,
            view: row.view,
            created_at: time(row.created_at),
            updated_at: time(row.updated_at),
            archived_at: row.archived_at.map(time),
            now: time(row.now),
        }
    }
}

/// Every status of a thread.
const STATUSES: [&str; 4] = ["running", "idle", "rescheduling", "terminated"];

impl Store {
    /// A session's threads by creation, and whether more follow. `statuses` empty: whatever they do.
    ///
    /// # Errors
    /// Database faults.
    pub async fn thread_list(
        &self,
        session: SessionId,
        after: Option<i32>,
        statuses: &[&str],
        limit: i64,
    ) -> Result<(Vec<ThreadRecord>, bool), StoreError> {
        let statuses = if statuses.is_empty() {
            STATUSES.as_slice()
        } else {
            statuses
        };
        // One index range for each status: a rare one must not walk through all threads.
        let mut rows = sqlx::query_as!(
            ThreadRow,
            r#"
            SELECT t.id, t.session_id, t.parent_thread_id, t.position, t.agent, t.status, t.view,
                   t.created_at, t.updated_at, t.archived_at,
                   clock_timestamp() AS "now!: jiff_sqlx::Timestamp"
            FROM (SELECT DISTINCT unnest($3::text[]) AS status) wanted
            CROSS JOIN LATERAL (
                SELECT * FROM session_threads
                WHERE session_id = $1 AND session_threads.status = wanted.status AND position > $2
                ORDER BY position
                LIMIT $4
            ) t
            ORDER BY t.position
            LIMIT $4
            "#,
            session.0,
            after.unwrap_or(-1),
            statuses as _,
            limit + 1,
        )
        .fetch_all(&self.pool)
        .await?;
        let more = rows.len() > usize::try_from(limit).unwrap_or(usize::MAX);
        if more {
            rows.pop();
        }
        Ok((rows.into_iter().map(Into::into).collect(), more))
    }

    /// One thread of a session.
    ///
    /// # Errors
    /// Database faults.
    pub async fn thread_get(
        &self,
        session: SessionId,
        id: ThreadId,
    ) -> Result<Option<ThreadRecord>, StoreError> {
        Ok(sqlx::query_as!(
            ThreadRow,
            r#"
            SELECT id, session_id, parent_thread_id, position, agent, status, view, created_at,
                   updated_at, archived_at, clock_timestamp() AS "now!: jiff_sqlx::Timestamp"
            FROM session_threads
            WHERE session_id = $1 AND id = $2
            "#,
            session.0,
            id.0,
        )
        .fetch_optional(&self.pool)
        .await?
        .map(Into::into))
    }

    /// The last event of a thread that is over.
    ///
    /// # Errors
    /// Database faults.
    pub async fn thread_end(
        &self,
        session: SessionId,
        id: ThreadId,
    ) -> Result<Option<Row>, StoreError> {
        let ends = EventType::SessionThreadStatusTerminated;
        self.event_last(session, id, ends).await
    }
}

#[cfg(test)]
mod tests;
