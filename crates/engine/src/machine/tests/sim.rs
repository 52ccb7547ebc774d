//! A session without a database: steps applied to a state, their events rendered as the store would
//! keep them, and everything that must hold checked after each.

use std::collections::HashMap;

use selfsame_store::Row;
use selfsame_types::{
    ApiError, EventId, OutcomeId, SessionId, ThreadId, Timestamp,
    event::{EventType, NewEvent, Processed},
    session::SessionUsage,
    thread::ThreadView,
};
use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};
use uuid::Uuid;

use super::{super::fold::Placed, order};
use crate::{
    change::{change, works},
    machine::{
        About, BlockContent, CallResult, Coordination, ErrorType, Failure, Input, InputKind,
        Machine, McpTool, ModelUsage, NewCall, Next, Payload, Permission, Private, Response,
        ResponseBlock, RetryStatus, Sequel, Step, StopReason, Trouble, Verdict, Written,
    },
    outcomes::{self, Judgement},
    transcript::Transcript,
};

/// An event as it is stored.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    pub seq: i64,
    pub at: Timestamp,
    pub event: NewEvent,
    pub body: String,
}

pub(super) struct Sim {
    pub session: SessionId,
    pub machine: Machine,
    pub log: Vec<Stored>,
    pub now: Timestamp,
    checker: order::Checker,
    /// The fold of what is stored.
    folded: Machine,
    next_id: u128,
    /// Threads as the store keeps them: status and view.
    rows: HashMap<ThreadId, (String, ThreadView)>,
    /// What each thread's model has been shown, and as blocks when it was asked last.
    transcripts: HashMap<ThreadId, (Transcript, Vec<(String, Value)>)>,
}

impl Sim {
    pub fn new() -> Self {
        let machine = Machine::new(ThreadId(Uuid::from_u128(1)), "agent".to_owned());
        Self {
            session: SessionId(Uuid::from_u128(2)),
            checker: order::Checker::new(&ThreadId(Uuid::from_u128(1)).to_string()),
            rows: HashMap::new(),
            transcripts: HashMap::new(),
            folded: machine.clone(),
            machine,
            log: Vec::new(),
            now: Timestamp::from_micros(1_700_000_000_000_000),
            next_id: 100,
        }
    }

    pub fn thread(&self) -> ThreadId {
        self.machine.primary().id
    }

    pub fn id(&mut self) -> EventId {
        self.next_id += 1;
        EventId(Uuid::from_u128(self.next_id))
    }

    pub fn last_seq(&self) -> i64 {
        self.log.last().map_or(0, |stored| stored.seq)
    }

