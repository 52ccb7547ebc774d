//! The door with programs and servers of the test's own.

use std::{
    io,
    net::IpAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use selfsame_net::{Hosts, Lookup, Policy, StaticHost};
use selfsame_types::SessionId;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex},
    net::TcpListener,
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::timeout,
};

use super::*;

/// What became of an offer.
#[derive(Debug)]
pub(super) enum Answer {
    Accepted(DuplexStream),
    Refused(String),
}

/// A connection of a program that does not exist. Its stream ends where the sandbox's own would be
/// reset.
#[derive(Debug)]
pub(super) struct TestOffer {
    host: String,
    port: u16,
    answer: oneshot::Sender<Answer>,
}

impl Offer for TestOffer {
    type Stream = DuplexStream;

    fn host(&self) -> &str {
        &self.host
    }

    fn port(&self) -> u16 {
        self.port
    }

    async fn accept(self) -> DuplexStream {
        let (inside, server) = duplex(64 << 10);
        self.answer.send(Answer::Accepted(inside)).unwrap();
        server
    }

    async fn refuse(self, message: &str) {
        self.answer
            .send(Answer::Refused(message.to_owned()))
            .unwrap();
    }
}

/// An attached sandbox.
pub(super) struct Inside {
    offers: Option<mpsc::Sender<TestOffer>>,
    pub(super) access: watch::Sender<Option<Arc<Access>>>,
    served: JoinHandle<()>,
}

impl Inside {
    pub(super) fn new(door: &Door, access: Option<Access>) -> Self {
        let (offers, receiver) = mpsc::channel(8);
        let (access, watched) = watch::channel(access.map(Arc::new));
        let door = door.clone();
        Self {
            offers: Some(offers),
            access,
            served: tokio::spawn(async move { door.serve(receiver, watched).await }),
        }
    }

    pub(super) async fn connect(&self, host: &str, port: u16) -> Answer {
        let (answer, answered) = oneshot::channel();
        let offer = TestOffer {
            host: host.to_owned(),
            port,
            answer,
        };
        self.offers.as_ref().unwrap().send(offer).await.unwrap();
        timeout(Duration::from_secs(20), answered)
            .await
            .unwrap()
            .unwrap()
    }

    pub(super) async fn accepted(&self, host: &str, port: u16) -> DuplexStream {
        match self.connect(host, port).await {
            Answer::Accepted(stream) => stream,
            Answer::Refused(message) => panic!("{host}:{port}: {message}"),
        }
    }

    async fn refused(&self, host: &str, port: u16) -> String {
        match self.connect(host, port).await {
            Answer::Accepted(_) => panic!("{host}:{port} is accepted"),
            Answer::Refused(message) => message,
        }
    }
}

pub(super) fn access(network: Network) -> Access {
    Access {
        session: SessionId::new(),
        network,
        repositories: Vec::new(),
        wallet: None,
    }
}

pub(super) fn limited(hosts: &[&str]) -> Network {
    Network::Limited {
        allowed_hosts: Hosts::parse(hosts).unwrap(),
        package_hosts: false,
        extra_hosts: Hosts::default(),
    }
}

/// Answers with one list the first time and with another from then on, and counts.
#[derive(Debug, Default)]
struct Resolver {
    asked: Mutex<Vec<String>>,
    first: Vec<IpAddr>,
    then: Vec<IpAddr>,
}

impl Lookup for Resolver {
    fn lookup(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        let mut asked = self.asked.lock().unwrap();
        asked.push(name.to_owned());
        Ok(match asked.len() {
            1 => self.first.clone(),
            _ => self.then.clone(),
        })
    }
}

pub(super) fn loopback_open() -> Policy {
    Policy::new(vec!["127.0.0.1/32".parse().unwrap()], &[]).unwrap()
}

pub(super) fn host(name: &str, address: &str, port: Option<u16>) -> StaticHost {
    StaticHost {
        name: name.to_owned(),
        address: address.parse().unwrap(),
        port,
    }
}

pub(super) fn config(policy: Policy) -> DoorConfig {
    DoorConfig {
        policy,
        package_hosts: Hosts::parse(["packages.example"]).unwrap(),
        max_connections: 100,
        repository_hosts: Vec::new(),
    }
}

pub(super) fn made(config: DoorConfig) -> Door {
    let (certificate, key) = Authority::make().unwrap();
    Door::new(config, Authority::new(certificate, &key).unwrap()).unwrap()
}

pub(super) fn door(policy: Policy) -> Door {
    made(config(policy))
}

async fn listener() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

