//! All routes, in one flat list.

use std::sync::{Arc, OnceLock};

use axum::{
    Router,
    http::Uri,
    middleware::{from_fn, from_fn_with_state},
    response::Response,
    routing::get,
};
use selfsame_types::{ApiError, ErrorKind};
use tower_http::catch_panic::CatchPanicLayer;
use utoipa::OpenApi as _;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    app::App,
    error::Error,
    extract::json_response,
    handlers::{
        agents, environments, events, files, models, operations, resources, sessions, skills,
        streams, threads, vaults, webhooks,
    },
    middleware, openapi, unread,
};

/// The API proper: what official clients call. Each route is behind the authentication.
fn api() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::with_openapi(openapi::Api::openapi())
        .routes(routes!(agents::create, agents::list))
        .routes(routes!(agents::get, agents::update))
        .routes(routes!(agents::archive))
        .routes(routes!(agents::versions))
        .routes(routes!(environments::create, environments::list))
        .routes(routes!(
            environments::get,
            environments::update,
            environments::delete
        ))
        .routes(routes!(environments::archive))
        .routes(routes!(sessions::create, sessions::list))
        .routes(routes!(sessions::get, sessions::update, sessions::delete))
        .routes(routes!(sessions::archive))
        .routes(routes!(resources::list, resources::add))
        .routes(routes!(
            resources::get,
            resources::update,
            resources::delete
        ))
        .routes(routes!(events::list, events::send))
        .routes(routes!(streams::session))
        .routes(routes!(streams::alias))
        .routes(routes!(threads::list))
        .routes(routes!(threads::get))
        .routes(routes!(threads::archive))
        .routes(routes!(threads::events))
        .routes(routes!(streams::thread))
        .routes(routes!(files::create, files::list))
        .routes(routes!(files::get, files::delete))
        .routes(routes!(files::content))
        .routes(routes!(skills::create, skills::list))
        .routes(routes!(skills::get, skills::delete))
        .routes(routes!(skills::versions::create, skills::versions::list))
        .routes(routes!(skills::versions::get, skills::versions::delete))
        .routes(routes!(skills::versions::content))
        .routes(routes!(vaults::create, vaults::list))
        .routes(routes!(vaults::get, vaults::update, vaults::delete))
        .routes(routes!(vaults::archive))
        .routes(routes!(
            vaults::credentials::create,
            vaults::credentials::list
        ))
        .routes(routes!(
            vaults::credentials::get,
            vaults::credentials::update,
            vaults::credentials::delete
        ))
        .routes(routes!(vaults::credentials::archive))
        .routes(routes!(vaults::credentials::validate))
        .routes(routes!(webhooks::create, webhooks::list))
        .routes(routes!(webhooks::get, webhooks::update, webhooks::delete))
        .routes(routes!(webhooks::regenerate_signing_secret))
        .routes(routes!(webhooks::test_event))
        .routes(routes!(webhooks::deliveries::list))
        .routes(routes!(webhooks::deliveries::get))
        .routes(routes!(webhooks::deliveries::redeliver))
        .routes(routes!(webhooks::deliveries::redeliver_since))
        .routes(routes!(
            webhooks::organization::create,
            webhooks::organization::list
        ))
        .routes(routes!(
            webhooks::organization::get,
            webhooks::organization::update,
            webhooks::organization::delete
        ))
        .routes(routes!(webhooks::organization::regenerate_signing_secret))
        .routes(routes!(models::list))
        .routes(routes!(models::get))
}

/// The OpenAPI document of [`api`], as pretty JSON text with a final newline.
#[must_use]
pub fn document() -> &'static str {
    static TEXT: OnceLock<String> = OnceLock::new();
    TEXT.get_or_init(|| {
        let mut document = api().into_openapi();
        openapi::complete(&mut document);
        document
            .to_pretty_json()
            .expect("the document is made of strings, maps and lists")
            + "\n"
    })
}

/// The whole service.
pub fn router(app: Arc<App>) -> Router {
    let (api, _) = api().split_for_parts();
    assemble(app, api)
}

/// The API's routes with everything around them.
pub(crate) fn assemble(app: Arc<App>, api: Router<Arc<App>>) -> Router {
    Router::new()
        .merge(api.route_layer(from_fn_with_state(app.clone(), middleware::authenticate)))
        // Open to everyone who reaches the port: nothing of a tenant's.
        .route("/healthz", get(operations::healthz))
        .route("/readyz", get(operations::readyz))
        .route("/metrics", get(operations::metrics))
        .route("/openapi.json", get(openapi_json))
        .route("/docs", get(operations::docs))
        .fallback(unknown_route)
        .layer(CatchPanicLayer::custom(middleware::panicked))
        .layer(from_fn_with_state(app.clone(), middleware::observe))
        .layer(from_fn(unread::layer))
        .with_state(app)
}

async fn openapi_json() -> Response {
    json_response(document())
}

/// Parts of the API that this server does not offer: the first segment below `/v1`, or the third one below
/// a session or an environment, and what a person calls it.
const NOT_OFFERED: [(&str, &str); 8] = [
    ("memory_stores", "memory stores"),
    ("deployments", "deployments"),
    ("deployment_runs", "deployments"),
    ("dreams", "dreams"),
    ("tunnels", "tunnels"),
    ("user_profiles", "user profiles"),
    ("organizations", "the management of organizations"),
    ("environments/*/work", "self-hosted workers"),
];

async fn unknown_route(uri: Uri) -> Error {
    match not_offered(uri.path()) {
        Some(what) => {
            ApiError::not_implemented(format!("This server does not offer {what} yet")).into()
        }
        None => ApiError::new(ErrorKind::NotFound, "There is no such path").into(),
    }
}

fn not_offered(path: &str) -> Option<&'static str> {
    let segments: Vec<&str> = path.strip_prefix("/v1/")?.split('/').collect();
    NOT_OFFERED
        .iter()
        .find(|(pattern, _)| {
            let pattern: Vec<&str> = pattern.split('/').collect();
            segments.len() >= pattern.len()
                && pattern
                    .iter()
                    .zip(&segments)
                    .all(|(wanted, segment)| *wanted == "*" || wanted == segment)
        })
        .map(|(_, what)| *what)
}

#[cfg(test)]
mod tests {
    use super::not_offered;

    #[test]
    fn what_is_missing_is_named() {
        for (path, what) in [
            (
                "/v1/organizations/api_keys",
                Some("the management of organizations"),
            ),
            (
                "/v1/memory_stores/memstore_01/memories",
                Some("memory stores"),
            ),
            (
                "/v1/environments/env_01/work/poll",
                Some("self-hosted workers"),
            ),
            ("/v1/sessions/sesn_01", None),
            ("/v1/environments/env_01/works", None),
            ("/v1/filesystem", None),
            ("/files", None),
            ("/v1/", None),
        ] {
            assert_eq!(not_offered(path), what, "{path}");
        }
    }
}
