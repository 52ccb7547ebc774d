//! Grading: a job beside the session's threads, and its word in the log.

use std::{sync::Arc, time::Duration};

use selfsame_types::{EventId, outcome::DefinedOutcome};

use super::{Done, Runner, Stopped, retry};
use crate::{
    ask, fail,
    machine::Failure,
    outcomes::{FIRST_HEARTBEAT, Graded, Grader, Grading, HEARTBEAT},
};

impl Runner {
    /// Has the work graded, unless it is being graded.
    pub(super) async fn grade(&mut self, span: EventId) -> Result<(), Stopped> {
        if self.grading.as_ref().is_some_and(|(open, _)| *open == span) {
            return Ok(());
        }
        let grader = match self.grader.take() {
            Some((open, grader)) if open == span => grader,
            _ => Box::new(self.new_grader().await?),
        };
        let grader = self.jobs.spawn(async move {
            let graded = Box::new(grader.run().await);
            Done::Graded { span, graded }
        });
        let clock = self.still_grading_in(span, FIRST_HEARTBEAT);
        self.grading = Some((span, [grader, clock]));
        Ok(())
    }

    async fn new_grader(&mut self) -> Result<Grader, Stopped> {
        const NONE: Stopped = Stopped::Contradiction("an outcome of the state is not in the log");
        let thread = self.machine.primary().id;
        let (outcome, _) = self.machine.grading().ok_or(NONE)?;
        let (session, seq) = (self.session, outcome.seq);
        let store = &self.inner.store;
        // Rubrics are long, and only the log has them.
        let rows = retry(|| store.event_transcript(session, thread, seq - 1, 1)).await?;
        let row = rows.into_iter().find(|row| row.seq == seq).ok_or(NONE)?;
        let outcome: DefinedOutcome = serde_json::from_str(&row.body)?;
        self.load(thread).await?;
        let grading = Grading {
            session,
            thread,
            epoch: self.epoch,
            outcome,
            last_message: self.transcripts[&thread].last_message(),
        };
        let (inner, spec) = (Arc::clone(&self.inner), Arc::clone(&self.spec));
        Ok(Grader::new(inner, spec, grading))
    }

    fn still_grading_in(&mut self, span: EventId, after: Duration) -> tokio::task::AbortHandle {
        self.jobs.spawn(async move {
            tokio::time::sleep(after).await;
            Done::StillGrading { span }
        })
    }

    /// Clients see that the grader is still at work.
    pub(super) async fn still_grading(&mut self, span: EventId) -> Result<(), Stopped> {
        if self.grading.as_ref().is_none_or(|(open, _)| *open != span) {
            return Ok(());
        }
        self.append(&[], |step| step.grading_goes_on(span)).await?;
        let clock = self.still_grading_in(span, HEARTBEAT);
        if let Some((_, [_, old])) = &mut self.grading {
            *old = clock;
        }
        Ok(())
    }

    pub(super) fn stop_grading(&mut self) {
        if let Some((_, handles)) = self.grading.take() {
            for handle in handles {
                handle.abort();
            }
        }
    }

    /// A grader is done, one way or the other.
    pub(super) async fn graded(&mut self, span: EventId, graded: Graded) -> Result<(), Stopped> {
        if self.grading.as_ref().is_none_or(|(open, _)| *open != span) {
            return Ok(());
        }
        self.stop_grading();
        let Graded {
            verdict,
            usage,
            requests,
            grader,
        } = graded;
        match verdict {
            Ok(verdict) => {
                let result = verdict.judgement.as_str();
                metrics::counter!("selfsame_outcome_evaluations_total", "result" => result)
                    .increment(1);
                fail::point("before_verdict_commit");
                let appended = self
                    .append_and_begin(&requests, |step, _| {
                        step.finish_grading(span, verdict.clone(), &usage);
                    })
                    .await?;
                fail::point("after_verdict_commit");
                self.send_begun(appended).await
            }
            Err(error) => {
                metrics::counter!("selfsame_model_request_failures_total").increment(1);
                tracing::warn!(session = %self.session, %error, "a grading failed");
                self.grader = Some((span, grader));
                let backoff = self.inner.config.backoff.clone();
                let random: f64 = rand::random();
                self.append_at(&requests, |step, now| {
                    let failed = step.machine.primary().attempt + 1;
                    let wait = error
                        .retryable
                        .then(|| backoff.wait(failed, ask::wait(&error), random))
                        .flatten();
                    let failure = Failure {
                        error_type: ask::error_type(error.kind),
                        message: error.message.clone(),
                        retry_at: wait.map(|wait| now.after(wait)),
                        usage,
                    };
                    step.fail_grading(span, failure);
                })
                .await?;
                Ok(())
            }
        }
    }
}
