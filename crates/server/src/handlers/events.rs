//! `/v1/sessions/{session_id}/events`: the log, read and written.

use std::{collections::HashMap, sync::Arc};

use axum::{extract::State, response::Response};
use selfsame_engine::Sent;
use selfsame_store::{EventCursor, EventQuery, Row};
use selfsame_types::{
    ApiError, Order, SessionId, Timestamp,
    event::EventType,
    inbound::{SendEvents, parse_events},
    page::{check_limit, decode_cursor, encode_cursor},
};
use serde::{Deserialize, Serialize};

use super::{
    sessions::{append_error, find},
    views::View,
};
use crate::{
    app::App,
    error::Result,
    extract::{Auth, Json, NoQuery, Path, Query, RequestId, json_response},
};

/// An event of a session's log. The fields beside these depend on `type`.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct SessionEvent {
    pub r#type: String,
    pub id: String,
    /// Null while an input is queued.
    #[schema(required, value_type = Option<String>, format = DateTime)]
    pub processed_at: Option<String>,
    #[serde(flatten)]
    pub fields: HashMap<String, serde_json::Value>,
}

/// A page of events.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct EventPage {
    pub data: Vec<SessionEvent>,
    #[schema(required)]
    pub next_page: Option<String>,
}

/// The events that a request created.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct SentEvents {
    pub data: Vec<SessionEvent>,
}

#[derive(Debug, Clone, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// By `processed_at`; default `asc`. Queued events count as the latest.
    order: Option<Order>,
    /// Only events of these types.
    #[serde(rename = "types[]", default)]
    types: Vec<String>,
    #[serde(rename = "created_at[gt]")]
    #[param(value_type = Option<String>, format = DateTime)]
    after: Option<Timestamp>,
    #[serde(rename = "created_at[gte]")]
    #[param(value_type = Option<String>, format = DateTime)]
    from: Option<Timestamp>,
    #[serde(rename = "created_at[lt]")]
    #[param(value_type = Option<String>, format = DateTime)]
    before: Option<Timestamp>,
    #[serde(rename = "created_at[lte]")]
    #[param(value_type = Option<String>, format = DateTime)]
    until: Option<Timestamp>,
    /// Page size.
    #[param(minimum = 1, maximum = 1000, default = 1000)]
    limit: Option<i64>,
    /// A `next_page` of an earlier answer.
    page: Option<String>,
}

impl ListQuery {
    /// Everything, page by page.
    pub(crate) fn paged(limit: Option<i64>, page: Option<String>) -> Self {
        Self {
            limit,
            page,
            ..Self::default()
        }
    }
}

/// Where a list of events stands.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Cursor {
    order: Order,
    /// Last processed and last queued position shown.
    processed: Option<i64>,
    queued: Option<i64>,
}

/// The tighter of two bounds on the same side.
fn bound(
    strict: Option<Timestamp>,
    loose: Option<Timestamp>,
    tighter: impl Fn(Timestamp, Timestamp) -> bool,
) -> Option<(Timestamp, bool)> {
    match (
        strict.map(Timestamp::storable),
        loose.map(Timestamp::storable),
    ) {
        (Some(strict), Some(loose)) if tighter(loose, strict) => Some((loose, true)),
        (Some(strict), _) => Some((strict, false)),
        (None, loose) => loose.map(|loose| (loose, true)),
    }
}

fn types(names: &[String]) -> Result<Vec<EventType>, ApiError> {
    let mut types = Vec::new();
    for name in names {
        let event_type = EventType::parse(name).ok_or_else(|| {
            ApiError::invalid(format!(
                "types: `{}` is not an event type that can be listed",
                name.chars().take(100).collect::<String>()
            ))
        })?;
        if !types.contains(&event_type) {
            types.push(event_type);
        }
    }
    Ok(types)
}

