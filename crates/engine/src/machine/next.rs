//! What the runner should be doing, read off the state.

use selfsame_types::{EventId, OutcomeId, ThreadId, Timestamp};

use super::{Machine, Role, Status, Thread};

/// One thing to do. The runner compares the list with what it already does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Begin a request to the model.
    Ask { thread: ThreadId },
    /// A request is open.
    Await { thread: ThreadId, request: EventId },
    /// Execute a call, unless it is being executed.
    Call { thread: ThreadId, call: EventId },
    /// Grade the work of the primary thread, unless it is being graded.
    Grade {
        thread: ThreadId,
        outcome: OutcomeId,
        span: EventId,
    },
    /// Stop what is in flight, then carry the interrupt out.
    Interrupt { thread: ThreadId },
    /// Nothing before this time.
    Wait { thread: ThreadId, until: Timestamp },
}

impl Machine {
    /// Everything that should be under way now.
    #[must_use]
    pub fn next(&self) -> Vec<Next> {
        self.threads
            .iter()
            .flat_map(|thread| self.next_of(thread))
            .collect()
    }

    /// Whether an interrupt may be carried out once nothing of the thread is in flight: one of the session
    /// is over when it is with every other thread.
    #[must_use]
    pub fn may_interrupt(&self, thread: ThreadId) -> bool {
        self.thread(thread).is_some_and(|t| {
            t.is_interrupted() && !(t.is_primary() && self.threads.iter().any(|t| t.stopping))
        })
    }

    fn next_of(&self, thread: &Thread) -> Vec<Next> {
        let id = thread.id;
        if thread.is_interrupted() {
            return vec![Next::Interrupt { thread: id }];
        }
        if thread.status == Status::Running
            && thread.role == Role::Primary
            && let Some((outcome, span)) = self.grading()
        {
            return vec![Next::Grade {
                thread: id,
                outcome: outcome.id,
                span,
            }];
        }
        next(thread)
    }
}

fn next(thread: &Thread) -> Vec<Next> {
    let id = thread.id;
    if !thread.works() {
        return Vec::new();
    }
    if thread.status == Status::Rescheduling {
        return vec![match thread.wake_at {
            Some(until) => Next::Wait { thread: id, until },
            None => Next::Ask { thread: id },
        }];
    }
    if let Some(request) = thread.request {
        return vec![Next::Await {
            thread: id,
            request,
        }];
    }
    if !thread.calls.is_empty() {
        // A call may not overtake an earlier bash, write or edit; one that waits for a human holds
        // nobody up.
        let mut blocked = false;
        let mut calls = Vec::new();
        for call in thread.calls.iter().filter(|call| call.is_runnable()) {
            if !blocked {
                calls.push(Next::Call {
                    thread: id,
                    call: call.id,
                });
            }
            blocked |= call.serial;
        }
        return calls;
    }
    // Running, nothing pending: there is something to answer, or the state would be idle.
    vec![Next::Ask { thread: id }]
}
