//! Replaces references in a request by what they stand for.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use encoding_rs::UTF_8;
use futures_util::{StreamExt as _, stream};
use selfsame_model::Request;
use selfsame_store::{Blob, ContentKind, Pinned, StoreError};
use selfsame_types::{BlobId, FileId, SessionId};
use serde::Deserialize;
use serde_json::{
    Value, json,
    value::{RawValue, to_raw_value},
};

use super::{HEAD, accept::ContentError, limit, media_type};
use crate::{
    Inner,
    web::{Kind, Unfetched},
};

/// Most of a request that references may become, in base64. Models' servers take little more. Counted from
/// the conversation's beginning, so that what was shown once is shown for ever.
const MAX_RESOLVED: usize = 30 << 20;
/// Addresses that are fetched for one request ..
const MAX_FETCHES: usize = 100;
/// .. and at the same time.
const PARALLEL: usize = 4;

/// A reference: for which block, and its file id or address.
type Key = (ContentKind, String);

/// The request as the model's server can read it.
///
/// # Errors
/// Faults of the database and of the store of contents, which may pass. A reference that leads nowhere is
/// none: the model is told in words.
pub(crate) async fn resolve(
    inner: &Inner,
    session: SessionId,
    mut request: Request,
) -> Result<Request, ContentError> {
    let mut wanted = Vec::new();
    let mut seen = HashSet::new();
    for message in request.messages.iter().filter(|m| mentions(m)) {
        visit(&mut serde_json::from_str(message.get())?, &mut |block| {
            if let Some(reference) = reference(block)
                && seen.insert(reference.clone())
            {
                wanted.push(reference);
            }
            None
        });
    }
    if wanted.is_empty() {
        return Ok(request);
    }
    let mut found = pinned(inner, session).await?;
    let missing: Vec<Key> = wanted
        .iter()
        .filter(|key| !found.contains_key(*key))
        .cloned()
        .collect();
    if !missing.is_empty() {
        let mut looks = Vec::new();
        for (index, key) in missing.into_iter().enumerate() {
            looks.push(look_up(inner, session, key, index < MAX_FETCHES));
        }
        let mut looks = stream::iter(looks).buffer_unordered(PARALLEL);
        while let Some(looked) = looks.next().await {
            looked?;
        }
        found = pinned(inner, session).await?;
    }
    let mut sources = HashMap::new();
    let mut room = MAX_RESOLVED;
    for key in wanted {
        let shown = show(inner, &key, found.get(&key)).await?;
        sources.insert(key, shown);
    }
    for message in request.messages.iter_mut().filter(|m| mentions(m)) {
        let mut value: Value = serde_json::from_str(message.get())?;
        let mut problem = None;
        visit(&mut value, &mut |block| {
            let key = reference(block)?;
            match replacement(block, &key, sources.get(&key), &mut room) {
                Ok(block) => Some(block),
                Err(error) => {
                    problem = Some(error);
                    None
                }
            }
        });
        if let Some(error) = problem {
            return Err(error.into());
        }
        *message = to_raw_value(&value)?;
    }
    Ok(request)
}

/// Whether a message may hold a reference. The log's JSON is our own: keys are written plainly.
fn mentions(message: &RawValue) -> bool {
    let text = message.get();
    text.contains("\"type\":\"file\"") || text.contains("\"type\":\"url\"")
}

/// Shows every image and document of a message, and puts what `change` answers in its place.
fn visit(message: &mut Value, change: &mut dyn FnMut(&Value) -> Option<Value>) {
    // Only what clients send refers to something.
    if message["role"] != "user" {
        return;
    }
    let Some(blocks) = message["content"].as_array_mut() else {
        return;
    };
    for block in blocks {
        if block["type"] == "tool_result"
            && let Some(parts) = block["content"].as_array_mut()
        {
            for part in parts {
                if let Some(new) = change(part) {
                    *part = new;
                }
            }
        } else if let Some(new) = change(block) {
            *block = new;
        }
    }
}

fn reference(block: &Value) -> Option<Key> {
    let kind = match block["type"].as_str()? {
        "image" => ContentKind::Image,
        "document" => ContentKind::Document,
        _ => return None,
    };
    let source = &block["source"];
    let name = match source["type"].as_str()? {
        "file" => &source["file_id"],
        "url" => &source["url"],
        _ => return None,
    };
    Some((kind, name.as_str()?.to_owned()))
}

