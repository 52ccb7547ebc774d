//! Directories, owners and files of a private Postgres.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, chown},
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};

use super::PostgresError;

/// The role we connect as.
pub(super) const USER: &str = "selfsame";
/// A part of the socket's name, nothing more.
pub(super) const PORT: &str = "5432";
/// `sockaddr_un` holds 107 bytes and a zero.
const LONGEST_SOCKET: usize = 107;

/// Where the cluster is and who owns it.
#[derive(Debug, Clone)]
pub(super) struct Place {
    data_dir: PathBuf,
    pub(super) cluster: PathBuf,
    pub(super) sockets: PathBuf,
    pub(super) log: PathBuf,
    /// Whom Postgres runs as; `None`: as we do.
    pub(super) user: Option<User>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct User {
    name: String,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl Place {
    /// Makes the data directory and decides who owns the cluster.
    pub(super) fn prepare(data_dir: &Path) -> Result<Self, PostgresError> {
        let me = own_uid();
        create_data_dir(data_dir).map_err(PostgresError::io("make", data_dir))?;
        let data_dir =
            fs::canonicalize(data_dir).map_err(PostgresError::io("resolve", data_dir))?;
        let cluster = data_dir.join("postgres");
        let owner = match fs::metadata(&cluster) {
            Ok(found) => Some((found.uid(), found.gid())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(PostgresError::io("look at", &cluster)(error)),
        };
        let user = match owner {
            // Whoever it was made by goes on.
            Some((uid, gid)) if me == 0 && uid != 0 => Some(User {
                name: format!("uid {uid}"),
                uid,
                gid,
            }),
            Some((uid, _)) if uid != me => {
                return Err(PostgresError::Foreign { directory: cluster });
            }
            _ if me == 0 => Some(unprivileged_user().ok_or(PostgresError::NoUser)?),
            _ => None,
        };
        if let Some(user) = &user {
            check_reach(&data_dir, user)?;
        }
        Ok(Self {
            sockets: data_dir.join("postgres-socket"),
            log: data_dir.join("postgres.log"),
            cluster,
            data_dir,
            user,
        })
    }

    /// The right to run the cluster; `None` when another process has it. Gone with the process.
    pub(super) fn try_lock(&self) -> Result<Option<File>, PostgresError> {
        let path = self.data_dir.join("postgres.lock");
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(PostgresError::io("open", &path))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(PostgresError::io("lock", &path)(error)),
        }
    }

    /// The major version that made the cluster; `None` when there is none.
    pub(super) fn version(&self) -> Result<Option<u32>, PostgresError> {
        let path = self.cluster.join("PG_VERSION");
        match fs::read_to_string(&path) {
            Ok(text) => Ok(text.trim().parse().ok()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(PostgresError::io("read", &path)(error)),
        }
    }

    /// The socket's directory, inside the data directory where the path is short enough.
    pub(super) fn choose_sockets(&mut self) -> Result<(), PostgresError> {
        let socket = format!("/.s.PGSQL.{PORT}.lock");
        if self.sockets.as_os_str().len() + socket.len() > LONGEST_SOCKET {
            let hash = Sha256::digest(self.data_dir.as_os_str().as_encoded_bytes());
            let name = format!(
                "selfsame-{:02x}{:02x}{:02x}{:02x}{:02x}{:02x}",
                hash[0], hash[1], hash[2], hash[3], hash[4], hash[5]
            );
            let run = Path::new("/run");
            let root = match self.user {
                Some(_) if run.is_dir() => run,
                _ => Path::new("/tmp"),
            };
            self.sockets = root.join(name);
        }
        self.private_directory(&self.sockets)
    }

    /// An empty directory for `initdb`.
    pub(super) fn fresh_directory(&self) -> Result<PathBuf, PostgresError> {
        let fresh = self.data_dir.join("postgres.new");
        match fs::remove_dir_all(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(PostgresError::io("remove", &fresh)(error));
            }
            _ => {}
        }
        self.private_directory(&fresh)?;
        Ok(fresh)
    }

    /// Makes a directory that the cluster's user alone may enter, or checks that it is one: in a
    /// directory open to all, somebody else could have made it.
    fn private_directory(&self, path: &Path) -> Result<(), PostgresError> {
        let owner = match &self.user {
            Some(user) => user.uid,
            None => own_uid(),
        };
        match DirBuilder::new().mode(0o700).create(path) {
            Ok(()) => {
                if let Some(user) = &self.user {
                    chown(path, Some(user.uid), Some(user.gid))
                        .map_err(PostgresError::io("give away", path))?;
                }
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let found =
                    fs::symlink_metadata(path).map_err(PostgresError::io("look at", path))?;
                // Root made it and was killed before it gave it away.
                if self.user.is_some() && found.is_dir() && found.uid() == 0 {
                    let user = self.user.as_ref().map(|user| (user.uid, user.gid));
                    return chown(path, user.map(|u| u.0), user.map(|u| u.1))
                        .map_err(PostgresError::io("give away", path));
                }
                if found.is_dir() && found.uid() == owner && found.mode() & 0o077 == 0 {
                    return Ok(());
                }
                Err(PostgresError::Foreign {
                    directory: path.to_owned(),
                })
            }
            Err(error) => Err(PostgresError::io("make", path)(error)),
        }
    }

    pub(super) fn url(&self) -> String {
        let host = form_urlencoded::byte_serialize(self.sockets.as_os_str().as_encoded_bytes());
        let host: String = host.collect();
        format!("postgres://{USER}@localhost:{PORT}/postgres?host={host}")
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.sockets.join(format!(".s.PGSQL.{PORT}"))
    }

    /// A file for what Postgres says, begun anew when it has grown large.
    pub(super) fn open_log(&self) -> Result<File, PostgresError> {
        const LARGEST: u64 = 10 * 1024 * 1024;
        let large = fs::metadata(&self.log).is_ok_and(|log| log.len() > LARGEST);
        if large {
            let _ = fs::rename(&self.log, self.log.with_extension("log.old"));
        }
        OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&self.log)
            .map_err(PostgresError::io("open", &self.log))
    }

    /// The last lines of the log.
    pub(super) fn log_tail(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(12)..].join("\n")
    }

