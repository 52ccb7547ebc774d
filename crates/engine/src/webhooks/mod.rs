//! Webhooks on their way: deliveries are claimed, attempted and recorded, on every server.
//!
//! ```text
//! claim ──▶ one task per attempt ──▶ record
//!   ▲  in batches, fair to endpoints    │ in batches; disables endpoints
//!   └─────────── room again ◀───────────┘
//! ```
//!
//! A delivery belongs to the server that has claimed it until its result is written. So none is made twice
//! while all servers are well, and each is made at least once: what a killed server had claimed falls to the
//! others when its heartbeat stops. No endpoint may have more than its share of attempts under way, and those
//! that fail together have no more than half of all, so that a dead one delays nobody else.

mod attempt;
mod backoff;
mod record;
mod rules;
mod sign;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use selfsame_net::{Limits, NetError, guarded_client_with, reqwest};
use selfsame_store::{ClaimLimits, ClaimedDelivery, DeliveryResult, Outcome, Store, WebhookTarget};
use selfsame_types::{ServerId, WebhookEndpointId, webhook::WebhookAttempt};
use tokio::{
    sync::{Notify, mpsc},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use backoff::WebhookBackoff;
pub use rules::UrlRules;
pub use sign::new_secret;

use crate::{fail, loops::jittered};
use attempt::{Answer, attempt};
use record::Recorder;

/// Deliveries that became due elsewhere, or are to be tried again, are found by looking this often.
const LOOK: Duration = Duration::from_secs(1);
/// What an endpoint that fails may have under way, as a part of what others may.
const FAILING_SHARE: usize = 4;
/// An attempt that could not be made at all, for a reason of ours, is left alone for this long.
const OUR_FAULT: Duration = Duration::from_secs(60);
/// How often the backlog is measured.
const WATCH: Duration = Duration::from_secs(15);
/// How long a result may take to be written, the database's restart included.
const PATIENCE: Duration = Duration::from_secs(120);

/// How deliveries are made.
#[derive(Debug, Clone)]
pub struct WebhooksConfig {
    pub rules: UrlRules,
    /// In all, for one event and endpoint.
    pub attempts: u32,
    pub backoff: WebhookBackoff,
    /// For one attempt, from the connection to the end of the answer.
    pub timeout: Duration,
    /// Most attempts under way on this server.
    pub concurrency: usize,
    /// Most of them to one endpoint.
    pub concurrency_per_endpoint: usize,
    /// An endpoint that has failed for so long without a break, and so often, is disabled.
    pub disable_after: (Duration, u32),
    /// How long an old secret goes on signing when nobody says otherwise.
    pub secret_overlap: Duration,
    /// How long deliveries that are over are kept.
    pub retention: Duration,
}

/// What delivers. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Webhooks {
    pub config: Arc<WebhooksConfig>,
    client: reqwest::Client,
}

impl Webhooks {
    /// # Errors
    /// When TLS cannot be set up.
    pub fn new(config: WebhooksConfig) -> Result<Self, NetError> {
        // An attempt has a limit of its own, for all of it together.
        let limits = Limits {
            connect: config.timeout * 2,
            total: None,
            idle: config.timeout * 2,
            redirects: 0,
        };
        Ok(Self {
            client: guarded_client_with(&config.rules.policy, &limits)?,
            config: Arc::new(config),
        })
    }
}

/// Claims and attempts, as long as the server runs.
#[derive(Debug, Clone)]
pub(crate) struct Deliverer {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    webhooks: Webhooks,
    store: Store,
    server: ServerId,
    lease_ttl: Duration,
    /// What an attempt under way is given when the server drains.
    drain: Duration,
    tasks: TaskTracker,
    shutdown: CancellationToken,
    busy: Mutex<HashMap<WebhookEndpointId, usize>>,
    running: AtomicUsize,
    /// Of them, to endpoints that were failing.
    running_failing: AtomicUsize,
    /// An attempt is over: there is room again.
    room: Notify,
}

impl Deliverer {
    pub(crate) fn new(
        webhooks: Webhooks,
        store: Store,
        server: ServerId,
        (lease_ttl, drain): (Duration, Duration),
        tasks: TaskTracker,
        shutdown: CancellationToken,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                webhooks,
                store,
                server,
                lease_ttl,
                drain,
                tasks,
                shutdown,
                busy: Mutex::default(),
                running: AtomicUsize::new(0),
                running_failing: AtomicUsize::new(0),
                room: Notify::new(),
            }),
        }
    }

    /// Starts to deliver. What is under way at the end is waited for by the tracker of tasks.
    pub(crate) fn start(&self) {
        let inner = Arc::clone(&self.inner);
        let (results, written) = mpsc::unbounded_channel();
        let recorder = Recorder::new(
            inner.store.clone(),
            inner.server,
            inner.webhooks.config.disable_after,
        );
        inner.tasks.spawn(recorder.run(written));
        let (watching, shutdown) = (Arc::clone(&inner), inner.shutdown.clone());
        inner.tasks.spawn(async move {
            tokio::select! {
                () = watching.watch() => {}
                () = shutdown.cancelled() => {}
            }
        });
        let shutdown = inner.shutdown.clone();
        inner.tasks.clone().spawn(async move {
            // The channel closes with the last attempt, and the recorder ends with the channel.
            tokio::select! {
                () = inner.claims(&results) => {}
                () = shutdown.cancelled() => {}
            }
        });
    }
}

