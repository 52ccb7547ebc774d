//! Agents that direct others, saved and in sessions.

use super::*;

fn id(agent: &Value) -> &str {
    agent["id"].as_str().unwrap()
}

fn roster(agents: Value) -> Value {
    json!({"multiagent": {"type": "coordinator", "agents": agents}})
}

async fn coordinator(app: &TestApp, agents: Value) -> Value {
    let mut body = roster(agents);
    body["name"] = json!("Lead");
    body["model"] = json!("m");
    let response = app.post("/v1/agents", body).await;
    assert_eq!(response.status, 200, "{response}");
    response.body
}

async fn environment(app: &TestApp, networking: Value) -> Value {
    let name = selfsame_types::EnvironmentId::new().to_string();
    let config = json!({"type": "cloud", "networking": networking});
    let response = app
        .post("/v1/environments", json!({"name": name, "config": config}))
        .await;
    assert_eq!(response.status, 200, "{response}");
    response.body
}

async fn session(app: &TestApp, agent: Value) -> TestResponse {
    let environment = environment(app, json!({"type": "unrestricted"})).await;
    let body = json!({"agent": agent, "environment_id": environment["id"]});
    app.post("/v1/sessions", body).await
}

#[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
async fn members_are_pinned_when_their_coordinator_is_saved(pool: PgPool) {
    let app = TestApp::new(pool).await;
    let worker = create(&app, "Worker").await;
    let lead = coordinator(&app, json!([{"type": "self"}, id(&worker)])).await;
    let expected = |own: i32, worker_version: i32| {
        json!({"type": "coordinator", "agents": [
            {"type": "agent", "id": id(&lead), "version": own},
            {"type": "agent", "id": id(&worker), "version": worker_version},
        ]})
    };
    assert_eq!(lead["multiagent"], expected(1, 1));
    assert_eq!(app.get(&path(&lead)).await.body, lead);

    // A later version of the member is not followed; the agent's own is.
    app.post(&path(&worker), json!({"system": "better"})).await;
    let renamed = app.post(&path(&lead), json!({"name": "Boss"})).await;
    assert_eq!(renamed.body["version"], 2);
    assert_eq!(renamed.body["multiagent"], expected(2, 1));
    // Sent back as it was shown: nothing changes.
    let echo = json!({"multiagent": renamed.body["multiagent"]});
    assert_eq!(app.post(&path(&lead), echo).await.body, renamed.body);
    // Sent again without a version: the latest.
    let again = app
        .post(&path(&lead), roster(json!([{"type": "self"}, id(&worker)])))
        .await;
    assert_eq!(again.body["multiagent"], expected(3, 2));
    let versions = app.get(&format!("{}/versions", path(&lead))).await;
    let pins: Vec<_> = (0..3)
        .map(|n| versions.body["data"][n]["multiagent"].clone())
        .collect();
    assert_eq!(pins, [expected(3, 2), expected(2, 1), expected(1, 1)]);

    // Whoever directs others can be no member, and an archived agent neither.
    let other = coordinator(&app, json!([id(&worker)])).await;
    for refused in [
        app.post(&path(&other), roster(json!([id(&lead)]))).await,
        app.post(
            &path(&other),
            roster(json!([{"type": "agent", "id": id(&lead), "version": 3}])),
        )
        .await,
    ] {
        assert_error(
            &refused,
            400,
            "invalid_request_error",
            "cannot direct further agents",
        );
    }
    app.post_empty(&format!("{}/archive", path(&worker))).await;
    let refused = app.post(&path(&other), roster(json!([id(&worker)]))).await;
    assert_error(&refused, 400, "invalid_request_error", "is archived");
    // What is pinned already stays.
    let kept = app.post(&path(&other), json!({"system": "s"})).await;
    assert_eq!(kept.status, 200, "{kept}");
    let session = session(&app, json!(id(&lead))).await;
    assert_eq!(session.status, 200, "{session}");
    let agents = &session.body["agent"]["multiagent"]["agents"];
    assert_eq!(agents[1]["system"], "better");
    let cleared = app.post(&path(&other), json!({"multiagent": null})).await;
    assert_eq!(cleared.body["multiagent"], Value::Null);
}

#[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
async fn another_workspace_lends_no_members(pool: PgPool) {
    let app = TestApp::new(pool).await;
    let theirs = create(&app.other_workspace().await, "Theirs").await;
    let mut body = roster(json!([id(&theirs)]));
    body["name"] = json!("Lead");
    body["model"] = json!("m");
    let refused = app.post("/v1/agents", body).await;
    assert_error(&refused, 400, "invalid_request_error", "in this workspace");
}

