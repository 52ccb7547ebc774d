//! Tools an agent has: what a request may say, the resolved form that is stored and shown, and who
//! may run what without asking.

mod custom;
mod domains;
mod resolve;
mod web;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use custom::{CustomTool, CustomToolType};
pub use resolve::resolve_tools;
pub use web::{
    ToolReference, ToolReferenceType, UrlSource, UrlSourceKind, UrlSourceParams, UrlSources,
    UrlSourcesParams, UserLocation, UserLocationType, WebFetchConfig, WebFetchType,
    WebSearchConfig, WebSearchType,
};

use crate::{ApiError, wire};

/// Most entries of a `tools` array.
pub const MAX_TOOLS: usize = 256;

wire::literals! {
    AgentToolsetType = "agent_toolset_20260401";
    McpToolsetType = "mcp_toolset";
}

/// The tools of the built-in toolset.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum BuiltinTool {
    Bash,
    Read,
    Write,
    Edit,
    Glob,
    Grep,
    WebFetch,
    WebSearch,
}

impl BuiltinTool {
    pub const ALL: [Self; 8] = [
        Self::Bash,
        Self::Read,
        Self::Write,
        Self::Edit,
        Self::Glob,
        Self::Grep,
        Self::WebFetch,
        Self::WebSearch,
    ];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bash => "bash",
            Self::Read => "read",
            Self::Write => "write",
            Self::Edit => "edit",
            Self::Glob => "glob",
            Self::Grep => "grep",
            Self::WebFetch => "web_fetch",
            Self::WebSearch => "web_search",
        }
    }

    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|tool| tool.as_str() == name)
    }

    /// Run by the server itself; the others run in the sandbox.
    #[must_use]
    pub fn is_web(self) -> bool {
        matches!(self, Self::WebFetch | Self::WebSearch)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PolicyKind {
    /// Calls run at once.
    AlwaysAllow,
    /// The session waits for `user.tool_confirmation`.
    AlwaysAsk,
    /// The server judges each call. Not offered here: refused with 400.
    Auto,
}

/// `{"type": "always_allow"}`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PermissionPolicy {
    pub r#type: PolicyKind,
}

impl PermissionPolicy {
    pub const ALWAYS_ALLOW: Self = Self {
        r#type: PolicyKind::AlwaysAllow,
    };
    pub const ALWAYS_ASK: Self = Self {
        r#type: PolicyKind::AlwaysAsk,
    };
}

/// Whether a tool is offered to the model, and on which terms its calls run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ToolSetting {
    pub enabled: bool,
    pub policy: PermissionPolicy,
}

/// Settings in a request: what is missing or `null` comes from the level above.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ToolDefaultsParams {
    pub enabled: Option<bool>,
    pub permission_policy: Option<PermissionPolicy>,
}

/// Settings of every tool of a toolset that `configs` does not name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ToolDefaults {
    pub enabled: bool,
    pub permission_policy: PermissionPolicy,
}

impl ToolDefaults {
    fn setting(self) -> ToolSetting {
        ToolSetting {
            enabled: self.enabled,
            policy: self.permission_policy,
        }
    }

    fn resolve(
        params: Option<ToolDefaultsParams>,
        policy: PermissionPolicy,
        at: &str,
    ) -> Result<Self, ApiError> {
        let base = Self {
            enabled: true,
            permission_policy: policy,
        };
        let params = params.unwrap_or_default();
        base.overlay(
            params.enabled,
            params.permission_policy,
            &format!("{at}.default_config"),
        )
    }

    fn overlay(
        self,
        enabled: Option<bool>,
        policy: Option<PermissionPolicy>,
        at: &str,
    ) -> Result<Self, ApiError> {
        let permission_policy = policy.unwrap_or(self.permission_policy);
        if permission_policy.r#type == PolicyKind::Auto {
            return Err(ApiError::invalid(format!(
                "{at}.permission_policy: `auto` is not supported by this server; use \
                 `always_allow` or `always_ask`"
            )));
        }
        Ok(Self {
            enabled: enabled.unwrap_or(self.enabled),
            permission_policy,
        })
    }
}

// Requests ---------------------------------------------------------------------------------------

/// One entry of `tools` in a request.
#[derive(Debug, Clone, PartialEq, ToSchema)]
#[serde(untagged)]
#[schema(discriminator(property_name = "type", mapping(
    ("agent_toolset_20260401" = "#/components/schemas/AgentToolsetParams"),
    ("mcp_toolset" = "#/components/schemas/McpToolsetParams"),
    ("custom" = "#/components/schemas/CustomTool"),
)))]
pub enum ToolParams {
    Agent(AgentToolsetParams),
    Mcp(McpToolsetParams),
    Custom(CustomTool),
}

wire::tagged_union! { ToolParams:
    "agent_toolset_20260401" => Agent,
    "mcp_toolset" => Mcp,
    "custom" => Custom,
}

#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AgentToolsetParams {
    #[schema(inline)]
    pub r#type: AgentToolsetType,
    pub default_config: Option<ToolDefaultsParams>,
    #[serde(default)]
    pub configs: Vec<BuiltinToolConfigParams>,
}

