//! The Messages API of Anthropic, and of whatever else speaks it at another address.

use std::{collections::VecDeque, fmt, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt, stream, stream::BoxStream};
use reqwest::{
    Client, Response,
    header::{self, HeaderMap, HeaderName, HeaderValue},
};
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use crate::{
    Delta, ModelError, Provider, Request, ResponseStream,
    messages::{Limits, Parser},
};

const VERSION: &str = "2023-06-01";
const FAST_MODE_BETA: &str = "fast-mode-2026-02-01";

/// Most bytes of an error's body that are read.
const ERROR_BODY: usize = 64 << 10;

/// Where and how to ask.
#[derive(Clone)]
pub struct AnthropicConfig {
    /// With or without `/v1` at its end.
    pub base_url: Url,
    /// Sent as `x-api-key`; `None` for upstreams without keys.
    pub key: Option<SecretString>,
    /// More headers for gateways: name and value. They win over ours.
    pub headers: Vec<(String, SecretString)>,
    /// Values of `anthropic-beta` for every request.
    pub betas: Vec<String>,
    /// Longest silence, before the response begins and between its bytes.
    pub idle: Duration,
    pub limits: Limits,
}

impl AnthropicConfig {
    #[must_use]
    pub fn new(base_url: Url, key: Option<SecretString>) -> Self {
        Self {
            base_url,
            key,
            headers: Vec::new(),
            betas: Vec::new(),
            idle: Duration::from_secs(120),
            limits: Limits::default(),
        }
    }
}

/// Without credentials the URL may hold.
impl fmt::Debug for AnthropicConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AnthropicConfig")
            .field("host", &self.base_url.host_str())
            .field("key", &self.key)
            .field("headers", &self.headers)
            .finish_non_exhaustive()
    }
}

/// A provider of the Messages API. See [`Provider`].
pub struct AnthropicProvider {
    client: Client,
    url: Url,
    headers: HeaderMap,
    betas: Vec<String>,
    idle: Duration,
    limits: Limits,
}

/// Without headers, which hold the key, and without credentials the URL may hold.
impl fmt::Debug for AnthropicProvider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AnthropicProvider")
            .field("host", &self.url.host_str())
            .finish_non_exhaustive()
    }
}

impl AnthropicProvider {
    /// `client` comes from `selfsame_net::operator_client`.
    ///
    /// # Errors
    /// When the address or a header cannot be used; the message names which, never its value.
    pub fn new(config: AnthropicConfig, client: Client) -> Result<Self, ModelError> {
        let mut headers = HeaderMap::new();
        headers.insert("anthropic-version", HeaderValue::from_static(VERSION));
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        headers.insert(
            header::ACCEPT,
            HeaderValue::from_static("text/event-stream, application/json"),
        );
        if let Some(key) = &config.key {
            headers.insert("x-api-key", secret(key, "the API key")?);
        }
        for (name, value) in &config.headers {
            let value = secret(value, name)?;
            let name = HeaderName::try_from(name)
                .map_err(|_| ModelError::permanent(format!("`{name}` is no header name")))?;
            headers.insert(name, value);
        }
        Ok(Self {
            client,
            url: endpoint(&config.base_url)?,
            headers,
            betas: config.betas,
            idle: config.idle,
            limits: config.limits,
        })
    }

    fn headers(&self, request: &Request) -> HeaderMap {
        let mut headers = self.headers.clone();
        let fast = request.is_fast().then_some(FAST_MODE_BETA);
        let betas = self.betas.iter().map(String::as_str).chain(fast);
        let betas = betas.collect::<Vec<_>>().join(",");
        if let Ok(betas) = HeaderValue::try_from(betas)
            && !betas.is_empty()
        {
            headers.insert("anthropic-beta", betas);
        }
        headers
    }
}

#[async_trait::async_trait]
impl Provider for AnthropicProvider {
    async fn stream(&self, request: Request) -> Result<ResponseStream, ModelError> {
        let send = self
            .client
            .post(self.url.clone())
            .headers(self.headers(&request))
            .body(request.to_body())
            .send();
        let response = tokio::time::timeout(self.idle, send)
            .await
            .map_err(|_| silence(self.idle))?
            .map_err(|error| unreachable_upstream(&error))?;
        if let Some(id) = response.headers().get("request-id") {
            tracing::debug!(model = request.model, upstream_request_id = ?id, "the model answers");
        }
        if !response.status().is_success() {
            return Err(refusal(response, self.idle).await);
        }
        let is_stream = header_text(response.headers(), "content-type")
            .is_some_and(|t| t.trim_start().starts_with("text/event-stream"));
        if !is_stream {
            return Err(ModelError::permanent(
                "The model provider does not answer with an event stream",
            ));
        }
        Ok(deltas(
            response.bytes_stream().boxed(),
            self.idle,
            self.limits,
        ))
    }
}

