//! The pure machine: what a session is doing, and what may happen next.
//!
//! No I/O, no clock, no randomness: times and ids come in as arguments. A [`Step`] takes the saved
//! [`Machine`], emits events, folds each one into the state as it does so, and hands back both; the
//! store writes them in one transaction under the session's lock. So the state is always the fold of
//! the log, which a property test checks by folding the log again.
//!
//! ```text
//!            inputs.rs: what clients send          work.rs: what the runner did
//!                     \                                  /
//!                      Step::emit -> Machine::fold -> Step::settle (idle? resume? grade?)
//!                                        |
//!                       next.rs: what the runner should do now
//! ```
//!
//! A session's threads run beside each other: the primary one, the children that it has started
//! (coordinate.rs), and advisors that it asks. An outcome (outcome.rs) is what the primary thread works
//! towards: when all is quiet, its work is graded before the session may idle.

mod coordinate;
mod fold;
mod inputs;
mod next;
mod outcome;
mod payload;
mod step;
mod work;

#[cfg(test)]
mod tests;

use selfsame_types::{CredentialId, EventId, ThreadId, Timestamp};
use serde::{Deserialize, Serialize};

pub use coordinate::{Coordination, MAX_CHILDREN};
pub use inputs::{Input, InputKind};
pub use next::Next;
pub use outcome::Outcome;
pub use payload::{
    About, ErrorType, HiddenCall, HiddenResult, McpTool, ModelUsage, Payload, Permission, Private,
    RetryStatus, StopReason, Trouble,
};
pub use step::{INTERRUPTED, Spawned, Step, Written};
pub use work::{
    BlockContent, CallResult, Failure, NewCall, Response, ResponseBlock, Sequel, Verdict,
};

/// What a session or thread is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    Idle,
    Running,
    Rescheduling,
    Terminated,
}

impl Status {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Running => "running",
            Self::Rescheduling => "rescheduling",
            Self::Terminated => "terminated",
        }
    }
}

/// A session's saved state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    pub status: Status,
    /// The primary thread comes first, then its children in the order they came. One that is over is
    /// here no more.
    pub threads: Vec<Thread>,
    /// Children that there have ever been.
    pub spawned: u32,
    /// In the order of their definition. At most one is not over, or two, of which an accepted interrupt
    /// is going to end the first.
    pub outcomes: Vec<Outcome>,
    /// Of threads that are over, and of graders.
    pub past: Past,
    /// Time with at least one thread running, up to `running_since`.
    pub active_us: i64,
    pub running_since: Option<Timestamp>,
    /// When it was terminated.
    pub ended_at: Option<Timestamp>,
    /// Credentials whose host cannot be reached, as clients were told.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unreachable: Vec<CredentialId>,
}

/// What no thread of the state has used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Past {
    pub usage: ModelUsage,
    pub active_us: i64,
}

/// What a thread is to its session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    Primary,
    /// Works for the primary thread, as often as that sends it something.
    Child,
    /// Answers one question of the primary thread: this call.
    Advisor {
        call: EventId,
    },
}

/// One conversation with a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Thread {
    pub id: ThreadId,
    pub role: Role,
    pub agent_name: String,
    pub status: Status,
    /// Why it idles; `None` until it first does.
    pub stop: Option<StopReason>,
    /// Inputs that are stored and not yet processed, in order.
    pub queue: Vec<QueuedInput>,
    /// Calls of the last response that have no result yet, in the order the model made them.
    pub calls: Vec<Call>,
    /// The open span of the request in flight.
    pub request: Option<EventId>,
    /// The model has something to answer: new input or complete results.
    pub due: bool,
    /// Position of the newest message of a thread, or of the session itself, that no request has shown.
    pub mail: Option<i64>,
    /// An accepted interrupt of the session is to stop it.
    pub stopping: bool,
    /// How the turn ends when nothing is left to do.
    pub sequel: StopReason,
    /// Failures in a row of the present request.
    pub attempt: u32,
    /// When the next attempt starts.
    pub wake_at: Option<Timestamp>,
    pub usage: ModelUsage,
    pub active_us: i64,
    pub running_since: Option<Timestamp>,
    /// It has finished a turn.
    pub was_idle: bool,
    pub ended_at: Option<Timestamp>,
}

/// An input that waits for its turn.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueuedInput {
    pub id: EventId,
    pub seq: i64,
    pub kind: QueuedKind,
    /// The event's own fields, to write its processed form without reading the log.
    pub fields: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QueuedKind {
    Message,
    System,
    /// Of the thread in whose queue it is.
    Interrupt,
    /// Of every thread; it stands in the primary thread's queue.
    InterruptAll,
}

impl QueuedKind {
    #[must_use]
    pub fn is_interrupt(self) -> bool {
        matches!(self, Self::Interrupt | Self::InterruptAll)
    }
}

