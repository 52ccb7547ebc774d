//! Outcomes: what a session is to achieve, and how its work is graded until it has.
//!
//! An outcome is *pending* until the primary thread's model is first asked about it, *running* while the
//! agent works, *evaluating* while a grader looks at the work, and then over, or running again with what
//! the grader found. Work is graded when the primary thread has ended its turn and nothing else runs or
//! waits for a client; meanwhile the primary thread counts as running.

use selfsame_types::{
    ApiError, EventId, OutcomeId, Timestamp,
    session::{OutcomeEvaluation, OutcomeEvaluationType, OutcomeResult},
};
use serde::{Deserialize, Serialize};

use crate::outcomes::{Judgement, Verdict};

use super::{Failure, Machine, ModelUsage, Payload, Status, Step, StopReason};

/// An outcome and how far it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    pub id: OutcomeId,
    /// Its definition in the log, where the rubric is ..
    pub event: EventId,
    /// .. at this position.
    pub seq: i64,
    pub description: String,
    /// Evaluations there may be.
    pub max_iterations: u32,
    /// From 0.
    pub iteration: u32,
    pub result: OutcomeResult,
    /// The open evaluation.
    pub span: Option<EventId>,
    /// Tokens of the open evaluation's attempts that have failed.
    pub spent: ModelUsage,
    /// What the latest evaluation said.
    pub explanation: Option<String>,
    pub completed_at: Option<Timestamp>,
}

impl Outcome {
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.completed_at.is_some()
    }

    /// As the session shows it.
    #[must_use]
    pub fn evaluation(&self) -> OutcomeEvaluation {
        OutcomeEvaluation {
            r#type: OutcomeEvaluationType,
            outcome_id: self.id,
            description: self.description.clone(),
            result: self.result,
            iteration: self.iteration,
            explanation: self.explanation.clone(),
            completed_at: self.completed_at,
        }
    }
}

/// A result as an evaluation's end names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EvaluationResult {
    Satisfied,
    NeedsRevision,
    MaxIterationsReached,
    Failed,
    Interrupted,
}

impl EvaluationResult {
    /// What becomes of the outcome.
    pub(super) fn outcome(self) -> OutcomeResult {
        match self {
            Self::Satisfied => OutcomeResult::Satisfied,
            Self::NeedsRevision => OutcomeResult::Running,
            Self::MaxIterationsReached => OutcomeResult::MaxIterationsReached,
            Self::Failed => OutcomeResult::Failed,
            Self::Interrupted => OutcomeResult::Interrupted,
        }
    }

    /// The agent works on with what the grader found.
    pub(super) fn goes_on(self) -> bool {
        matches!(self, Self::NeedsRevision | Self::MaxIterationsReached)
    }
}

impl Machine {
    /// The outcome that the session works towards.
    #[must_use]
    pub fn outcome(&self) -> Option<&Outcome> {
        self.outcomes.iter().find(|outcome| !outcome.is_over())
    }

    pub(super) fn outcome_mut(&mut self, id: OutcomeId) -> Option<&mut Outcome> {
        self.outcomes.iter_mut().find(|outcome| outcome.id == id)
    }

    /// The outcome whose work is being graded, and the span of that.
    #[must_use]
    pub fn grading(&self) -> Option<(&Outcome, EventId)> {
        let outcome = self.outcome()?;
        Some((outcome, outcome.span?))
    }
}

