//! What the model is told of a session's own material: files, repositories, skills.

use std::fmt::Write as _;

use selfsame_store::StoreError;
use selfsame_types::session::{GithubCheckout, SessionResource};
use serde::{Deserialize, Serialize};

use super::{FitError, Outfit, Workbench};
use crate::skills::{self, Announced};

/// Files named one by one; of more the model sees the directory.
const MAX_NAMED: usize = 100;

/// What the first look into the repositories found. Kept on the session, so that the prompt stays the
/// same however the files change later.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Findings {
    skills: Vec<Found>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Found {
    name: String,
    description: String,
    path: String,
}

impl Findings {
    /// Adds a repository's skill, unless its file is not one.
    pub(super) fn add(&mut self, directory: &str, path: &str, text: &[u8]) {
        let described = std::str::from_utf8(text)
            .ok()
            .and_then(|text| skills::parse_front_matter(text).ok())
            .and_then(|matter| matter.describe(directory));
        if let Some((name, description)) = described {
            self.skills.push(Found {
                name,
                description,
                path: path.to_owned(),
            });
        }
    }

    fn announced(self) -> impl Iterator<Item = Announced> {
        self.skills.into_iter().map(|found| Announced {
            name: found.name,
            description: found.description,
            path: found.path,
        })
    }
}

impl Workbench {
    /// The paragraphs of the system prompt about this session's material; empty when there is none.
    pub fn briefing(&self, wanted: &Outfit) -> Result<String, FitError> {
        let mut text = String::new();
        let resources = wanted.resources()?;
        let files: Vec<&str> = resources
            .iter()
            .filter_map(|resource| match resource {
                SessionResource::File(file) => Some(file.mount_path.as_str()),
                _ => None,
            })
            .collect();
        if !files.is_empty() {
            text.push_str("The user has provided these files, read-only:\n");
            for path in files.iter().take(MAX_NAMED) {
                let _ = writeln!(text, "- {path}");
            }
            if files.len() > MAX_NAMED {
                let _ = writeln!(text, "- and {} more", files.len() - MAX_NAMED);
            }
        }
        let repositories = resources.iter().filter_map(|resource| match resource {
            SessionResource::GithubRepository(repository) => Some(repository),
            _ => None,
        });
        let mut first = true;
        for repository in repositories {
            if std::mem::take(&mut first) {
                text.push_str(
                    "Git repositories, cloned for you. Pull and push work without credentials:\n",
                );
            }
            let _ = write!(text, "- {} ({})", repository.mount_path, repository.url);
            let _ = match &repository.checkout {
                None => writeln!(text),
                Some(GithubCheckout::Branch(branch)) => writeln!(text, ", branch {}", branch.name),
                Some(GithubCheckout::Commit(commit)) => writeln!(text, ", commit {}", commit.sha),
            };
        }
        let mut announced = Self::attached(wanted);
        if let Some(findings) = &wanted.equipment.findings {
            let findings: Findings = serde_json::from_str(findings).map_err(
                StoreError::corrupt("sessions", "findings", wanted.equipment.workspace),
            )?;
            announced.extend(findings.announced());
        }
        if let Some(paragraph) = skills::announcement(&announced) {
            if !text.is_empty() {
                text.push('\n');
            }
            text.push_str(&paragraph);
        }
        Ok(text)
    }
}