async fn pinned(
    inner: &Inner,
    session: SessionId,
) -> Result<HashMap<Key, Result<(BlobId, String), String>>, StoreError> {
    let pinned = inner.store.content_of(session).await?;
    Ok(pinned
        .into_iter()
        .map(
            |Pinned {
                 kind,
                 source,
                 content,
             }| ((kind, source), content),
        )
        .collect())
}

/// Finds out what a reference stands for, and keeps it.
async fn look_up(
    inner: &Inner,
    session: SessionId,
    (kind, source): Key,
    may_fetch: bool,
) -> Result<(), ContentError> {
    let (store, source) = (&inner.store, source.as_str());
    let problem = if let Ok(file) = source.parse::<FileId>() {
        // Kept when its event was accepted, unless the server ended between the two.
        let found = store.content_file(session, file).await?;
        let content =
            found.and_then(|(workspace, record)| Some((workspace, record.blob?, record.file)));
        let Some((workspace, blob, file)) = content else {
            return keep_problem(inner, session, kind, source, "it is not there any more").await;
        };
        let head = match store.blobs().read(blob, limit("application/pdf")).await {
            Ok(whole) => whole.slice(..whole.len().min(HEAD)),
            Err(selfsame_store::BlobError::TooLarge(_)) => Bytes::new(),
            Err(error) => return Err(error.into()),
        };
        match media_type(kind, &head, &file.mime_type, file.size_bytes) {
            Ok(media_type) => {
                let pinned = store.content_pin_file(workspace, session, kind, file.id, media_type);
                if pinned.await? {
                    return Ok(());
                }
                "it is not there any more".to_owned()
            }
            Err(problem) => format!("it {problem}"),
        }
    } else if may_fetch {
        match fetch(inner, kind, source).await {
            Ok((content, media_type)) => {
                let piece = stream::iter([Ok(content)]);
                let blob: Blob = store.blobs().put(piece, u64::MAX).await?;
                let pin = store.content_pin(session, kind, source, Ok((&blob, media_type)));
                if !matches!(pin.await, Ok(true)) {
                    store.blobs().discard(blob.id).await;
                }
                return Ok(());
            }
            Err(problem) => problem.message,
        }
    } else {
        format!("a request may bring no more than {MAX_FETCHES} new addresses")
    };
    keep_problem(inner, session, kind, source, &problem).await
}

async fn keep_problem(
    inner: &Inner,
    session: SessionId,
    kind: ContentKind,
    source: &str,
    problem: &str,
) -> Result<(), ContentError> {
    inner
        .store
        .content_pin(session, kind, source, Err(problem))
        .await?;
    Ok(())
}

/// What is at an address, as a model can be shown it.
async fn fetch(
    inner: &Inner,
    kind: ContentKind,
    url: &str,
) -> Result<(Bytes, &'static str), Unfetched> {
    let fetcher = &inner.web.fetcher;
    let wrong = |message: &str| Unfetched {
        code: "unsupported_content_type",
        message: message.to_owned(),
    };
    let found = fetcher.get(fetcher.parse(url)?, &[]).await?;
    match (kind, found.kind) {
        (ContentKind::Image, Kind::Image(media_type)) => Ok((found.body.into(), media_type)),
        (ContentKind::Image, _) => Err(wrong("it is not an image; PNG, JPEG, GIF and WebP are")),
        (ContentKind::Document, Kind::Pdf) => Ok((found.body.into(), "application/pdf")),
        (ContentKind::Document, Kind::Image(_)) => Err(wrong("it is an image, not a document")),
        (ContentKind::Document, Kind::Html | Kind::Text) => {
            let (_, mut text, whole) = found.readable().await?;
            if !whole {
                text.push_str("\n\n[The rest is too large and left out.]");
            }
            Ok((text.into(), "text/plain"))
        }
    }
}

