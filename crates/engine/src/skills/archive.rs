//! Uploads become archives in one normal form, and archives become files.
//!
//! An upload is a list of files, or one zip of them. What comes in is hostile: every size, count and path
//! is checked before anything is inflated, and nothing is ever written to the server's disk by a name of
//! the upload's. What is kept is written anew: sorted, without times, one directory named after the skill,
//! modes 0755 and 0644. So equal uploads are equal bytes, and no oddity of a stranger's zip reaches those
//! who download it.
//!
//! These functions hold a thread for a while: call them where blocking is allowed.

use std::io::{Cursor, Read as _, Write as _};

use bytes::Bytes;
use selfsame_types::ApiError;
use zip::{
    CompressionMethod, DateTime, ZipArchive, ZipWriter, result::ZipError, write::SimpleFileOptions,
};

use super::{
    front_matter::{FrontMatterError, parse_front_matter},
    tree::{Tree, normal, shown},
};

pub use super::tree::Entry;

/// Most bytes of all files of a skill.
pub const MAX_BYTES: u64 = 30 * 1024 * 1024;
/// Most files and directories.
pub const MAX_ENTRIES: usize = 5000;
const SKILL: &str = "SKILL.md";

/// One uploaded file. Nothing about it has been checked.
#[derive(Debug, Clone)]
pub struct Part {
    pub path: String,
    pub data: Bytes,
}

/// A skill that is fit to be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed {
    pub name: String,
    pub description: String,
    /// The zip in its normal form.
    pub archive: Bytes,
}

/// What is wrong with an upload, in words for whoever made it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ArchiveError(String);

pub(super) fn refuse<T>(message: impl Into<String>) -> Result<T, ArchiveError> {
    Err(ArchiveError(message.into()))
}

impl From<FrontMatterError> for ArchiveError {
    fn from(error: FrontMatterError) -> Self {
        Self(error.to_string())
    }
}

impl From<ArchiveError> for ApiError {
    fn from(error: ArchiveError) -> Self {
        Self::invalid(format!("files[]: {error}"))
    }
}

fn too_many<T>() -> Result<T, ArchiveError> {
    refuse(format!(
        "there are more than {MAX_ENTRIES} files and directories"
    ))
}

fn too_large<T>() -> Result<T, ArchiveError> {
    refuse(format!("the files have more than {MAX_BYTES} bytes in all"))
}

/// Checks an upload and brings it into its normal form.
///
/// # Errors
/// What is wrong with it.
pub fn pack(parts: Vec<Part>) -> Result<Packed, ArchiveError> {
    let tree = match &*parts {
        [] => return refuse("there are no files"),
        [one] if is_zip(one) => unzip(&one.data)?,
        _ => files(parts)?,
    };
    let (directory, text) = if let Some(data) = tree.get(SKILL) {
        (None, data)
    } else if let Some((top, data)) = tree
        .top()
        .and_then(|top| Some((top, tree.get(&format!("{top}/{SKILL}"))?)))
    {
        (Some(top.to_owned()), data)
    } else {
        return refuse(format!(
            "there is no `{SKILL}` (in upper and lower case as here), neither at the root nor in the one \
             directory that holds everything"
        ));
    };
    let Ok(text) = std::str::from_utf8(text) else {
        return refuse(format!("`{SKILL}` is not UTF-8 text"));
    };
    let (name, description) = parse_front_matter(text)?.check(directory.as_deref())?;
    let archive = write(&name, below(tree, directory.as_deref()))
        .map_err(|error| ArchiveError(format!("they cannot be packed: {error}")))?;
    Ok(Packed {
        name,
        description,
        archive,
    })
}

/// The files of a stored archive by path, below the skill's directory.
///
/// # Errors
/// When it is no archive that [`pack`] makes.
pub fn entries(archive: &[u8]) -> Result<Vec<Entry>, ArchiveError> {
    let tree = unzip(archive)?;
    let Some(top) = tree.top().map(str::to_owned) else {
        return refuse("the archive is not in one directory");
    };
    Ok(below(tree, Some(&top)).collect())
}

/// The tree's files without the directory in front.
fn below(tree: Tree, directory: Option<&str>) -> impl Iterator<Item = Entry> {
    let cut = directory.map_or(0, |directory| directory.len() + 1);
    tree.into_entries().map(move |entry| Entry {
        path: entry.path[cut..].to_owned(),
        ..entry
    })
}

fn is_zip(part: &Part) -> bool {
    let named = part
        .path
        .rsplit_once('.')
        .is_some_and(|(_, extension)| extension.eq_ignore_ascii_case("zip"));
    named || part.data.starts_with(b"PK\x03\x04")
}

