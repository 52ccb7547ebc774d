//! Sandboxes and who owns them. Ownership is a row here; the containers' labels only say which
//! deployment made them.

use std::time::Duration;

use selfsame_types::{SandboxId, ServerId, SessionId};

use crate::{Store, StoreError};

/// A sandbox's row.
#[derive(Debug, Clone)]
pub struct SandboxRecord {
    pub id: SandboxId,
    pub session: Option<SessionId>,
    pub backend: String,
    pub image: String,
    /// `creating`, `running`, `stopped` or `removing`.
    pub status: String,
    pub handle: Option<String>,
    pub hands_key: Vec<u8>,
    pub boot_id: Option<uuid::Uuid>,
}

struct SandboxRow {
    id: uuid::Uuid,
    session_id: Option<uuid::Uuid>,
    backend: String,
    image: String,
    status: String,
    handle: Option<String>,
    hands_key: Vec<u8>,
    boot_id: Option<uuid::Uuid>,
}

impl From<SandboxRow> for SandboxRecord {
    fn from(row: SandboxRow) -> Self {
        Self {
            id: SandboxId(row.id),
            session: row.session_id.map(SessionId),
            backend: row.backend,
            image: row.image,
            status: row.status,
            handle: row.handle,
            hands_key: row.hands_key,
            boot_id: row.boot_id,
        }
    }
}

