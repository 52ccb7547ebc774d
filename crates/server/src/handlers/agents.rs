//! `/v1/agents`: saved, versioned configurations.

use std::sync::Arc;

use axum::extract::State;
use selfsame_store::AgentFilter;
use selfsame_types::{
    AgentId, ApiError, Page, Position, Timestamp,
    agent::{Agent, AgentConfig, CreateAgent, UpdateAgent},
    model::ModelConfig,
    multiagent::Multiagent,
    page::{check_limit, decode_cursor, encode_cursor},
};
use serde::{Deserialize, Serialize};

use crate::{
    app::App,
    error::{Error, Result},
    extract::{Auth, Json, NoQuery, Path, Query},
    handlers::skills,
};

/// The name of the list in its cursors.
const LIST: &str = "agents";

fn not_found(id: AgentId) -> ApiError {
    ApiError::not_found("Agent", id)
}

/// Creates an agent: version 1.
#[utoipa::path(post, path = "/v1/agents", operation_id = "create_agent", tag = "agents",
    request_body = CreateAgent,
    responses((status = 200, description = "The agent", body = Agent)))]
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    Auth(principal): Auth,
    NoQuery: NoQuery,
    Json(body): Json<CreateAgent>,
) -> Result<Json<Agent>> {
    let id = AgentId::new();
    let workspace = principal.workspace;
    let references = body.references(id);
    let members = app.store.agent_members(workspace, &references).await?;
    let config = body.resolve(id, &members)?;
    check_models(&app, &config)?;
    skills::resolve(&app, workspace, "skills", &config.spec.skills).await??;
    let agent = app.store.agent_create(workspace, id, config).await?;
    Ok(Json(agent))
}

/// The models of an agent are models of this server. Those of its members were checked when they were
/// saved.
fn check_models(app: &App, config: &AgentConfig) -> Result<(), ApiError> {
    let models = app.engine.models();
    models.check(&config.spec.model)?;
    match config.multiagent.as_ref().and_then(Multiagent::advisor) {
        Some(advisor) => models
            .check(&ModelConfig::of(advisor))
            .map_err(|error| error.under("multiagent.advisor")),
        None => Ok(()),
    }
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// Created at this time or later.
    #[serde(rename = "created_at[gte]")]
    #[param(rename = "created_at[gte]", value_type = Option<String>, format = DateTime)]
    created_from: Option<Timestamp>,
    /// Created at this time or earlier.
    #[serde(rename = "created_at[lte]")]
    #[param(rename = "created_at[lte]", value_type = Option<String>, format = DateTime)]
    created_until: Option<Timestamp>,
    /// Archived agents, too.
    include_archived: Option<bool>,
    /// Page size.
    #[param(minimum = 1, maximum = 100, default = 20)]
    limit: Option<i64>,
    /// A `next_page` of an earlier answer.
    page: Option<String>,
}

/// Lists agents at their latest versions, newest agent first.
#[utoipa::path(get, path = "/v1/agents", operation_id = "list_agents", tag = "agents",
    params(ListQuery),
    responses((status = 200, description = "A page of agents", body = Page<Agent>)))]
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    Auth(principal): Auth,
    Query(query): Query<ListQuery>,
) -> Result<Json<Page<Agent>>> {
    let limit = check_limit(query.limit, 20, 100)?;
    let after = match &query.page {
        None => Position::NEWEST,
        Some(page) => Position::from_cursor(LIST, page)?,
    };
    let filter = AgentFilter {
        include_archived: query.include_archived.unwrap_or(false),
        created_from: query.created_from,
        created_until: query.created_until,
        after,
        limit: limit + 1,
    };
    let agents = app.store.agent_list(principal.workspace, &filter).await?;
    Ok(Json(Page::cut(agents, limit, |last| {
        Position {
            created_at: last.created_at,
            id: last.id.0,
        }
        .cursor(LIST)
    })))
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct GetQuery {
    /// Absent: the latest.
    #[param(minimum = 1)]
    version: Option<i64>,
}

/// Retrieves an agent at its latest or an earlier version.
#[utoipa::path(get, path = "/v1/agents/{agent_id}", operation_id = "get_agent", tag = "agents",
    params(("agent_id" = String, Path), GetQuery),
    responses((status = 200, description = "The agent", body = Agent)))]
