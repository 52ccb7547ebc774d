//! `/metrics`: counters and histograms in Prometheus' text format.

use std::{sync::OnceLock, time::Duration};

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

static HANDLE: OnceLock<Option<PrometheusHandle>> = OnceLock::new();

/// Starts recording. The recorder is the process's: calling it again changes nothing.
pub fn install() {
    HANDLE.get_or_init(|| {
        let buckets = [
            0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
        ];
        let builder = match PrometheusBuilder::new().set_buckets(&buckets) {
            Ok(builder) => builder,
            Err(error) => {
                tracing::error!(%error, "metrics are off");
                return None;
            }
        };
        let handle = match builder.install_recorder() {
            Ok(handle) => handle,
            Err(error) => {
                tracing::error!(%error, "metrics are off");
                return None;
            }
        };
        metrics::describe_counter!("http_requests_total", "Requests, by route and status.");
        metrics::describe_histogram!(
            "http_request_duration_seconds",
            metrics::Unit::Seconds,
            "Time until the response head, by route."
        );
        metrics::describe_gauge!("http_connections", "Open connections.");
        metrics::describe_counter!(
            "selfsame_webhook_attempts_total",
            "Attempts to deliver a webhook by this server, by outcome."
        );
        metrics::describe_histogram!(
            "selfsame_webhook_attempt_duration_seconds",
            metrics::Unit::Seconds,
            "Time that an attempt took."
        );
        metrics::describe_histogram!(
            "selfsame_webhook_lag_seconds",
            metrics::Unit::Seconds,
            "From an event to the attempt that delivered it."
        );
        metrics::describe_counter!(
            "selfsame_webhook_endpoints_disabled_total",
            "Endpoints that this server has disabled."
        );
        metrics::describe_gauge!(
            "selfsame_webhook_backlog",
            "Deliveries of all servers that are due or under way."
        );
        metrics::describe_gauge!(
            "selfsame_webhook_waiting",
            "Deliveries of all servers that wait for their next attempt."
        );
        metrics::describe_gauge!(
            "selfsame_webhook_oldest_seconds",
            metrics::Unit::Seconds,
            "For how long the first delivery that nobody has begun has been due."
        );
        metrics::describe_gauge!(
            "selfsame_webhook_endpoints_disabled",
            "Endpoints that are disabled."
        );
        Some(handle)
    });
}

/// Everything recorded so far.
#[must_use]
pub fn render() -> String {
    match HANDLE.get() {
        Some(Some(handle)) => handle.render(),
        _ => String::new(),
    }
}

/// Folds what histograms have collected, which nobody else does while nobody scrapes. Never ends.
pub async fn upkeep() {
    let mut every = tokio::time::interval(Duration::from_secs(15));
    loop {
        every.tick().await;
        if let Some(Some(handle)) = HANDLE.get() {
            handle.run_upkeep();
        }
    }
}
