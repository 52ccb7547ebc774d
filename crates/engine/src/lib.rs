//! What a session does: state machine, runner, transcript, streams, sandboxes, and the loops that keep
//! all of it going.
//!
//! ```text
//! server ──▶ Engine (sessions.rs: create, send, archive, delete, update; streams.rs: subscribe)
//!               │ decide: machine/ (pure)            store::append (one transaction)
//!               ▼
//!            Runner (one per session this server drives) ── ask.rs ──▶ model
//!               │                                        └─ sandboxes.rs ──▶ hands
//!               ▼
//!            Hub (live streams)   Notifier (hints to other servers)   loops.rs (claims, reaping)
//! ```

mod ask;
mod change;
mod content;
pub mod door;
pub mod fail;
mod hub;
mod images;
mod loops;
pub mod machine;
mod mcp;
mod notifier;
mod outcomes;
mod prompt;
mod resources;
mod runner;
mod runners;
mod sandboxes;
mod sessions;
pub mod skills;
mod spill;
#[cfg(test)]
mod testing;
mod threads;
mod transcript;
pub mod vaults;
mod web;
pub mod webhooks;
mod workbench;

use std::{sync::Arc, time::Duration};

use selfsame_model::{Models, Provider, retry::Backoff};
use selfsame_sandbox::Backend;
use selfsame_store::{Row, Store};
use selfsame_types::{ServerId, SessionId};
use tokio::sync::Notify;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use hub::{Item, Preview, PreviewKind, Subscription};
pub use images::{ImageError, ImagesConfig};
pub use machine::Status;
pub use mcp::{Mcp, McpConfig};
pub use resources::{ResourceError, read as read_resource};
pub use sandboxes::SandboxConfig;
pub use sessions::{NewSessionRequest, Sent, SessionEdit, Watch};
pub use web::{FetchLimits, SearchBackend, SearchConfig, Web, WebConfig};

use crate::{
    door::Door,
    hub::Hub,
    images::{Images, SandboxBuilder},
    notifier::Notifier,
    runners::Runners,
    sandboxes::Sandboxes,
    vaults::{Vaults, VaultsConfig},
    webhooks::{Deliverer, Webhooks},
    workbench::Workbench,
};

/// How the engine behaves.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// A server whose heartbeat is older has lost its sessions.
    pub lease_ttl: Duration,
    /// Sessions driven at once by this server.
    pub max_runners: usize,
    /// Time that a drain gives to what is in flight.
    pub drain: Duration,
    pub backoff: Backoff,
    /// Name of the model route, for the ledger.
    pub route: String,
    /// Certificates (PEM) that programs in sandboxes trust besides their image's own.
    pub trust: Option<String>,
    /// How long a connected sandbox is kept after its session has gone idle.
    pub keep_connected: Duration,
    pub sandbox: SandboxConfig,
    pub images: ImagesConfig,
}

/// What an engine is made of, besides the database.
#[derive(Debug)]
pub struct Parts {
    pub provider: Arc<dyn Provider>,
    pub models: Models,
    pub backend: Arc<dyn Backend>,
    pub door: Door,
    pub web: Web,
    pub mcp: Mcp,
    pub webhooks: Webhooks,
    pub vaults: VaultsConfig,
}

/// Everything that drives sessions on this server. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub server: ServerId,
    pub store: Store,
    pub config: EngineConfig,
    pub provider: Arc<dyn Provider>,
    pub models: Models,
    pub hub: Hub,
    pub notifier: Notifier,
    pub sandboxes: Sandboxes,
    pub images: Arc<Images>,
    pub web: Web,
    pub mcp: Mcp,
    pub webhooks: Webhooks,
    deliverer: Deliverer,
    pub vaults: Vaults,
    pub content: content::Cache,
    runners: Runners,
    /// Wakes the claim loop.
    pub claims: Notify,
    pub tasks: TaskTracker,
    pub shutdown: CancellationToken,
}

