//! Real git against a real git server, through the door.

mod upstream;

use std::{
    path::{Path, PathBuf},
    process::{Output, Stdio},
};

use http_body_util::BodyExt as _;
use hyper::{Request, header::LOCATION};
use secrecy::SecretString;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    process::Command,
};

use self::upstream::Upstream;
use super::*;
use crate::door::{
    Network, OWN_DOMAIN, Repository,
    tests::{Answer, Inside, access, config, host, limited, loopback_open, made},
};

/// A sandbox with git in it, and repositories `o/r` and `o/other` at `git.example`.
struct World {
    directory: tempfile::TempDir,
    upstream: Arc<Upstream>,
    upstream_port: u16,
    inside: Arc<Inside>,
    proxy: u16,
}

fn repository(token: Option<&str>) -> Repository {
    Repository {
        host: "git.example".to_owned(),
        owner: "o".to_owned(),
        name: "r".to_owned(),
        token: token.map(SecretString::from),
    }
}

fn with_repository(network: Network, token: Option<&str>) -> Access {
    Access {
        repositories: vec![repository(token)],
        ..access(network)
    }
}

impl World {
    async fn new(network: Network) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        for name in ["o/r.git", "o/other.git"] {
            let path = root.join(name);
            std::fs::create_dir_all(&path).unwrap();
            run(&["init", "-q", "--bare", "-b", "main"], &path, &[]).await;
        }
        let (upstream, upstream_port) = Upstream::start(&root).await;
        let policy = loopback_open().with_hosts(vec![
            host("git.example", "127.0.0.1", Some(upstream_port)),
            host("plain.example", "127.0.0.1", None),
        ]);
        let door = made(crate::door::DoorConfig {
            repository_hosts: vec![RepositoryHost {
                name: "git.example".to_owned(),
                upstream: Some(
                    format!("http://127.0.0.1:{upstream_port}/")
                        .parse()
                        .unwrap(),
                ),
            }],
            ..config(policy)
        });
        let access = with_repository(network, Some("first"));
        let inside = Arc::new(Inside::new(&door, Some(access)));
        std::fs::write(directory.path().join("ca.pem"), door.certificate()).unwrap();
        let proxy = listen(Arc::clone(&inside)).await;
        Self {
            directory,
            upstream,
            upstream_port,
            inside,
            proxy,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// git as it is set up in a sandbox.
    async fn git(&self, arguments: &[&str], at: &str) -> Output {
        let proxy = format!(
            "http.https://git.example/.proxy=http://127.0.0.1:{}",
            self.proxy
        );
        let ca = self.path("ca.pem").display().to_string();
        let ca = format!("http.https://git.example/.sslCAInfo={ca}");
        let mut all = vec!["-c", &proxy, "-c", &ca];
        all.extend(arguments);
        git(&all, &self.path(at), &[]).await
    }

    async fn must_git(&self, arguments: &[&str], at: &str) -> String {
        let output = self.git(arguments, at).await;
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// A client of the proxy's, inside TLS that the door answers.
    async fn client(&self, host: &str) -> hyper::client::conn::http1::SendRequest<String> {
        let stream = self.tunnel(host).await;
        let tls = tls(self.directory.path(), host, stream).await.unwrap();
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(tls));
        let (client, connection) = handshake.await.unwrap();
        tokio::spawn(connection);
        client
    }

    async fn tunnel(&self, host: &str) -> TcpStream {
        let (stream, status) = self
            .connect(&format!("CONNECT {host}:443 HTTP/1.1\r\n\r\n"))
            .await;
        assert!(status.starts_with("HTTP/1.1 200 "), "{status}");
        stream
    }

    /// Sends a head to the proxy and returns the head of its answer, and what follows.
    async fn connect(&self, head: &str) -> (TcpStream, String) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.proxy)).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            match stream.read_u8().await {
                Ok(byte) => answer.push(byte),
                Err(_) => break,
            }
        }
        (stream, String::from_utf8(answer).unwrap())
    }
}

