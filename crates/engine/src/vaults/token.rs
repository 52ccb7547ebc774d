//! The token endpoint of an OAuth server: one request, and an answer that nobody believes.
//!
//! RFC 6749 §6 with RFC 8707. The address is a user's and whatever answers is hostile: it decides neither
//! where the secrets go (no redirect is followed) nor how long this takes nor how much is kept.

use std::{fmt, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use secrecy::{ExposeSecret, SecretString};
use selfsame_net::{
    read_start, refusal,
    reqwest::{
        Client, Response, StatusCode,
        header::{self, HeaderMap, HeaderValue},
    },
};
use serde_json::Value;
use url::{Url, form_urlencoded};

/// Most of an answer that is read.
pub(super) const MAX_ANSWER: usize = 64 << 10;
/// Longest token. Headers beyond that are refused by common servers anyway.
const MAX_TOKEN: usize = 16 << 10;
/// A lifetime beyond it is taken for this.
const MAX_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
/// What RFC 6749 §5.2, RFC 8707 and RFC 8628 have an error say. Nothing else of an answer is ever logged.
const CODES: [&str; 10] = [
    "invalid_request",
    "invalid_client",
    "invalid_grant",
    "unauthorized_client",
    "unsupported_grant_type",
    "invalid_scope",
    "invalid_target",
    "temporarily_unavailable",
    "server_error",
    "slow_down",
];

/// How the client says who it is.
#[derive(Debug, Clone)]
pub(super) enum ClientAuth {
    None,
    Basic(SecretString),
    Post(SecretString),
}

/// Everything that a refresh needs.
#[derive(Debug, Clone)]
pub(super) struct Grant {
    pub token_endpoint: Url,
    pub client_id: String,
    pub auth: ClientAuth,
    pub refresh_token: SecretString,
    pub resource: Option<String>,
    pub scope: Option<String>,
}

/// What a token endpoint gave.
#[derive(Debug)]
pub(super) struct Tokens {
    pub access_token: SecretString,
    /// In place of the one that was used.
    pub refresh_token: Option<SecretString>,
    /// `None`: it does not say.
    pub expires_in: Option<Duration>,
}

/// An answer that is no success, as it came. It may hold anything, so it does not print.
pub(super) struct Answer {
    pub status: u16,
    pub content_type: String,
    pub body: Vec<u8>,
    /// All of it is there.
    pub whole: bool,
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer")
            .field("status", &self.status)
            .finish_non_exhaustive()
    }
}

/// Why there are no tokens.
#[derive(Debug)]
pub(super) struct Failure {
    /// The same request will not do better.
    pub is_permanent: bool,
    /// For the log: none of it is the endpoint's own words.
    pub reason: String,
    pub retry_after: Option<Duration>,
    /// `None` when nothing came back.
    pub answer: Option<Answer>,
}

impl Failure {
    /// Nobody was asked, and it would be of no use to.
    pub(super) fn of_ours(reason: &str) -> Self {
        Self {
            is_permanent: true,
            ..Self::unreachable(reason)
        }
    }

    fn unreachable(reason: impl Into<String>) -> Self {
        Self {
            is_permanent: false,
            reason: reason.into(),
            retry_after: None,
            answer: None,
        }
    }
}

impl Grant {
    /// The body of the request. RFC 6749 §2.3: a client authenticates in one way, so with HTTP Basic neither
    /// of its two halves is in the body.
    fn form(&self) -> String {
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.append_pair("grant_type", "refresh_token");
        form.append_pair("refresh_token", self.refresh_token.expose_secret());
        if !matches!(self.auth, ClientAuth::Basic(_)) {
            form.append_pair("client_id", &self.client_id);
        }
        if let ClientAuth::Post(secret) = &self.auth {
            form.append_pair("client_secret", secret.expose_secret());
        }
        for (name, value) in [("scope", &self.scope), ("resource", &self.resource)] {
            if let Some(value) = value {
                form.append_pair(name, value);
            }
        }
        form.finish()
    }

    fn authorization(&self) -> Option<HeaderValue> {
        let ClientAuth::Basic(secret) = &self.auth else {
            return None;
        };
        let pair = basic_pair(&self.client_id, secret.expose_secret());
        let mut value = HeaderValue::try_from(format!("Basic {}", STANDARD.encode(pair))).ok()?;
        value.set_sensitive(true);
        Some(value)
    }
}

/// RFC 6749 §2.3.1: both halves are form-urlencoded before they are joined, so a colon in either is told
/// from the one between them.
pub(super) fn basic_pair(client_id: &str, secret: &str) -> String {
    let encode = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
    format!("{}:{}", encode(client_id), encode(secret))
}

