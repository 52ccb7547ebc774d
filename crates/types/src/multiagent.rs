//! Agents that direct other agents: as they are saved and shown, and the copies inside a session.

mod params;
mod resolve;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use params::{
    AdvisorSettingParams, AgentReferenceParams, CoordinatorParams, DelegationEnabledParams,
    DelegationParams, Multiagent20261001Params, MultiagentParams, PredefinedAgentParams,
    RosterEntryParams, SelfParams, SwitchParams,
};
pub use resolve::{Members, Reference};
pub(crate) use resolve::{check_agent, check_session};

use crate::{AgentId, agent::ThreadAgent, wire};

/// The name under which threads of an advisor are shown.
pub const ADVISOR: &str = "anthropic.advisor";

/// What the server offers to the model of an agent that directs others. Custom tools of such an agent
/// have other names.
pub const COORDINATION_TOOLS: [&str; 4] = [
    "list_agents",
    "create_agent",
    "send_to_agent",
    "consult_advisor",
];

wire::literals! {
    CoordinatorType = "coordinator";
    Multiagent20261001Type = "multiagent_20261001";
    AgentReferenceType = "agent";
    SelfType = "self";
    AdvisorType = "advisor";
    EnabledType = "enabled";
    DisabledType = "disabled";
}

// As saved ---------------------------------------------------------------------------------------

/// Every reference is pinned to a version. An agent among its own members is itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(untagged)]
#[schema(discriminator(property_name = "type", mapping(
    ("coordinator" = "#/components/schemas/Coordinator"),
    ("multiagent_20261001" = "#/components/schemas/Multiagent20261001"),
)))]
pub enum Multiagent {
    Coordinator(Coordinator),
    Multiagent20261001(Multiagent20261001),
}

wire::tagged_union! { Multiagent:
    "coordinator" => Coordinator,
    "multiagent_20261001" => Multiagent20261001,
}

/// An advisor comes last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Coordinator {
    #[schema(inline)]
    pub r#type: CoordinatorType,
    pub agents: Vec<RosterEntry>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(untagged)]
#[schema(discriminator(property_name = "type", mapping(
    ("agent" = "#/components/schemas/AgentReference"),
    ("advisor" = "#/components/schemas/Advisor"),
)))]
pub enum RosterEntry {
    Agent(AgentReference),
    Advisor(Advisor),
}

wire::tagged_union! { RosterEntry:
    "agent" => Agent,
    "advisor" => Advisor,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AgentReference {
    #[schema(inline)]
    pub r#type: AgentReferenceType,
    pub id: AgentId,
    pub version: i32,
}

impl AgentReference {
    #[must_use]
    pub fn new(id: AgentId, version: i32) -> Self {
        Self {
            r#type: AgentReferenceType,
            id,
            version,
        }
    }
}

/// A model that the agent may ask for advice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Advisor {
    #[schema(inline)]
    pub r#type: AdvisorType,
    #[schema(min_length = 1, max_length = 256)]
    pub model: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Multiagent20261001 {
    #[schema(inline)]
    pub r#type: Multiagent20261001Type,
    /// Whether the session's primary thread can ask a model for advice.
    pub advisor: AdvisorSetting,
    /// Whether the agent can start threads.
    pub subagents: Delegation,
    /// Whether the agent can start workflow runs.
    pub workflows: Delegation,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(untagged)]
#[schema(discriminator(property_name = "type", mapping(
    ("enabled" = "#/components/schemas/AdvisorEnabled"),
    ("disabled" = "#/components/schemas/Disabled"),
)))]
pub enum AdvisorSetting {
    Enabled(AdvisorEnabled),
    Disabled(Disabled),
}

wire::tagged_union! { AdvisorSetting:
    "enabled" => Enabled,
    "disabled" => Disabled,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AdvisorEnabled {
    #[schema(inline)]
    pub r#type: EnabledType,
    #[schema(min_length = 1, max_length = 256)]
    pub model: String,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Disabled {
    #[schema(inline)]
    pub r#type: DisabledType,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Enabled {
    #[schema(inline)]
    pub r#type: EnabledType,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(untagged)]
#[schema(discriminator(property_name = "type", mapping(
    ("enabled" = "#/components/schemas/DelegationEnabled"),
    ("disabled" = "#/components/schemas/Disabled"),
)))]
pub enum Delegation {
    Enabled(DelegationEnabled),
    Disabled(Disabled),
}

