//! The order checker: what a session's log may look like, written from the API's rules and not from
//! the machine. It sees what clients see, the events' JSON in log order, and knows one thread.

use std::collections::HashMap;

use serde_json::Value;

const INTERRUPTED: &str = "Tool execution was interrupted before completion. Please retry.";

/// Names that may be queued, and are shown a second time when they are processed.
const QUEUEABLE: &[&str] = &["user.message", "user.interrupt", "system.message"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Status {
    Idle,
    Running,
    Rescheduling,
    Terminated,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CallState {
    /// Runs without being asked about.
    Allowed,
    /// Waits for a confirmation, or for a custom tool's result.
    Waiting,
    Confirmed,
    Rejected,
    /// Refused by the server or by the user.
    Denied,
}

#[derive(Debug, Clone)]
struct Call {
    id: String,
    custom: bool,
    mcp: bool,
    state: CallState,
}

/// Everything that the log so far has said.
#[derive(Debug)]
pub(crate) struct Checker {
    status: Status,
    thread: Option<String>,
    span: Option<String>,
    /// The open span has given output; then its end follows.
    output: bool,
    calls: Vec<Call>,
    /// Queued inputs, in order: id and whole event.
    queued: Vec<(String, Value)>,
    seen: HashMap<String, bool>,
    last_time: String,
    /// What the very next event must be.
    must: Vec<&'static str>,
    /// .. unless the log ends here.
    may_stop: bool,
    /// The turn has failed; what is processed now is thrown away.
    exhausted: bool,
    /// An interrupt was carried out and no idle has followed yet.
    interrupted: bool,
    /// Answers since the last idle event.
    answered: bool,
    stop: Option<Value>,
    messages: usize,
}

/// Checks a log from its first event on.
pub(crate) fn check(log: &[Value]) -> Result<(), String> {
    let mut checker = Checker::new();
    for (index, event) in log.iter().enumerate() {
        checker
            .event(event)
            .map_err(|problem| format!("event {index}: {problem}\n{event}"))?;
    }
    checker.end()
}

fn text<'a>(event: &'a Value, key: &str) -> Result<&'a str, String> {
    event[key]
        .as_str()
        .ok_or_else(|| format!("`{key}` is no text"))
}

macro_rules! hold {
    ($condition:expr, $($problem:tt)+) => {
        if !$condition {
            return Err(format!($($problem)+));
        }
    };
}

impl Checker {
    pub(crate) fn new() -> Self {
        Self {
            status: Status::Idle,
            thread: None,
            span: None,
            output: false,
            calls: Vec::new(),
            queued: Vec::new(),
            seen: HashMap::new(),
            last_time: String::new(),
            must: Vec::new(),
            may_stop: false,
            exhausted: false,
            interrupted: false,
            answered: false,
            stop: None,
            messages: 0,
        }
    }

    /// The next event of the log.
    pub(crate) fn event(&mut self, event: &Value) -> Result<(), String> {
        let name = text(event, "type")?;
        let id = text(event, "id")?.to_owned();
        hold!(
            self.status != Status::Terminated,
            "nothing follows the end of a session"
        );
        if !self.must.is_empty() {
            let must = std::mem::take(&mut self.must);
            self.may_stop = false;
            hold!(must.contains(&name), "{must:?} had to follow");
        }
        if event["processed_at"].is_null() {
            hold!(QUEUEABLE.contains(&name), "is never queued");
            hold!(self.seen.insert(id.clone(), false).is_none(), "twice");
            self.queued.push((id, event.clone()));
            return Ok(());
        }
        self.time(event)?;
        let was_queued = match self.seen.insert(id.clone(), true) {
            None => false,
            Some(false) => {
                self.dequeue(&id, event)?;
                true
            }
            Some(true) => return Err("processed twice".to_owned()),
        };
        if !name.starts_with("session.thread_") {
            hold!(
                event
                    .get("session_thread_id")
                    .is_none_or(|_| name == "user.interrupt"),
                "events of the primary thread do not name it"
            );
        }
        match name {
            "user.message" | "system.message" => {
                hold!(was_queued, "was never shown as queued");
                let mut flushed = self.exhausted && self.status == Status::Running;
                if self.status == Status::Idle {
                    flushed = true;
                    self.must = vec![
                        "user.message",
                        "system.message",
                        "session.thread_status_terminated",
                    ];
                }
                hold!(
                    flushed || self.status == Status::Running && self.span.is_none(),
                    "processed while {:?}",
                    self.status
                );
                hold!(
                    flushed || self.calls.is_empty(),
                    "comes between a call and its result"
                );
                self.messages += usize::from(name == "user.message" && !flushed);
                Ok(())
            }
            "user.interrupt" => self.interrupt(was_queued),
            "user.tool_confirmation" => self.confirmation(event),
            "user.custom_tool_result" => self.custom_result(event),
            "session.updated" => Ok(()),
            "agent.message"
            | "agent.thinking"
            | "agent.tool_use"
            | "agent.mcp_tool_use"
            | "agent.custom_tool_use" => self.agent(name, id, event),
            "agent.tool_result" | "agent.mcp_tool_result" => self.result(name, event),
            "span.model_request_start" => self.span_start(id),
            "span.model_request_end" => self.span_end(event),
            "session.error" => self.error(event),
            _ => self.status_event(name, event),
        }
    }

