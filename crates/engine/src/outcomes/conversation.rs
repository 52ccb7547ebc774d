//! A grader's own conversation, as the Messages API has it.

use selfsame_model::Block;
use serde::Serialize;
use serde_json::{
    Value, json,
    value::{RawValue, to_raw_value},
};

use super::{fence::text_block, words};
use crate::transcript::with_cache_breakpoint;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Role {
    User,
    Assistant,
}

#[derive(Debug)]
struct Said {
    block: Box<RawValue>,
    /// Thinking, which only a request that lets the model think may hold.
    thinking: bool,
}

#[derive(Debug, Default)]
pub(super) struct Conversation {
    messages: Vec<(Role, Vec<Said>)>,
    /// Calls without a result.
    open: Vec<Called>,
}

/// A call of the grader's.
#[derive(Debug, Clone)]
pub(super) struct Called {
    pub id: String,
    pub name: String,
    /// JSON, or what the model wrote instead.
    pub input: Result<Box<RawValue>, String>,
}

impl Conversation {
    pub fn tell(&mut self, text: &str) {
        self.push(Role::User, text_block(text), false);
    }

    /// The result of a call. Results come before anything else that is told after their calls.
    pub fn answer(&mut self, call: &Called, content: &[Value], is_error: bool) {
        let mut block = json!({"type": "tool_result", "tool_use_id": call.id, "content": content});
        if is_error {
            block["is_error"] = json!(true);
        }
        let block = to_raw_value(&block).expect("results serialize");
        self.push(Role::User, block, false);
        self.open.retain(|open| open.id != call.id);
    }

    /// Gives calls that nobody runs any more a result.
    pub fn close(&mut self, content: &[Value]) {
        for call in std::mem::take(&mut self.open) {
            self.answer(&call, content, true);
        }
    }

    /// Takes the model's answer and returns the calls in it.
    pub fn hear(&mut self, blocks: Vec<Block>) -> Vec<Called> {
        let mut calls = Vec::new();
        for block in blocks {
            let thinking = matches!(
                block,
                Block::Thinking { .. } | Block::RedactedThinking { .. }
            );
            let block = match block {
                Block::Text { text } if text.trim().is_empty() => continue,
                Block::Text { text } => json!({"type": "text", "text": text}),
                Block::Thinking {
                    thinking,
                    signature,
                } => json!({"type": "thinking", "thinking": thinking, "signature": signature}),
                Block::RedactedThinking { data } => {
                    json!({"type": "redacted_thinking", "data": data})
                }
                Block::ToolUse { id, name, input } => {
                    let shown = input
                        .clone()
                        .unwrap_or_else(|_| to_raw_value(&json!({})).expect("an empty object"));
                    let block = json!({"type": "tool_use", "id": id, "name": name, "input": shown});
                    calls.push(Called { id, name, input });
                    block
                }
            };
            let block = to_raw_value(&block).expect("blocks serialize");
            self.push(Role::Assistant, block, thinking);
        }
        self.open.extend(calls.iter().cloned());
        calls
    }

    /// Whether an image or a document has been shown.
    pub fn shows_media(&self) -> bool {
        self.messages
            .iter()
            .flat_map(|(_, said)| said)
            .any(|said| said.block.get().contains("\"media_type\""))
    }

    /// Puts words in the place of images and documents.
    pub fn forget_media(&mut self) {
        for said in self.messages.iter_mut().flat_map(|(_, said)| said) {
            let Ok(mut block) = serde_json::from_str::<Value>(said.block.get()) else {
                continue;
            };
            let mut changed = false;
            for part in block["content"].as_array_mut().into_iter().flatten() {
                if part["type"] == "image" || part["type"] == "document" {
                    *part = json!({"type": "text", "text": words::NOT_SHOWN});
                    changed = true;
                }
            }
            if changed {
                said.block = to_raw_value(&block).expect("blocks serialize");
            }
        }
    }

    /// Leaves out what the model thought: a tool can only be forced on one that does not think.
    pub fn forget_thinking(&mut self) {
        let before = std::mem::take(&mut self.messages);
        for (role, said) in before {
            for said in said.into_iter().filter(|said| !said.thinking) {
                self.push(role, said.block, false);
            }
        }
    }

    /// The `messages` of a request, with a cache breakpoint on the last block.
    pub fn messages(&self) -> Vec<Box<RawValue>> {
        let last = self.messages.len().saturating_sub(1);
        self.messages
            .iter()
            .enumerate()
            .map(|(index, (role, said))| {
                let mut blocks: Vec<_> = said.iter().map(|said| said.block.clone()).collect();
                if index == last
                    && let Some(block) = blocks.last_mut()
                {
                    *block = with_cache_breakpoint(block);
                }
                to_raw_value(&json!({"role": role, "content": blocks})).expect("blocks serialize")
            })
            .collect()
    }

    fn push(&mut self, role: Role, block: Box<RawValue>, thinking: bool) {
        let said = Said { block, thinking };
        match self.messages.last_mut() {
            Some((last, blocks)) if *last == role => blocks.push(said),
            _ => self.messages.push((role, vec![said])),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roles(conversation: &Conversation) -> Vec<Value> {
        conversation
            .messages()
            .iter()
            .map(|message| {
                let message: Value = serde_json::from_str(message.get()).unwrap();
                let kinds: Vec<_> = message["content"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|block| block["type"].clone())
                    .collect();
                json!([message["role"], kinds])
            })
            .collect()
    }

    fn text(text: &str) -> Block {
        Block::Text { text: text.into() }
    }

    fn thought() -> Block {
        Block::Thinking {
            thinking: "hm".into(),
            signature: "s".into(),
        }
    }

    #[test]
    fn thoughts_can_be_left_out() {
        let mut conversation = Conversation::default();
        conversation.tell("a");
        assert!(conversation.hear(vec![thought(), text(" ")]).is_empty());
        conversation.tell("b");
        conversation.hear(vec![thought(), text("seen")]);
        assert_eq!(
            roles(&conversation),
            [
                json!(["user", ["text"]]),
                json!(["assistant", ["thinking"]]),
                json!(["user", ["text"]]),
                json!(["assistant", ["thinking", "text"]]),
            ]
        );
        conversation.forget_thinking();
        assert_eq!(
            roles(&conversation),
            [
                json!(["user", ["text", "text"]]),
                json!(["assistant", ["text"]]),
            ]
        );
    }

    #[test]
    fn images_can_be_left_out() {
        let mut conversation = Conversation::default();
        let calls = conversation.hear(vec![
            Block::ToolUse {
                id: "1".into(),
                name: "read".into(),
                input: Ok(to_raw_value(&json!({"file_path": "a.png"})).unwrap()),
            },
            Block::ToolUse {
                id: "2".into(),
                name: "read".into(),
                input: Err("{".into()),
            },
        ]);
        assert_eq!(calls.len(), 2);
        assert!(!conversation.shows_media());
        let source = json!({"type": "base64", "media_type": "image/png", "data": "AAAA"});
        let image = json!({"type": "image", "source": source});
        conversation.answer(&calls[0], &[image], false);
        conversation.close(&[json!({"type": "text", "text": "no"})]);
        conversation.close(&[]);
        assert!(conversation.shows_media());
        conversation.forget_media();
        assert!(!conversation.shows_media());
        let last = conversation.messages().pop().unwrap();
        assert!(last.get().contains(words::NOT_SHOWN));
        assert!(last.get().contains("\"is_error\":true"));
    }
}
