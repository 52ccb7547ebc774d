//! Where things are: the one place that knows what a path of the sandbox is on the disk.
//!
//! In a container the sandbox's `/` is the root of the file system. Where the hands are a plain
//! process it is a directory, given by `--root`, and there
//!
//! * every path that a *server* names (`/etc/x`, `/mnt/session/uploads/x`) is below that directory, and so
//!   are the targets of links that it asks for;
//! * of the paths that a *tool* is given only those below [`SHARED`] are, because agents are told about
//!   them. Any other absolute path means itself;
//! * commands see the real file system. From their working directory the rest is at `../mnt/session`
//!   and so on, as it is in a container.
//!
//! What a server names is opened component by component, and a link is never followed: whatever
//! runs inside may put one anywhere.

use std::{
    ffi::OsStr,
    fs, io,
    os::{
        fd::OwnedFd,
        unix::{ffi::OsStrExt, fs::MetadataExt},
    },
    path::{Component, Path, PathBuf},
};

use rustix::{
    fs::{CWD, Mode, OFlags, mkdirat, openat},
    io::Errno,
};

use super::files::phrase;

/// Directories that agents are told about.
const SHARED: [&str; 4] = ["/workspace", "/mnt/session", "/uploads", "/skills"];
/// Whatever is below is a server's, and the tools do not change it.
const UPLOADS: &str = "/mnt/session/uploads";
/// A server's, too, but a repository may have this name: only files without write permission.
const SKILLS: &str = "/workspace/skills";
/// Longest path that a server may name.
const MAX_PATH: usize = 4096;

/// Why something of the server's was not done: a phrase.
#[derive(Debug)]
pub(super) struct Fault(pub(super) String);

impl Fault {
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }

    /// `path` and a short phrase.
    pub(super) fn at<E: Into<io::Error>>(path: &str) -> impl Fn(E) -> Self {
        move |error| Self(format!("{path}: {}", phrase(&error.into())))
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Places {
    root: PathBuf,
}

impl Places {
    pub(crate) fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    fn place(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// Where shells start and relative paths begin.
    pub(super) fn workdir(&self) -> PathBuf {
        self.place("/workspace")
    }

    /// What is put here becomes a file of the session.
    pub(super) fn outputs(&self) -> PathBuf {
        self.place("/mnt/session/outputs")
    }

    /// Outputs that are too long to return.
    pub(super) fn tool_outputs(&self) -> PathBuf {
        self.place("/mnt/session/tool-outputs")
    }

    /// Makes the directories that must be there.
    pub(super) fn make(&self) {
        for directory in [self.workdir(), self.outputs(), self.tool_outputs()] {
            if let Err(error) = fs::create_dir_all(&directory) {
                eprintln!("selfsame-hands: {}: {error}", directory.display());
            }
        }
    }

    /// What a tool means by `path`.
    pub(super) fn of_tool(&self, path: &str) -> PathBuf {
        if self.root != Path::new("/")
            && SHARED
                .iter()
                .any(|shared| Path::new(path).starts_with(shared))
        {
            return self.place(path);
        }
        self.workdir().join(path)
    }

    /// Whether writing to `target` would change what only a server may change, whatever links are on
    /// the way. (Modes do not say so to root.)
    pub(super) fn is_read_only(&self, target: &Path) -> bool {
        let real = real_path(target);
        let below = |path| real.starts_with(real_path(&self.place(path)));
        let locked = || fs::metadata(&real).is_ok_and(|file| file.mode() & 0o222 == 0);
        below(UPLOADS) || (below(SKILLS) && locked())
    }

    /// What a server means by `path`, as a path that the system understands. Links are followed.
    pub(super) fn of_server(&self, path: &str) -> Result<PathBuf, Fault> {
        parts(path)?;
        Ok(self.place(path))
    }

    /// What a link to `target` has to say.
    pub(super) fn of_link(&self, target: &str) -> PathBuf {
        match target.starts_with('/') {
            true => self.place(target),
            false => target.into(),
        }
    }

    /// Opens a directory of the sandbox.
    pub(super) fn directory(&self, path: &str) -> Result<OwnedFd, Fault> {
        let parts = parts(path)?;
        self.descend(&parts, None).map_err(Fault::at(path))
    }

    /// Opens the directory that holds `path`, which is made with its parents where `make` says so, and
    /// tells the name in it.
    pub(super) fn parent<'a>(
        &self,
        path: &'a str,
        make: bool,
    ) -> Result<(OwnedFd, &'a OsStr), Fault> {
        self.open_parent(path, make)?.map_err(Fault::at(path))
    }

    /// The same, and what the system says apart from what is wrong with the path itself.
    pub(super) fn open_parent<'a>(
        &self,
        path: &'a str,
        make: bool,
    ) -> Result<Result<(OwnedFd, &'a OsStr), Errno>, Fault> {
        let mut parts = parts(path)?;
        let name = parts
            .pop()
            .ok_or_else(|| Fault::new(format!("{path}: not a file name")))?;
        let mode = make.then_some(Mode::from_raw_mode(0o755));
        let directory = self.descend(&parts, mode);
        Ok(directory.map(|directory| (directory, name)))
    }

    fn descend(&self, parts: &[&OsStr], make: Option<Mode>) -> Result<OwnedFd, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut directory = openat(CWD, &self.root, flags, Mode::empty())?;
        let flags = flags | OFlags::NOFOLLOW;
        for &part in parts {
            let mut next = openat(&directory, part, flags, Mode::empty());
            if let (Err(Errno::NOENT), Some(mode)) = (&next, make) {
                match mkdirat(&directory, part, mode) {
                    // Somebody inside may be as quick.
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(error),
                }
                next = openat(&directory, part, flags, Mode::empty());
            }
            directory = next?;
        }
        Ok(directory)
    }
}

