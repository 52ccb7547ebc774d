//! Agents: saved, versioned configurations; and the copy of one that a session runs.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    AgentId, ApiError, EmptyValue, Metadata, MetadataPatch, Patch, Timestamp, check,
    model::{ModelConfig, ModelParams},
    multiagent::{Coordinator, MultiagentParams, SessionCoordinator},
    tool::{
        AgentToolset, BuiltinTool, CustomTool, McpToolset, PermissionPolicy, Tool, ToolParams,
        ToolSetting, resolve_tools,
    },
    wire,
};

const NAME: std::ops::RangeInclusive<usize> = 1..=256;
const DESCRIPTION: std::ops::RangeInclusive<usize> = 0..=2048;
const SYSTEM: std::ops::RangeInclusive<usize> = 0..=100_000;
const MAX_MCP_SERVERS: usize = 20;
const MAX_SKILLS: usize = 500;

wire::literals! {
    AgentType = "agent";
    UrlServerType = "url";
    ServiceAccountType = "service_account";
    AwsRoleType = "aws_role";
    AnthropicSkillType = "anthropic";
    CustomSkillType = "custom";
}

// Parts ------------------------------------------------------------------------------------------

/// In whose name the agent acts outside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(untagged)]
#[schema(discriminator(property_name = "type", mapping(
    ("service_account" = "#/components/schemas/ServiceAccount"),
    ("aws_role" = "#/components/schemas/AwsRole"),
)))]
pub enum ExecutionIdentity {
    ServiceAccount(ServiceAccount),
    AwsRole(AwsRole),
}

wire::tagged_union! { ExecutionIdentity:
    "service_account" => ServiceAccount,
    "aws_role" => AwsRole,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ServiceAccount {
    #[schema(inline)]
    pub r#type: ServiceAccountType,
}

/// Not offered by this server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AwsRole {
    #[schema(inline)]
    pub r#type: AwsRoleType,
    #[schema(max_length = 2048)]
    pub role_arn: String,
}

impl Default for ExecutionIdentity {
    fn default() -> Self {
        Self::ServiceAccount(ServiceAccount::default())
    }
}

impl ExecutionIdentity {
    fn check(self) -> Result<Self, ApiError> {
        let Self::AwsRole(role) = &self else {
            return Ok(self);
        };
        check::text("execution_identity.role_arn", &role.role_arn, 1..=2048)?;
        Err(ApiError::not_implemented(
            "execution_identity: this server does not offer `aws_role`; use `service_account`",
        ))
    }
}

/// A remote MCP server. Credentials for it come from vaults.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct McpServer {
    #[schema(inline)]
    pub r#type: UrlServerType,
    #[schema(min_length = 1, max_length = 255)]
    pub name: String,
    #[schema(min_length = 1, max_length = 2048)]
    pub url: String,
}

/// A skill in a request. Without a `version`: the latest.
#[derive(Debug, Clone, PartialEq, Eq, ToSchema)]
#[serde(untagged)]
#[schema(discriminator(property_name = "type", mapping(
    ("anthropic" = "#/components/schemas/AnthropicSkillParams"),
    ("custom" = "#/components/schemas/CustomSkillParams"),
)))]
pub enum SkillParams {
    Anthropic(AnthropicSkillParams),
    Custom(CustomSkillParams),
}

