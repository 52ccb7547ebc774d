//! Grading: a job beside the session's threads, and its word in the log.

use std::{sync::Arc, time::Duration};

use selfsame_types::EventId;

use super::{Done, Runner, Stopped};
use crate::{
    ask,
    machine::Failure,
    outcomes::{self, Graded, Grading},
};

/// Clients hear of a grader that takes longer than this ..
const FIRST_WORD: Duration = Duration::from_secs(5);
/// .. and again this often.
const FURTHER_WORDS: Duration = Duration::from_secs(15);

impl Runner {
    /// Has the work graded, unless it is being graded.
    pub(super) fn grade(&mut self, span: EventId) {
        if self.grading.as_ref().is_some_and(|(open, _)| *open == span) {
            return;
        }
        let Some((outcome, _)) = self.machine.grading() else {
            return;
        };
        let inner = Arc::clone(&self.inner);
        let grading = Grading {
            session: self.session,
            epoch: self.epoch,
            thread: self.machine.primary().id,
            span,
            outcome: outcome.clone(),
            spec: Arc::clone(&self.spec),
        };
        let grader = self.jobs.spawn(async move {
            let graded = outcomes::grade(&inner, grading).await;
            Done::Graded { span, graded }
        });
        let clock = self.still_grading_in(span, FIRST_WORD);
        self.grading = Some((span, [grader, clock]));
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
        let clock = self.still_grading_in(span, FURTHER_WORDS);
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
        match graded {
            Graded::Grade { grade, requests } => {
                let appended = self
                    .append_and_begin(&requests, |step, _| {
                        step.finish_grading(span, grade.clone());
                    })
                    .await?;
                self.send_begun(appended).await
            }
            Graded::Failed {
                error,
                usage,
                requests,
            } => {
                metrics::counter!("selfsame_model_request_failures_total").increment(1);
                tracing::warn!(session = %self.session, %error, "a grading failed");
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
