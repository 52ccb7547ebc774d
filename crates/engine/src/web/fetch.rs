//! One page, from its address to what the model is shown of it.
//!
//! Whatever answers is hostile: it decides neither how long this takes, nor how much is kept, nor where
//! the request goes. Each redirect is judged like the first address, by the agent's lists here and by its
//! IP addresses in the client.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use encoding_rs::{Encoding, UTF_8};
use selfsame_net::{
    Limits, NetError, Policy, guarded_client_with, refusal,
    reqwest::{Client, Response, StatusCode, Url, header},
};
use selfsame_types::content::{MAX_IMAGE_ENCODED, MAX_PDF};
use serde_json::{Value, json};

use super::{
    domains::{self, Domains},
    markdown,
};

/// Longest address.
pub(super) const MAX_URL: usize = 2048;
/// Redirects that are followed.
const MAX_REDIRECTS: usize = 5;
const ACCEPT: &str = "text/html,application/xhtml+xml,text/markdown,text/plain,application/json,\
application/pdf,image/png,image/jpeg,image/gif,image/webp,*/*;q=0.5";

/// How pages are fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchLimits {
    /// For a whole fetch, redirects and body included.
    pub timeout: Duration,
    /// Text beyond this is not read. Images and documents have limits of their own.
    pub max_text_bytes: usize,
}

impl Default for FetchLimits {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(30),
            max_text_bytes: 10 << 20,
        }
    }
}

/// Fetches from addresses that users and models name.
#[derive(Debug, Clone)]
pub(crate) struct Fetcher {
    client: Client,
    policy: Policy,
    limits: FetchLimits,
}

/// What was found, before anybody looked into it.
#[derive(Debug)]
pub(crate) struct Found {
    /// Where, after redirects.
    pub url: Url,
    pub kind: Kind,
    /// The label of the text's encoding that the answer names.
    pub charset: Option<String>,
    pub body: Vec<u8>,
    /// All of it is there.
    pub whole: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Html,
    Text,
    Pdf,
    Image(&'static str),
}

/// Why there is nothing. Its words are for the model and name only what it gave.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub(crate) struct Unfetched {
    pub code: &'static str,
    pub message: String,
}

impl Unfetched {
    pub(super) fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }

    fn inaccessible(message: impl Into<String>) -> Self {
        Self::new("url_not_accessible", message)
    }
}

impl Fetcher {
    pub(crate) fn new(policy: &Policy, limits: FetchLimits) -> Result<Self, NetError> {
        let client = guarded_client_with(
            policy,
            &Limits {
                connect: limits.timeout.min(Duration::from_secs(10)),
                total: Some(limits.timeout),
                idle: limits.timeout,
                redirects: 0,
            },
        )?;
        Ok(Self {
            client,
            policy: policy.clone(),
            limits,
        })
    }

