use selfsame_store::Scope;
use selfsame_types::{AgentId, CredentialId, VaultId};
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::testing::{TestApp, TestResponse};

async fn vault(app: &TestApp, name: &str) -> Value {
    let response = app.post("/v1/vaults", json!({"display_name": name})).await;
    assert_eq!(response.status, 200, "{response}");
    response.body
}

fn path(vault: &Value) -> String {
    format!("/v1/vaults/{}", vault["id"].as_str().unwrap())
}

fn credentials(vault: &Value) -> String {
    format!("{}/credentials", path(vault))
}

fn of(vault: &Value, credential: &Value) -> String {
    format!(
        "{}/{}",
        credentials(vault),
        credential["id"].as_str().unwrap()
    )
}

fn bearer(url: &str) -> Value {
    json!({"auth": {"type": "static_bearer", "mcp_server_url": url, "token": "s3cret"}})
}

fn variable(name: &str) -> Value {
    json!({"auth": {"type": "environment_variable", "secret_name": name, "secret_value": "s3cret",
                    "networking": {"type": "unrestricted"}}})
}

fn oauth(url: &str) -> Value {
    json!({"display_name": "o", "metadata": {"a": "1"}, "auth": {
        "type": "mcp_oauth", "mcp_server_url": url, "access_token": "s3cret", "expires_at": "2099-01-01T00:00:00Z",
        "refresh": {"client_id": "c", "refresh_token": "s3cret", "token_endpoint": "https://auth.example.com/token",
                    "token_endpoint_auth": {"type": "client_secret_basic", "client_secret": "s3cret"}}}})
}

async fn add(app: &TestApp, vault: &Value, body: Value) -> Value {
    let response = app.post(&credentials(vault), body).await;
    assert_eq!(response.status, 200, "{response}");
    assert!(!response.text.contains("s3cret"), "{response}");
    response.body
}

#[track_caller]
fn assert_error(response: &TestResponse, status: u16, kind: &str, part: &str) {
    assert_eq!(response.status.as_u16(), status, "{response}");
    let (name, message) = response.error();
    assert_eq!(name, kind, "{response}");
    assert!(message.contains(part), "{part}: {response}");
    assert!(!response.text.contains("s3cret"), "{response}");
}

fn code(response: &TestResponse) -> &str {
    response.body["error"]["details"]["error_code"]
        .as_str()
        .unwrap_or("")
}

fn ids(page: &TestResponse) -> Vec<&str> {
    let data = page.body["data"].as_array().expect("a page");
    data.iter().map(|row| row["id"].as_str().unwrap()).collect()
}

#[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
async fn a_vault_lives(pool: PgPool) {
    let app = TestApp::new(pool).await;
    let body = json!({"display_name": "Alice", "metadata": {"user": "u1", "x": "y"}});
    let created = app.post("/v1/vaults", body).await;
    assert_eq!(created.status, 200, "{created}");
    let vault = created.body;
    assert!(vault["id"].as_str().unwrap().starts_with("vlt_01"));
    assert_eq!(vault["type"], "vault");
    assert_eq!(vault["created_at"], vault["updated_at"]);
    assert_eq!(vault["archived_at"], Value::Null);
    let path = path(&vault);
    assert_eq!(app.get(&path).await.body, vault);

    let update = json!({"display_name": null, "metadata": {"user": null, "z": ""}});
    let updated = app.post(&path, update.clone()).await;
    assert_eq!(updated.body["display_name"], "Alice", "{updated}");
    assert_eq!(updated.body["metadata"], json!({"x": "y", "z": ""}));
    assert_ne!(updated.body["updated_at"], vault["updated_at"]);
    assert_eq!(app.post(&path, update).await.body, updated.body);
    let many: serde_json::Map<String, Value> =
        (0..15).map(|n| (n.to_string(), json!("v"))).collect();
    let refused = app.post(&path, json!({"metadata": many})).await;
    assert_eq!(
        code(&refused),
        "invalid_metadata",
        "the limit is of the merged map"
    );

    let credential = add(&app, &vault, bearer("https://a.example/mcp")).await;
    let archived = app.post_empty(&format!("{path}/archive")).await;
    assert_eq!(archived.status, 200, "{archived}");
    assert!(archived.body["archived_at"].is_string());
    assert_eq!(
        app.post_empty(&format!("{path}/archive")).await.body,
        archived.body
    );
    assert_eq!(app.get(&path).await.body, archived.body);
    let credential = app.get(&of(&vault, &credential)).await;
    assert!(credential.body["archived_at"].is_string(), "{credential}");
    for refused in [
        app.post(&path, json!({"display_name": "b"})).await,
        app.post(&credentials(&vault), bearer("https://b.example"))
            .await,
    ] {
        assert_error(&refused, 400, "invalid_request_error", "is archived");
        assert_eq!(code(&refused), "vault_archived");
    }

    let deleted = app.delete(&path).await;
    assert_eq!(
        deleted.body,
        json!({"id": vault["id"], "type": "vault_deleted"})
    );
    for response in [
        app.get(&path).await,
        app.delete(&path).await,
        app.get(&credentials(&vault)).await,
        app.get(&of(&vault, &credential.body)).await,
    ] {
        assert_error(&response, 404, "not_found_error", "was not found");
    }
}

