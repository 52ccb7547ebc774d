//! What remains where there can be no redirect: fake addresses of 127.64.0.0/10, which are loopback
//! by themselves, listeners on the usual ports, and a proxy for programs that use one.
//!
//! The listeners take these ports from programs inside, and other ports and literal addresses are
//! reached through the proxy alone.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream as StdTcpStream},
    sync::Arc,
    time::Duration,
};

use selfsame_hands::carry::{self, Open};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

use super::carrying::{Carrier, Destination};

pub(super) const FIRST: Ipv4Addr = Ipv4Addr::new(127, 64, 0, 1);
pub(super) const LAST: Ipv4Addr = Ipv4Addr::new(127, 127, 255, 255);
/// Web, git over ssh, and git's own proxy at the door.
pub(super) const LISTENED: [u16; 4] = [80, 443, 22, 3128];

/// Longest head of a request to the proxy, and the time for it to arrive.
const MAX_HEAD: usize = 32 << 10;
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// Where a connection to one of the listeners was to go: to the address that it came to.
pub(super) fn wanted(stream: &TcpStream) -> io::Result<SocketAddrV4> {
    match stream.local_addr()? {
        SocketAddr::V4(address) => Ok(address),
        SocketAddr::V6(_) => Err(io::ErrorKind::Unsupported.into()),
    }
}

/// Whether fake addresses really are loopback here.
pub(super) fn check() -> io::Result<()> {
    let address = SocketAddrV4::new(FIRST, LISTENED[0]);
    StdTcpStream::connect_timeout(&SocketAddr::V4(address), Duration::from_secs(2)).map(drop)
}

/// The environment that tells programs of the proxy at `port`; what is inside is left out.
pub(super) fn environment(port: u16, own: &str) -> Vec<(&'static str, String)> {
    let proxy = format!("http://127.0.0.1:{port}");
    let without = format!("localhost,127.0.0.1,::1,{own}");
    let proxies = ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"];
    proxies
        .into_iter()
        .map(|name| (name, proxy.clone()))
        .chain(["no_proxy", "NO_PROXY"].map(|name| (name, without.clone())))
        .chain([("NODE_USE_ENV_PROXY", "1".to_owned())])
        .collect()
}

