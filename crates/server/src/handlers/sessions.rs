//! `/v1/sessions`: running conversations.

use std::sync::Arc;

use axum::extract::State;
use selfsame_engine::{NewSessionRequest, SessionEdit, Status};
use selfsame_net::Hosts;
use selfsame_store::{
    AppendError, Cold, CreatedKey, SESSION_SKILL_BLOB_KEY, SessionQuery, SessionRecord, SkillMount,
    StoreError,
};
use selfsame_types::{
    ApiError, EnvironmentId, Order, SessionId, Timestamp, TwoWayPage, WorkspaceId,
    agent::AgentSnapshot,
    environment::{Environment, EnvironmentConfig, Networking},
    model::ModelConfig,
    page::{check_limit, decode_cursor, encode_cursor},
    session::{
        CreateSession, DeletedSession, ListSessions, NewResource, Session, SessionDeletedType,
        SessionFields, SessionStatus, SessionType, SessionView, UpdateSession, resolve_agent,
    },
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use url::Url;

use crate::{
    app::App,
    error::{Error, Result},
    extract::{Auth, Json, NoQuery, Path, Query, RequestId},
    handlers::{skills, vaults},
};

/// Most skills of a session, over all its agents.
const MAX_SKILLS: usize = 500;

pub(crate) fn not_found(id: SessionId) -> Error {
    ApiError::not_found("Session", id).into()
}

/// What the engine's answer means for a client.
pub(crate) fn append_error(id: SessionId) -> impl FnOnce(AppendError) -> Error {
    move |error| match error {
        AppendError::NotFound => not_found(id),
        AppendError::Refused(error) => error.into(),
        AppendError::Store(error) => error.into(),
    }
}

/// The session object of a record.
pub(crate) fn render(record: SessionRecord) -> Result<Session> {
    let id = record.id;
    let unreadable =
        |column: &'static str| move |source| StoreError::corrupt("sessions", column, id)(source);
    let agent: AgentSnapshot = serde_json::from_str(&record.agent).map_err(unreadable("agent"))?;
    let view: SessionView = serde_json::from_str(&record.view).map_err(unreadable("view"))?;
    let status = SessionStatus::parse(&record.status)
        .ok_or_else(|| Error::internal(format!("session {id} has status {}", record.status)))?;
    Ok(Session {
        r#type: SessionType,
        id,
        status,
        agent,
        environment_id: record.environment_id,
        title: record.title,
        metadata: serde_json::from_str(&record.metadata).map_err(unreadable("metadata"))?,
        resources: serde_json::from_str(&record.resources).map_err(unreadable("resources"))?,
        vault_ids: record.vault_ids,
        outcome_evaluations: view.outcome_evaluations.clone(),
        stats: view.stats(record.created_at, record.now),
        usage: view.usage(record.now),
        budget: None,
        deployment_id: None,
        created_at: record.created_at,
        updated_at: record.updated_at,
        archived_at: record.archived_at,
    })
}

/// One session of the caller's, or 404.
pub(crate) async fn find(
    app: &App,
    workspace: WorkspaceId,
    id: SessionId,
) -> Result<SessionRecord> {
    app.store
        .session_get(workspace, id)
        .await?
        .ok_or_else(|| not_found(id))
}

/// Creates a session; with `initial_events` its first turn begins at once.
#[utoipa::path(post, path = "/v1/sessions", operation_id = "create_session", tag = "sessions",
    request_body = CreateSession,
    responses((status = 200, description = "The session", body = Session)))]
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    Auth(principal): Auth,
    RequestId(request): RequestId,
    NoQuery: NoQuery,
    Json(body): Json<CreateSession>,
) -> Result<Json<Session>> {
    let new = body.check()?;
    let parts = app
        .store
        .session_parts(
            principal.workspace,
            new.agent_id,
            new.agent_version,
            new.environment_id,
        )
        .await?;
    let agent = parts.agent.ok_or_else(|| match new.agent_version {
        None => ApiError::not_found("Agent", new.agent_id),
        Some(version) => ApiError::not_found(
            "Agent version",
            format_args!("{} version {version}", new.agent_id),
        ),
    })?;
    let references = agent.references();
    let members = app.store.agent_members(principal.workspace, &references);
    let mut agent = resolve_agent(&agent, new.overrides, &members.await?)?;
    check_models(&app, &agent)?;
    let environment = parts.environment.ok_or_else(|| {
        ApiError::not_found("Environment", new.environment_id).with_code("environment_not_found")
    })?;
    check_environment(&app, &environment)?;
    check_hosts(&environment, &agent)?;
    check_resources(&app, &environment, &new.resources)?;
    vaults::check_all(&app, principal.workspace, &new.vault_ids).await?;
    let skills = settle_skills(&app, principal.workspace, &mut agent).await?;
    let request = NewSessionRequest {
        workspace: principal.workspace,
        created_at: parts.now,
        agent,
        environment_id: environment.id,
        environment: serde_json::to_string(&environment.config).map_err(Error::internal)?,
        title: new.title,
        metadata: serde_json::to_string(&new.metadata).map_err(Error::internal)?,
        resources: new.resources,
        events: new.initial_events,
        skills,
        vault_ids: new.vault_ids,
        actor: principal.actor(&request),
    };
    let record = match app.engine.session_create(request).await {
        Ok(record) => record,
        // Archived or deleted since we looked.
        Err(AppendError::NotFound) => {
            let error = ApiError::not_found("Environment", environment.id);
            return Err(error.with_code("environment_not_found").into());
        }
        Err(AppendError::Refused(error)) => return Err(error.into()),
        // Deleted since we looked.
        Err(AppendError::Store(fault)) if fault.constraint() == Some(SESSION_SKILL_BLOB_KEY) => {
            let error = ApiError::invalid(
                "agent.skills: a skill was deleted while the session was being created",
            );
            return Err(error.with_code("skill_not_found").into());
        }
        Err(AppendError::Store(error)) => return Err(error.into()),
    };
    Ok(Json(render(record)?))
}

