//! How the disk of a sandbox is bounded: by a quota where the daemon has one, else by the size of each
//! file and by a watch over the sum of all; and how the machine keeps some for itself.

use std::{path::PathBuf, sync::atomic::Ordering};

use bollard::{
    models::{ContainerCreateBody, HostConfig, SystemInfo},
    query_parameters::{CreateContainerOptionsBuilder, InspectContainerOptionsBuilder},
};
use tracing::{debug, info, warn};
use uuid::Uuid;

use super::{
    DEPLOYMENT_LABEL, DockerBackend, DockerOptions, HANDS, harden, injection, of_container,
};
use crate::{Handle, SandboxError, Spec};

/// How the disk of a sandbox is bounded on this daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum DiskLimit {
    /// Not known yet.
    Unknown = 0,
    /// The daemon enforces `disk_bytes` over everything written.
    Quota = 1,
    /// No file can grow beyond `disk_bytes`; whether many files together do is to be watched.
    FileSize = 2,
}

/// The disk that the daemon keeps containers on.
#[derive(Debug)]
pub(super) struct Host {
    low_water: u64,
    /// Somewhere on it, where that is a directory of this machine.
    place: Option<PathBuf>,
}

impl Host {
    pub(super) fn of(options: &DockerOptions, info: &SystemInfo) -> Self {
        // A daemon behind TCP is on another machine, or may be.
        let here = !options
            .host
            .as_deref()
            .is_some_and(|host| host.starts_with("tcp://"));
        Self {
            low_water: options.low_water_bytes,
            place: info
                .docker_root_dir
                .as_ref()
                .map(PathBuf::from)
                .filter(|place| here && place.is_dir()),
        }
    }

    /// # Errors
    /// [`SandboxError::NoRoom`] when it is known that there is too little.
    pub(super) fn has_room(&self) -> Result<(), SandboxError> {
        let Some(place) = self.place.as_ref().filter(|_| self.low_water > 0) else {
            return Ok(());
        };
        let Ok(disk) = rustix::fs::statvfs(place) else {
            return Ok(());
        };
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        if free >= self.low_water {
            return Ok(());
        }
        Err(SandboxError::NoRoom(format!(
            "the disk of the machine has {} MiB left, and {} MiB are kept free \
             (sandbox.low_water_bytes)",
            free >> 20,
            self.low_water >> 20
        )))
    }
}

impl DockerBackend {
    /// How the disk is bounded, as far as it is known by now.
    #[must_use]
    pub fn disk_limit(&self) -> DiskLimit {
        match self.disk_limit.load(Ordering::Relaxed) {
            1 => DiskLimit::Quota,
            2 => DiskLimit::FileSize,
            _ => DiskLimit::Unknown,
        }
    }

    /// Finds out how the disk is bounded and says so in the log; else the first sandbox does it.
    pub(super) async fn learn_disk_limit(&self, image: &str) {
        let Some(bytes) = self.options.limits.disk_bytes else {
            warn!("the disk of a sandbox is not bounded: sandbox.disk_bytes is 0");
            return;
        };
        if self.disk_limit() != DiskLimit::Unknown {
            self.say(self.disk_limit());
            return;
        }
        let mut probe = ContainerCreateBody {
            image: Some(image.to_owned()),
            entrypoint: Some(vec![HANDS.to_owned()]),
            host_config: Some(HostConfig {
                network_mode: Some("none".to_owned()),
                storage_opt: Some([("size".to_owned(), bytes.to_string())].into()),
                ..Default::default()
            }),
            ..Default::default()
        };
        probe.labels = Some(
            [
                (injection::HELPER_LABEL.to_owned(), "disk".to_owned()),
                (DEPLOYMENT_LABEL.to_owned(), self.options.deployment.clone()),
            ]
            .into(),
        );
        let name = format!("selfsame-helper-{}", Uuid::now_v7().simple());
        let options = CreateContainerOptionsBuilder::new().name(&name).build();
        match self.docker.create_container(Some(options), probe).await {
            Ok(created) => {
                if let Err(error) = self.remove_container(&created.id).await {
                    debug!(%error, "a helper container stays");
                }
                self.learned(DiskLimit::Quota);
            }
            Err(error) => {
                let error = SandboxError::backend("create a container")(error);
                if is_quota_refusal(&error) {
                    self.learned(DiskLimit::FileSize);
                } else {
                    debug!(%error, "whether there are disk quotas is not known yet");
                }
            }
        }
    }

