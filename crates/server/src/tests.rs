//! What holds for every request, through the whole router.

use axum::{
    Router,
    body::Body,
    http::{Method, Request, StatusCode},
    routing::post,
};
use selfsame_store::{Actor, KeyKind, NewKey, Scope};
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::{
    app::{App, key_for, new_token},
    extract::{Auth, Json},
    testing::{TestApp, TestResponse},
};

fn get(path: &str) -> axum::http::request::Builder {
    Request::builder().uri(path)
}

fn empty(request: axum::http::request::Builder) -> Request<Body> {
    request.body(Body::empty()).unwrap()
}

/// The envelope is whole, and its id is the header's.
fn assert_envelope(response: &TestResponse, status: u16, kind: &str) {
    assert_eq!(response.status.as_u16(), status, "{response}");
    assert_eq!(response.body["type"], "error", "{response}");
    assert_eq!(response.error().0, kind, "{response}");
    assert!(!response.error().1.is_empty(), "{response}");
    assert_eq!(response.header("content-type"), "application/json");
    let id = response.header("request-id");
    assert!(id.starts_with("req_01"), "{id}");
    assert_eq!(response.body["request_id"], id);
}

#[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
async fn who_may_come_in(pool: PgPool) {
    let app = TestApp::new(pool).await;
    let path = "/v1/models";
    let token = app.token.clone().unwrap();

    let missing = app.with_token(None).get(path).await;
    assert_envelope(&missing, 401, "authentication_error");
    assert_eq!(missing.header("anthropic-workspace-id"), "");
    assert_ne!(missing.header("anthropic-organization-id"), "");
    let bad = app.with_token(Some("sk-wrong")).get(path).await;
    assert_envelope(&bad, 401, "authentication_error");

    let good = app.get(path).await;
    assert_eq!(good.status, StatusCode::OK);
    let workspace = app.workspace.to_string();
    assert_eq!(good.header("anthropic-workspace-id"), workspace);
    assert!(good.header("request-id").starts_with("req_01"));

    let authorized = [
        vec![("x-api-key", token.clone())],
        vec![("authorization", format!("bearer  {token}"))],
        vec![
            ("x-api-key", "bad".to_owned()),
            ("authorization", format!("Bearer {token}")),
        ],
        vec![
            ("x-api-key", token.clone()),
            ("authorization", "Bearer bad".to_owned()),
        ],
        vec![
            ("x-api-key", token.clone()),
            ("anthropic-workspace-id", workspace),
        ],
    ];
    for headers in authorized {
        let request = headers.iter().fold(get(path), |request, (name, value)| {
            request.header(*name, value)
        });
        let response = app.raw(empty(request)).await;
        assert_eq!(response.status, StatusCode::OK, "{headers:?}: {response}");
    }
    for authorization in ["", "Bearer", "Bearer ", "Basic abc", "\u{e4}"] {
        let request = get(path).header("authorization", authorization);
        let response = app.raw(empty(request)).await;
        assert_envelope(&response, 401, "authentication_error");
    }
    let elsewhere = get(path)
        .header("x-api-key", &token)
        .header("anthropic-workspace-id", "wrkspc_x");
    let elsewhere = app.raw(empty(elsewhere)).await;
    assert_envelope(&elsewhere, 403, "permission_error");
}

#[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
async fn scopes_kinds_and_expiry(pool: PgPool) {
    let app = TestApp::new(pool).await;
    let reader = app.with_scope(Scope::ReadOnly).await;
    assert_eq!(reader.get("/v1/models").await.status, StatusCode::OK);
    let response = reader.post("/v1/models", json!({})).await;
    assert_envelope(&response, 403, "permission_error");

    let other = app.other_workspace().await;
    let response = other.get("/v1/models").await;
    let workspace = response.header("anthropic-workspace-id");
    assert_eq!(workspace, other.workspace.to_string());

    let expect = async |change: fn(&mut NewKey), status: u16, kind: &str| {
        let token = new_token();
        let mut key = key_for(&token, app.workspace, Scope::Admin, "k");
        change(&mut key);
        let created = app.app.store.key_create(key, &Actor::default()).await;
        assert!(created.unwrap().is_some());
        let response = app.with_token(Some(&token)).get("/v1/models").await;
        assert_envelope(&response, status, kind);
    };
    let environment = |key: &mut NewKey| key.kind = KeyKind::Environment;
    expect(environment, 403, "permission_error").await;
    let expired = |key: &mut NewKey| {
        key.expires_at = Some(selfsame_types::Timestamp::from_micros(1));
    };
    expect(expired, 401, "authentication_error").await;

    let (client, id) = app.client(app.workspace, Scope::Standard).await;
    let revoked = app.app.store.key_revoke(id, &Actor::default()).await;
    assert!(revoked.unwrap());
    let response = client.get("/v1/models").await;
    assert_envelope(&response, 401, "authentication_error");
}