/// A call that the model made and that has no result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    pub id: EventId,
    pub kind: CallKind,
    /// Bash, write and edit: later calls of the same response wait for them.
    pub serial: bool,
    pub state: CallState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CallKind {
    /// Runs in the sandbox or in the server.
    Builtin,
    /// Runs at an MCP server.
    Mcp,
    /// Runs at the client.
    Custom,
    /// A question to an advisor: its thread answers it. Clients see no such call.
    Advice,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CallState {
    /// May run, or runs already: only the runner knows which.
    Ready,
    /// Waits for a confirmation, or for the client's own result.
    Waiting,
    /// The client said yes.
    Allowed,
    /// The client said no.
    Denied(Option<String>),
}

impl Call {
    /// Waits for a client.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        self.state == CallState::Waiting
    }

    /// The runner may execute it.
    #[must_use]
    pub fn is_runnable(&self) -> bool {
        self.kind != CallKind::Advice && matches!(self.state, CallState::Ready | CallState::Allowed)
    }
}

impl Thread {
    fn new(id: ThreadId, role: Role, agent_name: String) -> Self {
        Self {
            id,
            role,
            agent_name,
            status: Status::Idle,
            stop: None,
            queue: Vec::new(),
            calls: Vec::new(),
            request: None,
            due: false,
            mail: None,
            stopping: false,
            sequel: StopReason::EndTurn,
            attempt: 0,
            wake_at: None,
            usage: ModelUsage::default(),
            active_us: 0,
            running_since: None,
            was_idle: false,
            ended_at: None,
        }
    }

    #[must_use]
    pub fn is_primary(&self) -> bool {
        self.role == Role::Primary
    }

    /// It runs, or waits for another attempt to.
    #[must_use]
    pub fn works(&self) -> bool {
        matches!(self.status, Status::Running | Status::Rescheduling)
    }

    /// It has run, or runs now.
    #[must_use]
    pub fn has_run(&self) -> bool {
        self.was_idle || self.active_us > 0 || self.running_since.is_some()
    }

    /// An interrupt has been accepted and not yet carried out.
    #[must_use]
    pub fn is_interrupted(&self) -> bool {
        self.stopping || self.queue.iter().any(|input| input.kind.is_interrupt())
    }

    /// Something was sent to it that its next request is to answer.
    #[must_use]
    fn has_input(&self) -> bool {
        self.mail.is_some() || self.queue.iter().any(|i| i.kind == QueuedKind::Message)
    }

    /// Ids of the calls that wait for a client.
    #[must_use]
    pub fn waiting(&self) -> Vec<EventId> {
        self.calls
            .iter()
            .filter(|call| call.is_waiting())
            .map(|call| call.id)
            .collect()
    }

    /// Running time until `now`, in microseconds.
    #[must_use]
    pub fn active_until(&self, now: Timestamp) -> i64 {
        self.active_us + elapsed(self.running_since, now)
    }
}

fn elapsed(since: Option<Timestamp>, now: Timestamp) -> i64 {
    since.map_or(0, |since| (now.as_micros() - since.as_micros()).max(0))
}

impl Machine {
    /// A session that has not begun.
    #[must_use]
    pub fn new(primary: ThreadId, agent_name: String) -> Self {
        Self {
            status: Status::Idle,
            threads: vec![Thread::new(primary, Role::Primary, agent_name)],
            spawned: 0,
            outcomes: Vec::new(),
            past: Past::default(),
            active_us: 0,
            running_since: None,
            ended_at: None,
            unreachable: Vec::new(),
        }
    }

    /// # Panics
    /// Never: a machine has its primary thread from the start.
    #[must_use]
    pub fn primary(&self) -> &Thread {
        &self.threads[0]
    }

    #[must_use]
    pub fn thread(&self, id: ThreadId) -> Option<&Thread> {
        self.threads.iter().find(|thread| thread.id == id)
    }

    fn thread_mut(&mut self, id: ThreadId) -> Option<&mut Thread> {
        self.threads.iter_mut().find(|thread| thread.id == id)
    }

    /// Time with at least one thread running, until `now`, in microseconds.
    #[must_use]
    pub fn active_until(&self, now: Timestamp) -> i64 {
        self.active_us + elapsed(self.running_since, now)
    }

    /// Tokens over all threads.
    #[must_use]
    pub fn usage(&self) -> ModelUsage {
        self.threads
            .iter()
            .fold(self.past.usage, |mut sum, thread| {
                sum.add(&thread.usage);
                sum
            })
    }

    /// Ids of every call that waits for a client, over all threads.
    #[must_use]
    pub fn waiting(&self) -> Vec<EventId> {
        self.threads.iter().flat_map(Thread::waiting).collect()
    }

    /// Positions of inputs that are still queued.
    #[must_use]
    pub fn queued(&self) -> Vec<i64> {
        let mut queued: Vec<i64> = self
            .threads
            .iter()
            .flat_map(|t| t.queue.iter().map(|input| input.seq))
            .collect();
        queued.sort_unstable();
        queued
    }

    /// When somebody should look after this session: at once, later, or not before a client speaks.
    #[must_use]
    pub fn wake_at(&self, now: Timestamp) -> Option<Timestamp> {
        self.threads
            .iter()
            .filter_map(|thread| match thread.status {
                Status::Running => Some(now),
                Status::Rescheduling if thread.is_interrupted() => Some(now),
                Status::Rescheduling => Some(thread.wake_at.unwrap_or(now)),
                // An interrupt of the session that waits for its other threads.
                Status::Idle if thread.is_interrupted() => Some(now),
                Status::Idle | Status::Terminated => None,
            })
            .min()
    }
}
