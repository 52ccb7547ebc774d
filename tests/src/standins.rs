//! Servers that speak the true protocol of services that a test cannot count on: a gem server, a Go module
//! proxy, a git host, a database. They listen on this machine's loopback, under names of the operator's.

use std::{
    collections::HashMap,
    io::Write as _,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Request, State},
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::any,
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, TcpStream, UnixStream},
    process::Command,
    time::timeout,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        self,
        pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    },
    server::TlsStream,
};

use crate::{docker::fixtures, world::variable};

/// A certificate authority, for names that are not ours.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub fn new() -> Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, "Selfsame test authority");
        Ok(Self(CertifiedIssuer::self_signed(
            params,
            KeyPair::generate()?,
        )?))
    }

    /// Writes it to a file, with what the machine's own settings add.
    pub fn bundle(&self, path: &Path) -> Result<()> {
        let mut pem = match variable("SELFSAME__NET__EXTRA_CA_FILE") {
            Some(file) => std::fs::read_to_string(file)?,
            None => String::new(),
        };
        pem.push('\n');
        pem.push_str(&self.0.pem());
        Ok(std::fs::write(path, pem)?)
    }

    pub fn acceptor(&self, names: &[&str]) -> Result<TlsAcceptor> {
        let key = KeyPair::generate()?;
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let leaf = CertificateParams::new(names)?.signed_by(&key, &self.0)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], key)?;
        Ok(TlsAcceptor::from(Arc::new(config)))
    }

    /// Serves a router under these names, over TLS. Returns the port.
    pub async fn serve(&self, names: &[&str], router: Router) -> Result<u16> {
        let listener = Tls {
            tcp: TcpListener::bind("127.0.0.1:0").await?,
            acceptor: self.acceptor(names)?,
        };
        let port = listener.tcp.local_addr()?.port();
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(port)
    }
}

struct Tls {
    tcp: TcpListener,
    acceptor: TlsAcceptor,
}

impl axum::serve::Listener for Tls {
    type Io = TlsStream<TcpStream>;
    type Addr = std::net::SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let Ok((stream, peer)) = self.tcp.accept().await else {
                continue;
            };
            let hello = self.acceptor.accept(stream);
            if let Ok(Ok(stream)) = timeout(Duration::from_secs(5), hello).await {
                return (stream, peer);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.tcp.local_addr()
    }
}

/// A gem server: the static files of a compact index, as rubygems.org has them.
pub fn gems() -> Router {
    async fn file(request: Request) -> Response {
        let path = request.uri().path().trim_start_matches('/');
        let inside = path.split('/').all(|part| !part.starts_with('.'));
        match std::fs::read(fixtures().join("gems").join(path)) {
            Ok(content) if inside => content.into_response(),
            _ => StatusCode::NOT_FOUND.into_response(),
        }
    }
    Router::new().fallback(file)
}

/// A Go module proxy with one module, whose main package says hello.
pub fn modules(module: &str) -> Result<Router> {
    let version = "v1.0.0";
    let source =
        "package main\n\nimport \"fmt\"\n\nfunc main() { fmt.Println(\"hello from a module\") }\n";
    let manifest = format!("module {module}\n\ngo 1.20\n");
    let mut archive = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, content) in [("go.mod", manifest.as_str()), ("main.go", source)] {
        let options = zip::write::SimpleFileOptions::default();
        archive.start_file(format!("{module}@{version}/{name}"), options)?;
        archive.write_all(content.as_bytes())?;
    }
    let archive = archive.finish()?.into_inner();
    let info = format!(r#"{{"Version":"{version}","Time":"2025-01-01T00:00:00Z"}}"#);
    let files: HashMap<String, Bytes> = [
        ("@latest", info.clone().into()),
        ("@v/list", Bytes::from(format!("{version}\n"))),
        ("@v/v1.0.0.info", info.into()),
        ("@v/v1.0.0.mod", manifest.clone().into()),
        ("@v/v1.0.0.zip", archive.into()),
    ]
    .into_iter()
    .map(|(name, content)| (format!("/{module}/{name}"), content))
    .collect();
    let file =
        async |State(files): State<Arc<HashMap<String, Bytes>>>, request: Request| match files
            .get(request.uri().path())
        {
            Some(content) => content.clone().into_response(),
            None => StatusCode::NOT_FOUND.into_response(),
        };
    Ok(Router::new().fallback(file).with_state(Arc::new(files)))
}

/// A Python wheel with one module, named `hello_wheel`.
pub fn wheel() -> Result<Vec<u8>> {
    let info = "hello_wheel-1.0.dist-info";
    let mut archive = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, content) in [
        ("hello_wheel.py".to_owned(), "print('hello from a wheel')\n"),
        (
            format!("{info}/METADATA"),
            "Metadata-Version: 2.1\nName: hello-wheel\nVersion: 1.0\n",
        ),
        (
            format!("{info}/WHEEL"),
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        ),
        (
            format!("{info}/RECORD"),
            "hello_wheel.py,,\nhello_wheel-1.0.dist-info/METADATA,,\n\
             hello_wheel-1.0.dist-info/WHEEL,,\nhello_wheel-1.0.dist-info/RECORD,,\n",
        ),
    ] {
        archive.start_file(name, zip::write::SimpleFileOptions::default())?;
        archive.write_all(content.as_bytes())?;
    }
    Ok(archive.finish()?.into_inner())
}

