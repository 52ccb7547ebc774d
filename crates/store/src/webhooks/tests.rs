use std::{sync::Arc, time::Duration};

use secrecy::{ExposeSecret as _, SecretString};
use selfsame_types::{
    EventId, ServerId, WebhookEndpointId,
    agent::CreateAgent,
    event::Processed,
    multiagent::Members,
    page::Order,
    webhook::{
        WebhookAttempt, WebhookDelivery, WebhookDeliveryStatus as Status, WebhookEndpointSpec,
        WebhookEndpointState, WorkspaceWebhookEndpoint,
    },
};
use serde_json::json;
use sqlx::PgPool;

use super::*;
use crate::{Actor, LocalKey, Sealer};

const PATIENCE: Duration = Duration::from_secs(600);

/// A workspace of a store with a master key.
struct Desk {
    store: Store,
    pool: PgPool,
    workspace: WorkspaceId,
    server: ServerId,
}

impl Desk {
    async fn new(pool: PgPool) -> Self {
        let key = LocalKey::new([1; 32].into());
        let store = Store::from_pool(pool.clone()).with_sealer(Sealer::new(Arc::new(key)));
        let workspace = store.workspace_create("w", &Actor::default()).await;
        let server = ServerId::new();
        store.server_heartbeat(server, "none").await.unwrap();
        Self {
            store,
            pool,
            workspace: workspace.unwrap().id,
            server,
        }
    }

    fn owner(&self) -> WebhookOwner {
        WebhookOwner::Workspace(self.workspace)
    }

    async fn endpoint(&self, events: &[WebhookEventType]) -> WebhookEndpointId {
        let made = self.create(self.owner(), events).await;
        made.unwrap().endpoint.id
    }

    async fn create(
        &self,
        owner: WebhookOwner,
        events: &[WebhookEventType],
    ) -> Result<WorkspaceWebhookEndpoint, WebhookRefusal> {
        let secret = SecretString::from("whsec_first");
        self.store
            .webhook_endpoint_create(owner, &spec(events), &secret, &Actor::default())
            .await
    }

    async fn turn(&self, id: WebhookEndpointId, state: WebhookEndpointState) {
        let turned = self
            .store
            .webhook_endpoint_update(self.owner(), id, &Actor::default(), |endpoint| {
                Ok::<_, StoreError>((spec(&endpoint.enabled_events), state))
            })
            .await;
        turned.unwrap().unwrap();
    }

    /// Something that is worth an event.
    async fn agent(&self) -> selfsame_types::AgentId {
        let id = selfsame_types::AgentId::new();
        let body = json!({"name": "a", "model": "m"});
        let body: CreateAgent = serde_json::from_value(body).unwrap();
        let made = self.store.agent_create(
            self.workspace,
            id,
            body.resolve(id, &Members::default()).unwrap(),
        );
        made.await.unwrap().id
    }

    async fn log(&self, id: WebhookEndpointId) -> Vec<WebhookDelivery> {
        let filter = DeliveryFilter {
            statuses: Vec::new(),
            before: None,
            limit: 100,
        };
        let listed = self
            .store
            .webhook_delivery_list(self.workspace, id, &filter);
        listed.await.unwrap().unwrap()
    }

    async fn claim(&self, failing: bool, total: usize, each: usize) -> Vec<ClaimedDelivery> {
        let limits = ClaimLimits {
            failing,
            total,
            each,
            busy: &[],
            patience: PATIENCE,
        };
        let claimed = self.store.webhook_claim(self.server, &limits).await;
        claimed.unwrap()
    }

    async fn record(&self, delivery: &ClaimedDelivery, outcome: Outcome) {
        let result = DeliveryResult {
            endpoint: delivery.endpoint,
            event: delivery.event,
            outcome,
        };
        let recorded = self.store.webhook_record(self.server, &[result]).await;
        recorded.unwrap();
    }

