//! One request to the model, from its first byte to its last, with previews on the way.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use selfsame_model::{
    Block, BlockKind, Delta, ModelError, ModelErrorKind, Provider, Request, StopReason, Usage,
};
use selfsame_types::{EventId, SessionId, ThreadId};
use serde_json::{
    json,
    value::{RawValue, to_raw_value},
};

use crate::{
    fail,
    hub::{Hub, Preview, PreviewKind},
    machine::{BlockContent, ErrorType, ModelUsage, Response, ResponseBlock, Sequel},
    mcp::Toolset,
    notifier::{Notifier, RemotePreview},
    prompt::SharedSpec,
};

/// How a request ended.
#[derive(Debug)]
pub enum Answer {
    Response(Response),
    Failed {
        error: ModelError,
        usage: ModelUsage,
    },
}

impl Answer {
    /// The request could not be made, for a reason of ours that may pass.
    pub(crate) fn unsent(session: SessionId, error: &impl std::fmt::Display) -> Self {
        tracing::warn!(%session, %error, "a request's images and documents cannot be read");
        Self::Failed {
            error: ModelError::connection("The request's images and documents could not be read."),
            usage: ModelUsage::default(),
        }
    }
}

/// Where a request's previews go.
#[derive(Debug)]
pub(crate) struct Previews {
    pub hub: Hub,
    pub notifier: Notifier,
    pub session: SessionId,
    pub thread: ThreadId,
    pub span_seq: i64,
}

impl Previews {
    fn send(&self, event: EventId, kind: PreviewKind, text: &str) {
        let (session, thread, span_seq) = (self.session, self.thread, self.span_seq);
        if self.hub.is_watched(session) {
            self.hub
                .preview(session, Preview::new(thread, span_seq, event, kind, text));
        }
        self.notifier.preview(session, || RemotePreview {
            session,
            thread,
            span_seq,
            event,
            kind,
            text: text.to_owned(),
        });
    }

    fn start(&self, event: EventId, kind: PreviewKind) {
        self.send(event, kind, "");
    }

    fn delta(&self, event: EventId, text: &str) {
        self.send(event, PreviewKind::Delta, text);
    }
}

/// Asks, and listens to the end.
pub(crate) async fn ask(
    provider: Arc<dyn Provider>,
    request: Request,
    spec: SharedSpec,
    tools: Arc<Toolset>,
    previews: Previews,
) -> Answer {
    fail::point("before_model_request");
    let mut usage = ModelUsage::default();
    let failed = |error, usage| Answer::Failed { error, usage };
    let mut stream = match provider.stream(request).await {
        Ok(stream) => stream,
        Err(error) => return failed(error, usage),
    };
    // Ids are made when generation of a block starts; positions when it is appended.
    let mut ids: HashMap<u32, EventId> = HashMap::new();
    let mut blocks = Vec::new();
    while let Some(delta) = stream.next().await {
        match delta {
            Ok(Delta::Started { usage: known }) => usage = convert(&known),
            Ok(Delta::BlockStarted { index, kind }) => {
                let id = EventId::new();
                ids.insert(index, id);
                match kind {
                    BlockKind::Thinking | BlockKind::RedactedThinking => {
                        previews.start(id, PreviewKind::StartThinking);
                    }
                    // A text block is announced with its first text: an empty one leaves no event.
                    BlockKind::Text | BlockKind::ToolUse { .. } => {}
                }
            }
            Ok(Delta::Text { index, text }) => {
                let id = *ids.entry(index).or_insert_with(EventId::new);
                if !blocks.iter().any(|(started, _)| *started == index) {
                    blocks.push((index, None));
                    previews.start(id, PreviewKind::StartMessage);
                }
                previews.delta(id, &text);
                fail::point("mid_model_stream");
            }
            Ok(Delta::BlockDone { index, block }) => {
                let id = *ids.entry(index).or_insert_with(EventId::new);
                let content = content(&spec, &tools, block);
                blocks.retain(|(started, _)| *started != index);
                blocks.push((index, content.map(|content| ResponseBlock { id, content })));
            }
            Ok(Delta::Done {
                stop_reason,
                usage,
                stop_details,
            }) => {
                let blocks: Vec<_> = blocks.into_iter().filter_map(|(_, block)| block).collect();
                let sequel = match stop_reason {
                    StopReason::Refusal => {
                        let details = stop_details.unwrap_or_default();
                        Sequel::Refusal {
                            category: details.category.filter(|c| is_known_category(c)),
                            explanation: details.explanation,
                        }
                    }
                    StopReason::PauseTurn => Sequel::Again,
                    StopReason::ModelContextWindowExceeded => {
                        return failed(window_exceeded(), convert(&usage));
                    }
                    StopReason::EndTurn
                    | StopReason::MaxTokens
                    | StopReason::StopSequence
                    | StopReason::ToolUse
                    | StopReason::Other(_) => Sequel::EndTurn,
                };
                return Answer::Response(Response {
                    blocks,
                    usage: convert(&usage),
                    sequel,
                });
            }
            Err(error) => return failed(error, usage),
        }
    }
    failed(incomplete(), usage)
}