/// A git host over HTTP: git's own program for it. Everybody may push.
pub fn repositories(root: &Path) -> Router {
    Router::new()
        .fallback(any(git))
        .with_state(Arc::new(root.to_owned()))
}

async fn git(State(root): State<Arc<PathBuf>>, request: Request) -> Response {
    match backend(&root, request).await {
        Ok(response) => response,
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}")).into_response(),
    }
}

/// One request as the Common Gateway Interface wants it.
async fn backend(root: &Path, request: Request) -> Result<Response> {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 64 << 20).await?;
    let field = |name: header::HeaderName| {
        let value = parts.headers.get(name).and_then(|v| v.to_str().ok());
        value.unwrap_or_default().to_owned()
    };
    let protocol = header::HeaderName::from_static("git-protocol");
    let mut child = Command::new("git")
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("REMOTE_USER", "anybody")
        .env("REQUEST_METHOD", parts.method.as_str())
        .env("PATH_INFO", parts.uri.path())
        .env("QUERY_STRING", parts.uri.query().unwrap_or_default())
        .env("CONTENT_TYPE", field(header::CONTENT_TYPE))
        .env("CONTENT_LENGTH", body.len().to_string())
        .env("HTTP_CONTENT_ENCODING", field(header::CONTENT_ENCODING))
        .env("GIT_PROTOCOL", field(protocol))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("git http-backend")?;
    let mut input = child.stdin.take().context("stdin")?;
    let feed = tokio::spawn(async move { input.write_all(&body).await });
    let output = child.wait_with_output().await?;
    let _ = feed.await;
    let head = output
        .stdout
        .windows(4)
        .position(|window| window == b"\r\n\r\n");
    let head = head.context("no header from git http-backend")?;
    let mut response = Response::builder();
    for line in String::from_utf8_lossy(&output.stdout[..head]).lines() {
        let (name, value) = line.split_once(':').context("a header")?;
        response = match name {
            "Status" => {
                let code = value.split_whitespace().next().unwrap_or("500");
                response.status(code.parse::<u16>()?)
            }
            _ => response.header(name, value.trim()),
        };
    }
    Ok(response.body(Body::from(output.stdout[head + 4..].to_vec()))?)
}

/// The tests' own Postgres by TCP: its port, and the name of its user.
pub async fn postgres() -> Result<(u16, String)> {
    let url = variable("DATABASE_URL").context("DATABASE_URL")?;
    let rest = url.split_once("://").context("a URL")?.1;
    let (user, rest) = rest.split_once('@').context("a user")?;
    let user = user.split(':').next().unwrap_or(user).to_owned();
    let option = |name: &str| {
        let options = rest.split_once('?')?.1;
        let found = options
            .split('&')
            .find_map(|o| o.strip_prefix(name)?.strip_prefix('='))?;
        Some(found.replace("%2F", "/"))
    };
    let socket = option("host").filter(|host| host.starts_with('/'));
    let port = option("port").unwrap_or_else(|| "5432".to_owned());
    let target = match socket {
        Some(directory) => format!("{directory}/.s.PGSQL.{port}"),
        None => {
            let host = rest.split(['/', '?']).next().unwrap_or_default();
            let host = option("host").unwrap_or_else(|| host.to_owned());
            if host.contains(':') {
                host
            } else {
                format!("{host}:{port}")
            }
        }
    };
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let own = listener.local_addr()?.port();
    ensure!(!target.is_empty());
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let target = target.clone();
            tokio::spawn(async move {
                if target.starts_with('/') {
                    let mut server = UnixStream::connect(target).await?;
                    tokio::io::copy_bidirectional(&mut client, &mut server).await
                } else {
                    let mut server = TcpStream::connect(target).await?;
                    tokio::io::copy_bidirectional(&mut client, &mut server).await
                }
            });
        }
    });
    Ok((own, user))
}

/// What `net.hosts` says of names that lead to this machine.
pub fn hosts(names: &[(&str, Option<u16>)]) -> String {
    let entry = |(name, port): &(&str, Option<u16>)| {
        let port = port.map_or(String::new(), |port| format!(":{port}"));
        format!(r#"{{ name = "{name}", address = "127.0.0.1{port}" }}"#)
    };
    let entries: Vec<String> = names.iter().map(entry).collect();
    format!("[{}]", entries.join(", "))
}

/// What `net.allowed_ranges` says: the machine's own setting, and its loopback.
pub fn ranges() -> Result<String> {
    let own = variable("SELFSAME__NET__ALLOWED_RANGES").unwrap_or_else(|| "[]".to_owned());
    let own = own
        .trim()
        .strip_suffix(']')
        .context("a list")?
        .trim_end()
        .trim_end_matches(',');
    let comma = if own.trim_start() == "[" { "" } else { ", " };
    Ok(format!("{own}{comma}\"127.0.0.1/32\"]"))
}