fn files(parts: Vec<Part>) -> Result<Tree, ArchiveError> {
    if parts.len() > MAX_ENTRIES {
        return too_many();
    }
    let mut budget = Budget(MAX_BYTES);
    let mut tree = Tree::default();
    for part in parts {
        budget.take(part.data.len() as u64)?;
        // An upload of single files knows no modes; what is to be run says so in its first line.
        let mode = if part.data.starts_with(b"#!") {
            0o755
        } else {
            0o644
        };
        tree.add(normal(&part.path)?, mode, part.data)?;
    }
    Ok(tree)
}

/// Bytes that may still come.
struct Budget(u64);

impl Budget {
    fn take(&mut self, size: u64) -> Result<(), ArchiveError> {
        match self.0.checked_sub(size) {
            Some(left) => {
                self.0 = left;
                Ok(())
            }
            None => too_large(),
        }
    }
}

fn unreadable(error: &ZipError) -> ArchiveError {
    ArchiveError(format!("the zip archive cannot be read: {error}"))
}

/// Reads a zip. All that its directory says is checked before the first byte is inflated, and then what
/// is inflated is held to it.
fn unzip(bytes: &[u8]) -> Result<Tree, ArchiveError> {
    // More entries than the plain format can count are a table of any size to read; an archive of this
    // size has no use for it.
    let tail = &bytes[bytes.len().saturating_sub(usize::from(u16::MAX) + 64)..];
    if tail.windows(4).any(|four| four == b"PK\x06\x07") {
        return refuse("the archive is in the zip64 format, for which it is too small");
    }
    let mut archive = ZipArchive::new(Cursor::new(bytes)).map_err(|error| unreadable(&error))?;
    if archive.len() > MAX_ENTRIES {
        return too_many();
    }
    if archive.has_duplicate_names() {
        return refuse("the archive has a path twice");
    }
    match archive.has_overlapping_entries() {
        Ok(false) => {}
        Ok(true) => return refuse("entries of the archive overlap"),
        Err(error) => return Err(unreadable(&error)),
    }
    let listed = archive.metadata();
    let mut budget = Budget(MAX_BYTES);
    let mut wanted = Vec::new();
    for index in 0..listed.len() {
        let entry = listed.entry(index).map_err(|error| unreadable(&error))?;
        let path = match std::str::from_utf8(entry.name_raw()) {
            Ok(path) => path.to_owned(),
            Err(_) => entry
                .name()
                .map_err(|error| unreadable(&error))?
                .into_owned(),
        };
        let bad = |why: &str| refuse(format!("`{}` {why}", shown(&path)));
        if entry.encrypted() {
            return bad("is encrypted");
        }
        let attributes = entry.external_attributes() >> 16;
        let directory = match attributes & 0o170_000 {
            0o040_000 => true,
            0 | 0o100_000 => path.ends_with('/'),
            0o120_000 => return bad("is a symbolic link"),
            _ => return bad("is a special file"),
        };
        let name = normal(path.strip_suffix('/').unwrap_or(&path));
        if directory {
            if entry.size() > 0 {
                return bad("is a directory with content");
            }
            // `./` is the root itself.
            if path != "./" {
                name?;
            }
            continue;
        }
        let name = name?;
        if !matches!(
            entry.compression(),
            CompressionMethod::Stored | CompressionMethod::Deflated
        ) {
            return bad("is compressed in another way than by deflate");
        }
        budget.take(entry.size())?;
        if is_litter(&name) {
            continue;
        }
        let mode = if attributes & 0o111 == 0 {
            0o644
        } else {
            0o755
        };
        wanted.push((index, name, mode, entry.size()));
    }
    let mut tree = Tree::default();
    // All paths before all contents.
    for (_, name, mode, _) in &wanted {
        tree.add(name.clone(), *mode, Bytes::new())?;
    }
    for (index, name, _, size) in wanted {
        let file = archive
            .by_index(index)
            .map_err(|error| unreadable(&error))?;
        let mut data = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
        let read = file.take(size + 1).read_to_end(&mut data);
        if read.is_err() || data.len() as u64 != size {
            return refuse(format!(
                "`{}` is damaged: its content is not what the archive says about it",
                shown(&name)
            ));
        }
        tree.set(&name, data.into());
    }
    Ok(tree)
}

/// What a desktop leaves in every archive it makes.
fn is_litter(path: &str) -> bool {
    path.starts_with("__MACOSX/") || path == ".DS_Store" || path.ends_with("/.DS_Store")
}

/// Writes the normal form.
fn write(name: &str, entries: impl Iterator<Item = Entry>) -> Result<Bytes, ZipError> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Deflated)
        .compression_level(Some(6))
        // The first time of the format.
        .last_modified_time(DateTime::default());
    for entry in entries {
        zip.start_file(
            format!("{name}/{}", entry.path),
            options.unix_permissions(entry.mode),
        )?;
        zip.write_all(&entry.data)?;
    }
    Ok(zip.finish()?.into_inner().into())
}

#[cfg(test)]
mod tests;
