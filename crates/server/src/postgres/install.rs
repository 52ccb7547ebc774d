//! Finding installed binaries.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::Command,
};

/// A directory with `postgres` and its tools.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Install {
    pub(super) bin: PathBuf,
    pub(super) major: u32,
}

/// Where packages put versions side by side: the version is the part between.
const USUAL: [(&str, &str); 4] = [
    ("/usr/lib/postgresql", "bin"),
    ("/usr/local/lib/postgresql", "bin"),
    ("/usr/lib64/pgsql", "bin"),
    ("/opt/homebrew/opt", "bin"),
];

/// All usable installations; `only` leaves no choice.
pub(super) fn find(only: Option<&Path>, search_path: &OsStr) -> Vec<Install> {
    let mut directories = Vec::new();
    match only {
        Some(bin) => directories.push(bin.to_owned()),
        None => {
            directories.extend(std::env::split_paths(search_path));
            for (root, bin) in USUAL {
                let versions = std::fs::read_dir(root).into_iter().flatten().flatten();
                directories.extend(versions.map(|version| version.path().join(bin)));
            }
            // Named after the version in one piece: pgsql-16
            let versions = std::fs::read_dir("/usr").into_iter().flatten().flatten();
            directories.extend(
                versions
                    .filter(|entry| entry.file_name().to_string_lossy().starts_with("pgsql-"))
                    .map(|entry| entry.path().join("bin")),
            );
        }
    }
    let mut installs: Vec<Install> = Vec::new();
    for bin in directories {
        let whole = ["initdb", "postgres", "pg_ctl"]
            .iter()
            .all(|program| bin.join(program).is_file());
        if whole
            && bin.is_absolute()
            && installs.iter().all(|known| known.bin != bin)
            && let Some(major) = major(&bin)
        {
            installs.push(Install { bin, major });
        }
    }
    installs
}

fn major(bin: &Path) -> Option<u32> {
    let output = Command::new(bin.join("postgres"))
        .arg("--version")
        .output()
        .ok()?;
    parse_version(&String::from_utf8(output.stdout).ok()?)
}

/// `postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)`, also `17devel`
fn parse_version(text: &str) -> Option<u32> {
    let version = text.split(')').nth(1)?.trim_start();
    let digits = version.find(|c: char| !c.is_ascii_digit());
    version[..digits.unwrap_or(version.len())].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        let debian = "postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)\n";
        assert_eq!(parse_version(debian), Some(15));
        assert_eq!(parse_version("postgres (PostgreSQL) 18devel\n"), Some(18));
        assert_eq!(parse_version("something else"), None);
    }

    #[test]
    fn an_empty_directory_is_no_installation() {
        let empty = tempfile::tempdir().unwrap();
        assert_eq!(find(Some(empty.path()), OsStr::new("")), []);
    }
}
