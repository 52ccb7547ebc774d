//! Paths of an upload, and the tree they make. Nothing here trusts a name.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;

use super::archive::{ArchiveError, refuse};

/// Most bytes of a path, and of one name in it.
const PATH: usize = 1024;
const NAME: usize = 255;
/// Most directories above a file.
const DEPTH: usize = 32;

/// A file of a skill.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Relative, with `/`; never leads outside.
    pub path: String,
    /// 0755 or 0644.
    pub mode: u32,
    pub data: Bytes,
}

/// For a message: short, and nothing that a terminal would act on.
pub(super) fn shown(path: &str) -> String {
    let mut text: String = path
        .chars()
        .take(100)
        .flat_map(char::escape_debug)
        .collect();
    if path.chars().nth(100).is_some() {
        text.push('…');
    }
    text
}

/// The same path in its one normal form.
pub(super) fn normal(path: &str) -> Result<String, ArchiveError> {
    let bad = |why: &str| refuse(format!("the path `{}` {why}", shown(path)));
    if path.len() > PATH {
        return bad(&format!("is longer than {PATH} bytes"));
    }
    if path.chars().any(char::is_control) {
        return bad("has control characters");
    }
    if path.contains('\\') {
        return bad("has a backslash; directories are separated by `/`");
    }
    if path.starts_with('/') {
        return bad("is absolute");
    }
    let mut names = Vec::new();
    for name in path.split('/') {
        match name {
            "." => {}
            "" => return bad("has an empty name"),
            ".." => return bad("has `..`"),
            _ if name.len() > NAME => return bad(&format!("has a name longer than {NAME} bytes")),
            _ => names.push(name),
        }
    }
    // `c:file`, which another system takes for a place on a drive.
    if names.first().is_some_and(|first| {
        let mut letters = first.chars();
        letters.next().is_some_and(|c| c.is_ascii_alphabetic()) && letters.next() == Some(':')
    }) {
        return bad("begins with a drive letter");
    }
    if names.is_empty() {
        return bad("names no file");
    }
    if names.len() > DEPTH {
        return bad(&format!("has more than {DEPTH} levels"));
    }
    Ok(names.join("/"))
}

/// Files by path, of which no two would be one file somewhere, and none a directory.
#[derive(Debug, Default)]
pub(super) struct Tree {
    files: BTreeMap<String, (u32, Bytes)>,
    /// Every file and directory by its path in lower case: how it is written, and whether it is a file.
    seen: HashMap<String, (String, bool)>,
}

impl Tree {
    /// Adds a file. `path` is normal.
    pub(super) fn add(&mut self, path: String, mode: u32, data: Bytes) -> Result<(), ArchiveError> {
        for (at, _) in path.match_indices('/') {
            self.see(&path[..at], false)?;
        }
        self.see(&path, true)?;
        self.files.insert(path, (mode, data));
        Ok(())
    }

    /// Fills a file that was added.
    pub(super) fn set(&mut self, path: &str, data: Bytes) {
        if let Some((_, content)) = self.files.get_mut(path) {
            *content = data;
        }
    }

    fn see(&mut self, path: &str, file: bool) -> Result<(), ArchiveError> {
        let (known, was_file) = match self.seen.entry(path.to_lowercase()) {
            std::collections::hash_map::Entry::Vacant(entry) => {
                entry.insert((path.to_owned(), file));
                return Ok(());
            }
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
        };
        let (path, known) = (shown(path), shown(known));
        if path != known {
            refuse(format!(
                "`{path}` and `{known}` differ only in upper and lower case"
            ))
        } else if file && *was_file {
            refuse(format!("`{path}` is there twice"))
        } else if file != *was_file {
            refuse(format!("`{path}` is a file and a directory"))
        } else {
            Ok(())
        }
    }

