//! Skills: folders with a `SKILL.md` that a model reads when it needs them.
//!
//! ```text
//! upload ── archive::pack ──▶ zip in normal form ── store::blobs ──▶ archive::entries ──▶ sandbox
//!                └ front_matter: name, description ──▶ announcement ──▶ system prompt
//! ```
//!
//! A session's skills are settled when it is created (`Store::skill_versions_for_session`) and stay as
//! they were, whatever is uploaded or deleted later.

pub mod archive;
mod front_matter;
mod tree;

use std::{collections::HashSet, fmt::Write as _};

pub use front_matter::{FrontMatter, FrontMatterError, parse_front_matter};

/// Where attached skills are in a sandbox, each in a directory of its own.
pub const DIRECTORY: &str = "/workspace/skills";

/// A skill as the model is told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announced {
    pub name: String,
    pub description: String,
    /// Of its `SKILL.md`, in the sandbox.
    pub path: String,
}

impl Announced {
    /// An attached skill in its directory below [`DIRECTORY`].
    #[must_use]
    pub fn attached(name: &str, description: &str, directory: &str) -> Self {
        Self {
            name: name.to_owned(),
            description: description.to_owned(),
            path: format!("{DIRECTORY}/{directory}/SKILL.md"),
        }
    }
}

/// Directories for skills of these names, in order. The first of a name has it; a further one gets a
/// number behind it, `-2` the second.
#[must_use]
pub fn directories<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let names: Vec<&str> = names.into_iter().collect();
    // A name that is somebody's own is nobody's substitute.
    let own: HashSet<&str> = names.iter().copied().collect();
    let mut taken: HashSet<String> = HashSet::new();
    let mut given = Vec::with_capacity(names.len());
    for name in names {
        let mut directory = name.to_owned();
        let mut number = 2_usize;
        while taken.contains(&directory) || (directory != name && own.contains(&*directory)) {
            directory = format!("{name}-{number}");
            number += 1;
        }
        taken.insert(directory.clone());
        given.push(directory);
    }
    given
}

/// The paragraph of the system prompt about skills; `None` without any.
#[must_use]
pub fn announcement(skills: &[Announced]) -> Option<String> {
    if skills.is_empty() {
        return None;
    }
    let mut text = "Skills are folders of instructions and resources for particular tasks. When a task \
                    matches the description of a skill, read its file before you begin, and the files \
                    that it refers to as you need them; paths in it are relative to its folder."
        .to_owned();
    for skill in skills {
        // A line each, whatever a description or a directory in a repository may hold.
        let line = |text: &str| -> String {
            let words: Vec<&str> = text.split_whitespace().collect();
            words
                .join(" ")
                .chars()
                .filter(|c| !c.is_control())
                .collect()
        };
        let _ = write!(
            text,
            "\n- {}: {} ({})",
            line(&skill.name),
            line(&skill.description),
            line(&skill.path)
        );
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_skill_has_a_directory_of_its_own() {
        for (names, wanted) in [
            (&[][..], &[][..]),
            (&["a", "b"], &["a", "b"]),
            (&["a", "a", "b", "a"], &["a", "a-2", "b", "a-3"]),
            (&["a", "a", "a-2"], &["a", "a-3", "a-2"]),
            (&["a-2", "a", "a"], &["a-2", "a", "a-3"]),
            (&["a-2", "a-2", "a", "a"], &["a-2", "a-2-2", "a", "a-3"]),
        ] {
            assert_eq!(directories(names.iter().copied()), wanted, "{names:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn directories_differ(names in proptest::collection::vec("a(-[23]){0,2}", 0..12)) {
            let given = directories(names.iter().map(String::as_str));
            let different: HashSet<&String> = given.iter().collect();
            proptest::prop_assert_eq!(different.len(), names.len());
            for (name, directory) in names.iter().zip(&given) {
                proptest::prop_assert!(directory.starts_with(name.as_str()));
            }
        }
    }

    #[test]
    fn the_model_is_told_in_a_line_each() {
        assert_eq!(announcement(&[]), None);
        let skills = [
            Announced::attached("tables", "Reads tables.\nAlways.", "tables"),
            Announced {
                name: "x".to_owned(),
                description: "y".to_owned(),
                path: "/workspace/r/.claude/skills/x\n- z/SKILL.md".to_owned(),
            },
        ];
        insta::assert_snapshot!(announcement(&skills).unwrap(), @r#"
        Skills are folders of instructions and resources for particular tasks. When a task matches the description of a skill, read its file before you begin, and the files that it refers to as you need them; paths in it are relative to its folder.
        - tables: Reads tables. Always. (/workspace/skills/tables/SKILL.md)
        - x: y (/workspace/r/.claude/skills/x - z/SKILL.md)
        "#);
    }
}