impl Store {
    /// Writes the row *before* the container is made, so that a crash in between leaves a row to clean
    /// up after, never a container nobody knows.
    ///
    /// # Errors
    /// Database faults; a session that has a sandbox already shows as a unique constraint.
    pub async fn sandbox_insert(
        &self,
        sandbox: &SandboxRecord,
        server: ServerId,
    ) -> Result<(), StoreError> {
        sqlx::query!(
            r#"
            INSERT INTO sandboxes (id, session_id, backend, image, status, handle, hands_key, server_id)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
            "#,
            sandbox.id.0,
            sandbox.session.map(|session| session.0),
            sandbox.backend,
            sandbox.image,
            sandbox.status,
            sandbox.handle,
            sandbox.hands_key,
            server.0,
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// A session's sandbox.
    ///
    /// # Errors
    /// Database faults.
    pub async fn sandbox_of(
        &self,
        session: SessionId,
    ) -> Result<Option<SandboxRecord>, StoreError> {
        Ok(sqlx::query_as!(
            SandboxRow,
            r#"
            SELECT id, session_id, backend, image, status, handle, hands_key, boot_id
            FROM sandboxes WHERE session_id = $1
            "#,
            session.0,
        )
        .fetch_optional(&self.pool)
        .await?
        .map(Into::into))
    }

    /// Whether a living server other than `except` is still making this sandbox.
    ///
    /// # Errors
    /// Database faults.
    pub async fn sandbox_is_being_made(
        &self,
        id: SandboxId,
        except: ServerId,
        ttl: Duration,
    ) -> Result<bool, StoreError> {
        let micros = i64::try_from(ttl.as_micros()).unwrap_or(i64::MAX);
        Ok(sqlx::query_scalar!(
            r#"
            SELECT EXISTS (
                SELECT FROM sandboxes b JOIN servers v ON v.id = b.server_id
                WHERE b.id = $1 AND b.status = 'creating' AND v.id <> $2
                  AND v.heartbeat_at > clock_timestamp() - $3 * interval '1 microsecond'
            ) AS "exists!"
            "#,
            id.0,
            except.0,
            micros as f64,
        )
        .fetch_one(&self.pool)
        .await?)
    }

    /// Takes the oldest warm sandbox of an image for a session.
    ///
    /// # Errors
    /// Database faults; a session that has a sandbox already shows as a unique constraint.
    pub async fn sandbox_take(
        &self,
        session: SessionId,
        backend: &str,
        image: &str,
    ) -> Result<Option<SandboxRecord>, StoreError> {
        Ok(sqlx::query_as!(
            SandboxRow,
            r#"
            UPDATE sandboxes SET session_id = $1, used_at = clock_timestamp()
            WHERE id = (
                SELECT id FROM sandboxes
                WHERE session_id IS NULL AND status = 'running' AND backend = $2 AND image = $3
                ORDER BY created_at LIMIT 1
                FOR UPDATE SKIP LOCKED
            )
            RETURNING id, session_id, backend, image, status, handle, hands_key, boot_id
            "#,
            session.0,
            backend,
            image,
        )
        .fetch_optional(&self.pool)
        .await?
        .map(Into::into))
    }

    /// How many warm ones there are or will be.
    ///
    /// # Errors
    /// Database faults.
    pub async fn sandbox_warm_count(&self, backend: &str, image: &str) -> Result<i64, StoreError> {
        Ok(sqlx::query_scalar!(
            r#"
            SELECT count(*) AS "count!" FROM sandboxes
            WHERE session_id IS NULL AND status IN ('creating', 'running')
              AND backend = $1 AND image = $2
            "#,
            backend,
            image,
        )
        .fetch_one(&self.pool)
        .await?)
    }

    /// Records what became of a sandbox. `false` when its row is gone.
    ///
    /// # Errors
    /// Database faults.
    pub async fn sandbox_set(
        &self,
        id: SandboxId,
        status: &str,
        handle: Option<&str>,
    ) -> Result<bool, StoreError> {
        let done = sqlx::query!(
            r#"
            UPDATE sandboxes
            SET status = $2, handle = COALESCE($3, handle), used_at = clock_timestamp()
            WHERE id = $1
            "#,
            id.0,
            status,
            handle,
        )
        .execute(&self.pool)
        .await?;
        Ok(done.rows_affected() == 1)
    }

    /// Records the life of the hands that calls will be sent to. Comes before the first call.
    ///
    /// # Errors
    /// Database faults.
    pub async fn sandbox_booted(
        &self,
        id: SandboxId,
        boot_id: uuid::Uuid,
    ) -> Result<(), StoreError> {
        sqlx::query!(
            "UPDATE sandboxes SET boot_id = $2, used_at = clock_timestamp() WHERE id = $1",
            id.0,
            boot_id,
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Forgets a sandbox that is gone.
    ///
    /// # Errors
    /// Database faults.
    pub async fn sandbox_delete(&self, id: SandboxId) -> Result<(), StoreError> {
        sqlx::query!("DELETE FROM sandboxes WHERE id = $1", id.0)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Sandboxes of this backend that belong to something, for comparison with what really exists:
    /// those of rows, and those in which images are being built.
    ///
    /// # Errors
    /// Database faults.
    pub async fn sandbox_ids(&self, backend: &str) -> Result<Vec<SandboxId>, StoreError> {
        Ok(sqlx::query_scalar!(
            r#"
                SELECT id AS "id!" FROM sandboxes WHERE backend = $1
                UNION ALL
                SELECT sandbox_id FROM environment_images
                WHERE backend = $1 AND status = 'building'
                  AND heartbeat_at > clock_timestamp() - interval '1 minute'
                "#,
            backend,
        )
        .fetch_all(&self.pool)
        .await?
        .into_iter()
        .map(SandboxId)
        .collect())
    }

    /// Claims running sandboxes of idle sessions that were last used longer ago than `idle`, and marks
    /// them stopped. Whoever claims one stops it.
    ///
    /// # Errors
    /// Database faults.
    pub async fn sandbox_claim_idle(
        &self,
        backend: &str,
        idle: Duration,
        limit: i64,
    ) -> Result<Vec<SandboxRecord>, StoreError> {
        let micros = i64::try_from(idle.as_micros()).unwrap_or(i64::MAX);
        Ok(sqlx::query_as!(
            SandboxRow,
            r#"
            UPDATE sandboxes b SET status = 'stopped'
            WHERE b.id IN (
                SELECT b.id FROM sandboxes b
                JOIN session_state s ON s.session_id = b.session_id
                WHERE b.backend = $1 AND b.status = 'running'
                  AND s.owner IS NULL AND s.wake_at IS NULL
                  AND b.used_at < clock_timestamp() - $2 * interval '1 microsecond'
                  AND s.updated_at < clock_timestamp() - $2 * interval '1 microsecond'
                LIMIT $3
                FOR UPDATE OF b SKIP LOCKED
            )
            RETURNING id, session_id, backend, image, status, handle, hands_key, boot_id
            "#,
            backend,
            micros as f64,
            limit,
        )
        .fetch_all(&self.pool)
        .await?
        .into_iter()
        .map(Into::into)
        .collect())
    }

    /// Claims sandboxes that nobody needs any more: of archived, terminated or deleted sessions,
    /// unused beyond retention, or half-made by a server that is gone. Whoever claims one removes it.
    ///
    /// # Errors
    /// Database faults.
    pub async fn sandbox_claim_garbage(
        &self,
        backend: &str,
        retention: Duration,
        limit: i64,
    ) -> Result<Vec<SandboxRecord>, StoreError> {
        let micros = i64::try_from(retention.as_micros()).unwrap_or(i64::MAX);
        Ok(sqlx::query_as!(
            SandboxRow,
            r#"
            UPDATE sandboxes b SET status = 'removing', used_at = clock_timestamp()
            WHERE b.id IN (
                SELECT b.id FROM sandboxes b
                LEFT JOIN sessions c ON c.id = b.session_id
                LEFT JOIN session_state s ON s.session_id = b.session_id
                LEFT JOIN servers v ON v.id = b.server_id
                WHERE b.backend = $1
                  AND (
                    (b.session_id IS NOT NULL
                     AND (c.id IS NULL OR c.deleted_at IS NOT NULL OR c.archived_at IS NOT NULL
                          OR s.status = 'terminated'))
                    OR (b.session_id IS NOT NULL AND s.owner IS NULL AND s.wake_at IS NULL
                        AND b.used_at < clock_timestamp() - $2 * interval '1 microsecond')
                    OR (b.session_id IS NULL AND b.status IN ('creating', 'running')
                        AND v.id IS NULL)
                    OR (b.status = 'removing'
                        AND b.used_at < clock_timestamp() - interval '1 minute')
                  )
                  AND NOT (b.status = 'removing'
                           AND b.used_at >= clock_timestamp() - interval '1 minute')
                LIMIT $3
                FOR UPDATE OF b SKIP LOCKED
            )
            RETURNING id, session_id, backend, image, status, handle, hands_key, boot_id
            "#,
            backend,
            micros as f64,
            limit,
        )
        .fetch_all(&self.pool)
        .await?
        .into_iter()
        .map(Into::into)
        .collect())
    }
}
