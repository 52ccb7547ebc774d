//! Outcomes: work that is judged by somebody who has not done it.
//!
//! ```text
//! user.define_outcome ─▶ the agent works ─▶ its turn ends ─▶ a grading ─▶ verdict ─┐
//!                              ▲                                                   │
//!                              └────────── needs_revision: the explanation ────────┘
//! ```
//!
//! The machine knows where an outcome stands; the runner starts a grading when it says so. What is here is
//! the grading itself ([`Grader`]), and the words for agent and grader.
//!
//! A grader is a model with a conversation of its own. It is shown the task, the rubric, a list of the files
//! below the outputs directory, and the agent's last message, and never what the agent thought, did or said
//! before. Three tools let it look into the sandbox; nothing it has can change anything there.
//!
//! **Everything that is judged is hostile.** It stands between delimiters that it cannot know
//! ([`fence`]), in the opening and in every result. And it can do no more than persuade: the verdict is taken
//! from one tool, in one last request that forces it, and from nothing that was said before. Its parts must
//! agree: no verdict is `satisfied` while one of its criteria is not met.
//!
//! A grading leaves nothing behind but its verdict. When a server dies in the middle of one, the next server
//! begins it anew.

mod accept;
mod conversation;
mod fence;
mod grader;
mod verdict;
mod words;

use std::time::Duration;

use selfsame_model::ModelError;
use selfsame_store::ModelRequest;
use selfsame_types::{SessionId, ThreadId, outcome::DefinedOutcome};

pub(crate) use accept::{input, read_rubrics};
pub(crate) use grader::Grader;
pub(crate) use verdict::{Judgement, Verdict};
pub(crate) use words::{feedback, task};

use crate::machine::ModelUsage;

/// A client hears of a grading that takes longer than this ..
pub(crate) const FIRST_HEARTBEAT: Duration = Duration::from_secs(5);
/// .. and then this often.
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(15);

/// What is to be graded.
#[derive(Debug)]
pub(crate) struct Grading {
    pub session: SessionId,
    /// The thread that worked on it.
    pub thread: ThreadId,
    pub epoch: i64,
    pub outcome: DefinedOutcome,
    /// The agent's last words.
    pub last_message: Option<String>,
}

/// How far a grading came.
#[derive(Debug)]
pub(crate) struct Graded {
    pub verdict: Result<Verdict, ModelError>,
    /// Of the requests of this run, failed ones included.
    pub usage: ModelUsage,
    /// For the ledger.
    pub requests: Vec<ModelRequest>,
    /// Where it stands, to be run again after an error.
    pub grader: Box<Grader>,
}
