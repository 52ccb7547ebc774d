//! Results of every kind, right and wrong.

use rmcp::model::ServerJsonRpcMessage;
use serde_json::{Value, json};

use super::*;

const PNG: &str = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";

/// What a client makes of a result as it comes over the wire.
fn of(result: Value) -> Option<Shown> {
    let message = json!({"jsonrpc": "2.0", "id": 1, "result": result});
    match serde_json::from_str(&message.to_string()).unwrap() {
        ServerJsonRpcMessage::Response(response) => show(response.result),
        other => panic!("{other:?}"),
    }
}

fn blocks(content: Value) -> Vec<Value> {
    let shown = of(json!({"content": content})).unwrap();
    assert!(!shown.is_error);
    shown.blocks
}

fn texts(result: Value) -> Vec<String> {
    let shown = of(result).unwrap();
    shown
        .blocks
        .iter()
        .map(|block| {
            text_of(block)
                .unwrap_or_else(|| panic!("{block}"))
                .to_owned()
        })
        .collect()
}

#[test]
fn all_kinds_of_content() {
    let pdf = STANDARD.encode(b"%PDF-1.7 and so on");
    let shown = blocks(json!([
        {"type": "text", "text": "hello", "annotations": {"audience": ["user"]}},
        {"type": "image", "data": PNG, "mimeType": "image/png"},
        {"type": "audio", "data": "AAAA", "mimeType": "audio/wav"},
        {"type": "resource", "resource": {"uri": "file:///a.txt", "mimeType": "text/plain", "text": "inside"}},
        {"type": "resource", "resource": {"uri": "file:///a.pdf", "mimeType": "application/pdf", "blob": pdf}},
        {"type": "resource", "resource": {"uri": "file:///a.png", "blob": PNG}},
        {"type": "resource", "resource": {"uri": "file:///a.bin", "blob": "AAAA"}},
        {"type": "resource_link", "uri": "https://x/y", "name": "y", "mimeType": "text/html", "description": "Why."},
    ]));
    assert_eq!(
        json!(shown),
        json!([
            {"type": "text", "text": "hello"},
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}},
            {"type": "text", "text": "[Audio (audio/wav, 3 bytes) cannot be shown here]"},
            {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "inside"},
             "title": "file:///a.txt"},
            {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": pdf}},
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}},
            {"type": "text", "text": "[A resource file:///a.bin (unknown type, 3 bytes) cannot be shown here]"},
            {"type": "text", "text": "[Resource y: https://x/y, text/html] Why."},
        ])
    );
}

#[test]
fn what_images_claim_to_be_is_not_believed() {
    let image =
        |data: &str, kind: &str| blocks(json!([{"type": "image", "data": data, "mimeType": kind}]));
    assert_eq!(
        image(PNG, "text/html")[0]["source"]["media_type"],
        "image/png"
    );
    for (data, kind) in [
        ("AAAA", "image/png"),
        ("not base64!", "image/png"),
        ("", "image/png"),
        (STANDARD.encode("<svg/>").as_str(), "image/svg+xml"),
        (
            &format!("{PNG}{}", "A".repeat(MAX_IMAGE_ENCODED)),
            "image/png",
        ),
    ] {
        assert_eq!(image(data, kind)[0]["type"], "text", "{kind}");
    }
    let odd = &image("AAAA", &"x\n".repeat(10_000))[0];
    assert!(odd["text"].as_str().unwrap().len() < 600);
}

#[test]
fn structured_content_is_shown_once() {
    let structured = json!({"degrees": 7});
    let result = |content: Value| json!({"content": content, "structuredContent": structured});
    assert_eq!(texts(result(json!([]))), [r#"{"degrees":7}"#]);
    let said = json!([{"type": "text", "text": "{ \"degrees\": 7 }"}]);
    assert_eq!(texts(result(said)).len(), 1);
    let summary = json!([{"type": "text", "text": "cold"}]);
    assert_eq!(texts(result(summary)), ["cold", r#"{"degrees":7}"#]);
    assert_eq!(texts(json!({"structuredContent": [1, 2]})), ["[1,2]"]);
    for (said, wrapped) in [
        (json!(["seven"]), json!("seven")),
        (json!(["7"]), json!(7)),
        (json!(["a", "b"]), json!(["a", "b"])),
        (json!([]), json!([])),
    ] {
        let blocks: Vec<_> = said
            .as_array()
            .unwrap()
            .iter()
            .map(|text| json!({"type": "text", "text": text}))
            .collect();
        let result = json!({"content": blocks, "structuredContent": {"result": wrapped}});
        let shown = texts(result);
        let expected = if blocks.is_empty() {
            json!(["(no output)"])
        } else {
            said
        };
        assert_eq!(json!(shown), expected);
    }
    let other = json!([{"type": "text", "text": "a"}]);
    let result = json!({"content": other, "structuredContent": {"result": ["a", "b"]}});
    assert_eq!(texts(result).len(), 2);
}

#[test]
fn errors_are_errors() {
    let shown = of(json!({"content": [{"type": "text", "text": "no such file"}], "isError": true}))
        .unwrap();
    assert!(shown.is_error);
    let shown = of(json!({"content": [{"type": "video"}], "isError": true})).unwrap();
    assert!(shown.is_error);
}

#[test]
fn results_of_every_wrong_shape() {
    for (result, shown) in [
        (json!({}), "(no output)"),
        (json!({"content": []}), "(no output)"),
        (
            json!({"content": [{"type": "text", "text": ""}]}),
            "(no output)",
        ),
        (
            json!({"content": [{"type": "text", "text": " \n"}]}),
            "(no output)",
        ),
        (
            json!({"content": [{"type": "hologram", "data": 1}]}),
            r#"{"type":"hologram","data":1}"#,
        ),
        (json!({"content": [{"type": "text"}]}), r#"{"type":"text"}"#),
        (json!({"content": ["bare"]}), r#""bare""#),
        (json!({"content": "bare"}), r#""bare""#),
        (json!({"content": [null]}), "null"),
        (
            json!({"content": [{"type": "text", "text": 5}]}),
            r#"{"type":"text","text":5}"#,
        ),
    ] {
        assert_eq!(texts(result.clone()), [shown], "{result}");
    }
    // One block that is unknown takes nothing from the others.
    let mixed = json!({"content": [{"type": "text", "text": "a"}, {"type": "?"}, {"type": "text", "text": "b"}]});
    assert_eq!(texts(mixed), ["a", r#"{"type":"?"}"#, "b"]);
    for result in [
        json!({"tools": []}),
        json!({"protocolVersion": "2025-06-18", "capabilities": {}, "serverInfo": {"name": "x", "version": "1"}}),
        json!({"something": "else"}),
        json!([1]),
        json!("text"),
        json!(null),
    ] {
        assert_eq!(of(result.clone()), None, "{result}");
    }
    let many: Vec<_> = (0..10_000)
        .map(|n| json!({"type": "text", "text": n.to_string()}))
        .collect();
    let shown = texts(json!({"content": many}));
    assert_eq!(shown.len(), MAX_BLOCKS + 1);
    assert_eq!(
        shown[MAX_BLOCKS],
        "[9500 more blocks of this result are left out]"
    );
}
