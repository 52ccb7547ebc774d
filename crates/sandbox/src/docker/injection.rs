//! Brings the hands into containers: a volume named by the binary's hash, filled once.
//!
//! A volume and not a bind mount, because the daemon may be on another machine or see another file
//! system; by the Engine API's archive upload, because that needs no program in the image.

use std::{collections::HashMap, io, path::PathBuf, time::SystemTime};

use bollard::{
    body_full,
    models::{ContainerCreateBody, HostConfig, VolumeCreateRequest},
    query_parameters::{
        ContainerArchiveInfoOptionsBuilder, ListVolumesOptionsBuilder,
        PruneContainersOptionsBuilder, RemoveVolumeOptions, UploadToContainerOptionsBuilder,
    },
};
use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use sha2::{Digest, Sha256};
use tokio::sync::Mutex;
use tracing::{debug, info};
use uuid::Uuid;

use super::{DEPLOYMENT_LABEL, DockerBackend, HANDS, harden, status_of};
use crate::SandboxError;

/// On the short-lived containers that are only there to write through.
pub(super) const HELPER_LABEL: &str = "dev.selfsame.helper";
/// On the volumes, so that an operator finds them.
const VOLUME_LABEL: &str = "dev.selfsame.hands";
/// A volume that nothing has used is removed when it is older.
const UNUSED_AGE: SignedDuration = SignedDuration::from_hours(1);
/// A tar archive comes in blocks of this size.
const TAR_BLOCK: usize = 512;

/// The binary on our side and the volume on the daemon's.
#[derive(Debug)]
pub(super) struct Hands {
    path: PathBuf,
    /// The volume's name once it is known to be filled. Held locked while filling: one at a time.
    volume: Mutex<Option<String>>,
}

impl Hands {
    /// # Errors
    /// When the file is missing or no Linux program.
    pub(super) async fn new(path: PathBuf) -> io::Result<Self> {
        let hands = Self {
            path,
            volume: Mutex::new(None),
        };
        hands.read().await?;
        Ok(hands)
    }

    async fn read(&self) -> io::Result<Bytes> {
        let path = self.path.display();
        let bytes = tokio::fs::read(&self.path)
            .await
            .map_err(|error| io::Error::new(error.kind(), format!("{path}: {error}")))?;
        if !bytes.starts_with(b"\x7fELF") {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{path} is not a Linux program"),
            ));
        }
        Ok(bytes.into())
    }

    /// The name of the filled volume; the first call fills it. `image` is any image that exists,
    /// or may be fetched: a container of it is created, never started.
    pub(super) async fn volume(
        &self,
        backend: &DockerBackend,
        image: &str,
    ) -> Result<String, SandboxError> {
        let mut known = self.volume.lock().await;
        if let Some(name) = &*known {
            return Ok(name.clone());
        }
        let binary = self
            .read()
            .await
            .map_err(SandboxError::backend("read the hands binary"))?;
        let name = volume_name(&binary);
        fill(backend, image, &name, binary).await?;
        *known = Some(name.clone());
        Ok(name)
    }

    /// Removes volumes of other versions of the hands that nothing uses any more. Whoever needs such a
    /// one all the same fills it again.
    pub(super) async fn remove_unused(&self, backend: &DockerBackend) -> Result<(), SandboxError> {
        let filters = HashMap::from([("label", vec![VOLUME_LABEL]), ("dangling", vec!["true"])]);
        let options = ListVolumesOptionsBuilder::new().filters(&filters).build();
        let listed = backend
            .docker
            .list_volumes(Some(options))
            .await
            .map_err(SandboxError::backend("list the volumes of the hands"))?;
        let own = self.name().await?;
        let now = Timestamp::try_from(SystemTime::now()).unwrap_or(Timestamp::MIN);
        for volume in listed.volumes.into_iter().flatten() {
            let made = volume
                .created_at
                .and_then(|at| at.parse::<Timestamp>().ok());
            // Another server may just be filling it.
            let old = made.is_some_and(|made| now.duration_since(made) > UNUSED_AGE);
            if volume.name == own || !old {
                continue;
            }
            match backend
                .docker
                .remove_volume(&volume.name, None::<RemoveVolumeOptions>)
                .await
            {
                Ok(()) => info!(volume = %volume.name, "removed the volume of unused hands"),
                Err(error) => debug!(volume = %volume.name, %error, "a volume of hands stays"),
            }
        }
        Ok(())
    }

    async fn name(&self) -> Result<String, SandboxError> {
        let binary = self
            .read()
            .await
            .map_err(SandboxError::backend("read the hands binary"))?;
        Ok(volume_name(&binary))
    }

    /// The volume turned out to be empty: fill it again at the next need.
    pub(super) async fn forget(&self) {
        *self.volume.lock().await = None;
    }
}

fn volume_name(binary: &[u8]) -> String {
    let digest: String = Sha256::digest(binary)
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("selfsame-hands-{digest}")
}

