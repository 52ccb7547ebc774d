use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use selfsame_hands::{
    Call, CallResult, Key,
    hello::{self, HelloError},
    mux::{self, Opener, Substream},
    wire::{self, DoorState, Reply, Request},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use uuid::Uuid;

use crate::{
    Backend, Handle, SandboxError,
    disk::Watch,
    outgoing::{self, Outgoing},
};

/// Time for the whole admission. Starting the relay inside takes tens of milliseconds; a daemon
/// under load may need seconds.
const ATTACH_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for an answer that takes the hands no work.
const CONTROL_TIMEOUT: Duration = Duration::from_secs(10);
/// Calls at once over one stream. yamux blocks at 256 substreams that the peer has not
/// acknowledged and ends the session at its own limit, so this stays below both, with room for
/// acknowledgements and cancellations.
const MAX_CALLS: usize = 192;
/// Acknowledgements and cancellations at once; apart from the calls, so that a cancellation never
/// waits for the call that it is to end.
const MAX_CONTROLS: usize = 32;
/// Transfers and commands of the server's own at once, apart from both: a slow one holds up no call.
const MAX_TRANSFERS: usize = 16;

/// A connected sandbox: cheap to clone, all calls multiplexed over one stream.
///
/// Dropping the last clone closes the stream; what runs inside goes on.
#[derive(Debug, Clone)]
pub struct Sandbox {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    boot_id: Uuid,
    handle: Handle,
    opener: Opener,
    calls: Semaphore,
    controls: Semaphore,
    transfers: Arc<Semaphore>,
    pub(crate) disk: Arc<Watch>,
    closed: watch::Receiver<bool>,
    outgoing: Mutex<Option<mpsc::Receiver<Outgoing>>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.disk.end();
    }
}

impl Sandbox {
    /// Connects, proves `key` (the first admission after the hands' start sets it) and announces
    /// `epoch`. Every older session of that sandbox ends, whoever holds it.
    ///
    /// # Errors
    /// [`SandboxError::StaleEpoch`] when a higher epoch has been here, [`SandboxError::WrongKey`],
    /// and whatever [`Backend::connect`] has to say.
    pub async fn attach(
        backend: &dyn Backend,
        handle: &Handle,
        key: &Key,
        epoch: u64,
    ) -> Result<Self, SandboxError> {
        let admission = async {
            let mut stream = backend.connect(handle).await?;
            let boot_id = hello::introduce(&mut stream, key, epoch)
                .await
                .map_err(refusal)?;
            Ok::<_, SandboxError>((stream, boot_id))
        };
        let (stream, boot_id) = tokio::time::timeout(ATTACH_TIMEOUT, admission)
            .await
            .map_err(|_| SandboxError::Timeout("attaching to the sandbox"))??;
        let (opener, inbound, work) = mux::session(stream, mux::Side::Server);
        let (close, closed) = watch::channel(false);
        let outgoing = outgoing::receive(inbound);
        tokio::spawn(async move {
            work.await;
            let _ = close.send(true);
        });
        Ok(Self {
            inner: Arc::new(Inner {
                boot_id,
                handle: handle.clone(),
                opener,
                calls: Semaphore::new(MAX_CALLS),
                controls: Semaphore::new(MAX_CONTROLS),
                transfers: Arc::new(Semaphore::new(MAX_TRANSFERS)),
                disk: Arc::default(),
                closed,
                outgoing: Mutex::new(Some(outgoing)),
            }),
        })
    }

    /// What this sandbox is to its backend.
    #[must_use]
    pub fn handle(&self) -> &Handle {
        &self.inner.handle
    }

    /// Made by the hands when they start: another one means that everything that ran is gone.
    #[must_use]
    pub fn boot_id(&self) -> Uuid {
        self.inner.boot_id
    }

    /// The connections that programs inside want to open, until the stream is lost. There is one
    /// receiver; whoever asks first gets it. Those that are not taken out of it wait, and all are
    /// refused once it is dropped.
    #[must_use]
    pub fn outgoing(&self) -> Option<mpsc::Receiver<Outgoing>> {
        let mut outgoing = self
            .inner
            .outgoing
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        outgoing.take()
    }

    /// Runs a tool call, or collects it when the hands already know its id: they wait for one that
    /// is running and return the kept result of one that is done. Takes as long as the call does;
    /// dropping the future stops waiting, not the call.
    ///
    /// # Errors
    /// [`SandboxError::Lost`] leaves the outcome open: attach again and collect.
    /// [`SandboxError::Refused`] means that the call has not run and will not.
    pub async fn call(&self, call: &Call) -> Result<CallResult, SandboxError> {
        let _permit = self
            .inner
            .calls
            .acquire()
            .await
            .map_err(|_| SandboxError::Lost)?;
        let _under_way = self.inner.disk.enter();
        match self.exchange(&Request::Call(call.clone())).await? {
            Reply::Result(result) => Ok(self.after_call(call, result).await),
            other => Err(unexpected(other)),
        }
    }

