//! `/v1/webhook_endpoints/{id}/deliveries`: what was sent to an endpoint, and sending it again.

use std::sync::Arc;

use axum::extract::State;
use selfsame_store::DeliveryFilter;
use selfsame_types::{
    ApiError, Page, Position, WebhookEndpointId, WebhookEventId,
    page::check_limit,
    webhook::{RedeliverWebhooks, RedeliveredWebhooks, WebhookDelivery, WebhookDeliveryStatus},
};
use serde::Deserialize;

use super::{enabled, find, not_found};
use crate::{
    app::App,
    error::Result,
    extract::{Auth, Json, NoQuery, Path, Query},
};

/// The name of the list in its cursors.
const LIST: &str = "webhook_deliveries";

fn no_delivery(id: WebhookEventId) -> ApiError {
    ApiError::not_found("Webhook delivery", id)
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// Only deliveries in one of these states.
    #[serde(default, rename = "statuses[]")]
    #[param(rename = "statuses[]", inline)]
    statuses: Vec<WebhookDeliveryStatus>,
    /// Page size.
    #[param(minimum = 1, maximum = 100, default = 20)]
    limit: Option<i64>,
    /// A `next_page` of an earlier answer.
    page: Option<String>,
}

/// Lists the deliveries to a webhook endpoint, newest event first, with what came of their attempts.
#[utoipa::path(get, path = "/v1/webhook_endpoints/{webhook_endpoint_id}/deliveries",
    operation_id = "list_webhook_deliveries", tag = "webhooks",
    params(("webhook_endpoint_id" = String, Path), ListQuery),
    responses((status = 200, description = "A page of deliveries", body = Page<WebhookDelivery>)))]
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    Auth(principal): Auth,
    Path(id): Path<WebhookEndpointId>,
    Query(query): Query<ListQuery>,
) -> Result<Json<Page<WebhookDelivery>>> {
    let limit = check_limit(query.limit, 20, 100)?;
    let before = match &query.page {
        None => None,
        Some(page) => Some(WebhookEventId(Position::from_cursor(LIST, page)?.id)),
    };
    let filter = DeliveryFilter {
        statuses: query.statuses,
        before,
        limit: limit + 1,
    };
    let rows = app
        .store
        .webhook_delivery_list(principal.workspace, id, &filter)
        .await?
        .ok_or_else(|| not_found(id))?;
    Ok(Json(Page::cut(rows, limit, |last| {
        let (created_at, id) = (last.created_at, last.id.0);
        Position { created_at, id }.cursor(LIST)
    })))
}

/// Retrieves one delivery, by the id of its event.
#[utoipa::path(get,
    path = "/v1/webhook_endpoints/{webhook_endpoint_id}/deliveries/{webhook_event_id}",
    operation_id = "get_webhook_delivery", tag = "webhooks",
    params(("webhook_endpoint_id" = String, Path), ("webhook_event_id" = String, Path)),
    responses((status = 200, description = "The delivery", body = WebhookDelivery)))]
pub(crate) async fn get(
    State(app): State<Arc<App>>,
    Auth(principal): Auth,
    Path((id, event)): Path<(WebhookEndpointId, WebhookEventId)>,
    NoQuery: NoQuery,
) -> Result<Json<WebhookDelivery>> {
    let found = app
        .store
        .webhook_delivery_get(principal.workspace, id, event)
        .await?;
    found.map(Json).ok_or_else(|| no_delivery(event).into())
}

/// Begins a delivery anew, with as many attempts as the first time and the same `webhook-id`. One that is
/// under way at the moment goes on as it is.
#[utoipa::path(post,
    path = "/v1/webhook_endpoints/{webhook_endpoint_id}/deliveries/{webhook_event_id}/redeliver",
    operation_id = "redeliver_webhook", tag = "webhooks",
    params(("webhook_endpoint_id" = String, Path), ("webhook_event_id" = String, Path)),
    responses((status = 200, description = "The delivery", body = WebhookDelivery)))]
pub(crate) async fn redeliver(
    State(app): State<Arc<App>>,
    Auth(principal): Auth,
    Path((id, event)): Path<(WebhookEndpointId, WebhookEventId)>,
    NoQuery: NoQuery,
) -> Result<Json<WebhookDelivery>> {
    enabled(&app, &principal, id).await?;
    let found = app
        .store
        .webhook_redeliver(principal.workspace, id, event)
        .await?;
    found.map(Json).ok_or_else(|| no_delivery(event).into())
}

/// Begins all deliveries of events since a time anew: those that have failed or were canceled, unless other
/// statuses are named.
#[utoipa::path(post, path = "/v1/webhook_endpoints/{webhook_endpoint_id}/redeliver",
    operation_id = "redeliver_webhooks", tag = "webhooks",
    params(("webhook_endpoint_id" = String, Path)),
    request_body = RedeliverWebhooks,
    responses((status = 200, description = "How many there are", body = RedeliveredWebhooks)))]
pub(crate) async fn redeliver_since(
    State(app): State<Arc<App>>,
    Auth(principal): Auth,
    Path(id): Path<WebhookEndpointId>,
    NoQuery: NoQuery,
    Json(body): Json<RedeliverWebhooks>,
) -> Result<Json<RedeliveredWebhooks>> {
    // Before the body is judged: another workspace's endpoint is not there, whatever is asked of it.
    find(&app, &principal, id).await?;
    let statuses = body.statuses()?;
    enabled(&app, &principal, id).await?;
    let redelivered = app
        .store
        .webhook_redeliver_since(principal.workspace, id, body.since, &statuses)
        .await?;
    Ok(Json(RedeliveredWebhooks { redelivered }))
}