async fn fill(
    backend: &DockerBackend,
    image: &str,
    volume: &str,
    binary: Bytes,
) -> Result<(), SandboxError> {
    let docker = &backend.docker;
    // Helpers of servers that were killed in between. Never a young one: it may be in use.
    let filters = HashMap::from([("label", vec![HELPER_LABEL]), ("until", vec!["10m"])]);
    let options = PruneContainersOptionsBuilder::new()
        .filters(&filters)
        .build();
    if let Err(error) = docker.prune_containers(Some(options)).await {
        // Another server may be at it, and nothing depends on it.
        debug!(%error, "old helper containers stay");
    }
    // Creating one that exists already does nothing.
    docker
        .create_volume(VolumeCreateRequest {
            name: Some(volume.to_owned()),
            labels: Some(HashMap::from([(VOLUME_LABEL.to_owned(), String::new())])),
            ..Default::default()
        })
        .await
        .map_err(SandboxError::backend("create the volume of the hands"))?;
    let helper = ContainerCreateBody {
        image: Some(image.to_owned()),
        entrypoint: Some(vec![HANDS.to_owned()]),
        labels: Some(HashMap::from([
            (HELPER_LABEL.to_owned(), volume.to_owned()),
            (
                DEPLOYMENT_LABEL.to_owned(),
                backend.options.deployment.clone(),
            ),
        ])),
        host_config: Some(HostConfig {
            network_mode: Some("none".to_owned()),
            mounts: Some(vec![harden::hands_mount(volume, false)]),
            ..Default::default()
        }),
        ..Default::default()
    };
    let name = format!("selfsame-helper-{}", Uuid::now_v7().simple());
    let id = backend.create_container(&name, helper).await?;
    let filled = fill_through(backend, &id, volume, binary).await;
    backend.remove_container(&id).await?;
    filled
}

async fn fill_through(
    backend: &DockerBackend,
    helper: &str,
    volume: &str,
    binary: Bytes,
) -> Result<(), SandboxError> {
    let docker = &backend.docker;
    let options = ContainerArchiveInfoOptionsBuilder::new()
        .path(HANDS)
        .build();
    match docker
        .get_container_archive_info(helper, Some(options))
        .await
    {
        // Only a whole file ever has this name, see `archive`.
        Ok(_) => return Ok(()),
        Err(error) if status_of(&error) == Some(404) => {}
        Err(error) => {
            return Err(SandboxError::backend("look into the volume of the hands")(
                error,
            ));
        }
    }
    let partial = format!("partial-{}", Uuid::now_v7().simple());
    let options = UploadToContainerOptionsBuilder::new()
        .path("/selfsame")
        .build();
    info!(
        volume,
        bytes = binary.len(),
        "copying the hands to the Docker daemon"
    );
    docker
        .upload_to_container(
            helper,
            Some(options),
            body_full(archive(&partial, &binary).into()),
        )
        .await
        .map_err(SandboxError::backend("copy the hands to the Docker daemon"))
}

/// A tar archive of the binary under the name `partial`, and then of a hard link `hands` to it:
/// whoever sees `hands` sees all of it, also while another server is filling the same volume.
fn archive(partial: &str, binary: &[u8]) -> Vec<u8> {
    let padding = binary.len().next_multiple_of(TAR_BLOCK) - binary.len();
    let mut tar = Vec::with_capacity(binary.len() + padding + 4 * TAR_BLOCK);
    tar.extend(tar_header(partial, binary.len(), b'0', ""));
    tar.extend(binary);
    tar.resize(tar.len() + padding, 0);
    tar.extend(tar_header("hands", 0, b'1', partial));
    tar.resize(tar.len() + 2 * TAR_BLOCK, 0);
    tar
}

/// A POSIX ustar header of a file owned by root with mode 0555. The names are ours and short.
fn tar_header(name: &str, size: usize, kind: u8, link: &str) -> [u8; TAR_BLOCK] {
    let mut header = [0; TAR_BLOCK];
    let mut put =
        |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, "0000555\0");
    put(108, "0000000\0");
    put(116, "0000000\0");
    put(124, &format!("{size:011o}\0"));
    put(136, "00000000000\0");
    // The checksum is taken with its own field full of spaces.
    put(148, "        ");
    put(157, link);
    put(257, "ustar\x0000");
    header[156] = kind;
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::MetadataExt, process::Command};

    use super::*;

    #[test]
    fn the_archive_is_one_that_tar_unpacks() {
        for size in [0, 1, 511, 512, 513, 70_000] {
            let dir = tempfile::tempdir().unwrap();
            let binary: Vec<u8> = (0..size).map(|n: u32| n as u8).collect();
            std::fs::write(dir.path().join("a.tar"), archive("partial-x", &binary)).unwrap();
            let status = Command::new("tar")
                .args(["-xf", "a.tar"])
                .current_dir(dir.path())
                .status()
                .unwrap();
            assert!(status.success());
            let hands = dir.path().join("hands");
            assert_eq!(std::fs::read(&hands).unwrap(), binary);
            let meta = std::fs::metadata(&hands).unwrap();
            assert_eq!((meta.nlink(), meta.mode() & 0o777), (2, 0o555));
        }
    }

    #[tokio::test]
    async fn a_missing_or_foreign_binary_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let missing = Hands::new(dir.path().join("nothing")).await.unwrap_err();
        assert!(missing.to_string().contains("nothing"), "{missing}");
        let script = dir.path().join("script");
        std::fs::write(&script, "#!/bin/sh").unwrap();
        let foreign = Hands::new(script).await.unwrap_err();
        assert!(
            foreign.to_string().contains("not a Linux program"),
            "{foreign}"
        );
    }
}
