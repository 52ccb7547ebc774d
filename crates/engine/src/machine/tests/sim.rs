//! A session without a database: steps applied to a state, their events rendered as the store would
//! keep them, and everything that must hold checked after each.

use selfsame_types::{
    ApiError, EventId, SessionId, ThreadId, Timestamp,
    event::{EventType, NewEvent, Processed},
    session::SessionUsage,
};
use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};
use uuid::Uuid;

use super::{super::fold::Placed, order};
use crate::{
    change::{change, works},
    machine::{
        About, BlockContent, CallResult, ErrorType, Failure, Input, InputKind, Machine, McpTool,
        ModelUsage, NewCall, Next, Payload, Permission, Private, Response, ResponseBlock,
        RetryStatus, Sequel, Step, StopReason, Trouble, Verdict, Written,
    },
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
}

impl Sim {
    pub fn new() -> Self {
        let machine = Machine::new(ThreadId(Uuid::from_u128(1)), "agent".to_owned());
        Self {
            session: SessionId(Uuid::from_u128(2)),
            checker: order::Checker::new(),
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
        for event in written.events {
            let stored = Stored {
                seq: self.last_seq() + 1,
                at: self.now,
                body: event.render(self.now),
                event,
            };
            self.log.push(stored.clone());
            self.read_back(&stored);
        }
        if let Err(problem) = self.checker.end() {
            self.panic(&problem);
        }
        self.check();
        Ok(done)
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
        let (thread, span) = (self.thread(), self.id());
        assert!(
            self.run(|step| step.start_request(thread, span)),
            "no request"
        );
        span
    }

    pub fn respond(&mut self, blocks: Vec<BlockContent>, sequel: Sequel) -> Vec<EventId> {
        let thread = self.thread();
        let span = self.machine.primary().request.expect("a request is open");
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
        let thread = self.thread();
        let span = self.machine.primary().request.expect("a request is open");
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
        let thread = self.thread();
        self.run(|step| step.finish_call(thread, call, result(text)))
    }

    pub fn interrupt(&mut self, results: Vec<(EventId, CallResult)>) {
        let thread = self.thread();
        self.run(|step| step.interrupt(thread, results));
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
        if let Err(problem) = self.checker.event(&body) {
            self.panic(&problem);
        }
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
            let error = &body["error"];
            Payload::Trouble(Trouble {
                error_type: serde_json::from_value(error["type"].clone()).unwrap(),
                message: error["message"].as_str().unwrap().to_owned(),
                about: About::Credential {
                    credential: serde_json::from_value(error["credential_id"].clone()).unwrap(),
                    vault: serde_json::from_value(error["vault_id"].clone()).unwrap(),
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
        EventType::SpanModelRequestEnd => {
            let tokens = |key: &str| body["model_usage"][key].as_i64().unwrap();
            let (five_minutes, hour) = private.ephemeral.unwrap();
            Payload::RequestEnd {
                start: id("model_request_start_id"),
                failed: body["is_error"].as_bool().unwrap(),
                usage: ModelUsage {
                    input_tokens: tokens("input_tokens"),
                    output_tokens: tokens("output_tokens"),
                    cache_creation_input_tokens: tokens("cache_creation_input_tokens"),
                    cache_read_input_tokens: tokens("cache_read_input_tokens"),
                    ephemeral_5m_input_tokens: five_minutes,
                    ephemeral_1h_input_tokens: hour,
                    web_search_requests: 0,
                },
                again: private.again,
                sequel: private.sequel.unwrap(),
                hidden: private.hidden,
            }
        }
        other => panic!("the machine never writes {other:?}"),
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