    fn time(&mut self, event: &Value) -> Result<(), String> {
        let time = text(event, "processed_at")?;
        hold!(time >= self.last_time.as_str(), "time runs backwards");
        time.clone_into(&mut self.last_time);
        Ok(())
    }

    fn dequeue(&mut self, id: &str, event: &Value) -> Result<(), String> {
        let index = self
            .queued
            .iter()
            .position(|(queued, _)| queued == id)
            .ok_or("not in the queue")?;
        let (_, queued) = self.queued.remove(index);
        let mut same = event.clone();
        same["processed_at"] = Value::Null;
        hold!(same == queued, "the processed form differs from {queued}");
        let kind = |event: &Value| event["type"] == "user.interrupt";
        let earlier = self.queued[..index]
            .iter()
            .find(|(_, earlier)| kind(earlier) == kind(event));
        hold!(earlier.is_none(), "overtakes {earlier:?}");
        Ok(())
    }

    fn interrupt(&mut self, was_queued: bool) -> Result<(), String> {
        hold!(self.span.is_none(), "carried out inside a request");
        match self.status {
            Status::Idle => {
                hold!(!was_queued, "nothing was running");
                if !self.calls.is_empty() {
                    self.interrupted = true;
                    self.must = vec![
                        "agent.tool_result",
                        "agent.mcp_tool_result",
                        "session.thread_status_idle",
                    ];
                }
            }
            _ => {
                hold!(was_queued, "was never shown as queued");
                hold!(
                    self.calls.iter().all(|call| call.custom),
                    "calls without result: {:?}",
                    self.calls
                );
                self.interrupted = true;
                self.must = vec!["user.interrupt", "session.thread_status_idle"];
            }
        }
        Ok(())
    }

    fn confirmation(&mut self, event: &Value) -> Result<(), String> {
        let id = text(event, "tool_use_id")?;
        let call = self
            .calls
            .iter_mut()
            .find(|call| call.id == id && !call.custom)
            .ok_or("no such call is pending")?;
        hold!(call.state == CallState::Waiting, "already answered");
        call.state = match text(event, "result")? {
            "allow" => CallState::Confirmed,
            "deny" => CallState::Rejected,
            _ => return Err("neither allow nor deny".to_owned()),
        };
        self.answered = true;
        Ok(())
    }

    fn custom_result(&mut self, event: &Value) -> Result<(), String> {
        let id = text(event, "custom_tool_use_id")?;
        let index = self
            .calls
            .iter()
            .position(|call| call.id == id && call.custom)
            .ok_or("no such call is pending")?;
        self.calls.remove(index);
        self.answered = true;
        Ok(())
    }

