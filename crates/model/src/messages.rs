//! The streaming Messages protocol: bytes to deltas. Pure.
//!
//! Tolerant of what may be added (event types, block types, fields), strict about what must hold (the
//! stream begins with `message_start`, deltas belong to an open block, it ends with `message_stop`):
//! a response that was cut short must never look like a finished one.

mod wire;

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;

use self::wire::{
    BlockDelta, BlockDeltaBody, BlockStart, BlockStop, ErrorEvent, Head, MessageDelta,
    MessageStart, RedactedBlock, TextBlock, ThinkingBlock, ToolBlock,
};
use crate::{
    error::ModelError,
    response::{Block, BlockKind, Delta, StopDetails, StopReason, Usage},
    sse::{Decoder, Frame},
};

/// Turns the bytes of one response into deltas.
#[derive(Debug)]
pub struct Parser {
    sse: Decoder,
    /// Most bytes of all blocks together.
    budget: usize,
    started: bool,
    done: bool,
    open: BTreeMap<u32, Open>,
    /// The least index a new block may have.
    next_index: u32,
    usage: Usage,
    stop_reason: Option<StopReason>,
    stop_details: Option<StopDetails>,
}

/// Limits of one response, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Of one SSE line, and of one event.
    pub line: usize,
    /// Of all content together.
    pub content: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            line: 4 << 20,
            content: 64 << 20,
        }
    }
}

#[derive(Debug)]
enum Open {
    Text(String),
    Thinking {
        thinking: String,
        signature: String,
    },
    Redacted(String),
    Tool {
        id: String,
        name: String,
        initial: Option<String>,
        json: String,
    },
    /// A block of a kind we do not know; its deltas and its end are skipped.
    Unknown,
}