/// The models of an agent and of its members are models of this server.
fn check_models(app: &App, agent: &AgentSnapshot) -> Result<(), ApiError> {
    let models = app.engine.models();
    models.check(&agent.spec.model)?;
    let Some(multiagent) = &agent.multiagent else {
        return Ok(());
    };
    let members = multiagent.agents();
    let members = members.into_iter().map(|member| &member.spec.model);
    let advisor = multiagent.advisor().map(ModelConfig::of);
    for model in members.chain(&advisor) {
        models
            .check(model)
            .map_err(|error| error.under("agent.multiagent"))?;
    }
    Ok(())
}

/// An agent, or a member of its, whose MCP servers an environment keeps out.
fn check_hosts(environment: &Environment, agent: &AgentSnapshot) -> Result<(), ApiError> {
    let EnvironmentConfig::Cloud(cloud) = &environment.config else {
        return Ok(());
    };
    let Networking::Limited(limited) = &cloud.networking else {
        return Ok(());
    };
    let specs = agent.specs().into_iter().enumerate();
    let servers = specs.flat_map(|(index, spec)| {
        let servers = spec.mcp_servers.iter();
        servers.map(move |server| ((index > 0).then_some(&spec.name), server))
    });
    let allowed = Hosts::parse(&limited.allowed_hosts).unwrap_or_default();
    for (member, server) in servers.filter(|_| !limited.allow_mcp_servers) {
        let url = Url::parse(&server.url).ok();
        let host = url.as_ref().and_then(Url::host_str).unwrap_or_default();
        if !allowed.covers(host) {
            let member = member.map_or(String::new(), |name| format!(" of its member `{name}`"));
            return Err(ApiError::invalid(format!(
                "agent: the MCP server `{}`{member} is at `{host}`, which environment {} does not allow; \
                 add the host to `allowed_hosts`, or set `allow_mcp_servers`",
                server.name, environment.id
            )));
        }
    }
    Ok(())
}

