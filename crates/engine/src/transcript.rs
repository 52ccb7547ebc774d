//! What the model sees of a thread: its events, turned back into messages.
//!
//! Built row by row and only ever extended, so the bytes of a prompt's prefix stay the same from
//! request to request and the upstream's cache keeps hitting. A call without a result (cut off by an
//! interrupt) is answered here with the usual text, because the upstream accepts no open ends. What comes
//! in while the model speaks or calls run takes its place before the next request, where the model first
//! sees it.

use std::{borrow::Cow, collections::HashMap};

use selfsame_store::Row;
use selfsame_types::{EventId, ThreadId, event::EventType, outcome::DefinedOutcome};
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};

use crate::{
    machine::{HiddenCall, INTERRUPTED, Private},
    outcomes,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Role {
    User,
    Assistant,
    System,
}

#[derive(Debug, Clone)]
struct Message {
    role: Role,
    blocks: Vec<Box<RawValue>>,
    /// Positions of blocks in the user's name that no user has written: what graders found.
    graders: Vec<usize>,
}

/// A call as the model made it.
#[derive(Debug, Clone)]
pub struct CallInfo {
    pub model_id: String,
    pub name: String,
    pub input: Box<RawValue>,
    /// The MCP server that it goes to.
    pub mcp_server: Option<String>,
}

/// A thread's messages so far.
#[derive(Debug, Clone, Default)]
pub struct Transcript {
    messages: Vec<Message>,
    /// Calls without a result, in the order they were made.
    open: Vec<EventId>,
    calls: HashMap<EventId, CallInfo>,
    /// What the next request will show: messages of threads, an outcome, a grader's word.
    held: Vec<Box<RawValue>>,
    /// Positions in it of what graders found.
    graders: Vec<usize>,
    /// Blocks of the last message before the latest response, if that goes on with it.
    base: usize,
    /// Position of the last row that went in.
    pub last_seq: i64,
}

#[derive(Deserialize)]
struct Content {
    #[serde(default)]
    content: Vec<Box<RawValue>>,
}

#[derive(Deserialize)]
struct Use {
    name: String,
    input: Box<RawValue>,
    #[serde(default)]
    mcp_server_name: Option<String>,
}

#[derive(Deserialize)]
struct ToolAnswer {
    #[serde(alias = "custom_tool_use_id", alias = "mcp_tool_use_id")]
    tool_use_id: EventId,
    #[serde(default)]
    content: Option<Vec<Box<RawValue>>>,
    #[serde(default)]
    is_error: Option<bool>,
}

#[derive(Deserialize)]
struct Received {
    #[serde(default)]
    from_agent_name: Option<String>,
    from_session_thread_id: ThreadId,
    content: Vec<Box<RawValue>>,
}

#[derive(Deserialize)]
struct Evaluated {
    result: String,
    iteration: u32,
    explanation: String,
}

#[derive(Serialize)]
struct ToolUse<'a> {
    r#type: &'static str,
    id: &'a str,
    name: &'a str,
    input: &'a RawValue,
}

#[derive(Serialize)]
struct ToolResult<'a> {
    r#type: &'static str,
    tool_use_id: &'a str,
    content: &'a [Box<RawValue>],
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    is_error: bool,
}

/// Where a text of the conversation comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin<'a> {
    /// A client's message.
    User,
    /// The result of a call of the tool of this name.
    Tool(&'a str),
}

/// As much of a block as there is to read in it.
#[derive(Deserialize)]
struct Readable<'a> {
    #[serde(borrow)]
    r#type: Cow<'a, str>,
    #[serde(borrow, default)]
    text: Option<Cow<'a, str>>,
    /// Of images and documents an object, of search results their address.
    #[serde(borrow, default)]
    source: Option<&'a RawValue>,
    #[serde(borrow, default)]
    content: Option<Vec<&'a RawValue>>,
    #[serde(borrow, default)]
    id: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    name: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    tool_use_id: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct ReadableSource<'a> {
    #[serde(borrow)]
    r#type: Cow<'a, str>,
    #[serde(borrow, default)]
    data: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    url: Option<Cow<'a, str>>,
}

