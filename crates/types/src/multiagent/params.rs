//! What requests say about agents that direct other agents.

use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::{
    Advisor, AdvisorEnabled, AgentReferenceType, CoordinatorType, Disabled, Enabled, EnabledType,
    Multiagent20261001Type, SelfType, Switch,
};
use crate::{Patch, wire};

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

/// In an update it replaces what was there as a whole.
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

/// The same without an advisor.
#[derive(Debug, Clone, PartialEq, Eq, ToSchema)]
#[serde(untagged)]
pub enum PredefinedAgentParams {
    Id(String),
    Agent(AgentReferenceParams),
    Itself(SelfParams),
}

/// A version of an agent; without `version`: the one that is the latest now.
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

/// The agent whose configuration this is: it may work with copies of itself.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SelfParams {
    #[schema(inline)]
    pub r#type: SelfType,
}

/// In an update of an agent that has this type already, what is absent stays; null takes the default.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Multiagent20261001Params {
    #[schema(inline)]
    pub r#type: Multiagent20261001Type,
    /// Default: disabled.
    #[serde(default)]
    #[schema(value_type = Option<AdvisorSettingParams>)]
    pub advisor: Patch<AdvisorSettingParams>,
    /// Default: enabled.
    #[serde(default)]
    #[schema(value_type = Option<DelegationParams>)]
    pub subagents: Patch<DelegationParams>,
    /// Default: enabled. Kept and shown; this server starts no workflow runs.
    #[serde(default)]
    #[schema(value_type = Option<DelegationParams>)]
    pub workflows: Patch<DelegationParams>,
}

#[derive(Debug, Clone, PartialEq, Eq, ToSchema)]
#[serde(untagged)]
#[schema(discriminator(property_name = "type", mapping(
    ("enabled" = "#/components/schemas/AdvisorEnabled"),
    ("disabled" = "#/components/schemas/Disabled"),
)))]
pub enum AdvisorSettingParams {
    Enabled(AdvisorEnabled),
    Disabled(Disabled),
}

wire::tagged_union! { AdvisorSettingParams:
    "enabled" => Enabled,
    "disabled" => Disabled,
}

#[derive(Debug, Clone, PartialEq, Eq, ToSchema)]
#[serde(untagged)]
#[schema(discriminator(property_name = "type", mapping(
    ("enabled" = "#/components/schemas/DelegationEnabledParams"),
    ("disabled" = "#/components/schemas/Disabled"),
)))]
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
    /// Default: enabled.
    #[serde(default)]
    #[schema(value_type = Option<SwitchParams>)]
    pub inline_agents: Patch<SwitchParams>,
    /// Null and an empty list both mean none.
    #[serde(default)]
    #[schema(value_type = Option<Vec<PredefinedAgentParams>>)]
    pub predefined_agents: Patch<Vec<PredefinedAgentParams>>,
}

#[derive(Debug, Clone, PartialEq, Eq, ToSchema)]
#[serde(untagged)]
#[schema(discriminator(property_name = "type", mapping(
    ("enabled" = "#/components/schemas/Enabled"),
    ("disabled" = "#/components/schemas/Disabled"),
)))]
pub enum SwitchParams {
    Enabled(Enabled),
    Disabled(Disabled),
}

wire::tagged_union! { SwitchParams:
    "enabled" => Enabled,
    "disabled" => Disabled,
}

impl From<SwitchParams> for Switch {
    fn from(params: SwitchParams) -> Self {
        match params {
            SwitchParams::Enabled(enabled) => Self::Enabled(enabled),
            SwitchParams::Disabled(disabled) => Self::Disabled(disabled),
        }
    }
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

impl<'de> Deserialize<'de> for PredefinedAgentParams {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        if let Value::String(id) = value {
            return Ok(Self::Id(id));
        }
        match wire::tag::<D::Error>(&value)?.as_str() {
            "agent" => wire::from_value(value).map(Self::Agent),
            "self" => wire::from_value(value).map(Self::Itself),
            other => Err(wire::unknown_tag(other, &["agent", "self"])),
        }
    }
}

impl From<PredefinedAgentParams> for RosterEntryParams {
    fn from(params: PredefinedAgentParams) -> Self {
        match params {
            PredefinedAgentParams::Id(id) => Self::Id(id),
            PredefinedAgentParams::Agent(agent) => Self::Agent(agent),
            PredefinedAgentParams::Itself(itself) => Self::Itself(itself),
        }
    }
}
