//! The socket between hands and relay: in the abstract namespace, or a file.

use std::{
    fs, io,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            fs::MetadataExt,
            net::{SocketAddr, UnixListener, UnixStream},
        },
    },
    path::PathBuf,
    time::Duration,
};

/// How often to see whether a socket's file is still there.
const LOOK: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Socket {
    Abstract(String),
    Path(PathBuf),
}

impl Socket {
    /// `@name`, or a path.
    pub(crate) fn parse(text: &str) -> Self {
        match text.strip_prefix('@') {
            Some(name) => Self::Abstract(name.to_owned()),
            None => Self::Path(text.into()),
        }
    }

    fn address(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Abstract(name) => SocketAddr::from_abstract_name(name),
            Self::Path(path) => SocketAddr::from_pathname(path),
        }
    }

    pub(super) fn connect(&self) -> io::Result<UnixStream> {
        UnixStream::connect_addr(&self.address()?)
    }

    /// Resolves when the file that this process listens on is another one, or gone with its directory:
    /// nobody can ever come again, so nothing that runs here can be of use to anybody.
    pub(super) async fn abandoned(&self) {
        let Self::Path(path) = self else {
            return std::future::pending().await;
        };
        let inode = |path: &PathBuf| fs::metadata(path).map(|file| (file.dev(), file.ino()));
        let own = inode(path).ok();
        while own.is_some() && inode(path).ok() == own {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Listens. A file that an earlier run left is replaced; one that somebody listens on is not.
    pub(super) fn listen(&self) -> io::Result<UnixListener> {
        if let Self::Path(path) = self
            && path.exists()
        {
            if self.connect().is_ok() {
                return Err(io::ErrorKind::AddrInUse.into());
            }
            fs::remove_file(path)?;
        }
        let listener = UnixListener::bind_addr(&self.address()?)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    }
}
