//! The mock over HTTP, as its users see it.

mod client;
mod demo;

use client::{Client, streaming, user};
use serde_json::{Value, json};

#[tokio::test]
async fn the_wire_format() {
    let client = Client::new().await;
    client
        .rules(json!({"when": {"model": "m"}, "answer": [
            {"thinking": ["hm"]},
            {"text": ["Hel", "lo"]},
            {"tool": {"id": "toolu_1", "name": "bash", "input": {"command": "ls"}}},
            {"usage": {"input_tokens": 7}},
        ]}))
        .await;
    let (status, body) = client.post("/v1/messages", &streaming("m", "hi")).await;
    assert_eq!(status, 200);
    let body = body.split("\"id\":\"msg_").collect::<Vec<_>>();
    let (_, rest) = body[1].split_once('"').unwrap();
    let body = format!("{}\"id\":\"{rest}", body[0]);
    let expected = r#"event: message_start
data: {"type":"message_start","message":{"type":"message","id":","role":"assistant","model":"m","content":[],"stop_reason":null,"stop_sequence":null,"stop_details":null,"usage":{"input_tokens":7,"cache_creation_input_tokens":0,"cache_read_input_tokens":0,"cache_creation":{"ephemeral_5m_input_tokens":0,"ephemeral_1h_input_tokens":0},"output_tokens":1,"service_tier":"standard"}}}

event: ping
data: {"type":"ping"}

event: content_block_start
data: {"type":"content_block_start","index":0,"content_block":{"type":"thinking","thinking":"","signature":""}}

event: content_block_delta
data: {"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta","thinking":"hm"}}

event: content_block_delta
data: {"type":"content_block_delta","index":0,"delta":{"type":"signature_delta","signature":"SIGNATURE"}}

event: content_block_stop
data: {"type":"content_block_stop","index":0}

event: content_block_start
data: {"type":"content_block_start","index":1,"content_block":{"type":"text","text":""}}

event: content_block_delta
data: {"type":"content_block_delta","index":1,"delta":{"type":"text_delta","text":"Hel"}}

event: content_block_delta
data: {"type":"content_block_delta","index":1,"delta":{"type":"text_delta","text":"lo"}}

event: content_block_stop
data: {"type":"content_block_stop","index":1}

event: content_block_start
data: {"type":"content_block_start","index":2,"content_block":{"type":"tool_use","id":"toolu_1","name":"bash","input":{}}}

event: content_block_delta
data: {"type":"content_block_delta","index":2,"delta":{"type":"input_json_delta","partial_json":""}}

event: content_block_delta
data: {"type":"content_block_delta","index":2,"delta":{"type":"input_json_delta","partial_json":"{\"comm"}}

event: content_block_delta
data: {"type":"content_block_delta","index":2,"delta":{"type":"input_json_delta","partial_json":"and\":\""}}

event: content_block_delta
data: {"type":"content_block_delta","index":2,"delta":{"type":"input_json_delta","partial_json":"ls\"}"}}

event: content_block_stop
data: {"type":"content_block_stop","index":2}

event: message_delta
data: {"type":"message_delta","delta":{"stop_reason":"tool_use","stop_sequence":null,"stop_details":null},"usage":{"input_tokens":7,"cache_creation_input_tokens":0,"cache_read_input_tokens":0,"cache_creation":{"ephemeral_5m_input_tokens":0,"ephemeral_1h_input_tokens":0},"output_tokens":7,"service_tier":"standard"}}

event: message_stop
data: {"type":"message_stop"}

"#;
    let start = body.find("bW9jay1").unwrap();
    let end = start + body[start..].find('"').unwrap();
    let body = format!("{}SIGNATURE{}", &body[..start], &body[end..]);
    assert_eq!(body, expected);

    let whole = client
        .ask(json!({"model": "m", "messages": [user("hi")]}))
        .await;
    let kinds: Vec<_> = whole["content"]
        .as_array()
        .unwrap()
        .iter()
        .map(|b| &b["type"])
        .collect();
    assert_eq!(kinds, ["thinking", "text", "tool_use"]);
    assert_eq!(whole["stop_reason"], "tool_use");
    assert_eq!(whole["content"][2]["input"], json!({"command": "ls"}));
}

#[tokio::test]
async fn rules_are_matched_in_order_and_used_up() {
    let client = Client::new().await;
    client
        .rules(json!([
            {"when": {"model": "a"}, "times": 1, "answer": "first"},
            {"when": {"model": "a", "last_user_contains": "blue"}, "answer": "blue"},
            {"when": {"model": "a", "nth": 4}, "answer": "fourth"},
            {"name": "rest", "when": {"model": "a*"}, "answer": "rest"},
            {"when": {"system_contains": "pirate"}, "answer": "arr"},
            {"when": {"contains": "marker-17"}, "answer": "marked"},
        ]))
        .await;
    assert_eq!(client.say("a", "blue").await, "first");
    assert_eq!(client.say("a", "blue").await, "blue");
    assert_eq!(client.say("a", "red").await, "rest");
    assert_eq!(client.say("a", "red").await, "fourth");
    assert_eq!(client.say("a-2", "red").await, "rest");
    assert_eq!(client.say("b", "xx marker-17").await, "marked");
    let pirate = json!({"model": "b", "system": "Be a pirate", "messages": [user("x")]});
    assert_eq!(client.ask(pirate).await["content"][0]["text"], "arr");
    assert!(client.say("b", "x").await.contains("demo model"));

    let rules = client.get("/_mock/rules").await;
    let used: Vec<_> = rules["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| &r["used"])
        .collect();
    assert_eq!(used, [1, 1, 1, 2, 1, 1]);

    client.post("/_mock/reset", &json!({"model": "a"})).await;
    assert_eq!(
        client.get("/_mock/rules").await["data"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
    assert!(client.say("a", "blue").await.contains("demo model"));
    let log = client.get("/_mock/requests?model=a").await;
    assert_eq!(log["data"].as_array().unwrap().len(), 1);
    assert_eq!(log["data"][0]["nth"], 1);
    client
        .http
        .post(format!("{}/_mock/reset", client.mock.url()))
        .send()
        .await
        .unwrap();
    assert_eq!(client.get("/_mock/rules").await, json!({"data": []}));

    let (status, body) = client
        .post("/_mock/rules", &json!({"answer": [{"oops": 1}]}))
        .await;
    assert_eq!(status, 400);
    assert!(body.contains("unknown variant `oops`"), "{body}");
}

#[tokio::test]
async fn conditions_on_turns_and_results() {
    let client = Client::new().await;
    client
        .rules(json!([
            {"when": {"model": "m", "tool_results": 2, "tool_result_contains": "forty"}, "answer": "both"},
            {"when": {"model": "m", "tool_results": 1}, "answer": "one"},
            {"when": {"model": "m", "turn": 1, "tool": "t"}, "answer": "second"},
        ]))
        .await;
    let call = |id: &str| json!({"type": "tool_use", "id": id, "name": "t", "input": {}});
    let result = |id: &str| json!({"type": "tool_result", "tool_use_id": id, "content": [{"type": "text", "text": "forty"}]});
    let ask = async |calls: Value, results: Value| {
        let body = json!({
            "model": "m",
            "tools": [{"name": "t", "input_schema": {"type": "object"}}],
            "messages": [user("x"), {"role": "assistant", "content": calls}, {"role": "user", "content": results}],
        });
        client.ask(body).await["content"][0]["text"].clone()
    };
    let text = json!([{"type": "text", "text": "y"}]);
    assert_eq!(
        ask(
            json!([call("1"), call("2")]),
            json!([result("1"), result("2")])
        )
        .await,
        "both"
    );
    assert_eq!(ask(json!([call("1")]), json!([result("1")])).await, "one");
    assert_eq!(ask(text.clone(), text).await, "second");
}

#[tokio::test]
async fn gates_hold_responses_back() {
    let client = Client::new().await;
    client
        .rules(json!([
            {"when": {"model": "m"}, "answer": [{"text": ["a"]}, {"gate": "g"}, {"text": ["b"]}]},
            {"when": {"model": "n"}, "answer": [{"gate": "h"}, {"error": {"status": 529}}]},
        ]))
        .await;
    let mut response = client
        .request("/v1/messages", &streaming("m", "x"))
        .send()
        .await
        .unwrap();
    let first = response.chunk().await.unwrap().unwrap();
    assert!(String::from_utf8_lossy(&first).ends_with("\"index\":0}\n\n"));
    client.get("/_mock/gates/g/wait").await;
    assert_eq!(
        client.get("/_mock/gates").await,
        json!({"data": [{"name": "g", "open": false, "waiting": 1}]})
    );
    assert_eq!(client.script.requests(None)[0].end, None);
    client
        .post("/_mock/gates/g/release?times=1", &Value::Null)
        .await;
    let rest = response.text().await.unwrap();
    assert!(rest.contains("\"text\":\"b\"") && rest.contains("message_stop"));

    // Used up: the next one waits again, and leaves when its client does.
    let response = client
        .request("/v1/messages", &streaming("m", "x"))
        .send()
        .await
        .unwrap();
    client.get("/_mock/gates/g/wait").await;
    drop(response);
    let log = client
        .get("/_mock/requests/wait?model=m&count=2&ended=true")
        .await;
    assert_eq!(log["data"][0]["end"], "sent");
    assert_eq!(log["data"][1]["end"], "aborted");

    let body = streaming("n", "x");
    let held = client.post("/v1/messages", &body);
    let open = async {
        client.get("/_mock/gates/h/wait").await;
        client.script.release("h", None);
    };
    let ((status, body), ()) = tokio::join!(held, open);
    assert_eq!(status, 529);
    assert!(body.contains("overloaded_error"), "{body}");
    let (status, _) = client.post("/v1/messages", &streaming("n", "x")).await;
    assert_eq!(status, 529, "an opened gate stays open");

    let timeout = client.get("/_mock/gates/nobody/wait?timeout_ms=1").await;
    assert_eq!(timeout["type"], "error");
}

#[tokio::test]
async fn errors_and_broken_streams() {
    let client = Client::new().await;
    client
        .rules(json!([
            {"when": {"model": "e"}, "answer": [{"error": {"status": 429, "message": "slow", "retry_after": 2, "retry_after_ms": 30}}]},
            {"when": {"model": "late"}, "answer": [{"text": "a"}, {"error": {"status": 529}}]},
            {"when": {"model": "end"}, "answer": [{"text": "a"}, {"cut": "end"}]},
            {"when": {"model": "abort"}, "answer": [{"text": "a"}, {"cut": "abort"}]},
            {"when": {"model": "bytes"}, "answer": [{"cut_after_bytes": 20}, {"text": "a"}]},
            {"when": {"model": "drip"}, "answer": [{"drip": {"bytes": 50, "every_ms": 0}}, {"text": "a"}]},
            {"when": {"model": "raw"}, "answer": [{"raw": "event: x\ndata: y\n\n"}, {"ping": true}, {"refusal": {"category": "bio"}}]},
        ]))
        .await;
    let response = client
        .request("/v1/messages", &streaming("e", "x"))
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), 429);
    assert_eq!(response.headers()["retry-after"], "2");
    assert_eq!(response.headers()["retry-after-ms"], "30");
    assert!(response.headers().contains_key("request-id"));
    let error: Value = response.json().await.unwrap();
    assert_eq!(
        error["error"],
        json!({"type": "rate_limit_error", "message": "slow"})
    );

    let (status, body) = client.post("/v1/messages", &streaming("late", "x")).await;
    assert_eq!(status, 200);
    assert!(body.contains(
        "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\""
    ));
    assert!(!body.contains("message_stop"));

    let (_, body) = client.post("/v1/messages", &streaming("end", "x")).await;
    assert!(body.ends_with("\"index\":0}\n\n"), "{body}");

    // What was sent before the cut arrives.
    for (model, length) in [("abort", None), ("bytes", Some(20))] {
        let mut response = client
            .request("/v1/messages", &streaming(model, "x"))
            .send()
            .await
            .unwrap();
        let mut body = Vec::new();
        let error = loop {
            match response.chunk().await {
                Ok(Some(chunk)) => body.extend_from_slice(&chunk),
                Ok(None) => panic!("{model} ended well"),
                Err(error) => break error,
            }
        };
        assert!(error.is_body() || error.is_decode(), "{error:?}");
        match length {
            Some(length) => assert_eq!(body.len(), length),
            None => assert!(body.ends_with(b"\"index\":0}\n\n")),
        }
    }
    let (_, body) = client.post("/v1/messages", &streaming("drip", "x")).await;
    assert!(body.ends_with("message_stop\"}\n\n"));
    let (_, body) = client.post("/v1/messages", &streaming("raw", "x")).await;
    assert!(
        body.contains("event: x\ndata: y\n\nevent: ping\n"),
        "{body}"
    );
    assert!(
        body.contains(r#""stop_details":{"type":"refusal","category":"bio","explanation":null}"#)
    );
    let ends: Vec<_> = client
        .script
        .wait_requests(None, 7, true)
        .await
        .iter()
        .map(|r| r.end.unwrap())
        .collect();
    assert_eq!(
        ends,
        ["error", "error", "cut", "cut", "cut", "sent", "sent"]
    );
}

#[tokio::test]
async fn bodies_are_logged_byte_for_byte() {
    let client = Client::new().await;
    let body = "{\"model\": \"m\",  \"max_tokens\": 5, \"x\": \"\\u00e9é\",\n\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}";
    let url = format!("{}/v1/messages", client.mock.url());
    let send = |key: bool, version: bool, body: &'static str| {
        let mut request = client.http.post(&url).body(body);
        if key {
            request = request.header("authorization", "Bearer t");
        }
        if version {
            request = request.header("anthropic-version", "2023-06-01");
        }
        request.send()
    };
    assert_eq!(send(true, true, body).await.unwrap().status(), 200);
    let log = client.get("/_mock/requests?model=m").await;
    assert_eq!(log["data"][0]["body"], body);
    assert_eq!(log["data"][0]["headers"]["authorization"], "Bearer t");
    assert_eq!(log["data"][0]["rule"], Value::Null);

    assert_eq!(send(false, true, body).await.unwrap().status(), 401);
    assert_eq!(send(true, false, body).await.unwrap().status(), 400);
    assert_eq!(send(true, true, "{").await.unwrap().status(), 400);
    assert_eq!(send(true, true, "[]").await.unwrap().status(), 400);
    assert_eq!(
        send(true, true, r#"{"model":"m","max_tokens":5,"messages":[]}"#)
            .await
            .unwrap()
            .status(),
        400
    );
    let refused = client.script.requests(Some("m")).pop().unwrap();
    assert_eq!(
        (refused.rule.as_deref(), refused.nth, refused.end),
        (Some("refused"), 1, Some("error"))
    );
}

#[tokio::test]
async fn usage_is_predictable() {
    let client = Client::new().await;
    client
        .rules(json!({"when": {"model": "m"}, "answer": "12345"}))
        .await;
    let block = json!({"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}});
    let body = json!({"model": "m", "messages": [{"role": "user", "content": [block]}]});
    for (read, created) in [(0, 7), (7, 0)] {
        let usage = client.ask(body.clone()).await["usage"].clone();
        assert_eq!(usage["input_tokens"], 0);
        assert_eq!(usage["cache_read_input_tokens"], read);
        assert_eq!(usage["cache_creation_input_tokens"], created);
        assert_eq!(
            usage["cache_creation"]["ephemeral_5m_input_tokens"],
            created
        );
        assert_eq!(usage["output_tokens"], 2);
    }
    let (_, counted) = client.post("/v1/messages/count_tokens", &body).await;
    let counted: Value = serde_json::from_str(&counted).unwrap();
    assert!(counted["input_tokens"].as_u64().unwrap() >= 7);
    let models = client.get("/v1/models").await;
    assert_eq!(models["data"][0]["type"], "model");
    assert_eq!(client.get("/v1/models/any").await["id"], "any");
}
