//! Many substreams over one byte stream.

use std::{future::poll_fn, task::Poll, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{mpsc, oneshot},
};
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt};

/// Most substreams at once. One more than this ends the whole session, so each side keeps its own
/// count well below.
pub const MAX_STREAMS: usize = 512;

/// One substream.
pub type Substream = Compat<yamux::Stream>;

/// Which end of the stream this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Server,
    Hands,
}

/// Opens substreams. When the last one is dropped, the session ends.
#[derive(Debug, Clone)]
pub struct Opener(mpsc::Sender<oneshot::Sender<yamux::Stream>>);

impl Opener {
    /// A new substream, or `None` when the session has ended. The other side sees nothing before
    /// the first byte.
    pub async fn open(&self) -> Option<Substream> {
        let (sender, receiver) = oneshot::channel();
        self.0.send(sender).await.ok()?;
        receiver.await.ok().map(FuturesAsyncReadCompatExt::compat)
    }
}

/// Starts a session on `io`: what opens substreams, the substreams that the other side opens, and
/// the future that does the work and ends with the session.
pub fn session<T>(
    io: T,
    side: Side,
) -> (
    Opener,
    mpsc::Receiver<Substream>,
    impl Future<Output = ()> + Send,
)
where
    T: AsyncRead + AsyncWrite + Unpin + Send,
{
    let mut config = yamux::Config::default();
    config.set_max_num_streams(MAX_STREAMS);
    // As many windows of the default size (256 KiB) as there may be streams: this leaves nothing
    // for growing one, and a grown window makes the small calls beside a bulk transfer slow.
    config.set_max_connection_receive_window(Some(MAX_STREAMS * yamux::DEFAULT_CREDIT as usize));
    let mode = match side {
        Side::Server => yamux::Mode::Client,
        Side::Hands => yamux::Mode::Server,
    };
    let connection = yamux::Connection::new(io.compat(), config, mode);
    let (opener, opens) = mpsc::channel(16);
    let (inbound, accepted) = mpsc::channel(MAX_STREAMS);
    (Opener(opener), accepted, drive(connection, opens, inbound))
}

async fn drive<T>(
    mut connection: yamux::Connection<Compat<T>>,
    mut opens: mpsc::Receiver<oneshot::Sender<yamux::Stream>>,
    inbound: mpsc::Sender<Substream>,
) where
    T: AsyncRead + AsyncWrite + Unpin + Send,
{
    let mut waiting: Option<oneshot::Sender<yamux::Stream>> = None;
    let lost = poll_fn(|cx| {
        loop {
            if waiting.is_none() {
                match opens.poll_recv(cx) {
                    Poll::Ready(Some(opener)) => waiting = Some(opener),
                    Poll::Ready(None) => return Poll::Ready(false),
                    Poll::Pending => {}
                }
            }
            let mut progress = false;
            if waiting.is_some() {
                match connection.poll_new_outbound(cx) {
                    Poll::Ready(Ok(stream)) => {
                        if let Some(opener) = waiting.take() {
                            // An opener that has given up drops the stream, unseen by the peer.
                            let _ = opener.send(stream);
                        }
                        progress = true;
                    }
                    Poll::Ready(Err(_)) => return Poll::Ready(true),
                    Poll::Pending => {}
                }
            }
            match connection.poll_next_inbound(cx) {
                Poll::Ready(Some(Ok(stream))) => {
                    // The channel holds as many as there may be; a full or closed one means that
                    // nobody accepts any more, and dropping the stream resets it.
                    let _ = inbound.try_send(stream.compat());
                    progress = true;
                }
                Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(true),
                Poll::Pending => {}
            }
            if !progress {
                return Poll::Pending;
            }
        }
    })
    .await;
    if !lost {
        let goodbye = poll_fn(|cx| connection.poll_close(cx));
        // A peer that does not read must not hold the connection.
        let _ = tokio::time::timeout(Duration::from_secs(1), goodbye).await;
    }
}
