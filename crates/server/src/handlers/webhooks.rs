//! `/v1/webhook_endpoints`: who in a workspace is told of what. The hosted service has no API for these.

pub mod deliveries;
pub mod organization;

use std::{sync::Arc, time::Duration};

use axum::extract::State;
use secrecy::ExposeSecret as _;
use selfsame_engine::webhooks::new_secret;
use selfsame_store::{
    ENDPOINT_LIMIT, EndpointPage, EndpointStart, NewSecret, WebhookOwner, WebhookRefusal,
};
use selfsame_types::{
    ApiError, Order, Page, Position, WebhookEndpointId,
    page::check_limit,
    webhook::{
        CreateWebhookEndpoint, DeletedWebhookEndpoint, NewWebhookEndpoint, RotateWebhookSecret,
        RotatedWebhookSecret, SendTestEvent, UpdateWebhookEndpoint, WebhookDelivery,
        WebhookEndpointDeletedType, WebhookEndpointState, WebhookEvent, WorkspaceWebhookEndpoint,
    },
};
use serde::Deserialize;

use crate::{
    app::{App, Principal},
    error::{Error, Result},
    extract::{Auth, Json, JsonOrNothing, NoQuery, Path, Query, RequestId},
};

/// The name of the list in its cursors.
const LIST: &str = "webhook_endpoints";

pub(super) fn not_found(id: WebhookEndpointId) -> ApiError {
    ApiError::not_found("Webhook endpoint", id)
}

pub(super) fn refusal(refusal: WebhookRefusal) -> Error {
    match refusal {
        WebhookRefusal::Full => ApiError::invalid(format!(
            "There are {ENDPOINT_LIMIT} webhook endpoints already, enabled and disabled ones; delete one first"
        ))
        .into(),
        WebhookRefusal::Store(error) => error.into(),
    }
}

fn of(principal: &Principal) -> WebhookOwner {
    WebhookOwner::Workspace(principal.workspace)
}

/// Creates a webhook endpoint. The answer holds its signing secret, which is shown this once.
#[utoipa::path(post, path = "/v1/webhook_endpoints", operation_id = "create_webhook_endpoint",
    tag = "webhooks",
    request_body = CreateWebhookEndpoint,
    responses((status = 200, description = "The endpoint and its secret",
        body = NewWebhookEndpoint<WorkspaceWebhookEndpoint>)))]
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    Auth(principal): Auth,
    RequestId(request): RequestId,
    NoQuery: NoQuery,
    Json(body): Json<CreateWebhookEndpoint>,
) -> Result<Json<NewWebhookEndpoint<WorkspaceWebhookEndpoint>>> {
    let spec = body.resolve(false)?;
    app.engine.webhooks().config.rules.check(&spec.url)?;
    let secret = new_secret();
    let endpoint = app
        .store
        .webhook_endpoint_create(of(&principal), &spec, &secret, &principal.actor(&request))
        .await
        .map_err(refusal)?;
    Ok(Json(NewWebhookEndpoint {
        endpoint,
        signing_secret: secret.expose_secret().to_owned(),
    }))
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// Page size.
    #[param(minimum = 1, maximum = 100, default = 20)]
    limit: Option<i64>,
    /// A `next_page` of an earlier answer.
    page: Option<String>,
}

/// Lists webhook endpoints, newest first.
#[utoipa::path(get, path = "/v1/webhook_endpoints", operation_id = "list_webhook_endpoints",
    tag = "webhooks",
    params(ListQuery),
    responses((status = 200, description = "A page of endpoints",
        body = Page<WorkspaceWebhookEndpoint>)))]
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    Auth(principal): Auth,
    Query(query): Query<ListQuery>,
) -> Result<Json<Page<WorkspaceWebhookEndpoint>>> {
    let limit = check_limit(query.limit, 20, 100)?;
    let start = match &query.page {
        None => EndpointStart::First,
        Some(page) => EndpointStart::After(Position::from_cursor(LIST, page)?),
    };
    let page = EndpointPage {
        order: Order::Desc,
        start,
        limit: limit + 1,
    };
    let rows = app
        .store
        .webhook_endpoint_list(of(&principal), page)
        .await?;
    Ok(Json(Page::cut(rows, limit, |last| {
        position(last).cursor(LIST)
    })))
}