/// The JSON of a block's source, or why there is none.
async fn show(
    inner: &Inner,
    key: &Key,
    content: Option<&Result<(BlobId, String), String>>,
) -> Result<Result<Arc<str>, String>, ContentError> {
    let (blob, media_type) = match content {
        Some(Ok((blob, media_type))) => (*blob, media_type.as_str()),
        Some(Err(problem)) => return Ok(Err(problem.clone())),
        None => {
            // Another session's deletion cannot do this; only a fault of ours can.
            tracing::error!(source = key.1, "a reference was looked up and is not there");
            return Ok(Err("it cannot be had".to_owned()));
        }
    };
    if let Some(source) = inner.content.get(blob) {
        return Ok(Ok(source));
    }
    let whole = inner
        .store
        .blobs()
        .read(blob, limit(media_type) + HEAD)
        .await?;
    let source = if media_type == "text/plain" {
        let text = UTF_8.decode(&whole).0;
        let text = if text.trim().is_empty() {
            "(empty)".into()
        } else {
            text
        };
        json!({"type": "text", "media_type": "text/plain", "data": text}).to_string()
    } else {
        format!(
            r#"{{"type":"base64","media_type":"{media_type}","data":"{}"}}"#,
            STANDARD.encode(&whole)
        )
    };
    let source: Arc<str> = source.into();
    inner.content.put(blob, Arc::clone(&source));
    Ok(Ok(source))
}

/// A block in place of one that refers to something.
fn replacement(
    block: &Value,
    (kind, name): &Key,
    source: Option<&Result<Arc<str>, String>>,
    room: &mut usize,
) -> Result<Value, serde_json::Error> {
    let problem = match source {
        Some(Ok(source)) if source.len() <= *room => {
            *room -= source.len();
            let mut new = block.clone();
            new["source"] = Value::deserialize(&mut serde_json::Deserializer::from_str(source))?;
            return Ok(new);
        }
        Some(Ok(_)) => {
            // Nothing that comes later may take its place.
            *room = 0;
            "the conversation holds as much as can be shown"
        }
        Some(Err(problem)) => problem,
        None => "it cannot be had",
    };
    let text = format!("[The {} {name} is not shown: {problem}.]", kind.as_str());
    let mut new = json!({"type": "text", "text": text});
    if let Some(breakpoint) = block.get("cache_control") {
        new["cache_control"] = breakpoint.clone();
    }
    Ok(new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_found_wherever_clients_put_them() {
        let image = |source: Value| json!({"type": "image", "source": source});
        let mut message = json!({"role": "user", "content": [
            {"type": "text", "text": "\"type\":\"url\""},
            image(json!({"type": "url", "url": "https://a.test/"})),
            {"type": "tool_result", "tool_use_id": "t", "content": [
                {"type": "document", "title": "T", "source": {"type": "file", "file_id": "file_1"}},
                {"type": "search_result", "source": "https://b.test/", "title": "t", "content": []},
            ]},
            image(json!({"type": "base64", "media_type": "image/png", "data": "AAAA"})),
        ]});
        assert!(mentions(&to_raw_value(&message).unwrap()));
        let mut found = Vec::new();
        visit(&mut message, &mut |block| {
            found.extend(reference(block));
            None
        });
        assert_eq!(
            found,
            [
                (ContentKind::Image, "https://a.test/".to_owned()),
                (ContentKind::Document, "file_1".to_owned()),
            ]
        );
        message["role"] = json!("assistant");
        visit(&mut message, &mut |_| {
            panic!("what a model says refers to nothing")
        });
    }

    #[test]
    fn blocks_keep_what_is_not_their_source() {
        let block = json!({
            "type": "document", "source": {"type": "file", "file_id": "f"}, "title": "T",
            "context": null, "cache_control": {"type": "ephemeral"},
        });
        let key = (ContentKind::Document, "f".to_owned());
        let source: Arc<str> = r#"{"type":"text","media_type":"text/plain","data":"d"}"#.into();
        let mut room = source.len();
        let shown = Ok(source);
        let new = replacement(&block, &key, Some(&shown), &mut room).unwrap();
        assert_eq!(
            new.to_string(),
            r#"{"type":"document","source":{"type":"text","media_type":"text/plain","data":"d"},"title":"T","context":null,"cache_control":{"type":"ephemeral"}}"#
        );
        // There is no room for a second one, and then for none at all.
        let new = replacement(&block, &key, Some(&shown), &mut room).unwrap();
        assert_eq!(
            new,
            json!({
                "type": "text",
                "text": "[The document f is not shown: the conversation holds as much as can be shown.]",
                "cache_control": {"type": "ephemeral"},
            })
        );
        let missing = Err("no answer".to_owned());
        let new = replacement(&block, &key, Some(&missing), &mut room).unwrap();
        assert_eq!(new["text"], "[The document f is not shown: no answer.]");
    }
}
