//! Images with an environment's packages installed, so that only the first session on an environment
//! waits for them.
//!
//! ```text
//! sandbox wanted ── packages? ── no ──▶ the configured image
//!                      │ yes
//!                      ▼
//!        name = hash(workspace, id of the configured image, packages)
//!                      │
//!        row: ready ───┼──▶ that image
//!             building ┼──▶ wait                      (this server or another)
//!             failed ──┼──▶ the error, for a while
//!             none ────┴──▶ claim it, build it: a sandbox of the configured image with the
//!                           environment's network, the managers one after the other, commit
//! ```
//!
//! A workspace shares its images with no other. What one of them installed at some time is nobody
//! else's business, and neither is the output of a failed installation.

mod build;
mod recipe;

use std::{
    collections::HashMap,
    fmt::Debug,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use async_trait::async_trait;
use selfsame_sandbox::SandboxError;
use selfsame_store::{ImageKey, ImageState, Store, StoreError};
use selfsame_types::{
    EnvironmentId, SandboxId, ServerId, SessionId, WorkspaceId,
    environment::{CloudConfig, Networking},
};
use tokio::sync::{Semaphore, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub(crate) use build::SandboxBuilder;
use recipe::Recipe;

/// Between two looks at what another server is building.
const POLL: Duration = Duration::from_millis(500);
/// After a first failure; doubled with each further one up to the longest.
const PAUSE: Duration = Duration::from_secs(30);
const LONGEST_PAUSE: Duration = Duration::from_secs(600);

/// How images with packages are made and kept.
#[derive(Debug, Clone)]
pub struct ImagesConfig {
    /// Time for one whole installation.
    pub timeout: Duration,
    /// Installations at once on this server.
    pub concurrency: usize,
    /// An image that no session has wanted for so long is removed.
    pub retention: Duration,
    /// A builder that has been silent for so long is gone.
    pub builder_ttl: Duration,
}

/// Why there is no image.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ImageError {
    /// The packages cannot be installed. The text is for the client, and not for logs: it names the
    /// manager and has the end of what it printed, which may repeat a secret in a package's address.
    #[error("the environment's packages could not be installed")]
    Failed(String),
    /// Ours, and may pass.
    #[error("the image with the environment's packages could not be made: {0}")]
    Sandbox(Arc<SandboxError>),
    #[error(transparent)]
    Store(Arc<StoreError>),
    #[error("the server is stopping")]
    Stopping,
}

impl From<SandboxError> for ImageError {
    fn from(error: SandboxError) -> Self {
        Self::Sandbox(Arc::new(error))
    }
}

impl From<StoreError> for ImageError {
    fn from(error: StoreError) -> Self {
        Self::Store(Arc::new(error))
    }
}

/// On whose behalf an image is wanted.
#[derive(Debug, Clone)]
pub(crate) struct Wanted<'a> {
    pub workspace: WorkspaceId,
    pub environment: EnvironmentId,
    pub session: SessionId,
    pub config: &'a CloudConfig,
}

/// One installation.
#[derive(Debug, Clone)]
pub(crate) struct Order {
    pub environment: EnvironmentId,
    pub session: SessionId,
    /// Where to install: its row exists already.
    pub sandbox: SandboxId,
    /// What to call the result.
    pub image: String,
    pub networking: Networking,
    recipe: Recipe,
}

/// What becomes of an installation.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BuildError {
    /// The packages' or the network's fault: trying again at once is of no use.
    #[error("{0}")]
    Failed(String),
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
}

/// The part that works with sandboxes.
#[async_trait]
pub(crate) trait Builder: Send + Sync + Debug {
    /// Where its images are.
    fn backend(&self) -> &str;
    /// The image without packages, and what tells it from a later one of the same name.
    async fn base(&self) -> Result<String, SandboxError>;
    async fn has(&self, image: &str) -> Result<bool, SandboxError>;
    async fn build(&self, order: &Order) -> Result<(), BuildError>;
    async fn remove(&self, image: &str) -> Result<(), SandboxError>;
}

type Outcome = Result<(), ImageError>;

