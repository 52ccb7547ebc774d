use std::{
    fmt, io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bollard::{container::LogOutput, errors::Error as DockerError};
use bytes::{Buf, Bytes};
use futures_util::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tracing::debug;

/// Standard error of a relay that is worth logging, in bytes; the rest is dropped.
const STDERR_LOGGED: usize = 4096;

/// The two ends of an attached exec as one byte stream: what we write is its standard input, what
/// we read is its standard output. Standard error is taken out and logged. Dropping it closes the
/// connection, and the relay inside ends.
pub(super) struct ExecStream {
    container: String,
    output: Pin<Box<dyn Stream<Item = Result<LogOutput, DockerError>> + Send>>,
    input: Pin<Box<dyn AsyncWrite + Send>>,
    unread: Bytes,
    stderr_left: usize,
}

impl ExecStream {
    pub(super) fn new(
        container: String,
        output: Pin<Box<dyn Stream<Item = Result<LogOutput, DockerError>> + Send>>,
        input: Pin<Box<dyn AsyncWrite + Send>>,
    ) -> Self {
        Self {
            container,
            output,
            input,
            unread: Bytes::new(),
            stderr_left: STDERR_LOGGED,
        }
    }

    fn log(&mut self, message: &[u8]) {
        let part = &message[..message.len().min(self.stderr_left)];
        self.stderr_left -= part.len();
        if !part.is_empty() {
            debug!(
                container = %self.container,
                stderr = %String::from_utf8_lossy(part).trim_end(),
                "the relay in the sandbox says",
            );
        }
    }
}

impl fmt::Debug for ExecStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExecStream")
            .field("container", &self.container)
            .field("unread", &self.unread.len())
            .finish_non_exhaustive()
    }
}

impl AsyncRead for ExecStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.unread.is_empty() {
            match ready!(self.output.as_mut().poll_next(cx)) {
                None => return Poll::Ready(Ok(())),
                Some(Ok(LogOutput::StdOut { message })) => self.unread = message,
                Some(Ok(LogOutput::StdErr { message } | LogOutput::StdIn { message })) => {
                    self.log(&message);
                }
                // Not framed: the daemon's own words about an exec that it could not start.
                Some(Ok(LogOutput::Console { message })) => {
                    let text = &message[..message.len().min(STDERR_LOGGED)];
                    let text = String::from_utf8_lossy(text).trim().to_owned();
                    return Poll::Ready(Err(io::Error::other(text)));
                }
                Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
            }
        }
        let count = self.unread.len().min(buf.remaining());
        buf.put_slice(&self.unread[..count]);
        self.unread.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ExecStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.input.as_mut().poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.input.as_mut().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.input.as_mut().poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use tokio::io::AsyncReadExt;

    use super::*;

    fn reading(parts: Vec<LogOutput>) -> ExecStream {
        ExecStream::new(
            "c".to_owned(),
            Box::pin(stream::iter(parts.into_iter().map(Ok))),
            Box::pin(tokio::io::sink()),
        )
    }

    #[tokio::test]
    async fn standard_error_never_enters_the_stream() {
        let mut stream = reading(vec![
            LogOutput::StdErr {
                message: vec![b'e'; 3 * STDERR_LOGGED].into(),
            },
            LogOutput::StdOut {
                message: "one".into(),
            },
            LogOutput::StdErr {
                message: "noise".into(),
            },
            LogOutput::StdOut {
                message: Bytes::new(),
            },
            LogOutput::StdOut {
                message: "two".into(),
            },
        ]);
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "onetwo");
        assert_eq!(stream.stderr_left, 0);
    }

    #[tokio::test]
    async fn words_of_the_daemon_are_an_error_and_not_data() {
        let mut stream = reading(vec![LogOutput::Console {
            message: "OCI runtime exec failed: no such file\r\n".into(),
        }]);
        let error = stream.read_u8().await.unwrap_err();
        assert_eq!(error.to_string(), "OCI runtime exec failed: no such file");
    }
}
