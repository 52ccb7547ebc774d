//! Programs that speak TLS to hosts of the test's own, through the door.

mod host;
mod hostile;
mod world;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use selfsame_net::Hosts;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use self::world::{SECRET, World, chunks, get, post, variable};
use super::body::HELD;
use crate::{
    door::tests::{Answer, limited},
    vaults::Networking,
};

#[tokio::test]
async fn secrets_go_into_headers_and_nowhere_else_of_the_head() {
    let world = World::usual().await;
    let token = &world.placeholder;
    let basic = |text: &str| BASE64_STANDARD.encode(text);
    for cut in [1, 7, 4096] {
        let request = format!(
            "GET /{token}?q={token} HTTP/1.1\r\nHost: api.example\r\nAuthorization: Bearer {token}\r\n\
             X-{token}: name\r\nX-CaSe: {token},{token}\r\nCookie: a=b; t={token}\r\n\r\n"
        );
        let seen = world.seen("api.example", &request, cut).await;
        assert!(
            seen.head
                .starts_with(&format!("GET /{token}?q={token} HTTP/1.1\r\n")),
            "{}",
            seen.head
        );
        assert_eq!(
            seen.header("authorization"),
            Some(&*format!("Bearer {SECRET}"))
        );
        assert!(
            seen.head
                .contains(&format!("X-CaSe: {SECRET},{SECRET}\r\n")),
            "{}",
            seen.head
        );
        assert!(seen.head.contains(&format!("X-{token}: name\r\n")));
        assert_eq!(seen.header("cookie"), Some(&*format!("a=b; t={SECRET}")));
        let request = get(&format!(
            "Authorization: Basic {}\r\n",
            basic(&format!("me:{token}"))
        ));
        let seen = world.seen("api.example", &request, cut).await;
        let expected = format!("Basic {}", basic(&format!("me:{SECRET}")));
        assert_eq!(seen.header("authorization"), Some(&*expected));
    }
    // Below a wildcard, too.
    let request = get(&format!("A: {token}\r\n")).replace("api.", "x.wild.");
    assert_eq!(
        world
            .seen("x.wild.example", &request, 4096)
            .await
            .header("a"),
        Some(SECRET)
    );
}

#[tokio::test]
async fn secrets_go_into_bodies_however_they_are_sent() {
    let world = World::usual().await;
    let token = &world.placeholder;
    let body = format!("{{\"token\":\"{token}\",\"again\":\"{token}\"}}");
    let expected = body.replace(token, SECRET);
    for cut in [1, 13, 100_000] {
        let length = format!("Content-Length: {}\r\nExpect: 100-continue\r\n", body.len());
        let mut client = world.opened("api.example").await;
        client.send(&post(&length, ""), cut).await;
        assert_eq!(client.head().await, "HTTP/1.1 100 Continue\r\n\r\n");
        client.send(&body, cut).await;
        assert!(client.answer().await.0.starts_with("HTTP/1.1 200 "));
        let seen = world.host.take_seen().remove(0);
        assert_eq!(seen.body, expected);
        assert_eq!(
            seen.header("content-length"),
            Some(&*expected.len().to_string())
        );
        assert_eq!(seen.header("expect"), None);
        for size in [1, 10, 1000] {
            let request = post(
                "Transfer-Encoding: chunked\r\nTrailer: X-T\r\n",
                &chunks(&body, size),
            );
            let request = format!("{request}0\r\nX-T: {token}\r\n\r\n");
            let seen = world.seen("api.example", &request, cut).await;
            // Trailers of requests are not passed on.
            assert_eq!(seen.body, expected);
            assert_eq!(seen.header("transfer-encoding"), Some("chunked"));
        }
    }
    // Without a placeholder nothing changes.
    let seen = world
        .seen("api.example", &post("Content-Length: 5\r\n", "hello"), 100)
        .await;
    assert_eq!(
        (&*seen.body, seen.header("content-length")),
        ("hello", Some("5"))
    );
    // What is compressed is left alone.
    let length = format!(
        "Content-Encoding: gzip\r\nContent-Length: {}\r\n",
        body.len()
    );
    assert_eq!(
        world
            .seen("api.example", &post(&length, &body), 1000)
            .await
            .body,
        body
    );
}