async fn tls(
    directory: &Path,
    host: &str,
    stream: TcpStream,
) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    use tokio_rustls::rustls::{
        ClientConfig, RootCertStore,
        pki_types::{CertificateDer, ServerName, pem::PemObject as _},
    };
    let ca = CertificateDer::from_pem_file(directory.join("ca.pem")).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(ca).unwrap();
    let provider = tokio_rustls::rustls::crypto::aws_lc_rs::default_provider();
    let config = ClientConfig::builder_with_provider(provider.into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(host.to_owned()).unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    connector.connect(name, stream).await
}

/// A port that leads to the git service, as its name does inside.
async fn listen(inside: Arc<Inside>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let inside = Arc::clone(&inside);
            tokio::spawn(async move {
                let name = format!("git.{OWN_DOMAIN}");
                let Answer::Accepted(mut carried) = inside.connect(&name, SERVICE_PORT).await
                else {
                    return;
                };
                let _ = copy_bidirectional(&mut stream, &mut carried).await;
            });
        }
    });
    port
}

async fn git(arguments: &[&str], at: &Path, variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new("git");
    command
        .args(arguments)
        .current_dir(at)
        .env_remove("GIT_SSL_CAINFO")
        .env_remove("no_proxy")
        .env_remove("NO_PROXY")
        .envs([
            ("HOME", at.display().to_string().as_str()),
            ("GIT_CONFIG_NOSYSTEM", "1"),
            ("GIT_TERMINAL_PROMPT", "0"),
            ("GIT_AUTHOR_NAME", "a"),
            ("GIT_AUTHOR_EMAIL", "a@a.example"),
            ("GIT_COMMITTER_NAME", "a"),
            ("GIT_COMMITTER_EMAIL", "a@a.example"),
        ])
        .envs(variables.iter().copied())
        .stdin(Stdio::null());
    timeout(Duration::from_secs(60), command.output())
        .await
        .unwrap()
        .unwrap()
}

async fn run(arguments: &[&str], at: &Path, variables: &[(&str, &str)]) {
    let output = git(arguments, at, variables).await;
    assert!(output.status.success(), "{arguments:?}: {output:?}");
}

#[tokio::test]
async fn clone_commit_push_fetch_and_a_token_that_changes() {
    let world = World::new(limited(&[])).await;
    let url = "https://git.example/o/r";
    world.must_git(&["clone", "-q", url, "one"], ".").await;
    assert_eq!(
        world
            .must_git(&["remote", "get-url", "origin"], "one")
            .await,
        url
    );
    // Large enough for a chunked upload that waits for `100 Continue`, and gzip for the small ones.
    let noise: Vec<u8> = (0..3 << 20).map(|_| rand::random()).collect();
    std::fs::write(world.path("one/noise"), &noise).unwrap();
    world.must_git(&["add", "."], "one").await;
    world
        .must_git(&["commit", "-q", "-m", "first"], "one")
        .await;
    world
        .must_git(&["push", "-q", "origin", "HEAD:main"], "one")
        .await;
    let expected = world.upstream.expected();
    let seen = world.upstream.take_seen();
    assert!(seen.len() >= 4, "{seen:?}");
    for request in &seen {
        // The client never sends one, and is never asked for one.
        assert_eq!(
            request.authorization.as_ref(),
            Some(&expected),
            "{request:?}"
        );
    }
    assert!(
        seen.iter().any(|it| it.target == "/o/r/git-receive-pack"),
        "{seen:?}"
    );

    world
        .must_git(&["clone", "-q", "https://git.example/o/r.git", "two"], ".")
        .await;
    assert!(std::fs::read(world.path("two/noise")).unwrap() == noise);

    // The host takes another token now; the session is told.
    "second".clone_into(&mut world.upstream.token.lock().unwrap());
    let output = world.git(&["fetch", "-q"], "two").await;
    assert!(!output.status.success(), "{output:?}");
    let new = with_repository(limited(&[]), Some("second"));
    world.inside.access.send_replace(Some(Arc::new(new)));
    world.must_git(&["fetch", "-q"], "two").await;

    let traces = ["config", "--list"];
    let settings = world.must_git(&traces, "two").await;
    assert!(
        !settings.contains("first") && !settings.contains("second"),
        "{settings}"
    );
}

