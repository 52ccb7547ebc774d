//! What keeps deliveries going and their tables small.

use std::time::Duration;

use uuid::Uuid;

use crate::{Store, StoreError, leases::interval};

/// What waits to be delivered, in all workspaces.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct WebhookBacklog {
    /// Due, or under way.
    pub due: i64,
    /// Waiting for their next attempt.
    pub waiting: i64,
    /// For how long the first of those that are due has been, seconds.
    pub oldest_seconds: f64,
    /// Endpoints that this server, or its clients, have disabled.
    pub disabled_endpoints: i64,
}

impl Store {
    /// Gives back what servers had claimed that have not been alive for this time. Answers how many.
    ///
    /// # Errors
    /// Database faults.
    pub async fn webhook_release_dead(&self, ttl: Duration) -> Result<u64, StoreError> {
        let done = sqlx::query!(
            r#"
            UPDATE webhook_deliveries d SET owner = NULL, next_at = statement_timestamp()
            FROM (
                SELECT endpoint_id, event_id FROM webhook_deliveries c
                WHERE c.owner IS NOT NULL AND NOT EXISTS (
                    SELECT FROM servers s
                    WHERE s.id = c.owner AND s.heartbeat_at > clock_timestamp() - $1::interval)
                FOR UPDATE SKIP LOCKED
            ) lost
            WHERE d.endpoint_id = lost.endpoint_id AND d.event_id = lost.event_id
            "#,
            interval(ttl),
        )
        .execute(&self.pool)
        .await?;
        Ok(done.rows_affected())
    }

    /// What waits, for whoever watches over it.
    ///
    /// # Errors
    /// Database faults.
    pub async fn webhook_backlog(&self) -> Result<WebhookBacklog, StoreError> {
        Ok(sqlx::query_as!(
            WebhookBacklog,
            r#"
            SELECT count(*) FILTER (WHERE d.owner IS NOT NULL OR d.next_at <= statement_timestamp())
                       AS "due!",
                   count(*) FILTER (WHERE d.owner IS NULL AND d.next_at > statement_timestamp())
                       AS "waiting!",
                   GREATEST(COALESCE(EXTRACT(epoch FROM statement_timestamp()
                       - min(d.next_at) FILTER (WHERE d.owner IS NULL)), 0), 0)::float8
                       AS "oldest_seconds!",
                   (SELECT count(*) FROM webhook_endpoints
                    WHERE state = 'disabled' AND deleted_at IS NULL) AS "disabled_endpoints!"
            FROM webhook_deliveries d
            JOIN webhook_endpoints w ON w.id = d.endpoint_id
            WHERE d.next_at IS NOT NULL AND w.state = 'enabled' AND w.deleted_at IS NULL
            "#,
        )
        .fetch_one(&self.pool)
        .await?)
    }

    /// Removes up to `chunk` deliveries that are over and older than `retention`, or whose endpoint is
    /// deleted; events that no delivery needs any more; and endpoints that are deleted and have nothing
    /// left. Answers how many rows went; 0 means nothing is left to remove.
    ///
    /// # Errors
    /// Database faults.
    pub async fn webhook_purge(&self, retention: Duration, chunk: i64) -> Result<u64, StoreError> {
        // Ids of events are in the order of time: these are older than any that is to stay.
        let age = i64::try_from(retention.as_micros()).unwrap_or(i64::MAX);
        let cutoff = self.now().await?.as_micros().saturating_sub(age) / 1000;
        let oldest = Uuid::from_u128(u128::try_from(cutoff).unwrap_or(0) << 80);
        let deliveries = sqlx::query!(
            r#"
            DELETE FROM webhook_deliveries d
            USING (
                SELECT o.endpoint_id, o.event_id
                FROM webhook_endpoints w
                CROSS JOIN LATERAL (
                    SELECT c.endpoint_id, c.event_id
                    FROM webhook_deliveries c
                    WHERE c.endpoint_id = w.id
                      AND (w.deleted_at IS NOT NULL OR (c.event_id < $1 AND c.next_at IS NULL))
                    ORDER BY c.event_id
                    LIMIT $2
                ) o
                LIMIT $2
            ) old
            WHERE d.endpoint_id = old.endpoint_id AND d.event_id = old.event_id
            "#,
            oldest,
            chunk,
        )
        .execute(&self.pool)
        .await?
        .rows_affected();
        let events = sqlx::query!(
            r#"
            DELETE FROM webhook_events
            WHERE id IN (
                SELECT e.id FROM webhook_events e
                WHERE e.id < $1 AND NOT EXISTS (
                    SELECT FROM webhook_endpoints w
                    JOIN webhook_deliveries d ON d.endpoint_id = w.id AND d.event_id = e.id
                    WHERE w.workspace_id = e.workspace_id)
                ORDER BY e.id
                LIMIT $2)
            "#,
            oldest,
            chunk,
        )
        .execute(&self.pool)
        .await?
        .rows_affected();
        // A little later than the deletion: a change that still saw the endpoint may write a delivery.
        let endpoints = sqlx::query!(
            r#"
            DELETE FROM webhook_endpoints w
            WHERE w.deleted_at < clock_timestamp() - interval '1 hour'
              AND NOT EXISTS (SELECT FROM webhook_deliveries d WHERE d.endpoint_id = w.id)
            "#,
        )
        .execute(&self.pool)
        .await?
        .rows_affected();
        Ok(deliveries + events + endpoints)
    }
}
