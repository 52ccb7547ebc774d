//! `/v1/sessions/{session_id}/resources`: what a session has mounted.

use std::sync::Arc;

use axum::extract::State;
use selfsame_engine::{ResourceError, read_resource};
use selfsame_types::{
    ApiError, Page, ResourceId, SessionId,
    page::{check_limit, decode_cursor, encode_cursor},
    session::{
        AddResource, DeletedResource, DeletedResourceType, ListResources, SessionResource,
        UpdateResource, check_token,
    },
};
use serde::{Deserialize, Serialize};

use super::sessions::{find, is_self_hosted, not_found};
use crate::{
    app::App,
    error::{Error, Result},
    extract::{Auth, Json, NoQuery, Path, Query, RequestId},
};

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Cursor {
    session: SessionId,
    after: i64,
}

fn no_resource(id: ResourceId) -> Error {
    ApiError::not_found("Session resource", id).into()
}

fn resource_error(session: SessionId, id: ResourceId) -> impl FnOnce(ResourceError) -> Error {
    move |error| match error {
        ResourceError::NoSession => not_found(session),
        ResourceError::NoResource => no_resource(id),
        ResourceError::Refused(error) => error.into(),
        ResourceError::Store(error) => error.into(),
    }
}

/// Lists what a session has mounted, in the order it was added.
#[utoipa::path(get, path = "/v1/sessions/{session_id}/resources",
    operation_id = "list_session_resources", tag = "sessions",
    params(("session_id" = String, Path), ListResources),
    responses((status = 200, description = "A page of resources", body = Page<SessionResource>)))]
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    Auth(principal): Auth,
    Path(session): Path<SessionId>,
    Query(query): Query<ListResources>,
) -> Result<Json<Page<SessionResource>>> {
    let limit = query
        .limit
        .map(|limit| check_limit(Some(limit), 1000, 1000))
        .transpose()?
        .map(|limit| i64::try_from(limit).unwrap_or(i64::MAX));
    let cursor: Option<Cursor> = query.page.as_deref().map(decode_cursor).transpose()?;
    if cursor.is_some_and(|cursor| cursor.session != session) {
        return Err(ApiError::invalid(
            "page: the cursor comes from another session's list; start again without `page`",
        )
        .into());
    }
    find(&app, principal.workspace, session).await?;
    let after = cursor.map_or(0, |cursor| cursor.after);
    let (records, more) = app
        .store
        .resource_list(principal.workspace, session, after, limit)
        .await?;
    let next_page = records.last().filter(|_| more).map(|record| {
        encode_cursor(&Cursor {
            session,
            after: record.position,
        })
    });
    let data = records
        .iter()
        .map(|record| read_resource(record.id, &record.body))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(Json(Page { data, next_page }))
}

/// Adds a file to a session.
#[utoipa::path(post, path = "/v1/sessions/{session_id}/resources",
    operation_id = "add_session_resource", tag = "sessions",
    params(("session_id" = String, Path)), request_body = AddResource,
    responses((status = 200, description = "The resource", body = SessionResource)))]
pub(crate) async fn add(
    State(app): State<Arc<App>>,
    Auth(principal): Auth,
    Path(session): Path<SessionId>,
    NoQuery: NoQuery,
    Json(body): Json<AddResource>,
) -> Result<Json<SessionResource>> {
    let file = body.check()?;
    let record = find(&app, principal.workspace, session).await?;
    if let Some(error) = is_self_hosted(&record)? {
        return Err(error.into());
    }
    let added = app
        .engine
        .resource_add(principal.workspace, session, file)
        .await
        .map_err(resource_error(session, ResourceId::new()))?;
    Ok(Json(added))
}

/// Retrieves a resource of a session.
#[utoipa::path(get, path = "/v1/sessions/{session_id}/resources/{resource_id}",
    operation_id = "get_session_resource", tag = "sessions",
    params(("session_id" = String, Path), ("resource_id" = String, Path)),
    responses((status = 200, description = "The resource", body = SessionResource)))]
pub(crate) async fn get(
    State(app): State<Arc<App>>,
    Auth(principal): Auth,
    Path((session, id)): Path<(SessionId, ResourceId)>,
    NoQuery: NoQuery,
) -> Result<Json<SessionResource>> {
    let record = app
        .store
        .resource_get(principal.workspace, session, id)
        .await?
        .ok_or_else(|| no_resource(id))?;
    Ok(Json(read_resource(id, &record.body)?))
}

/// Replaces the token of a repository.
#[utoipa::path(post, path = "/v1/sessions/{session_id}/resources/{resource_id}",
    operation_id = "update_session_resource", tag = "sessions",
    params(("session_id" = String, Path), ("resource_id" = String, Path)),
    request_body = UpdateResource,
    responses((status = 200, description = "The resource", body = SessionResource)))]
pub(crate) async fn update(
    State(app): State<Arc<App>>,
    Auth(principal): Auth,
    RequestId(request): RequestId,
    Path((session, id)): Path<(SessionId, ResourceId)>,
    NoQuery: NoQuery,
    Json(body): Json<UpdateResource>,
) -> Result<Json<SessionResource>> {
    check_token("authorization_token", &body.authorization_token)?;
    let record = find(&app, principal.workspace, session).await?;
    if record.archived_at.is_some() || record.status == "terminated" {
        return Err(ApiError::invalid(format!(
            "Cannot update a resource of session {session}: it is archived or terminated and can only be \
             read or deleted"
        ))
        .into());
    }
    let actor = principal.actor(&request);
    let updated = app
        .engine
        .resource_rotate(
            principal.workspace,
            session,
            id,
            &body.authorization_token,
            &actor,
        )
        .await
        .map_err(resource_error(session, id))?;
    Ok(Json(updated))
}

/// Removes a file from a session.
#[utoipa::path(delete, path = "/v1/sessions/{session_id}/resources/{resource_id}",
    operation_id = "delete_session_resource", tag = "sessions",
    params(("session_id" = String, Path), ("resource_id" = String, Path)),
    responses((status = 200, description = "It is removed", body = DeletedResource)))]
pub(crate) async fn delete(
    State(app): State<Arc<App>>,
    Auth(principal): Auth,
    Path((session, id)): Path<(SessionId, ResourceId)>,
    NoQuery: NoQuery,
) -> Result<Json<DeletedResource>> {
    app.engine
        .resource_remove(principal.workspace, session, id)
        .await
        .map_err(resource_error(session, id))?;
    Ok(Json(DeletedResource {
        id,
        r#type: DeletedResourceType,
    }))
}