    /// Reads an address as a model wrote it.
    pub(crate) fn parse(&self, url: &str) -> Result<Url, Unfetched> {
        if url.len() > MAX_URL {
            return Err(Unfetched::new(
                "url_too_long",
                format!("a URL may have at most {MAX_URL} bytes"),
            ));
        }
        let mut url = Url::parse(url.trim()).map_err(|error| {
            Unfetched::new(
                "invalid_input",
                format!("`url` is not a URL ({error}); give a whole one, such as https://example.com/page"),
            )
        })?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(Unfetched::new(
                "invalid_input",
                "a URL with a user name or password is not fetched",
            ));
        }
        url.set_fragment(None);
        Ok(url)
    }

    /// Gets what is at `url`, if all of `lists` allow it and everything that it redirects to.
    pub(crate) async fn get(&self, url: Url, lists: &[Domains]) -> Result<Found, Unfetched> {
        let limit = self.limits.timeout;
        match tokio::time::timeout(limit, self.follow(url, lists)).await {
            Ok(found) => found,
            Err(_) => Err(late(limit)),
        }
    }

    async fn follow(&self, mut url: Url, lists: &[Domains]) -> Result<Found, Unfetched> {
        let not_allowed = |message: String| Unfetched::new("url_not_allowed", message);
        for redirects in 0..=MAX_REDIRECTS {
            let via = if redirects == 0 {
                ""
            } else {
                "the page redirects to an address that cannot be taken: "
            };
            self.policy
                .check_url(&url)
                .map_err(|refused| not_allowed(format!("{via}{refused}")))?;
            if !domains::permits(lists, &url) {
                return Err(not_allowed(format!(
                    "{via}the settings of this agent's web_fetch do not allow `{}`",
                    url.host_str().unwrap_or_default()
                )));
            }
            let response = self
                .client
                .get(url.clone())
                .header(header::ACCEPT, ACCEPT)
                .header(header::ACCEPT_LANGUAGE, "en,*;q=0.5")
                .send()
                .await
                .map_err(|error| self.failure(&error))?;
            let status = response.status();
            if !is_redirect(status) {
                return self.read(url, response).await;
            }
            let target = response
                .headers()
                .get(header::LOCATION)
                .and_then(|location| std::str::from_utf8(location.as_bytes()).ok())
                .and_then(|location| url.join(location).ok())
                .filter(|target| target.as_str().len() <= MAX_URL)
                .ok_or_else(|| {
                    Unfetched::inaccessible(format!(
                        "HTTP {}, but no usable address",
                        status.as_u16()
                    ))
                })?;
            if url.scheme() == "https" && target.scheme() == "http" {
                return Err(not_allowed(
                    "a redirect from https to http is not followed".to_owned(),
                ));
            }
            url = target;
        }
        Err(Unfetched::inaccessible("too many redirects"))
    }

    async fn read(&self, url: Url, response: Response) -> Result<Found, Unfetched> {
        let status = response.status();
        if !status.is_success() {
            let code = match status {
                StatusCode::TOO_MANY_REQUESTS => "too_many_requests",
                _ => "url_not_accessible",
            };
            let reason = status.canonical_reason().unwrap_or("no reason given");
            let message = format!("the server answered HTTP {} ({reason})", status.as_u16());
            return Err(Unfetched::new(code, message));
        }
        let declared = response
            .headers()
            .get(header::CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
            .to_owned();
        let (media_type, charset) = media_type(&declared);
        let named = named_kind(&media_type);
        let limit = match named {
            Some(Kind::Pdf) => MAX_PDF,
            Some(Kind::Image(_)) => MAX_IMAGE_ENCODED / 4 * 3,
            // What it is shows in its first bytes.
            Some(Kind::Html | Kind::Text) | None => self.limits.max_text_bytes.max(MAX_PDF),
        };
        if named.is_none() && !is_vague(&media_type) {
            return Err(unsupported(&media_type));
        }
        let (mut body, mut whole) = self.body(response, limit).await?;
        let kind = match sniff(&body) {
            Some(sniffed) => sniffed,
            None => match named {
                // It says so and is not.
                Some(Kind::Pdf | Kind::Image(_)) => {
                    return Err(Unfetched::new(
                        "unsupported_content_type",
                        format!("the content is not the `{media_type}` that the server says it is"),
                    ));
                }
                Some(named) => named,
                None if looks_like_text(&body) => looks_like(&body),
                None => return Err(unsupported(&media_type)),
            },
        };
        let too_large = |what: &str, limit: usize| {
            Err(Unfetched::new(
                "content_too_large",
                format!("the {what} is larger than {} MiB", limit >> 20),
            ))
        };
        match kind {
            Kind::Pdf if !whole || body.len() > MAX_PDF => return too_large("PDF", MAX_PDF),
            Kind::Image(_) if !whole || body.len().div_ceil(3) * 4 > MAX_IMAGE_ENCODED => {
                return Err(Unfetched::new(
                    "content_too_large",
                    "the image is larger than 5 MiB in base64",
                ));
            }
            Kind::Html | Kind::Text if body.len() > self.limits.max_text_bytes => {
                body.truncate(self.limits.max_text_bytes);
                whole = false;
            }
            _ => {}
        }
        Ok(Found {
            url,
            kind,
            charset,
            body,
            whole,
        })
    }

    /// At most `limit` bytes of a body, and whether that is all of it.
    async fn body(
        &self,
        mut response: Response,
        limit: usize,
    ) -> Result<(Vec<u8>, bool), Unfetched> {
        let mut body = Vec::new();
        while let Some(chunk) = response
            .chunk()
            .await
            .map_err(|error| self.failure(&error))?
        {
            let room = limit - body.len();
            if chunk.len() > room {
                body.extend_from_slice(&chunk[..room]);
                return Ok((body, false));
            }
            body.extend_from_slice(&chunk);
        }
        Ok((body, true))
    }

    fn failure(&self, error: &selfsame_net::reqwest::Error) -> Unfetched {
        if let Some(refused) = refusal(error) {
            return Unfetched::new("url_not_allowed", refused.to_string());
        }
        if error.is_timeout() {
            return late(self.limits.timeout);
        }
        // The chain may name addresses that a name resolves to, which is nobody's business.
        Unfetched::inaccessible(if error.is_connect() {
            "no connection to the server, or none that is secure"
        } else if error.is_decode() {
            "the server's answer cannot be decoded"
        } else {
            "the server's answer broke off or is not HTTP"
        })
    }
}