fn position(row: &WorkspaceWebhookEndpoint) -> Position {
    Position {
        created_at: row.endpoint.created_at,
        id: row.endpoint.id.0,
    }
}

/// Retrieves a webhook endpoint.
#[utoipa::path(get, path = "/v1/webhook_endpoints/{webhook_endpoint_id}",
    operation_id = "get_webhook_endpoint", tag = "webhooks",
    params(("webhook_endpoint_id" = String, Path)),
    responses((status = 200, description = "The endpoint", body = WorkspaceWebhookEndpoint)))]
pub(crate) async fn get(
    State(app): State<Arc<App>>,
    Auth(principal): Auth,
    Path(id): Path<WebhookEndpointId>,
    NoQuery: NoQuery,
) -> Result<Json<WorkspaceWebhookEndpoint>> {
    find(&app, &principal, id).await.map(Json)
}

async fn find(
    app: &App,
    principal: &Principal,
    id: WebhookEndpointId,
) -> Result<WorkspaceWebhookEndpoint> {
    let found = app.store.webhook_endpoint_get(of(principal), id).await?;
    found.ok_or_else(|| not_found(id).into())
}

/// An endpoint that something can be sent to.
async fn enabled(
    app: &App,
    principal: &Principal,
    id: WebhookEndpointId,
) -> Result<WorkspaceWebhookEndpoint> {
    let found = find(app, principal, id).await?;
    match found.endpoint.state {
        WebhookEndpointState::Enabled => Ok(found),
        WebhookEndpointState::Disabled => Err(is_disabled(id).into()),
    }
}

fn is_disabled(id: WebhookEndpointId) -> ApiError {
    ApiError::invalid(format!(
        "Webhook endpoint `{id}` is disabled, and nothing is sent to it: update it with \
         `\"state\": \"enabled\"` first"
    ))
}

/// Changes what is given of a webhook endpoint.
#[utoipa::path(post, path = "/v1/webhook_endpoints/{webhook_endpoint_id}",
    operation_id = "update_webhook_endpoint", tag = "webhooks",
    params(("webhook_endpoint_id" = String, Path)),
    request_body = UpdateWebhookEndpoint,
    responses((status = 200, description = "The endpoint as it is now",
        body = WorkspaceWebhookEndpoint)))]
pub(crate) async fn update(
    State(app): State<Arc<App>>,
    Auth(principal): Auth,
    Path(id): Path<WebhookEndpointId>,
    RequestId(request): RequestId,
    NoQuery: NoQuery,
    Json(body): Json<UpdateWebhookEndpoint>,
) -> Result<Json<WorkspaceWebhookEndpoint>> {
    let actor = principal.actor(&request);
    let rules = app.engine.webhooks().config.rules.clone();
    let updated = app
        .store
        .webhook_endpoint_update(of(&principal), id, &actor, |endpoint| {
            let (spec, state) = body.change(endpoint, false)?;
            if body.url.is_some() {
                rules.check(&spec.url)?;
            }
            Ok::<_, Error>((spec, state))
        })
        .await?;
    updated.map(Json).ok_or_else(|| not_found(id).into())
}

/// Deletes a webhook endpoint and the log of its deliveries. Nothing more is sent to it.
#[utoipa::path(delete, path = "/v1/webhook_endpoints/{webhook_endpoint_id}",
    operation_id = "delete_webhook_endpoint", tag = "webhooks",
    params(("webhook_endpoint_id" = String, Path)),
    responses((status = 200, description = "It is gone", body = DeletedWebhookEndpoint)))]
