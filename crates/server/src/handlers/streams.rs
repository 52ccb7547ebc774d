//! `text/event-stream`: a session's log as it grows.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::State,
    http::{HeaderMap, HeaderValue, header},
    response::Response,
};
use bytes::Bytes;
use futures_util::stream;
use selfsame_engine::{Item, PreviewKind, Subscription, Watch};
use selfsame_store::Row;
use selfsame_types::{ApiError, EventId, SessionId, ThreadId};
use serde::Deserialize;
use tokio::time::Instant;

use super::{sessions::append_error, threads, views::View};
use crate::{
    app::App,
    error::{Error, Result},
    extract::{Auth, Path, Query},
};

/// Most values of `event_deltas[]`.
const MAX_DELTAS: usize = 100;
const PING: &str = ": ping\n\n";
/// A client that was cut off by a drain comes back soon, to another server or to the next one.
const RETRY: &str = "retry: 1000\n\n";

#[derive(Debug, Clone, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct StreamQuery {
    /// Previews of events that are still being generated: `agent.message`, `agent.thinking`.
    #[serde(rename = "event_deltas[]", default)]
    event_deltas: Vec<String>,
}

/// One server-sent event.
#[derive(Debug, serde::Serialize, utoipa::ToSchema)]
pub struct ServerSentEvent {
    /// The event's type; `event_start` and `event_delta` for previews, `error` before an early end.
    event: String,
    /// Where a client may go on with `Last-Event-ID`. Absent on previews.
    id: Option<String>,
    /// The event as one line of JSON.
    data: String,
}

/// Which previews a connection wants.
#[derive(Debug, Clone, Copy, Default)]
struct Wanted {
    message: bool,
    thinking: bool,
}

impl Wanted {
    fn from(query: &StreamQuery) -> Result<Self, ApiError> {
        if query.event_deltas.len() > MAX_DELTAS {
            return Err(ApiError::invalid(format!(
                "event_deltas: at most {MAX_DELTAS} values are taken"
            )));
        }
        let mut wanted = Self::default();
        for name in &query.event_deltas {
            match name.as_str() {
                "agent.message" => wanted.message = true,
                "agent.thinking" => wanted.thinking = true,
                other => {
                    return Err(ApiError::invalid(format!(
                        "event_deltas: `{}` has no previews; use `agent.message` or \
                         `agent.thinking`",
                        other.chars().take(100).collect::<String>()
                    )));
                }
            }
        }
        Ok(wanted)
    }

    fn any(self) -> bool {
        self.message || self.thinking
    }

    fn takes(self, kind: PreviewKind) -> bool {
        match kind {
            PreviewKind::StartMessage | PreviewKind::Delta => self.message,
            PreviewKind::StartThinking => self.thinking,
        }
    }
}

/// Position in `Last-Event-ID: <event id>.<seq>`, our extension.
fn last_event_id(headers: &HeaderMap) -> Result<Option<i64>, ApiError> {
    let Some(value) = headers.get("last-event-id") else {
        return Ok(None);
    };
    let text = value.to_str().unwrap_or("");
    if text.is_empty() {
        return Ok(None);
    }
    text.split_once('.')
        .filter(|(id, _)| id.parse::<EventId>().is_ok())
        .and_then(|(_, seq)| seq.parse().ok())
        .map(Some)
        .ok_or_else(|| {
            ApiError::invalid("Last-Event-ID: must be an `id` as this server's streams send it")
        })
}

/// Streams a session's events as they are appended. Nothing from before the subscription is sent,
/// except after `Last-Event-ID`, and except what an input accepted moments ago has caused.
#[utoipa::path(get, path = "/v1/sessions/{session_id}/events/stream",
    operation_id = "stream_events", tag = "events",
    params(("session_id" = String, Path), StreamQuery),
    responses((status = 200, description = "Server-sent events", content_type = "text/event-stream",
        body = ServerSentEvent)))]
pub(crate) async fn session(
    State(app): State<Arc<App>>,
    Auth(principal): Auth,
    Path(session): Path<SessionId>,
    Query(query): Query<StreamQuery>,
    headers: HeaderMap,
) -> Result<Response> {
    let wanted = Wanted::from(&query)?;
    let window = Duration::from_secs(app.config.server.stream_replay_window_seconds);
    let watch = app
        .engine
        .watch(
            principal.workspace,
            session,
            last_event_id(&headers)?,
            window,
            wanted.any(),
        )
        .await
        .map_err(append_error(session))?;
    Ok(respond(app, watch, None, wanted))
}

/// The same stream under its first name.
#[utoipa::path(get, path = "/v1/sessions/{session_id}/stream",
    operation_id = "stream_session", tag = "events",
    params(("session_id" = String, Path), StreamQuery),
    responses((status = 200, description = "Server-sent events", content_type = "text/event-stream",
        body = ServerSentEvent)))]
pub(crate) async fn alias(
    app: State<Arc<App>>,
    auth: Auth,
    path: Path<SessionId>,
    query: Query<StreamQuery>,
    headers: HeaderMap,
) -> Result<Response> {
    session(app, auth, path, query, headers).await
}

/// Streams one thread's events.
#[utoipa::path(get, path = "/v1/sessions/{session_id}/threads/{thread_id}/stream",
    operation_id = "stream_thread", tag = "threads",
    params(("session_id" = String, Path), ("thread_id" = String, Path), StreamQuery),
    responses((status = 200, description = "Server-sent events", content_type = "text/event-stream",
        body = ServerSentEvent)))]