    fn agent(&mut self, name: &str, id: String, event: &Value) -> Result<(), String> {
        hold!(
            self.status == Status::Running && self.span.is_some(),
            "output outside a request"
        );
        self.output = true;
        self.must = vec![
            "agent.message",
            "agent.thinking",
            "agent.tool_use",
            "agent.mcp_tool_use",
            "agent.custom_tool_use",
            "span.model_request_end",
        ];
        if !name.ends_with("tool_use") {
            return Ok(());
        }
        let mcp = name == "agent.mcp_tool_use";
        hold!(
            event["mcp_server_name"].is_string() == mcp,
            "MCP calls and no others name a server"
        );
        hold!(event["input"].is_object(), "`input` is no object");
        let custom = name == "agent.custom_tool_use";
        let state = match (custom, event["evaluated_permission"].as_str()) {
            (true, None) | (false, Some("ask")) => CallState::Waiting,
            (false, Some("allow")) => CallState::Allowed,
            (false, Some("deny")) => {
                hold!(
                    event.get("evaluation").is_none(),
                    "the server's refusal is no evaluation"
                );
                CallState::Denied
            }
            other => return Err(format!("permission {other:?}")),
        };
        self.calls.push(Call {
            id,
            custom,
            mcp,
            state,
        });
        Ok(())
    }

    fn result(&mut self, name: &str, event: &Value) -> Result<(), String> {
        hold!(self.span.is_none(), "a result inside a request");
        let mcp = name == "agent.mcp_tool_result";
        let key = if mcp {
            "mcp_tool_use_id"
        } else {
            "tool_use_id"
        };
        let id = text(event, key)?;
        let index = self
            .calls
            .iter()
            .position(|call| call.id == id && !call.custom && call.mcp == mcp)
            .ok_or("no such call is pending")?;
        let call = self.calls.remove(index);
        let is_error = event["is_error"] == true;
        let dropped = is_error && event["content"][0]["text"] == INTERRUPTED;
        match call.state {
            CallState::Allowed | CallState::Confirmed => {}
            CallState::Denied | CallState::Rejected => hold!(is_error, "a denied call ran"),
            CallState::Waiting => hold!(dropped, "a call ran without being confirmed"),
        }
        match self.status {
            Status::Running => {}
            Status::Idle => {
                hold!(self.interrupted && dropped, "a result while idle");
                self.must = vec![
                    "agent.tool_result",
                    "agent.mcp_tool_result",
                    "session.thread_status_idle",
                ];
            }
            status => return Err(format!("a result while {status:?}")),
        }
        Ok(())
    }

    fn span_start(&mut self, id: String) -> Result<(), String> {
        hold!(self.status == Status::Running, "not running");
        hold!(self.span.is_none(), "two requests at once");
        hold!(
            self.calls.is_empty(),
            "calls without result: {:?}",
            self.calls
        );
        hold!(
            !self
                .queued
                .iter()
                .any(|(_, event)| event["type"] != "user.interrupt"),
            "queued inputs were not shown to the model: {:?}",
            self.queued
        );
        hold!(self.messages > 0, "nothing to answer");
        self.span = Some(id);
        self.output = false;
        Ok(())
    }

    fn span_end(&mut self, event: &Value) -> Result<(), String> {
        let open = self.span.take().ok_or("no request is open")?;
        hold!(
            text(event, "model_request_start_id")? == open,
            "the end of another request"
        );
        let failed = event["is_error"].as_bool().ok_or("`is_error`")?;
        hold!(!(failed && self.output), "a failed request gave output");
        for key in [
            "input_tokens",
            "output_tokens",
            "cache_creation_input_tokens",
            "cache_read_input_tokens",
        ] {
            hold!(event["model_usage"][key].is_u64(), "usage lacks {key}");
        }
        if failed {
            self.may_stop = true;
            self.must = vec![
                "session.error",
                "user.interrupt",
                // A failure that meets an accepted interrupt says nothing more until that is done.
                "user.message",
                "system.message",
                "session.updated",
            ];
        }
        Ok(())
    }

