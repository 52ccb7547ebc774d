//! Starting Postgres, noticing that it died, and starting it again.

use std::time::{Duration, Instant};

use tokio::{net::UnixStream, process::Child};
use tokio_util::sync::CancellationToken;

use super::{Cluster, PostgresError, START_PATIENCE};

/// How often a state that nobody announces is looked at.
const LOOK: Duration = Duration::from_millis(5);
const LOOK_AT_ADOPTED: Duration = Duration::from_millis(500);

/// A Postgres that takes connections.
#[derive(Debug)]
pub(super) enum Running {
    Child(Child),
    /// Left by a server that was killed; no child of ours.
    Adopted(u32),
}

impl Running {
    pub(super) async fn start_or_adopt(cluster: &Cluster) -> Result<Self, PostgresError> {
        if let Some(pid) = cluster.place.running_pid() {
            if cluster.place.running_sockets().as_deref() == Some(&*cluster.place.sockets) {
                tracing::info!(pid, "found the private Postgres of an earlier run");
                cluster.wait_ready(Some(pid)).await?;
                return Ok(Self::Adopted(pid));
            }
            // The data directory was moved or renamed meanwhile: its socket is elsewhere.
            cluster.stop().await?;
        }
        cluster.place.remove_stale_pid_file()?;
        Self::start(cluster).await
    }

    async fn start(cluster: &Cluster) -> Result<Self, PostgresError> {
        let since = Instant::now();
        let program = cluster.install.bin.join("postgres");
        let mut child = cluster
            .server_command(cluster.place.open_log()?)
            .spawn()
            .map_err(PostgresError::io("run", &program))?;
        let pid = child.id();
        tokio::select! {
            ready = cluster.wait_ready(pid) => ready?,
            _ = child.wait() => {
                return Err(PostgresError::Start {
                    log: cluster.place.log.clone(),
                    tail: cluster.place.log_tail(),
                });
            }
        }
        tracing::info!(
            pid,
            version = cluster.install.major,
            elapsed_ms = since.elapsed().as_secs_f64() * 1e3,
            "the private Postgres runs"
        );
        Ok(Self::Child(child))
    }

    async fn ended(&mut self, cluster: &Cluster) {
        match self {
            Self::Child(child) => match child.wait().await {
                Ok(status) => tracing::error!(%status, "the private Postgres ended"),
                Err(error) => tracing::error!(%error, "the private Postgres was lost"),
            },
            Self::Adopted(pid) => {
                while cluster.place.running_pid() == Some(*pid) {
                    tokio::time::sleep(LOOK_AT_ADOPTED).await;
                }
                tracing::error!(pid, "the private Postgres ended");
            }
        }
    }
}

impl Cluster {
    /// Waits until connections are taken, by `pid` if it is given.
    pub(super) async fn wait_ready(&self, pid: Option<u32>) -> Result<(), PostgresError> {
        let ready = async {
            loop {
                if self.place.is_ready(pid)
                    && UnixStream::connect(self.place.socket()).await.is_ok()
                {
                    return;
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        tokio::time::timeout(START_PATIENCE, ready)
            .await
            .map_err(|_| PostgresError::Start {
                log: self.place.log.clone(),
                tail: self.place.log_tail(),
            })
    }
}

/// Keeps it running until `stop`. The server's connections break meanwhile and come back.
pub(super) async fn supervise(cluster: Cluster, mut running: Running, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = running.ended(&cluster) => {}
        }
        // Backends of a killed Postgres hold its memory for a moment: the first attempts may fail.
        let mut pause = Duration::from_millis(50);
        running = loop {
            match Running::start_or_adopt(&cluster).await {
                Ok(running) => break running,
                Err(error) => {
                    tracing::error!(
                        error = crate::error::chain(&error),
                        "Postgres cannot be started again yet"
                    );
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(Duration::from_secs(5));
        };
    }
}
