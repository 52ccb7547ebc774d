//! Making files and doing away with them.

use std::time::Duration;

use selfsame_types::{FileId, SessionId, Timestamp, WorkspaceId};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{FileKind, FileRecord, Row};
use crate::{Actor, Audit, Blob, Store, StoreError, blobs, keys::audit, time};

/// What can be read about a file after its content has expired is kept for so long.
const REMEMBERED: Duration = Duration::from_hours(30 * 24);
/// Rows in one step.
const BATCH: i64 = 500;

/// A file to make, whose content was just written.
#[derive(Debug, Clone)]
pub struct NewFile {
    pub workspace: WorkspaceId,
    pub kind: NewKind,
    pub filename: String,
    pub mime_type: String,
    pub blob: Blob,
}

/// What kind of file it is to be. Copies are made by [`Store::file_copy_for_session`].
#[derive(Debug, Clone)]
pub enum NewKind {
    Upload {
        expires_in: Option<Duration>,
    },
    Output {
        session: SessionId,
        /// Below the directory of outputs. A file of the same path is replaced.
        path: String,
    },
}

/// What became of a new file. In all cases but the first nothing refers to the content, and the caller
/// discards it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Inserted {
    New(FileRecord),
    /// The output is there already, with the same content.
    Unchanged(FileRecord),
    /// It would take the workspace over its quota, bytes.
    OverQuota(u64),
    /// The session is deleted, or another workspace's.
    NoSession,
}

pub(super) fn hash(bytes: &[u8], blob: Uuid) -> Result<[u8; 32], StoreError> {
    bytes.try_into().map_err(|error| StoreError::Corrupt {
        table: "blobs",
        column: "sha256",
        row: blob.to_string(),
        source: Box::new(error),
    })
}