    /// The directory that everything is in, when there is one.
    pub(super) fn top(&self) -> Option<&str> {
        let (top, _) = self.files.keys().next()?.split_once('/')?;
        // Sorted, but `a/b` does not stand beside `a/c` when there is an `a b`.
        self.files
            .keys()
            .all(|path| path.split_once('/').is_some_and(|(first, _)| first == top))
            .then_some(top)
    }

    pub(super) fn get(&self, path: &str) -> Option<&Bytes> {
        self.files.get(path).map(|(_, data)| data)
    }

    /// By path.
    pub(super) fn into_entries(self) -> impl Iterator<Item = Entry> {
        self.files
            .into_iter()
            .map(|(path, (mode, data))| Entry { path, mode, data })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_lead_nowhere_else() {
        for (given, wanted) in [
            ("a", "a"),
            ("a/b.txt", "a/b.txt"),
            ("./a/./b", "a/b"),
            ("ä ö/..x/x..", "ä ö/..x/x.."),
            ("a/c:d", "a/c:d"),
            ("ab:c", "ab:c"),
        ] {
            assert_eq!(normal(given).as_deref(), Ok(wanted), "{given}");
        }
        for bad in [
            "",
            ".",
            "./",
            "/",
            "/etc/passwd",
            "..",
            "../a",
            "a/../b",
            "a/..",
            "a//b",
            "a/",
            "c:/x",
            "C:x",
            "a\\b",
            "..\\a",
            "\\\\host\\share",
            "a\0b",
            "a\nb",
            "a\u{7f}",
            "a\u{9b}m",
        ] {
            assert!(normal(bad).is_err(), "{bad:?}");
        }
        assert!(normal("a/".repeat(32).trim_end_matches('/')).is_ok());
        assert!(normal(&format!("{}a", "a/".repeat(32))).is_err());
        assert!(normal(&"n".repeat(255)).is_ok());
        assert!(normal(&"n".repeat(256)).is_err());
        assert!(normal(&"nnn/".repeat(300)).is_err());
    }

    #[test]
    fn messages_are_safe_to_show() {
        insta::assert_snapshot!(normal("a\x1b[2J\u{202e}\n").unwrap_err(), @r#"the path `a\u{1b}[2J\u{202e}\n` has control characters"#);
        assert!(normal(&"\\".repeat(100_000)).unwrap_err().to_string().len() < 500);
    }

    fn tree(paths: &[&str]) -> Result<Tree, ArchiveError> {
        let mut tree = Tree::default();
        for path in paths {
            tree.add(normal(path)?, 0o644, Bytes::new())?;
        }
        Ok(tree)
    }

    #[test]
    fn one_path_is_one_file() {
        let message = |paths: &[&str]| tree(paths).unwrap_err().to_string();
        assert!(tree(&["a/b", "a/c", "a b/c"]).is_ok());
        insta::assert_snapshot!(message(&["a/b", "a/b"]), @"`a/b` is there twice");
        insta::assert_snapshot!(message(&["a/b", "a/./b"]), @"`a/b` is there twice");
        insta::assert_snapshot!(message(&["a/b", "a/B"]), @"`a/B` and `a/b` differ only in upper and lower case");
        insta::assert_snapshot!(message(&["A/b", "a/c"]), @"`a` and `A` differ only in upper and lower case");
        insta::assert_snapshot!(message(&["a", "a/b"]), @"`a` is a file and a directory");
        insta::assert_snapshot!(message(&["a/b/c", "a/b"]), @"`a/b` is a file and a directory");
        insta::assert_snapshot!(message(&["Ä", "ä"]), @"`ä` and `Ä` differ only in upper and lower case");
    }

    #[test]
    fn the_directory_of_everything() {
        assert_eq!(tree(&["a/b", "a/c/d"]).unwrap().top(), Some("a"));
        assert_eq!(tree(&["a/b", "a b/c"]).unwrap().top(), None);
        assert_eq!(tree(&["a/b", "b"]).unwrap().top(), None);
        assert_eq!(tree(&["a"]).unwrap().top(), None);
        assert_eq!(tree(&[]).unwrap().top(), None);
    }
}
