//! The endpoints by which tests direct a mock.

use std::time::Duration;

use axum::{
    Json, Router,
    extract::{Path, Query, State, rejection::QueryRejection},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::Deserialize;
use serde_json::json;

use crate::{messages::refuse, rule::Failure, script::Script};

pub(crate) fn router() -> Router<Script> {
    Router::new()
        .route("/_mock/rules", post(add).get(list))
        .route("/_mock/reset", post(reset))
        .route("/_mock/requests", get(requests))
        .route("/_mock/requests/wait", get(wait_requests))
        .route("/_mock/gates", get(gates))
        .route("/_mock/gates/{name}/release", post(release))
        .route("/_mock/gates/{name}/wait", get(wait_gate))
}

fn bad(message: impl Into<String>) -> Response {
    refuse(None, &Failure::new(400, message))
}

async fn add(State(script): State<Script>, body: String) -> Response {
    match script.add_json(&body) {
        Ok(added) => Json(json!({"added": added})).into_response(),
        Err(error) => bad(error.to_string()),
    }
}

async fn list(State(script): State<Script>) -> Response {
    let rules = script.rules();
    let data: Vec<_> = rules
        .iter()
        .map(|(rule, used)| json!({"rule": rule, "used": used}))
        .collect();
    Json(json!({"data": data})).into_response()
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Reset {
    model: Option<String>,
}

async fn reset(State(script): State<Script>, body: String) -> Response {
    let reset = match body.trim() {
        "" => Ok(Reset::default()),
        text => serde_json::from_str(text),
    };
    match reset {
        Ok(Reset { model }) => {
            script.reset(model.as_deref());
            Json(json!({})).into_response()
        }
        Err(error) => bad(error.to_string()),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Filter {
    model: Option<String>,
    #[serde(default = "one")]
    count: usize,
    #[serde(default)]
    ended: bool,
    #[serde(default = "ten_seconds")]
    timeout_ms: u64,
}

fn one() -> usize {
    1
}

fn ten_seconds() -> u64 {
    10_000
}

type Filtered = Result<Query<Filter>, QueryRejection>;

async fn requests(State(script): State<Script>, filter: Filtered) -> Response {
    match filter {
        Ok(Query(filter)) => {
            Json(json!({"data": script.requests(filter.model.as_deref())})).into_response()
        }
        Err(error) => bad(error.body_text()),
    }
}

async fn wait_requests(State(script): State<Script>, filter: Filtered) -> Response {
    let Query(filter) = match filter {
        Ok(filter) => filter,
        Err(error) => return bad(error.body_text()),
    };
    let wait = script.wait_requests(filter.model.as_deref(), filter.count, filter.ended);
    match tokio::time::timeout(Duration::from_millis(filter.timeout_ms), wait).await {
        Ok(data) => Json(json!({"data": data})).into_response(),
        Err(_) => refuse(None, &Failure::new(408, "They have not arrived")),
    }
}

async fn gates(State(script): State<Script>) -> Response {
    let gates = script.gates().list();
    let data: Vec<_> = gates
        .iter()
        .map(|(name, s)| json!({"name": name, "open": s.open, "waiting": s.waiting}))
        .collect();
    Json(json!({"data": data})).into_response()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Times {
    times: Option<u32>,
}

async fn release(
    State(script): State<Script>,
    Path(name): Path<String>,
    times: Result<Query<Times>, QueryRejection>,
) -> Response {
    match times {
        Ok(Query(Times { times })) => {
            script.release(&name, times);
            Json(json!({})).into_response()
        }
        Err(error) => bad(error.body_text()),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Patience {
    #[serde(default = "ten_seconds")]
    timeout_ms: u64,
}

async fn wait_gate(
    State(script): State<Script>,
    Path(name): Path<String>,
    patience: Result<Query<Patience>, QueryRejection>,
) -> Response {
    let Query(patience) = match patience {
        Ok(patience) => patience,
        Err(error) => return bad(error.body_text()),
    };
    let wait = script.wait_gate(&name);
    match tokio::time::timeout(Duration::from_millis(patience.timeout_ms), wait).await {
        Ok(()) => Json(json!({})).into_response(),
        Err(_) => refuse(None, &Failure::new(408, "Nobody waits at the gate")),
    }
}