    fn error(&mut self, event: &Value) -> Result<(), String> {
        hold!(self.status == Status::Running, "an error while not running");
        hold!(self.span.is_none(), "an error inside a request");
        text(&event["error"], "type")?;
        text(&event["error"], "message")?;
        let kind = text(&event["error"], "type")?;
        if kind.starts_with("repository_") || kind.starts_with("credential_") {
            if kind.starts_with("credential_") {
                text(&event["error"], "credential_id")?;
                text(&event["error"], "vault_id")?;
            }
            hold!(
                event["error"]["retry_status"]["type"] == "retrying",
                "a session goes on without it"
            );
            return Ok(());
        }
        if kind.starts_with("mcp_") {
            text(&event["error"], "mcp_server_name")?;
            hold!(
                event["error"]["retry_status"]["type"] == "exhausted",
                "a server is given up for the turn"
            );
            return Ok(());
        }
        self.must = match text(&event["error"]["retry_status"], "type")? {
            "retrying" => vec!["session.status_rescheduled"],
            "exhausted" => {
                self.exhausted = true;
                vec![
                    "user.message",
                    "system.message",
                    "session.thread_status_idle",
                ]
            }
            "terminal" => vec!["session.thread_status_terminated"],
            other => return Err(format!("retry status {other}")),
        };
        Ok(())
    }

    fn status_event(&mut self, name: &str, event: &Value) -> Result<(), String> {
        if name.starts_with("session.thread_status_") {
            let id = text(event, "session_thread_id")?.to_owned();
            text(event, "agent_name")?;
            let thread = self.thread.get_or_insert_with(|| id.clone());
            hold!(*thread == id, "another thread");
        }
        match name {
            "session.status_running" => {
                hold!(self.status != Status::Running, "already running");
                self.status = Status::Running;
                self.stop = None;
                self.must = vec!["session.thread_status_running"];
            }
            "session.thread_status_running" => {
                hold!(self.status == Status::Running, "the session is not");
            }
            "session.status_rescheduled" => {
                hold!(self.status == Status::Running, "not running");
                self.status = Status::Rescheduling;
                self.must = vec!["session.thread_status_rescheduled"];
            }
            "session.thread_status_rescheduled" => {
                hold!(self.status == Status::Rescheduling, "the session is not");
            }
            "session.thread_status_idle" => {
                self.idle(event)?;
                self.must = vec!["session.usage"];
            }
            "session.usage" => {
                hold!(self.stop.is_some(), "no thread has become idle");
                hold!(event["usage"].is_object(), "`usage` is missing");
                self.must = vec!["session.status_idle"];
            }
            "session.status_idle" => {
                let said = (event["stop_reason"].clone(), event["stop_details"].clone());
                let stop = self.stop.clone().ok_or("no thread has become idle")?;
                hold!(said.0 == stop, "the thread said {stop}");
                hold!(
                    said.1.is_object() == (stop["type"] == "refusal"),
                    "stop_details {}",
                    said.1
                );
                self.status = Status::Idle;
                self.stop = None;
                if self.messages_queued() > 0 && stop["type"] != "requires_action" {
                    self.must = vec!["session.status_running"];
                }
            }
            "session.thread_status_terminated" => {
                hold!(self.span.is_none(), "a request is open");
                self.must = vec!["session.status_terminated"];
            }
            "session.status_terminated" => self.status = Status::Terminated,
            _ => return Err("not an event of a session with one thread".to_owned()),
        }
        Ok(())
    }

