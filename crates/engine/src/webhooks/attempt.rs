//! One request to one endpoint, and what came of it.

use std::time::{Duration, Instant};

use selfsame_net::{read_limited, refusal, reqwest};
use selfsame_store::{ClaimedDelivery, WebhookTarget};
use selfsame_types::webhook::WebhookAttempt;

use super::sign::signature;

/// Most of an answer that is read: beyond it the connection is not worth keeping.
const READ: usize = 16 * 1024;
/// Most of an answer that is kept for people, characters.
const EXCERPT: usize = 500;

pub(super) const REDIRECTS: &str = "auto-disabled: endpoint URL returned a redirect (3xx)";
pub(super) const NOT_PUBLIC: &str = "auto-disabled: endpoint URL resolved to an invalid address";

/// What an endpoint did with a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Accepted,
    /// Another status.
    Refused,
    TimedOut,
    Unreachable,
    /// The endpoint is to be disabled at once, for this reason.
    Forbidden(&'static str),
}

impl Answer {
    /// As a label of metrics.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Accepted => "delivered",
            Self::Refused => "refused",
            Self::TimedOut => "timeout",
            Self::Unreachable => "unreachable",
            Self::Forbidden(REDIRECTS) => "redirect",
            Self::Forbidden(_) => "not_public",
        }
    }
}

/// Sends a delivery. `None`: it cannot be signed, and nothing was sent.
pub(super) async fn attempt(
    client: &reqwest::Client,
    target: &WebhookTarget,
    delivery: &ClaimedDelivery,
    limit: Duration,
) -> Option<(Answer, WebhookAttempt)> {
    let id = delivery.event.to_string();
    // The database's time, as it was a moment ago.
    let at = delivery.now;
    let timestamp = at.as_micros().div_euclid(1_000_000);
    let secrets = target.secrets.as_ref().ok()?;
    let signature = signature(secrets, &id, timestamp, &delivery.body)?;
    let request = client
        .post(&target.url)
        .header("content-type", "application/json")
        .header("webhook-id", id)
        .header("webhook-timestamp", timestamp)
        .header("webhook-signature", signature)
        .body(delivery.body.clone());
    let since = Instant::now();
    let mut made = WebhookAttempt {
        at,
        duration_ms: 0,
        status_code: None,
        error: None,
        response: String::new(),
    };
    let answer = match tokio::time::timeout(limit, exchange(request, &mut made)).await {
        Ok(answer) => answer,
        // An answer that had begun counts by its status: its body is nobody's business.
        Err(_) => match made.status_code {
            Some(status) => judge(status, &mut made),
            None => {
                made.error = Some(format!("no answer within {} s", limit.as_secs_f64()));
                Answer::TimedOut
            }
        },
    };
    made.duration_ms = u32::try_from(since.elapsed().as_millis()).unwrap_or(u32::MAX);
    Some((answer, made))
}

async fn exchange(request: reqwest::RequestBuilder, made: &mut WebhookAttempt) -> Answer {
    match request.send().await {
        Ok(response) => {
            let status = response.status().as_u16();
            made.status_code = Some(status);
            if let Ok(body) = read_limited(response, READ).await {
                made.response = excerpt(&body);
            }
            judge(status, made)
        }
        Err(error) => match refusal(&error) {
            Some(refused) => {
                made.error = Some(refused.to_string());
                Answer::Forbidden(NOT_PUBLIC)
            }
            None if error.is_timeout() => {
                made.error = Some("the connection or the answer took too long".to_owned());
                Answer::TimedOut
            }
            None => {
                made.error = Some(innermost(&error));
                Answer::Unreachable
            }
        },
    }
}

fn judge(status: u16, made: &mut WebhookAttempt) -> Answer {
    match status {
        200..=299 => Answer::Accepted,
        300..=399 => {
            made.error = Some("a redirect, which is not followed".to_owned());
            Answer::Forbidden(REDIRECTS)
        }
        _ => {
            made.error = Some(format!("status {status}"));
            Answer::Refused
        }
    }
}

/// The cause of all causes, which says most.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    excerpt(error.to_string().as_bytes())
}

/// Text that a person can read and a database can hold.
fn excerpt(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes)
        .chars()
        .map(|c| if c.is_control() && c != '\n' { ' ' } else { c })
        .take(EXCERPT)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_excerpt_is_short_and_holds_no_control_characters() {
        assert_eq!(excerpt(b"a\0b\x1b[31m\nc"), "a b [31m\nc");
        assert_eq!(
            excerpt("ü".repeat(2000).as_bytes()).chars().count(),
            EXCERPT
        );
        assert_eq!(excerpt(b"\xff\xfe"), "\u{fffd}\u{fffd}");
    }
}