#[derive(Serialize)]
struct Text<'a> {
    r#type: &'static str,
    text: &'a str,
}

/// A row of this program's own that cannot be read back.
#[derive(Debug, thiserror::Error)]
#[error("event {event} cannot be read back")]
pub struct Unreadable {
    event: EventId,
    #[source]
    source: serde_json::Error,
}

impl Transcript {
    /// A call that has no result yet.
    #[must_use]
    pub fn call(&self, id: EventId) -> Option<&CallInfo> {
        self.calls.get(&id)
    }

    /// Adds rows of the thread, in order; rows it has already are passed over.
    ///
    /// # Errors
    /// When a row is not what this program writes.
    pub fn extend<'a>(
        &mut self,
        rows: impl IntoIterator<Item = &'a Row>,
    ) -> Result<(), Unreadable> {
        for row in rows {
            if row.seq > self.last_seq {
                self.feed(row).map_err(|source| Unreadable {
                    event: row.id,
                    source,
                })?;
                self.last_seq = row.seq;
            }
        }
        Ok(())
    }

    fn feed(&mut self, row: &Row) -> Result<(), serde_json::Error> {
        if row.processed_at.is_none() {
            return Ok(());
        }
        let private: Private = match &row.private {
            Some(text) => serde_json::from_str(text)?,
            None => Private::default(),
        };
        match row.event_type {
            EventType::UserMessage | EventType::SystemMessage if private.flushed => {}
            EventType::UserMessage => {
                let Content { content } = serde_json::from_str(&row.body)?;
                self.show_held()?;
                self.push(Role::User, content);
            }
            EventType::SystemMessage => {
                let Content { content } = serde_json::from_str(&row.body)?;
                self.show_held()?;
                self.push(Role::System, content);
            }
            EventType::AgentThinking => {
                if let Some(block) = private.block {
                    self.push(Role::Assistant, vec![block]);
                }
            }
            EventType::AgentMessage => {
                let Content { content } = serde_json::from_str(&row.body)?;
                self.push(Role::Assistant, content);
            }
            EventType::AgentToolUse
            | EventType::AgentMcpToolUse
            | EventType::AgentCustomToolUse => {
                let Use {
                    name,
                    input,
                    mcp_server_name: mcp_server,
                } = serde_json::from_str(&row.body)?;
                let model_id = private.model_id.unwrap_or_else(|| row.id.to_string());
                let block = to_raw_value(&ToolUse {
                    r#type: "tool_use",
                    id: &model_id,
                    name: private.offered.as_ref().unwrap_or(&name),
                    input: &input,
                })?;
                self.push(Role::Assistant, vec![block]);
                self.open.push(row.id);
                self.calls.insert(
                    row.id,
                    CallInfo {
                        model_id,
                        name,
                        input,
                        mcp_server,
                    },
                );
            }
            EventType::SpanModelRequestStart => {
                if !self.held.is_empty() {
                    self.show_held()?;
                }
                self.base = match self.messages.last() {
                    Some(last) if last.role == Role::Assistant => last.blocks.len(),
                    _ => 0,
                };
            }
            EventType::SpanModelRequestEnd => {
                self.restore(private.hidden)?;
            }
            EventType::AgentThreadMessageReceived => {
                let received: Received = serde_json::from_str(&row.body)?;
                match private.answers {
                    Some(call) => self.answer(call, &received.content, false)?,
                    None => {
                        if let Some(name) = &received.from_agent_name {
                            let from = received.from_session_thread_id;
                            self.hold(&format!("Message from thread {from} (agent `{name}`):"))?;
                        }
                        self.held.extend(received.content);
                    }
                }
            }
            EventType::UserDefineOutcome => {
                let defined: DefinedOutcome = serde_json::from_str(&row.body)?;
                self.hold(&outcomes::task(&defined.description))?;
            }
            EventType::SpanOutcomeEvaluationEnd => {
                let Evaluated {
                    result,
                    iteration,
                    explanation,
                } = serde_json::from_str(&row.body)?;
                if let Some(told) = outcomes::feedback(&result, iteration, &explanation) {
                    self.graders.push(self.held.len());
                    self.hold(&told)?;
                }
            }
            EventType::AgentToolResult
            | EventType::AgentMcpToolResult
            | EventType::UserCustomToolResult => {
                let answer: ToolAnswer = serde_json::from_str(&row.body)?;
                let content = answer.content.unwrap_or_default();
                self.answer(answer.tool_use_id, &content, answer.is_error == Some(true))?;
            }
            _ => {}
        }
        Ok(())
    }

    fn push(&mut self, role: Role, blocks: Vec<Box<RawValue>>) {
        if blocks.is_empty() {
            return;
        }
        match self.messages.last_mut() {
            Some(last) if last.role == role => last.blocks.extend(blocks),
            _ => self.messages.push(Message {
                role,
                blocks,
                graders: Vec::new(),
            }),
        }
    }

    /// Keeps a text for the next request.
    fn hold(&mut self, text: &str) -> Result<(), serde_json::Error> {
        self.held.push(to_raw_value(&Text {
            r#type: "text",
            text,
        })?);
        Ok(())
    }

    /// A new message follows: what was kept comes first.
    fn show_held(&mut self) -> Result<(), serde_json::Error> {
        self.close_calls()?;
        let held = std::mem::take(&mut self.held);
        let (count, graders) = (held.len(), std::mem::take(&mut self.graders));
        self.push(Role::User, held);
        if let Some(last) = self.messages.last_mut().filter(|_| count > 0) {
            let first = last.blocks.len() - count;
            last.graders.extend(graders.iter().map(|at| first + at));
        }
        Ok(())
    }

    /// Puts calls that have no events back to their places in the response, and their results behind it.
    fn restore(&mut self, hidden: Vec<HiddenCall>) -> Result<(), serde_json::Error> {
        let mut results = Vec::new();
        for call in hidden {
            let HiddenCall {
                id,
                at,
                model_id,
                name,
                input,
                result,
            } = call;
            let block = to_raw_value(&ToolUse {
                r#type: "tool_use",
                id: &model_id,
                name: &name,
                input: &input,
            })?;
            let index = self.base + at;
            match self.messages.last_mut() {
                Some(last) if last.role == Role::Assistant => {
                    last.blocks.insert(index.min(last.blocks.len()), block);
                }
                _ => self.push(Role::Assistant, vec![block]),
            }
            self.open.push(id);
            self.calls.insert(
                id,
                CallInfo {
                    model_id,
                    name,
                    input,
                    mcp_server: None,
                },
            );
            results.extend(result.map(|result| (id, result)));
        }
        for (id, result) in results {
            let text = to_raw_value(&Text {
                r#type: "text",
                text: &result.text,
            })?;
            self.answer(id, std::slice::from_ref(&text), result.is_error)?;
        }
        Ok(())
    }

    fn answer(
        &mut self,
        call: EventId,
        content: &[Box<RawValue>],
        is_error: bool,
    ) -> Result<(), serde_json::Error> {
        let Some(info) = self.calls.remove(&call) else {
            return Ok(());
        };
        self.open.retain(|open| *open != call);
        let block = to_raw_value(&ToolResult {
            r#type: "tool_result",
            tool_use_id: &info.model_id,
            content,
            is_error,
        })?;
        self.push(Role::User, vec![block]);
        Ok(())
    }

    /// Answers calls that will never have a result of their own.
    fn close_calls(&mut self) -> Result<(), serde_json::Error> {
        let text = to_raw_value(&Text {
            r#type: "text",
            text: INTERRUPTED,
        })?;
        for call in std::mem::take(&mut self.open) {
            self.answer(call, std::slice::from_ref(&text), true)?;
        }
        Ok(())
    }

    /// What the model said last, if its last response said anything.
    #[must_use]
    pub fn last_message(&self) -> Option<String> {
        let last = self.messages.last()?;
        if last.role != Role::Assistant {
            return None;
        }
        let texts: Vec<_> = last.blocks[self.base.min(last.blocks.len())..]
            .iter()
            .filter_map(|block| serde_json::from_str::<Readable<'_>>(block.get()).ok())
            .filter(|block| block.r#type == "text")
            .filter_map(|block| Some(block.text?.into_owned()))
            .collect();
        (!texts.is_empty()).then(|| texts.join("\n\n"))
    }

    /// Shows every text that clients and tools brought into the conversation.
    pub fn read(&self, mut show: impl FnMut(&Origin<'_>, &str)) {
        let mut tools = HashMap::new();
        for message in &self.messages {
            let blocks = message.blocks.iter().enumerate();
            // A grader quotes what the agent wrote: no address becomes the user's by that.
            let blocks = blocks.filter(|(at, _)| !message.graders.contains(at));
            for (_, block) in blocks {
                let Ok(block) = serde_json::from_str::<Readable<'_>>(block.get()) else {
                    continue;
                };
                match (message.role, &*block.r#type) {
                    (Role::Assistant, "tool_use") => {
                        tools.extend(block.id.zip(block.name));
                    }
                    (Role::Assistant, _) => {}
                    (_, "tool_result") => {
                        // Later ids may repeat earlier ones, results follow their calls.
                        let name = block.tool_use_id.and_then(|id| tools.get(&id).cloned());
                        let origin = Origin::Tool(name.as_deref().unwrap_or_default());
                        for content in block.content.into_iter().flatten() {
                            if let Ok(content) = serde_json::from_str(content.get()) {
                                read_block(&origin, content, &mut show);
                            }
                        }
                    }
                    _ => read_block(&Origin::User, block, &mut show),
                }
            }
        }
    }

    /// The `messages` of a request, with a cache breakpoint on the user's last block.
    ///
    /// # Panics
    /// Never: raw JSON serializes.
    #[must_use]
    pub fn messages(&self) -> Vec<Box<RawValue>> {
        #[derive(Serialize)]
        struct Wire<'a> {
            role: Role,
            content: &'a [Box<RawValue>],
        }
        let last = self
            .messages
            .iter()
            .rposition(|message| message.role == Role::User);
        self.messages
            .iter()
            .enumerate()
            .map(|(index, message)| {
                let mut blocks = std::borrow::Cow::Borrowed(message.blocks.as_slice());
                if Some(index) == last
                    && let Some(block) = blocks.to_mut().last_mut()
                {
                    *block = with_cache_breakpoint(block);
                }
                to_raw_value(&Wire {
                    role: message.role,
                    content: &blocks,
                })
                .expect("raw blocks serialize")
            })
            .collect()
    }
}

