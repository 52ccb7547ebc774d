//! What clients do to a session's resources: name them at creation, add, remove, rotate a token.

use selfsame_store::{Actor, AddError, NewResource as Row, NewResourceKind, Store, StoreError};
use selfsame_types::{
    ApiError, ResourceId, SessionId, Timestamp, WorkspaceId,
    session::{
        FileResource, FileResourceType, GithubRepositoryResource, GithubRepositoryType, MAX_FILES,
        NewFile, NewRepository, NewResource, SessionResource, no_file,
    },
};

use crate::{Engine, change::text};

/// Why a client's wish about a resource was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum ResourceError {
    /// No such session in this workspace.
    #[error("no such session")]
    NoSession,
    /// No such resource in this session.
    #[error("no such resource")]
    NoResource,
    #[error(transparent)]
    Refused(#[from] ApiError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The rows that a new session's resources become.
pub(crate) async fn rows(
    store: &Store,
    workspace: WorkspaceId,
    resources: Vec<NewResource>,
    at: Timestamp,
) -> Result<Vec<Row>, StoreError> {
    let mut rows = Vec::with_capacity(resources.len());
    for resource in resources {
        rows.push(match resource {
            NewResource::File(file) => file_row(file, at),
            NewResource::Repository(repository) => {
                repository_row(store, workspace, repository, at).await?
            }
        });
    }
    Ok(rows)
}

fn file_row(file: NewFile, at: Timestamp) -> Row {
    let id = ResourceId::new();
    Row {
        id,
        shown: SessionResource::File(FileResource {
            r#type: FileResourceType,
            id,
            file_id: file.file_id,
            mount_path: file.mount_path.clone(),
            created_at: at,
            updated_at: at,
        }),
        mount_path: file.mount_path,
        alias_path: file.alias_path,
        kind: NewResourceKind::File {
            source: file.file_id,
        },
    }
}

async fn repository_row(
    store: &Store,
    workspace: WorkspaceId,
    repository: NewRepository,
    at: Timestamp,
) -> Result<Row, StoreError> {
    let id = ResourceId::new();
    let token = match repository.token {
        Some(token) => Some(store.seal_resource_token(workspace, id, &token).await?),
        None => None,
    };
    Ok(Row {
        id,
        shown: SessionResource::GithubRepository(GithubRepositoryResource {
            r#type: GithubRepositoryType,
            id,
            url: repository.url,
            mount_path: repository.mount_path.clone(),
            checkout: repository.checkout,
            created_at: at,
            updated_at: at,
        }),
        mount_path: repository.mount_path,
        alias_path: None,
        kind: NewResourceKind::Repository { token },
    })
}

/// What a refused resource means for the client; `at` is where in the body it stands.
pub(crate) fn refusal(at: &str, error: AddError) -> ResourceError {
    ResourceError::Refused(match error {
        AddError::NoSession => return ResourceError::NoSession,
        AddError::Store(error) => return ResourceError::Store(error),
        AddError::Ended => ApiError::invalid(
            "Cannot add a resource: the session is archived or terminated and can only be read or deleted",
        ),
        AddError::NoFile(id) => no_file(at, &id.to_string()),
        AddError::PathTaken => ApiError::invalid(
            "mount_path: another resource of this session is mounted there; choose another path or remove \
             that one first",
        ),
        AddError::TooMany => ApiError::invalid(format!(
            "A session has at most {MAX_FILES} files; remove one first"
        )),
    })
}

impl Engine {
    /// Adds a file to a session; a sandbox that is running gets it at once.
    ///
    /// # Errors
    /// [`ResourceError`].
    pub async fn resource_add(
        &self,
        workspace: WorkspaceId,
        session: SessionId,
        file: NewFile,
    ) -> Result<SessionResource, ResourceError> {
        let at = self.inner.store.now().await?;
        let shown = self
            .inner
            .store
            .resource_add(workspace, session, &file_row(file, at), at)
            .await
            .map_err(|error| refusal("", error))?;
        self.reequip(session);
        Ok(shown)
    }

    /// Removes a file from a session, and from its sandbox.
    ///
    /// # Errors
    /// [`ResourceError`]; repositories stay for life.
    pub async fn resource_remove(
        &self,
        workspace: WorkspaceId,
        session: SessionId,
        id: ResourceId,
    ) -> Result<(), ResourceError> {
        let store = &self.inner.store;
        if store.resource_remove(workspace, session, id).await? {
            self.reequip(session);
            return Ok(());
        }
        match store.resource_get(workspace, session, id).await? {
            None => Err(ResourceError::NoResource),
            Some(_) => Err(ApiError::invalid(
                "Only `file` resources can be removed; a repository stays with its session",
            )
            .into()),
        }
    }

    /// Gives a repository another token; the next connection uses it.
    ///
    /// # Errors
    /// [`ResourceError`]; files have no token.
    pub async fn resource_rotate(
        &self,
        workspace: WorkspaceId,
        session: SessionId,
        id: ResourceId,
        token: &str,
        actor: &Actor,
    ) -> Result<SessionResource, ResourceError> {
        let store = &self.inner.store;
        let record = store
            .resource_get(workspace, session, id)
            .await?
            .ok_or(ResourceError::NoResource)?;
        let mut shown = read(id, &record.body)?;
        let SessionResource::GithubRepository(repository) = &mut shown else {
            return Err(ApiError::invalid(
                "authorization_token: only a `github_repository` resource has one",
            )
            .into());
        };
        repository.updated_at = store.now().await?;
        let sealed = store
            .seal_resource_token(workspace, id, token)
            .await
            .map_err(StoreError::from)?;
        let body = text(&shown);
        let done = store
            .resource_set_token(workspace, session, id, &sealed, &body, actor)
            .await?;
        if !done {
            return Err(ResourceError::NoResource);
        }
        self.reequip(session);
        Ok(shown)
    }

    /// Tells whoever holds a session's sandbox that there is something to change in it.
    fn reequip(&self, session: SessionId) {
        self.inner.reequip(session);
        self.inner.notifier.equipped(session);
    }
}

/// A stored resource as the API shows it.
///
/// # Errors
/// When this program did not write it.
pub fn read(id: ResourceId, body: &str) -> Result<SessionResource, StoreError> {
    serde_json::from_str(body).map_err(StoreError::corrupt("session_resources", "body", id))
}
