//! Random sessions.
//!
//! Clients send anything at any time, right and wrong; the runner does what the state asks for, in any
//! order, with any outcome, sometimes too late, sometimes after a crash. What must hold is checked by
//! [`Sim`] after every single append.

use proptest::prelude::*;
use selfsame_types::{EventId, ThreadId};
use uuid::Uuid;

use super::sim::*;
use crate::machine::{
    BlockContent, Input, InputKind, Next, Permission, Sequel, Status, StopReason,
};

/// One input of a client; numbers choose among what there is.
#[derive(Debug, Clone)]
enum Sent {
    Message,
    System,
    Interrupt,
    InterruptPrimary,
    InterruptUnknown,
    Allow(u8),
    Deny(u8, bool),
    Answer(u8),
    AnswerUnknown,
}

#[derive(Debug, Clone)]
enum Block {
    Text,
    Thinking,
    Allow(bool),
    Ask(bool),
    Custom,
    Refused,
}

/// What happens next.
#[derive(Debug, Clone)]
enum Happens {
    Send(Vec<Sent>),
    /// The runner does one of the things that the state asks for; a response if that is one.
    Work(u8, Vec<Block>, u8),
    /// A request fails; with a further attempt or without.
    Fail(bool),
    /// A call ends, and the next request starts in the same append.
    Result(u8),
    /// What was under way ends although an interrupt has been accepted: the runner has not heard of it.
    Race(u8, Vec<Block>),
    /// What was asked for earlier comes too late.
    Stale,
    /// Another server takes over.
    Crash(bool),
    Time(u16),
    Update,
    Archive,
}

fn sent() -> impl Strategy<Value = Sent> {
    prop_oneof![
        4 => Just(Sent::Message),
        1 => Just(Sent::System),
        2 => Just(Sent::Interrupt),
        1 => Just(Sent::InterruptPrimary),
        1 => Just(Sent::InterruptUnknown),
        4 => any::<u8>().prop_map(Sent::Allow),
        3 => (any::<u8>(), any::<bool>()).prop_map(|(call, text)| Sent::Deny(call, text)),
        4 => any::<u8>().prop_map(Sent::Answer),
        1 => Just(Sent::AnswerUnknown),
    ]
}

fn block() -> impl Strategy<Value = Block> {
    prop_oneof![
        Just(Block::Text),
        Just(Block::Thinking),
        any::<bool>().prop_map(Block::Allow),
        any::<bool>().prop_map(Block::Ask),
        Just(Block::Custom),
        Just(Block::Refused),
    ]
}

fn happens() -> impl Strategy<Value = Happens> {
    let work = (
        any::<u8>(),
        proptest::collection::vec(block(), 0..5),
        any::<u8>(),
    );
    prop_oneof![
        6 => sent().prop_map(|sent| Happens::Send(vec![sent])),
        3 => proptest::collection::vec(sent(), 2..4).prop_map(Happens::Send),
        12 => work.prop_map(|(which, blocks, end)| Happens::Work(which, blocks, end)),
        2 => any::<bool>().prop_map(Happens::Fail),
        3 => any::<u8>().prop_map(Happens::Result),
        4 => (any::<u8>(), proptest::collection::vec(block(), 0..5))
            .prop_map(|(which, blocks)| Happens::Race(which, blocks)),
        1 => Just(Happens::Stale),
        1 => any::<bool>().prop_map(Happens::Crash),
        1 => any::<u16>().prop_map(Happens::Time),
        1 => Just(Happens::Update),
        1 => Just(Happens::Archive),
    ]
}

struct Session {
    sim: Sim,
    /// Every call ever made, to answer wrongly, too.
    calls: Vec<EventId>,
    requests: Vec<EventId>,
}

fn pick<T: Copy>(from: &[T], which: u8) -> Option<T> {
    (!from.is_empty()).then(|| from[usize::from(which) % from.len()])
}

impl Session {
    fn new() -> Self {
        Self {
            sim: Sim::new(),
            calls: Vec::new(),
            requests: Vec::new(),
        }
    }

    fn input(&self, sent: &Sent) -> Input {
        let nobody = EventId(Uuid::from_u128(7));
        // Mostly calls that wait, sometimes any.
        let call = |which: u8| {
            let waiting = self.sim.machine.waiting();
            let from = if which.is_multiple_of(8) || waiting.is_empty() {
                &self.calls
            } else {
                &waiting
            };
            pick(from, which / 8).unwrap_or(nobody)
        };
        let interrupt_of = |thread| {
            let thread = Some(thread);
            input(
                InputKind::Interrupt { thread },
                &serde_json::json!({"session_thread_id": thread}),
            )
        };
        match sent {
            Sent::Message => message("hello"),
            Sent::System => system("be brief"),
            Sent::Interrupt => interrupt(),
            Sent::InterruptPrimary => interrupt_of(self.sim.thread()),
            Sent::InterruptUnknown => interrupt_of(ThreadId(Uuid::from_u128(8))),
            Sent::Allow(which) => confirm(call(*which), None),
            Sent::Deny(which, text) => confirm(call(*which), Some(text.then_some("no"))),
            Sent::Answer(which) => answer(call(*which)),
            Sent::AnswerUnknown => answer(nobody),
        }
    }

