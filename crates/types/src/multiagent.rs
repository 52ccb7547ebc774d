//! Agents that direct other agents. Requests are read in full, and refused until this server offers
//! them: a coordinator saved without its roster would be a different agent.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::{AgentId, ApiError, agent::ThreadAgent, check, wire};

wire::literals! {
    CoordinatorType = "coordinator";
    Multiagent20261001Type = "multiagent_20261001";
    AgentReferenceType = "agent";
    SelfType = "self";
    AdvisorType = "advisor";
    EnabledType = "enabled";
    DisabledType = "disabled";
}

// Requests ---------------------------------------------------------------------------------------

#[derive(Debug, Clone, PartialEq, Eq, ToSchema)]
#[serde(untagged)]
#[schema(discriminator(property_name = "type", mapping(
    ("coordinator" = "#/components/schemas/CoordinatorParams"),
    ("multiagent_20261001" = "#/components/schemas/Multiagent20261001Params"),
)))]
pub enum MultiagentParams {
    Coordinator(CoordinatorParams),
    Multiagent20261001(Multiagent20261001Params),
}

wire::tagged_union! { MultiagentParams:
    "coordinator" => Coordinator,
    "multiagent_20261001" => Multiagent20261001,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CoordinatorParams {
    #[schema(inline)]
    pub r#type: CoordinatorType,
    #[schema(min_items = 1, max_items = 20)]
    pub agents: Vec<RosterEntryParams>,
}

/// An agent id, or an object.
#[derive(Debug, Clone, PartialEq, Eq, ToSchema)]
#[serde(untagged)]
pub enum RosterEntryParams {
    Id(String),
    Agent(AgentReferenceParams),
    Itself(SelfParams),
    Advisor(Advisor),
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AgentReferenceParams {
    #[schema(inline)]
    pub r#type: AgentReferenceType,
    #[schema(min_length = 1, max_length = 128)]
    pub id: String,
    #[schema(minimum = 1)]
    pub version: Option<i64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SelfParams {
    #[schema(inline)]
    pub r#type: SelfType,
}

/// A model that the agent may ask for advice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Advisor {
    #[schema(inline)]
    pub r#type: AdvisorType,
    pub model: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Multiagent20261001Params {
    #[schema(inline)]
    pub r#type: Multiagent20261001Type,
    pub advisor: Option<AdvisorSettingParams>,
    pub subagents: Option<DelegationParams>,
    pub workflows: Option<DelegationParams>,
}

#[derive(Debug, Clone, PartialEq, Eq, ToSchema)]
#[serde(untagged)]
pub enum AdvisorSettingParams {
    Enabled(AdvisorEnabledParams),
    Disabled(Disabled),
}

wire::tagged_union! { AdvisorSettingParams:
    "enabled" => Enabled,
    "disabled" => Disabled,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AdvisorEnabledParams {
    #[schema(inline)]
    pub r#type: EnabledType,
    pub model: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Disabled {
    #[schema(inline)]
    pub r#type: DisabledType,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Enabled {
    #[schema(inline)]
    pub r#type: EnabledType,
}

#[derive(Debug, Clone, PartialEq, Eq, ToSchema)]
#[serde(untagged)]
pub enum DelegationParams {
    Enabled(DelegationEnabledParams),
    Disabled(Disabled),
}

wire::tagged_union! { DelegationParams:
    "enabled" => Enabled,
    "disabled" => Disabled,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DelegationEnabledParams {
    #[schema(inline)]
    pub r#type: EnabledType,
    pub inline_agents: Option<SwitchParams>,
    #[schema(max_items = 20)]
    pub predefined_agents: Option<Vec<RosterEntryParams>>,
}

#[derive(Debug, Clone, PartialEq, Eq, ToSchema)]
#[serde(untagged)]
pub enum SwitchParams {
    Enabled(Enabled),
    Disabled(Disabled),
}

wire::tagged_union! { SwitchParams:
    "enabled" => Enabled,
    "disabled" => Disabled,
}

impl<'de> Deserialize<'de> for RosterEntryParams {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        if let Value::String(id) = value {
            return Ok(Self::Id(id));
        }
        match wire::tag::<D::Error>(&value)?.as_str() {
            "agent" => wire::from_value(value).map(Self::Agent),
            "self" => wire::from_value(value).map(Self::Itself),
            "advisor" => wire::from_value(value).map(Self::Advisor),
            other => Err(wire::unknown_tag(other, &["agent", "self", "advisor"])),
        }
    }
}

impl MultiagentParams {
    /// Refuses it: first for what is wrong with it, then because it is not offered.
    pub(crate) fn refuse(&self) -> ApiError {
        if let Self::Coordinator(coordinator) = self
            && let Err(error) = check::count("multiagent.agents", coordinator.agents.len(), 1..=20)
        {
            return error;
        }
        ApiError::not_implemented(
            "multiagent: this server does not offer multiagent sessions; leave `multiagent` out or \
             set it to null",
        )
    }
}

// Responses --------------------------------------------------------------------------------------

/// The roster of a coordinator, every reference pinned to a version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Coordinator {
    #[schema(inline)]
    pub r#type: CoordinatorType,
    pub agents: Vec<RosterEntry>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(untagged)]
pub enum RosterEntry {
    Agent(AgentReference),
    Advisor(Advisor),
}

wire::tagged_union! { RosterEntry:
    "agent" => Agent,
    "advisor" => Advisor,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AgentReference {
    #[schema(inline)]
    pub r#type: AgentReferenceType,
    pub id: AgentId,
    pub version: i32,
}

/// The roster inside a session: whole definitions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SessionCoordinator {
    #[schema(inline)]
    pub r#type: CoordinatorType,
    pub agents: Vec<SessionRosterEntry>,
}

#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(untagged)]
pub enum SessionRosterEntry {
    Agent(Box<ThreadAgent>),
    Advisor(Advisor),
}

wire::tagged_union! { SessionRosterEntry:
    "agent" => Agent,
    "advisor" => Advisor,
}
