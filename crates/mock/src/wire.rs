//! The wire format of a response: content blocks as events, or as one JSON object.

use std::fmt::Write;

use serde_json::{Map, Value, json};

use crate::{
    rule::{Chunks, Failure, Tool},
    usage::{Input, tokens},
    validate::signature,
};

pub(crate) const SIGNATURE_PREFIX: &str = "bW9jay1zaWduYXR1cmUt";

/// Most deltas that a text which is not cut by the script becomes.
const MAX_DELTAS: usize = 8;
const MIN_DELTA_CHARS: usize = 24;

/// Writes a response event by event and keeps it as a whole, too.
#[derive(Debug)]
pub(crate) struct Writer {
    head: Head,
    /// Events not yet taken.
    pub(crate) out: String,
    /// The content so far, for a response that is not streamed.
    pub(crate) content: Vec<Value>,
    output_bytes: usize,
    pub(crate) called_tool: bool,
}

/// What is known before the first block.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) id: String,
    pub(crate) model: String,
    pub(crate) input: Input,
    pub(crate) usage: Map<String, Value>,
}

/// How the message ends.
#[derive(Debug, Default)]
pub(crate) struct End {
    pub(crate) stop_reason: Option<String>,
    pub(crate) stop_sequence: Option<String>,
    pub(crate) stop_details: Value,
}

impl Writer {
    pub(crate) fn new(head: Head) -> Self {
        Self {
            head,
            out: String::new(),
            content: Vec::new(),
            output_bytes: 0,
            called_tool: false,
        }
    }

    fn event(&mut self, data: &Value) {
        let kind = data["type"].as_str().unwrap_or("message");
        // Writing to a String does not fail.
        let _ = write!(self.out, "event: {kind}\ndata: {data}\n\n");
    }

    pub(crate) fn start(&mut self) {
        let message = self.message(&[], &End::default(), 1);
        self.event(&json!({"type": "message_start", "message": message}));
        self.ping();
    }

    pub(crate) fn ping(&mut self) {
        self.event(&json!({"type": "ping"}));
    }

    fn block(&mut self, start: Value, deltas: impl IntoIterator<Item = Value>, whole: Value) {
        let index = self.content.len();
        self.event(&json!({"type": "content_block_start", "index": index, "content_block": start}));
        for delta in deltas {
            self.event(&json!({"type": "content_block_delta", "index": index, "delta": delta}));
        }
        self.event(&json!({"type": "content_block_stop", "index": index}));
        self.content.push(whole);
    }

    pub(crate) fn text(&mut self, chunks: &Chunks) {
        let pieces = chunks.pieces();
        let text = pieces.concat();
        self.output_bytes += text.len();
        self.block(
            json!({"type": "text", "text": ""}),
            pieces
                .iter()
                .map(|p| json!({"type": "text_delta", "text": p})),
            json!({"type": "text", "text": text}),
        );
    }

    pub(crate) fn thinking(&mut self, chunks: &Chunks) {
        let pieces = chunks.pieces();
        let text = pieces.concat();
        self.output_bytes += text.len();
        let signature = signature(&text);
        let deltas = pieces
            .iter()
            .map(|p| json!({"type": "thinking_delta", "thinking": p}));
        let signed = json!({"type": "signature_delta", "signature": signature});
        self.block(
            json!({"type": "thinking", "thinking": "", "signature": ""}),
            deltas.chain([signed]),
            json!({"type": "thinking", "thinking": text, "signature": signature}),
        );
    }

    pub(crate) fn redacted(&mut self, data: &str) {
        self.output_bytes += data.len();
        let block = json!({"type": "redacted_thinking", "data": data});
        self.block(block.clone(), [], block);
    }

