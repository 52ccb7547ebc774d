//! What clients send: accepted or refused as a whole, under the session's lock.

use selfsame_types::{ApiError, EventId, OutcomeId, SessionId, ThreadId, event::Processed};

use super::{
    CallKind, CallState, Payload, QueuedKind, Status, Step, StopReason, step::INTERRUPTED,
};

/// One inbound event, parsed and valid by itself.
#[derive(Debug, Clone)]
pub struct Input {
    pub kind: InputKind,
    /// The event's own fields as they will be shown.
    pub fields: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InputKind {
    Message,
    System,
    /// `None`: every thread.
    Interrupt {
        thread: Option<ThreadId>,
    },
    Confirmation {
        call: EventId,
        allow: bool,
        deny_message: Option<String>,
    },
    CustomResult {
        call: EventId,
    },
    /// The fields name the outcome by its new id.
    DefineOutcome {
        outcome: OutcomeId,
        description: String,
        max_iterations: u32,
    },
}

/// The only inputs that a waiting session takes, as the API words it.
const ANSWERS: &str = "`user.tool_confirmation`, `user.custom_tool_result`, `user.tool_result`, \
     or `user.interrupt`";

impl Step<'_> {
    /// Takes a client's events in order. One refusal refuses all: the caller drops the step.
    ///
    /// # Errors
    /// 400 with the API's words when the session cannot take an event now.
    pub fn accept(&mut self, session: SessionId, inputs: &[Input]) -> Result<(), ApiError> {
        if self.machine.status == Status::Terminated {
            return Err(ApiError::invalid(format!(
                "Cannot send events to session {session}: the session is terminated"
            )));
        }
        let mut answered = Vec::new();
        for (index, input) in inputs.iter().enumerate() {
            let before = index.checked_sub(1).map(|before| &inputs[before].kind);
            self.accept_one(index, input, before, &mut answered)?;
        }
        let mut partly = false;
        for thread in answered {
            // Answers to some of the calls: the client is told which are left.
            let left = self
                .thread(thread)
                .filter(|t| t.status == Status::Idle && !t.is_interrupted())
                .map(|t| t.waiting());
            if let Some(event_ids) = left.filter(|ids| !ids.is_empty()) {
                let stop = StopReason::RequiresAction { event_ids };
                self.emit(thread, &Payload::ThreadIdle { stop });
                partly = true;
            }
        }
        if partly {
            self.rest(StopReason::EndTurn);
        }
        Ok(())
    }

    fn accept_one(
        &mut self,
        index: usize,
        input: &Input,
        before: Option<&InputKind>,
        answered: &mut Vec<ThreadId>,
    ) -> Result<(), ApiError> {
        let primary = self.machine.primary().id;
        let fields = input.fields.clone();
        match &input.kind {
            InputKind::Message => {
                if self.machine.status == Status::Idle {
                    self.refuse_while_waiting()?;
                }
                self.queue(primary, QueuedKind::Message, fields);
                self.wake(primary);
            }
            InputKind::DefineOutcome {
                outcome,
                description,
                max_iterations,
            } => {
                if self.machine.status == Status::Idle {
                    self.refuse_while_waiting()?;
                }
                self.refuse_second_outcome(index)?;
                self.emit(
                    primary,
                    &Payload::DefineOutcome {
                        fields,
                        outcome: *outcome,
                        description: description.clone(),
                        max_iterations: *max_iterations,
                    },
                );
                self.wake(primary);
            }
            InputKind::System => {
                // It belongs to the event before it; alone it must not come between a call and its
                // result.
                if !matches!(
                    before,
                    Some(InputKind::Message | InputKind::CustomResult { .. })
                ) {
                    self.refuse_while_waiting()?;
                }
                self.queue(primary, QueuedKind::System, fields);
            }
            InputKind::Interrupt { thread } => {
                if let Some(thread) = thread {
                    self.check_thread(index, *thread)?;
                }
                self.interrupt_input(*thread, fields);
            }
            InputKind::Confirmation {
                call,
                allow,
                deny_message,
            } => {
                let thread = self.pending(index, "user.tool_confirmation", *call, |kind| {
                    kind != CallKind::Custom
                })?;
                self.emit(
                    thread,
                    &Payload::Confirmation {
                        fields,
                        call: *call,
                        allow: *allow,
                        deny_message: deny_message.clone(),
                    },
                );
                self.answered(thread, answered);
            }
            InputKind::CustomResult { call } => {
                let thread = self.pending(index, "user.custom_tool_result", *call, |kind| {
                    kind == CallKind::Custom
                })?;
                self.emit(
                    thread,
                    &Payload::CustomResult {
                        fields,
                        call: *call,
                    },
                );
                self.answered(thread, answered);
            }
        }
        Ok(())
    }

