use std::time::Duration;

use selfsame_net::{Limits, guarded_client_with};
use serde_json::json;

use super::*;
use crate::testing::{Say, Site, head, loopback, page};

fn client(total: Duration) -> Client {
    let limits = Limits {
        total: Some(total),
        redirects: 0,
        ..Limits::default()
    };
    guarded_client_with(&loopback(), &limits).unwrap()
}

fn grant(endpoint: &str) -> Grant {
    Grant {
        token_endpoint: endpoint.parse().unwrap(),
        client_id: "an id".into(),
        auth: ClientAuth::None,
        refresh_token: SecretString::from("refresh/1"),
        resource: None,
        scope: None,
    }
}

async fn answered(say: Say) -> Result<Tokens, Failure> {
    let site = Site::start(move |_| say.clone()).await;
    refresh(
        &client(Duration::from_secs(30)),
        &grant(&site.url("/token")),
    )
    .await
}

fn json_page(body: impl AsRef<[u8]>) -> Say {
    page("application/json", body)
}

fn with_status(status: &str, content_type: &str, body: &str) -> Say {
    Say::Bytes(
        format!(
            "HTTP/1.1 {status}\r\ncontent-type: {content_type}\r\nretry-after: 7\r\ncontent-length: {}\r\n\
             connection: close\r\n\r\n{body}",
            body.len()
        )
        .into_bytes(),
    )
}

const GOOD: &str =
    r#"{"access_token":"at-2","token_type":"bearer","expires_in":60,"refresh_token":"rt-2"}"#;

#[tokio::test]
async fn each_way_of_saying_who_the_client_is() {
    let site = Site::start(|_| json_page(GOOD)).await;
    let secret = || SecretString::from("s&c:r%t é");
    let all = [
        ClientAuth::None,
        ClientAuth::Post(secret()),
        ClientAuth::Basic(secret()),
    ];
    for auth in all {
        let grant = Grant {
            auth,
            resource: Some("https://mcp.example.com/mcp".into()),
            scope: Some("read write".into()),
            ..grant(&site.url("/token?tenant=1"))
        };
        let tokens = refresh(&client(Duration::from_secs(30)), &grant)
            .await
            .unwrap();
        assert_eq!(tokens.access_token.expose_secret(), "at-2");
        assert_eq!(tokens.refresh_token.unwrap().expose_secret(), "rt-2");
        assert_eq!(tokens.expires_in, Some(Duration::from_secs(60)));
    }
    let start = "grant_type=refresh_token&refresh_token=refresh%2F1";
    let end = "scope=read+write&resource=https%3A%2F%2Fmcp.example.com%2Fmcp";
    let bodies = [
        format!("{start}&client_id=an+id&{end}"),
        format!("{start}&client_id=an+id&client_secret=s%26c%3Ar%25t+%C3%A9&{end}"),
        format!("{start}&{end}"),
    ];
    let requests = site.requests();
    assert_eq!(requests.len(), 3);
    for (request, wanted) in requests.iter().zip(bodies) {
        let (head, body) = request.split_once("\r\n\r\n").unwrap();
        assert!(
            head.starts_with("POST /token?tenant=1 HTTP/1.1\r\n"),
            "{head}"
        );
        assert!(
            head.contains("content-type: application/x-www-form-urlencoded"),
            "{head}"
        );
        assert!(head.contains("accept: application/json"), "{head}");
        assert_eq!(body, wanted);
    }
    let pair = STANDARD.encode("an+id:s%26c%3Ar%25t+%C3%A9");
    assert!(
        requests[2].contains(&format!("authorization: Basic {pair}\r\n")),
        "{}",
        requests[2]
    );
    assert!(!requests[0].contains("authorization") && !requests[1].contains("authorization"));
}

