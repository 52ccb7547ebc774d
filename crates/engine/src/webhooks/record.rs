//! Results, written in batches: many attempts end while one write is on its way.

use std::{collections::HashMap, time::Duration};

use selfsame_store::{DeliveryResult, Store, StoreError};
use selfsame_types::{ServerId, WebhookEndpointId};
use tokio::{sync::mpsc, time::Instant};

use super::{Answer, Done, PATIENCE};

/// Most results of one write.
const BATCH: usize = 500;
const SUSTAINED: &str = "auto-disabled after sustained delivery failures";

/// The only one who writes results on this server.
#[derive(Debug)]
pub(super) struct Recorder {
    store: Store,
    server: ServerId,
    disable_after: (Duration, u32),
}

/// How an endpoint did in one batch.
#[derive(Debug, Default, PartialEq)]
struct Tally {
    /// Some attempt was a success.
    succeeded: bool,
    /// Failures since the last success.
    failures: u32,
    /// It was failing before.
    failing: bool,
    forbidden: Option<&'static str>,
}

impl Recorder {
    pub(super) fn new(store: Store, server: ServerId, disable_after: (Duration, u32)) -> Self {
        Self {
            store,
            server,
            disable_after,
        }
    }

    /// Until everybody is gone who could have a result.
    pub(super) async fn run(self, mut results: mpsc::UnboundedReceiver<Done>) {
        let mut batch = Vec::new();
        while results.recv_many(&mut batch, BATCH).await > 0 {
            self.write(std::mem::take(&mut batch)).await;
        }
    }

    async fn write(&self, batch: Vec<Done>) {
        let tallies = tally(&batch);
        let results: Vec<_> = batch.into_iter().map(|done| done.result).collect();
        if let Err(error) = self.record(&results).await {
            // They stay claimed until that is taken for lost, and are then attempted again.
            tracing::error!(%error, count = results.len(), "results of webhooks are lost");
        }
        for (endpoint, tally) in tallies {
            if let Err(error) = self.judge(endpoint, &tally).await {
                tracing::warn!(%endpoint, %error, "cannot note how a webhook endpoint is doing");
            }
        }
    }

    async fn record(&self, results: &[DeliveryResult]) -> Result<(), StoreError> {
        let since = Instant::now();
        loop {
            match self.store.webhook_record(self.server, results).await {
                Err(error) if error.is_transient() && since.elapsed() < PATIENCE => {
                    tracing::debug!(%error, "cannot write results of webhooks yet");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                done => return done,
            }
        }
    }

    async fn judge(&self, endpoint: WebhookEndpointId, tally: &Tally) -> Result<(), StoreError> {
        let mut reason = tally.forbidden;
        if tally.failures > 0 || tally.failing {
            let sustained = self
                .store
                .webhook_endpoint_health(
                    endpoint,
                    tally.succeeded,
                    tally.failures,
                    self.disable_after,
                )
                .await?;
            reason = reason.or(sustained.then_some(SUSTAINED));
        }
        if let Some(reason) = reason
            && self
                .store
                .webhook_endpoint_disable(endpoint, reason)
                .await?
        {
            metrics::counter!("selfsame_webhook_endpoints_disabled_total").increment(1);
            tracing::warn!(%endpoint, reason, "disabled a webhook endpoint");
        }
        Ok(())
    }
}

fn tally(batch: &[Done]) -> HashMap<WebhookEndpointId, Tally> {
    let mut tallies: HashMap<_, Tally> = HashMap::new();
    for done in batch {
        let Some(answer) = done.answer else { continue };
        let tally = tallies.entry(done.result.endpoint).or_default();
        tally.failing |= done.failing;
        match answer {
            Answer::Accepted => {
                tally.succeeded = true;
                tally.failures = 0;
            }
            Answer::Forbidden(reason) => {
                tally.failures += 1;
                tally.forbidden = Some(reason);
            }
            Answer::Refused | Answer::TimedOut | Answer::Unreachable => tally.failures += 1,
        }
    }
    tallies
}

#[cfg(test)]
mod tests {
    use selfsame_store::Outcome;
    use selfsame_types::WebhookEventId;

    use super::*;

    #[test]
    fn one_success_ends_a_row_of_failures() {
        let endpoint = WebhookEndpointId::new();
        let done = |answer, failing| Done {
            result: DeliveryResult {
                endpoint,
                event: WebhookEventId::new(),
                outcome: Outcome::Released(Duration::ZERO),
            },
            answer,
            failing,
        };
        let batch = [
            done(Some(Answer::Refused), true),
            done(Some(Answer::Accepted), true),
            done(Some(Answer::TimedOut), false),
            done(None, false),
        ];
        let wanted = Tally {
            succeeded: true,
            failures: 1,
            failing: true,
            forbidden: None,
        };
        assert_eq!(tally(&batch), HashMap::from([(endpoint, wanted)]));
        let forbidden = tally(&[done(Some(Answer::Forbidden("x")), false)]);
        assert_eq!(forbidden[&endpoint].forbidden, Some("x"));
        assert!(tally(&[done(None, true)]).is_empty());
    }
}
