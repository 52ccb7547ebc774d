//! Endpoints and their secrets.

use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use selfsame_types::{
    Position, Timestamp, WebhookEndpointId, WorkspaceId,
    page::Order,
    webhook::{
        WebhookEndpoint, WebhookEndpointSpec, WebhookEndpointState, WebhookEventType,
        WorkspaceWebhookEndpoint,
    },
};
use sqlx::{PgConnection, PgTransaction};
use uuid::Uuid;

use crate::{Actor, Audit, Store, StoreError, agents::column, keys::audit, leases::interval, time};

/// Most endpoints of a workspace, and of the organization.
pub const ENDPOINT_LIMIT: i64 = 32;

/// Whose endpoints are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WebhookOwner {
    Workspace(WorkspaceId),
    Organization,
}

impl WebhookOwner {
    fn workspace(self) -> Option<WorkspaceId> {
        match self {
            Self::Workspace(workspace) => Some(workspace),
            Self::Organization => None,
        }
    }

    fn column(self) -> Option<Uuid> {
        self.workspace().map(|workspace| workspace.0)
    }
}

/// Why nothing was done to an endpoint.
#[derive(Debug, thiserror::Error)]
pub enum WebhookRefusal {
    /// There are [`ENDPOINT_LIMIT`] already.
    #[error("too many endpoints")]
    Full,
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<sqlx::Error> for WebhookRefusal {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

/// A secret that takes the place of an endpoint's present one.
#[derive(Debug)]
pub struct NewSecret {
    pub secret: SecretString,
    /// For how long the present one goes on signing beside it.
    pub overlap: Duration,
}

/// Where a page of endpoints begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndpointStart {
    First,
    After(Position),
    /// From the first one on, up to this.
    Before(Position),
}

/// Which endpoints a list shows.
#[derive(Debug, Clone, Copy)]
pub struct EndpointPage {
    pub order: Order,
    pub start: EndpointStart,
    /// Most rows.
    pub limit: usize,
}

struct Row {
    id: Uuid,
    url: String,
    name: String,
    description: String,
    enabled_events: Vec<String>,
    state: String,
    disabled_reason: String,
    failing_since: Option<jiff_sqlx::Timestamp>,
    failures: i32,
    created_at: jiff_sqlx::Timestamp,
    updated_at: jiff_sqlx::Timestamp,
}

impl From<Row> for WorkspaceWebhookEndpoint {
    fn from(row: Row) -> Self {
        let state = if row.state == "enabled" {
            WebhookEndpointState::Enabled
        } else {
            WebhookEndpointState::Disabled
        };
        Self {
            endpoint: WebhookEndpoint {
                id: WebhookEndpointId(row.id),
                url: row.url,
                name: row.name,
                description: row.description,
                // A later version may have known more.
                enabled_events: row
                    .enabled_events
                    .iter()
                    .filter_map(|name| WebhookEventType::parse(name))
                    .collect(),
                state,
                disabled_reason: row.disabled_reason,
                created_at: time(row.created_at),
                updated_at: time(row.updated_at),
            },
            failing_since: row.failing_since.map(time),
            consecutive_failures: u32::try_from(row.failures).unwrap_or(0),
        }
    }
}

fn names(spec: &WebhookEndpointSpec) -> Vec<&'static str> {
    spec.enabled_events.iter().map(|e| e.as_str()).collect()
}

/// What a secret is sealed for.
pub(super) fn context(endpoint: WebhookEndpointId) -> String {
    format!("webhook_endpoint:{endpoint}")
}

