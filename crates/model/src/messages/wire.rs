//! The events as they are on the wire, with the fields we read.

use std::borrow::Cow;

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::value::RawValue;

use crate::response::{StopDetails, Usage};

/// `null` reads as the default: upstreams write it for what they do not have.
fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: DeserializeOwned + Default,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[derive(Deserialize)]
pub(super) struct Head<'a> {
    #[serde(rename = "type", borrow)]
    pub(super) kind: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
pub(super) struct MessageStart {
    pub(super) message: Message,
}

#[derive(Deserialize)]
pub(super) struct Message {
    #[serde(default, deserialize_with = "or_default")]
    pub(super) usage: WireUsage,
}

#[derive(Deserialize)]
pub(super) struct ErrorEvent {
    pub(super) error: Option<ErrorBody>,
}

#[derive(Deserialize, Default)]
pub(super) struct ErrorBody {
    #[serde(rename = "type")]
    pub(super) kind: Option<String>,
    pub(super) message: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct BlockStart<'a> {
    pub(super) index: u32,
    #[serde(borrow)]
    pub(super) content_block: &'a RawValue,
}

#[derive(Deserialize)]
pub(super) struct BlockDelta<'a> {
    pub(super) index: u32,
    #[serde(borrow)]
    pub(super) delta: &'a RawValue,
}

#[derive(Deserialize)]
pub(super) struct BlockStop {
    pub(super) index: u32,
}

#[derive(Deserialize)]
pub(super) struct BlockDeltaBody<'a> {
    #[serde(rename = "type", borrow)]
    pub(super) kind: Cow<'a, str>,
    #[serde(default, borrow)]
    pub(super) text: Cow<'a, str>,
    #[serde(default, borrow)]
    pub(super) thinking: Cow<'a, str>,
    #[serde(default, borrow)]
    pub(super) signature: Cow<'a, str>,
    #[serde(default, borrow)]
    pub(super) partial_json: Cow<'a, str>,
}

#[derive(Deserialize)]
pub(super) struct TextBlock {
    #[serde(default, deserialize_with = "or_default")]
    pub(super) text: String,
}

#[derive(Deserialize)]
pub(super) struct ThinkingBlock {
    #[serde(default, deserialize_with = "or_default")]
    pub(super) thinking: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) signature: String,
}

#[derive(Deserialize)]
pub(super) struct RedactedBlock {
    pub(super) data: String,
}

#[derive(Deserialize)]
pub(super) struct ToolBlock<'a> {
    pub(super) id: String,
    pub(super) name: String,
    #[serde(default, borrow)]
    pub(super) input: Option<&'a RawValue>,
}

#[derive(Deserialize)]
pub(super) struct MessageDelta<'a> {
    #[serde(borrow)]
    pub(super) delta: MessageDeltaBody<'a>,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) usage: WireUsage,
}

#[derive(Deserialize)]
pub(super) struct MessageDeltaBody<'a> {
    #[serde(default, borrow)]
    pub(super) stop_reason: Option<Cow<'a, str>>,
    #[serde(default)]
    pub(super) stop_details: Option<WireStopDetails>,
}

#[derive(Deserialize)]
pub(super) struct WireStopDetails {
    #[serde(default)]
    pub(super) category: Option<String>,
    #[serde(default)]
    pub(super) explanation: Option<String>,
}

impl From<WireStopDetails> for StopDetails {
    fn from(wire: WireStopDetails) -> Self {
        Self {
            category: wire.category,
            explanation: wire.explanation,
        }
    }
}

/// Counts are cumulative: a later one replaces an earlier one, an absent one leaves it.
#[derive(Deserialize, Default)]
pub(super) struct WireUsage {
    pub(super) input_tokens: Option<u64>,
    pub(super) output_tokens: Option<u64>,
    pub(super) cache_creation_input_tokens: Option<u64>,
    pub(super) cache_read_input_tokens: Option<u64>,
    pub(super) cache_creation: Option<WireCacheCreation>,
    pub(super) speed: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct WireCacheCreation {
    pub(super) ephemeral_5m_input_tokens: Option<u64>,
    pub(super) ephemeral_1h_input_tokens: Option<u64>,
}

impl WireUsage {
    pub(super) fn merge_into(self, usage: &mut Usage) {
        let split = self.cache_creation;
        let pairs = [
            (self.input_tokens, &mut usage.input_tokens),
            (self.output_tokens, &mut usage.output_tokens),
            (
                self.cache_creation_input_tokens,
                &mut usage.cache_creation_input_tokens,
            ),
            (
                self.cache_read_input_tokens,
                &mut usage.cache_read_input_tokens,
            ),
            (
                split.as_ref().and_then(|s| s.ephemeral_5m_input_tokens),
                &mut usage.ephemeral_5m_input_tokens,
            ),
            (
                split.as_ref().and_then(|s| s.ephemeral_1h_input_tokens),
                &mut usage.ephemeral_1h_input_tokens,
            ),
        ];
        for (new, old) in pairs {
            if let Some(new) = new {
                *old = new;
            }
        }
        if self.speed.is_some() {
            usage.speed = self.speed;
        }
    }
}
