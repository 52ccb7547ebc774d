//! Which sandbox belongs to which session, from its making to its end.
//!
//! Ownership is a row; the backend only knows containers. A sandbox is made in the background when a
//! session that needs one is created (from the warm pool, or anew), connected to when the first call
//! comes, kept connected for a while after the turn, stopped when the session stays idle (files are
//! kept) and removed when nobody needs it any more. The reaper compares what exists with the rows.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use selfsame_sandbox::{Backend, Handle, Key, Sandbox, SandboxError, Spec, Status};
use selfsame_store::{BlobError, SandboxRecord, Store, StoreError};
use selfsame_types::{SandboxId, ServerId, SessionId, environment::EnvironmentConfig};
use tokio::sync::{Notify, Semaphore, watch};
use uuid::Uuid;

use crate::{
    door::{Access, Door, Wallet},
    fail,
    images::{ImageError, Images, Wanted},
    machine::{About, ErrorType, Trouble},
    vaults::{Vaults, VaultsError},
    workbench::{Briefing, FitError, Outfit, Outputs, Workbench},
};

/// Longest wait for another server that is making a session's sandbox.
const MAKE_TIMEOUT: Duration = Duration::from_secs(60);
const MAKE_POLL: Duration = Duration::from_millis(50);

/// How sandboxes are made and kept.
#[derive(Debug, Clone)]
pub struct SandboxConfig {
    pub image: String,
    pub memory_bytes: Option<u64>,
    pub disk_bytes: Option<u64>,
    pub cpus: Option<f64>,
    pub pids: Option<u32>,
    /// Ready containers kept for sessions to come.
    pub warm: u32,
    /// Starts at once; a Docker daemon manages about nine a second.
    pub start_concurrency: usize,
    /// A server silent for this long is not making anything any more: the lease's time.
    pub maker_ttl: Duration,
    /// A session's sandbox is stopped when unused for this long.
    pub idle_stop: Duration,
    /// A stopped one is removed when unused for this long.
    pub retention: Duration,
}

/// Why a session has no sandbox.
#[derive(Debug, thiserror::Error)]
pub enum AcquireError {
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("its files could not be fetched")]
    Files(#[source] BlobError),
    #[error(transparent)]
    Vaults(#[from] VaultsError),
    #[error("the session is gone")]
    Gone,
    /// The packages of its environment cannot be had.
    #[error(transparent)]
    Image(#[from] ImageError),
}

impl AcquireError {
    /// What a client is told.
    #[must_use]
    pub fn told(&self) -> String {
        match self {
            Self::Image(ImageError::Failed(reason)) => reason.clone(),
            error => format!("The sandbox could not be prepared: {error}"),
        }
    }

    /// Another attempt may succeed.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Sandbox(SandboxError::Refused(_) | SandboxError::Failed(_))
            | Self::Image(ImageError::Failed(_))
            | Self::Gone => false,
            Self::Image(_)
            | Self::Sandbox(_)
            | Self::Store(_)
            | Self::Files(_)
            | Self::Vaults(_) => true,
        }
    }
}

impl From<FitError> for AcquireError {
    fn from(error: FitError) -> Self {
        match error {
            FitError::Sandbox(error) => Self::Sandbox(error),
            FitError::Store(error) => Self::Store(error),
            FitError::Blob(error) => Self::Files(error),
            FitError::Vaults(error) => Self::Vaults(error),
            FitError::Gone => Self::Gone,
        }
    }
}

/// A session's sandbox while it is connected.
#[derive(Debug)]
struct Connected {
    id: SandboxId,
    sandbox: Sandbox,
    /// What its connections may reach; the door looks at each.
    access: watch::Sender<Option<Arc<Access>>>,
    wallet: Arc<Wallet>,
    /// What it lacks, not told to the session yet.
    troubles: Vec<Trouble>,
}

#[derive(Debug, Default)]
struct Slot {
    connected: Option<Connected>,
}

/// A session's slot: locked while its sandbox is being connected or stopped.
#[derive(Debug, Default)]
struct Place {
    slot: Arc<tokio::sync::Mutex<Slot>>,
    /// How often it was asked for.
    uses: u64,
    /// The session's resources have changed since it was fitted out.
    stale: bool,
    /// The fingerprint of the outputs that a call has told last.
    told: u64,
    outputs: Arc<tokio::sync::Mutex<Outputs>>,
}

