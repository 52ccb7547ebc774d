//! Requests about sessions.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

use super::{
    SessionStatus,
    resources::{NewResource, ResourceParams, check_resources},
};
use crate::{
    AgentId, ApiError, EmptyValue, EnvironmentId, Metadata, MetadataPatch, Order, Patch, Timestamp,
    VaultId,
    agent::{
        Agent, AgentSnapshot, McpServer, SkillParams, replacement, resolve_mcp_servers,
        resolve_skills, resolve_system,
    },
    check,
    inbound::{self, InboundEvent, InboundEventParams},
    model::ModelParams,
    multiagent::{AgentReferenceParams, Members},
    tool::{ToolParams, resolve_tools},
    wire,
};

const MAX_TITLE: usize = 500;
const MAX_VAULTS: usize = 50;

wire::literals! {
    AgentWithOverridesType = "agent_with_overrides";
    BudgetType = "limit";
}

// The agent of a session -------------------------------------------------------------------------

/// An agent's id (its latest version), a pinned version, or either with overrides for this session.
#[derive(Debug, Clone, PartialEq, ToSchema)]
#[serde(untagged)]
pub enum AgentParams {
    Id(String),
    Agent(AgentReferenceParams),
    WithOverrides(Box<AgentWithOverridesParams>),
}

/// What is absent is the agent's own; what is present replaces it in full; null clears.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AgentWithOverridesParams {
    #[schema(inline)]
    pub r#type: AgentWithOverridesType,
    #[schema(min_length = 1, max_length = 128)]
    pub id: String,
    #[schema(minimum = 1)]
    pub version: Option<i64>,
    /// Cannot be null. The session runs at the model's default effort.
    #[serde(default)]
    #[schema(value_type = ModelParams, required = false)]
    pub model: Patch<ModelParams>,
    #[serde(default)]
    #[schema(value_type = Option<String>, max_length = 100_000)]
    pub system: Patch<String>,
    #[serde(default)]
    #[schema(value_type = Option<Vec<ToolParams>>)]
    pub tools: Patch<Vec<ToolParams>>,
    #[serde(default)]
    #[schema(value_type = Option<Vec<McpServer>>)]
    pub mcp_servers: Patch<Vec<McpServer>>,
    #[serde(default)]
    #[schema(value_type = Option<Vec<SkillParams>>)]
    pub skills: Patch<Vec<SkillParams>>,
}

impl<'de> Deserialize<'de> for AgentParams {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        if let Value::String(id) = value {
            return Ok(Self::Id(id));
        }
        match wire::tag::<D::Error>(&value)?.as_str() {
            "agent" => wire::from_value(value).map(Self::Agent),
            "agent_with_overrides" => {
                wire::from_value(value).map(|params| Self::WithOverrides(Box::new(params)))
            }
            other => Err(wire::unknown_tag(other, &["agent", "agent_with_overrides"])),
        }
    }
}

/// What a session changes about its agent.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AgentOverrides {
    pub model: Patch<ModelParams>,
    pub system: Patch<String>,
    pub tools: Patch<Vec<ToolParams>>,
    pub mcp_servers: Patch<Vec<McpServer>>,
    pub skills: Patch<Vec<SkillParams>>,
}

/// The agent that a new session runs. `agent` is the version that was asked for, `members` has what its
/// `multiagent` names.
pub fn resolve_agent(
    agent: &Agent,
    overrides: AgentOverrides,
    members: &Members,
) -> Result<AgentSnapshot, ApiError> {
    if agent.archived_at.is_some() {
        return Err(ApiError::invalid(format!(
            "agent: agent `{}` is archived; create a session with another agent",
            agent.id
        )));
    }
    let mut snapshot = agent.snapshot(members)?;
    overrides
        .apply(&mut snapshot)
        .map_err(|error| error.under("agent"))?;
    Ok(snapshot)
}

