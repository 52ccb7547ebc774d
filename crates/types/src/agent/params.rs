//! Requests about agents.

use std::ops::RangeInclusive;

use serde::Deserialize;
use utoipa::ToSchema;

use super::{Agent, AgentConfig, AgentSpec, ExecutionIdentity, McpServer, SkillParams, SkillRef};
use crate::{
    AgentId, ApiError, EmptyValue, Metadata, MetadataPatch, Patch, check,
    model::ModelParams,
    multiagent::{AgentReference, Members, MultiagentParams, Reference, check_agent},
    tool::{ToolParams, resolve_tools},
};

const NAME: RangeInclusive<usize> = 1..=256;
const DESCRIPTION: RangeInclusive<usize> = 0..=2048;
const SYSTEM: RangeInclusive<usize> = 0..=100_000;
const MAX_MCP_SERVERS: usize = 20;
const MAX_SKILLS: usize = 500;

/// The body of `POST /v1/agents`.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateAgent {
    #[schema(min_length = 1, max_length = 256)]
    pub name: String,
    pub model: ModelParams,
    #[schema(max_length = 2048)]
    pub description: Option<String>,
    #[schema(max_length = 100_000)]
    pub system: Option<String>,
    #[serde(default)]
    #[schema(max_items = 256)]
    pub tools: Vec<ToolParams>,
    #[serde(default)]
    #[schema(max_items = 20)]
    pub mcp_servers: Vec<McpServer>,
    #[serde(default)]
    #[schema(max_items = 500)]
    pub skills: Vec<SkillParams>,
    #[serde(default)]
    pub metadata: Metadata,
    pub multiagent: Option<MultiagentParams>,
    pub execution_identity: Option<ExecutionIdentity>,
}

/// The body of `POST /v1/agents/{agent_id}`. What is absent stays.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateAgent {
    /// The version this update was made from. Another current version is a conflict (409).
    #[schema(minimum = 1)]
    pub version: Option<i64>,
    #[serde(default)]
    #[schema(value_type = String, required = false, min_length = 1, max_length = 256)]
    pub name: Patch<String>,
    #[serde(default)]
    #[schema(value_type = ModelParams, required = false)]
    pub model: Patch<ModelParams>,
    #[serde(default)]
    #[schema(value_type = Option<String>, max_length = 2048)]
    pub description: Patch<String>,
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
    pub metadata: Option<MetadataPatch>,
    #[serde(default)]
    #[schema(value_type = Option<MultiagentParams>)]
    pub multiagent: Patch<MultiagentParams>,
    #[serde(default)]
    #[schema(value_type = Option<ExecutionIdentity>)]
    pub execution_identity: Patch<ExecutionIdentity>,
}

impl CreateAgent {
    /// The saved agents that have to be looked up to resolve this, when it is to be the agent `id`.
    #[must_use]
    pub fn references(&self, id: AgentId) -> Vec<Reference> {
        let multiagent = self.multiagent.iter();
        multiagent.flat_map(|m| m.references(id)).collect()
    }

    /// Checks everything and fills in defaults: what version 1 of the agent `id` will be.
    pub fn resolve(self, id: AgentId, members: &Members) -> Result<AgentConfig, ApiError> {
        self.metadata.validate()?;
        let mut config = AgentConfig {
            spec: AgentSpec {
                name: resolve_name(self.name)?,
                description: resolve_text("description", self.description, DESCRIPTION)?,
                model: self.model.resolve(None)?,
                system: resolve_text("system", self.system, SYSTEM)?,
                tools: resolve_tools(self.tools)?,
                mcp_servers: resolve_mcp_servers(self.mcp_servers)?,
                skills: resolve_skills(self.skills)?,
                execution_identity: self.execution_identity.unwrap_or_default().check()?,
            },
            multiagent: None,
            metadata: self.metadata,
        };
        config.spec.validate()?;
        if let Some(params) = self.multiagent {
            let own = AgentReference::new(id, 1);
            config.multiagent = Some(params.resolve(own, None, members)?);
        }
        config.check_members(id, members)?;
        Ok(config)
    }
}

impl UpdateAgent {
    /// The skills that the agent is to have, when that is to change.
    #[must_use]
    pub fn new_skills(&self) -> Vec<SkillRef> {
        match &self.skills {
            Patch::Absent | Patch::Null => Vec::new(),
            // More are refused when the update is applied.
            Patch::Value(skills) => skills
                .iter()
                .take(MAX_SKILLS)
                .cloned()
                .map(Into::into)
                .collect(),
        }
    }

    /// The saved agents that have to be looked up to apply this to `agent`: those that it names, and
    /// those that stay members.
    #[must_use]
    pub fn references(&self, agent: &Agent) -> Vec<Reference> {
        let named = match &self.multiagent {
            Patch::Value(params) => params.references(agent.id),
            Patch::Absent | Patch::Null => Vec::new(),
        };
        [named, agent.references()].concat()
    }

    /// What the agent's next version is to be, when `agent` is its latest. Equal to the present
    /// configuration when nothing changes effectively.
    pub fn change(&self, agent: &Agent, members: &Members) -> Result<AgentConfig, ApiError> {
        match self.version {
            Some(version) if version < 1 => {
                return Err(ApiError::invalid(
                    "version: must be 1 or greater, or left out to update unconditionally",
                ));
            }
            // Also when nothing would change: the client works from something outdated.
            Some(version) if version != i64::from(agent.version) => {
                return Err(ApiError::conflict(format!(
                    "version: agent `{}` is at version {}, not {version}; read it and apply the \
                     change again",
                    agent.id, agent.version
                )));
            }
            _ => {}
        }
        if agent.archived_at.is_some() {
            return Err(ApiError::invalid(format!(
                "agent `{}` is archived and can no longer be changed",
                agent.id
            )));
        }
        self.clone().apply(agent, members)
    }

