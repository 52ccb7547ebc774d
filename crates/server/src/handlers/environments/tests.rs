use selfsame_store::Scope;
use selfsame_types::EnvironmentId;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::testing::{TestApp, TestResponse};

async fn create(app: &TestApp, name: &str) -> Value {
    let response = app.post("/v1/environments", json!({"name": name})).await;
    assert_eq!(response.status, 200, "{response}");
    response.body
}

fn path(environment: &Value) -> String {
    format!("/v1/environments/{}", environment["id"].as_str().unwrap())
}

#[track_caller]
fn assert_error(response: &TestResponse, status: u16, kind: &str, part: &str) {
    assert_eq!(response.status.as_u16(), status, "{response}");
    let (name, message) = response.error();
    assert_eq!(name, kind, "{response}");
    assert!(message.contains(part), "{part}: {response}");
}

fn code(response: &TestResponse) -> &str {
    response.body["error"]["details"]["error_code"]
        .as_str()
        .unwrap_or("")
}

fn names(page: &TestResponse) -> Vec<&str> {
    let data = page.body["data"].as_array().expect("a page");
    data.iter()
        .map(|environment| environment["name"].as_str().unwrap())
        .collect()
}

#[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
async fn an_environment_lives(pool: PgPool) {
    let app = TestApp::new(pool).await;
    let environment = create(&app, "py").await;
    assert!(environment["id"].as_str().unwrap().starts_with("env_01"));
    assert_eq!(environment["config"]["networking"]["type"], "unrestricted");
    let path = path(&environment);
    assert_eq!(app.get(&path).await.body, environment);

    let update =
        json!({"description": "d", "config": {"type": "cloud", "packages": {"pip": ["x"]}}});
    let updated = app.post(&path, update.clone()).await;
    assert_eq!(updated.status, 200, "{updated}");
    assert_eq!(updated.body["config"]["packages"]["pip"], json!(["x"]));
    assert_ne!(updated.body["updated_at"], environment["updated_at"]);
    assert_eq!(app.post(&path, update).await.body, updated.body);
    let refused = app
        .post(&path, json!({"config": {"type": "self_hosted"}}))
        .await;
    assert_error(&refused, 400, "invalid_request_error", "config.type");
    assert_eq!(code(&refused), "invalid_config_type_change");
    let refused = app.post(&path, json!({"metadata": {"": "x"}})).await;
    assert_eq!(code(&refused), "invalid_metadata");

    let archived = app.post_empty(&format!("{path}/archive")).await;
    assert_eq!(archived.status, 200, "{archived}");
    assert!(archived.body["archived_at"].is_string());
    let again = app.post_empty(&format!("{path}/archive")).await;
    assert_eq!(again.body, archived.body);
    let refused = app.post(&path, json!({})).await;
    assert_error(&refused, 400, "invalid_request_error", "archived");
    assert_eq!(code(&refused), "environment_archived");

    let deleted = app.delete(&path).await;
    assert_eq!(deleted.status, 200, "{deleted}");
    let expected = json!({"id": environment["id"], "type": "environment_deleted"});
    assert_eq!(deleted.body, expected);
    for response in [app.get(&path).await, app.delete(&path).await] {
        assert_error(&response, 404, "not_found_error", "was not found");
    }
}

#[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
async fn names_are_taken_until_archived(pool: PgPool) {
    let app = TestApp::new(pool).await;
    let first = create(&app, "a").await;
    let second = create(&app, "b").await;
    let twin = app.post("/v1/environments", json!({"name": "a"})).await;
    let renamed = app.post(&path(&second), json!({"name": "a"})).await;
    for response in [twin, renamed] {
        assert_error(
            &response,
            409,
            "conflict_error",
            "name: another environment",
        );
        assert_eq!(response.header("x-should-retry"), "false");
    }
    app.post_empty(&format!("{}/archive", path(&first))).await;
    create(&app, "a").await;
}