impl AgentOverrides {
    fn apply(self, snapshot: &mut AgentSnapshot) -> Result<(), ApiError> {
        let spec = &mut snapshot.spec;
        match self.model {
            Patch::Absent => {}
            Patch::Null => {
                return Err(ApiError::invalid(
                    "model: cannot be null (agent_model_required); leave it out to use the agent's",
                )
                .with_code("agent_model_required"));
            }
            Patch::Value(model) => spec.model = model.resolve_override()?,
        }
        if !self.system.is_absent() {
            spec.system = resolve_system(self.system.apply(None))?;
        }
        if let Some(tools) = replacement(self.tools) {
            spec.tools = resolve_tools(tools)?;
        }
        if let Some(servers) = replacement(self.mcp_servers) {
            spec.mcp_servers = resolve_mcp_servers(servers)?;
        }
        if let Some(skills) = replacement(self.skills) {
            spec.skills = resolve_skills(skills)?;
        }
        snapshot.settle()
    }
}

// Budget -----------------------------------------------------------------------------------------

/// An amount in whole minor units, as a decimal string.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Money {
    #[schema(pattern = "^[1-9][0-9]*$")]
    pub amount: String,
    pub currency: String,
}

/// The most a session may cost at list prices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    #[schema(inline)]
    pub r#type: BudgetType,
    pub max_list_cost: Money,
}

impl Budget {
    fn validate(&self) -> Result<(), ApiError> {
        let amount = &self.max_list_cost.amount;
        let whole = !amount.is_empty()
            && amount.len() <= 18
            && amount.bytes().all(|byte| byte.is_ascii_digit())
            && !amount.starts_with('0');
        if !whole {
            return Err(ApiError::invalid(
                "budget.max_list_cost.amount: must be whole cents greater than 0 as a string, such \
                 as \"2500\"",
            ));
        }
        if self.max_list_cost.currency != "USD" {
            return Err(ApiError::invalid(
                "budget.max_list_cost.currency: must be `USD`",
            ));
        }
        Ok(())
    }
}

// Create -----------------------------------------------------------------------------------------

/// The body of `POST /v1/sessions`.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateSession {
    pub agent: AgentParams,
    #[schema(min_length = 1, max_length = 128)]
    pub environment_id: String,
    #[schema(max_length = 500)]
    pub title: Option<String>,
    #[serde(default)]
    pub metadata: Metadata,
    #[serde(default)]
    pub resources: Vec<ResourceParams>,
    /// The first vault with a matching credential wins.
    #[serde(default)]
    #[schema(max_items = 50)]
    pub vault_ids: Vec<String>,
    /// `user.message` and at most one `user.define_outcome`.
    #[serde(default)]
    #[schema(value_type = Vec<InboundEventParams>, max_items = 50)]
    pub initial_events: Vec<Value>,
    #[schema(nullable = false)]
    pub budget: Option<Budget>,
}

/// A checked [`CreateSession`]; what is left is to look the agent and environment up.
#[derive(Debug, Clone, PartialEq)]
pub struct NewSession {
    pub agent_id: AgentId,
    /// `None`: the latest.
    pub agent_version: Option<i64>,
    /// For [`resolve_agent`].
    pub overrides: AgentOverrides,
    pub environment_id: EnvironmentId,
    pub title: Option<String>,
    pub metadata: Metadata,
    pub resources: Vec<NewResource>,
    /// In the order in which they are searched.
    pub vault_ids: Vec<VaultId>,
    pub initial_events: Vec<InboundEvent>,
}

