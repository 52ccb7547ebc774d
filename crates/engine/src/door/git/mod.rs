//! The name inside that git reaches the hosts of repositories by, and that adds their tokens.
//!
//! `/etc/gitconfig` inside says, for each such host, that git's proxy is [`GIT_PROXY`](super::GIT_PROXY)
//! and whose certificates it believes there. So URLs stay what they are, `origin` too, and no other
//! program sees the door's certificates. git sends `CONNECT <host>:443`; the door answers TLS as that
//! host, looks at each request ([`forward`]), adds the token where the path is one of the session's
//! repositories ([`path`]), and passes it on. The token is never inside.
//!
//! A CONNECT to anywhere else is an ordinary connection under the session's ordinary policy.

mod forward;
mod path;
#[cfg(test)]
mod tests;

use std::{collections::HashMap, sync::Arc, time::Duration};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use selfsame_hands::carry::is_host_name;
use selfsame_net::{Chosen, Policy, hosts::normal, relay_client, reqwest::Client};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, rustls::ServerConfig};
use url::Url;

use super::{
    Access, Authority, Closed, DoorError, RepositoryHost, Session,
    meter::{Ended, Measured},
};

const SERVICE: &str = "git.selfsame.internal";
const SERVICE_PORT: u16 = 3128;
/// Longest head of a CONNECT request.
const MAX_HEAD: usize = 8 << 10;
/// Most bytes of a request's head inside TLS.
const MAX_BUFFER: usize = 64 << 10;
/// For the head, and for the TLS handshake.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two requests.
const KEEP_ALIVE: Duration = Duration::from_secs(60);

/// Whether programs inside mean this service.
pub(super) fn is_service(host: &str, port: u16) -> bool {
    host == SERVICE && port == SERVICE_PORT
}

/// What the service needs for the hosts it stands in for.
#[derive(Debug)]
pub(super) struct Git {
    hosts: HashMap<String, Arc<Host>>,
}

/// One host of repositories.
#[derive(Debug)]
struct Host {
    name: String,
    /// Without a slash at its end.
    upstream: String,
    /// The operator says where it is: then it may be a private address, and nothing but the session's
    /// repositories may be reached through it.
    is_private: bool,
    client: Client,
    tls: Arc<ServerConfig>,
}

impl Git {
    pub(super) fn new(
        policy: &Policy,
        hosts: &[RepositoryHost],
        authority: &Authority,
    ) -> Result<Self, DoorError> {
        let mut served = HashMap::new();
        for RepositoryHost { name, upstream } in hosts {
            let name = normal(name);
            let chosen = match upstream {
                Some(_) => Chosen::ByOperator,
                None => Chosen::ByUsers,
            };
            let host = Host {
                upstream: upstream.as_ref().map_or_else(
                    || format!("https://{name}"),
                    |url: &Url| url.as_str().trim_end_matches('/').to_owned(),
                ),
                is_private: upstream.is_some(),
                client: relay_client(policy, chosen)?,
                tls: Arc::new(authority.serve_as(&name)?),
                name: name.clone(),
            };
            served.insert(name, Arc::new(host));
        }
        Ok(Self { hosts: served })
    }
}

/// Serves one connection of git's to its proxy.
pub(super) async fn serve<S>(session: &Arc<Session>, access: &Arc<Access>, mut stream: Measured<S>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let asked = match timeout(PATIENCE, read_connect(&mut stream)).await {
        Ok(Some(asked)) => asked,
        _ => return session.meter.ended(Ended::Reset),
    };
    let (host, port) = match asked {
        Ok(target) => target,
        Err(complaint) => {
            session.meter.ended(Ended::Failed);
            return answer(stream, complaint, "This is the proxy of git alone").await;
        }
    };
    let stand_in = session.door.0.git.hosts.get(&host).filter(|_| port == 443);
    if let Some(host) = stand_in {
        let end = match establish(&mut stream).await {
            Ok(()) => stand_in_for(session, host, stream).await,
            Err(_) => Ended::Reset,
        };
        return session.meter.ended(end);
    }
    match session.open(access, &host, port).await {
        Ok(tcp) => {
            if establish(&mut stream).await.is_ok() {
                session.join(access, &host, port, stream, tcp).await;
            }
        }
        Err(Closed::Refused(reason)) => answer(stream, "403 Forbidden", &reason).await,
        Err(Closed::Failed(reason)) => answer(stream, "502 Bad Gateway", &reason).await,
    }
}