#[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
async fn a_credential_lives_and_its_secrets_stay(pool: PgPool) {
    let app = TestApp::new(pool).await;
    let vault = vault(&app, "v").await;
    for (body, update) in [
        (
            bearer("https://a.example/mcp"),
            json!({"auth": {"type": "static_bearer", "token": "s3cret2"}}),
        ),
        (
            oauth("https://b.example/mcp"),
            json!({"auth": {"type": "mcp_oauth", "refresh": {"scope": "read", "refresh_token": "s3cret2"}}}),
        ),
        (
            variable("API_KEY"),
            json!({"auth": {"type": "environment_variable", "injection_location": {"body": false}}}),
        ),
    ] {
        let credential = add(&app, &vault, body.clone()).await;
        assert!(credential["id"].as_str().unwrap().starts_with("vcrd_01"));
        assert_eq!(credential["type"], "vault_credential");
        assert_eq!(credential["vault_id"], vault["id"]);
        let path = of(&vault, &credential);
        assert_eq!(app.get(&path).await.body, credential);
        let updated = app.post(&path, update).await;
        assert_eq!(updated.status, 200, "{updated}");
        assert!(!updated.text.contains("s3cret"), "{updated}");
        assert_ne!(updated.body["updated_at"], credential["updated_at"]);
        assert_eq!(app.get(&path).await.body, updated.body);
        let nothing = app
            .post(&path, json!({"display_name": null, "metadata": {}}))
            .await;
        assert_eq!(nothing.body, updated.body);

        let twin = app.post(&credentials(&vault), body.clone()).await;
        assert_error(&twin, 409, "conflict_error", "a credential in use");
        assert_eq!(twin.header("x-should-retry"), "false");

        let archived = app.post_empty(&format!("{path}/archive")).await;
        assert!(archived.body["archived_at"].is_string(), "{archived}");
        assert_eq!(archived.body["auth"], updated.body["auth"]);
        assert_eq!(
            app.post_empty(&format!("{path}/archive")).await.body,
            archived.body
        );
        let refused = app.post(&path, json!({"display_name": "x"})).await;
        assert_error(&refused, 400, "invalid_request_error", "is archived");
        let again = add(&app, &vault, body).await;
        let page = app.get(&credentials(&vault)).await;
        assert!(!ids(&page).contains(&credential["id"].as_str().unwrap()));
        assert!(ids(&page).contains(&again["id"].as_str().unwrap()));

        let deleted = app.delete(&path).await;
        let expected = json!({"id": credential["id"], "type": "vault_credential_deleted"});
        assert_eq!(deleted.body, expected);
        for response in [
            app.get(&path).await,
            app.post(&path, json!({})).await,
            app.post_empty(&format!("{path}/archive")).await,
            app.delete(&path).await,
        ] {
            assert_error(&response, 404, "not_found_error", "Credential");
        }
    }
}

#[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
async fn one_server_has_one_credential(pool: PgPool) {
    let app = TestApp::new(pool).await;
    let (one, other) = (vault(&app, "a").await, vault(&app, "b").await);
    add(&app, &one, bearer("https://Mcp.example.com:443/mcp/")).await;
    for url in [
        "https://mcp.example.com/mcp",
        "HTTPS://mcp.example.com/mcp/",
    ] {
        let twin = app.post(&credentials(&one), oauth(url)).await;
        assert_error(&twin, 409, "conflict_error", "mcp_server_url");
    }
    let shown = add(&app, &one, bearer("https://mcp.example.com:8443/mcp/")).await;
    assert_eq!(
        shown["auth"]["mcp_server_url"], "https://mcp.example.com:8443/mcp/",
        "as it was given"
    );
    add(&app, &one, bearer("https://mcp.example.com/MCP")).await;
    add(&app, &other, bearer("https://mcp.example.com/mcp")).await;
    add(&app, &one, variable("A")).await;
    add(&app, &one, variable("a")).await;
}

