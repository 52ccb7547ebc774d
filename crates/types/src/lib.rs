//! The public API as Rust types: what a request may say, what a response looks like, and the rules
//! that need nothing but the value itself. No I/O.
//!
//! Request types refuse unknown fields; response types write every nullable key. Rules that span
//! fields are methods named `validate` and answer [`ApiError`] with a message that says what to do.

pub mod agent;
mod check;
pub mod content;
pub mod environment;
pub mod error;
pub mod event;
pub mod file;
pub mod ids;
pub mod inbound;
pub mod metadata;
pub mod model;
pub mod multiagent;
pub mod outcome;
pub mod page;
pub mod patch;
pub mod session;
pub mod skill;
pub mod thread;
pub mod time;
pub mod tool;
pub mod vault;
pub mod webhook;
mod wire;

pub use error::{ApiError, ErrorKind};
pub use ids::*;
pub use metadata::{EmptyValue, Metadata, MetadataPatch};
pub use page::{Order, Page, Position, TwoWayPage};
pub use patch::Patch;
pub use time::Timestamp;

#[cfg(test)]
mod tests {
    use utoipa::OpenApi;

    #[derive(OpenApi)]
    #[openapi(components(schemas(
        crate::agent::Agent,
        crate::agent::CreateAgent,
        crate::agent::UpdateAgent,
        crate::environment::CreateEnvironment,
        crate::environment::Environment,
        crate::environment::UpdateEnvironment,
        crate::inbound::InboundEventParams,
        crate::inbound::SendEvents,
        crate::session::CreateSession,
        crate::session::Session,
        crate::session::UpdateSession,
        crate::skill::SkillVersionView,
        crate::skill::SkillView,
        crate::thread::Thread,
        crate::vault::CreateCredential,
        crate::vault::CreateVault,
        crate::vault::Credential,
        crate::vault::CredentialValidation,
        crate::vault::UpdateCredential,
        crate::vault::UpdateVault,
        crate::vault::Vault,
        crate::webhook::CreateWebhookEndpoint,
        crate::webhook::WebhookDelivery,
        crate::webhook::WebhookEndpoint,
    )))]
    struct Document;

    /// Discriminator mappings are strings: nothing else holds them to the names of types.
    #[test]
    fn every_reference_of_the_schemas_leads_somewhere() {
        let document = serde_json::to_value(Document::openapi()).unwrap();
        let mut open = vec![&document];
        let mut references = 0;
        while let Some(value) = open.pop() {
            match value {
                serde_json::Value::Object(object) => open.extend(object.values()),
                serde_json::Value::Array(list) => open.extend(list),
                serde_json::Value::String(text) if text.starts_with("#/") => {
                    references += 1;
                    assert!(document.pointer(&text[1..]).is_some(), "{text}");
                }
                _ => {}
            }
        }
        assert!(references > 100);
    }
}