    async fn delete(&self, id: WebhookEndpointId) {
        let actor = Actor::default();
        let deleted = self.store.webhook_endpoint_delete(self.owner(), id, &actor);
        assert!(deleted.await.unwrap());
    }

    async fn sql(&self, statement: &'static str) {
        sqlx::raw_sql(statement).execute(&self.pool).await.unwrap();
    }
}

fn spec(events: &[WebhookEventType]) -> WebhookEndpointSpec {
    WebhookEndpointSpec {
        url: "https://example.com/".to_owned(),
        name: String::new(),
        description: String::new(),
        enabled_events: events.to_vec(),
    }
}

fn attempted(status: u16) -> WebhookAttempt {
    WebhookAttempt {
        at: Timestamp::from_micros(1),
        duration_ms: 5,
        status_code: Some(status),
        error: (status >= 300).then(|| format!("status {status}")),
        response: "thanks".to_owned(),
    }
}

#[sqlx::test(migrator = "crate::MIGRATOR")]
async fn an_event_goes_to_those_who_are_subscribed_when_it_happens(pool: PgPool) {
    let desk = Desk::new(pool).await;
    desk.agent().await;
    let one = desk.endpoint(&[WebhookEventType::AgentCreated]).await;
    let both = [
        WebhookEventType::AgentArchived,
        WebhookEventType::AgentCreated,
    ];
    let two = desk.endpoint(&both).await;
    let off = desk.endpoint(&both).await;
    desk.turn(off, WebhookEndpointState::Disabled).await;
    let other = Desk {
        workspace: desk
            .store
            .workspace_create("o", &Actor::default())
            .await
            .unwrap()
            .id,
        store: desk.store.clone(),
        pool: desk.pool.clone(),
        server: desk.server,
    };
    let elsewhere = other.endpoint(&both).await;

    let agent = desk.agent().await;
    let late = desk.endpoint(&both).await;
    desk.store
        .agent_archive(desk.workspace, agent)
        .await
        .unwrap();
    desk.store
        .agent_archive(desk.workspace, agent)
        .await
        .unwrap();

    let names = |log: &[WebhookDelivery]| {
        let names = log.iter().map(|delivery| delivery.event_type.as_str());
        names.collect::<Vec<_>>().join(" ")
    };
    assert_eq!(names(&desk.log(one).await), "agent.created");
    let log = desk.log(two).await;
    assert_eq!(names(&log), "agent.archived agent.created");
    assert_eq!(names(&desk.log(off).await), "");
    assert_eq!(names(&other.log(elsewhere).await), "");
    assert_eq!(names(&desk.log(late).await), "agent.archived");
    // One event, however many hear of it.
    assert_eq!(desk.log(one).await[0].id, log[1].id);
    let body: serde_json::Value = serde_json::from_str(log[1].event.get()).unwrap();
    assert_eq!(body["id"], log[1].id.to_string());
    assert_eq!(body["created_at"], log[1].created_at.to_string());
    assert_eq!(body["data"]["id"], agent.to_string());
    assert_eq!(body["data"]["workspace_id"], desk.workspace.to_string());
}

#[sqlx::test(migrator = "crate::MIGRATOR")]
async fn what_is_rolled_back_is_told_to_nobody(pool: PgPool) {
    let desk = Desk::new(pool).await;
    let id = desk.endpoint(&[WebhookEventType::VaultCreated]).await;
    let told = [WebhookEvent::new(WebhookEventType::VaultCreated, "vlt_01")];
    let at = desk.store.now().await.unwrap();
    let mut tx = desk.pool.begin().await.unwrap();
    let queued = emit(&mut tx, &desk.store, desk.workspace, Some(at), &told).await;
    assert_eq!(queued.unwrap(), Some(1));
    tx.rollback().await.unwrap();
    assert!(desk.log(id).await.is_empty());
    let mut tx = desk.pool.begin().await.unwrap();
    let nothing = emit(&mut tx, &desk.store, desk.workspace, None, &[]).await;
    assert_eq!(nothing.unwrap(), None);
}