#[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
async fn every_rejection_has_the_envelope(pool: PgPool) {
    let app = TestApp::new(pool).await;
    let response = app.get("/v1/nothing").await;
    assert_envelope(&response, 404, "not_found_error");
    let response = app.with_token(None).get("/").await;
    assert_envelope(&response, 404, "not_found_error");
    let response = app.delete("/v1/models").await;
    assert_envelope(&response, 405, "invalid_request_error");
    assert_eq!(response.header("allow"), "GET,HEAD");
    let response = app.get("/v1/models/unknown").await;
    assert_envelope(&response, 404, "not_found_error");
    let response = app.get("/v1/models/%ff").await;
    assert_envelope(&response, 404, "not_found_error");
    let response = app.get("/v1/models?page=x").await;
    assert_envelope(&response, 400, "invalid_request_error");
    for limit in ["0", "1001", "x", "-1", ""] {
        let response = app.get(&format!("/v1/models?limit={limit}")).await;
        assert_envelope(&response, 400, "invalid_request_error");
    }
    let response = app.get("/v1/models/claude-opus-4-8?x=1").await;
    assert_envelope(&response, 400, "invalid_request_error");
    let response = app
        .get("/v1/models?beta=true&lifecycle%5B%5D=active&limit=1")
        .await;
    assert_eq!(response.status, StatusCode::OK, "{response}");
    assert_eq!(response.body["data"].as_array().unwrap().len(), 1);
    assert_eq!(response.body["has_more"], true);
}

#[derive(serde::Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields)]
struct Note {
    text: String,
}

async fn note(_: Auth, Json(note): Json<Note>) -> Json<Note> {
    Json(note)
}

async fn panics() -> Json<Note> {
    panic!("with a secret")
}

#[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
async fn bodies(pool: PgPool) {
    let app = TestApp::with_config(pool, |config| config.server.max_body_bytes = 1000).await;
    let app = app.with_routes(Router::new().route("/v1/notes", post(note).get(panics)));
    let path = "/v1/notes";

    let good = app.post(path, json!({ "text": "a" })).await;
    assert_eq!(good.body["text"], "a", "{good}");
    let key = format!("Bearer {}", app.token.clone().unwrap());
    let plain = Request::post(path)
        .header("authorization", &key)
        .header("content-type", "application/x-www-form-urlencoded")
        .body(Body::from("{\"text\":\"b\"}"));
    assert_eq!(app.raw(plain.unwrap()).await.body["text"], "b");

    let deep = "[".repeat(900);
    let bad: [&[u8]; 11] = [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\"text\"",
        b"{}",
        b"{\"text\":1}",
        b"{\"text\":\"a\",\"more\":1}",
        b"{\"text\":\"a\",\"text\":\"b\"}",
        b"{\"text\":\"\xff\"}",
        deep.as_bytes(),
    ];
    for body in bad {
        let response = app.send(Method::POST, path, body.to_vec()).await;
        assert_envelope(&response, 400, "invalid_request_error");
    }
    let large = json!({ "text": "x".repeat(1000) }).to_string();
    let response = app.send(Method::POST, path, large.clone()).await;
    assert_envelope(&response, 413, "request_too_large");
    // A body that does not tell its length is counted as it comes.
    let chunks = futures_util::stream::iter(
        large
            .into_bytes()
            .chunks(100)
            .map(|chunk| Ok::<_, std::io::Error>(chunk.to_vec()))
            .collect::<Vec<_>>(),
    );
    let response = app
        .send(Method::POST, path, Body::from_stream(chunks))
        .await;
    assert_envelope(&response, 413, "request_too_large");

    let response = app.get(path).await;
    assert_envelope(&response, 500, "api_error");
    assert!(!response.text.contains("secret"), "{response}");
    let reader = app.with_scope(Scope::ReadOnly).await;
    let response = reader.post(path, json!({ "text": "a" })).await;
    assert_envelope(&response, 403, "permission_error");
}

