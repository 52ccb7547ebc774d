//! Sandboxes as Docker containers.
//!
//! ```text
//! server ── Engine API ── dockerd ── container (network: none)
//!    │                                 ├─ PID 1: /selfsame/hands serve
//!    └───── exec -i, hijacked ──────────└─ /selfsame/hands connect ── Unix socket ── PID 1
//! ```
//!
//! The hands are not part of the image: they come from a read-only volume that this backend fills
//! once ([`injection`]), so any Linux image can be a sandbox, and a remote daemon too. What a
//! container may do is decided in one function, [`harden::container`]. The stream of
//! [`Backend::connect`] is one `exec` ([`stream`]): private, fresh each time, and gone with its client.
//!
//! Containers carry two labels, the deployment and the sandbox id, so that several servers and
//! several deployments can share one daemon. Nothing else is remembered here: the daemon's own list is the
//! truth, and a container whose creation was cut short is found by it.

mod disk;
mod harden;
mod images;
mod injection;
mod stream;
mod transport;

use std::{collections::HashMap, path::PathBuf, sync::atomic::AtomicU8};

use async_trait::async_trait;
use bollard::{
    Docker,
    errors::Error as DockerError,
    exec::{StartExecOptions, StartExecResults},
    models::{ContainerCreateBody, ExecConfig, SystemInfo, SystemVersion},
    query_parameters::{
        CreateContainerOptionsBuilder, InspectContainerOptions, ListContainersOptionsBuilder,
        RemoveContainerOptionsBuilder, StartContainerOptions, StopContainerOptionsBuilder,
    },
};
use tokio::sync::Semaphore;
use tracing::{debug, info};

pub use disk::DiskLimit;

use crate::{Backend, Duplex, Handle, Listed, SandboxError, Spec, Status};

/// Which deployment a container, volume or helper belongs to.
const DEPLOYMENT_LABEL: &str = "dev.selfsame.deployment";
/// The sandbox id of a container.
const SANDBOX_LABEL: &str = "dev.selfsame.sandbox";
/// The hands, as seen inside.
const HANDS: &str = "/selfsame/hands";
/// Docker 20.10. The client sends no version and an older daemon would silently ignore the limits
/// it does not know, so such a daemon is refused at start-up.
const LOWEST_API: (u32, u32) = (1, 41);
/// How long PID 1 may take to end by itself, in seconds. It has a handler and needs a fraction.
const STOP_GRACE: i32 = 5;
/// Bytes taken from the stream at once.
const STREAM_BUFFER: usize = 64 * 1024;

/// How to reach a daemon and what to make there.
#[derive(Debug, Clone)]
pub struct DockerOptions {
    /// `unix://…` or `tcp://…`; `None` is what the Docker client takes by default.
    pub host: Option<String>,
    /// Name of this deployment. Servers with the same name own each other's containers.
    pub deployment: String,
    /// The static `selfsame-hands` binary on this server's disk.
    pub hands: PathBuf,
    /// OCI runtime such as `runsc`; `None` is the daemon's default.
    pub runtime: Option<String>,
    /// Whether a missing image may be fetched from its registry.
    pub pull: bool,
    /// What a [`Spec`] that names no limit gets.
    pub limits: Limits,
    /// Free bytes of the machine's disk that sandboxes leave alone: with less, none is made and none
    /// may write. 0 for none.
    pub low_water_bytes: u64,
    /// Starts at a time, at least one. A daemon serialises most of a start, so that more than a few
    /// only make each one slower.
    pub start_concurrency: u32,
}

/// Limits of one sandbox; `None` is no limit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    pub memory_bytes: Option<u64>,
    pub disk_bytes: Option<u64>,
    /// In units of a whole CPU; more than the daemon's host has means all of them.
    pub cpus: Option<f64>,
    /// Processes and threads.
    pub pids: Option<u32>,
}

impl Default for Limits {
    /// The hosted service's sandbox: 8 GiB of memory, 10 GiB of disk.
    fn default() -> Self {
        Self {
            memory_bytes: Some(8 << 30),
            disk_bytes: Some(10 << 30),
            cpus: Some(2.0),
            pids: Some(1024),
        }
    }
}

