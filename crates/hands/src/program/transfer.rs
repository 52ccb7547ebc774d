//! A server's own access to files: put, get, walk, link, remove.
//!
//! What runs inside may change anything at any moment, so nothing is looked at twice by name: directories
//! and files are opened once, without following links, and used through their descriptors.
//! Work on the disk is done on file threads, a record at a time.

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, Read, Write},
    ops::ControlFlow,
    os::fd::OwnedFd,
    sync::Arc,
    time::Duration,
};

use rustix::{
    fs::{
        AtFlags, FileType, Gid, Mode, OFlags, Uid, fchmod, fchown, fstat, openat, renameat, statat,
        symlinkat, unlinkat,
    },
    io::Errno,
};
use selfsame_hands::{
    Found, Put,
    mux::Substream,
    transfer::{self, HEADER, MAX_RECORD, Record},
    wire::{self, Reply},
};
use sha2::{Digest, Sha256};
use tokio::{sync::Semaphore, task::spawn_blocking, time::timeout};
use uuid::Uuid;

use super::{
    disk::Disk,
    places::{Fault, Places},
    walk::{self, Bounds},
};

/// Transfers at once; others wait. Each needs a file thread for a moment and 128 KiB.
const MAX_TRANSFERS: usize = 8;
/// How long the other side may do nothing.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Most directory entries that a walk looks at for each file that it may return.
const ENTRIES_PER_FILE: usize = 10;
/// Most files that a walk returns, and most bytes of their paths: an answer is one frame.
const MAX_FOUND: usize = 50_000;
const MAX_PATHS: usize = 8 << 20;
const MAX_DEPTH: usize = 64;
/// A longer link cannot be made.
const MAX_LINK: usize = 4095;

#[derive(Debug)]
pub(super) struct Transfers {
    places: Places,
    disk: Arc<Disk>,
    permits: Semaphore,
}

impl Transfers {
    pub(super) fn new(places: Places, disk: Arc<Disk>) -> Self {
        Self {
            places,
            disk,
            permits: Semaphore::new(MAX_TRANSFERS),
        }
    }

    /// Takes the content that follows.
    pub(super) async fn put(&self, put: Put, substream: &mut Substream) -> Result<Reply, Fault> {
        let _permit = self.permits.acquire().await;
        if let Some(problem) = self.disk.problem_with(put.size) {
            return Err(Fault::new(format!("{}: {problem}", put.path)));
        }
        let (places, path, size) = (self.places.clone(), put.path.clone(), put.size);
        let mut state = blocking(move || Receiving::start(&places, &put)).await?;
        let mut buffer = Vec::new();
        let mut received = 0;
        loop {
            let record = timeout(IDLE_TIMEOUT, transfer::read_record(substream, &mut buffer)).await;
            let record = record
                .map_err(|_| Fault::new(format!("{path}: the content did not arrive in time")))?
                .map_err(|_| Fault::new(format!("{path}: the content is incomplete")))?;
            match record {
                Record::Data => {
                    received += buffer.len() as u64;
                    if received > size {
                        return Err(Fault::new(format!("{path}: more content than announced")));
                    }
                    (state, buffer) = blocking(move || {
                        state.hash.update(&buffer);
                        state
                            .file
                            .write_all(&buffer)
                            .map_err(Fault::at(&state.path))?;
                        Ok((state, buffer))
                    })
                    .await?;
                }
                Record::End(_) if received < size => {
                    return Err(Fault::new(format!("{path}: less content than announced")));
                }
                Record::End(digest) => {
                    blocking(move || state.finish(digest)).await?;
                    return Ok(Reply::Done);
                }
                Record::Stopped(reason) => return Err(Fault::new(format!("{path}: {reason}"))),
            }
        }
    }

    /// Sends the file. Once the answer has begun, a fault is said in its records.
    pub(super) async fn get(
        &self,
        path: String,
        limit: u64,
        substream: &mut Substream,
    ) -> io::Result<()> {
        let _permit = self.permits.acquire().await;
        let places = self.places.clone();
        let started = blocking(move || Sending::start(&places, path, limit)).await;
        let mut state = match started {
            Ok(state) => state,
            Err(Fault(message)) => {
                let reply = Reply::Failed { message };
                return wire::write_frame(substream, &reply, wire::MAX_REPLY).await;
            }
        };
        let reply = Reply::Content { size: state.size };
        wire::write_frame(substream, &reply, wire::MAX_REPLY).await?;
        let mut buffer = Vec::new();
        loop {
            let step = blocking(move || {
                let next = state.next(&mut buffer)?;
                Ok((state, buffer, next))
            });
            let next;
            (state, buffer, next) = match step.await {
                Ok(step) => step,
                Err(Fault(message)) => return transfer::write_stopped(substream, &message).await,
            };
            let sending = async {
                match next {
                    None => transfer::write_data(substream, &mut buffer).await,
                    Some(digest) => transfer::write_end(substream, digest).await,
                }
            };
            timeout(IDLE_TIMEOUT, sending).await??;
            if next.is_some() {
                return Ok(());
            }
        }
    }

