//! Agents: saved, versioned configurations; and the copy of one that a session runs.

mod params;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use params::{CreateAgent, UpdateAgent};
pub(crate) use params::{replacement, resolve_mcp_servers, resolve_skills, resolve_system};

use crate::{
    AgentId, ApiError, Metadata, Timestamp, check,
    model::ModelConfig,
    multiagent::{Members, Multiagent, Reference, SessionMultiagent, check_session},
    tool::{
        AgentToolset, BuiltinTool, CustomTool, McpToolset, PermissionPolicy, Tool, ToolSetting,
    },
    wire,
};

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
    pub multiagent: Option<Multiagent>,
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
    pub multiagent: Option<SessionMultiagent>,
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

    /// The rules that span fields.
    pub(crate) fn validate(&self) -> Result<(), ApiError> {
        self.check_mcp()?;
        if !self.skills.is_empty() && !self.builtin(BuiltinTool::Read).enabled {
            return Err(ApiError::invalid(
                "skills: need the `agent_toolset_20260401` with `read` enabled in `tools`, because \
                 skills are files that the model reads; add it or clear `skills`",
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

    /// Its members, as they have to be looked up for a session.
    #[must_use]
    pub fn references(&self) -> Vec<Reference> {
        let members = self.config.multiagent.iter().flat_map(Multiagent::agents);
        let others = members.filter(|member| member.id != self.id);
        others.map(|member| (*member).into()).collect()
    }

    /// The copy that a session without overrides runs.
    ///
    /// # Errors
    /// 400 when a member of its `multiagent` is not among `members`.
    pub fn snapshot(&self, members: &Members) -> Result<AgentSnapshot, ApiError> {
        let mut snapshot = AgentSnapshot {
            r#type: AgentType,
            id: self.id,
            version: self.version,
            spec: self.config.spec.clone(),
            multiagent: None,
        };
        if let Some(multiagent) = &self.config.multiagent {
            snapshot.multiagent = Some(multiagent.copy(&snapshot, members)?);
        }
        Ok(snapshot)
    }

    /// The copy that a thread of this agent shows.
    #[must_use]
    pub fn thread_agent(&self) -> ThreadAgent {
        ThreadAgent {
            r#type: AgentType,
            id: self.id,
            version: self.version,
            spec: self.config.spec.clone(),
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

    /// Its own definition, then those of its members; where it is its own member, its own again.
    pub fn specs_mut(&mut self) -> Vec<&mut AgentSpec> {
        let members = self.multiagent.as_mut().map(SessionMultiagent::agents_mut);
        let members = members.into_iter().flatten();
        std::iter::once(&mut self.spec)
            .chain(members.map(|agent| &mut agent.spec))
            .collect()
    }

    /// Its own definition and those of its members that are not itself.
    #[must_use]
    pub fn specs(&self) -> Vec<&AgentSpec> {
        let members = self.multiagent.as_ref().map(SessionMultiagent::agents);
        let others = members
            .into_iter()
            .flatten()
            .filter(|agent| agent.id != self.id);
        std::iter::once(&self.spec)
            .chain(others.map(|agent| &agent.spec))
            .collect()
    }

    /// Whether it or a member has a tool that needs a sandbox.
    #[must_use]
    pub fn needs_sandbox(&self) -> bool {
        self.specs().iter().any(|spec| spec.needs_sandbox())
    }

    /// The rules that span fields, after something was changed for a session. Where the agent is its own
    /// member, it is so with what was changed.
    pub(crate) fn settle(&mut self) -> Result<(), ApiError> {
        self.spec.validate()?;
        if let Some(multiagent) = &mut self.multiagent {
            for copy in multiagent.agents_mut() {
                if copy.id == self.id {
                    copy.spec.clone_from(&self.spec);
                }
            }
            check_session(&self.spec, multiagent)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