impl Place {
    /// Nobody is connecting, or waiting to.
    fn is_unused(&self) -> bool {
        Arc::strong_count(&self.slot) == 1 && Arc::strong_count(&self.outputs) == 1
    }
}

/// All sandboxes of this server's backend.
#[derive(Debug)]
pub struct Sandboxes {
    backend: Arc<dyn Backend>,
    store: Store,
    server: ServerId,
    config: SandboxConfig,
    images: Arc<Images>,
    workbench: Workbench,
    door: Door,
    vaults: Vaults,
    starts: Semaphore,
    slots: Mutex<HashMap<SessionId, Place>>,
    /// Warm sandboxes that are connected already.
    warm: Mutex<HashMap<SandboxId, Sandbox>>,
    took_warm: Notify,
    has_garbage: Notify,
}

impl Sandboxes {
    #[must_use]
    pub fn new(
        backend: Arc<dyn Backend>,
        store: Store,
        server: ServerId,
        config: SandboxConfig,
        images: Arc<Images>,
        workbench: Workbench,
        (door, vaults): (Door, Vaults),
    ) -> Self {
        let starts = Semaphore::new(config.start_concurrency.max(1));
        Self {
            backend,
            store,
            server,
            config,
            images,
            workbench,
            door,
            vaults,
            starts,
            slots: Mutex::default(),
            warm: Mutex::default(),
            took_warm: Notify::new(),
            has_garbage: Notify::new(),
        }
    }

    #[must_use]
    pub fn backend_name(&self) -> &str {
        self.backend.name()
    }

    #[must_use]
    pub fn makes_images(&self) -> bool {
        self.backend.makes_images()
    }