impl Step<'_> {
    /// One outcome at a time, unless an interrupt ends the one before.
    pub(super) fn refuse_second_outcome(&self, index: usize) -> Result<(), ApiError> {
        // An interrupt that waits to be carried out ends what was defined before it.
        let interrupted = self
            .machine
            .primary()
            .queue
            .iter()
            .filter(|input| input.kind.is_interrupt())
            .map(|input| input.seq)
            .max()
            .unwrap_or(0);
        let active = self
            .machine
            .outcomes
            .iter()
            .find(|outcome| !outcome.is_over() && outcome.seq > interrupted);
        match active {
            None => Ok(()),
            Some(outcome) => Err(ApiError::invalid(format!(
                "Invalid user.define_outcome event at events[{index}]: an outcome is already active \
                 ({}); wait for its end, or send `user.interrupt` before the new one",
                outcome.id
            ))),
        }
    }

    /// All is quiet, and there is work to grade. `ending`: the primary thread is about to end its turn.
    pub(super) fn may_grade(&self, ending: bool) -> bool {
        let primary = self.machine.primary();
        let rests = primary.status == Status::Idle && primary.stop == Some(StopReason::EndTurn);
        self.machine
            .outcome()
            .is_some_and(|outcome| outcome.result == OutcomeResult::Running)
            && (ending || rests)
            && !primary.is_interrupted()
            && primary.calls.is_empty()
            && self.machine.threads[1..]
                .iter()
                .all(|t| !t.works() && t.calls.is_empty())
    }

    /// The primary thread's work is looked at.
    pub(super) fn start_grading(&mut self) {
        let Some(outcome) = self.machine.outcome() else {
            return;
        };
        let (id, iteration) = (outcome.id, outcome.iteration);
        let primary = self.machine.primary().id;
        self.run(primary);
        self.emit(
            primary,
            &Payload::EvaluationStart {
                outcome: id,
                iteration,
            },
        );
    }

    /// The grader is still at work.
    pub fn grading_goes_on(&mut self, span: EventId) {
        let Some((outcome, _)) = self.machine.grading().filter(|(_, open)| *open == span) else {
            return;
        };
        let (outcome, iteration) = (outcome.id, outcome.iteration);
        if self.machine.primary().status == Status::Running {
            let primary = self.machine.primary().id;
            self.emit(primary, &Payload::EvaluationOngoing { outcome, iteration });
        }
    }

    /// Grading that waited for another attempt begins again.
    pub fn resume_grading(&mut self, span: EventId) {
        let primary = self.machine.primary();
        let waits = primary.status == Status::Rescheduling
            && !primary.is_interrupted()
            && self.machine.grading().is_some_and(|(_, open)| open == span);
        if waits {
            let primary = primary.id;
            self.run(primary);
        }
    }

    /// Closes an evaluation with the grader's word. `usage` is of all its requests, but those of attempts
    /// that failed.
    pub fn finish_grading(&mut self, span: EventId, verdict: Verdict, usage: &ModelUsage) {
        let Some((outcome, _)) = self.machine.grading().filter(|(_, open)| *open == span) else {
            return;
        };
        if self.machine.primary().status != Status::Running {
            return;
        }
        let last = outcome.iteration + 1 >= outcome.max_iterations;
        let result = match verdict.judgement {
            Judgement::Satisfied => EvaluationResult::Satisfied,
            Judgement::NeedsRevision if last => EvaluationResult::MaxIterationsReached,
            Judgement::NeedsRevision => EvaluationResult::NeedsRevision,
            Judgement::Failed => EvaluationResult::Failed,
        };
        let mut sum = outcome.spent;
        sum.add(usage);
        let (outcome, iteration) = (outcome.id, outcome.iteration);
        let primary = self.machine.primary().id;
        self.emit(
            primary,
            &Payload::EvaluationEnd {
                start: Some(span),
                outcome,
                iteration,
                result,
                explanation: verdict.explanation,
                usage: sum,
            },
        );
        self.settle(primary, &[]);
    }

    /// The grader could not come to a verdict: there is another attempt, or the turn is over and the
    /// outcome stays open.
    pub fn fail_grading(&mut self, span: EventId, failure: Failure) {
        let primary = self.machine.primary();
        let open = self.machine.grading().is_some_and(|(_, open)| open == span);
        if !open || primary.status != Status::Running || primary.is_interrupted() {
            return;
        }
        let (primary, attempt) = (primary.id, primary.attempt + 1);
        self.give_way(primary, attempt, failure);
    }

    /// An interrupt ends what was defined before it.
    pub(super) fn end_outcomes_before(&mut self, until: i64) {
        let primary = self.machine.primary().id;
        let ended: Vec<_> = self
            .machine
            .outcomes
            .iter()
            .filter(|outcome| !outcome.is_over() && outcome.seq < until)
            .map(|outcome| (outcome.id, outcome.iteration, outcome.span))
            .collect();
        for (outcome, iteration, start) in ended {
            self.emit(
                primary,
                &Payload::EvaluationEnd {
                    start,
                    outcome,
                    iteration,
                    result: EvaluationResult::Interrupted,
                    explanation: String::new(),
                    usage: ModelUsage::default(),
                },
            );
        }
    }
}
