//! The answers are what the backends' documentation shows, cut down.

use super::*;
use crate::testing::{Say, Site, head, page};

const SEARXNG: &str = r#"{"query": "rust", "number_of_results": 0, "results": [
  {"url": "https://www.rust-lang.org/", "title": "Rust", "content": "A language\nempowering everyone.",
   "thumbnail": null, "engine": "brave", "template": "default.html", "parsed_url": ["https", "www.rust-lang.org", "/", "", "", ""],
   "img_src": "", "priority": "", "engines": ["brave", "duckduckgo"], "positions": [1, 1], "score": 4.0,
   "category": "general", "publishedDate": null},
  {"url": "https://evil.example/rust", "title": "Rust?", "content": "Buy."},
  {"url": "magnet:?xt=urn:btih:1", "title": "A torrent", "content": ""},
  {"title": "no address"},
  {"url": "https://doc.rust-lang.org/book/", "title": "", "content": "Vec<T> &amp; friends"}],
 "answers": [], "corrections": [], "infoboxes": [], "suggestions": ["rust game"], "unresponsive_engines": [["google", "timeout"]]}"#;

const BRAVE: &str = r#"{"type": "search", "query": {"original": "rust", "more_results_available": true},
 "web": {"type": "search", "family_friendly": true, "results": [
  {"type": "search_result", "subtype": "generic", "title": "Rust &amp; <strong>you</strong>", "url": "https://www.rust-lang.org/",
   "description": "It&#x27;s <strong>fast</strong>.", "age": "2 days ago", "page_age": "2026-01-15T00:00:00", "language": "en",
   "profile": {"name": "Rust", "url": "https://www.rust-lang.org/"}, "meta_url": {"scheme": "https", "netloc": "www.rust-lang.org"},
   "extra_snippets": ["And <strong>safe</strong>."]}]}}"#;

const TAVILY: &str = r#"{"query": "rust", "follow_up_questions": null, "answer": null, "images": [], "results": [
  {"title": "Rust", "url": "https://www.rust-lang.org/", "content": "A language.", "score": 0.81025416, "raw_content": null}],
 "response_time": "1.67", "request_id": "r"}"#;

async fn site(answer: &'static str) -> Site {
    Site::start(move |_| page("application/json", answer)).await
}

fn searcher(site: &Site, backend: SearchBackend) -> Searcher {
    let config = SearchConfig {
        backend,
        url: site.url("/base/").parse().unwrap(),
        key: Some(SecretString::from("a-secret-key")),
        results: 10,
        timeout: Duration::from_secs(2),
    };
    Searcher::new(config, &OperatorOptions::default()).unwrap()
}

fn location() -> UserLocation {
    serde_json::from_value(json!({
        "type": "approximate", "city": "Tübingen", "region": "Baden-Württemberg", "country": "DE",
        "timezone": "Europe/Berlin",
    }))
    .unwrap()
}

fn lists(allowed: &[&str], blocked: &[&str]) -> Vec<Domains> {
    let list = |entries: &[&str]| {
        (!entries.is_empty()).then(|| entries.iter().map(|e| (*e).to_owned()).collect())
    };
    vec![Domains {
        allowed: list(allowed),
        blocked: list(blocked),
    }]
}

#[track_caller]
fn blocks(hits: &[Hit]) -> Vec<Value> {
    hits.iter().map(Hit::block).collect()
}

#[tokio::test]
async fn searxng() {
    let site = site(SEARXNG).await;
    let searcher = searcher(&site, SearchBackend::Searxng);
    let hits = searcher.search(" rust ", &[], None).await.unwrap();
    assert_eq!(
        blocks(&hits)[0],
        json!({
            "type": "search_result", "source": "https://www.rust-lang.org/", "title": "Rust",
            "content": [{"type": "text", "text": "A language\nempowering everyone."}],
            "citations": {"enabled": false},
        })
    );
    let found: Vec<_> = hits.iter().map(|hit| (&*hit.title, &*hit.text)).collect();
    assert_eq!(
        found[1..],
        [
            ("Rust?", "Buy."),
            ("https://doc.rust-lang.org/book/", "Vec<T> &amp; friends"),
        ]
    );
    // What is not allowed is not there, and nobody says so.
    let only = lists(&["rust-lang.org"], &[]);
    assert_eq!(searcher.search("rust", &only, None).await.unwrap().len(), 2);
    let paths = lists(&["rust-lang.org/book"], &[]);
    assert_eq!(
        searcher.search("rust", &paths, None).await.unwrap().len(),
        1
    );
    let not = lists(&[], &["evil.example", "doc.rust-lang.org"]);
    assert_eq!(searcher.search("rust", &not, None).await.unwrap().len(), 1);
    let none = lists(&["example.org", "b.test"], &[]);
    assert_eq!(searcher.search("rust", &none, None).await.unwrap(), []);
    let lines: Vec<_> = site
        .requests()
        .iter()
        .map(|request| request.lines().next().unwrap().to_owned())
        .collect();
    assert_eq!(lines[0], "GET /base/search?q=rust&format=json HTTP/1.1");
    assert!(
        lines[1].contains("q=rust+site%3Arust-lang.org&"),
        "{}",
        lines[1]
    );
    assert!(
        lines[3].contains("-site%3Aevil.example+-site%3Adoc.rust-lang.org"),
        "{}",
        lines[3]
    );
    assert!(
        lines[4].contains("%28site%3Aexample.org+OR+site%3Ab.test%29"),
        "{}",
        lines[4]
    );
}