wire::tagged_union! { Delegation:
    "enabled" => Enabled,
    "disabled" => Disabled,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DelegationEnabled {
    #[schema(inline)]
    pub r#type: EnabledType,
    /// Whether the agent can define agents itself, which are not saved.
    pub inline_agents: Switch,
    /// Saved agents.
    pub predefined_agents: Vec<AgentReference>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(untagged)]
#[schema(discriminator(property_name = "type", mapping(
    ("enabled" = "#/components/schemas/Enabled"),
    ("disabled" = "#/components/schemas/Disabled"),
)))]
pub enum Switch {
    Enabled(Enabled),
    Disabled(Disabled),
}

wire::tagged_union! { Switch:
    "enabled" => Enabled,
    "disabled" => Disabled,
}

impl Default for Switch {
    fn default() -> Self {
        Self::Enabled(Enabled::default())
    }
}

impl Switch {
    #[must_use]
    pub fn is_enabled(self) -> bool {
        matches!(self, Self::Enabled(_))
    }
}

impl Multiagent {
    /// Every saved agent that this names, the agent's own self among them.
    pub fn agents(&self) -> impl Iterator<Item = &AgentReference> {
        let (roster, [subagents, workflows]) = match self {
            Self::Coordinator(coordinator) => (coordinator.agents.as_slice(), [&[][..], &[]]),
            Self::Multiagent20261001(settings) => (
                &[][..],
                [settings.subagents.agents(), settings.workflows.agents()],
            ),
        };
        let roster = roster.iter().filter_map(|entry| match entry {
            RosterEntry::Agent(agent) => Some(agent),
            RosterEntry::Advisor(_) => None,
        });
        roster.chain(subagents).chain(workflows)
    }

    fn agents_mut(&mut self) -> impl Iterator<Item = &mut AgentReference> {
        let (roster, [subagents, workflows]) = match self {
            Self::Coordinator(coordinator) => (
                coordinator.agents.as_mut_slice(),
                [&mut [][..], &mut [][..]],
            ),
            Self::Multiagent20261001(settings) => (
                &mut [][..],
                [
                    settings.subagents.agents_mut(),
                    settings.workflows.agents_mut(),
                ],
            ),
        };
        let roster = roster.iter_mut().filter_map(|entry| match entry {
            RosterEntry::Agent(agent) => Some(agent),
            RosterEntry::Advisor(_) => None,
        });
        roster.chain(subagents).chain(workflows)
    }

    /// The model that the agent may ask for advice.
    #[must_use]
    pub fn advisor(&self) -> Option<&str> {
        match self {
            Self::Coordinator(coordinator) => coordinator.agents.iter().find_map(|e| match e {
                RosterEntry::Advisor(advisor) => Some(advisor.model.as_str()),
                RosterEntry::Agent(_) => None,
            }),
            Self::Multiagent20261001(settings) => settings.advisor.model(),
        }
    }

    /// The agent `own` is saved as this version: where it names itself, it means that one.
    pub fn pin_self(&mut self, own: AgentId, version: i32) {
        for agent in self.agents_mut().filter(|agent| agent.id == own) {
            agent.version = version;
        }
    }
}

impl AdvisorSetting {
    fn model(&self) -> Option<&str> {
        match self {
            Self::Enabled(enabled) => Some(&enabled.model),
            Self::Disabled(_) => None,
        }
    }
}

impl Delegation {
    fn agents(&self) -> &[AgentReference] {
        match self {
            Self::Enabled(enabled) => &enabled.predefined_agents,
            Self::Disabled(_) => &[],
        }
    }

    fn agents_mut(&mut self) -> &mut [AgentReference] {
        match self {
            Self::Enabled(enabled) => &mut enabled.predefined_agents,
            Self::Disabled(_) => &mut [],
        }
    }
}

// In a session -----------------------------------------------------------------------------------

/// The same inside a session: whole definitions instead of references.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(untagged)]
#[schema(discriminator(property_name = "type", mapping(
    ("coordinator" = "#/components/schemas/SessionCoordinator"),
    ("multiagent_20261001" = "#/components/schemas/SessionMultiagent20261001"),
)))]
pub enum SessionMultiagent {
    Coordinator(SessionCoordinator),
    Multiagent20261001(SessionMultiagent20261001),
}