/// One page, as the text of the response.
pub(crate) async fn page(
    app: &App,
    session: SessionId,
    view: View,
    query: &ListQuery,
) -> Result<Response> {
    let limit = check_limit(query.limit, 1000, 1000)?;
    let types = types(&query.types)?;
    let cursor: Option<Cursor> = query.page.as_deref().map(decode_cursor).transpose()?;
    let asked = query.order.unwrap_or(Order::Asc);
    if let Some(cursor) = cursor
        && query.order.is_some()
        && cursor.order != asked
    {
        return Err(ApiError::invalid(
            "page: the cursor comes from a list with another `order`; start again without `page`",
        )
        .into());
    }
    let order = cursor.map_or(asked, |cursor| cursor.order);
    let after = bound(query.after, query.from, |loose, strict| loose > strict);
    let before = bound(query.before, query.until, |loose, strict| loose < strict);
    let mut position = cursor.map_or_else(EventCursor::default, |cursor| EventCursor {
        processed: cursor.processed,
        queued: cursor.queued,
    });
    let mut query = EventQuery {
        session,
        thread: view.only(),
        order,
        types,
        after,
        before,
        cursor: position,
        limit: i64::try_from(limit).unwrap_or(i64::MAX),
    };
    // Queued events have no time: they are the latest, and no bound matches them.
    let unbounded = after.is_none() && before.is_none();
    let mut queued = if unbounded {
        app.store.event_queued(&query).await?
    } else {
        Vec::new()
    };
    let seen = position.queued;
    let mut rows: Vec<Row> = Vec::new();
    let more;
    match order {
        Order::Asc => {
            let processed = app.store.event_list(&query).await?;
            rows.extend(processed.rows);
            position.processed = rows.last().map_or(position.processed, |row| Some(row.seq));
            if processed.more {
                more = true;
            } else {
                queued.retain(|row| seen.is_none_or(|seen| row.seq > seen));
                let room = limit - rows.len().min(limit);
                more = queued.len() > room;
                queued.truncate(room);
                position.queued = queued.last().map_or(seen, |row| Some(row.seq));
                rows.extend(queued);
            }
        }
        Order::Desc => {
            queued.retain(|row| seen.is_none_or(|seen| row.seq < seen));
            queued.reverse();
            let left = queued.len().saturating_sub(limit);
            queued.truncate(limit);
            position.queued = queued.last().map_or(seen, |row| Some(row.seq));
            rows.extend(queued);
            if left > 0 {
                more = true;
            } else {
                let room = limit - rows.len();
                if room == 0 {
                    more = true;
                } else {
                    query.limit = i64::try_from(room).unwrap_or(i64::MAX);
                    let processed = app.store.event_list(&query).await?;
                    position.processed = processed
                        .rows
                        .last()
                        .map_or(position.processed, |row| Some(row.seq));
                    more = processed.more;
                    rows.extend(processed.rows);
                }
            }
        }
    }
    let next_page = more.then(|| {
        encode_cursor(&Cursor {
            order,
            processed: position.processed,
            queued: position.queued,
        })
    });
    Ok(json_response(list_text(view, &rows, Some(next_page))))
}

/// `{"data":[...]}` of bodies that are JSON text already.
fn list_text(view: View, rows: &[Row], next_page: Option<Option<String>>) -> String {
    let length: usize = rows.iter().map(|row| row.body.len() + 1).sum();
    let mut text = String::with_capacity(length + 128);
    text.push_str("{\"data\":[");
    for (index, row) in rows.iter().enumerate() {
        if index > 0 {
            text.push(',');
        }
        text.push_str(&view.body(row));
    }
    text.push(']');
    match next_page {
        None => {}
        // Cursors are base64: nothing to escape.
        Some(Some(page)) => {
            text.push_str(",\"next_page\":\"");
            text.push_str(&page);
            text.push('"');
        }
        Some(None) => text.push_str(",\"next_page\":null"),
    }
    text.push('}');
    text
}

/// Lists a session's events.
#[utoipa::path(get, path = "/v1/sessions/{session_id}/events", operation_id = "list_events",
    tag = "events", params(("session_id" = String, Path), ListQuery),
    responses((status = 200, description = "A page of events", body = EventPage)))]
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    Auth(principal): Auth,
    Path(session): Path<SessionId>,
    Query(query): Query<ListQuery>,
) -> Result<Response> {
    let primary = find(&app, principal.workspace, session)
        .await?
        .primary_thread;
    page(&app, session, View::Session { primary }, &query).await
}

/// Sends events to a session, all or none.
#[utoipa::path(post, path = "/v1/sessions/{session_id}/events", operation_id = "send_events",
    tag = "events", params(("session_id" = String, Path)), request_body = SendEvents,
    responses((status = 200, description = "The created events", body = SentEvents)))]
pub(crate) async fn send(
    State(app): State<Arc<App>>,
    Auth(principal): Auth,
    RequestId(request): RequestId,
    Path(session): Path<SessionId>,
    NoQuery: NoQuery,
    Json(body): Json<SendEvents>,
) -> Result<Response> {
    let events = match parse_events(body.events) {
        Ok(events) => events,
        Err(error) => {
            // An unknown session is 404 whatever is sent to it.
            find(&app, principal.workspace, session).await?;
            return Err(error.into());
        }
    };
    let Sent { primary, rows } = app
        .engine
        .session_send(
            principal.workspace,
            session,
            events,
            &principal.actor(&request),
        )
        .await
        .map_err(append_error(session))?;
    Ok(json_response(list_text(
        View::Session { primary },
        &rows,
        None,
    )))
}
