//! Contents: of files, of skills, of whatever else is large. In a directory or an S3-compatible bucket,
//! never in the database, and never whole in memory.
//!
//! An object is written first, and a row in `blobs` is made by the transaction that refers to it, so a row
//! always has its object. What the reverse can leave behind is swept up; `sweep.rs` says why that never
//! takes an object that somebody is about to refer to.

mod place;
mod sweep;
mod upload;

use std::{fmt, io, pin::pin, sync::Arc};

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt as _, TryStreamExt as _, stream::BoxStream};
use object_store::{GetResultPayload, ObjectStoreExt as _};
use selfsame_types::BlobId;
use sha2::{Digest as _, Sha256};
use sqlx::PgConnection;
use tokio_util::io::ReaderStream;

use crate::{Store, StoreError};
use place::Place;
pub use place::{PlaceError, S3};
pub use sweep::{GRACE, SweepError};
use upload::Upload;

/// Read at once from a local file.
const READ: usize = 128 * 1024;

/// Where contents are kept. Cheap to clone.
#[derive(Clone)]
pub struct Blobs(Option<Arc<Place>>);

/// A content that was just written. It becomes lasting with the first row that refers to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blob {
    pub id: BlobId,
    pub size: u64,
    pub sha256: [u8; 32],
}

/// Why a content could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    #[error("it is larger than {0} bytes")]
    TooLarge(u64),
    /// The source broke off: the client's or the sandbox's fault, not the store's.
    #[error("its source cannot be read")]
    Read(#[source] io::Error),
    #[error("there is no such content")]
    Missing,
    #[error("the object store failed")]
    Storage(#[source] object_store::Error),
    #[error("this process was not given a place for contents")]
    NoPlace,
}

impl From<object_store::Error> for BlobError {
    fn from(error: object_store::Error) -> Self {
        match error {
            object_store::Error::NotFound { .. } => Self::Missing,
            error => Self::Storage(error),
        }
    }
}

impl fmt::Debug for Blobs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(place) => write!(f, "Blobs({})", place.objects),
            None => f.write_str("Blobs(none)"),
        }
    }
}

impl Blobs {
    /// For processes that need no contents: everything fails.
    #[must_use]
    pub fn none() -> Self {
        Self(None)
    }

    fn place(&self) -> Result<&Place, BlobError> {
        self.0.as_deref().ok_or(BlobError::NoPlace)
    }

    /// Writes a content of at most `limit` bytes. Unless it is written to its end, nothing stays of it:
    /// also when the source fails, and when the caller gives up.
    ///
    /// # Errors
    /// [`BlobError::TooLarge`] as soon as that is known, [`BlobError::Read`] with the error of `content`.
    pub async fn put(
        &self,
        content: impl Stream<Item = io::Result<Bytes>> + Send,
        limit: u64,
    ) -> Result<Blob, BlobError> {
        let place = self.place()?;
        let id = BlobId::new();
        let mut upload = Upload::new(place, place.path(id));
        match write(&mut upload, place.part, content, limit).await {
            Ok((size, sha256)) => Ok(Blob { id, size, sha256 }),
            Err(error) => {
                upload.abort().await;
                Err(error)
            }
        }
    }

    /// Reads a content piece by piece.
    ///
    /// # Errors
    /// [`BlobError::Missing`], or when the store fails before the first piece.
    pub async fn get(
        &self,
        id: BlobId,
    ) -> Result<BoxStream<'static, io::Result<Bytes>>, BlobError> {
        let place = self.place()?;
        let found = place.objects.get(&place.path(id)).await?;
        Ok(match found.payload {
            // The library's own stream of a file goes in steps of 8 KiB.
            GetResultPayload::File(file, _) => {
                ReaderStream::with_capacity(tokio::fs::File::from_std(file), READ).boxed()
            }
            GetResultPayload::Stream(stream) => stream.map_err(io::Error::other).boxed(),
        })
    }

    /// Reads a small content whole.
    ///
    /// # Errors
    /// As [`Blobs::get`]; [`BlobError::TooLarge`] beyond `limit`.
    pub async fn read(&self, id: BlobId, limit: usize) -> Result<Bytes, BlobError> {
        let mut content = self.get(id).await?;
        let mut whole = BytesMut::new();
        while let Some(piece) = content.try_next().await.map_err(BlobError::Read)? {
            if whole.len() + piece.len() > limit {
                return Err(BlobError::TooLarge(limit as u64));
            }
            whole.extend_from_slice(&piece);
        }
        Ok(whole.freeze())
    }

    /// Removes a content that no row refers to: one that [`Blobs::put`] wrote and that was then not
    /// wanted. It is fine when it is gone already.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn delete(&self, id: BlobId) -> Result<(), BlobError> {
        let place = self.place()?;
        match place.objects.delete(&place.path(id)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes what [`Blobs::put`] wrote and a refusal then made useless. A failure is only logged: the
    /// sweep finds it later.
    pub async fn discard(&self, id: BlobId) {
        if let Err(error) = self.delete(id).await {
            tracing::warn!(blob = %id, %error, "cannot remove a content that is not wanted");
        }
    }
}

/// Size and hash of what was written.
async fn write(
    upload: &mut Upload,
    part: usize,
    content: impl Stream<Item = io::Result<Bytes>> + Send,
    limit: u64,
) -> Result<(u64, [u8; 32]), BlobError> {
    let mut content = pin!(content);
    let mut hash = Sha256::new();
    let mut size = 0_u64;
    // Copied, because a piece may be a small slice that keeps a large buffer alive.
    let mut buffer = BytesMut::new();
    while let Some(mut piece) = content.try_next().await.map_err(BlobError::Read)? {
        size += piece.len() as u64;
        if size > limit {
            return Err(BlobError::TooLarge(limit));
        }
        hash.update(&piece);
        while buffer.len() + piece.len() > part {
            buffer.extend_from_slice(&piece.split_to(part - buffer.len()));
            let full = std::mem::replace(&mut buffer, BytesMut::with_capacity(part));
            upload.part(full.freeze()).await?;
        }
        buffer.extend_from_slice(&piece);
    }
    upload.finish(buffer.freeze()).await?;
    Ok((size, hash.finalize().into()))
}

impl Store {
    /// Where contents are kept.
    #[must_use]
    pub fn blobs(&self) -> &Blobs {
        &self.blobs
    }

    /// The same store, with a place for contents.
    #[must_use]
    pub fn with_blobs(self, blobs: Blobs) -> Self {
        Self { blobs, ..self }
    }
}

/// Makes the row of a content, in the transaction that refers to it.
pub(crate) async fn insert(tx: &mut PgConnection, blob: &Blob) -> Result<(), StoreError> {
    // The row may be there: the sweep of strays takes an object that waits for its row into its books.
    sqlx::query!(
        r#"
        INSERT INTO blobs (id, size, sha256) VALUES ($1, $2, $3)
        ON CONFLICT (id) DO UPDATE SET size = EXCLUDED.size, sha256 = EXCLUDED.sha256
        "#,
        blob.id.0,
        i64::try_from(blob.size).unwrap_or(i64::MAX),
        &blob.sha256[..],
    )
    .execute(tx)
    .await?;
    Ok(())
}

#[cfg(test)]
mod tests;
