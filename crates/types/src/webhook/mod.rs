//! Webhook endpoints: who is told of what, how that is going, and what was told.
//!
//! Endpoints of a workspace and of the organization are one shape. They differ in the events they can
//! name, and in how their lists are paged.

mod event;

pub use event::{WebhookBody, WebhookEvent, WebhookEventType};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use crate::{ApiError, Timestamp, WebhookEndpointId, WebhookEventId, check, wire};

const URL: std::ops::RangeInclusive<usize> = 1..=2048;
const NAME: std::ops::RangeInclusive<usize> = 0..=256;
const DESCRIPTION: std::ops::RangeInclusive<usize> = 0..=1024;
/// Longest time for which an old secret goes on signing beside a new one.
const MAX_OVERLAP_SECONDS: u32 = 7 * 24 * 60 * 60;

wire::literals! {
    WebhookEndpointDeletedType = "webhook_endpoint_deleted";
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum WebhookEndpointState {
    Enabled,
    Disabled,
}

impl WebhookEndpointState {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Enabled => "enabled",
            Self::Disabled => "disabled",
        }
    }
}

/// A webhook endpoint, as the API shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct WebhookEndpoint {
    pub id: WebhookEndpointId,
    pub url: String,
    /// Empty when none was given.
    pub name: String,
    /// Empty when none was given.
    pub description: String,
    pub enabled_events: Vec<WebhookEventType>,
    pub state: WebhookEndpointState,
    /// Why this server disabled it; empty when it did not.
    pub disabled_reason: String,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// A webhook endpoint of a workspace, with how it is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct WorkspaceWebhookEndpoint {
    #[serde(flatten)]
    pub endpoint: WebhookEndpoint,
    /// When the first of an unbroken row of failures was; null while the last attempt was a success.
    #[schema(required)]
    pub failing_since: Option<Timestamp>,
    /// Attempts in that row.
    pub consecutive_failures: u32,
}

/// A new endpoint, with the secret that is shown this once.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct NewWebhookEndpoint<T> {
    #[serde(flatten)]
    pub endpoint: T,
    /// `whsec_` and the key in base64. No other answer has it.
    pub signing_secret: String,
}

/// A new secret of an endpoint, shown this once.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct WebhookSigningSecret {
    pub signing_secret: String,
}

/// The same, with the time until which deliveries carry the old one's signature, too.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct RotatedWebhookSecret {
    pub signing_secret: String,
    /// Null when the old one has stopped at once.
    #[schema(required)]
    pub previous_valid_until: Option<Timestamp>,
}

/// The answer to a deletion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct DeletedWebhookEndpoint {
    pub id: WebhookEndpointId,
    #[schema(inline)]
    pub r#type: WebhookEndpointDeletedType,
}

// Requests ---------------------------------------------------------------------------------------

/// Values of an endpoint that clients choose, valid by themselves. Whether its URL may be used is for
/// the server to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebhookEndpointSpec {
    pub url: String,
    pub name: String,
    pub description: String,
    pub enabled_events: Vec<WebhookEventType>,
}

#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateWebhookEndpoint {
    /// Where deliveries are sent: `https://`, port 443, a public host.
    pub url: String,
    /// What to send, at least one.
    #[schema(min_items = 1)]
    pub enabled_events: Vec<WebhookEventType>,
    pub name: Option<String>,
    pub description: Option<String>,
}

/// Only what is given changes.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateWebhookEndpoint {
    pub url: Option<String>,
    /// Replaces the whole list; an empty one changes nothing.
    pub enabled_events: Option<Vec<WebhookEventType>>,
    pub name: Option<String>,
    pub description: Option<String>,
    /// `enabled` also clears `disabled_reason`. What happens while it is disabled is never sent.
    pub state: Option<WebhookEndpointState>,
}

#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RotateWebhookSecret {
    /// For how long deliveries also carry a signature by the old secret, seconds. 0: it stops at once.
    /// The server's own setting when absent.
    #[schema(maximum = 604_800)]
    pub overlap_seconds: Option<u32>,
}

#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SendTestEvent {
    /// One of the endpoint's own; its first one when absent.
    pub event_type: Option<WebhookEventType>,
}

#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RedeliverWebhooks {
    /// Deliveries of events from this time on.
    pub since: Timestamp,
    /// Which of them; `failed` and `canceled` when absent.
    pub statuses: Option<Vec<WebhookDeliveryStatus>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct RedeliveredWebhooks {
    /// How many deliveries begin anew.
    pub redelivered: u64,
}