#[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
async fn managed_paths_need_the_beta_header(pool: PgPool) {
    let app = TestApp::new(pool).await;
    let routes = || Router::new().route("/v1/agents", post(note));
    let app = app.with_routes(routes());
    let request = |beta: Option<&str>| {
        let request = Request::post("/v1/agents").header("x-api-key", app.token.clone().unwrap());
        let request = match beta {
            Some(beta) => request.header("anthropic-beta", beta),
            None => request,
        };
        request.body(Body::from("{\"text\":\"a\"}")).unwrap()
    };
    for absent in [None, Some(""), Some("other-2026-01-01"), Some("\u{fffd}")] {
        let response = app.raw(request(absent)).await;
        assert_envelope(&response, 404, "not_found_error");
    }
    let list = "foo-2026-01-01,managed-agents-2026-04-01";
    assert_eq!(app.raw(request(Some(list))).await.status, StatusCode::OK);

    let mut config = app.app.config.clone();
    config.server.require_beta_header = false;
    let App {
        store,
        engine,
        deployment,
        shutdown,
        ..
    } = &*app.app;
    let relaxed = App::new(
        config,
        store.clone(),
        engine.clone(),
        deployment.clone(),
        shutdown.clone(),
    );
    let relaxed = app.with_app(relaxed).with_routes(routes());
    assert_eq!(relaxed.raw(request(None)).await.status, StatusCode::OK);
}

#[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
async fn a_lost_database_is_a_503_that_may_be_retried(pool: PgPool) {
    let app = TestApp::new(pool.clone()).await;
    assert_eq!(app.get("/readyz").await.status, StatusCode::OK);
    pool.close().await;
    let response = app.get("/v1/models").await;
    assert_envelope(&response, 503, "api_error");
    assert_eq!(response.header("x-should-retry"), "true");
    assert_eq!(response.header("retry-after"), "1");
    assert_envelope(&app.get("/readyz").await, 503, "api_error");
    assert_eq!(app.get("/healthz").await.status, StatusCode::OK);
}

#[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
async fn operators_see_health_metrics_and_the_document(pool: PgPool) {
    crate::metrics::install();
    let app = TestApp::new(pool).await;
    let stranger = app.with_token(None);
    assert_eq!(stranger.get("/healthz").await.body["status"], "ok");
    let _ = app.get("/v1/models/unknown").await;
    let _ = app.get("/nowhere/to/be/found").await;
    let metrics = stranger.get("/metrics").await.text;
    let line = r#"http_requests_total{method="GET",route="/v1/models/{model_id}",status="404"} 1"#;
    assert!(metrics.contains(line), "{metrics}");
    assert!(!metrics.contains("nowhere"), "{metrics}");
    assert!(stranger.get("/docs").await.text.contains("/openapi.json"));
    let document = stranger.get("/openapi.json").await.body;
    assert!(document["paths"]["/v1/models"]["get"].is_object());
    app.app.shutdown.cancel();
    assert_envelope(&stranger.get("/readyz").await, 503, "api_error");
}

#[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
async fn limits_answer_429_and_say_when(pool: PgPool) {
    let app = TestApp::with_config(pool, |config| config.limits.read_per_minute = Some(2)).await;
    let first = app.get("/v1/models").await;
    assert_eq!(first.header("anthropic-ratelimit-requests-limit"), "2");
    assert_eq!(first.header("anthropic-ratelimit-requests-remaining"), "1");
    let reset = first.header("anthropic-ratelimit-requests-reset");
    assert!(
        reset.parse::<selfsame_types::Timestamp>().is_ok(),
        "{reset}"
    );
    assert_eq!(app.get("/v1/models").await.status, StatusCode::OK);
    let refused = app.get("/v1/models").await;
    assert_envelope(&refused, 429, "rate_limit_error");
    let wait: u32 = refused.header("retry-after").parse().unwrap();
    assert!((1..=30).contains(&wait), "{wait}");
    // Another key and another class have buckets of their own.
    let other = app.with_scope(Scope::Standard).await;
    assert_eq!(other.get("/v1/models").await.status, StatusCode::OK);
    let response = app.send(Method::POST, "/v1/models", "{}").await;
    assert_envelope(&response, 405, "invalid_request_error");
}

#[test]
fn the_document_is_exact_about_errors() {
    let document: Value = serde_json::from_str(crate::router::document()).unwrap();
    let mut operations = 0;
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            operations += 1;
            let responses = operation["responses"].as_object().unwrap();
            assert!(responses.contains_key("200"), "{method} {path}");
            for status in responses.keys() {
                assert!(status.parse::<u16>().is_ok(), "{method} {path}: {status}");
            }
            for needed in ["400", "401", "429", "500"] {
                assert!(responses.contains_key(needed), "{method} {path}: {needed}");
            }
        }
    }
    assert!(operations > 0);
}

#[test]
fn the_checked_in_document_is_current() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../openapi/selfsame.json");
    let checked_in = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        checked_in == crate::router::document(),
        "openapi/selfsame.json is stale: run `cargo run -- openapi > openapi/selfsame.json`"
    );
}
