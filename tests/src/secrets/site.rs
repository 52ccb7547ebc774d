//! A site that notes what it is asked, as it was on the wire, over TLS and in clear.

use std::sync::{Arc, Mutex};

use anyhow::{Context as _, Result};
use tokio::{
    io::{
        AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _,
        BufReader,
    },
    net::TcpListener,
};

use crate::standins::Authority;

/// A request as it arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Which host TLS was asked for.
    pub name: Option<String>,
    pub target: String,
    head: String,
    pub body: String,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    }
}

pub struct Site {
    pub port: u16,
    pub plain_port: u16,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Site {
    pub async fn start(authority: &Authority, names: &[&str]) -> Result<Self> {
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let (acceptor, noted) = (authority.acceptor(names)?, Arc::clone(&seen));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, seen) = (acceptor.clone(), Arc::clone(&noted));
                tokio::spawn(async move {
                    let tls = acceptor.accept(stream).await?;
                    let name = tls.get_ref().1.server_name().map(str::to_owned);
                    serve(BufReader::new(tls), name, &seen).await
                });
            }
        });
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let plain_port = listener.local_addr()?.port();
        let noted = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let seen = Arc::clone(&noted);
                tokio::spawn(async move { serve(BufReader::new(stream), None, &seen).await });
            }
        });
        Ok(Self {
            port,
            plain_port,
            seen,
        })
    }

    pub fn take_seen(&self) -> Vec<Seen> {
        std::mem::take(&mut *self.seen.lock().expect("nobody panics"))
    }
}

async fn serve<S>(
    mut stream: BufReader<S>,
    name: Option<String>,
    seen: &Mutex<Vec<Seen>>,
) -> Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            if stream.read_until(b'\n', &mut head).await? == 0 {
                return Ok(());
            }
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        let mut request = Seen {
            name: name.clone(),
            target: head.split(' ').nth(1).context("a target")?.to_owned(),
            head,
            body: String::new(),
        };
        if request.header("expect").is_some() {
            stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
            stream.flush().await?;
        }
        request.body = body(&mut stream, &request).await?;
        let knows = request.header("authorization").is_some();
        let closes = request.header("connection") == Some("close");
        let target = request.target.clone();
        seen.lock().expect("nobody panics").push(request);
        let answer = match target.as_str() {
            "/upgrade" => {
                "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: shouting\r\n\r\n"
            }
            // git shows no credentials before it is asked for them.
            git if git.starts_with("/o/r") && !knows => {
                "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"git\"\r\nContent-Length: 0\r\n\r\n"
            }
            _ => "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        };
        stream.write_all(answer.as_bytes()).await?;
        stream.flush().await?;
        if target == "/upgrade" {
            let mut said = Vec::new();
            while !said.ends_with(b".") {
                if stream.read_buf(&mut said).await? == 0 {
                    break;
                }
            }
            stream.write_all(&said.to_ascii_uppercase()).await?;
        }
        if closes || target == "/upgrade" {
            stream.shutdown().await?;
            return Ok(());
        }
    }
}

async fn body<S: AsyncRead + Unpin>(stream: &mut BufReader<S>, request: &Seen) -> Result<String> {
    let mut body = Vec::new();
    if let Some(length) = request.header("content-length") {
        body.resize(length.parse()?, 0);
        stream.read_exact(&mut body).await?;
    } else if request.header("transfer-encoding").is_some() {
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).await?;
            let length = usize::from_str_radix(line.trim(), 16)?;
            let start = body.len();
            body.resize(start + length, 0);
            stream.read_exact(&mut body[start..]).await?;
            stream.read_line(&mut String::new()).await?;
            if length == 0 {
                break;
            }
        }
    }
    Ok(String::from_utf8_lossy(&body).into_owned())
}