    /// While calls wait for the client, only answers are taken.
    fn refuse_while_waiting(&self) -> Result<(), ApiError> {
        let waiting = self.machine.waiting();
        if waiting.is_empty() {
            return Ok(());
        }
        let ids: Vec<String> = waiting.iter().map(ToString::to_string).collect();
        Err(ApiError::invalid(format!(
            "waiting on responses to events [{}]; only {ANSWERS} may be sent",
            ids.join(", ")
        )))
    }

    fn queue(&mut self, thread: ThreadId, kind: QueuedKind, fields: String) {
        let payload = match kind {
            QueuedKind::Message => Payload::Message {
                fields,
                flushed: false,
            },
            QueuedKind::System => Payload::System {
                fields,
                flushed: false,
            },
            QueuedKind::Interrupt => Payload::Interrupt { fields, all: false },
            QueuedKind::InterruptAll => Payload::Interrupt { fields, all: true },
        };
        let id = self.new_id();
        self.emit_as(id, thread, Processed::Queued, &payload);
    }

    fn check_thread(&self, index: usize, id: ThreadId) -> Result<(), ApiError> {
        if self.thread(id).is_some() {
            return Ok(());
        }
        Err(ApiError::invalid(format!(
            "Invalid user.interrupt event at events[{index}]: session_thread_id `{id}` is not a thread \
             of this session, or is terminated"
        )))
    }

    /// `None`: of the whole session. One event, one echo: it stands in the primary thread's log and
    /// reaches every thread from there.
    fn interrupt_input(&mut self, thread: Option<ThreadId>, fields: String) {
        let target = thread.unwrap_or(self.machine.primary().id);
        let works = match thread {
            None => self.machine.status != Status::Idle,
            Some(id) => self.thread(id).is_some_and(super::Thread::works),
        };
        // One that waits is carried out first.
        let waits = self
            .thread(target)
            .is_some_and(super::Thread::is_interrupted);
        if works || waits {
            // The runner stops what is in flight, then carries it out.
            let kind = match thread {
                None => QueuedKind::InterruptAll,
                Some(_) => QueuedKind::Interrupt,
            };
            self.queue(target, kind, fields);
            return;
        }
        let all = thread.is_none();
        let rested = self.waits(target) || all && !self.machine.waiting().is_empty();
        let until = self.next_seq();
        self.emit(target, &Payload::Interrupt { fields, all });
        if target == self.machine.primary().id {
            self.end_outcomes_before(until);
        }
        if all {
            self.drop_waiting();
        } else if rested {
            self.drop_calls(target);
            let stop = StopReason::EndTurn;
            self.emit(target, &Payload::ThreadIdle { stop });
        }
        if rested {
            self.rest(StopReason::EndTurn);
            // What was sent while the turn still ran has been waiting for its end.
            let primary = self.machine.primary().id;
            self.wake(primary);
        }
    }

    fn waits(&self, thread: ThreadId) -> bool {
        self.thread(thread).is_some_and(|t| !t.calls.is_empty())
    }

    /// Gives calls that will never run the result the model is to see. Those that have no result event
    /// (a custom tool's, a question to an advisor) have none in the log; the transcript makes one up.
    pub(super) fn drop_calls(&mut self, thread: ThreadId) {
        let calls: Vec<_> = self
            .thread(thread)
            .map(|t| t.calls.iter().map(|call| (call.id, call.kind)).collect())
            .unwrap_or_default();
        for (call, kind) in calls {
            if matches!(kind, CallKind::Builtin | CallKind::Mcp) {
                self.result(thread, call, INTERRUPTED, true);
            }
        }
    }