impl CreateSession {
    /// Checks everything that needs nothing but the request. An agent or environment id that cannot
    /// be one is an id of nothing: 404, as the API has it for these two.
    pub fn check(self) -> Result<NewSession, ApiError> {
        let (id, agent_version, overrides) = match self.agent {
            AgentParams::Id(id) => (id, None, AgentOverrides::default()),
            AgentParams::Agent(agent) => (agent.id, agent.version, AgentOverrides::default()),
            AgentParams::WithOverrides(agent) => (
                agent.id,
                agent.version,
                AgentOverrides {
                    model: agent.model,
                    system: agent.system,
                    tools: agent.tools,
                    mcp_servers: agent.mcp_servers,
                    skills: agent.skills,
                },
            ),
        };
        if agent_version.is_some_and(|version| version < 1) {
            return Err(ApiError::invalid("agent.version: must be 1 or greater"));
        }
        check::text("agent.id", &id, 1..=128)?;
        check::text("environment_id", &self.environment_id, 1..=128)?;
        if let Some(title) = &self.title {
            check::text("title", title, 0..=MAX_TITLE)?;
        }
        self.metadata.validate()?;
        let initial_events = inbound::parse_initial_events(self.initial_events)?;
        check_budget(self.budget.as_ref())?;
        let vault_ids = check_vaults(&self.vault_ids)?;
        let resources = check_resources(self.resources)?;
        Ok(NewSession {
            agent_id: id
                .parse()
                .map_err(|_| ApiError::not_found("Agent", check::excerpt(&id)))?,
            agent_version,
            overrides,
            environment_id: self.environment_id.parse().map_err(|_| {
                ApiError::not_found("Environment", check::excerpt(&self.environment_id))
            })?,
            title: self.title,
            metadata: self.metadata,
            resources,
            vault_ids,
            initial_events,
        })
    }
}

fn check_vaults(ids: &[String]) -> Result<Vec<VaultId>, ApiError> {
    check::count("vault_ids", ids.len(), 0..=MAX_VAULTS)?;
    let mut checked = Vec::with_capacity(ids.len());
    for (index, id) in ids.iter().enumerate() {
        check::text(format_args!("vault_ids[{index}]"), id, 1..=128)?;
        if ids[..index].contains(id) {
            return Err(ApiError::invalid(format!(
                "vault_ids[{index}]: `{}` is listed twice",
                check::excerpt(id)
            )));
        }
        checked.push(
            id.parse()
                .map_err(|_| no_vault(index, check::excerpt(id)))?,
        );
    }
    Ok(checked)
}

/// The refusal of a vault that is not there.
#[must_use]
pub fn no_vault(index: usize, id: impl std::fmt::Display) -> ApiError {
    ApiError::invalid(format!("vault_ids[{index}]: vault `{id}` was not found"))
        .with_code("vault_not_found")
}

fn check_budget(budget: Option<&Budget>) -> Result<(), ApiError> {
    let Some(budget) = budget else { return Ok(()) };
    budget.validate()?;
    Err(ApiError::invalid(
        "budget: model_not_budgetable: this server knows no list prices; leave `budget` out",
    )
    .with_code("model_not_budgetable"))
}

// Update -----------------------------------------------------------------------------------------

/// The body of `POST /v1/sessions/{session_id}`. What is absent stays.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateSession {
    #[serde(default)]
    #[schema(value_type = Option<String>, min_length = 1, max_length = 500)]
    pub title: Patch<String>,
    pub metadata: Option<MetadataPatch>,
    /// Only while the session does not run.
    #[serde(default)]
    #[schema(value_type = SessionAgentUpdate, required = false)]
    pub agent: Patch<SessionAgentUpdate>,
    #[serde(default)]
    #[schema(value_type = Option<Budget>)]
    pub budget: Patch<Budget>,
    /// Refused: not supported by the API.
    #[serde(default)]
    #[schema(value_type = Vec<String>, required = false)]
    pub vault_ids: Patch<Vec<String>>,
}

/// Each list that is present replaces the session's in full.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SessionAgentUpdate {
    #[serde(default)]
    #[schema(value_type = Option<Vec<ToolParams>>)]
    pub tools: Patch<Vec<ToolParams>>,
    #[serde(default)]
    #[schema(value_type = Option<Vec<McpServer>>)]
    pub mcp_servers: Patch<Vec<McpServer>>,
}

/// The part of a session that updates decide.
#[derive(Debug, Clone, PartialEq)]
pub struct SessionFields {
    pub title: Option<String>,
    pub metadata: Metadata,
    pub agent: AgentSnapshot,
}

