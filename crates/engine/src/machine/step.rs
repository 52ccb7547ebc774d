//! One step: events emitted from a state, each folded into it at once.

use selfsame_types::{
    EventId, ThreadId, Timestamp,
    event::{NewEvent, Processed},
};
use serde_json::value::RawValue;

use crate::change::session_view;

use super::{
    CallKind, CallState, Machine, Payload, QueuedInput, QueuedKind, Status, StopReason, Thread,
    fold::Placed,
};

/// What the model is told of a call that an interrupt cut off.
pub const INTERRUPTED: &str = "Tool execution was interrupted before completion. Please retry.";

/// A state on its way to the next one, and the events that lead there.
pub struct Step<'a> {
    pub machine: Machine,
    pub(super) now: Timestamp,
    next_seq: i64,
    new_id: &'a mut (dyn FnMut() -> EventId + Send),
    written: Written,
}

/// What a step leaves beside the new state.
#[derive(Debug, Default)]
pub struct Written {
    pub events: Vec<NewEvent>,
    /// Threads that have come.
    pub spawned: Vec<Spawned>,
    /// Threads that are over and that the state has forgotten.
    pub ended: Vec<Thread>,
}

/// A new thread, as the state does not keep it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spawned {
    pub id: ThreadId,
    pub parent: ThreadId,
    /// Among the session's threads, by creation.
    pub position: u32,
    /// What the thread shows as its `agent`, as JSON text.
    pub agent: String,
}

impl std::fmt::Debug for Step<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Step")
            .field("machine", &self.machine)
            .field("written", &self.written)
            .finish()
    }
}

impl<'a> Step<'a> {
    /// `last_seq` is the position the log has reached; `new_id` makes ids for new events.
    #[must_use]
    pub fn new(
        machine: Machine,
        last_seq: i64,
        now: Timestamp,
        new_id: &'a mut (dyn FnMut() -> EventId + Send),
    ) -> Self {
        Self {
            machine,
            now,
            next_seq: last_seq + 1,
            new_id,
            written: Written::default(),
        }
    }

    /// The new state and what led to it.
    #[must_use]
    pub fn finish(self) -> (Machine, Written) {
        (self.machine, self.written)
    }

    #[must_use]
    pub fn events(&self) -> &[NewEvent] {
        &self.written.events
    }

    pub(super) fn spawned(&mut self, spawned: Spawned) {
        self.written.spawned.push(spawned);
    }

    pub(super) fn new_id(&mut self) -> EventId {
        (self.new_id)()
    }

    pub(super) fn emit(&mut self, thread: ThreadId, payload: &Payload) -> EventId {
        let id = self.new_id();
        self.emit_as(id, thread, Processed::Now, payload);
        id
    }

    /// Emits under a given id: the processed form of a queued input, or a preview's final event. What is
    /// the session's own stands in the primary thread's log.
    pub(super) fn emit_as(
        &mut self,
        id: EventId,
        thread: ThreadId,
        processed: Processed,
        payload: &Payload,
    ) {
        let primary = self.machine.primary().id;
        let thread = if payload.is_of_session() {
            primary
        } else {
            thread
        };
        let Some(of) = self.machine.thread(thread) else {
            return;
        };
        self.written.events.push(NewEvent {
            id,
            event_type: payload.event_type(),
            thread,
            on_session: thread == primary || payload.is_cross_posted(),
            processed,
            fields: payload.fields(of),
            private: payload.private(),
        });
        let ended = self.machine.fold(Placed {
            id,
            seq: self.next_seq,
            at: self.now,
            thread,
            processed,
            payload,
        });
        self.written.ended.extend(ended);
        self.next_seq += 1;
    }

    /// The position of the next event.
    pub(super) fn next_seq(&self) -> i64 {
        self.next_seq
    }

    pub(super) fn thread(&self, id: ThreadId) -> Option<&super::Thread> {
        self.machine.thread(id)
    }

    /// Session and thread start or resume.
    pub(super) fn run(&mut self, thread: ThreadId) {
        if self.machine.status != Status::Running {
            self.emit(thread, &Payload::SessionRunning);
        }
        if self
            .thread(thread)
            .is_some_and(|t| t.status != Status::Running)
        {
            self.emit(thread, &Payload::ThreadRunning);
        }
    }

    /// Thread idles; so does the session unless something keeps it busy.
    pub(super) fn idle(&mut self, thread: ThreadId, stop: StopReason) {
        self.emit(thread, &Payload::ThreadIdle { stop: stop.clone() });
        self.rest(stop);
    }

