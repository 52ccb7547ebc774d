//! `/v1/environments`: templates for sandboxes.

use std::sync::Arc;

use axum::extract::State;
use selfsame_store::{Actor, Deletion, ENVIRONMENT_NAME_KEY, EnvironmentFilter};
use selfsame_types::{
    ApiError, EnvironmentId, Page, Position,
    environment::{
        CreateEnvironment, DeletedEnvironment, Environment, EnvironmentDeletedType,
        UpdateEnvironment,
    },
    page::check_limit,
};
use serde::Deserialize;

use crate::{
    app::App,
    error::{Error, Result},
    extract::{Auth, Json, NoQuery, Path, Query, RequestId},
};

/// The name of the list in its cursors.
const LIST: &str = "environments";

fn not_found(id: EnvironmentId) -> ApiError {
    ApiError::not_found("Environment", id)
}

/// A taken name is the client's to solve.
fn name_taken(error: Error) -> Error {
    match error {
        Error::Store(fault) if fault.constraint() == Some(ENVIRONMENT_NAME_KEY) => {
            ApiError::conflict(
                "name: another environment has this name; choose another, or archive that one",
            )
            .into()
        }
        error => error,
    }
}

/// Creates an environment.
#[utoipa::path(post, path = "/v1/environments", operation_id = "create_environment",
    tag = "environments",
    request_body = CreateEnvironment,
    responses((status = 200, description = "The environment", body = Environment)))]
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    Auth(principal): Auth,
    NoQuery: NoQuery,
    Json(body): Json<CreateEnvironment>,
) -> Result<Json<Environment>> {
    let spec = body.resolve()?;
    let created = app
        .store
        .environment_create(principal.workspace, spec)
        .await;
    Ok(Json(created.map_err(|fault| name_taken(fault.into()))?))
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// Archived environments, too.
    include_archived: Option<bool>,
    /// Page size.
    #[param(minimum = 1, maximum = 1000, default = 20)]
    limit: Option<i64>,
    /// A `next_page` of an earlier answer.
    page: Option<String>,
}

/// Lists environments, newest first.
#[utoipa::path(get, path = "/v1/environments", operation_id = "list_environments",
    tag = "environments",
    params(ListQuery),
    responses((status = 200, description = "A page of environments", body = Page<Environment>)))]
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    Auth(principal): Auth,
    Query(query): Query<ListQuery>,
) -> Result<Json<Page<Environment>>> {
    let limit = check_limit(query.limit, 20, 1000)?;
    let after = match &query.page {
        None => Position::NEWEST,
        Some(page) => Position::from_cursor(LIST, page)?,
    };
    let filter = EnvironmentFilter {
        include_archived: query.include_archived.unwrap_or(false),
        after,
        limit: limit + 1,
    };
    let rows = app
        .store
        .environment_list(principal.workspace, &filter)
        .await?;
    Ok(Json(Page::cut(rows, limit, |last| {
        Position {
            created_at: last.created_at,
            id: last.id.0,
        }
        .cursor(LIST)
    })))
}

/// Retrieves an environment.
#[utoipa::path(get, path = "/v1/environments/{environment_id}", operation_id = "get_environment",
    tag = "environments",
    params(("environment_id" = String, Path)),
    responses((status = 200, description = "The environment", body = Environment)))]
pub(crate) async fn get(
    State(app): State<Arc<App>>,
    Auth(principal): Auth,
    Path(id): Path<EnvironmentId>,
    NoQuery: NoQuery,
) -> Result<Json<Environment>> {
    app.store
        .environment_get(principal.workspace, id)
        .await?
        .map(Json)
        .ok_or_else(|| not_found(id).into())
}

/// Changes an environment. Sessions that exist keep what they were created with.
#[utoipa::path(post, path = "/v1/environments/{environment_id}",
    operation_id = "update_environment", tag = "environments",
    params(("environment_id" = String, Path)),
    request_body = UpdateEnvironment,
    responses((status = 200, description = "The environment as it is now", body = Environment)))]
pub(crate) async fn update(
    State(app): State<Arc<App>>,
    Auth(principal): Auth,
    Path(id): Path<EnvironmentId>,
    NoQuery: NoQuery,
    Json(body): Json<UpdateEnvironment>,
) -> Result<Json<Environment>> {
    app.store
        .environment_update(principal.workspace, id, |environment| {
            body.change(environment).map_err(Error::from)
        })
        .await
        .map_err(name_taken)?
        .map(Json)
        .ok_or_else(|| not_found(id).into())
}

/// Deletes an environment that no session refers to.
#[utoipa::path(delete, path = "/v1/environments/{environment_id}",
    operation_id = "delete_environment", tag = "environments",
    params(("environment_id" = String, Path)),
    responses((status = 200, description = "It is gone", body = DeletedEnvironment)))]
pub(crate) async fn delete(
    State(app): State<Arc<App>>,
    Auth(principal): Auth,
    Path(id): Path<EnvironmentId>,
    RequestId(request): RequestId,
    NoQuery: NoQuery,
) -> Result<Json<DeletedEnvironment>> {
    let actor = Actor {
        key: Some(principal.key),
        request: Some(request.to_string()),
    };
    match app
        .store
        .environment_delete(principal.workspace, id, &actor)
        .await?
    {
        Deletion::Deleted => Ok(Json(DeletedEnvironment {
            id,
            r#type: EnvironmentDeletedType,
        })),
        Deletion::NotFound => Err(not_found(id).into()),
        Deletion::InUse => Err(ApiError::conflict(format!(
            "environment `{id}` is used by sessions; delete them first, or archive the environment"
        ))
        .into()),
    }
}

/// Archives an environment for good. Its sessions go on; new ones are refused.
#[utoipa::path(post, path = "/v1/environments/{environment_id}/archive",
    operation_id = "archive_environment", tag = "environments",
    params(("environment_id" = String, Path)),
    responses((status = 200, description = "The archived environment", body = Environment)))]
pub(crate) async fn archive(
    State(app): State<Arc<App>>,
    Auth(principal): Auth,
    Path(id): Path<EnvironmentId>,
    NoQuery: NoQuery,
) -> Result<Json<Environment>> {
    app.store
        .environment_archive(principal.workspace, id)
        .await?
        .map(Json)
        .ok_or_else(|| not_found(id).into())
}

#[cfg(test)]
mod tests;