    /// The pid file, line by line.
    fn pid_file(&self) -> Option<Vec<String>> {
        let text = fs::read_to_string(self.cluster.join("postmaster.pid")).ok()?;
        Some(text.lines().map(|line| line.trim().to_owned()).collect())
    }

    /// The process that the pid file names, if it is alive and a Postgres.
    pub(super) fn running_pid(&self) -> Option<u32> {
        let pid = self.pid_file()?.first()?.parse().ok()?;
        is_postgres(pid).then_some(pid)
    }

    /// Whether the pid file says that `pid` takes connections.
    pub(super) fn is_ready(&self, pid: Option<u32>) -> bool {
        let Some(lines) = self.pid_file() else {
            return false;
        };
        let named = lines.first().and_then(|line| line.parse::<u32>().ok());
        (pid.is_none() || named == pid) && lines.get(7).is_some_and(|status| status == "ready")
    }

    /// The socket directory of the Postgres that runs already.
    pub(super) fn running_sockets(&self) -> Option<PathBuf> {
        let line = self.pid_file()?.get(4)?.clone();
        (!line.is_empty()).then(|| PathBuf::from(line))
    }

    /// Removes a pid file whose process is gone: its number may belong to another program by now,
    /// which Postgres would take for itself.
    pub(super) fn remove_stale_pid_file(&self) -> Result<(), PostgresError> {
        let path = self.cluster.join("postmaster.pid");
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(PostgresError::io("remove", &path)(error))
            }
            _ => Ok(()),
        }
    }
}

/// Makes the data directory, unless it is there.
pub(crate) fn create_data_dir(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    // Others may pass through it to what is theirs, and see nothing.
    DirBuilder::new().recursive(true).mode(0o711).create(path)
}

fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

fn unprivileged_user() -> Option<User> {
    let passwd = fs::read_to_string("/etc/passwd").ok()?;
    ["postgres", "nobody"]
        .iter()
        .find_map(|name| parse_passwd(&passwd, name))
}

fn parse_passwd(passwd: &str, name: &str) -> Option<User> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then_some(())?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        (uid != 0).then(|| User {
            name: name.to_owned(),
            uid,
            gid,
        })
    })
}

/// Every directory on the way must let the user through.
fn check_reach(data_dir: &Path, user: &User) -> Result<(), PostgresError> {
    for directory in data_dir.ancestors() {
        let found = fs::metadata(directory).map_err(PostgresError::io("look at", directory))?;
        let bit = if found.uid() == user.uid {
            0o100
        } else if found.gid() == user.gid {
            0o010
        } else {
            0o001
        };
        if found.mode() & bit == 0 {
            return Err(PostgresError::Unreachable {
                user: user.name.clone(),
                directory: directory.to_owned(),
            });
        }
    }
    Ok(())
}

fn is_postgres(pid: u32) -> bool {
    let alive = i32::try_from(pid)
        .ok()
        .and_then(rustix::process::Pid::from_raw)
        .is_some_and(|pid| match rustix::process::test_kill_process(pid) {
            Ok(()) => true,
            Err(error) => error == rustix::io::Errno::PERM,
        });
    // Where there is no /proc, the number has to do.
    alive
        && fs::read_to_string(format!("/proc/{pid}/comm"))
            .map_or(!Path::new("/proc/self").exists(), |name| {
                matches!(name.trim(), "postgres" | "postmaster")
            })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_in_passwd() {
        let passwd =
            "root:x:0:0::/root:/bin/sh\npostgres:x:101:104:,,,:/var:/bin/sh\nbad:x:y:1::\n";
        let user = parse_passwd(passwd, "postgres").unwrap();
        assert_eq!((user.uid, user.gid), (101, 104));
        for name in ["root", "bad", "nobody"] {
            assert_eq!(parse_passwd(passwd, name), None, "{name}");
        }
    }

    #[test]
    fn a_deep_data_directory_gets_a_short_socket() {
        let root = tempfile::tempdir().unwrap();
        fs::set_permissions(
            root.path(),
            std::os::unix::fs::PermissionsExt::from_mode(0o755),
        )
        .unwrap();
        let deep = root.path().join("d".repeat(90));
        let mut place = Place::prepare(&deep).unwrap();
        place.choose_sockets().unwrap();
        assert!(place.socket().as_os_str().len() <= LONGEST_SOCKET);
        assert!(!place.sockets.starts_with(root.path()));
        let first = place.sockets.clone();
        // The same place again, which exists now.
        let mut again = Place::prepare(&deep).unwrap();
        again.choose_sockets().unwrap();
        assert_eq!(again.sockets, first);
        fs::remove_dir(first).unwrap();
    }

    #[test]
    fn a_lock_is_held_once() {
        let root = tempfile::tempdir().unwrap();
        fs::set_permissions(
            root.path(),
            std::os::unix::fs::PermissionsExt::from_mode(0o755),
        )
        .unwrap();
        let place = Place::prepare(root.path()).unwrap();
        let lock = place.try_lock().unwrap();
        assert!(lock.is_some() && place.try_lock().unwrap().is_none());
        drop(lock);
        assert!(place.try_lock().unwrap().is_some());
    }
}