#[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
async fn a_used_environment_stays(pool: PgPool) {
    let app = TestApp::new(pool.clone()).await;
    let environment = create(&app, "a").await;
    let agent = app
        .post("/v1/agents", json!({"name": "n", "model": "m"}))
        .await;
    let session = app
        .post(
            "/v1/sessions",
            json!({"agent": agent.body["id"], "environment_id": environment["id"]}),
        )
        .await;
    assert_eq!(session.status, 200, "{session}");
    let refused = app.delete(&path(&environment)).await;
    assert_error(&refused, 409, "conflict_error", "is used by sessions");
    assert_eq!(refused.header("x-should-retry"), "false");
    assert_eq!(app.get(&path(&environment)).await.body, environment);
}

#[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
async fn strangers_find_nothing(pool: PgPool) {
    let app = TestApp::new(pool).await;
    let environment = create(&app, "a").await;
    let other = app.other_workspace().await;
    let unknown = json!({"id": EnvironmentId::new().to_string()});
    let foreign_kind = json!({"id": selfsame_types::AgentId::new().to_string()});
    for (client, environment) in [
        (&other, &environment),
        (&app, &unknown),
        (&app, &foreign_kind),
    ] {
        let path = path(environment);
        for response in [
            client.get(&path).await,
            client.post(&path, json!({"name": "b"})).await,
            client.post_empty(&format!("{path}/archive")).await,
            client.delete(&path).await,
        ] {
            assert_error(&response, 404, "not_found_error", "was not found");
        }
    }
    let list = other.get("/v1/environments").await;
    assert_eq!(list.body, json!({"data": [], "next_page": null}));
    assert_eq!(app.get(&path(&environment)).await.body, environment);
    let reader = app.with_scope(Scope::ReadOnly).await;
    let response = reader.delete(&path(&environment)).await;
    assert_error(&response, 403, "permission_error", "");
}

#[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
async fn lists_page_and_filter(pool: PgPool) {
    let app = TestApp::new(pool).await;
    let mut environments = Vec::new();
    for name in ["a", "b", "c"] {
        environments.push(create(&app, name).await);
    }
    let first = app.get("/v1/environments?limit=2").await;
    assert_eq!(names(&first), ["c", "b"]);
    let next = first.body["next_page"].as_str().unwrap();
    let second = app
        .get(&format!("/v1/environments?limit=2&page={next}"))
        .await;
    assert_eq!(names(&second), ["a"]);
    assert_eq!(second.body["next_page"], Value::Null);
    app.post_empty(&format!("{}/archive", path(&environments[1])))
        .await;
    assert_eq!(names(&app.get("/v1/environments").await), ["c", "a"]);
    let all = app
        .get("/v1/environments?include_archived=true&limit=1000")
        .await;
    assert_eq!(names(&all), ["c", "b", "a"]);
    for (query, part) in [
        ("limit=0", "limit: must be between 1 and 1000"),
        ("limit=1001", "limit: must be between 1 and 1000"),
        ("page=x", "page: not a cursor of this list"),
        ("after_id=x", "after_id: unknown query parameter"),
    ] {
        let response = app.get(&format!("/v1/environments?{query}")).await;
        assert_error(&response, 400, "invalid_request_error", part);
    }
    let foreign = app.get(&format!("/v1/agents?page={next}")).await;
    assert_error(&foreign, 400, "invalid_request_error", "not a cursor");
}

#[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
async fn no_session_runs_without_the_packages_it_was_promised(pool: PgPool) {
    let app = TestApp::new(pool).await;
    let agent = app
        .post("/v1/agents", json!({"name": "n", "model": "m"}))
        .await;
    let config = json!({"type": "cloud", "packages": {"pip": ["requests"]}});
    let environment = app
        .post("/v1/environments", json!({"name": "a", "config": config}))
        .await;
    assert_eq!(environment.status, 200, "{environment}");
    let body = json!({"agent": agent.body["id"], "environment_id": environment.body["id"]});
    let refused = app.post("/v1/sessions", body).await;
    assert_error(&refused, 501, "api_error", "lists packages");
    let sessions = app.get("/v1/sessions").await;
    assert_eq!(sessions.body["data"], json!([]));
}
