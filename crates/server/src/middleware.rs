//! What happens to every request: an id, a span, a measurement, an envelope around errors; and to
//! every API request: who asks, what they may, and how often.

use std::{sync::Arc, time::Instant};

use axum::{
    extract::{MatchedPath, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use selfsame_store::{KeyKind, Scope};
use selfsame_types::{ApiError, ErrorKind};
use tracing::Instrument as _;

use crate::{
    app::{App, Principal},
    auth,
    error::{Error, Failure},
    extract::RequestId,
};

/// What clients must send on the managed agents' paths.
pub const BETA: &str = "managed-agents-2026-04-01";
/// What they must send on the paths of the organization's webhooks.
pub const WEBHOOKS_BETA: &str = "webhooks-2026-10-07";

const REQUEST_ID: HeaderName = HeaderName::from_static("request-id");
const ORGANIZATION_ID: HeaderName = HeaderName::from_static("anthropic-organization-id");
const WORKSPACE_ID: HeaderName = HeaderName::from_static("anthropic-workspace-id");

/// The outermost layer.
pub(crate) async fn observe(
    State(app): State<Arc<App>>,
    mut request: Request,
    next: Next,
) -> Response {
    let id: Arc<str> = selfsame_types::RequestId::new().to_string().into();
    request.extensions_mut().insert(RequestId(id.clone()));
    let method = request.method().clone();
    // Absent for an unknown path, whose text is not ours to make a label of.
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or_else(|| "unknown".to_owned(), |path| path.as_str().to_owned());
    let span = tracing::info_span!(
        "request",
        request.id = %id,
        http.method = %method,
        http.route = route,
        workspace.id = tracing::field::Empty,
        key.id = tracing::field::Empty,
    );
    let since = Instant::now();
    let mut response = next.run(request).instrument(span.clone()).await;
    span.in_scope(|| {
        finish(&mut response, &id);
        let status = response.status();
        let elapsed = since.elapsed();
        tracing::debug!(
            http.status = status.as_u16(),
            elapsed_ms = elapsed.as_secs_f64() * 1e3,
            "answered"
        );
        metrics::counter!(
            "http_requests_total",
            "method" => method_label(&method),
            "route" => route.clone(),
            "status" => status.as_str().to_owned(),
        )
        .increment(1);
        metrics::histogram!("http_request_duration_seconds", "route" => route.clone())
            .record(elapsed);
    });
    let headers = response.headers_mut();
    if let Ok(value) = HeaderValue::try_from(&*id) {
        headers.insert(REQUEST_ID, value);
    }
    headers.insert(ORGANIZATION_ID, app.organization_header.clone());
    response
}

/// Methods are free text on the wire: only known ones become labels.
fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

/// Writes the body of an error, now that the request's id is known.
fn finish(response: &mut Response, id: &str) {
    let error = match response.extensions_mut().remove::<Failure>() {
        Some(Failure(error)) => error,
        // The router's own answer to a known path with another method.
        None if response.status() == StatusCode::METHOD_NOT_ALLOWED => ApiError::new(
            ErrorKind::MethodNotAllowed,
            "This path does not know this method; `allow` lists what it knows",
        ),
        None => return,
    };
    let body = error.envelope(Some(id)).to_string();
    let headers = response.headers_mut();
    headers.remove(header::CONTENT_LENGTH);
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    *response.body_mut() = body.into();
}

/// What is left of a handler that panicked: the log has the message, the client a 500.
pub(crate) fn panicked(panic: Box<dyn std::any::Any + Send>) -> Response {
    let message = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message");
    Error::internal(format!("a handler panicked: {message}")).into_response()
}

/// The layer of the API's routes: leaves a [`Principal`] in the request, or refuses it.
pub(crate) async fn authenticate(
    State(app): State<Arc<App>>,
    mut request: Request,
    next: Next,
) -> Response {
    let principal = match auth::identify(&app.keys, &app.store, request.headers()).await {
        Ok(principal) => principal,
        Err(error) => return error.into_response(),
    };
    let span = tracing::Span::current();
    span.record("workspace.id", tracing::field::display(principal.workspace));
    span.record("key.id", tracing::field::display(principal.key));
    let workspace = HeaderValue::try_from(principal.workspace.to_string());

    let mut remaining = None;
    let admitted = app
        .limits
        .as_ref()
        .map_or(Ok(None), |limits| {
            limits.take(principal.key, request.method(), request.uri().path())
        })
        .map_err(|(error, left)| {
            remaining = Some(left);
            error
        })
        .and_then(|left| {
            remaining = left;
            admit(&app, &principal, &request)
        });
    let mut response = match admitted {
        Ok(()) => {
            request.extensions_mut().insert(principal);
            next.run(request).await
        }
        Err(error) => Error::from(error).into_response(),
    };
    let headers = response.headers_mut();
    if let Ok(workspace) = workspace {
        headers.insert(WORKSPACE_ID, workspace);
    }
    if let Some(remaining) = remaining {
        remaining.write(headers);
    }
    response
}

fn admit(app: &App, principal: &Principal, request: &Request) -> Result<(), ApiError> {
    let permission = |message: &'static str| ApiError::new(ErrorKind::Permission, message);
    if principal.kind != KeyKind::Api {
        return Err(permission(
            "This credential is for workers, not for the API",
        ));
    }
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    if principal.scope == Scope::ReadOnly && !reads {
        return Err(permission("This key may only read"));
    }
    if let Some(wanted) = request.headers().get(WORKSPACE_ID)
        && wanted.as_bytes() != principal.workspace.to_string().as_bytes()
    {
        return Err(permission(
            "anthropic-workspace-id: the key belongs to another workspace",
        ));
    }
    if app.config.server.require_beta_header
        && let Some(beta) = needs_beta(request.uri().path())
        && !lists_beta(request.headers(), beta)
    {
        return Err(ApiError::new(
            ErrorKind::NotFound,
            format!("Not found: this path needs the header `anthropic-beta: {beta}`"),
        ));
    }
    Ok(())
}

/// The name that a path's clients must list, if there is one.
pub(crate) fn needs_beta(path: &str) -> Option<&'static str> {
    let mut segments = path.strip_prefix("/v1/")?.split('/');
    match (segments.next()?, segments.next()) {
        ("agents" | "environments" | "sessions" | "vaults", _) => Some(BETA),
        ("organizations", Some("webhooks")) => Some(WEBHOOKS_BETA),
        _ => None,
    }
}

/// Whether one of the header's lines lists this name. Other names are none of our business.
pub(crate) fn lists_beta(headers: &HeaderMap, wanted: &str) -> bool {
    headers
        .get_all("anthropic-beta")
        .iter()
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
        .any(|name| name.trim_ascii() == wanted.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_beta_name_is_found_in_any_line_and_place() {
        let has = |lines: &[&[u8]]| {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append("anthropic-beta", HeaderValue::from_bytes(line).unwrap());
            }
            lists_beta(&headers, BETA)
        };
        assert!(has(&[BETA.as_bytes()]));
        assert!(has(&[b"foo-2026-01-01, managed-agents-2026-04-01 ,x"]));
        assert!(has(&[b"foo", b"", b"managed-agents-2026-04-01"]));
        for absent in [
            &[][..],
            &[b"".as_slice()],
            &[b"managed-agents-2026-04-02"],
            &[b"xmanaged-agents-2026-04-01"],
            &[b"\xff\xfe,,,"],
        ] {
            assert!(!has(absent), "{absent:?}");
        }
    }

    #[test]
    fn which_paths_need_it() {
        for path in [
            "/v1/agents",
            "/v1/agents/x",
            "/v1/sessions/x/events",
            "/v1/vaults",
        ] {
            assert_eq!(needs_beta(path), Some(BETA), "{path}");
        }
        for path in [
            "/v1/models",
            "/v1/agentsx",
            "/healthz",
            "/v1/files",
            "/v1/organizations/x",
            "/v1/webhook_endpoints",
        ] {
            assert_eq!(needs_beta(path), None, "{path}");
        }
        assert_eq!(
            needs_beta("/v1/organizations/webhooks/whep_01"),
            Some(WEBHOOKS_BETA)
        );
    }
}