#[tokio::test]
async fn long_bodies_keep_a_length_where_they_can() {
    let world = World::usual().await;
    let token = &world.placeholder;
    let long = "x".repeat(3 * HELD);
    for (body, expected, chunked) in [
        // It begins with one, and another one is far behind.
        (
            format!("{token}{long}{token}"),
            format!("{SECRET}{long}{SECRET}"),
            true,
        ),
        (long.clone(), long.clone(), false),
        // What comes late is too late for a length that has been sent.
        (format!("{long}{token}"), format!("{long}{token}"), false),
    ] {
        let length = body.len().to_string();
        let request = post(&format!("Content-Length: {length}\r\n"), &body);
        let seen = world.seen("api.example", &request, 100_000).await;
        assert!(seen.body == expected, "{}", seen.head);
        let announced = seen.header("content-length");
        assert_eq!(announced, (!chunked).then_some(&*length));
        // In chunks there is no such difference.
        let request = post(
            "Transfer-Encoding: chunked\r\n",
            &(chunks(&body, 70_001) + "0\r\n\r\n"),
        );
        let seen = world.seen("api.example", &request, 100_000).await;
        assert!(seen.body == body.replace(token, SECRET));
    }
}

#[tokio::test]
async fn a_credential_says_where_its_secret_may_be() {
    let mut in_header = variable("A", "secret-of-headers", &["api.example"]);
    in_header.injection_location.body = false;
    let mut in_body = variable("B", "secret-of-bodies", &["api.example"]);
    in_body.injection_location.header = false;
    let elsewhere = variable("C", "secret-of-others", &["elsewhere.example"]);
    let variables = vec![in_header, in_body, elsewhere];
    let world = World::new(limited(&["*.example"]), variables).await;
    let placeholders = world.wallet.environment().await.unwrap();
    let [a, b, c] = [0, 1, 2].map(|at| placeholders[at].1.as_str());
    let all = format!("{a} {b} {c}");
    let request = post(
        &format!("X: {all}\r\nContent-Length: {}\r\n", all.len()),
        &all,
    );
    let seen = world.seen("api.example", &request, 1000).await;
    assert_eq!(
        seen.header("x"),
        Some(&*format!("secret-of-headers {b} {c}"))
    );
    assert_eq!(seen.body, format!("{a} secret-of-bodies {c}"));
}

#[tokio::test]
async fn hosts_that_nothing_lists_are_tunnelled_untouched() {
    let world = World::usual().await;
    let token = &world.placeholder;
    let request =
        |host: &str| format!("GET / HTTP/1.1\r\nHost: {host}\r\nAuthorization: {token}\r\n\r\n");
    // With its own certificate.
    assert!(world.tls("other.example", &world.doors, &[]).await.is_err());
    let mut client = world.tls("other.example", &world.hosts, &[]).await.unwrap();
    let (_, echoed) = client.ask(&request("other.example")).await;
    assert_eq!(&echoed, token);
    // So is a listed one for who asks it for another name, or cannot speak HTTP/1.1.
    let mut client = world
        .tls_naming("api.example", "other.example", &world.hosts, &[])
        .await
        .unwrap();
    assert_eq!(&client.ask(&request("other.example")).await.1, token);
    let client = world
        .tls("api.example", &world.hosts, &["h2"])
        .await
        .unwrap();
    assert_eq!(client.tls.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    assert!(
        world
            .tls("api.example", &world.hosts, &["http/1.1"])
            .await
            .is_err()
    );
    let seen = world.host.take_seen();
    assert!(
        seen.iter()
            .all(|seen| !format!("{seen:?}").contains(SECRET)),
        "{seen:?}"
    );
}

#[tokio::test]
async fn nothing_is_sent_in_clear_and_nobody_is_waited_for() {
    let world = World::usual().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let greeter = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"220 who is there\r\n").await.unwrap();
        let mut said = String::new();
        stream.read_to_string(&mut said).await.unwrap();
        said
    });
    // A server that speaks first, and then what would be a request.
    let mut program = world.inside.accepted("api.example", port).await;
    let mut greeting = [0; 18];
    program.read_exact(&mut greeting).await.unwrap();
    let request = get(&format!("Authorization: Bearer {}\r\n", world.placeholder));
    program.write_all(request.as_bytes()).await.unwrap();
    program.shutdown().await.unwrap();
    assert_eq!(greeter.await.unwrap(), request);
    // A program that speaks first, in clear.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut program = world.inside.accepted("api.example", port).await;
    program.write_all(request.as_bytes()).await.unwrap();
    program.shutdown().await.unwrap();
    let mut said = String::new();
    let (mut stream, _) = listener.accept().await.unwrap();
    stream.read_to_string(&mut said).await.unwrap();
    assert_eq!(said, request);
}

#[tokio::test]
async fn what_changes_in_a_vault_changes_here() {
    let world = World::usual().await;
    let request = get(&format!("Authorization: {}\r\n", world.placeholder));
    let mut client = world.opened("api.example").await;
    assert_eq!(client.ask(&request).await.1, SECRET);
    world.list.lock().unwrap()[0].secret_value = "another".into();
    assert_eq!(client.ask(&request).await.1, "another");
    // Narrower hosts.
    let narrower = Networking::Limited(Hosts::parse(["elsewhere.example"]).unwrap());
    let wider = std::mem::replace(&mut world.list.lock().unwrap()[0].networking, narrower);
    assert_eq!(client.ask(&request).await.1, world.placeholder);
    world.list.lock().unwrap()[0].networking = wider;
    assert_eq!(client.ask(&request).await.1, "another");
    // Archived: the connection stands, and the placeholder goes out as it is.
    world.list.lock().unwrap().clear();
    assert_eq!(client.ask(&request).await.1, world.placeholder);
    assert!(world.tls("api.example", &world.doors, &[]).await.is_err());
}