async fn read_all(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> Vec<u8> {
    let mut all = Vec::new();
    let read = stream.read_to_end(&mut all);
    timeout(Duration::from_secs(20), read)
        .await
        .unwrap()
        .unwrap();
    all
}

#[tokio::test]
async fn bytes_go_both_ways_and_each_way_ends_by_itself() {
    let (listener, port) = listener().await;
    let policy = loopback_open().with_hosts(vec![host("a.example", "127.0.0.1", None)]);
    let inside = Inside::new(&door(policy), Some(access(Network::Unrestricted)));
    let content = vec![42_u8; 5 << 20];
    let sent = content.clone();
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        // The server speaks first, and again long after the client has ended.
        stream.write_all(b"220 hello\r\n").await.unwrap();
        let asked = read_all(&mut stream).await;
        stream.write_all(&sent).await.unwrap();
        asked
    });
    let mut stream = inside.accepted("A.example.", port).await;
    let mut greeting = [0; 11];
    stream.read_exact(&mut greeting).await.unwrap();
    assert_eq!(&greeting, b"220 hello\r\n");
    stream.write_all(&vec![7; 1 << 20]).await.unwrap();
    stream.shutdown().await.unwrap();
    assert!(read_all(&mut stream).await == content);
    assert!(server.await.unwrap() == vec![7; 1 << 20]);
}

#[tokio::test]
async fn a_reset_on_one_side_is_a_reset_on_the_other() {
    let (listener, port) = listener().await;
    let mut inside = Inside::new(&door(loopback_open()), Some(access(Network::Unrestricted)));
    let accept = async || {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"x").await.unwrap();
        stream
    };

    // The world's.
    let (stream, mut server) = tokio::join!(inside.accepted("127.0.0.1", port), accept());
    let mut stream = stream;
    stream.read_exact(&mut [0]).await.unwrap();
    socket2::SockRef::from(&server)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
    server.write_all(b"part of it").await.unwrap();
    drop(server);
    // The test's stream shows only that it is gone, for writing too.
    let _ = read_all(&mut stream).await;
    assert!(stream.write_all(&[0; 100]).await.is_err());

    // The sandbox's: lost with its stream.
    let (mut stream, mut server) = tokio::join!(inside.accepted("127.0.0.1", port), accept());
    stream.read_exact(&mut [0]).await.unwrap();
    stream.write_all(b"half of an upload").await.unwrap();
    inside.offers = None;
    let read = timeout(Duration::from_secs(20), server.read_to_end(&mut Vec::new())).await;
    let error = read.unwrap().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    inside.served.await.unwrap();
}

#[tokio::test]
async fn a_limited_network_is_what_is_listed() {
    let (listener, port) = listener().await;
    let names = Arc::new(Resolver {
        first: vec![IpAddr::from([127, 0, 0, 1])],
        then: vec![IpAddr::from([127, 0, 0, 1])],
        ..Resolver::default()
    });
    let door = door(loopback_open().with_lookup(names.clone()));
    let mut network = limited(&["allowed.example", "*.wild.example"]);
    let inside = Inside::new(&door, Some(access(network.clone())));
    for refused in [
        "other.example",
        "wild.example",
        "allowed.example.evil.example",
        "mcp.example",
        "packages.example",
        "127.0.0.1",
        "::1",
        "selfsame.internal",
        "git.selfsame.internal",
        &format!("{}.evil.example", "4a6f".repeat(15)),
    ] {
        let message = inside.refused(refused, port).await;
        assert!(message.contains(refused), "{message}");
    }
    // Nobody's resolver has heard of any of them.
    assert_eq!(*names.asked.lock().unwrap(), Vec::<String>::new());
    inside.accepted("allowed.example", port).await;
    inside.accepted("a.b.wild.example", port).await;
    assert_eq!(
        *names.asked.lock().unwrap(),
        ["allowed.example", "a.b.wild.example"]
    );

    // What changes holds for the next connection.
    if let Network::Limited {
        package_hosts,
        extra_hosts,
        ..
    } = &mut network
    {
        *package_hosts = true;
        *extra_hosts = Hosts::parse(["mcp.example"]).unwrap();
    }
    inside.access.send_replace(Some(Arc::new(access(network))));
    inside.accepted("mcp.example", port).await;
    inside.accepted("packages.example", port).await;
    inside.refused("other.example", port).await;
    drop(listener);
    // Allowed, but nobody listens.
    let message = inside.refused("allowed.example", port).await;
    assert!(message.contains("no connection"), "{message}");
}

#[tokio::test]
async fn an_unrestricted_network_is_the_public_one() {
    let names = Arc::new(Resolver {
        first: vec![IpAddr::from([127, 0, 0, 1])],
        then: vec![IpAddr::from([10, 0, 0, 1])],
        ..Resolver::default()
    });
    let (listener, port) = listener().await;
    let door = door(loopback_open().with_lookup(names));
    let inside = Inside::new(&door, Some(access(Network::Unrestricted)));
    inside.accepted("rebind.example", port).await;
    let message = inside.refused("rebind.example", port).await;
    assert_eq!(
        message,
        "`rebind.example` is not a public address (private)"
    );
    for literal in [
        "127.0.0.2",
        "::1",
        "169.254.169.254",
        "10.0.0.1",
        "0.0.0.0",
        "224.0.0.1",
    ] {
        let message = inside.refused(literal, port).await;
        assert!(message.contains("is not a public address"), "{message}");
    }
    inside.accepted("127.0.0.1", port).await;
    drop(listener);
}