/// A response that nobody watches while it comes.
#[derive(Debug)]
pub(crate) struct Whole {
    pub blocks: Vec<Block>,
    pub stop_reason: StopReason,
}

/// Asks, and listens to the end without previews. Whatever comes of it, there is what it took.
pub(crate) async fn whole(
    provider: Arc<dyn Provider>,
    request: Request,
) -> (Result<Whole, ModelError>, ModelUsage) {
    let mut usage = ModelUsage::default();
    let mut stream = match provider.stream(request).await {
        Ok(stream) => stream,
        Err(error) => return (Err(error), usage),
    };
    let mut blocks = Vec::new();
    while let Some(delta) = stream.next().await {
        match delta {
            Ok(Delta::Started { usage: known }) => usage = convert(&known),
            Ok(Delta::BlockStarted { .. } | Delta::Text { .. }) => {}
            Ok(Delta::BlockDone { block, .. }) => blocks.push(block),
            Ok(Delta::Done {
                stop_reason, usage, ..
            }) => {
                let whole = match stop_reason {
                    StopReason::ModelContextWindowExceeded => Err(window_exceeded()),
                    stop_reason => Ok(Whole {
                        blocks,
                        stop_reason,
                    }),
                };
                return (whole, convert(&usage));
            }
            Err(error) => return (Err(error), usage),
        }
    }
    (Err(incomplete()), usage)
}

fn window_exceeded() -> ModelError {
    ModelError::permanent("The conversation no longer fits the model's context window.")
}

fn incomplete() -> ModelError {
    ModelError::connection("The model's response ended before it was complete.")
}

/// A block as an event's content; an empty text is none.
fn content(spec: &SharedSpec, tools: &Toolset, block: Block) -> Option<BlockContent> {
    match block {
        Block::Text { text } if text.is_empty() => None,
        Block::Text { text } => Some(BlockContent::Text(text)),
        Block::Thinking {
            thinking,
            signature,
        } => Some(BlockContent::Thinking(raw(
            &json!({"type": "thinking", "thinking": thinking, "signature": signature}),
        ))),
        Block::RedactedThinking { data } => Some(BlockContent::Thinking(raw(
            &json!({"type": "redacted_thinking", "data": data}),
        ))),
        Block::ToolUse { id, name, input } => {
            Some(BlockContent::Call(spec.judge(tools, id, name, input)))
        }
    }
}

fn raw(value: &serde_json::Value) -> Box<RawValue> {
    to_raw_value(value).expect("JSON serializes")
}

/// The categories that the API's clients know; others are left out.
fn is_known_category(category: &str) -> bool {
    [
        "cyber",
        "bio",
        "frontier_llm",
        "reasoning_extraction",
        "general_harms",
    ]
    .contains(&category)
}

fn convert(usage: &Usage) -> ModelUsage {
    let count = |tokens: u64| i64::try_from(tokens).unwrap_or(i64::MAX);
    ModelUsage {
        input_tokens: count(usage.input_tokens),
        output_tokens: count(usage.output_tokens),
        cache_creation_input_tokens: count(usage.cache_creation_input_tokens),
        cache_read_input_tokens: count(usage.cache_read_input_tokens),
        ephemeral_5m_input_tokens: count(usage.ephemeral_5m_input_tokens),
        ephemeral_1h_input_tokens: count(usage.ephemeral_1h_input_tokens),
        web_search_requests: 0,
    }
}

/// The API's name for an upstream failure.
pub(crate) fn error_type(kind: ModelErrorKind) -> ErrorType {
    match kind {
        ModelErrorKind::Overloaded => ErrorType::ModelOverloadedError,
        ModelErrorKind::RateLimited => ErrorType::ModelRateLimitedError,
        ModelErrorKind::RequestFailed => ErrorType::ModelRequestFailedError,
        ModelErrorKind::Billing => ErrorType::BillingError,
        ModelErrorKind::Unknown => ErrorType::UnknownError,
    }
}

/// What an upstream may ask us to wait, if anything.
pub(crate) fn wait(error: &ModelError) -> Option<Duration> {
    error.retry_after
}
