use selfsame_mock::oauth::Standing;
use selfsame_types::{CredentialId, WorkspaceId, vault::Credential};
use serde_json::Value;

use super::*;

async fn validate(world: &World, credential: &Credential) -> Value {
    let vaults = world.vaults(LONG);
    let found = vaults
        .validate(world.workspace, credential.vault_id, credential.id)
        .await;
    let mut found = serde_json::to_value(found.unwrap().unwrap()).unwrap();
    let fields = found.as_object_mut().unwrap();
    assert_eq!(
        fields.remove("type").unwrap(),
        "vault_credential_validation"
    );
    assert_eq!(
        fields.remove("credential_id").unwrap(),
        credential.id.to_string()
    );
    assert_eq!(
        fields.remove("vault_id").unwrap(),
        credential.vault_id.to_string()
    );
    assert!(fields.remove("validated_at").unwrap().is_string());
    found
}

async fn with(world: &World, more: Value) -> (Standing, Credential) {
    let grant = world.grant(json!({"expires_in": 3600}));
    let vault = world.vault().await;
    let credential = world.oauth(vault, &grant, more).await;
    (grant, credential)
}

fn json_response(status: u16, body: &str) -> Value {
    json!({"status_code": status, "content_type": "application/json", "body": body, "body_truncated": false})
}

const REFUSED: &str = r#"{"error":"invalid_token"}"#;

#[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
async fn a_good_token_is_valid(pool: PgPoolOptions, connect: PgConnectOptions) {
    let world = World::new(pool, connect).await;
    let (grant, credential) = with(&world, json!({})).await;
    let wanted =
        json!({"has_refresh_token": true, "status": "valid", "mcp_probe": null, "refresh": null});
    assert_eq!(validate(&world, &credential).await, wanted);
    let standing = world.standing(&grant);
    assert!(standing.token_requests.is_empty());
    let methods: Vec<Value> = standing
        .mcp_requests
        .iter()
        .map(|asked| serde_json::from_str::<Value>(&asked.body).unwrap()["method"].take())
        .collect();
    assert_eq!(
        methods,
        ["initialize", "notifications/initialized", "tools/list"]
    );
}

#[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
async fn a_refused_token_is_refreshed_and_stored(pool: PgPoolOptions, connect: PgConnectOptions) {
    let world = World::new(pool, connect).await;
    let (grant, credential) = with(&world, json!({})).await;
    world.script.oauth().expire(&grant.name);
    let wanted = json!({"has_refresh_token": true, "status": "valid", "mcp_probe": null,
        "refresh": {"status": "succeeded", "http_response": null}});
    assert_eq!(validate(&world, &credential).await, wanted);
    let standing = world.standing(&grant);
    let open = world.open(&credential).await;
    assert_eq!(open.secrets.secret.expose_secret(), standing.access_token);

    // A server that takes neither the old one nor the new one.
    let refusals = vec![
        said(401, REFUSED),
        said(401, &format!("you sent {}", standing.issued.join(" "))),
    ];
    world
        .script
        .oauth()
        .instead(&grant.name, Endpoint::Mcp, refusals);
    let found = validate(&world, &credential).await;
    assert_eq!(found["status"], "invalid");
    assert_eq!(
        found["refresh"],
        json!({"status": "succeeded", "http_response": null})
    );
    assert_eq!(found["mcp_probe"]["method"], "initialize");
    let body = found["mcp_probe"]["http_response"]["body"]
        .as_str()
        .unwrap();
    let standing = world.standing(&grant);
    for token in &standing.issued[2..] {
        assert!(!body.contains(token), "{body}");
    }
}

#[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
async fn what_can_go_wrong(pool: PgPoolOptions, connect: PgConnectOptions) {
    let world = World::new(pool, connect).await;
    let oauth = world.script.oauth();
    let refused = || json!({"method": "initialize", "http_response": json_response(401, REFUSED)});

    // The token endpoint refuses, or cannot answer.
    for (status, verdict) in [
        (400, "invalid"),
        (302, "invalid"),
        (200, "invalid"),
        (429, "unknown"),
        (503, "unknown"),
    ] {
        let (grant, credential) = with(&world, json!({})).await;
        oauth.expire(&grant.name);
        oauth.instead(&grant.name, Endpoint::Token, vec![said(status, INVALID)]);
        let wanted = json!({"has_refresh_token": true, "status": verdict, "mcp_probe": refused(),
            "refresh": {"status": "failed", "http_response": json_response(status, INVALID)}});
        assert_eq!(validate(&world, &credential).await, wanted);
        // Whatever was found out before, the next one asks again.
        assert_eq!(validate(&world, &credential).await["status"], "valid");
    }
    let nowhere = json!({"client_id": "client", "refresh_token": "refresh-0", "token_endpoint": "http://127.0.0.1:1/",
        "token_endpoint_auth": {"type": "none"}});
    for (refresh, verdict, status) in [
        (nowhere, "unknown", "connect_error"),
        (Value::Null, "invalid", "no_refresh_token"),
    ] {
        let has_refresh_token = !refresh.is_null();
        let (grant, credential) = with(&world, json!({"refresh": refresh})).await;
        oauth.expire(&grant.name);
        let wanted = json!({"has_refresh_token": has_refresh_token, "status": verdict, "mcp_probe": refused(),
            "refresh": {"status": status, "http_response": null}});
        assert_eq!(validate(&world, &credential).await, wanted);
    }

    // The MCP server does.
    for (answers, method, status, verdict) in [
        (vec![said(403, "{}")], "initialize", 403, "invalid"),
        (vec![said(500, "{}")], "initialize", 500, "unknown"),
        (vec![said(429, "{}")], "initialize", 429, "unknown"),
        (vec![said(200, "<html>")], "initialize", 200, "unknown"),
        (vec![said(302, "{}")], "initialize", 302, "unknown"),
        (
            vec![said(0, ""), said(0, ""), said(503, "{}")],
            "tools/list",
            503,
            "unknown",
        ),
    ] {
        let (grant, credential) = with(&world, json!({})).await;
        // Other ways to speak to it do no better.
        let mut answers = answers;
        if matches!(status, 200 | 302) {
            answers.extend([said(404, ""), said(404, "")]);
        }
        let body = answers
            .iter()
            .find(|answer| answer.status == status)
            .unwrap()
            .body
            .clone();
        oauth.instead(&grant.name, Endpoint::Mcp, answers);
        let wanted = json!({"has_refresh_token": true, "status": verdict, "refresh": null,
            "mcp_probe": {"method": method, "http_response": json_response(status, &body)}});
        assert_eq!(validate(&world, &credential).await, wanted, "{status}");
    }
    let gone = json!({"mcp_server_url": "http://127.0.0.1:1/mcp"});
    let (_, credential) = with(&world, gone).await;
    let wanted = json!({"has_refresh_token": true, "status": "unknown", "refresh": null,
        "mcp_probe": {"method": "initialize", "http_response": null}});
    assert_eq!(validate(&world, &credential).await, wanted);
}

