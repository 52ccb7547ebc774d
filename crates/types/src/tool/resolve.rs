//! From a request's `tools` to the resolved ones: every rule, and every default.

use super::{
    AgentToolset, AgentToolsetParams, AgentToolsetType, BuiltinTool, BuiltinToolConfig,
    BuiltinToolConfigParams, MAX_TOOLS, McpToolConfig, McpToolset, McpToolsetParams,
    McpToolsetType, PermissionPolicy, SandboxTool, SandboxToolConfig, Tool, ToolDefaults,
    ToolParams, WebFetchConfig, WebFetchType, WebSearchConfig, WebSearchType, domains,
};
use crate::{ApiError, check};

/// Checks a `tools` array and fills in everything it leaves out.
pub fn resolve_tools(tools: Vec<ToolParams>) -> Result<Vec<Tool>, ApiError> {
    check::count("tools", tools.len(), 0..=MAX_TOOLS)?;
    let custom_names: Vec<String> = tools
        .iter()
        .filter_map(|tool| match tool {
            ToolParams::Custom(tool) => Some(tool.name.clone()),
            _ => None,
        })
        .collect();
    let mut resolved: Vec<Tool> = Vec::with_capacity(tools.len());
    for (index, tool) in tools.into_iter().enumerate() {
        let at = format!("tools[{index}]");
        let tool = match tool {
            ToolParams::Agent(params) => Tool::Agent(params.resolve(&at, &custom_names)?),
            ToolParams::Mcp(params) => Tool::Mcp(params.resolve(&at)?),
            ToolParams::Custom(tool) => Tool::Custom(tool.resolve(&at)?),
        };
        refuse_twin(&resolved, &tool, &at)?;
        resolved.push(tool);
    }
    Ok(resolved)
}

/// Two entries must not speak about the same tool.
fn refuse_twin(earlier: &[Tool], tool: &Tool, at: &str) -> Result<(), ApiError> {
    let message = match tool {
        Tool::Agent(_) => earlier
            .iter()
            .any(|other| matches!(other, Tool::Agent(_)))
            .then(|| "a second `agent_toolset_20260401`; put all its settings in one".to_owned()),
        Tool::Mcp(toolset) => earlier
            .iter()
            .any(|other| {
                matches!(other, Tool::Mcp(other) if other.mcp_server_name == toolset.mcp_server_name)
            })
            .then(|| {
                format!(
                    "a second `mcp_toolset` for server `{}`; put all its settings in one",
                    toolset.mcp_server_name
                )
            }),
        Tool::Custom(custom) => earlier
            .iter()
            .any(|other| matches!(other, Tool::Custom(other) if other.name == custom.name))
            .then(|| {
                format!(
                    "a second custom tool named `{}`; names must be unique",
                    custom.name
                )
            }),
    };
    match message {
        Some(message) => Err(ApiError::invalid(format!("{at}: {message}"))),
        None => Ok(()),
    }
}

impl AgentToolsetParams {
    fn resolve(self, at: &str, custom_names: &[String]) -> Result<AgentToolset, ApiError> {
        let default_config =
            ToolDefaults::resolve(self.default_config, PermissionPolicy::ALWAYS_ALLOW, at)?;
        let mut configs: Vec<BuiltinToolConfig> = Vec::with_capacity(self.configs.len());
        for (index, params) in self.configs.into_iter().enumerate() {
            let at = format!("{at}.configs[{index}]");
            if configs.iter().any(|other| other.name() == params.name) {
                return Err(ApiError::invalid(format!(
                    "{at}.name: `{}` is configured twice; merge the entries",
                    params.name.as_str()
                )));
            }
            configs.push(params.resolve(&at, default_config, custom_names)?);
        }
        Ok(AgentToolset {
            r#type: AgentToolsetType,
            default_config,
            configs,
        })
    }
}