#[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
async fn a_vault_has_twenty_credentials_in_use(pool: PgPool) {
    let app = TestApp::new(pool).await;
    let vault = vault(&app, "v").await;
    let mut last = Value::Null;
    for number in 0..20 {
        last = add(&app, &vault, variable(&format!("V{number}"))).await;
    }
    let refused = app.post(&credentials(&vault), variable("MORE")).await;
    assert_error(&refused, 400, "invalid_request_error", "has 20 credentials");
    // What is wrong with the request comes first.
    let refused = app.post(&credentials(&vault), variable("1")).await;
    assert_error(&refused, 400, "invalid_request_error", "auth.secret_name");
    app.post_empty(&format!("{}/archive", of(&vault, &last)))
        .await;
    add(&app, &vault, variable("MORE")).await;
}

#[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
async fn what_is_refused_is_named(pool: PgPool) {
    let app = TestApp::new(pool).await;
    let vault = vault(&app, "v").await;
    let (list, invalid) = (credentials(&vault), "invalid_request_error");
    for (path, body, part) in [
        ("/v1/vaults", json!({}), "display_name"),
        ("/v1/vaults", json!({"display_name": ""}), "display_name"),
        (
            "/v1/vaults",
            json!({"display_name": "x".repeat(256)}),
            "display_name",
        ),
        (
            "/v1/vaults",
            json!({"display_name": "x", "metadata": {"a": 1}}),
            "metadata",
        ),
        (
            "/v1/vaults",
            json!({"display_name": "x", "name": "y"}),
            "unknown field",
        ),
        (&list, json!({}), "auth"),
        (&list, json!({"auth": "s3cret"}), "auth: must be an object"),
        (
            &list,
            json!({"auth": {"type": "basic"}}),
            "`basic` is not known here",
        ),
        (&list, bearer("ftp://a.example"), "auth.mcp_server_url"),
    ] {
        let refused = app.post(path, body.clone()).await;
        assert_error(&refused, 400, invalid, part);
    }
    let mut past = oauth("https://a.example");
    past["auth"]["expires_at"] = json!("2001-01-01T00:00:00Z");
    let refused = app.post(&list, past).await;
    assert_error(&refused, 400, invalid, "auth.expires_at");
    let credential = add(&app, &vault, bearer("https://a.example")).await;
    let other_kind = json!({"auth": {"type": "mcp_oauth"}});
    let refused = app.post(&of(&vault, &credential), other_kind).await;
    assert_error(&refused, 400, invalid, "auth.type");
    for (query, part) in [
        ("limit=0", "limit: must be between 1 and 100"),
        ("limit=101", "limit: must be between 1 and 100"),
        ("page=x", "page: not a cursor of this list"),
        ("status=x", "status: unknown query parameter"),
    ] {
        for path in ["/v1/vaults", &list] {
            let response = app.get(&format!("{path}?{query}")).await;
            assert_error(&response, 400, invalid, part);
        }
    }
}

#[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
async fn strangers_find_nothing(pool: PgPool) {
    let app = TestApp::new(pool).await;
    let (one, empty) = (vault(&app, "a").await, vault(&app, "b").await);
    let credential = add(&app, &one, bearer("https://a.example")).await;
    let other = app.other_workspace().await;
    let unknown = json!({"id": VaultId::new().to_string()});
    let foreign_kind = json!({"id": AgentId::new().to_string()});
    for (client, vault) in [(&other, &one), (&app, &unknown), (&app, &foreign_kind)] {
        let path = path(vault);
        for response in [
            client.get(&path).await,
            client.post(&path, json!({"display_name": "b"})).await,
            client.post_empty(&format!("{path}/archive")).await,
            client.delete(&path).await,
            client.get(&credentials(vault)).await,
            client
                .post(&credentials(vault), bearer("https://b.example"))
                .await,
        ] {
            assert_error(&response, 404, "not_found_error", "was not found");
        }
    }
    let unknown = json!({"id": CredentialId::new().to_string()});
    for (client, vault, credential) in [
        (&other, &one, &credential),
        (&app, &empty, &credential),
        (&app, &one, &unknown),
        (&app, &one, &foreign_kind),
    ] {
        let path = of(vault, credential);
        for response in [
            client.get(&path).await,
            client.post(&path, json!({"display_name": "b"})).await,
            client.post_empty(&format!("{path}/archive")).await,
            client.delete(&path).await,
        ] {
            assert_error(&response, 404, "not_found_error", "was not found");
        }
    }
    let list = other.get("/v1/vaults").await;
    assert_eq!(list.body, json!({"data": [], "next_page": null}));
    assert_eq!(app.get(&of(&one, &credential)).await.body, credential);
    let reader = app.with_scope(Scope::ReadOnly).await;
    assert_eq!(reader.get(&path(&one)).await.body, one);
    for response in [
        reader.delete(&path(&one)).await,
        reader.post(&credentials(&one), variable("A")).await,
    ] {
        assert_error(&response, 403, "permission_error", "");
    }
}

