use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{DefaultBodyLimit, FromRequest, Multipart, Request, multipart::MultipartError},
    http::StatusCode,
};
use bytes::Bytes;
use http_body_util::Limited;
use selfsame_types::{ApiError, ErrorKind};

use crate::{app::App, error::Error, extract::json};

/// A `multipart/form-data` body that is small enough to be in memory as a whole: at most as large as any
/// JSON body, and of at most so many parts.
#[derive(Debug, Clone)]
pub struct Form<const PARTS: usize>(pub Vec<Part>);

/// One part of a form.
#[derive(Debug, Clone)]
pub struct Part {
    /// The name of the field.
    pub name: String,
    /// The name of the file as it was sent: a path, or worse.
    pub filename: Option<String>,
    pub data: Bytes,
}

impl<const PARTS: usize> FromRequest<Arc<App>> for Form<PARTS> {
    type Rejection = Error;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, Error> {
        let server = &app.config.server;
        let limit = server.max_body_bytes;
        json::check_length(&request, limit)?;
        let patience = Duration::from_secs(server.body_timeout_seconds);
        let parts = async {
            let mut request = request.map(|body| Body::new(Limited::new(body, limit)));
            // Ours is in place of the framework's.
            DefaultBodyLimit::disable().apply(&mut request);
            let form = Multipart::from_request(request, app).await;
            let mut form = form.map_err(|_| {
                ApiError::invalid("The request body must be `multipart/form-data` with a boundary")
            })?;
            let broken = |error: MultipartError| match error.status() {
                StatusCode::PAYLOAD_TOO_LARGE => json::too_large(limit),
                _ => ApiError::invalid("The request body is not valid `multipart/form-data`"),
            };
            let mut parts = Vec::new();
            while let Some(field) = form.next_field().await.map_err(broken)? {
                if parts.len() == PARTS {
                    return Err(ApiError::invalid(format!(
                        "The request body has more than {PARTS} parts"
                    )));
                }
                parts.push(Part {
                    name: field.name().unwrap_or_default().to_owned(),
                    filename: field.file_name().map(str::to_owned),
                    data: field.bytes().await.map_err(broken)?,
                });
            }
            Ok(parts)
        };
        match tokio::time::timeout(patience, parts).await {
            Ok(parts) => Ok(Self(parts?)),
            Err(_) => Err(ApiError::new(
                ErrorKind::Timeout,
                "The request body did not arrive in time",
            )
            .into()),
        }
    }
}