async fn establish<S: AsyncWrite + Unpin>(stream: &mut S) -> std::io::Result<()> {
    stream
        .write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")
        .await?;
    stream.flush().await
}

type Target = (String, u16);

/// Reads the head of a CONNECT request: where to, or the status to answer with. `None` when the
/// connection ends before.
async fn read_connect<S: AsyncRead + Unpin>(
    stream: &mut S,
) -> Option<Result<Target, &'static str>> {
    let mut head = Vec::new();
    let mut buffer = [0; 1024];
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() > MAX_HEAD {
            return Some(Err("431 Request Header Fields Too Large"));
        }
        match stream.read(&mut buffer).await {
            Ok(count) if count > 0 => head.extend_from_slice(&buffer[..count]),
            _ => return None,
        }
    }
    Some(parse_connect(&head))
}

fn parse_connect(head: &[u8]) -> Result<Target, &'static str> {
    const BAD: &str = "400 Bad Request";
    let head = std::str::from_utf8(head).map_err(|_| BAD)?;
    let line = head.split("\r\n").next().unwrap_or_default();
    let mut words = line.split(' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(BAD);
    };
    if !version.starts_with("HTTP/1.") {
        return Err(BAD);
    }
    // Something that was sent along before the answer would be lost.
    if head.matches("\r\n\r\n").count() != 1 {
        return Err(BAD);
    }
    if method != "CONNECT" {
        return Err("405 Method Not Allowed");
    }
    let (host, port) = target.rsplit_once(':').ok_or(BAD)?;
    let port: u16 = port.parse().map_err(|_| BAD)?;
    let host = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        Some(v6) => v6
            .parse::<std::net::Ipv6Addr>()
            .map_err(|_| BAD)?
            .to_string(),
        None => normal(host),
    };
    let is_host = is_host_name(&host) || host.parse::<std::net::IpAddr>().is_ok();
    if !is_host || port == 0 {
        return Err(BAD);
    }
    Ok((host, port))
}

async fn answer<S: AsyncWrite + AsyncRead + Unpin>(mut stream: S, status: &str, reason: &str) {
    let response = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{reason}.\n",
        reason.len() + 2
    );
    let exchange = async {
        stream.write_all(response.as_bytes()).await?;
        stream.shutdown().await?;
        let mut rest = (&mut stream).take(1 << 20);
        tokio::io::copy(&mut rest, &mut tokio::io::sink()).await
    };
    let _ = timeout(PATIENCE, exchange).await;
}

/// Speaks TLS and HTTP as `host`.
async fn stand_in_for<S>(session: &Arc<Session>, host: &Arc<Host>, stream: S) -> Ended
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let handshake = TlsAcceptor::from(Arc::clone(&host.tls)).accept(stream);
    let Ok(Ok(mut tls)) = timeout(PATIENCE, handshake).await else {
        return Ended::Reset;
    };
    let named = tls.get_ref().1.server_name();
    if named.is_some_and(|name| normal(name) != host.name) {
        return Ended::Failed;
    }
    let service = service_fn(|request| {
        let (session, host) = (Arc::clone(session), Arc::clone(host));
        async move {
            Ok::<_, std::convert::Infallible>(forward::forward(&session, &host, request).await)
        }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(KEEP_ALIVE)
        .max_buf_size(MAX_BUFFER)
        .serve_connection(TokioIo::new(&mut tls), service)
        .await;
    if served.is_err() {
        return Ended::Reset;
    }
    // What is dropped before the other side has ended is reset, and a reset may overtake an answer.
    let mut nowhere = tokio::io::sink();
    match timeout(PATIENCE, tokio::io::copy(&mut tls, &mut nowhere)).await {
        Ok(Ok(_)) => Ended::Well,
        _ => Ended::Reset,
    }
}