impl Store {
    /// Saves a new endpoint with its secret.
    ///
    /// # Errors
    /// [`WebhookRefusal::Full`], and faults.
    pub async fn webhook_endpoint_create(
        &self,
        owner: WebhookOwner,
        spec: &WebhookEndpointSpec,
        secret: &SecretString,
        actor: &Actor,
    ) -> Result<WorkspaceWebhookEndpoint, WebhookRefusal> {
        let id = WebhookEndpointId::new();
        let mut tx = self.pool.begin().await?;
        // One at a time, or two could both be the last one.
        match owner {
            WebhookOwner::Workspace(workspace) => {
                sqlx::query!(
                    "SELECT id FROM workspaces WHERE id = $1 FOR NO KEY UPDATE",
                    workspace.0
                )
                .fetch_optional(&mut *tx)
                .await?;
            }
            WebhookOwner::Organization => {
                sqlx::query!("SELECT one FROM deployment FOR NO KEY UPDATE")
                    .fetch_optional(&mut *tx)
                    .await?;
            }
        }
        let count = sqlx::query_scalar!(
            r#"
            SELECT count(*) AS "count!" FROM webhook_endpoints
            WHERE workspace_id IS NOT DISTINCT FROM $1 AND deleted_at IS NULL
            "#,
            owner.column(),
        )
        .fetch_one(&mut *tx)
        .await?;
        if count >= ENDPOINT_LIMIT {
            return Err(WebhookRefusal::Full);
        }
        let row = sqlx::query_as!(
            Row,
            r#"
            WITH now AS MATERIALIZED (SELECT clock_timestamp() AS at)
            INSERT INTO webhook_endpoints
                (id, workspace_id, url, name, description, enabled_events, created_at, updated_at)
            SELECT $1, $2, $3, $4, $5, $6, at, at FROM now
            RETURNING id, url, name, description, enabled_events, state, disabled_reason,
                      failing_since, failures, created_at, updated_at
            "#,
            id.0,
            owner.column(),
            spec.url,
            spec.name,
            spec.description,
            &names(spec) as _,
        )
        .fetch_one(&mut *tx)
        .await?;
        self.secret_insert(&mut tx, id, secret).await?;
        let detail = serde_json::json!({"url": spec.url, "enabled_events": spec.enabled_events});
        record(&mut tx, owner, actor, "webhook_endpoint.create", id, detail).await?;
        tx.commit().await?;
        Ok(row.into())
    }

    /// # Errors
    /// Database faults.
    pub async fn webhook_endpoint_get(
        &self,
        owner: WebhookOwner,
        id: WebhookEndpointId,
    ) -> Result<Option<WorkspaceWebhookEndpoint>, StoreError> {
        let mut connection = self.pool.acquire().await?;
        find(&mut connection, owner, id).await
    }