/// Settles which versions of their skills an agent and its members use. Answers what the session is to
/// keep of them.
async fn settle_skills(
    app: &App,
    workspace: WorkspaceId,
    agent: &mut AgentSnapshot,
) -> Result<Vec<SkillMount>> {
    let count: usize = agent.specs().iter().map(|spec| spec.skills.len()).sum();
    if count > MAX_SKILLS {
        return Err(ApiError::invalid(format!(
            "agent: it and its members have {count} skills together; a session has at most {MAX_SKILLS}"
        ))
        .into());
    }
    let mut specs = agent.specs_mut();
    let lists: Vec<_> = specs
        .iter()
        .enumerate()
        .map(|(index, spec)| {
            let at = match index {
                0 => "agent.skills".to_owned(),
                _ => format!("agent: skills of its member `{}`", spec.name),
            };
            (at, spec.skills.as_slice())
        })
        .collect();
    let resolved = skills::resolve_lists(app, workspace, &lists).await??;
    let mut mounts: Vec<SkillMount> = Vec::with_capacity(resolved.len());
    let all = specs.iter_mut().flat_map(|spec| &mut spec.skills);
    for (skill, resolved) in all.zip(resolved) {
        skill.version = resolved.version;
        // Listed twice is mounted once.
        let new = resolved.mount;
        if mounts
            .iter()
            .all(|known| known.version_id != new.version_id)
        {
            mounts.push(new);
        }
    }
    Ok(mounts)
}

fn check_environment(app: &App, environment: &Environment) -> Result<(), ApiError> {
    if environment.archived_at.is_some() {
        return Err(ApiError::invalid(format!(
            "environment_id: the environment is archived: {}; create a session with another one",
            environment.id
        ))
        .with_code("environment_archived"));
    }
    match environment.config {
        EnvironmentConfig::Cloud(ref cloud)
            if !cloud.packages.is_empty() && !app.engine.installs_packages() =>
        {
            Err(ApiError::not_implemented(format!(
                "environment_id: {} lists packages, and this server runs its sandboxes where none can \
                 be installed; use an environment without `packages`, or a server with Docker",
                environment.id
            )))
        }
        EnvironmentConfig::Cloud(_) => Ok(()),
        EnvironmentConfig::SelfHosted(_) => Err(ApiError::not_implemented(format!(
            "environment_id: {} is a self-hosted environment, and this server does not offer \
             workers for those yet; use one of type `cloud`",
            environment.id
        ))),
    }
}

/// What only the server knows of a session's resources: which hosts it clones from, and that a self-hosted
/// environment mounts nothing.
fn check_resources(
    app: &App,
    environment: &Environment,
    resources: &[NewResource],
) -> Result<(), ApiError> {
    if !resources.is_empty() && matches!(environment.config, EnvironmentConfig::SelfHosted(_)) {
        return Err(self_hosted(environment.id));
    }
    for (index, resource) in resources.iter().enumerate() {
        let NewResource::Repository(repository) = resource else {
            continue;
        };
        let hosts = &app.config.repositories.hosts;
        if !hosts.contains(&repository.host) {
            return Err(ApiError::invalid(format!(
                "resources[{index}].url: this server clones from {} only",
                hosts.join(", ")
            )));
        }
    }
    Ok(())
}

fn self_hosted(environment: EnvironmentId) -> ApiError {
    ApiError::invalid(format!(
        "Environment {environment} is a self-hosted environment. Files and repositories in `resources` are \
         not supported with self-hosted environments."
    ))
}

/// The refusal of a resource, when a session's environment mounts none.
pub(crate) fn is_self_hosted(record: &SessionRecord) -> Result<Option<ApiError>> {
    let config: EnvironmentConfig = serde_json::from_str(&record.environment)
        .map_err(StoreError::corrupt("sessions", "environment", record.id))?;
    Ok(matches!(config, EnvironmentConfig::SelfHosted(_))
        .then(|| self_hosted(record.environment_id)))
}

/// A place in the list and the way through it.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Cursor {
    /// Of the list: `order` of the request the cursor came from.
    order: Order,
    /// Towards the beginning of the list.
    back: bool,
    at: i64,
    id: SessionId,
}

impl Cursor {
    fn of(record: &SessionRecord, order: Order, back: bool) -> String {
        encode_cursor(&Self {
            order,
            back,
            at: record.created_at.as_micros(),
            id: record.id,
        })
    }

    fn key(self) -> CreatedKey {
        CreatedKey {
            created_at: Timestamp::from_micros(self.at).storable(),
            id: self.id,
        }
    }
}

