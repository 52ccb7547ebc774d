//! What a session's sandbox is fitted out with, and what comes back out of it.
//!
//! A reconciler: it compares what the session has (rows) with what the sandbox has (ids on its row),
//! brings what is missing and removes what is not wanted any more. It runs when a sandbox is connected
//! and when a client changes the session's resources; each step can be repeated, so a crash in the middle
//! costs no more than the step it was in.

mod access;
mod briefing;
mod files;
mod outputs;
mod repositories;
mod skills;

use std::collections::HashSet;

use selfsame_sandbox::{Sandbox, SandboxError};
use selfsame_store::{BlobError, Equipment, ResourceKind, Store, StoreError};
use selfsame_types::{
    SandboxId, SessionId,
    agent::AgentSnapshot,
    environment::EnvironmentConfig,
    session::{SessionResource, UPLOADS},
};
use uuid::Uuid;

use crate::{door::Wallet, machine::Trouble, resources, vaults::VaultsError};

pub(crate) use access::network;
pub(crate) use briefing::Briefing;
pub(crate) use outputs::Outputs;

/// Where what the user is meant to receive is written.
pub(crate) const OUTPUTS: &str = "/mnt/session/outputs";
/// Stands in the list of what is mounted for the links that every sandbox gets.
const LAYOUT: Uuid = Uuid::from_u128(1);
/// .. for the door's own certificate, which is trusted where the session has variables.
const TRUSTED: Uuid = Uuid::from_u128(3);

/// Why a sandbox could not be fitted out at all.
#[derive(Debug, thiserror::Error)]
pub enum FitError {
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Blob(#[from] BlobError),
    #[error(transparent)]
    Vaults(#[from] VaultsError),
    #[error("the session is gone")]
    Gone,
}

/// A session's equipment as it is read from the database.
#[derive(Debug)]
pub(crate) struct Outfit {
    pub equipment: Equipment,
    pub agent: AgentSnapshot,
    pub environment: EnvironmentConfig,
}

/// A sandbox that has what it should have.
#[derive(Debug, Default)]
pub(crate) struct Fit {
    /// What the session goes on without.
    pub troubles: Vec<Trouble>,
}

/// Fits sandboxes out. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Workbench {
    store: Store,
    /// The certificate that programs inside trust the door by, as PEM: `git` alone, or all of them in
    /// sessions that have variables.
    door_ca: String,
    /// What all programs inside trust besides their image's own, as PEM.
    trust: Option<String>,
}

impl Workbench {
    pub fn new(store: Store, door_ca: String, trust: Option<String>) -> Self {
        Self {
            store,
            door_ca,
            trust,
        }
    }

    /// What a session's sandbox should have.
    pub async fn wanted(&self, session: SessionId) -> Result<Outfit, FitError> {
        let equipment = self
            .store
            .session_equipment(session)
            .await?
            .ok_or(FitError::Gone)?;
        let corrupt = |column| StoreError::corrupt("sessions", column, session);
        Ok(Outfit {
            agent: serde_json::from_str(&equipment.agent).map_err(corrupt("agent"))?,
            environment: serde_json::from_str(&equipment.environment)
                .map_err(corrupt("environment"))?,
            equipment,
        })
    }

    /// Brings a sandbox to what it should have.
    pub async fn fit(
        &self,
        session: SessionId,
        id: SandboxId,
        sandbox: &Sandbox,
        wanted: &Outfit,
        wallet: &Wallet,
    ) -> Result<Fit, FitError> {
        let mut mounted: HashSet<Uuid> =
            self.store.sandbox_mounted(id).await?.into_iter().collect();
        let before = mounted.clone();
        let mut fit = Fit::default();
        let result = self
            .bring(session, sandbox, wanted, wallet, &mut mounted, &mut fit)
            .await;
        // Also after a failure: what is there need not be brought again.
        if mounted != before {
            let mounted: Vec<_> = mounted.into_iter().collect();
            self.store.sandbox_set_mounted(id, &mounted).await?;
        }
        result.map(|()| fit)
    }

    async fn bring(
        &self,
        session: SessionId,
        sandbox: &Sandbox,
        wanted: &Outfit,
        wallet: &Wallet,
        mounted: &mut HashSet<Uuid>,
        fit: &mut Fit,
    ) -> Result<(), FitError> {
        // Before the first command: shells keep the environment they started with.
        self.bring_variables(sandbox, wallet, mounted).await?;
        if !mounted.contains(&LAYOUT) {
            // Three generations of prompts name these places.
            sandbox.link("/uploads", UPLOADS).await?;
            sandbox
                .link("/skills", selfsame_types::session::SKILLS)
                .await?;
            mounted.insert(LAYOUT);
        }
        self.bring_skills(session, sandbox, wanted, mounted, fit)
            .await?;
        // A file may be linked into a repository, which must be there then.
        self.bring_repositories(session, sandbox, wanted, mounted, fit)
            .await?;
        for resource in &wanted.equipment.resources {
            let ResourceKind::File { blob } = &resource.kind else {
                continue;
            };
            match (resource.deleted, mounted.contains(&resource.id.0)) {
                (false, false) => {
                    self.bring_file(sandbox, resource, *blob, fit).await?;
                    mounted.insert(resource.id.0);
                }
                (true, true) => {
                    self.take_file(sandbox, resource).await?;
                    mounted.remove(&resource.id.0);
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl Workbench {
    /// Gives programs inside the session's variables, and the certificates they need. The hands forget
    /// variables when they end, so they are told each time.
    async fn bring_variables(
        &self,
        sandbox: &Sandbox,
        wallet: &Wallet,
        mounted: &mut HashSet<Uuid>,
    ) -> Result<(), FitError> {
        let variables = wallet.environment().await?;
        let opens_tls = !variables.is_empty();
        let pem = match (&self.trust, opens_tls) {
            (Some(pem), true) => Some(format!("{pem}\n{}", self.door_ca)),
            (None, true) => Some(self.door_ca.clone()),
            (trust, false) => trust.clone(),
        };
        let missing = !mounted.contains(&LAYOUT) || (opens_tls && !mounted.contains(&TRUSTED));
        if let Some(pem) = pem.filter(|_| missing) {
            sandbox.trust(&pem).await?;
        }
        if opens_tls {
            mounted.insert(TRUSTED);
        }
        // What has been there may be gone from the vaults by now.
        if mounted.contains(&TRUSTED) {
            sandbox.set_variables(variables).await?;
        }
        Ok(())
    }
}

/// Whether an environment asks for packages.
pub(crate) fn has_packages(environment: &EnvironmentConfig) -> bool {
    matches!(environment, EnvironmentConfig::Cloud(cloud) if !cloud.packages.is_empty())
}

impl Outfit {
    /// Whether the model is asked only when the sandbox is ready: what is in it is part of the question.
    pub fn comes_first(&self) -> bool {
        !self.equipment.resources.is_empty()
    }

    /// Resources that are not removed, as the API shows them.
    pub fn resources(&self) -> Result<Vec<SessionResource>, StoreError> {
        self.equipment
            .resources
            .iter()
            .filter(|resource| !resource.deleted)
            .map(|resource| resources::read(resource.id, &resource.body))
            .collect()
    }
}
