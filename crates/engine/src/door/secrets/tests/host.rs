//! A host on the other side: TLS, and HTTP as it is on the wire.

use std::sync::{Arc, Mutex};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{ServerConfig, crypto::aws_lc_rs, pki_types::PrivateKeyDer},
    server::TlsStream,
};

/// An authority that is not the door's.
pub(super) struct TestAuthority(CertifiedIssuer<'static, KeyPair>);

impl TestAuthority {
    pub(super) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        Self(CertifiedIssuer::self_signed(params, key).unwrap())
    }

    pub(super) fn pem(&self) -> String {
        self.0.pem()
    }

    fn acceptor(&self, names: &[&str]) -> TlsAcceptor {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let params = CertificateParams::new(names).unwrap();
        let leaf = params.signed_by(&key, &self.0).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], key)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        TlsAcceptor::from(Arc::new(config))
    }
}

/// A request as it arrived.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// The request line and headers, byte for byte.
    pub(super) head: String,
    pub(super) body: String,
}

impl Seen {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (found, value) = line.split_once(": ")?;
            found.eq_ignore_ascii_case(name).then_some(value)
        })
    }
}

pub(super) struct Host {
    pub(super) port: u16,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Host {
    pub(super) async fn start(authority: &TestAuthority, names: &[&str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let (acceptor, noted) = (authority.acceptor(names), Arc::clone(&seen));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, seen) = (acceptor.clone(), Arc::clone(&noted));
                tokio::spawn(async move {
                    if let Ok(tls) = acceptor.accept(stream).await {
                        let _ = serve(BufReader::new(tls), &seen).await;
                    }
                });
            }
        });
        Self { port, seen }
    }

    pub(super) fn take_seen(&self) -> Vec<Seen> {
        std::mem::take(&mut *self.seen.lock().unwrap())
    }
}

type Stream = BufReader<TlsStream<TcpStream>>;

/// Answers requests: their paths say how.
async fn serve(mut stream: Stream, seen: &Mutex<Vec<Seen>>) -> std::io::Result<()> {
    loop {
        let Some(head) = read_head(&mut stream).await? else {
            return Ok(());
        };
        let mut request = Seen {
            head,
            body: String::new(),
        };
        let body = read_body(&mut stream, &request).await?;
        request.body = String::from_utf8_lossy(&body).into_owned();
        let path = request.head.split(' ').nth(1).unwrap_or("").to_owned();
        let echoed = request.header("authorization").unwrap_or("").to_owned();
        seen.lock().unwrap().push(request);
        let answer = match path.as_str() {
            "/break" => return Ok(()),
            "/close" => {
                "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 3\r\n\r\nbye".to_owned()
            }
            "/upgrade" => {
                let switched = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\n\
                    Upgrade: shouting\r\nX-Accept: yes\r\n\r\n";
                stream.write_all(switched.as_bytes()).await?;
                stream.flush().await?;
                return shout(stream).await;
            }
            _ => format!(
                "HTTP/1.1 200 OK\r\nX-CaSe: kept\r\nContent-Length: {}\r\n\r\n{echoed}",
                echoed.len()
            ),
        };
        stream.write_all(answer.as_bytes()).await?;
        stream.flush().await?;
        if path == "/close" {
            return stream.shutdown().await;
        }
    }
}

/// Says what it hears, in capitals.
async fn shout(mut stream: Stream) -> std::io::Result<()> {
    let mut buffer = [0; 1024];
    loop {
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            return stream.shutdown().await;
        }
        let loud = buffer[..count].to_ascii_uppercase();
        stream.write_all(&loud).await?;
        stream.flush().await?;
    }
}

async fn read_head(stream: &mut Stream) -> std::io::Result<Option<String>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read_until(b'\n', &mut head).await? == 0 {
            return Ok(None);
        }
    }
    Ok(Some(String::from_utf8_lossy(&head).into_owned()))
}

async fn read_body(stream: &mut Stream, request: &Seen) -> std::io::Result<Vec<u8>> {
    let mut body = Vec::new();
    if let Some(length) = request.header("content-length") {
        assert_eq!(request.header("transfer-encoding"), None, "{request:?}");
        body.resize(length.parse().unwrap(), 0);
        stream.read_exact(&mut body).await?;
    } else if request.header("transfer-encoding") == Some("chunked") {
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).await?;
            let length = usize::from_str_radix(line.trim(), 16).unwrap();
            let start = body.len();
            body.resize(start + length, 0);
            stream.read_exact(&mut body[start..]).await?;
            if length == 0 {
                break;
            }
            stream.read_line(&mut String::new()).await?;
        }
        // Trailers, up to an empty line.
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).await?;
            if line.trim().is_empty() {
                break;
            }
            body.extend_from_slice(format!("|{}", line.trim()).as_bytes());
        }
    }
    Ok(body)
}