/// The components of an absolute path.
fn parts(path: &str) -> Result<Vec<&OsStr>, Fault> {
    let refuse = |why: &str| Fault::new(format!("{path:?}: {why}"));
    if path.len() > MAX_PATH {
        return Err(Fault::new("the path is too long"));
    }
    if path.contains('\0') {
        return Err(refuse("the path contains a NUL character"));
    }
    let mut components = Path::new(path).components();
    if components.next() != Some(Component::RootDir) {
        return Err(refuse("the path is not absolute"));
    }
    components
        .map(|component| match component {
            Component::Normal(part) if part.as_bytes().len() <= 255 => Ok(part),
            Component::Normal(_) => Err(refuse("file name too long")),
            _ => Err(refuse("the path contains '..'")),
        })
        .collect()
}

/// The path without links, as far as it exists; what does not exist yet is taken as it is written.
fn real_path(path: &Path) -> PathBuf {
    let (mut real, rest) = path
        .ancestors()
        .find_map(|ancestor| {
            let rest = path.strip_prefix(ancestor).ok()?;
            Some((fs::canonicalize(ancestor).ok()?, rest))
        })
        .unwrap_or((PathBuf::from("/"), path));
    for component in rest.components() {
        match component {
            Component::ParentDir => {
                real.pop();
            }
            Component::Normal(part) => real.push(part),
            _ => {}
        }
    }
    real
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn only_plain_absolute_paths_are_taken() {
        for good in ["/a", "/a//b/./c", "/a b/ü"] {
            assert!(parts(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "a",
            "./a",
            "/../a",
            "/a/..",
            "/a/../../b",
            "/a\0b",
            "a/..",
        ] {
            assert!(parts(bad).is_err(), "{bad:?}");
        }
        assert!(parts(&format!("/{}", "x".repeat(256))).is_err());
        assert!(parts(&"/x".repeat(MAX_PATH)).is_err());
        assert!(Places::new("/").parent("/", true).is_err());
    }

    #[test]
    fn no_link_is_followed_on_the_way() {
        let directory = tempfile::tempdir().unwrap();
        let places = Places::new(directory.path());
        fs::create_dir_all(directory.path().join("real/deep")).unwrap();
        symlink("/etc", directory.path().join("absolute")).unwrap();
        symlink("real", directory.path().join("relative")).unwrap();
        assert!(places.directory("/real/deep").is_ok());
        for bad in [
            "/absolute",
            "/relative",
            "/relative/deep",
            "/real/deep/nothing",
        ] {
            assert!(places.directory(bad).is_err(), "{bad}");
        }
        assert!(places.parent("/absolute/x", true).is_err());
        let (_, name) = places.parent("/new/er/file", true).unwrap();
        assert_eq!(name, "file");
        assert!(directory.path().join("new/er").is_dir());
        assert!(places.parent("/newest/file", false).is_err());
    }

    #[test]
    fn what_a_server_has_put_is_read_only_on_every_way() {
        let directory = tempfile::tempdir().unwrap();
        let places = Places::new(directory.path());
        let uploads = directory.path().join("mnt/session/uploads");
        fs::create_dir_all(&uploads).unwrap();
        places.make();
        fs::write(uploads.join("a"), "").unwrap();
        symlink(&uploads, directory.path().join("uploads")).unwrap();
        symlink(uploads.join("a"), places.workdir().join("a")).unwrap();
        let skills = places.workdir().join("skills");
        fs::create_dir_all(skills.join("x")).unwrap();
        for (name, mode) in [("SKILL.md", 0o444), ("run", 0o555), ("own", 0o644)] {
            fs::write(skills.join("x").join(name), "").unwrap();
            let mode = fs::Permissions::from_mode(mode);
            fs::set_permissions(skills.join("x").join(name), mode).unwrap();
        }
        symlink(&skills, directory.path().join("skills")).unwrap();
        for path in [
            "/mnt/session/uploads/a",
            "/mnt/session/uploads/new/er",
            "/uploads/a",
            "/uploads/new",
            "a",
            "../uploads/new",
            "nothing/../../mnt/session/uploads/x",
            "skills/x/SKILL.md",
            "/skills/x/run",
        ] {
            assert!(places.is_read_only(&places.of_tool(path)), "{path}");
        }
        for path in [
            "b",
            "skills/x/own",
            "skills/x/new",
            "skills-of-mine",
            "/mnt/session/outputs/a",
            "/tmp/a",
        ] {
            assert!(!places.is_read_only(&places.of_tool(path)), "{path}");
        }
        assert_eq!(places.of_tool("/tmp/a"), Path::new("/tmp/a"));
        assert_eq!(
            Places::new("/").of_tool("/workspace/a"),
            Path::new("/workspace/a")
        );
    }
}
