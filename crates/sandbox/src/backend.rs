use std::fmt::Debug;

use async_trait::async_trait;
use selfsame_types::SandboxId;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::SandboxError;

/// How the names of images begin that a backend makes itself. No registry is ever asked for them.
pub const OWN_IMAGES: &str = "selfsame-env:";

/// Where sandboxes run: Docker for real use, plain processes for tests and trusted development.
#[async_trait]
pub trait Backend: Send + Sync + Debug {
    /// Stable name of this backend including its host (`docker:<daemon id>`, `process:<host>:<directory>`).
    /// Rows remember it, because a sandbox lives on one host.
    fn name(&self) -> &str;

    /// Creates and starts a sandbox. A failure leaves nothing behind.
    async fn create(&self, spec: &Spec) -> Result<Handle, SandboxError>;

    /// Starts it again after [`Backend::stop`]; files are as they were, processes are gone.
    /// Starting a running one does nothing.
    async fn start(&self, handle: &Handle) -> Result<(), SandboxError>;

    /// Ends every process inside and keeps the files. Stopping a stopped one does nothing.
    async fn stop(&self, handle: &Handle) -> Result<(), SandboxError>;

    /// Removes processes and files. Idempotent: removing what is gone succeeds.
    async fn remove(&self, handle: &Handle) -> Result<(), SandboxError>;

    async fn status(&self, handle: &Handle) -> Result<Status, SandboxError>;

    /// Everything of this deployment, running or not, for the reaper.
    async fn list(&self) -> Result<Vec<Listed>, SandboxError>;

    /// Whether it can make images of sandboxes.
    fn makes_images(&self) -> bool {
        false
    }

    /// Makes an image (`repository:tag`, replaced if it exists) of a sandbox's files, its processes left
    /// out. It can be the image of other sandboxes, of this deployment and of no other.
    ///
    /// By default there are no images, and this is [`SandboxError::Unsupported`].
    async fn commit(
        &self,
        _handle: &Handle,
        _image: &str,
        _labels: &[(String, String)],
    ) -> Result<(), SandboxError> {
        Err(SandboxError::Unsupported("make images of sandboxes"))
    }

    /// What tells an image's content from that of any other, also of an earlier or later one of the same
    /// name. Fetches it when it is missing and may be fetched.
    ///
    /// By default there are no images, and this is [`SandboxError::Unsupported`].
    async fn image_id(&self, _image: &str) -> Result<String, SandboxError> {
        Err(SandboxError::Unsupported("install packages"))
    }

    /// Whether an image is there, without fetching it.
    async fn has_image(&self, _image: &str) -> Result<bool, SandboxError> {
        Ok(false)
    }

    /// Removes an image. Idempotent: removing what is gone succeeds. One that a sandbox is made of
    /// stays, and that is an error.
    async fn remove_image(&self, _image: &str) -> Result<(), SandboxError> {
        Ok(())
    }

    /// Bytes that the sandbox has written and not deleted; `None` where nothing needs to be watched,
    /// because the backend itself enforces [`Spec::disk_bytes`], or cannot tell.
    async fn disk_used(&self, _handle: &Handle) -> Result<Option<u64>, SandboxError> {
        Ok(None)
    }

    /// A private byte stream to the hands inside. Each call opens a new one; dropping it closes it.
    async fn connect(&self, handle: &Handle) -> Result<Box<dyn Duplex>, SandboxError>;
}

/// A two-way byte stream.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

impl Debug for dyn Duplex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Duplex")
    }
}

/// What to create. A limit of `None` leaves it to the backend's own default.
#[derive(Debug, Clone, PartialEq)]
pub struct Spec {
    pub id: SandboxId,
    /// Image reference; ignored by the process backend.
    pub image: String,
    pub memory_bytes: Option<u64>,
    /// Writable disk, where the backend can enforce it.
    pub disk_bytes: Option<u64>,
    /// CPUs, in units of a whole one.
    pub cpus: Option<f64>,
    /// Most processes and threads at once.
    pub pids: Option<u32>,
    /// Environment of every command run inside.
    pub env: Vec<(String, String)>,
}

impl Spec {
    /// A sandbox of `image` with the backend's own limits and no extra environment.
    #[must_use]
    pub fn new(id: SandboxId, image: impl Into<String>) -> Self {
        Self {
            id,
            image: image.into(),
            memory_bytes: None,
            disk_bytes: None,
            cpus: None,
            pids: None,
            env: Vec::new(),
        }
    }
}

/// How a backend finds a sandbox again: opaque text, kept in a database row.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Handle(pub String);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Running,
    /// Files are kept; [`Backend::start`] brings it back with a new boot id.
    Stopped,
    Gone,
}

/// One sandbox that a backend knows of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub handle: Handle,
    pub id: SandboxId,
}
