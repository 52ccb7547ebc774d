//! Webhooks: the outbox, the endpoints, the deliveries.
//!
//! Every function that changes something an endpoint can be subscribed to calls `webhook_emit` of the
//! database in the transaction of the change, or in its very statement ([`Store::happened`] makes the
//! argument). It looks for the endpoints subscribed at that moment and writes the event and one delivery
//! for each. So what is rolled back is told to nobody, and what is committed is told at least once.

mod deliveries;
mod endpoints;
mod upkeep;

pub use deliveries::{
    ClaimLimits, ClaimedDelivery, DeliveryFilter, DeliveryResult, Outcome, WebhookTarget,
};
pub use endpoints::{
    ENDPOINT_LIMIT, EndpointPage, EndpointStart, NewSecret, WebhookOwner, WebhookRefusal,
};
pub use upkeep::WebhookBacklog;

use selfsame_types::{
    OrganizationId, SessionId, ThreadId, Timestamp, WebhookEventId, WorkspaceId,
    event::{EventType, NewEvent},
    webhook::{WebhookEvent, WebhookEventType},
};
use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, types::Json};
use tokio::sync::{Notify, OnceCell};
use uuid::Uuid;

use crate::{End, Store, StoreError, agents::column};

/// What the parts of this process share about webhooks.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    organization: OnceCell<OrganizationId>,
    due: Notify,
}

/// The argument `happened` of `webhook_emit`; `None` for nothing.
pub(crate) type Happened = Option<Json<Vec<Entry>>>;

#[derive(Debug, Serialize)]
pub(crate) struct Entry {
    id: Uuid,
    r#type: WebhookEventType,
    head: String,
    tail: String,
}

impl Store {
    /// What `webhook_emit` is to be told of these events.
    pub(crate) async fn happened(
        &self,
        workspace: WorkspaceId,
        events: &[WebhookEvent],
    ) -> Result<Happened, StoreError> {
        if events.is_empty() {
            return Ok(None);
        }
        let organization = self.organization().await?;
        let entry = |event: &WebhookEvent| {
            let id = WebhookEventId::new();
            let body = event.body(id, organization, workspace);
            Entry {
                id: id.0,
                r#type: event.event_type,
                head: body.head,
                tail: body.tail,
            }
        };
        Ok(Some(Json(events.iter().map(entry).collect())))
    }

    /// Asked of the database once.
    async fn organization(&self) -> Result<OrganizationId, StoreError> {
        let known = self.webhooks.organization.get_or_try_init(|| async {
            let deployment = self.deployment_get().await?;
            Ok::<_, StoreError>(deployment.map_or(OrganizationId(Uuid::nil()), |d| d.organization))
        });
        known.await.copied()
    }

    /// To be told the answer of `webhook_emit` after the commit: wakes those who deliver.
    pub(crate) fn emitted(&self, deliveries: Option<i32>) {
        if deliveries.is_some_and(|count| count > 0) {
            self.webhooks.due.notify_one();
        }
    }

    /// Waits until a delivery has become due through this process. Others are found by looking.
    pub async fn webhooks_due(&self) {
        self.webhooks.due.notified().await;
    }

    /// Wakes those who deliver: something is due although nothing happened.
    pub(crate) fn webhooks_wake(&self) {
        self.webhooks.due.notify_one();
    }
}

/// Tells the outbox of what a transaction has done, as of `at`, or as of now. What it answers is for
/// [`Store::emitted`], after the commit.
pub(crate) async fn emit(
    tx: &mut PgConnection,
    store: &Store,
    workspace: WorkspaceId,
    at: Option<Timestamp>,
    events: &[WebhookEvent],
) -> Result<Option<i32>, StoreError> {
    let happened = store.happened(workspace, events).await?;
    if happened.is_none() {
        return Ok(None);
    }
    let queued = sqlx::query_scalar!(
        "SELECT webhook_emit($1, COALESCE($2, clock_timestamp()), $3)",
        workspace.0,
        at.map(column) as _,
        happened as _,
    )
    .fetch_one(tx)
    .await?;
    Ok(queued)
}

/// What an append means to receivers.
pub(crate) fn of_session(
    session: SessionId,
    primary: ThreadId,
    events: &[NewEvent],
    end: Option<End>,
) -> Vec<WebhookEvent> {
    use WebhookEventType as Hook;
    let mut told = Vec::new();
    for event in events {
        let child = || child(event, primary);
        match event.event_type {
            EventType::SessionStatusRunning => {
                told.push(WebhookEvent::new(Hook::SessionStatusRunStarted, session));
                told.push(WebhookEvent::new(Hook::SessionRunning, session));
            }
            EventType::SessionStatusIdle => {
                told.push(WebhookEvent::new(Hook::SessionStatusIdled, session));
                let waits = stop_reason(event).as_deref() == Some("requires_action");
                let name = if waits {
                    Hook::SessionRequiresAction
                } else {
                    Hook::SessionIdled
                };
                told.push(WebhookEvent::new(name, session));
            }
            EventType::SessionStatusRescheduled => {
                told.push(WebhookEvent::new(Hook::SessionStatusRescheduled, session));
            }
            EventType::SessionStatusTerminated => {
                told.push(WebhookEvent::new(Hook::SessionStatusTerminated, session));
            }
            EventType::SessionUpdated => {
                told.push(WebhookEvent::new(Hook::SessionUpdated, session));
            }
            EventType::SpanOutcomeEvaluationEnd => {
                let name = Hook::SessionOutcomeEvaluationEnded;
                told.push(WebhookEvent::new(name, session));
            }
            EventType::SessionThreadCreated => {
                told.extend(thread(Hook::SessionThreadCreated, session, child()));
            }
            EventType::SessionThreadStatusIdle => {
                told.extend(thread(Hook::SessionThreadIdled, session, child()));
            }
            EventType::SessionThreadStatusTerminated => {
                told.extend(thread(Hook::SessionThreadTerminated, session, child()));
            }
            _ => {}
        }
    }
    match end {
        Some(End::Archive) => told.push(WebhookEvent::new(Hook::SessionArchived, session)),
        Some(End::Delete) => told.push(WebhookEvent::new(Hook::SessionDeleted, session)),
        None => {}
    }
    told
}

fn thread(
    event_type: WebhookEventType,
    session: SessionId,
    child: Option<ThreadId>,
) -> Option<WebhookEvent> {
    child.map(|thread| WebhookEvent::new(event_type, session).thread(thread))
}

/// The thread that an event is about, unless it is the primary one, of which receivers hear nothing.
fn child(event: &NewEvent, primary: ThreadId) -> Option<ThreadId> {
    #[derive(Deserialize)]
    struct Fields {
        session_thread_id: Option<ThreadId>,
    }
    let fields: Option<Fields> = fields(event);
    let thread = fields
        .and_then(|fields| fields.session_thread_id)
        .unwrap_or(event.thread);
    (thread != primary).then_some(thread)
}

fn stop_reason(event: &NewEvent) -> Option<String> {
    #[derive(Deserialize)]
    struct Fields {
        stop_reason: Reason,
    }
    #[derive(Deserialize)]
    struct Reason {
        r#type: String,
    }
    let fields: Option<Fields> = fields(event);
    fields.map(|fields| fields.stop_reason.r#type)
}

fn fields<T: serde::de::DeserializeOwned>(event: &NewEvent) -> Option<T> {
    serde_json::from_str(&format!("{{{}}}", event.fields)).ok()
}

#[cfg(test)]
mod tests;
