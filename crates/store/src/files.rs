//! Files: what clients upload, what sessions were given, what sessions have made.
//!
//! An id carries the database's time, so ids alone are in the order of creation. A cursor is an id, and
//! stays good when its file is deleted.

mod change;

use selfsame_types::{
    BlobId, FileId, SessionId, WorkspaceId,
    file::{File, FileScope, FileType, SessionScopeType},
};
use sqlx::{Postgres, QueryBuilder};
use uuid::Uuid;

use crate::{Blob, Store, StoreError, time};

pub(crate) use change::copy_for_session;
pub use change::{Inserted, NewFile, NewKind};

/// What a workspace may keep.
#[derive(Debug, Clone, Copy, Default)]
pub struct FileLimits {
    /// Uploads and outputs of one workspace together, bytes.
    pub quota: Option<u64>,
}

/// Where a file comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// A client's.
    Upload,
    /// A session's copy of an upload.
    Input,
    /// Made by a session.
    Output,
}

impl FileKind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Upload => "upload",
            Self::Input => "input",
            Self::Output => "output",
        }
    }
}

/// A file as read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileRecord {
    /// As clients see it.
    pub file: File,
    pub kind: FileKind,
    /// What it holds; `None` once it has expired.
    pub blob: Option<BlobId>,
    /// Of an output: where it was, below the directory of outputs.
    pub path: Option<String>,
}

/// An output of a session that is known already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    pub id: FileId,
    pub path: String,
    pub blob: Blob,
}

/// Which files a list shows.
#[derive(Debug, Clone, Default)]
pub struct FileQuery {
    /// Those of one session; `None`: uploads.
    pub scope: Option<SessionId>,
    pub start: FileStart,
    pub limit: usize,
}

/// Where a page of the list, newest first, begins or ends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum FileStart {
    #[default]
    Newest,
    /// Older than this one.
    After(FileId),
    /// Newer than this one, and next to it.
    Before(FileId),
}

#[derive(sqlx::FromRow)]
struct Row {
    id: Uuid,
    session_id: Option<Uuid>,
    kind: String,
    filename: String,
    mime_type: String,
    size_bytes: i64,
    blob_id: Option<Uuid>,
    downloadable: bool,
    path: Option<String>,
    created_at: jiff_sqlx::Timestamp,
    expires_at: Option<jiff_sqlx::Timestamp>,
    expired: bool,
}

const COLUMNS: &str = "id, session_id, kind, filename, mime_type, size_bytes, blob_id, downloadable, \
     path, created_at, expires_at, COALESCE(expires_at <= clock_timestamp(), false) AS expired";

impl From<Row> for FileRecord {
    fn from(row: Row) -> Self {
        Self {
            file: File {
                r#type: FileType,
                id: FileId(row.id),
                filename: row.filename,
                mime_type: row.mime_type,
                size_bytes: u64::try_from(row.size_bytes).unwrap_or(0),
                created_at: time(row.created_at),
                downloadable: row.downloadable,
                expires_at: row.expires_at.map(time),
                scope: row.session_id.map(|id| FileScope {
                    r#type: SessionScopeType,
                    id: SessionId(id),
                }),
            },
            // The table allows no other.
            kind: match row.kind.as_str() {
                "upload" => FileKind::Upload,
                "input" => FileKind::Input,
                _ => FileKind::Output,
            },
            // The sweep is late by up to a minute, the clock is not.
            blob: row.blob_id.filter(|_| !row.expired).map(BlobId),
            path: row.path,
        }
    }
}

impl Store {
    /// The same store, with limits for files.
    #[must_use]
    pub fn with_file_limits(self, file_limits: FileLimits) -> Self {
        Self {
            file_limits,
            ..self
        }
    }

