//! A private Postgres, for a server that was not told of another.
//!
//! It is made from the binaries that the machine has, lives in `<data_dir>/postgres`, listens on a Unix
//! socket in a directory that only its user may enter, and never on TCP. It runs as another user when
//! this process is root, because Postgres refuses root, and in a process group of its own, so that
//! Ctrl-C reaches the server first. It outlives a killed server; the next one finds it by its pid file.
//!
//! ```text
//! Postgres ── data_dir/postgres.lock          who owns it: one server at a time
//!   └─ supervisor task
//!        └─ postgres (child, or adopted)      started again when it dies
//! ```

mod install;
mod place;
mod supervise;

use std::{
    ffi::OsStr,
    fs::File,
    io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use tokio::process::Command;
use tokio_util::sync::CancellationToken;

use install::Install;
use place::Place;
pub(crate) use place::create_data_dir;

/// Oldest version the schema needs.
const OLDEST: u32 = 15;
/// How long a server waits for a command to be done with the directory.
const LOCK_PATIENCE: Duration = Duration::from_secs(3);
/// How long a start may take; after a crash it replays its log first.
const START_PATIENCE: Duration = Duration::from_secs(120);

/// Why there is no private Postgres. The messages say what to do.
#[derive(Debug, thiserror::Error)]
pub enum PostgresError {
    #[error(
        "no PostgreSQL {OLDEST} or later is installed (looked in PATH and the usual places): \
         install one (Debian, Ubuntu: `apt install postgresql`), set database.postgres_bin, or set \
         DATABASE_URL to a server elsewhere"
    )]
    NotInstalled,
    #[error(
        "{} was made by PostgreSQL {found}, and of that version nothing is installed (there is: \
         {installed}). Install PostgreSQL {found} again, or upgrade the data: with both versions \
         installed run pg_upgrade, or dump with the old one (pg_dumpall) and restore into a new \
         data directory",
        directory.display()
    )]
    OtherVersion {
        directory: PathBuf,
        found: u32,
        installed: String,
    },
    #[error(
        "{} is in use by another server",
        directory.display()
    )]
    InUse { directory: PathBuf },
    #[error(
        "Postgres runs as the user `{user}`, who cannot enter {}: choose a data_dir that every user \
         can reach, or start the server as an ordinary user",
        directory.display()
    )]
    Unreachable { user: String, directory: PathBuf },
    #[error(
        "this process is root, Postgres refuses root, and there is no user `postgres` or `nobody`"
    )]
    NoUser,
    #[error("{} belongs to somebody else", directory.display())]
    Foreign { directory: PathBuf },
    #[error("initdb failed: {output}")]
    Initdb { output: String },
    #[error("Postgres did not start; the end of {}:\n{tail}", log.display())]
    Start { log: PathBuf, tail: String },
    #[error("cannot {what} {}", path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl PostgresError {
    fn io<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Self + use<'a> {
        move |source| Self::Io {
            what,
            path: path.to_owned(),
            source,
        }
    }
}

/// What a private Postgres is made from.
#[derive(Debug, Clone, Copy)]
pub struct Options<'a> {
    pub data_dir: &'a Path,
    /// Where `initdb` and `postgres` are; searched when `None`.
    pub bin: Option<&'a Path>,
    /// The process's `PATH`.
    pub search_path: &'a OsStr,
    /// Connections of this server; others are added for commands and other servers.
    pub connections: u32,
}

/// A running private Postgres. It runs on when this is dropped without [`Postgres::stop`].
#[derive(Debug)]
pub struct Postgres {
    url: String,
    cluster: Cluster,
    /// `None` when another process owns it and we are guests.
    owned: Option<Owned>,
}

#[derive(Debug)]
struct Owned {
    /// Held as long as this process lives.
    _lock: File,
    stop: CancellationToken,
    supervisor: tokio::task::JoinHandle<()>,
}

/// Everything needed to start or stop the program on its directory.
#[derive(Debug, Clone)]
struct Cluster {
    install: Install,
    place: Place,
    max_connections: u32,
}

