//! Who drives which session: servers' heartbeats and sessions' leases.
//!
//! A server is alive while its heartbeat row is younger than the time to live; time is the
//! database's. A session's lease names its owner and an epoch which grows with every claim, and every
//! write of a runner is refused unless both still match. So a server that was frozen and wakes up
//! cannot harm the one that took over; that the lease had run out when it was taken is only politeness.

use std::time::Duration;

use selfsame_types::{ServerId, SessionId};
use sqlx::postgres::types::PgInterval;

use crate::{Sealer, Store, StoreError, seal::CHECK};

/// A session this server may now drive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claimed {
    pub session: SessionId,
    pub epoch: i64,
    /// The one before let go in the middle: what was in flight may have happened.
    pub unclean: bool,
}

pub(crate) fn interval(duration: Duration) -> PgInterval {
    PgInterval {
        months: 0,
        days: 0,
        microseconds: i64::try_from(duration.as_micros()).unwrap_or(i64::MAX),
    }
}

impl Store {
    /// Says that this server is alive, and which master keys it has; learns which one seals.
    ///
    /// # Errors
    /// Database faults, and [`StoreError::Seal`] when it has not got the one that seals.
    pub async fn server_heartbeat(
        &self,
        server: ServerId,
        backend: &str,
    ) -> Result<(), StoreError> {
        let sealer = self.sealer.as_ref();
        let sealing = sealer.map(Sealer::sealing_id);
        let current = sqlx::query_scalar!(
            r#"
            INSERT INTO servers (id, backend, master_keys, sealing_key) VALUES ($1, $2, $3, $4)
            ON CONFLICT (id) DO UPDATE
            SET heartbeat_at = clock_timestamp(),
                master_keys = EXCLUDED.master_keys, sealing_key = EXCLUDED.sealing_key
            RETURNING (SELECT master_key FROM deployment_secrets WHERE name = $5)
            "#,
            server.0,
            backend,
            &sealer.map(Sealer::key_ids).unwrap_or_default(),
            sealing,
            CHECK,
        )
        .fetch_one(&self.pool)
        .await?;
        match (sealer, current) {
            // The next heartbeat tells the others.
            (Some(sealer), Some(current)) if sealing.as_ref() != Some(&current) => {
                Ok(sealer.seal_with(&current)?)
            }
            _ => Ok(()),
        }
    }

    /// Forgets servers whose last heartbeat is older than `age`.
    ///
    /// # Errors
    /// Database faults.
    pub async fn server_forget(&self, age: Duration) -> Result<u64, StoreError> {
        let done = sqlx::query!(
            "DELETE FROM servers WHERE heartbeat_at < clock_timestamp() - $1::interval",
            interval(age),
        )
        .execute(&self.pool)
        .await?;
        Ok(done.rows_affected())
    }

    /// This server is going: its row ends, so that nobody waits for its leases to run out.
    ///
    /// # Errors
    /// Database faults.
    pub async fn server_leave(&self, server: ServerId) -> Result<(), StoreError> {
        sqlx::query!("DELETE FROM servers WHERE id = $1", server.0)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Claims up to `limit` sessions that have work to do and no living owner.
    ///
    /// A session whose sandbox lives on another backend is left to the servers of that backend while
    /// one has been alive within `orphan_after`.
    ///
    /// # Errors
    /// Database faults.
    pub async fn session_claim(
        &self,
        server: ServerId,
        backend: &str,
        ttl: Duration,
        orphan_after: Duration,
        limit: i64,
    ) -> Result<Vec<Claimed>, StoreError> {
        let rows = sqlx::query!(
            r#"
            UPDATE session_state s
            SET owner = $1, epoch = s.epoch + 1, unclean = s.unclean OR s.owner IS NOT NULL
            FROM (
                SELECT c.session_id
                FROM session_state c
                LEFT JOIN servers o ON o.id = c.owner
                LEFT JOIN sandboxes b ON b.session_id = c.session_id
                WHERE c.wake_at <= clock_timestamp()
                  AND (c.owner IS NULL OR o.id IS NULL
                       OR o.heartbeat_at < clock_timestamp() - $3::interval)
                  AND (b.backend IS NULL OR b.backend = $2
                       OR NOT EXISTS (
                           SELECT FROM servers v
                           WHERE v.backend = b.backend
                             AND v.heartbeat_at > clock_timestamp() - $4::interval))
                ORDER BY c.wake_at
                LIMIT $5
                FOR UPDATE OF c SKIP LOCKED
            ) due
            WHERE s.session_id = due.session_id
            RETURNING s.session_id, s.epoch, s.unclean
            "#,
            server.0,
            backend,
            interval(ttl),
            interval(orphan_after),
            limit,
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(rows
            .into_iter()
            .map(|row| Claimed {
                session: SessionId(row.session_id),
                epoch: row.epoch,
                unclean: row.unclean,
            })
            .collect())
    }

    /// Lets go of a lease outside an append: at a drain.
    ///
    /// # Errors
    /// Database faults.
    pub async fn session_release(
        &self,
        session: SessionId,
        server: ServerId,
        epoch: i64,
        unclean: bool,
    ) -> Result<(), StoreError> {
        sqlx::query!(
            r#"
            UPDATE session_state SET owner = NULL, unclean = unclean OR $4
            WHERE session_id = $1 AND owner = $2 AND epoch = $3
            "#,
            session.0,
            server.0,
            epoch,
            unclean,
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Lets go of a lease because of a fault. Nobody claims the session before `pause` is over.
    ///
    /// # Errors
    /// Database faults.
    pub async fn session_give_up(
        &self,
        session: SessionId,
        server: ServerId,
        epoch: i64,
        pause: Duration,
    ) -> Result<(), StoreError> {
        sqlx::query!(
            r#"
            UPDATE session_state
            SET owner = NULL, unclean = true,
                wake_at = GREATEST(wake_at, CASE WHEN wake_at IS NOT NULL
                                                 THEN clock_timestamp() + $4::interval END)
            WHERE session_id = $1 AND owner = $2 AND epoch = $3
            "#,
            session.0,
            server.0,
            epoch,
            interval(pause),
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Sessions with work whose lease this server holds, and the epochs.
    ///
    /// # Errors
    /// Database faults.
    pub async fn sessions_held(
        &self,
        server: ServerId,
    ) -> Result<Vec<(SessionId, i64)>, StoreError> {
        Ok(sqlx::query!(
            r#"
            SELECT session_id, epoch FROM session_state
            WHERE wake_at IS NOT NULL AND owner = $1
            "#,
            server.0,
        )
        .fetch_all(&self.pool)
        .await?
        .into_iter()
        .map(|row| (SessionId(row.session_id), row.epoch))
        .collect())
    }
}
