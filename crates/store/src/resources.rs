//! What sessions have mounted: files and repositories, and the outputs that came back.

use secrecy::SecretString;
use selfsame_types::{
    BlobId, EnvironmentId, FileId, ResourceId, SandboxId, SessionId, Timestamp, WorkspaceId,
    session::{MAX_FILES, SessionResource},
};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{Actor, Audit, SealError, Sealed, SkillMount, Store, StoreError, files, keys::audit};

/// A resource to be: what the API shows of it is made already.
#[derive(Debug, Clone)]
pub struct NewResource {
    pub id: ResourceId,
    pub mount_path: String,
    /// Where a link to it is put.
    pub alias_path: Option<String>,
    /// What the API shows. Of a file, the id of the session's own copy is filled in.
    pub shown: SessionResource,
    pub kind: NewResourceKind,
}

#[derive(Debug, Clone)]
pub enum NewResourceKind {
    /// The session gets its own copy, which shares the content.
    File {
        source: FileId,
    },
    Repository {
        token: Option<Sealed>,
    },
}

/// A resource as it stands.
#[derive(Debug, Clone)]
pub struct ResourceRecord {
    pub id: ResourceId,
    /// Its place in the list.
    pub position: i64,
    pub mount_path: String,
    pub alias_path: Option<String>,
    pub body: String,
    pub kind: ResourceKind,
    /// Removed; kept for those who have mounted it.
    pub deleted: bool,
}

#[derive(Debug, Clone)]
pub enum ResourceKind {
    File { blob: BlobId },
    Repository { token: Option<Sealed> },
}

/// Why a resource was not added.
#[derive(Debug, thiserror::Error)]
pub enum AddError {
    #[error("no such session")]
    NoSession,
    #[error("the session is over")]
    Ended,
    #[error("no such file")]
    NoFile(FileId),
    #[error("the path is taken")]
    PathTaken,
    #[error("too many files")]
    TooMany,
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<sqlx::Error> for AddError {
    fn from(error: sqlx::Error) -> Self {
        let error = StoreError::from(error);
        match error.constraint() {
            Some("session_resources_mount_path_key") => Self::PathTaken,
            _ => Self::Store(error),
        }
    }
}

/// Everything that a session's sandbox is fitted out with.
#[derive(Debug, Clone)]
pub struct Equipment {
    pub workspace: WorkspaceId,
    pub environment_id: EnvironmentId,
    /// JSON texts, as stored.
    pub agent: String,
    pub environment: String,
    /// Removed ones as well.
    pub resources: Vec<ResourceRecord>,
    /// What the first look into the repositories found, as JSON text.
    pub findings: Option<String>,
    pub skills: Vec<SkillMount>,
}

/// A file below the outputs directory as it was captured last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputRecord {
    pub path: String,
    pub size: i64,
    pub modified: i64,
    pub inode: i64,
}

/// The words that bind a repository's token to its place.
fn token_context(workspace: WorkspaceId, resource: ResourceId) -> String {
    format!("repository:{workspace}:{resource}")
}

struct ResourceRow {
    id: Uuid,
    position: i64,
    r#type: String,
    mount_path: String,
    alias_path: Option<String>,
    body: String,
    blob_id: Option<Uuid>,
    token: Option<Vec<u8>>,
    token_data_key: Option<Vec<u8>>,
    token_master_key: Option<String>,
    deleted: bool,
}

impl TryFrom<ResourceRow> for ResourceRecord {
    type Error = StoreError;

    fn try_from(row: ResourceRow) -> Result<Self, StoreError> {
        let id = ResourceId(row.id);
        let kind = match (row.r#type.as_str(), row.blob_id) {
            ("file", Some(blob)) => ResourceKind::File { blob: BlobId(blob) },
            ("github_repository", _) => ResourceKind::Repository {
                token: row
                    .token
                    .zip(row.token_data_key)
                    .zip(row.token_master_key)
                    .map(|((ciphertext, data_key), master_key)| Sealed {
                        ciphertext,
                        data_key,
                        master_key,
                    }),
            },
            (other, _) => {
                return Err(StoreError::Corrupt {
                    table: "session_resources",
                    column: "type",
                    row: id.to_string(),
                    source: format!("`{other}`").into(),
                });
            }
        };
        Ok(Self {
            id,
            position: row.position,
            mount_path: row.mount_path,
            alias_path: row.alias_path,
            body: row.body,
            kind,
            deleted: row.deleted,
        })
    }
}

/// What the API shows, as text.
///
/// # Panics
/// Never: resources serialize.
pub(crate) fn text<T: serde::Serialize>(shown: &T) -> String {
    serde_json::to_string(shown).expect("resources serialize")
}

