//! Why a model did not answer, in the terms that decide what to do about it.

use std::time::Duration;

use serde::Deserialize;

/// A failed model request. `message` may be shown to users: it holds what the upstream said, never a
/// key or an address.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct ModelError {
    pub kind: ModelErrorKind,
    pub message: String,
    /// Whether the same request may succeed later.
    pub retryable: bool,
    /// What the upstream asked for, unlimited; [`crate::retry`] puts a limit to it.
    pub retry_after: Option<Duration>,
    /// The prompt does not fit the model's window: a shorter one would.
    pub context_exceeded: bool,
}

/// The kinds that clients of the API are told apart by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ModelErrorKind {
    Overloaded,
    RateLimited,
    RequestFailed,
    Billing,
    Unknown,
}

/// Most characters of an upstream's message that are kept.
const MESSAGE_CHARS: usize = 2000;

impl ModelError {
    pub(crate) fn new(kind: ModelErrorKind, retryable: bool, message: impl Into<String>) -> Self {
        let message = clean(&message.into());
        Self {
            context_exceeded: kind == ModelErrorKind::RequestFailed
                && !retryable
                && says_too_long(&message),
            kind,
            message,
            retryable,
            retry_after: None,
        }
    }

    /// The connection failed or broke: worth another try.
    #[must_use]
    pub fn connection(message: impl Into<String>) -> Self {
        Self::new(ModelErrorKind::RequestFailed, true, message)
    }

    /// The upstream said something that is not a Messages stream.
    #[must_use]
    pub fn protocol(message: impl std::fmt::Display) -> Self {
        Self::connection(format!("The model's response could not be read: {message}"))
    }

    /// The request can never succeed as it is.
    #[must_use]
    pub fn permanent(message: impl Into<String>) -> Self {
        Self::new(ModelErrorKind::RequestFailed, false, message)
    }

    /// From a response that is not a success. `body` is its beginning, `should_retry` the
    /// `x-should-retry` header.
    #[must_use]
    pub fn from_status(
        status: u16,
        body: &[u8],
        retry_after: Option<Duration>,
        should_retry: Option<bool>,
    ) -> Self {
        let envelope = Envelope::read(body);
        let (name, message) = match &envelope {
            Some(e) => (e.error.kind.as_deref(), e.error.message.as_deref()),
            None => (None, None),
        };
        let message = match message.map(str::trim).filter(|m| !m.is_empty()) {
            Some(message) => message.to_owned(),
            None => match excerpt(body) {
                Some(text) => format!("The model provider answered {status}: {text}"),
                None => format!("The model provider answered {status}"),
            },
        };
        let (kind, retryable) = match status {
            402 => (ModelErrorKind::Billing, false),
            429 => (ModelErrorKind::RateLimited, true),
            503 | 529 => (ModelErrorKind::Overloaded, true),
            408 | 409 | 425 | 500..=599 => (ModelErrorKind::RequestFailed, true),
            _ => (ModelErrorKind::RequestFailed, false),
        };
        let billing = name == Some("billing_error")
            // What an account without credit gets is a 400 that says so only in words.
            || (status == 400 && message.contains("credit balance"));
        let (kind, retryable) = match kind {
            _ if billing => (ModelErrorKind::Billing, false),
            _ => (kind, should_retry.unwrap_or(retryable)),
        };
        Self {
            retry_after,
            ..Self::new(kind, retryable, message)
        }
    }

    /// From an `error` event inside a stream that began well.
    #[must_use]
    pub fn from_event(kind: Option<&str>, message: Option<&str>) -> Self {
        let (error, retryable) = match kind {
            Some("overloaded_error") => (ModelErrorKind::Overloaded, true),
            Some("rate_limit_error") => (ModelErrorKind::RateLimited, true),
            Some("billing_error") => (ModelErrorKind::Billing, false),
            Some("api_error" | "timeout_error") => (ModelErrorKind::RequestFailed, true),
            Some(
                "invalid_request_error"
                | "authentication_error"
                | "permission_error"
                | "not_found_error"
                | "request_too_large",
            ) => (ModelErrorKind::RequestFailed, false),
            _ => (ModelErrorKind::Unknown, true),
        };
        let message = match (message, kind) {
            (Some(message), _) if !message.trim().is_empty() => message.trim().to_owned(),
            (_, Some(kind)) => format!("The model provider reported {kind}"),
            _ => "The model provider reported an error".to_owned(),
        };
        Self::new(error, retryable, message)
    }
}

/// The words of the known upstreams for a prompt beyond the window.
fn says_too_long(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    [
        "prompt is too long",
        "exceed context limit",
        "context window",
        "context length",
        "maximum context",
    ]
    .iter()
    .any(|words| message.contains(words))
}

/// Control characters out, so that a message can go into any log or event; bounded.
fn clean(message: &str) -> String {
    message
        .chars()
        .map(|c| if c.is_control() && c != '\n' { ' ' } else { c })
        .take(MESSAGE_CHARS)
        .collect()
}

