//! Files into and out of a sandbox, and commands of the server's own. Contents are streamed: whatever
//! their size, a transfer holds a record (128 KiB) and a window of the stream (256 KiB).

use std::{
    io,
    pin::{Pin, pin},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::stream;
use selfsame_hands::{
    Found, Put, Ran, Run,
    mux::Substream,
    transfer::{self, HEADER, MAX_RECORD, Record},
    wire::{self, Reply, Request},
};
use sha2::{Digest, Sha256};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf},
    sync::OwnedSemaphorePermit,
    time::timeout,
};
use tokio_util::io::StreamReader;

use crate::{
    Sandbox, SandboxError,
    sandbox::{broken, unexpected},
};

/// Time for an answer that takes the hands a look at the disk.
const FILES_TIMEOUT: Duration = Duration::from_secs(60);
/// Time for one record to arrive, or to be taken.
const IDLE_TIMEOUT: Duration = Duration::from_secs(90);
/// How much longer than its own limit a command may take: to be ended, and for the answer.
const RUN_GRACE: Duration = Duration::from_secs(30);

/// A file that is being read out of a sandbox.
pub struct Got {
    pub size: u64,
    content: Pin<Box<dyn AsyncRead + Send>>,
}

impl std::fmt::Debug for Got {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Got")
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

/// Ends after exactly `size` bytes that match their checksum, or with an error: the stream was lost, or
/// the file was changed, removed or became shorter or longer meanwhile (the text says which).
impl AsyncRead for Got {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.content.as_mut().poll_read(cx, buf)
    }
}

impl Sandbox {
    /// Writes a file of `file.size` bytes. Its parents are made, and it appears under its name when all
    /// of it is there and its checksum is right; whatever was there before is replaced. It belongs to
    /// root.
    ///
    /// # Errors
    /// [`SandboxError::Failed`] when it cannot be written (a link is on the way, the disk is full, ..);
    /// [`SandboxError::Content`] when `content` fails or has another size. Then nothing is left.
    pub async fn put(
        &self,
        file: &Put,
        content: impl AsyncRead + Unpin + Send,
    ) -> Result<(), SandboxError> {
        let (stream, _permit) = self.transfer().await?;
        let _under_way = self.inner.disk.enter();
        let (mut from, mut to) = tokio::io::split(stream);
        let mut answer = pin!(wire::read_frame(&mut from, wire::MAX_REPLY));
        let sent = tokio::select! {
            biased;
            // Before everything was sent it can only be a refusal.
            reply = &mut answer => return done(reply.map_err(broken)?),
            sent = send(file, content, &mut to) => sent,
        };
        if let Err(error @ SandboxError::Content(_)) = sent {
            return Err(error);
        }
        // Where sending failed, the reason may have come before.
        let reply = timeout(IDLE_TIMEOUT, answer)
            .await
            .map_err(|_| SandboxError::Timeout("the end of a file's writing"))?;
        match (reply, sent) {
            (Ok(reply), _) => done(reply),
            (Err(_), Err(error)) => Err(error),
            (Err(error), Ok(())) => Err(broken(error)),
        }
    }

    /// Begins to read a regular file of at most `limit` bytes; no link is followed.
    ///
    /// # Errors
    /// [`SandboxError::Failed`] when there is no such file. What goes wrong later is an error of the
    /// content.
    pub async fn get(&self, path: &str, limit: u64) -> Result<Got, SandboxError> {
        let (mut stream, permit) = self.transfer().await?;
        let request = Request::Get {
            path: path.to_owned(),
            limit,
        };
        match ask(&mut stream, &request, FILES_TIMEOUT).await? {
            Reply::Content { size } if size <= limit => Ok(Got {
                size,
                content: Box::pin(content(stream, permit, size)),
            }),
            Reply::Content { .. } => Err(SandboxError::Protocol("the file is too large".into())),
            other => Err(unexpected(other)),
        }
    }

    /// The regular files below a directory, in the order of their paths; links and special files are
    /// left out, and so are names that are no UTF-8. At `limit` it stops: so many may not be all.
    ///
    /// A file that is changed later has another time (or size, or inode) than the one returned here,
    /// unless it is set by hand: who reads a file's content after this knows the next time whether it
    /// is still the same.
    ///
    /// # Errors
    /// [`SandboxError::Failed`] when there is no such directory.
    pub async fn walk(&self, root: &str, limit: usize) -> Result<Vec<Found>, SandboxError> {
        let root = root.to_owned();
        match self.files(&Request::Walk { root, limit }).await? {
            Reply::Found(found) => Ok(found),
            other => Err(unexpected(other)),
        }
    }

    /// Makes a symbolic link (and its parents) where nothing is; answers whether it did.
    ///
    /// # Errors
    /// [`SandboxError::Failed`] when the path is not a path, or cannot be written.
    pub async fn link(&self, link: &str, target: &str) -> Result<bool, SandboxError> {
        let (link, target) = (link.to_owned(), target.to_owned());
        match self.files(&Request::Link { link, target }).await? {
            Reply::Linked(made) => Ok(made),
            other => Err(unexpected(other)),
        }
    }

