//! What the runner did: requests to the model, calls, interrupts, recovery.

use selfsame_types::{EventId, ThreadId, Timestamp, event::Processed};
use serde_json::value::RawValue;

use super::{
    About, Coordination, ErrorType, McpTool, ModelUsage, Payload, QueuedKind, RetryStatus, Role,
    Status, Step, StopReason, Thread, Trouble, coordinate::Asked, payload::Permission,
};

/// A model's complete answer.
#[derive(Debug, Clone)]
pub struct Response {
    pub blocks: Vec<ResponseBlock>,
    pub usage: ModelUsage,
    pub sequel: Sequel,
}

/// What a response means for the turn, calls apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sequel {
    EndTurn,
    /// It paused in the middle and goes on when asked again.
    Again,
    Refusal {
        category: Option<String>,
        explanation: Option<String>,
    },
}

/// A block of a response, under the id its event will have.
#[derive(Debug, Clone)]
pub struct ResponseBlock {
    pub id: EventId,
    pub content: BlockContent,
}

#[derive(Debug, Clone)]
pub enum BlockContent {
    Text(String),
    Thinking(Box<RawValue>),
    Call(NewCall),
}

/// A call the model made, already judged.
#[derive(Debug, Clone)]
pub struct NewCall {
    pub model_id: String,
    pub name: String,
    pub input: Box<RawValue>,
    pub verdict: Verdict,
}

#[derive(Debug, Clone)]
pub enum Verdict {
    Builtin {
        permission: Permission,
        policy: &'static str,
        serial: bool,
    },
    Mcp {
        server: String,
        /// The tool's name at its server.
        tool: String,
        permission: Permission,
        policy: &'static str,
    },
    Custom,
    /// Directs other threads; clients do not see it.
    Hidden(Coordination),
    /// Not offered, or its input is no JSON: answered with this text, never run.
    Refused {
        reason: String,
    },
}

/// Why a request has no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub error_type: ErrorType,
    pub message: String,
    /// The next attempt, if there is to be one.
    pub retry_at: Option<Timestamp>,
    pub usage: ModelUsage,
}

/// The result of a call.
#[derive(Debug, Clone)]
pub struct CallResult {
    pub content: Box<RawValue>,
    pub is_error: bool,
    /// Searches of the web that it took, which are counted.
    pub searches: u32,
}

