//! Whether an MCP server takes a token: the least that a client says before it can call tools.
//!
//! Streamable HTTP with both life cycles (`initialize`, and the one without it), and the older transport,
//! whose stream a server opens only for those it knows. The answers are not used; they only have to come.

use std::{fmt, time::Duration};

use futures_util::StreamExt as _;
use secrecy::{ExposeSecret as _, SecretString};
use selfsame_model::sse::Decoder;
use selfsame_net::reqwest::{
    Client, RequestBuilder, Response,
    header::{self, HeaderName, HeaderValue},
};
use serde_json::{Value, json};
use url::Url;

use super::token::{Answer, content_type};

/// For all of it.
const PATIENCE: Duration = Duration::from_secs(30);
/// Of an answer, while looking for the reply in it.
const MAX_REPLY: usize = 4 << 20;
const LATEST_WITH_INITIALIZE: &str = "2025-11-25";
const WITHOUT_INITIALIZE: &str = "2026-07-28";
const SESSION: HeaderName = HeaderName::from_static("mcp-session-id");
const VERSION: HeaderName = HeaderName::from_static("mcp-protocol-version");
const METHOD: HeaderName = HeaderName::from_static("mcp-method");

/// The step that failed.
#[derive(Debug)]
pub(super) struct Failed {
    pub method: &'static str,
    /// `None` when nothing came back.
    pub answer: Option<Answer>,
}

impl Failed {
    /// The status of the answer; 0 when there was none.
    pub(super) fn status(&self) -> u16 {
        self.answer.as_ref().map_or(0, |answer| answer.status)
    }
}

/// A server and what it is shown.
struct Target<'a> {
    client: &'a Client,
    url: &'a Url,
    authorization: HeaderValue,
}

impl fmt::Debug for Target<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target").finish_non_exhaustive()
    }
}

/// Says hello with a token and asks for the tools.
pub(super) async fn probe(client: &Client, url: &Url, token: &SecretString) -> Result<(), Failed> {
    let mut method = "initialize";
    let value = HeaderValue::try_from(format!("Bearer {}", token.expose_secret()));
    let Ok(mut authorization) = value else {
        // No header can hold it, so no server can take it.
        return Err(Failed {
            method,
            answer: None,
        });
    };
    authorization.set_sensitive(true);
    let target = Target {
        client,
        url,
        authorization,
    };
    let steps = target.steps(&mut method);
    match tokio::time::timeout(PATIENCE, steps).await {
        Ok(done) => done.map_err(|answer| Failed { method, answer }),
        Err(_) => Err(Failed {
            method,
            answer: None,
        }),
    }
}

/// An answer that is no reply; `None` when nothing came back.
type Refusal = Option<Answer>;

impl Target<'_> {
    async fn steps(&self, method: &mut &'static str) -> Result<(), Refusal> {
        let refusal = match self.initialize().await {
            Ok(session) => {
                *method = "tools/list";
                return self.list_tools(&session).await;
            }
            Err(refusal) => refusal,
        };
        // A server that does not know `initialize` may know what came before it, or after.
        let is_unknown = refusal
            .as_ref()
            .is_some_and(|answer| !matches!(answer.status, 401 | 403 | 429) && answer.status < 500);
        if is_unknown && (self.discover().await || self.older_transport().await) {
            return Ok(());
        }
        Err(refusal)
    }

    async fn initialize(&self) -> Result<Session, Refusal> {
        let params = json!({
            "protocolVersion": LATEST_WITH_INITIALIZE,
            "capabilities": {},
            "clientInfo": client_info(),
        });
        let response = send(self.post(&call(1, "initialize", &params))).await?;
        let id = response.headers().get(SESSION).cloned();
        let reply = reply(response, 1).await?;
        let version = reply["result"]["protocolVersion"].as_str();
        let version = version.and_then(|version| HeaderValue::from_str(version).ok());
        let session = Session { id, version };
        let note = json!({"jsonrpc": "2.0", "method": "notifications/initialized"});
        // Whatever is wrong with it shows in the next step.
        let _ = session.mark(self.post(&note)).send().await;
        Ok(session)
    }

    async fn list_tools(&self, session: &Session) -> Result<(), Refusal> {
        let request = session.mark(self.post(&call(2, "tools/list", &json!({}))));
        let listed = reply(send(request).await?, 2).await.map(drop);
        if session.id.is_some() {
            let end = self.client.delete(self.url.clone());
            let end = end.header(header::AUTHORIZATION, self.authorization.clone());
            let _ = session.mark(end).send().await;
        }
        listed
    }

    /// The life cycle without `initialize`.
    async fn discover(&self) -> bool {
        let params = json!({"_meta": {
            "io.modelcontextprotocol/protocolVersion": WITHOUT_INITIALIZE,
            "io.modelcontextprotocol/clientInfo": client_info(),
            "io.modelcontextprotocol/clientCapabilities": {},
        }});
        let request = self
            .post(&call(1, "tools/list", &params))
            .header(VERSION, WITHOUT_INITIALIZE)
            .header(METHOD, "tools/list");
        match send(request).await {
            Ok(response) => reply(response, 1).await.is_ok(),
            Err(_) => false,
        }
    }

    /// HTTP with a stream of events that begins with the address for messages.
    async fn older_transport(&self) -> bool {
        let request = self
            .client
            .get(self.url.clone())
            .header(header::ACCEPT, "text/event-stream")
            .header(header::AUTHORIZATION, self.authorization.clone());
        match send(request).await {
            Ok(response) if response.status().is_success() => {
                find(response, |event, _| event == "endpoint")
                    .await
                    .is_some()
            }
            _ => false,
        }
    }

    fn post(&self, body: &Value) -> RequestBuilder {
        self.client
            .post(self.url.clone())
            .header(header::ACCEPT, "application/json, text/event-stream")
            .header(header::AUTHORIZATION, self.authorization.clone())
            .json(body)
    }
}