fn late(limit: Duration) -> Unfetched {
    Unfetched::inaccessible(format!(
        "no complete answer within {} seconds",
        limit.as_secs_f32()
    ))
}

fn unsupported(media_type: &str) -> Unfetched {
    let what = if media_type.is_empty() {
        "unknown content"
    } else {
        media_type
    };
    Unfetched::new(
        "unsupported_content_type",
        format!("`{what}` cannot be read; HTML, text, JSON, PDF, PNG, JPEG, GIF and WebP can"),
    )
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// A `Content-Type` as its type, in lower case, and the charset it names.
fn media_type(header: &str) -> (String, Option<String>) {
    let mut parts = header.split(';');
    let media_type = parts.next().unwrap_or_default().trim().to_ascii_lowercase();
    let charset = parts.find_map(|part| {
        let (name, value) = part.split_once('=')?;
        name.trim()
            .eq_ignore_ascii_case("charset")
            .then(|| value.trim().trim_matches(['"', '\'']).to_owned())
    });
    (media_type.chars().take(100).collect(), charset)
}

pub(crate) fn named_kind(media_type: &str) -> Option<Kind> {
    Some(match media_type {
        "text/html" | "application/xhtml+xml" => Kind::Html,
        "application/pdf" | "application/x-pdf" => Kind::Pdf,
        "image/png" => Kind::Image("image/png"),
        "image/jpeg" | "image/jpg" => Kind::Image("image/jpeg"),
        "image/gif" => Kind::Image("image/gif"),
        "image/webp" => Kind::Image("image/webp"),
        "application/json"
        | "application/xml"
        | "application/javascript"
        | "application/ecmascript"
        | "application/x-javascript"
        | "application/yaml"
        | "application/x-yaml"
        | "application/toml"
        | "application/x-ndjson"
        | "application/sql"
        | "application/x-sh"
        | "application/rtf"
        | "image/svg+xml" => Kind::Text,
        other
            if other.starts_with("text/")
                || other.ends_with("+json")
                || other.ends_with("+xml")
                || other.ends_with("+yaml") =>
        {
            Kind::Text
        }
        _ => return None,
    })
}

/// A type that says nothing: the content decides.
fn is_vague(media_type: &str) -> bool {
    matches!(
        media_type,
        "" | "application/octet-stream"
            | "binary/octet-stream"
            | "application/x-unknown"
            | "application/force-download"
            | "application/download"
    )
}

/// What the first bytes are beyond doubt.
pub(crate) fn sniff(body: &[u8]) -> Option<Kind> {
    Some(match body {
        [0x89, b'P', b'N', b'G', 0x0d, 0x0a, 0x1a, 0x0a, ..] => Kind::Image("image/png"),
        [0xff, 0xd8, 0xff, ..] => Kind::Image("image/jpeg"),
        [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Kind::Image("image/gif"),
        [
            b'R',
            b'I',
            b'F',
            b'F',
            _,
            _,
            _,
            _,
            b'W',
            b'E',
            b'B',
            b'P',
            ..,
        ] => Kind::Image("image/webp"),
        [b'%', b'P', b'D', b'F', b'-', ..] => Kind::Pdf,
        _ => return None,
    })
}

pub(crate) fn looks_like_text(body: &[u8]) -> bool {
    let start = &body[..body.len().min(4096)];
    let bom = Encoding::for_bom(body).is_some();
    bom || !start
        .iter()
        .any(|byte| matches!(byte, 0..=8 | 0x0e..=0x1a | 0x1c..=0x1f))
}

fn looks_like(body: &[u8]) -> Kind {
    let start = body[..body.len().min(1024)].to_ascii_lowercase();
    let start = start.trim_ascii_start();
    if start.starts_with(b"<!doctype html") || start.starts_with(b"<html") {
        Kind::Html
    } else {
        Kind::Text
    }
}

impl Found {
    /// The body as text: by its byte order mark, by what the server says, by what the page says, else
    /// UTF-8. What does not decode becomes U+FFFD.
    pub(crate) fn text(&self) -> String {
        let label = self.charset.clone().or_else(|| {
            (self.kind == Kind::Html)
                .then(|| declared_charset(&self.body))
                .flatten()
        });
        let encoding = label
            .and_then(|label| Encoding::for_label(label.as_bytes()))
            .unwrap_or(UTF_8);
        encoding.decode(&self.body).0.into_owned()
    }

    /// An image or document as a content block; `None` for text.
    pub(crate) fn binary(&self) -> Option<Value> {
        let (block, media_type) = match self.kind {
            Kind::Image(media_type) => ("image", media_type),
            Kind::Pdf => ("document", "application/pdf"),
            Kind::Html | Kind::Text => return None,
        };
        let data = STANDARD.encode(&self.body);
        Some(json!({
            "type": block,
            "source": {"type": "base64", "media_type": media_type, "data": data},
        }))
    }

    /// What text has to say: a page as Markdown. The title is the page's own.
    pub(crate) async fn readable(self) -> Result<(Option<String>, String, bool), Unfetched> {
        // Large pages take long, and some are made to.
        let read = tokio::task::spawn_blocking(move || {
            let text = self.text();
            if self.kind == Kind::Html {
                let page = markdown::read(&text, &self.url);
                (page.title, page.text, page.whole && self.whole)
            } else {
                (None, text, self.whole)
            }
        });
        read.await.map_err(|error| {
            tracing::warn!(%error, "a page could not be made readable");
            Unfetched::new("unavailable", "the page cannot be made readable")
        })
    }
}

/// The charset of a `<meta>` in the first bytes of a page.
fn declared_charset(body: &[u8]) -> Option<String> {
    let start = body[..body.len().min(2048)].to_ascii_lowercase();
    let start = String::from_utf8_lossy(&start);
    let (_, rest) = start.split_once("charset")?;
    let rest = rest.trim_start().strip_prefix('=')?;
    let rest = rest.trim_start().trim_start_matches(['"', '\'']);
    let label: String = rest
        .chars()
        .take_while(|c| c.is_ascii_alphanumeric() || "-_:.".contains(*c))
        .collect();
    (!label.is_empty()).then_some(label)
}

#[cfg(test)]
mod tests;