impl Parser {
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            sse: Decoder::new(limits.line),
            budget: limits.content,
            started: false,
            done: false,
            open: BTreeMap::new(),
            next_index: 0,
            usage: Usage::default(),
            stop_reason: None,
            stop_details: None,
        }
    }

    /// Whether [`Delta::Done`] has been given.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// Takes the next bytes and appends what they complete to `out`, also when it then fails.
    ///
    /// # Errors
    /// What the upstream reported, or that this is no Messages stream. The parser must not be used
    /// afterwards.
    pub fn push(&mut self, mut bytes: &[u8], out: &mut Vec<Delta>) -> Result<(), ModelError> {
        while !bytes.is_empty() && !self.done {
            let (taken, frame) = self.sse.next(bytes).map_err(ModelError::protocol)?;
            bytes = &bytes[taken..];
            if let Some(frame) = frame {
                self.frame(&frame, out)?;
            }
        }
        Ok(())
    }

    /// To be called at the end of the bytes.
    ///
    /// # Errors
    /// When the message was not complete.
    pub fn finish(&self) -> Result<(), ModelError> {
        if self.done {
            Ok(())
        } else {
            Err(ModelError::connection(
                "The model's response ended before it was complete",
            ))
        }
    }

    fn frame(&mut self, frame: &Frame, out: &mut Vec<Delta>) -> Result<(), ModelError> {
        // The type is in the data, and usually repeated as the event's name. A name we do not know
        // may come with data in any form.
        if !matches!(
            frame.event.as_str(),
            "" | "message"
                | "message_start"
                | "message_delta"
                | "message_stop"
                | "content_block_start"
                | "content_block_delta"
                | "content_block_stop"
                | "error"
        ) {
            return Ok(());
        }
        let data = frame.data.as_str();
        let head: Head = json(data)?;
        match head.kind.as_deref().unwrap_or(&frame.event) {
            "message_start" => {
                let event: MessageStart = json(data)?;
                if std::mem::replace(&mut self.started, true) {
                    return Err(ModelError::protocol("a second message_start"));
                }
                event.message.usage.merge_into(&mut self.usage);
                out.push(Delta::Started {
                    usage: self.usage.clone(),
                });
            }
            "error" => {
                let event: ErrorEvent = json(data)?;
                let error = event.error.unwrap_or_default();
                return Err(ModelError::from_event(
                    error.kind.as_deref(),
                    error.message.as_deref(),
                ));
            }
            "content_block_start" => {
                self.must_have_started()?;
                self.block_start(&json(data)?, out)?;
            }
            "content_block_delta" => {
                self.must_have_started()?;
                self.block_delta(json(data)?, out)?;
            }
            "content_block_stop" => {
                self.must_have_started()?;
                self.block_stop(json::<BlockStop>(data)?.index, out)?;
            }
            "message_delta" => {
                self.must_have_started()?;
                let event: MessageDelta = json(data)?;
                event.usage.merge_into(&mut self.usage);
                if let Some(reason) = event.delta.stop_reason {
                    self.stop_reason = Some(StopReason::from(reason.as_ref()));
                }
                if let Some(details) = event.delta.stop_details {
                    self.stop_details = Some(details.into());
                }
            }
            "message_stop" => {
                self.must_have_started()?;
                if self
                    .open
                    .values()
                    .any(|open| !matches!(open, Open::Unknown))
                {
                    return Err(ModelError::protocol("it stopped inside a content block"));
                }
                let Some(stop_reason) = self.stop_reason.take() else {
                    return Err(ModelError::protocol("it stopped without a reason"));
                };
                self.done = true;
                out.push(Delta::Done {
                    stop_reason,
                    usage: self.usage.clone(),
                    stop_details: self.stop_details.take(),
                });
            }
            _ => {} // `ping`, and what may come
        }
        Ok(())
    }

    fn must_have_started(&self) -> Result<(), ModelError> {
        if self.started {
            Ok(())
        } else {
            Err(ModelError::protocol("it does not begin with message_start"))
        }
    }

    fn block_start(
        &mut self,
        event: &BlockStart<'_>,
        out: &mut Vec<Delta>,
    ) -> Result<(), ModelError> {
        let index = event.index;
        if index < self.next_index {
            return Err(ModelError::protocol("content blocks are out of order"));
        }
        self.next_index = index.saturating_add(1);
        let raw = event.content_block.get();
        self.spend(raw.len())?;
        let head: Head = json(raw)?;
        let (kind, open) = match head.kind.as_deref() {
            Some("text") => {
                let text = json::<TextBlock>(raw)?.text;
                (BlockKind::Text, Open::Text(text))
            }
            Some("thinking") => {
                let ThinkingBlock {
                    thinking,
                    signature,
                } = json(raw)?;
                (
                    BlockKind::Thinking,
                    Open::Thinking {
                        thinking,
                        signature,
                    },
                )
            }
            Some("redacted_thinking") => {
                let data = json::<RedactedBlock>(raw)?.data;
                (BlockKind::RedactedThinking, Open::Redacted(data))
            }
            Some("tool_use") => {
                let ToolBlock { id, name, input } = json(raw)?;
                let kind = BlockKind::ToolUse {
                    id: id.clone(),
                    name: name.clone(),
                };
                let initial = input.map(|raw| raw.get().to_owned());
                let json = String::new();
                (
                    kind,
                    Open::Tool {
                        id,
                        name,
                        initial,
                        json,
                    },
                )
            }
            _ => {
                self.open.insert(index, Open::Unknown);
                return Ok(());
            }
        };
        out.push(Delta::BlockStarted { index, kind });
        if let Open::Text(text) = &open
            && !text.is_empty()
        {
            let text = text.clone();
            out.push(Delta::Text { index, text });
        }
        self.open.insert(index, open);
        Ok(())
    }

    fn block_delta(
        &mut self,
        event: BlockDelta<'_>,
        out: &mut Vec<Delta>,
    ) -> Result<(), ModelError> {
        let index = event.index;
        self.spend(event.delta.get().len())?;
        let Some(open) = self.open.get_mut(&index) else {
            return Err(ModelError::protocol("a delta of no content block"));
        };
        if matches!(open, Open::Unknown) {
            return Ok(());
        }
        let delta: BlockDeltaBody = json(event.delta.get())?;
        match (open, delta.kind.as_ref()) {
            (Open::Text(all), "text_delta") if !delta.text.is_empty() => {
                all.push_str(&delta.text);
                let text = delta.text.into_owned();
                out.push(Delta::Text { index, text });
            }
            (Open::Thinking { thinking, .. }, "thinking_delta") => {
                thinking.push_str(&delta.thinking)
            }
            (Open::Thinking { signature, .. }, "signature_delta") => {
                signature.push_str(&delta.signature);
            }
            (Open::Tool { json, .. }, "input_json_delta") => json.push_str(&delta.partial_json),
            _ => {} // citations, and what may come
        }
        Ok(())
    }

    fn block_stop(&mut self, index: u32, out: &mut Vec<Delta>) -> Result<(), ModelError> {
        let block = match self.open.remove(&index) {
            None => return Err(ModelError::protocol("the end of no content block")),
            Some(Open::Unknown) => return Ok(()),
            Some(Open::Text(text)) => Block::Text { text },
            Some(Open::Thinking {
                thinking,
                signature,
            }) => Block::Thinking {
                thinking,
                signature,
            },
            Some(Open::Redacted(data)) => Block::RedactedThinking { data },
            Some(Open::Tool {
                id,
                name,
                initial,
                json,
            }) => {
                // Some gateways send the whole input at the start and no fragments.
                let text = match initial {
                    Some(initial) if json.is_empty() => initial,
                    _ if json.is_empty() => "{}".to_owned(),
                    _ => json,
                };
                let input = object(text);
                Block::ToolUse { id, name, input }
            }
        };
        out.push(Delta::BlockDone { index, block });
        Ok(())
    }

    fn spend(&mut self, bytes: usize) -> Result<(), ModelError> {
        match self.budget.checked_sub(bytes) {
            Some(rest) => {
                self.budget = rest;
                Ok(())
            }
            None => Err(ModelError::protocol("it is too large")),
        }
    }
}

/// The text as a JSON object, or itself when it is none.
fn object(text: String) -> Result<Box<RawValue>, String> {
    if !text.trim_start().starts_with('{') {
        return Err(text);
    }
    match serde_json::from_str::<&RawValue>(&text) {
        Ok(raw) => Ok(raw.to_owned()),
        Err(_) => Err(text),
    }
}

fn json<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, ModelError> {
    serde_json::from_str(text).map_err(ModelError::protocol)
}
