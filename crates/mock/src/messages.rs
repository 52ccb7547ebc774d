//! The endpoints of the Messages API.

use std::collections::BTreeMap;

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{DefaultBodyLimit, Path, State, rejection::BytesRejection},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::{Value, json};

use crate::{
    control, oauth, play,
    request::Parsed,
    rule::Failure,
    script::{Chosen, Script},
    usage, validate,
    wire::{Head, envelope},
};

/// As the real API.
const MAX_BODY: usize = 32 << 20;

/// All endpoints of the mock.
pub fn router(script: Script) -> Router {
    Router::new()
        .route("/v1/messages", post(create))
        .route("/v1/messages/count_tokens", post(count_tokens))
        .route("/v1/models", get(models))
        .route("/v1/models/{id}", get(model))
        .merge(control::router())
        .merge(oauth::router())
        .fallback(async || refuse(None, &Failure::new(404, "Not found")))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(script)
}

/// An HTTP error in the API's envelope.
pub(crate) fn refuse(script: Option<&Script>, failure: &Failure) -> Response {
    let id = script.map(|s| s.id("req"));
    let status = StatusCode::from_u16(failure.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let body = envelope(failure, id.as_deref());
    let mut response = (status, axum::Json(body)).into_response();
    let mut set = |name: &'static str, value: String| {
        if let Ok(value) = HeaderValue::try_from(value) {
            response
                .headers_mut()
                .insert(HeaderName::from_static(name), value);
        }
    };
    if let Some(seconds) = failure.retry_after {
        set("retry-after", seconds.to_string());
    }
    if let Some(ms) = failure.retry_after_ms {
        set("retry-after-ms", ms.to_string());
    }
    if let Some(id) = id {
        set("request-id", id);
    }
    response
}

fn read(headers: &HeaderMap, body: Result<Bytes, BytesRejection>) -> Result<Parsed, Failure> {
    if !headers.contains_key("x-api-key") && !headers.contains_key(header::AUTHORIZATION) {
        return Err(Failure::new(401, "x-api-key header is required"));
    }
    if !headers.contains_key("anthropic-version") {
        return Err(Failure::new(400, "anthropic-version: header is required"));
    }
    let body = body.map_err(|error| Failure::new(error.status().as_u16(), error.body_text()))?;
    let body = String::from_utf8(body.into())
        .map_err(|_| Failure::new(400, "The request body is not UTF-8"))?;
    let json: Value = serde_json::from_str(&body).map_err(|error| {
        Failure::new(400, format!("The request body is not valid JSON: {error}"))
    })?;
    Ok(Parsed::new(body, json))
}

async fn create(
    State(script): State<Script>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let request = match read(&headers, body) {
        Ok(request) => request,
        Err(failure) => return refuse(Some(&script), &failure),
    };
    let valid = validate::check(&request.json);
    let shown = headers
        .iter()
        .map(|(name, value)| {
            let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
            (name.to_string(), value)
        })
        .collect::<BTreeMap<_, _>>();
    if let Err(message) = valid {
        script.log_refused(&request, shown);
        return refuse(Some(&script), &Failure::new(400, message));
    }
    let Chosen {
        steps,
        input,
        mut ticket,
    } = script.choose(&request, shown);
    let head = Head {
        id: script.id("msg"),
        model: request.model,
        input,
        usage: serde_json::Map::new(),
    };
    let mut ops = play::plan(&steps, head, request.stream, || script.id("toolu"));
    if let Err(failure) = play::begin(&mut ops, &ticket).await {
        ticket.end("error");
        return refuse(Some(&script), &failure);
    }
    let kind = if request.stream {
        "text/event-stream; charset=utf-8"
    } else {
        "application/json"
    };
    let headers = [
        (header::CONTENT_TYPE, kind.to_owned()),
        (header::CACHE_CONTROL, "no-cache".to_owned()),
        (HeaderName::from_static("request-id"), script.id("req")),
    ];
    (headers, Body::from_stream(play::body(ops, ticket))).into_response()
}

async fn count_tokens(
    State(script): State<Script>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    match read(&headers, body) {
        Ok(request) => {
            axum::Json(json!({"input_tokens": usage::input_tokens(&request.json)})).into_response()
        }
        Err(failure) => refuse(Some(&script), &failure),
    }
}

fn describe(id: &str) -> Value {
    json!({
        "type": "model",
        "id": id,
        "display_name": id,
        "created_at": "1970-01-01T00:00:00Z",
        "lifecycle": "active",
        "max_input_tokens": 200_000,
        "max_tokens": 64_000,
    })
}

async fn models() -> Response {
    let data = ["mock", "mock-1", "claude-opus-5-5", "claude-haiku-5-5"].map(describe);
    let (first, last) = (&data[0]["id"], &data[data.len() - 1]["id"]);
    let page = json!({"data": data, "has_more": false, "first_id": first, "last_id": last});
    axum::Json(page).into_response()
}

async fn model(Path(id): Path<String>) -> Response {
    axum::Json(describe(&id)).into_response()
}