    pub(super) async fn walk(&self, root: String, limit: usize) -> Result<Reply, Fault> {
        let places = self.places.clone();
        let limit = limit.min(MAX_FOUND);
        let found = blocking(move || find(&places, &root, limit)).await?;
        let newest = found.iter().map(|file| file.modified_ns).max();
        // From here on a change gets another time than the one that is returned.
        if let Some(wait) = newest.and_then(walk::unsettled) {
            tokio::time::sleep(wait).await;
        }
        Ok(Reply::Found(found))
    }

    pub(super) async fn link(&self, link: String, target: String) -> Result<Reply, Fault> {
        let places = self.places.clone();
        blocking(move || {
            if target.is_empty() || target.contains('\0') || target.len() > MAX_LINK {
                return Err(Fault::new("not a link's target"));
            }
            let (directory, name) = match places.open_parent(&link, true)? {
                Ok(parent) => parent,
                // A file or a link is where a directory would have to be.
                Err(Errno::NOTDIR | Errno::LOOP) => return Ok(Reply::Linked(false)),
                Err(error) => return Err(Fault::at(&link)(error)),
            };
            match symlinkat(places.of_link(&target), &directory, name) {
                Ok(()) => Ok(Reply::Linked(true)),
                Err(Errno::EXIST) => Ok(Reply::Linked(false)),
                Err(error) => Err(Fault::at(&link)(error)),
            }
        })
        .await
    }

    pub(super) async fn remove(&self, path: String) -> Result<Reply, Fault> {
        let places = self.places.clone();
        blocking(move || {
            let (directory, name) = match places.open_parent(&path, false)? {
                Ok(parent) => parent,
                // It leads nowhere, so there is nothing to remove.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(Reply::Done),
                Err(error) => return Err(Fault::at(&path)(error)),
            };
            match unlinkat(&directory, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => Ok(Reply::Done),
                Err(error) => Err(Fault::at(&path)(error)),
            }
        })
        .await
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Fault> + Send + 'static,
) -> Result<T, Fault> {
    spawn_blocking(work)
        .await
        .unwrap_or_else(|panic| Err(Fault::new(format!("internal error: {panic}"))))
}

/// A file that is being written, under another name until it is whole. Dropping it removes it.
struct Receiving {
    path: String,
    directory: OwnedFd,
    name: std::ffi::OsString,
    temporary: Option<String>,
    file: File,
    hash: Sha256,
    mode: Mode,
}

impl Receiving {
    fn start(places: &Places, put: &Put) -> Result<Self, Fault> {
        let fault = Fault::at(&put.path);
        let (directory, name) = places.parent(&put.path, true)?;
        let temporary = format!(".selfsame-{}", Uuid::now_v7().simple());
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let owner = Mode::RUSR | Mode::WUSR;
        let file = openat(&directory, temporary.as_str(), flags, owner).map_err(fault)?;
        Ok(Self {
            path: put.path.clone(),
            name: name.to_owned(),
            directory,
            temporary: Some(temporary),
            file: file.into(),
            hash: Sha256::new(),
            mode: Mode::from_raw_mode(put.mode & 0o7777),
        })
    }

    fn finish(mut self, digest: [u8; 32]) -> Result<(), Fault> {
        let computed: [u8; 32] = std::mem::take(&mut self.hash).finalize().into();
        if computed != digest {
            return Err(Fault::new(format!("{}: the checksum differs", self.path)));
        }
        let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
        self.rename(user, group).map_err(Fault::at(&self.path))
    }

    fn rename(&mut self, user: Uid, group: Gid) -> Result<(), Errno> {
        // The group may be the directory's.
        fchown(&self.file, Some(user), Some(group))?;
        fchmod(&self.file, self.mode)?;
        if let Some(temporary) = &self.temporary {
            renameat(
                &self.directory,
                temporary.as_str(),
                &self.directory,
                &*self.name,
            )?;
        }
        self.temporary = None;
        Ok(())
    }
}

impl Drop for Receiving {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            let _ = unlinkat(&self.directory, temporary.as_str(), AtFlags::empty());
        }
    }
}