/// Sandboxes on one Docker daemon.
#[derive(Debug)]
pub struct DockerBackend {
    docker: Docker,
    name: String,
    /// The storage driver.
    storage: String,
    options: DockerOptions,
    /// CPUs of the daemon's host.
    cpus: u32,
    disk_limit: AtomicU8,
    disk_host: disk::Host,
    hands: injection::Hands,
    starts: Semaphore,
}

impl DockerBackend {
    /// Connects to the daemon and checks that it can do what is asked of it.
    ///
    /// # Errors
    /// [`SandboxError::Backend`] when the daemon does not answer, is older than Docker 20.10 or
    /// lacks the runtime, and when the hands binary is missing. The text says what to do.
    pub async fn connect(options: DockerOptions) -> Result<Self, SandboxError> {
        let hands = injection::Hands::new(options.hands.clone())
            .await
            .map_err(SandboxError::backend("find the hands binary"))?;
        let docker = transport::connect(options.host.as_deref())
            .map_err(SandboxError::backend("reach the Docker daemon"))?;
        let version = docker
            .version()
            .await
            .map_err(SandboxError::backend("reach the Docker daemon"))?;
        let info = docker.info().await.map_err(SandboxError::backend(
            "ask the Docker daemon about its host",
        ))?;
        check_daemon(&version, &info, options.runtime.as_deref())
            .map_err(SandboxError::backend("use this Docker daemon"))?;
        let name = backend_name(&version, &info);
        info!(
            backend = %name,
            version = version.version.as_deref().unwrap_or("unknown"),
            storage = info.driver.as_deref().unwrap_or("unknown"),
            runtime = options.runtime.as_deref().or(info.default_runtime.as_deref()),
            "connected to the Docker daemon",
        );
        Ok(Self {
            docker,
            name,
            storage: info.driver.clone().unwrap_or_default(),
            cpus: info
                .ncpu
                .and_then(|n| u32::try_from(n).ok())
                .unwrap_or(1)
                .max(1),
            disk_limit: AtomicU8::new(disk::limit_of(&info) as u8),
            disk_host: disk::Host::of(&options, &info),
            starts: Semaphore::new(options.start_concurrency.max(1) as usize),
            options,
            hands,
        })
    }

    /// What is best done when a server starts, and harms nothing if it is not: finds out how the disk is
    /// bounded, and removes what older versions have left. `image` is any that is there.
    pub async fn settle(&self, image: &str) {
        self.learn_disk_limit(image).await;
        if let Err(error) = self.hands.remove_unused(self).await {
            debug!(%error, "volumes of unused hands stay");
        }
    }

    /// Creates a container, fetching the image when it is missing and may be fetched.
    async fn create_container(
        &self,
        name: &str,
        body: ContainerCreateBody,
    ) -> Result<String, SandboxError> {
        let options = || Some(CreateContainerOptionsBuilder::new().name(name).build());
        let mut result = self.docker.create_container(options(), body.clone()).await;
        if let (Err(error), Some(image)) = (&result, body.image.as_deref())
            && is_missing_image(error)
        {
            self.fetch_image(image).await?;
            result = self.docker.create_container(options(), body).await;
        }
        match result {
            Ok(created) => {
                for warning in &created.warnings {
                    debug!(container = %created.id, %warning, "the Docker daemon warns");
                }
                Ok(created.id)
            }
            Err(error) => Err(SandboxError::backend("create a container")(error)),
        }
    }

    async fn start_container(&self, id: &str) -> Result<(), DockerError> {
        self.docker
            .start_container(id, None::<StartContainerOptions>)
            .await
    }

    async fn remove_container(&self, id: &str) -> Result<(), SandboxError> {
        // Also the anonymous volumes that the image may declare.
        let options = RemoveContainerOptionsBuilder::new()
            .force(true)
            .v(true)
            .build();
        match self.docker.remove_container(id, Some(options)).await {
            Ok(()) => Ok(()),
            Err(error) => match status_of(&error) {
                Some(404) => Ok(()),
                // Another remover is at it: it will be gone.
                Some(409) if error.to_string().contains("already in progress") => Ok(()),
                _ => Err(SandboxError::backend("remove a container")(error)),
            },
        }
    }
}

