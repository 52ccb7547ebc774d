use std::{sync::Arc, time::Duration};

use axum::extract::{FromRequest, Request};
use bytes::{Bytes, BytesMut};
use selfsame_types::ApiError;

use super::Multipart;
use crate::{app::App, error::Error};

/// A `multipart/form-data` body that is small enough to be in memory as a whole: at most as large as any
/// JSON body, and of at most so many parts. For larger ones see [`Multipart`].
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
        let patience = Duration::from_secs(server.body_timeout_seconds);
        let mut form = Multipart::new(request, server.max_body_bytes as u64, patience)?;
        let mut parts = Vec::new();
        while let Some(head) = form.next().await? {
            if parts.len() == PARTS {
                return Err(ApiError::invalid(format!(
                    "The request body has more than {PARTS} parts"
                ))
                .into());
            }
            let mut data = BytesMut::new();
            while let Some(piece) = form.chunk().await? {
                data.extend_from_slice(&piece);
            }
            parts.push(Part {
                name: head.name,
                filename: head.filename,
                data: data.freeze(),
            });
        }
        Ok(Self(parts))
    }
}
