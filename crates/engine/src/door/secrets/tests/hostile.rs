//! What must not make a secret go astray.

use super::{
    host::{Host, TestAuthority},
    world::{SECRET, World, get, post, variable},
};
use crate::door::Network;

#[tokio::test]
async fn requests_that_are_not_the_hosts_get_no_secret() {
    let world = World::usual().await;
    let token = &world.placeholder;
    let (one, other) = ("Host: api.example", "Host: other.example");
    let chunked = "Transfer-Encoding: chunked";
    let both = "Host: api.example\r\nHost: other.example";
    let coded = format!("{one}\r\nTransfer-Encoding: gzip, chunked");
    let lengths = format!("{one}\r\nContent-Length: 5\r\nContent-Length: 6");
    let spaced = format!("{one}\r\nTransfer-Encoding : chunked");
    let folded = format!("{one}\r\n folded: yes");
    for (line, headers, status) in [
        ("GET /", other, 421),
        ("GET /", "Host: api.example:8443", 421),
        ("GET /", "Host: api.example@other.example", 421),
        ("GET https://other.example/", one, 421),
        ("GET https://api.example/", other, 421),
        ("GET /", both, 400),
        ("CONNECT other.example:443", "Host: other.example:443", 405),
        ("CONNECT api.example:443", "Host: api.example:443", 405),
        ("TRACE /", one, 405),
        ("POST /", &coded, 400),
        ("POST /", &lengths, 400),
        ("POST /", &spaced, 400),
        ("GET /", &folded, 400),
    ] {
        let request = format!("{line} HTTP/1.1\r\n{headers}\r\nA: {token}\r\n\r\n");
        let mut client = world.opened("api.example").await;
        let (head, _) = client.ask(&request).await;
        let expected = format!("HTTP/1.1 {status} ");
        assert!(head.starts_with(&expected), "{request:?}: {head:?}");
        assert_eq!(world.host.take_seen(), [], "{request:?}");
    }
    // Two lengths, and so perhaps two messages in one: the host sees one message with one length.
    for headers in [
        format!("Content-Length: 3\r\n{chunked}"),
        format!("{chunked}\r\nContent-Length: 3"),
    ] {
        let smuggled = format!("GET /smuggled HTTP/1.1\r\n{one}\r\n\r\n");
        let request = format!("POST / HTTP/1.1\r\n{one}\r\n{headers}\r\n\r\n0\r\n\r\n{smuggled}");
        let mut client = world.opened("api.example").await;
        let (head, _) = client.ask(&request).await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        let seen = world.host.take_seen();
        assert_eq!((seen.len(), &*seen[0].body), (1, ""), "{seen:?}");
        assert_eq!(seen[0].header("content-length").unwrap_or("0"), "0");
    }
    // A second request on a connection that was good so far.
    let mut client = world.opened("api.example").await;
    let good = get(&format!("Authorization: {token}\r\n"));
    assert_eq!(client.ask(&good).await.1, SECRET);
    let (head, _) = client.ask(&good.replace("api.", "other.")).await;
    assert!(head.starts_with("HTTP/1.1 421 "), "{head}");
    assert_eq!(client.ask(&good).await.1, SECRET);
    assert_eq!(world.host.take_seen().len(), 2);
    // Without any host it is for the one that was dialled.
    let request = good.replace("Host: api.example\r\n", "");
    assert_eq!(
        world
            .seen("api.example", &request, 1000)
            .await
            .header("host"),
        Some("api.example")
    );
    let absolute = good.replace("GET /", "GET https://api.example/x?y");
    assert!(
        world
            .seen("api.example", &absolute, 1000)
            .await
            .head
            .starts_with("GET /x?y HTTP/1.1\r\n")
    );
}

#[tokio::test]
async fn a_host_that_cannot_prove_itself_gets_nothing() {
    let (own, other) = (TestAuthority::new(), TestAuthority::new());
    let listed = ["api.example", "other.example"];
    let variables = vec![variable("TOKEN", SECRET, &listed)];
    let host = Host::start(&own, &["other.example"]).await;
    // Its authority is unknown; or known, and the name is not the one in its certificate.
    let world = World::with(Network::Unrestricted, variables.clone(), host, &own, &other).await;
    for (world, name) in [
        (&world, "other.example"),
        (
            &World::with(
                Network::Unrestricted,
                variables,
                Host::start(&own, &["other.example"]).await,
                &own,
                &own,
            )
            .await,
            "api.example",
        ),
    ] {
        let mut client = world.opened(name).await;
        let request =
            get(&format!("Authorization: {}\r\n", world.placeholder)).replace("api.example", name);
        let (head, body) = client.ask(&request).await;
        assert!(head.starts_with("HTTP/1.1 502 "), "{head}");
        assert!(body.contains("certificate"), "{body}");
        assert_eq!(world.host.take_seen(), []);
    }
}

#[tokio::test]
async fn a_secret_that_is_no_header_breaks_none() {
    let variables = vec![
        variable("TOKEN", "secret\r\nX-Injected: yes", &["api.example"]),
        variable("LONG", &"y".repeat(100_000), &["api.example"]),
    ];
    let world = World::new(Network::Unrestricted, variables).await;
    let placeholders = world.wallet.environment().await.unwrap();
    for (header, status) in [
        (format!("Bearer {}", placeholders[0].1), 502),
        (format!("{0} {0} {0}", placeholders[1].1), 431),
    ] {
        let mut client = world.opened("api.example").await;
        let (head, body) = client
            .ask(&get(&format!("Authorization: {header}\r\n")))
            .await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
        assert!(!body.contains("secret\r"), "{body}");
    }
    assert_eq!(world.host.take_seen(), []);
    // In a body and behind base64 it is just text.
    let body = &placeholders[0].1;
    let request = post(&format!("Content-Length: {}\r\n", body.len()), body);
    assert_eq!(
        world.seen("api.example", &request, 1000).await.body,
        "secret\r\nX-Injected: yes"
    );
}
