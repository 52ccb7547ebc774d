//! Walking a directory that somebody may be changing: no link is followed, and entries and depth are
//! bounded.

use std::{
    ffi::CStr,
    ops::ControlFlow,
    os::fd::AsFd,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, openat, statat},
    io::Errno,
};

/// The kernel's clock for the times of files moves in steps, of 10 ms at most: two changes within one
/// look the same.
const CLOCK_STEP: Duration = Duration::from_millis(20);

/// How far to walk.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Most directory entries looked at.
    pub(super) entries: usize,
    /// Most directories within each other; so many are open at once.
    pub(super) depth: usize,
}

/// Shows every regular file below `root` with its path below it. Answers whether it saw all of them.
pub(super) fn files(
    root: impl AsFd,
    bounds: Bounds,
    mut visit: impl FnMut(&[u8], &Stat) -> ControlFlow<()>,
) -> Result<bool, Errno> {
    let mut left = bounds.entries;
    let mut whole = true;
    let mut path = Vec::new();
    // Each with the length of its own path.
    let mut open = vec![(enter(root, c".")?, 0)];
    loop {
        let deepest = open.len() >= bounds.depth;
        let Some((directory, length)) = open.last_mut() else {
            return Ok(whole);
        };
        path.truncate(*length);
        let entry = match directory.read() {
            Some(Ok(entry)) => entry,
            end => {
                whole &= end.is_none();
                open.pop();
                continue;
            }
        };
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        if left == 0 {
            return Ok(false);
        }
        left -= 1;
        let kind = entry.file_type();
        if !matches!(
            kind,
            FileType::RegularFile | FileType::Directory | FileType::Unknown
        ) {
            continue;
        }
        let Ok(fd) = directory.fd() else { continue };
        // What has gone meanwhile is not there.
        let Ok(stat) = statat(fd, name, AtFlags::SYMLINK_NOFOLLOW) else {
            continue;
        };
        if *length > 0 {
            path.push(b'/');
        }
        path.extend_from_slice(name.to_bytes());
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => match visit(&path, &stat) {
                ControlFlow::Continue(()) => {}
                ControlFlow::Break(()) => return Ok(false),
            },
            FileType::Directory if deepest => whole = false,
            FileType::Directory => {
                if let Ok(inner) = enter(fd, name) {
                    open.push((inner, path.len()));
                }
            }
            _ => {}
        }
    }
}

/// Not by `Dir::read_from`, which takes over that a descriptor is only a place.
fn enter(directory: impl AsFd, name: &CStr) -> Result<Dir, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Dir::new(openat(directory, name, flags, Mode::empty())?)
}

/// Nanoseconds after 1970.
pub(super) fn modified(stat: &Stat) -> i128 {
    i128::from(stat.st_mtime) * 1_000_000_000 + i128::from(stat.st_mtime_nsec)
}

/// How long until a change is sure to get a later time than `modified`.
pub(super) fn unsettled(modified: i128) -> Option<Duration> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    let age = i128::try_from(now.as_nanos()).ok()? - modified;
    // A time ahead of the clock was set by hand, and a change sets another one.
    let age = Duration::from_nanos(u64::try_from(age).ok()?);
    CLOCK_STEP.checked_sub(age).filter(|left| !left.is_zero())
}
