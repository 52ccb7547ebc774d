//! The parser by tables and properties: however bytes are cut, the same deltas; whatever is wrong, an
//! error and never a panic.

use proptest::prelude::*;
use selfsame_model::{
    Delta, ModelError, ModelErrorKind,
    messages::{Limits, Parser},
};

const LIMITS: Limits = Limits {
    line: 4096,
    content: 16_384,
};

fn event(name: &str, data: &str) -> String {
    format!("event: {name}\ndata: {data}\n\n")
}

fn typed(data: &str) -> String {
    let kind = data.split('"').nth(3).expect("the type comes first");
    event(kind, data)
}

const START: &str = r#"{"type":"message_start","message":{"id":"msg_1","type":"message","role":"assistant","content":[],"model":"m","stop_reason":null,"usage":{"input_tokens":10,"cache_creation_input_tokens":5,"cache_read_input_tokens":3,"cache_creation":{"ephemeral_5m_input_tokens":5,"ephemeral_1h_input_tokens":0},"output_tokens":1,"service_tier":"standard","speed":"fast"}}}"#;
const END: &str = r#"{"type":"message_delta","delta":{"stop_reason":"end_turn","stop_sequence":null},"usage":{"output_tokens":42}}"#;
const STOP: &str = r#"{"type":"message_stop"}"#;

fn stream(events: &[&str]) -> String {
    events.iter().map(|e| typed(e)).collect()
}