wire::tagged_union! { SessionMultiagent:
    "coordinator" => Coordinator,
    "multiagent_20261001" => Multiagent20261001,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SessionCoordinator {
    #[schema(inline)]
    pub r#type: CoordinatorType,
    pub agents: Vec<SessionRosterEntry>,
}

#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(untagged)]
#[schema(discriminator(property_name = "type", mapping(
    ("agent" = "#/components/schemas/ThreadAgent"),
    ("advisor" = "#/components/schemas/Advisor"),
)))]
pub enum SessionRosterEntry {
    Agent(Box<ThreadAgent>),
    Advisor(Advisor),
}

wire::tagged_union! { SessionRosterEntry:
    "agent" => Agent,
    "advisor" => Advisor,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SessionMultiagent20261001 {
    #[schema(inline)]
    pub r#type: Multiagent20261001Type,
    pub advisor: AdvisorSetting,
    pub subagents: SessionDelegation,
    pub workflows: SessionDelegation,
}

#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(untagged)]
#[schema(discriminator(property_name = "type", mapping(
    ("enabled" = "#/components/schemas/SessionDelegationEnabled"),
    ("disabled" = "#/components/schemas/Disabled"),
)))]
pub enum SessionDelegation {
    Enabled(SessionDelegationEnabled),
    Disabled(Disabled),
}

wire::tagged_union! { SessionDelegation:
    "enabled" => Enabled,
    "disabled" => Disabled,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SessionDelegationEnabled {
    #[schema(inline)]
    pub r#type: EnabledType,
    pub inline_agents: Switch,
    pub predefined_agents: Vec<ThreadAgent>,
}

impl SessionMultiagent {
    /// The agents that can be started as threads, in their order.
    #[must_use]
    pub fn subagents(&self) -> Vec<&ThreadAgent> {
        match self {
            Self::Coordinator(coordinator) => coordinator
                .agents
                .iter()
                .filter_map(|entry| match entry {
                    SessionRosterEntry::Agent(agent) => Some(&**agent),
                    SessionRosterEntry::Advisor(_) => None,
                })
                .collect(),
            Self::Multiagent20261001(settings) => match &settings.subagents {
                SessionDelegation::Enabled(enabled) => enabled.predefined_agents.iter().collect(),
                SessionDelegation::Disabled(_) => Vec::new(),
            },
        }
    }

    /// Every definition in here.
    #[must_use]
    pub fn agents(&self) -> Vec<&ThreadAgent> {
        match self {
            Self::Coordinator(_) => self.subagents(),
            Self::Multiagent20261001(settings) => [&settings.subagents, &settings.workflows]
                .into_iter()
                .flat_map(|delegation| match delegation {
                    SessionDelegation::Enabled(enabled) => enabled.predefined_agents.as_slice(),
                    SessionDelegation::Disabled(_) => &[],
                })
                .collect(),
        }
    }

    /// Every definition in here.
    pub fn agents_mut(&mut self) -> Vec<&mut ThreadAgent> {
        match self {
            Self::Coordinator(coordinator) => coordinator
                .agents
                .iter_mut()
                .filter_map(|entry| match entry {
                    SessionRosterEntry::Agent(agent) => Some(&mut **agent),
                    SessionRosterEntry::Advisor(_) => None,
                })
                .collect(),
            Self::Multiagent20261001(settings) => {
                [&mut settings.subagents, &mut settings.workflows]
                    .into_iter()
                    .flat_map(|delegation| match delegation {
                        SessionDelegation::Enabled(enabled) => {
                            enabled.predefined_agents.as_mut_slice()
                        }
                        SessionDelegation::Disabled(_) => &mut [],
                    })
                    .collect()
            }
        }
    }

    /// Whether the agent can define agents itself and start them as threads.
    #[must_use]
    pub fn inline_agents(&self) -> bool {
        match self {
            Self::Coordinator(_) => false,
            Self::Multiagent20261001(settings) => match &settings.subagents {
                SessionDelegation::Enabled(enabled) => enabled.inline_agents.is_enabled(),
                SessionDelegation::Disabled(_) => false,
            },
        }
    }

    /// The model that the agent may ask for advice.
    #[must_use]
    pub fn advisor(&self) -> Option<&str> {
        match self {
            Self::Coordinator(coordinator) => coordinator.agents.iter().find_map(|e| match e {
                SessionRosterEntry::Advisor(advisor) => Some(advisor.model.as_str()),
                SessionRosterEntry::Agent(_) => None,
            }),
            Self::Multiagent20261001(settings) => settings.advisor.model(),
        }
    }
}

#[cfg(test)]
mod tests;