/// Takes requests to the proxy, for ever.
pub(super) async fn proxy(carrier: Arc<Carrier>, listener: TcpListener) {
    loop {
        let Ok((mut stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let Some(seat) = carrier.seat() else {
            continue;
        };
        let carrier = Arc::clone(&carrier);
        tokio::spawn(async move {
            match timeout(HEAD_TIMEOUT, request(&mut stream)).await {
                Ok(Ok(destination)) => carrier.carry(stream, destination, seat).await,
                Ok(Err(refusal)) => refuse(&mut stream, refusal).await,
                Err(_) => {}
            }
        });
    }
}

/// Says no in words that a client shows.
pub(super) async fn refuse(stream: &mut TcpStream, (status, message): (&str, &str)) {
    let answer = format!(
        "HTTP/1.1 {status}\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n{message}\n",
        message.len() + 1
    );
    let _ = stream.write_all(answer.as_bytes()).await;
    let _ = stream.shutdown().await;
}

type Refusal = (&'static str, &'static str);

const BAD_REQUEST: Refusal = ("400 Bad Request", "this is not a request to a proxy");

/// Reads the head of a request.
async fn request(stream: &mut TcpStream) -> Result<Destination, Refusal> {
    let mut read = Vec::new();
    loop {
        if let Some(end) = read.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            let rest = read.split_off(end + 4);
            return parse(&read, &rest);
        }
        if read.len() >= MAX_HEAD {
            return Err((
                "431 Request Header Fields Too Large",
                "the head of the request is too long",
            ));
        }
        match stream.read_buf(&mut read).await {
            Ok(1..) => {}
            _ => return Err(BAD_REQUEST),
        }
    }
}

fn parse(head: &[u8], rest: &[u8]) -> Result<Destination, Refusal> {
    let head = std::str::from_utf8(head).map_err(|_| BAD_REQUEST)?;
    let (line, fields) = head.split_once("\r\n").ok_or(BAD_REQUEST)?;
    let mut words = line.split(' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(BAD_REQUEST);
    };
    if method == "CONNECT" {
        return Ok(Destination::through_proxy(
            open(target, None)?,
            rest.to_vec(),
            b"HTTP/1.1 200 Connection established\r\n\r\n",
        ));
    }
    let absolute = target
        .get(..7)
        .filter(|scheme| scheme.eq_ignore_ascii_case("http://"))
        .map(|scheme| &target[scheme.len()..])
        .ok_or(BAD_REQUEST)?;
    let (authority, path) = match absolute.find(['/', '?']) {
        Some(at) => absolute.split_at(at),
        None => (absolute, ""),
    };
    let slash = if path.starts_with('/') { "" } else { "/" };
    // One request for each connection: the next one may be for another host.
    let mut request = format!("{method} {slash}{path} {version}\r\nConnection: close\r\n");
    for field in fields.trim_end_matches("\r\n").split("\r\n") {
        let name = field.split(':').next().unwrap_or_default();
        let hop = [
            "connection",
            "keep-alive",
            "proxy-connection",
            "proxy-authorization",
        ];
        if !hop.iter().any(|hop| name.eq_ignore_ascii_case(hop)) && !field.is_empty() {
            request.push_str(field);
            request.push_str("\r\n");
        }
    }
    request.push_str("\r\n");
    let mut begin = request.into_bytes();
    begin.extend_from_slice(rest);
    Ok(Destination::through_proxy(
        open(authority, Some(80))?,
        begin,
        b"",
    ))
}

/// `host:port`, as a place in the world.
fn open(authority: &str, default: Option<u16>) -> Result<Open, Refusal> {
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) => (host, port.parse().ok()),
        None => (authority, default),
    };
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    let port = port.filter(|port| *port != 0).ok_or(BAD_REQUEST)?;
    let inside = host == "localhost"
        || host.ends_with(".localhost")
        || host
            .parse()
            .is_ok_and(|address: Ipv4Addr| address.is_loopback() || address.is_unspecified());
    if inside {
        return Err((
            "403 Forbidden",
            "what is inside the sandbox is reached without a proxy",
        ));
    }
    if !carry::is_host_name(&host) && host.parse::<Ipv4Addr>().is_err() {
        return Err(BAD_REQUEST);
    }
    Ok(Open { host, port })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(head: &str) -> Result<(String, u16, String), &'static str> {
        let destination = parse(head.as_bytes(), b"rest").map_err(|(status, _)| status)?;
        let (open, begin) = (destination.open, destination.begin);
        Ok((open.host, open.port, String::from_utf8(begin).unwrap()))
    }

    #[test]
    fn requests_to_a_proxy() {
        assert_eq!(
            parsed("CONNECT Example.com:443 HTTP/1.1\r\nHost: other\r\n\r\n"),
            Ok(("example.com".into(), 443, "rest".into()))
        );
        assert_eq!(
            parsed(
                "GET http://Example.com./a?b HTTP/1.1\r\nHost: example.com\r\n\
                 Proxy-Connection: keep-alive\r\nconnection: x\r\nA: b\r\n\r\n"
            ),
            Ok((
                "example.com".into(),
                80,
                "GET /a?b HTTP/1.1\r\nConnection: close\r\nHost: example.com\r\nA: b\r\n\r\nrest"
                    .into()
            ))
        );
        let bare = parsed("GET HTTP://10.0.0.1:81?x HTTP/1.0\r\n\r\n").unwrap();
        assert_eq!(
            bare,
            (
                "10.0.0.1".into(),
                81,
                "GET /?x HTTP/1.0\r\nConnection: close\r\n\r\nrest".into()
            )
        );
    }

    #[test]
    fn what_is_not_one_and_what_is_inside_is_refused() {
        for bad in [
            "GET / HTTP/1.1\r\n\r\n",
            "GET https://a.example/ HTTP/1.1\r\n\r\n",
            "CONNECT a.example HTTP/1.1\r\n\r\n",
            "CONNECT a.example:0 HTTP/1.1\r\n\r\n",
            "CONNECT a.example:99999 HTTP/1.1\r\n\r\n",
            "CONNECT user@a.example:80 HTTP/1.1\r\n\r\n",
            "CONNECT [::1]:80 HTTP/1.1\r\n\r\n",
            "GET http://user:word@a.example/ HTTP/1.1\r\n\r\n",
            "GET http:///x HTTP/1.1\r\n\r\n",
            "GET  http://a.example/ HTTP/1.1\r\n\r\n",
            "\u{16}\u{3}\u{1}\r\n\r\n",
            "\r\n\r\n",
        ] {
            assert_eq!(parsed(bad), Err(BAD_REQUEST.0), "{bad:?}");
        }
        for inside in [
            "localhost",
            "a.localhost",
            "127.0.0.1",
            "127.64.0.1",
            "0.0.0.0",
        ] {
            let head = format!("CONNECT {inside}:80 HTTP/1.1\r\n\r\n");
            assert_eq!(parsed(&head), Err("403 Forbidden"), "{inside}");
        }
    }
}
