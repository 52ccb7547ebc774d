//! Threads beside the primary one: how they come, talk, report and go.
//!
//! The primary thread's model directs the others by calls that no client sees. Each of them is judged and
//! carried out in the append that the model's response becomes: the call, its result and everything that
//! comes of it are one transaction, so no crash can double or lose a part. What is left of the call itself
//! stands in the private notes of the response's end.

use selfsame_types::{EventId, ThreadId};
use serde_json::{json, value::RawValue};

use super::{
    HiddenCall, HiddenResult, Payload, Role, Spawned, Status, Step, StopReason,
    step::{INTERRUPTED, text_blocks},
};

/// Children alive at once; advisors do not count.
pub const MAX_CHILDREN: usize = 25;

/// What the model is told of a question that nobody will answer.
const NO_ADVICE: &str = "The advisor is not available. Go on without its advice.";

/// What a hidden call of the primary thread's model wants.
#[derive(Debug, Clone)]
pub enum Coordination {
    /// Which agents there are to start, as JSON; the threads there are come from the state.
    List { agents: Box<RawValue> },
    /// A new thread.
    Spawn {
        thread: ThreadId,
        agent_name: String,
        /// What the thread shows as its `agent`, as JSON text.
        agent: String,
        /// Content blocks of its first message.
        content: Box<RawValue>,
    },
    /// A message to a thread that is there.
    Send {
        thread: ThreadId,
        content: Box<RawValue>,
    },
    /// A question, for a thread of its own.
    Consult {
        thread: ThreadId,
        agent_name: String,
        agent: String,
        content: Box<RawValue>,
    },
    /// Nothing that can be done, for this reason.
    Refused { reason: String },
}

/// A hidden call as it came.
pub(super) struct Asked {
    pub id: EventId,
    /// Blocks of the response before it.
    pub at: usize,
    pub model_id: String,
    pub name: String,
    pub input: Box<RawValue>,
    pub what: Coordination,
}

fn done(text: String) -> Option<HiddenResult> {
    Some(HiddenResult {
        text,
        is_error: false,
    })
}

fn refused(text: String) -> Option<HiddenResult> {
    Some(HiddenResult {
        text,
        is_error: true,
    })
}