fn reversed(order: Order) -> Order {
    match order {
        Order::Asc => Order::Desc,
        Order::Desc => Order::Asc,
    }
}

/// Lists sessions, newest first unless `order` says otherwise. Pages go both ways.
#[utoipa::path(get, path = "/v1/sessions", operation_id = "list_sessions", tag = "sessions",
    params(ListSessions),
    responses((status = 200, description = "A page of sessions", body = TwoWayPage<Session>)))]
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    Auth(principal): Auth,
    Query(query): Query<ListSessions>,
) -> Result<Json<TwoWayPage<Session>>> {
    query.validate()?;
    let limit = check_limit(query.limit, 20, 1000)?;
    let created: Vec<_> = [
        (">", query.created_after),
        (">=", query.created_from),
        ("<", query.created_before),
        ("<=", query.created_until),
    ]
    .into_iter()
    .filter_map(|(comparison, at)| at.map(|at| (comparison, at.storable())))
    .collect();
    let cursor: Option<Cursor> = query.page.as_deref().map(decode_cursor).transpose()?;
    let order = query.order.unwrap_or_default();
    if let Some(cursor) = cursor {
        check_cursor(cursor, order, query.order.is_some(), &created)?;
    }
    // Filters that match nothing, because nothing has these here.
    let order = cursor.map_or(order, |cursor| cursor.order);
    if query.deployment_id.is_some() || query.memory_store_id.is_some() {
        return Ok(Json(TwoWayPage {
            data: Vec::new(),
            next_page: None,
            prev_page: None,
        }));
    }
    let back = cursor.is_some_and(|cursor| cursor.back);
    let filter = SessionQuery {
        workspace: principal.workspace,
        agent: query.agent_id,
        agent_version: query
            .agent_version
            .map(|v| i32::try_from(v).unwrap_or(i32::MAX)),
        created,
        statuses: query
            .statuses
            .iter()
            .map(|status| status.as_str())
            .collect(),
        include_archived: query.include_archived.unwrap_or(false),
        order: if back { reversed(order) } else { order },
        after: cursor.map(Cursor::key),
        limit: i64::try_from(limit).unwrap_or(i64::MAX),
    };
    let (mut records, more) = app.store.session_list(&filter).await?;
    if back {
        records.reverse();
    }
    // Towards where we came from there is at least the page we came from.
    let (has_next, has_prev) = if back {
        (true, more)
    } else {
        (more, cursor.is_some() && !records.is_empty())
    };
    let next_page = records
        .last()
        .filter(|_| has_next)
        .map(|r| Cursor::of(r, order, false));
    let prev_page = records
        .first()
        .filter(|_| has_prev)
        .map(|r| Cursor::of(r, order, true));
    let data = records
        .into_iter()
        .map(render)
        .collect::<Result<Vec<_>>>()?;
    Ok(Json(TwoWayPage {
        data,
        next_page,
        prev_page,
    }))
}

fn check_cursor(
    cursor: Cursor,
    order: Order,
    explicit: bool,
    created: &[(&'static str, Timestamp)],
) -> Result<(), ApiError> {
    if explicit && cursor.order != order {
        return Err(ApiError::invalid(
            "page: the cursor comes from a list with another `order`; start again without `page`",
        ));
    }
    let at = cursor.key().created_at;
    let inside = created.iter().all(|(comparison, bound)| match *comparison {
        ">" => at > *bound,
        ">=" => at >= *bound,
        "<" => at < *bound,
        _ => at <= *bound,
    });
    if inside {
        return Ok(());
    }
    Err(ApiError::invalid(
        "page: the `created_at` bounds exclude the cursor's position; start again without `page`",
    ))
}

/// Retrieves a session.
#[utoipa::path(get, path = "/v1/sessions/{session_id}", operation_id = "get_session",
    tag = "sessions", params(("session_id" = String, Path)),
    responses((status = 200, description = "The session", body = Session)))]
pub(crate) async fn get(
    State(app): State<Arc<App>>,
    Auth(principal): Auth,
    Path(id): Path<SessionId>,
    NoQuery: NoQuery,
) -> Result<Json<Session>> {
    Ok(Json(render(find(&app, principal.workspace, id).await?)?))
}

