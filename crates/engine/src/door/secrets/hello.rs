//! The first words of a connection to a host that secrets may go to: is it TLS, and for HTTP?

use std::{io, time::Duration};

use selfsame_net::hosts::normal;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::rustls::server::Acceptor;

use crate::door::meter::Measured;

/// Longest ClientHello.
const MAX_HELLO: usize = 64 << 10;
/// For a ClientHello that has begun.
const PATIENCE: Duration = Duration::from_secs(20);
const HANDSHAKE: u8 = 0x16;
const HTTP: &[u8] = b"http/1.1";

/// Whether a connection to `host` is TLS that asks for `host` and may speak HTTP/1.1. What has been read
/// is unread, so the connection is as it was.
///
/// Nothing waits for a program that does not speak first. One that asks for another name, or that offers
/// by ALPN only what is not HTTP/1.1, gets no secret and is none of our business.
pub(super) async fn wants_http<S>(
    carried: &mut Measured<S>,
    tcp: &TcpStream,
    host: &str,
) -> io::Result<bool>
where
    S: AsyncRead + Unpin,
{
    let mut buffer = vec![0; 4 << 10];
    let count = tokio::select! {
        biased;
        count = carried.read(&mut buffer) => count?,
        // The server speaks first, or is gone.
        ready = tcp.readable() => return ready.map(|()| false),
    };
    let mut said = buffer[..count].to_vec();
    let reading = async {
        let mut acceptor = Acceptor::default();
        let mut fresh = count;
        loop {
            if said.first() != Some(&HANDSHAKE) || said.len() > MAX_HELLO {
                return Ok(false);
            }
            let mut unseen = &said[said.len() - fresh..];
            while !unseen.is_empty() {
                if acceptor.read_tls(&mut unseen).is_err() {
                    return Ok(false);
                }
            }
            match acceptor.accept() {
                Ok(Some(accepted)) => return Ok(asks_for(&accepted.client_hello(), host)),
                Ok(None) => {}
                Err(_) => return Ok(false),
            }
            fresh = carried.read(&mut buffer).await?;
            if fresh == 0 {
                return Ok(false);
            }
            said.extend_from_slice(&buffer[..fresh]);
        }
    };
    let verdict = timeout(PATIENCE, reading)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    carried.unread(said);
    verdict
}

fn asks_for(hello: &tokio_rustls::rustls::server::ClientHello<'_>, host: &str) -> bool {
    let is_host = hello.server_name().is_none_or(|name| normal(name) == host);
    let speaks = hello
        .alpn()
        .is_none_or(|mut offered| offered.any(|protocol| protocol == HTTP));
    is_host && speaks
}