/// Asks for new tokens, once.
pub(super) async fn refresh(client: &Client, grant: &Grant) -> Result<Tokens, Failure> {
    let mut request = client
        .post(grant.token_endpoint.clone())
        .header(header::ACCEPT, "application/json")
        .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
        .body(grant.form());
    if let Some(value) = grant.authorization() {
        request = request.header(header::AUTHORIZATION, value);
    }
    let response = request.send().await.map_err(|error| {
        Failure::unreachable(match refusal(&error) {
            Some(refused) => refused.to_string(),
            None if error.is_timeout() => "it does not answer in time".to_owned(),
            None if error.is_connect() => "it cannot be connected to".to_owned(),
            None => "the connection broke, or what came is no HTTP".to_owned(),
        })
    })?;
    let retry_after = retry_after(response.headers());
    let answer = Answer::read(response).await;
    let (is_permanent, reason) = match judge(&answer) {
        Ok(tokens) => return Ok(tokens),
        Err(judged) => judged,
    };
    Err(Failure {
        is_permanent,
        reason,
        retry_after,
        answer: Some(answer),
    })
}

impl Answer {
    pub(super) async fn read(response: Response) -> Self {
        let status = response.status().as_u16();
        let content_type = content_type(response.headers());
        // What breaks off or drips until time is up leaves nothing that could be used.
        let (body, whole) = read_start(response, MAX_ANSWER).await.map_or_else(
            |_| (Vec::new(), false),
            |(body, whole)| (body.into(), whole),
        );
        Self {
            status,
            content_type,
            body,
            whole,
        }
    }
}

pub(super) fn content_type(headers: &HeaderMap) -> String {
    let value = headers.get(header::CONTENT_TYPE);
    let value = value.map_or_else(String::new, |value| {
        String::from_utf8_lossy(value.as_bytes()).into_owned()
    });
    value.chars().take(255).collect()
}

/// Seconds; the form with a date is not worth a clock.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(header::RETRY_AFTER)?.to_str().ok()?;
    value.trim().parse().ok().map(Duration::from_secs)
}

/// The tokens of an answer, or whether its failure is permanent, and why.
fn judge(answer: &Answer) -> Result<Tokens, (bool, String)> {
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::BAD_GATEWAY);
    if status.is_success() {
        // Cut off under way, by whomever: the next one may be whole. Too long, it never is.
        if !answer.whole && answer.body.is_empty() {
            return Err((false, "the answer broke off".to_owned()));
        }
        return tokens(answer).map_err(|reason| (true, reason.to_owned()));
    }
    let code = error_code(&answer.body);
    let is_passing = status.is_server_error()
        || matches!(answer.status, 408 | 425 | 429)
        || matches!(
            code,
            Some("temporarily_unavailable" | "server_error" | "slow_down")
        );
    let reason = match code {
        Some(code) => format!("HTTP {}, {code}", answer.status),
        None if status.is_redirection() => format!("HTTP {}, a redirect", answer.status),
        None => format!("HTTP {}", answer.status),
    };
    Err((!is_passing, reason))
}

fn error_code(body: &[u8]) -> Option<&'static str> {
    let body: Value = serde_json::from_slice(body).ok()?;
    let said = body.get("error")?.as_str()?;
    CODES.into_iter().find(|code| *code == said)
}

fn tokens(answer: &Answer) -> Result<Tokens, &'static str> {
    if !is_json(&answer.content_type) {
        return Err("the answer is not JSON by its content type");
    }
    if !answer.whole {
        return Err("the answer is too long");
    }
    let body: Value =
        serde_json::from_slice(&answer.body).map_err(|_| "the answer is not valid JSON")?;
    let body = body.as_object().ok_or("the answer is no JSON object")?;
    let kind = body.get("token_type").and_then(Value::as_str);
    if kind.is_some_and(|kind| !kind.eq_ignore_ascii_case("bearer")) {
        return Err("the answer's token is none of type Bearer");
    }
    let access_token = token(body.get("access_token"));
    Ok(Tokens {
        access_token: access_token.ok_or("the answer has no access token that can be used")?,
        // Where this one cannot be used, the old one is all there is.
        refresh_token: token(body.get("refresh_token")),
        expires_in: body.get("expires_in").and_then(lifetime),
    })
}

fn is_json(content_type: &str) -> bool {
    let media_type = content_type.split(';').next().unwrap_or_default();
    let media_type = media_type.trim().to_ascii_lowercase();
    media_type == "application/json"
        || (media_type.starts_with("application/") && media_type.ends_with("+json"))
}

/// Visible ASCII: anything else does not belong into a header, and may be there to add one.
fn token(value: Option<&Value>) -> Option<SecretString> {
    let text = value?.as_str()?;
    let is_usable =
        (1..=MAX_TOKEN).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
    is_usable.then(|| SecretString::from(text))
}

/// Whole seconds; some servers write them as text, or with a fraction. What makes no sense counts as unsaid:
/// then the server that takes the token will say when it is over.
fn lifetime(value: &Value) -> Option<Duration> {
    let seconds = match value {
        Value::Number(number) => number.as_f64()?,
        Value::String(text) => text.trim().parse().ok()?,
        _ => return None,
    };
    if seconds.is_nan() {
        return None;
    }
    let lifetime = Duration::try_from_secs_f64(seconds.min(MAX_LIFETIME.as_secs_f64())).ok()?;
    let lifetime = Duration::from_secs(lifetime.as_secs());
    (!lifetime.is_zero()).then_some(lifetime)
}

#[cfg(test)]
mod tests;