    fn send(&mut self, sent: &[Sent]) {
        let inputs: Vec<_> = sent.iter().map(|sent| self.input(sent)).collect();
        let before = (self.sim.machine.clone(), self.sim.log.len());
        match self.sim.send(&inputs) {
            Ok(()) => {
                let new = &self.sim.log[before.1..];
                for input in &inputs {
                    let shown = new.iter().any(|stored| {
                        let name = stored.event.event_type.as_str();
                        (name.starts_with("user.") || name == "system.message")
                            && stored.event.fields == input.fields
                    });
                    assert!(shown, "{input:?} was accepted and left no trace");
                }
            }
            Err(error) => {
                assert_eq!(error.kind.status(), 400, "{error:?}");
                assert_eq!(before, (self.sim.machine.clone(), self.sim.log.len()));
            }
        }
    }

    fn blocks(blocks: &[Block]) -> Vec<BlockContent> {
        blocks
            .iter()
            .map(|block| match block {
                Block::Text => say("text"),
                Block::Thinking => BlockContent::Thinking(raw(
                    &serde_json::json!({"type": "thinking", "thinking": "", "signature": "s"}),
                )),
                Block::Allow(serial) => {
                    tool(if *serial { "bash" } else { "read" }, Permission::Allow)
                }
                Block::Ask(serial) => tool(if *serial { "edit" } else { "grep" }, Permission::Ask),
                Block::Custom => custom("lookup"),
                Block::Refused => refused("nothing"),
            })
            .collect()
    }

    fn work(&mut self, which: u8, blocks: &[Block], end: u8) {
        let next = self.sim.machine.next();
        let thread = self.sim.thread();
        match pick(&next.iter().collect::<Vec<_>>(), which) {
            None => {}
            Some(Next::Ask { .. }) => {
                let span = self.sim.ask();
                self.requests.push(span);
            }
            Some(Next::Await { .. }) => {
                let sequel = match end % 8 {
                    0 => Sequel::Again,
                    1 => Sequel::Refusal {
                        category: Some("cyber".to_owned()),
                        explanation: None,
                    },
                    _ => Sequel::EndTurn,
                };
                let ids = self.sim.respond(Self::blocks(blocks), sequel);
                self.calls.extend(ids);
            }
            Some(Next::Call { call, .. }) => {
                let call = *call;
                assert!(self.sim.finish_call(call, "done"));
                assert!(
                    !self.sim.finish_call(call, "again"),
                    "two results of one call"
                );
            }
            Some(Next::Interrupt { .. }) => {
                // Of the calls that ran, some were stopped with a result of their own.
                let results = self
                    .sim
                    .machine
                    .primary()
                    .calls
                    .iter()
                    .filter(|call| call.is_runnable() && end.is_multiple_of(2))
                    .map(|call| (call.id, result("stopped")))
                    .collect();
                self.sim.interrupt(results);
            }
            Some(Next::Grade { .. }) => unreachable!("no outcome was defined"),
            Some(Next::Wait { until, .. }) => {
                self.sim.now = self.sim.now.max(*until);
                let span = self.sim.id();
                assert!(self.sim.run(|step| step.start_request(thread, span)));
                self.requests.push(span);
            }
        }
    }

