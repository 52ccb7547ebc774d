//! Sandboxes that are plain processes of this machine.
//!
//! # This isolates nothing
//!
//! Commands run with the server's own user, file system and network. They can read its
//! configuration and its database, and kill it. The backend is for tests, and for development with
//! an agent one would give one's own shell to. It is never chosen silently, and it ignores image
//! and limits of a [`Spec`].
//!
//! A sandbox is a directory under the backend's base directory:
//!
//! ```text
//! <uuid>/spec.json     id and environment; what makes it a sandbox
//! <uuid>/hands.json    process id and start time of the hands, while they run
//! <uuid>/hands.sock    their socket
//! <uuid>/hands.log     their standard error
//! <uuid>/root         the sandbox's `/`, see the hands' `places`: `workspace`, `mnt/session` and so on
//! ```
//!
//! The hands are in a session of their own, so that neither a killed server nor a signal to its
//! group ends them: a later server finds them by the handle, which holds the directory.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use async_trait::async_trait;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use selfsame_hands::procs::{Prey, Stat};
use selfsame_types::SandboxId;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{
    net::UnixStream,
    process::Command,
    sync::Mutex,
    time::{Instant, sleep},
};
use uuid::Uuid;

use crate::{Backend, Duplex, Handle, Listed, SandboxError, Spec, Status};

/// Time for the hands to listen after their start.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for the hands to end after TERM.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(1);
/// In the environment of everything in a sandbox, so that a stop finds it all.
const MARKER: &str = "HANDS_SANDBOX";

/// Runs the hands as ordinary processes. **No isolation whatsoever**: see the module's
/// documentation.
#[derive(Debug)]
pub struct ProcessBackend {
    name: String,
    hands: PathBuf,
    base: PathBuf,
    low_water: u64,
    /// Starts and stops are one at a time.
    changes: Mutex<()>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    id: Uuid,
    env: Vec<(String, String)>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Process {
    pid: i32,
    started: u64,
}

impl ProcessBackend {
    /// `hands` is the `selfsame-hands` binary; sandboxes live under `base`, which is created.
    ///
    /// # Errors
    /// `base` cannot be created, or its path is too long for the sockets below it.
    pub fn new(hands: impl Into<PathBuf>, base: impl Into<PathBuf>) -> Result<Self, SandboxError> {
        let base: PathBuf = base.into();
        let failed = SandboxError::backend::<io::Error>("create the sandboxes' directory");
        let base = fs::create_dir_all(&base)
            .and_then(|()| base.canonicalize())
            .map_err(failed)?;
        // A socket's path has 108 bytes.
        if base.as_os_str().len() > 60 {
            let error = io::Error::new(io::ErrorKind::InvalidInput, "the path is too long");
            return Err(SandboxError::backend("use the sandboxes' directory")(error));
        }
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        // The directory, too: a server that keeps its sandboxes elsewhere does not see these.
        let name = format!("process:{}:{}", host.trim(), base.display());
        Ok(Self {
            name,
            hands: hands.into(),
            base,
            low_water: 0,
            changes: Mutex::default(),
        })
    }

    /// Free bytes of the disk that sandboxes leave alone: with less they may only read and delete.
    #[must_use]
    pub fn low_water(mut self, bytes: u64) -> Self {
        self.low_water = bytes;
        self
    }

    /// The directory of a sandbox. What is `/x` in a container is `root/x` below it; commands start in
    /// `root/workspace`.
    ///
    /// # Errors
    /// [`SandboxError::Gone`] for a handle that this backend did not make.
    pub fn directory(&self, handle: &Handle) -> Result<PathBuf, SandboxError> {
        let directory = PathBuf::from(&handle.0);
        match directory.parent() {
            Some(base) if base == self.base => Ok(directory),
            _ => Err(SandboxError::Gone),
        }
    }

    async fn start_in(&self, directory: &Path, kept: &Kept) -> io::Result<()> {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(directory.join("hands.log"))?;
        let socket = directory.join("hands.sock");
        let mut command = Command::new(&self.hands);
        command
            .arg("serve")
            .arg("--socket")
            .arg(&socket)
            .arg("--root")
            .arg(directory.join("root"))
            .arg("--low-water")
            .arg(self.low_water.to_string())
            // Nothing of the server's environment: it holds keys.
            .env_clear()
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            )
            .env("HOME", directory.join("root/workspace"))
            .env("LANG", "C.UTF-8")
            .envs(kept.env.iter().map(|(name, value)| (name, value)))
            .env(MARKER, directory)
            .current_dir(directory)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let mut child = command.spawn()?;
        let deadline = Instant::now() + START_TIMEOUT;
        let result = loop {
            if let Ok(pid) = i32::try_from(child.id().unwrap_or_default())
                && let Some(stat) = Stat::read(pid)
                && UnixStream::connect(&socket).await.is_ok()
            {
                break store(
                    &directory.join("hands.json"),
                    &Process {
                        pid,
                        started: stat.started,
                    },
                );
            }
            if let Ok(Some(status)) = child.try_wait() {
                break Err(io::Error::other(format!("the hands ended: {status}")));
            }
            if Instant::now() > deadline {
                break Err(io::ErrorKind::TimedOut.into());
            }
            sleep(POLL).await;
        };
        if result.is_err() {
            let _ = child.start_kill();
        }
        // Reaped when it ends, if this server lives to see it.
        tokio::spawn(async move { child.wait().await });
        result
    }

