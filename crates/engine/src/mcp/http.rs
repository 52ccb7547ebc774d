//! HTTP to one MCP server: the guarded client, the session's credential on each request, and limits on
//! whatever comes back. Both transports are built on it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::{
    StreamExt as _,
    stream::{self, BoxStream},
};
use rmcp::{
    model::{ClientJsonRpcMessage, ClientRequest, ErrorData, RequestId, ServerJsonRpcMessage},
    transport::streamable_http_client::{
        SseError, StreamableHttpClient, StreamableHttpError, StreamableHttpPostResponse,
    },
};
use rmcp_sse_stream::{Sse, SseStream};
use secrecy::ExposeSecret as _;
use selfsame_net::reqwest::{
    Client, Method, RequestBuilder, Response, StatusCode,
    header::{self, HeaderName, HeaderValue},
};
use selfsame_types::SessionId;
use tokio::time::Instant;
use url::Url;

use super::{
    error::HttpError,
    meter::{Memory, Meter},
};
use crate::vaults::{Bearer, Vaults};

const SESSION: &str = "mcp-session-id";
const LAST_EVENT: &str = "last-event-id";
const JSON: &str = "application/json";
const EVENTS: &str = "text/event-stream";
/// An error's body tells no more than this.
const MAX_ERROR: usize = 64 << 10;
/// Redirects that are followed, within the server's own origin.
const MAX_REDIRECTS: usize = 3;
/// The least that a reader waits before it takes up a stream again that ended, whatever its server says.
const LEAST_RETRY_MS: u64 = 1000;

/// One server as one session sees it. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Http(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    client: Client,
    vaults: Vaults,
    session: SessionId,
    url: Url,
    max_bytes: usize,
    memory: Memory,
    opened: Mutex<Opened>,
}

/// How often a stream was opened lately.
#[derive(Debug, Default)]
struct Opened {
    count: u32,
    last: Option<Instant>,
}

impl Opened {
    /// How long the next one has to wait: a server that ends every stream is asked less and less often.
    fn wait(&mut self) -> Duration {
        let now = Instant::now();
        if self
            .last
            .is_some_and(|last| now.duration_since(last) > Duration::from_secs(60))
        {
            self.count = 0;
        }
        let wait = match self.count.checked_sub(2) {
            None => Duration::ZERO,
            Some(more) => Duration::from_millis(500 << more.min(6)),
        };
        self.count = self.count.saturating_add(1);
        self.last = Some(now + wait);
        wait
    }
}

impl Http {
    pub(super) fn new(
        client: Client,
        vaults: Vaults,
        session: SessionId,
        url: Url,
        max_bytes: usize,
        memory: Memory,
    ) -> Self {
        Self(Arc::new(Shared {
            client,
            vaults,
            session,
            url,
            max_bytes,
            memory,
            opened: Mutex::default(),
        }))
    }

    pub(super) fn url(&self) -> &Url {
        &self.0.url
    }