wire::tagged_union! { SkillParams:
    "anthropic" => Anthropic,
    "custom" => Custom,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AnthropicSkillParams {
    #[schema(inline)]
    pub r#type: AnthropicSkillType,
    #[schema(min_length = 1, max_length = 64)]
    pub skill_id: String,
    #[schema(min_length = 1, max_length = 64)]
    pub version: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CustomSkillParams {
    #[schema(inline)]
    pub r#type: CustomSkillType,
    #[schema(min_length = 1, max_length = 64)]
    pub skill_id: String,
    #[schema(min_length = 1, max_length = 64)]
    pub version: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum SkillSource {
    Anthropic,
    Custom,
}

/// A skill of an agent; `latest` when no version was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SkillRef {
    pub r#type: SkillSource,
    pub skill_id: String,
    pub version: String,
}

impl From<SkillParams> for SkillRef {
    fn from(params: SkillParams) -> Self {
        let (r#type, skill_id, version) = match params {
            SkillParams::Anthropic(skill) => {
                (SkillSource::Anthropic, skill.skill_id, skill.version)
            }
            SkillParams::Custom(skill) => (SkillSource::Custom, skill.skill_id, skill.version),
        };
        Self {
            r#type,
            skill_id,
            version: version.unwrap_or_else(|| "latest".to_owned()),
        }
    }
}

// The agent --------------------------------------------------------------------------------------

/// What an agent is and can do: the part that agents, sessions and threads show alike.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AgentSpec {
    pub name: String,
    #[schema(required)]
    pub description: Option<String>,
    pub model: ModelConfig,
    #[schema(required)]
    pub system: Option<String>,
    pub tools: Vec<Tool>,
    pub mcp_servers: Vec<McpServer>,
    pub skills: Vec<SkillRef>,
    pub execution_identity: ExecutionIdentity,
}

/// Everything that is versioned, normalised. The store keeps it as JSON text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AgentConfig {
    #[serde(flatten)]
    pub spec: AgentSpec,
    #[schema(required)]
    pub multiagent: Option<Coordinator>,
    pub metadata: Metadata,
}

/// One version of an agent, as the API shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Agent {
    #[schema(inline)]
    pub r#type: AgentType,
    pub id: AgentId,
    pub version: i32,
    #[serde(flatten)]
    pub config: AgentConfig,
    /// When the agent was created; the same on all versions.
    pub created_at: Timestamp,
    /// When this version was saved, or the agent archived.
    pub updated_at: Timestamp,
    #[schema(required)]
    pub archived_at: Option<Timestamp>,
}

/// The agent inside a session: what the session runs, whatever happens to the agent later.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AgentSnapshot {
    #[schema(inline)]
    pub r#type: AgentType,
    pub id: AgentId,
    pub version: i32,
    #[serde(flatten)]
    pub spec: AgentSpec,
    #[schema(required)]
    pub multiagent: Option<SessionCoordinator>,
}

/// The agent inside a thread.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ThreadAgent {
    #[schema(inline)]
    pub r#type: AgentType,
    pub id: AgentId,
    pub version: i32,
    #[serde(flatten)]
    pub spec: AgentSpec,
}

impl AgentSpec {
    /// The built-in toolset, when the agent has it.
    #[must_use]
    pub fn toolset(&self) -> Option<&AgentToolset> {
        self.tools.iter().find_map(|tool| match tool {
            Tool::Agent(toolset) => Some(toolset),
            _ => None,
        })
    }

    /// The effective setting of a built-in tool; disabled when the agent has no built-in toolset.
    #[must_use]
    pub fn builtin(&self, tool: BuiltinTool) -> ToolSetting {
        self.toolset().map_or(
            ToolSetting {
                enabled: false,
                policy: PermissionPolicy::ALWAYS_ALLOW,
            },
            |toolset| toolset.setting(tool),
        )
    }

    /// Whether any tool that needs a sandbox is enabled.
    #[must_use]
    pub fn needs_sandbox(&self) -> bool {
        BuiltinTool::ALL
            .into_iter()
            .any(|tool| !tool.is_web() && self.builtin(tool).enabled)
    }

    /// The toolset of an MCP server.
    #[must_use]
    pub fn mcp_toolset(&self, server: &str) -> Option<&McpToolset> {
        self.tools.iter().find_map(|tool| match tool {
            Tool::Mcp(toolset) if toolset.mcp_server_name == server => Some(toolset),
            _ => None,
        })
    }

    /// The effective setting of a tool of an MCP server; disabled when the agent does not use it.
    #[must_use]
    pub fn mcp(&self, server: &str, tool: &str) -> ToolSetting {
        self.mcp_toolset(server).map_or(
            ToolSetting {
                enabled: false,
                policy: PermissionPolicy::ALWAYS_ASK,
            },
            |toolset| toolset.setting(tool),
        )
    }

    /// The custom tools, in the agent's order.
    pub fn custom_tools(&self) -> impl Iterator<Item = &CustomTool> {
        self.tools.iter().filter_map(|tool| match tool {
            Tool::Custom(tool) => Some(tool),
            _ => None,
        })
    }