/// A file that is being read.
struct Sending {
    path: String,
    file: File,
    size: u64,
    left: u64,
    /// Size and times at the beginning.
    before: rustix::fs::Stat,
    hash: Sha256,
}

impl Sending {
    fn start(places: &Places, path: String, limit: u64) -> Result<Self, Fault> {
        let (directory, name) = places.parent(&path, false)?;
        let (file, before) = open_regular(&directory, name, &path)?;
        let size = u64::try_from(before.st_size).unwrap_or(0);
        if size > limit {
            return Err(Fault::new(format!(
                "{path}: {size} bytes, and the limit is {limit}"
            )));
        }
        Ok(Self {
            path,
            file,
            size,
            left: size,
            before,
            hash: Sha256::new(),
        })
    }

    /// Fills `buffer` with the next record's content, or returns the digest at the end.
    fn next(&mut self, buffer: &mut Vec<u8>) -> Result<Option<[u8; 32]>, Fault> {
        if self.left == 0 {
            self.check()?;
            return Ok(Some(std::mem::take(&mut self.hash).finalize().into()));
        }
        let length = usize::try_from(self.left).unwrap_or(MAX_RECORD);
        buffer.resize(HEADER + length.min(MAX_RECORD), 0);
        let content = &mut buffer[HEADER..];
        self.file
            .read_exact(content)
            .map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => self.changed("became shorter"),
                _ => Fault::at(&self.path)(error),
            })?;
        self.hash.update(&*content);
        self.left -= content.len() as u64;
        Ok(None)
    }

    /// What was read is the file as it was at the beginning and is now.
    fn check(&mut self) -> Result<(), Fault> {
        let (now, before) = (
            fstat(&self.file).map_err(Fault::at(&self.path))?,
            &self.before,
        );
        let times = |stat: &rustix::fs::Stat| (stat.st_mtime, stat.st_mtime_nsec);
        if now.st_nlink == 0 {
            Err(self.changed("was removed"))
        } else if now.st_size > before.st_size {
            Err(self.changed("became longer"))
        } else if now.st_size < before.st_size {
            Err(self.changed("became shorter"))
        } else if times(&now) != times(before) {
            Err(self.changed("was changed"))
        } else {
            Ok(())
        }
    }

    fn changed(&self, how: &str) -> Fault {
        Fault::new(format!("{}: the file {how} while it was read", self.path))
    }
}

fn open_regular(
    directory: &OwnedFd,
    name: &OsStr,
    path: &str,
) -> Result<(File, rustix::fs::Stat), Fault> {
    let refuse = |stat: &rustix::fs::Stat| match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok(()),
        FileType::Symlink => Err(Fault::new(format!("{path}: is a link"))),
        FileType::Directory => Err(Fault::new(format!("{path}: is a directory"))),
        _ => Err(Fault::new(format!("{path}: not a regular file"))),
    };
    // Before it is opened, because an open alone may wake up whoever waits at a FIFO's other end.
    let stat = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).map_err(Fault::at(path))?;
    refuse(&stat)?;
    let flags =
        OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = openat(directory, name, flags, Mode::empty()).map_err(Fault::at(path))?;
    // And after it, because it may be another one now.
    let stat = fstat(&file).map_err(Fault::at(path))?;
    refuse(&stat)?;
    Ok((file.into(), stat))
}

fn find(places: &Places, root: &str, limit: usize) -> Result<Vec<Found>, Fault> {
    let directory = places.directory(root)?;
    let bounds = Bounds {
        entries: limit.saturating_mul(ENTRIES_PER_FILE).max(1000),
        depth: MAX_DEPTH,
    };
    let (mut found, mut bytes) = (Vec::new(), 0);
    walk::files(directory, bounds, |path, stat| {
        // A name that is no text cannot be asked for.
        let Ok(path) = std::str::from_utf8(path) else {
            return ControlFlow::Continue(());
        };
        bytes += path.len();
        if found.len() >= limit || bytes > MAX_PATHS {
            return ControlFlow::Break(());
        }
        found.push(Found {
            path: path.to_owned(),
            size: u64::try_from(stat.st_size).unwrap_or(0),
            modified_ns: walk::modified(stat),
            inode: stat.st_ino,
            executable: stat.st_mode & 0o100 != 0,
        });
        ControlFlow::Continue(())
    })
    .map_err(Fault::at(root))?;
    found.sort_by(|one, two| one.path.cmp(&two.path));
    Ok(found)
}
