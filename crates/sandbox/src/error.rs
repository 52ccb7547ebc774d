use std::{error::Error as StdError, io};

/// What can go wrong with a sandbox itself.
///
/// A tool that fails (missing file, time limit, non-zero exit) is no `SandboxError`: it is a
/// [`CallResult`](crate::CallResult) with `is_error`. An error here means the call's outcome is
/// not known, or the sandbox cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The sandbox no longer exists: its files are lost.
    #[error("the sandbox no longer exists")]
    Gone,
    /// The sandbox exists but does not run: start it first.
    #[error("the sandbox is not running")]
    Stopped,
    /// A server with a higher epoch is in charge: this one must let go.
    #[error("the sandbox obeys another server: epoch {current} is above {epoch}")]
    StaleEpoch { epoch: u64, current: u64 },
    /// The hands were given another key at their first admission.
    #[error("the sandbox does not accept this key")]
    WrongKey,
    /// The stream to the sandbox broke. What was under way inside goes on and can be collected
    /// over a new one.
    #[error("the stream to the sandbox was lost")]
    Lost,
    /// The hands will not do it; nothing has run. The text is for the log.
    #[error("the sandbox refused: {0}")]
    Refused(String),
    /// A file inside (or a command of the server's own) and what is wrong with it, as a phrase.
    #[error("{0}")]
    Failed(String),
    /// What was to be put into a file could not be read, or has another size than announced.
    #[error("the content to be written could not be read")]
    Content(#[source] io::Error),
    /// This backend cannot do that at all.
    #[error("this backend cannot {0}")]
    Unsupported(&'static str),
    /// The other side said something that the protocol does not allow.
    #[error("protocol error: {0}")]
    Protocol(String),
    /// No answer in time (`what` names the step).
    #[error("timed out: {0}")]
    Timeout(&'static str),
    /// The machine's disk is almost full, and no sandbox is made.
    #[error("no room for another sandbox: {0}")]
    NoRoom(String),
    /// The image does not exist and cannot be fetched.
    #[error("no such image: {0}")]
    NoImage(String),
    /// The backend (daemon, file system, process table) failed. `operation` says at what.
    #[error("sandbox backend failed to {operation}")]
    Backend {
        operation: &'static str,
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
}

impl SandboxError {
    /// Wraps a backend's own error; meant for `map_err(SandboxError::backend("create"))`.
    pub fn backend<E: Into<Box<dyn StdError + Send + Sync>>>(
        operation: &'static str,
    ) -> impl FnOnce(E) -> Self {
        move |source| Self::Backend {
            operation,
            source: source.into(),
        }
    }
}
