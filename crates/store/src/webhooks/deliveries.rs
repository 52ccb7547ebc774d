//! Deliveries: claimed by those who make attempts, recorded, listed, begun anew.
//!
//! A claimed delivery names its server. It is that server's until it records a result; it falls to the
//! others when the server's heartbeat stops, or when far more time has passed than an attempt can take.

use std::time::Duration;

use secrecy::SecretString;
use selfsame_types::{
    ServerId, Timestamp, WebhookEndpointId, WebhookEventId, WorkspaceId,
    webhook::{
        WebhookAttempt, WebhookDelivery, WebhookDeliveryStatus, WebhookEndpointState, WebhookEvent,
        WebhookEventType,
    },
};
use uuid::Uuid;

use super::endpoints::{WebhookOwner, context, find};
use crate::{SealError, Sealed, Store, StoreError, agents::column, leases::interval, time};

/// What a claim may take.
#[derive(Debug, Clone)]
pub struct ClaimLimits<'a> {
    /// Of endpoints whose last attempt failed, or of the others.
    pub failing: bool,
    /// Most deliveries.
    pub total: usize,
    /// Most deliveries of one endpoint, those that are under way included.
    pub each: usize,
    /// How many are under way.
    pub busy: &'a [(WebhookEndpointId, usize)],
    /// After this time without a result it is anybody's again.
    pub patience: Duration,
}

/// A delivery that this server is to attempt.
#[derive(Debug, Clone)]
pub struct ClaimedDelivery {
    pub endpoint: WebhookEndpointId,
    pub event: WebhookEventId,
    pub body: String,
    /// When the event happened.
    pub created_at: Timestamp,
    /// Attempts before this one.
    pub tries: u32,
    /// The database's clock at the claim.
    pub now: Timestamp,
}

/// Where deliveries of an endpoint go, and what they are signed with.
#[derive(Debug)]
pub struct WebhookTarget {
    pub id: WebhookEndpointId,
    pub url: String,
    /// Newest first.
    pub secrets: Result<Vec<SecretString>, SealError>,
    /// Its last attempt failed.
    pub failing: bool,
}

/// What becomes of a delivery.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    Delivered(WebhookAttempt),
    /// To be tried again after the pause, unless the endpoint is disabled by then.
    Retry(WebhookAttempt, Duration),
    Failed(WebhookAttempt),
    /// No attempt was made: whoever comes first after the pause makes it.
    Released(Duration),
}

#[derive(Debug, Clone)]
pub struct DeliveryResult {
    pub endpoint: WebhookEndpointId,
    pub event: WebhookEventId,
    pub outcome: Outcome,
}

/// Which deliveries a list shows.
#[derive(Debug, Clone)]
pub struct DeliveryFilter {
    /// Empty: any.
    pub statuses: Vec<WebhookDeliveryStatus>,
    /// Only events before this one.
    pub before: Option<WebhookEventId>,
    /// Most rows.
    pub limit: usize,
}

struct Row {
    event_id: Uuid,
    r#type: String,
    body: String,
    created_at: jiff_sqlx::Timestamp,
    status: String,
    next_at: Option<jiff_sqlx::Timestamp>,
    attempts: serde_json::Value,
}

