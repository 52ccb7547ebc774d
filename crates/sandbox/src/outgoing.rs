//! Connections that programs inside open: the server's end of [`selfsame_hands::carry`].

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use selfsame_hands::{
    carry::{self, Answer, Open, Records},
    mux::Substream,
    wire,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::mpsc,
    time::timeout,
};

/// Time for what the hands write at once.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for an answer to go out. It is short, and a fresh substream has room for it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest message of a refusal, in bytes.
const MAX_MESSAGE: usize = 500;

/// A connection that a program inside wants to open. Dropping it refuses it.
#[derive(Debug)]
pub struct Outgoing {
    /// A DNS name in lower case, or an IP address. What it means is for the server to decide: the
    /// program inside says whatever it likes.
    pub host: String,
    pub port: u16,
    stream: Substream,
}

impl Outgoing {
    /// Takes it. What the program sends can be read from here on; its own connection has been
    /// standing for a while already. A session that is lost meanwhile shows as an error of the
    /// first read or write.
    pub async fn accept(mut self) -> Carried {
        self.answer(&Answer::Accepted).await;
        Carried(Records::new(self.stream))
    }

    /// Refuses it: the program sees its connection reset. The message is for the log inside.
    pub async fn refuse(mut self, message: &str) {
        let mut end = message.len().min(MAX_MESSAGE);
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        self.answer(&Answer::Refused {
            message: message[..end].to_owned(),
        })
        .await;
    }

    async fn answer(&mut self, answer: &Answer) {
        let write = wire::write_frame(&mut self.stream, answer, carry::MAX_FRAME);
        // Failing, it means that the session is lost, which whoever goes on sees.
        let _ = timeout(ANSWER_TIMEOUT, write).await;
    }
}

/// A connection of a program inside.
///
/// The end of what the program sends is `Ok(0)`; when it aborts, or the session is lost, reading
/// fails with `ConnectionReset`. Shutting down ends the own direction, as a half-closed TCP
/// connection does. Dropping it before both directions have ended resets the program's connection.
#[derive(Debug)]
pub struct Carried(Records<Substream>);

impl Carried {
    /// Resets the program's connection.
    pub fn reset(self) {}
}