#[async_trait]
impl Backend for DockerBackend {
    fn name(&self) -> &str {
        &self.name
    }

    async fn create(&self, spec: &Spec) -> Result<Handle, SandboxError> {
        self.disk_host.has_room()?;
        let _permit = self.starts.acquire().await;
        let mut last_try = false;
        loop {
            let volume = self.hands.volume(self, &spec.image).await?;
            let id = self.create_limited(spec, &volume).await?;
            let Err(error) = self.start_container(&id).await else {
                return Ok(Handle(id));
            };
            self.remove_container(&id).await?;
            // A volume that no container used may have been pruned; the daemon then made an
            // empty one for this container. Fill it again, once.
            if last_try || !error.to_string().contains(HANDS) {
                return Err(SandboxError::backend("start a container")(error));
            }
            last_try = true;
            self.hands.forget().await;
        }
    }

    async fn start(&self, handle: &Handle) -> Result<(), SandboxError> {
        let _permit = self.starts.acquire().await;
        self.start_container(&handle.0)
            .await
            .map_err(|error| of_container("start a container", error))
    }

    async fn stop(&self, handle: &Handle) -> Result<(), SandboxError> {
        let options = StopContainerOptionsBuilder::new().t(STOP_GRACE).build();
        self.docker
            .stop_container(&handle.0, Some(options))
            .await
            .map_err(|error| of_container("stop a container", error))
    }

    async fn remove(&self, handle: &Handle) -> Result<(), SandboxError> {
        self.remove_container(&handle.0).await
    }

    async fn status(&self, handle: &Handle) -> Result<Status, SandboxError> {
        let inspected = self
            .docker
            .inspect_container(&handle.0, None::<InspectContainerOptions>)
            .await;
        let state = match inspected {
            Ok(container) => container.state.unwrap_or_default(),
            Err(error) if status_of(&error) == Some(404) => return Ok(Status::Gone),
            Err(error) => return Err(SandboxError::backend("inspect a container")(error)),
        };
        Ok(match (state.running, state.dead) {
            // Half removed: its files cannot be had any more.
            (_, Some(true)) => Status::Gone,
            (Some(true), _) => Status::Running,
            _ => Status::Stopped,
        })
    }

    async fn disk_used(&self, handle: &Handle) -> Result<Option<u64>, SandboxError> {
        self.written(handle).await
    }

    async fn commit(
        &self,
        handle: &Handle,
        image: &str,
        labels: &[(String, String)],
    ) -> Result<(), SandboxError> {
        self.commit_image(handle, image, labels).await
    }

    fn makes_images(&self) -> bool {
        true
    }

    async fn image_id(&self, image: &str) -> Result<String, SandboxError> {
        self.identify_image(image).await
    }

    async fn has_image(&self, image: &str) -> Result<bool, SandboxError> {
        self.find_image(image).await
    }

    async fn remove_image(&self, image: &str) -> Result<(), SandboxError> {
        self.untag_image(image).await
    }

    async fn list(&self) -> Result<Vec<Listed>, SandboxError> {
        let label = format!("{DEPLOYMENT_LABEL}={}", self.options.deployment);
        let filters = HashMap::from([("label", vec![label.as_str(), SANDBOX_LABEL])]);
        let options = ListContainersOptionsBuilder::new()
            .all(true)
            .filters(&filters)
            .build();
        let containers = self
            .docker
            .list_containers(Some(options))
            .await
            .map_err(SandboxError::backend("list containers"))?;
        Ok(containers
            .into_iter()
            .filter_map(|container| {
                let id = container.labels?.get(SANDBOX_LABEL)?.parse().ok()?;
                let handle = Handle(container.id?);
                Some(Listed { handle, id })
            })
            .collect())
    }