impl Inner {
    async fn claims(self: &Arc<Self>, results: &mpsc::UnboundedSender<Done>) {
        let mut looked_for_dead = None::<Instant>;
        loop {
            if looked_for_dead.is_none_or(|at| at.elapsed() >= LOOK) {
                looked_for_dead = Some(Instant::now());
                self.release_dead().await;
            }
            let more = self.claim_both(results).await;
            // Neither forgets that it was woken while nobody waited.
            tokio::select! {
                () = self.store.webhooks_due() => {}
                () = self.room.notified(), if more => {}
                () = tokio::time::sleep(jittered(LOOK)) => {}
            }
        }
    }

    /// What servers that are gone had claimed.
    async fn release_dead(&self) {
        match self.store.webhook_release_dead(self.lease_ttl).await {
            Ok(0) => {}
            Ok(count) => tracing::info!(count, "took over deliveries of webhooks"),
            Err(error) => tracing::warn!(%error, "cannot look for lost deliveries of webhooks"),
        }
    }

    /// Answers whether more may be due than there was room for.
    async fn claim_both(self: &Arc<Self>, results: &mpsc::UnboundedSender<Done>) -> bool {
        let config = &self.webhooks.config;
        let each = config.concurrency_per_endpoint;
        let mut more = false;
        for failing in [false, true] {
            let mut total = self.room_for(config.concurrency, &self.running);
            let mut each = each;
            if failing {
                total = total.min(self.room_for(config.concurrency / 2, &self.running_failing));
                each = (each / FAILING_SHARE).max(1);
            }
            more |= self.claim(failing, total, each, results).await;
        }
        more
    }

    fn room_for(&self, limit: usize, running: &AtomicUsize) -> usize {
        limit.max(1).saturating_sub(running.load(Ordering::Relaxed))
    }

    async fn claim(
        self: &Arc<Self>,
        failing: bool,
        total: usize,
        each: usize,
        results: &mpsc::UnboundedSender<Done>,
    ) -> bool {
        if total == 0 {
            return true;
        }
        let busy: Vec<_> = self
            .lock()
            .iter()
            .map(|(id, count)| (*id, *count))
            .collect();
        let limits = ClaimLimits {
            failing,
            total,
            each,
            busy: &busy,
            patience: self.webhooks.config.timeout + PATIENCE,
        };
        let claimed = match self.store.webhook_claim(self.server, &limits).await {
            Ok(claimed) => claimed,
            Err(error) => {
                tracing::warn!(%error, "cannot claim deliveries of webhooks");
                return false;
            }
        };
        let more = claimed.len() >= total || is_full(&claimed, &busy, each);
        if claimed.is_empty() {
            return more;
        }
        fail::point("after_webhook_claim");
        let targets = self.targets(&claimed).await;
        for delivery in claimed {
            let slot = Slot::take(self, delivery.endpoint, failing);
            let (inner, results) = (Arc::clone(self), results.clone());
            let target = targets.get(&delivery.endpoint).cloned();
            self.tasks.spawn(async move {
                let done = inner.deliver(target.as_deref(), &delivery).await;
                // The recorder outlives every attempt.
                let _ = results.send(done);
                drop(slot);
            });
        }
        more
    }

    /// Where what was claimed goes to. An endpoint that is missing has just been disabled.
    async fn targets(
        &self,
        claimed: &[ClaimedDelivery],
    ) -> HashMap<WebhookEndpointId, Arc<WebhookTarget>> {
        let mut ids: Vec<_> = claimed.iter().map(|delivery| delivery.endpoint).collect();
        ids.sort_unstable();
        ids.dedup();
        match self.store.webhook_targets(&ids).await {
            Ok(targets) => targets
                .into_iter()
                .map(|target| (target.id, Arc::new(target)))
                .collect(),
            Err(error) => {
                tracing::warn!(%error, "cannot look up endpoints of webhooks");
                HashMap::new()
            }
        }
    }

    async fn deliver(&self, target: Option<&WebhookTarget>, delivery: &ClaimedDelivery) -> Done {
        let config = &self.webhooks.config;
        let done = |outcome, answer| Done {
            result: DeliveryResult {
                endpoint: delivery.endpoint,
                event: delivery.event,
                outcome,
            },
            answer,
            failing: target.is_some_and(|target| target.failing),
        };
        let Some(target) = target else {
            return done(Outcome::Released(Duration::ZERO), None);
        };
        let made = attempt(&self.webhooks.client, target, delivery, config.timeout);
        let made = tokio::select! {
            made = made => made,
            // Whoever comes after us makes it again, at once.
            () = self.out_of_time() => return done(Outcome::Released(Duration::ZERO), None),
        };
        fail::point("after_webhook_answer");
        let Some((answer, made)) = made else {
            tracing::error!(endpoint = %delivery.endpoint, "the secret of a webhook endpoint cannot be used");
            return done(Outcome::Released(OUR_FAULT), None);
        };
        measure(answer, &made, delivery);
        let tries = delivery.tries + 1;
        let outcome = match answer {
            Answer::Accepted => Outcome::Delivered(made),
            Answer::Refused | Answer::TimedOut | Answer::Unreachable if tries < config.attempts => {
                Outcome::Retry(made, config.backoff.pause(tries))
            }
            _ => Outcome::Failed(made),
        };
        done(outcome, Some(answer))
    }

