//! Results of MCP calls as content of events.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rmcp::model::{CallToolResult, ContentBlock, ResourceContents, ServerResult};
use selfsame_types::content::{MAX_IMAGE_ENCODED, MAX_PDF};
use serde_json::{Value, json};

use crate::web::{Kind, sniff};

/// Images and documents of one result, in base64. What is over is described instead.
const MAX_MEDIA: usize = 28 << 20;
/// So many blocks are looked at; the rest is counted.
const MAX_BLOCKS: usize = 500;
/// Of names, addresses and media types that servers make up.
const MAX_LABEL: usize = 500;

/// A result as it is shown.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Shown {
    pub blocks: Vec<Value>,
    pub is_error: bool,
}

/// `None` when the answer is the result of no call.
pub(super) fn show(result: ServerResult) -> Option<Shown> {
    match result {
        ServerResult::CallToolResult(result) => Some(of_result(result)),
        // An empty object, or one whose parts are not all known: what can be read of it is shown.
        ServerResult::EmptyResult(_) | ServerResult::TaskAckResult(_) => {
            Some(shown(Vec::new(), None, false))
        }
        ServerResult::CustomResult(result) => {
            let blocks = match &result.0["content"] {
                Value::Array(blocks) => blocks.iter().map(of_value).collect(),
                Value::Null => Vec::new(),
                one => vec![of_value(one)],
            };
            let structured = result.0.get("structuredContent").cloned();
            if blocks.is_empty() && structured.is_none() {
                return None;
            }
            Some(shown(blocks, structured, result.0["isError"] == true))
        }
        _ => None,
    }
}

enum Part {
    Known(Box<ContentBlock>),
    Unknown(Value),
}

fn of_value(block: &Value) -> Part {
    match serde_json::from_value(block.clone()) {
        Ok(known) => Part::Known(Box::new(known)),
        Err(_) => Part::Unknown(block.clone()),
    }
}

fn of_result(result: CallToolResult) -> Shown {
    let parts = result
        .content
        .into_iter()
        .map(|block| Part::Known(Box::new(block)));
    shown(
        parts.collect(),
        result.structured_content,
        result.is_error == Some(true),
    )
}

fn shown(parts: Vec<Part>, structured: Option<Value>, is_error: bool) -> Shown {
    let more = parts.len().saturating_sub(MAX_BLOCKS);
    let structured = structured.filter(|value| !value.is_null() && !is_said(&parts, value));
    let mut media = MAX_MEDIA;
    let mut blocks = Vec::new();
    for part in parts.into_iter().take(MAX_BLOCKS) {
        blocks.extend(match part {
            Part::Known(block) => known(*block, &mut media),
            Part::Unknown(value) => text(value.to_string()),
        });
    }
    blocks.extend(structured.and_then(|value| text(value.to_string())));
    if more > 0 {
        blocks.extend(text(format!(
            "[{more} more blocks of this result are left out]"
        )));
    }
    if blocks.is_empty() {
        blocks.extend(text("(no output)".to_owned()));
    }
    Shown { blocks, is_error }
}

/// Whether the texts of a result say what its structured content says. Servers are to give both; common
/// ones put what is no object into one with the single key `result`, and give a list as a text for each.
fn is_said(parts: &[Part], structured: &Value) -> bool {
    let texts = || {
        parts.iter().filter_map(|part| match part {
            Part::Known(block) => match &**block {
                ContentBlock::Text(text) => Some(text.text.as_str()),
                _ => None,
            },
            Part::Unknown(_) => None,
        })
    };
    let says = |text: &str, value: &Value| {
        value.as_str() == Some(text)
            || serde_json::from_str::<Value>(text).is_ok_and(|said| said == *value)
    };
    let wrapped = structured
        .as_object()
        .filter(|object| object.len() == 1)
        .and_then(|object| object.get("result"));
    let each = wrapped.and_then(Value::as_array).is_some_and(|values| {
        values.len() == texts().count()
            && texts().zip(values).all(|(text, value)| says(text, value))
    });
    each || [Some(structured), wrapped]
        .into_iter()
        .flatten()
        .any(|value| texts().any(|text| says(text, value)))
}