    fn slot(&self, session: SessionId) -> Arc<tokio::sync::Mutex<Slot>> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let place = slots.entry(session).or_default();
        place.uses += 1;
        Arc::clone(&place.slot)
    }

    /// Changes whenever a session's sandbox is asked for; `None` when it is not connected.
    #[must_use]
    pub fn last_use(&self, session: SessionId) -> Option<u64> {
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.get(&session).map(|place| place.uses)
    }

    /// Connects to a session's sandbox, making, starting or replacing it as needed, and fits it out.
    ///
    /// # Errors
    /// When the backend or the database fails; a session without a sandbox may ask again.
    pub async fn acquire(&self, session: SessionId, epoch: i64) -> Result<Sandbox, AcquireError> {
        let slot = self.slot(session);
        let mut slot = slot.lock().await;
        let stale = self.take_stale(session);
        let connected = slot.connected.as_mut();
        if let Some(connected) = connected.filter(|c| !c.sandbox.is_closed()) {
            let sandbox = connected.sandbox.clone();
            if stale && let Err(error) = self.refit(session, connected).await {
                // Whoever uses it next connects, and fits it out, anew.
                slot.connected = None;
                return Err(error);
            }
            return Ok(sandbox);
        }
        slot.connected = None;
        let wanted = self.workbench.wanted(session).await?;
        let (id, sandbox) = self.connect(session, epoch, &wanted).await?;
        let wallet = Arc::new(self.door.wallet(session, self.vaults.clone()));
        let access = self.workbench.access(session, &wanted, &wallet).await?;
        let (access, rules) = watch::channel(Some(access));
        if let Some(outgoing) = sandbox.outgoing() {
            let door = self.door.clone();
            tokio::spawn(async move { door.serve(outgoing, rules).await });
            crate::door::tell(&sandbox);
        }
        let fitting = self.workbench.fit(session, id, &sandbox, &wanted, &wallet);
        let fit = fitting.await?;
        slot.connected = Some(Connected {
            id,
            sandbox: sandbox.clone(),
            access,
            wallet,
            troubles: fit.troubles,
        });
        Ok(sandbox)
    }

    async fn refit(
        &self,
        session: SessionId,
        connected: &mut Connected,
    ) -> Result<(), AcquireError> {
        let wanted = self.workbench.wanted(session).await?;
        let Connected {
            id,
            sandbox,
            access,
            wallet,
            ..
        } = connected;
        access.send_replace(Some(self.workbench.access(session, &wanted, wallet).await?));
        let fitting = self.workbench.fit(session, *id, sandbox, &wanted, wallet);
        let fit = fitting.await?;
        connected.troubles.extend(fit.troubles);
        Ok(())
    }

    fn take_stale(&self, session: SessionId) -> bool {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots
            .get_mut(&session)
            .is_some_and(|place| std::mem::take(&mut place.stale))
    }

    /// A session's resources have changed: the next use of its sandbox fits it out anew, and so does this
    /// if it is connected now.
    ///
    /// # Errors
    /// When the backend or the database fails; then the next use tries again.
    pub async fn reequip(&self, session: SessionId) -> Result<(), AcquireError> {
        let slot = {
            let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(place) = slots.get_mut(&session) else {
                return Ok(());
            };
            place.stale = true;
            Arc::clone(&place.slot)
        };
        let mut slot = slot.lock().await;
        match &mut slot.connected {
            Some(connected) if self.take_stale(session) => {
                let done = self.refit(session, connected).await;
                if done.is_err() {
                    // Whoever uses it next connects anew.
                    slot.connected = None;
                }
                done
            }
            // Fitted out meanwhile, or not connected: then whoever connects does it.
            _ => Ok(()),
        }
    }

    /// What a session has to be told of its sandbox, once.
    pub async fn take_troubles(&self, session: SessionId) -> Vec<Trouble> {
        let slot = self.slot(session);
        let mut slot = slot.lock().await;
        slot.connected
            .as_mut()
            .map(|connected| std::mem::take(&mut connected.troubles))
            .unwrap_or_default()
    }

    /// Hosts that credentials name and that programs of the session could not reach, each credential once.
    pub fn unreachable(&self, session: SessionId) -> Vec<Trouble> {
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let wallet = slots.get(&session).and_then(|place| {
            // While it is being connected no program has run in it.
            let slot = place.slot.try_lock().ok()?;
            Some(Arc::clone(&slot.connected.as_ref()?.wallet))
        });
        let found = wallet.map(|wallet| wallet.take_unreachable());
        let told = found.into_iter().flatten().map(|it| Trouble {
            error_type: ErrorType::CredentialHostUnreachableError,
            message: format!(
                "`{}` is meant for `{}`, which cannot be reached: {}",
                it.secret_name, it.host, it.reason
            ),
            about: About::Credential {
                credential: it.credential,
                vault: it.vault,
            },
        });
        told.collect()
    }

    /// The paragraphs about a session's own material for its model. With files or repositories its
    /// sandbox is fitted out first: what they bring along is part of it.
    ///
    /// # Errors
    /// When the backend or the database fails.
    pub async fn briefing(
        &self,
        session: SessionId,
        epoch: i64,
    ) -> Result<(Briefing, Vec<Trouble>), AcquireError> {
        let mut wanted = self.workbench.wanted(session).await?;
        let mut troubles = Vec::new();
        if wanted.comes_first() {
            self.acquire(session, epoch).await?;
            troubles = self.take_troubles(session).await;
            if wanted.equipment.findings.is_none() {
                wanted = self.workbench.wanted(session).await?;
            }
        } else if wanted.agent.needs_sandbox() {
            self.await_image(session, &wanted).await?;
        }
        Ok((self.workbench.briefing(&wanted)?, troubles))
    }

    /// Whether the outputs have changed since a call last said what they are like.
    pub fn outputs_told(&self, session: SessionId, fingerprint: u64) -> bool {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots
            .get_mut(&session)
            .is_some_and(|place| std::mem::replace(&mut place.told, fingerprint) != fingerprint)
    }

    /// Captures what the agent has written for the user, when the sandbox is connected: otherwise nothing
    /// has run since the last time.
    ///
    /// # Errors
    /// When the sandbox is lost, or storage fails.
    pub async fn capture(&self, session: SessionId) -> Result<(), AcquireError> {
        let (slot, outputs) = {
            let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(place) = slots.get(&session) else {
                return Ok(());
            };
            (Arc::clone(&place.slot), Arc::clone(&place.outputs))
        };
        let sandbox = {
            let slot = slot.lock().await;
            slot.connected.as_ref().map(|c| c.sandbox.clone())
        };
        let Some(sandbox) = sandbox.filter(|sandbox| !sandbox.is_closed()) else {
            return Ok(());
        };
        // One at a time; who comes second finds it done.
        let mut outputs = outputs.lock().await;
        self.workbench
            .capture(session, &sandbox, &mut outputs)
            .await?;
        Ok(())
    }

    /// A session's sandbox, if it is connected.
    #[must_use]
    pub fn connected(&self, session: SessionId) -> Option<Sandbox> {
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = slots.get(&session)?.slot.try_lock().ok()?;
        slot.connected.as_ref().map(|c| c.sandbox.clone())
    }

    async fn connect(
        &self,
        session: SessionId,
        epoch: i64,
        wanted: &Outfit,
    ) -> Result<(SandboxId, Sandbox), AcquireError> {
        // Each round either connects or removes one reason why it could not.
        for _ in 0..4 {
            let (record, warm) = match self.settled(session).await? {
                Some(record) => (record, None),
                None => match self.provide(session, wanted).await {
                    // Another server was quicker; its row is there now.
                    Err(AcquireError::Store(error))
                        if error.constraint() == Some("sandboxes_session_id_key") =>
                    {
                        continue;
                    }
                    provided => provided?,
                },
            };
            if record.backend != self.backend.name() {
                // Nobody is left who could reach it; whoever returns there finds an orphan.
                self.store.sandbox_delete(record.id).await?;
                continue;
            }
            let Some(handle) = record.handle.clone().map(Handle) else {
                // Half-made by somebody who is gone.
                self.discard(&record).await?;
                continue;
            };
            if let Some(sandbox) = warm {
                self.store
                    .sandbox_booted(record.id, sandbox.boot_id())
                    .await?;
                return Ok((record.id, sandbox));
            }
            match self.attach(&record, &handle, epoch).await {
                Ok(sandbox) => {
                    let boot = sandbox.boot_id();
                    if record.boot_id != Some(boot) || record.status != "running" {
                        self.store.sandbox_booted(record.id, boot).await?;
                        self.store.sandbox_set(record.id, "running", None).await?;
                    }
                    return Ok((record.id, sandbox));
                }
                Err(SandboxError::Gone) => self.discard(&record).await?,
                Err(error) => return Err(error.into()),
            }
        }
        Err(SandboxError::Gone.into())
    }

    /// A session's row, once a living server that is making the sandbox has done so.
    async fn settled(&self, session: SessionId) -> Result<Option<SandboxRecord>, StoreError> {
        let patience = tokio::time::Instant::now() + MAKE_TIMEOUT;
        loop {
            let record = self.store.sandbox_of(session).await?;
            let making = match &record {
                // On this server the slot's lock is held while a sandbox is made, so it is not us.
                Some(record) if record.handle.is_none() => {
                    self.store
                        .sandbox_is_being_made(record.id, self.server, self.config.maker_ttl)
                        .await?
                }
                _ => false,
            };
            if !making || tokio::time::Instant::now() > patience {
                return Ok(record);
            }
            tokio::time::sleep(MAKE_POLL).await;
        }
    }

    async fn attach(
        &self,
        record: &SandboxRecord,
        handle: &Handle,
        epoch: i64,
    ) -> Result<Sandbox, SandboxError> {
        match self.backend.status(handle).await? {
            Status::Running => {}
            Status::Stopped => self.backend.start(handle).await?,
            Status::Gone => return Err(SandboxError::Gone),
        }
        let key = key(record)?;
        let sandbox = Sandbox::attach(
            &*self.backend,
            handle,
            &key,
            u64::try_from(epoch).unwrap_or(0),
        )
        .await?;
        self.watch_disk(&sandbox, handle);
        Ok(sandbox)
    }

    fn watch_disk(&self, sandbox: &Sandbox, handle: &Handle) {
        if let Some(limit) = self.config.disk_bytes {
            sandbox.watch_disk(Arc::clone(&self.backend), handle.clone(), limit);
        }
    }

    /// Takes a warm sandbox or makes one. The row comes first, so that nothing is ever made that no
    /// row knows.
    async fn provide(
        &self,
        session: SessionId,
        outfit: &Outfit,
    ) -> Result<(SandboxRecord, Option<Sandbox>), AcquireError> {
        if let Some(wanted) = packages(session, outfit) {
            return Ok((self.make_with_packages(&wanted).await?, None));
        }
        let taken = self
            .store
            .sandbox_take(session, self.backend.name(), &self.config.image)
            .await?;
        if let Some(record) = taken {
            self.took_warm.notify_one();
            let warm = self
                .warm
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(&record.id)
                .filter(|sandbox| !sandbox.is_closed());
            return Ok((record, warm));
        }
        let made = self.make(Some(session), &self.config.image).await?;
        Ok((made, None))
    }

    /// Waits until there is an image with the packages of a session's environment. Its sandbox is made of
    /// it while the model is asked; but packages that are not to be had are no case for the model.
    async fn await_image(&self, session: SessionId, outfit: &Outfit) -> Result<(), AcquireError> {
        let Some(wanted) = packages(session, outfit) else {
            return Ok(());
        };
        // Its own sandbox has what was installed then, whatever the configured image is today.
        let made = self.store.sandbox_of(session).await?;
        if made.is_none_or(|record| record.handle.is_none()) {
            self.images.image(&wanted).await?;
        }
        Ok(())
    }

    async fn make_with_packages(&self, wanted: &Wanted<'_>) -> Result<SandboxRecord, AcquireError> {
        let image = self.images.image(wanted).await?;
        match self.make(Some(wanted.session), &image).await {
            // Somebody has tidied up on that host: it is made again, once.
            Err(AcquireError::Sandbox(SandboxError::NoImage(_))) => {
                self.images.missing(wanted).await?;
                let image = self.images.image(wanted).await?;
                self.make(Some(wanted.session), &image).await
            }
            made => made,
        }
    }

    async fn make(
        &self,
        session: Option<SessionId>,
        image: &str,
    ) -> Result<SandboxRecord, AcquireError> {
        let mut record = SandboxRecord {
            id: SandboxId::new(),
            session,
            backend: self.backend.name().to_owned(),
            image: image.to_owned(),
            status: "creating".to_owned(),
            handle: None,
            hands_key: rand::random::<[u8; 32]>().to_vec(),
            boot_id: None,
        };
        self.store.sandbox_insert(&record, self.server).await?;
        fail::point("before_sandbox_create");
        let spec = spec(&self.config, record.id, image);
        let created = {
            let _permit = self.starts.acquire().await;
            self.backend.create(&spec).await
        };
        fail::point("after_sandbox_create");
        match created {
            Ok(handle) => {
                let known = self
                    .store
                    .sandbox_set(record.id, "running", Some(&handle.0))
                    .await?;
                if !known {
                    // Given up on by somebody who took us for dead.
                    self.backend.remove(&handle).await?;
                    return Err(SandboxError::Gone.into());
                }
                "running".clone_into(&mut record.status);
                record.handle = Some(handle.0);
                Ok(record)
            }
            Err(error) => {
                self.store.sandbox_delete(record.id).await?;
                Err(error.into())
            }
        }
    }

    async fn discard(&self, record: &SandboxRecord) -> Result<(), AcquireError> {
        if let Some(handle) = &record.handle {
            self.backend.remove(&Handle(handle.clone())).await?;
        }
        self.store.sandbox_delete(record.id).await?;
        Ok(())
    }

    /// Drops the connection of a session that is done for now, unless it is just being made: two at
    /// once would take each other's sandbox for a half-made one.
    pub fn disconnect(&self, session: SessionId) {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if slots.get(&session).is_some_and(Place::is_unused) {
            slots.remove(&session);
        }
    }

    /// Forgets connections that have broken: other servers stop and remove sandboxes, too, and take
    /// warm ones that this server made.
    fn forget_closed(&self) {
        self.slots
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|_, place| {
                let closed = |slot: &Slot| {
                    slot.connected
                        .as_ref()
                        .is_none_or(|c| c.sandbox.is_closed())
                };
                !(place.is_unused() && place.slot.try_lock().is_ok_and(|slot| closed(&slot)))
            });
        self.warm
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|_, sandbox| !sandbox.is_closed());
    }

    /// Resolves when a warm sandbox was taken: the pool wants another one.
    pub async fn taken(&self) {
        self.took_warm.notified().await;
    }

    /// A session has ended: its sandbox is wanted no more.
    pub fn release(&self, session: SessionId) {
        self.disconnect(session);
        self.has_garbage.notify_one();
    }

    /// Resolves when a session has ended.
    pub async fn released(&self) {
        self.has_garbage.notified().await;
    }

    /// Brings the warm pool to its size, one sandbox a call. Answers whether it made one.
    ///
    /// # Errors
    /// When the backend or the database fails.
    pub async fn warm_one(&self) -> Result<bool, AcquireError> {
        let ready = self
            .store
            .sandbox_warm_count(self.backend.name(), &self.config.image)
            .await?;
        if ready >= i64::from(self.config.warm) {
            return Ok(false);
        }
        let record = self.make(None, &self.config.image).await?;
        if let Some(handle) = record.handle.clone().map(Handle) {
            // Connected ahead of its use: a connection takes as long as ten calls. Epoch 0 is below
            // every lease, so whoever takes over from us is admitted.
            let sandbox = Sandbox::attach(&*self.backend, &handle, &key(&record)?, 0).await?;
            self.watch_disk(&sandbox, &handle);
            self.warm
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(record.id, sandbox);
        }
        Ok(true)
    }

    /// Stops sandboxes of sessions that have been idle for long, removes those nobody needs, and
    /// removes what exists without a row. Answers how many it touched.
    ///
    /// # Errors
    /// When the database fails; what the backend cannot do is tried again the next time.
    pub async fn reap(&self, orphans: bool) -> Result<usize, StoreError> {
        let mut touched = 0;
        self.forget_closed();
        for record in self
            .store
            .sandbox_claim_idle(self.backend.name(), self.config.idle_stop, 16)
            .await?
        {
            touched += usize::from(self.stop(&record).await?);
        }
        for record in self
            .store
            .sandbox_claim_garbage(self.backend.name(), self.config.retention, 16)
            .await?
        {
            if let Some(session) = record.session {
                self.disconnect(session);
            }
            match self.discard(&record).await {
                Ok(()) => touched += 1,
                Err(error) => {
                    tracing::warn!(sandbox = %record.id, %error, "cannot remove a sandbox");
                }
            }
        }
        if orphans {
            touched += self.reap_orphans().await?;
        }
        Ok(touched)
    }

    /// Stops a sandbox that was claimed as idle, unless its session has come back to it meanwhile.
    async fn stop(&self, record: &SandboxRecord) -> Result<bool, StoreError> {
        let (Some(session), Some(handle)) = (record.session, record.handle.clone().map(Handle))
        else {
            return Ok(false);
        };
        // Nobody here connects while this is held.
        let slot = self.slot(session);
        let mut slot = slot.lock().await;
        let present = self.store.sandbox_of(session).await?;
        if present.is_none_or(|now| now.id != record.id || now.status != "stopped") {
            return Ok(false);
        }
        slot.connected = None;
        if let Err(error) = self.backend.stop(&handle).await {
            tracing::warn!(sandbox = %record.id, %error, "cannot stop an idle sandbox");
        }
        Ok(true)
    }

    /// Removes what exists without a row. A row is written before its container is made, so what is
    /// listed *first* and has no row *afterwards* belongs to nobody.
    async fn reap_orphans(&self) -> Result<usize, StoreError> {
        let listed = match self.backend.list().await {
            Ok(listed) => listed,
            Err(error) => {
                tracing::warn!(%error, "cannot list sandboxes");
                return Ok(0);
            }
        };
        let known = self.store.sandbox_ids(self.backend.name()).await?;
        let mut removed = 0;
        for orphan in listed
            .into_iter()
            .filter(|listed| !known.contains(&listed.id))
        {
            match self.backend.remove(&orphan.handle).await {
                Ok(()) => removed += 1,
                Err(error) => {
                    tracing::warn!(sandbox = %orphan.id, %error, "cannot remove an orphan");
                }
            }
        }
        Ok(removed)
    }
}

/// What a session's environment wants to have installed, if it wants anything.
fn packages(session: SessionId, outfit: &Outfit) -> Option<Wanted<'_>> {
    match &outfit.environment {
        EnvironmentConfig::Cloud(config) if !config.packages.is_empty() => Some(Wanted {
            workspace: outfit.equipment.workspace,
            environment: outfit.equipment.environment_id,
            session,
            config,
        }),
        _ => None,
    }
}

/// What a sandbox is made like.
pub(crate) fn spec(config: &SandboxConfig, id: SandboxId, image: &str) -> Spec {
    Spec {
        memory_bytes: config.memory_bytes,
        disk_bytes: config.disk_bytes,
        cpus: config.cpus,
        pids: config.pids,
        ..Spec::new(id, image)
    }
}

fn key(record: &SandboxRecord) -> Result<Key, SandboxError> {
    let bytes: [u8; 32] =
        record.hands_key.as_slice().try_into().map_err(|_| {
            SandboxError::Protocol("the stored key has the wrong length".to_owned())
        })?;
    Ok(Key(bytes))
}

/// The shell that a thread's commands share.
#[must_use]
pub(crate) fn shell_of(thread: selfsame_types::ThreadId) -> Uuid {
    thread.0
}
