//! What webhooks tell of: the names, and the body that is signed and sent.

use std::borrow::Cow;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use uuid::Uuid;

use crate::{
    EnvironmentId, MemoryStoreId, OrganizationId, SessionId, ThreadId, VaultId, WebhookEventId,
    WorkspaceId,
};

macro_rules! webhook_event_types {
    ($($variant:ident = $name:literal,)*) => {
        /// Every event that an endpoint can be subscribed to, in the order of the API's own list.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum WebhookEventType { $($variant,)* }

        impl WebhookEventType {
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            #[must_use]
            pub fn parse(text: &str) -> Option<Self> {
                match text { $($name => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

webhook_event_types! {
    SessionCreated = "session.created",
    SessionPending = "session.pending",
    SessionRunning = "session.running",
    SessionIdled = "session.idled",
    SessionRequiresAction = "session.requires_action",
    SessionArchived = "session.archived",
    SessionDeleted = "session.deleted",
    SessionStatusRescheduled = "session.status_rescheduled",
    SessionStatusRunStarted = "session.status_run_started",
    SessionStatusIdled = "session.status_idled",
    SessionStatusTerminated = "session.status_terminated",
    SessionThreadCreated = "session.thread_created",
    SessionThreadIdled = "session.thread_idled",
    SessionThreadTerminated = "session.thread_terminated",
    SessionOutcomeEvaluationEnded = "session.outcome_evaluation_ended",
    VaultCreated = "vault.created",
    VaultArchived = "vault.archived",
    VaultDeleted = "vault.deleted",
    VaultCredentialCreated = "vault_credential.created",
    VaultCredentialArchived = "vault_credential.archived",
    VaultCredentialDeleted = "vault_credential.deleted",
    VaultCredentialRefreshFailed = "vault_credential.refresh_failed",
    SessionUpdated = "session.updated",
    AgentCreated = "agent.created",
    AgentArchived = "agent.archived",
    AgentDeleted = "agent.deleted",
    DeploymentPaused = "deployment.paused",
    DeploymentRunFailed = "deployment_run.failed",
    DeploymentCreated = "deployment.created",
    DeploymentUpdated = "deployment.updated",
    DeploymentUnpaused = "deployment.unpaused",
    AgentUpdated = "agent.updated",
    DeploymentArchived = "deployment.archived",
    DeploymentRunStarted = "deployment_run.started",
    DeploymentDeleted = "deployment.deleted",
    DeploymentRunSucceeded = "deployment_run.succeeded",
    EnvironmentCreated = "environment.created",
    EnvironmentUpdated = "environment.updated",
    EnvironmentArchived = "environment.archived",
    EnvironmentDeleted = "environment.deleted",
    MemoryStoreCreated = "memory_store.created",
    MemoryStoreArchived = "memory_store.archived",
    MemoryStoreDeleted = "memory_store.deleted",
    SessionBudgetReached = "session.budget_reached",
    UserProfileEnforcementActionOpened = "user_profile.enforcement_action_opened",
    UserProfileEnforcementActionResolved = "user_profile.enforcement_action_resolved",
    UserProfileProgramStatusUpdated = "user_profile.program_status_updated",
    ExternalKeyFailed = "external_key.failed",
    ExternalKeyRecovered = "external_key.recovered",
}

impl WebhookEventType {
    /// Of the organization and not of a workspace: another list of endpoints hears of these.
    #[must_use]
    pub fn is_organizations(self) -> bool {
        let name = self.as_str();
        name.starts_with("user_profile.") || name.starts_with("external_key.")
    }

    /// Those of one kind of endpoint.
    pub fn of(organization: bool) -> impl Iterator<Item = Self> {
        let all = Self::ALL.iter().copied();
        all.filter(move |each| each.is_organizations() == organization)
    }
}

impl Serialize for WebhookEventType {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for WebhookEventType {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <Cow<'de, str>>::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| {
            de::Error::custom(format_args!(
                "`{}` is not an event of webhooks",
                crate::check::excerpt(&text)
            ))
        })
    }
}

impl utoipa::PartialSchema for WebhookEventType {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        utoipa::openapi::ObjectBuilder::new()
            .schema_type(utoipa::openapi::schema::Type::String)
            .enum_values(Some(Self::ALL.iter().map(|each| each.as_str())))
            .into()
    }
}

impl utoipa::ToSchema for WebhookEventType {}

/// Something that happened to a resource of a workspace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebhookEvent {
    pub event_type: WebhookEventType,
    /// The resource: of a thread's event it is the session, of a credential's the credential.
    pub id: String,
    /// With the events of threads.
    pub thread: Option<ThreadId>,
    /// With the events of credentials.
    pub vault: Option<VaultId>,
}

/// `data` of a body: what the receiver fetches the rest by.
#[derive(Serialize)]
struct Data<'a> {
    r#type: WebhookEventType,
    id: &'a str,
    organization_id: OrganizationId,
    workspace_id: WorkspaceId,
    #[serde(skip_serializing_if = "Option::is_none")]
    session_thread_id: Option<ThreadId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    vault_id: Option<VaultId>,
}

/// A body without its time, which the database puts between the two halves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WebhookBody {
    pub head: String,
    pub tail: String,
}