fn read_block(origin: &Origin<'_>, block: Readable<'_>, show: &mut impl FnMut(&Origin<'_>, &str)) {
    if let Some(text) = &block.text {
        show(origin, text);
    }
    if let Some(source) = block.source {
        if let Ok(address) = serde_json::from_str::<Cow<'_, str>>(source.get()) {
            show(origin, &address);
        } else if let Ok(source) = serde_json::from_str::<ReadableSource<'_>>(source.get()) {
            let text = source.data.filter(|_| source.r#type == "text");
            for text in [text, source.url].into_iter().flatten() {
                show(origin, &text);
            }
        }
    }
    // The parts of a search result.
    for part in block.content.into_iter().flatten() {
        if let Ok(Readable {
            text: Some(text), ..
        }) = serde_json::from_str(part.get())
        {
            show(origin, &text);
        }
    }
}

/// The same object with `cache_control` as its last key.
///
/// # Panics
/// Never: the text stays a JSON object.
#[must_use]
pub fn with_cache_breakpoint(block: &RawValue) -> Box<RawValue> {
    let text = block.get().trim_end();
    let Some(open) = text.strip_suffix('}') else {
        return block.to_owned();
    };
    let comma = if open.trim_end().ends_with('{') {
        ""
    } else {
        ","
    };
    RawValue::from_string(format!(
        "{open}{comma}\"cache_control\":{{\"type\":\"ephemeral\"}}}}"
    ))
    .expect("an object with one more key is JSON")
}

#[cfg(test)]
mod tests;