/// With everything a response can have.
fn rich() -> String {
    let mut text = stream(&[START, r#"{"type":"ping"}"#]);
    text.push_str(": a comment\n\n");
    text.push_str(&event("shiny_new_event", "not even json"));
    text.push_str(&stream(&[
        r#"{"type":"content_block_start","index":0,"content_block":{"type":"thinking","thinking":"","signature":""}}"#,
        r#"{"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta","thinking":"Let me "}}"#,
        r#"{"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta","thinking":"see é\u0000."}}"#,
        r#"{"type":"content_block_delta","index":0,"delta":{"type":"signature_delta","signature":"c2ln"}}"#,
        r#"{"type":"content_block_stop","index":0}"#,
        r#"{"type":"content_block_start","index":1,"content_block":{"type":"redacted_thinking","data":"xyz"}}"#,
        r#"{"type":"content_block_stop","index":1}"#,
        r#"{"type":"content_block_start","index":2,"content_block":{"type":"hologram","beam":[1]}}"#,
        r#"{"type":"content_block_delta","index":2,"delta":{"type":"beam_delta","beam":2}}"#,
        r#"{"type":"content_block_stop","index":2}"#,
        r#"{"type":"content_block_start","index":3,"content_block":{"type":"text","text":""}}"#,
        r#"{"type":"content_block_delta","index":3,"delta":{"type":"text_delta","text":"Hello "}}"#,
        r#"{"type":"content_block_delta","index":3,"delta":{"type":"citations_delta","citation":{}}}"#,
        r#"{"type":"content_block_delta","index":3,"delta":{"type":"text_delta","text":"wörld 🦀"}}"#,
        r#"{"type":"content_block_stop","index":3}"#,
        r#"{"type":"content_block_start","index":4,"content_block":{"type":"tool_use","id":"toolu_1","name":"bash","input":{}}}"#,
        r#"{"type":"content_block_delta","index":4,"delta":{"type":"input_json_delta","partial_json":""}}"#,
        r#"{"type":"content_block_delta","index":4,"delta":{"type":"input_json_delta","partial_json":"{\"command\":  \"l"}}"#,
        r#"{"type":"content_block_delta","index":4,"delta":{"type":"input_json_delta","partial_json":"s\", \"x\": 1.50}"}}"#,
        r#"{"type":"content_block_stop","index":4}"#,
        END,
        STOP,
    ]));
    text
}

fn parse<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<Delta>, Result<(), ModelError>) {
    let mut parser = Parser::new(LIMITS);
    let mut out = Vec::new();
    for piece in pieces {
        if let Err(error) = parser.push(piece, &mut out) {
            return (out, Err(error));
        }
    }
    let result = parser.finish();
    (out, result)
}

fn parse_text(text: &str) -> (Vec<Delta>, Result<(), ModelError>) {
    parse([text.as_bytes()])
}

fn show(deltas: &[Delta]) -> String {
    deltas.iter().map(|d| format!("{d:?}\n")).collect()
}

#[test]
fn a_rich_response() {
    let (deltas, result) = parse_text(&rich());
    result.unwrap();
    let expected = r#"Started { usage: Usage { input_tokens: 10, output_tokens: 1, cache_creation_input_tokens: 5, cache_read_input_tokens: 3, ephemeral_5m_input_tokens: 5, ephemeral_1h_input_tokens: 0, speed: Some("fast") } }
BlockStarted { index: 0, kind: Thinking }
BlockDone { index: 0, block: Thinking { thinking: "Let me see é\0.", signature: "c2ln" } }
BlockStarted { index: 1, kind: RedactedThinking }
BlockDone { index: 1, block: RedactedThinking { data: "xyz" } }
BlockStarted { index: 3, kind: Text }
Text { index: 3, text: "Hello " }
Text { index: 3, text: "wörld 🦀" }
BlockDone { index: 3, block: Text { text: "Hello wörld 🦀" } }
BlockStarted { index: 4, kind: ToolUse { id: "toolu_1", name: "bash" } }
BlockDone { index: 4, block: ToolUse { id: "toolu_1", name: "bash", input: Ok(RawValue({"command":  "ls", "x": 1.50})) } }
Done { stop_reason: EndTurn, usage: Usage { input_tokens: 10, output_tokens: 42, cache_creation_input_tokens: 5, cache_read_input_tokens: 3, ephemeral_5m_input_tokens: 5, ephemeral_1h_input_tokens: 0, speed: Some("fast") }, stop_details: None }
"#;
    assert_eq!(show(&deltas), expected);
}

#[test]
fn bytes_after_the_end_do_not_matter() {
    let whole = rich();
    let (deltas, result) = parse_text(&format!("{whole}event: error\ndata: {{}}\n\n\u{1}"));
    result.unwrap();
    assert_eq!(show(&deltas), show(&parse_text(&whole).0));
}

#[test]
fn tool_inputs() {
    for (initial, fragments, expected) in [
        ("{}", &[][..], "Ok(RawValue({}))"),
        (r#"{"a": 1}"#, &[], r#"Ok(RawValue({"a": 1}))"#),
        ("null", &[], r"Ok(RawValue({}))"),
        (r#"{"a": 1}"#, &[r#"{\"b\":2}"#], r#"Ok(RawValue({"b":2}))"#),
        (
            "{}",
            &[r#"{\"b\":"#, "[", "]}"],
            r#"Ok(RawValue({"b":[]}))"#,
        ),
        ("{}", &[r#"{\"b\":"#], r#"Err("{\"b\":")"#),
        ("{}", &["[1]"], r#"Err("[1]")"#),
        ("{}", &["{} {}"], r#"Err("{} {}")"#),
        (
            "{}",
            &[r#"{\"b\":\"\\u0000\"}"#],
            r#"Ok(RawValue({"b":"\u0000"}))"#,
        ),
        ("{}", &[r#"{\"b\":1e400}"#], r#"Ok(RawValue({"b":1e400}))"#),
    ] {
        let start = format!(
            r#"{{"type":"content_block_start","index":0,"content_block":{{"type":"tool_use","id":"t","name":"n","input":{initial}}}}}"#
        );
        let deltas: Vec<String> = fragments
            .iter()
            .map(|f| {
                format!(
                    r#"{{"type":"content_block_delta","index":0,"delta":{{"type":"input_json_delta","partial_json":"{f}"}}}}"#
                )
            })
            .collect();
        let mut events = vec![START, start.as_str()];
        events.extend(deltas.iter().map(String::as_str));
        events.extend([r#"{"type":"content_block_stop","index":0}"#, END, STOP]);
        let (deltas, result) = parse_text(&stream(&events));
        result.unwrap();
        let shown = show(&deltas);
        // `null` as an input is no object: what some gateways send for "none yet".
        let expected = if initial == "null" {
            r#"input: Ok(RawValue({}))"#.to_owned()
        } else {
            format!("input: {expected}")
        };
        assert!(
            shown.contains(&expected),
            "{initial} {fragments:?}: {shown}"
        );
    }
}

#[test]
fn stop_reasons() {
    for (delta, shown) in [
        (r#"{"stop_reason":"max_tokens"}"#, "MaxTokens"),
        (
            r#"{"stop_reason":"stop_sequence","stop_sequence":"x"}"#,
            "StopSequence",
        ),
        (r#"{"stop_reason":"tool_use"}"#, "ToolUse"),
        (r#"{"stop_reason":"pause_turn"}"#, "PauseTurn"),
        (
            r#"{"stop_reason":"model_context_window_exceeded"}"#,
            "ModelContextWindowExceeded",
        ),
        (r#"{"stop_reason":"bored"}"#, r#"Other("bored")"#),
        (r#"{"stop_reason":"refusal"}"#, "Refusal"),
    ] {
        let end =
            format!(r#"{{"type":"message_delta","delta":{delta},"usage":{{"output_tokens":1}}}}"#);
        let (deltas, result) = parse_text(&stream(&[START, &end, STOP]));
        result.unwrap();
        let shown = format!("stop_reason: {shown},");
        assert!(show(&deltas).contains(&shown), "{delta}: {}", show(&deltas));
    }
    let end = r#"{"type":"message_delta","delta":{"stop_reason":"refusal","stop_details":{"type":"refusal","category":"bio","explanation":null,"new":1}}}"#;
    let (deltas, result) = parse_text(&stream(&[START, end, STOP]));
    result.unwrap();
    assert!(
        show(&deltas).contains(r#"StopDetails { category: Some("bio"), explanation: None }"#),
        "{deltas:?}"
    );
}

#[test]
fn errors_inside_a_stream() {
    let error = r#"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}"#;
    for before in [&[][..], &[START]] {
        let mut events = before.to_vec();
        events.push(error);
        let (deltas, result) = parse_text(&stream(&events));
        assert_eq!(deltas.len(), before.len());
        let error = result.unwrap_err();
        assert_eq!(error.kind, ModelErrorKind::Overloaded);
        assert!(error.retryable);
        assert_eq!(error.message, "Overloaded");
    }
    for data in [r#"{"type":"error"}"#, r#"{"type":"error","error":null}"#] {
        let error = parse_text(&event("error", data)).1.unwrap_err();
        assert_eq!(error.kind, ModelErrorKind::Unknown);
    }
}

#[test]
fn broken_protocols_are_errors() {
    let text =
        r#"{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}"#;
    let delta =
        r#"{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"a"}}"#;
    let stop = r#"{"type":"content_block_stop","index":0}"#;
    for events in [
        &[][..],
        &[STOP],
        &[END, STOP],
        &[text],
        &[START, START],
        &[START, STOP],
        &[START, delta],
        &[START, stop],
        &[START, text, text],
        &[START, text, stop, text],
        &[START, text, stop, delta],
        &[START, text, END, STOP],
        &[START, END],
        &[START, r#"{"type":"content_block_start","index":-1}"#],
        &[
            START,
            r#"{"type":"content_block_start","index":0,"content_block":3}"#,
        ],
        &[START, r#"{"type":"message_delta"}"#],
    ] {
        let (_, result) = parse_text(&stream(events));
        let error = result.expect_err(&format!("{events:?}"));
        assert!(error.retryable, "{events:?}");
        assert_eq!(error.kind, ModelErrorKind::RequestFailed);
    }
    for text in [
        "data: {\n\n",
        "data: \u{7f}\n\n",
        "event: message_stop\ndata: []\n\n",
    ] {
        assert!(parse_text(text).1.is_err(), "{text:?}");
    }
}

#[test]
fn the_name_of_an_event_may_be_missing() {
    let named = rich();
    let nameless: String = named
        .lines()
        .filter(|l| !l.starts_with("event:") && *l != "data: not even json")
        .map(|l| format!("{l}\r\n"))
        .collect();
    let (deltas, result) = parse_text(&nameless);
    result.unwrap();
    assert_eq!(show(&deltas), show(&parse_text(&named).0));
}

#[test]
fn limits() {
    let long = "x".repeat(5000);
    let error = parse_text(&event("shiny", &long)).1.unwrap_err();
    assert!(error.message.contains("larger than 4096 bytes"), "{error}");

    let text =
        r#"{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}"#;
    let piece = format!(
        r#"{{"type":"content_block_delta","index":0,"delta":{{"type":"text_delta","text":"{}"}}}}"#,
        "x".repeat(3000)
    );
    let mut all = stream(&[START, text]);
    for _ in 0..6 {
        all.push_str(&typed(&piece));
    }
    assert!(
        parse_text(&all)
            .1
            .unwrap_err()
            .message
            .contains("too large")
    );
}

/// Cuts `bytes` at pseudo-random places given by `cuts`.
fn pieces<'a>(mut bytes: &'a [u8], cuts: &'a [usize]) -> Vec<&'a [u8]> {
    let mut out = Vec::new();
    let mut cuts = cuts.iter().cycle();
    while !bytes.is_empty() {
        let n = cuts
            .next()
            .map_or(bytes.len(), |n| 1 + n % bytes.len().min(97));
        let (piece, rest) = bytes.split_at(n);
        out.push(piece);
        bytes = rest;
    }
    out
}

proptest! {
    #[test]
    fn cuts_do_not_matter(cuts in prop::collection::vec(0usize..1000, 1..50)) {
        let whole = rich();
        let (expected, _) = parse_text(&whole);
        let (deltas, result) = parse(pieces(whole.as_bytes(), &cuts));
        prop_assert!(result.is_ok());
        prop_assert_eq!(show(&deltas), show(&expected));
    }

    /// A response that was cut off gives a prefix of its deltas and an error.
    #[test]
    fn truncation_is_an_error(at in 0usize..10_000, cuts in prop::collection::vec(0usize..1000, 1..20)) {
        let whole = rich();
        // Without the last line feed the end has not been dispatched.
        let at = at % whole.len();
        let (expected, _) = parse_text(&whole);
        let (deltas, result) = parse(pieces(&whole.as_bytes()[..at], &cuts));
        prop_assert!(result.unwrap_err().retryable);
        prop_assert!(show(&expected).starts_with(&show(&deltas)));
    }

    /// Damage anywhere: any outcome but a panic, the same for every cut.
    #[test]
    fn damage_is_survived(
        damage in prop::collection::vec((0usize..10_000, any::<u8>()), 1..8),
        cuts in prop::collection::vec(0usize..1000, 1..20),
    ) {
        let mut bytes = rich().into_bytes();
        for (at, byte) in damage {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        let (deltas, result) = parse([bytes.as_slice()]);
        let (again, result_again) = parse(pieces(&bytes, &cuts));
        prop_assert_eq!(show(&deltas), show(&again));
        prop_assert_eq!(format!("{result:?}"), format!("{result_again:?}"));
    }

    #[test]
    fn noise_is_survived(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        let (_, result) = parse([bytes.as_slice()]);
        prop_assert!(result.is_err());
    }
}
