//! `/v1/files`: what clients upload, and what sessions have made.

mod list;
mod upload;

use std::sync::Arc;

use axum::{
    body::Body,
    extract::State,
    http::{HeaderValue, header},
    response::Response,
};
use selfsame_store::FileRecord;
use selfsame_types::{
    ApiError, ErrorKind, FileId,
    file::{DeletedFile, File, FileDeletedType},
};

use crate::{
    app::App,
    error::{Error, Result},
    extract::{Auth, Json, NoQuery, Path, Principal, RequestId},
};

pub(crate) use list::{__path_list, list};
pub(crate) use upload::{__path_create, create};

fn not_found(id: FileId) -> Error {
    ApiError::not_found("File", id).into()
}

async fn find(app: &App, principal: &Principal, id: FileId) -> Result<FileRecord> {
    let found = app.store.file_get(principal.workspace, id).await?;
    found.ok_or_else(|| not_found(id))
}

/// Retrieves what is known about a file.
#[utoipa::path(get, path = "/v1/files/{file_id}", operation_id = "get_file", tag = "files",
    params(("file_id" = String, Path)),
    responses((status = 200, description = "The file", body = File)))]
pub(crate) async fn get(
    State(app): State<Arc<App>>,
    Auth(principal): Auth,
    Path(id): Path<FileId>,
    NoQuery: NoQuery,
) -> Result<Json<File>> {
    Ok(Json(find(&app, &principal, id).await?.file))
}

/// Deletes a file. Sessions that were given it keep their copies.
#[utoipa::path(delete, path = "/v1/files/{file_id}", operation_id = "delete_file", tag = "files",
    params(("file_id" = String, Path)),
    responses((status = 200, description = "It is gone", body = DeletedFile)))]
pub(crate) async fn delete(
    State(app): State<Arc<App>>,
    Auth(principal): Auth,
    Path(id): Path<FileId>,
    RequestId(request): RequestId,
    NoQuery: NoQuery,
) -> Result<Json<DeletedFile>> {
    let actor = principal.actor(&request);
    let deleted = app
        .store
        .file_delete(principal.workspace, id, &actor)
        .await?;
    if !deleted {
        return Err(not_found(id));
    }
    Ok(Json(DeletedFile {
        id,
        r#type: FileDeletedType,
    }))
}

/// Downloads what a session has made.
#[utoipa::path(get, path = "/v1/files/{file_id}/content", operation_id = "download_file",
    tag = "files",
    params(("file_id" = String, Path)),
    responses((status = 200, description = "The content, in the file's media type",
        content_type = "*/*", body = inline(Content))))]
pub(crate) async fn content(
    State(app): State<Arc<App>>,
    Auth(principal): Auth,
    Path(id): Path<FileId>,
    NoQuery: NoQuery,
) -> Result<Response> {
    let FileRecord { file, blob, .. } = find(&app, &principal, id).await?;
    let blob = blob.ok_or_else(|| {
        ApiError::new(
            ErrorKind::NotFound,
            format!("File `{id}` has expired: its content is gone"),
        )
        .with_code("file_expired")
    })?;
    if !file.downloadable && !app.config.files.download_uploads {
        return Err(ApiError::invalid(format!(
            "File `{id}` is not downloadable: only what a session has made is. The operator can allow \
             it by files.download_uploads"
        ))
        .with_code("file_not_downloadable")
        .into());
    }
    let content = app.store.blobs().get(blob).await?;
    let mut response = Response::new(Body::from_stream(content));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_LENGTH, file.size_bytes.into());
    let mime_type = HeaderValue::try_from(&file.mime_type).map_err(Error::internal)?;
    headers.insert(header::CONTENT_TYPE, mime_type);
    headers.insert(header::CONTENT_DISPOSITION, attachment(&file.filename));
    // Whatever a client has called it, a browser must not take it for a page of ours.
    let nosniff = HeaderValue::from_static("nosniff");
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
    Ok(response)
}

/// The bytes of a file.
#[derive(Debug, utoipa::ToSchema)]
#[schema(value_type = String, format = Binary)]
pub struct Content(#[expect(dead_code, reason = "describes a body")] String);

/// Tells a browser to save under a name: in ASCII for old ones, and in full (RFC 6266).
fn attachment(filename: &str) -> HeaderValue {
    use std::fmt::Write as _;
    let safe = |char: char| char.is_ascii_graphic() && !"\"\\%".contains(char);
    let plain: String = filename
        .chars()
        .map(|char| if safe(char) || char == ' ' { char } else { '_' })
        .collect();
    let mut text = format!("attachment; filename=\"{plain}\"");
    if plain != filename {
        text.push_str("; filename*=UTF-8''");
        for byte in filename.bytes() {
            if byte.is_ascii_alphanumeric() || b"!#$&+-.^_`|~".contains(&byte) {
                text.push(char::from(byte));
            } else {
                let _ = write!(text, "%{byte:02X}");
            }
        }
    }
    // Only visible ASCII and spaces are left.
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("attachment"))
}

#[cfg(test)]
mod tests;