#[test]
fn events_of_a_session_become_those_of_webhooks() {
    let (session, primary, child) = (SessionId::new(), ThreadId::new(), ThreadId::new());
    let event = |event_type, thread, fields: &str| NewEvent {
        id: EventId::new(),
        event_type,
        thread,
        on_session: true,
        processed: Processed::Now,
        fields: fields.to_owned(),
        private: None,
    };
    let named = format!(r#""session_thread_id":"{child}","agent_name":"a""#);
    let own = format!(r#""session_thread_id":"{primary}","agent_name":"a""#);
    let told = of_session(
        session,
        primary,
        &[
            event(EventType::SessionStatusRunning, primary, ""),
            event(EventType::SessionThreadStatusRunning, primary, &own),
            event(EventType::UserMessage, primary, r#""content":[]"#),
            // In the session's log it is the primary thread's event about the child.
            event(EventType::SessionThreadCreated, primary, &named),
            event(EventType::SessionThreadStatusIdle, child, &named),
            event(EventType::SessionThreadStatusTerminated, child, &named),
            event(EventType::SpanOutcomeEvaluationEnd, primary, ""),
            event(EventType::SessionThreadStatusIdle, primary, &own),
            event(
                EventType::SessionStatusIdle,
                primary,
                r#""stop_reason":{"type":"end_turn"}"#,
            ),
            event(
                EventType::SessionStatusIdle,
                primary,
                r#""stop_reason":{"type":"requires_action","event_ids":[]}"#,
            ),
            event(EventType::SessionStatusRescheduled, primary, ""),
            event(EventType::SessionUpdated, primary, r#""title":"x""#),
            event(EventType::SessionThreadStatusTerminated, primary, &own),
            event(EventType::SessionStatusTerminated, primary, ""),
        ],
        Some(End::Archive),
    );
    let names: Vec<_> = told.iter().map(|event| event.event_type.as_str()).collect();
    assert_eq!(
        names,
        [
            "session.status_run_started",
            "session.running",
            "session.thread_created",
            "session.thread_idled",
            "session.thread_terminated",
            "session.outcome_evaluation_ended",
            "session.status_idled",
            "session.idled",
            "session.status_idled",
            "session.requires_action",
            "session.status_rescheduled",
            "session.updated",
            "session.status_terminated",
            "session.archived",
        ]
    );
    assert!(told.iter().all(|event| event.id == session.to_string()));
    let threads: Vec<_> = told.iter().filter_map(|event| event.thread).collect();
    assert_eq!(threads, [child; 3]);
    let deleted = of_session(session, primary, &[], Some(End::Delete));
    assert_eq!(deleted[0].event_type, WebhookEventType::SessionDeleted);
}

#[sqlx::test(migrator = "crate::MIGRATOR")]
async fn a_delivery_is_claimed_once_and_recorded(pool: PgPool) {
    let desk = Desk::new(pool).await;
    let id = desk.endpoint(&[WebhookEventType::AgentCreated]).await;
    for _ in 0..3 {
        desk.agent().await;
    }
    // No more than an endpoint's share, and nothing twice.
    let first = desk.claim(false, 10, 2).await;
    assert_eq!(first.len(), 2);
    assert!(desk.claim(true, 10, 2).await.is_empty());
    let limits = ClaimLimits {
        failing: false,
        total: 10,
        each: 2,
        busy: &[(id, 2)],
        patience: PATIENCE,
    };
    let none = desk
        .store
        .webhook_claim(desk.server, &limits)
        .await
        .unwrap();
    assert!(none.is_empty());
    let rest = desk.claim(false, 10, 10).await;
    assert_eq!((rest.len(), rest[0].tries), (1, 0));

    desk.record(&first[0], Outcome::Delivered(attempted(204)))
        .await;
    desk.record(&first[1], Outcome::Retry(attempted(500), Duration::ZERO))
        .await;
    desk.record(&rest[0], Outcome::Failed(attempted(400))).await;
    let log = desk.log(id).await;
    let of = |claimed: &ClaimedDelivery| log.iter().find(|d| d.id == claimed.event).unwrap();
    assert_eq!(of(&first[0]).status, Status::Delivered);
    assert_eq!(of(&first[0]).attempts, [attempted(204)]);
    assert_eq!(of(&first[1]).status, Status::Pending);
    assert!(of(&first[1]).next_attempt_at.is_some());
    assert_eq!(of(&rest[0]).status, Status::Failed);

    // A retry is due again, one attempt later; a released one as if nothing had been.
    let again = desk.claim(false, 10, 10).await;
    assert_eq!((again.len(), again[0].tries), (1, 1));
    desk.record(&again[0], Outcome::Released(Duration::ZERO))
        .await;
    let again = desk.claim(false, 10, 10).await;
    assert_eq!((again.len(), again[0].tries), (1, 1));
}

#[sqlx::test(migrator = "crate::MIGRATOR")]
async fn what_a_dead_server_had_falls_to_another(pool: PgPool) {
    let desk = Desk::new(pool).await;
    desk.endpoint(&[WebhookEventType::AgentCreated]).await;
    desk.agent().await;
    let lost = desk.claim(false, 10, 10).await;
    let ttl = Duration::from_secs(10);
    assert_eq!(desk.store.webhook_release_dead(ttl).await.unwrap(), 0);
    desk.store.server_leave(desk.server).await.unwrap();
    assert_eq!(desk.store.webhook_release_dead(ttl).await.unwrap(), 1);
    let other = Desk {
        server: ServerId::new(),
        store: desk.store.clone(),
        pool: desk.pool.clone(),
        workspace: desk.workspace,
    };
    let found = other.claim(false, 10, 10).await;
    assert_eq!(found[0].event, lost[0].event);
    // It was only frozen: that it failed is no news, that it succeeded is.
    let endpoint = found[0].endpoint;
    desk.record(&lost[0], Outcome::Failed(attempted(500))).await;
    assert_eq!(desk.log(endpoint).await[0].status, Status::Pending);
    desk.record(&lost[0], Outcome::Delivered(attempted(200)))
        .await;
    assert_eq!(desk.log(endpoint).await[0].status, Status::Delivered);
    other
        .record(&found[0], Outcome::Failed(attempted(500)))
        .await;
    assert_eq!(desk.log(endpoint).await[0].status, Status::Delivered);
}

#[sqlx::test(migrator = "crate::MIGRATOR")]
async fn nothing_leaves_a_disabled_endpoint(pool: PgPool) {
    let desk = Desk::new(pool).await;
    let id = desk.endpoint(&[WebhookEventType::AgentCreated]).await;
    for _ in 0..3 {
        desk.agent().await;
    }
    let under_way = desk.claim(false, 1, 1).await;
    assert!(
        desk.store
            .webhook_endpoint_disable(id, "because")
            .await
            .unwrap()
    );
    assert!(
        !desk
            .store
            .webhook_endpoint_disable(id, "again")
            .await
            .unwrap()
    );
    assert!(desk.claim(false, 10, 10).await.is_empty());
    assert!(desk.store.webhook_targets(&[id]).await.unwrap().is_empty());
    desk.record(
        &under_way[0],
        Outcome::Retry(attempted(500), Duration::ZERO),
    )
    .await;
    let log = desk.log(id).await;
    assert!(
        log.iter()
            .all(|delivery| delivery.status == Status::Canceled)
    );
    desk.agent().await;
    assert_eq!(desk.log(id).await.len(), 3);

    let found = desk
        .store
        .webhook_endpoint_get(desk.owner(), id)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(found.endpoint.disabled_reason, "because");
    desk.turn(id, WebhookEndpointState::Enabled).await;
    let found = desk
        .store
        .webhook_endpoint_get(desk.owner(), id)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(found.endpoint.disabled_reason, "");
    assert!(desk.claim(false, 10, 10).await.is_empty());

    // But a client can have them.
    let since = Timestamp::from_micros(0);
    let statuses = [Status::Canceled];
    let count = desk
        .store
        .webhook_redeliver_since(desk.workspace, id, since, &statuses);
    assert_eq!(count.await.unwrap(), 3);
    assert_eq!(desk.claim(false, 10, 10).await.len(), 3);
}

#[sqlx::test(migrator = "crate::MIGRATOR")]
async fn an_endpoint_is_judged_by_time_and_number(pool: PgPool) {
    let desk = Desk::new(pool).await;
    let id = desk.endpoint(&[WebhookEventType::AgentCreated]).await;
    let health = async |succeeded, failures, after| {
        let judged = desk
            .store
            .webhook_endpoint_health(id, succeeded, failures, after);
        judged.await.unwrap()
    };
    let day = Duration::from_hours(24);
    assert!(!health(false, 20, (day, 10)).await);
    assert!(!health(false, 1, (Duration::ZERO, 30)).await);
    assert!(health(false, 1, (Duration::ZERO, 22)).await);
    desk.sql("UPDATE webhook_endpoints SET failing_since = failing_since - interval '25 hours'")
        .await;
    assert!(health(false, 1, (day, 10)).await);
    // It fails, so it is claimed with those that do.
    desk.agent().await;
    assert!(desk.claim(false, 10, 10).await.is_empty());
    assert_eq!(desk.claim(true, 10, 10).await.len(), 1);
    // One success, and a new row begins.
    assert!(!health(true, 1, (Duration::ZERO, 2)).await);
    assert!(!health(true, 0, (Duration::ZERO, 1)).await);
    let found = desk
        .store
        .webhook_endpoint_get(desk.owner(), id)
        .await
        .unwrap()
        .unwrap();
    assert_eq!((found.failing_since, found.consecutive_failures), (None, 0));
}

#[sqlx::test(migrator = "crate::MIGRATOR")]
async fn a_secret_is_sealed_and_has_a_successor(pool: PgPool) {
    let desk = Desk::new(pool).await;
    let id = desk.endpoint(&[WebhookEventType::AgentCreated]).await;
    let rotate = async |secret: &str, overlap| {
        let new = NewSecret {
            secret: SecretString::from(secret),
            overlap,
        };
        let actor = Actor::default();
        let rotated = desk
            .store
            .webhook_secret_rotate(desk.owner(), id, &new, &actor);
        rotated.await.unwrap().unwrap()
    };
    let secrets = async || {
        let targets = desk.store.webhook_targets(&[id]).await.unwrap();
        let secrets = targets[0].secrets.as_ref().unwrap();
        let secrets = secrets.iter().map(|s| s.expose_secret().to_owned());
        secrets.collect::<Vec<_>>()
    };
    assert_eq!(secrets().await, ["whsec_first"]);
    let hour = Duration::from_hours(1);
    assert!(rotate("whsec_second", hour).await.is_some());
    assert_eq!(secrets().await, ["whsec_second", "whsec_first"]);
    assert!(rotate("whsec_third", hour).await.is_some());
    assert_eq!(secrets().await, ["whsec_third", "whsec_second"]);
    assert!(rotate("whsec_fourth", Duration::ZERO).await.is_none());
    assert_eq!(secrets().await, ["whsec_fourth"]);
    rotate("whsec_fifth", hour).await;
    desk.sql("UPDATE webhook_secrets SET expires_at = expires_at - interval '2 hours'")
        .await;
    assert_eq!(secrets().await, ["whsec_fifth"]);
    let stored =
        sqlx::query_scalar!(r#"SELECT string_agg(ciphertext, '') AS "t!" FROM webhook_secrets"#);
    let stored = stored.fetch_one(&desk.pool).await.unwrap();
    assert!(!stored.windows(5).any(|window| window == b"whsec"));
}

#[sqlx::test(migrator = "crate::MIGRATOR")]
async fn there_are_32_and_no_more(pool: PgPool) {
    let desk = Desk::new(pool).await;
    let events = [WebhookEventType::AgentCreated];
    for _ in 0..31 {
        desk.endpoint(&events).await;
    }
    let (one, two) = tokio::join!(
        desk.create(desk.owner(), &events),
        desk.create(desk.owner(), &events)
    );
    assert!(one.is_ok() != two.is_ok());
    // Another's count is another's.
    let organization = WebhookOwner::Organization;
    assert!(
        desk.create(organization, &[WebhookEventType::ExternalKeyFailed])
            .await
            .is_ok()
    );
    let page = |order, start, limit| EndpointPage {
        order,
        start,
        limit,
    };
    let all = page(Order::Desc, EndpointStart::First, 100);
    let listed = desk
        .store
        .webhook_endpoint_list(desk.owner(), all)
        .await
        .unwrap();
    assert_eq!(listed.len(), 32);
    let id = listed[5].endpoint.id;
    desk.delete(id).await;
    let listed = desk
        .store
        .webhook_endpoint_list(desk.owner(), all)
        .await
        .unwrap();
    assert_eq!(listed.len(), 31);
    assert!(desk.create(desk.owner(), &events).await.is_ok());
}

#[sqlx::test(migrator = "crate::MIGRATOR")]
async fn old_deliveries_go_and_waiting_ones_stay(pool: PgPool) {
    let desk = Desk::new(pool).await;
    let id = desk.endpoint(&[WebhookEventType::AgentCreated]).await;
    for _ in 0..3 {
        desk.agent().await;
    }
    for delivery in desk.claim(false, 2, 2).await {
        desk.record(&delivery, Outcome::Delivered(attempted(200)))
            .await;
    }
    let week = Duration::from_hours(24 * 7);
    assert_eq!(desk.store.webhook_purge(week, 100).await.unwrap(), 0);
    let backlog = desk.store.webhook_backlog().await.unwrap();
    assert_eq!(
        (backlog.due, backlog.waiting, backlog.disabled_endpoints),
        (1, 0, 0)
    );
    // In chunks, deliveries and then their events. An id tells the time to the millisecond.
    let none = Duration::ZERO;
    loop {
        let now = desk.store.now().await.unwrap().as_micros() / 1000;
        if now > desk.log(id).await[0].created_at.as_micros() / 1000 + 1 {
            break;
        }
    }
    assert_eq!(desk.store.webhook_purge(none, 1).await.unwrap(), 2);
    assert_eq!(desk.store.webhook_purge(none, 1).await.unwrap(), 2);
    assert_eq!(desk.store.webhook_purge(none, 1).await.unwrap(), 0);
    assert_eq!(desk.log(id).await.len(), 1);
    desk.delete(id).await;
    assert_eq!(desk.store.webhook_purge(none, 100).await.unwrap(), 2);
    desk.sql("UPDATE webhook_endpoints SET deleted_at = deleted_at - interval '2 hours'")
        .await;
    assert_eq!(desk.store.webhook_purge(none, 100).await.unwrap(), 1);
}

#[sqlx::test(migrator = "crate::MIGRATOR")]
async fn the_log_of_attempts_is_bounded(pool: PgPool) {
    let desk = Desk::new(pool).await;
    let id = desk.endpoint(&[WebhookEventType::AgentCreated]).await;
    desk.agent().await;
    for number in 0..25 {
        let claimed = desk.claim(false, 1, 1).await;
        let outcome = Outcome::Retry(attempted(500 + number), Duration::ZERO);
        desk.record(&claimed[0], outcome).await;
    }
    let attempts = &desk.log(id).await[0].attempts;
    assert_eq!(attempts.len(), 20);
    assert_eq!(
        (attempts[0].status_code, attempts[19].status_code),
        (Some(505), Some(524))
    );
}