    /// The thread in which a call waits for this kind of answer.
    fn pending(
        &self,
        index: usize,
        event: &str,
        id: EventId,
        fits: impl Fn(CallKind) -> bool,
    ) -> Result<ThreadId, ApiError> {
        let found = self
            .machine
            .threads
            .iter()
            .find_map(|t| t.calls.iter().find(|c| c.id == id).map(|call| (t.id, call)));
        let problem = match found {
            Some((thread, call)) if call.is_waiting() && fits(call.kind) => return Ok(thread),
            Some((_, call)) if call.is_waiting() => match call.kind {
                CallKind::Custom => {
                    "is a custom tool call; answer it with `user.custom_tool_result`"
                }
                CallKind::Builtin | CallKind::Mcp | CallKind::Advice => {
                    "waits for a confirmation; answer it with `user.tool_confirmation`"
                }
            },
            Some((_, call)) if call.state == CallState::Ready => "does not wait for an answer",
            Some(_) => "has already been answered",
            None => {
                "is not a pending tool call of this session: it is unknown, was already answered, \
                 or needs no answer"
            }
        };
        let field = if event == "user.custom_tool_result" {
            "custom_tool_use_id"
        } else {
            "tool_use_id"
        };
        Err(ApiError::invalid(format!(
            "Invalid {event} event at events[{index}]: {field} `{id}` {problem}"
        )))
    }

    /// Resumes a thread that has all its answers.
    fn answered(&mut self, thread: ThreadId, answered: &mut Vec<ThreadId>) {
        let Some(state) = self.thread(thread) else {
            return;
        };
        match state.status {
            Status::Idle if state.waiting().is_empty() => {
                answered.retain(|other| *other != thread);
                self.run(thread);
                self.answer_denied(thread);
            }
            Status::Idle => {
                if !answered.contains(&thread) {
                    answered.push(thread);
                }
            }
            Status::Running => {
                self.answer_denied(thread);
            }
            Status::Rescheduling | Status::Terminated => {}
        }
    }

    /// Ends the session for good: its threads first.
    ///
    /// # Errors
    /// 400 while it works.
    pub fn terminate(&mut self, verb: &str) -> Result<(), ApiError> {
        match self.machine.status {
            Status::Running | Status::Rescheduling => Err(ApiError::invalid(format!(
                "Cannot {verb} a session while it is {}: send `user.interrupt` alone, wait for \
                 `session.status_idle`, then try again",
                self.machine.status.as_str()
            ))),
            Status::Terminated => Ok(()),
            Status::Idle => {
                let primary = self.machine.primary().id;
                let mut threads: Vec<_> = self.machine.threads.iter().map(|t| t.id).collect();
                // The primary thread is the last one.
                threads.rotate_left(1);
                for thread in threads {
                    // Nobody will read what is still queued, but it has been dealt with.
                    self.process_messages(thread, true);
                    self.emit(thread, &Payload::ThreadTerminated);
                }
                self.emit(primary, &Payload::SessionTerminated);
                Ok(())
            }
        }
    }

    /// Ends one thread for good. `false`: it is over already, or never was.
    ///
    /// # Errors
    /// 400 for the primary thread, and while the thread works.
    pub fn archive_thread(&mut self, thread: ThreadId) -> Result<bool, ApiError> {
        let Some(state) = self.thread(thread) else {
            return Ok(false);
        };
        if state.is_primary() {
            return Err(ApiError::invalid(
                "Cannot archive the primary thread of a session: archive the session instead",
            ));
        }
        if state.works() {
            return Err(ApiError::invalid(format!(
                "Cannot archive thread {thread} while it is {}: send `user.interrupt` with its \
                 `session_thread_id`, wait for `session.thread_status_idle`, then try again",
                state.status.as_str()
            )));
        }
        let waited = !state.calls.is_empty();
        self.emit(thread, &Payload::ThreadTerminated);
        if waited && self.machine.status == Status::Idle {
            // The session waited for this thread, too: it says what it waits for now.
            let stop = match &self.machine.primary().stop {
                Some(stop) => stop.clone(),
                None => StopReason::EndTurn,
            };
            self.rest(stop);
        }
        Ok(true)
    }

    /// Tells what an update changed. A session that is over has no more to tell.
    pub fn updated(&mut self, fields: String) {
        if self.machine.status != Status::Terminated {
            let primary = self.machine.primary().id;
            self.emit(primary, &Payload::SessionUpdated { fields });
        }
    }
}
