//! What a session shows to the model by reference, kept as it was when it was first needed.

use selfsame_types::{BlobId, FileId, SessionId, WorkspaceId};

use crate::{Blob, FileRecord, Store, StoreError, blobs};

/// The kind of block that a content is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ContentKind {
    Image,
    Document,
}

impl ContentKind {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Document => "document",
        }
    }
}

/// A content that a session has, or the reason why it has none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pinned {
    pub kind: ContentKind,
    /// A file's id, or an address.
    pub source: String,
    pub content: Result<(BlobId, String), String>,
}

impl Store {
    /// Keeps a file's present content for a session, whatever becomes of the file. `false` when this
    /// workspace has no such file (any more), or no such session.
    ///
    /// # Errors
    /// Database faults.
    pub async fn content_pin_file(
        &self,
        workspace: WorkspaceId,
        session: SessionId,
        kind: ContentKind,
        file: FileId,
        media_type: &str,
    ) -> Result<bool, StoreError> {
        let pinned = sqlx::query_scalar!(
            r#"
            INSERT INTO session_content (session_id, kind, source, blob_id, media_type)
            SELECT s.id, $3, $4, f.blob_id, $5
            FROM sessions s JOIN files f ON f.workspace_id = s.workspace_id
            WHERE s.workspace_id = $1 AND s.id = $2 AND s.deleted_at IS NULL
              AND f.id = $6 AND f.blob_id IS NOT NULL
              AND (f.expires_at IS NULL OR f.expires_at > clock_timestamp())
            -- The first content stays; a row is answered all the same.
            ON CONFLICT (session_id, kind, source) DO UPDATE SET source = EXCLUDED.source
            RETURNING true AS "pinned!"
            "#,
            workspace.0,
            session.0,
            kind.as_str(),
            file.to_string(),
            media_type,
            file.0,
        )
        .fetch_optional(&self.pool)
        .await;
        match pinned.map_err(StoreError::from) {
            Ok(pinned) => Ok(pinned.is_some()),
            // The file was deleted, and its content swept, at this very moment; or the session purged.
            Err(error) if error.constraint().is_some() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Keeps what a session's runner has found at `source`, a content just written or a reason why there
    /// is none. `false` when the session has something already: that stays, and the caller discards its
    /// content.
    ///
    /// # Errors
    /// Database faults.
    pub async fn content_pin(
        &self,
        session: SessionId,
        kind: ContentKind,
        source: &str,
        content: Result<(&Blob, &str), &str>,
    ) -> Result<bool, StoreError> {
        let mut tx = self.pool.begin().await?;
        let (blob, media_type, problem) = match content {
            Ok((blob, media_type)) => {
                blobs::insert(&mut tx, blob).await?;
                (Some(blob.id.0), Some(media_type), None)
            }
            Err(problem) => (None, None, Some(problem)),
        };
        let inserted = sqlx::query!(
            r#"
            INSERT INTO session_content (session_id, kind, source, blob_id, media_type, problem)
            VALUES ($1, $2, $3, $4, $5, $6)
            ON CONFLICT (session_id, kind, source) DO NOTHING
            "#,
            session.0,
            kind.as_str(),
            source,
            blob,
            media_type,
            problem,
        )
        .execute(&mut *tx)
        .await?;
        if inserted.rows_affected() == 0 {
            return Ok(false);
        }
        tx.commit().await?;
        Ok(true)
    }

    /// Everything that a session has kept.
    ///
    /// # Errors
    /// Database faults.
    pub async fn content_of(&self, session: SessionId) -> Result<Vec<Pinned>, StoreError> {
        let rows = sqlx::query!(
            r#"
            SELECT kind, source, blob_id, media_type, problem
            FROM session_content WHERE session_id = $1
            "#,
            session.0,
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(rows
            .into_iter()
            .map(|row| Pinned {
                // The table allows no other.
                kind: match row.kind.as_str() {
                    "image" => ContentKind::Image,
                    _ => ContentKind::Document,
                },
                source: row.source,
                content: match row.blob_id.zip(row.media_type) {
                    Some((blob, media_type)) => Ok((BlobId(blob), media_type)),
                    None => Err(row.problem.unwrap_or_default()),
                },
            })
            .collect())
    }

    /// A file of a session's workspace, and that workspace.
    ///
    /// # Errors
    /// Database faults.
    pub async fn content_file(
        &self,
        session: SessionId,
        file: FileId,
    ) -> Result<Option<(WorkspaceId, FileRecord)>, StoreError> {
        let workspace =
            sqlx::query_scalar!("SELECT workspace_id FROM sessions WHERE id = $1", session.0,)
                .fetch_optional(&self.pool)
                .await?
                .map(WorkspaceId);
        let Some(workspace) = workspace else {
            return Ok(None);
        };
        let found = self.file_get(workspace, file).await?;
        Ok(found.map(|record| (workspace, record)))
    }
}

#[cfg(test)]
mod tests;