    fn learned(&self, limit: DiskLimit) {
        if self.disk_limit.swap(limit as u8, Ordering::Relaxed) != limit as u8 {
            self.say(limit);
        }
    }

    fn say(&self, limit: DiskLimit) {
        let limits = self.options.limits.disk_bytes;
        match limit {
            DiskLimit::Unknown => {}
            DiskLimit::Quota => info!(
                bytes = limits,
                "the disk of a sandbox is bounded by a quota"
            ),
            DiskLimit::FileSize => warn!(
                bytes = limits,
                "this Docker daemon has no disk quotas: the size of each file is bounded, and a \
                 sandbox that has written more in all may not write until it deletes"
            ),
        }
    }

    /// Creates the container of `spec` with a disk quota where the daemon has one.
    pub(super) async fn create_limited(
        &self,
        spec: &Spec,
        volume: &str,
    ) -> Result<String, SandboxError> {
        let name = format!("selfsame-{}", spec.id);
        let plan = |quota| {
            harden::container(
                spec,
                &harden::Facts {
                    options: &self.options,
                    cpus: self.cpus,
                    hands_volume: volume,
                    quota,
                },
            )
        };
        let known = self.disk_limit();
        let body = plan(known != DiskLimit::FileSize);
        let asked = body
            .host_config
            .as_ref()
            .is_some_and(|host| host.storage_opt.is_some());
        let result = self.create_container(&name, body).await;
        let limit = match (known, &result) {
            (DiskLimit::Unknown, Ok(_)) if asked => DiskLimit::Quota,
            (DiskLimit::Unknown, Err(error)) if is_quota_refusal(error) => DiskLimit::FileSize,
            _ => return result,
        };
        self.learned(limit);
        if limit == DiskLimit::FileSize {
            return self.create_container(&name, plan(false)).await;
        }
        result
    }

    /// What the container has written, where no quota bounds it. The daemon looks at every file of the
    /// container's own layer.
    pub(super) async fn written(&self, handle: &Handle) -> Result<Option<u64>, SandboxError> {
        // With this driver a container has no layer of its own: the daemon would compare whole images.
        if self.disk_limit() == DiskLimit::Quota || self.storage == "vfs" {
            return Ok(None);
        }
        let options = InspectContainerOptionsBuilder::new().size(true).build();
        let container = self
            .docker
            .inspect_container(&handle.0, Some(options))
            .await
            .map_err(|error| of_container("measure a container", error))?;
        Ok(container.size_rw.and_then(|size| u64::try_from(size).ok()))
    }
}

/// Only drivers that refuse a quota they cannot keep are worth asking: the others ignore it.
pub(super) fn limit_of(info: &SystemInfo) -> DiskLimit {
    match info.driver.as_deref() {
        Some("overlay2" | "btrfs" | "zfs") => DiskLimit::Unknown,
        _ => DiskLimit::FileSize,
    }
}

fn is_quota_refusal(error: &SandboxError) -> bool {
    let SandboxError::Backend { source, .. } = error else {
        return false;
    };
    let text = source.to_string().to_lowercase();
    text.contains("storage-opt") || text.contains("storage opt") || text.contains("quota")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quota_is_only_asked_of_drivers_that_would_refuse_it() {
        let driver = |name: &str| SystemInfo {
            driver: Some(name.to_owned()),
            ..Default::default()
        };
        assert_eq!(limit_of(&driver("overlay2")), DiskLimit::Unknown);
        assert_eq!(limit_of(&driver("overlayfs")), DiskLimit::FileSize);
        assert_eq!(limit_of(&driver("vfs")), DiskLimit::FileSize);
    }

    #[test]
    fn without_room_no_sandbox_is_made() {
        let host = |low_water, place: &str| Host {
            low_water,
            place: Some(place.into()),
        };
        assert!(host(0, "/").has_room().is_ok());
        assert!(host(1, "/").has_room().is_ok());
        assert!(host(u64::MAX, "/nowhere").has_room().is_ok());
        let error = host(u64::MAX, "/").has_room().unwrap_err();
        assert!(
            error.to_string().contains("sandbox.low_water_bytes"),
            "{error}"
        );
    }
}