#[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
async fn settings_are_merged(pool: PgPool) {
    let app = TestApp::new(pool).await;
    let worker = create(&app, "Worker").await;
    let body = json!({"name": "Lead", "model": "m", "multiagent": {
        "type": "multiagent_20261001",
        "subagents": {"type": "enabled", "inline_agents": {"type": "disabled"},
            "predefined_agents": [id(&worker)]},
        "workflows": {"type": "disabled"}}});
    let lead = app.post("/v1/agents", body).await.body;
    assert_eq!(lead["multiagent"]["advisor"], json!({"type": "disabled"}));
    let change = json!({"multiagent": {"type": "multiagent_20261001",
        "advisor": {"type": "enabled", "model": "wise"}, "workflows": null}});
    let merged = app.post(&path(&lead), change).await.body;
    assert_eq!(merged["version"], 2);
    assert_eq!(
        merged["multiagent"]["subagents"],
        lead["multiagent"]["subagents"]
    );
    assert_eq!(
        merged["multiagent"]["advisor"],
        json!({"type": "enabled", "model": "wise"})
    );
    assert_eq!(merged["multiagent"]["workflows"]["type"], "enabled");
    let session = session(&app, json!(id(&lead))).await.body;
    let copied = &session["agent"]["multiagent"];
    assert_eq!(
        copied["subagents"]["predefined_agents"][0]["name"],
        "Worker"
    );
    assert_eq!(copied["advisor"], merged["multiagent"]["advisor"]);
}

#[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
async fn a_session_has_copies_and_its_overrides_stay_with_the_coordinator(pool: PgPool) {
    let app = TestApp::new(pool).await;
    let worker = create(&app, "Worker").await;
    let lead = coordinator(&app, json!([{"type": "self"}, id(&worker)])).await;
    let agent = json!({"type": "agent_with_overrides", "id": id(&lead), "system": "today"});
    let session = session(&app, agent).await;
    assert_eq!(session.status, 200, "{session}");
    let copies = &session.body["agent"]["multiagent"]["agents"];
    assert_eq!(copies[0]["system"], "today");
    assert_eq!(copies[1]["system"], Value::Null);
    assert_eq!(
        copies[1]["execution_identity"],
        json!({"type": "service_account"})
    );
    assert!(copies[0].get("multiagent").is_none());
    let threads = app
        .get(&format!("/v1/sessions/{}/threads", id(&session.body)))
        .await;
    let primary = &threads.body["data"][0]["agent"];
    assert_eq!(primary["system"], "today");
    assert!(primary.get("multiagent").is_none());

    // An update of the session's agent reaches its copies, too.
    let tools = json!([{"type": "agent_toolset_20260401"}]);
    let updated = app
        .post(
            &format!("/v1/sessions/{}", id(&session.body)),
            json!({"agent": {"tools": tools}}),
        )
        .await;
    assert_eq!(updated.status, 200, "{updated}");
    let agent = &updated.body["agent"];
    assert_eq!(agent["multiagent"]["agents"][0]["tools"], agent["tools"]);
    assert_eq!(agent["multiagent"]["agents"][1]["tools"], json!([]));

    let geo = json!({"type": "agent_with_overrides", "id": id(&lead),
        "model": {"id": "m", "inference_geo": "us"}});
    let refused = self::session(&app, geo).await;
    assert_error(&refused, 400, "invalid_request_error", "inference_geo");
}

#[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
async fn skills_of_members_are_settled_too(pool: PgPool) {
    let app = TestApp::new(pool).await;
    let upload = "--b\r\ncontent-disposition: form-data; name=\"files[]\"; filename=\"tables/SKILL.md\"\r\n\
        content-type: text/markdown\r\n\r\n---\nname: tables\ndescription: About tables.\n---\nx\r\n--b--\r\n";
    let request = axum::http::Request::builder()
        .method("POST")
        .uri("/v1/skills")
        .header("content-type", "multipart/form-data; boundary=b")
        .header(
            "authorization",
            format!("Bearer {}", app.token.as_deref().unwrap()),
        )
        .body(upload.into())
        .unwrap();
    let skill = app.raw(request).await;
    assert_eq!(skill.status, 200, "{skill}");
    let worker = json!({"name": "Worker", "model": "m", "tools": [{"type": "agent_toolset_20260401"}],
        "skills": [{"type": "custom", "skill_id": skill.body["id"]}]});
    let worker = app.post("/v1/agents", worker).await.body;
    assert_eq!(worker["skills"][0]["version"], "latest", "{worker}");
    let lead = coordinator(&app, json!([id(&worker)])).await;
    let session = session(&app, json!(id(&lead))).await;
    assert_eq!(session.status, 200, "{session}");
    let copy = &session.body["agent"]["multiagent"]["agents"][0];
    assert_eq!(
        copy["skills"][0]["version"], skill.body["latest_version_id"],
        "{skill}"
    );
}