pub(crate) async fn get(
    State(app): State<Arc<App>>,
    Auth(principal): Auth,
    Path(id): Path<AgentId>,
    Query(query): Query<GetQuery>,
) -> Result<Json<Agent>> {
    if query.version.is_some_and(|version| version < 1) {
        return Err(ApiError::invalid("version: must be 1 or greater").into());
    }
    let agent = app
        .store
        .agent_get(principal.workspace, id, query.version)
        .await?;
    match (agent, query.version) {
        (Some(agent), _) => Ok(Json(agent)),
        (None, None) => Err(not_found(id).into()),
        (None, Some(version)) => {
            Err(ApiError::not_found("Agent", format_args!("{id}` at version `{version}")).into())
        }
    }
}

/// Saves a new version of an agent, unless nothing changes.
#[utoipa::path(post, path = "/v1/agents/{agent_id}", operation_id = "update_agent", tag = "agents",
    params(("agent_id" = String, Path)),
    request_body = UpdateAgent,
    responses((status = 200, description = "The agent as it is now", body = Agent)))]
pub(crate) async fn update(
    State(app): State<Arc<App>>,
    Auth(principal): Auth,
    Path(id): Path<AgentId>,
    NoQuery: NoQuery,
    Json(body): Json<UpdateAgent>,
) -> Result<Json<Agent>> {
    // Looked up before the agent is locked, and only told of when there is such an agent.
    let skills = body.new_skills();
    let skills = skills::resolve(&app, principal.workspace, "skills", &skills).await?;
    app.store
        .agent_update(
            principal.workspace,
            id,
            |agent| body.references(agent),
            |agent, members| {
                let changed = body.change(agent, members)?;
                check_models(&app, &changed)?;
                skills?;
                Ok::<_, Error>(changed)
            },
        )
        .await?
        .map(Json)
        .ok_or_else(|| not_found(id).into())
}

/// Archives an agent for good. Its sessions go on; new ones are refused.
#[utoipa::path(post, path = "/v1/agents/{agent_id}/archive", operation_id = "archive_agent",
    tag = "agents",
    params(("agent_id" = String, Path)),
    responses((status = 200, description = "The archived agent", body = Agent)))]
pub(crate) async fn archive(
    State(app): State<Arc<App>>,
    Auth(principal): Auth,
    Path(id): Path<AgentId>,
    NoQuery: NoQuery,
) -> Result<Json<Agent>> {
    app.store
        .agent_archive(principal.workspace, id)
        .await?
        .map(Json)
        .ok_or_else(|| not_found(id).into())
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct VersionsQuery {
    /// Page size.
    #[param(minimum = 1, maximum = 100, default = 20)]
    limit: Option<i64>,
    /// A `next_page` of an earlier answer.
    page: Option<String>,
}

/// Where a page of versions begins.
#[derive(Serialize, Deserialize)]
struct VersionCursor {
    below_version: i32,
}

/// Lists the versions of an agent, newest first.
#[utoipa::path(get, path = "/v1/agents/{agent_id}/versions", operation_id = "list_agent_versions",
    tag = "agents",
    params(("agent_id" = String, Path), VersionsQuery),
    responses((status = 200, description = "A page of versions", body = Page<Agent>)))]
pub(crate) async fn versions(
    State(app): State<Arc<App>>,
    Auth(principal): Auth,
    Path(id): Path<AgentId>,
    Query(query): Query<VersionsQuery>,
) -> Result<Json<Page<Agent>>> {
    let limit = check_limit(query.limit, 20, 100)?;
    let below = match &query.page {
        None => None,
        Some(page) => Some(decode_cursor::<VersionCursor>(page)?.below_version),
    };
    let versions = app
        .store
        .agent_versions(principal.workspace, id, below, limit + 1)
        .await?
        .ok_or_else(|| not_found(id))?;
    Ok(Json(Page::cut(versions, limit, |last| {
        encode_cursor(&VersionCursor {
            below_version: last.version,
        })
    })))
}

#[cfg(test)]
mod tests;
