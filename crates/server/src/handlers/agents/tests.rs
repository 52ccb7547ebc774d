use selfsame_store::Scope;
use selfsame_types::AgentId;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::testing::{TestApp, TestResponse};

mod multiagent;

async fn create(app: &TestApp, name: &str) -> Value {
    let response = app
        .post("/v1/agents", json!({"name": name, "model": "m"}))
        .await;
    assert_eq!(response.status, 200, "{response}");
    response.body
}

fn path(agent: &Value) -> String {
    format!("/v1/agents/{}", agent["id"].as_str().unwrap())
}

#[track_caller]
fn assert_error(response: &TestResponse, status: u16, kind: &str, part: &str) {
    assert_eq!(response.status.as_u16(), status, "{response}");
    let (name, message) = response.error();
    assert_eq!(name, kind, "{response}");
    assert!(message.contains(part), "{part}: {response}");
}

fn names(page: &TestResponse) -> Vec<&str> {
    let data = page.body["data"].as_array().expect("a page");
    data.iter()
        .map(|agent| agent["name"].as_str().unwrap())
        .collect()
}

#[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
async fn an_agent_lives(pool: PgPool) {
    let app = TestApp::new(pool).await;
    let agent = create(&app, "Coder").await;
    assert_eq!(agent["type"], "agent");
    assert_eq!(agent["version"], 1);
    assert!(agent["id"].as_str().unwrap().starts_with("agent_01"));
    assert_eq!(app.get(&path(&agent)).await.body, agent);

    let update = json!({"version": 1, "system": "s", "metadata": {"k": "v"}});
    let updated = app.post(&path(&agent), update.clone()).await;
    assert_eq!(updated.status, 200, "{updated}");
    assert_eq!(updated.body["version"], 2);
    assert_eq!(updated.body["created_at"], agent["created_at"]);
    let unchanged = app.post(&path(&agent), json!({"system": "s"})).await;
    assert_eq!(unchanged.body, updated.body);
    let conflict = app.post(&path(&agent), update).await;
    assert_error(&conflict, 409, "conflict_error", "is at version 2, not 1");
    assert_eq!(conflict.header("x-should-retry"), "false");

    let first = app.get(&format!("{}?version=1", path(&agent))).await;
    assert_eq!(first.body, agent);
    let missing = app.get(&format!("{}?version=3", path(&agent))).await;
    assert_error(&missing, 404, "not_found_error", "at version `3`");
    let invalid = app.get(&format!("{}?version=0", path(&agent))).await;
    assert_error(&invalid, 400, "invalid_request_error", "version");

    let archived = app.post_empty(&format!("{}/archive", path(&agent))).await;
    assert_eq!(archived.status, 200, "{archived}");
    assert!(archived.body["archived_at"].is_string());
    assert_eq!(archived.body["version"], 2);
    let again = app.post_empty(&format!("{}/archive", path(&agent))).await;
    assert_eq!(again.body, archived.body);
    let refused = app.post(&path(&agent), json!({"name": "x"})).await;
    assert_error(&refused, 400, "invalid_request_error", "archived");
}

#[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
async fn bad_requests_say_where(pool: PgPool) {
    let app = TestApp::new(pool).await;
    for (body, message) in [
        (
            json!({"model": "m"}),
            "missing field `name` at line 1 column 13",
        ),
        (
            json!({"name": "n", "model": "m", "top_p": 1}),
            "top_p: unknown field `top_p`",
        ),
        (
            json!({"name": "n", "model": "m", "tools": [{"type": "agent_toolset_20260401", "configs": [{"name": "rm"}]}]}),
            "tools[0]: configs[0].name: unknown variant `rm`",
        ),
        (
            json!({"name": "n", "model": "m", "tools": [{"type": "agent_toolset_20260401"}, {"type": "agent_toolset_20260401"}]}),
            "tools[1]: a second `agent_toolset_20260401`",
        ),
        (json!([]), "must be a JSON object"),
        (json!("x"), "invalid type: string"),
    ] {
        let response = app.post("/v1/agents", body).await;
        assert_error(&response, 400, "invalid_request_error", message);
    }
    let response = app
        .post("/v1/agents?dry_run=1", json!({"name": "n", "model": "m"}))
        .await;
    assert_error(&response, 400, "invalid_request_error", "dry_run");
    let response = app
        .post("/v1/agents?beta=true", json!({"name": "n", "model": "m"}))
        .await;
    assert_eq!(response.status, 200, "{response}");
}

