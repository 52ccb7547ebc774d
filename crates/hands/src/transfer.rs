//! Files to and from a sandbox, and commands of the server's own: what is asked, and how contents travel.
//!
//! The content of a file follows its request (or comes before its answer) on the same substream, in
//! records. yamux shows a lost connection as a clean end, so a content without [`Record::End`] is an
//! incomplete one, and the sender says so when it cannot go on.
//!
//! ```text
//! length 1..=MAX_RECORD   that many bytes of content
//! length 0                the end, and the SHA-256 of everything before
//! length u32::MAX         the content stops here: a frame with the reason
//! ```

use std::{io, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use uuid::Uuid;

use crate::wire;

/// Most bytes of content in one record.
pub const MAX_RECORD: usize = 128 << 10;
/// Bytes before the content in a record's buffer.
pub const HEADER: usize = 4;
/// Longest reason, as a frame.
const MAX_REASON: usize = 4 << 10;
/// The length that stands for a reason.
const STOPPED: u32 = u32::MAX;

/// A file to be written. Parents are made; the file appears under its name when it is whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Put {
    /// Absolute, without `..`. Nothing on the way may be a link.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    pub size: u64,
}

/// A regular file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// Below the directory that was walked.
    pub path: String,
    pub size: u64,
    /// Nanoseconds after 1970. A later change gets a later time, see `walk` in the client.
    pub modified_ns: i128,
    pub inode: u64,
    /// By its owner.
    pub executable: bool,
}

/// A command of the server's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// In the environment of everything that it starts, so that all of it can be ended.
    pub id: Uuid,
    /// The program, looked up in the sandbox's `PATH`, and its arguments.
    pub argv: Vec<String>,
    /// Besides the environment that tools have.
    pub env: Vec<(String, String)>,
    /// Absolute; `None` is the working directory of tools.
    pub cwd: Option<String>,
    pub timeout: Duration,
    /// Most bytes of output to return: the last ones.
    pub output_limit: usize,
}

/// How such a command ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ran {
    /// 128 and more for signals; `None` when its time was up.
    pub code: Option<i32>,
    /// The end of what it printed, standard output and error as they came.
    pub output: String,
    pub timed_out: bool,
}

/// What the next record was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// It is in the buffer.
    Data,
    End([u8; 32]),
    Stopped(String),
}

/// Sends the content in `buffer[HEADER..]`, at least one byte and at most [`MAX_RECORD`].
///
/// # Errors
/// The stream broke, or the buffer has another size.
pub async fn write_data(io: &mut (impl AsyncWrite + Unpin), buffer: &mut [u8]) -> io::Result<()> {
    let length = buffer.len().saturating_sub(HEADER);
    match u32::try_from(length) {
        Ok(prefix) if (1..=MAX_RECORD).contains(&length) => {
            buffer[..HEADER].copy_from_slice(&prefix.to_be_bytes());
        }
        _ => return Err(io::ErrorKind::InvalidInput.into()),
    }
    io.write_all(buffer).await
}

/// Sends the end.
///
/// # Errors
/// The stream broke.
pub async fn write_end(io: &mut (impl AsyncWrite + Unpin), digest: [u8; 32]) -> io::Result<()> {
    let mut record = [0; HEADER + 32];
    record[HEADER..].copy_from_slice(&digest);
    io.write_all(&record).await?;
    io.flush().await
}

/// Sends that the content stops, and why.
///
/// # Errors
/// The stream broke.
pub async fn write_stopped(io: &mut (impl AsyncWrite + Unpin), reason: &str) -> io::Result<()> {
    let short: String = reason.chars().take(MAX_REASON / 16).collect();
    io.write_all(&STOPPED.to_be_bytes()).await?;
    wire::write_frame(io, &short, MAX_REASON).await
}

/// Reads the next record; `buffer` then has its content.
///
/// # Errors
/// `UnexpectedEof` when the stream ends before the content does, `InvalidData` for what is no
/// record.
pub async fn read_record(
    io: &mut (impl AsyncRead + Unpin),
    buffer: &mut Vec<u8>,
) -> io::Result<Record> {
    let mut prefix = [0; HEADER];
    io.read_exact(&mut prefix).await?;
    buffer.clear();
    match u32::from_be_bytes(prefix) {
        0 => {
            let mut digest = [0; 32];
            io.read_exact(&mut digest).await?;
            Ok(Record::End(digest))
        }
        STOPPED => wire::read_frame(io, MAX_REASON).await.map(Record::Stopped),
        length if length as usize <= MAX_RECORD => {
            buffer.resize(length as usize, 0);
            io.read_exact(buffer).await?;
            Ok(Record::Data)
        }
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "record too long",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_content_has_an_end_or_a_reason_or_is_cut() {
        let mut whole = Vec::new();
        write_data(&mut whole, &mut b"____abc".to_vec())
            .await
            .unwrap();
        write_end(&mut whole, [7; 32]).await.unwrap();
        let mut input = whole.as_slice();
        let mut buffer = Vec::new();
        assert_eq!(
            read_record(&mut input, &mut buffer).await.unwrap(),
            Record::Data
        );
        assert_eq!(buffer, b"abc");
        assert_eq!(
            read_record(&mut input, &mut buffer).await.unwrap(),
            Record::End([7; 32])
        );
        for cut in [0, 3, 5, 8, whole.len() - 1] {
            let mut input = &whole[..cut];
            let mut last = read_record(&mut input, &mut buffer).await;
            while let Ok(Record::Data) = last {
                last = read_record(&mut input, &mut buffer).await;
            }
            assert_eq!(last.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        }
    }

    #[tokio::test]
    async fn reasons_and_records_are_bounded() {
        let mut stopped = Vec::new();
        write_stopped(&mut stopped, &"\u{1}é".repeat(10_000))
            .await
            .unwrap();
        assert!(stopped.len() < 4 + 4 + MAX_REASON);
        let mut buffer = Vec::new();
        let record = read_record(&mut stopped.as_slice(), &mut buffer)
            .await
            .unwrap();
        assert!(matches!(record, Record::Stopped(reason) if reason.starts_with("\u{1}é\u{1}")),);
        for length in [MAX_RECORD as u32 + 1, u32::MAX - 1] {
            let error = read_record(&mut &length.to_be_bytes()[..], &mut buffer)
                .await
                .unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
        for length in [HEADER, HEADER + MAX_RECORD + 1] {
            write_data(&mut Vec::new(), &mut vec![0; length])
                .await
                .unwrap_err();
        }
    }
}
