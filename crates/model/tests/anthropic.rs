//! The provider against the scripted API: everything that can happen between a request and its end.

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt;
use selfsame_mock::{Running, Script};
use selfsame_model::{
    AnthropicConfig, AnthropicProvider, Block, Delta, ModelError, ModelErrorKind, Provider,
    Request, Route, Router, StopReason, Thinking,
};
use serde_json::{Value, json, value::RawValue};

struct World {
    script: Script,
    _mock: Running,
    provider: AnthropicProvider,
}

impl World {
    async fn new(rules: Value) -> Self {
        Self::with(rules, |_| {}).await
    }

    async fn with(rules: Value, change: impl FnOnce(&mut AnthropicConfig)) -> Self {
        let script = Script::new();
        script.add_json(&rules.to_string()).unwrap();
        let mock = selfsame_mock::spawn(script.clone()).await.unwrap();
        let mut config = AnthropicConfig::new(mock.url().parse().unwrap(), Some("sesame".into()));
        change(&mut config);
        let client = selfsame_net::operator_client(&Default::default()).unwrap();
        Self {
            script,
            _mock: mock,
            provider: AnthropicProvider::new(config, client).unwrap(),
        }
    }

    async fn ask(&self, request: Request) -> (Vec<Delta>, Option<ModelError>) {
        let mut stream = match self.provider.stream(request).await {
            Ok(stream) => stream,
            Err(error) => return (Vec::new(), Some(error)),
        };
        let mut deltas = Vec::new();
        while let Some(delta) = stream.next().await {
            match delta {
                Ok(delta) => deltas.push(delta),
                Err(error) => {
                    assert!(stream.next().await.is_none(), "nothing follows an error");
                    return (deltas, Some(error));
                }
            }
        }
        (deltas, None)
    }

    async fn error(&self, model: &str) -> ModelError {
        self.ask(request(model)).await.1.expect("an error")
    }
}

fn request(model: &str) -> Request {
    Request {
        model: model.to_owned(),
        max_tokens: 4000,
        messages: vec![raw(&json!({"role": "user", "content": "hi"}))],
        ..Request::default()
    }
}

fn raw(json: &Value) -> Box<RawValue> {
    serde_json::value::to_raw_value(json).unwrap()
}

#[tokio::test]
async fn a_whole_response() {
    let world = World::new(json!({"answer": [
        {"thinking": "hm"},
        {"text": ["Hel", "lo"]},
        {"tool": {"id": "toolu_1", "name": "bash", "raw": ["{\"command\":", "  \"ls\"}"]}},
        {"tool": {"id": "toolu_2", "name": "bash", "raw": "{\"comm"}},
        {"usage": {"input_tokens": 9, "output_tokens": 8, "cache_read_input_tokens": 3}},
    ]}))
    .await;
    let (deltas, error) = world.ask(request("m")).await;
    assert!(error.is_none());
    let text: Vec<_> = deltas
        .iter()
        .filter_map(|d| match d {
            Delta::Text { index: 1, text } => Some(text.as_str()),
            _ => None,
        })
        .collect();
    assert_eq!(text, ["Hel", "lo"]);
    let inputs: Vec<_> = deltas
        .iter()
        .filter_map(|d| match d {
            Delta::BlockDone {
                block: Block::ToolUse { input, .. },
                ..
            } => Some(input.as_ref().map(|raw| raw.get()).map_err(String::as_str)),
            _ => None,
        })
        .collect();
    assert_eq!(inputs, [Ok("{\"command\":  \"ls\"}"), Err("{\"comm")]);
    let Some(Delta::Done {
        stop_reason,
        usage,
        stop_details,
    }) = deltas.last()
    else {
        panic!("{deltas:?}");
    };
    assert_eq!(*stop_reason, StopReason::ToolUse);
    assert_eq!(
        (
            usage.input_tokens,
            usage.output_tokens,
            usage.cache_read_input_tokens
        ),
        (9, 8, 3)
    );
    assert!(stop_details.is_none());
}

#[tokio::test]
async fn what_is_sent() {
    let world = World::with(json!([]), |config| {
        config.betas = vec!["one-2026-01-01".into()];
        config.headers = vec![("X-Gateway".into(), "g".into())];
    })
    .await;
    let body = Request {
        speed: Some("fast".into()),
        effort: Some("high".into()),
        thinking: Thinking::Adaptive,
        system: vec![raw(&json!({"type": "text", "text": "s"}))],
        ..request("m")
    };
    let (_, error) = world.ask(body.clone()).await;
    assert!(error.is_none(), "{error:?}");
    let log = world.script.requests(None);
    assert_eq!(log[0].body.as_bytes(), body.to_body());
    for (name, value) in [
        ("x-api-key", "sesame"),
        ("x-gateway", "g"),
        ("anthropic-version", "2023-06-01"),
        ("anthropic-beta", "one-2026-01-01,fast-mode-2026-02-01"),
        ("content-type", "application/json"),
    ] {
        assert_eq!(
            log[0].headers.get(name).map(String::as_str),
            Some(value),
            "{name}"
        );
    }
}