fn known(block: ContentBlock, media: &mut usize) -> Option<Value> {
    match block {
        ContentBlock::Text(block) => text(block.text),
        ContentBlock::Image(image) => binary("An image", None, &image.mime_type, image.data, media),
        ContentBlock::Audio(audio) => {
            text(described("Audio", None, &audio.mime_type, audio.data.len()))
        }
        ContentBlock::Resource(embedded) => match embedded.resource {
            ResourceContents::TextResourceContents { uri, text, .. } => {
                if text.trim().is_empty() {
                    return self::text(format!("[The resource {} is empty]", label(&uri)));
                }
                Some(json!({
                    "type": "document",
                    "source": {"type": "text", "media_type": "text/plain", "data": text},
                    "title": label(&uri),
                }))
            }
            ResourceContents::BlobResourceContents {
                uri,
                mime_type,
                blob,
                ..
            } => {
                let kind = mime_type.unwrap_or_default();
                binary("A resource", Some(&uri), &kind, blob, media)
            }
            _ => text("[A resource of a kind that is not known here]".to_owned()),
        },
        ContentBlock::ResourceLink(link) => {
            let mut shown = format!("[Resource {}: {}", label(&link.name), label(&link.uri));
            if let Some(kind) = &link.mime_type {
                shown += &format!(", {}", label(kind));
            }
            shown += "]";
            if let Some(description) = link.description {
                shown += &format!(" {description}");
            }
            text(shown)
        }
        _ => text("[Content of a kind that is not known here]".to_owned()),
    }
}

/// An image or a PDF as such, if that is what the bytes are; of others what they claim to be.
fn binary(
    what: &str,
    uri: Option<&str>,
    kind: &str,
    data: String,
    media: &mut usize,
) -> Option<Value> {
    let size = data.len();
    let block = if size > *media {
        None
    } else {
        match STANDARD.decode(&data).ok().and_then(|bytes| sniff(&bytes)) {
            Some(Kind::Image(media_type)) if size <= MAX_IMAGE_ENCODED => Some(json!({
                "type": "image",
                "source": {"type": "base64", "media_type": media_type, "data": data},
            })),
            Some(Kind::Pdf) if size / 4 * 3 <= MAX_PDF => Some(json!({
                "type": "document",
                "source": {"type": "base64", "media_type": "application/pdf", "data": data},
            })),
            _ => None,
        }
    };
    match block {
        Some(block) => {
            *media -= size;
            Some(block)
        }
        None => text(described(what, uri, kind, size)),
    }
}

fn described(what: &str, uri: Option<&str>, kind: &str, encoded: usize) -> String {
    let uri = uri.map_or(String::new(), |uri| format!(" {}", label(uri)));
    let kind = if kind.is_empty() {
        "unknown type"
    } else {
        kind
    };
    format!(
        "[{what}{uri} ({}, {} bytes) cannot be shown here]",
        label(kind),
        encoded / 4 * 3
    )
}

/// A model API takes no texts without a character to see.
fn text(text: String) -> Option<Value> {
    (!text.trim().is_empty()).then(|| json!({"type": "text", "text": text}))
}

fn label(text: &str) -> String {
    text.chars()
        .take(MAX_LABEL)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

/// The characters of a result's texts, and all of them one after the other.
pub(super) fn characters(blocks: &[Value]) -> usize {
    blocks
        .iter()
        .filter_map(text_of)
        .map(|text| text.chars().count())
        .sum()
}

pub(super) fn text_of(block: &Value) -> Option<&str> {
    block["text"].as_str().or_else(|| {
        let source = &block["source"];
        (source["type"] == "text").then(|| source["data"].as_str())?
    })
}

#[cfg(test)]
mod tests;