    /// The result of this call is durable: the hands may forget it. From then on they refuse the
    /// id.
    ///
    /// # Errors
    /// [`SandboxError::Lost`] and [`SandboxError::Timeout`]; acknowledging again is harmless.
    pub async fn ack(&self, id: Uuid) -> Result<(), SandboxError> {
        done(self.control(&Request::Ack { id }).await?)
    }

    /// Ends a call: TERM to its processes, KILL after two seconds. The call then ends with an error
    /// result. Returns at once; cancelling a call that is done, or that has not arrived yet, is
    /// fine.
    ///
    /// # Errors
    /// [`SandboxError::Lost`] and [`SandboxError::Timeout`].
    pub async fn cancel(&self, id: Uuid) -> Result<(), SandboxError> {
        done(self.control(&Request::Cancel { id }).await?)
    }

    /// Makes programs inside trust the certificates in `pem` (PEM, any number) besides the image's
    /// own, in place of those of an earlier call. To be
    /// called before the first command, because shells keep the environment they started with.
    /// Without isolation nothing happens: the files would be the server's own.
    ///
    /// # Errors
    /// [`SandboxError::Failed`] when there is no certificate in it, or the disk is full;
    /// [`SandboxError::Lost`] and [`SandboxError::Timeout`].
    pub async fn trust(&self, pem: &str) -> Result<(), SandboxError> {
        let pem = pem.to_owned();
        done(self.control(&Request::Trust { pem }).await?)
    }

    /// Gives programs that are started from now on these variables, by name and value, in place of those
    /// of an earlier call. They are no secrets to anybody inside, and forgotten when the sandbox stops.
    ///
    /// # Errors
    /// [`SandboxError::Lost`] and [`SandboxError::Timeout`].
    pub async fn set_variables(
        &self,
        variables: Vec<(String, String)>,
    ) -> Result<(), SandboxError> {
        done(self.control(&Request::Variables { variables }).await?)
    }

    /// How programs inside reach the world; for the log.
    ///
    /// # Errors
    /// [`SandboxError::Lost`] and [`SandboxError::Timeout`].
    pub async fn door(&self) -> Result<DoorState, SandboxError> {
        match self.control(&Request::Door).await? {
            Reply::Door(state) => Ok(state),
            other => Err(unexpected(other)),
        }
    }

    /// Whether the stream is lost already.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        *self.inner.closed.borrow()
    }

    /// Resolves when the stream is lost, at once if it already is.
    pub async fn closed(&self) {
        let mut closed = self.inner.closed.clone();
        // An error means that the task which drives the stream is gone: closed, too.
        let _ = closed.wait_for(|closed| *closed).await;
    }

    pub(crate) async fn control(&self, request: &Request) -> Result<Reply, SandboxError> {
        let exchange = async {
            let _permit = self
                .inner
                .controls
                .acquire()
                .await
                .map_err(|_| SandboxError::Lost)?;
            self.exchange(request).await
        };
        tokio::time::timeout(CONTROL_TIMEOUT, exchange)
            .await
            .map_err(|_| SandboxError::Timeout("an answer of the sandbox"))?
    }

    /// A substream for a transfer, and the permit to hold while it lasts.
    pub(crate) async fn transfer(&self) -> Result<(Substream, OwnedSemaphorePermit), SandboxError> {
        let permit = Arc::clone(&self.inner.transfers)
            .acquire_owned()
            .await
            .map_err(|_| SandboxError::Lost)?;
        let stream = self.inner.opener.open().await.ok_or(SandboxError::Lost)?;
        Ok((stream, permit))
    }

    async fn exchange(&self, request: &Request) -> Result<Reply, SandboxError> {
        let mut stream = self.inner.opener.open().await.ok_or(SandboxError::Lost)?;
        wire::write_frame(&mut stream, request, wire::MAX_REQUEST)
            .await
            .map_err(broken)?;
        wire::read_frame(&mut stream, wire::MAX_REPLY)
            .await
            .map_err(broken)
    }
}

fn done(reply: Reply) -> Result<(), SandboxError> {
    match reply {
        Reply::Done => Ok(()),
        other => Err(unexpected(other)),
    }
}

/// An answer that says no, or one that does not belong to the request.
pub(crate) fn unexpected(reply: Reply) -> SandboxError {
    match reply {
        Reply::Refused { message } => SandboxError::Refused(message),
        Reply::Failed { message } => SandboxError::Failed(message),
        _ => SandboxError::Protocol("the answer belongs to another request".into()),
    }
}

pub(crate) fn broken(error: io::Error) -> SandboxError {
    match error.kind() {
        io::ErrorKind::InvalidData => SandboxError::Protocol(error.to_string()),
        io::ErrorKind::InvalidInput => SandboxError::Refused(error.to_string()),
        _ => SandboxError::Lost,
    }
}

fn refusal(error: HelloError) -> SandboxError {
    match error {
        HelloError::StaleEpoch { epoch, current } => SandboxError::StaleEpoch { epoch, current },
        HelloError::WrongKey => SandboxError::WrongKey,
        HelloError::NotOurs => SandboxError::Protocol(error.to_string()),
        HelloError::Io(_) => SandboxError::Lost,
    }
}
