//! What comes back from a model, piece by piece.

use futures_util::stream::BoxStream;
use serde_json::value::RawValue;

use crate::ModelError;

/// Ends with [`Delta::Done`] or one error. Dropping it cancels the request upstream.
pub type ResponseStream = BoxStream<'static, Result<Delta, ModelError>>;

/// A piece of a response, in the order the upstream sent it. `index` names a block; indexes grow but
/// may have gaps, because blocks of kinds we do not know are left out.
#[derive(Debug, Clone)]
pub enum Delta {
    /// The model begins. Holds the usage known so far: input and cache counts are usually final.
    Started {
        usage: Usage,
    },
    BlockStarted {
        index: u32,
        kind: BlockKind,
    },
    /// More text of a text block. Never empty.
    Text {
        index: u32,
        text: String,
    },
    /// The block as a whole. A text block may be empty.
    BlockDone {
        index: u32,
        block: Block,
    },
    /// The end: nothing follows.
    Done {
        stop_reason: StopReason,
        usage: Usage,
        /// With [`StopReason::Refusal`].
        stop_details: Option<StopDetails>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BlockKind {
    Text,
    Thinking,
    RedactedThinking,
    ToolUse { id: String, name: String },
}

/// A complete content block.
#[derive(Debug, Clone)]
pub enum Block {
    Text {
        text: String,
    },
    Thinking {
        thinking: String,
        signature: String,
    },
    RedactedThinking {
        data: String,
    },
    ToolUse {
        id: String,
        name: String,
        /// A JSON object, byte for byte as the model wrote it; `Err` holds the text when it is none
        /// (broken off by `max_tokens`, or simply wrong).
        input: Result<Box<RawValue>, String>,
    },
}

/// Why the model stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StopReason {
    EndTurn,
    MaxTokens,
    StopSequence,
    ToolUse,
    /// The upstream paused a long turn of its own tools: send the response back to go on.
    PauseTurn,
    Refusal,
    ModelContextWindowExceeded,
    /// One this version does not know.
    Other(String),
}

impl StopReason {
    /// As the API names it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::EndTurn => "end_turn",
            Self::MaxTokens => "max_tokens",
            Self::StopSequence => "stop_sequence",
            Self::ToolUse => "tool_use",
            Self::PauseTurn => "pause_turn",
            Self::Refusal => "refusal",
            Self::ModelContextWindowExceeded => "model_context_window_exceeded",
            Self::Other(name) => name,
        }
    }
}

impl From<&str> for StopReason {
    fn from(name: &str) -> Self {
        match name {
            "end_turn" => Self::EndTurn,
            "max_tokens" => Self::MaxTokens,
            "stop_sequence" => Self::StopSequence,
            "tool_use" => Self::ToolUse,
            "pause_turn" => Self::PauseTurn,
            "refusal" => Self::Refusal,
            "model_context_window_exceeded" => Self::ModelContextWindowExceeded,
            other => Self::Other(other.to_owned()),
        }
    }
}

/// More about a refusal, as the upstream says it; the category may be one we do not know.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StopDetails {
    pub category: Option<String>,
    pub explanation: Option<String>,
}

/// Tokens, as the upstream counts them. `input_tokens` excludes what was written to or read from a
/// cache.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Usage {
    pub input_tokens: u64,
    pub output_tokens: u64,
    pub cache_creation_input_tokens: u64,
    pub cache_read_input_tokens: u64,
    /// The part of `cache_creation_input_tokens` kept for five minutes ..
    pub ephemeral_5m_input_tokens: u64,
    /// .. and for an hour.
    pub ephemeral_1h_input_tokens: u64,
    /// `standard` or `fast`, when the upstream says which it served.
    pub speed: Option<String>,
}