#[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
async fn strangers_find_nothing(pool: PgPool) {
    let app = TestApp::new(pool).await;
    let agent = create(&app, "a").await;
    let other = app.other_workspace().await;
    let unknown = json!({"id": AgentId::new().to_string()});
    let nonsense = json!({"id": "agent_nonsense"});
    for (client, agent) in [(&other, &agent), (&app, &unknown), (&app, &nonsense)] {
        let path = path(agent);
        for response in [
            client.get(&path).await,
            client.post(&path, json!({"name": "b"})).await,
            client.post_empty(&format!("{path}/archive")).await,
            client.get(&format!("{path}/versions")).await,
        ] {
            assert_error(&response, 404, "not_found_error", "was not found");
        }
    }
    let list = other.get("/v1/agents").await;
    assert_eq!(list.body, json!({"data": [], "next_page": null}));
    assert_eq!(app.get(&path(&agent)).await.body, agent);

    let reader = app.with_scope(Scope::ReadOnly).await;
    assert_eq!(reader.get(&path(&agent)).await.status, 200);
    let body = json!({"name": "b", "model": "m"});
    let response = reader.post("/v1/agents", body).await;
    assert_error(&response, 403, "permission_error", "");
}

#[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
async fn lists_page_and_filter(pool: PgPool) {
    let app = TestApp::new(pool).await;
    let mut agents = Vec::new();
    for name in ["a", "b", "c"] {
        agents.push(create(&app, name).await);
    }
    let first = app.get("/v1/agents?limit=2").await;
    assert_eq!(names(&first), ["c", "b"]);
    let next = first.body["next_page"].as_str().unwrap();
    let second = app.get(&format!("/v1/agents?limit=2&page={next}")).await;
    assert_eq!(names(&second), ["a"]);
    assert_eq!(second.body["next_page"], Value::Null);

    app.post_empty(&format!("{}/archive", path(&agents[1])))
        .await;
    assert_eq!(names(&app.get("/v1/agents").await), ["c", "a"]);
    let all = app.get("/v1/agents?include_archived=true").await;
    assert_eq!(names(&all), ["c", "b", "a"]);
    let at = agents[2]["created_at"].as_str().unwrap();
    let later = app
        .get(&format!("/v1/agents?created_at%5Bgte%5D={at}"))
        .await;
    assert_eq!(names(&later), ["c"]);
    let at = agents[0]["created_at"].as_str().unwrap();
    let earlier = app.get(&format!("/v1/agents?created_at[lte]={at}")).await;
    assert_eq!(names(&earlier), ["a"]);

    for (query, part) in [
        ("limit=0", "limit: must be between 1 and 100"),
        ("limit=101", "limit: must be between 1 and 100"),
        ("limit=x", "limit"),
        ("page=x", "page: not a cursor of this list"),
        ("page=page_e30", "page: not a cursor of this list"),
        ("include_archived=maybe", "include_archived"),
        ("created_at[gt]=2026-01-01T00:00:00Z", "created_at[gt]"),
        ("created_at[gte]=yesterday", "created_at[gte]"),
        ("name=a", "name: unknown query parameter"),
    ] {
        let response = app.get(&format!("/v1/agents?{query}")).await;
        assert_error(&response, 400, "invalid_request_error", part);
    }
}

#[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
async fn versions_page(pool: PgPool) {
    let app = TestApp::new(pool).await;
    let agent = create(&app, "v1").await;
    for name in ["v2", "v3"] {
        app.post(&path(&agent), json!({"name": name})).await;
    }
    let list = format!("{}/versions", path(&agent));
    let all = app.get(&list).await;
    assert_eq!(names(&all), ["v3", "v2", "v1"]);
    assert_eq!(all.body["data"][2], agent);
    let first = app.get(&format!("{list}?limit=2")).await;
    assert_eq!(names(&first), ["v3", "v2"]);
    let next = first.body["next_page"].as_str().unwrap();
    let second = app.get(&format!("{list}?limit=2&page={next}")).await;
    assert_eq!(names(&second), ["v1"]);
    assert_eq!(second.body["next_page"], Value::Null);
    let foreign = app.get(&format!("/v1/agents?page={next}")).await;
    assert_error(&foreign, 400, "invalid_request_error", "not a cursor");
}