/// What the server said at the beginning and wants to hear again.
struct Session {
    id: Option<HeaderValue>,
    version: Option<HeaderValue>,
}

impl Session {
    fn mark(&self, mut request: RequestBuilder) -> RequestBuilder {
        if let Some(id) = &self.id {
            request = request.header(SESSION, id);
        }
        if let Some(version) = &self.version {
            request = request.header(VERSION, version);
        }
        request
    }
}

fn client_info() -> Value {
    json!({"name": "selfsame", "version": env!("CARGO_PKG_VERSION")})
}

fn call(id: u32, method: &str, params: &Value) -> Value {
    json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params})
}

async fn send(request: RequestBuilder) -> Result<Response, Refusal> {
    request.send().await.map_err(|_| None)
}

/// The reply to the call `id`, if it has a result.
async fn reply(response: Response, id: u32) -> Result<Value, Refusal> {
    if !response.status().is_success() {
        return Err(Some(Answer::read(response).await));
    }
    let (status, content_type) = (response.status().as_u16(), content_type(response.headers()));
    let is_stream = content_type
        .to_ascii_lowercase()
        .starts_with("text/event-stream");
    let is_reply = |reply: &Value| reply["id"] == id;
    let found = if is_stream {
        find(response, move |_, data| {
            serde_json::from_str(data).is_ok_and(|reply| is_reply(&reply))
        })
        .await
    } else {
        match selfsame_net::read_start(response, MAX_REPLY).await {
            // A list of more tools than that was given to somebody who may have it.
            Ok((_, false)) => return Ok(Value::Null),
            Ok((body, true)) => Some(String::from_utf8_lossy(&body).into_owned()),
            Err(_) => return Err(None),
        }
    };
    let text = found.unwrap_or_default();
    match serde_json::from_str::<Value>(&text) {
        Ok(reply) if is_reply(&reply) && reply.get("result").is_some() => Ok(reply),
        _ => Err(Some(Answer {
            status,
            content_type,
            body: text.into_bytes(),
            whole: true,
        })),
    }
}

/// The data of the first event that is wanted, by its name and data.
async fn find(response: Response, wanted: impl Fn(&str, &str) -> bool) -> Option<String> {
    let mut decoder = Decoder::new(MAX_REPLY);
    let mut seen = 0;
    let mut pieces = response.bytes_stream();
    while let Some(Ok(piece)) = pieces.next().await {
        seen += piece.len();
        let mut rest = &*piece;
        while !rest.is_empty() {
            let (taken, frame) = decoder.next(rest).ok()?;
            rest = &rest[taken..];
            match frame {
                Some(frame) if wanted(&frame.event, &frame.data) => return Some(frame.data),
                _ => {}
            }
        }
        if seen > MAX_REPLY {
            return None;
        }
    }
    None
}
