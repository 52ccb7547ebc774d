//! The cheapest SSE client there is: a socket whose every read has a time.
//!
//! A thousand of these share two cores with the server they measure, so nothing is parsed that is not asked for.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Duration, Instant, timeout},
};

/// No wait is meant to last.
const DEADLINE: Duration = Duration::from_secs(30);

pub struct Tap {
    socket: TcpStream,
    /// As read, chunk sizes included.
    raw: Vec<u8>,
    /// Taken out of the chunks.
    text: Vec<u8>,
    /// When the last bytes came.
    at: Instant,
    chunked: bool,
}

/// One event.
pub struct Seen {
    pub at: Instant,
    block: Vec<u8>,
}

impl Seen {
    pub fn is(&self, name: &str) -> bool {
        self.line("event:") == Some(name)
    }

    pub fn data(&self) -> Result<Value> {
        Ok(serde_json::from_str(self.line("data:").context("data")?)?)
    }

    fn line(&self, field: &str) -> Option<&str> {
        let text = std::str::from_utf8(&self.block).ok()?;
        let rest = text.lines().find_map(|line| line.strip_prefix(field))?;
        Some(rest.trim_start())
    }
}

impl Tap {
    /// Asks for `path` and returns when the head of the answer is here.
    pub async fn open(address: &str, path: &str, headers: &[(&str, &str)]) -> Result<Self> {
        let mut socket = TcpStream::connect(address).await?;
        socket.set_nodelay(true)?;
        let mut head = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\n");
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        socket.write_all(head.as_bytes()).await?;
        let mut tap = Self {
            socket,
            raw: Vec::new(),
            text: Vec::new(),
            at: Instant::now(),
            chunked: false,
        };
        let end = loop {
            if let Some(end) = find(&tap.raw, b"\r\n\r\n") {
                break end;
            }
            tap.read().await?;
        };
        let head = String::from_utf8_lossy(&tap.raw[..end]).to_lowercase();
        ensure!(head.starts_with("http/1.1 200"), "{path}: {head}");
        tap.chunked = head.contains("transfer-encoding: chunked");
        tap.raw.drain(..end + 4);
        tap.unpack()?;
        Ok(tap)
    }

    /// The next event; comments are skipped.
    pub async fn next(&mut self) -> Result<Seen> {
        loop {
            if let Some(end) = find(&self.text, b"\n\n") {
                let block: Vec<u8> = self.text.drain(..end + 2).collect();
                if !block.starts_with(b":") {
                    return Ok(Seen { at: self.at, block });
                }
                continue;
            }
            timeout(DEADLINE, self.read())
                .await
                .context("nothing more came")??;
            self.unpack()?;
        }
    }

    /// The next event of this name.
    pub async fn until(&mut self, name: &str) -> Result<Seen> {
        loop {
            let seen = self.next().await?;
            if seen.is(name) {
                return Ok(seen);
            }
        }
    }

    async fn read(&mut self) -> Result<()> {
        let mut buffer = [0; 16 * 1024];
        let count = self.socket.read(&mut buffer).await?;
        self.at = Instant::now();
        ensure!(count > 0, "the stream ended");
        self.raw.extend_from_slice(&buffer[..count]);
        Ok(())
    }

    fn unpack(&mut self) -> Result<()> {
        if !self.chunked {
            self.text.append(&mut self.raw);
            return Ok(());
        }
        while let Some(line) = find(&self.raw, b"\r\n") {
            let size = std::str::from_utf8(&self.raw[..line])?;
            let size = usize::from_str_radix(size.trim(), 16).context("a chunk's size")?;
            ensure!(size > 0, "the stream ended");
            let begin = line + 2;
            if self.raw.len() < begin + size + 2 {
                break;
            }
            self.text.extend_from_slice(&self.raw[begin..begin + size]);
            self.raw.drain(..begin + size + 2);
        }
        Ok(())
    }
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes
        .windows(wanted.len())
        .position(|window| window == wanted)
}