impl Engine {
    /// Puts the parts together. Nothing runs before [`Engine::start`].
    #[must_use]
    pub fn new(store: Store, parts: Parts, config: EngineConfig) -> Self {
        let Parts {
            provider,
            models,
            backend,
            door,
            web,
            mcp,
            webhooks,
            vaults,
        } = parts;
        let server = ServerId::new();
        let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
        let notifier = Notifier::new(store.clone(), server);
        let vaults = Vaults::new(store.clone(), notifier.clone(), tasks.clone(), vaults);
        let images = Images::new(
            Arc::new(SandboxBuilder {
                backend: Arc::clone(&backend),
                config: config.sandbox.clone(),
                door: door.clone(),
                trust: config.trust.clone(),
            }),
            store.clone(),
            server,
            config.images.clone(),
            tasks.clone(),
            shutdown.clone(),
        );
        let workbench = Workbench::new(
            store.clone(),
            door.certificate().to_owned(),
            config.trust.clone(),
        );
        let sandboxes = Sandboxes::new(
            backend,
            store.clone(),
            server,
            config.sandbox.clone(),
            Arc::clone(&images),
            workbench,
            (door, vaults.clone()),
        );
        Self {
            inner: Arc::new(Inner {
                server,
                hub: Hub::default(),
                notifier,
                sandboxes,
                images,
                web,
                mcp,
                deliverer: Deliverer::new(
                    webhooks.clone(),
                    store.clone(),
                    server,
                    (config.lease_ttl, config.drain),
                    tasks.clone(),
                    shutdown.clone(),
                ),
                webhooks,
                vaults,
                content: content::Cache::default(),
                runners: Runners::default(),
                claims: Notify::new(),
                tasks,
                shutdown,
                store,
                config,
                provider,
                models,
            }),
        }
    }

    #[must_use]
    pub fn server_id(&self) -> ServerId {
        self.inner.server
    }

    /// Whether an environment's packages can be installed here.
    #[must_use]
    pub fn installs_packages(&self) -> bool {
        self.inner.sandboxes.makes_images()
    }

    /// How webhooks are delivered.
    #[must_use]
    pub fn webhooks(&self) -> &Webhooks {
        &self.inner.webhooks
    }

    /// Models that sessions may use.
    #[must_use]
    pub fn models(&self) -> &Models {
        &self.inner.models
    }

    #[must_use]
    pub fn vaults(&self) -> &Vaults {
        &self.inner.vaults
    }

    /// A client has changed a vault or a credential: running sessions are to see it.
    pub fn vaults_changed(&self) {
        self.inner.vaults.forget_all();
        self.inner.notifier.vaults_changed(None);
    }

    /// Says hello to the other servers and starts the background loops.
    ///
    /// # Errors
    /// When the database does not take the first heartbeat.
    pub async fn start(&self) -> Result<(), selfsame_store::StoreError> {
        loops::start(&self.inner).await
    }

    /// Stops claiming, lets what is in flight come to its end within the set time, hands the rest over.
    pub async fn drain(&self) {
        self.inner.shutdown.cancel();
        self.inner.tasks.close();
        // Twice the time: a hand-over itself needs the database.
        let limit = self.inner.config.drain * 2 + Duration::from_secs(5);
        if tokio::time::timeout(limit, self.inner.tasks.wait())
            .await
            .is_err()
        {
            tracing::warn!("some sessions could not be handed over in time; their leases run out");
        }
        self.inner.notifier.flush().await;
        if let Err(error) = self.inner.store.server_leave(self.inner.server).await {
            tracing::warn!(%error, "cannot remove this server's row");
        }
    }
}

impl Inner {
    /// Tells local streams and other servers of rows that were just committed.
    pub(crate) fn published(&self, session: SessionId, rows: &[Row]) {
        self.hub.publish(session, rows);
        if let Some(last) = rows.last() {
            self.notifier.appended(session, last.seq);
        }
    }
}