impl TryFrom<Row> for WebhookDelivery {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        let id = WebhookEventId(row.event_id);
        let corrupt = |column, value: &str| StoreError::Corrupt {
            table: "webhook_deliveries",
            column,
            row: id.to_string(),
            source: format!("unknown value `{value}`").into(),
        };
        Ok(Self {
            id,
            event_type: WebhookEventType::parse(&row.r#type)
                .ok_or_else(|| corrupt("type", &row.r#type))?,
            status: WebhookDeliveryStatus::parse(&row.status)
                .ok_or_else(|| corrupt("status", &row.status))?,
            next_attempt_at: row.next_at.map(time),
            attempts: serde_json::from_value(row.attempts).map_err(StoreError::corrupt(
                "webhook_deliveries",
                "attempts",
                id,
            ))?,
            event: serde_json::value::RawValue::from_string(row.body)
                .map_err(StoreError::corrupt("webhook_events", "body", id))?,
            created_at: time(row.created_at),
        })
    }
}

impl Store {
    /// Takes deliveries that are due, from as many endpoints as there are.
    ///
    /// # Errors
    /// Database faults.
    pub async fn webhook_claim(
        &self,
        server: ServerId,
        limits: &ClaimLimits<'_>,
    ) -> Result<Vec<ClaimedDelivery>, StoreError> {
        let (busy, running): (Vec<_>, Vec<_>) = limits
            .busy
            .iter()
            .map(|(id, count)| (id.0, i64::try_from(*count).unwrap_or(i64::MAX)))
            .unzip();
        let rows = sqlx::query!(
            r#"
            WITH due AS (
                SELECT d.endpoint_id, d.event_id
                FROM (
                    -- In any order, so that none is always the last.
                    SELECT id, $4 - COALESCE(b.running, 0) AS room
                    FROM webhook_endpoints
                    LEFT JOIN unnest($5::uuid[], $6::bigint[]) AS b (endpoint, running)
                        ON b.endpoint = id
                    WHERE state = 'enabled' AND deleted_at IS NULL
                      AND (failing_since IS NOT NULL) = $2
                    ORDER BY random()
                ) w
                CROSS JOIN LATERAL (
                    SELECT endpoint_id, event_id FROM webhook_deliveries
                    WHERE endpoint_id = w.id AND next_at <= statement_timestamp()
                    ORDER BY next_at
                    LIMIT GREATEST(w.room, 0)
                    FOR UPDATE SKIP LOCKED
                ) d
                LIMIT $3
            )
            UPDATE webhook_deliveries d
            SET owner = $1, next_at = statement_timestamp() + $7::interval
            FROM due JOIN webhook_events e ON e.id = due.event_id
            WHERE d.endpoint_id = due.endpoint_id AND d.event_id = due.event_id
            RETURNING d.endpoint_id, d.event_id, d.tries, e.body,
                      e.created_at AS "created_at: jiff_sqlx::Timestamp",
                      statement_timestamp() AS "now!: jiff_sqlx::Timestamp"
            "#,
            server.0,
            limits.failing,
            i64::try_from(limits.total).unwrap_or(i64::MAX),
            i64::try_from(limits.each).unwrap_or(i64::MAX),
            &busy,
            &running,
            interval(limits.patience),
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(rows
            .into_iter()
            .map(|row| ClaimedDelivery {
                endpoint: WebhookEndpointId(row.endpoint_id),
                event: WebhookEventId(row.event_id),
                body: row.body,
                created_at: time(row.created_at),
                tries: u32::try_from(row.tries).unwrap_or(0),
                now: time(row.now),
            })
            .collect())
    }

    /// Address and secrets of those endpoints that are enabled.
    ///
    /// # Errors
    /// Database faults.
    pub async fn webhook_targets(
        &self,
        endpoints: &[WebhookEndpointId],
    ) -> Result<Vec<WebhookTarget>, StoreError> {
        let ids: Vec<_> = endpoints.iter().map(|id| id.0).collect();
        let rows = sqlx::query!(
            r#"
            SELECT w.id, w.url, w.failing_since IS NOT NULL AS "failing!", s.ciphertext, s.data_key,
                   s.master_key
            FROM webhook_endpoints w
            JOIN webhook_secrets s ON s.endpoint_id = w.id
            WHERE w.id = ANY ($1) AND w.state = 'enabled' AND w.deleted_at IS NULL
              AND (s.expires_at IS NULL OR s.expires_at > statement_timestamp())
            ORDER BY w.id, s.id DESC
            "#,
            &ids,
        )
        .fetch_all(&self.pool)
        .await?;
        let sealer = self.sealer()?;
        let mut targets: Vec<WebhookTarget> = Vec::new();
        for row in rows {
            let id = WebhookEndpointId(row.id);
            let sealed = Sealed {
                ciphertext: row.ciphertext,
                data_key: row.data_key,
                master_key: row.master_key,
            };
            let secret = sealer.open_text(&sealed, &context(id)).await;
            match targets.last_mut().filter(|target| target.id == id) {
                Some(target) => match (&mut target.secrets, secret) {
                    (Ok(secrets), Ok(secret)) => secrets.push(secret),
                    (secrets, Err(error)) => *secrets = Err(error),
                    (Err(_), Ok(_)) => {}
                },
                None => targets.push(WebhookTarget {
                    id,
                    url: row.url,
                    failing: row.failing,
                    secrets: secret.map(|secret| vec![secret]),
                }),
            }
        }
        Ok(targets)
    }

    /// Writes down what came of deliveries that this server has claimed. Of one that has fallen to
    /// another server meanwhile, only a success counts.
    ///
    /// # Errors
    /// Database faults.
    pub async fn webhook_record(
        &self,
        server: ServerId,
        results: &[DeliveryResult],
    ) -> Result<(), StoreError> {
        let mut columns = Results::default();
        for result in results {
            columns.push(result);
        }
        sqlx::query!(
            r#"
            UPDATE webhook_deliveries d
            SET status = CASE WHEN r.status = 'pending' AND NOT w.open THEN 'canceled'
                              ELSE r.status END,
                next_at = CASE WHEN r.status = 'pending' AND w.open
                               THEN statement_timestamp() + r.pause * interval '1 microsecond' END,
                tries = d.tries + CASE WHEN r.attempt IS NULL THEN 0 ELSE 1 END,
                owner = NULL,
                attempts = CASE
                    WHEN r.attempt IS NULL THEN d.attempts
                    WHEN jsonb_array_length(d.attempts) >= 20 THEN (d.attempts - 0) || r.attempt::jsonb
                    ELSE d.attempts || r.attempt::jsonb END
            FROM unnest($2::uuid[], $3::uuid[], $4::text[], $5::bigint[], $6::text[])
                AS r (endpoint_id, event_id, status, pause, attempt)
            JOIN (SELECT id, state = 'enabled' AND deleted_at IS NULL AS open
                  FROM webhook_endpoints) w ON w.id = r.endpoint_id
            WHERE d.endpoint_id = r.endpoint_id AND d.event_id = r.event_id
              AND (d.owner = $1 OR (r.status = 'delivered' AND d.next_at IS NOT NULL))
            "#,
            server.0,
            &columns.endpoints,
            &columns.events,
            &columns.statuses as _,
            &columns.pauses,
            &columns.attempts as _,
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Notes how an endpoint is doing: whether an attempt has succeeded, and how many have failed since
    /// then. Answers whether it has failed for so long, and so often, that it should be disabled.
    ///
    /// # Errors
    /// Database faults.
    pub async fn webhook_endpoint_health(
        &self,
        id: WebhookEndpointId,
        succeeded: bool,
        failures: u32,
        disable_after: (Duration, u32),
    ) -> Result<bool, StoreError> {
        let (longest, most) = disable_after;
        let sustained = sqlx::query_scalar!(
            r#"
            UPDATE webhook_endpoints
            SET failing_since = CASE
                    WHEN $3 = 0 THEN NULL
                    WHEN $2 THEN statement_timestamp()
                    ELSE COALESCE(failing_since, statement_timestamp()) END,
                failures = CASE WHEN $2 THEN 0 ELSE failures END + $3
            WHERE id = $1 AND ($3 > 0 OR failing_since IS NOT NULL)
            RETURNING state = 'enabled' AND failures >= $4
                      AND failing_since <= statement_timestamp() - $5::interval
            "#,
            id.0,
            succeeded,
            i32::try_from(failures).unwrap_or(i32::MAX),
            i32::try_from(most).unwrap_or(i32::MAX),
            interval(longest),
        )
        .fetch_optional(&self.pool)
        .await?;
        Ok(sustained.flatten().unwrap_or(false))
    }

    /// The deliveries of an endpoint, newest event first; `None`: there is no such endpoint.
    ///
    /// # Errors
    /// Database faults.
    pub async fn webhook_delivery_list(
        &self,
        workspace: WorkspaceId,
        endpoint: WebhookEndpointId,
        filter: &DeliveryFilter,
    ) -> Result<Option<Vec<WebhookDelivery>>, StoreError> {
        let mut connection = self.pool.acquire().await?;
        let owner = WebhookOwner::Workspace(workspace);
        if find(&mut connection, owner, endpoint).await?.is_none() {
            return Ok(None);
        }
        let statuses: Vec<_> = filter.statuses.iter().map(|s| s.as_str()).collect();
        sqlx::query_as!(
            Row,
            r#"
            SELECT d.event_id, e.type AS "type!", e.body, e.created_at, d.status,
                   CASE WHEN d.owner IS NULL THEN d.next_at END AS next_at, d.attempts
            FROM webhook_deliveries d JOIN webhook_events e ON e.id = d.event_id
            WHERE d.endpoint_id = $1 AND d.event_id < $2
              AND (cardinality($3::text[]) = 0 OR d.status = ANY ($3))
            ORDER BY d.event_id DESC
            LIMIT $4
            "#,
            endpoint.0,
            filter.before.map_or(Uuid::max(), |event| event.0),
            &statuses as _,
            i64::try_from(filter.limit).unwrap_or(i64::MAX),
        )
        .fetch_all(&mut *connection)
        .await?
        .into_iter()
        .map(WebhookDelivery::try_from)
        .collect::<Result<Vec<_>, _>>()
        .map(Some)
    }

    /// One delivery; `None`: the workspace has no such endpoint, or it no such delivery.
    ///
    /// # Errors
    /// Database faults.
    pub async fn webhook_delivery_get(
        &self,
        workspace: WorkspaceId,
        endpoint: WebhookEndpointId,
        event: WebhookEventId,
    ) -> Result<Option<WebhookDelivery>, StoreError> {
        sqlx::query_as!(
            Row,
            r#"
            SELECT d.event_id, e.type AS "type!", e.body, e.created_at, d.status,
                   CASE WHEN d.owner IS NULL THEN d.next_at END AS next_at, d.attempts
            FROM webhook_deliveries d
            JOIN webhook_events e ON e.id = d.event_id
            JOIN webhook_endpoints w ON w.id = d.endpoint_id
            WHERE d.endpoint_id = $1 AND d.event_id = $2 AND w.workspace_id = $3
              AND w.deleted_at IS NULL
            "#,
            endpoint.0,
            event.0,
            workspace.0,
        )
        .fetch_optional(&self.pool)
        .await?
        .map(WebhookDelivery::try_from)
        .transpose()
    }

    /// Begins a delivery anew, under the same event id. One that is under way goes on as it is. The
    /// caller has seen that the endpoint is the workspace's and enabled.
    ///
    /// # Errors
    /// Database faults.
    pub async fn webhook_redeliver(
        &self,
        workspace: WorkspaceId,
        endpoint: WebhookEndpointId,
        event: WebhookEventId,
    ) -> Result<Option<WebhookDelivery>, StoreError> {
        sqlx::query!(
            r#"
            UPDATE webhook_deliveries d
            SET status = 'pending', tries = 0, next_at = statement_timestamp()
            FROM webhook_endpoints w
            WHERE d.endpoint_id = $1 AND d.event_id = $2 AND d.owner IS NULL
              AND w.id = d.endpoint_id AND w.workspace_id = $3 AND w.state = 'enabled'
            "#,
            endpoint.0,
            event.0,
            workspace.0,
        )
        .execute(&self.pool)
        .await?;
        self.webhooks_wake();
        self.webhook_delivery_get(workspace, endpoint, event).await
    }

    /// Begins all deliveries of events since a time anew that have one of these statuses.
    ///
    /// # Errors
    /// Database faults.
    pub async fn webhook_redeliver_since(
        &self,
        workspace: WorkspaceId,
        endpoint: WebhookEndpointId,
        since: Timestamp,
        statuses: &[WebhookDeliveryStatus],
    ) -> Result<u64, StoreError> {
        let statuses: Vec<_> = statuses.iter().map(|s| s.as_str()).collect();
        let done = sqlx::query!(
            r#"
            UPDATE webhook_deliveries d
            SET status = 'pending', tries = 0, next_at = statement_timestamp()
            FROM webhook_endpoints w, webhook_events e
            WHERE d.endpoint_id = $1 AND d.owner IS NULL AND d.status = ANY ($4::text[])
              AND e.id = d.event_id AND e.created_at >= $3
              AND w.id = d.endpoint_id AND w.workspace_id = $2 AND w.state = 'enabled'
            "#,
            endpoint.0,
            workspace.0,
            column(since) as _,
            &statuses as _,
        )
        .execute(&self.pool)
        .await?;
        self.webhooks_wake();
        Ok(done.rows_affected())
    }

    /// Sends an event that has not happened, to this endpoint alone. The endpoint is the workspace's, as
    /// the caller has seen; `None`: it is not, or is disabled.
    ///
    /// # Errors
    /// Database faults.
    pub async fn webhook_send_test(
        &self,
        workspace: WorkspaceId,
        endpoint: WebhookEndpointId,
        event: &WebhookEvent,
    ) -> Result<Option<WebhookDelivery>, StoreError> {
        let at = self.now().await?;
        let id = WebhookEventId::new();
        let body = event.body(id, self.organization().await?, workspace);
        let text = format!("{}{at}{}", body.head, body.tail);
        sqlx::query!(
            r#"
            WITH target AS (
                SELECT id FROM webhook_endpoints
                WHERE id = $1 AND workspace_id = $2 AND state = $3 AND deleted_at IS NULL
            ), kept AS (
                INSERT INTO webhook_events (id, workspace_id, type, body, created_at)
                SELECT $4, $2, $5, $6, $7 FROM target
            )
            INSERT INTO webhook_deliveries (endpoint_id, event_id, next_at)
            SELECT id, $4, $7 FROM target
            "#,
            endpoint.0,
            workspace.0,
            WebhookEndpointState::Enabled.as_str(),
            id.0,
            event.event_type.as_str(),
            text,
            column(at) as _,
        )
        .execute(&self.pool)
        .await?;
        self.webhooks_wake();
        self.webhook_delivery_get(workspace, endpoint, id).await
    }
}

/// Results turned into the arrays that `unnest` takes.
#[derive(Debug, Default)]
struct Results {
    endpoints: Vec<Uuid>,
    events: Vec<Uuid>,
    statuses: Vec<&'static str>,
    pauses: Vec<i64>,
    attempts: Vec<Option<String>>,
}

impl Results {
    fn push(&mut self, result: &DeliveryResult) {
        use WebhookDeliveryStatus::{Delivered, Failed, Pending};
        let (status, pause, attempt) = match &result.outcome {
            Outcome::Delivered(attempt) => (Delivered, Duration::ZERO, Some(attempt)),
            Outcome::Retry(attempt, pause) => (Pending, *pause, Some(attempt)),
            Outcome::Failed(attempt) => (Failed, Duration::ZERO, Some(attempt)),
            Outcome::Released(pause) => (Pending, *pause, None),
        };
        self.endpoints.push(result.endpoint.0);
        self.events.push(result.event.0);
        self.statuses.push(status.as_str());
        self.pauses
            .push(i64::try_from(pause.as_micros()).unwrap_or(i64::MAX));
        self.attempts.push(attempt.map(|attempt| {
            serde_json::to_string(attempt).expect("an attempt is numbers and strings")
        }));
    }
}
