//! One thread's part of the order.

use serde_json::Value;

use super::{INTERRUPTED, text};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Idle,
    Running,
    Rescheduling,
    Terminated,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CallState {
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
pub(super) struct Call {
    pub id: String,
    pub custom: bool,
    pub state: CallState,
}

#[derive(Debug)]
pub(super) struct Thread {
    pub id: String,
    pub advisor: bool,
    pub status: Status,
    pub span: Option<String>,
    /// The open span has given output; then its end follows.
    pub output: bool,
    pub calls: Vec<Call>,
    /// Questions to advisors without an answer.
    pub advice: usize,
    /// Queued inputs, in order: id and whole event.
    pub queued: Vec<(String, Value)>,
    /// Its last request has failed, and nothing has been said of it yet.
    pub failed: bool,
    /// An interrupt was carried out and no idle has followed yet.
    pub interrupted: bool,
    /// An interrupt of the session is still to stop it.
    pub stopping: bool,
    /// Answers since the last idle event.
    pub answered: bool,
    /// There has been something to answer.
    pub asked: bool,
    /// Something was sent to it that no request has shown.
    pub has_mail: bool,
    /// The present turn's report was sent.
    pub reported: bool,
}

impl Thread {
    pub fn new(id: &str) -> Self {
        Self {
            id: id.to_owned(),
            advisor: false,
            status: Status::Idle,
            span: None,
            output: false,
            calls: Vec::new(),
            advice: 0,
            queued: Vec::new(),
            failed: false,
            interrupted: false,
            stopping: false,
            answered: false,
            asked: false,
            has_mail: false,
            reported: false,
        }
    }

    pub fn works(&self) -> bool {
        matches!(self.status, Status::Running | Status::Rescheduling)
    }

    pub fn mail(&mut self) {
        self.has_mail = true;
        self.asked = true;
    }

    pub fn is_interrupted(&self) -> bool {
        self.stopping
            || self
                .queued
                .iter()
                .any(|(_, event)| event["type"] == "user.interrupt")
    }

    pub fn waiting(&self) -> impl Iterator<Item = &str> {
        self.calls
            .iter()
            .filter(|call| call.state == CallState::Waiting)
            .map(|call| call.id.as_str())
    }

    pub fn messages_queued(&self) -> usize {
        self.queued
            .iter()
            .filter(|(_, event)| event["type"] == "user.message")
            .count()
    }

    pub fn dequeue(&mut self, id: &str, event: &Value) -> Result<(), String> {
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

    pub fn confirmation(&mut self, event: &Value) -> Result<(), String> {
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

    pub fn custom_result(&mut self, event: &Value) -> Result<(), String> {
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

    pub fn agent(&mut self, name: &str, id: String, event: &Value) -> Result<(), String> {
        hold!(
            self.status == Status::Running && self.span.is_some(),
            "output outside a request"
        );
        self.output = true;
        if !name.ends_with("tool_use") {
            return Ok(());
        }
        hold!(event["input"].is_object(), "`input` is no object");
        hold!(
            event.get("mcp_server_name").is_some() == (name == "agent.mcp_tool_use"),
            "only a call to an MCP server names one"
        );
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
        self.calls.push(Call { id, custom, state });
        Ok(())
    }

    pub fn result(&mut self, event: &Value) -> Result<(), String> {
        hold!(self.span.is_none(), "a result inside a request");
        let id = match text(event, "tool_use_id") {
            Ok(id) => id,
            Err(_) => text(event, "mcp_tool_use_id")?,
        };
        let index = self
            .calls
            .iter()
            .position(|call| call.id == id && !call.custom)
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
                hold!(dropped, "a result while idle");
                self.interrupted = true;
            }
            status => return Err(format!("a result while {status:?}")),
        }
        Ok(())
    }

    pub fn span_start(&mut self, id: String) -> Result<(), String> {
        hold!(self.status == Status::Running, "not running");
        hold!(self.span.is_none(), "two requests at once");
        hold!(
            self.calls.is_empty() && self.advice == 0,
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
        hold!(self.asked, "nothing to answer");
        self.span = Some(id);
        self.output = false;
        self.failed = false;
        self.has_mail = false;
        Ok(())
    }

    pub fn span_end(&mut self, event: &Value) -> Result<(), String> {
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
        self.failed = failed;
        self.output = false;
        Ok(())
    }

    /// It becomes idle, or says so again.
    pub fn idle(&mut self, event: &Value, reports: bool, exhausted: bool) -> Result<(), String> {
        hold!(self.span.is_none(), "idle inside a request");
        hold!(
            event.get("stop_details").is_some(),
            "`stop_details` is spelled out"
        );
        let stop = &event["stop_reason"];
        let kind = text(stop, "type")?;
        let own_interrupts = self
            .queued
            .iter()
            .any(|(_, event)| event["type"] == "user.interrupt");
        hold!(!own_interrupts, "idle with an interrupt in the queue");
        let interrupted = self.interrupted || self.stopping;
        if kind == "requires_action" {
            let waiting: Vec<&str> = self.waiting().collect();
            hold!(!waiting.is_empty(), "nothing waits");
            hold!(
                stop["event_ids"] == serde_json::json!(waiting),
                "{waiting:?} wait"
            );
            match self.status {
                Status::Running => hold!(
                    waiting.len() == self.calls.len() && self.advice == 0,
                    "idle before its calls are done: {:?}",
                    self.calls
                ),
                Status::Idle => hold!(self.answered, "said twice"),
                status => return Err(format!("idle while {status:?}")),
            }
        } else {
            match kind {
                "end_turn" | "refusal" => {
                    hold!(!self.failed || interrupted, "the turn has failed");
                    if self.status != Status::Running {
                        hold!(interrupted, "idle while {:?}", self.status);
                    }
                    hold!(
                        interrupted || self.messages_queued() == 0 && !self.has_mail,
                        "the turn ends before what was sent is answered"
                    );
                }
                "retries_exhausted" => {
                    hold!(exhausted, "the turn has not failed");
                    hold!(self.queued.is_empty(), "inputs were not flushed");
                }
                other => return Err(format!("stop reason {other}")),
            }
            hold!(
                self.calls.is_empty() || interrupted && self.calls.iter().all(|c| c.custom),
                "calls without result: {:?}",
                self.calls
            );
            if reports && !self.advisor {
                hold!(
                    self.reported != interrupted,
                    "a turn is reported unless an interrupt ends it"
                );
            }
            self.calls.clear();
            self.advice = 0;
            // What came after an interrupt is for the next turn.
            self.asked = interrupted && self.has_mail;
            self.has_mail = false;
        }
        self.status = Status::Idle;
        self.failed = false;
        self.interrupted = false;
        self.stopping = false;
        self.answered = false;
        Ok(())
    }
}