#[tokio::test]
async fn answers_that_cannot_be_used_are_permanent_failures() {
    let long = "x".repeat(MAX_TOKEN + 1);
    for body in [
        "".to_owned(),
        "<html>Sign in</html>".into(),
        "null".into(),
        "[]".into(),
        "\"at\"".into(),
        "{}".into(),
        r#"{"access_token":null}"#.into(),
        r#"{"access_token":7}"#.into(),
        r#"{"access_token":["at"]}"#.into(),
        r#"{"access_token":""}"#.into(),
        r#"{"access_token":"two words"}"#.into(),
        r#"{"access_token":"at\r\nx-admin: 1"}"#.into(),
        r#"{"access_token":"at\u0000"}"#.into(),
        r#"{"access_token":"ät"}"#.into(),
        r#"{"access_token":"at","token_type":"DPoP"}"#.into(),
        r#"{"ok":false,"error":"invalid_grant"}"#.into(),
        json!({"access_token": long}).to_string(),
        format!(
            r#"{{"access_token":"at","more":"{}"}}"#,
            "x".repeat(MAX_ANSWER)
        ),
        "[".repeat(MAX_ANSWER),
        GOOD[..40].to_owned(),
    ] {
        let failure = answered(json_page(&body)).await.unwrap_err();
        assert!(failure.is_permanent, "{body:.80}: {failure:?}");
        assert_eq!(failure.answer.unwrap().status, 200);
    }
    for content_type in [
        "text/html",
        "text/plain",
        "",
        "application/x-www-form-urlencoded",
    ] {
        let failure = answered(page(content_type, GOOD)).await.unwrap_err();
        assert!(failure.is_permanent, "{content_type}: {failure:?}");
    }
    for content_type in ["Application/JSON ; charset=utf-8", "application/token+json"] {
        assert!(
            answered(page(content_type, GOOD)).await.is_ok(),
            "{content_type}"
        );
    }
}