impl Step<'_> {
    /// Judges the hidden calls of a response by the present state. Answers what stands in the log of
    /// them, and what is to be done of them once the response is closed.
    pub(super) fn judge_hidden(
        &self,
        thread: ThreadId,
        asked: Vec<Asked>,
    ) -> (Vec<HiddenCall>, Vec<(EventId, Coordination)>) {
        let may = self
            .thread(thread)
            .is_some_and(|t| t.is_primary() && !t.is_interrupted());
        let mut children = self.children();
        let mut calls = Vec::new();
        let mut accepted = Vec::new();
        for Asked {
            id,
            at,
            model_id,
            name,
            input,
            what,
        } in asked
        {
            let result = if may {
                self.judge_one(&what, children)
            } else {
                refused(INTERRUPTED.to_owned())
            };
            if result.as_ref().is_none_or(|result| !result.is_error) {
                children += usize::from(matches!(what, Coordination::Spawn { .. }));
                accepted.push((id, what));
            }
            calls.push(HiddenCall {
                id,
                at,
                model_id,
                name,
                input,
                result,
            });
        }
        (calls, accepted)
    }

    fn children(&self) -> usize {
        self.machine
            .threads
            .iter()
            .filter(|t| t.role == Role::Child)
            .count()
    }

    /// `None`: the result comes later.
    fn judge_one(&self, what: &Coordination, children: usize) -> Option<HiddenResult> {
        match what {
            Coordination::Refused { reason } => refused(reason.clone()),
            Coordination::List { agents } => {
                let threads: Vec<_> = self
                    .machine
                    .threads
                    .iter()
                    .filter(|t| t.role == Role::Child)
                    .map(|t| {
                        json!({
                            "session_thread_id": t.id,
                            "agent_name": t.agent_name,
                            "status": t.status.as_str(),
                        })
                    })
                    .collect();
                let threads = serde_json::to_string(&threads).expect("threads serialize");
                done(format!(
                    "{{\"agents\":{},\"threads\":{threads}}}",
                    agents.get()
                ))
            }
            Coordination::Spawn { .. } if children >= MAX_CHILDREN => refused(format!(
                "No thread was started: this session has {children} threads already and no more are \
                 possible. Idle ones count. Send the task to one of them, or do it yourself."
            )),
            Coordination::Spawn {
                thread, agent_name, ..
            } => done(format!(
                "Thread {thread} of the agent `{agent_name}` has started. It works beside you. When its \
                 turn ends, its last message comes to you as a message of its own; you may end your \
                 turn until then."
            )),
            Coordination::Send { thread, .. } => match self.thread(*thread) {
                Some(to) if to.role == Role::Child => done(format!(
                    "Sent to thread {thread}. When its turn ends, its last message comes to you."
                )),
                Some(_) => refused(format!("{thread} is not a thread that takes messages.")),
                None => refused(format!(
                    "There is no thread {thread}, or it is over. List the agents to see the threads \
                     there are."
                )),
            },
            Coordination::Consult { .. } => None,
        }
    }

    /// Does what accepted hidden calls want.
    pub(super) fn coordinate(&mut self, accepted: Vec<(EventId, Coordination)>) {
        for (call, what) in accepted {
            match what {
                Coordination::List { .. } | Coordination::Refused { .. } => {}
                Coordination::Spawn {
                    thread,
                    agent_name,
                    agent,
                    content,
                } => {
                    self.create_thread(thread, Role::Child, agent_name, agent);
                    self.send_down(thread, content);
                }
                Coordination::Send { thread, content } => self.send_down(thread, content),
                Coordination::Consult {
                    thread,
                    agent_name,
                    agent,
                    content,
                } => {
                    // Clients see the advice and not the question.
                    self.create_thread(thread, Role::Advisor { call }, agent_name, agent);
                    self.run(thread);
                    self.receive(thread, self.machine.primary().id, content, None);
                }
            }
        }
    }

    fn create_thread(&mut self, id: ThreadId, role: Role, agent_name: String, agent: String) {
        let primary = self.machine.primary().id;
        self.emit(
            primary,
            &Payload::ThreadCreated {
                thread: id,
                agent_name,
                role,
            },
        );
        let position = self.machine.spawned;
        self.spawned(Spawned {
            id,
            parent: primary,
            position,
            agent,
        });
    }

    /// A message of the primary thread to one of its children, which begins a turn if it rests.
    fn send_down(&mut self, to: ThreadId, content: Box<RawValue>) {
        let primary = self.machine.primary().id;
        self.send(primary, to, content.clone());
        if self.may_wake(to) {
            self.run(to);
        }
        self.receive(to, primary, content, None);
    }

    fn send(&mut self, from: ThreadId, to: ThreadId, content: Box<RawValue>) {
        let to_agent = self
            .thread(to)
            .filter(|t| !t.is_primary())
            .map(|t| t.agent_name.clone());
        self.emit(
            from,
            &Payload::MessageSent {
                to,
                to_agent,
                content,
            },
        );
    }

    /// `answers`: the hidden call that this is the result of.
    fn receive(
        &mut self,
        thread: ThreadId,
        from: ThreadId,
        content: Box<RawValue>,
        answers: Option<EventId>,
    ) {
        let from_agent = self
            .thread(from)
            .filter(|t| !t.is_primary())
            .map(|t| t.agent_name.clone());
        self.emit(
            thread,
            &Payload::MessageReceived {
                from,
                from_agent,
                content,
                answers,
            },
        );
    }

    /// Ends a turn of a thread. A child reports to the primary thread: `texts` are what its last response
    /// said.
    pub(super) fn end_turn(&mut self, thread: ThreadId, stop: StopReason, texts: &[String]) {
        let Some(role) = self.thread(thread).map(|t| t.role) else {
            return;
        };
        match role {
            Role::Primary if stop == StopReason::EndTurn && self.may_grade(true) => {
                self.start_grading();
            }
            Role::Primary => self.idle(thread, stop),
            Role::Child => {
                self.report(thread, report(&stop, texts), None);
                let dead = stop == StopReason::RetriesExhausted;
                self.emit(thread, &Payload::ThreadIdle { stop: stop.clone() });
                if dead {
                    self.emit(thread, &Payload::ThreadTerminated);
                }
                self.after_child(stop);
            }
            Role::Advisor { call } => {
                let advice = match &stop {
                    StopReason::EndTurn if !texts.is_empty() => texts.to_vec(),
                    _ => vec![NO_ADVICE.to_owned()],
                };
                self.report(thread, advice, Some(call));
                self.emit(thread, &Payload::ThreadIdle { stop: stop.clone() });
                self.emit(thread, &Payload::ThreadTerminated);
                self.after_child(stop);
            }
        }
    }

    /// A child that an interrupt has stopped reports nothing; an advisor's question is answered all the
    /// same.
    pub(super) fn stop_child(&mut self, thread: ThreadId) {
        if let Some(Role::Advisor { call }) = self.thread(thread).map(|t| t.role) {
            self.report(thread, vec![NO_ADVICE.to_owned()], Some(call));
            self.emit(
                thread,
                &Payload::ThreadIdle {
                    stop: StopReason::EndTurn,
                },
            );
            self.emit(thread, &Payload::ThreadTerminated);
        } else {
            self.emit(
                thread,
                &Payload::ThreadIdle {
                    stop: StopReason::EndTurn,
                },
            );
        }
    }

    fn report(&mut self, thread: ThreadId, texts: Vec<String>, answers: Option<EventId>) {
        let primary = self.machine.primary().id;
        let content = text_blocks(&texts);
        self.send(thread, primary, content.clone());
        self.receive(primary, thread, content, answers);
    }

    /// A child has come to rest: the primary thread hears of it, or the session rests, too.
    pub(super) fn after_child(&mut self, stop: StopReason) {
        let primary = self.machine.primary().id;
        if self.machine.primary().status == Status::Running {
            // It may have waited for nothing but an advisor, and beside that for a client.
            self.settle(primary, &[]);
            return;
        }
        self.wake(primary);
        self.rest(stop);
    }

    /// Nothing keeps the thread from beginning a turn.
    pub(super) fn may_wake(&self, thread: ThreadId) -> bool {
        self.thread(thread)
            .is_some_and(|t| t.status == Status::Idle && t.calls.is_empty() && !t.is_interrupted())
    }
}

/// What a child's turn comes to, in words for the primary thread's model.
fn report(stop: &StopReason, texts: &[String]) -> Vec<String> {
    let mut report = texts.to_vec();
    match stop {
        StopReason::EndTurn | StopReason::RequiresAction { .. } => {
            if report.is_empty() {
                report.push("(The thread ended its turn without a message.)".to_owned());
            }
        }
        StopReason::Refusal { .. } => {
            report.push("(The thread's model declined to go on.)".to_owned());
        }
        StopReason::RetriesExhausted => {
            report.push(
                "(The thread has failed: its model could not be asked. It is over and takes no more \
                 messages.)"
                    .to_owned(),
            );
        }
    }
    report
}