    fn apply(self, agent: &Agent, members: &Members) -> Result<AgentConfig, ApiError> {
        let current = &agent.config;
        let mut config = current.clone();
        let spec = &mut config.spec;
        match self.name {
            Patch::Absent => {}
            Patch::Null => return Err(cannot_be_null("name")),
            Patch::Value(name) => spec.name = resolve_name(name)?,
        }
        match self.model {
            Patch::Absent => {}
            Patch::Null => return Err(cannot_be_null("model")),
            Patch::Value(model) => spec.model = model.resolve(Some(&current.spec.model))?,
        }
        spec.description = resolve_text(
            "description",
            self.description.apply(spec.description.take()),
            DESCRIPTION,
        )?;
        spec.system = resolve_text("system", self.system.apply(spec.system.take()), SYSTEM)?;
        if let Some(tools) = replacement(self.tools) {
            spec.tools = resolve_tools(tools)?;
        }
        if let Some(servers) = replacement(self.mcp_servers) {
            spec.mcp_servers = resolve_mcp_servers(servers)?;
        }
        if let Some(skills) = replacement(self.skills) {
            spec.skills = resolve_skills(skills)?;
        }
        match self.execution_identity {
            Patch::Absent => {}
            Patch::Null => spec.execution_identity = ExecutionIdentity::default(),
            Patch::Value(identity) => spec.execution_identity = identity.check()?,
        }
        spec.validate()?;
        if let Some(patch) = self.metadata {
            config.metadata = patch.apply(&config.metadata, EmptyValue::Deletes)?;
        }
        match self.multiagent {
            Patch::Absent => {}
            Patch::Null => config.multiagent = None,
            Patch::Value(params) => {
                let own = AgentReference::new(agent.id, agent.version);
                let stored = current.multiagent.as_ref();
                config.multiagent = Some(params.resolve(own, stored, members)?);
            }
        }
        config.check_members(agent.id, members)?;
        Ok(config)
    }
}

impl AgentConfig {
    fn check_members(&self, id: AgentId, members: &Members) -> Result<(), ApiError> {
        match &self.multiagent {
            Some(multiagent) => check_agent(&self.spec, multiagent, id, members),
            None => Ok(()),
        }
    }
}

/// A list in an update: `null` clears it.
pub(crate) fn replacement<T>(patch: Patch<Vec<T>>) -> Option<Vec<T>> {
    match patch {
        Patch::Absent => None,
        Patch::Null => Some(Vec::new()),
        Patch::Value(list) => Some(list),
    }
}

fn cannot_be_null(field: &str) -> ApiError {
    ApiError::invalid(format!(
        "{field}: cannot be null; leave it out to keep the present value"
    ))
}

fn resolve_name(name: String) -> Result<String, ApiError> {
    check::text("name", &name, NAME)?;
    Ok(name)
}

/// An empty text is no text.
fn resolve_text(
    field: &str,
    text: Option<String>,
    length: RangeInclusive<usize>,
) -> Result<Option<String>, ApiError> {
    if let Some(text) = &text {
        check::text(field, text, length)?;
    }
    Ok(text.filter(|text| !text.is_empty()))
}

/// The `system` of a session's overrides follows the agent's own rule.
pub(crate) fn resolve_system(system: Option<String>) -> Result<Option<String>, ApiError> {
    resolve_text("agent.system", system, SYSTEM)
}

pub(crate) fn resolve_mcp_servers(servers: Vec<McpServer>) -> Result<Vec<McpServer>, ApiError> {
    check::count("mcp_servers", servers.len(), 0..=MAX_MCP_SERVERS)?;
    for (index, server) in servers.iter().enumerate() {
        let at = format!("mcp_servers[{index}]");
        check::text(format_args!("{at}.name"), &server.name, 1..=255)?;
        check::text(format_args!("{at}.url"), &server.url, 1..=2048)?;
        check::http_url(format_args!("{at}.url"), &server.url)?;
        let authority = server.url.split('/').nth(2).unwrap_or_default();
        if authority.contains('@') {
            return Err(ApiError::invalid(format!(
                "{at}.url: must not contain a user name or a password; credentials come from vaults"
            )));
        }
        if servers[..index]
            .iter()
            .any(|other| other.name == server.name)
        {
            return Err(ApiError::invalid(format!(
                "{at}.name: `{}` is taken by an earlier entry; names must be unique",
                check::excerpt(&server.name)
            )));
        }
    }
    Ok(servers)
}

pub(crate) fn resolve_skills(skills: Vec<SkillParams>) -> Result<Vec<SkillRef>, ApiError> {
    check::count("skills", skills.len(), 0..=MAX_SKILLS)?;
    let skills: Vec<SkillRef> = skills.into_iter().map(SkillRef::from).collect();
    for (index, skill) in skills.iter().enumerate() {
        let at = format!("skills[{index}]");
        check::text(format_args!("{at}.skill_id"), &skill.skill_id, 1..=64)?;
        check::text(format_args!("{at}.version"), &skill.version, 1..=64)?;
    }
    Ok(skills)
}