/// Settings of one built-in tool. The web settings belong to the web tools alone.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BuiltinToolConfigParams {
    pub name: BuiltinTool,
    /// The same value as `name`; may be left out.
    pub r#type: Option<BuiltinTool>,
    pub enabled: Option<bool>,
    pub permission_policy: Option<PermissionPolicy>,
    /// `web_fetch` and `web_search`: nothing outside these hosts and their subdomains.
    #[schema(min_items = 1, max_items = 64)]
    pub allowed_domains: Option<Vec<String>>,
    /// `web_fetch` and `web_search`: nothing of these hosts and their subdomains.
    #[schema(min_items = 1, max_items = 64)]
    pub blocked_domains: Option<Vec<String>>,
    /// `web_fetch`: most tokens of text that one call may bring into the context.
    #[schema(minimum = 1)]
    pub max_content_tokens: Option<i64>,
    /// `web_search`
    pub user_location: Option<UserLocation>,
    /// `web_fetch`
    pub url_sources: Option<UrlSourcesParams>,
}

#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct McpToolsetParams {
    #[schema(inline)]
    pub r#type: McpToolsetType,
    /// The `name` of an entry of `mcp_servers`.
    #[schema(min_length = 1, max_length = 255)]
    pub mcp_server_name: String,
    pub default_config: Option<ToolDefaultsParams>,
    #[serde(default)]
    pub configs: Vec<McpToolConfigParams>,
}

#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct McpToolConfigParams {
    /// The tool's name as its server reports it. Names the server does not have are accepted.
    #[schema(min_length = 1, max_length = 128)]
    pub name: String,
    pub enabled: Option<bool>,
    pub permission_policy: Option<PermissionPolicy>,
}

// Resolved ---------------------------------------------------------------------------------------

/// One entry of an agent's `tools`, resolved.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(untagged)]
#[schema(discriminator(property_name = "type", mapping(
    ("agent_toolset_20260401" = "#/components/schemas/AgentToolset"),
    ("mcp_toolset" = "#/components/schemas/McpToolset"),
    ("custom" = "#/components/schemas/CustomTool"),
)))]
pub enum Tool {
    Agent(AgentToolset),
    Mcp(McpToolset),
    Custom(CustomTool),
}

wire::tagged_union! { Tool:
    "agent_toolset_20260401" => Agent,
    "mcp_toolset" => Mcp,
    "custom" => Custom,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AgentToolset {
    #[schema(inline)]
    pub r#type: AgentToolsetType,
    pub default_config: ToolDefaults,
    /// The entries of the request, resolved. A tool that is not listed has `default_config`.
    pub configs: Vec<BuiltinToolConfig>,
}

#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(untagged)]
pub enum BuiltinToolConfig {
    Sandbox(SandboxToolConfig),
    WebFetch(WebFetchConfig),
    WebSearch(WebSearchConfig),
}

wire::tagged_union! { BuiltinToolConfig:
    "bash" | "read" | "write" | "edit" | "glob" | "grep" => Sandbox,
    "web_fetch" => WebFetch,
    "web_search" => WebSearch,
}

/// The built-in tools that run in the sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SandboxTool {
    Bash,
    Read,
    Write,
    Edit,
    Glob,
    Grep,
}

impl From<SandboxTool> for BuiltinTool {
    fn from(tool: SandboxTool) -> Self {
        match tool {
            SandboxTool::Bash => Self::Bash,
            SandboxTool::Read => Self::Read,
            SandboxTool::Write => Self::Write,
            SandboxTool::Edit => Self::Edit,
            SandboxTool::Glob => Self::Glob,
            SandboxTool::Grep => Self::Grep,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SandboxToolConfig {
    pub r#type: SandboxTool,
    pub name: SandboxTool,
    pub enabled: bool,
    pub permission_policy: PermissionPolicy,
}

impl BuiltinToolConfig {
    #[must_use]
    pub fn name(&self) -> BuiltinTool {
        match self {
            Self::Sandbox(config) => config.name.into(),
            Self::WebFetch(_) => BuiltinTool::WebFetch,
            Self::WebSearch(_) => BuiltinTool::WebSearch,
        }
    }

    #[must_use]
    pub fn setting(&self) -> ToolSetting {
        let (enabled, policy) = match self {
            Self::Sandbox(config) => (config.enabled, config.permission_policy),
            Self::WebFetch(config) => (config.enabled, config.permission_policy),
            Self::WebSearch(config) => (config.enabled, config.permission_policy),
        };
        ToolSetting { enabled, policy }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct McpToolset {
    #[schema(inline)]
    pub r#type: McpToolsetType,
    pub mcp_server_name: String,
    pub default_config: ToolDefaults,
    pub configs: Vec<McpToolConfig>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct McpToolConfig {
    pub name: String,
    pub enabled: bool,
    pub permission_policy: PermissionPolicy,
}

impl AgentToolset {
    /// The effective setting of one tool.
    #[must_use]
    pub fn setting(&self, tool: BuiltinTool) -> ToolSetting {
        self.configs
            .iter()
            .find(|config| config.name() == tool)
            .map_or_else(|| self.default_config.setting(), BuiltinToolConfig::setting)
    }
}

impl McpToolset {
    /// The effective setting of one tool of this server.
    #[must_use]
    pub fn setting(&self, tool: &str) -> ToolSetting {
        self.configs
            .iter()
            .find(|config| config.name == tool)
            .map_or_else(
                || self.default_config.setting(),
                |config| ToolSetting {
                    enabled: config.enabled,
                    policy: config.permission_policy,
                },
            )
    }
}

#[cfg(test)]
mod tests;