#[tokio::test]
async fn text_arrives_before_the_response_is_complete() {
    let world =
        World::new(json!({"answer": [{"text": ["a"]}, {"gate": "g"}, {"text": ["b"]}]})).await;
    let mut stream = world.provider.stream(request("m")).await.unwrap();
    let first = async {
        loop {
            match stream.next().await.unwrap().unwrap() {
                Delta::Text { text, .. } => return text,
                Delta::Done { .. } => panic!("no text"),
                _ => {}
            }
        }
    };
    assert_eq!(first.await, "a");
    world.script.wait_gate("g").await;
    world.script.release("g", None);
    let rest: Vec<_> = stream.collect().await;
    assert!(
        matches!(rest.last(), Some(Ok(Delta::Done { .. }))),
        "{rest:?}"
    );
}

#[tokio::test]
async fn dropping_the_stream_cancels_upstream() {
    let world = World::new(json!({"answer": [{"text": "a"}, {"hang": true}]})).await;
    let mut stream = world.provider.stream(request("m")).await.unwrap();
    stream.next().await.unwrap().unwrap();
    drop(stream);
    let log = world.script.wait_requests(None, 1, true).await;
    assert_eq!(log[0].end, Some("aborted"));
}

/// Also while no header has come: the future itself is dropped.
#[tokio::test]
async fn dropping_the_request_cancels_upstream() {
    let world = World::new(json!({"answer": [{"gate": "g"}]})).await;
    tokio::select! {
        result = world.provider.stream(request("m")) => panic!("{:?}", result.err()),
        () = world.script.wait_gate("g") => {}
    }
    let log = world.script.wait_requests(None, 1, true).await;
    assert_eq!(log[0].end, Some("aborted"));
}

#[tokio::test]
async fn refusals_of_the_upstream() {
    use ModelErrorKind::{Billing, Overloaded, RateLimited, RequestFailed};
    let statuses = [
        (400, RequestFailed, false),
        (401, RequestFailed, false),
        (402, Billing, false),
        (403, RequestFailed, false),
        (404, RequestFailed, false),
        (413, RequestFailed, false),
        (429, RateLimited, true),
        (500, RequestFailed, true),
        (503, Overloaded, true),
        (529, Overloaded, true),
    ];
    let rules: Vec<_> = statuses
        .iter()
        .map(|(status, ..)| {
            json!({
                "when": {"model": status.to_string()},
                "answer": [{"error": {"status": status, "message": "words", "retry_after": 3}}],
            })
        })
        .collect();
    let world = World::new(json!(rules)).await;
    for (status, kind, retryable) in statuses {
        let error = world.error(&status.to_string()).await;
        assert_eq!((error.kind, error.retryable), (kind, retryable), "{status}");
        assert_eq!(error.message, "words");
        assert_eq!(error.retry_after, Some(Duration::from_secs(3)));
    }
}

#[tokio::test]
async fn streams_that_break() {
    let world = World::new(json!([
        {"when": {"model": "late"}, "answer": [{"text": "a"}, {"error": {"status": 529, "message": "busy"}}]},
        {"when": {"model": "abort"}, "answer": [{"text": "a"}, {"cut": "abort"}]},
        {"when": {"model": "end"}, "answer": [{"text": "a"}, {"cut": "end"}]},
        {"when": {"model": "bytes"}, "answer": [{"cut_after_bytes": 900}, {"text": "a"}]},
        {"when": {"model": "garbage"}, "answer": [{"text": "a"}, {"raw": "data: {]\n\n"}]},
    ]))
    .await;
    let (deltas, error) = world.ask(request("late")).await;
    let error = error.unwrap();
    assert_eq!(
        (error.kind, error.message.as_str()),
        (ModelErrorKind::Overloaded, "busy")
    );
    assert_eq!(deltas.len(), 4, "{deltas:?}");
    for model in ["abort", "end", "bytes", "garbage"] {
        let (deltas, error) = world.ask(request(model)).await;
        let error = error.unwrap();
        assert!(error.retryable, "{model}: {error:?}");
        assert_eq!(error.kind, ModelErrorKind::RequestFailed, "{model}");
        assert!(matches!(deltas[0], Delta::Started { .. }), "{model}");
        assert!(
            !deltas.iter().any(|d| matches!(d, Delta::Done { .. })),
            "{model}"
        );
    }
}