    fn happens(&mut self, happens: &Happens) {
        let thread = self.sim.thread();
        match happens {
            Happens::Send(sent) => self.send(sent),
            Happens::Work(which, blocks, end) => self.work(*which, blocks, *end),
            Happens::Fail(again) => {
                if self.sim.machine.primary().request.is_some() {
                    let at = self.sim.now.after(std::time::Duration::from_secs(1));
                    self.sim.fail(again.then_some(at));
                }
            }
            Happens::Result(which) => {
                let calls: Vec<_> = self
                    .sim
                    .machine
                    .next()
                    .iter()
                    .filter_map(|next| match next {
                        Next::Call { call, .. } => Some(*call),
                        _ => None,
                    })
                    .collect();
                if let Some(call) = pick(&calls, *which) {
                    let span = self.sim.id();
                    self.sim.run(|step| {
                        step.finish_call(thread, call, result("done"));
                        if step.machine.next().contains(&Next::Ask { thread }) {
                            step.start_request(thread, span);
                        }
                    });
                    self.requests.push(span);
                }
            }
            Happens::Race(which, blocks) => {
                let state = self.sim.machine.primary();
                let runnable: Vec<_> = state
                    .calls
                    .iter()
                    .filter(|call| state.status == Status::Running && call.is_runnable())
                    .map(|call| call.id)
                    .collect();
                if state.request.is_some() {
                    let ids = self.sim.respond(Self::blocks(blocks), Sequel::EndTurn);
                    self.calls.extend(ids);
                } else if let Some(call) = pick(&runnable, *which) {
                    assert!(self.sim.finish_call(call, "just done"));
                }
            }
            Happens::Stale => self.stale(),
            Happens::Crash(last) => {
                let at = (!last).then_some(self.sim.now);
                self.sim.run(|step| step.recover(&[thread], |_| at));
            }
            Happens::Time(micros) => {
                let wait = std::time::Duration::from_micros(u64::from(*micros));
                self.sim.now = self.sim.now.after(wait);
            }
            Happens::Update => self
                .sim
                .run(|step| step.updated("\"title\":\"t\"".to_owned())),
            Happens::Archive => {
                let idle = matches!(self.sim.machine.status, Status::Idle | Status::Terminated);
                let done = self.sim.step(|step| step.terminate("archive"));
                assert_eq!(done.is_ok(), idle);
            }
        }
    }

    /// Outcomes of requests and calls that the state has left behind change nothing.
    fn stale(&mut self) {
        let thread = self.sim.thread();
        let state = self.sim.machine.primary().clone();
        let before = self.sim.log.len();
        for span in self.requests.clone() {
            if state.request != Some(span) {
                self.sim.run(|step| {
                    let response = crate::machine::Response {
                        blocks: Vec::new(),
                        usage: crate::machine::ModelUsage::default(),
                        sequel: Sequel::EndTurn,
                    };
                    step.finish_request(thread, span, response);
                });
            }
        }
        for call in self.calls.clone() {
            let runnable = state.status == Status::Running
                && state.calls.iter().any(|c| c.id == call && c.is_runnable());
            if !runnable {
                assert!(!self.sim.finish_call(call, "late"));
            }
        }
        if !state.is_interrupted() {
            self.sim.interrupt(Vec::new());
        }
        if state.request.is_some() || !state.calls.is_empty() || state.is_interrupted() {
            let span = self.sim.id();
            assert!(!self.sim.run(|step| step.start_request(thread, span)));
        }
        assert_eq!(self.sim.log.len(), before, "something stale was written");
    }

    /// From here on all goes well: the session must come to rest, and every input with it.
    fn rest(&mut self) {
        for _ in 0..200 {
            let waiting = self.sim.machine.waiting();
            match self.sim.machine.status {
                Status::Terminated => return,
                Status::Idle if waiting.is_empty() => break,
                Status::Idle => {
                    let call = waiting[0];
                    let kind = self
                        .sim
                        .machine
                        .primary()
                        .calls
                        .iter()
                        .find(|c| c.id == call);
                    let answer = match kind.unwrap().kind {
                        crate::machine::CallKind::Custom => answer(call),
                        _ => confirm(call, None),
                    };
                    self.sim.send(&[answer]).unwrap();
                }
                Status::Running | Status::Rescheduling => self.work(0, &[Block::Text], 7),
            }
        }
        assert_eq!(
            self.sim.machine.status,
            Status::Idle,
            "it never comes to rest"
        );
        assert!(
            matches!(
                self.sim.machine.primary().stop,
                None | Some(
                    StopReason::EndTurn | StopReason::RetriesExhausted | StopReason::Refusal { .. }
                )
            ),
            "{:?}",
            self.sim.machine.primary().stop
        );
        let left = self.sim.machine.primary().queue.iter();
        assert!(
            left.clone()
                .all(|input| input.kind == crate::machine::QueuedKind::System),
            "inputs were lost: {left:?}"
        );
        // What was said to the system before is heard with the next message.
        self.sim.send(&[message("last")]).unwrap();
        for _ in 0..3 {
            self.work(0, &[Block::Text], 7);
        }
        assert_eq!(self.sim.machine.status, Status::Idle);
        assert!(self.sim.machine.primary().queue.is_empty());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, max_shrink_iters: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_session_is_legal_at_every_moment(story in proptest::collection::vec(happens(), 1..40)) {
        let mut session = Session::new();
        for happens in &story {
            session.happens(happens);
        }
        session.rest();
    }
}