    /// A thread becomes idle, or says so again.
    fn idle(&mut self, event: &Value) -> Result<(), String> {
        hold!(self.span.is_none(), "idle inside a request");
        hold!(
            event.get("stop_details").is_some(),
            "`stop_details` is spelled out"
        );
        let stop = event["stop_reason"].clone();
        let kind = text(&stop, "type")?;
        let interrupts = self.queued.len() - self.messages_and_systems_queued();
        hold!(interrupts == 0, "idle with an interrupt in the queue");
        if kind == "requires_action" {
            let waiting: Vec<&str> = self
                .calls
                .iter()
                .filter(|call| call.state == CallState::Waiting)
                .map(|call| call.id.as_str())
                .collect();
            hold!(!waiting.is_empty(), "nothing waits");
            hold!(
                stop["event_ids"] == serde_json::json!(waiting),
                "{waiting:?} wait"
            );
            match self.status {
                Status::Running => hold!(
                    waiting.len() == self.calls.len(),
                    "idle before its calls are done: {:?}",
                    self.calls
                ),
                Status::Idle => hold!(self.answered, "said twice"),
                status => return Err(format!("idle while {status:?}")),
            }
        } else {
            match kind {
                "end_turn" | "refusal" => {
                    hold!(!self.exhausted, "the turn has failed");
                    if self.status != Status::Running {
                        hold!(self.interrupted, "idle while {:?}", self.status);
                    }
                    hold!(
                        self.interrupted || self.messages_queued() == 0,
                        "the turn ends before its queue"
                    );
                }
                "retries_exhausted" => {
                    hold!(self.exhausted, "the turn has not failed");
                    hold!(self.queued.is_empty(), "inputs were not flushed");
                }
                other => return Err(format!("stop reason {other}")),
            }
            hold!(
                self.calls.is_empty() || self.interrupted && self.calls.iter().all(|c| c.custom),
                "calls without result: {:?}",
                self.calls
            );
            self.calls.clear();
        }
        self.exhausted = false;
        self.interrupted = false;
        self.answered = false;
        self.stop = Some(stop);
        Ok(())
    }

    fn messages_and_systems_queued(&self) -> usize {
        self.queued
            .iter()
            .filter(|(_, event)| event["type"] != "user.interrupt")
            .count()
    }

    fn messages_queued(&self) -> usize {
        self.queued
            .iter()
            .filter(|(_, event)| event["type"] == "user.message")
            .count()
    }

    /// Whether the log may end here.
    pub(crate) fn end(&self) -> Result<(), String> {
        // A log is read between two appends, and each of those is whole.
        hold!(
            self.must.is_empty() || self.may_stop,
            "the log stops where {:?} had to follow",
            self.must
        );
        Ok(())
    }
}

/// The checker refuses what it must refuse.
mod tests {
    use serde_json::json;

    use super::*;

    fn turn() -> Vec<Value> {
        let at = |n: u32| format!("2026-01-01T00:00:00.{n:06}Z");
        let message = |at: Value| json!({"type": "user.message", "id": "m", "processed_at": at, "content": []});
        let idle = json!({"stop_reason": {"type": "end_turn"}, "stop_details": null});
        let with = |name: &str, id: &str, more: Value| {
            let mut event = json!({"type": name, "id": id, "processed_at": at(1)});
            for (key, value) in more.as_object().unwrap() {
                event[key] = value.clone();
            }
            event
        };
        let thread = json!({"session_thread_id": "t", "agent_name": "a"});
        let mut thread_idle = thread.clone();
        thread_idle["stop_reason"] = idle["stop_reason"].clone();
        thread_idle["stop_details"] = Value::Null;
        let usage = json!({"input_tokens": 0, "output_tokens": 0, "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0});
        vec![
            message(Value::Null),
            with("session.status_running", "1", json!({})),
            with("session.thread_status_running", "2", thread),
            message(json!(at(1))),
            with("span.model_request_start", "s", json!({})),
            with("agent.message", "3", json!({"content": []})),
            with(
                "span.model_request_end",
                "4",
                json!({"model_request_start_id": "s", "is_error": false, "model_usage": usage}),
            ),
            with("session.thread_status_idle", "5", thread_idle),
            with("session.usage", "6", json!({"usage": {}})),
            with("session.status_idle", "7", idle),
        ]
    }

    #[test]
    fn a_turn_is_in_order_and_no_event_of_it_can_be_missing_or_move() {
        check(&turn()).unwrap();
        let length = turn().len();
        for index in 0..length {
            // Without its output a turn is still one; after its idle event nothing need follow.
            let mut missing = turn();
            missing.remove(index);
            assert_eq!(check(&missing).is_ok(), index == 5, "without event {index}");
            for other in index + 1..length {
                let mut moved = turn();
                moved.swap(index, other);
                assert!(check(&moved).is_err(), "{index} and {other} swapped");
            }
        }
        for index in 0..length {
            let mut twice = turn();
            twice.insert(index, twice[index].clone());
            assert!(check(&twice).is_err(), "event {index} twice");
        }
    }
}