#[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
async fn servers_of_other_kinds(pool: PgPoolOptions, connect: PgConnectOptions) {
    let world = World::new(pool, connect).await;
    let oauth = world.script.oauth();
    let stream = |body: &str| Instead {
        headers: [("content-type".to_owned(), "text/event-stream".to_owned())].into(),
        ..said(200, body)
    };
    let initialized = ": hi\n\nevent: message\ndata: {\"jsonrpc\":\"2.0\",\"method\":\"ping\"}\n\n\
         data: {\"jsonrpc\":\"2.0\",\"id\":1,\n\
         data: \"result\":{\"protocolVersion\":\"2025-06-18\"}}\n\n";
    let unknown = r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32601,"message":"no"}}"#;
    for (name, answers) in [
        ("streams", vec![stream(initialized)]),
        ("no initialize", vec![said(200, unknown)]),
        ("no initialize, as HTTP says it", vec![said(400, unknown)]),
        (
            "the older transport",
            vec![
                said(405, ""),
                said(405, ""),
                stream("event: endpoint\ndata: /x\n\n"),
            ],
        ),
    ] {
        let (grant, credential) = with(&world, json!({})).await;
        oauth.instead(&grant.name, Endpoint::Mcp, answers);
        assert_eq!(
            validate(&world, &credential).await["status"],
            "valid",
            "{name}"
        );
    }
}

#[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
async fn secrets_are_scrubbed_and_bodies_cut(pool: PgPoolOptions, connect: PgConnectOptions) {
    let world = World::new(pool, connect).await;
    let (grant, credential) = with(&world, json!({})).await;
    let oauth = world.script.oauth();
    oauth.expire(&grant.name);
    let (at, rt) = (&grant.access_token, &grant.refresh_token);
    let html = Instead {
        status: 401,
        headers: [("content-type".to_owned(), format!("text/html; x={at}"))].into(),
        body: format!("<p>{at}</p>{}", "x".repeat(3000)),
        gate: None,
    };
    oauth.instead(&grant.name, Endpoint::Mcp, vec![html]);
    let body = format!(r#"{{"error":"invalid_grant","was":"{rt}","access_token":"unheard-of"}}"#);
    oauth.instead(&grant.name, Endpoint::Token, vec![said(400, &body)]);
    let found = validate(&world, &credential).await;
    let text = found.to_string();
    assert!(
        !text.contains(at.as_str()) && !text.contains(rt.as_str()),
        "{text}"
    );
    assert!(!text.contains("unheard-of"), "{text}");
    let probe = &found["mcp_probe"]["http_response"];
    assert_eq!(probe["body"].as_str().unwrap().len(), 2048);
    assert_eq!(
        (&probe["body_truncated"], &probe["status_code"]),
        (&json!(true), &json!(401))
    );
    assert_eq!(probe["content_type"], "text/html; x=[redacted]");
    assert_eq!(found["refresh"]["http_response"]["body_truncated"], false);
}

#[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
async fn what_cannot_be_validated(pool: PgPoolOptions, connect: PgConnectOptions) {
    let world = World::new(pool, connect).await;
    let vaults = world.vaults(LONG);
    let (_, credential) = with(&world, json!({})).await;
    let vault = credential.vault_id;
    let refused = async |id| match vaults.validate(world.workspace, vault, id).await {
        Err(ValidateError::Api(error)) => error.message,
        other => panic!("{other:?}"),
    };
    let fixed =
        json!({"type": "static_bearer", "mcp_server_url": "https://a.example", "token": "t"});
    let fixed = world.add(vault, fixed).await;
    assert!(refused(fixed.id).await.contains("static_bearer"));
    world.archive(&credential).await;
    assert!(refused(credential.id).await.contains("archived"));
    for (workspace, vault, id) in [
        (WorkspaceId::new(), vault, fixed.id),
        (world.workspace, VaultId::new(), fixed.id),
        (world.workspace, vault, CredentialId::new()),
    ] {
        assert!(
            vaults
                .validate(workspace, vault, id)
                .await
                .unwrap()
                .is_none()
        );
    }
}
