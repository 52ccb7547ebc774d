use axum::{
    body::Body,
    http::{Method, Request},
};
use selfsame_store::Scope;
use selfsame_types::{WebhookEndpointId, WebhookEventId, webhook::WebhookEventType};
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::{
    middleware::WEBHOOKS_BETA,
    testing::{TestApp, TestResponse},
};

const URL: &str = "https://example.com/hook";

#[track_caller]
fn assert_error(response: &TestResponse, status: u16, part: &str) {
    assert_eq!(response.status.as_u16(), status, "{response}");
    assert!(response.error().1.contains(part), "{part}: {response}");
}

async fn create(app: &TestApp, events: &[&str]) -> Value {
    let body = json!({"url": URL, "enabled_events": events});
    let response = app.post("/v1/webhook_endpoints", body).await;
    assert_eq!(response.status, 200, "{response}");
    response.body
}

fn path(endpoint: &Value) -> String {
    format!("/v1/webhook_endpoints/{}", endpoint["id"].as_str().unwrap())
}

/// The names of what was sent, oldest first.
async fn told(app: &TestApp, endpoint: &Value) -> Vec<String> {
    let page = app
        .get(&format!("{}/deliveries?limit=100", path(endpoint)))
        .await;
    assert_eq!(page.status, 200, "{page}");
    let deliveries = page.body["data"].as_array().unwrap().iter().rev();
    deliveries
        .map(|delivery| delivery["event_type"].as_str().unwrap().to_owned())
        .collect()
}

#[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
async fn an_endpoint_lives(pool: PgPool) {
    let app = TestApp::new(pool).await;
    let made = create(&app, &["session.updated", "agent.created"]).await;
    let secret = made["signing_secret"].as_str().unwrap();
    assert!(secret.starts_with("whsec_") && secret.len() == 50);
    assert_eq!(
        (&made["name"], &made["state"]),
        (&json!(""), &json!("enabled"))
    );
    let path = path(&made);
    let shown = app.get(&path).await.body;
    assert_eq!(shown["failing_since"], Value::Null);
    assert!(shown.get("signing_secret").is_none());
    let listed = app.get("/v1/webhook_endpoints").await;
    assert_eq!(listed.body, json!({"data": [shown], "next_page": null}));

    let update = json!({"name": "n", "enabled_events": [], "state": "disabled"});
    let updated = app.post(&path, update.clone()).await.body;
    assert_eq!(
        (&updated["name"], &updated["state"]),
        (&json!("n"), &json!("disabled"))
    );
    assert_eq!(updated["enabled_events"], made["enabled_events"]);
    assert_ne!(updated["updated_at"], made["updated_at"]);
    assert_eq!(app.post(&path, update).await.body, updated);
    assert_error(
        &app.post_empty(&format!("{path}/test_event")).await,
        400,
        "is disabled",
    );
    let redeliver = json!({"since": "2026-01-01T00:00:00Z"});
    let refused = app.post(&format!("{path}/redeliver"), redeliver).await;
    assert_error(&refused, 400, "is disabled");
    let moved = app.post(&path, json!({"url": "http://example.com/"})).await;
    assert_error(&moved, 400, "must begin with https://");

    let rotated = app
        .post_empty(&format!("{path}/regenerate_signing_secret"))
        .await;
    assert_ne!(rotated.body["signing_secret"], secret);
    assert!(
        rotated.body["previous_valid_until"].is_string(),
        "{rotated}"
    );
    let at_once = json!({"overlap_seconds": 0});
    let rotated = app
        .post(&format!("{path}/regenerate_signing_secret"), at_once)
        .await;
    assert_eq!(rotated.body["previous_valid_until"], Value::Null);
    let long = json!({"overlap_seconds": 604_801});
    let refused = app
        .post(&format!("{path}/regenerate_signing_secret"), long)
        .await;
    assert_error(&refused, 400, "overlap_seconds");

    let deleted = app.delete(&path).await;
    let wanted = json!({"id": made["id"], "type": "webhook_endpoint_deleted"});
    assert_eq!(deleted.body, wanted);
    assert_error(&app.delete(&path).await, 404, "was not found");
    assert_error(&app.get(&path).await, 404, "was not found");
}

