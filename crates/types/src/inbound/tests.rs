use serde_json::json;

use super::*;
use crate::ErrorKind;

/// A request with this one event.
fn one(event: Value) -> Result<InboundEvent, ApiError> {
    parse_events(vec![event]).map(|mut events| events.remove(0))
}

fn message(content: Value) -> Value {
    json!({"type": "user.message", "content": content})
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, ApiError>, kind: ErrorKind, message: &str) {
    let error = result.expect_err(message);
    assert_eq!(error.kind, kind, "{}", error.message);
    assert!(
        error.message.starts_with(message),
        "{message}\n{}",
        error.message
    );
}

fn event_id() -> EventId {
    EventId(uuid::Uuid::from_u128(1))
}

#[test]
fn content_is_kept_as_it_was_sent() {
    let event = one(message(json!([
        {"text": "hi\u{0}", "type": "text"},
        {"source": {"data": "aGk=", "type": "base64", "media_type": "image/png"}, "type": "image"},
        {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}},
        {"title": null, "type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "aGk="}},
        {"type": "document", "context": "c", "source": {"type": "text", "media_type": "text/plain", "data": "d"}},
        {"type": "document", "source": {"type": "url", "url": "http://example.com/a.pdf"}},
    ])))
    .unwrap();
    assert_eq!(event.event_type(), EventType::UserMessage);
    assert!(event.starts_work());
    insta::assert_snapshot!(event.fields().unwrap(), @r#""content":[{"text":"hi\u0000","type":"text"},{"source":{"data":"aGk=","type":"base64","media_type":"image/png"},"type":"image"},{"type":"image","source":{"type":"url","url":"https://example.com/a.png"}},{"title":null,"type":"document","source":{"type":"base64","media_type":"application/pdf","data":"aGk="}},{"type":"document","context":"c","source":{"type":"text","media_type":"text/plain","data":"d"}},{"type":"document","source":{"type":"url","url":"http://example.com/a.pdf"}}]"#);
}

#[test]
fn the_fields_of_each_event() {
    let id = event_id().to_string();
    let thread = ThreadId(uuid::Uuid::from_u128(2)).to_string();
    for (event, fields) in [
        (json!({"type": "user.interrupt"}), String::new()),
        (
            json!({"type": "user.interrupt", "session_thread_id": null}),
            String::new(),
        ),
        (
            json!({"session_thread_id": thread, "type": "user.interrupt"}),
            format!(r#""session_thread_id":"{thread}""#),
        ),
        (
            json!({"type": "user.tool_confirmation", "tool_use_id": id, "result": "allow", "session_thread_id": thread}),
            format!(r#""tool_use_id":"{id}","result":"allow","deny_message":null"#),
        ),
        (
            json!({"type": "user.tool_confirmation", "deny_message": "no", "result": "deny", "tool_use_id": id}),
            format!(r#""tool_use_id":"{id}","result":"deny","deny_message":"no""#),
        ),
        (
            json!({"type": "user.custom_tool_result", "custom_tool_use_id": id}),
            format!(r#""custom_tool_use_id":"{id}","is_error":null"#),
        ),
        (
            json!({"type": "user.custom_tool_result", "custom_tool_use_id": id, "content": [], "is_error": true}),
            format!(r#""custom_tool_use_id":"{id}","content":[],"is_error":true"#),
        ),
        (
            json!({"type": "user.tool_result", "tool_use_id": id, "content": [
                {"type": "search_result", "source": "https://x", "title": "t", "citations": {"enabled": false}, "content": [{"type": "text", "text": "x"}]},
            ]}),
            format!(
                r#""tool_use_id":"{id}","content":[{{"type":"search_result","source":"https://x","title":"t","citations":{{"enabled":false}},"content":[{{"type":"text","text":"x"}}]}}],"is_error":null"#
            ),
        ),
        (
            json!({"type": "system.message", "content": [{"type": "text", "text": "s"}]}),
            r#""content":[{"type":"text","text":"s"}]"#.to_owned(),
        ),
    ] {
        let name = event["type"].as_str().unwrap().to_owned();
        let event = one(event).unwrap();
        assert_eq!(event.event_type().as_str(), name);
        assert_eq!(event.fields().as_deref(), Some(fields.as_str()));
        assert_eq!(event.answers(), fields.contains(&id).then(event_id));
    }
}

#[test]
fn what_is_no_event() {
    let invalid = ErrorKind::InvalidRequest;
    refused(
        one(json!("hi")),
        invalid,
        "Invalid event at events[0]: must be an object",
    );
    refused(
        one(json!({})),
        invalid,
        "Invalid event at events[0]: missing field `type`",
    );
    refused(
        one(json!({"type": "x"})),
        invalid,
        "Invalid event at events[0]: type: `x` is not known here; expected `user.message`",
    );
    // A type of the API, but not one that clients send.
    refused(
        one(json!({"type": "agent.message", "content": []})),
        invalid,
        "Invalid agent.message event at events[0]: type: `agent.message` is not known here",
    );
    refused(
        one(json!({"type": "user.message", "content": [], "id": "sevt_1"})),
        invalid,
        "Invalid user.message event at events[0]: id: unknown field `id`",
    );
}

#[test]
fn rules_of_each_event() {
    let invalid = ErrorKind::InvalidRequest;
    let id = event_id().to_string();
    let long = "x".repeat(10_001);
    for (event, message) in [
        (
            json!({"type": "user.message"}),
            "Invalid user.message event at events[0]: missing field `content`",
        ),
        (
            message(json!("hi")),
            "Invalid user.message event at events[0]: content: invalid type: string",
        ),
        (
            message(json!([])),
            "Invalid user.message event at events[0]: content: must have at least 1",
        ),
        (
            message(json!(["hi"])),
            "Invalid user.message event at events[0]: content[0]: must be an object with a `type`",
        ),
        (
            message(json!([{"type": "text", "text": ""}])),
            "Invalid user.message event at events[0]: content[0].text: must not be empty",
        ),
        (
            message(json!([{"type": "text", "text": "a", "cache_control": null}])),
            "Invalid user.message event at events[0]: content[0]: cache_control: unknown field",
        ),
        (
            message(json!([{"type": "redacted"}])),
            "Invalid user.message event at events[0]: content[0]: type: `redacted` is not known here",
        ),
        (
            message(json!([{"type": "search_result"}])),
            "Invalid user.message event at events[0]: content[0]: type: `search_result`",
        ),
        (
            message(
                json!([{"type": "image", "source": {"type": "base64", "media_type": "image/tiff", "data": "aGk="}}]),
            ),
            "Invalid user.message event at events[0]: content[0]: source: media_type: unknown variant `image/tiff`",
        ),
        (
            message(
                json!([{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "a b"}}]),
            ),
            "Invalid user.message event at events[0]: content[0].source.data: must be standard base64",
        ),
        (
            message(
                json!([{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ""}}]),
            ),
            "Invalid user.message event at events[0]: content[0].source.data: must not be empty",
        ),
        (
            message(
                json!([{"type": "image", "source": {"type": "url", "url": "file:///etc/passwd"}}]),
            ),
            "Invalid user.message event at events[0]: content[0].source.url: must begin with",
        ),
        (
            message(
                json!([{"type": "image", "source": {"type": "text", "media_type": "text/plain", "data": "x"}}]),
            ),
            "Invalid user.message event at events[0]: content[0]: source: type: `text`",
        ),
        (
            message(
                json!([{"type": "document", "source": {"type": "base64", "media_type": "text/html", "data": "aGk="}}]),
            ),
            "Invalid user.message event at events[0]: content[0]: source: media_type: unknown variant `text/html`, expected `application/pdf`",
        ),
        (
            message(
                json!([{"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": ""}}]),
            ),
            "Invalid user.message event at events[0]: content[0].source.data: must not be empty",
        ),
        (
            json!({"type": "user.interrupt", "session_thread_id": "x"}),
            "Invalid user.interrupt event at events[0]: session_thread_id: `x` is not a valid id",
        ),
        (
            json!({"type": "user.tool_confirmation", "result": "allow"}),
            "Invalid user.tool_confirmation event at events[0]: missing field `tool_use_id`",
        ),
        (
            json!({"type": "user.tool_confirmation", "tool_use_id": "", "result": "allow"}),
            "Invalid user.tool_confirmation event at events[0]: tool_use_id: must have 1 to 128",
        ),
        (
            json!({"type": "user.tool_confirmation", "tool_use_id": "toolu_1", "result": "allow"}),
            "Invalid user.tool_confirmation event at events[0]: tool_use_id: `toolu_1` is not a valid id",
        ),
        (
            json!({"type": "user.tool_confirmation", "tool_use_id": id, "result": "maybe"}),
            "Invalid user.tool_confirmation event at events[0]: result: unknown variant `maybe`",
        ),
        (
            json!({"type": "user.tool_confirmation", "tool_use_id": id, "result": "allow", "deny_message": "x"}),
            "Invalid user.tool_confirmation event at events[0]: deny_message: is only allowed with",
        ),
        (
            json!({"type": "user.tool_confirmation", "tool_use_id": id, "result": "deny", "deny_message": long}),
            "Invalid user.tool_confirmation event at events[0]: deny_message: must have 0 to 10000",
        ),
        (
            json!({"type": "user.custom_tool_result", "custom_tool_use_id": id, "content": "x"}),
            "Invalid user.custom_tool_result event at events[0]: content: invalid type",
        ),
        (
            json!({"type": "user.custom_tool_result", "custom_tool_use_id": id, "content": [{"type": "text", "text": ""}]}),
            "Invalid user.custom_tool_result event at events[0]: content[0].text: must not be empty",
        ),
        (
            json!({"type": "user.tool_result", "tool_use_id": id, "content": [{"type": "search_result", "source": "s", "title": "t", "content": []}]}),
            "Invalid user.tool_result event at events[0]: content[0]: missing field `citations`",
        ),
        (
            json!({"type": "user.define_outcome", "description": "d"}),
            "Invalid user.define_outcome event at events[0]: missing field `rubric`",
        ),
        (
            json!({"type": "user.define_outcome", "description": "d", "rubric": null}),
            "Invalid user.define_outcome event at events[0]: rubric: must be an object",
        ),
        (
            json!({"type": "user.define_outcome", "description": "", "rubric": {"type": "text", "content": "r"}}),
            "Invalid user.define_outcome event at events[0]: description: must have 1",
        ),
        (
            json!({"type": "user.define_outcome", "description": "d", "rubric": {"type": "text", "content": "r"}, "max_iterations": 21}),
            "Invalid user.define_outcome event at events[0]: max_iterations: must be 1 to 20",
        ),
        (
            json!({"type": "user.define_outcome", "description": "d", "rubric": {"type": "text", "content": "r".repeat(262_145)}}),
            "Invalid user.define_outcome event at events[0]: rubric.content: must have 1 to 262144",
        ),
        (
            json!({"type": "system.message", "content": []}),
            "Invalid system.message event at events[0]: content: must have at least 1",
        ),
        (
            json!({"type": "system.message", "content": [{"type": "image", "text": "x"}]}),
            "Invalid system.message event at events[0]: content[0].type: unknown variant `image`",
        ),
    ] {
        refused(one(event), invalid, message);
    }
    let many: Vec<Value> = (0..1001)
        .map(|_| json!({"type": "text", "text": "x"}))
        .collect();
    refused(
        one(json!({"type": "system.message", "content": many})),
        invalid,
        "Invalid system.message event at events[0]: content: must have at most 1000",
    );
}

#[test]
fn files_are_named_by_their_ids() {
    let file = json!({"type": "file", "file_id": crate::FileId::new()});
    let blocks = json!([
        {"type": "image", "source": file}, {"type": "document", "source": file},
        {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}},
    ]);
    let InboundEvent::UserMessage(kept) = one(message(blocks.clone())).unwrap() else {
        panic!("another event");
    };
    assert_eq!(kept.content, blocks);
    for id in ["file_1", "sesn_011111111111111111111111", "../x"] {
        let file = json!({"type": "file", "file_id": id});
        refused(
            one(message(json!([{"type": "image", "source": file}]))),
            ErrorKind::InvalidRequest,
            "Invalid user.message event at events[0]: content[0].source.file_id: `",
        );
    }
    let rubric = json!({"type": "user.define_outcome", "description": "d", "rubric": file});
    assert!(matches!(
        one(rubric),
        Ok(InboundEvent::UserDefineOutcome(_))
    ));
    let many: Vec<Value> = (0..101)
        .map(|_| json!({"type": "document", "source": file}))
        .collect();
    refused(
        one(message(Value::Array(many))),
        ErrorKind::InvalidRequest,
        "events: at most 100 documents may be named by file id",
    );
}

#[test]
fn images_and_documents_have_a_size() {
    let source = |block: &str, media_type: &str, bytes: usize| {
        let data = "AAAA".repeat(bytes.div_ceil(3));
        message(json!([{
            "type": block,
            "source": {"type": "base64", "media_type": media_type, "data": data},
        }]))
    };
    assert!(one(source("image", "image/png", 3_932_160)).is_ok());
    assert!(one(source("document", "application/pdf", 20_971_518)).is_ok());
    refused(
        one(source("image", "image/png", 3_932_163)),
        ErrorKind::InvalidRequest,
        "Invalid user.message event at events[0]: content[0].source.data: an image may have at most 5 MiB in base64, this has 5242884 bytes",
    );
    refused(
        one(source("document", "application/pdf", 20_971_521)),
        ErrorKind::InvalidRequest,
        "Invalid user.message event at events[0]: content[0].source.data: a PDF may have at most 20 MiB, this has 20971521 bytes",
    );
    let long = format!("https://example.com/{}", "a".repeat(2048));
    refused(
        one(message(
            json!([{"type": "image", "source": {"type": "url", "url": long}}]),
        )),
        ErrorKind::InvalidRequest,
        "Invalid user.message event at events[0]: content[0].source.url: may have at most 2048 bytes",
    );
}

#[test]
fn rules_of_a_request() {
    let invalid = ErrorKind::InvalidRequest;
    let text = || message(json!([{"type": "text", "text": "x"}]));
    let system = || json!({"type": "system.message", "content": [{"type": "text", "text": "x"}]});
    refused(
        parse_events(vec![]),
        invalid,
        "events: must have at least 1",
    );
    refused(
        parse_events((0..101).map(|_| text()).collect()),
        invalid,
        "events: must have at most 100 entries, has 101",
    );
    refused(
        parse_events(vec![text(), message(json!([]))]),
        invalid,
        "Invalid user.message event at events[1]: content",
    );
    refused(
        parse_events(vec![system(), text()]),
        invalid,
        "Invalid system.message event at events[0]: must be the last event",
    );
    refused(
        parse_events(vec![text(), system(), system()]),
        invalid,
        "Invalid system.message event at events[1]: must be the last event",
    );
    assert_eq!(parse_events(vec![text(), system()]).unwrap().len(), 2);
    assert_eq!(parse_events(vec![system()]).unwrap().len(), 1);
}

#[test]
fn rules_of_initial_events() {
    let invalid = ErrorKind::InvalidRequest;
    let text = || message(json!([{"type": "text", "text": "x"}]));
    let outcome = || json!({"type": "user.define_outcome", "description": "d", "rubric": {"type": "text", "content": "r"}});
    assert_eq!(parse_initial_events(vec![]), Ok(vec![]));
    assert_eq!(
        parse_initial_events(vec![text(), outcome(), text()])
            .unwrap()
            .len(),
        3
    );
    refused(
        parse_initial_events(vec![outcome(), text(), outcome()]),
        invalid,
        "Invalid user.define_outcome event at initial_events[2]: only one outcome",
    );
    refused(
        parse_initial_events(vec![
            json!({"type": "system.message", "content": [{"type": "text", "text": "x"}]}),
        ]),
        invalid,
        "Invalid system.message event at initial_events[0]: a session can only be created with",
    );
    refused(
        parse_initial_events((0..51).map(|_| text()).collect()),
        invalid,
        "initial_events: must have at most 50",
    );
}