    async fn stop_in(directory: &Path) {
        let file = directory.join("hands.json");
        if let Some(process) = load::<Process>(&file)
            && let Some(pid) = Pid::from_raw(process.pid)
            && let Ok(fd) = pidfd_open(pid, PidfdFlags::empty())
            && alive(&process)
        {
            let deadline = Instant::now() + STOP_TIMEOUT;
            let _ = pidfd_send_signal(&fd, Signal::TERM);
            while alive(&process) && Instant::now() < deadline {
                sleep(POLL).await;
            }
            let _ = pidfd_send_signal(&fd, Signal::KILL);
        }
        // What the hands left, or could not end because they were killed.
        let prey = Prey {
            group: None,
            marker: Some(marker(directory)),
        };
        for _ in 0..1000 {
            if prey.signal(Signal::KILL) == 0 {
                break;
            }
            sleep(POLL).await;
        }
        let _ = fs::remove_file(file);
        let _ = fs::remove_file(directory.join("hands.sock"));
    }

    fn running(directory: &Path) -> bool {
        load::<Process>(&directory.join("hands.json")).is_some_and(|process| alive(&process))
    }
}

fn marker(directory: &Path) -> String {
    format!("{MARKER}={}", directory.display())
}

fn alive(process: &Process) -> bool {
    Stat::read(process.pid).is_some_and(|stat| stat.started == process.started && !stat.dead)
}

fn load<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

fn store(path: &Path, value: &impl Serialize) -> io::Result<()> {
    // Renamed into place: a server killed in between leaves no half file.
    let new = path.with_extension("new");
    fs::write(&new, serde_json::to_vec(value)?)?;
    fs::rename(new, path)
}

#[async_trait]
impl Backend for ProcessBackend {
    fn name(&self) -> &str {
        &self.name
    }

    async fn create(&self, spec: &Spec) -> Result<Handle, SandboxError> {
        let directory = self.base.join(spec.id.0.simple().to_string());
        let kept = Kept {
            id: spec.id.0,
            env: spec.env.clone(),
        };
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&directory)
            .map_err(SandboxError::backend("create a sandbox"))?;
        let result = async {
            fs::create_dir(directory.join("root"))?;
            store(&directory.join("spec.json"), &kept)?;
            self.start_in(&directory, &kept).await
        };
        if let Err(error) = result.await {
            Self::stop_in(&directory).await;
            let _ = fs::remove_dir_all(&directory);
            return Err(SandboxError::backend("create a sandbox")(error));
        }
        Ok(Handle(directory.display().to_string()))
    }

    async fn start(&self, handle: &Handle) -> Result<(), SandboxError> {
        let directory = self.directory(handle)?;
        let _change = self.changes.lock().await;
        let kept: Kept = load(&directory.join("spec.json")).ok_or(SandboxError::Gone)?;
        if Self::running(&directory) {
            return Ok(());
        }
        // Whatever a killed one left.
        Self::stop_in(&directory).await;
        self.start_in(&directory, &kept)
            .await
            .map_err(SandboxError::backend("start a sandbox"))
    }

    async fn stop(&self, handle: &Handle) -> Result<(), SandboxError> {
        let directory = self.directory(handle)?;
        let _change = self.changes.lock().await;
        if self.status(handle).await? == Status::Gone {
            return Err(SandboxError::Gone);
        }
        Self::stop_in(&directory).await;
        Ok(())
    }

    async fn remove(&self, handle: &Handle) -> Result<(), SandboxError> {
        let Ok(directory) = self.directory(handle) else {
            return Ok(());
        };
        let _change = self.changes.lock().await;
        if !directory.exists() {
            return Ok(());
        }
        Self::stop_in(&directory).await;
        match fs::remove_dir_all(&directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(SandboxError::backend("remove a sandbox")(error))
            }
            _ => Ok(()),
        }
    }

    async fn status(&self, handle: &Handle) -> Result<Status, SandboxError> {
        let Ok(directory) = self.directory(handle) else {
            return Ok(Status::Gone);
        };
        Ok(if !directory.join("spec.json").exists() {
            Status::Gone
        } else if Self::running(&directory) {
            Status::Running
        } else {
            Status::Stopped
        })
    }

    async fn list(&self) -> Result<Vec<Listed>, SandboxError> {
        let entries =
            fs::read_dir(&self.base).map_err(SandboxError::backend("list the sandboxes"))?;
        let mut listed = Vec::new();
        for entry in entries.flatten() {
            let directory = entry.path();
            if let Some(kept) = load::<Kept>(&directory.join("spec.json")) {
                let handle = Handle(directory.display().to_string());
                listed.push(Listed {
                    handle,
                    id: SandboxId(kept.id),
                });
            }
        }
        Ok(listed)
    }

    async fn connect(&self, handle: &Handle) -> Result<Box<dyn Duplex>, SandboxError> {
        let directory = self.directory(handle)?;
        match UnixStream::connect(directory.join("hands.sock")).await {
            Ok(stream) => Ok(Box::new(stream)),
            Err(error) => match self.status(handle).await? {
                Status::Gone => Err(SandboxError::Gone),
                Status::Stopped => Err(SandboxError::Stopped),
                Status::Running => Err(SandboxError::backend("connect to a sandbox")(error)),
            },
        }
    }
}
