//! What is said on a substream: one request frame, then one reply frame.
//!
//! A frame is its length (u32, big endian) and that many bytes of JSON. A stream that ends inside
//! a frame, or before it, is an error and never an empty answer: yamux shows resets and lost
//! connections as a clean end.

use std::io;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use uuid::Uuid;

use crate::{Call, CallResult, Found, Put, Ran, Run};

/// Longest request, in bytes: the longest content of a `write` call, with JSON's escapes.
pub const MAX_REQUEST: usize = 32 << 20;
/// Longest reply, in bytes: a PDF of 20 MiB in base64, and room to spare.
pub const MAX_REPLY: usize = 32 << 20;

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Run it, or collect it; answered by [`Reply::Result`] when it is done.
    Call(Call),
    /// The result is durable: forget it. Answered by [`Reply::Done`].
    Ack { id: Uuid },
    /// End it early; answered by [`Reply::Done`] at once, while the call itself gets its
    /// (interrupted) result on its own substream.
    Cancel { id: Uuid },
    /// Write a file, whose content follows in records. Answered by [`Reply::Done`], or at any time
    /// before the content's end by [`Reply::Failed`].
    Put(Put),
    /// Read a file. Answered by [`Reply::Content`] and then its content in records.
    Get { path: String, limit: u64 },
    /// Find regular files, at most `limit`. Answered by [`Reply::Found`].
    Walk { root: String, limit: usize },
    /// Make a symbolic link where nothing is. Answered by [`Reply::Linked`].
    Link { link: String, target: String },
    /// Remove a file or link. Answered by [`Reply::Done`], also when there is none.
    Remove { path: String },
    /// Run a command of the server's own. Answered by [`Reply::Ran`]; it ends when the substream
    /// does.
    Run(Run),
    /// Answered by [`Reply::Outputs`].
    Outputs,
    /// Make programs inside trust these certificates besides the image's own, in place of those of
    /// an earlier request. Answered by [`Reply::Done`].
    Trust { pem: String },
    /// Let programs that are started from now on find these variables, in place of those of an earlier
    /// request. Answered by [`Reply::Done`].
    Variables { variables: Vec<(String, String)> },
    /// So many bytes has the sandbox written, and so many it may. Answered by [`Reply::Done`].
    Disk { used: u64, limit: u64 },
    /// How programs inside reach the world; answered by [`Reply::Door`].
    Door,
}

/// How programs inside reach the world.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DoorState {
    /// Every connection is carried, whatever its address and port.
    Redirect,
    /// Connections by name to a few ports are carried, and those of programs that use a proxy.
    Ports { reason: String },
    /// Not at all.
    None { reason: String },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    Result(CallResult),
    Done,
    /// A file of this size follows, in records.
    Content {
        size: u64,
    },
    Found(Vec<Found>),
    /// Whether the link was made.
    Linked(bool),
    Ran(Ran),
    /// Changes with the files of the outputs directory, see [`CallResult::outputs`].
    Outputs(u64),
    /// It was tried and could not be done; a phrase about the file or the command.
    Failed {
        message: String,
    },
    Door(DoorState),
    /// The request cannot be served; a sentence for the log.
    Refused {
        message: String,
    },
}

/// Writes one frame and flushes.
///
/// # Errors
/// The stream broke, or `value` is longer than `limit` bytes.
pub async fn write_frame<T: Serialize>(
    io: &mut (impl AsyncWrite + Unpin),
    value: &T,
    limit: usize,
) -> io::Result<()> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, value)?;
    let length = frame.len() - 4;
    let prefix = match u32::try_from(length) {
        Ok(prefix) if length <= limit => prefix,
        _ => {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "frame too long",
            ));
        }
    };
    frame[..4].copy_from_slice(&prefix.to_be_bytes());
    io.write_all(&frame).await?;
    io.flush().await
}

/// Reads one frame of at most `limit` bytes.
///
/// # Errors
/// `UnexpectedEof` when the stream ends early; `InvalidData` for a frame that is too long or that
/// is not a `T`.
pub async fn read_frame<T: DeserializeOwned>(
    io: &mut (impl AsyncRead + Unpin),
    limit: usize,
) -> io::Result<T> {
    let mut prefix = [0; 4];
    io.read_exact(&mut prefix).await?;
    let length = u32::from_be_bytes(prefix) as usize;
    if length > limit {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "frame too long"));
    }
    // Grows with what really arrives: a length alone makes nobody allocate.
    let mut frame = Vec::with_capacity(length.min(64 << 10));
    io.take(length as u64).read_to_end(&mut frame).await?;
    if frame.len() < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    serde_json::from_slice(&frame)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames_are_bounded_and_whole() {
        let mut frame = Vec::new();
        write_frame(&mut frame, &Request::Ack { id: Uuid::nil() }, 100)
            .await
            .unwrap();
        let read: Request = read_frame(&mut frame.as_slice(), 100).await.unwrap();
        assert!(matches!(read, Request::Ack { .. }));

        let kind = |result: io::Result<Request>| result.unwrap_err().kind();
        assert_eq!(
            kind(read_frame(&mut frame.as_slice(), 10).await),
            io::ErrorKind::InvalidData
        );
        let cut = &frame[..frame.len() - 1];
        assert_eq!(
            kind(read_frame(&mut &cut[..], 100).await),
            io::ErrorKind::UnexpectedEof
        );
        assert_eq!(
            kind(read_frame(&mut &b""[..], 100).await),
            io::ErrorKind::UnexpectedEof
        );
        let huge = &b"\xff\xff\xff\xff{}"[..];
        assert_eq!(
            kind(read_frame(&mut &huge[..], MAX_REQUEST).await),
            io::ErrorKind::InvalidData
        );
        let junk = &b"\0\0\0\x04junk"[..];
        assert_eq!(
            kind(read_frame(&mut &junk[..], 100).await),
            io::ErrorKind::InvalidData
        );

        let refused = Reply::Refused {
            message: "x".repeat(200),
        };
        let error = write_frame(&mut Vec::new(), &refused, 100)
            .await
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