    /// Removes a file or a link; a missing one is fine.
    ///
    /// # Errors
    /// [`SandboxError::Failed`] for a directory.
    pub async fn remove(&self, path: &str) -> Result<(), SandboxError> {
        let path = path.to_owned();
        done(self.files(&Request::Remove { path }).await?)
    }

    /// Runs a command of the server's own to its end. Whatever it started ends with it, and all of it
    /// ends when this future is dropped or the stream is lost. Where the hands are plain processes, its
    /// arguments mean the real file system: name files relative to `cwd`.
    ///
    /// # Errors
    /// [`SandboxError::Failed`] when it cannot be started. Any status of its own is an answer.
    pub async fn run(&self, run: &Run) -> Result<Ran, SandboxError> {
        let (mut stream, _permit) = self.transfer().await?;
        let _under_way = self.inner.disk.enter();
        let request = Request::Run(run.clone());
        match ask(&mut stream, &request, run.timeout + RUN_GRACE).await? {
            Reply::Ran(ran) => Ok(ran),
            other => Err(unexpected(other)),
        }
    }

    /// The number of [`CallResult::outputs`](crate::CallResult::outputs), now.
    ///
    /// # Errors
    /// Those of the stream.
    pub async fn outputs(&self) -> Result<u64, SandboxError> {
        match self.files(&Request::Outputs).await? {
            Reply::Outputs(outputs) => Ok(outputs),
            other => Err(unexpected(other)),
        }
    }

    async fn files(&self, request: &Request) -> Result<Reply, SandboxError> {
        let (mut stream, _permit) = self.transfer().await?;
        ask(&mut stream, request, FILES_TIMEOUT).await
    }
}

async fn ask(
    stream: &mut Substream,
    request: &Request,
    patience: Duration,
) -> Result<Reply, SandboxError> {
    let exchange = async {
        wire::write_frame(stream, request, wire::MAX_REQUEST).await?;
        wire::read_frame(stream, wire::MAX_REPLY).await
    };
    timeout(patience, exchange)
        .await
        .map_err(|_| SandboxError::Timeout("an answer of the sandbox"))?
        .map_err(broken)
}

fn done(reply: Reply) -> Result<(), SandboxError> {
    match reply {
        Reply::Done => Ok(()),
        other => Err(unexpected(other)),
    }
}

/// Sends the request and the content.
async fn send(
    file: &Put,
    mut content: impl AsyncRead + Unpin,
    to: &mut (impl AsyncWrite + Unpin),
) -> Result<(), SandboxError> {
    wire::write_frame(to, &Request::Put(file.clone()), wire::MAX_REQUEST)
        .await
        .map_err(broken)?;
    let mut hash = Sha256::new();
    let mut left = file.size;
    let mut buffer = Vec::new();
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(MAX_RECORD).min(MAX_RECORD);
        buffer.resize(HEADER + most, 0);
        // A full record where there is as much: each costs the hands a trip to a file thread.
        let mut filled = HEADER;
        while filled < buffer.len() {
            match content.read(&mut buffer[filled..]).await {
                Ok(0) => return Err(SandboxError::Content(io::ErrorKind::UnexpectedEof.into())),
                Ok(length) => filled += length,
                Err(error) => return Err(SandboxError::Content(error)),
            }
        }
        hash.update(&buffer[HEADER..]);
        left -= most as u64;
        timeout(IDLE_TIMEOUT, transfer::write_data(to, &mut buffer))
            .await
            .map_err(|_| SandboxError::Timeout("the sandbox to take a file's content"))?
            .map_err(broken)?;
    }
    match content.read(&mut [0]).await {
        Ok(0) => {}
        Ok(_) => {
            let error = io::Error::new(io::ErrorKind::InvalidData, "longer than announced");
            return Err(SandboxError::Content(error));
        }
        Err(error) => return Err(SandboxError::Content(error)),
    }
    transfer::write_end(to, hash.finalize().into())
        .await
        .map_err(broken)
}

/// The records as one content, checked.
fn content(
    stream: Substream,
    permit: OwnedSemaphorePermit,
    size: u64,
) -> impl AsyncRead + Send + 'static {
    struct State {
        stream: Substream,
        hash: Sha256,
        left: u64,
        _permit: OwnedSemaphorePermit,
    }
    let state = State {
        stream,
        hash: Sha256::new(),
        left: size,
        _permit: permit,
    };
    let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let records = stream::try_unfold(Some(state), move |state| async move {
        let Some(mut state) = state else {
            return Ok(None);
        };
        let mut buffer = Vec::new();
        let record = transfer::read_record(&mut state.stream, &mut buffer);
        match timeout(IDLE_TIMEOUT, record).await?? {
            Record::Data => {
                state.left = state
                    .left
                    .checked_sub(buffer.len() as u64)
                    .ok_or_else(|| wrong("more content than announced"))?;
                state.hash.update(&buffer);
                Ok(Some((Bytes::from(buffer), Some(state))))
            }
            Record::End(_) if state.left > 0 => Err(wrong("less content than announced")),
            Record::End(digest) if digest != <[u8; 32]>::from(state.hash.finalize()) => {
                Err(wrong("the checksum differs"))
            }
            // The permit and the stream go here, and not with the reader.
            Record::End(_) => Ok(None),
            Record::Stopped(reason) => Err(io::Error::other(reason)),
        }
    });
    StreamReader::new(Box::pin(records))
}
