//! `/v1/sessions/{session_id}/threads`: the conversations inside a session.

use std::sync::Arc;

use axum::{extract::State, response::Response};
use selfsame_store::{StoreError, ThreadRecord};
use selfsame_types::{
    ApiError, Page, SessionId, ThreadId, WorkspaceId,
    page::{check_limit, decode_cursor, encode_cursor},
    session::SessionStatus,
    thread::{Thread, ThreadType, ThreadView},
};
use serde::{Deserialize, Serialize};

use super::{
    events::{self, EventPage},
    sessions::{self, append_error},
    views::View,
};
use crate::{
    app::App,
    error::{Error, Result},
    extract::{Auth, Json, NoQuery, Path, Query, RequestId},
};

fn not_found(id: ThreadId) -> Error {
    ApiError::not_found("Thread", id).into()
}

fn render(record: ThreadRecord) -> Result<Thread> {
    let id = record.id;
    let unreadable = |column: &'static str| {
        move |source| StoreError::corrupt("session_threads", column, id)(source)
    };
    let view: ThreadView = serde_json::from_str(&record.view).map_err(unreadable("view"))?;
    let status = SessionStatus::parse(&record.status)
        .ok_or_else(|| Error::internal(format!("thread {id} has status {}", record.status)))?;
    Ok(Thread {
        r#type: ThreadType,
        id,
        session_id: record.session,
        parent_thread_id: record.parent,
        status,
        agent: serde_json::from_str(&record.agent).map_err(unreadable("agent"))?,
        stats: view.stats(record.created_at, record.now),
        usage: view.usage(record.now),
        workflow_run_id: None,
        created_at: record.created_at,
        updated_at: record.updated_at,
        archived_at: record.archived_at,
    })
}

/// One thread of one of the caller's sessions, or 404.
pub(crate) async fn find(
    app: &App,
    workspace: WorkspaceId,
    session: SessionId,
    thread: ThreadId,
) -> Result<ThreadRecord> {
    sessions::find(app, workspace, session).await?;
    app.store
        .thread_get(session, thread)
        .await?
        .ok_or_else(|| not_found(thread))
}

#[derive(Debug, Clone, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// Any of these.
    #[serde(rename = "statuses[]", default)]
    statuses: Vec<SessionStatus>,
    /// Page size.
    #[param(minimum = 1, maximum = 1000, default = 1000)]
    limit: Option<i64>,
    /// A `next_page` of an earlier answer.
    page: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Cursor {
    thread: i32,
}

/// Lists a session's threads, the primary one first.
#[utoipa::path(get, path = "/v1/sessions/{session_id}/threads", operation_id = "list_threads",
    tag = "threads", params(("session_id" = String, Path), ListQuery),
    responses((status = 200, description = "A page of threads", body = Page<Thread>)))]
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    Auth(principal): Auth,
    Path(session): Path<SessionId>,
    Query(query): Query<ListQuery>,
) -> Result<Json<Page<Thread>>> {
    let limit = check_limit(query.limit, 1000, 1000)?;
    let cursor: Option<Cursor> = query.page.as_deref().map(decode_cursor).transpose()?;
    sessions::find(&app, principal.workspace, session).await?;
    let statuses: Vec<_> = query
        .statuses
        .iter()
        .map(|status| status.as_str())
        .collect();
    let (records, more) = app
        .store
        .thread_list(
            session,
            cursor.map(|cursor| cursor.thread),
            &statuses,
            i64::try_from(limit).unwrap_or(i64::MAX),
        )
        .await?;
    let next_page = records.last().filter(|_| more).map(|last| {
        encode_cursor(&Cursor {
            thread: last.position,
        })
    });
    let data = records
        .into_iter()
        .map(render)
        .collect::<Result<Vec<_>>>()?;
    Ok(Json(Page { data, next_page }))
}

/// Retrieves a thread.
#[utoipa::path(get, path = "/v1/sessions/{session_id}/threads/{thread_id}",
    operation_id = "get_thread", tag = "threads",
    params(("session_id" = String, Path), ("thread_id" = String, Path)),
    responses((status = 200, description = "The thread", body = Thread)))]
pub(crate) async fn get(
    State(app): State<Arc<App>>,
    Auth(principal): Auth,
    Path((session, thread)): Path<(SessionId, ThreadId)>,
    NoQuery: NoQuery,
) -> Result<Json<Thread>> {
    Ok(Json(render(
        find(&app, principal.workspace, session, thread).await?,
    )?))
}

/// Archives a child thread for good: it can be read, nothing else. The primary one lives as long as its
/// session.
#[utoipa::path(post, path = "/v1/sessions/{session_id}/threads/{thread_id}/archive",
    operation_id = "archive_thread", tag = "threads",
    params(("session_id" = String, Path), ("thread_id" = String, Path)),
    responses((status = 200, description = "The thread", body = Thread)))]
pub(crate) async fn archive(
    State(app): State<Arc<App>>,
    Auth(principal): Auth,
    RequestId(request): RequestId,
    Path((session, thread)): Path<(SessionId, ThreadId)>,
    NoQuery: NoQuery,
) -> Result<Json<Thread>> {
    find(&app, principal.workspace, session, thread).await?;
    app.engine
        .thread_archive(
            principal.workspace,
            session,
            thread,
            &principal.actor(&request),
        )
        .await
        .map_err(append_error(session))?;
    Ok(Json(render(
        find(&app, principal.workspace, session, thread).await?,
    )?))
}

#[derive(Debug, Clone, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct EventsQuery {
    /// Page size.
    #[param(minimum = 1, maximum = 1000, default = 1000)]
    limit: Option<i64>,
    /// A `next_page` of an earlier answer.
    page: Option<String>,
}

/// Lists a thread's events, oldest first.
#[utoipa::path(get, path = "/v1/sessions/{session_id}/threads/{thread_id}/events",
    operation_id = "list_thread_events", tag = "threads",
    params(("session_id" = String, Path), ("thread_id" = String, Path), EventsQuery),
    responses((status = 200, description = "A page of events", body = EventPage)))]
pub(crate) async fn events(
    State(app): State<Arc<App>>,
    Auth(principal): Auth,
    Path((session, thread)): Path<(SessionId, ThreadId)>,
    Query(query): Query<EventsQuery>,
) -> Result<Response> {
    let record = find(&app, principal.workspace, session, thread).await?;
    let view = View::thread(thread, record.parent.is_none());
    let query = events::ListQuery::paged(query.limit, query.page);
    events::page(&app, session, view, &query).await
}
