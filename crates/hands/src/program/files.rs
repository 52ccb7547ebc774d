//! `read`, `write` and `edit`.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use rustix::fs::OFlags;
use selfsame_hands::Content;
use serde::Deserialize;

use super::{places::Places, tools::Failure};

/// Longest text that is read or edited as a whole, and longest selection of lines, in bytes.
const MAX_TEXT: u64 = 256 << 10;
/// Largest image, in bytes of base64: the model API's own limit.
const MAX_IMAGE_BASE64: u64 = 5 << 20;
/// Largest PDF, in bytes.
const MAX_PDF: u64 = 20 << 20;

#[derive(Debug, Deserialize)]
pub(super) struct ReadInput {
    file_path: String,
    view_range: Option<Vec<i64>>,
}

#[derive(Debug, Deserialize)]
pub(super) struct WriteInput {
    file_path: String,
    content: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct EditInput {
    file_path: String,
    old_string: String,
    new_string: String,
    replace_all: Option<bool>,
}

/// The same short phrase for the same fault, whatever the system calls it.
pub(super) fn phrase(error: &io::Error) -> String {
    use io::ErrorKind as Kind;
    match error.kind() {
        Kind::NotFound => "no such file or directory".into(),
        Kind::PermissionDenied => "permission denied".into(),
        Kind::IsADirectory => "is a directory".into(),
        Kind::NotADirectory => "not a directory".into(),
        Kind::AlreadyExists => "file already exists".into(),
        Kind::ReadOnlyFilesystem => "read-only file system".into(),
        Kind::StorageFull => "no space left on device".into(),
        Kind::QuotaExceeded => "disk quota exceeded".into(),
        Kind::InvalidFilename => "file name too long".into(),
        _ => match error
            .raw_os_error()
            .map(rustix::io::Errno::from_raw_os_error)
        {
            Some(rustix::io::Errno::LOOP) => "too many levels of symbolic links".into(),
            Some(rustix::io::Errno::FBIG) => "file too large".into(),
            Some(_) => {
                let text = error.to_string().to_lowercase();
                text.split(" (os error")
                    .next()
                    .unwrap_or_default()
                    .to_owned()
            }
            None => "i/o error".into(),
        },
    }
}

fn failure(path: &str) -> impl Fn(io::Error) -> Failure {
    move |error| Failure::new(format!("{path}: {}", phrase(&error)))
}

fn resolve(places: &Places, path: &str) -> Result<PathBuf, Failure> {
    match path {
        "" => Err(Failure::new("file_path is empty")),
        _ if path.contains('\0') => Err(Failure::new("file_path contains a NUL character")),
        _ => Ok(places.of_tool(path)),
    }
}

/// The same for a file that is to be written.
fn resolve_writable(places: &Places, path: &str) -> Result<PathBuf, Failure> {
    let target = resolve(places, path)?;
    if places.is_read_only(&target) {
        return Err(Failure::new(format!("{path}: read-only file")));
    }
    Ok(target)
}

/// Opens a regular file and nothing else. The flag keeps a FIFO from blocking the open.
fn open_regular(options: &mut OpenOptions, target: &Path) -> Result<(File, u64), Fault> {
    let flags = i32::try_from((OFlags::NONBLOCK | OFlags::NOCTTY).bits()).unwrap_or_default();
    let file = options.custom_flags(flags).open(target).map_err(|error| {
        // A FIFO without reader, a socket.
        match error
            .raw_os_error()
            .map(rustix::io::Errno::from_raw_os_error)
        {
            Some(rustix::io::Errno::NXIO) => Fault::NotRegular,
            _ => Fault::Io(error),
        }
    })?;
    let metadata = file.metadata().map_err(Fault::Io)?;
    if metadata.is_dir() {
        return Err(Fault::Io(io::ErrorKind::IsADirectory.into()));
    }
    if !metadata.is_file() {
        return Err(Fault::NotRegular);
    }
    Ok((file, metadata.len()))
}

enum Fault {
    NotRegular,
    Io(io::Error),
}

impl Fault {
    fn at(path: &str) -> impl Fn(Self) -> Failure {
        move |fault| match fault {
            Self::NotRegular => Failure::new(format!("{path}: not a regular file")),
            Self::Io(error) => failure(path)(error),
        }
    }
}

/// What an extension promises, and the most bytes of it.
fn media(target: &Path) -> Option<(&'static str, u64)> {
    let extension = target.extension()?.to_str()?.to_ascii_lowercase();
    let image = MAX_IMAGE_BASE64 / 4 * 3;
    match extension.as_str() {
        "png" => Some(("image/png", image)),
        "jpg" | "jpeg" => Some(("image/jpeg", image)),
        "gif" => Some(("image/gif", image)),
        "webp" => Some(("image/webp", image)),
        "pdf" => Some(("application/pdf", MAX_PDF)),
        _ => None,
    }
}

pub(super) fn read(
    input: ReadInput,
    places: &Places,
    stop: &AtomicBool,
) -> Result<Content, Failure> {
    let path = &input.file_path;
    let target = resolve(places, path)?;
    let range = match input.view_range.as_deref() {
        None | Some([]) => None,
        Some(&[start, end]) => Some((start, end)),
        Some(_) => return Err(Failure::new("view_range must be [start_line, end_line]")),
    };
    let (file, size) =
        open_regular(OpenOptions::new().read(true), &target).map_err(Fault::at(path))?;
    if let Some((media_type, limit)) = media(&target) {
        if range.is_some() {
            return Err(Failure::new(
                "view_range is not supported for image/PDF files",
            ));
        }
        let bytes = read_up_to(file, limit)
            .map_err(failure(path))?
            .ok_or_else(|| {
                Failure::new(format!(
                    "{path} is {size} bytes, exceeds the {limit}-byte limit for image/PDF files"
                ))
            })?;
        let data_base64 = BASE64_STANDARD.encode(bytes);
        let media_type = media_type.to_owned();
        return Ok(match media_type.as_str() {
            "application/pdf" => Content::Document {
                media_type,
                data_base64,
            },
            _ => Content::Image {
                media_type,
                data_base64,
            },
        });
    }
    let not_text = |_| {
        Failure::new(format!(
            "{path}: not valid UTF-8 text (binary files are only supported for image/PDF extensions)"
        ))
    };
    let bytes = match range {
        Some((start, end)) => read_lines(file, start, end, path, stop)?,
        None => read_up_to(file, MAX_TEXT)
            .map_err(failure(path))?
            .ok_or_else(|| {
                Failure::new(format!(
                    "{path} is {size} bytes, exceeds the {MAX_TEXT}-byte limit. Use the view_range \
                 parameter to read specific line ranges, e.g. view_range: [1, 500]."
                ))
            })?,
    };
    String::from_utf8(bytes)
        .map(Content::Text)
        .map_err(not_text)
}

/// The whole file, or `None` when there is more than `limit` bytes (which its size does not always
/// say).
fn read_up_to(file: File, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= limit).then_some(bytes))
}