    /// Sends what `dress` makes of a plain request, with the session's credential. What is answered is a
    /// success, or an error whose body may tell more.
    async fn send(
        &self,
        method: Method,
        to: &Url,
        dress: impl Fn(RequestBuilder) -> RequestBuilder + Send + Sync,
    ) -> Result<Response, HttpError> {
        let shared = &*self.0;
        let mut bearer = shared
            .vaults
            .bearer(shared.session, &shared.url)
            .await
            .map_err(unread)?;
        let mut refused = false;
        let mut redirects = 0;
        let mut at = to.clone();
        loop {
            let plain = shared.client.request(method.clone(), at.clone());
            let request = dress(credited(plain, bearer.as_ref()));
            let response = request.send().await?;
            let status = response.status();
            match status {
                StatusCode::UNAUTHORIZED if !refused => {
                    let Some(old) = bearer.take() else {
                        return Err(HttpError::Unauthorized(status.as_u16()));
                    };
                    refused = true;
                    bearer = shared
                        .vaults
                        .refused(shared.session, &old, &shared.url)
                        .await
                        .map_err(unread)?;
                    if bearer.is_none() {
                        return Err(HttpError::Unauthorized(status.as_u16()));
                    }
                }
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                    return Err(HttpError::Unauthorized(status.as_u16()));
                }
                // These two keep method and body. Anywhere else the credential is not for.
                StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT
                    if redirects < MAX_REDIRECTS =>
                {
                    let next = response
                        .headers()
                        .get(header::LOCATION)
                        .and_then(|to| to.to_str().ok())
                        .and_then(|to| at.join(to).ok())
                        .filter(|next| next.origin() == shared.url.origin());
                    at = next.ok_or(HttpError::Redirect)?;
                    redirects += 1;
                }
                status if status.is_redirection() => return Err(HttpError::Redirect),
                _ => return Ok(response),
            }
        }
    }

    /// Sends a message of the protocol.
    pub(super) async fn post(
        &self,
        to: &Url,
        message: &ClientJsonRpcMessage,
        dress: impl Fn(RequestBuilder) -> RequestBuilder + Send + Sync,
    ) -> Result<Response, HttpError> {
        let body = serde_json::to_vec(message).map_err(|_| HttpError::Unreadable)?;
        self.send(Method::POST, to, |request| {
            dress(request)
                .header(header::ACCEPT, format!("{JSON}, {EVENTS}"))
                .header(header::CONTENT_TYPE, JSON)
                .body(body.clone())
        })
        .await
    }

    /// Opens a stream of what the server says by itself.
    pub(super) async fn listen(
        &self,
        dress: impl Fn(RequestBuilder) -> RequestBuilder + Send + Sync,
    ) -> Result<BoxStream<'static, Result<Sse, SseError>>, HttpError> {
        let wait = self
            .0
            .opened
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .wait();
        tokio::time::sleep(wait).await;
        let response = self
            .send(Method::GET, &self.0.url, |request| {
                dress(request).header(header::ACCEPT, EVENTS)
            })
            .await?;
        if !response.status().is_success() {
            return Err(HttpError::Status(response.status().as_u16()));
        }
        if !is(&response, EVENTS) {
            return Err(HttpError::ContentType);
        }
        Ok(events(
            response,
            Meter::stream(&self.0.memory, self.0.max_bytes),
        ))
    }

    async fn collect(&self, mut response: Response, max: usize) -> Result<Vec<u8>, HttpError> {
        let mut meter = Meter::answer(&self.0.memory, max);
        if response
            .content_length()
            .is_some_and(|length| length > max as u64)
        {
            return Err(HttpError::TooLarge(max));
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await? {
            meter.body(chunk.len())?;
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    async fn answer(
        &self,
        message: &ClientJsonRpcMessage,
        has_session: bool,
        response: Response,
    ) -> Result<StreamableHttpPostResponse, StreamableHttpError<HttpError>> {
        let (status, request) = (response.status(), request_of(message));
        if status == StatusCode::NOT_FOUND && has_session {
            return Err(StreamableHttpError::SessionExpired);
        }
        let session = response
            .headers()
            .get(SESSION)
            .and_then(|id| id.to_str().ok())
            .map(str::to_owned);
        if !status.is_success() {
            return self.refusal(status, request, session, response).await;
        }
        let Some((id, _)) = request else {
            // Nothing is to be answered, so nothing is read.
            return Ok(StreamableHttpPostResponse::Accepted);
        };
        if matches!(status, StatusCode::ACCEPTED | StatusCode::NO_CONTENT) {
            return Ok(StreamableHttpPostResponse::Accepted);
        }
        if is(&response, EVENTS) {
            let meter = Meter::answer(&self.0.memory, self.0.max_bytes);
            let events = events(response, meter);
            return Ok(StreamableHttpPostResponse::Sse(events, session));
        }
        if !is(&response, JSON) {
            return Err(HttpError::ContentType.into());
        }
        let body = self.collect(response, self.0.max_bytes).await?;
        let answer: ServerJsonRpcMessage =
            serde_json::from_slice(&body).map_err(|_| HttpError::Unreadable)?;
        // A body belongs to its request. The library waits for an id for ever, and takes what is no answer
        // at all for one that comes later.
        let fits = match &answer {
            ServerJsonRpcMessage::Response(answer) => same(id, &answer.id),
            ServerJsonRpcMessage::Error(error) => {
                error.id.as_ref().is_none_or(|other| same(id, other))
            }
            _ => false,
        };
        match answer {
            _ if !fits => Err(HttpError::Unreadable.into()),
            ServerJsonRpcMessage::Error(error) => Ok(StreamableHttpPostResponse::Json(
                ServerJsonRpcMessage::error(error.error, Some(id.clone())),
                session,
            )),
            answer => Ok(StreamableHttpPostResponse::Json(answer, session)),
        }
    }

    /// What an HTTP error says in the protocol's own words, if it does.
    async fn refusal(
        &self,
        status: StatusCode,
        request: Option<(&RequestId, &ClientRequest)>,
        session: Option<String>,
        response: Response,
    ) -> Result<StreamableHttpPostResponse, StreamableHttpError<HttpError>> {
        let failed = HttpError::Status(status.as_u16());
        let Some((id, request)) = request else {
            return Err(failed.into());
        };
        let told = match is(&response, JSON) {
            true => self.collect(response, MAX_ERROR).await.ok(),
            false => None,
        };
        let told = told.and_then(|body| match serde_json::from_slice(&body) {
            Ok(ServerJsonRpcMessage::Error(error)) => Some(error.error),
            _ => None,
        });
        let error = match request {
            // An older server knows neither the request nor how to say so; what follows is `initialize`.
            ClientRequest::DiscoverRequest(_) if status.is_client_error() => {
                told.unwrap_or_else(|| ErrorData::invalid_request(format!("HTTP {status}"), None))
            }
            // The place does not speak this transport at all.
            ClientRequest::InitializeRequest(_) => return Err(failed.into()),
            _ => told.ok_or(failed)?,
        };
        Ok(StreamableHttpPostResponse::Json(
            ServerJsonRpcMessage::error(error, Some(id.clone())),
            session,
        ))
    }
}

impl From<HttpError> for StreamableHttpError<HttpError> {
    fn from(error: HttpError) -> Self {
        Self::Client(error)
    }
}

impl StreamableHttpClient for Http {
    type Error = HttpError;

    async fn post_message(
        &self,
        _uri: Arc<str>,
        message: ClientJsonRpcMessage,
        session: Option<Arc<str>>,
        _auth_header: Option<String>,
        headers: HashMap<HeaderName, HeaderValue>,
    ) -> Result<StreamableHttpPostResponse, StreamableHttpError<HttpError>> {
        let response = self
            .post(&self.0.url, &message, |request| {
                dressed(request, session.as_deref(), None, &headers)
            })
            .await?;
        self.answer(&message, session.is_some(), response).await
    }

    async fn delete_session(
        &self,
        _uri: Arc<str>,
        session: Arc<str>,
        _auth_header: Option<String>,
        headers: HashMap<HeaderName, HeaderValue>,
    ) -> Result<(), StreamableHttpError<HttpError>> {
        self.send(Method::DELETE, &self.0.url, |request| {
            dressed(request, Some(&session), None, &headers)
        })
        .await?;
        Ok(())
    }

    async fn get_stream(
        &self,
        _uri: Arc<str>,
        session: Option<Arc<str>>,
        last_event: Option<String>,
        _auth_header: Option<String>,
        headers: HashMap<HeaderName, HeaderValue>,
    ) -> Result<BoxStream<'static, Result<Sse, SseError>>, StreamableHttpError<HttpError>> {
        let opened = self
            .listen(|request| dressed(request, session.as_deref(), last_event.as_deref(), &headers))
            .await;
        match opened {
            Err(HttpError::Status(405)) => Err(StreamableHttpError::ServerDoesNotSupportSse),
            done => Ok(done?),
        }
    }
}

fn request_of(message: &ClientJsonRpcMessage) -> Option<(&RequestId, &ClientRequest)> {
    match message {
        ClientJsonRpcMessage::Request(request) => Some((&request.id, &request.request)),
        _ => None,
    }
}

/// Some servers write numbers as texts.
fn same(asked: &RequestId, answered: &RequestId) -> bool {
    asked == answered || asked.to_string() == answered.to_string()
}

fn credited(request: RequestBuilder, bearer: Option<&Bearer>) -> RequestBuilder {
    match bearer {
        Some(bearer) => request.bearer_auth(bearer.token.expose_secret()),
        None => request,
    }
}

fn dressed(
    mut request: RequestBuilder,
    session: Option<&str>,
    last_event: Option<&str>,
    headers: &HashMap<HeaderName, HeaderValue>,
) -> RequestBuilder {
    for (name, value) in headers {
        request = request.header(name, value);
    }
    for (name, value) in [(SESSION, session), (LAST_EVENT, last_event)] {
        // What a server made up and no header can hold is left out.
        if let Some(value) = value.and_then(|value| HeaderValue::from_str(value).ok()) {
            request = request.header(name, value);
        }
    }
    request
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn unread(error: crate::vaults::VaultsError) -> HttpError {
    tracing::warn!(
        error = &error as &dyn std::error::Error,
        "a session's credentials cannot be read"
    );
    HttpError::Vaults
}

fn is(response: &Response, media_type: &str) -> bool {
    let value = response.headers().get(header::CONTENT_TYPE);
    let value = value
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let essence = value.split(';').next().unwrap_or_default();
    essence.trim().eq_ignore_ascii_case(media_type)
}

/// The events of an answer, up to the first thing that is wrong with them.
fn events(response: Response, mut meter: Meter) -> BoxStream<'static, Result<Sse, SseError>> {
    let bytes = response.bytes_stream().map(move |chunk| {
        let chunk = chunk.map_err(HttpError::from)?;
        meter.events(&chunk, Instant::now())?;
        Ok::<_, HttpError>(chunk)
    });
    let events = SseStream::from_bytes_stream(bytes);
    stream::unfold(Some(events), |events| async {
        let mut events = events?;
        match events.next().await? {
            Ok(mut event) => {
                event.retry = event.retry.map(|retry| retry.max(LEAST_RETRY_MS));
                Some((Ok(event), Some(events)))
            }
            Err(error) => Some((Err(error), None)),
        }
    })
    .boxed()
}
