//! How an event changes the state. Nothing else does.

use selfsame_types::{EventId, ThreadId, Timestamp, event::Processed, session::OutcomeResult};

use super::{
    About, Call, CallKind, CallState, Machine, ModelUsage, Outcome, Payload, QueuedInput,
    QueuedKind, Role, Status, StopReason, Thread, Trouble,
    outcome::EvaluationResult,
    payload::{HiddenCall, Permission},
};

/// An event at its place in the log.
#[derive(Debug, Clone, Copy)]
pub(super) struct Placed<'a> {
    pub id: EventId,
    pub seq: i64,
    pub at: Timestamp,
    pub thread: ThreadId,
    pub processed: Processed,
    pub payload: &'a Payload,
}

impl Machine {
    /// Folds one event. Answers the thread that it was the last one of.
    pub(super) fn fold(&mut self, event: Placed<'_>) -> Option<Thread> {
        match event.payload {
            Payload::SessionRunning => self.set_status(Status::Running, event.at),
            Payload::SessionIdle { .. } => self.set_status(Status::Idle, event.at),
            Payload::SessionRescheduled => self.set_status(Status::Rescheduling, event.at),
            Payload::SessionTerminated => self.set_status(Status::Terminated, event.at),
            Payload::ThreadCreated {
                thread,
                agent_name,
                role,
            } => {
                self.spawned += 1;
                self.threads
                    .push(Thread::new(*thread, *role, agent_name.clone()));
            }
            Payload::Trouble(Trouble {
                about: About::Credential { credential, .. },
                ..
            }) => self.unreachable.push(*credential),
            Payload::Error { spent, .. } => {
                self.past.usage.add(spent);
                if let Some(outcome) = self.outcomes.iter_mut().find(|o| o.span.is_some()) {
                    outcome.spent.add(spent);
                }
            }
            _ => {
                self.fold_outcome(event);
                self.fold_thread(event);
            }
        }
        match event.payload {
            Payload::ThreadTerminated => self.forget(event.thread),
            Payload::Interrupt { all, .. } if event.processed == Processed::Queued => {
                self.stop_others(event.thread, *all);
                None
            }
            _ => None,
        }
    }

    /// A child that is over leaves its sums.
    fn forget(&mut self, id: ThreadId) -> Option<Thread> {
        let index = self
            .threads
            .iter()
            .position(|t| t.id == id && !t.is_primary())?;
        let thread = self.threads.remove(index);
        self.past.usage.add(&thread.usage);
        self.past.active_us += thread.active_us;
        Some(thread)
    }

    /// An interrupt of all threads stops each that works. One of the primary thread takes its advisors
    /// with it: nobody waits for them any more.
    fn stop_others(&mut self, thread: ThreadId, all: bool) {
        let primary = self.primary().id;
        if thread != primary {
            return;
        }
        for other in &mut self.threads[1..] {
            other.stopping |= other.works() && (all || matches!(other.role, Role::Advisor { .. }));
        }
    }

    fn fold_outcome(&mut self, event: Placed<'_>) {
        match event.payload {
            Payload::DefineOutcome {
                outcome,
                description,
                max_iterations,
                ..
            } => self.outcomes.push(Outcome {
                id: *outcome,
                event: event.id,
                seq: event.seq,
                description: description.clone(),
                max_iterations: *max_iterations,
                iteration: 0,
                result: OutcomeResult::Pending,
                span: None,
                spent: ModelUsage::default(),
                explanation: None,
                completed_at: None,
            }),
            Payload::RequestStart if event.thread == self.primary().id => {
                for outcome in &mut self.outcomes {
                    if outcome.result == OutcomeResult::Pending {
                        outcome.result = OutcomeResult::Running;
                    }
                }
            }
            Payload::EvaluationStart { outcome, .. } => {
                if let Some(outcome) = self.outcome_mut(*outcome) {
                    outcome.span = Some(event.id);
                    outcome.result = OutcomeResult::Evaluating;
                }
            }
            Payload::EvaluationEnd {
                outcome,
                result,
                explanation,
                usage,
                ..
            } => {
                let Some(outcome) = self.outcome_mut(*outcome) else {
                    return;
                };
                let spent = std::mem::take(&mut outcome.spent);
                outcome.span = None;
                outcome.result = result.outcome();
                if *result == EvaluationResult::NeedsRevision {
                    outcome.iteration += 1;
                } else {
                    outcome.completed_at = Some(event.at);
                }
                if *result != EvaluationResult::Interrupted {
                    outcome.explanation = Some(explanation.clone());
                    self.past.usage.add(&usage.without(&spent));
                }
            }
            // A turn that ends without a verdict leaves the work to be graded another time.
            Payload::ThreadIdle { .. } if event.thread == self.primary().id => {
                for outcome in &mut self.outcomes {
                    if outcome.result == OutcomeResult::Evaluating {
                        outcome.span = None;
                        outcome.spent = ModelUsage::default();
                        outcome.result = OutcomeResult::Running;
                    }
                }
            }
            _ => {}
        }
    }

    fn set_status(&mut self, status: Status, at: Timestamp) {
        self.active_us = self.active_until(at);
        self.running_since = (status == Status::Running).then_some(at);
        self.status = status;
        if status == Status::Terminated {
            self.ended_at = Some(at);
        }
    }