#[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
async fn what_happens_is_told(pool: PgPool) {
    let app = TestApp::new(pool).await;
    let all: Vec<_> = WebhookEventType::of(false).map(|e| e.as_str()).collect();
    let endpoint = create(&app, &all).await;

    let agent = app
        .post("/v1/agents", json!({"name": "a", "model": "m"}))
        .await
        .body;
    let agent_path = format!("/v1/agents/{}", agent["id"].as_str().unwrap());
    for name in ["b", "b"] {
        let version = app.get(&agent_path).await.body["version"].clone();
        let update = json!({"version": version, "name": name});
        assert_eq!(app.post(&agent_path, update).await.status, 200);
    }
    let environment = app
        .post("/v1/environments", json!({"name": "e"}))
        .await
        .body;
    let place = format!("/v1/environments/{}", environment["id"].as_str().unwrap());
    for description in ["d", "d"] {
        let update = json!({"description": description});
        assert_eq!(app.post(&place, update).await.status, 200);
    }
    let body = json!({"agent": agent["id"], "environment_id": environment["id"]});
    let session = app.post("/v1/sessions", body.clone()).await.body;
    let session_path = format!("/v1/sessions/{}", session["id"].as_str().unwrap());
    for title in ["t", "t"] {
        assert_eq!(
            app.post(&session_path, json!({"title": title}))
                .await
                .status,
            200
        );
    }
    for _ in 0..2 {
        let archived = app.post_empty(&format!("{session_path}/archive")).await;
        assert_eq!(archived.status, 200, "{archived}");
    }
    let idle = app.post("/v1/sessions", body).await.body;
    for gone in [&session, &idle] {
        let path = format!("/v1/sessions/{}", gone["id"].as_str().unwrap());
        assert_eq!(app.delete(&path).await.status, 200);
    }
    for _ in 0..2 {
        assert_eq!(
            app.post_empty(&format!("{agent_path}/archive"))
                .await
                .status,
            200
        );
        assert_eq!(
            app.post_empty(&format!("{place}/archive")).await.status,
            200
        );
    }
    let spare = app
        .post("/v1/environments", json!({"name": "f"}))
        .await
        .body;
    let spare = format!("/v1/environments/{}", spare["id"].as_str().unwrap());
    assert_eq!(app.delete(&spare).await.status, 200);

    assert_eq!(
        told(&app, &endpoint).await,
        [
            "agent.created",
            "agent.updated",
            "environment.created",
            "environment.updated",
            "session.created",
            "session.updated",
            "session.status_terminated",
            "session.archived",
            "session.created",
            "session.deleted",
            "session.deleted",
            "agent.archived",
            "environment.archived",
            "environment.created",
            "environment.deleted",
        ]
    );
    let page = app
        .get(&format!("{}/deliveries?limit=100", path(&endpoint)))
        .await
        .body;
    let of = |name: &str| {
        let found = page["data"].as_array().unwrap().iter().rev();
        found.clone().find(|d| d["event_type"] == name).unwrap()["event"]["data"].clone()
    };
    assert_eq!(of("session.updated")["id"], session["id"]);
    assert_eq!(of("agent.created")["id"], agent["id"]);
    assert_eq!(of("environment.updated")["id"], environment["id"]);
}

#[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
async fn deliveries_are_listed_and_begun_anew(pool: PgPool) {
    let app = TestApp::new(pool).await;
    let endpoint = create(&app, &["session.thread_idled", "agent.created"]).await;
    let path = path(&endpoint);
    let test = format!("{path}/test_event");
    let first = app.post_empty(&test).await.body;
    assert_eq!(first["event_type"], "session.thread_idled");
    assert!(first["event"]["data"]["session_thread_id"].is_string());
    assert_eq!(
        (&first["status"], &first["attempts"]),
        (&json!("pending"), &json!([]))
    );
    let second = app
        .post(&test, json!({"event_type": "agent.created"}))
        .await
        .body;
    let refused = app
        .post(&test, json!({"event_type": "agent.archived"}))
        .await;
    assert_error(&refused, 400, "`session.thread_idled`, `agent.created`");

    let pages = format!("{path}/deliveries?limit=1");
    let page = app.get(&pages).await.body;
    assert_eq!(page["data"][0]["id"], second["id"]);
    let next = format!("{pages}&page={}", page["next_page"].as_str().unwrap());
    let page = app.get(&next).await.body;
    assert_eq!(
        (&page["data"][0]["id"], &page["next_page"]),
        (&first["id"], &Value::Null)
    );
    let pending = app
        .get(&format!("{path}/deliveries?statuses[]=pending"))
        .await;
    assert_eq!(pending.body["data"].as_array().unwrap().len(), 2);
    let others = app
        .get(&format!(
            "{path}/deliveries?statuses[]=failed&statuses[]=canceled"
        ))
        .await;
    assert_eq!(others.body["data"], json!([]));
    assert_error(
        &app.get(&format!("{path}/deliveries?statuses[]=lost")).await,
        400,
        "lost",
    );
    assert_error(
        &app.get(&format!("{path}/deliveries?limit=0")).await,
        400,
        "limit",
    );

    // Off and on again: what waited is given up, and can be had.
    for state in ["disabled", "enabled"] {
        app.post(&path, json!({"state": state})).await;
    }
    let one = format!("{path}/deliveries/{}", first["id"].as_str().unwrap());
    assert_eq!(app.get(&one).await.body["status"], "canceled");
    let again = app.post_empty(&format!("{one}/redeliver")).await;
    assert_eq!(
        (&again.body["status"], &again.body["id"]),
        (&json!("pending"), &first["id"])
    );
    let since = json!({"since": "2020-01-01T00:00:00Z"});
    let count = app.post(&format!("{path}/redeliver"), since).await;
    assert_eq!(count.body, json!({"redelivered": 1}));
    let refused = json!({"since": "2020-01-01T00:00:00Z", "statuses": ["pending"]});
    assert_error(
        &app.post(&format!("{path}/redeliver"), refused).await,
        400,
        "on their way",
    );
    let nobody = format!("{path}/deliveries/{}", WebhookEventId::new());
    assert_error(&app.get(&nobody).await, 404, "was not found");
    assert_error(
        &app.post_empty(&format!("{nobody}/redeliver")).await,
        404,
        "was not found",
    );
}

