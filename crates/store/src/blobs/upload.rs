//! Writing one object, in one request or in parts.

use std::sync::Arc;

use bytes::Bytes;
use object_store::{MultipartUpload, ObjectStore, ObjectStoreExt as _, PutPayload, path::Path};
use tokio::task::JoinSet;

use super::{BlobError, place::Place};

/// An object that does not exist before [`Upload::finish`]. Dropped before that, it cleans up.
pub(super) struct Upload {
    objects: Arc<dyn ObjectStore>,
    path: Path,
    /// Parts on their way at the same time.
    parallel: usize,
    open: Option<Open>,
}

struct Open {
    upload: Box<dyn MultipartUpload>,
    parts: JoinSet<object_store::Result<()>>,
}

impl Upload {
    pub(super) fn new(place: &Place, path: Path) -> Self {
        Self {
            objects: Arc::clone(&place.objects),
            path,
            parallel: place.parallel,
            open: None,
        }
    }

    /// Sends a part; waits while too many are on their way.
    pub(super) async fn part(&mut self, content: Bytes) -> Result<(), BlobError> {
        if self.open.is_none() {
            self.open = Some(Open {
                upload: self.objects.put_multipart(&self.path).await?,
                parts: JoinSet::new(),
            });
        }
        if let Some(open) = &mut self.open {
            while open.parts.len() >= self.parallel {
                open.joined().await?;
            }
            open.parts.spawn(open.upload.put_part(content.into()));
        }
        Ok(())
    }

    /// Sends the last part, and makes the object appear.
    pub(super) async fn finish(&mut self, last: Bytes) -> Result<(), BlobError> {
        if self.open.is_none() {
            let payload = PutPayload::from_bytes(last);
            self.objects.put(&self.path, payload).await?;
            return Ok(());
        }
        if !last.is_empty() {
            self.part(last).await?;
        }
        if let Some(open) = &mut self.open {
            while !open.parts.is_empty() {
                open.joined().await?;
            }
            open.upload.complete().await?;
        }
        self.open = None;
        Ok(())
    }

    /// Removes the parts that were sent.
    pub(super) async fn abort(&mut self) {
        if let Some(open) = self.open.take() {
            open.abort().await;
        }
    }
}

impl Open {
    async fn joined(&mut self) -> Result<(), BlobError> {
        match self.parts.join_next().await {
            Some(Ok(sent)) => Ok(sent?),
            Some(Err(broken)) => Err(BlobError::Storage(broken.into())),
            None => Ok(()),
        }
    }

    async fn abort(mut self) {
        self.parts.shutdown().await;
        if let Err(error) = self.upload.abort().await {
            tracing::warn!(%error, "cannot remove the parts of an upload that was given up");
        }
    }
}

/// A caller that gives up drops its future, and cannot wait for the cleaning.
impl Drop for Upload {
    fn drop(&mut self) {
        if let (Some(open), Ok(runtime)) = (self.open.take(), tokio::runtime::Handle::try_current())
        {
            runtime.spawn(open.abort());
        }
    }
}
