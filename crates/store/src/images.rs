//! Images with an environment's packages: who builds one, which are there, which failed.
//!
//! One row per image, and one builder at a time on all servers. A builder holds the row as long as it
//! says that it is alive; every attempt has a sandbox of its own, whose id fences what the attempt
//! writes. Time is the database's.

use std::time::Duration;

use selfsame_types::{SandboxId, ServerId, WorkspaceId};

use crate::{Store, StoreError, leases::interval};

/// Which image.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ImageKey {
    pub workspace: WorkspaceId,
    pub backend: String,
    /// Its name, which says what is in it.
    pub image: String,
}

/// How things stand with an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageState {
    Ready,
    /// The caller is to build it, in the sandbox that it named.
    Claimed,
    /// Somebody builds or removes it.
    Busy,
    /// The last attempt failed, a moment ago.
    Failed {
        error: String,
    },
}

impl Store {
    /// Notes that an image is wanted now. `false` when it is not there.
    ///
    /// # Errors
    /// Database faults.
    pub async fn image_use(&self, key: &ImageKey) -> Result<bool, StoreError> {
        let done = sqlx::query!(
            r#"
            UPDATE environment_images SET used_at = clock_timestamp()
            WHERE workspace_id = $1 AND backend = $2 AND image = $3 AND status = 'ready'
            "#,
            key.workspace.0,
            key.backend,
            key.image,
        )
        .execute(&self.pool)
        .await?;
        Ok(done.rows_affected() == 1)
    }

    /// Takes the building of an image that nobody builds, has built, or has failed to build just now.
    /// A builder or remover that has been silent for `ttl` counts as gone.
    ///
    /// # Errors
    /// Database faults.
    pub async fn image_claim(
        &self,
        key: &ImageKey,
        server: ServerId,
        sandbox: SandboxId,
        ttl: Duration,
    ) -> Result<ImageState, StoreError> {
        let claimed = sqlx::query!(
            r#"
            INSERT INTO environment_images AS i
                (workspace_id, backend, image, status, sandbox_id, server_id)
            VALUES ($1, $2, $3, 'building', $4, $5)
            ON CONFLICT (workspace_id, backend, image) DO UPDATE
            SET status = 'building', sandbox_id = $4, server_id = $5,
                heartbeat_at = clock_timestamp(), used_at = clock_timestamp()
            WHERE (i.status IN ('building', 'removing')
                   AND i.heartbeat_at < clock_timestamp() - $6::interval)
               OR (i.status = 'failed' AND i.retry_at <= clock_timestamp())
            "#,
            key.workspace.0,
            key.backend,
            key.image,
            sandbox.0,
            server.0,
            interval(ttl),
        )
        .execute(&self.pool)
        .await?;
        if claimed.rows_affected() == 1 {
            return Ok(ImageState::Claimed);
        }
        let row = sqlx::query!(
            r#"
            SELECT status, error FROM environment_images
            WHERE workspace_id = $1 AND backend = $2 AND image = $3
            "#,
            key.workspace.0,
            key.backend,
            key.image,
        )
        .fetch_optional(&self.pool)
        .await?;
        Ok(match row {
            Some(row) if row.status == "ready" => ImageState::Ready,
            Some(row) if row.status == "failed" => ImageState::Failed {
                error: row.error.unwrap_or_default(),
            },
            // Removed between the two statements: worth another look.
            _ => ImageState::Busy,
        })
    }

    /// Says that an attempt goes on. `false` when it is not the present one any more.
    ///
    /// # Errors
    /// Database faults.
    pub async fn image_heartbeat(
        &self,
        key: &ImageKey,
        sandbox: SandboxId,
    ) -> Result<bool, StoreError> {
        let done = sqlx::query!(
            r#"
            UPDATE environment_images SET heartbeat_at = clock_timestamp()
            WHERE workspace_id = $1 AND backend = $2 AND image = $3
              AND sandbox_id = $4 AND status = 'building'
            "#,
            key.workspace.0,
            key.backend,
            key.image,
            sandbox.0,
        )
        .execute(&self.pool)
        .await?;
        Ok(done.rows_affected() == 1)
    }