impl CreateWebhookEndpoint {
    /// # Errors
    /// What is wrong with a value.
    pub fn resolve(self, organization: bool) -> Result<WebhookEndpointSpec, ApiError> {
        let spec = WebhookEndpointSpec {
            url: self.url,
            name: self.name.unwrap_or_default(),
            description: self.description.unwrap_or_default(),
            enabled_events: self.enabled_events,
        };
        spec.check(organization)
    }
}

impl UpdateWebhookEndpoint {
    /// What it makes of an endpoint: its values and its state.
    ///
    /// # Errors
    /// What is wrong with a value.
    pub fn change(
        &self,
        endpoint: &WebhookEndpoint,
        organization: bool,
    ) -> Result<(WebhookEndpointSpec, WebhookEndpointState), ApiError> {
        let events = self.enabled_events.as_ref();
        let spec = WebhookEndpointSpec {
            url: self.url.as_ref().unwrap_or(&endpoint.url).clone(),
            name: self.name.as_ref().unwrap_or(&endpoint.name).clone(),
            description: self
                .description
                .as_ref()
                .unwrap_or(&endpoint.description)
                .clone(),
            enabled_events: events
                .filter(|events| !events.is_empty())
                .unwrap_or(&endpoint.enabled_events)
                .clone(),
        };
        Ok((
            spec.check(organization)?,
            self.state.unwrap_or(endpoint.state),
        ))
    }
}

impl RotateWebhookSecret {
    /// # Errors
    /// A time that is too long.
    pub fn validate(&self) -> Result<(), ApiError> {
        match self.overlap_seconds {
            Some(seconds) if seconds > MAX_OVERLAP_SECONDS => Err(ApiError::invalid(format!(
                "overlap_seconds: must be at most {MAX_OVERLAP_SECONDS}"
            ))),
            _ => Ok(()),
        }
    }
}

impl RedeliverWebhooks {
    /// Which deliveries are meant.
    ///
    /// # Errors
    /// An empty list, and `pending`: these are on their way.
    pub fn statuses(&self) -> Result<Vec<WebhookDeliveryStatus>, ApiError> {
        use WebhookDeliveryStatus::{Canceled, Failed, Pending};
        let Some(statuses) = &self.statuses else {
            return Ok(vec![Failed, Canceled]);
        };
        check::count("statuses", statuses.len(), 1..=3)?;
        if statuses.contains(&Pending) {
            return Err(ApiError::invalid(
                "statuses: `pending` deliveries are on their way; name `failed`, `canceled` or `delivered`",
            ));
        }
        Ok(statuses.clone())
    }
}

impl WebhookEndpointSpec {
    fn check(mut self, organization: bool) -> Result<Self, ApiError> {
        check::text("url", &self.url, URL)?;
        check::text("name", &self.name, NAME)?;
        check::text("description", &self.description, DESCRIPTION)?;
        let count = self.enabled_events.len();
        check::count("enabled_events", count, 1..=WebhookEventType::ALL.len())?;
        for (index, event) in self.enabled_events.iter().enumerate() {
            if event.is_organizations() != organization {
                let known: Vec<_> = WebhookEventType::of(organization)
                    .map(WebhookEventType::as_str)
                    .collect();
                let whose = if organization {
                    "the organization"
                } else {
                    "a workspace"
                };
                return Err(ApiError::invalid(format!(
                    "enabled_events[{index}]: endpoints of {whose} cannot have `{}`; they know `{}`",
                    event.as_str(),
                    known.join("`, `")
                )));
            }
        }
        let mut seen = std::collections::HashSet::new();
        self.enabled_events.retain(|event| seen.insert(*event));
        Ok(self)
    }
}

// The log of deliveries ---------------------------------------------------------------------------

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum WebhookDeliveryStatus {
    /// Waits for its first or next attempt, or is on its way.
    Pending,
    /// The endpoint has answered with a 2xx.
    Delivered,
    /// Given up after its last attempt.
    Failed,
    /// Given up because the endpoint was disabled.
    Canceled,
}

impl WebhookDeliveryStatus {
    pub const ALL: [Self; 4] = [Self::Pending, Self::Delivered, Self::Failed, Self::Canceled];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Delivered => "delivered",
            Self::Failed => "failed",
            Self::Canceled => "canceled",
        }
    }

    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|each| each.as_str() == text)
    }
}