#[tokio::test]
async fn brave() {
    let site = site(BRAVE).await;
    let searcher = searcher(&site, SearchBackend::Brave);
    let hits = searcher
        .search("rust", &[], Some(&location()))
        .await
        .unwrap();
    assert_eq!(
        hits,
        [Hit {
            url: "https://www.rust-lang.org/".to_owned(),
            title: "Rust & you".to_owned(),
            text: "It's fast.\nAnd safe.".to_owned(),
        }]
    );
    let request = site.requests()[0].to_lowercase();
    for part in [
        "get /base/res/v1/web/search?q=rust&count=20&",
        "\r\nx-subscription-token: a-secret-key\r\n",
        "\r\nx-loc-country: de\r\n",
        "\r\nx-loc-timezone: europe/berlin\r\n",
        "\r\naccept: application/json\r\n",
    ] {
        assert!(request.contains(part), "{part}\n{request}");
    }
    // No results at all look like this.
    let empty =
        Site::start(|_| page("application/json", r#"{"type": "search", "query": {}}"#)).await;
    let searcher = self::searcher(&empty, SearchBackend::Brave);
    assert_eq!(searcher.search("rust", &[], None).await.unwrap(), []);
}

#[tokio::test]
async fn tavily() {
    let site = site(TAVILY).await;
    let searcher = searcher(&site, SearchBackend::Tavily);
    let blocked = lists(&[], &["evil.example", "rust-lang.org/secret"]);
    let hits = searcher
        .search("rust", &blocked, Some(&location()))
        .await
        .unwrap();
    assert_eq!(hits.len(), 1);
    let request = &site.requests()[0];
    assert!(
        request.starts_with("POST /base/search HTTP/1.1\r\n"),
        "{request}"
    );
    assert!(
        request
            .to_lowercase()
            .contains("authorization: bearer a-secret-key\r\n")
    );
    let body: Value = serde_json::from_str(request.split_once("\r\n\r\n").unwrap().1).unwrap();
    assert_eq!(
        body,
        json!({
            "query": "rust", "max_results": 20, "search_depth": "basic", "include_domains": [],
            "exclude_domains": ["evil.example"], "country": "germany",
        })
    );
}

#[tokio::test]
async fn results_are_bounded() {
    let items: Vec<_> = (0..50)
        .map(|n| {
            json!({
                "url": format!("https://{n}.test/"),
                "title": "t".repeat(10_000),
                "content": "ä".repeat(10_000),
            })
        })
        .collect();
    let body = json!({"results": items}).to_string();
    let site = Site::start(move |_| page("application/json", &body)).await;
    let hits = searcher(&site, SearchBackend::Searxng)
        .search("x", &[], None)
        .await
        .unwrap();
    assert_eq!(hits.len(), 10);
    assert_eq!(hits[0].text.chars().count(), MAX_SNIPPET);
    assert_eq!(hits[0].title.chars().count(), MAX_TITLE + 1);
}

#[tokio::test]
async fn backends_that_fail() {
    let site = Site::start(
        |path| match path.split_once("q=").unwrap().1.split('&').next() {
            Some("limit") => head("429 Too Many Requests", ""),
            Some("forbidden") => head("403 Forbidden", ""),
            Some("redirect") => head("302 Found", "location: http://elsewhere.test/\r\n"),
            Some("html") => page("text/html", "<html>"),
            Some("list") => page("application/json", "[]"),
            Some("endless") => Say::Endless(
                b"HTTP/1.1 200 OK\r\n\r\n{\"results\": [".to_vec(),
                b" ".repeat(65536),
            ),
            Some("drip") => Say::Drip(b"HTTP/1.1 200 OK\r\n\r\n ".to_vec()),
            _ => Say::Bytes(Vec::new()),
        },
    )
    .await;
    let searcher = searcher(&site, SearchBackend::Searxng);
    let long = "x".repeat(401);
    for (query, code, words) in [
        ("limit", "too_many_requests", "try again later"),
        ("forbidden", "unavailable", "HTTP 403"),
        ("redirect", "unavailable", "HTTP 302"),
        ("html", "unavailable", "cannot be read"),
        ("list", "unavailable", "cannot be read"),
        ("endless", "unavailable", "cannot be read"),
        ("drip", "unavailable", "within 2 seconds"),
        ("hangs-up", "unavailable", "cannot be reached"),
        ("", "invalid_input", "empty"),
        (&long, "query_too_long", "400"),
    ] {
        let error = searcher.search(query, &[], None).await.unwrap_err();
        assert_eq!(error.code, code, "{query}: {error}");
        assert!(error.message.contains(words), "{query}: {error}");
        assert!(!error.to_string().contains("secret"), "{error}");
        assert!(!error.to_string().contains("127.0.0.1"), "{error}");
    }
}
