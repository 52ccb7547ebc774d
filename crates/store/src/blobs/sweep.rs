//! Removing contents that nothing refers to, and never one that something is about to refer to.
//!
//! There are two ways to come by a reference, and a guard for each.
//!
//! * **A copy** of a row that refers to a content already: a session's copy of an upload. The sweep locks a
//!   content's row with `FOR UPDATE` and looks for references only *then*, with a fresh snapshot. An insert
//!   that refers to it takes a share of the same lock for its foreign key: either it was first, and the
//!   sweep skips the row (`SKIP LOCKED`) or sees the reference, or it waits, finds the row gone, and fails as
//!   if its source were deleted. The row leaves `blobs` for `blob_garbage` before the object goes, so a
//!   crash between the two leaves garbage that is known, and no reference to nothing.
//! * **An upload**, whose object is written before any row is. An object without a row may be a crash's
//!   remains or a transaction that commits in a moment, and no clock tells them apart for certain. So a
//!   stray is not removed but *adopted*: it gets a row like any other, whose age starts then. The upload's
//!   own insert takes the row over (`ON CONFLICT`). If nobody has come within [`GRACE`], the first rule
//!   applies: and no transaction follows its upload that late.

use std::time::Duration;

use futures_util::TryStreamExt as _;
use selfsame_types::{BlobId, Timestamp};
use sqlx::{Postgres, QueryBuilder};
use uuid::Uuid;

use super::BlobError;
use crate::{Store, StoreError, time};

/// How long a content may be without a reference.
pub const GRACE: Duration = Duration::from_hours(1);
/// Rows or objects in one step.
const BATCH: usize = 500;
/// Objects that are removed within one transaction.
const REMOVALS: i64 = 16;
/// The name of the chore.
const STRAYS: &str = "strays";

/// Why a sweep stopped. The next one goes on.
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Blob(#[from] BlobError),
}

impl From<sqlx::Error> for SweepError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

impl Store {
    /// Gives up contents that have been there for `grace` and that no row refers to, and removes what was
    /// given up. Answers how many objects went.
    ///
    /// # Errors
    /// When the database or the object store fails.
    pub async fn blob_sweep(&self, grace: Duration) -> Result<u64, SweepError> {
        while self.blob_give_up(grace).await? == BATCH as u64 {}
        let mut removed = 0;
        loop {
            let (found, gone) = self.blob_remove_garbage().await?;
            removed += gone;
            // What could not be removed would be found again at once.
            if found == 0 || gone < found {
                return Ok(removed);
            }
        }
    }

    async fn blob_give_up(&self, grace: Duration) -> Result<u64, StoreError> {
        let mut tx = self.pool.begin().await?;
        // Whatever table refers to contents says so by a foreign key: none can be forgotten here.
        let references = sqlx::query_scalar!(
            r#"
            SELECT format('SELECT FROM %s r WHERE r.%I = b.id', c.conrelid::regclass, a.attname)
                AS "query!"
            FROM pg_constraint c
            JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = c.conkey[1]
            WHERE c.contype = 'f' AND c.confrelid = 'blobs'::regclass
            "#,
        )
        .fetch_all(&mut *tx)
        .await?;
        let unreferenced = |sql: &mut QueryBuilder<Postgres>| {
            for reference in &references {
                sql.push(" AND NOT EXISTS (").push(reference).push(")");
            }
        };
        let mut sql = QueryBuilder::new(
            "SELECT b.id FROM blobs b WHERE b.created_at <= clock_timestamp() - interval '1 second' * ",
        );
        sql.push_bind(grace.as_secs_f64());
        unreferenced(&mut sql);
        sql.push(" ORDER BY b.created_at LIMIT ")
            .push_bind(i64::try_from(BATCH).unwrap_or(i64::MAX))
            .push(" FOR UPDATE SKIP LOCKED");
        let locked: Vec<Uuid> = sql.build_query_scalar().fetch_all(&mut *tx).await?;
        if locked.is_empty() {
            return Ok(0);
        }
        // Once more, now that nobody can add a reference: the first look may be older than the locks.
        let mut sql = QueryBuilder::new("WITH gone AS (DELETE FROM blobs b WHERE b.id = ANY (");
        sql.push_bind(&locked).push(")");
        unreferenced(&mut sql);
        sql.push(" RETURNING b.id) INSERT INTO blob_garbage (id) SELECT id FROM gone");
        sql.build().execute(&mut *tx).await?;
        tx.commit().await?;
        Ok(locked.len() as u64)
    }

