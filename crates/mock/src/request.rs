//! A Messages request, read as far as rules look into it.

use std::collections::HashMap;

use serde_json::Value;

/// What rules and the default script ask about.
#[derive(Debug)]
pub(crate) struct Parsed {
    pub(crate) body: String,
    pub(crate) json: Value,
    pub(crate) model: String,
    pub(crate) stream: bool,
    pub(crate) thinks: bool,
    /// Names of the tools on offer.
    pub(crate) tools: Vec<String>,
    /// The one that must be called.
    pub(crate) forced: Option<String>,
    pub(crate) system_text: String,
    /// Text of the last user message that has any.
    pub(crate) user_text: String,
    /// Assistant messages in all ..
    pub(crate) turn: usize,
    /// .. and after that user message.
    pub(crate) round: usize,
    /// Tool results in the last message.
    pub(crate) results: Vec<ToolResult>,
}

#[derive(Debug)]
pub(crate) struct ToolResult {
    pub(crate) tool: String,
    pub(crate) text: String,
    pub(crate) is_error: bool,
}

impl Parsed {
    /// Never fails on JSON: what is not as expected reads as absent, `validate` has the say.
    pub(crate) fn new(body: String, json: Value) -> Self {
        let messages = json["messages"].as_array().map_or(&[][..], Vec::as_slice);
        let user_at = messages
            .iter()
            .rposition(|m| m["role"] == "user" && !text_of(&m["content"]).is_empty());
        let user_text = user_at.map(|at| text_of(&messages[at]["content"]));
        let is_assistant = |m: &&Value| m["role"] == "assistant";
        let results = messages.last().map(|last| results(last, messages));
        let tools = json["tools"].as_array().into_iter().flatten();
        Self {
            model: json["model"].as_str().unwrap_or_default().to_owned(),
            stream: json["stream"] == true,
            thinks: matches!(
                json["thinking"]["type"].as_str(),
                Some("enabled" | "adaptive")
            ),
            tools: tools
                .filter_map(|t| t["name"].as_str().map(str::to_owned))
                .collect(),
            forced: (json["tool_choice"]["type"] == "tool")
                .then(|| json["tool_choice"]["name"].as_str().map(str::to_owned))
                .flatten(),
            system_text: text_of(&json["system"]),
            user_text: user_text.unwrap_or_default(),
            turn: messages.iter().filter(is_assistant).count(),
            round: messages[user_at.unwrap_or(0)..]
                .iter()
                .filter(is_assistant)
                .count(),
            results: results.unwrap_or_default(),
            body,
            json,
        }
    }

    pub(crate) fn offers(&self, tool: &str) -> bool {
        self.tools.iter().any(|t| t == tool)
    }

    /// The schema of a tool's input.
    pub(crate) fn schema(&self, tool: &str) -> &Value {
        let mut tools = self.json["tools"].as_array().into_iter().flatten();
        tools
            .find(|offered| offered["name"] == tool)
            .map_or(&Value::Null, |offered| &offered["input_schema"])
    }
}

/// Text of a string or of the text blocks of a list, joined by line breaks.
fn text_of(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(blocks) => blocks
            .iter()
            .filter_map(|b| b["text"].as_str())
            .collect::<Vec<_>>()
            .join("\n"),
        _ => String::new(),
    }
}

fn results(last: &Value, messages: &[Value]) -> Vec<ToolResult> {
    let blocks = last["content"].as_array().into_iter().flatten();
    let mut results = blocks.filter(|b| b["type"] == "tool_result").peekable();
    if results.peek().is_none() {
        return Vec::new();
    }
    let calls: HashMap<&str, &str> = messages
        .iter()
        .flat_map(|m| m["content"].as_array().into_iter().flatten())
        .filter(|b| b["type"] == "tool_use")
        .filter_map(|b| Some((b["id"].as_str()?, b["name"].as_str()?)))
        .collect();
    results
        .map(|block| ToolResult {
            tool: block["tool_use_id"]
                .as_str()
                .and_then(|id| calls.get(id))
                .map_or_else(|| "tool".to_owned(), |name| (*name).to_owned()),
            text: result_text(&block["content"]),
            is_error: block["is_error"] == true,
        })
        .collect()
}

fn result_text(content: &Value) -> String {
    match content {
        Value::Array(blocks) => blocks
            .iter()
            .map(|b| match b["text"].as_str() {
                Some(text) => text.to_owned(),
                None => format!("[{}]", b["type"].as_str().unwrap_or("block")),
            })
            .collect::<Vec<_>>()
            .join("\n"),
        other => text_of(other),
    }
}