/// Writes a session's resource; the session is there already. Answers what the API shows of it.
pub(crate) async fn insert(
    tx: &mut PgConnection,
    workspace: WorkspaceId,
    session: SessionId,
    resource: &NewResource,
    at: Timestamp,
) -> Result<SessionResource, AddError> {
    let mut shown = resource.shown.clone();
    let (kind, token, copy) = match &resource.kind {
        NewResourceKind::File { source } => {
            let copy = files::copy_for_session(tx, workspace, *source, session)
                .await?
                .ok_or(AddError::NoFile(*source))?;
            if let SessionResource::File(file) = &mut shown {
                file.file_id = copy.file.id;
            }
            ("file", None, Some(copy))
        }
        NewResourceKind::Repository { token } => ("github_repository", token.as_ref(), None),
    };
    sqlx::query!(
        r#"
        INSERT INTO session_resources (id, session_id, type, mount_path, alias_path, body, blob_id,
            file_id, token, token_data_key, token_master_key, created_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
        "#,
        resource.id.0,
        session.0,
        kind,
        resource.mount_path,
        resource.alias_path,
        text(&shown),
        copy.as_ref().and_then(|copy| copy.blob).map(|blob| blob.0),
        copy.as_ref().map(|copy| copy.file.id.0),
        token.map(|token| &*token.ciphertext),
        token.map(|token| &*token.data_key),
        token.map(|token| &*token.master_key),
        jiff_sqlx::Timestamp::from(at.inner()) as _,
    )
    .execute(&mut *tx)
    .await?;
    Ok(shown)
}

/// Removes the tokens of a session's repositories for good.
pub(crate) async fn forget_tokens(
    tx: &mut PgConnection,
    session: SessionId,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        r#"
        UPDATE session_resources
        SET token = NULL, token_data_key = NULL, token_master_key = NULL
        WHERE session_id = $1 AND token IS NOT NULL
        "#,
        session.0,
    )
    .execute(tx)
    .await?;
    Ok(())
}

