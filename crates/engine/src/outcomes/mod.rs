//! Grading: what an outcome asks for, compared with what is there.

use std::sync::Arc;

use selfsame_model::ModelError;
use selfsame_store::ModelRequest;
use selfsame_types::{EventId, SessionId, ThreadId};

use crate::{
    Inner,
    machine::{Grade, ModelUsage, Outcome},
    prompt::SharedSpec,
};

/// What a grader is to look at.
#[derive(Debug)]
#[expect(dead_code, reason = "the grader that reads it is yet to come")]
pub(crate) struct Grading {
    pub session: SessionId,
    pub epoch: i64,
    /// The primary thread.
    pub thread: ThreadId,
    /// The open evaluation.
    pub span: EventId,
    pub outcome: Outcome,
    /// Of the primary thread's agent.
    pub spec: SharedSpec,
}

/// How a grading has ended.
#[derive(Debug)]
#[expect(dead_code, reason = "the grader that makes a grade is yet to come")]
pub(crate) enum Graded {
    Grade {
        grade: Grade,
        /// For the ledger.
        requests: Vec<ModelRequest>,
    },
    Failed {
        error: ModelError,
        /// Of the whole attempt.
        usage: ModelUsage,
        requests: Vec<ModelRequest>,
    },
}

/// Grades the work of a session.
pub(crate) async fn grade(_inner: &Arc<Inner>, grading: Grading) -> Graded {
    tracing::error!(session = %grading.session, outcome = %grading.outcome.id, "there is no grader");
    Graded::Failed {
        error: ModelError::permanent("This server does not grade outcomes yet."),
        usage: ModelUsage::default(),
        requests: Vec::new(),
    }
}