#[tokio::test]
async fn another_protocol_is_carried_once_both_sides_agree() {
    let world = World::usual().await;
    let mut client = world.opened("api.example").await;
    let request = get(&format!(
        "Authorization: {0}\r\nConnection: keep-alive, Upgrade\r\nUpgrade: shouting\r\n",
        world.placeholder
    ));
    client
        .send(&request.replace("GET / ", "GET /upgrade "), 1000)
        .await;
    let head = client.head().await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    let head = head.to_lowercase();
    assert!(
        head.contains("upgrade: shouting\r\n") && head.contains("x-accept: yes\r\n"),
        "{head}"
    );
    let seen = world.host.take_seen().remove(0);
    assert_eq!(seen.header("authorization"), Some(SECRET));
    assert_eq!(seen.header("upgrade"), Some("shouting"));
    for _ in 0..2 {
        client.send("hello, ", 3).await;
        let mut said = [0; 7];
        client.tls.read_exact(&mut said).await.unwrap();
        assert_eq!(&said, b"HELLO, ");
    }
    // What is said from now on is nobody's business here.
    client.send(&world.placeholder, 1000).await;
    client.tls.shutdown().await.unwrap();
    let mut said = String::new();
    client.tls.read_to_string(&mut said).await.unwrap();
    assert_eq!(said, world.placeholder.to_uppercase());
    // A host that does not want to says so.
    let mut client = world.opened("api.example").await;
    let (head, _) = client.ask(&request).await;
    assert!(
        head.starts_with("HTTP/1.1 200 ") && head.contains("X-CaSe: kept\r\n"),
        "{head}"
    );
}

#[tokio::test]
async fn an_end_is_an_end_and_a_break_a_break() {
    let world = World::usual().await;
    let mut client = world.opened("api.example").await;
    let (head, body) = client.ask(&get("").replace("GET / ", "GET /close ")).await;
    assert!(
        head.to_lowercase().contains("connection: close\r\n"),
        "{head}"
    );
    assert_eq!(body, "bye");
    let mut rest = Vec::new();
    client.tls.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, b"");
    // No answer is no answer here, either.
    let mut client = world.opened("api.example").await;
    client
        .send(&get("").replace("GET / ", "GET /break "), 1000)
        .await;
    assert_eq!(client.head().await, "");
}

#[tokio::test]
async fn hosts_that_cannot_be_reached_are_told_once_of_each_credential() {
    let listed = variable("ONE", SECRET, &["closed.example", "api.example"]);
    let nowhere = variable("TWO", SECRET, &["nowhere.example"]);
    let mut everywhere = variable("THREE", SECRET, &[]);
    everywhere.networking = Networking::Unrestricted;
    let variables = vec![listed.clone(), nowhere.clone(), everywhere];
    let network = limited(&["api.example", "nowhere.example"]);
    let world = World::new(network, variables).await;
    assert!(world.wallet.take_unreachable().is_empty());
    drop(world.opened("api.example").await);
    for host in [
        "closed.example",
        "closed.example",
        "nowhere.example",
        "unheard.example",
    ] {
        let Answer::Refused(_) = world.inside.connect(host, 443).await else {
            panic!("{host} is reached");
        };
    }
    let told = world.wallet.take_unreachable();
    let credentials: Vec<_> = told.iter().map(|it| (it.credential, it.vault)).collect();
    let expected = [&listed, &nowhere].map(|it| (it.credential, it.vault));
    assert_eq!(credentials, expected);
    assert!(
        told[0].reason.contains("its network is `limited`"),
        "{}",
        told[0].reason
    );
    assert!(
        told[1].reason.contains("has no address"),
        "{}",
        told[1].reason
    );
    assert!(world.wallet.take_unreachable().is_empty());
}

#[tokio::test]
async fn an_unrestricted_credential_goes_wherever_the_session_may() {
    let mut everywhere = variable("TOKEN", SECRET, &[]);
    everywhere.networking = Networking::Unrestricted;
    let world = World::new(limited(&["other.example"]), vec![everywhere]).await;
    let request = get(&format!("A: {}\r\n", world.placeholder)).replace("api.", "other.");
    let seen = world.seen("other.example", &request, 1000).await;
    assert_eq!(seen.header("a"), Some(SECRET));
    let Answer::Refused(_) = world.inside.connect("api.example", 443).await else {
        panic!("the network was not asked");
    };
}