    pub(crate) fn tool(&mut self, tool: &Tool, id: &str) {
        let pieces = match (&tool.raw, &tool.input) {
            (Some(raw), _) => raw.pieces(),
            (None, Some(input)) => {
                let text = input.to_string();
                let third = text.chars().count().div_ceil(3);
                cut(&text, third.max(1))
            }
            (None, None) => vec!["{}".to_owned()],
        };
        let text = pieces.concat();
        self.output_bytes += text.len() + tool.name.len();
        self.called_tool = true;
        // The real API begins with an empty fragment, too.
        let fragments = std::iter::once(String::new()).chain(pieces);
        self.block(
            json!({"type": "tool_use", "id": id, "name": tool.name, "input": {}}),
            fragments.map(|p| json!({"type": "input_json_delta", "partial_json": p})),
            json!({"type": "tool_use", "id": id, "name": tool.name,
                   "input": serde_json::from_str(&text).unwrap_or(Value::String(text))}),
        );
    }

    pub(crate) fn error(&mut self, failure: &Failure) {
        self.event(&envelope(failure, None));
    }

    pub(crate) fn end(&mut self, end: &End) {
        let delta = json!({
            "stop_reason": self.stop_reason(end),
            "stop_sequence": end.stop_sequence,
            "stop_details": end.stop_details,
        });
        let usage = self.usage(self.output_tokens());
        self.event(&json!({"type": "message_delta", "delta": delta, "usage": usage}));
        self.event(&json!({"type": "message_stop"}));
    }

    /// The response in one piece.
    pub(crate) fn whole(&self, end: &End) -> Value {
        let reason = End {
            stop_reason: Some(self.stop_reason(end)),
            stop_sequence: end.stop_sequence.clone(),
            stop_details: end.stop_details.clone(),
        };
        self.message(&self.content, &reason, self.output_tokens())
    }

    fn stop_reason(&self, end: &End) -> String {
        let default = if self.called_tool {
            "tool_use"
        } else {
            "end_turn"
        };
        end.stop_reason
            .clone()
            .unwrap_or_else(|| default.to_owned())
    }

    fn output_tokens(&self) -> u64 {
        tokens(self.output_bytes).max(1)
    }

    fn message(&self, content: &[Value], end: &End, output: u64) -> Value {
        json!({
            "type": "message",
            "id": self.head.id,
            "role": "assistant",
            "model": self.head.model,
            "content": content,
            "stop_reason": end.stop_reason,
            "stop_sequence": end.stop_sequence,
            "stop_details": end.stop_details,
            "usage": self.usage(output),
        })
    }

    fn usage(&self, output: u64) -> Value {
        let input = self.head.input;
        let mut usage = json!({
            "input_tokens": input.plain,
            "cache_creation_input_tokens": input.created,
            "cache_read_input_tokens": input.read,
            "cache_creation": {
                "ephemeral_5m_input_tokens": input.created - input.created_1h,
                "ephemeral_1h_input_tokens": input.created_1h,
            },
            "output_tokens": output,
            "service_tier": "standard",
        });
        for (key, value) in &self.head.usage {
            usage[key] = value.clone();
        }
        usage
    }
}

/// The API's error envelope.
pub(crate) fn envelope(failure: &Failure, request_id: Option<&str>) -> Value {
    json!({
        "type": "error",
        "error": {"type": failure.kind(), "message": failure.message()},
        "request_id": request_id,
    })
}

impl Chunks {
    fn pieces(&self) -> Vec<String> {
        match self {
            Self::Exact(pieces) => pieces.clone(),
            Self::Whole(text) => {
                let chars = text.chars().count();
                cut(text, chars.div_ceil(MAX_DELTAS).max(MIN_DELTA_CHARS))
            }
        }
    }
}

fn cut(text: &str, chars: usize) -> Vec<String> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let at = rest
            .char_indices()
            .nth(chars)
            .map_or(rest.len(), |(at, _)| at);
        let (piece, tail) = rest.split_at(at);
        pieces.push(piece.to_owned());
        rest = tail;
    }
    pieces
}
