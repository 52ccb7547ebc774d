//! What the real API would refuse. An engine that sends such a request has a bug, and should see it
//! here first.

use std::collections::HashSet;

use serde_json::Value;

use crate::{usage::hash, wire::SIGNATURE_PREFIX};

const MAX_BREAKPOINTS: usize = 4;

/// The signature of a thinking block of ours.
pub(crate) fn signature(thinking: &str) -> String {
    format!("{SIGNATURE_PREFIX}{:016x}", hash(0, thinking.as_bytes()))
}

/// # Errors
/// The message of a 400.
pub(crate) fn check(request: &Value) -> Result<(), String> {
    if request["model"].as_str().is_none_or(str::is_empty) {
        return Err("model: Field required".into());
    }
    let max_tokens = request["max_tokens"].as_u64().unwrap_or(0);
    if max_tokens < 1 {
        return Err("max_tokens: must be at least 1".into());
    }
    if let Some(budget) = request["thinking"].get("budget_tokens") {
        let budget = budget.as_u64().unwrap_or(0);
        if budget < 1024 {
            return Err("thinking.budget_tokens: must be at least 1024".into());
        }
        if budget >= max_tokens {
            return Err("`max_tokens` must be greater than `thinking.budget_tokens`".into());
        }
    }
    tools(&request["tools"])?;
    tool_choice(request)?;
    content(&request["system"], "system")?;
    let messages = request["messages"]
        .as_array()
        .map_or(&[][..], Vec::as_slice);
    check_messages(messages)?;

    let breakpoints = breakpoints(&request["tools"])
        + breakpoints(&request["system"])
        + breakpoints(&request["messages"]);
    if breakpoints > MAX_BREAKPOINTS {
        return Err(format!(
            "A maximum of {MAX_BREAKPOINTS} blocks with cache_control may be provided. Found {breakpoints}."
        ));
    }
    Ok(())
}

fn tools(tools: &Value) -> Result<(), String> {
    let mut names = HashSet::new();
    for (i, tool) in tools.as_array().into_iter().flatten().enumerate() {
        let name = tool["name"].as_str().unwrap_or_default();
        let legal = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        if name.is_empty() || name.len() > 128 || !name.chars().all(legal) {
            return Err(format!(
                "tools.{i}.name: must match ^[a-zA-Z0-9_-]{{1,128}}$"
            ));
        }
        if !names.insert(name) {
            return Err("tools: Tool names must be unique.".into());
        }
        // Tools of the provider have a type and no schema.
        let is_custom = matches!(tool["type"].as_str(), None | Some("custom"));
        if is_custom && tool["input_schema"]["type"] != "object" {
            return Err(format!("tools.{i}.input_schema.type: must be `object`"));
        }
    }
    Ok(())
}

fn tool_choice(request: &Value) -> Result<(), String> {
    let choice = &request["tool_choice"];
    if !matches!(choice["type"].as_str(), Some("tool" | "any")) {
        return Ok(());
    }
    let thinks = matches!(
        request["thinking"]["type"].as_str(),
        Some("enabled" | "adaptive")
    );
    if thinks {
        return Err("Thinking may not be enabled when tool_choice forces tool use.".into());
    }
    let mut tools = request["tools"].as_array().into_iter().flatten();
    if choice["type"] == "tool" && !tools.any(|tool| tool["name"] == choice["name"]) {
        return Err(format!(
            "tool_choice: tool {} not found in the tools",
            choice["name"]
        ));
    }
    Ok(())
}

