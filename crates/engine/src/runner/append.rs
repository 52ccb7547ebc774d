//! How a runner writes: decide under the lock, append, publish, take over the new state.

use selfsame_store::{Actor, Appended, Change, Guard, Head, LeaseChange, ModelRequest, Row};
use selfsame_types::{EventId, Timestamp, event::EventType};

use super::{Runner, STORE_RETRIES, STORE_RETRY, Stopped, begin};
use crate::{
    change::{change, works},
    machine::{Machine, Step},
};

impl Runner {
    pub(super) async fn append(
        &mut self,
        ledger: &[ModelRequest],
        decide: impl Fn(&mut Step<'_>) + Send + Sync,
    ) -> Result<Option<Appended>, Stopped> {
        self.append_at(ledger, |step, _| decide(step)).await
    }

    /// Appends a decision and opens every request that it makes due. They are to be sent.
    pub(super) async fn append_and_begin(
        &mut self,
        ledger: &[ModelRequest],
        decide: impl Fn(&mut Step<'_>, Timestamp) + Send + Sync,
    ) -> Result<Option<Appended>, Stopped> {
        let (may_ask, ready) = (self.may_ask(), self.ready());
        self.append_at(ledger, |step, now| {
            decide(step, now);
            if may_ask {
                begin(step, |thread| {
                    ready.as_ref().is_none_or(|ready| ready.contains(&thread))
                });
            }
        })
        .await
    }

    /// Sends the requests that an append has opened.
    pub(super) async fn send_begun(&mut self, appended: Option<Appended>) -> Result<(), Stopped> {
        let Some(appended) = appended else {
            return Ok(());
        };
        for row in &appended.rows {
            if row.event_type == EventType::SpanModelRequestStart {
                self.send(row.thread, row.id, row.seq, appended.at).await?;
            }
        }
        Ok(())
    }

    /// Appends what `decide` makes of the present state. While the database is away the decision is
    /// repeated, so it must be one that a state it has already been applied to leaves alone.
    pub(super) async fn append_at(
        &mut self,
        ledger: &[ModelRequest],
        decide: impl Fn(&mut Step<'_>, Timestamp) + Send + Sync,
    ) -> Result<Option<Appended>, Stopped> {
        let mut failures = 0;
        loop {
            match self.append_once(ledger, &decide).await {
                Err(Stopped::Store(error)) if error.is_transient() && failures < STORE_RETRIES => {
                    failures += 1;
                    tracing::warn!(session = %self.session, %error, failures, "cannot append yet");
                    tokio::time::sleep(STORE_RETRY).await;
                }
                done => return done,
            }
        }
    }

    /// Lets the lease go in the same transaction when the session is done for now.
    async fn append_once(
        &mut self,
        ledger: &[ModelRequest],
        decide: &(impl Fn(&mut Step<'_>, Timestamp) + Send + Sync),
    ) -> Result<Option<Appended>, Stopped> {
        let guard = Guard::Runner {
            server: self.inner.server,
            epoch: self.epoch,
        };
        let (known_seq, known) = (self.last_seq, &self.machine);
        let mut found: Option<Result<(Machine, i64), serde_json::Error>> = None;
        let appended = self
            .inner
            .store
            .append(self.session, guard, &Actor::default(), |head: &Head| {
                let machine = if head.last_seq == known_seq {
                    known.clone()
                } else {
                    match serde_json::from_str(&head.machine) {
                        Ok(machine) => machine,
                        Err(error) => {
                            found = Some(Err(error));
                            return Ok(None);
                        }
                    }
                };
                let mut new_id = EventId::new;
                let mut step = Step::new(machine, head.last_seq, head.now, &mut new_id);
                decide(&mut step, head.now);
                let (machine, written) = step.finish();
                found = Some(Ok((machine.clone(), head.last_seq)));
                if written.events.is_empty() {
                    return Ok(None);
                }
                let lease = if works(&machine) {
                    LeaseChange::Keep
                } else {
                    LeaseChange::Release { unclean: false }
                };
                Ok(Some(Change {
                    requests: ledger.to_vec(),
                    ..change(&machine, written, head.now, lease)
                }))
            })
            .await?;
        if let Some(found) = found {
            (self.machine, self.last_seq) = found?;
        }
        if let Some(appended) = &appended {
            self.take_over(&appended.rows)?;
            self.link.seen(self.last_seq);
            self.inner.published(self.session, &appended.rows);
        }
        Ok(appended)
    }

    fn take_over(&mut self, rows: &[Row]) -> Result<(), Stopped> {
        let (Some(first), Some(last)) = (rows.first(), rows.last()) else {
            return Ok(());
        };
        for (thread, transcript) in &mut self.transcripts {
            // Only what joins up: a gap is read from the log before the next request.
            if transcript.last_seq + 1 == first.seq {
                transcript.extend(rows.iter().filter(|row| row.thread == *thread))?;
                transcript.last_seq = last.seq;
            }
        }
        self.last_seq = last.seq;
        if self.transcripts.len() > self.machine.threads.len() {
            // Nobody asks the model of a thread that is over.
            self.transcripts
                .retain(|thread, _| self.machine.thread(*thread).is_some());
            self.specs
                .retain(|thread, _| self.machine.thread(*thread).is_some());
        }
        Ok(())
    }
}
