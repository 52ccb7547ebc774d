use std::sync::Arc;

use axum::{
    extract::{FromRequestParts, RawPathParams},
    http::request::Parts,
};
use selfsame_types::{ApiError, ErrorKind};
use serde::de::DeserializeOwned;

use crate::{app::App, error::Error};

/// Path parameters. What cannot be an id of this kind is an id of nothing: 404.
#[derive(Debug, Clone)]
pub struct Path<T>(pub T);

impl<T: DeserializeOwned + Send> FromRequestParts<Arc<App>> for Path<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Error> {
        if let Ok(axum::extract::Path(value)) =
            axum::extract::Path::<T>::from_request_parts(parts, app).await
        {
            return Ok(Self(value));
        }
        let given = match RawPathParams::from_request_parts(parts, app).await {
            Ok(params) => params
                .iter()
                .map(|(_, value)| format!("`{value}`"))
                .collect::<Vec<_>>()
                .join(", "),
            Err(_) => "the given id".to_owned(),
        };
        Err(ApiError::new(ErrorKind::NotFound, format!("{given} was not found")).into())
    }
}
