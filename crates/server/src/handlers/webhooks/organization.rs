//! `/v1/organizations/webhooks`: endpoints of the organization, for `anthropic-beta: webhooks-2026-10-07`.
//!
//! They name events of the organization's own, none of which happen on this server yet: what is kept here is
//! kept, and nothing is sent. A key of scope `admin` is needed for all of it, since these endpoints belong to no
//! workspace.

use std::{sync::Arc, time::Duration};

use axum::extract::State;
use secrecy::ExposeSecret as _;
use selfsame_engine::webhooks::new_secret;
use selfsame_store::{EndpointPage, EndpointStart, NewSecret, WebhookOwner};
use selfsame_types::{
    ApiError, Order, Position, WebhookEndpointId,
    page::check_limit,
    webhook::{
        CreateWebhookEndpoint, DeletedWebhookEndpoint, NewWebhookEndpoint, UpdateWebhookEndpoint,
        WebhookEndpoint, WebhookEndpointDeletedType, WebhookSigningSecret,
    },
};
use serde::{Deserialize, Serialize};

use super::{not_found, refusal};
use crate::{
    app::App,
    error::{Error, Result},
    extract::{Auth, Json, NoQuery, Path, Query, RequestId},
};

const ORGANIZATION: WebhookOwner = WebhookOwner::Organization;

/// A page whose cursors are ids.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct WebhookEndpointPage {
    data: Vec<WebhookEndpoint>,
    has_more: bool,
    #[schema(required)]
    first_id: Option<WebhookEndpointId>,
    #[schema(required)]
    last_id: Option<WebhookEndpointId>,
}

/// Creates a webhook endpoint of the organization. The answer holds its signing secret, which is shown this
/// once.
#[utoipa::path(post, path = "/v1/organizations/webhooks",
    operation_id = "create_organization_webhook", tag = "organization",
    request_body = CreateWebhookEndpoint,
    responses((status = 200, description = "The endpoint and its secret",
        body = NewWebhookEndpoint<WebhookEndpoint>)))]
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    Auth(principal): Auth,
    RequestId(request): RequestId,
    NoQuery: NoQuery,
    Json(body): Json<CreateWebhookEndpoint>,
) -> Result<Json<NewWebhookEndpoint<WebhookEndpoint>>> {
    principal.require_admin()?;
    let spec = body.resolve(true)?;
    app.engine.webhooks().config.rules.check(&spec.url)?;
    let secret = new_secret();
    let made = app
        .store
        .webhook_endpoint_create(ORGANIZATION, &spec, &secret, &principal.actor(&request))
        .await
        .map_err(refusal)?;
    Ok(Json(NewWebhookEndpoint {
        endpoint: made.endpoint,
        signing_secret: secret.expose_secret().to_owned(),
    }))
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// The page that starts after this endpoint.
    #[param(value_type = Option<String>)]
    after_id: Option<WebhookEndpointId>,
    /// The first endpoints of the list, as far as they come before this one.
    #[param(value_type = Option<String>)]
    before_id: Option<WebhookEndpointId>,
    /// Page size; 0 means 20.
    #[param(minimum = 0, maximum = 100, default = 0)]
    limit: Option<i64>,
    /// By time of creation.
    #[param(inline)]
    order: Option<Order>,
}

/// Lists webhook endpoints of the organization.
#[utoipa::path(get, path = "/v1/organizations/webhooks",
    operation_id = "list_organization_webhooks", tag = "organization",
    params(ListQuery),
    responses((status = 200, description = "A page of endpoints", body = WebhookEndpointPage)))]
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    Auth(principal): Auth,
    Query(query): Query<ListQuery>,
) -> Result<Json<WebhookEndpointPage>> {
    principal.require_admin()?;
    let limit = query.limit.filter(|limit| *limit != 0);
    let limit = check_limit(limit, 20, 100)?;
    let start = match (query.after_id, query.before_id) {
        (None, None) => EndpointStart::First,
        (Some(id), None) => EndpointStart::After(position(&app, "after_id", id).await?),
        (None, Some(id)) => EndpointStart::Before(position(&app, "before_id", id).await?),
        (Some(_), Some(_)) => {
            return Err(ApiError::invalid("after_id and before_id cannot be used together").into());
        }
    };
    let page = EndpointPage {
        order: query.order.unwrap_or_default(),
        start,
        limit: limit + 1,
    };
    let mut rows = app.store.webhook_endpoint_list(ORGANIZATION, page).await?;
    let has_more = rows.len() > limit;
    rows.truncate(limit);
    let data: Vec<_> = rows.into_iter().map(|row| row.endpoint).collect();
    Ok(Json(WebhookEndpointPage {
        has_more,
        first_id: data.first().map(|endpoint| endpoint.id),
        last_id: data.last().map(|endpoint| endpoint.id),
        data,
    }))
}