type Body = BoxStream<'static, reqwest::Result<Bytes>>;

struct Reading {
    /// `None` once it has ended or failed.
    body: Option<Body>,
    parser: Parser,
    ready: VecDeque<Delta>,
    /// Given after what is ready.
    failed: Option<ModelError>,
}

fn deltas(body: Body, idle: Duration, limits: Limits) -> ResponseStream {
    let reading = Reading {
        body: Some(body),
        parser: Parser::new(limits),
        ready: VecDeque::new(),
        failed: None,
    };
    stream::unfold(reading, move |mut reading| async move {
        loop {
            if let Some(delta) = reading.ready.pop_front() {
                return Some((Ok(delta), reading));
            }
            if let Some(error) = reading.failed.take() {
                return Some((Err(error), reading));
            }
            reading.read(idle).await?;
        }
    })
    .boxed()
}

impl Reading {
    /// Reads once; afterwards something is ready, or has failed, or neither yet. `None` at the end.
    async fn read(&mut self, idle: Duration) -> Option<()> {
        let body = self.body.as_mut()?;
        let result = match tokio::time::timeout(idle, body.next()).await {
            Err(_) => Err(silence(idle)),
            Ok(Some(Ok(bytes))) => {
                let mut out = Vec::new();
                let result = self.parser.push(&bytes, &mut out);
                self.ready.extend(out);
                result
            }
            Ok(Some(Err(error))) => {
                tracing::debug!(
                    error = &error as &dyn std::error::Error,
                    "model response broke"
                );
                Err(ModelError::connection(
                    "The connection to the model provider broke during its response",
                ))
            }
            Ok(None) => self.parser.finish(),
        };
        if let Err(error) = result {
            self.failed = Some(error);
            self.body = None;
        } else if self.parser.is_done()
            && let Some(body) = self.body.take()
        {
            finish_reading(body).await;
        }
        Some(())
    }
}

/// A connection can be used again only when its response was read to the end, and the end usually
/// comes with the last event: a moment is spent on it. When it takes longer somebody else waits for
/// it, and the turn goes on.
async fn finish_reading(mut body: Body) {
    let end = async |body: &mut Body| while let Some(Ok(_)) = body.next().await {};
    let soon = tokio::time::timeout(Duration::from_millis(10), end(&mut body)).await;
    if soon.is_err() {
        tokio::spawn(async move {
            let _ = tokio::time::timeout(Duration::from_secs(1), end(&mut body)).await;
        });
    }
}

fn silence(idle: Duration) -> ModelError {
    ModelError::connection(format!(
        "The model provider sent nothing for {} seconds",
        idle.as_secs_f64()
    ))
}

/// The error's own text would name the address; users get what kind of failure it was.
fn unreachable_upstream(error: &reqwest::Error) -> ModelError {
    tracing::warn!(
        error = error as &dyn std::error::Error,
        "the model provider could not be asked"
    );
    ModelError::connection(if error.is_connect() {
        "The model provider could not be reached"
    } else if error.is_timeout() {
        "The model provider did not answer in time"
    } else {
        "The request to the model provider failed"
    })
}

async fn refusal(mut response: Response, idle: Duration) -> ModelError {
    let status = response.status().as_u16();
    let retry_after = retry_after(response.headers());
    let should_retry = match header_text(response.headers(), "x-should-retry") {
        Some("true") => Some(true),
        Some("false") => Some(false),
        _ => None,
    };
    let mut body = Vec::new();
    let read = async {
        while let Ok(Some(chunk)) = response.chunk().await {
            let room = ERROR_BODY.saturating_sub(body.len());
            body.extend_from_slice(&chunk[..chunk.len().min(room)]);
            if room == 0 {
                break;
            }
        }
    };
    // Without a body the status still says enough.
    let _ = tokio::time::timeout(idle.min(Duration::from_secs(10)), read).await;
    ModelError::from_status(status, &body, retry_after, should_retry)
}

