//! What is asked of a model.

use serde::{Serialize, Serializer, ser::SerializeMap};
use serde_json::value::RawValue;

/// One request, already in the shape of the Messages API.
///
/// Blocks are raw JSON so that the bytes of a prompt's prefix stay the same from turn to turn, which
/// is what upstream caches go by; `cache_control` is part of them.
#[derive(Debug, Clone, Default)]
pub struct Request {
    pub model: String,
    /// Most tokens to generate.
    pub max_tokens: u32,
    /// Text blocks.
    pub system: Vec<Box<RawValue>>,
    pub tools: Vec<Box<RawValue>>,
    /// `{"role", "content"}` objects.
    pub messages: Vec<Box<RawValue>>,
    pub thinking: Thinking,
    /// `low` to `max`; `None` leaves it to the upstream.
    pub effort: Option<String>,
    /// `fast`; `standard` and `None` are the same and not sent.
    pub speed: Option<String>,
    pub tool_choice: Option<Box<RawValue>>,
}

/// Whether and how the model thinks before it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Thinking {
    #[default]
    Off,
    /// The model decides; `effort` guides it.
    Adaptive,
    /// At most this many tokens, at least 1024 and less than `max_tokens`.
    Budget(u32),
}

impl Serialize for Thinking {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let mut map = s.serialize_map(None)?;
        match self {
            Self::Off => map.serialize_entry("type", "disabled")?,
            Self::Adaptive => map.serialize_entry("type", "adaptive")?,
            Self::Budget(tokens) => {
                map.serialize_entry("type", "enabled")?;
                map.serialize_entry("budget_tokens", tokens)?;
            }
        }
        map.end()
    }
}

/// The body of `POST /v1/messages`. The order of keys is fixed, like everything in a prompt.
#[derive(Serialize)]
struct Body<'a> {
    model: &'a str,
    max_tokens: u32,
    stream: bool,
    #[serde(skip_serializing_if = "is_off")]
    thinking: Thinking,
    #[serde(skip_serializing_if = "Option::is_none")]
    output_config: Option<OutputConfig<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    speed: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_choice: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    tools: &'a [Box<RawValue>],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    system: &'a [Box<RawValue>],
    messages: &'a [Box<RawValue>],
}

#[derive(Serialize)]
struct OutputConfig<'a> {
    effort: &'a str,
}

fn is_off(thinking: &Thinking) -> bool {
    *thinking == Thinking::Off
}

impl Request {
    /// Whether the upstream is asked for its fast mode.
    #[must_use]
    pub fn is_fast(&self) -> bool {
        self.speed.as_deref() == Some("fast")
    }

    /// The JSON body of a streaming Messages request.
    #[must_use]
    pub fn to_body(&self) -> Vec<u8> {
        serde_json::to_vec(&Body {
            model: &self.model,
            max_tokens: self.max_tokens,
            stream: true,
            thinking: self.thinking,
            output_config: self.effort.as_deref().map(|effort| OutputConfig { effort }),
            speed: self.is_fast().then_some("fast"),
            tool_choice: self.tool_choice.as_deref(),
            tools: &self.tools,
            system: &self.system,
            messages: &self.messages,
        })
        .expect("strings, numbers and JSON always serialize")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(json: &str) -> Box<RawValue> {
        RawValue::from_string(json.to_owned()).unwrap()
    }

    #[test]
    fn the_body_keeps_bytes_and_leaves_out_defaults() {
        let mut request = Request {
            model: "m".into(),
            max_tokens: 7,
            messages: vec![raw(r#"{"role":"user", "content":"\u00e9  \u0000"}"#)],
            ..Request::default()
        };
        assert_eq!(
            String::from_utf8(request.to_body()).unwrap(),
            r#"{"model":"m","max_tokens":7,"stream":true,"messages":[{"role":"user", "content":"\u00e9  \u0000"}]}"#
        );
        request.speed = Some("standard".into());
        assert!(!request.is_fast());
        request.speed = Some("fast".into());
        request.effort = Some("high".into());
        request.thinking = Thinking::Adaptive;
        request.tool_choice = Some(raw(r#"{"type":"any"}"#));
        request.system = vec![raw(r#"{"type":"text","text":"s"}"#)];
        request.tools = vec![raw(r#"{"name":"t"}"#)];
        request.messages.clear();
        assert_eq!(
            String::from_utf8(request.to_body()).unwrap(),
            concat!(
                r#"{"model":"m","max_tokens":7,"stream":true,"thinking":{"type":"adaptive"},"#,
                r#""output_config":{"effort":"high"},"speed":"fast","tool_choice":{"type":"any"},"#,
                r#""tools":[{"name":"t"}],"system":[{"type":"text","text":"s"}],"messages":[]}"#
            )
        );
        let budget = serde_json::to_string(&Thinking::Budget(2048)).unwrap();
        assert_eq!(budget, r#"{"type":"enabled","budget_tokens":2048}"#);
    }
}