/// Updates a session's title, metadata, or its agent's tools.
#[utoipa::path(post, path = "/v1/sessions/{session_id}", operation_id = "update_session",
    tag = "sessions", params(("session_id" = String, Path)), request_body = UpdateSession,
    responses((status = 200, description = "The session", body = Session)))]
pub(crate) async fn update(
    State(app): State<Arc<App>>,
    Auth(principal): Auth,
    RequestId(request): RequestId,
    Path(id): Path<SessionId>,
    NoQuery: NoQuery,
    Json(body): Json<UpdateSession>,
) -> Result<Json<Session>> {
    let actor = principal.actor(&request);
    app.engine
        .session_edit(principal.workspace, id, &actor, move |cold, status| {
            edit(id, cold, status, body)
        })
        .await
        .map_err(append_error(id))?;
    Ok(Json(render(find(&app, principal.workspace, id).await?)?))
}

fn edit(
    id: SessionId,
    cold: &Cold,
    status: Status,
    body: UpdateSession,
) -> Result<Option<SessionEdit>, ApiError> {
    if body.names_agent() && status != Status::Idle {
        return Err(ApiError::invalid(format!(
            "agent: session {id} is {}; its agent can only be changed while it is idle: send \
             `user.interrupt`, wait for `session.status_idle`, then try again",
            status.as_str()
        )));
    }
    let unreadable = |error: serde_json::Error| {
        tracing::error!(session = %id, %error, "a stored session cannot be read");
        ApiError::internal()
    };
    let current = SessionFields {
        title: cold.title.clone(),
        metadata: serde_json::from_str(&cold.metadata).map_err(unreadable)?,
        agent: serde_json::from_str(&cold.agent).map_err(unreadable)?,
    };
    let next = body.apply(&current)?;
    let mut changed = serde_json::Map::new();
    if next.agent != current.agent {
        changed.insert("agent".to_owned(), json!(next.agent));
    }
    if next.metadata != current.metadata {
        changed.insert("metadata".to_owned(), json!(next.metadata));
    }
    if next.title != current.title {
        changed.insert("title".to_owned(), json!(next.title));
    }
    if changed.is_empty() {
        return Ok(None);
    }
    Ok(Some(SessionEdit {
        title: next.title,
        metadata: serde_json::to_string(&next.metadata).map_err(unreadable)?,
        agent: serde_json::to_string(&next.agent).map_err(unreadable)?,
        changed: selfsame_types::event::fields(&changed),
    }))
}

/// Deletes a session with its events and its sandbox.
#[utoipa::path(delete, path = "/v1/sessions/{session_id}", operation_id = "delete_session",
    tag = "sessions", params(("session_id" = String, Path)),
    responses((status = 200, description = "It is deleted", body = DeletedSession)))]
pub(crate) async fn delete(
    State(app): State<Arc<App>>,
    Auth(principal): Auth,
    RequestId(request): RequestId,
    Path(id): Path<SessionId>,
    NoQuery: NoQuery,
) -> Result<Json<DeletedSession>> {
    let actor = principal.actor(&request);
    app.engine
        .session_delete(principal.workspace, id, &actor)
        .await
        .map_err(append_error(id))?;
    Ok(Json(DeletedSession {
        id,
        r#type: SessionDeletedType,
    }))
}

/// Archives a session for good: it can be read and deleted, nothing else.
#[utoipa::path(post, path = "/v1/sessions/{session_id}/archive", operation_id = "archive_session",
    tag = "sessions", params(("session_id" = String, Path)),
    responses((status = 200, description = "The session", body = Session)))]
pub(crate) async fn archive(
    State(app): State<Arc<App>>,
    Auth(principal): Auth,
    RequestId(request): RequestId,
    Path(id): Path<SessionId>,
    NoQuery: NoQuery,
) -> Result<Json<Session>> {
    let actor = principal.actor(&request);
    app.engine
        .session_archive(principal.workspace, id, &actor)
        .await
        .map_err(append_error(id))?;
    Ok(Json(render(find(&app, principal.workspace, id).await?)?))
}