/// The database's time, and an id made of it: version 7, whose 12 free bits behind the milliseconds hold
/// the fraction. Random where two files share a microsecond.
async fn new_id(tx: &mut PgConnection) -> Result<(FileId, Timestamp), StoreError> {
    let now = sqlx::query_scalar!(r#"SELECT clock_timestamp() AS "now!: jiff_sqlx::Timestamp""#)
        .fetch_one(tx)
        .await?;
    let now = time(now);
    Ok((id_at(now), now))
}

fn id_at(at: Timestamp) -> FileId {
    let micros = u64::try_from(at.as_micros()).unwrap_or(0);
    let fraction = (micros % 1000) * 4096 / 1000;
    let mut random: [u8; 10] = rand::random();
    random[..2].copy_from_slice(&u16::try_from(fraction).unwrap_or(0).to_be_bytes());
    FileId(uuid::Builder::from_unix_timestamp_millis(micros / 1000, &random).into_uuid())
}

impl Store {
    /// Makes a file of a content that [`Blobs::put`](crate::Blobs::put) has just written.
    ///
    /// On a fault it is not known whether the file was made: the content must stay then, and the sweep
    /// finds out.
    ///
    /// # Errors
    /// Database faults.
    pub async fn file_insert(&self, new: NewFile) -> Result<Inserted, StoreError> {
        let mut tx = self.pool.begin().await?;
        let inserted = insert(&mut tx, &new, self.file_limits.quota).await?;
        if let Inserted::New(_) = inserted {
            tx.commit().await?;
        }
        Ok(inserted)
    }

    /// A session's own copy of a file, sharing its content. `None`: the workspace has no such file, its
    /// content has expired, or the session is gone.
    ///
    /// # Errors
    /// Database faults.
    pub async fn file_copy_for_session(
        &self,
        workspace: WorkspaceId,
        file: FileId,
        session: SessionId,
    ) -> Result<Option<FileRecord>, StoreError> {
        let mut tx = self.pool.begin().await?;
        let copy = copy_for_session(&mut tx, workspace, file, session).await?;
        if copy.is_some() {
            tx.commit().await?;
        }
        Ok(copy)
    }

    /// Deletes a file for good. Its content goes when nothing else refers to it. Answers whether there was
    /// such a file.
    ///
    /// # Errors
    /// Database faults.
    pub async fn file_delete(
        &self,
        workspace: WorkspaceId,
        id: FileId,
        actor: &Actor,
    ) -> Result<bool, StoreError> {
        let mut tx = self.pool.begin().await?;
        let deleted = sqlx::query!(
            "DELETE FROM files WHERE workspace_id = $1 AND id = $2",
            workspace.0,
            id.0,
        )
        .execute(&mut *tx)
        .await?
        .rows_affected();
        if deleted == 0 {
            return Ok(false);
        }
        audit(
            &mut *tx,
            Audit {
                workspace: Some(workspace),
                actor,
                action: "file.delete",
                target: id.to_string(),
                detail: serde_json::json!({}),
            },
        )
        .await?;
        tx.commit().await?;
        Ok(true)
    }

    /// Lets go of the contents of files that have expired, and forgets those that have long ago. Answers
    /// how many rows it touched; 0 means that nothing is left to do.
    ///
    /// # Errors
    /// Database faults.
    pub async fn file_expire(&self) -> Result<u64, StoreError> {
        let expired = sqlx::query!(
            r#"
            UPDATE files SET blob_id = NULL
            WHERE id IN (SELECT id FROM files
                         WHERE expires_at <= clock_timestamp() AND blob_id IS NOT NULL
                         LIMIT $1 FOR UPDATE SKIP LOCKED)
            "#,
            BATCH,
        )
        .execute(&self.pool)
        .await?
        .rows_affected();
        let forgotten = sqlx::query!(
            r#"
            DELETE FROM files
            WHERE id IN (SELECT id FROM files
                         WHERE expires_at <= clock_timestamp() - interval '1 second' * $2
                         LIMIT $1 FOR UPDATE SKIP LOCKED)
            "#,
            BATCH,
            REMEMBERED.as_secs_f64(),
        )
        .execute(&self.pool)
        .await?
        .rows_affected();
        Ok(expired + forgotten)
    }
}

async fn insert(
    tx: &mut PgConnection,
    new: &NewFile,
    quota: Option<u64>,
) -> Result<Inserted, StoreError> {
    let (session, path, expires_in) = match &new.kind {
        NewKind::Upload { expires_in } => (None, None, *expires_in),
        NewKind::Output { session, path } => (Some(*session), Some(path.as_str()), None),
    };
    if let Some((session, path)) = session.zip(path) {
        if !lock_session(tx, new.workspace, session).await? {
            return Ok(Inserted::NoSession);
        }
        if let Some(old) = output(tx, session, path).await? {
            let (old, sha256) = old;
            if sha256 == new.blob.sha256 {
                return Ok(Inserted::Unchanged(old));
            }
            sqlx::query!("DELETE FROM files WHERE id = $1", old.file.id.0)
                .execute(&mut *tx)
                .await?;
        }
    }
    if let Some(quota) = quota
        && used(tx, new.workspace).await?.saturating_add(new.blob.size) > quota
    {
        return Ok(Inserted::OverQuota(quota));
    }
    blobs::insert(tx, &new.blob).await?;
    let (id, now) = new_id(tx).await?;
    let kind = if session.is_some() {
        FileKind::Output
    } else {
        FileKind::Upload
    };
    let row = sqlx::query_as!(
        Row,
        r#"
        INSERT INTO files (id, workspace_id, session_id, kind, filename, mime_type, size_bytes, blob_id,
                           downloadable, path, created_at, expires_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
        RETURNING id, session_id, kind, filename, mime_type, size_bytes, blob_id, downloadable, path,
                  created_at, expires_at, false AS "expired!"
        "#,
        id.0,
        new.workspace.0,
        session.map(|session| session.0),
        kind.name(),
        new.filename,
        new.mime_type,
        i64::try_from(new.blob.size).unwrap_or(i64::MAX),
        new.blob.id.0,
        kind == FileKind::Output,
        path,
        jiff_sqlx::Timestamp::from(now.inner()) as _,
        expires_in.map(|wait| jiff_sqlx::Timestamp::from(now.after(wait).inner())) as _,
    )
    .fetch_one(tx)
    .await?;
    Ok(Inserted::New(row.into()))
}

/// Whether the session is there. Its deletion waits for this transaction, and then takes the file with it.
async fn lock_session(
    tx: &mut PgConnection,
    workspace: WorkspaceId,
    session: SessionId,
) -> Result<bool, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"
        SELECT id FROM sessions
        WHERE id = $1 AND workspace_id = $2 AND deleted_at IS NULL
        FOR SHARE
        "#,
        session.0,
        workspace.0,
    )
    .fetch_optional(tx)
    .await?
    .is_some())
}