/// All images with packages of this server's backend.
#[derive(Debug)]
pub(crate) struct Images {
    builder: Arc<dyn Builder>,
    store: Store,
    server: ServerId,
    config: ImagesConfig,
    builds: Semaphore,
    /// Sessions that want the same image wait for the same outcome.
    flights: Mutex<HashMap<ImageKey, watch::Receiver<Option<Outcome>>>>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
    this: Weak<Self>,
}

impl Images {
    pub(crate) fn new(
        builder: Arc<dyn Builder>,
        store: Store,
        server: ServerId,
        config: ImagesConfig,
        tasks: TaskTracker,
        shutdown: CancellationToken,
    ) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            builder,
            store,
            server,
            builds: Semaphore::new(config.concurrency.max(1)),
            config,
            flights: Mutex::default(),
            tasks,
            shutdown,
            this: this.clone(),
        })
    }

    /// The image for sandboxes of an environment with packages, made if it has to be, which may take
    /// minutes.
    pub(crate) async fn image(&self, wanted: &Wanted<'_>) -> Result<String, ImageError> {
        let (key, recipe) = self.key(wanted).await?;
        if self.store.image_use(&key).await? {
            return Ok(key.image);
        }
        let order = Order {
            environment: wanted.environment,
            session: wanted.session,
            sandbox: SandboxId::new(),
            image: key.image.clone(),
            networking: wanted.config.networking.clone(),
            recipe,
        };
        let mut outcome = self.join(&key, order);
        let outcome = match outcome.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone().unwrap_or(Err(ImageError::Stopping)),
            // The task that held the other end is gone without a word.
            Err(_) => Err(ImageError::Stopping),
        };
        outcome.map(|()| key.image)
    }

    /// A sandbox could not be made because the image is gone: the next one who wants it builds it.
    pub(crate) async fn missing(&self, wanted: &Wanted<'_>) -> Result<(), ImageError> {
        let (key, _) = self.key(wanted).await?;
        Ok(self.store.image_missing(&key).await?)
    }

    async fn key(&self, wanted: &Wanted<'_>) -> Result<(ImageKey, Recipe), ImageError> {
        let recipe = Recipe::new(&wanted.config.packages);
        let recipe = recipe.map_err(|bad| ImageError::Failed(bad.to_string()))?;
        let base = self.builder.base().await?;
        let hash = recipe.hash(&wanted.workspace.to_string(), &base);
        let key = ImageKey {
            workspace: wanted.workspace,
            backend: self.builder.backend().to_owned(),
            image: format!("{}{hash}", selfsame_sandbox::OWN_IMAGES),
        };
        Ok((key, recipe))
    }

    /// Waits for the building of an image that is under way here, or begins it.
    fn join(&self, key: &ImageKey, order: Order) -> watch::Receiver<Option<Outcome>> {
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(outcome) = flights.get(key) {
            return outcome.clone();
        }
        let (sender, receiver) = watch::channel(None);
        flights.insert(key.clone(), receiver.clone());
        let (this, key) = (self.this.clone(), key.clone());
        // Apart from the session that asked first: others want it, too, should that one be deleted.
        self.tasks.spawn(async move {
            let Some(this) = this.upgrade() else { return };
            let outcome = tokio::select! {
                outcome = this.obtain(&key, order) => outcome,
                // What is half done is found by whoever wants it next, as after a crash.
                () = this.shutdown.cancelled() => Err(ImageError::Stopping),
            };
            this.flights
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(&key);
            let _ = sender.send(Some(outcome));
        });
        receiver
    }

    /// Builds the image, or sees another server build it.
    async fn obtain(&self, key: &ImageKey, mut order: Order) -> Outcome {
        loop {
            order.sandbox = SandboxId::new();
            let state = self
                .store
                .image_claim(key, self.server, order.sandbox, self.config.builder_ttl)
                .await?;
            match state {
                ImageState::Ready => return Ok(()),
                ImageState::Failed { error } => return Err(ImageError::Failed(error)),
                ImageState::Busy => tokio::time::sleep(POLL).await,
                ImageState::Claimed => {
                    if let Some(outcome) = self.attempt(key, &order).await {
                        return outcome;
                    }
                }
            }
        }
    }

    /// One attempt, held by heartbeats. `None` when it was taken for dead and somebody else is at it.
    async fn attempt(&self, key: &ImageKey, order: &Order) -> Option<Outcome> {
        let built = tokio::select! {
            built = self.build(order) => built,
            () = self.beat(key, order.sandbox) => return None,
        };
        let recorded = match &built {
            Ok(()) => self.store.image_ready(key, order.sandbox).await,
            Err(BuildError::Failed(error)) => {
                self.store
                    .image_failed(key, order.sandbox, error, PAUSE, LONGEST_PAUSE)
                    .await
            }
            Err(BuildError::Sandbox(_)) => {
                let forgotten = self.store.image_forget(key, order.sandbox).await;
                forgotten.map(|()| true)
            }
        };
        match (recorded, built) {
            (Ok(false), _) => None,
            (Err(error), _) => Some(Err(error.into())),
            (Ok(true), Ok(())) => Some(Ok(())),
            (Ok(true), Err(BuildError::Failed(error))) => Some(Err(ImageError::Failed(error))),
            (Ok(true), Err(BuildError::Sandbox(error))) => Some(Err(error.into())),
        }
    }

    async fn build(&self, order: &Order) -> Result<(), BuildError> {
        // A builder before us may have died between its commit and saying so.
        if self.builder.has(&order.image).await? {
            return Ok(());
        }
        let _permit = self.builds.acquire().await;
        let started = tokio::time::Instant::now();
        tracing::info!(session = %order.session, environment = %order.environment,
            image = order.image, packages = order.recipe.count(), "installing packages");
        let work = self.builder.build(order);
        let built = tokio::time::timeout(self.config.timeout, work)
            .await
            .unwrap_or_else(|_| {
                Err(BuildError::Failed(format!(
                    "The environment's packages could not be installed within {} seconds.",
                    self.config.timeout.as_secs()
                )))
            });
        let elapsed_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let outcome = match &built {
            Ok(()) => {
                tracing::info!(session = %order.session, environment = %order.environment,
                    image = order.image, elapsed_ms, "packages are installed");
                "ready"
            }
            // What it printed is for the client alone: it may hold what the client would not show.
            Err(BuildError::Failed(_)) => {
                tracing::warn!(session = %order.session, environment = %order.environment,
                    image = order.image, elapsed_ms, "packages could not be installed");
                "failed"
            }
            Err(BuildError::Sandbox(error)) => {
                tracing::warn!(session = %order.session, environment = %order.environment,
                    image = order.image, elapsed_ms, %error, "an installation broke off");
                "broken"
            }
        };
        metrics::counter!("selfsame_image_builds_total", "outcome" => outcome).increment(1);
        metrics::histogram!("selfsame_image_build_seconds").record(started.elapsed().as_secs_f64());
        built
    }

    /// Resolves when the attempt is not the present one any more.
    async fn beat(&self, key: &ImageKey, sandbox: SandboxId) {
        loop {
            tokio::time::sleep(self.config.builder_ttl / 4).await;
            match self.store.image_heartbeat(key, sandbox).await {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => tracing::warn!(%error, "cannot say that an installation goes on"),
            }
        }
    }

    /// Removes images that no session has wanted for long. Answers how many.
    ///
    /// # Errors
    /// When the database fails; what the backend cannot do is tried again the next time.
    pub(crate) async fn reap(&self) -> Result<usize, StoreError> {
        let remover = SandboxId::new();
        let unused = self
            .store
            .image_claim_unused(
                self.builder.backend(),
                self.config.retention,
                self.server,
                remover,
                self.config.builder_ttl,
                8,
            )
            .await?;
        let mut removed = 0;
        for key in unused {
            match self.builder.remove(&key.image).await {
                Ok(()) => {
                    self.store.image_forget(&key, remover).await?;
                    removed += 1;
                }
                Err(error) => {
                    tracing::warn!(image = key.image, %error, "cannot remove an unused image");
                }
            }
        }
        Ok(removed)
    }
}

#[cfg(test)]
mod tests;
