//! Extractors whose every rejection is the API's error envelope.

mod form;
mod json;
mod multipart;
mod path;
mod query;

pub use form::Form;
pub(crate) use json::json_response;
pub use json::{Json, JsonOrNothing};
pub(crate) use multipart::{Multipart, refusal};
pub use path::Path;
pub use query::{NoQuery, Query};

use std::sync::Arc;

use axum::{extract::FromRequestParts, http::request::Parts};

pub use crate::app::Principal;
use crate::{app::App, error::Error};

/// Who asks. A route outside the authenticated part of the router answers 500 with it, never
/// a stranger's data.
#[derive(Debug, Clone)]
pub struct Auth(pub Principal);

impl FromRequestParts<Arc<App>> for Auth {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<App>) -> Result<Self, Error> {
        parts
            .extensions
            .get::<Principal>()
            .cloned()
            .map(Self)
            .ok_or_else(|| Error::internal("the route is not behind the authentication"))
    }
}

/// This request's id, as the client sees it in the `request-id` header.
#[derive(Debug, Clone)]
pub struct RequestId(pub Arc<str>);

impl FromRequestParts<Arc<App>> for RequestId {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<App>) -> Result<Self, Error> {
        parts
            .extensions
            .get::<Self>()
            .cloned()
            .ok_or_else(|| Error::internal("the request has no id"))
    }
}