    /// An attempt has made the image. `false` when it is not the present one any more.
    ///
    /// # Errors
    /// Database faults.
    pub async fn image_ready(
        &self,
        key: &ImageKey,
        sandbox: SandboxId,
    ) -> Result<bool, StoreError> {
        let done = sqlx::query!(
            r#"
            UPDATE environment_images
            SET status = 'ready', error = NULL, failures = 0, retry_at = NULL,
                used_at = clock_timestamp()
            WHERE workspace_id = $1 AND backend = $2 AND image = $3
              AND sandbox_id = $4 AND status = 'building'
            "#,
            key.workspace.0,
            key.backend,
            key.image,
            sandbox.0,
        )
        .execute(&self.pool)
        .await?;
        Ok(done.rows_affected() == 1)
    }

    /// An attempt has failed. The error is the answer for `pause`, doubled with each failure in a row
    /// up to `longest`. `false` when it is not the present attempt any more.
    ///
    /// # Errors
    /// Database faults.
    pub async fn image_failed(
        &self,
        key: &ImageKey,
        sandbox: SandboxId,
        error: &str,
        pause: Duration,
        longest: Duration,
    ) -> Result<bool, StoreError> {
        let done = sqlx::query!(
            r#"
            UPDATE environment_images
            SET status = 'failed', error = $5, failures = LEAST(failures + 1, 30),
                retry_at = clock_timestamp()
                    + LEAST($6::interval * (2 ^ LEAST(failures, 20)), $7::interval)
            WHERE workspace_id = $1 AND backend = $2 AND image = $3
              AND sandbox_id = $4 AND status = 'building'
            "#,
            key.workspace.0,
            key.backend,
            key.image,
            sandbox.0,
            error,
            interval(pause),
            interval(longest),
        )
        .execute(&self.pool)
        .await?;
        Ok(done.rows_affected() == 1)
    }

    /// Forgets an image: somebody else took it away, or an attempt is given up without a verdict.
    /// `sandbox` is the attempt that made it or gives up.
    ///
    /// # Errors
    /// Database faults.
    pub async fn image_forget(&self, key: &ImageKey, sandbox: SandboxId) -> Result<(), StoreError> {
        sqlx::query!(
            r#"
            DELETE FROM environment_images
            WHERE workspace_id = $1 AND backend = $2 AND image = $3 AND sandbox_id = $4
            "#,
            key.workspace.0,
            key.backend,
            key.image,
            sandbox.0,
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// A ready image is not where it should be: it is to be built again.
    ///
    /// # Errors
    /// Database faults.
    pub async fn image_missing(&self, key: &ImageKey) -> Result<(), StoreError> {
        sqlx::query!(
            r#"
            DELETE FROM environment_images
            WHERE workspace_id = $1 AND backend = $2 AND image = $3 AND status = 'ready'
            "#,
            key.workspace.0,
            key.backend,
            key.image,
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Claims images that no session has wanted for `retention` and no sandbox is made of. Whoever
    /// claims one removes it and then forgets it, under the name `sandbox`.
    ///
    /// # Errors
    /// Database faults.
    pub async fn image_claim_unused(
        &self,
        backend: &str,
        retention: Duration,
        server: ServerId,
        sandbox: SandboxId,
        ttl: Duration,
        limit: i64,
    ) -> Result<Vec<ImageKey>, StoreError> {
        Ok(sqlx::query!(
            r#"
            UPDATE environment_images i
            SET status = 'removing', sandbox_id = $3, server_id = $4,
                heartbeat_at = clock_timestamp()
            WHERE (i.workspace_id, i.backend, i.image) IN (
                SELECT u.workspace_id, u.backend, u.image FROM environment_images u
                WHERE u.backend = $1
                  AND u.used_at < clock_timestamp() - $2::interval
                  AND (u.status IN ('ready', 'failed')
                       OR u.heartbeat_at < clock_timestamp() - $5::interval)
                  AND NOT EXISTS (
                    SELECT FROM sandboxes b WHERE b.backend = u.backend AND b.image = u.image
                  )
                LIMIT $6
                FOR UPDATE SKIP LOCKED
            )
            RETURNING workspace_id, backend, image
            "#,
            backend,
            interval(retention),
            sandbox.0,
            server.0,
            interval(ttl),
            limit,
        )
        .fetch_all(&self.pool)
        .await?
        .into_iter()
        .map(|row| ImageKey {
            workspace: WorkspaceId(row.workspace_id),
            backend: row.backend,
            image: row.image,
        })
        .collect())
    }
}

#[cfg(test)]
mod tests;