    /// One append. A refusal leaves everything as it was.
    pub fn step<T>(
        &mut self,
        decide: impl FnOnce(&mut Step<'_>) -> Result<T, ApiError>,
    ) -> Result<T, ApiError> {
        let mut next_id = self.next_id;
        let mut new_id = || {
            next_id += 1;
            EventId(Uuid::from_u128(next_id))
        };
        let mut step = Step::new(self.machine.clone(), self.last_seq(), self.now, &mut new_id);
        let done = decide(&mut step)?;
        let (machine, written) = step.finish();
        self.next_id = next_id;
        self.machine = machine;
        let change = change(
            &self.machine,
            written,
            self.now,
            selfsame_store::LeaseChange::Keep,
        );
        self.keep(&change);
        for event in change.events {
            let stored = Stored {
                seq: self.last_seq() + 1,
                at: self.now,
                body: event.render(self.now),
                event,
            };
            self.log.push(stored.clone());
            self.read_back(&stored);
            self.show(&stored);
        }
        if let Err(problem) = self.checker.end() {
            self.panic(&problem);
        }
        self.check();
        Ok(done)
    }

    /// What the store makes of a change's threads.
    fn keep(&mut self, change: &selfsame_store::Change) {
        for new in &change.spawned {
            assert_eq!(new.parent, self.thread());
            assert!(
                !self.rows.contains_key(&new.change.id),
                "a thread came twice"
            );
        }
        let spawned = change.spawned.iter().map(|new| &new.change);
        for row in spawned.chain(&change.threads) {
            let view = serde_json::from_str(&row.view).unwrap();
            self.rows.insert(row.id, (row.status.to_owned(), view));
        }
    }

    /// Shows a row to its thread's model. What it was shown before stays as it was, and every call has its
    /// result behind it.
    fn show(&mut self, stored: &Stored) {
        let (transcript, shown) = self.transcripts.entry(stored.event.thread).or_default();
        let row = Row {
            seq: stored.seq,
            id: stored.event.id,
            thread: stored.event.thread,
            on_session: stored.event.on_session,
            event_type: stored.event.event_type,
            processed_at: (stored.event.processed == Processed::Now).then_some(stored.at),
            body: stored.body.as_str().into(),
            private: stored.event.private.as_deref().map(Into::into),
        };
        transcript.extend([&row]).unwrap();
        if stored.event.event_type != EventType::SpanModelRequestStart {
            return;
        }
        let messages: Vec<Value> = transcript
            .messages()
            .iter()
            .map(|message| serde_json::from_str(message.get()).unwrap())
            .collect();
        let problem = conversation(&messages).err();
        let blocks: Vec<_> = messages
            .iter()
            .flat_map(|message| {
                let role = message["role"].as_str().unwrap().to_owned();
                let blocks = message["content"].as_array().unwrap().clone();
                blocks.into_iter().map(move |mut block| {
                    block.as_object_mut().unwrap().remove("cache_control");
                    (role.clone(), block)
                })
            })
            .collect();
        let kept = blocks.starts_with(shown);
        *shown = blocks;
        if let Some(problem) = problem {
            self.panic(&problem);
        }
        if !kept {
            self.panic("what a model was shown has changed");
        }
    }

    /// A step that refuses nothing: the runner's.
    pub fn run<T>(&mut self, decide: impl FnOnce(&mut Step<'_>) -> T) -> T {
        self.step(|step| Ok(decide(step))).unwrap()
    }

    pub fn send(&mut self, inputs: &[Input]) -> Result<(), ApiError> {
        let session = self.session;
        self.step(|step| step.accept(session, inputs))
    }

    // What the runner does ---------------------------------------------------------------------

    /// Opens the request that the state asks for.
    pub fn ask(&mut self) -> EventId {
        self.ask_of(self.thread())
    }

    pub fn ask_of(&mut self, thread: ThreadId) -> EventId {
        let span = self.id();
        assert!(
            self.run(|step| step.start_request(thread, span)),
            "no request"
        );
        span
    }

    pub fn respond(&mut self, blocks: Vec<BlockContent>, sequel: Sequel) -> Vec<EventId> {
        self.respond_of(self.thread(), blocks, sequel)
    }

    pub fn respond_of(
        &mut self,
        thread: ThreadId,
        blocks: Vec<BlockContent>,
        sequel: Sequel,
    ) -> Vec<EventId> {
        let state = self.machine.thread(thread).expect("a thread");
        let span = state.request.expect("a request is open");
        let blocks: Vec<_> = blocks
            .into_iter()
            .map(|content| ResponseBlock {
                id: self.id(),
                content,
            })
            .collect();
        let ids = blocks.iter().map(|block| block.id).collect();
        let usage = ModelUsage {
            input_tokens: 10,
            output_tokens: 5,
            ephemeral_5m_input_tokens: 3,
            ..ModelUsage::default()
        };
        self.run(|step| {
            step.finish_request(
                thread,
                span,
                Response {
                    blocks,
                    usage,
                    sequel,
                },
            );
        });
        ids
    }

    pub fn fail(&mut self, retry_at: Option<Timestamp>) {
        self.fail_of(self.thread(), retry_at);
    }

    pub fn fail_of(&mut self, thread: ThreadId, retry_at: Option<Timestamp>) {
        let state = self.machine.thread(thread).expect("a thread");
        let span = state.request.expect("a request is open");
        self.run(|step| {
            step.fail_request(
                thread,
                span,
                Failure {
                    error_type: ErrorType::ModelOverloadedError,
                    message: "busy".to_owned(),
                    retry_at,
                    usage: ModelUsage::default(),
                },
            );
        });
    }

    pub fn finish_call(&mut self, call: EventId, text: &str) -> bool {
        let thread = self.thread_of(call);
        self.run(|step| step.finish_call(thread, call, result(text)))
    }

    /// Whose call it is.
    pub fn thread_of(&self, call: EventId) -> ThreadId {
        let mut threads = self.machine.threads.iter();
        let found = threads.find(|t| t.calls.iter().any(|c| c.id == call));
        found.map_or_else(|| self.thread(), |t| t.id)
    }

    pub fn interrupt(&mut self, results: Vec<(EventId, CallResult)>) {
        self.interrupt_of(self.thread(), results);
    }

    pub fn interrupt_of(&mut self, thread: ThreadId, results: Vec<(EventId, CallResult)>) {
        self.run(|step| step.interrupt(thread, results));
    }

    /// The grader's word about the open evaluation.
    pub fn grade(&mut self, judgement: Judgement) {
        let (_, span) = self.machine.grading().expect("an evaluation is open");
        let usage = ModelUsage {
            input_tokens: 100,
            output_tokens: 50,
            ..ModelUsage::default()
        };
        let verdict = outcomes::Verdict {
            judgement,
            explanation: "as it is".to_owned(),
        };
        self.run(|step| step.finish_grading(span, verdict, &usage));
    }

    pub fn fail_grading(&mut self, retry_at: Option<Timestamp>) {
        let (_, span) = self.machine.grading().expect("an evaluation is open");
        let failure = Failure {
            error_type: ErrorType::ModelOverloadedError,
            message: "busy".to_owned(),
            retry_at,
            usage: ModelUsage {
                input_tokens: 7,
                ..ModelUsage::default()
            },
        };
        self.run(|step| step.fail_grading(span, failure));
    }

    // What must hold ---------------------------------------------------------------------------

    pub fn bodies(&self) -> Vec<Value> {
        self.log
            .iter()
            .map(|stored| serde_json::from_str(&stored.body).expect("events are JSON"))
            .collect()
    }

    fn panic(&self, problem: &str) -> ! {
        let log: Vec<_> = self.log.iter().map(|stored| &*stored.body).collect();
        panic!("{problem}\n\n{}", log.join("\n"));
    }

    /// Reads an event back as it is stored, folds it, and checks its place in the log.
    fn read_back(&mut self, stored: &Stored) {
        let body = serde_json::from_str(&stored.body).expect("events are JSON");
        let thread = stored.event.thread.to_string();
        if let Err(problem) = self.checker.event(&body, &thread) {
            self.panic(&problem);
        }
        let foreign = stored.event.thread != self.thread();
        let shown = !foreign || is_cross_posted(&body);
        assert_eq!(stored.event.on_session, shown, "{body}");
        let payload = parse(stored);
        self.folded.fold(Placed {
            id: stored.event.id,
            seq: stored.seq,
            at: stored.at,
            thread: stored.event.thread,
            processed: stored.event.processed,
            payload: &payload,
        });
    }

    #[track_caller]
    fn check(&self) {
        assert_eq!(self.folded, self.machine, "the state is not the log's fold");
        let text = serde_json::to_string(&self.machine).unwrap();
        let read: Machine = serde_json::from_str(&text).unwrap();
        assert_eq!(read, self.machine, "the state does not read back");
        let next = self.machine.next();
        let works = works(&self.machine);
        assert_eq!(works, !next.is_empty(), "{next:?} for {:?}", self.machine);
        assert_eq!(works, self.machine.wake_at(self.now).is_some());
        self.check_queue();
        self.check_threads();
    }

    /// What the store keeps of threads is what the state says of them, also when it was not written again.
    #[track_caller]
    fn check_threads(&self) {
        for thread in &self.machine.threads {
            let Some((status, view)) = self.rows.get(&thread.id) else {
                assert!(
                    thread.is_primary() && !thread.has_run(),
                    "a thread has no row"
                );
                continue;
            };
            assert_eq!(status, thread.status.as_str());
            let now = self.now.after(std::time::Duration::from_secs(1));
            let written = crate::change::thread_view(thread, now);
            assert_eq!(view.tokens, written.tokens);
            assert_eq!(
                view.running.total_seconds(now),
                written.running.total_seconds(now)
            );
        }
        for (id, (status, _)) in &self.rows {
            let known = self.machine.thread(*id).is_some();
            assert!(
                known || status == "terminated",
                "a thread is gone as {status}"
            );
        }
        let total: i64 = self
            .rows
            .values()
            .map(|(_, view)| i64::try_from(view.tokens.input_tokens).unwrap())
            .sum();
        assert!(self.machine.usage().input_tokens >= total);
    }

    /// The queue is what is shown as queued and not yet as processed.
    fn check_queue(&self) {
        let mut queued: Vec<(EventId, i64)> = Vec::new();
        for stored in &self.log {
            match stored.event.processed {
                Processed::Queued => queued.push((stored.event.id, stored.seq)),
                Processed::Now => queued.retain(|(id, _)| *id != stored.event.id),
            }
        }
        assert_eq!(queued.len(), self.machine.queued().len());
        let seqs: Vec<i64> = queued.into_iter().map(|(_, seq)| seq).collect();
        let change = change(
            &self.machine,
            Written::default(),
            self.now,
            selfsame_store::LeaseChange::Keep,
        );
        assert_eq!(change.queued, seqs);
    }

    /// Names of the events since `from`; the queued form of an input is marked.
    pub fn names(&self, from: usize) -> Vec<String> {
        self.log[from..]
            .iter()
            .map(|stored| {
                let name = stored.event.event_type.as_str();
                match stored.event.processed {
                    Processed::Queued => format!("{name} (queued)"),
                    Processed::Now => name.to_owned(),
                }
            })
            .collect()
    }

    pub fn is_asked(&self) -> bool {
        matches!(self.machine.next().first(), Some(Next::Ask { .. }))
    }
}

/// Whether the session's own list shows an event of another thread, by the API's table.
fn is_cross_posted(body: &Value) -> bool {
    match body["type"].as_str().unwrap() {
        "agent.tool_use" | "agent.mcp_tool_use" => body["evaluated_permission"] == "ask",
        name => {
            name.starts_with("session.thread_status_")
                || name.starts_with("user.")
                || name == "agent.custom_tool_use"
        }
    }
}

/// What an upstream accepts: roles in turn, and behind each message with calls one that begins with their
/// results.
fn conversation(messages: &[Value]) -> Result<(), String> {
    let ids = |message: &Value, kind: &str, key: &str| -> Vec<String> {
        let blocks = message["content"].as_array().unwrap().iter();
        let mut ids: Vec<_> = blocks
            .filter(|block| block["type"] == kind)
            .map(|block| block[key].as_str().unwrap().to_owned())
            .collect();
        ids.sort();
        ids
    };
    if messages.is_empty() || messages.last().unwrap()["role"] == "assistant" {
        // A model that paused goes on with what it said.
        return if messages.is_empty() {
            Err("a model is asked nothing".to_owned())
        } else {
            Ok(())
        };
    }
    for (index, message) in messages.iter().enumerate() {
        let calls = ids(message, "tool_use", "id");
        let next = messages.get(index + 1).unwrap_or(&Value::Null);
        let results = if next.is_null() {
            Vec::new()
        } else {
            ids(next, "tool_result", "tool_use_id")
        };
        if message["role"] == "assistant" && calls != results {
            return Err(format!("{calls:?} are answered with {results:?}: {next}"));
        }
        if message["role"] == "user" && index > 0 && messages[index - 1]["role"] != "assistant" {
            let blocks = message["content"].as_array().unwrap();
            if blocks.iter().any(|block| block["type"] == "tool_result") {
                return Err("results without their calls".to_owned());
            }
        }
        let blocks = message["content"].as_array().unwrap();
        let first_other = blocks.iter().position(|b| b["type"] != "tool_result");
        let last_result = blocks.iter().rposition(|b| b["type"] == "tool_result");
        if let (Some(first), Some(last)) = (first_other, last_result)
            && last > first
        {
            return Err(format!("results come first: {message}"));
        }
    }
    Ok(())
}

pub(super) fn result(text: &str) -> CallResult {
    CallResult {
        content: raw(&json!([{"type": "text", "text": text}])),
        is_error: false,
        searches: 0,
    }
}

pub(super) fn raw(value: &Value) -> Box<RawValue> {
    serde_json::value::to_raw_value(value).unwrap()
}

// Inputs -----------------------------------------------------------------------------------------

pub(super) fn input(kind: InputKind, fields: &Value) -> Input {
    Input {
        kind,
        fields: selfsame_types::event::fields(fields),
    }
}

pub(super) fn message(text: &str) -> Input {
    let content = json!({"content": [{"type": "text", "text": text}]});
    input(InputKind::Message, &content)
}

pub(super) fn system(text: &str) -> Input {
    let content = json!({"content": [{"type": "text", "text": text}]});
    input(InputKind::System, &content)
}

pub(super) fn interrupt_of(thread: ThreadId) -> Input {
    let thread = Some(thread);
    input(
        InputKind::Interrupt { thread },
        &json!({"session_thread_id": thread}),
    )
}

pub(super) fn define(outcome: OutcomeId, max_iterations: u32) -> Input {
    let description = "Build it.".to_owned();
    let fields = json!({
        "outcome_id": outcome, "description": description,
        "rubric": {"type": "text", "content": "It is there."}, "max_iterations": max_iterations,
    });
    input(
        InputKind::DefineOutcome {
            outcome,
            description,
            max_iterations,
        },
        &fields,
    )
}

pub(super) fn interrupt() -> Input {
    input(InputKind::Interrupt { thread: None }, &json!({}))
}

pub(super) fn confirm(call: EventId, deny_message: Option<Option<&str>>) -> Input {
    let allow = deny_message.is_none();
    let deny_message = deny_message.flatten().map(str::to_owned);
    let fields = json!({
        "tool_use_id": call, "result": if allow { "allow" } else { "deny" },
        "deny_message": deny_message,
    });
    input(
        InputKind::Confirmation {
            call,
            allow,
            deny_message,
        },
        &fields,
    )
}

pub(super) fn answer(call: EventId) -> Input {
    let fields = json!({"custom_tool_use_id": call, "content": [{"type": "text", "text": "42"}]});
    input(InputKind::CustomResult { call }, &fields)
}

// Blocks -----------------------------------------------------------------------------------------

pub(super) fn say(text: &str) -> BlockContent {
    BlockContent::Text(text.to_owned())
}

fn call(name: &str, verdict: Verdict) -> BlockContent {
    BlockContent::Call(NewCall {
        model_id: format!("toolu_{name}"),
        name: name.to_owned(),
        input: raw(&json!({"command": "true"})),
        verdict,
    })
}

pub(super) fn tool(name: &str, permission: Permission) -> BlockContent {
    let policy = match permission {
        Permission::Ask => "always_ask",
        _ => "always_allow",
    };
    let serial = ["bash", "write", "edit"].contains(&name);
    call(
        name,
        Verdict::Builtin {
            permission,
            policy,
            serial,
        },
    )
}

pub(super) fn mcp(name: &str, permission: Permission) -> BlockContent {
    let policy = match permission {
        Permission::Ask => "always_ask",
        _ => "always_allow",
    };
    call(
        &format!("mcp__there__{name}"),
        Verdict::Mcp {
            server: "there".to_owned(),
            tool: name.to_owned(),
            permission,
            policy,
        },
    )
}

pub(super) fn custom(name: &str) -> BlockContent {
    call(name, Verdict::Custom)
}

/// A hidden call.
pub(super) fn hidden(name: &str, what: Coordination) -> BlockContent {
    call(name, Verdict::Hidden(what))
}

fn blocks_of(text: &str) -> Box<RawValue> {
    raw(&json!([{"type": "text", "text": text}]))
}

pub(super) fn spawn(thread: ThreadId, agent_name: &str) -> BlockContent {
    hidden(
        "create_agent",
        Coordination::Spawn {
            thread,
            agent_name: agent_name.to_owned(),
            agent: "{}".to_owned(),
            content: blocks_of("begin"),
        },
    )
}

pub(super) fn send_to(thread: ThreadId) -> BlockContent {
    let content = blocks_of("go on");
    hidden("send_to_agent", Coordination::Send { thread, content })
}

pub(super) fn list_agents() -> BlockContent {
    let agents = raw(&json!([]));
    hidden("list_agents", Coordination::List { agents })
}

pub(super) fn consult(thread: ThreadId) -> BlockContent {
    hidden(
        "advisor",
        Coordination::Consult {
            thread,
            agent_name: "anthropic.advisor".to_owned(),
            agent: "{}".to_owned(),
            content: blocks_of("what now?"),
        },
    )
}

pub(super) fn refused(name: &str) -> BlockContent {
    let reason = format!("There is no tool named `{name}`.");
    call(name, Verdict::Refused { reason })
}

// From stored rows to facts ----------------------------------------------------------------------

/// The event's own fields: what is behind the keys that every event has.
fn own_fields(stored: &Stored) -> String {
    let at = match stored.event.processed {
        Processed::Queued => "null".to_owned(),
        Processed::Now => format!("\"{}\"", stored.at),
    };
    let common = format!(
        "{{\"type\":\"{}\",\"id\":\"{}\",\"processed_at\":{at}",
        stored.event.event_type.as_str(),
        stored.event.id,
    );
    let rest = stored
        .body
        .strip_prefix(&common)
        .expect("common keys first");
    let rest = rest.strip_suffix('}').expect("an object");
    rest.strip_prefix(',').unwrap_or(rest).to_owned()
}

fn stop_reason(body: &Value) -> StopReason {
    match body["stop_reason"]["type"].as_str().unwrap() {
        "refusal" => StopReason::Refusal {
            category: serde_json::from_value(body["stop_details"]["category"].clone()).unwrap(),
            explanation: serde_json::from_value(body["stop_details"]["explanation"].clone())
                .unwrap(),
        },
        _ => serde_json::from_value(body["stop_reason"].clone()).unwrap(),
    }
}

/// Reads an event back from its type, its text and its private notes.
fn parse(stored: &Stored) -> Payload {
    #[derive(Deserialize)]
    struct Raw {
        name: Option<String>,
        input: Option<Box<RawValue>>,
        content: Option<Box<RawValue>>,
    }
    let private: Private = match &stored.event.private {
        Some(text) => serde_json::from_str(text).unwrap(),
        None => Private::default(),
    };
    let body: Value = serde_json::from_str(&stored.body).unwrap();
    let exact: Raw = serde_json::from_str(&stored.body).unwrap();
    let id = |key: &str| body[key].as_str().unwrap().parse::<EventId>().unwrap();
    let thread = |key: &str| body[key].as_str().unwrap().parse::<ThreadId>().unwrap();
    let fields = own_fields(stored);
    match stored.event.event_type {
        EventType::UserMessage => Payload::Message {
            fields,
            flushed: private.flushed,
        },
        EventType::SystemMessage => Payload::System {
            fields,
            flushed: private.flushed,
        },
        EventType::UserInterrupt => Payload::Interrupt {
            fields,
            all: body["session_thread_id"].is_null(),
        },
        EventType::UserDefineOutcome => Payload::DefineOutcome {
            fields,
            outcome: body["outcome_id"].as_str().unwrap().parse().unwrap(),
            description: body["description"].as_str().unwrap().to_owned(),
            max_iterations: serde_json::from_value(body["max_iterations"].clone()).unwrap(),
        },
        EventType::AgentThreadMessageSent => Payload::MessageSent {
            to: thread("to_session_thread_id"),
            to_agent: body["to_agent_name"].as_str().map(str::to_owned),
            content: exact.content.unwrap(),
        },
        EventType::AgentThreadMessageReceived => Payload::MessageReceived {
            from: thread("from_session_thread_id"),
            from_agent: body["from_agent_name"].as_str().map(str::to_owned),
            content: exact.content.unwrap(),
            answers: private.answers,
        },
        EventType::SessionThreadCreated => Payload::ThreadCreated {
            thread: thread("session_thread_id"),
            agent_name: body["agent_name"].as_str().unwrap().to_owned(),
            role: private.role.unwrap(),
        },
        EventType::SpanOutcomeEvaluationStart => Payload::EvaluationStart {
            outcome: body["outcome_id"].as_str().unwrap().parse().unwrap(),
            iteration: serde_json::from_value(body["iteration"].clone()).unwrap(),
        },
        EventType::SpanOutcomeEvaluationOngoing => Payload::EvaluationOngoing {
            outcome: body["outcome_id"].as_str().unwrap().parse().unwrap(),
            iteration: serde_json::from_value(body["iteration"].clone()).unwrap(),
        },
        EventType::SpanOutcomeEvaluationEnd => Payload::EvaluationEnd {
            start: body["outcome_evaluation_start_id"]
                .as_str()
                .unwrap()
                .parse()
                .ok(),
            outcome: body["outcome_id"].as_str().unwrap().parse().unwrap(),
            iteration: serde_json::from_value(body["iteration"].clone()).unwrap(),
            result: serde_json::from_value(body["result"].clone()).unwrap(),
            explanation: body["explanation"].as_str().unwrap().to_owned(),
            usage: tokens(&body["usage"], private.ephemeral.unwrap()),
        },
        EventType::UserToolConfirmation => Payload::Confirmation {
            fields,
            call: id("tool_use_id"),
            allow: body["result"] == "allow",
            deny_message: body["deny_message"].as_str().map(str::to_owned),
        },
        EventType::UserCustomToolResult => Payload::CustomResult {
            fields,
            call: id("custom_tool_use_id"),
        },
        EventType::AgentMessage => Payload::AgentMessage {
            text: body["content"][0]["text"].as_str().unwrap().to_owned(),
        },
        EventType::AgentThinking => Payload::AgentThinking {
            block: private.block.unwrap(),
        },
        EventType::AgentToolUse | EventType::AgentMcpToolUse => Payload::ToolUse {
            name: exact.name.unwrap(),
            input: exact.input.unwrap(),
            permission: serde_json::from_value(body["evaluated_permission"].clone()).unwrap(),
            evaluation: body["evaluation"]["type"]
                .as_str()
                .map(|policy| match policy {
                    "always_ask" => "always_ask",
                    "always_allow" => "always_allow",
                    other => panic!("{other}"),
                }),
            model_id: private.model_id.unwrap(),
            serial: private.serial,
            mcp: private.offered.map(|offered| McpTool {
                server: body["mcp_server_name"].as_str().unwrap().to_owned(),
                offered,
            }),
        },
        EventType::AgentCustomToolUse => Payload::CustomToolUse {
            name: exact.name.unwrap(),
            input: exact.input.unwrap(),
            model_id: private.model_id.unwrap(),
        },
        EventType::AgentToolResult => Payload::ToolResult {
            call: id("tool_use_id"),
            content: exact.content.unwrap(),
            is_error: body["is_error"].as_bool().unwrap(),
            searches: private.searches,
            mcp: false,
        },
        EventType::AgentMcpToolResult => Payload::ToolResult {
            call: id("mcp_tool_use_id"),
            content: exact.content.unwrap(),
            is_error: body["is_error"].as_bool().unwrap(),
            searches: private.searches,
            mcp: true,
        },
        EventType::SessionError if body["error"]["credential_id"].is_string() => {
            let id = |key: &str| body["error"][key].as_str().unwrap();
            Payload::Trouble(Trouble {
                error_type: serde_json::from_value(body["error"]["type"].clone()).unwrap(),
                message: body["error"]["message"].as_str().unwrap().to_owned(),
                about: About::Credential {
                    credential: id("credential_id").parse().unwrap(),
                    vault: id("vault_id").parse().unwrap(),
                },
            })
        }
        EventType::SessionError => Payload::Error {
            error_type: serde_json::from_value(body["error"]["type"].clone()).unwrap(),
            message: body["error"]["message"].as_str().unwrap().to_owned(),
            retry: serde_json::from_value::<RetryStatus>(
                body["error"]["retry_status"]["type"].clone(),
            )
            .unwrap(),
            spent: private.spent.unwrap_or_default(),
        },
        EventType::SessionStatusRunning => Payload::SessionRunning,
        EventType::SessionStatusIdle => Payload::SessionIdle {
            stop: stop_reason(&body),
        },
        EventType::SessionStatusRescheduled => Payload::SessionRescheduled,
        EventType::SessionStatusTerminated => Payload::SessionTerminated,
        EventType::SessionUpdated => Payload::SessionUpdated { fields },
        EventType::SessionUsage => Payload::SessionUsage {
            // Says what the state says already, and changes nothing.
            usage: usage(&body["usage"]),
        },
        EventType::SessionThreadStatusRunning => Payload::ThreadRunning,
        EventType::SessionThreadStatusIdle => Payload::ThreadIdle {
            stop: stop_reason(&body),
        },
        EventType::SessionThreadStatusRescheduled => Payload::ThreadRescheduled {
            attempt: private.attempt.unwrap(),
            wake_at: private.wake_at.unwrap(),
        },
        EventType::SessionThreadStatusTerminated => Payload::ThreadTerminated,
        EventType::SpanModelRequestStart => Payload::RequestStart,
        EventType::SpanModelRequestEnd => Payload::RequestEnd {
            start: id("model_request_start_id"),
            failed: body["is_error"].as_bool().unwrap(),
            usage: tokens(&body["model_usage"], private.ephemeral.unwrap()),
            again: private.again,
            sequel: private.sequel.unwrap(),
            hidden: private.hidden,
        },
        other => panic!("the machine never writes {other:?}"),
    }
}

fn tokens(shown: &Value, (five_minutes, hour): (i64, i64)) -> ModelUsage {
    let tokens = |key: &str| shown[key].as_i64().unwrap();
    ModelUsage {
        input_tokens: tokens("input_tokens"),
        output_tokens: tokens("output_tokens"),
        cache_creation_input_tokens: tokens("cache_creation_input_tokens"),
        cache_read_input_tokens: tokens("cache_read_input_tokens"),
        ephemeral_5m_input_tokens: five_minutes,
        ephemeral_1h_input_tokens: hour,
        web_search_requests: 0,
    }
}

fn usage(shown: &Value) -> SessionUsage {
    assert!(shown["input_tokens"].is_u64() && shown["active_seconds"].is_f64());
    crate::change::session_view(
        &Machine::new(ThreadId(Uuid::nil()), String::new()),
        Timestamp::from_micros(0),
    )
    .usage(Timestamp::from_micros(0))
}