/// One event on its way to one endpoint.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct WebhookDelivery {
    /// The event's id, as in the header `webhook-id`: it tells a delivery from the endpoint's others.
    pub id: WebhookEventId,
    pub event_type: WebhookEventType,
    pub status: WebhookDeliveryStatus,
    /// When it is tried next; null when it is over.
    #[schema(required)]
    pub next_attempt_at: Option<Timestamp>,
    /// Oldest first: the latest twenty, those before a redelivery included.
    pub attempts: Vec<WebhookAttempt>,
    /// The body, as it is sent.
    #[schema(value_type = Object)]
    pub event: Box<RawValue>,
    /// When the event happened.
    pub created_at: Timestamp,
}

/// One request to an endpoint, and what came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WebhookAttempt {
    pub at: Timestamp,
    pub duration_ms: u32,
    /// Null without an answer.
    #[schema(required)]
    pub status_code: Option<u16>,
    /// Why there was no answer, or what was wrong with it; null after a success.
    #[schema(required)]
    pub error: Option<String>,
    /// The beginning of the answer's body, for people.
    pub response: String,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn create(body: serde_json::Value) -> Result<WebhookEndpointSpec, String> {
        let body: CreateWebhookEndpoint =
            serde_json::from_value(body).map_err(|error| error.to_string())?;
        body.resolve(false).map_err(|error| error.message.into())
    }

    #[test]
    fn an_endpoint_needs_events_of_its_kind() {
        let url = "https://example.com/";
        let made = create(json!({"url": url, "enabled_events":
            ["session.updated", "agent.created", "session.updated"]}));
        let made = made.unwrap();
        assert_eq!(
            made.enabled_events,
            [
                WebhookEventType::SessionUpdated,
                WebhookEventType::AgentCreated
            ]
        );
        assert_eq!((&*made.name, &*made.description), ("", ""));
        for (body, wanted) in [
            (json!({"url": url, "enabled_events": []}), "at least 1"),
            (
                json!({"url": url, "enabled_events": ["session.x"]}),
                "`session.x`",
            ),
            (
                json!({"url": url, "enabled_events": ["external_key.failed"]}),
                "a workspace",
            ),
            (json!({"url": url}), "missing field `enabled_events`"),
            (
                json!({"url": "", "enabled_events": ["session.updated"]}),
                "url: ",
            ),
            (
                json!({"url": url, "enabled_events": ["session.updated"], "x": 1}),
                "unknown field",
            ),
        ] {
            let error = create(body).unwrap_err();
            assert!(error.contains(wanted), "{error}");
        }
    }

    #[test]
    fn an_update_changes_what_it_names() {
        let at = Timestamp::from_micros(0);
        let endpoint = WebhookEndpoint {
            id: WebhookEndpointId::new(),
            url: "https://a.example/".to_owned(),
            name: "a".to_owned(),
            description: String::new(),
            enabled_events: vec![WebhookEventType::SessionUpdated],
            state: WebhookEndpointState::Disabled,
            disabled_reason: String::new(),
            created_at: at,
            updated_at: at,
        };
        let update: UpdateWebhookEndpoint =
            serde_json::from_value(json!({"enabled_events": [], "name": "b"})).unwrap();
        let (spec, state) = update.change(&endpoint, false).unwrap();
        assert_eq!((&*spec.url, &*spec.name), ("https://a.example/", "b"));
        assert_eq!(spec.enabled_events, endpoint.enabled_events);
        assert_eq!(state, WebhookEndpointState::Disabled);
        assert!(update.change(&endpoint, true).is_err());
    }

    #[test]
    fn what_is_on_its_way_is_not_sent_again() {
        let parse = |statuses| -> RedeliverWebhooks {
            serde_json::from_value(json!({"since": "2026-01-01T00:00:00Z", "statuses": statuses}))
                .unwrap()
        };
        assert_eq!(parse(json!(null)).statuses().unwrap().len(), 2);
        assert_eq!(parse(json!(["delivered"])).statuses().unwrap().len(), 1);
        assert!(parse(json!([])).statuses().is_err());
        assert!(parse(json!(["pending"])).statuses().is_err());
        let overlap = |seconds| RotateWebhookSecret {
            overlap_seconds: Some(seconds),
        };
        assert!(overlap(604_800).validate().is_ok() && overlap(604_801).validate().is_err());
    }
}