impl UpdateSession {
    /// Whether it says anything about the agent, which a running session does not allow.
    #[must_use]
    pub fn names_agent(&self) -> bool {
        !self.agent.is_absent()
    }

    /// What the session becomes. Equal to `current` when nothing changes effectively.
    pub fn apply(self, current: &SessionFields) -> Result<SessionFields, ApiError> {
        if !self.vault_ids.is_absent() {
            return Err(ApiError::invalid(
                "vault_ids: changing the vaults of a session is not yet supported; leave it out",
            ));
        }
        // No session of this server has a budget: there is none to raise or remove.
        if let Patch::Value(budget) = &self.budget {
            budget.validate()?;
            return Err(ApiError::invalid(
                "budget: budget_create_only: a budget can only be set when a session is created",
            )
            .with_code("budget_create_only"));
        }
        let mut fields = current.clone();
        if let Patch::Value(title) = &self.title {
            check::text("title", title, 1..=MAX_TITLE)?;
        }
        fields.title = self.title.apply(fields.title);
        if let Some(patch) = self.metadata {
            fields.metadata = patch.apply(&fields.metadata, EmptyValue::IsStored)?;
        }
        match self.agent {
            Patch::Absent => {}
            Patch::Null => {
                return Err(ApiError::invalid(
                    "agent: cannot be null; leave it out to keep the agent as it is",
                ));
            }
            Patch::Value(agent) => {
                let overrides = AgentOverrides {
                    tools: agent.tools,
                    mcp_servers: agent.mcp_servers,
                    ..AgentOverrides::default()
                };
                overrides
                    .apply(&mut fields.agent)
                    .map_err(|error| error.under("agent"))?;
            }
        }
        Ok(fields)
    }
}

// List -------------------------------------------------------------------------------------------

/// The query of `GET /v1/sessions`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct ListSessions {
    /// Sessions created from this agent.
    #[param(value_type = Option<String>)]
    pub agent_id: Option<AgentId>,
    /// Only together with `agent_id`.
    #[param(minimum = 1)]
    pub agent_version: Option<i64>,
    #[serde(rename = "created_at[gt]")]
    #[param(value_type = Option<String>, format = DateTime)]
    pub created_after: Option<Timestamp>,
    #[serde(rename = "created_at[gte]")]
    #[param(value_type = Option<String>, format = DateTime)]
    pub created_from: Option<Timestamp>,
    #[serde(rename = "created_at[lt]")]
    #[param(value_type = Option<String>, format = DateTime)]
    pub created_before: Option<Timestamp>,
    #[serde(rename = "created_at[lte]")]
    #[param(value_type = Option<String>, format = DateTime)]
    pub created_until: Option<Timestamp>,
    /// Sessions that this deployment started: none, until deployments are offered.
    pub deployment_id: Option<String>,
    /// Sessions with this memory store: none, until memory stores are offered.
    pub memory_store_id: Option<String>,
    /// Any of these.
    #[serde(rename = "statuses[]", default)]
    pub statuses: Vec<SessionStatus>,
    pub include_archived: Option<bool>,
    /// By creation time; default `desc`.
    pub order: Option<Order>,
    /// Default 20.
    #[param(minimum = 1, maximum = 1000)]
    pub limit: Option<i64>,
    /// A `next_page` or `prev_page` of an earlier answer.
    pub page: Option<String>,
}

impl ListSessions {
    /// Checks what spans parameters. The limit is left to whoever pages.
    pub fn validate(&self) -> Result<(), ApiError> {
        match (self.agent_version, self.agent_id) {
            (None, _) => Ok(()),
            (Some(_), None) => Err(ApiError::invalid(
                "agent_version: needs `agent_id` beside it",
            )),
            (Some(version), _) if version < 1 => {
                Err(ApiError::invalid("agent_version: must be 1 or greater"))
            }
            _ => Ok(()),
        }
    }
}