fn excerpt(body: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(&body[..body.len().min(1000)]);
    let text = text.trim();
    // Pages of proxies tell a user nothing.
    (!text.is_empty() && !text.starts_with('<')).then(|| text.chars().take(300).collect())
}

/// The error envelope of the Messages API, as tolerantly as can be.
#[derive(Deserialize)]
pub(crate) struct Envelope {
    pub(crate) error: EnvelopeError,
}

#[derive(Deserialize)]
pub(crate) struct EnvelopeError {
    #[serde(rename = "type")]
    pub(crate) kind: Option<String>,
    pub(crate) message: Option<String>,
}

impl Envelope {
    pub(crate) fn read(json: &[u8]) -> Option<Self> {
        serde_json::from_slice(json).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ModelErrorKind::{Billing, Overloaded, RateLimited, RequestFailed, Unknown};

    fn body(kind: &str, message: &str) -> Vec<u8> {
        format!(r#"{{"type":"error","error":{{"type":"{kind}","message":"{message}"}},"request_id":"r"}}"#)
            .into_bytes()
    }

    #[test]
    fn statuses() {
        for (status, kind, retryable) in [
            (400, RequestFailed, false),
            (401, RequestFailed, false),
            (402, Billing, false),
            (403, RequestFailed, false),
            (404, RequestFailed, false),
            (408, RequestFailed, true),
            (409, RequestFailed, true),
            (413, RequestFailed, false),
            (422, RequestFailed, false),
            (302, RequestFailed, false),
            (429, RateLimited, true),
            (500, RequestFailed, true),
            (502, RequestFailed, true),
            (503, Overloaded, true),
            (504, RequestFailed, true),
            (529, Overloaded, true),
            (599, RequestFailed, true),
        ] {
            let error = ModelError::from_status(status, &body("x", "words"), None, None);
            assert_eq!((error.kind, error.retryable), (kind, retryable), "{status}");
            assert_eq!(error.message, "words");
        }
    }

    #[test]
    fn words_and_headers_weigh_in() {
        let error = ModelError::from_status(403, &body("billing_error", "pay"), None, Some(true));
        assert_eq!((error.kind, error.retryable), (Billing, false));
        let low = body("invalid_request_error", "Your credit balance is too low");
        let error = ModelError::from_status(400, &low, None, None);
        assert_eq!((error.kind, error.retryable), (Billing, false));

        let error = ModelError::from_status(500, b"", None, Some(false));
        assert!(!error.retryable);
        assert_eq!(error.message, "The model provider answered 500");
        let error = ModelError::from_status(400, b"", Some(Duration::from_secs(1)), Some(true));
        assert!(error.retryable);
        assert_eq!(error.retry_after, Some(Duration::from_secs(1)));

        let long = body(
            "invalid_request_error",
            "prompt is too long: 200001 tokens > 200000 maximum",
        );
        assert!(ModelError::from_status(400, &long, None, None).context_exceeded);
        assert!(!ModelError::from_status(500, &long, None, None).context_exceeded);
    }

    #[test]
    fn bodies_that_are_not_envelopes() {
        for (body, message) in [
            (
                &b"plain words"[..],
                "The model provider answered 500: plain words",
            ),
            (b"<html>proxy</html>", "The model provider answered 500"),
            (
                b"{\"error\":\"text\"}",
                "The model provider answered 500: {\"error\":\"text\"}",
            ),
            (b"{\"error\":{\"message\":\"m\"}}", "m"),
            (
                b"\xff\xfe",
                "The model provider answered 500: \u{fffd}\u{fffd}",
            ),
            (b"{\"error\":{\"message\":\"a\\u0000b\"}}", "a b"),
        ] {
            assert_eq!(
                ModelError::from_status(500, body, None, None).message,
                message
            );
        }
        let huge = vec![b'x'; 100_000];
        assert!(
            ModelError::from_status(500, &huge, None, None)
                .message
                .len()
                < 400
        );
    }

    #[test]
    fn events() {
        for (name, kind, retryable) in [
            (Some("overloaded_error"), Overloaded, true),
            (Some("rate_limit_error"), RateLimited, true),
            (Some("api_error"), RequestFailed, true),
            (Some("timeout_error"), RequestFailed, true),
            (Some("billing_error"), Billing, false),
            (Some("invalid_request_error"), RequestFailed, false),
            (Some("authentication_error"), RequestFailed, false),
            (Some("permission_error"), RequestFailed, false),
            (Some("not_found_error"), RequestFailed, false),
            (Some("request_too_large"), RequestFailed, false),
            (Some("new_error"), Unknown, true),
            (None, Unknown, true),
        ] {
            let error = ModelError::from_event(name, Some("m"));
            assert_eq!((error.kind, error.retryable), (kind, retryable), "{name:?}");
        }
    }
}