pub(crate) async fn thread(
    State(app): State<Arc<App>>,
    Auth(principal): Auth,
    Path((session, thread)): Path<(SessionId, ThreadId)>,
    Query(query): Query<StreamQuery>,
    headers: HeaderMap,
) -> Result<Response> {
    let wanted = Wanted::from(&query)?;
    let record = threads::find(&app, principal.workspace, session, thread).await?;
    let view = View::thread(thread, record.parent.is_none());
    if record.status == "terminated" && record.parent.is_some() {
        let last = app.store.thread_end(session, thread).await?;
        return Ok(respond(app, Watch::Over(last), Some(view), wanted));
    }
    let window = Duration::from_secs(app.config.server.stream_replay_window_seconds);
    let watch = app
        .engine
        .watch(
            principal.workspace,
            session,
            last_event_id(&headers)?,
            window,
            wanted.any(),
        )
        .await
        .map_err(append_error(session))?;
    Ok(respond(app, watch, Some(view), wanted))
}

/// Counts open streams.
#[derive(Debug)]
struct Open;

impl Open {
    fn new() -> Self {
        metrics::gauge!("selfsame_open_streams").increment(1.0);
        Self
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        metrics::gauge!("selfsame_open_streams").decrement(1.0);
    }
}

/// One connection.
struct Reader {
    app: Arc<App>,
    live: Option<(Subscription, View)>,
    last: Option<Bytes>,
    wanted: Wanted,
    ping_at: Instant,
    over: bool,
    _open: Open,
}

/// `view`: the session's own when there is none.
fn respond(app: Arc<App>, watch: Watch, view: Option<View>, wanted: Wanted) -> Response {
    let ping = Duration::from_secs(app.config.server.heartbeat_seconds);
    let (live, last) = match watch {
        Watch::Live {
            subscription,
            primary,
        } => {
            let view = view.unwrap_or(View::Session { primary });
            (Some((subscription, view)), None)
        }
        // What ends a log names its thread by itself.
        Watch::Over(row) => (None, row.map(|row| frame(&row, &row.body))),
    };
    let reader = Reader {
        app,
        live,
        last,
        wanted,
        ping_at: Instant::now() + ping,
        over: false,
        _open: Open::new(),
    };
    let frames = stream::unfold(reader, |mut reader| async move {
        let frame = reader.next().await?;
        Some((Ok::<_, Infallible>(frame), reader))
    });
    let mut response = Response::new(Body::from_stream(frames));
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/event-stream"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

impl Reader {
    /// The next bytes to send; `None` ends the stream.
    async fn next(&mut self) -> Option<Bytes> {
        if self.over {
            return None;
        }
        let Some((subscription, view)) = &mut self.live else {
            self.over = true;
            return self.last.take();
        };
        loop {
            let item = tokio::select! {
                biased;
                item = subscription.next(&self.app.store) => item,
                () = self.app.shutdown.cancelled() => {
                    self.over = true;
                    return Some(Bytes::from_static(RETRY.as_bytes()));
                }
                () = tokio::time::sleep_until(self.ping_at) => {
                    let ping = Duration::from_secs(self.app.config.server.heartbeat_seconds);
                    self.ping_at = Instant::now() + ping;
                    return Some(Bytes::from_static(PING.as_bytes()));
                }
            };
            match item {
                Ok(Item::Row(row)) => {
                    if view.ends(&row) {
                        self.over = true;
                    }
                    if view.shows(&row) {
                        return Some(frame(&row, &view.body(&row)));
                    }
                    if self.over {
                        return None;
                    }
                }
                Ok(Item::Preview(preview)) => {
                    if self.wanted.takes(preview.kind) && view.previews(preview.thread) {
                        let name = match preview.kind {
                            PreviewKind::Delta => "event_delta",
                            PreviewKind::StartMessage | PreviewKind::StartThinking => "event_start",
                        };
                        return Some(Bytes::from(format!(
                            "event: {name}\ndata: {}\n\n",
                            preview.body
                        )));
                    }
                }
                Ok(Item::Deleted) => {
                    self.over = true;
                    return Some(deleted(&self.app).await);
                }
                Err(error) => {
                    self.over = true;
                    let error = Error::from(error).into_api();
                    return Some(Bytes::from(format!(
                        "event: error\ndata: {}\n\n",
                        error.envelope(None)
                    )));
                }
            }
        }
    }
}

/// An event as a server-sent one. The position in its id tells the queued form from the processed one.
fn frame(row: &Row, body: &str) -> Bytes {
    Bytes::from(format!(
        "event: {}\nid: {}.{}\ndata: {}\n\n",
        row.event_type.as_str(),
        row.id,
        row.seq,
        body
    ))
}

/// The last word of a deleted session; it is never stored.
async fn deleted(app: &App) -> Bytes {
    let id = EventId::new();
    // Without the database's clock there is no time to show, and the stream just ends.
    let Ok(at) = app.store.now().await else {
        return Bytes::new();
    };
    Bytes::from(format!(
        "event: session.deleted\ndata: {{\"type\":\"session.deleted\",\"id\":\"{id}\",\
         \"processed_at\":\"{at}\"}}\n\n"
    ))
}