impl Step<'_> {
    /// Opens a request: queued messages are processed first, so that it answers them, too. `false`
    /// when the state no longer asks for one.
    pub fn start_request(&mut self, thread: ThreadId, span: EventId) -> bool {
        let Some(state) = self.thread(thread) else {
            return false;
        };
        let may_start = matches!(state.status, Status::Running | Status::Rescheduling)
            && state.request.is_none()
            && state.calls.is_empty()
            && !state.is_interrupted()
            && !(state.is_primary() && self.machine.grading().is_some());
        if !may_start {
            return false;
        }
        self.run(thread);
        self.process_messages(thread, false);
        self.emit_as(span, thread, Processed::Now, &Payload::RequestStart);
        true
    }

    /// Closes a request with its answer.
    pub fn finish_request(&mut self, thread: ThreadId, span: EventId, response: Response) {
        let Some(state) = self.thread(thread).filter(|t| t.request == Some(span)) else {
            return;
        };
        // The primary thread waits for an advisor, so that waits for nobody.
        let advisor = matches!(state.role, Role::Advisor { .. });
        let mut refused = Vec::new();
        let mut asked = Vec::new();
        let mut texts = Vec::new();
        for (at, block) in response.blocks.into_iter().enumerate() {
            let payload = match block.content {
                BlockContent::Text(text) => {
                    texts.push(text.clone());
                    Payload::AgentMessage { text }
                }
                BlockContent::Thinking(block) => Payload::AgentThinking { block },
                BlockContent::Call(NewCall {
                    model_id,
                    name,
                    input,
                    verdict: Verdict::Hidden(what),
                }) => {
                    asked.push(Asked {
                        id: block.id,
                        at,
                        model_id,
                        name,
                        input,
                        what,
                    });
                    continue;
                }
                BlockContent::Call(mut call) => {
                    if advisor {
                        let reason = "An advisor has no tools.".to_owned();
                        call.verdict = Verdict::Refused { reason };
                    }
                    match call_payload(block.id, call, &mut refused) {
                        Some(payload) => payload,
                        None => continue,
                    }
                }
            };
            self.emit_as(block.id, thread, Processed::Now, &payload);
        }
        let (hidden, accepted) = self.judge_hidden(thread, asked);
        let (again, sequel) = match response.sequel {
            Sequel::EndTurn => (false, StopReason::EndTurn),
            Sequel::Again => (true, StopReason::EndTurn),
            Sequel::Refusal {
                category,
                explanation,
            } => (
                false,
                StopReason::Refusal {
                    category,
                    explanation,
                },
            ),
        };
        self.emit(
            thread,
            &Payload::RequestEnd {
                start: span,
                failed: false,
                usage: response.usage,
                again,
                sequel,
                hidden,
            },
        );
        for (call, reason) in refused {
            self.result(thread, call, &reason, true);
        }
        self.coordinate(accepted);
        self.settle(thread, &texts);
    }

    /// Closes a request that failed: the session waits for another attempt, or the turn is over. An
    /// interrupt that was accepted meanwhile is left to be carried out.
    pub fn fail_request(&mut self, thread: ThreadId, span: EventId, failure: Failure) {
        let Some(state) = self.thread(thread).filter(|t| t.request == Some(span)) else {
            return;
        };
        let (attempt, interrupted) = (state.attempt + 1, state.is_interrupted());
        self.end_span(thread, span, failure.usage);
        if interrupted {
            return;
        }
        let counted = Failure {
            usage: ModelUsage::default(),
            ..failure
        };
        self.give_way(thread, attempt, counted);
    }

    /// There is another attempt, or the turn is over. The failure's usage is what no span has told of.
    pub(super) fn give_way(&mut self, thread: ThreadId, attempt: u32, failure: Failure) {
        let Failure {
            error_type,
            message,
            retry_at,
            usage: spent,
        } = failure;
        let retry = match retry_at {
            Some(_) => RetryStatus::Retrying,
            None => RetryStatus::Exhausted,
        };
        self.emit(
            thread,
            &Payload::Error {
                error_type,
                message,
                retry,
                spent,
            },
        );
        if let Some(wake_at) = retry_at {
            self.reschedule(thread, attempt, wake_at);
        } else {
            // The turn is dead, and so is what waited for it.
            self.process_messages(thread, true);
            self.end_turn(thread, StopReason::RetriesExhausted, &[]);
        }
    }

    /// Says what a thread goes on without. What is said once in a session is not said again.
    pub fn trouble(&mut self, thread: ThreadId, troubles: &[Trouble]) {
        let asks = self.thread(thread).is_some_and(|t| {
            matches!(t.status, Status::Running | Status::Rescheduling) && !t.is_interrupted()
        });
        if !asks {
            return;
        }
        for trouble in troubles {
            if let About::Credential { credential, .. } = &trouble.about
                && self.machine.unreachable.contains(credential)
            {
                continue;
            }
            self.run(thread);
            self.emit(thread, &Payload::Trouble(trouble.clone()));
        }
    }

    /// The sandbox cannot be prepared for what the turn is about to ask: there is another attempt, or the
    /// turn is over. No request is open.
    pub fn unprepared(&mut self, thread: ThreadId, message: String, retry_at: Option<Timestamp>) {
        let Some(state) = self.thread(thread).filter(|t| {
            matches!(t.status, Status::Running | Status::Rescheduling)
                && t.request.is_none()
                && !t.is_interrupted()
        }) else {
            return;
        };
        let attempt = state.attempt + 1;
        self.run(thread);
        let failure = Failure {
            error_type: ErrorType::UnknownError,
            message,
            retry_at,
            usage: ModelUsage::default(),
        };
        self.give_way(thread, attempt, failure);
    }

    /// The sandbox ended in the middle of a call and has been started again, or replaced: the session says
    /// so and goes on. What became of the call is for its result to say.
    pub fn sandbox_lost(&mut self, thread: ThreadId) {
        let Some(state) = self
            .thread(thread)
            .filter(|t| t.status == Status::Running && t.request.is_none() && !t.is_interrupted())
        else {
            return;
        };
        let (attempt, now) = (state.attempt, self.now);
        self.emit(
            thread,
            &Payload::Error {
                error_type: ErrorType::UnknownError,
                message: "The sandbox stopped in the middle of a call and was started again."
                    .to_owned(),
                retry: RetryStatus::Retrying,
                spent: ModelUsage::default(),
            },
        );
        self.reschedule(thread, attempt, now);
        self.run(thread);
    }

    fn end_span(&mut self, thread: ThreadId, span: EventId, usage: ModelUsage) {
        self.emit(
            thread,
            &Payload::RequestEnd {
                start: span,
                failed: true,
                usage,
                again: false,
                sequel: StopReason::EndTurn,
                hidden: Vec::new(),
            },
        );
    }

    fn reschedule(&mut self, thread: ThreadId, attempt: u32, wake_at: Timestamp) {
        let others_run = self
            .machine
            .threads
            .iter()
            .any(|t| t.id != thread && t.status == Status::Running);
        if !others_run {
            self.emit(thread, &Payload::SessionRescheduled);
        }
        self.emit(thread, &Payload::ThreadRescheduled { attempt, wake_at });
    }

    /// Writes the result of a call. `false` when the call needs none any more.
    pub fn finish_call(&mut self, thread: ThreadId, call: EventId, result: CallResult) -> bool {
        let wanted = self.thread(thread).is_some_and(|t| {
            t.status == Status::Running && t.calls.iter().any(|c| c.id == call && c.is_runnable())
        });
        if wanted {
            self.call_result(thread, call, result);
            self.settle(thread, &[]);
        }
        wanted
    }

    fn call_result(&mut self, thread: ThreadId, call: EventId, result: CallResult) {
        let CallResult {
            content,
            is_error,
            searches,
        } = result;
        let mcp = self.is_mcp(thread, call);
        self.emit(
            thread,
            &Payload::ToolResult {
                call,
                content,
                is_error,
                searches,
                mcp,
            },
        );
    }

    /// Carries out an accepted interrupt once nothing is in flight any more. Results of calls that
    /// were stopped come with it; those without get the usual text.
    pub fn interrupt(&mut self, thread: ThreadId, results: Vec<(EventId, CallResult)>) {
        if !self.machine.may_interrupt(thread) {
            return;
        }
        let Some(state) = self.thread(thread) else {
            return;
        };
        let (request, primary) = (state.request, state.is_primary());
        let busy = state.works() || !state.calls.is_empty();
        let interrupts: Vec<_> = state
            .queue
            .iter()
            .filter(|input| input.kind.is_interrupt())
            .cloned()
            .collect();
        let all = interrupts
            .iter()
            .any(|input| input.kind == QueuedKind::InterruptAll);
        let newest = interrupts.iter().map(|input| input.seq).max();
        // What was sent after the interrupt is for the next turn.
        let late = state
            .mail
            .filter(|mail| newest.is_some_and(|seq| *mail > seq));
        if let Some(span) = request {
            self.end_span(thread, span, ModelUsage::default());
        }
        for (call, result) in results {
            let wanted = self
                .thread(thread)
                .is_some_and(|t| t.calls.iter().any(|c| c.id == call));
            if wanted {
                self.call_result(thread, call, result);
            }
        }
        self.drop_calls(thread);
        for input in interrupts {
            self.process(thread, input, false);
        }
        if !primary {
            self.stop_child(thread);
            if late.is_some() {
                self.run(thread);
            }
            self.after_child(StopReason::EndTurn);
            return;
        }
        self.end_outcomes_before(newest.unwrap_or(0));
        if busy {
            self.emit(
                thread,
                &Payload::ThreadIdle {
                    stop: StopReason::EndTurn,
                },
            );
        }
        if all {
            self.drop_waiting();
        }
        self.rest(StopReason::EndTurn);
        if late.is_some() {
            self.run(thread);
            self.process_messages(thread, false);
        }
        self.wake(thread);
    }

    /// Drops what waits for a client in threads that rest.
    pub(super) fn drop_waiting(&mut self) {
        let waiting: Vec<_> = self
            .machine
            .threads
            .iter()
            .filter(|t| t.status == Status::Idle && !t.calls.is_empty())
            .map(|t| t.id)
            .collect();
        for thread in waiting {
            self.drop_calls(thread);
            self.emit(
                thread,
                &Payload::ThreadIdle {
                    stop: StopReason::EndTurn,
                },
            );
        }
    }

    /// Takes over from a server that is gone, or from answers that were lost: the session says so, a
    /// request that was open is asked again at the time that `retry_at` answers for its next attempt, if
    /// at all, and calls and gradings that were under way go on. An interrupt that was accepted meanwhile
    /// is left to be carried out.
    pub fn recover(&mut self, threads: &[ThreadId], retry_at: impl Fn(u32) -> Option<Timestamp>) {
        let lost: Vec<Thread> = self
            .machine
            .threads
            .iter()
            .filter(|t| threads.contains(&t.id) && t.status == Status::Running)
            .cloned()
            .collect();
        for thread in &lost {
            if let Some(span) = thread.request {
                self.end_span(thread.id, span, ModelUsage::default());
            }
        }
        let (goes_on, over): (Vec<_>, Vec<_>) = lost
            .into_iter()
            .filter(|thread| !thread.is_interrupted())
            .map(|thread| {
                let attempt = thread.attempt + u32::from(thread.request.is_some());
                let at = match thread.request {
                    Some(_) => retry_at(attempt),
                    None => Some(self.now),
                };
                (thread, attempt, at)
            })
            .partition(|(_, _, at)| at.is_some());
        if let Some((first, _, _)) = goes_on.first() {
            self.emit(
                first.id,
                &Payload::Error {
                    error_type: ErrorType::UnknownError,
                    message: "The server that ran this session stopped in the middle of its work; \
                              another one goes on."
                        .to_owned(),
                    retry: RetryStatus::Retrying,
                    spent: ModelUsage::default(),
                },
            );
        }
        let running: Vec<_> = self
            .machine
            .threads
            .iter()
            .filter(|t| t.status == Status::Running)
            .map(|t| t.id)
            .collect();
        let all = running.len() == goes_on.len();
        for (index, (thread, attempt, at)) in goes_on.iter().enumerate() {
            if index == 0 && all {
                self.emit(thread.id, &Payload::SessionRescheduled);
            }
            if let Some(wake_at) = *at {
                let attempt = *attempt;
                self.emit(thread.id, &Payload::ThreadRescheduled { attempt, wake_at });
            }
        }
        for (thread, _, _) in &goes_on {
            let graded = thread.is_primary() && self.machine.grading().is_some();
            if graded || !thread.calls.is_empty() {
                self.run(thread.id);
            }
        }
        for (thread, attempt, _) in over {
            let failure = Failure {
                error_type: ErrorType::UnknownError,
                message:
                    "The server that ran this session stopped in the middle of its work, as it did \
                          at every attempt before."
                        .to_owned(),
                retry_at: None,
                usage: ModelUsage::default(),
            };
            self.give_way(thread.id, attempt, failure);
        }
    }
}

/// `None`: a hidden call, which has no event.
fn call_payload(
    id: EventId,
    call: NewCall,
    refused: &mut Vec<(EventId, String)>,
) -> Option<Payload> {
    let NewCall {
        model_id,
        name,
        input,
        verdict,
    } = call;
    Some(match verdict {
        Verdict::Hidden(_) => return None,
        Verdict::Custom => Payload::CustomToolUse {
            name,
            input,
            model_id,
        },
        Verdict::Builtin {
            permission,
            policy,
            serial,
        } => Payload::ToolUse {
            name,
            input,
            permission,
            evaluation: Some(policy),
            model_id,
            serial,
            mcp: None,
        },
        Verdict::Mcp {
            server,
            tool,
            permission,
            policy,
        } => Payload::ToolUse {
            name: tool,
            input,
            permission,
            evaluation: Some(policy),
            model_id,
            serial: false,
            mcp: Some(McpTool {
                server,
                offered: name,
            }),
        },
        Verdict::Refused { reason } => {
            refused.push((id, reason));
            Payload::ToolUse {
                name,
                input,
                permission: Permission::Deny,
                evaluation: None,
                model_id,
                serial: false,
                mcp: None,
            }
        }
    })
}
