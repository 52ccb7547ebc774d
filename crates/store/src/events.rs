//! Reading the log.

use selfsame_types::{EventId, SessionId, ThreadId, Timestamp, event::EventType, page::Order};

use sqlx::{Postgres, QueryBuilder};

use crate::{Row, Store, StoreError, time};

/// A page ends at its limit or here, whichever comes first.
const PAGE_BYTES: i64 = 8 << 20;

/// Which events of a session to list.
#[derive(Debug, Clone)]
pub struct EventQuery {
    pub session: SessionId,
    /// The session's own view, or one thread's.
    pub thread: Option<ThreadId>,
    pub order: Order,
    /// Empty: every type.
    pub types: Vec<EventType>,
    /// Processed after this time; with `true`, also exactly then.
    pub after: Option<(Timestamp, bool)>,
    /// Processed before this time; with `true`, also exactly then.
    pub before: Option<(Timestamp, bool)>,
    /// Only the part of the list behind these positions.
    pub cursor: EventCursor,
    pub limit: i64,
}

/// Where a list stands: the last processed and the last queued position it has shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EventCursor {
    pub processed: Option<i64>,
    pub queued: Option<i64>,
}

#[derive(sqlx::FromRow)]
struct EventRow {
    seq: i64,
    event_id: uuid::Uuid,
    thread_id: uuid::Uuid,
    on_session: bool,
    r#type: String,
    processed_at: Option<jiff_sqlx::Timestamp>,
    body: String,
    private: Option<String>,
}

impl TryFrom<EventRow> for Row {
    type Error = StoreError;

    fn try_from(row: EventRow) -> Result<Self, StoreError> {
        Ok(Self {
            seq: row.seq,
            id: EventId(row.event_id),
            thread: ThreadId(row.thread_id),
            on_session: row.on_session,
            event_type: EventType::parse(&row.r#type).ok_or_else(|| StoreError::Corrupt {
                table: "events",
                column: "type",
                row: row.seq.to_string(),
                source: row.r#type.clone().into(),
            })?,
            processed_at: row.processed_at.map(time),
            body: row.body.into(),
            private: row.private.map(Into::into),
        })
    }
}

/// A bound on times, turned into a bound on positions: the two agree within a session.
fn push_bound(
    sql: &mut QueryBuilder<Postgres>,
    session: SessionId,
    bound: Option<(Timestamp, bool)>,
    lower: bool,
) {
    let Some((at, inclusive)) = bound else { return };
    let (outer, inner, direction) = match (lower, inclusive) {
        (true, true) => (" AND seq >= ", " >= ", "ASC"),
        (true, false) => (" AND seq >= ", " > ", "ASC"),
        (false, true) => (" AND seq <= ", " <= ", "DESC"),
        (false, false) => (" AND seq <= ", " < ", "DESC"),
    };
    sql.push(outer)
        .push("(SELECT b.seq FROM events b WHERE b.session_id = ")
        .push_bind(session.0)
        .push(" AND b.processed_at")
        .push(inner)
        .push_bind(jiff_sqlx::Timestamp::from(at.inner()))
        .push(" ORDER BY b.processed_at ")
        .push(direction)
        .push(", b.seq ")
        .push(direction)
        .push(" LIMIT 1)");
}

impl EventQuery {
    /// The condition on everything but the type.
    fn push_filter(&self, sql: &mut QueryBuilder<Postgres>) {
        sql.push("session_id = ")
            .push_bind(self.session.0)
            .push(" AND processed_at IS NOT NULL");
        match self.thread {
            None => sql.push(" AND on_session"),
            Some(thread) => sql.push(" AND thread_id = ").push_bind(thread.0),
        };
        if let Some(seq) = self.cursor.processed {
            sql.push(match self.order {
                Order::Asc => " AND seq > ",
                Order::Desc => " AND seq < ",
            })
            .push_bind(seq);
        }
        push_bound(sql, self.session, self.after, true);
        push_bound(sql, self.session, self.before, false);
    }
}