#[tokio::test]
async fn a_refusal_on_port_80_can_be_read() {
    let inside = Inside::new(
        &door(loopback_open()),
        Some(access(limited(&["a.example"]))),
    );
    for host in ["b.example", "169.254.169.254"] {
        let mut stream = inside.accepted(host, 80).await;
        stream
            .write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            .await
            .unwrap();
        let answer = String::from_utf8(read_all(&mut stream).await).unwrap();
        assert!(answer.starts_with("HTTP/1.1 403 Forbidden\r\n"), "{answer}");
        assert!(
            answer.contains(&format!("`{host}` is not among the hosts")),
            "{answer}"
        );
    }
}

#[tokio::test]
async fn a_connection_to_an_allowed_host_must_not_name_another() {
    let (listener, port) = listener().await;
    let served = Arc::new(AtomicUsize::new(0));
    let count = served.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let count = count.clone();
            tokio::spawn(async move {
                let mut buffer = [0; 1000];
                while stream.read(&mut buffer).await.is_ok_and(|n| n > 0) {
                    count.fetch_add(1, Ordering::Relaxed);
                    stream.write_all(b"served").await.unwrap();
                }
            });
        }
    });
    let policy = loopback_open().with_hosts(vec![host("a.example", "127.0.0.1", Some(port))]);
    let door = door(policy);
    let ask = async |network: Network, request: &str| {
        let inside = Inside::new(&door, Some(access(network)));
        let mut stream = inside.accepted("a.example", 80).await;
        stream.write_all(request.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        String::from_utf8(read_all(&mut stream).await).unwrap()
    };
    let request = |host: &str| format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
    let network = limited(&["a.example"]);
    assert_eq!(ask(network.clone(), &request("a.example")).await, "served");
    assert_eq!(served.load(Ordering::Relaxed), 1);
    let answer = ask(network.clone(), &request("evil.example")).await;
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    assert!(answer.contains("asks for `evil.example`"), "{answer}");
    assert_eq!(served.load(Ordering::Relaxed), 1);
    // Not their business elsewhere.
    assert_eq!(
        ask(Network::Unrestricted, &request("evil.example")).await,
        "served"
    );
}

#[tokio::test]
async fn an_upgraded_connection_carries_whatever_it_likes() {
    let (listener, port) = listener().await;
    let policy = loopback_open().with_hosts(vec![host("a.example", "127.0.0.1", None)]);
    let inside = Inside::new(&door(policy), Some(access(limited(&["a.example"]))));
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let answer = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n";
        stream.write_all(answer).await.unwrap();
        // Bytes that would be another host's request, had they come first.
        let said = read_all(&mut stream).await;
        stream.write_all(&said).await.unwrap();
        said
    });
    let mut stream = inside.accepted("a.example", port).await;
    let request = format!(
        "GET / HTTP/1.1\r\nHost: a.example:{port}\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = [0; 48];
    stream.read_exact(&mut head).await.unwrap();
    assert!(head.starts_with(b"HTTP/1.1 101 "), "{head:?}");
    let said = b"\0\xffGET / HTTP/1.1\r\nHost: evil.example\r\n\r\n".repeat(1000);
    stream.write_all(&said).await.unwrap();
    stream.shutdown().await.unwrap();
    assert!(read_all(&mut stream).await.ends_with(&said));
    assert!(server.await.unwrap() == said);
}

#[tokio::test]
async fn connections_wait_for_the_sessions_rights() {
    let (listener, port) = listener().await;
    let inside = Inside::new(&door(loopback_open()), None);
    let mut connect = std::pin::pin!(inside.accepted("127.0.0.1", port));
    assert!(
        timeout(Duration::from_millis(20), connect.as_mut())
            .await
            .is_err()
    );
    inside
        .access
        .send_replace(Some(Arc::new(access(Network::Unrestricted))));
    connect.await;
    drop(listener);
}

#[tokio::test]
async fn more_connections_than_there_is_room_for_wait() {
    let (listener, port) = listener().await;
    let door = made(DoorConfig {
        max_connections: 1,
        ..config(loopback_open())
    });
    let one = Inside::new(&door, Some(access(Network::Unrestricted)));
    let other = Inside::new(&door, Some(access(Network::Unrestricted)));
    let first = one.accepted("127.0.0.1", port).await;
    let mut second = std::pin::pin!(other.accepted("127.0.0.1", port));
    assert!(
        timeout(Duration::from_millis(20), second.as_mut())
            .await
            .is_err()
    );
    drop(first);
    drop(listener.accept().await.unwrap());
    second.await;
}