/// However slowly, as long as something comes.
#[tokio::test]
async fn a_slow_drip_is_a_response() {
    let world = World::new(json!({"answer": [
        {"drip": {"bytes": 1, "every_ms": 0}}, {"text": "wörld"}, {"tool": {"name": "t", "input": {"a": 1}}},
    ]}))
    .await;
    let (deltas, error) = world.ask(request("m")).await;
    assert!(error.is_none());
    assert_eq!(
        deltas
            .iter()
            .filter(|d| matches!(d, Delta::BlockDone { .. }))
            .count(),
        2
    );
}

#[tokio::test]
async fn silence_ends_a_request() {
    let rules = json!([
        {"when": {"model": "early"}, "answer": [{"hang": true}]},
        {"when": {"model": "late"}, "answer": [{"text": "a"}, {"hang": true}]},
    ]);
    let world = World::with(rules, |config| config.idle = Duration::from_millis(50)).await;
    for model in ["early", "late"] {
        let error = world.error(model).await;
        assert!(error.retryable);
        assert_eq!(
            error.message,
            "The model provider sent nothing for 0.05 seconds"
        );
    }
    let log = world.script.wait_requests(None, 2, true).await;
    assert!(log.iter().all(|r| r.end == Some("aborted")));
}

#[tokio::test]
async fn nobody_there() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let client = selfsame_net::operator_client(&Default::default()).unwrap();
    let config = AnthropicConfig::new(url.parse().unwrap(), None);
    let provider = AnthropicProvider::new(config, client).unwrap();
    let error = provider.stream(request("m")).await.err().unwrap();
    assert!(error.retryable);
    assert_eq!(error.message, "The model provider could not be reached");
}

#[tokio::test]
async fn a_server_that_is_no_model() {
    // The mock's list of models is JSON at another path; any 404 will do as well.
    let world = World::with(json!([]), |config| {
        config.base_url = config.base_url.join("/elsewhere").unwrap();
    })
    .await;
    let error = world.error("m").await;
    assert!(!error.retryable);
    assert_eq!(error.message, "Not found");
}

#[tokio::test]
async fn routes() {
    let one = World::new(json!({"answer": "one"})).await;
    let two = World::new(json!({"answer": "two"})).await;
    let route = |name: &str, pattern: &str, upstream: Option<&str>, world: World| {
        let script = world.script.clone();
        let keep = world._mock;
        let route = Route {
            name: name.into(),
            pattern: pattern.into(),
            upstream_model: upstream.map(str::to_owned),
            provider: Arc::new(world.provider),
        };
        (route, script, keep)
    };
    let (one, script_one, _one) = route("one", "claude-*", None, one);
    let (two, script_two, _two) = route("two", "local", Some("qwen:8b"), two);
    let router = Router::new(vec![one, two]);
    for model in ["claude-x", "local"] {
        let mut stream = router.stream(request(model)).await.unwrap();
        while let Some(delta) = stream.next().await {
            delta.unwrap();
        }
    }
    assert_eq!(script_one.requests(None)[0].model, "claude-x");
    assert_eq!(script_two.requests(None)[0].model, "qwen:8b");
    let error = router.stream(request("other")).await.err().unwrap();
    assert!(!error.retryable);
    assert!(error.message.contains("`other`"));
}

/// Turns follow one another on one connection, which saves a handshake each.
#[tokio::test]
async fn connections_are_used_again() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let mock = selfsame_mock::spawn(Script::new()).await.unwrap();
    let upstream = mock.url().trim_start_matches("http://").to_owned();
    // A relay that can count connections.
    let accepted = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = accepted.clone();
    tokio::spawn(async move {
        loop {
            let (mut near, _) = listener.accept().await.unwrap();
            count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            let mut far = tokio::net::TcpStream::connect(&upstream).await.unwrap();
            tokio::spawn(async move {
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            });
        }
    });
    let client = selfsame_net::operator_client(&Default::default()).unwrap();
    let config = AnthropicConfig::new(url.parse().unwrap(), Some("k".into()));
    let provider = AnthropicProvider::new(config, client).unwrap();
    for _ in 0..5 {
        let mut stream = provider.stream(request("m")).await.unwrap();
        while let Some(delta) = stream.next().await {
            if matches!(delta.unwrap(), Delta::Done { .. }) {
                break;
            }
        }
    }
    assert_eq!(accepted.load(std::sync::atomic::Ordering::SeqCst), 1);
}