    /// A thread has come to rest. While none runs, so does the session, once its work is graded.
    pub(super) fn rest(&mut self, stop: StopReason) {
        let runs = |t: &Thread| t.status == Status::Running;
        // An interrupt of the session is carried out before it rests.
        if self.machine.threads.iter().any(runs) || self.machine.primary().is_interrupted() {
            return;
        }
        if self.machine.threads.iter().any(Thread::works) {
            if self.machine.status == Status::Running {
                let primary = self.machine.primary().id;
                self.emit(primary, &Payload::SessionRescheduled);
            }
            return;
        }
        if self.may_grade(false) {
            self.start_grading();
            return;
        }
        let waiting = self.machine.waiting();
        let stop = if waiting.is_empty() {
            stop
        } else {
            StopReason::RequiresAction { event_ids: waiting }
        };
        let primary = self.machine.primary().id;
        let usage = session_view(&self.machine, self.now).usage(self.now);
        self.emit(primary, &Payload::SessionUsage { usage });
        self.emit(primary, &Payload::SessionIdle { stop });
    }

    /// Writes the processed form of one queued input.
    pub(super) fn process(&mut self, thread: ThreadId, input: QueuedInput, flushed: bool) {
        let fields = input.fields;
        let payload = match input.kind {
            QueuedKind::Message => Payload::Message { fields, flushed },
            QueuedKind::System => Payload::System { fields, flushed },
            QueuedKind::Interrupt => Payload::Interrupt { fields, all: false },
            QueuedKind::InterruptAll => Payload::Interrupt { fields, all: true },
        };
        self.emit_as(input.id, thread, Processed::Now, &payload);
    }

    /// Processes queued messages in order, interrupts excepted.
    pub(super) fn process_messages(&mut self, thread: ThreadId, flushed: bool) {
        let queue = self
            .thread(thread)
            .map(|t| t.queue.clone())
            .unwrap_or_default();
        for input in queue.into_iter().filter(|input| !input.kind.is_interrupt()) {
            self.process(thread, input, flushed);
        }
    }

    /// Starts a turn of an idle thread if something is there to answer.
    pub(super) fn wake(&mut self, thread: ThreadId) {
        if self.may_wake(thread) && self.thread(thread).is_some_and(Thread::has_input) {
            self.run(thread);
            self.process_messages(thread, false);
        }
    }

    /// Writes the results that need no work: refused and denied calls of a running thread.
    pub(super) fn answer_denied(&mut self, thread: ThreadId) {
        let denied: Vec<_> = self
            .thread(thread)
            .into_iter()
            .flat_map(|t| &t.calls)
            .filter_map(|call| match &call.state {
                CallState::Denied(message) => Some((call.id, message.clone())),
                _ => None,
            })
            .collect();
        for (call, message) in denied {
            let text = match message {
                Some(message) => format!(
                    "The user rejected this tool call. It was not executed. Their message: {message}"
                ),
                None => "This tool call was rejected and was not executed.".to_owned(),
            };
            self.result(thread, call, &text, true);
        }
    }

    /// A textual result of a call that the server or a sandbox or an MCP server was to run.
    pub(super) fn result(&mut self, thread: ThreadId, call: EventId, text: &str, is_error: bool) {
        let content = text_blocks(&[text]);
        let mcp = self.is_mcp(thread, call);
        self.emit(
            thread,
            &Payload::ToolResult {
                call,
                content,
                is_error,
                searches: 0,
                mcp,
            },
        );
    }

    /// Whether a pending call goes to an MCP server, whose results are events of their own kind.
    pub(super) fn is_mcp(&self, thread: ThreadId, call: EventId) -> bool {
        let calls = self.thread(thread).into_iter().flat_map(|t| &t.calls);
        calls
            .filter(|pending| pending.id == call)
            .any(|pending| pending.kind == CallKind::Mcp)
    }

    /// Ends the turn of a running thread that has nothing left to do by itself. `texts` are what the model
    /// has just said.
    pub(super) fn settle(&mut self, thread: ThreadId, texts: &[String]) {
        let Some(state) = self.thread(thread) else {
            return;
        };
        let busy = state.status != Status::Running
            || state.request.is_some()
            || state.is_interrupted()
            || state.calls.iter().any(|call| !call.is_waiting())
            || state.is_primary() && self.machine.grading().is_some();
        if busy {
            return;
        }
        if !state.calls.is_empty() {
            let event_ids = state.waiting();
            self.idle(thread, StopReason::RequiresAction { event_ids });
        } else if !state.due && !state.has_input() {
            let stop = state.sequel.clone();
            self.end_turn(thread, stop, texts);
        }
    }
}

/// Texts as content blocks.
pub(super) fn text_blocks(texts: &[impl AsRef<str>]) -> Box<RawValue> {
    #[derive(serde::Serialize)]
    struct TextBlock<'a> {
        r#type: &'static str,
        text: &'a str,
    }
    let blocks: Vec<_> = texts
        .iter()
        .map(|text| TextBlock {
            r#type: "text",
            text: text.as_ref(),
        })
        .collect();
    serde_json::value::to_raw_value(&blocks).expect("text blocks serialize")
}
