//! `{{sthr_:2}}` in a tool's input: the second word of the conversation that begins with `sthr_`. So a script
//! can use ids that it could not know when it was written.

use serde_json::Value;

use crate::rule::Step;

/// Fills the inputs of tool steps in, from the request they answer.
pub(crate) fn fill(steps: &mut [Step], request: &Value) {
    let mut texts = Vec::new();
    let mut collected = false;
    for step in steps {
        if let Step::Tool(tool) = step
            && let Some(input) = &mut tool.input
        {
            if !std::mem::replace(&mut collected, true) {
                collect(&request["messages"], &mut texts);
            }
            replace(input, &texts);
        }
    }
}

fn collect<'a>(value: &'a Value, texts: &mut Vec<&'a str>) {
    match value {
        Value::String(text) => texts.push(text),
        Value::Array(list) => list.iter().for_each(|value| collect(value, texts)),
        Value::Object(object) => object.values().for_each(|value| collect(value, texts)),
        _ => {}
    }
}

fn replace(value: &mut Value, texts: &[&str]) {
    match value {
        Value::String(text) => {
            if let Some(filled) = filled(text, texts) {
                *text = filled;
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|value| replace(value, texts)),
        Value::Object(object) => object.values_mut().for_each(|value| replace(value, texts)),
        _ => {}
    }
}

/// `None` when there is nothing to fill in, or nothing to fill it with.
fn filled(text: &str, texts: &[&str]) -> Option<String> {
    let (before, rest) = text.split_once("{{")?;
    let (place, after) = rest.split_once("}}")?;
    let (prefix, count) = place.rsplit_once(':')?;
    let count: usize = count.parse().ok()?;
    let mut found: Vec<&str> = Vec::new();
    let words = texts
        .iter()
        .flat_map(|text| text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_'));
    for word in words.filter(|word| word.starts_with(prefix)) {
        if !found.contains(&word) {
            found.push(word);
        }
    }
    let word = found.get(count.checked_sub(1)?)?;
    Some(format!("{before}{word}{after}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_word_of_the_conversation_is_filled_in() {
        let request = json!({"messages": [
            {"role": "user", "content": "sthr_b, then sthr_a. And sthr_b again."},
            {"role": "user", "content": [{"type": "tool_result", "content": [{"type": "text", "text": "x sthr_c"}]}]},
        ]});
        let step = |text: &str| -> Vec<Step> {
            serde_json::from_value(json!([{"tool": {"name": "t", "input": {"to": [text]}}}]))
                .unwrap()
        };
        for (text, expected) in [
            ("{{sthr_:1}}", "sthr_b"),
            ("to {{sthr_:2}}!", "to sthr_a!"),
            ("{{sthr_:3}}", "sthr_c"),
            ("{{sthr_:4}}", "{{sthr_:4}}"),
            ("{{sthr_:0}}", "{{sthr_:0}}"),
            ("{{sthr_}}", "{{sthr_}}"),
            ("plain", "plain"),
        ] {
            let mut steps = step(text);
            fill(&mut steps, &request);
            let Step::Tool(tool) = &steps[0] else {
                panic!()
            };
            assert_eq!(tool.input, Some(json!({"to": [expected]})));
        }
    }
}