#[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
async fn lists_page_and_filter(pool: PgPool) {
    let app = TestApp::new(pool).await;
    let mut vaults = Vec::new();
    for name in ["a", "b", "c"] {
        vaults.push(vault(&app, name).await);
    }
    let mut rows = Vec::new();
    for name in ["A", "B", "C"] {
        rows.push(add(&app, &vaults[0], variable(name)).await);
    }
    let next = async |path: &str, rows: &[Value]| {
        let id = |index: usize| rows[index]["id"].as_str().unwrap();
        let first = app.get(&format!("{path}?limit=2")).await;
        assert_eq!(ids(&first), [id(2), id(1)]);
        let next = first.body["next_page"].as_str().unwrap().to_owned();
        let second = app.get(&format!("{path}?limit=2&page={next}")).await;
        assert_eq!(ids(&second), [id(0)]);
        assert_eq!(second.body["next_page"], Value::Null);
        let archive = format!("{path}/{}/archive", id(1));
        assert_eq!(app.post_empty(&archive).await.status, 200);
        assert_eq!(ids(&app.get(path).await), [id(2), id(0)]);
        let all = app
            .get(&format!("{path}?include_archived=true&limit=100"))
            .await;
        assert_eq!(ids(&all), [id(2), id(1), id(0)]);
        next
    };
    let page = next("/v1/vaults", &vaults).await;
    let foreign = app
        .get(&format!("{}?page={page}", credentials(&vaults[0])))
        .await;
    assert_error(&foreign, 400, "invalid_request_error", "not a cursor");
    let page = next(&credentials(&vaults[0]), &rows).await;
    let foreign = app
        .get(&format!("{}?page={page}", credentials(&vaults[2])))
        .await;
    assert_error(&foreign, 400, "invalid_request_error", "not a cursor");
}

#[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
async fn a_session_keeps_its_vaults(pool: PgPool) {
    let app = TestApp::new(pool).await;
    let agent = app
        .post("/v1/agents", json!({"name": "n", "model": "m"}))
        .await;
    let environment = app.post("/v1/environments", json!({"name": "e"})).await;
    let create = |app: &TestApp, vaults: Value| {
        let body = json!({"agent": agent.body["id"], "environment_id": environment.body["id"],
                          "vault_ids": vaults});
        let app = app.clone();
        async move { app.post("/v1/sessions", body).await }
    };
    let (a, b) = (vault(&app, "a").await, vault(&app, "b").await);
    let order = json!([b["id"], a["id"]]);
    let session = create(&app, order.clone()).await;
    assert_eq!(session.status, 200, "{session}");
    assert_eq!(session.body["vault_ids"], order);
    let path = format!("/v1/sessions/{}", session.body["id"].as_str().unwrap());
    assert_eq!(app.get(&path).await.body["vault_ids"], order);
    let list = app.get("/v1/sessions").await;
    assert_eq!(list.body["data"][0]["vault_ids"], order);

    for given in [json!([]), order.clone()] {
        let refused = app.post(&path, json!({"vault_ids": given})).await;
        assert_error(&refused, 400, "invalid_request_error", "not yet supported");
    }
    let unknown = VaultId::new().to_string();
    let elsewhere = vault(&app.other_workspace().await, "x").await;
    for (vaults, code_of) in [
        (json!([a["id"], unknown]), "vault_not_found"),
        (json!([a["id"], "vlt_x"]), "vault_not_found"),
        (json!([a["id"], elsewhere["id"]]), "vault_not_found"),
        (json!([a["id"], a["id"]]), ""),
    ] {
        let refused = create(&app, vaults).await;
        assert_error(&refused, 400, "invalid_request_error", "vault_ids[1]");
        assert_eq!(code(&refused), code_of, "{refused}");
    }
    let many: Vec<String> = (0..51).map(|_| VaultId::new().to_string()).collect();
    let refused = create(&app, json!(many)).await;
    assert_error(&refused, 400, "invalid_request_error", "at most 50");

    app.post_empty(&format!("{}/archive", self::path(&a))).await;
    let refused = create(&app, order.clone()).await;
    assert_error(&refused, 400, "invalid_request_error", "is archived");
    assert_eq!(code(&refused), "vault_archived");
    assert_eq!(app.delete(&self::path(&b)).await.status, 200);
    // The one that exists goes on, with what it was created with.
    assert_eq!(app.get(&path).await.body["vault_ids"], order);
}