/// The output of this path, and the hash of its content.
async fn output(
    tx: &mut PgConnection,
    session: SessionId,
    path: &str,
) -> Result<Option<(FileRecord, [u8; 32])>, StoreError> {
    let row = sqlx::query!(
        r#"
        SELECT f.id, f.session_id, f.kind, f.filename, f.mime_type, f.size_bytes, f.blob_id AS "blob_id!",
               f.downloadable, f.path, f.created_at AS "created_at: jiff_sqlx::Timestamp", b.sha256
        FROM files f JOIN blobs b ON b.id = f.blob_id
        WHERE f.session_id = $1 AND f.path = $2 AND f.kind = 'output'
        FOR UPDATE OF f
        "#,
        session.0,
        path,
    )
    .fetch_optional(tx)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let sha256 = hash(&row.sha256, row.blob_id)?;
    let record = Row {
        id: row.id,
        session_id: row.session_id,
        kind: row.kind,
        filename: row.filename,
        mime_type: row.mime_type,
        size_bytes: row.size_bytes,
        blob_id: Some(row.blob_id),
        downloadable: row.downloadable,
        path: row.path,
        created_at: row.created_at,
        expires_at: None,
        expired: false,
    };
    Ok(Some((record.into(), sha256)))
}

/// What the workspace's files hold. Until the transaction ends, no other one adds to it.
async fn used(tx: &mut PgConnection, workspace: WorkspaceId) -> Result<u64, StoreError> {
    sqlx::query!(
        "SELECT FROM workspaces WHERE id = $1 FOR NO KEY UPDATE",
        workspace.0,
    )
    .fetch_optional(&mut *tx)
    .await?;
    let used = sqlx::query_scalar!(
        r#"
        SELECT COALESCE(sum(size_bytes), 0)::bigint AS "used!"
        FROM files
        WHERE workspace_id = $1 AND kind <> 'input' AND blob_id IS NOT NULL
        "#,
        workspace.0,
    )
    .fetch_one(tx)
    .await?;
    Ok(u64::try_from(used).unwrap_or(0))
}

/// As [`Store::file_copy_for_session`], in a transaction that may have made the session just now.
pub(crate) async fn copy_for_session(
    tx: &mut PgConnection,
    workspace: WorkspaceId,
    file: FileId,
    session: SessionId,
) -> Result<Option<FileRecord>, StoreError> {
    if !lock_session(tx, workspace, session).await? {
        return Ok(None);
    }
    let (id, now) = new_id(tx).await?;
    // Locking the row of the original keeps it, and with it the content, until there are two of them.
    let row = sqlx::query_as!(
        Row,
        r#"
        WITH original AS (
            SELECT filename, mime_type, size_bytes, blob_id, downloadable
            FROM files
            WHERE workspace_id = $2 AND id = $5 AND blob_id IS NOT NULL
              AND (expires_at IS NULL OR expires_at > $4)
            FOR SHARE
        )
        INSERT INTO files (id, workspace_id, session_id, kind, filename, mime_type, size_bytes, blob_id,
                           downloadable, created_at)
        SELECT $1, $2, $3, 'input', filename, mime_type, size_bytes, blob_id, downloadable, $4
        FROM original
        RETURNING id, session_id, kind, filename, mime_type, size_bytes, blob_id, downloadable, path,
                  created_at, expires_at, false AS "expired!"
        "#,
        id.0,
        workspace.0,
        session.0,
        jiff_sqlx::Timestamp::from(now.inner()) as _,
        file.0,
    )
    .fetch_optional(tx)
    .await?;
    Ok(row.map(Into::into))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_in_the_order_of_their_microseconds() {
        let start = 1_800_000_000_000_000;
        let ids: Vec<FileId> = (start..start + 5000)
            .map(|micros| id_at(Timestamp::from_micros(micros)))
            .collect();
        assert!(ids.is_sorted());
        assert_eq!(ids[0].0.get_version_num(), 7);
        assert_ne!(id_at(Timestamp::from_micros(start)), ids[0]);
    }
}