#[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
async fn workspaces_and_scopes(pool: PgPool) {
    let app = TestApp::new(pool).await;
    let endpoint = create(&app, &["agent.created"]).await;
    let path = path(&endpoint);
    let event = app.post_empty(&format!("{path}/test_event")).await.body["id"].clone();
    let delivery = format!("{path}/deliveries/{}", event.as_str().unwrap());
    let reader = app.with_scope(Scope::ReadOnly).await;
    assert_eq!(reader.get(&delivery).await.status, 200);
    assert_eq!(reader.delete(&path).await.status, 403);

    let stranger = app.other_workspace().await;
    for reads in [path.clone(), format!("{path}/deliveries"), delivery.clone()] {
        assert_error(&stranger.get(&reads).await, 404, "was not found");
    }
    for (writes, body) in [
        (path.clone(), json!({"name": "x"})),
        (format!("{path}/regenerate_signing_secret"), json!({})),
        (format!("{path}/test_event"), json!({})),
        (
            format!("{path}/redeliver"),
            json!({"since": "2026-01-01T00:00:00Z"}),
        ),
        (format!("{delivery}/redeliver"), json!({})),
    ] {
        assert_error(&stranger.post(&writes, body).await, 404, "was not found");
    }
    assert_error(&stranger.delete(&path).await, 404, "was not found");
    assert_eq!(
        stranger.get("/v1/webhook_endpoints").await.body["data"],
        json!([])
    );
    stranger
        .post("/v1/agents", json!({"name": "a", "model": "m"}))
        .await;
    assert_eq!(told(&app, &endpoint).await, ["agent.created"]);
    let nobody = app
        .get(&format!(
            "/v1/webhook_endpoints/{}",
            WebhookEndpointId::new()
        ))
        .await;
    assert_error(&nobody, 404, "was not found");
}

/// A client of the organization's endpoints.
struct Organization(TestApp);

impl Organization {
    async fn send(&self, method: Method, path: &str, body: Value) -> TestResponse {
        let request = Request::builder()
            .method(method)
            .uri(format!("/v1/organizations/webhooks{path}"))
            .header("anthropic-beta", WEBHOOKS_BETA)
            .header(
                "authorization",
                format!("Bearer {}", self.0.token.as_ref().unwrap()),
            );
        let body = if body.is_null() {
            Body::empty()
        } else {
            Body::from(body.to_string())
        };
        self.0.raw(request.body(body).unwrap()).await
    }

    async fn get(&self, path: &str) -> TestResponse {
        self.send(Method::GET, path, Value::Null).await
    }

    async fn post(&self, path: &str, body: Value) -> TestResponse {
        self.send(Method::POST, path, body).await
    }
}

