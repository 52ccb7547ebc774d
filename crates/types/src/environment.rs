//! Environments: templates for the sandboxes that sessions run their tools in.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    ApiError, EmptyValue, EnvironmentId, Metadata, MetadataPatch, Patch, Timestamp, check, wire,
};

const NAME: std::ops::RangeInclusive<usize> = 1..=256;
const DESCRIPTION: std::ops::RangeInclusive<usize> = 0..=1024;
/// Most hosts of a `limited` network, and most packages of one manager.
const MAX_LIST: usize = 1000;

wire::literals! {
    EnvironmentType = "environment";
    EnvironmentDeletedType = "environment_deleted";
    CloudType = "cloud";
    SelfHostedType = "self_hosted";
    UnrestrictedType = "unrestricted";
    LimitedType = "limited";
    PackagesType = "packages";
}

// Resolved ---------------------------------------------------------------------------------------

/// An environment, as the API shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Environment {
    #[schema(inline)]
    pub r#type: EnvironmentType,
    pub id: EnvironmentId,
    pub name: String,
    #[schema(required)]
    pub description: Option<String>,
    pub config: EnvironmentConfig,
    pub metadata: Metadata,
    pub scope: EnvironmentScope,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    #[schema(required)]
    pub archived_at: Option<Timestamp>,
}

/// The answer to a deletion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct DeletedEnvironment {
    pub id: EnvironmentId,
    #[schema(inline)]
    pub r#type: EnvironmentDeletedType,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum EnvironmentScope {
    #[default]
    Organization,
    /// Not offered by this server.
    Account,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(untagged)]
#[schema(discriminator(property_name = "type", mapping(
    ("cloud" = "#/components/schemas/CloudConfig"),
    ("self_hosted" = "#/components/schemas/SelfHostedConfig"),
)))]
pub enum EnvironmentConfig {
    Cloud(CloudConfig),
    SelfHosted(SelfHostedConfig),
}

wire::tagged_union! { EnvironmentConfig:
    "cloud" => Cloud,
    "self_hosted" => SelfHosted,
}

/// Sandboxes that this server runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CloudConfig {
    #[schema(inline)]
    pub r#type: CloudType,
    pub networking: Networking,
    pub packages: Packages,
}

/// Tools are run by a worker of the client's own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SelfHostedConfig {
    #[schema(inline)]
    pub r#type: SelfHostedType,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(untagged)]
#[schema(discriminator(property_name = "type", mapping(
    ("unrestricted" = "#/components/schemas/UnrestrictedNetwork"),
    ("limited" = "#/components/schemas/LimitedNetwork"),
)))]
pub enum Networking {
    Unrestricted(UnrestrictedNetwork),
    Limited(LimitedNetwork),
}

wire::tagged_union! { Networking:
    "unrestricted" => Unrestricted,
    "limited" => Limited,
}

impl Default for Networking {
    fn default() -> Self {
        Self::Unrestricted(UnrestrictedNetwork::default())
    }
}

/// Every public address.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UnrestrictedNetwork {
    #[schema(inline)]
    pub r#type: UnrestrictedType,
}

/// Nothing but what is listed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LimitedNetwork {
    #[schema(inline)]
    pub r#type: LimitedType,
    pub allowed_hosts: Vec<String>,
    pub allow_mcp_servers: bool,
    pub allow_package_managers: bool,
}

/// Packages to install, in this order of managers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Packages {
    #[schema(inline)]
    pub r#type: PackagesType,
    pub apt: Vec<String>,
    pub cargo: Vec<String>,
    pub gem: Vec<String>,
    pub go: Vec<String>,
    pub npm: Vec<String>,
    pub pip: Vec<String>,
}

impl Packages {
    /// Managers and their packages, in the order of installation.
    #[must_use]
    pub fn by_manager(&self) -> [(&'static str, &[String]); 6] {
        [
            ("apt", &self.apt),
            ("cargo", &self.cargo),
            ("gem", &self.gem),
            ("go", &self.go),
            ("npm", &self.npm),
            ("pip", &self.pip),
        ]
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_manager().iter().all(|(_, list)| list.is_empty())
    }
}

impl Default for EnvironmentConfig {
    fn default() -> Self {
        Self::Cloud(CloudConfig::default())
    }
}

// Requests ---------------------------------------------------------------------------------------

/// The body of `POST /v1/environments`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateEnvironment {
    /// Unique among the workspace's environments that are not archived.
    #[schema(min_length = 1, max_length = 256)]
    pub name: String,
    pub config: Option<EnvironmentConfigParams>,
    #[schema(max_length = 1024)]
    pub description: Option<String>,
    #[serde(default)]
    pub metadata: Metadata,
    pub scope: Option<EnvironmentScope>,
}