/// Lines `start` to `end`, from 1 and inclusive, without the last one's line end.
fn read_lines(
    file: File,
    start: i64,
    end: i64,
    path: &str,
    stop: &AtomicBool,
) -> Result<Vec<u8>, Failure> {
    let mut reader = BufReader::with_capacity(64 << 10, file);
    let (mut selected, mut line) = (Vec::new(), 1_i64);
    while end <= 0 || line <= end {
        if stop.load(Ordering::Relaxed) {
            return Err(Failure::new("stopped"));
        }
        // By blocks and not by lines: a line may be as long as the file.
        let block = reader.fill_buf().map_err(failure(path))?;
        if block.is_empty() {
            break;
        }
        let length = block
            .iter()
            .position(|byte| *byte == b'\n')
            .map_or(block.len(), |at| at + 1);
        let ended = block[length - 1] == b'\n';
        if line >= start {
            selected.extend_from_slice(&block[..length]);
            if selected.len() as u64 > MAX_TEXT {
                return Err(Failure::new(format!(
                    "{path}: the selected lines exceed the {MAX_TEXT}-byte limit; select fewer lines"
                )));
            }
        }
        reader.consume(length);
        line += i64::from(ended);
    }
    if end > 0 && line > end && selected.last() == Some(&b'\n') {
        selected.pop();
    }
    Ok(selected)
}

pub(super) fn write(
    input: WriteInput,
    places: &Places,
    _: &AtomicBool,
) -> Result<Content, Failure> {
    let path = &input.file_path;
    let target = resolve_writable(places, path)?;
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent).map_err(failure(path))?;
    }
    replace(&target, &input.content).map_err(Fault::at(path))?;
    Ok(Content::Text(format!(
        "wrote {} bytes to {path}",
        input.content.len()
    )))
}

/// Overwrites in place: mode, owner and links of an existing file stay what they are.
fn replace(target: &Path, content: &str) -> Result<(), Fault> {
    let mut options = OpenOptions::new();
    // Truncated only when it is known to be a regular file.
    let (mut file, _) = open_regular(options.write(true).create(true).truncate(false), target)?;
    file.set_len(0)
        .and_then(|()| file.write_all(content.as_bytes()))
        .map_err(Fault::Io)
}

pub(super) fn edit(input: EditInput, places: &Places, _: &AtomicBool) -> Result<Content, Failure> {
    let EditInput {
        file_path: path,
        old_string,
        new_string,
        replace_all,
    } = &input;
    if old_string.is_empty() {
        return Err(Failure::new("old_string is empty"));
    }
    let target = resolve_writable(places, path)?;
    let (file, size) =
        open_regular(OpenOptions::new().read(true), &target).map_err(Fault::at(path))?;
    let bytes = read_up_to(file, MAX_TEXT).map_err(failure(path))?.ok_or_else(|| {
        Failure::new(format!(
            "{path} is {size} bytes, exceeds the {MAX_TEXT}-byte limit; files this large cannot be \
             edited with this tool"
        ))
    })?;
    let text = String::from_utf8(bytes).map_err(|_| {
        Failure::new(format!(
            "{path}: not valid UTF-8 text (binary files cannot be edited)"
        ))
    })?;
    let count = match text.matches(old_string.as_str()).count() {
        0 => return Err(Failure::new(format!("old_string not found in {path}"))),
        count if count > 1 && *replace_all != Some(true) => {
            return Err(Failure::new(format!(
                "old_string appears {count} times in {path} (must be unique)"
            )));
        }
        count => count,
    };
    replace(&target, &text.replace(old_string.as_str(), new_string)).map_err(Fault::at(path))?;
    Ok(Content::Text(format!(
        "edited {path} ({count} replacement(s))"
    )))
}