pub(crate) async fn delete(
    State(app): State<Arc<App>>,
    Auth(principal): Auth,
    Path(id): Path<WebhookEndpointId>,
    RequestId(request): RequestId,
    NoQuery: NoQuery,
) -> Result<Json<DeletedWebhookEndpoint>> {
    let actor = principal.actor(&request);
    if !app
        .store
        .webhook_endpoint_delete(of(&principal), id, &actor)
        .await?
    {
        return Err(not_found(id).into());
    }
    Ok(Json(DeletedWebhookEndpoint {
        id,
        r#type: WebhookEndpointDeletedType,
    }))
}

/// Gives a webhook endpoint a new signing secret. For a while deliveries carry a signature by the old one,
/// too, so that a receiver can change over without losing any.
#[utoipa::path(post,
    path = "/v1/webhook_endpoints/{webhook_endpoint_id}/regenerate_signing_secret",
    operation_id = "regenerate_webhook_signing_secret", tag = "webhooks",
    params(("webhook_endpoint_id" = String, Path)),
    request_body = Option<RotateWebhookSecret>,
    responses((status = 200, description = "The new secret", body = RotatedWebhookSecret)))]
pub(crate) async fn regenerate_signing_secret(
    State(app): State<Arc<App>>,
    Auth(principal): Auth,
    Path(id): Path<WebhookEndpointId>,
    RequestId(request): RequestId,
    NoQuery: NoQuery,
    JsonOrNothing(body): JsonOrNothing<RotateWebhookSecret>,
) -> Result<Json<RotatedWebhookSecret>> {
    body.validate()?;
    let usual = app.engine.webhooks().config.secret_overlap;
    let new = NewSecret {
        secret: new_secret(),
        overlap: body
            .overlap_seconds
            .map_or(usual, |seconds| Duration::from_secs(seconds.into())),
    };
    let previous_valid_until = app
        .store
        .webhook_secret_rotate(of(&principal), id, &new, &principal.actor(&request))
        .await?
        .ok_or_else(|| not_found(id))?;
    Ok(Json(RotatedWebhookSecret {
        signing_secret: new.secret.expose_secret().to_owned(),
        previous_valid_until,
    }))
}

/// Sends an event that has not happened, about something that does not exist, to one webhook endpoint. The
/// log of its deliveries tells how that goes.
#[utoipa::path(post, path = "/v1/webhook_endpoints/{webhook_endpoint_id}/test_event",
    operation_id = "send_webhook_test_event", tag = "webhooks",
    params(("webhook_endpoint_id" = String, Path)),
    request_body = Option<SendTestEvent>,
    responses((status = 200, description = "Its delivery", body = WebhookDelivery)))]
pub(crate) async fn test_event(
    State(app): State<Arc<App>>,
    Auth(principal): Auth,
    Path(id): Path<WebhookEndpointId>,
    NoQuery: NoQuery,
    JsonOrNothing(body): JsonOrNothing<SendTestEvent>,
) -> Result<Json<WebhookDelivery>> {
    let endpoint = enabled(&app, &principal, id).await?.endpoint;
    let event_type = match body.event_type {
        None => endpoint.enabled_events.first().copied(),
        Some(wanted) => endpoint
            .enabled_events
            .iter()
            .copied()
            .find(|each| *each == wanted),
    };
    let event_type = event_type.ok_or_else(|| {
        let known: Vec<_> = endpoint.enabled_events.iter().map(|e| e.as_str()).collect();
        ApiError::invalid(format!(
            "event_type: must be one of the endpoint's `enabled_events`: `{}`",
            known.join("`, `")
        ))
    })?;
    let sent = app
        .store
        .webhook_send_test(principal.workspace, id, &WebhookEvent::sample(event_type))
        .await?;
    // It was enabled a moment ago.
    sent.map(Json).ok_or_else(|| is_disabled(id).into())
}

#[cfg(test)]
mod tests;