    /// The server is going, and has waited for as long as it may.
    async fn out_of_time(&self) {
        self.shutdown.cancelled().await;
        tokio::time::sleep(self.drain).await;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<WebhookEndpointId, usize>> {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What waits, for whoever looks at the metrics of any server.
    async fn watch(&self) {
        loop {
            match self.store.webhook_backlog().await {
                #[expect(clippy::cast_precision_loss, reason = "no such number of rows")]
                Ok(backlog) => {
                    metrics::gauge!("selfsame_webhook_backlog").set(backlog.due as f64);
                    metrics::gauge!("selfsame_webhook_waiting").set(backlog.waiting as f64);
                    metrics::gauge!("selfsame_webhook_oldest_seconds").set(backlog.oldest_seconds);
                    metrics::gauge!("selfsame_webhook_endpoints_disabled")
                        .set(backlog.disabled_endpoints as f64);
                }
                Err(error) => tracing::debug!(%error, "cannot measure the backlog of webhooks"),
            }
            tokio::time::sleep(jittered(WATCH)).await;
        }
    }
}

/// Whether some endpoint has all that it may have after a claim, so that more of it may be due. Judged by what was
/// under way before the claim: a fast receiver has answered again before the last attempt has begun.
fn is_full(claimed: &[ClaimedDelivery], busy: &[(WebhookEndpointId, usize)], each: usize) -> bool {
    let mut counts: HashMap<_, usize> = busy.iter().copied().collect();
    for delivery in claimed {
        *counts.entry(delivery.endpoint).or_default() += 1;
    }
    counts.values().any(|count| *count >= each)
}

fn measure(answer: Answer, made: &WebhookAttempt, delivery: &ClaimedDelivery) {
    let label = answer.label();
    metrics::counter!("selfsame_webhook_attempts_total", "outcome" => label).increment(1);
    metrics::histogram!("selfsame_webhook_attempt_duration_seconds")
        .record(f64::from(made.duration_ms) / 1e3);
    if answer == Answer::Accepted {
        let lag = made.at.seconds_since(delivery.created_at);
        metrics::histogram!("selfsame_webhook_lag_seconds").record(lag);
    }
    tracing::debug!(
        endpoint = %delivery.endpoint,
        event = %delivery.event,
        outcome = label,
        status = made.status_code,
        error = made.error,
        "attempted a delivery"
    );
}

/// What came of an attempt, for the recorder.
#[derive(Debug)]
struct Done {
    result: DeliveryResult,
    /// `None` when nothing was sent.
    answer: Option<Answer>,
    /// The endpoint was failing before.
    failing: bool,
}

/// An attempt's place among those under way.
#[derive(Debug)]
struct Slot {
    inner: Arc<Inner>,
    endpoint: WebhookEndpointId,
    failing: bool,
}

impl Slot {
    fn take(inner: &Arc<Inner>, endpoint: WebhookEndpointId, failing: bool) -> Self {
        inner.running.fetch_add(1, Ordering::Relaxed);
        inner
            .running_failing
            .fetch_add(usize::from(failing), Ordering::Relaxed);
        *inner.lock().entry(endpoint).or_default() += 1;
        Self {
            inner: Arc::clone(inner),
            endpoint,
            failing,
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let inner = &self.inner;
        let mut busy = inner.lock();
        if let Some(count) = busy.get_mut(&self.endpoint) {
            *count -= 1;
            if *count == 0 {
                busy.remove(&self.endpoint);
            }
        }
        drop(busy);
        inner
            .running_failing
            .fetch_sub(usize::from(self.failing), Ordering::Relaxed);
        inner.running.fetch_sub(1, Ordering::Relaxed);
        inner.room.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use selfsame_types::{Timestamp, WebhookEventId};

    use super::*;

    #[test]
    fn a_claim_that_filled_an_endpoint_may_have_left_some() {
        let (one, other) = (WebhookEndpointId::new(), WebhookEndpointId::new());
        let at = Timestamp::from_micros(0);
        let claimed: Vec<_> = [one, one, other]
            .map(|endpoint| ClaimedDelivery {
                endpoint,
                event: WebhookEventId::new(),
                body: String::new(),
                created_at: at,
                tries: 0,
                now: at,
            })
            .into();
        assert!(is_full(&claimed, &[], 2));
        assert!(!is_full(&claimed, &[], 3));
        assert!(is_full(&claimed, &[(other, 2)], 3));
        assert!(is_full(&[], &[(one, 3)], 3));
        assert!(!is_full(&[], &[(one, 2)], 3));
    }
}
