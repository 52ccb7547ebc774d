//! The clients against real sockets. The listeners count connections: "refused" means that nothing
//! arrived, not that something went wrong on the way.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use selfsame_net::{
    Limits, NetError, OperatorOptions, Policy, Refused, guarded_client, guarded_client_with,
    operator_client, read_limited, refusal,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

/// Answers every request with `response`; returns its address and the number of connections so far.
async fn server(bind: &str, response: String) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind(bind).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    let counter = count.clone();
    tokio::spawn(async move {
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            counter.fetch_add(1, Ordering::SeqCst);
            let response = response.clone();
            tokio::spawn(async move {
                let mut seen = Vec::new();
                while !seen.windows(4).any(|w| w == b"\r\n\r\n") {
                    if socket.read_buf(&mut seen).await.unwrap_or(0) == 0 {
                        return;
                    }
                }
                let _ = socket.write_all(response.as_bytes()).await;
            });
        }
    });
    (addr, count)
}

fn ok(body: &str) -> String {
    let n = body.len();
    format!("HTTP/1.1 200 OK\r\ncontent-length: {n}\r\nconnection: close\r\n\r\n{body}")
}

fn redirect(to: &str) -> String {
    format!(
        "HTTP/1.1 302 Found\r\nlocation: {to}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    )
}

fn loopback_open() -> Policy {
    Policy::new(vec!["127.0.0.1/32".parse().unwrap()], &[]).unwrap()
}

#[tokio::test]
async fn a_guarded_client_reaches_nothing_inside() {
    let (addr, count) = server("127.0.0.1:0", ok("inside")).await;
    let port = addr.port();
    let client = guarded_client(&Policy::default()).unwrap();
    for (host, shown) in [
        ("127.0.0.1", "127.0.0.1"),
        ("2130706433", "127.0.0.1"),
        ("0x7f.1", "127.0.0.1"),
        ("[::1]", "::1"),
        ("[::ffff:127.0.0.1]", "127.0.0.1"),
        ("localhost", "127.0.0.1"),
        ("0.0.0.0", "0.0.0.0"),
    ] {
        for scheme in ["http", "https"] {
            let url = format!("{scheme}://{host}:{port}/");
            let error = client.get(&url).send().await.unwrap_err();
            let Some(Refused::Address { host, .. }) = refusal(&error) else {
                panic!("{url}: {error:?}");
            };
            assert_eq!(host, shown, "{url}");
        }
    }
    assert_eq!(count.load(Ordering::SeqCst), 0);
}

/// The control: the same probes arrive where the operator allows it.
#[tokio::test]
async fn an_allowed_range_is_reached() {
    let (addr, count) = server("127.0.0.1:0", ok("inside")).await;
    let client = guarded_client(&loopback_open()).unwrap();
    for host in ["127.0.0.1", "localhost", "2130706433"] {
        let url = format!("http://{host}:{}/", addr.port());
        let response = client.get(&url).send().await.unwrap();
        assert_eq!(response.text().await.unwrap(), "inside", "{url}");
    }
    assert_eq!(count.load(Ordering::SeqCst), 3);
    let error = client
        .get(format!("http://127.0.0.2:{}/", addr.port()))
        .send()
        .await
        .unwrap_err();
    assert!(refusal(&error).is_some());
}

#[tokio::test]
async fn redirects_are_checked_again() {
    let (inside, count) = server("127.0.0.2:0", ok("inside")).await;
    let (door, _) = server("127.0.0.1:0", redirect(&format!("http://{inside}/"))).await;
    let client = guarded_client(&loopback_open()).unwrap();
    let error = client
        .get(format!("http://{door}/"))
        .send()
        .await
        .unwrap_err();
    assert!(
        matches!(refusal(&error), Some(Refused::Address { .. })),
        "{error:?}"
    );
    assert_eq!(count.load(Ordering::SeqCst), 0);

    let (round, hops) = server("127.0.0.1:0", redirect("/again")).await;
    let error = client
        .get(format!("http://{round}/"))
        .send()
        .await
        .unwrap_err();
    assert_eq!(refusal(&error), Some(&Refused::TooManyRedirects));
    assert_eq!(hops.load(Ordering::SeqCst), 6);

    let none = Limits {
        redirects: 0,
        ..Limits::default()
    };
    let client = guarded_client_with(&loopback_open(), &none).unwrap();
    let response = client.get(format!("http://{round}/")).send().await.unwrap();
    assert_eq!(response.status(), 302);
}

#[tokio::test]
async fn an_operator_client_goes_inside_but_follows_nothing() {
    let (inside, count) = server("127.0.0.1:0", ok("inside")).await;
    let (door, _) = server("127.0.0.1:0", redirect(&format!("http://{inside}/"))).await;
    let client = operator_client(&OperatorOptions::default()).unwrap();
    let response = client.get(format!("http://{door}/")).send().await.unwrap();
    assert_eq!(response.status(), 302);
    assert_eq!(count.load(Ordering::SeqCst), 0);
    let response = client
        .get(format!("http://{inside}/"))
        .send()
        .await
        .unwrap();
    assert_eq!(response.text().await.unwrap(), "inside");
}

#[tokio::test]
async fn bodies_are_limited_with_and_without_a_length() {
    let client = guarded_client(&loopback_open()).unwrap();
    let (known, _) = server("127.0.0.1:0", ok("12345")).await;
    let (unknown, _) = server(
        "127.0.0.1:0",
        "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n12345".to_owned(),
    )
    .await;
    for addr in [known, unknown] {
        let url = format!("http://{addr}/");
        let body = read_limited(client.get(&url).send().await.unwrap(), 5)
            .await
            .unwrap();
        assert_eq!(body, "12345");
        let error = read_limited(client.get(&url).send().await.unwrap(), 4)
            .await
            .unwrap_err();
        assert!(matches!(error, NetError::TooLarge(4)), "{error:?}");
    }
}

#[test]
fn a_bad_certificate_is_an_error() {
    let parse = |pem: &str| Policy::new(Vec::new(), &[pem.as_bytes().to_vec()]).err();
    let broken = parse("-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n");
    assert!(
        matches!(broken, Some(NetError::Certificate(_))),
        "{broken:?}"
    );
    assert!(matches!(
        parse("not a certificate"),
        Some(NetError::NoCertificate)
    ));

    // What is inside is only looked at when a client is built.
    let pem = b"-----BEGIN CERTIFICATE-----\nbm9wZQ==\n-----END CERTIFICATE-----\n".to_vec();
    let client = guarded_client(&Policy::new(Vec::new(), &[pem]).unwrap());
    assert!(matches!(client, Err(NetError::Build(_))), "{client:?}");
}
