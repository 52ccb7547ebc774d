//! For operators: is it alive, is it ready, what does it do, what does it offer.

use std::sync::Arc;

use axum::{
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};

use crate::{
    app::App,
    error::{Error, Result},
    extract::Json,
};

/// The process runs.
pub(crate) async fn healthz() -> Json<serde_json::Value> {
    Json(serde_json::json!({ "status": "ok" }))
}

/// Requests can be served: the database answers, and the server is not on its way out.
pub(crate) async fn readyz(State(app): State<Arc<App>>) -> Result<Json<serde_json::Value>> {
    if app.shutdown.is_cancelled() {
        return Err(Error::Api(selfsame_types::ApiError::new(
            selfsame_types::ErrorKind::Unavailable,
            "The server is shutting down",
        )));
    }
    app.store.ping().await?;
    Ok(Json(serde_json::json!({ "status": "ready" })))
}

pub(crate) async fn metrics() -> Response {
    let content_type = "text/plain; version=0.0.4; charset=utf-8";
    (
        [(header::CONTENT_TYPE, content_type)],
        crate::metrics::render(),
    )
        .into_response()
}

/// A page that shows `/openapi.json`, with nothing from elsewhere.
pub(crate) async fn docs() -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'",
        ),
    ];
    (headers, include_str!("docs.html")).into_response()
}
