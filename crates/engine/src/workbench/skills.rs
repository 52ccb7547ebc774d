//! The agent's skills: unpacked into the sandbox, read-only, each in a directory of its own.

use std::collections::HashSet;

use selfsame_sandbox::{Put, Sandbox, SandboxError};
use selfsame_store::BlobError;
use selfsame_types::SessionId;
use uuid::Uuid;

use super::{Fit, FitError, Outfit, Workbench};
use crate::{
    machine::{About, ErrorType, Trouble},
    skills::{self, Announced, archive},
};

/// More than the largest archive of a skill can be.
const MAX_ARCHIVE: usize = 64 << 20;

impl Workbench {
    /// Unpacks what is missing. A skill that cannot be unpacked is a trouble: the session goes on without.
    pub(super) async fn bring_skills(
        &self,
        session: SessionId,
        sandbox: &Sandbox,
        wanted: &Outfit,
        mounted: &mut HashSet<Uuid>,
        fit: &mut Fit,
    ) -> Result<(), FitError> {
        let skills = &wanted.equipment.skills;
        let directories = skills::directories(skills.iter().map(|skill| skill.name.as_str()));
        for (skill, directory) in skills.iter().zip(&directories) {
            if mounted.contains(&skill.version_id.0) {
                continue;
            }
            let reason = match self.unpack(sandbox, skill.blob_id, directory).await {
                Ok(()) => {
                    mounted.insert(skill.version_id.0);
                    continue;
                }
                Err(FitError::Sandbox(SandboxError::Failed(reason))) => reason,
                Err(FitError::Blob(BlobError::Missing)) => "its content is lost".to_owned(),
                Err(error) => return Err(error),
            };
            tracing::warn!(%session, skill = skill.name, reason, "a skill could not be unpacked");
            fit.troubles.push(Trouble {
                error_type: ErrorType::UnknownError,
                message: format!("The skill {} could not be mounted: {reason}", skill.name),
                about: About::Sandbox,
            });
        }
        Ok(())
    }

    async fn unpack(
        &self,
        sandbox: &Sandbox,
        blob: selfsame_types::BlobId,
        directory: &str,
    ) -> Result<(), FitError> {
        let archive = self.store.blobs().read(blob, MAX_ARCHIVE).await?;
        let entries = tokio::task::spawn_blocking(move || archive::entries(&archive))
            .await
            .map_err(|_| BlobError::Missing)?
            .map_err(|error| SandboxError::Failed(error.to_string()))?;
        for entry in entries {
            let file = Put {
                path: format!("{}/{directory}/{}", skills::DIRECTORY, entry.path),
                // Nobody is meant to change it.
                mode: entry.mode & 0o555,
                size: entry.data.len() as u64,
            };
            sandbox.put(&file, entry.data.as_ref()).await?;
        }
        Ok(())
    }

    /// The agents' skills as models are told of them.
    pub(super) fn attached(wanted: &Outfit) -> Vec<Announced> {
        let skills = &wanted.equipment.skills;
        let directories = skills::directories(skills.iter().map(|skill| skill.name.as_str()));
        skills
            .iter()
            .zip(&directories)
            .map(|(skill, directory)| {
                Announced::attached(&skill.name, &skill.description, directory)
            })
            .collect()
    }
}
