use std::time::Instant;

use selfsame_net::{Lookup, StaticHost};

use super::*;
use crate::testing::{Say, Site, head, loopback, page};

const PNG: &[u8] = b"\x89PNG\r\n\x1a\n0000";

fn fetcher() -> Fetcher {
    fetcher_of(&loopback())
}

fn fetcher_of(policy: &Policy) -> Fetcher {
    let limits = FetchLimits {
        timeout: Duration::from_secs(2),
        max_text_bytes: 200_000,
    };
    Fetcher::new(policy, limits).unwrap()
}

async fn get(site: &Site, path: &str) -> Result<Found, Unfetched> {
    let fetcher = fetcher();
    let url = fetcher.parse(&site.url(path))?;
    fetcher.get(url, &[]).await
}

#[track_caller]
fn refused(result: Result<Found, Unfetched>, code: &str, words: &str) {
    let error = result.expect_err(words);
    assert_eq!(error.code, code, "{error}");
    assert!(error.message.contains(words), "{words}\n{error}");
    assert!(!error.message.contains("127.0.0.1:"), "{error}");
}

#[tokio::test]
async fn every_kind_of_content() {
    let site = Site::start(|path| match path {
        "/html" => page(
            "text/HTML; charset=utf-8",
            "<title>T</title><p>ä <a href=/x>l</a>",
        ),
        "/json" => page("application/vnd.api+json", r#"{"a": 1}"#),
        "/png" => page("image/png", PNG),
        // What the server calls it does not matter when the content is clear.
        "/png-as-text" => page("text/plain", PNG),
        "/pdf" => page("application/octet-stream", b"%PDF-1.7\n"),
        "/text" => page("application/octet-stream", b"just words\n"),
        "/html-unnamed" => Say::Bytes(b"HTTP/1.0 200 OK\r\n\r\n<!DOCTYPE html><p>old".to_vec()),
        "/empty" => page("text/plain", b""),
        "/zip" => page("application/zip", b"PK\x03\x04"),
        "/binary" => page("application/octet-stream", b"\x00\x01\x02"),
        "/not-a-png" => page("image/png", b"<html>"),
        _ => head("404 Not Found", ""),
    })
    .await;
    let text = async |path: &str| get(&site, path).await.unwrap().readable().await.unwrap();
    let (title, html, whole) = text("/html").await;
    assert_eq!(title.as_deref(), Some("T"));
    assert_eq!(html, format!("ä [l]({})", site.url("/x")));
    assert!(whole);
    assert_eq!(text("/json").await.1, r#"{"a": 1}"#);
    assert_eq!(text("/text").await.1, "just words\n");
    assert_eq!(text("/html-unnamed").await.1, "old");
    assert_eq!(text("/empty").await.1, "");
    for path in ["/png", "/png-as-text"] {
        let block = get(&site, path).await.unwrap().binary().unwrap();
        assert_eq!(block["type"], "image");
        assert_eq!(block["source"]["media_type"], "image/png");
        assert_eq!(block["source"]["data"], STANDARD.encode(PNG));
    }
    let block = get(&site, "/pdf").await.unwrap().binary().unwrap();
    assert_eq!(block["type"], "document");
    assert_eq!(block["source"]["media_type"], "application/pdf");
    refused(
        get(&site, "/zip").await,
        "unsupported_content_type",
        "application/zip",
    );
    refused(
        get(&site, "/binary").await,
        "unsupported_content_type",
        "octet-stream",
    );
    refused(
        get(&site, "/not-a-png").await,
        "unsupported_content_type",
        "is not",
    );
    refused(
        get(&site, "/gone").await,
        "url_not_accessible",
        "HTTP 404 (Not Found)",
    );
    let request = site.requests()[0].to_lowercase();
    assert!(request.contains("user-agent: selfsame/"), "{request}");
    assert!(
        !request.contains("cookie") && !request.contains("referer"),
        "{request}"
    );
}

#[tokio::test]
async fn text_in_any_encoding() {
    let site = Site::start(|path| match path {
        "/header" => page("text/plain; Charset=\"ISO-8859-1\"", b"na\xefve"),
        "/meta" => page(
            "text/html",
            b"<meta http-equiv=x content='text/html; charset=windows-1251'><p>\xcf\xf0\xe8\xe2\xe5\xf2",
        ),
        "/meta5" => page("text/html", b"<meta charset=\"shift_jis\"><p>\x93\xfa\x96\x7b"),
        "/bom" => page("text/plain; charset=ascii", b"\xff\xfeh\x00i\x00"),
        "/bogus" => page("text/plain; charset=klingon", b"ok \xff\xfe\xfd"),
        _ => page("text/plain", b"broken \xc3( utf-8"),
    })
    .await;
    for (path, expected) in [
        ("/header", "naïve"),
        ("/meta", "Привет"),
        ("/meta5", "日本"),
        ("/bom", "hi"),
        ("/bogus", "ok \u{fffd}\u{fffd}\u{fffd}"),
        ("/", "broken \u{fffd}( utf-8"),
    ] {
        let (_, text, _) = get(&site, path).await.unwrap().readable().await.unwrap();
        assert_eq!(text, expected, "{path}");
    }
}

#[tokio::test]
async fn servers_that_will_not_end() {
    let html = "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\n\r\n";
    let site = Site::start(move |path| match path {
        "/drip" => Say::Drip(format!("{html}<p>drip").into_bytes()),
        "/headers" => Say::Endless(b"HTTP/1.1 200 OK\r\n".to_vec(), b"x-a: b\r\n".to_vec()),
        "/long-header" => Say::Endless(b"HTTP/1.1 200 OK\r\nx-a: ".to_vec(), vec![b'b'; 4096]),
        "/pdf" => Say::Endless(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/pdf\r\n\r\n%PDF-1.7".to_vec(),
            vec![b'x'; 65536],
        ),
        "/image" => Say::Endless(
            [
                &b"HTTP/1.1 200 OK\r\ncontent-type: image/png\r\n\r\n"[..],
                PNG,
            ]
            .concat(),
            vec![b'x'; 65536],
        ),
        _ => Say::Endless(html.as_bytes().to_vec(), b"<p>more</p>".repeat(1000)),
    })
    .await;
    let began = Instant::now();
    refused(
        get(&site, "/drip").await,
        "url_not_accessible",
        "within 2 seconds",
    );
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "{:?}",
        began.elapsed()
    );
    refused(get(&site, "/headers").await, "url_not_accessible", "");
    refused(get(&site, "/long-header").await, "url_not_accessible", "");
    refused(get(&site, "/pdf").await, "content_too_large", "20 MiB");
    refused(get(&site, "/image").await, "content_too_large", "5 MiB");
    // Of text the beginning is worth something.
    let found = get(&site, "/body").await.unwrap();
    assert!(!found.whole && found.body.len() == 200_000);
}

#[tokio::test]
async fn answers_that_contradict_themselves() {
    // Ten megabytes of one letter in ten kilobytes.
    let bomb: &[u8] = include_bytes!("bomb.gz");
    assert!(bomb.len() < 32_000);
    let site = Site::start(move |path| match path {
        "/short" => Say::Bytes(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 1000\r\n\r\nhalf".to_vec(),
        ),
        "/claims" => Say::Bytes(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 99999999999\r\n\r\nx".to_vec(),
        ),
        "/extra" => Say::Bytes(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 2\r\n\r\nokBUT NOT THIS".to_vec(),
        ),
        "/bomb" => Say::Bytes(
            [
                &b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-encoding: gzip\r\nconnection: close\r\n\r\n"[..],
                bomb,
            ]
            .concat(),
        ),
        "/not-gzip" => Say::Bytes(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-encoding: gzip\r\ncontent-length: 5\r\n\r\nplain".to_vec(),
        ),
        "/not-http" => Say::Bytes(b"SSH-2.0-OpenSSH_9.6\r\n".to_vec()),
        _ => Say::Bytes(Vec::new()),
    })
    .await;
    for path in ["/short", "/claims", "/not-gzip", "/not-http", "/nothing"] {
        refused(get(&site, path).await, "url_not_accessible", "");
    }
    assert_eq!(get(&site, "/extra").await.unwrap().body, b"ok");
    let found = get(&site, "/bomb").await.unwrap();
    assert!(!found.whole && found.body.len() == 200_000);
}

#[tokio::test]
async fn redirects_are_judged_one_by_one() {
    let site = Site::start(|path| match path {
        "/ok" => head("302 Found", "location: /done\r\n"),
        "/done" => page("text/plain", "done"),
        "/loop" => head("307 Temporary Redirect", "location: /loop\r\n"),
        "/private" => head("301 Moved", "location: http://10.0.0.1/secret\r\n"),
        "/metadata" => head("302 Found", "location: //169.254.169.254/latest\r\n"),
        "/name" => head("302 Found", "location: http://inside.test/x\r\n"),
        "/other" => head("302 Found", "location: http://other.test/done\r\n"),
        "/file" => head("302 Found", "location: file:///etc/passwd\r\n"),
        "/nowhere" => head("302 Found", ""),
        "/garbage" => head("302 Found", "location: http://[\r\n"),
        _ => head("404 Not Found", ""),
    })
    .await;
    let own = |name: &str, address: &str, port| StaticHost {
        name: name.to_owned(),
        address: address.parse().unwrap(),
        port,
    };
    let port = Some(site.address.port());
    let policy = loopback().with_hosts(vec![
        own("good.test", "127.0.0.1", port),
        own("other.test", "127.0.0.1", port),
        own("inside.test", "10.0.0.7", None),
    ]);
    let fetcher = fetcher_of(&policy);
    let good = [Domains {
        allowed: Some(vec!["good.test".to_owned()]),
        blocked: None,
    }];
    let get = async |path: &str, lists: &[Domains]| {
        let url = fetcher.parse(&format!("http://good.test{path}")).unwrap();
        fetcher.get(url, lists).await
    };
    let found = get("/ok", &good).await.unwrap();
    assert_eq!(
        (found.url.as_str(), &*found.body),
        ("http://good.test/done", &b"done"[..])
    );
    refused(
        get("/loop", &[]).await,
        "url_not_accessible",
        "too many redirects",
    );
    refused(
        get("/private", &[]).await,
        "url_not_allowed",
        "not a public address",
    );
    refused(
        get("/metadata", &[]).await,
        "url_not_allowed",
        "cloud metadata",
    );
    refused(
        get("/name", &[]).await,
        "url_not_allowed",
        "`inside.test` is not a public address",
    );
    refused(
        get("/other", &good).await,
        "url_not_allowed",
        "do not allow `other.test`",
    );
    assert_eq!(get("/other", &[]).await.unwrap().body, b"done");
    refused(
        get("/file", &[]).await,
        "url_not_allowed",
        "only http and https",
    );
    refused(
        get("/nowhere", &[]).await,
        "url_not_accessible",
        "no usable address",
    );
    refused(
        get("/garbage", &[]).await,
        "url_not_accessible",
        "no usable address",
    );
    // Nothing was asked of a host that may not be asked.
    assert!(
        site.requests()
            .iter()
            .all(|request| !request.contains("/secret"))
    );
}

/// Leads to this machine the first time and inside afterwards.
#[derive(Debug, Default)]
struct Rebinding(std::sync::atomic::AtomicUsize);

impl Lookup for Rebinding {
    fn lookup(&self, _: &str) -> std::io::Result<Vec<std::net::IpAddr>> {
        let asked = self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Ok(vec![
            if asked == 0 {
                [127, 0, 0, 1]
            } else {
                [10, 0, 0, 1]
            }
            .into(),
        ])
    }
}

#[tokio::test]
async fn addresses_that_may_not_be_reached() {
    let fetcher = fetcher_of(&Policy::default());
    let get = async |url: &str| fetcher.get(fetcher.parse(url)?, &[]).await;
    for url in [
        "http://127.0.0.1/",
        "http://localhost:8080/",
        "http://2130706433/",
        "http://[::1]/",
        "http://169.254.169.254/latest/meta-data",
        "ftp://example.com/",
        "file:///etc/passwd",
    ] {
        refused(get(url).await, "url_not_allowed", "");
    }
    refused(get("example.com").await, "invalid_input", "whole one");
    refused(
        get("http://a:b@example.com/").await,
        "invalid_input",
        "password",
    );
    let long = format!("https://example.com/{}", "a".repeat(MAX_URL));
    refused(get(&long).await, "url_too_long", "2048");

    // A name that changes its mind between a page and what the page redirects to.
    let site = Site::start(|path| match path {
        "/" => head("302 Found", "location: /again\r\nconnection: close\r\n"),
        _ => page("text/plain", "never"),
    })
    .await;
    let fetcher = fetcher_of(&loopback().with_lookup(std::sync::Arc::new(Rebinding::default())));
    let url = format!("http://rebind.test:{}/", site.address.port());
    let result = fetcher.get(fetcher.parse(&url).unwrap(), &[]).await;
    refused(
        result,
        "url_not_allowed",
        "`rebind.test` is not a public address",
    );
}