/// `retry-after-ms`, else `retry-after` in seconds or as a date, counted from the response's own
/// `date` so that no clock of ours matters.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = |name, unit: f64| {
        let value: f64 = header_text(headers, name)?.trim().parse().ok()?;
        Duration::try_from_secs_f64(value * unit).ok()
    };
    let date = |name| jiff::fmt::rfc2822::parse(header_text(headers, name)?).ok();
    seconds("retry-after-ms", 0.001)
        .or_else(|| seconds("retry-after", 1.0))
        .or_else(|| {
            let wait = date("retry-after")?.timestamp().as_second()
                - date("date")?.timestamp().as_second();
            Some(Duration::from_secs(u64::try_from(wait).unwrap_or(0)))
        })
}

fn header_text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn secret(value: &SecretString, name: &str) -> Result<HeaderValue, ModelError> {
    let mut value = HeaderValue::try_from(value.expose_secret().trim())
        .map_err(|_| ModelError::permanent(format!("{name} has characters no header may hold")))?;
    value.set_sensitive(true);
    Ok(value)
}

fn endpoint(base: &Url) -> Result<Url, ModelError> {
    let mut url = base.clone();
    let versioned = base.path().trim_end_matches('/').ends_with("/v1");
    url.path_segments_mut()
        .map_err(|()| ModelError::permanent("The model provider's base URL cannot be used"))?
        .pop_if_empty()
        .extend(if versioned {
            &["messages"][..]
        } else {
            &["v1", "messages"]
        });
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints() {
        for (base, url) in [
            ("https://a.example", "https://a.example/v1/messages"),
            ("https://a.example/", "https://a.example/v1/messages"),
            ("https://a.example/v1", "https://a.example/v1/messages"),
            ("https://a.example/v1/", "https://a.example/v1/messages"),
            ("https://a.example/x/", "https://a.example/x/v1/messages"),
            (
                "http://127.0.0.1:9?k=1",
                "http://127.0.0.1:9/v1/messages?k=1",
            ),
        ] {
            let got = endpoint(&base.parse().unwrap()).unwrap();
            assert_eq!(got.as_str(), url);
        }
        assert!(endpoint(&"data:x".parse().unwrap()).is_err());
    }

    #[test]
    fn retry_after_in_every_form() {
        let ms = |n| Some(Duration::from_millis(n));
        for (headers, wait) in [
            (&[][..], None),
            (&[("retry-after", "2")], ms(2000)),
            (&[("retry-after", "0.5")], ms(500)),
            (&[("retry-after", "0")], ms(0)),
            (&[("retry-after", "-1")], None),
            (&[("retry-after", "1e400")], None),
            (&[("retry-after", "soon")], None),
            (&[("retry-after-ms", "20"), ("retry-after", "2")], ms(20)),
            (
                &[
                    ("retry-after", "Fri, 20 Nov 2026 10:00:05 GMT"),
                    ("date", "Fri, 20 Nov 2026 10:00:00 GMT"),
                ],
                ms(5000),
            ),
            (
                &[
                    ("retry-after", "Fri, 20 Nov 2026 09:00:00 GMT"),
                    ("date", "Fri, 20 Nov 2026 10:00:00 GMT"),
                ],
                ms(0),
            ),
            (&[("retry-after", "Fri, 20 Nov 2026 09:00:00 GMT")], None),
        ] {
            let map = headers
                .iter()
                .map(|(k, v)| (k.parse().unwrap(), v.parse().unwrap()))
                .collect();
            assert_eq!(retry_after(&map), wait, "{headers:?}");
        }
    }

    #[test]
    fn nothing_secret_is_printed() {
        let config = AnthropicConfig {
            headers: vec![("x-gateway".into(), "sesame".into())],
            ..AnthropicConfig::new(
                "https://user:sesame@a.example".parse().unwrap(),
                Some("sesame".into()),
            )
        };
        let client = selfsame_net::operator_client(&Default::default()).unwrap();
        assert!(!format!("{config:?}").contains("sesame"));
        let provider = AnthropicProvider::new(config.clone(), client.clone()).unwrap();
        assert!(!format!("{provider:?}").contains("sesame"));

        let bad = AnthropicConfig {
            key: Some("ses\name".into()),
            ..config
        };
        let error = AnthropicProvider::new(bad, client).unwrap_err();
        assert!(!error.to_string().contains("ses"), "{error}");
    }
}