impl Store {
    /// A page of a session's resources in the order they were added, and whether more follow.
    ///
    /// # Errors
    /// Database faults.
    pub async fn resource_list(
        &self,
        workspace: WorkspaceId,
        session: SessionId,
        after: i64,
        limit: Option<i64>,
    ) -> Result<(Vec<ResourceRecord>, bool), StoreError> {
        let rows = sqlx::query_as!(
            ResourceRow,
            r#"
            SELECT r.id, r.position, r.type, r.mount_path, r.alias_path, r.body, r.blob_id, r.token,
                   r.token_data_key, r.token_master_key, r.deleted_at IS NOT NULL AS "deleted!"
            FROM session_resources r JOIN sessions c ON c.id = r.session_id
            WHERE r.session_id = $1 AND c.workspace_id = $2 AND c.deleted_at IS NULL
              AND r.deleted_at IS NULL AND r.position > $3
            ORDER BY r.position
            LIMIT $4
            "#,
            session.0,
            workspace.0,
            after,
            limit.map(|limit| limit + 1),
        )
        .fetch_all(&self.pool)
        .await?;
        let mut rows = rows
            .into_iter()
            .map(TryInto::try_into)
            .collect::<Result<Vec<_>, _>>()?;
        let limit = limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(0));
        let more = rows.len() > limit;
        rows.truncate(limit);
        Ok((rows, more))
    }

    /// One resource of a session.
    ///
    /// # Errors
    /// Database faults.
    pub async fn resource_get(
        &self,
        workspace: WorkspaceId,
        session: SessionId,
        id: ResourceId,
    ) -> Result<Option<ResourceRecord>, StoreError> {
        sqlx::query_as!(
            ResourceRow,
            r#"
            SELECT r.id, r.position, r.type, r.mount_path, r.alias_path, r.body, r.blob_id, r.token,
                   r.token_data_key, r.token_master_key, r.deleted_at IS NOT NULL AS "deleted!"
            FROM session_resources r JOIN sessions c ON c.id = r.session_id
            WHERE r.session_id = $1 AND c.workspace_id = $2 AND c.deleted_at IS NULL
              AND r.deleted_at IS NULL AND r.id = $3
            "#,
            session.0,
            workspace.0,
            id.0,
        )
        .fetch_optional(&self.pool)
        .await?
        .map(TryInto::try_into)
        .transpose()
    }

    /// Adds a file to a session that is not over.
    ///
    /// # Errors
    /// [`AddError`].
    pub async fn resource_add(
        &self,
        workspace: WorkspaceId,
        session: SessionId,
        resource: &NewResource,
        at: Timestamp,
    ) -> Result<SessionResource, AddError> {
        let mut tx = self.pool.begin().await?;
        // Locked, so that nobody ends the session, or adds the same path, meanwhile.
        let row = sqlx::query!(
            r#"
            SELECT c.archived_at IS NOT NULL OR s.status = 'terminated' AS "ended!",
                   (SELECT count(*) FROM session_resources r
                    WHERE r.session_id = c.id AND r.type = 'file' AND r.deleted_at IS NULL)
                       AS "files!"
            FROM sessions c JOIN session_state s ON s.session_id = c.id
            WHERE c.id = $1 AND c.workspace_id = $2 AND c.deleted_at IS NULL
            FOR UPDATE OF c
            "#,
            session.0,
            workspace.0,
        )
        .fetch_optional(&mut *tx)
        .await?
        .ok_or(AddError::NoSession)?;
        if row.ended {
            return Err(AddError::Ended);
        }
        if usize::try_from(row.files).unwrap_or(usize::MAX) >= MAX_FILES {
            return Err(AddError::TooMany);
        }
        let shown = insert(&mut tx, workspace, session, resource, at).await?;
        sqlx::query!(
            "UPDATE sessions SET equipped = true WHERE id = $1",
            session.0
        )
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(shown)
    }

    /// Removes a file from a session, and the session's copy with it. `false`: there was none.
    ///
    /// # Errors
    /// Database faults.
    pub async fn resource_remove(
        &self,
        workspace: WorkspaceId,
        session: SessionId,
        id: ResourceId,
    ) -> Result<bool, StoreError> {
        let removed = sqlx::query!(
            r#"
            WITH removed AS (
                UPDATE session_resources r SET deleted_at = clock_timestamp()
                FROM sessions c
                WHERE r.id = $3 AND r.session_id = $1 AND r.type = 'file' AND r.deleted_at IS NULL
                  AND c.id = r.session_id AND c.workspace_id = $2 AND c.deleted_at IS NULL
                RETURNING r.file_id
            ), deleted AS (
                DELETE FROM files f USING removed WHERE f.id = removed.file_id
            )
            SELECT file_id FROM removed
            "#,
            session.0,
            workspace.0,
            id.0,
        )
        .fetch_optional(&self.pool)
        .await?;
        Ok(removed.is_some())
    }

    /// Replaces a repository's token, and with it what the API shows. `false`: no such repository.
    ///
    /// # Errors
    /// Database faults.
    pub async fn resource_set_token(
        &self,
        workspace: WorkspaceId,
        session: SessionId,
        id: ResourceId,
        token: &Sealed,
        body: &str,
        actor: &Actor,
    ) -> Result<bool, StoreError> {
        let mut tx = self.pool.begin().await?;
        let done = sqlx::query!(
            r#"
            UPDATE session_resources r
            SET token = $4, token_data_key = $5, token_master_key = $6, body = $7
            FROM sessions c
            WHERE r.id = $3 AND r.session_id = $1 AND r.type = 'github_repository'
              AND r.deleted_at IS NULL
              AND c.id = r.session_id AND c.workspace_id = $2 AND c.deleted_at IS NULL
            "#,
            session.0,
            workspace.0,
            id.0,
            token.ciphertext,
            token.data_key,
            token.master_key,
            body,
        )
        .execute(&mut *tx)
        .await?;
        if done.rows_affected() == 0 {
            return Ok(false);
        }
        let entry = Audit {
            workspace: Some(workspace),
            actor,
            action: "session_resource.rotate_token",
            target: id.to_string(),
            detail: serde_json::json!({"session": session.to_string()}),
        };
        audit(&mut *tx, entry).await?;
        tx.commit().await?;
        Ok(true)
    }

    /// What a session's sandbox is to be fitted out with; whoever's session it is.
    ///
    /// # Errors
    /// Database faults.
    pub async fn session_equipment(
        &self,
        session: SessionId,
    ) -> Result<Option<Equipment>, StoreError> {
        let row = sqlx::query!(
            r#"
            SELECT workspace_id, environment_id, agent, environment, findings, equipped
            FROM sessions WHERE id = $1 AND deleted_at IS NULL
            "#,
            session.0,
        )
        .fetch_optional(&self.pool)
        .await?;
        let Some(row) = row else { return Ok(None) };
        let skills = if row.equipped {
            self.session_skills(session).await?
        } else {
            Vec::new()
        };
        let resources = if row.equipped {
            sqlx::query_as!(
                ResourceRow,
                r#"
                SELECT id, position, type, mount_path, alias_path, body, blob_id, token,
                       token_data_key, token_master_key, deleted_at IS NOT NULL AS "deleted!"
                FROM session_resources WHERE session_id = $1
                ORDER BY position
                "#,
                session.0,
            )
            .fetch_all(&self.pool)
            .await?
            .into_iter()
            .map(TryInto::try_into)
            .collect::<Result<Vec<_>, _>>()?
        } else {
            Vec::new()
        };
        Ok(Some(Equipment {
            workspace: WorkspaceId(row.workspace_id),
            environment_id: EnvironmentId(row.environment_id),
            agent: row.agent,
            environment: row.environment,
            resources,
            findings: row.findings,
            skills,
        }))
    }

    /// A repository's token as it is stored.
    ///
    /// # Errors
    /// When there is no master key.
    pub async fn seal_resource_token(
        &self,
        workspace: WorkspaceId,
        resource: ResourceId,
        token: &str,
    ) -> Result<Sealed, SealError> {
        let context = token_context(workspace, resource);
        self.sealer()?.seal(token.as_bytes(), &context).await
    }

    /// Whose session it is; `None` when it is gone.
    ///
    /// # Errors
    /// Database faults.
    pub async fn session_workspace(
        &self,
        session: SessionId,
    ) -> Result<Option<WorkspaceId>, StoreError> {
        Ok(sqlx::query_scalar!(
            "SELECT workspace_id FROM sessions WHERE id = $1 AND deleted_at IS NULL",
            session.0,
        )
        .fetch_optional(&self.pool)
        .await?
        .map(WorkspaceId))
    }

    /// How large a content is.
    ///
    /// # Errors
    /// Database faults.
    pub async fn blob_size(&self, blob: BlobId) -> Result<Option<u64>, StoreError> {
        Ok(
            sqlx::query_scalar!("SELECT size FROM blobs WHERE id = $1", blob.0)
                .fetch_optional(&self.pool)
                .await?
                .map(|size| u64::try_from(size).unwrap_or(0)),
        )
    }

    /// A repository's token in clear, for the door alone.
    ///
    /// # Errors
    /// [`SealError`].
    pub async fn resource_token(
        &self,
        workspace: WorkspaceId,
        resource: ResourceId,
        token: &Sealed,
    ) -> Result<SecretString, SealError> {
        let context = token_context(workspace, resource);
        self.sealer()?.open_text(token, &context).await
    }

    /// Remembers what was found in a session's repositories. Only the first look counts.
    ///
    /// # Errors
    /// Database faults.
    pub async fn session_findings(
        &self,
        session: SessionId,
        findings: &str,
    ) -> Result<(), StoreError> {
        sqlx::query!(
            "UPDATE sessions SET findings = $2 WHERE id = $1 AND findings IS NULL",
            session.0,
            findings,
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// What a sandbox has in its file system.
    ///
    /// # Errors
    /// Database faults.
    pub async fn sandbox_mounted(&self, sandbox: SandboxId) -> Result<Vec<Uuid>, StoreError> {
        Ok(
            sqlx::query_scalar!("SELECT mounted FROM sandboxes WHERE id = $1", sandbox.0)
                .fetch_optional(&self.pool)
                .await?
                .unwrap_or_default(),
        )
    }

    /// # Errors
    /// Database faults.
    pub async fn sandbox_set_mounted(
        &self,
        sandbox: SandboxId,
        mounted: &[Uuid],
    ) -> Result<(), StoreError> {
        sqlx::query!(
            "UPDATE sandboxes SET mounted = $2 WHERE id = $1",
            sandbox.0,
            mounted,
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// A session's outputs as they were captured last.
    ///
    /// # Errors
    /// Database faults.
    pub async fn output_list(&self, session: SessionId) -> Result<Vec<OutputRecord>, StoreError> {
        Ok(sqlx::query!(
            "SELECT path, size, modified, inode FROM session_outputs WHERE session_id = $1",
            session.0,
        )
        .fetch_all(&self.pool)
        .await?
        .into_iter()
        .map(|row| OutputRecord {
            path: row.path,
            size: row.size,
            modified: row.modified,
            inode: row.inode,
        })
        .collect())
    }

    /// Remembers what a captured output was like. Nothing is remembered of a session that is gone.
    ///
    /// # Errors
    /// Database faults.
    pub async fn output_set(
        &self,
        session: SessionId,
        output: &OutputRecord,
    ) -> Result<(), StoreError> {
        sqlx::query!(
            r#"
            INSERT INTO session_outputs (session_id, path, size, modified, inode)
            SELECT id, $2, $3, $4, $5 FROM sessions WHERE id = $1 FOR KEY SHARE
            ON CONFLICT (session_id, path) DO UPDATE SET size = $3, modified = $4, inode = $5
            "#,
            session.0,
            output.path,
            output.size,
            output.modified,
            output.inode,
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }
}
