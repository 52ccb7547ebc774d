//! Files a client has provided: from file storage into the sandbox, read-only.

use futures_util::TryStreamExt as _;
use selfsame_sandbox::{Put, Sandbox, SandboxError};
use selfsame_store::{BlobError, ResourceRecord};
use selfsame_types::BlobId;
use tokio_util::io::StreamReader;

use super::{Fit, FitError, Workbench};
use crate::machine::{About, ErrorType, Trouble};

/// Anyone inside may read it.
const READ_ONLY: u32 = 0o444;

impl Workbench {
    /// Streams a file into the sandbox. One that cannot be written there is a trouble, not a failure: the
    /// session goes on without it.
    pub(super) async fn bring_file(
        &self,
        sandbox: &Sandbox,
        resource: &ResourceRecord,
        blob: BlobId,
        fit: &mut Fit,
    ) -> Result<(), FitError> {
        match self
            .write(sandbox, &resource.mount_path, READ_ONLY, blob)
            .await
        {
            Ok(()) => {}
            Err(FitError::Sandbox(SandboxError::Failed(reason))) => {
                fit.troubles.push(trouble(&resource.mount_path, &reason));
                return Ok(());
            }
            Err(FitError::Blob(BlobError::Missing)) => {
                fit.troubles
                    .push(trouble(&resource.mount_path, "its content is lost"));
                return Ok(());
            }
            Err(error) => return Err(error),
        }
        if let Some(alias) = &resource.alias_path {
            match sandbox.link(alias, &resource.mount_path).await {
                // Something else is there: the file is in its real place.
                Ok(_) | Err(SandboxError::Failed(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Writes a blob to a path inside.
    pub(super) async fn write(
        &self,
        sandbox: &Sandbox,
        path: &str,
        mode: u32,
        blob: BlobId,
    ) -> Result<(), FitError> {
        let size = self
            .store
            .blob_size(blob)
            .await?
            .ok_or(BlobError::Missing)?;
        let content = self.store.blobs().get(blob).await?;
        let content = StreamReader::new(content.map_err(std::io::Error::other));
        let file = Put {
            path: path.to_owned(),
            mode,
            size,
        };
        sandbox.put(&file, content).await?;
        Ok(())
    }

    /// Removes a file that is not wanted any more, and the link to it unless it is another's by now.
    pub(super) async fn take_file(
        &self,
        sandbox: &Sandbox,
        resource: &ResourceRecord,
    ) -> Result<(), FitError> {
        for path in [Some(&resource.mount_path), resource.alias_path.as_ref()]
            .into_iter()
            .flatten()
        {
            match sandbox.remove(path).await {
                Ok(()) | Err(SandboxError::Failed(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

fn trouble(path: &str, reason: &str) -> Trouble {
    Trouble {
        error_type: ErrorType::UnknownError,
        message: format!("The file {path} could not be mounted: {reason}"),
        about: About::Sandbox,
    }
}