impl Postgres {
    /// Makes the cluster if there is none, and starts it or takes over one that is running.
    ///
    /// # Errors
    /// When another server uses the directory, and for everything else [`PostgresError`] names.
    pub async fn start(options: Options<'_>) -> Result<Self, PostgresError> {
        let place = Place::prepare(options.data_dir)?;
        // A command may have it for a moment.
        let deadline = Instant::now() + LOCK_PATIENCE;
        loop {
            if let Some(lock) = place.try_lock()? {
                return Self::own(options, place, lock).await;
            }
            if Instant::now() > deadline {
                return Err(PostgresError::InUse {
                    directory: options.data_dir.to_owned(),
                });
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// For commands: as a guest of the running server's Postgres, else as its owner for a while.
    ///
    /// # Errors
    /// As [`Postgres::start`].
    pub async fn visit(options: Options<'_>) -> Result<Self, PostgresError> {
        let place = Place::prepare(options.data_dir)?;
        if let Some(lock) = place.try_lock()? {
            return Self::own(options, place, lock).await;
        }
        let cluster = Cluster::find(options, place)?;
        cluster.wait_ready(None).await?;
        Ok(Self {
            url: cluster.place.url(),
            cluster,
            owned: None,
        })
    }

    async fn own(options: Options<'_>, place: Place, lock: File) -> Result<Self, PostgresError> {
        let cluster = Cluster::find(options, place)?;
        cluster.create_if_missing().await?;
        let running = supervise::Running::start_or_adopt(&cluster).await?;
        let stop = CancellationToken::new();
        let supervisor = tokio::spawn(supervise::supervise(cluster.clone(), running, stop.clone()));
        Ok(Self {
            url: cluster.place.url(),
            cluster,
            owned: Some(Owned {
                _lock: lock,
                stop,
                supervisor,
            }),
        })
    }

    /// Where to connect.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Stops it, if it is ours: connections are cut, everything committed is on disk.
    pub async fn stop(self) {
        let Some(owned) = self.owned else { return };
        owned.stop.cancel();
        if let Err(error) = owned.supervisor.await {
            tracing::error!(%error, "the supervisor of Postgres failed");
        }
        if let Err(error) = self.cluster.stop().await {
            tracing::error!(error = crate::error::chain(&error), "Postgres did not stop");
        }
    }
}

impl Cluster {
    /// Chooses the binaries: those that made the cluster, or the newest for a new one.
    fn find(options: Options<'_>, mut place: Place) -> Result<Self, PostgresError> {
        let mut installs = install::find(options.bin, options.search_path);
        installs.sort_by_key(|install| install.major);
        let install = match place.version()? {
            Some(found) => installs
                .iter()
                .find(|install| install.major == found)
                .cloned()
                .ok_or_else(|| PostgresError::OtherVersion {
                    directory: place.cluster.clone(),
                    found,
                    installed: match &*installs {
                        [] => "none".to_owned(),
                        _ => installs
                            .iter()
                            .map(|install| install.major.to_string())
                            .collect::<Vec<_>>()
                            .join(", "),
                    },
                })?,
            None => installs
                .pop()
                .filter(|install| install.major >= OLDEST)
                .ok_or(PostgresError::NotInstalled)?,
        };
        place.choose_sockets()?;
        Ok(Self {
            install,
            place,
            max_connections: options.connections + 32,
        })
    }

    /// A command of the installation, as the cluster's user, with nothing of our environment.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.install.bin.join(program));
        command
            .env_clear()
            .env("LC_ALL", "C")
            .current_dir("/")
            .stdin(std::process::Stdio::null())
            .process_group(0);
        if let Some(user) = &self.place.user {
            command.uid(user.uid).gid(user.gid);
        }
        command
    }

    /// `initdb` into a directory beside it, renamed when done: a crash leaves no half cluster.
    async fn create_if_missing(&self) -> Result<(), PostgresError> {
        if self.place.version()?.is_some() {
            return Ok(());
        }
        tracing::info!(
            version = self.install.major,
            directory = %self.place.cluster.display(),
            "making a private Postgres"
        );
        let fresh = self.place.fresh_directory()?;
        let output = self
            .command("initdb")
            .arg("--pgdata")
            .arg(&fresh)
            // Whoever can reach the socket may connect; the directory it is in lets nobody else.
            .args(["--username", place::USER, "--auth", "trust"])
            // Text is sorted by its bytes, the same on every machine.
            .args(["--encoding", "UTF8", "--locale", "C", "--no-instructions"])
            .output()
            .await
            .map_err(PostgresError::io("run", &self.install.bin.join("initdb")))?;
        if !output.status.success() {
            return Err(PostgresError::Initdb {
                output: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            });
        }
        std::fs::rename(&fresh, &self.place.cluster)
            .map_err(PostgresError::io("make", &self.place.cluster))
    }

    async fn stop(&self) -> Result<(), PostgresError> {
        let output = self
            .command("pg_ctl")
            .arg("--pgdata")
            .arg(&self.place.cluster)
            .args(["stop", "--mode", "fast", "--wait", "--timeout", "60"])
            .output()
            .await
            .map_err(PostgresError::io("run", &self.install.bin.join("pg_ctl")))?;
        if output.status.success() || self.place.running_pid().is_none() {
            return Ok(());
        }
        Err(PostgresError::Start {
            log: self.place.log.clone(),
            tail: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        })
    }

    fn server_command(&self, log: File) -> Command {
        let mut command = self.command("postgres");
        command
            .arg("-D")
            .arg(&self.place.cluster)
            .arg("-k")
            .arg(&self.place.sockets)
            .args(["-p", place::PORT]);
        let max_connections = self.max_connections.to_string();
        for (name, value) in [
            ("listen_addresses", ""),
            ("unix_socket_permissions", "0700"),
            ("max_connections", &*max_connections),
            ("shared_buffers", "64MB"),
            ("max_worker_processes", "4"),
            // Our statements are short: neither is worth its start.
            ("max_parallel_workers_per_gather", "0"),
            ("jit", "off"),
            ("random_page_cost", "1.1"),
            ("max_wal_size", "1GB"),
            ("checkpoint_timeout", "15min"),
            ("log_checkpoints", "off"),
            ("log_line_prefix", "%m [%p] "),
        ] {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        command.stdout(std::process::Stdio::null()).stderr(log);
        command
    }
}

#[cfg(test)]
mod tests;
