//! What a session's sandbox may reach through the door.

use std::sync::Arc;

use selfsame_net::{Hosts, hosts::HostPattern};
use selfsame_store::ResourceKind;
use selfsame_types::{
    SessionId,
    environment::{EnvironmentConfig, LimitedNetwork, Networking},
    session::{self, SessionResource},
};
use url::Url;

use super::{FitError, Outfit, Workbench};
use crate::{
    door::{Access, Network, Repository, Wallet},
    resources,
};

impl Workbench {
    /// The rules for a session's connections, with its repositories' tokens in clear.
    pub async fn access(
        &self,
        session: SessionId,
        wanted: &Outfit,
        wallet: &Arc<Wallet>,
    ) -> Result<Arc<Access>, FitError> {
        let mut repositories = Vec::new();
        for record in &wanted.equipment.resources {
            let ResourceKind::Repository { token } = &record.kind else {
                continue;
            };
            let SessionResource::GithubRepository(shown) =
                resources::read(record.id, &record.body)?
            else {
                continue;
            };
            let Some((host, owner, name)) = session::repository(&shown.url) else {
                continue;
            };
            let workspace = wanted.equipment.workspace;
            let token = match token {
                Some(sealed) => Some(
                    self.store
                        .resource_token(workspace, record.id, sealed)
                        .await
                        .map_err(selfsame_store::StoreError::from)?,
                ),
                None => None,
            };
            repositories.push(Repository {
                host: host.to_ascii_lowercase(),
                owner: owner.to_owned(),
                name: name.to_owned(),
                token,
            });
        }
        Ok(Arc::new(Access {
            session,
            network: of_session(wanted),
            repositories,
            wallet: Some(Arc::clone(wallet)),
        }))
    }
}

fn of_session(wanted: &Outfit) -> Network {
    let agents = wanted.agent.specs();
    let servers = agents.iter().flat_map(|agent| &agent.mcp_servers);
    let mcp_hosts = servers.filter_map(|server| {
        let url: Url = server.url.parse().ok()?;
        url.host_str().map(str::to_ascii_lowercase)
    });
    match &wanted.environment {
        EnvironmentConfig::Cloud(cloud) => network(&cloud.networking, mcp_hosts),
        // Its tools run elsewhere.
        EnvironmentConfig::SelfHosted(_) => network(
            &Networking::Limited(LimitedNetwork::default()),
            std::iter::empty(),
        ),
    }
}

/// What an environment says about its sandboxes' network. The hosts of MCP servers are those of the session's
/// agents.
pub(crate) fn network(networking: &Networking, mcp_hosts: impl Iterator<Item = String>) -> Network {
    let limited = match networking {
        Networking::Unrestricted(_) => return Network::Unrestricted,
        Networking::Limited(limited) => limited,
    };
    let mcp_hosts = mcp_hosts.filter(|_| limited.allow_mcp_servers);
    // What was saved was checked; what does not parse all the same opens nothing.
    let hosts = |list: &mut dyn Iterator<Item = String>| {
        Hosts::parse(list.filter(|host| host.parse::<HostPattern>().is_ok())).unwrap_or_default()
    };
    Network::Limited {
        allowed_hosts: hosts(&mut limited.allowed_hosts.iter().cloned()),
        package_hosts: limited.allow_package_managers,
        extra_hosts: hosts(&mut { mcp_hosts }),
    }
}