/// Where the endpoint of a cursor stands in the list.
async fn position(app: &App, name: &str, id: WebhookEndpointId) -> Result<Position> {
    let found = app.store.webhook_endpoint_get(ORGANIZATION, id).await?;
    let found = found
        .ok_or_else(|| ApiError::invalid(format!("{name}: `{id}` is not in this list")))?
        .endpoint;
    Ok(Position {
        created_at: found.created_at,
        id: found.id.0,
    })
}

/// Retrieves a webhook endpoint of the organization.
#[utoipa::path(get, path = "/v1/organizations/webhooks/{webhook_endpoint_id}",
    operation_id = "get_organization_webhook", tag = "organization",
    params(("webhook_endpoint_id" = String, Path)),
    responses((status = 200, description = "The endpoint", body = WebhookEndpoint)))]
pub(crate) async fn get(
    State(app): State<Arc<App>>,
    Auth(principal): Auth,
    Path(id): Path<WebhookEndpointId>,
    NoQuery: NoQuery,
) -> Result<Json<WebhookEndpoint>> {
    principal.require_admin()?;
    let found = app.store.webhook_endpoint_get(ORGANIZATION, id).await?;
    Ok(Json(found.ok_or_else(|| not_found(id))?.endpoint))
}

/// Changes what is given of a webhook endpoint of the organization.
#[utoipa::path(post, path = "/v1/organizations/webhooks/{webhook_endpoint_id}",
    operation_id = "update_organization_webhook", tag = "organization",
    params(("webhook_endpoint_id" = String, Path)),
    request_body = UpdateWebhookEndpoint,
    responses((status = 200, description = "The endpoint as it is now", body = WebhookEndpoint)))]
pub(crate) async fn update(
    State(app): State<Arc<App>>,
    Auth(principal): Auth,
    Path(id): Path<WebhookEndpointId>,
    RequestId(request): RequestId,
    NoQuery: NoQuery,
    Json(body): Json<UpdateWebhookEndpoint>,
) -> Result<Json<WebhookEndpoint>> {
    principal.require_admin()?;
    let actor = principal.actor(&request);
    let rules = app.engine.webhooks().config.rules.clone();
    let updated = app
        .store
        .webhook_endpoint_update(ORGANIZATION, id, &actor, |endpoint| {
            let (spec, state) = body.change(endpoint, true)?;
            if body.url.is_some() {
                rules.check(&spec.url)?;
            }
            Ok::<_, Error>((spec, state))
        })
        .await?;
    Ok(Json(updated.ok_or_else(|| not_found(id))?.endpoint))
}

/// Deletes a webhook endpoint of the organization.
#[utoipa::path(delete, path = "/v1/organizations/webhooks/{webhook_endpoint_id}",
    operation_id = "delete_organization_webhook", tag = "organization",
    params(("webhook_endpoint_id" = String, Path)),
    responses((status = 200, description = "It is gone", body = DeletedWebhookEndpoint)))]
pub(crate) async fn delete(
    State(app): State<Arc<App>>,
    Auth(principal): Auth,
    Path(id): Path<WebhookEndpointId>,
    RequestId(request): RequestId,
    NoQuery: NoQuery,
) -> Result<Json<DeletedWebhookEndpoint>> {
    principal.require_admin()?;
    let actor = principal.actor(&request);
    if !app
        .store
        .webhook_endpoint_delete(ORGANIZATION, id, &actor)
        .await?
    {
        return Err(not_found(id).into());
    }
    Ok(Json(DeletedWebhookEndpoint {
        id,
        r#type: WebhookEndpointDeletedType,
    }))
}

/// Gives a webhook endpoint of the organization a new signing secret. The old one stops at once.
#[utoipa::path(post,
    path = "/v1/organizations/webhooks/{webhook_endpoint_id}/regenerate_signing_secret",
    operation_id = "regenerate_organization_webhook_signing_secret", tag = "organization",
    params(("webhook_endpoint_id" = String, Path)),
    responses((status = 200, description = "The new secret", body = WebhookSigningSecret)))]
pub(crate) async fn regenerate_signing_secret(
    State(app): State<Arc<App>>,
    Auth(principal): Auth,
    Path(id): Path<WebhookEndpointId>,
    RequestId(request): RequestId,
    NoQuery: NoQuery,
) -> Result<Json<WebhookSigningSecret>> {
    principal.require_admin()?;
    let new = NewSecret {
        secret: new_secret(),
        overlap: Duration::ZERO,
    };
    app.store
        .webhook_secret_rotate(ORGANIZATION, id, &new, &principal.actor(&request))
        .await?
        .ok_or_else(|| not_found(id))?;
    Ok(Json(WebhookSigningSecret {
        signing_secret: new.secret.expose_secret().to_owned(),
    }))
}