    /// How many pieces of garbage were found, and how many of their objects are gone now.
    async fn blob_remove_garbage(&self) -> Result<(u64, u64), StoreError> {
        let mut tx = self.pool.begin().await?;
        let garbage = sqlx::query_scalar!(
            "SELECT id FROM blob_garbage ORDER BY since LIMIT $1 FOR UPDATE SKIP LOCKED",
            REMOVALS,
        )
        .fetch_all(&mut *tx)
        .await?;
        let mut gone = Vec::with_capacity(garbage.len());
        for id in &garbage {
            match self.blobs().delete(BlobId(*id)).await {
                Ok(()) => gone.push(*id),
                Err(error) => {
                    tracing::warn!(blob = %BlobId(*id), %error, "cannot remove a content");
                }
            }
        }
        sqlx::query!("DELETE FROM blob_garbage WHERE id = ANY ($1)", &gone)
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok((garbage.len() as u64, gone.len() as u64))
    }

    /// Looks through the object store for what no row knows, unless some server has within `every`, and
    /// takes it into the books. Answers how many objects were adopted; the sweep removes them later.
    ///
    /// # Errors
    /// When the database or the object store fails.
    pub async fn blob_find_strays(&self, every: Duration) -> Result<u64, SweepError> {
        let Some(now) = self.chore_begin(STRAYS, every).await? else {
            return Ok(0);
        };
        self.blob_adopt(Timestamp::from_micros(
            now.as_micros() - i64::try_from(GRACE.as_micros()).unwrap_or(0),
        ))
        .await
    }

    /// Adopts the objects without a row that were written before `before`.
    pub(super) async fn blob_adopt(&self, before: Timestamp) -> Result<u64, SweepError> {
        let place = self.blobs.place()?;
        place.remove_unfinished().await.map_err(BlobError::Read)?;
        let mut adopted = 0;
        let mut objects = place.list().try_chunks(BATCH);
        while let Some(chunk) = objects
            .try_next()
            .await
            .map_err(|error| BlobError::from(error.1))?
        {
            let ids: Vec<Uuid> = chunk
                .into_iter()
                .filter(|(_, written)| *written < before)
                .map(|(id, _)| id.0)
                .collect();
            adopted += sqlx::query!(
                r#"
                INSERT INTO blobs (id, size, sha256)
                SELECT id, 0, '' FROM unnest($1::uuid[]) AS found (id)
                WHERE NOT EXISTS (SELECT FROM blob_garbage g WHERE g.id = found.id)
                ON CONFLICT (id) DO NOTHING
                "#,
                &ids,
            )
            .execute(&self.pool)
            .await?
            .rows_affected();
        }
        Ok(adopted)
    }

    /// The time, if this is the server to do the chore now: nobody has begun it within `every`.
    pub(super) async fn chore_begin(
        &self,
        name: &str,
        every: Duration,
    ) -> Result<Option<Timestamp>, StoreError> {
        Ok(sqlx::query_scalar!(
            r#"
            INSERT INTO chores AS c (name, begun_at) VALUES ($1, clock_timestamp())
            ON CONFLICT (name) DO UPDATE SET begun_at = EXCLUDED.begun_at
                WHERE c.begun_at <= EXCLUDED.begun_at - interval '1 second' * $2
            RETURNING begun_at AS "at: jiff_sqlx::Timestamp"
            "#,
            name,
            every.as_secs_f64(),
        )
        .fetch_optional(&self.pool)
        .await?
        .map(time))
    }
}