    async fn connect(&self, handle: &Handle) -> Result<Box<dyn Duplex>, SandboxError> {
        let config = ExecConfig {
            cmd: Some(vec![HANDS.to_owned(), "connect".to_owned()]),
            attach_stdin: Some(true),
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            tty: Some(false),
            ..Default::default()
        };
        let exec = self
            .docker
            .create_exec(&handle.0, config)
            .await
            .map_err(|error| of_container("open a stream", error))?;
        let options = StartExecOptions {
            output_capacity: Some(STREAM_BUFFER),
            ..Default::default()
        };
        let started = self
            .docker
            .start_exec(&exec.id, Some(options))
            .await
            .map_err(|error| of_container("open a stream", error))?;
        match started {
            StartExecResults::Attached { output, input } => Ok(Box::new(stream::ExecStream::new(
                handle.0.clone(),
                output,
                input,
            ))),
            StartExecResults::Detached => Err(SandboxError::Protocol(
                "the Docker daemon did not attach the stream".to_owned(),
            )),
        }
    }
}

/// Refuses a daemon that cannot keep our promises, and says why.
fn check_daemon(
    version: &SystemVersion,
    info: &SystemInfo,
    runtime: Option<&str>,
) -> Result<(), String> {
    let api = version.api_version.as_deref().unwrap_or("");
    let parsed = api
        .split_once('.')
        .and_then(|(major, minor)| Some((major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?)));
    if parsed.is_none_or(|api| api < LOWEST_API) {
        return Err(format!(
            "it speaks API version {api:?} and Selfsame needs {}.{} or later: install Docker 20.10 \
             or newer",
            LOWEST_API.0, LOWEST_API.1
        ));
    }
    if info.os_type.as_deref().is_some_and(|os| os != "linux") {
        return Err("it does not run Linux containers".to_owned());
    }
    let (Some(runtime), Some(runtimes)) = (runtime, &info.runtimes) else {
        return Ok(());
    };
    if runtimes.contains_key(runtime) {
        return Ok(());
    }
    let mut known: Vec<_> = runtimes.keys().map(String::as_str).collect();
    known.sort_unstable();
    Err(format!(
        "it has no runtime {runtime:?} (it has {}): add it to the daemon's configuration",
        known.join(", ")
    ))
}

/// A name that stays the same for as long as the daemon's containers exist.
fn backend_name(version: &SystemVersion, info: &SystemInfo) -> String {
    // Podman answers with a new random id each time.
    let podman = version
        .components
        .iter()
        .flatten()
        .any(|part| part.name.contains("Podman"));
    match info.id.as_deref() {
        Some(id) if !podman && !id.is_empty() => format!("docker:{id}"),
        _ => format!("docker:{}", info.name.as_deref().unwrap_or("local")),
    }
}

fn status_of(error: &DockerError) -> Option<u16> {
    match error {
        DockerError::DockerResponseServerError { status_code, .. } => Some(*status_code),
        _ => None,
    }
}

/// An error about one container, told apart by what can be done about it.
fn of_container(operation: &'static str, error: DockerError) -> SandboxError {
    match status_of(&error) {
        Some(404) => SandboxError::Gone,
        Some(409) if error.to_string().contains("is not running") => SandboxError::Stopped,
        Some(409) if error.to_string().contains("marked for removal") => SandboxError::Gone,
        _ => SandboxError::backend(operation)(error),
    }
}

fn is_missing_image(error: &DockerError) -> bool {
    status_of(error) == Some(404) && error.to_string().to_lowercase().contains("image")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(api: &str) -> SystemVersion {
        SystemVersion {
            api_version: Some(api.to_owned()),
            ..Default::default()
        }
    }

    #[test]
    fn old_daemons_and_missing_runtimes_are_refused_with_the_reason() {
        let info = SystemInfo {
            runtimes: Some(HashMap::from([("runc".to_owned(), Default::default())])),
            ..Default::default()
        };
        assert_eq!(check_daemon(&version("1.41"), &info, None), Ok(()));
        assert_eq!(check_daemon(&version("2.0"), &info, Some("runc")), Ok(()));
        for old in ["1.40", "0.99", "", "x.y"] {
            let text = check_daemon(&version(old), &info, None).unwrap_err();
            assert!(text.contains("1.41"), "{text}");
        }
        let text = check_daemon(&version("1.44"), &info, Some("runsc")).unwrap_err();
        assert!(text.contains("runsc") && text.contains("runc"), "{text}");
    }
}