impl WebhookEvent {
    #[must_use]
    pub fn new(event_type: WebhookEventType, id: impl std::fmt::Display) -> Self {
        Self {
            event_type,
            id: id.to_string(),
            thread: None,
            vault: None,
        }
    }

    /// An event that never happened, to something that does not exist.
    #[must_use]
    pub fn sample(event_type: WebhookEventType) -> Self {
        let nil = Uuid::nil();
        let kind = event_type.as_str().split('.').next().unwrap_or_default();
        let prefix = match kind {
            "session" => SessionId::PREFIX,
            "environment" => EnvironmentId::PREFIX,
            "vault" => VaultId::PREFIX,
            "vault_credential" => "vcrd",
            "memory_store" => MemoryStoreId::PREFIX,
            "deployment" => "depl",
            "deployment_run" => "drun",
            other => other,
        };
        let session = SessionId(nil).to_string();
        let digits = session.trim_start_matches(SessionId::PREFIX);
        let event = Self::new(event_type, format_args!("{prefix}{digits}"));
        match kind {
            "session" if event_type.as_str().starts_with("session.thread_") => {
                event.thread(ThreadId(nil))
            }
            "vault_credential" => event.vault(VaultId(nil)),
            _ => event,
        }
    }

    /// Of a thread of the session.
    #[must_use]
    pub fn thread(mut self, thread: ThreadId) -> Self {
        self.thread = Some(thread);
        self
    }

    /// Of a credential of the vault.
    #[must_use]
    pub fn vault(mut self, vault: VaultId) -> Self {
        self.vault = Some(vault);
        self
    }

    /// The JSON text that is stored, signed and sent, but for its time.
    ///
    /// # Panics
    /// Never: it is made of strings.
    #[must_use]
    pub fn body(
        &self,
        event: WebhookEventId,
        organization: OrganizationId,
        workspace: WorkspaceId,
    ) -> WebhookBody {
        let data = serde_json::to_string(&Data {
            r#type: self.event_type,
            id: &self.id,
            organization_id: organization,
            workspace_id: workspace,
            session_thread_id: self.thread,
            vault_id: self.vault,
        })
        .expect("strings serialize");
        WebhookBody {
            head: format!(r#"{{"type":"event","id":"{event}","created_at":""#),
            tail: format!(r#"","data":{data}}}"#),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_has_all_49_names_and_each_reads_back() {
        assert_eq!(WebhookEventType::ALL.len(), 49);
        for each in WebhookEventType::ALL {
            assert_eq!(WebhookEventType::parse(each.as_str()), Some(*each));
        }
        assert_eq!(WebhookEventType::of(true).count(), 5);
    }

    #[test]
    fn a_body_is_thin_and_its_keys_have_an_order() {
        let nil = Uuid::nil();
        let event = WebhookEvent::new(WebhookEventType::SessionThreadIdled, "sesn_01x")
            .thread(ThreadId(nil));
        let body = event.body(WebhookEventId(nil), OrganizationId(nil), WorkspaceId(nil));
        let text = format!("{}2026-01-01T00:00:00Z{}", body.head, body.tail);
        assert_eq!(
            text,
            r#"{"type":"event","id":"whe_011111111111111111111111","created_at":"2026-01-01T00:00:00Z","data":{"type":"session.thread_idled","id":"sesn_01x","organization_id":"org_011111111111111111111111","workspace_id":"wrkspc_011111111111111111111111","session_thread_id":"sthr_011111111111111111111111"}}"#
        );
    }

    #[test]
    fn a_sample_has_the_ids_of_its_kind() {
        for (event_type, id) in [
            (
                WebhookEventType::SessionCreated,
                "sesn_011111111111111111111111",
            ),
            (
                WebhookEventType::AgentCreated,
                "agent_011111111111111111111111",
            ),
            (
                WebhookEventType::VaultCredentialDeleted,
                "vcrd_011111111111111111111111",
            ),
        ] {
            assert_eq!(WebhookEvent::sample(event_type).id, id);
        }
        let sample = WebhookEvent::sample;
        assert!(
            sample(WebhookEventType::SessionThreadIdled)
                .thread
                .is_some()
        );
        assert!(
            sample(WebhookEventType::VaultCredentialCreated)
                .vault
                .is_some()
        );
        assert!(sample(WebhookEventType::VaultCreated).vault.is_none());
    }
}
