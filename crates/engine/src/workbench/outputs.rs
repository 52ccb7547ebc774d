//! Outputs: what an agent writes below [`OUTPUTS`] becomes files of its session.
//!
//! The hands give a fingerprint of that directory with each result, so looking costs nothing while
//! nothing has changed. A file that changed gets a new id and takes the place of the one with its path;
//! a file that was deleted inside stays as it was captured last.

use std::collections::HashMap;

use futures_util::TryStreamExt as _;
use selfsame_sandbox::{Found, Sandbox, SandboxError};
use selfsame_store::{BlobError, Inserted, NewFile, NewKind, OutputRecord};
use selfsame_types::{SessionId, WorkspaceId, file};
use tokio_util::io::ReaderStream;

use super::{FitError, OUTPUTS, Workbench};

/// Files of one session that are captured; of more, those whose paths come first.
const MAX_OUTPUTS: usize = 10_000;
/// The largest file that is captured, the same as may be uploaded.
const MAX_BYTES: u64 = file::MAX_BYTES;
/// Looks at a directory that changes while it is being captured.
const LOOKS: usize = 3;

/// What is known of a session's outputs on this server.
#[derive(Debug, Default)]
pub(crate) struct Outputs {
    /// The fingerprint of what was captured last.
    captured: Option<u64>,
}

impl Workbench {
    /// Brings a session's outputs up to date with its sandbox.
    pub async fn capture(
        &self,
        session: SessionId,
        sandbox: &Sandbox,
        outputs: &mut Outputs,
    ) -> Result<(), FitError> {
        for _ in 0..LOOKS {
            let present = sandbox.outputs().await?;
            if outputs.captured == Some(present) {
                return Ok(());
            }
            // An empty directory, and nothing was ever captured here.
            if present == 0 && outputs.captured.is_none() {
                outputs.captured = Some(0);
                return Ok(());
            }
            if self.capture_changed(session, sandbox).await? {
                outputs.captured = Some(present);
            }
        }
        // It never stands still; what there was is captured, and the next look goes on.
        Ok(())
    }

    /// Captures what differs from the rows. Answers whether every file could be read to its end.
    async fn capture_changed(
        &self,
        session: SessionId,
        sandbox: &Sandbox,
    ) -> Result<bool, FitError> {
        let found = match sandbox.walk(OUTPUTS, MAX_OUTPUTS).await {
            Ok(found) => found,
            // The directory itself was removed: nothing new.
            Err(SandboxError::Failed(_)) => return Ok(true),
            Err(error) => return Err(error.into()),
        };
        let Some(workspace) = self.store.session_workspace(session).await? else {
            return Ok(true);
        };
        let known: HashMap<String, OutputRecord> = self
            .store
            .output_list(session)
            .await?
            .into_iter()
            .map(|record| (record.path.clone(), record))
            .collect();
        let mut whole = true;
        for found in found {
            let (modified, inode) = stamp(&found);
            let size = i64::try_from(found.size).unwrap_or(i64::MAX);
            let same = known.get(&found.path).is_some_and(|known| {
                (known.size, known.modified, known.inode) == (size, modified, inode)
            });
            if same {
                continue;
            }
            if found.size > MAX_BYTES {
                tracing::warn!(%session, bytes = found.size, "an output is too large to be captured");
                continue;
            }
            whole &= self
                .capture_file((workspace, session), sandbox, &found)
                .await?;
        }
        Ok(whole)
    }

    async fn capture_file(
        &self,
        (workspace, session): (WorkspaceId, SessionId),
        sandbox: &Sandbox,
        found: &Found,
    ) -> Result<bool, FitError> {
        let path = format!("{OUTPUTS}/{}", found.path);
        let content = match sandbox.get(&path, MAX_BYTES).await {
            Ok(content) => content,
            // Gone again, or no file any more.
            Err(SandboxError::Failed(_)) => return Ok(true),
            Err(error) => return Err(error.into()),
        };
        let stream = ReaderStream::with_capacity(content, 128 << 10).map_err(std::io::Error::other);
        let blob = match self.store.blobs().put(stream, MAX_BYTES).await {
            Ok(blob) => blob,
            // It changed or went while it was read, or the sandbox was lost: the next look tells.
            Err(BlobError::Read(error)) => {
                tracing::debug!(%session, %error, "an output changed while it was captured");
                return Ok(false);
            }
            Err(error) => return Err(error.into()),
        };
        let base = found.path.rsplit('/').next().unwrap_or(&found.path);
        let filename = filename(base);
        let new = NewFile {
            workspace,
            kind: NewKind::Output {
                session,
                path: found.path.clone(),
            },
            mime_type: file::guess_mime_type(&filename).to_owned(),
            filename,
            blob,
        };
        match self.store.file_insert(new).await? {
            Inserted::New(_) => metrics::counter!("selfsame_outputs_captured_total").increment(1),
            Inserted::Unchanged(_) => self.store.blobs().discard(blob.id).await,
            Inserted::NoSession => {
                self.store.blobs().discard(blob.id).await;
                return Ok(true);
            }
            Inserted::OverQuota(quota) => {
                self.store.blobs().discard(blob.id).await;
                tracing::warn!(%session, quota, "an output would exceed the workspace's quota");
                return Ok(true);
            }
        }
        let (modified, inode) = stamp(found);
        let record = OutputRecord {
            path: found.path.clone(),
            size: i64::try_from(found.size).unwrap_or(i64::MAX),
            modified,
            inode,
        };
        self.store.output_set(session, &record).await?;
        Ok(true)
    }
}

/// A file's name by the rules of uploads: what they forbid becomes an underscore.
fn filename(base: &str) -> String {
    let plain: String = base
        .chars()
        .take(255)
        .map(|c| {
            if c.is_control() || "<>:\"|?*\\/".contains(c) {
                '_'
            } else {
                c
            }
        })
        .collect();
    file::clean_name(Some(&plain), file::BINARY).unwrap_or_else(|_| "unnamed".to_owned())
}

/// Time and inode as the rows have them.
fn stamp(found: &Found) -> (i64, i64) {
    let modified = i64::try_from(found.modified_ns).unwrap_or(i64::MAX);
    (modified, found.inode.cast_signed())
}
