//! `POST /v1/files`

use std::{sync::Arc, time::Duration};

use axum::extract::{Request, State};
use selfsame_store::{Blob, BlobError, Blobs, Inserted, NewFile, NewKind};
use selfsame_types::{
    ApiError, WorkspaceId,
    file::{EXPIRY_SECONDS, File, clean_mime_type, clean_name},
};

use crate::{
    app::App,
    error::{Error, Result},
    extract::{Auth, Json, Multipart, NoQuery, refusal},
};

/// What a form may hold beside the file itself, bytes.
const FORM: u64 = 64 * 1024;

/// The fields of the form.
#[derive(Debug, serde::Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "describes a body that is read as it arrives")]
pub struct UploadFile {
    /// The content. Of its filename the last component is kept.
    #[schema(value_type = String, format = Binary)]
    file: Vec<u8>,
    /// The file's content is gone after so many seconds.
    #[schema(minimum = 3600, maximum = 7_776_000)]
    expires_in_seconds: Option<u64>,
}

/// Uploads a file.
#[utoipa::path(post, path = "/v1/files", operation_id = "upload_file", tag = "files",
    request_body(content = UploadFile, content_type = "multipart/form-data"),
    responses((status = 200, description = "The file", body = File)))]
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    Auth(principal): Auth,
    NoQuery: NoQuery,
    request: Request,
) -> Result<Json<File>> {
    let patience = Duration::from_secs(app.config.server.body_timeout_seconds);
    let largest = app.config.files.max_bytes;
    let mut form = Multipart::new(request, largest.saturating_add(FORM), patience)?;
    let mut written = Written::new(app.store.blobs().clone());
    let received = receive(&mut form, &mut written, largest, principal.workspace).await;
    let new = match received {
        Ok(new) => new,
        Err(error) => {
            written.discard().await;
            return Err(error);
        }
    };
    // From here on the content is wanted, or the outcome is not known: then the sweep sees to it.
    written.keep();
    let blob = new.blob.id;
    let refused = match app.store.file_insert(new).await? {
        Inserted::New(record) | Inserted::Unchanged(record) => return Ok(Json(record.file)),
        Inserted::OverQuota(quota) => ApiError::invalid(format!(
            "The files of this workspace would hold more than its quota of {quota} bytes; delete some"
        ))
        .with_code("storage_quota_exceeded"),
        Inserted::NoSession => ApiError::internal(),
    };
    app.store.blobs().discard(blob).await;
    Err(refused.into())
}

/// Reads the form to its end. The fields come in any order.
async fn receive(
    form: &mut Multipart,
    written: &mut Written,
    largest: u64,
    workspace: WorkspaceId,
) -> Result<NewFile> {
    let mut file = None;
    let mut expires_in = None;
    while let Some(part) = form.next().await? {
        match part.name.as_str() {
            "file" if file.is_none() => {
                // Before the content: a bad name is known without waiting for it.
                let given = part.content_type.as_deref();
                let mime_type = clean_mime_type(given, part.filename.as_deref())?;
                let filename = clean_name(part.filename.as_deref(), &mime_type)?;
                let blob = match written.blobs.put(form.content(), largest).await {
                    Ok(blob) => blob,
                    Err(BlobError::Read(error)) => return Err(refusal(error).into()),
                    Err(error) => return Err(error.into()),
                };
                written.blob = Some(blob);
                file = Some((filename, mime_type, blob));
            }
            "expires_in_seconds" if expires_in.is_none() => {
                expires_in = Some(seconds(&form.text("expires_in_seconds", 32).await?)?);
            }
            name @ ("file" | "expires_in_seconds") => {
                return Err(ApiError::invalid(format!("{name}: may be given only once")).into());
            }
            name => {
                return Err(ApiError::invalid(format!(
                    "{name}: unknown field, expected `file` or `expires_in_seconds`"
                ))
                .into());
            }
        }
    }
    let (filename, mime_type, blob) =
        file.ok_or_else(|| ApiError::invalid("file: this field is required"))?;
    Ok(NewFile {
        workspace,
        kind: NewKind::Upload { expires_in },
        filename,
        mime_type,
        blob,
    })
}

fn seconds(text: &str) -> Result<Duration, Error> {
    let seconds = text.parse::<u64>().ok();
    let seconds = seconds.filter(|seconds| EXPIRY_SECONDS.contains(seconds));
    seconds.map(Duration::from_secs).ok_or_else(|| {
        let (least, most) = (EXPIRY_SECONDS.start(), EXPIRY_SECONDS.end());
        let message = format!("expires_in_seconds: must be a number from {least} to {most}");
        ApiError::invalid(message).into()
    })
}

/// A content that nothing refers to yet. Goes away with the request: a client may disconnect between the
/// file and the end of the form, and nobody waits for this future then.
struct Written {
    blobs: Blobs,
    blob: Option<Blob>,
}

impl Written {
    fn new(blobs: Blobs) -> Self {
        Self { blobs, blob: None }
    }

    fn keep(&mut self) {
        self.blob = None;
    }

    async fn discard(&mut self) {
        if let Some(blob) = self.blob.take() {
            self.blobs.discard(blob.id).await;
        }
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        if let (Some(blob), Ok(runtime)) = (self.blob.take(), tokio::runtime::Handle::try_current())
        {
            let blobs = self.blobs.clone();
            runtime.spawn(async move { blobs.discard(blob.id).await });
        }
    }
}