#[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
async fn the_organization_has_endpoints_of_its_own(pool: PgPool) {
    let app = TestApp::new(pool).await;
    let organization = Organization(app.clone());
    let body = json!({"url": URL, "enabled_events": ["external_key.failed"], "name": "n"});
    let made = organization.post("", body.clone()).await.body;
    assert!(
        made["signing_secret"]
            .as_str()
            .unwrap()
            .starts_with("whsec_")
    );
    let path = format!("/{}", made["id"].as_str().unwrap());
    let shown = organization.get(&path).await.body;
    let mut keys: Vec<_> = shown
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    keys.sort_unstable();
    assert_eq!(
        keys,
        [
            "created_at",
            "description",
            "disabled_reason",
            "enabled_events",
            "id",
            "name",
            "state",
            "updated_at",
            "url",
        ]
    );
    let workspaces = json!({"url": URL, "enabled_events": ["session.updated"]});
    assert_error(
        &organization.post("", workspaces).await,
        400,
        "endpoints of the organization",
    );
    let off = organization
        .post(&path, json!({"state": "disabled", "enabled_events": []}))
        .await;
    assert_eq!(off.body["state"], "disabled");
    assert_eq!(off.body["enabled_events"], json!(["external_key.failed"]));
    let fresh = organization
        .post(&format!("{path}/regenerate_signing_secret"), Value::Null)
        .await;
    assert_eq!(fresh.body.as_object().unwrap().len(), 1);

    // Neither kind shows the other.
    assert_error(
        &app.get(&format!("/v1/webhook_endpoints{path}")).await,
        404,
        "was not found",
    );
    let own = create(&app, &["agent.created"]).await;
    let other = organization
        .get(&format!("/{}", own["id"].as_str().unwrap()))
        .await;
    assert_error(&other, 404, "was not found");

    // The beta header, and the scope.
    assert_eq!(app.get("/v1/organizations/webhooks").await.status, 404);
    let standard = Organization(app.with_scope(Scope::Standard).await);
    assert_error(&standard.get("").await, 403, "admin");
    assert_error(&standard.post("", body).await, 403, "admin");

    let deleted = organization.send(Method::DELETE, &path, Value::Null).await;
    assert_eq!(deleted.body["type"], "webhook_endpoint_deleted");
    assert_error(&organization.get(&path).await, 404, "was not found");
}

#[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
async fn pages_of_the_organization(pool: PgPool) {
    let organization = Organization(TestApp::new(pool).await);
    let mut ids = Vec::new();
    for number in 0..32 {
        let body = json!({"url": URL, "enabled_events": ["external_key.failed"], "name": number.to_string()});
        let made = organization.post("", body).await;
        ids.push(made.body["id"].as_str().unwrap().to_owned());
    }
    let body = json!({"url": URL, "enabled_events": ["external_key.failed"]});
    assert_error(
        &organization.post("", body).await,
        400,
        "32 webhook endpoints already",
    );

    let page = async |query: &str| {
        let page = organization.get(query).await;
        assert_eq!(page.status, 200, "{page}");
        let data = page.body["data"].as_array().unwrap().clone();
        let names: Vec<_> = data
            .iter()
            .map(|e| e["name"].as_str().unwrap().to_owned())
            .collect();
        let first = data
            .first()
            .map_or(Value::Null, |endpoint| endpoint["id"].clone());
        let last = data
            .last()
            .map_or(Value::Null, |endpoint| endpoint["id"].clone());
        assert_eq!(
            (&page.body["first_id"], &page.body["last_id"]),
            (&first, &last)
        );
        (names.join(" "), page.body["has_more"].as_bool().unwrap())
    };
    let (first, more) = page("").await;
    assert!(first.starts_with("31 30 ") && first.ends_with(" 12") && more);
    assert_eq!(page("?limit=0").await.0, first);
    assert_eq!(page("?limit=2&order=asc").await, ("0 1".to_owned(), true));
    let after = |order: &str| format!("?limit=2&order={order}&after_id={}", ids[29]);
    assert_eq!(page(&after("desc")).await, ("28 27".to_owned(), true));
    assert_eq!(page(&after("asc")).await, ("30 31".to_owned(), false));
    // The first of those before it, and not the nearest.
    let before = |limit| format!("?limit={limit}&before_id={}", ids[20]);
    assert_eq!(page(&before(2)).await, ("31 30".to_owned(), true));
    assert!(!page(&before(11)).await.1);
    let before = format!("?limit=2&order=asc&before_id={}", ids[20]);
    assert_eq!(page(&before).await, ("0 1".to_owned(), true));
    let before = format!("?before_id={}", ids[31]);
    assert_eq!(page(&before).await, (String::new(), false));

    let both = format!("?before_id={}&after_id={}", ids[1], ids[2]);
    assert_error(&organization.get(&both).await, 400, "together");
    let unknown = format!("?after_id={}", WebhookEndpointId::new());
    assert_error(&organization.get(&unknown).await, 400, "not in this list");
    assert_error(&organization.get("?limit=101").await, 400, "limit");
    assert_error(&organization.get("?order=up").await, 400, "order");
}