#[tokio::test]
async fn a_lifetime_of_any_shape() {
    let ten_years = 315_360_000;
    for (said, lifetime) in [
        ("3600", Some(3600)),
        ("3600.9", Some(3600)),
        ("\"3600\"", Some(3600)),
        ("\" 60 \"", Some(60)),
        ("1e400", None),
        ("1e300", Some(ten_years)),
        ("9223372036854775808", Some(ten_years)),
        ("\"inf\"", Some(ten_years)),
        ("\"nan\"", None),
        ("0", None),
        ("0.5", None),
        ("-1", None),
        ("-9223372036854775808", None),
        ("null", None),
        ("true", None),
        ("[3600]", None),
        ("{}", None),
        ("\"\"", None),
        ("\"soon\"", None),
        ("\"2026-01-01T00:00:00Z\"", None),
    ] {
        let body = format!(r#"{{"access_token":"at","expires_in":{said}}}"#);
        let found = answered(json_page(body))
            .await
            .map(|tokens| tokens.expires_in);
        match (found, said) {
            // Not a number that this JSON can hold.
            (Err(failure), "1e400") => assert!(failure.is_permanent),
            (found, _) => {
                assert_eq!(found.unwrap(), lifetime.map(Duration::from_secs), "{said}");
            }
        }
    }
}

#[tokio::test]
async fn a_new_refresh_token_of_any_shape() {
    for (said, kept) in [
        ("\"rt-2\"", Some("rt-2")),
        ("\"\"", None),
        ("null", None),
        ("7", None),
        ("{}", None),
        ("\"rt\\n2\"", None),
    ] {
        let body = format!(r#"{{"access_token":"at","refresh_token":{said}}}"#);
        let tokens = answered(json_page(body)).await.unwrap();
        let found = tokens
            .refresh_token
            .as_ref()
            .map(ExposeSecret::expose_secret);
        assert_eq!(found, kept, "{said}");
    }
}

#[tokio::test]
async fn failures_are_told_apart() {
    let error = |code: &str| json!({"error": code, "error_description": "at-1 rt-1"}).to_string();
    for (status, body, is_permanent, reason) in [
        (
            "400 Bad Request",
            error("invalid_grant"),
            true,
            "HTTP 400, invalid_grant",
        ),
        ("400 Bad Request", error("rt-1"), true, "HTTP 400"),
        ("400 Bad Request", "no".into(), true, "HTTP 400"),
        (
            "401 Unauthorized",
            error("invalid_client"),
            true,
            "HTTP 401, invalid_client",
        ),
        ("403 Forbidden", String::new(), true, "HTTP 403"),
        ("404 Not Found", String::new(), true, "HTTP 404"),
        (
            "400 Bad Request",
            error("temporarily_unavailable"),
            false,
            "HTTP 400, temporarily_unavailable",
        ),
        ("408 Request Timeout", String::new(), false, "HTTP 408"),
        ("425 Too Early", String::new(), false, "HTTP 425"),
        (
            "429 Too Many Requests",
            error("slow_down"),
            false,
            "HTTP 429, slow_down",
        ),
        (
            "500 Internal Server Error",
            error("invalid_grant"),
            false,
            "HTTP 500, invalid_grant",
        ),
        ("503 Service Unavailable", String::new(), false, "HTTP 503"),
        (
            "304 Not Modified",
            String::new(),
            true,
            "HTTP 304, a redirect",
        ),
    ] {
        let say = with_status(status, "application/json", &body);
        let failure = answered(say).await.unwrap_err();
        assert_eq!(
            (failure.is_permanent, &*failure.reason),
            (is_permanent, reason)
        );
        assert_eq!(failure.retry_after, Some(Duration::from_secs(7)));
        assert!(!format!("{failure:?}").contains("rt-1"), "{failure:?}");
    }
}

#[tokio::test]
async fn a_redirect_takes_the_secrets_nowhere() {
    for status in [
        "301 Moved Permanently",
        "302 Found",
        "307 Temporary Redirect",
        "308 Permanent Redirect",
    ] {
        let other = Site::start(|_| json_page(GOOD)).await;
        let moved = head(status, &format!("location: {}\r\n", other.url("/token")));
        let failure = answered(moved).await.unwrap_err();
        assert!(
            failure.is_permanent && failure.reason.ends_with("a redirect"),
            "{failure:?}"
        );
        assert!(other.requests().is_empty(), "{status}");
    }
}

#[tokio::test]
async fn endless_and_slow_answers_end() {
    let start = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n".to_vec();
    let failure = answered(Say::Endless(start.clone(), b" {\"a\":".repeat(100)))
        .await
        .unwrap_err();
    assert!(failure.is_permanent, "{failure:?}");
    assert_eq!(failure.answer.unwrap().body.len(), MAX_ANSWER);

    // Bytes of a head, and of a body, that never come to an end.
    for drip in [b"H".to_vec(), [start, b" ".repeat(1000)].concat()] {
        let site = Site::start(move |_| Say::Drip(drip.clone())).await;
        let impatient = client(Duration::from_millis(300));
        let failure = refresh(&impatient, &grant(&site.url("/")))
            .await
            .unwrap_err();
        assert!(!failure.is_permanent, "{failure:?}");
    }
    for garbage in [
        &b""[..],
        b"\0\0\0",
        b"HTTP/1.1 200 OK\r\ncontent-length: 9999\r\n\r\n{",
    ] {
        let failure = answered(Say::Bytes(garbage.to_vec())).await.unwrap_err();
        assert!(!failure.is_permanent, "{failure:?}");
    }
}

#[tokio::test]
async fn nothing_inside_is_asked() {
    let site = Site::start(|_| json_page(GOOD)).await;
    let guarded =
        guarded_client_with(&selfsame_net::Policy::default(), &Limits::default()).unwrap();
    let failure = refresh(&guarded, &grant(&site.url("/token")))
        .await
        .unwrap_err();
    assert!(
        !failure.is_permanent && failure.answer.is_none(),
        "{failure:?}"
    );
    assert!(
        failure.reason.contains("not a public address"),
        "{failure:?}"
    );
    assert!(site.requests().is_empty());

    let gone = refresh(
        &client(Duration::from_secs(30)),
        &grant("http://127.0.0.1:1/"),
    )
    .await;
    assert!(!gone.unwrap_err().is_permanent);
}