    #[must_use]
    pub fn custom_tool(&self, name: &str) -> Option<&CustomTool> {
        self.custom_tools().find(|tool| tool.name == name)
    }

    /// The rules that span fields, and then what this server does not offer yet.
    pub(crate) fn validate(&self) -> Result<(), ApiError> {
        self.check_mcp()?;
        if !self.skills.is_empty() && !self.builtin(BuiltinTool::Read).enabled {
            return Err(ApiError::invalid(
                "skills: need the `agent_toolset_20260401` with `read` enabled in `tools`, because \
                 skills are files that the model reads; add it or clear `skills`",
            ));
        }
        if !self.mcp_servers.is_empty() {
            return Err(ApiError::not_implemented(
                "mcp_servers: this server does not offer MCP yet; remove `mcp_servers` and every \
                 `mcp_toolset`",
            ));
        }
        if !self.skills.is_empty() {
            return Err(ApiError::not_implemented(
                "skills: this server does not offer skills yet; remove `skills`",
            ));
        }
        Ok(())
    }

    fn check_mcp(&self) -> Result<(), ApiError> {
        for (index, tool) in self.tools.iter().enumerate() {
            if let Tool::Mcp(toolset) = tool
                && !self
                    .mcp_servers
                    .iter()
                    .any(|server| server.name == toolset.mcp_server_name)
            {
                return Err(ApiError::invalid(format!(
                    "tools[{index}].mcp_server_name: no entry of `mcp_servers` is named `{}`",
                    check::excerpt(&toolset.mcp_server_name)
                )));
            }
        }
        for (index, server) in self.mcp_servers.iter().enumerate() {
            if self.mcp_toolset(&server.name).is_none() {
                return Err(ApiError::invalid(format!(
                    "mcp_servers[{index}]: `{}` is not used; add an `mcp_toolset` for it to `tools` \
                     or remove it",
                    check::excerpt(&server.name)
                )));
            }
        }
        Ok(())
    }
}

impl Agent {
    #[must_use]
    pub fn new(
        id: AgentId,
        version: i32,
        config: AgentConfig,
        created_at: Timestamp,
        updated_at: Timestamp,
        archived_at: Option<Timestamp>,
    ) -> Self {
        Self {
            r#type: AgentType,
            id,
            version,
            config,
            created_at,
            updated_at,
            archived_at,
        }
    }

    /// The copy that a session without overrides runs.
    #[must_use]
    pub fn snapshot(&self) -> AgentSnapshot {
        AgentSnapshot {
            r#type: AgentType,
            id: self.id,
            version: self.version,
            spec: self.config.spec.clone(),
            multiagent: None,
        }
    }
}

impl AgentSnapshot {
    /// The copy that a thread of this agent shows.
    #[must_use]
    pub fn thread_agent(&self) -> ThreadAgent {
        ThreadAgent {
            r#type: AgentType,
            id: self.id,
            version: self.version,
            spec: self.spec.clone(),
        }
    }
}

// Requests ---------------------------------------------------------------------------------------

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
    /// Checks everything and fills in defaults: what version 1 will be.
    pub fn resolve(self) -> Result<AgentConfig, ApiError> {
        self.metadata.validate()?;
        let config = AgentConfig {
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
        match self.multiagent {
            Some(multiagent) => Err(multiagent.refuse()),
            None => Ok(config),
        }
    }
}

impl UpdateAgent {
    /// What the agent's next version is to be, when `agent` is its latest. Equal to the present
    /// configuration when nothing changes effectively.
    pub fn change(self, agent: &Agent) -> Result<AgentConfig, ApiError> {
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
        self.apply(&agent.config)
    }

    fn apply(self, current: &AgentConfig) -> Result<AgentConfig, ApiError> {
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
            Patch::Value(multiagent) => return Err(multiagent.refuse()),
        }
        Ok(config)
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
pub(crate) fn resolve_text(
    field: &str,
    text: Option<String>,
    length: std::ops::RangeInclusive<usize>,
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

#[cfg(test)]
mod tests;