/// A page of events, and whether there are more behind it.
#[derive(Debug, Default)]
pub struct EventPage {
    pub rows: Vec<Row>,
    pub more: bool,
}

impl Store {
    /// Processed events by position, at most `query.limit` of them and at most 8 MiB (but one).
    ///
    /// # Errors
    /// Database faults.
    pub async fn event_list(&self, query: &EventQuery) -> Result<EventPage, StoreError> {
        let direction = match query.order {
            Order::Asc => "ASC",
            Order::Desc => "DESC",
        };
        let mut sql = QueryBuilder::new("WITH found AS (");
        if query.types.is_empty() {
            sql.push("SELECT * FROM events WHERE ");
            query.push_filter(&mut sql);
        } else {
            // One index range per type: a rare type must not walk the whole log.
            let types: Vec<&str> = query.types.iter().map(|t| t.as_str()).collect();
            sql.push("SELECT e.* FROM unnest(")
                .push_bind(types)
                .push("::text[]) AS t (type) CROSS JOIN LATERAL (SELECT * FROM events WHERE ");
            query.push_filter(&mut sql);
            sql.push(" AND events.type = t.type ORDER BY events.seq ")
                .push(direction)
                .push(" LIMIT ")
                .push_bind(query.limit + 1)
                .push(") e");
        }
        sql.push(" ORDER BY seq ")
            .push(direction)
            .push(" LIMIT ")
            .push_bind(query.limit + 1)
            .push(
                "), sized AS (SELECT *, count(*) OVER () AS total, \
             sum(octet_length(body)) OVER (ORDER BY seq ",
            );
        sql.push(direction)
            .push(
                ") - octet_length(body) AS before FROM found) \
                 SELECT seq, event_id, thread_id, on_session, type, processed_at, body, \
                 NULL::text AS private, total FROM sized WHERE before < ",
            )
            .push_bind(PAGE_BYTES)
            .push(" ORDER BY seq ")
            .push(direction);
        let found: Vec<SizedRow> = sql.build_query_as().fetch_all(&self.pool).await?;
        let total = found.first().map_or(0, |row| row.total);
        let limit = usize::try_from(query.limit).unwrap_or(usize::MAX);
        let rows = found
            .into_iter()
            .take(limit)
            .map(|row| row.event.try_into())
            .collect::<Result<Vec<Row>, _>>()?;
        let more = usize::try_from(total).unwrap_or(usize::MAX) > rows.len();
        Ok(EventPage { rows, more })
    }

    /// Inputs that are still queued, by position. Filters of `query` but its time bounds hold.
    ///
    /// # Errors
    /// Database faults.
    pub async fn event_queued(&self, query: &EventQuery) -> Result<Vec<Row>, StoreError> {
        let types: Vec<&str> = query.types.iter().map(|t| t.as_str()).collect();
        sqlx::query_as!(
            EventRow,
            r#"
            SELECT e.seq, e.event_id, e.thread_id, e.on_session, e.type, e.processed_at, e.body,
                   NULL::text AS private
            FROM session_state s
            JOIN events e ON e.session_id = s.session_id AND e.seq = ANY (s.queued)
            WHERE s.session_id = $1
              AND CASE WHEN $2::uuid IS NULL THEN e.on_session ELSE e.thread_id = $2 END
              AND (cardinality($3::text[]) = 0 OR e.type = ANY ($3))
            ORDER BY e.seq
            "#,
            query.session.0,
            query.thread.map(|thread| thread.0),
            &types as _,
        )
        .fetch_all(&self.pool)
        .await?
        .into_iter()
        .map(TryInto::try_into)
        .collect()
    }

