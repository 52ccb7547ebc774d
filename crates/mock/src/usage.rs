//! Token counts that can be predicted: bytes / 4, and a cache that remembers prefixes of prompts.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value, json};

/// Prefixes remembered for a model before it starts afresh; models remembered before all are forgotten.
const MAX_PREFIXES: usize = 50_000;
const MAX_MODELS: usize = 5_000;

/// Input tokens of one request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Input {
    pub(crate) plain: u64,
    pub(crate) read: u64,
    pub(crate) created: u64,
    /// The share of `created` asked to be kept for an hour.
    pub(crate) created_1h: u64,
}

pub(crate) fn tokens(bytes: usize) -> u64 {
    (bytes as u64).div_ceil(4)
}

/// FNV-1a: the same in every process, which is all that is asked of it.
pub(crate) fn hash(seed: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(seed ^ 0xcbf2_9ce4_8422_2325, |h, b| {
        (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[derive(Debug, Default)]
pub(crate) struct Cache(HashMap<String, HashSet<u64>>);

impl Cache {
    pub(crate) fn reset(&mut self, model: Option<&str>) {
        match model {
            Some(model) => drop(self.0.remove(model)),
            None => self.0.clear(),
        }
    }

    /// Counts a request and remembers its prefixes.
    pub(crate) fn count(&mut self, model: &str, request: &Value, has_breakpoints: bool) -> Input {
        let blocks = blocks(request, has_breakpoints);
        let total: usize = blocks.iter().map(|b| b.bytes).sum();
        let Some(last) = blocks.iter().rposition(|b| b.cached) else {
            return Input {
                plain: tokens(total),
                ..Input::default()
            };
        };
        if self.0.len() >= MAX_MODELS && !self.0.contains_key(model) {
            self.0.clear();
        }
        let known = self.0.entry(model.to_owned()).or_default();
        if known.len() >= MAX_PREFIXES {
            known.clear();
        }
        let mut prefix = 0;
        let mut upto = 0;
        let mut read = 0;
        for block in &blocks[..=last] {
            prefix = hash(prefix, &block.hash.to_le_bytes());
            upto += block.bytes;
            if !known.insert(prefix) {
                read = upto;
            }
        }
        let created = tokens(upto - read);
        Input {
            plain: tokens(total - upto),
            read: tokens(read),
            created,
            created_1h: if blocks[last].hour { created } else { 0 },
        }
    }
}

struct Block {
    hash: u64,
    bytes: usize,
    cached: bool,
    hour: bool,
}

/// The prompt's blocks in prompt order, hashed without their `cache_control`, which wanders.
fn blocks(request: &Value, has_breakpoints: bool) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut add = |role: &str, block: &Value| {
        let control = &block["cache_control"];
        let text = if has_breakpoints {
            without_control(block).to_string()
        } else {
            block.to_string()
        };
        blocks.push(Block {
            hash: hash(hash(0, role.as_bytes()), text.as_bytes()),
            bytes: text.len(),
            cached: control.is_object(),
            hour: control["ttl"] == "1h",
        });
    };
    let mut each = |role: &str, content: &Value| match content {
        Value::Array(list) => list.iter().for_each(|block| add(role, block)),
        Value::String(text) => add(role, &json!({"type": "text", "text": text})),
        _ => {}
    };
    each("tools", &request["tools"]);
    each("system", &request["system"]);
    for message in request["messages"].as_array().into_iter().flatten() {
        each(
            message["role"].as_str().unwrap_or_default(),
            &message["content"],
        );
    }
    blocks
}

fn without_control(value: &Value) -> Value {
    match value {
        Value::Object(map) => map
            .iter()
            .filter(|(key, _)| *key != "cache_control")
            .map(|(key, value)| (key.clone(), without_control(value)))
            .collect::<Map<_, _>>()
            .into(),
        Value::Array(list) => list.iter().map(without_control).collect(),
        other => other.clone(),
    }
}

/// All input tokens of a request, cached or not.
pub(crate) fn input_tokens(request: &Value) -> u64 {
    tokens(blocks(request, false).iter().map(|b| b.bytes).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(texts: &[&str], breakpoint: Option<usize>) -> Value {
        let message = |(i, text): (usize, &&str)| {
            let mut block = json!({"type": "text", "text": text});
            if breakpoint == Some(i) {
                block["cache_control"] = json!({"type": "ephemeral"});
            }
            json!({"role": if i % 2 == 0 { "user" } else { "assistant" }, "content": [block]})
        };
        let messages: Vec<_> = texts.iter().enumerate().map(message).collect();
        json!({"system": "be good", "messages": messages})
    }

    fn count(cache: &mut Cache, texts: &[&str], breakpoint: Option<usize>) -> (u64, u64, u64) {
        let request = request(texts, breakpoint);
        let input = cache.count("m", &request, breakpoint.is_some());
        assert_eq!(input.created_1h, 0);
        (input.plain, input.read, input.created)
    }

    #[test]
    fn a_growing_conversation_reads_what_it_wrote() {
        // {"type":"text","text":"be good"} has 32 bytes, a message of one letter 26.
        let mut cache = Cache::default();
        assert_eq!(count(&mut cache, &["a"], None), (15, 0, 0));
        assert_eq!(count(&mut cache, &["a"], Some(0)), (0, 0, 15));
        assert_eq!(count(&mut cache, &["a"], Some(0)), (0, 15, 0));
        assert_eq!(count(&mut cache, &["a", "b", "c"], Some(2)), (0, 15, 13));
        assert_eq!(
            count(&mut cache, &["a", "b", "c", "d", "e"], Some(2)),
            (13, 28, 0)
        );
        assert_eq!(count(&mut cache, &["x", "b", "c"], Some(2)), (0, 8, 20));
        cache.reset(Some("m"));
        assert_eq!(count(&mut cache, &["a"], Some(0)), (0, 0, 15));
    }
}