#[tokio::test]
async fn another_repository_of_the_host_gets_no_token() {
    let world = World::new(Network::Unrestricted).await;
    let output = world
        .git(&["clone", "-q", "https://git.example/o/other", "x"], ".")
        .await;
    assert!(!output.status.success(), "{output:?}");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("only this session's repositories"), "{text}");
    assert_eq!(world.upstream.take_seen(), []);

    // Without a token a repository is asked for as the program asks.
    let public = with_repository(Network::Unrestricted, None);
    world.inside.access.send_replace(Some(Arc::new(public)));
    let mut client = world.client("git.example").await;
    for authorization in [None, Some("Basic b3duOm93bg==")] {
        let mut request =
            Request::get("/o/r/info/refs?service=git-upload-pack").header("host", "git.example");
        if let Some(own) = authorization {
            request = request.header("authorization", own);
        }
        let response = client
            .send_request(request.body(String::new()).unwrap())
            .await
            .unwrap();
        assert_eq!(response.status(), 401);
        let seen = world.upstream.take_seen();
        assert_eq!(seen[0].authorization.as_deref(), authorization);
        response.into_body().collect().await.unwrap();
    }
}

#[tokio::test]
async fn every_request_of_a_connection_is_looked_at() {
    let world = World::new(limited(&[])).await;
    let mut client = world.client("git.example").await;
    let expected = Some(world.upstream.expected());
    for (target, host, status, reaches) in [
        (
            "/o/r/info/refs?service=git-upload-pack",
            "git.example",
            200,
            true,
        ),
        (
            "/o/r.git/info/lfs/objects/batch",
            "git.example:443",
            200,
            true,
        ),
        (
            "/o/r/info/refs?service=git-upload-pack",
            "evil.example",
            421,
            false,
        ),
        (
            "https://evil.example/o/r/git-upload-pack",
            "git.example",
            421,
            false,
        ),
        (
            "/o/other/info/refs?service=git-upload-pack",
            "git.example",
            403,
            false,
        ),
        ("/o/r/../other/git-upload-pack", "git.example", 403, false),
        ("/user", "git.example", 403, false),
        ("/", "git.example", 403, false),
    ] {
        let request = Request::get(target)
            .header("host", host)
            .body(String::new())
            .unwrap();
        let response = client.send_request(request).await.unwrap();
        assert_eq!(response.status(), status, "{target} {host}");
        response.into_body().collect().await.unwrap();
        let seen = world.upstream.take_seen();
        assert_eq!(!seen.is_empty(), reaches, "{target} {host}");
        assert!(
            seen.iter().all(|it| it.authorization == expected),
            "{seen:?}"
        );
    }

    // A body goes on as it is, encodings included, and a token of the client's own does not.
    let request = Request::post("/o/r/info/lfs/objects/batch")
        .header("host", "git.example")
        .header("authorization", "Basic b3duOm93bg==")
        .header("content-encoding", "gzip")
        .body("\u{1f}not really gzip".to_owned());
    let response = client.send_request(request.unwrap()).await.unwrap();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(&body[..], b"lfs 16");
    assert_eq!(world.upstream.take_seen()[0].authorization, expected);
}

