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
    use std::{
        io,
        net::IpAddr,
        sync::{Arc, Mutex},
    };

    use selfsame_net::{Lookup, Policy};
    use selfsame_types::{Timestamp, WebhookEndpointId, WebhookEventId};
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;
    use crate::webhooks::{UrlRules, WebhookBackoff, Webhooks, WebhooksConfig, new_secret};

    #[test]
    fn an_excerpt_is_short_and_holds_no_control_characters() {
        assert_eq!(excerpt(b"a\0b\x1b[31m\nc"), "a b [31m\nc");
        assert_eq!(
            excerpt("ü".repeat(2000).as_bytes()).chars().count(),
            EXCERPT
        );
        assert_eq!(excerpt(b"\xff\xfe"), "\u{fffd}\u{fffd}");
    }

    /// A name whose answer is another one each time.
    #[derive(Debug)]
    struct Changing(Mutex<Vec<IpAddr>>);

    impl Lookup for Changing {
        fn lookup(&self, _: &str) -> io::Result<Vec<IpAddr>> {
            let mut answers = self.0.lock().unwrap();
            Ok(vec![answers.pop().expect("asked too often")])
        }
    }

    fn webhooks(policy: Policy, timeout: Duration) -> Webhooks {
        Webhooks::new(WebhooksConfig {
            rules: UrlRules {
                policy,
                allow_http: true,
            },
            attempts: 3,
            backoff: WebhookBackoff {
                shortest: Duration::ZERO,
                longest: Duration::ZERO,
            },
            timeout,
            concurrency: 1,
            concurrency_per_endpoint: 1,
            disable_after: (Duration::ZERO, 1),
            secret_overlap: Duration::ZERO,
            retention: Duration::ZERO,
        })
        .unwrap()
    }

    async fn send(webhooks: &Webhooks, url: String) -> (Answer, WebhookAttempt) {
        let at = Timestamp::from_micros(1_700_000_000_000_000);
        let delivery = ClaimedDelivery {
            endpoint: WebhookEndpointId::new(),
            event: WebhookEventId::new(),
            body: "{}".to_owned(),
            created_at: at,
            tries: 0,
            now: at,
        };
        let target = WebhookTarget {
            id: delivery.endpoint,
            url,
            secrets: Ok(vec![new_secret()]),
            failing: false,
        };
        let limit = webhooks.config.timeout;
        let made = attempt(&webhooks.client, &target, &delivery, limit).await;
        made.expect("it can be signed")
    }

    /// Answers every connection once with this head, and then sends this body for ever or once.
    async fn server(head: &'static str, body: &'static [u8], endless: bool) -> u16 {
        let listener = TcpListener::bind("127.0.0.2:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut seen = [0; 4096];
                    let _ = socket.read(&mut seen).await;
                    let _ = socket.write_all(head.as_bytes()).await;
                    while socket.write_all(body).await.is_ok() && endless {
                        if body.is_empty() {
                            std::future::pending::<()>().await;
                        }
                    }
                });
            }
        });
        port
    }

    fn open() -> Policy {
        Policy::new(vec!["127.0.0.2/32".parse().unwrap()], &[]).unwrap()
    }

    #[tokio::test]
    async fn a_name_that_changes_its_mind_gains_nothing() {
        let head = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
        let port = server(head, b"", false).await;
        // The last comes first.
        let answers = ["127.0.0.2", "127.0.0.1", "127.0.0.2"].map(|ip| ip.parse().unwrap());
        let lookup = Changing(Mutex::new(answers.to_vec()));
        let policy = open().with_lookup(Arc::new(lookup));
        let webhooks = webhooks(policy, Duration::from_secs(30));
        let url = || format!("http://hooks.example.com:{port}/");
        let (answer, made) = send(&webhooks, url()).await;
        assert_eq!((answer, made.status_code), (Answer::Accepted, Some(200)));
        let (answer, made) = send(&webhooks, url()).await;
        assert_eq!(answer, Answer::Forbidden(NOT_PUBLIC));
        let said = made.error.unwrap();
        assert!(
            said.contains("`hooks.example.com` is not a public address"),
            "{said}"
        );
        assert!(!said.contains("127.0.0.1"), "{said}");
        assert_eq!(send(&webhooks, url()).await.0, Answer::Accepted);
        // And one that is written out.
        let literal = format!("http://127.0.0.1:{port}/");
        assert_eq!(
            send(&webhooks, literal).await.0,
            Answer::Forbidden(NOT_PUBLIC)
        );
    }

    #[tokio::test]
    async fn a_body_without_an_end_costs_little() {
        let head = "HTTP/1.1 200 OK\r\n\r\n";
        let port = server(head, &[b'x'; 4096], true).await;
        let webhooks = webhooks(open(), Duration::from_secs(30));
        let (answer, made) = send(&webhooks, format!("http://127.0.0.2:{port}/")).await;
        assert_eq!((answer, made.status_code), (Answer::Accepted, Some(200)));
        assert_eq!(made.response, "");
    }

    #[tokio::test]
    async fn an_answer_that_stalls_counts_by_its_status() {
        let head = "HTTP/1.1 500 Oops\r\ncontent-length: 100\r\n\r\nhalf";
        let port = server(head, b"", true).await;
        let webhooks = webhooks(open(), Duration::from_millis(500));
        let (answer, made) = send(&webhooks, format!("http://127.0.0.2:{port}/")).await;
        assert_eq!((answer, made.status_code), (Answer::Refused, Some(500)));
    }
}