    /// Every row behind `after`, queued forms included, for streams: at most `limit` and 8 MiB.
    ///
    /// # Errors
    /// Database faults.
    pub async fn event_tail(
        &self,
        session: SessionId,
        after: i64,
        limit: i64,
    ) -> Result<Vec<Row>, StoreError> {
        sqlx::query_as!(
            EventRow,
            r#"
            SELECT seq AS "seq!", event_id AS "event_id!", thread_id AS "thread_id!",
                   on_session AS "on_session!", type AS "type!", processed_at, body AS "body!",
                   NULL::text AS private
            FROM (
                SELECT *, sum(octet_length(body)) OVER (ORDER BY seq) - octet_length(body) AS before
                FROM (
                    SELECT * FROM events WHERE session_id = $1 AND seq > $2 ORDER BY seq LIMIT $3
                ) found
            ) sized
            WHERE before < $4
            ORDER BY seq
            "#,
            session.0,
            after,
            limit,
            PAGE_BYTES,
        )
        .fetch_all(&self.pool)
        .await?
        .into_iter()
        .map(TryInto::try_into)
        .collect()
    }

    /// A thread's processed events from a position on, with their private parts: what its transcript
    /// is made of. At most `limit`.
    ///
    /// # Errors
    /// Database faults.
    pub async fn event_transcript(
        &self,
        session: SessionId,
        thread: ThreadId,
        after: i64,
        limit: i64,
    ) -> Result<Vec<Row>, StoreError> {
        sqlx::query_as!(
            EventRow,
            r#"
            SELECT seq, event_id, thread_id, on_session, type, processed_at, body, private
            FROM events
            WHERE session_id = $1 AND thread_id = $2 AND seq > $3 AND processed_at IS NOT NULL
            ORDER BY seq
            LIMIT $4
            "#,
            session.0,
            thread.0,
            after,
            limit,
        )
        .fetch_all(&self.pool)
        .await?
        .into_iter()
        .map(TryInto::try_into)
        .collect()
    }

    /// A thread's latest event, when that is of this type.
    pub(crate) async fn event_last(
        &self,
        session: SessionId,
        thread: ThreadId,
        event: EventType,
    ) -> Result<Option<Row>, StoreError> {
        let last = sqlx::query_as!(
            EventRow,
            r#"
            SELECT seq, event_id, thread_id, on_session, type, processed_at, body,
                   NULL::text AS private
            FROM events
            WHERE session_id = $1 AND thread_id = $2
            ORDER BY seq DESC
            LIMIT 1
            "#,
            session.0,
            thread.0,
        )
        .fetch_optional(&self.pool)
        .await?
        .map(Row::try_from)
        .transpose()?;
        Ok(last.filter(|row| row.event_type == event))
    }

    /// Every session in `sessions` whose log has moved past the position beside it, or that is
    /// deleted: one query for all that a process watches.
    ///
    /// # Errors
    /// Database faults.
    pub async fn event_sweep(
        &self,
        sessions: &[(SessionId, i64)],
    ) -> Result<Vec<Moved>, StoreError> {
        let ids: Vec<_> = sessions.iter().map(|(session, _)| session.0).collect();
        let seqs: Vec<_> = sessions.iter().map(|(_, seq)| *seq).collect();
        Ok(sqlx::query!(
            r#"
            SELECT w.session_id AS "session_id!", COALESCE(s.last_seq, w.seq) AS "seq!",
                   (c.id IS NULL OR c.deleted_at IS NOT NULL) AS "deleted!"
            FROM unnest($1::uuid[], $2::bigint[]) AS w (session_id, seq)
            LEFT JOIN session_state s ON s.session_id = w.session_id
            LEFT JOIN sessions c ON c.id = w.session_id
            WHERE s.last_seq > w.seq OR c.id IS NULL OR c.deleted_at IS NOT NULL
            "#,
            &ids,
            &seqs,
        )
        .fetch_all(&self.pool)
        .await?
        .into_iter()
        .map(|row| Moved {
            session: SessionId(row.session_id),
            seq: row.seq,
            deleted: row.deleted,
        })
        .collect())
    }
}

/// What a sweep found about a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moved {
    pub session: SessionId,
    pub seq: i64,
    pub deleted: bool,
}

#[derive(sqlx::FromRow)]
struct SizedRow {
    #[sqlx(flatten)]
    event: EventRow,
    total: i64,
}