/// The body of `POST /v1/environments/{environment_id}`. What is absent stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateEnvironment {
    #[schema(min_length = 1, max_length = 256)]
    pub name: Option<String>,
    /// Must be of the environment's own `type`; what is absent inside it stays, too.
    pub config: Option<EnvironmentConfigParams>,
    #[serde(default)]
    #[schema(value_type = Option<String>, max_length = 1024)]
    pub description: Patch<String>,
    pub metadata: Option<MetadataPatch>,
    pub scope: Option<EnvironmentScope>,
}

#[derive(Debug, Clone, PartialEq, Eq, ToSchema)]
#[serde(untagged)]
#[schema(discriminator(property_name = "type", mapping(
    ("cloud" = "#/components/schemas/CloudConfigParams"),
    ("self_hosted" = "#/components/schemas/SelfHostedConfig"),
)))]
pub enum EnvironmentConfigParams {
    Cloud(CloudConfigParams),
    SelfHosted(SelfHostedConfig),
}

wire::tagged_union! { EnvironmentConfigParams:
    "cloud" => Cloud,
    "self_hosted" => SelfHosted,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CloudConfigParams {
    #[schema(inline)]
    pub r#type: CloudType,
    pub networking: Option<NetworkingParams>,
    pub packages: Option<PackagesParams>,
}

#[derive(Debug, Clone, PartialEq, Eq, ToSchema)]
#[serde(untagged)]
#[schema(discriminator(property_name = "type", mapping(
    ("unrestricted" = "#/components/schemas/UnrestrictedNetwork"),
    ("limited" = "#/components/schemas/LimitedNetworkParams"),
)))]
pub enum NetworkingParams {
    Unrestricted(UnrestrictedNetwork),
    Limited(LimitedNetworkParams),
}

wire::tagged_union! { NetworkingParams:
    "unrestricted" => Unrestricted,
    "limited" => Limited,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LimitedNetworkParams {
    #[schema(inline)]
    pub r#type: LimitedType,
    /// Host names, or `*.` and a host name. No scheme, port or path.
    pub allowed_hosts: Option<Vec<String>>,
    /// The hosts of the agent's MCP servers.
    pub allow_mcp_servers: Option<bool>,
    /// The public package registries. Must be true when there are `packages`.
    pub allow_package_managers: Option<bool>,
}

/// Names of packages in each manager's own version syntax.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PackagesParams {
    #[schema(inline, nullable = false)]
    pub r#type: Option<PackagesType>,
    pub apt: Option<Vec<String>>,
    pub cargo: Option<Vec<String>>,
    pub gem: Option<Vec<String>>,
    pub go: Option<Vec<String>>,
    pub npm: Option<Vec<String>>,
    pub pip: Option<Vec<String>>,
}

/// The part of an environment that requests decide.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnvironmentSpec {
    pub name: String,
    pub description: Option<String>,
    pub config: EnvironmentConfig,
    pub metadata: Metadata,
}

impl Environment {
    /// The part of it that requests decide.
    #[must_use]
    pub fn spec(&self) -> EnvironmentSpec {
        EnvironmentSpec {
            name: self.name.clone(),
            description: self.description.clone(),
            config: self.config.clone(),
            metadata: self.metadata.clone(),
        }
    }
}

impl CreateEnvironment {
    /// Checks everything and fills in defaults.
    pub fn resolve(self) -> Result<EnvironmentSpec, ApiError> {
        check_scope(self.scope)?;
        check::text("name", &self.name, NAME)?;
        if let Some(description) = &self.description {
            check::text("description", description, DESCRIPTION)?;
        }
        self.metadata.validate()?;
        let config = match self.config {
            None => EnvironmentConfig::default(),
            Some(EnvironmentConfigParams::Cloud(params)) => {
                EnvironmentConfig::Cloud(params.merge(CloudConfig::default())?)
            }
            Some(EnvironmentConfigParams::SelfHosted(_)) => {
                return Err(ApiError::not_implemented(
                    "config.type: this server does not offer `self_hosted` environments yet; use \
                     `cloud`",
                ));
            }
        };
        Ok(EnvironmentSpec {
            name: self.name,
            description: self.description,
            config,
            metadata: self.metadata,
        })
    }
}

impl UpdateEnvironment {
    /// What the environment becomes. Equal to its present spec when nothing changes effectively.
    pub fn change(self, environment: &Environment) -> Result<EnvironmentSpec, ApiError> {
        if environment.archived_at.is_some() {
            return Err(ApiError::invalid(format!(
                "environment `{}` is archived and can no longer be changed",
                environment.id
            ))
            .with_code("environment_archived"));
        }
        self.apply(environment.spec())
    }

