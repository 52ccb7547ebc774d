//! What the model is told of a session's own material: files, repositories, skills.

use std::fmt::Write as _;

use selfsame_store::StoreError;
use selfsame_types::{
    agent::{SkillRef, SkillSource},
    session::{GithubCheckout, SessionResource},
};
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

/// What the models of a session are told of its material.
#[derive(Debug, Clone, Default)]
pub(crate) struct Briefing {
    /// Of files and repositories.
    material: String,
    /// The agents' skills.
    attached: Vec<(SkillRef, Announced)>,
    /// Skills that repositories bring along.
    found: Vec<Announced>,
}

impl Briefing {
    /// The paragraphs for an agent with these skills; empty when there is nothing to tell.
    pub fn text(&self, skills: &[SkillRef]) -> String {
        let attached = self.attached.iter();
        let own = attached.filter(|(skill, _)| skills.iter().any(|own| is_same(own, skill)));
        let announced: Vec<_> = own
            .map(|(_, announced)| announced)
            .chain(&self.found)
            .cloned()
            .collect();
        let mut text = self.material.clone();
        if let Some(paragraph) = skills::announcement(&announced) {
            if !text.is_empty() {
                text.push('\n');
            }
            text.push_str(&paragraph);
        }
        text
    }
}

/// Whether both are one version of one skill, as sessions show them. A version of a custom skill has an id
/// of its own; the operator's have numbers.
fn is_same(one: &SkillRef, other: &SkillRef) -> bool {
    one.r#type == other.r#type
        && one.version == other.version
        && (one.r#type == SkillSource::Custom || one.skill_id == other.skill_id)
}

/// The skills of a session's agents, each version once: what the session keeps, in the same order.
fn listed(wanted: &Outfit) -> Vec<SkillRef> {
    let mut listed: Vec<SkillRef> = Vec::new();
    for skill in wanted.agent.specs().iter().flat_map(|spec| &spec.skills) {
        if listed.iter().all(|known| !is_same(known, skill)) {
            listed.push(skill.clone());
        }
    }
    listed
}

impl Workbench {
    /// What this session's models are told of its material.
    pub fn briefing(&self, wanted: &Outfit) -> Result<Briefing, FitError> {
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
        let attached = listed(wanted)
            .into_iter()
            .zip(Self::attached(wanted))
            .collect();
        let mut found = Vec::new();
        if let Some(findings) = &wanted.equipment.findings {
            let findings: Findings = serde_json::from_str(findings).map_err(
                StoreError::corrupt("sessions", "findings", wanted.equipment.workspace),
            )?;
            found.extend(findings.announced());
        }
        Ok(Briefing {
            material: text,
            attached,
            found,
        })
    }
}
