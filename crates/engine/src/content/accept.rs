//! Files that a client's events name: looked at before the events are accepted.

use futures_util::TryStreamExt as _;
use selfsame_store::{AppendError, BlobError, ContentKind, FileRecord, Store, StoreError};
use selfsame_types::{ApiError, FileId, SessionId, WorkspaceId, inbound::InboundEvent};
use serde_json::Value;

use super::{HEAD, media_type};

/// What is to be kept for the session when its events are accepted.
#[derive(Debug, Default)]
pub(crate) struct Pins(Vec<Pin>);

#[derive(Debug)]
struct Pin {
    kind: ContentKind,
    file: FileId,
    media_type: &'static str,
    /// Where it stands in the request.
    place: String,
}

impl Pins {
    /// Keeps them.
    ///
    /// # Errors
    /// 400 when one of the files is gone by now.
    pub(crate) async fn keep(
        &self,
        store: &Store,
        workspace: WorkspaceId,
        session: SessionId,
    ) -> Result<(), AppendError> {
        for pin in &self.0 {
            let pinned = store
                .content_pin_file(workspace, session, pin.kind, pin.file, pin.media_type)
                .await?;
            if !pinned && store.session_get(workspace, session).await?.is_none() {
                return Err(AppendError::NotFound);
            }
            if !pinned {
                return Err(missing(&pin.place, pin.file).into());
            }
        }
        Ok(())
    }
}

fn missing(place: &str, file: FileId) -> ApiError {
    ApiError::invalid(format!("{place}.file_id: there is no file `{file}`"))
}

/// Checks every file that `events` name; `list` is what the request calls them.
///
/// # Errors
/// 400 for files that are not there, have expired, or are not what the block says.
pub(crate) async fn check(
    store: &Store,
    workspace: WorkspaceId,
    list: &str,
    events: &[InboundEvent],
) -> Result<Pins, AppendError> {
    let mut pins = Pins::default();
    for (index, event) in events.iter().enumerate() {
        let content = match event {
            InboundEvent::UserMessage(event) => Some(&event.content),
            InboundEvent::UserCustomToolResult(event) => event.content.as_ref(),
            InboundEvent::UserToolResult(event) => event.content.as_ref(),
            _ => None,
        };
        for (block, kind, id) in files(content) {
            let name = event.event_type().as_str();
            let place = format!("Invalid {name} event at {list}[{index}]: content[{block}].source");
            // Checked when the event was read.
            let file: FileId = id
                .parse()
                .map_err(|_| ApiError::invalid(format!("{place}.file_id: is not a file's id")))?;
            if pins
                .0
                .iter()
                .any(|pin| pin.file == file && pin.kind == kind)
            {
                continue;
            }
            let record = store
                .file_get(workspace, file)
                .await?
                .ok_or_else(|| missing(&place, file))?;
            let media_type = judge(store, &record, kind, &place).await?;
            pins.0.push(Pin {
                kind,
                file,
                media_type,
                place,
            });
        }
    }
    Ok(pins)
}

/// The blocks of an event that name files: their positions, kinds and ids.
fn files(content: Option<&Value>) -> impl Iterator<Item = (usize, ContentKind, &str)> {
    let blocks = content.and_then(Value::as_array).into_iter().flatten();
    blocks.enumerate().filter_map(|(index, block)| {
        let kind = match block["type"].as_str()? {
            "image" => ContentKind::Image,
            "document" => ContentKind::Document,
            _ => return None,
        };
        let source = &block["source"];
        (source["type"] == "file").then_some(())?;
        Some((index, kind, source["file_id"].as_str()?))
    })
}

async fn judge(
    store: &Store,
    record: &FileRecord,
    kind: ContentKind,
    place: &str,
) -> Result<&'static str, AppendError> {
    let id = record.file.id;
    let refuse = |problem: &str| ApiError::invalid(format!("{place}.file_id: `{id}` {problem}"));
    let Some(blob) = record.blob else {
        return Err(refuse("has expired").into());
    };
    let head = async {
        let mut content = store.blobs().get(blob).await?;
        let mut head = Vec::new();
        while head.len() < HEAD
            && let Some(piece) = content.try_next().await.map_err(BlobError::Read)?
        {
            head.extend_from_slice(&piece[..piece.len().min(HEAD - head.len())]);
        }
        Ok::<_, BlobError>(head)
    };
    let head = head.await.map_err(|error| {
        tracing::error!(file = %id, %error, "a file's content cannot be read");
        AppendError::Refused(ApiError::internal())
    })?;
    let size = record.file.size_bytes;
    media_type(kind, &head, &record.file.mime_type, size).map_err(|problem| refuse(&problem).into())
}

impl From<StoreError> for ContentError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// A fault on the way to a content; nothing that a client has done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ContentError {
    #[error(transparent)]
    Store(StoreError),
    #[error(transparent)]
    Blob(#[from] BlobError),
    #[error("a request's messages cannot be read")]
    Unreadable(#[from] serde_json::Error),
}