    fn apply(self, current: EnvironmentSpec) -> Result<EnvironmentSpec, ApiError> {
        check_scope(self.scope)?;
        let name = self.name.unwrap_or(current.name);
        check::text("name", &name, NAME)?;
        let description = self.description.apply(current.description);
        if let Some(description) = &description {
            check::text("description", description, DESCRIPTION)?;
        }
        let metadata = match self.metadata {
            Some(patch) => patch.apply(&current.metadata, EmptyValue::Deletes)?,
            None => current.metadata,
        };
        let config = match (self.config, current.config) {
            (None, stored) => stored,
            (Some(EnvironmentConfigParams::Cloud(params)), EnvironmentConfig::Cloud(stored)) => {
                EnvironmentConfig::Cloud(params.merge(stored)?)
            }
            (
                Some(EnvironmentConfigParams::SelfHosted(params)),
                EnvironmentConfig::SelfHosted(_),
            ) => EnvironmentConfig::SelfHosted(params),
            (Some(_), stored) => {
                let stored = match stored {
                    EnvironmentConfig::Cloud(_) => "cloud",
                    EnvironmentConfig::SelfHosted(_) => "self_hosted",
                };
                return Err(ApiError::invalid(format!(
                    "config.type: is `{stored}` and cannot be changed; create another environment"
                ))
                .with_code("invalid_config_type_change"));
            }
        };
        Ok(EnvironmentSpec {
            name,
            description,
            config,
            metadata,
        })
    }
}

impl CloudConfigParams {
    fn merge(self, stored: CloudConfig) -> Result<CloudConfig, ApiError> {
        let networking = match self.networking {
            None => stored.networking,
            Some(NetworkingParams::Unrestricted(network)) => Networking::Unrestricted(network),
            Some(NetworkingParams::Limited(params)) => {
                let base = match stored.networking {
                    Networking::Limited(network) => network,
                    Networking::Unrestricted(_) => LimitedNetwork::default(),
                };
                Networking::Limited(LimitedNetwork {
                    r#type: LimitedType,
                    allowed_hosts: params.allowed_hosts.unwrap_or(base.allowed_hosts),
                    allow_mcp_servers: params.allow_mcp_servers.unwrap_or(base.allow_mcp_servers),
                    allow_package_managers: params
                        .allow_package_managers
                        .unwrap_or(base.allow_package_managers),
                })
            }
        };
        let packages = match self.packages {
            None => stored.packages,
            Some(params) => Packages {
                r#type: PackagesType,
                apt: params.apt.unwrap_or(stored.packages.apt),
                cargo: params.cargo.unwrap_or(stored.packages.cargo),
                gem: params.gem.unwrap_or(stored.packages.gem),
                go: params.go.unwrap_or(stored.packages.go),
                npm: params.npm.unwrap_or(stored.packages.npm),
                pip: params.pip.unwrap_or(stored.packages.pip),
            },
        };
        let config = CloudConfig {
            r#type: CloudType,
            networking,
            packages,
        };
        config.validate()?;
        Ok(config)
    }
}

impl CloudConfig {
    fn validate(&self) -> Result<(), ApiError> {
        if let Networking::Limited(network) = &self.networking {
            let at = "config.networking.allowed_hosts";
            check::count(at, network.allowed_hosts.len(), 0..=MAX_LIST)?;
            for (index, host) in network.allowed_hosts.iter().enumerate() {
                check::host(host)
                    .map_err(|reason| ApiError::invalid(format!("{at}[{index}]: {reason}")))?;
            }
            if !self.packages.is_empty() && !network.allow_package_managers {
                return Err(ApiError::invalid(
                    "config.networking.allow_package_managers: must be true when `packages` is not \
                     empty",
                ));
            }
        }
        for (manager, packages) in self.packages.by_manager() {
            let at = format!("config.packages.{manager}");
            check::count(&at, packages.len(), 0..=MAX_LIST)?;
            for (index, package) in packages.iter().enumerate() {
                let at = format!("{at}[{index}]");
                check::text(&at, package, 1..=255)?;
                // Names become arguments of the manager: never options, never several.
                if package.starts_with('-')
                    || package.chars().any(|c| c.is_whitespace() || c.is_control())
                {
                    return Err(ApiError::invalid(format!(
                        "{at}: must be a package name, without spaces and not beginning with `-`"
                    )));
                }
            }
        }
        Ok(())
    }
}

fn check_scope(scope: Option<EnvironmentScope>) -> Result<(), ApiError> {
    match scope {
        Some(EnvironmentScope::Account) => Err(ApiError::invalid(
            "scope: `account` is not available; use `organization` or leave it out",
        )),
        Some(EnvironmentScope::Organization) | None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
