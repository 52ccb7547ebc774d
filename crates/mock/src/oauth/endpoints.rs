//! The grants over HTTP.

use std::collections::BTreeMap;

use axum::{
    Json, Router,
    body::Body,
    extract::{Path, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::{any, get, post},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Asked, Endpoint, Instead, Shown, Terms};
use crate::{messages::refuse, rule::Failure, script::Script};

pub(crate) fn router() -> Router<Script> {
    Router::new()
        .route("/oauth/{name}/token", any(token))
        .route("/oauth/{name}/mcp", any(mcp))
        .route("/_mock/oauth", post(grant))
        .route("/_mock/oauth/{name}", get(standing))
        .route("/_mock/oauth/{name}/expire", post(expire))
        .route("/_mock/oauth/{name}/instead", post(instead))
}

fn unknown() -> Response {
    refuse(None, &Failure::new(404, "There is no such grant"))
}

async fn grant(State(script): State<Script>, body: String) -> Response {
    match serde_json::from_str::<Terms>(if body.is_empty() { "{}" } else { &body }) {
        Ok(terms) => Json(script.oauth().grant(terms)).into_response(),
        Err(error) => refuse(None, &Failure::new(400, error.to_string())),
    }
}

async fn standing(State(script): State<Script>, Path(name): Path<String>) -> Response {
    let standing = script.oauth().standing(&name);
    standing.map_or_else(unknown, |standing| Json(standing).into_response())
}

async fn expire(State(script): State<Script>, Path(name): Path<String>) -> Response {
    script.oauth().expire(&name);
    Json(json!({})).into_response()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Answers {
    endpoint: Endpoint,
    answers: Vec<Instead>,
}

async fn instead(State(script): State<Script>, Path(name): Path<String>, body: String) -> Response {
    match serde_json::from_str::<Answers>(&body) {
        Ok(Answers { endpoint, answers }) => {
            script.oauth().instead(&name, endpoint, answers);
            Json(json!({})).into_response()
        }
        Err(error) => refuse(None, &Failure::new(400, error.to_string())),
    }
}

/// Notes a request, and answers it where the test has said how.
async fn begin(
    script: &Script,
    name: &str,
    endpoint: Endpoint,
    method: &Method,
    headers: &HeaderMap,
    body: &str,
) -> Option<Response> {
    let lossy = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let headers: BTreeMap<_, _> = headers
        .iter()
        .map(|(name, value)| (name.to_string(), lossy(value)))
        .collect();
    let instead = script.oauth().with(name, |grant| {
        grant.asked.entry(endpoint).or_default().push(Asked {
            method: method.to_string(),
            headers,
            body: body.to_owned(),
        });
        grant.instead.get_mut(&endpoint)?.pop_front()
    });
    let Some(instead) = instead else {
        return Some(unknown());
    };
    let instead = instead?;
    if let Some(gate) = &instead.gate {
        script.gates().get(gate).pass().await;
    }
    (instead.status != 0).then(|| said(&instead))
}

fn said(instead: &Instead) -> Response {
    let mut response = Response::new(Body::from(instead.body.clone()));
    *response.status_mut() =
        StatusCode::from_u16(instead.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    for (name, value) in &instead.headers {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

async fn token(
    State(script): State<Script>,
    Path(name): Path<String>,
    method: Method,
    headers: HeaderMap,
    body: String,
) -> Response {
    if let Some(said) = begin(&script, &name, Endpoint::Token, &method, &headers, &body).await {
        return said;
    }
    let shown = Shown {
        form: form_urlencoded::parse(body.as_bytes())
            .into_owned()
            .collect(),
        basic: basic(&headers),
    };
    let answered = script.oauth().with(&name, |grant| grant.refresh(&shown));
    let Some((status, body)) = answered else {
        return unknown();
    };
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (status, [(header::CACHE_CONTROL, "no-store")], Json(body)).into_response()
}

/// RFC 6749 §2.3.1.
fn basic(headers: &HeaderMap) -> Option<(String, String)> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let pair = STANDARD.decode(value.strip_prefix("Basic ")?).ok()?;
    let pair = String::from_utf8(pair).ok()?;
    let (id, secret) = pair.split_once(':')?;
    let decode = |half: &str| {
        let mut pairs = form_urlencoded::parse(half.as_bytes());
        Some(pairs.next()?.0.into_owned())
    };
    Some((decode(id)?, decode(secret)?))
}

/// A small MCP server: one tool, `hello`.
async fn mcp(
    State(script): State<Script>,
    Path(name): Path<String>,
    method: Method,
    headers: HeaderMap,
    body: String,
) -> Response {
    if let Some(said) = begin(&script, &name, Endpoint::Mcp, &method, &headers, &body).await {
        return said;
    }
    let authorization = headers.get(header::AUTHORIZATION);
    let token = authorization.and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    let takes = token
        .is_some_and(|token| script.oauth().with(&name, |grant| grant.takes(token)) == Some(true));
    if !takes {
        let challenge = [(header::WWW_AUTHENTICATE, r#"Bearer error="invalid_token""#)];
        let body = json!({"error": "invalid_token"});
        return (StatusCode::UNAUTHORIZED, challenge, Json(body)).into_response();
    }
    if method != Method::POST {
        return StatusCode::METHOD_NOT_ALLOWED.into_response();
    }
    let Ok(call) = serde_json::from_str::<Value>(&body) else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    let Some(id) = call.get("id") else {
        return StatusCode::ACCEPTED.into_response();
    };
    let params = &call["params"];
    let result = match call["method"].as_str().unwrap_or_default() {
        "initialize" => json!({
            "protocolVersion": params["protocolVersion"],
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "scripted", "version": "1"},
        }),
        "ping" => json!({}),
        "tools/list" => json!({"tools": [{
            "name": "hello",
            "description": "Says hello.",
            "inputSchema": {"type": "object"},
        }]}),
        "tools/call" => json!({"content": [{"type": "text", "text": "hello"}], "isError": false}),
        _ => {
            let error = json!({"code": -32601, "message": "Method not found"});
            return Json(json!({"jsonrpc": "2.0", "id": id, "error": error})).into_response();
        }
    };
    Json(json!({"jsonrpc": "2.0", "id": id, "result": result})).into_response()
}