impl BuiltinToolConfigParams {
    fn resolve(
        self,
        at: &str,
        defaults: ToolDefaults,
        custom_names: &[String],
    ) -> Result<BuiltinToolConfig, ApiError> {
        if self.r#type.is_some_and(|tag| tag != self.name) {
            return Err(ApiError::invalid(format!(
                "{at}.type: must equal `name` (`{}`) or be left out",
                self.name.as_str()
            )));
        }
        self.refuse_foreign_settings(at)?;
        let ToolDefaults {
            enabled,
            permission_policy,
        } = defaults.overlay(self.enabled, self.permission_policy, at)?;
        let sandbox = |name| {
            BuiltinToolConfig::Sandbox(SandboxToolConfig {
                r#type: name,
                name,
                enabled,
                permission_policy,
            })
        };
        Ok(match self.name {
            BuiltinTool::Bash => sandbox(SandboxTool::Bash),
            BuiltinTool::Read => sandbox(SandboxTool::Read),
            BuiltinTool::Write => sandbox(SandboxTool::Write),
            BuiltinTool::Edit => sandbox(SandboxTool::Edit),
            BuiltinTool::Glob => sandbox(SandboxTool::Glob),
            BuiltinTool::Grep => sandbox(SandboxTool::Grep),
            BuiltinTool::WebFetch => {
                domains::validate(
                    at,
                    self.allowed_domains.as_deref(),
                    self.blocked_domains.as_deref(),
                    domains::Paths::Refused,
                )?;
                if self.max_content_tokens.is_some_and(|tokens| tokens < 1) {
                    return Err(ApiError::invalid(format!(
                        "{at}.max_content_tokens: must be greater than 0"
                    )));
                }
                BuiltinToolConfig::WebFetch(WebFetchConfig {
                    r#type: WebFetchType,
                    name: WebFetchType,
                    enabled,
                    permission_policy,
                    allowed_domains: self.allowed_domains,
                    blocked_domains: self.blocked_domains,
                    max_content_tokens: self.max_content_tokens,
                    url_sources: self
                        .url_sources
                        .map(|sources| sources.resolve(at, custom_names))
                        .transpose()?,
                })
            }
            BuiltinTool::WebSearch => {
                domains::validate(
                    at,
                    self.allowed_domains.as_deref(),
                    self.blocked_domains.as_deref(),
                    domains::Paths::Allowed,
                )?;
                if let Some(location) = &self.user_location {
                    location.validate(&format!("{at}.user_location"))?;
                }
                BuiltinToolConfig::WebSearch(WebSearchConfig {
                    r#type: WebSearchType,
                    name: WebSearchType,
                    enabled,
                    permission_policy,
                    allowed_domains: self.allowed_domains,
                    blocked_domains: self.blocked_domains,
                    user_location: self.user_location,
                })
            }
        })
    }

    fn refuse_foreign_settings(&self, at: &str) -> Result<(), ApiError> {
        let (web, fetch, search) = (
            self.name.is_web(),
            self.name == BuiltinTool::WebFetch,
            self.name == BuiltinTool::WebSearch,
        );
        for (key, present, belongs, owners) in [
            (
                "allowed_domains",
                self.allowed_domains.is_some(),
                web,
                "`web_fetch` and `web_search`",
            ),
            (
                "blocked_domains",
                self.blocked_domains.is_some(),
                web,
                "`web_fetch` and `web_search`",
            ),
            (
                "max_content_tokens",
                self.max_content_tokens.is_some(),
                fetch,
                "`web_fetch`",
            ),
            (
                "url_sources",
                self.url_sources.is_some(),
                fetch,
                "`web_fetch`",
            ),
            (
                "user_location",
                self.user_location.is_some(),
                search,
                "`web_search`",
            ),
        ] {
            if present && !belongs {
                return Err(ApiError::invalid(format!(
                    "{at}.{key}: is a setting of {owners}, not of `{}`",
                    self.name.as_str()
                )));
            }
        }
        Ok(())
    }
}

impl McpToolsetParams {
    fn resolve(self, at: &str) -> Result<McpToolset, ApiError> {
        check::text(
            format_args!("{at}.mcp_server_name"),
            &self.mcp_server_name,
            1..=255,
        )?;
        let default_config =
            ToolDefaults::resolve(self.default_config, PermissionPolicy::ALWAYS_ASK, at)?;
        let mut configs: Vec<McpToolConfig> = Vec::with_capacity(self.configs.len());
        for (index, params) in self.configs.into_iter().enumerate() {
            let at = format!("{at}.configs[{index}]");
            check::text(format_args!("{at}.name"), &params.name, 1..=128)?;
            if configs.iter().any(|other| other.name == params.name) {
                return Err(ApiError::invalid(format!(
                    "{at}.name: `{}` is configured twice; merge the entries",
                    check::excerpt(&params.name)
                )));
            }
            let ToolDefaults {
                enabled,
                permission_policy,
            } = default_config.overlay(params.enabled, params.permission_policy, &at)?;
            configs.push(McpToolConfig {
                name: params.name,
                enabled,
                permission_policy,
            });
        }
        Ok(McpToolset {
            r#type: McpToolsetType,
            mcp_server_name: self.mcp_server_name,
            default_config,
            configs,
        })
    }
}