    /// A page of endpoints.
    ///
    /// # Errors
    /// Database faults.
    pub async fn webhook_endpoint_list(
        &self,
        owner: WebhookOwner,
        page: EndpointPage,
    ) -> Result<Vec<WorkspaceWebhookEndpoint>, StoreError> {
        let (earliest, latest) = (
            Position {
                created_at: Timestamp::from_micros(i64::MIN),
                id: Uuid::nil(),
            },
            Position::NEWEST,
        );
        // Exclusive bounds in time, whatever the order of the list.
        let (from, until) =
            match (page.order, page.start) {
                (_, EndpointStart::First) => (earliest, latest),
                (Order::Asc, EndpointStart::After(at))
                | (Order::Desc, EndpointStart::Before(at)) => (at, latest),
                (Order::Asc, EndpointStart::Before(at))
                | (Order::Desc, EndpointStart::After(at)) => (earliest, at),
            };
        let rows = sqlx::query_as!(
            Row,
            r#"
            SELECT id, url, name, description, enabled_events, state, disabled_reason,
                   failing_since, failures, created_at, updated_at
            FROM webhook_endpoints
            WHERE workspace_id IS NOT DISTINCT FROM $1 AND deleted_at IS NULL
              AND (created_at, id) > ($2, $3) AND (created_at, id) < ($4, $5)
            ORDER BY CASE WHEN $6 THEN created_at END, CASE WHEN $6 THEN id END,
                     created_at DESC, id DESC
            LIMIT $7
            "#,
            owner.column(),
            column(from.created_at) as _,
            from.id,
            column(until.created_at) as _,
            until.id,
            page.order == Order::Asc,
            i64::try_from(page.limit).unwrap_or(i64::MAX),
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(rows.into_iter().map(Into::into).collect())
    }

    /// Saves what `change` makes of an endpoint. What waits for one that is being disabled or enabled is
    /// given up: nothing is sent from a disabled one, and nothing is made up for afterwards.
    ///
    /// # Errors
    /// What `change` refuses, and faults.
    pub async fn webhook_endpoint_update<E: From<StoreError>>(
        &self,
        owner: WebhookOwner,
        id: WebhookEndpointId,
        actor: &Actor,
        change: impl FnOnce(&WebhookEndpoint) -> Result<(WebhookEndpointSpec, WebhookEndpointState), E>
        + Send,
    ) -> Result<Option<WorkspaceWebhookEndpoint>, E> {
        let mut tx = self.pool.begin().await.map_err(StoreError::from)?;
        sqlx::query!(
            "SELECT id FROM webhook_endpoints WHERE id = $1 FOR NO KEY UPDATE",
            id.0
        )
        .fetch_optional(&mut *tx)
        .await
        .map_err(StoreError::from)?;
        let Some(current) = find(&mut tx, owner, id).await? else {
            return Ok(None);
        };
        let (spec, state) = change(&current.endpoint)?;
        let before = &current.endpoint;
        let turned = state != before.state;
        let enabled = state == WebhookEndpointState::Enabled;
        let same = !turned
            && spec.url == before.url
            && spec.name == before.name
            && spec.description == before.description
            && spec.enabled_events == before.enabled_events;
        if same {
            return Ok(Some(current));
        }
        // Another address has not failed yet, nor has one that somebody turns on again.
        let forgiven = (turned && enabled) || spec.url != before.url;
        let row = sqlx::query_as!(
            Row,
            r#"
            UPDATE webhook_endpoints
            SET url = $2, name = $3, description = $4, enabled_events = $5, state = $6,
                disabled_reason = CASE WHEN $6 = 'enabled' THEN '' ELSE disabled_reason END,
                failing_since = CASE WHEN $7 THEN NULL ELSE failing_since END,
                failures = CASE WHEN $7 THEN 0 ELSE failures END,
                updated_at = clock_timestamp()
            WHERE id = $1
            RETURNING id, url, name, description, enabled_events, state, disabled_reason,
                      failing_since, failures, created_at, updated_at
            "#,
            id.0,
            spec.url,
            spec.name,
            spec.description,
            &names(&spec) as _,
            state.as_str(),
            forgiven,
        )
        .fetch_one(&mut *tx)
        .await
        .map_err(StoreError::from)?;
        if turned {
            cancel(&mut tx, id).await?;
        }
        let detail = serde_json::json!({
            "url": spec.url, "enabled_events": spec.enabled_events, "state": state,
        });
        record(&mut tx, owner, actor, "webhook_endpoint.update", id, detail).await?;
        tx.commit().await.map_err(StoreError::from)?;
        Ok(Some(row.into()))
    }

    /// Hides an endpoint for good and forgets its secrets; its deliveries are purged in the background.
    /// `false`: there is no such endpoint.
    ///
    /// # Errors
    /// Database faults.
    pub async fn webhook_endpoint_delete(
        &self,
        owner: WebhookOwner,
        id: WebhookEndpointId,
        actor: &Actor,
    ) -> Result<bool, StoreError> {
        let mut tx = self.pool.begin().await?;
        let deleted = sqlx::query!(
            r#"
            UPDATE webhook_endpoints SET deleted_at = clock_timestamp(), state = 'disabled'
            WHERE id = $1 AND workspace_id IS NOT DISTINCT FROM $2 AND deleted_at IS NULL
            "#,
            id.0,
            owner.column(),
        )
        .execute(&mut *tx)
        .await?;
        if deleted.rows_affected() == 0 {
            return Ok(false);
        }
        sqlx::query!("DELETE FROM webhook_secrets WHERE endpoint_id = $1", id.0)
            .execute(&mut *tx)
            .await?;
        let action = "webhook_endpoint.delete";
        record(&mut tx, owner, actor, action, id, serde_json::json!({})).await?;
        tx.commit().await?;
        Ok(true)
    }

    /// Gives an endpoint another secret. Answers until when the one before signs as well, if it does.
    /// `None`: there is no such endpoint.
    ///
    /// # Errors
    /// Database faults.
    pub async fn webhook_secret_rotate(
        &self,
        owner: WebhookOwner,
        id: WebhookEndpointId,
        new: &NewSecret,
        actor: &Actor,
    ) -> Result<Option<Option<Timestamp>>, StoreError> {
        let mut tx = self.pool.begin().await?;
        let found = sqlx::query!(
            r#"
            UPDATE webhook_endpoints SET updated_at = clock_timestamp()
            WHERE id = $1 AND workspace_id IS NOT DISTINCT FROM $2 AND deleted_at IS NULL
            "#,
            id.0,
            owner.column(),
        )
        .execute(&mut *tx)
        .await?;
        if found.rows_affected() == 0 {
            return Ok(None);
        }
        // Only the latest goes on: one that it had replaced itself has had its time.
        sqlx::query!(
            r#"
            DELETE FROM webhook_secrets
            WHERE endpoint_id = $1 AND (expires_at IS NOT NULL OR $2)
            "#,
            id.0,
            new.overlap.is_zero(),
        )
        .execute(&mut *tx)
        .await?;
        let until = sqlx::query_scalar!(
            r#"
            UPDATE webhook_secrets SET expires_at = clock_timestamp() + $2::interval
            WHERE endpoint_id = $1
            RETURNING expires_at AS "expires_at!: jiff_sqlx::Timestamp"
            "#,
            id.0,
            interval(new.overlap),
        )
        .fetch_optional(&mut *tx)
        .await?;
        self.secret_insert(&mut tx, id, &new.secret).await?;
        let until = until.map(time);
        let detail = serde_json::json!({"previous_valid_until": until});
        let action = "webhook_endpoint.regenerate_signing_secret";
        record(&mut tx, owner, actor, action, id, detail).await?;
        tx.commit().await?;
        Ok(Some(until))
    }

    async fn secret_insert(
        &self,
        tx: &mut PgTransaction<'_>,
        id: WebhookEndpointId,
        secret: &SecretString,
    ) -> Result<(), StoreError> {
        let sealed = self
            .sealer()?
            .seal(secret.expose_secret().as_bytes(), &context(id))
            .await?;
        sqlx::query!(
            r#"
            INSERT INTO webhook_secrets (endpoint_id, ciphertext, data_key, master_key)
            VALUES ($1, $2, $3, $4)
            "#,
            id.0,
            sealed.ciphertext,
            sealed.data_key,
            sealed.master_key,
        )
        .execute(&mut **tx)
        .await?;
        Ok(())
    }

    /// Disables an endpoint because of what its deliveries have shown, and gives up what waits for it.
    /// `false`: it was not enabled any more.
    ///
    /// # Errors
    /// Database faults.
    pub async fn webhook_endpoint_disable(
        &self,
        id: WebhookEndpointId,
        reason: &'static str,
    ) -> Result<bool, StoreError> {
        let mut tx = self.pool.begin().await?;
        let row = sqlx::query!(
            r#"
            UPDATE webhook_endpoints
            SET state = 'disabled', disabled_reason = $2, updated_at = clock_timestamp()
            WHERE id = $1 AND state = 'enabled' AND deleted_at IS NULL
            RETURNING workspace_id
            "#,
            id.0,
            reason,
        )
        .fetch_optional(&mut *tx)
        .await?;
        let Some(row) = row else { return Ok(false) };
        cancel(&mut tx, id).await?;
        let owner = row
            .workspace_id
            .map_or(WebhookOwner::Organization, |workspace| {
                WebhookOwner::Workspace(WorkspaceId(workspace))
            });
        let actor = Actor::default();
        let detail = serde_json::json!({"reason": reason});
        let action = "webhook_endpoint.disable";
        record(&mut tx, owner, &actor, action, id, detail).await?;
        tx.commit().await?;
        Ok(true)
    }
}

pub(super) async fn find(
    connection: &mut PgConnection,
    owner: WebhookOwner,
    id: WebhookEndpointId,
) -> Result<Option<WorkspaceWebhookEndpoint>, StoreError> {
    let row = sqlx::query_as!(
        Row,
        r#"
        SELECT id, url, name, description, enabled_events, state, disabled_reason,
               failing_since, failures, created_at, updated_at
        FROM webhook_endpoints
        WHERE id = $1 AND workspace_id IS NOT DISTINCT FROM $2 AND deleted_at IS NULL
        "#,
        id.0,
        owner.column(),
    )
    .fetch_optional(connection)
    .await?;
    Ok(row.map(Into::into))
}

/// Gives up what waits for an endpoint. What is under way ends by itself: whoever makes the attempt sees
/// that the endpoint is disabled.
async fn cancel(tx: &mut PgTransaction<'_>, id: WebhookEndpointId) -> Result<(), StoreError> {
    sqlx::query!(
        r#"
        UPDATE webhook_deliveries SET status = 'canceled', next_at = NULL
        WHERE endpoint_id = $1 AND next_at IS NOT NULL AND owner IS NULL
        "#,
        id.0,
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}

async fn record(
    tx: &mut PgTransaction<'_>,
    owner: WebhookOwner,
    actor: &Actor,
    action: &'static str,
    id: WebhookEndpointId,
    detail: serde_json::Value,
) -> Result<(), StoreError> {
    let entry = Audit {
        workspace: owner.workspace(),
        actor,
        action,
        target: id.to_string(),
        detail,
    };
    audit(&mut **tx, entry).await
}