fn content(content: &Value, at: &str) -> Result<(), String> {
    let texts: Vec<&Value> = match content {
        Value::Array(blocks) => blocks
            .iter()
            .filter(|b| b["type"] == "text")
            .map(|b| &b["text"])
            .collect(),
        Value::Null => Vec::new(),
        other => vec![other],
    };
    for text in texts {
        match text.as_str() {
            None => return Err(format!("{at}: Input should be a valid string")),
            Some("") => return Err(format!("{at}: text content blocks must be non-empty")),
            Some(text) if text.trim().is_empty() => {
                return Err(format!(
                    "{at}: text content blocks must contain non-whitespace text"
                ));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

fn check_messages(messages: &[Value]) -> Result<(), String> {
    let Some(first) = messages.first() else {
        return Err("messages: at least one message is required".into());
    };
    if first["role"] != "user" {
        return Err("messages: first message must use the \"user\" role".into());
    }
    // Calls of the latest assistant turn that have no result yet. Messages of one role in a row are
    // one turn.
    let mut pending: Vec<&str> = Vec::new();
    let mut seen = HashSet::new();
    let mut last_role = "";
    for (i, message) in messages.iter().enumerate() {
        let at = format!("messages.{i}");
        let role = message["role"].as_str().unwrap_or_default();
        if !matches!(role, "user" | "assistant" | "system") {
            return Err(format!("{at}.role: Input should be 'user' or 'assistant'"));
        }
        if role == "assistant" && last_role != "assistant" {
            all_answered(&pending, i)?;
        }
        content(&message["content"], &at)?;
        if message["content"].as_array().is_some_and(Vec::is_empty) || message["content"].is_null()
        {
            return Err(format!("{at}: all messages must have non-empty content"));
        }
        for block in message["content"].as_array().into_iter().flatten() {
            match (role, block["type"].as_str()) {
                ("assistant", Some("tool_use")) => pending.push(call(block, &at, &mut seen)?),
                ("assistant", Some("thinking")) => thinking(block, &at)?,
                ("user", Some("tool_result")) => {
                    let id = block["tool_use_id"].as_str().unwrap_or_default();
                    let Some(position) = pending.iter().position(|p| *p == id) else {
                        return Err(format!(
                            "{at}: unexpected `tool_use_id` found in `tool_result` blocks: {id}. Each \
                             `tool_result` block must have a corresponding `tool_use` block in the previous message."
                        ));
                    };
                    pending.swap_remove(position);
                    if block["content"].is_array() {
                        content(&block["content"], &at)?;
                    }
                }
                ("user" | "system", Some(_)) if !pending.is_empty() => all_answered(&pending, i)?,
                (_, None) => return Err(format!("{at}: a content block has no type")),
                _ => {}
            }
        }
        if role != "assistant" && message["content"].is_string() {
            all_answered(&pending, i)?;
        }
        last_role = role;
    }
    all_answered(&pending, messages.len())
}

fn all_answered(pending: &[&str], before: usize) -> Result<(), String> {
    if pending.is_empty() {
        return Ok(());
    }
    Err(format!(
        "messages.{}: `tool_use` ids were found without `tool_result` blocks immediately after: {}. Each \
         `tool_use` block must have a corresponding `tool_result` block in the next message.",
        before.saturating_sub(1),
        pending.join(", ")
    ))
}

fn call<'a>(block: &'a Value, at: &str, seen: &mut HashSet<&'a str>) -> Result<&'a str, String> {
    let id = block["id"].as_str().unwrap_or_default();
    if id.is_empty() || block["name"].as_str().is_none_or(str::is_empty) {
        return Err(format!("{at}: a `tool_use` block needs id and name"));
    }
    if !block["input"].is_object() {
        return Err(format!(
            "{at}: tool_use.input: Input should be a valid dictionary"
        ));
    }
    if !seen.insert(id) {
        return Err(format!("{at}: `tool_use` ids must be unique"));
    }
    Ok(id)
}

fn thinking(block: &Value, at: &str) -> Result<(), String> {
    if !block["cache_control"].is_null() {
        return Err(format!("{at}: thinking blocks cannot have cache_control"));
    }
    let text = block["thinking"].as_str().unwrap_or_default();
    if block["signature"].as_str() != Some(&signature(text)) {
        return Err(format!("{at}: Invalid `signature` in `thinking` block"));
    }
    Ok(())
}

fn breakpoints(value: &Value) -> usize {
    match value {
        Value::Object(map) => {
            usize::from(map.get("cache_control").is_some_and(Value::is_object))
                // What is inside a call's input is data, whatever its keys are called.
                + map.iter().filter(|(k, _)| !matches!(k.as_str(), "input" | "input_schema" | "cache_control"))
                    .map(|(_, v)| breakpoints(v)).sum::<usize>()
        }
        Value::Array(list) => list.iter().map(breakpoints).sum(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn messages(messages: Value) -> Result<(), String> {
        check(&json!({"model": "m", "max_tokens": 10, "messages": messages}))
    }

    fn call(id: &str) -> Value {
        json!({"type": "tool_use", "id": id, "name": "t", "input": {}})
    }

    fn result(id: &str) -> Value {
        json!({"type": "tool_result", "tool_use_id": id, "content": "r"})
    }

    fn user(content: Value) -> Value {
        json!({"role": "user", "content": content})
    }

    fn assistant(content: Value) -> Value {
        json!({"role": "assistant", "content": content})
    }

    #[test]
    fn good_conversations() {
        let think = json!({"type": "thinking", "thinking": "hm", "signature": signature("hm")});
        let text = json!({"type": "text", "text": "x"});
        for good in [
            json!([user(json!("a"))]),
            json!([user(json!("a")), assistant(json!("b")), user(json!("c"))]),
            json!([user(json!("a")), user(json!("b"))]),
            json!([
                user(json!("a")),
                assistant(json!([think, call("1"), call("2")])),
                user(json!([result("2"), result("1"), text]))
            ]),
            json!([
                user(json!("a")),
                assistant(json!([call("1"), call("2")])),
                user(json!([result("2")])),
                user(json!([result("1")])),
                user(json!("x"))
            ]),
            json!([
                user(json!("a")),
                assistant(json!([text])),
                assistant(json!([call("1")])),
                user(json!([result("1")]))
            ]),
            json!([user(json!("a")), {"role": "system", "content": "s"}]),
        ] {
            assert_eq!(messages(good.clone()), Ok(()), "{good}");
        }
    }

    #[test]
    fn bad_conversations() {
        let text = json!({"type": "text", "text": "x"});
        for (bad, words) in [
            (json!([]), "at least one"),
            (json!([assistant(json!("a"))]), "first message"),
            (json!([{"role": "robot", "content": "a"}]), "first message"),
            (
                json!([user(json!("a")), {"role": "robot", "content": "a"}]),
                "role",
            ),
            (json!([user(json!(""))]), "non-empty"),
            (json!([user(json!([]))]), "non-empty content"),
            (
                json!([user(json!([{"type": "text", "text": ""}]))]),
                "non-empty",
            ),
            (
                json!([user(json!([{"type": "text", "text": " \n"}]))]),
                "non-whitespace",
            ),
            (
                json!([user(json!([result("1")]))]),
                "unexpected `tool_use_id`",
            ),
            (
                json!([user(json!("a")), assistant(json!([call("1")]))]),
                "without `tool_result`",
            ),
            (
                json!([
                    user(json!("a")),
                    assistant(json!([call("1")])),
                    user(json!("b"))
                ]),
                "without",
            ),
            (
                json!([
                    user(json!("a")),
                    assistant(json!([call("1")])),
                    user(json!([text, result("1")]))
                ]),
                "without",
            ),
            (
                json!([
                    user(json!("a")),
                    assistant(json!([call("1"), call("2")])),
                    user(json!([result("1")])),
                    assistant(json!("b"))
                ]),
                "without `tool_result` blocks immediately after: 2",
            ),
            (
                json!([user(json!("a")), assistant(json!([call("1"), call("1")]))]),
                "unique",
            ),
            (
                json!([
                    user(json!("a")),
                    assistant(json!([{"type": "tool_use", "id": "1", "name": "t", "input": "x"}]))
                ]),
                "valid dictionary",
            ),
            (
                json!([
                    user(json!("a")),
                    assistant(json!([{"type": "thinking", "thinking": "hm", "signature": "x"}]))
                ]),
                "signature",
            ),
        ] {
            let error = messages(bad.clone()).unwrap_err();
            assert!(error.contains(words), "{bad}: {error}");
        }
    }

    #[test]
    fn bad_parameters() {
        let base = json!({"model": "m", "max_tokens": 2000, "messages": [user(json!("a"))]});
        let tool = |name: &str| json!({"name": name, "input_schema": {"type": "object"}});
        let cached = json!({"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}});
        for (key, value, words) in [
            ("model", json!(""), "model"),
            ("max_tokens", json!(0), "max_tokens"),
            (
                "thinking",
                json!({"type": "enabled", "budget_tokens": 2000}),
                "greater",
            ),
            (
                "thinking",
                json!({"type": "enabled", "budget_tokens": 10}),
                "1024",
            ),
            ("tools", json!([tool("a"), tool("a")]), "unique"),
            ("tools", json!([tool("a.b")]), "must match"),
            ("tools", json!([{"name": "a"}]), "input_schema"),
            (
                "tool_choice",
                json!({"type": "tool", "name": "a"}),
                "not found",
            ),
            ("system", json!([{"type": "text", "text": ""}]), "non-empty"),
            (
                "system",
                json!([cached, cached, cached, cached, cached]),
                "maximum of 4",
            ),
        ] {
            let mut request = base.clone();
            request[key] = value;
            let error = check(&request).unwrap_err();
            assert!(error.contains(words), "{key}: {error}");
        }
        let mut good = base;
        good["system"] = json!([cached, cached, cached, cached]);
        good["tools"] =
            json!([tool("a"), tool("b"), {"type": "web_search_20250305", "name": "web_search"}]);
        good["tool_choice"] = json!({"type": "tool", "name": "b"});
        assert_eq!(check(&good), Ok(()));
        good["thinking"] = json!({"type": "adaptive"});
        assert!(check(&good).unwrap_err().contains("Thinking may not"));
        good["tool_choice"] = json!({"type": "auto"});
        assert_eq!(check(&good), Ok(()));
    }
}