#[tokio::test]
async fn a_redirect_is_handed_back_and_not_followed() {
    let world = World::new(limited(&[])).await;
    let mut moved = with_repository(limited(&[]), Some("first"));
    moved.repositories[0].owner = "moved".to_owned();
    world.inside.access.send_replace(Some(Arc::new(moved)));
    let mut client = world.client("git.example").await;
    let request = Request::get("/moved/r/info/refs?service=git-upload-pack")
        .header("host", "git.example")
        .body(String::new());
    let response = client.send_request(request.unwrap()).await.unwrap();
    assert_eq!(response.status(), 301);
    let to = response.headers()[LOCATION].to_str().unwrap();
    assert!(to.starts_with("https://evil.example/"), "{to}");
    assert_eq!(world.upstream.take_seen().len(), 1);
}

#[tokio::test]
async fn other_hosts_are_tunnelled_under_the_sessions_policy() {
    let world = World::new(limited(&["plain.example"])).await;
    let port = world.upstream_port;
    let status = async |head: String| world.connect(&head).await.1;
    let connect = |target: &str| format!("CONNECT {target} HTTP/1.1\r\nHost: x\r\n\r\n");

    let (mut stream, answer) = world
        .connect(&connect(&format!("plain.example:{port}")))
        .await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let request = format!(
        "GET /o/r/info/refs HTTP/1.1\r\nHost: plain.example:{port}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).await.unwrap();
    assert!(response.starts_with("HTTP/1.1 401 "), "{response}");
    assert_eq!(world.upstream.take_seen()[0].authorization, None);

    for refused in [
        "evil.example:443".to_owned(),
        format!("127.0.0.1:{port}"),
        format!("[::1]:{port}"),
        "git.example:22".to_owned(),
        "git.selfsame.internal:3128".to_owned(),
    ] {
        let answer = status(connect(&refused)).await;
        assert!(answer.starts_with("HTTP/1.1 403 "), "{refused}: {answer}");
    }
    for bad in [
        "CONNECT plain.example HTTP/1.1\r\n\r\n",
        "CONNECT plain.example:0 HTTP/1.1\r\n\r\n",
        "CONNECT plain_example\0:443 HTTP/1.1\r\n\r\n",
        "CONNECT a b:443 HTTP/1.1\r\n\r\n",
        "hello\r\n\r\n",
    ] {
        let answer = status(bad.to_owned()).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{bad:?}: {answer}");
    }
    let answer = status("GET http://plain.example/ HTTP/1.1\r\n\r\n".to_owned()).await;
    assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
    assert_eq!(world.upstream.take_seen(), []);
}

#[tokio::test]
async fn the_door_is_nobody_else_and_says_when_the_host_is_down() {
    let world = World::new(limited(&[])).await;
    let stream = world.tunnel("git.example").await;
    assert!(
        tls(world.directory.path(), "evil.example", stream)
            .await
            .is_err()
    );

    // Nobody listens where the host should be.
    let nowhere = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = nowhere.local_addr().unwrap().port();
    drop(nowhere);
    let door = made(crate::door::DoorConfig {
        repository_hosts: vec![RepositoryHost {
            name: "git.example".to_owned(),
            upstream: Some(format!("http://127.0.0.1:{port}").parse().unwrap()),
        }],
        ..config(loopback_open())
    });
    let inside = Arc::new(Inside::new(
        &door,
        Some(with_repository(limited(&[]), None)),
    ));
    std::fs::write(world.path("ca.pem"), door.certificate()).unwrap();
    let world = World {
        proxy: listen(inside).await,
        ..world
    };
    let output = world
        .git(&["clone", "-q", "https://git.example/o/r", "x"], ".")
        .await;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        text.contains("No connection to `git.example`") && text.contains("502"),
        "{text}"
    );
}

#[test]
fn an_authority_is_the_same_when_it_is_opened_again() {
    let (certificate, key) = Authority::make().unwrap();
    for _ in 0..2 {
        let authority = Authority::new(certificate.clone(), &key).unwrap();
        assert_eq!(authority.certificate(), certificate);
        assert!(authority.serve_as("a.example").is_ok());
    }
    assert!(Authority::new(certificate, &SecretString::from("no key")).is_err());
}