impl AsyncRead for Carried {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Carried {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// Turns the substreams that the hands open into connections. Those that say something else are
/// dropped, and all are when nobody wants connections.
pub(crate) fn receive(mut inbound: mpsc::Receiver<Substream>) -> mpsc::Receiver<Outgoing> {
    let (sender, outgoing) = mpsc::channel(carry::MAX_CONNECTIONS);
    tokio::spawn(async move {
        // Ends with the session, which bounds the number of substreams.
        while let Some(mut stream) = inbound.recv().await {
            let sender = sender.clone();
            tokio::spawn(async move {
                let open = wire::read_frame::<Open>(&mut stream, carry::MAX_FRAME);
                if let Ok(Ok(Open { host, port })) = timeout(OPEN_TIMEOUT, open).await
                    && is_host(&host)
                    && port != 0
                {
                    // A full channel makes the sandbox wait, and nobody else.
                    let _ = sender.send(Outgoing { host, port, stream }).await;
                }
            });
        }
    });
    outgoing
}

fn is_host(host: &str) -> bool {
    carry::is_host_name(host) || host.parse::<std::net::IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use selfsame_hands::mux::{self, Opener, Side};
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    /// The hands' opener and the server's receiver of one session in memory.
    fn session() -> (Opener, mpsc::Receiver<Outgoing>, Opener) {
        let (server, hands) = duplex(64 << 10);
        let (kept, inbound, work) = mux::session(server, Side::Server);
        tokio::spawn(work);
        let (opener, _, work) = mux::session(hands, Side::Hands);
        tokio::spawn(work);
        (opener, receive(inbound), kept)
    }

    async fn open(opener: &Opener, host: &str, port: u16) -> Substream {
        let mut stream = opener.open().await.unwrap();
        let open = Open {
            host: host.to_owned(),
            port,
        };
        wire::write_frame(&mut stream, &open, carry::MAX_FRAME)
            .await
            .unwrap();
        stream
    }

    async fn answer(stream: &mut Substream) -> Answer {
        wire::read_frame(stream, carry::MAX_FRAME).await.unwrap()
    }

    #[tokio::test]
    async fn accepted_connections_carry_bytes_and_refused_ones_say_why() {
        let (opener, mut outgoing, _kept) = session();
        let mut stream = open(&opener, "example.com", 443).await;
        let wanted = outgoing.recv().await.unwrap();
        assert_eq!((wanted.host.as_str(), wanted.port), ("example.com", 443));
        let mut carried = wanted.accept().await;
        assert_eq!(answer(&mut stream).await, Answer::Accepted);
        let mut inside = Records::new(stream);
        let content = vec![1; 3 << 20];
        let (sent, received) = tokio::join!(
            async {
                inside.write_all(b"please").await.unwrap();
                inside.shutdown().await.unwrap();
                let mut read = Vec::new();
                inside.read_to_end(&mut read).await.unwrap();
                inside.finish().await;
                read
            },
            async {
                let mut read = Vec::new();
                carried.read_to_end(&mut read).await.unwrap();
                carried.write_all(&content).await.unwrap();
                carried.shutdown().await.unwrap();
                drop(carried);
                read
            }
        );
        assert_eq!(received, b"please");
        assert_eq!(sent, content);

        let mut stream = open(&opener, "10.0.0.1", 1).await;
        let wanted = outgoing.recv().await.unwrap();
        wanted.refuse(&"ä".repeat(5000)).await;
        let Answer::Refused { message } = answer(&mut stream).await else {
            panic!("accepted");
        };
        assert_eq!(message, "ä".repeat(MAX_MESSAGE / 2));
    }

    #[tokio::test]
    async fn a_reset_and_a_lost_session_are_errors() {
        let (opener, mut outgoing, kept) = session();
        let mut first = open(&opener, "a.example", 80).await;
        let carried = outgoing.recv().await.unwrap().accept().await;
        assert_eq!(answer(&mut first).await, Answer::Accepted);
        carried.reset();
        let error = Records::new(first).read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);

        let _second = open(&opener, "b.example", 80).await;
        let mut carried = outgoing.recv().await.unwrap().accept().await;
        drop(opener);
        let error = carried.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert!(outgoing.recv().await.is_none());
        drop(kept);
    }

    #[tokio::test]
    async fn what_is_not_a_destination_is_dropped() {
        let (opener, mut outgoing, _kept) = session();
        for (host, port) in [
            ("", 80),
            ("a\nb", 80),
            ("a b", 80),
            ("A.example", 80),
            ("a:80", 80),
            ("a.example", 0),
        ] {
            let mut stream = open(&opener, host, port).await;
            assert_eq!(stream.read(&mut [0]).await.unwrap(), 0, "{host:?}");
        }
        let mut stream = opener.open().await.unwrap();
        stream.write_all(&u32::MAX.to_be_bytes()).await.unwrap();
        assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
        let _good = open(&opener, "::1", 80).await;
        assert_eq!(outgoing.recv().await.unwrap().host, "::1");
    }

    #[tokio::test]
    async fn one_that_does_not_read_blocks_itself_alone() {
        let (opener, mut outgoing, _kept) = session();
        let mut streams = Vec::new();
        for _ in 0..carry::MAX_CONNECTIONS {
            let mut stream = open(&opener, "a.example", 80).await;
            let mut carried = outgoing.recv().await.unwrap().accept().await;
            assert_eq!(answer(&mut stream).await, Answer::Accepted);
            streams.push(stream);
            tokio::spawn(async move { carried.write_all(&vec![0; 1 << 20]).await });
        }
        let mut stream = open(&opener, "b.example", 80).await;
        let mut carried = outgoing.recv().await.unwrap().accept().await;
        assert_eq!(answer(&mut stream).await, Answer::Accepted);
        let mut inside = Records::new(stream);
        carried.write_all(b"through").await.unwrap();
        carried.shutdown().await.unwrap();
        let mut read = String::new();
        inside.read_to_string(&mut read).await.unwrap();
        assert_eq!(read, "through");
    }
}