    fn fold_thread(&mut self, event: Placed<'_>) {
        let Some(thread) = self.thread_mut(event.thread) else {
            return;
        };
        match event.payload {
            Payload::Message { fields, flushed } => {
                queue(thread, event, QueuedKind::Message, fields);
                thread.due |= event.processed == Processed::Now && !flushed;
            }
            Payload::System { fields, .. } => queue(thread, event, QueuedKind::System, fields),
            Payload::Interrupt { fields, all } => {
                let kind = if *all {
                    QueuedKind::InterruptAll
                } else {
                    QueuedKind::Interrupt
                };
                queue(thread, event, kind, fields);
            }
            Payload::DefineOutcome { .. } => thread.mail = Some(event.seq),
            Payload::MessageReceived { answers, .. } => match answers {
                Some(call) => answered(thread, *call),
                None => thread.mail = Some(event.seq),
            },
            Payload::Confirmation {
                call,
                allow,
                deny_message,
                ..
            } => {
                if let Some(call) = thread.calls.iter_mut().find(|c| c.id == *call) {
                    call.state = if *allow {
                        CallState::Allowed
                    } else {
                        CallState::Denied(deny_message.clone())
                    };
                }
            }
            Payload::CustomResult { call, .. } => answered(thread, *call),
            Payload::ToolResult { call, searches, .. } => {
                thread.usage.web_search_requests += i64::from(*searches);
                answered(thread, *call);
            }
            Payload::ToolUse {
                permission,
                serial,
                mcp,
                ..
            } => thread.calls.push(Call {
                id: event.id,
                kind: match mcp {
                    Some(_) => CallKind::Mcp,
                    None => CallKind::Builtin,
                },
                serial: *serial,
                state: match permission {
                    Permission::Allow => CallState::Ready,
                    Permission::Ask => CallState::Waiting,
                    Permission::Deny => CallState::Denied(None),
                },
            }),
            Payload::CustomToolUse { .. } => thread.calls.push(Call {
                id: event.id,
                kind: CallKind::Custom,
                serial: false,
                state: CallState::Waiting,
            }),
            Payload::ThreadRunning => {
                thread.status = Status::Running;
                thread.stop = None;
                thread.wake_at = None;
                thread.running_since = Some(event.at);
            }
            Payload::ThreadIdle { stop } => {
                stop_clock(thread, event.at);
                thread.status = Status::Idle;
                thread.was_idle = true;
                thread.stopping = false;
                if !matches!(stop, StopReason::RequiresAction { .. }) {
                    thread.calls.clear();
                    thread.due = false;
                    thread.mail = None;
                    thread.attempt = 0;
                    thread.sequel = StopReason::EndTurn;
                }
                thread.wake_at = None;
                thread.stop = Some(stop.clone());
            }
            Payload::ThreadRescheduled { attempt, wake_at } => {
                stop_clock(thread, event.at);
                thread.status = Status::Rescheduling;
                thread.attempt = *attempt;
                thread.wake_at = Some(*wake_at);
            }
            Payload::ThreadTerminated => {
                stop_clock(thread, event.at);
                thread.status = Status::Terminated;
                thread.ended_at = Some(event.at);
                thread.calls.clear();
                thread.queue.clear();
                thread.due = false;
                thread.mail = None;
                thread.wake_at = None;
            }
            Payload::RequestStart => {
                thread.request = Some(event.id);
                thread.mail = None;
                thread.sequel = StopReason::EndTurn;
            }
            Payload::RequestEnd {
                failed,
                usage,
                again,
                sequel,
                hidden,
                ..
            } => {
                thread.request = None;
                thread.usage.add(usage);
                thread.calls.extend(hidden.iter().filter_map(asked));
                // A request that failed is still to be answered; one that succeeded has been, unless it
                // has made calls whose results are here already.
                thread.due = *failed || *again || !hidden.is_empty();
                thread.sequel = sequel.clone();
                if !failed {
                    thread.attempt = 0;
                }
            }
            Payload::EvaluationEnd { result, .. } => {
                thread.attempt = 0;
                if result.goes_on() {
                    thread.mail = Some(event.seq);
                }
            }
            Payload::AgentMessage { .. }
            | Payload::AgentThinking { .. }
            | Payload::MessageSent { .. }
            | Payload::ThreadCreated { .. }
            | Payload::EvaluationStart { .. }
            | Payload::EvaluationOngoing { .. }
            | Payload::Error { .. }
            | Payload::Trouble(_)
            | Payload::SessionUpdated { .. }
            | Payload::SessionUsage { .. }
            | Payload::SessionRunning
            | Payload::SessionIdle { .. }
            | Payload::SessionRescheduled
            | Payload::SessionTerminated => {}
        }
    }
}

/// A hidden call whose result is still to come.
fn asked(call: &HiddenCall) -> Option<Call> {
    call.result.is_none().then_some(Call {
        id: call.id,
        kind: CallKind::Advice,
        serial: false,
        state: CallState::Ready,
    })
}

fn answered(thread: &mut Thread, call: EventId) {
    thread.calls.retain(|c| c.id != call);
    thread.due |= thread.calls.is_empty();
}

fn stop_clock(thread: &mut Thread, at: Timestamp) {
    thread.active_us = thread.active_until(at);
    thread.running_since = None;
}

/// The queued form enters the queue, the processed one leaves it.
fn queue(thread: &mut Thread, event: Placed<'_>, kind: QueuedKind, fields: &str) {
    match event.processed {
        Processed::Queued => thread.queue.push(QueuedInput {
            id: event.id,
            seq: event.seq,
            kind,
            fields: fields.to_owned(),
        }),
        Processed::Now => thread.queue.retain(|input| input.id != event.id),
    }
}