    /// One file of a workspace, whatever its kind.
    ///
    /// # Errors
    /// Database faults.
    pub async fn file_get(
        &self,
        workspace: WorkspaceId,
        id: FileId,
    ) -> Result<Option<FileRecord>, StoreError> {
        Ok(sqlx::query_as!(
            Row,
            r#"
            SELECT id, session_id, kind, filename, mime_type, size_bytes, blob_id, downloadable, path,
                   created_at, expires_at,
                   COALESCE(expires_at <= clock_timestamp(), false) AS "expired!"
            FROM files
            WHERE workspace_id = $1 AND id = $2
            "#,
            workspace.0,
            id.0,
        )
        .fetch_optional(&self.pool)
        .await?
        .map(Into::into))
    }

    /// A page of files, newest first, and whether more follow in the direction of the walk.
    ///
    /// # Errors
    /// Database faults.
    pub async fn file_list(
        &self,
        workspace: WorkspaceId,
        query: &FileQuery,
    ) -> Result<(Vec<FileRecord>, bool), StoreError> {
        let mut sql = QueryBuilder::<Postgres>::new("SELECT ");
        sql.push(COLUMNS)
            .push(" FROM files WHERE workspace_id = ")
            .push_bind(workspace.0);
        match query.scope {
            Some(session) => sql.push(" AND session_id = ").push_bind(session.0),
            None => sql.push(" AND session_id IS NULL"),
        };
        match query.start {
            FileStart::Newest => &mut sql,
            FileStart::After(id) => sql.push(" AND id < ").push_bind(id.0),
            FileStart::Before(id) => sql.push(" AND id > ").push_bind(id.0),
        };
        let backwards = matches!(query.start, FileStart::Before(_));
        sql.push(if backwards {
            " ORDER BY id"
        } else {
            " ORDER BY id DESC"
        })
        .push(" LIMIT ")
        .push_bind(i64::try_from(query.limit).map_or(i64::MAX, |limit| limit.saturating_add(1)));
        let mut rows: Vec<Row> = sql.build_query_as().fetch_all(&self.pool).await?;
        let more = rows.len() > query.limit;
        rows.truncate(query.limit);
        if backwards {
            rows.reverse();
        }
        Ok((rows.into_iter().map(Into::into).collect(), more))
    }

    /// Those of these files that the workspace has, newest first; with `scope`, those of one session.
    ///
    /// # Errors
    /// Database faults.
    pub async fn file_find(
        &self,
        workspace: WorkspaceId,
        ids: &[FileId],
        scope: Option<SessionId>,
    ) -> Result<Vec<FileRecord>, StoreError> {
        let ids: Vec<Uuid> = ids.iter().map(|id| id.0).collect();
        Ok(sqlx::query_as!(
            Row,
            r#"
            SELECT id, session_id, kind, filename, mime_type, size_bytes, blob_id, downloadable, path,
                   created_at, expires_at,
                   COALESCE(expires_at <= clock_timestamp(), false) AS "expired!"
            FROM files
            WHERE workspace_id = $1 AND id = ANY ($2) AND ($3::uuid IS NULL OR session_id = $3)
            ORDER BY id DESC
            "#,
            workspace.0,
            &ids,
            scope.map(|session| session.0),
        )
        .fetch_all(&self.pool)
        .await?
        .into_iter()
        .map(Into::into)
        .collect())
    }

    /// What a session has made so far, by path.
    ///
    /// # Errors
    /// Database faults.
    pub async fn file_outputs(
        &self,
        workspace: WorkspaceId,
        session: SessionId,
    ) -> Result<Vec<Output>, StoreError> {
        sqlx::query!(
            r#"
            SELECT f.id, f.path AS "path!", b.id AS blob, b.size, b.sha256
            FROM files f JOIN blobs b ON b.id = f.blob_id
            WHERE f.workspace_id = $1 AND f.session_id = $2 AND f.kind = 'output'
            ORDER BY f.path
            "#,
            workspace.0,
            session.0,
        )
        .fetch_all(&self.pool)
        .await?
        .into_iter()
        .map(|row| {
            Ok(Output {
                id: FileId(row.id),
                path: row.path,
                blob: Blob {
                    id: BlobId(row.blob),
                    size: u64::try_from(row.size).unwrap_or(0),
                    sha256: change::hash(&row.sha256, row.blob)?,
                },
            })
        })
        .collect()
    }
}

#[cfg(test)]
pub(crate) mod tests;
