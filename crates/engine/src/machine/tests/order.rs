//! The order checker: what a session's log may look like, written from the API's rules and not from
//! the machine. It sees the events' JSON in log order, each with the thread in whose log it stands.

macro_rules! hold {
    ($condition:expr, $($problem:tt)+) => {
        if !$condition {
            return Err(format!($($problem)+));
        }
    };
}

mod tests;
mod thread;

use std::collections::HashMap;

use serde_json::Value;

use thread::{Status, Thread};

const INTERRUPTED: &str = "Tool execution was interrupted before completion. Please retry.";

/// Names that may be queued, and are shown a second time when they are processed.
const QUEUEABLE: &[&str] = &["user.message", "user.interrupt", "system.message"];
const RESULTS: &[&str] = &["agent.tool_result", "agent.mcp_tool_result"];
const OUTPUT: &[&str] = &[
    "agent.message",
    "agent.thinking",
    "agent.tool_use",
    "agent.mcp_tool_use",
    "agent.custom_tool_use",
    "span.model_request_end",
];

/// The outcome that is not over.
#[derive(Debug)]
struct Outcome {
    id: String,
    max: u64,
    iteration: u64,
    /// The open evaluation.
    span: Option<String>,
    /// A model has been asked since the definition.
    begun: bool,
}

/// Everything that the log so far has said.
#[derive(Debug)]
pub(crate) struct Checker {
    status: Status,
    /// In the order they came; the primary one first.
    threads: Vec<Thread>,
    over: Vec<String>,
    seen: HashMap<String, bool>,
    last_time: String,
    /// What the very next event must be.
    must: Vec<&'static str>,
    stop: Option<Value>,
    outcomes: Vec<Outcome>,
    /// A message that was sent and is to be received by this thread next: sender, receiver, content.
    sent: Option<(String, String, Value)>,
    rested: bool,
    /// A turn has failed for good; what is processed now is thrown away.
    exhausted: bool,
}

/// Checks the log of a session with one thread from its first event on.
pub(crate) fn check(log: &[Value]) -> Result<(), String> {
    let mut checker = Checker::new("t");
    for (index, event) in log.iter().enumerate() {
        checker
            .event(event, "t")
            .map_err(|problem| format!("event {index}: {problem}\n{event}"))?;
    }
    checker.end()
}

fn text<'a>(event: &'a Value, key: &str) -> Result<&'a str, String> {
    event[key]
        .as_str()
        .ok_or_else(|| format!("`{key}` is no text"))
}

impl Checker {
    pub(crate) fn new(primary: &str) -> Self {
        Self {
            status: Status::Idle,
            threads: vec![Thread::new(primary)],
            over: Vec::new(),
            seen: HashMap::new(),
            last_time: String::new(),
            must: Vec::new(),
            stop: None,
            outcomes: Vec::new(),
            sent: None,
            rested: false,
            exhausted: false,
        }
    }

    fn primary(&self) -> &Thread {
        &self.threads[0]
    }

    fn thread(&mut self, id: &str) -> Result<&mut Thread, String> {
        self.threads
            .iter_mut()
            .find(|thread| thread.id == id)
            .ok_or_else(|| format!("thread {id} is unknown, or over"))
    }

    /// The next event of the log, and in whose log it is.
    pub(crate) fn event(&mut self, event: &Value, thread: &str) -> Result<(), String> {
        let name = text(event, "type")?;
        let id = text(event, "id")?.to_owned();
        hold!(
            self.status != Status::Terminated,
            "nothing follows the end of a session"
        );
        if !self.must.is_empty() {
            let must = std::mem::take(&mut self.must);
            hold!(must.contains(&name), "{must:?} had to follow");
        }
        if event["processed_at"].is_null() {
            hold!(QUEUEABLE.contains(&name), "is never queued");
            hold!(self.seen.insert(id.clone(), false).is_none(), "twice");
            let all = event["session_thread_id"].is_null();
            hold!(
                thread == self.primary().id || name == "user.interrupt" && !all,
                "queued for a thread that clients do not talk to"
            );
            if name == "user.interrupt" && all {
                for other in &mut self.threads {
                    other.stopping |= other.works();
                }
            } else if name == "user.interrupt" && thread == self.primary().id {
                for other in self.threads.iter_mut().filter(|t| t.advisor) {
                    other.stopping |= other.works();
                }
            }
            self.thread(thread)?.queued.push((id, event.clone()));
            return Ok(());
        }
        self.time(event)?;
        let was_queued = match self.seen.insert(id.clone(), true) {
            None => false,
            Some(false) => {
                self.thread(thread)?.dequeue(&id, event)?;
                true
            }
            Some(true) => return Err("processed twice".to_owned()),
        };
        if !name.starts_with("session.thread_") {
            hold!(
                event
                    .get("session_thread_id")
                    .is_none_or(|_| name == "user.interrupt"),
                "only a view says whose event it is"
            );
        }
        if name.starts_with("session.") && !name.starts_with("session.thread_status") {
            hold!(thread == self.primary().id, "the session's own event");
        }
        match name {
            "user.message" | "system.message" => self.message(name, thread, was_queued),
            "user.interrupt" => self.interrupt(event, thread, was_queued),
            "user.define_outcome" => self.define(event, thread),
            "user.tool_confirmation" => self.thread(thread)?.confirmation(event),
            "user.custom_tool_result" => self.thread(thread)?.custom_result(event),
            "session.updated" => Ok(()),
            "agent.thread_message_sent" => self.sent(event, thread),
            "agent.thread_message_received" => self.received(event, thread),
            "agent.message"
            | "agent.thinking"
            | "agent.tool_use"
            | "agent.mcp_tool_use"
            | "agent.custom_tool_use" => {
                self.must = OUTPUT.to_vec();
                self.thread(thread)?.agent(name, id, event)
            }
            name if RESULTS.contains(&name) => self.thread(thread)?.result(event),
            "span.model_request_start" => {
                hold!(self.grading().is_none(), "while the work is graded");
                if thread == self.primary().id {
                    for outcome in &mut self.outcomes {
                        outcome.begun = true;
                    }
                }
                self.thread(thread)?.span_start(id)
            }
            "span.model_request_end" => {
                let t = self.thread(thread)?;
                t.span_end(event)?;
                if event["is_error"] == true && !t.is_interrupted() {
                    self.must = vec!["session.error", "span.model_request_end"];
                }
                Ok(())
            }
            "session.error" => self.error(event),
            "session.thread_created" => self.created(event),
            name if name.starts_with("span.outcome") => self.evaluation(name, id, event),
            name if name.starts_with("session.thread_status_") => {
                self.thread_status(name, event, thread)
            }
            name => self.session_status(name, event),
        }
    }

    fn time(&mut self, event: &Value) -> Result<(), String> {
        let time = text(event, "processed_at")?;
        hold!(time >= self.last_time.as_str(), "time runs backwards");
        time.clone_into(&mut self.last_time);
        Ok(())
    }

    fn message(&mut self, name: &str, thread: &str, was_queued: bool) -> Result<(), String> {
        hold!(
            thread == self.primary().id,
            "clients talk to the primary thread"
        );
        hold!(was_queued, "was never shown as queued");
        let mut flushed = self.exhausted;
        let t = self.thread(thread)?;
        let status = t.status;
        let (open, calls) = (t.span.is_some(), t.calls.len());
        if status == Status::Idle {
            flushed = true;
            self.must = vec![
                "user.message",
                "system.message",
                "session.thread_status_terminated",
            ];
        }
        hold!(
            flushed || status == Status::Running && !open,
            "processed while {status:?}"
        );
        hold!(flushed || calls == 0, "comes between a call and its result");
        if name == "user.message" && !flushed {
            self.thread(thread)?.asked = true;
        }
        Ok(())
    }

    fn interrupt(&mut self, event: &Value, thread: &str, was_queued: bool) -> Result<(), String> {
        let all = event["session_thread_id"].is_null();
        let others = self.threads[1..].iter().any(|t| t.stopping);
        let session = self.status;
        let primary = thread == self.primary().id;
        let t = self.thread(thread)?;
        hold!(t.span.is_none(), "carried out inside a request");
        if was_queued {
            hold!(
                t.calls.iter().all(|call| call.custom),
                "calls without result: {:?}",
                t.calls
            );
            hold!(!(primary && others), "threads are still to be stopped");
        } else {
            hold!(
                t.status == Status::Idle && (!all || session == Status::Idle),
                "was never shown as queued"
            );
        }
        t.interrupted |= t.works() || !t.calls.is_empty();
        t.stopping = false;
        if all {
            for other in &mut self.threads {
                other.interrupted |= !other.calls.is_empty();
            }
        }
        Ok(())
    }

    fn define(&mut self, event: &Value, thread: &str) -> Result<(), String> {
        hold!(thread == self.primary().id, "an outcome is the session's");
        let interrupted = self
            .primary()
            .queued
            .iter()
            .any(|(_, event)| event["type"] == "user.interrupt");
        hold!(
            self.outcomes.is_empty() || interrupted && self.outcomes.len() == 1,
            "another outcome is active"
        );
        self.outcomes.push(Outcome {
            id: text(event, "outcome_id")?.to_owned(),
            max: event["max_iterations"].as_u64().ok_or("`max_iterations`")?,
            iteration: 0,
            span: None,
            begun: false,
        });
        self.thread(thread)?.mail();
        Ok(())
    }

    fn created(&mut self, event: &Value) -> Result<(), String> {
        let id = text(event, "session_thread_id")?;
        let advisor = text(event, "agent_name")? == "anthropic.advisor";
        hold!(
            self.threads.iter().all(|t| t.id != id) && !self.over.iter().any(|over| over == id),
            "there is such a thread"
        );
        let primary = self.primary();
        hold!(
            primary.status == Status::Running
                && primary.span.is_none()
                && !primary.is_interrupted(),
            "nobody starts a thread now"
        );
        let alive = self.threads[1..].iter().filter(|t| !t.advisor).count();
        hold!(advisor || alive < 25, "a 26th thread");
        let mut thread = Thread::new(id);
        thread.advisor = advisor;
        if advisor {
            self.threads[0].advice += 1;
        }
        self.threads.push(thread);
        self.must = if advisor {
            vec!["session.thread_status_running"]
        } else {
            vec!["agent.thread_message_sent"]
        };
        Ok(())
    }

    fn sent(&mut self, event: &Value, thread: &str) -> Result<(), String> {
        let to = text(event, "to_session_thread_id")?.to_owned();
        let primary = self.primary().id.clone();
        hold!(
            (thread == primary) != (to == primary),
            "between two children"
        );
        self.thread(&to)?;
        hold!(
            event.get("to_agent_name").is_some() == (to != primary),
            "the primary thread has no other name"
        );
        hold!(self.sent.is_none(), "the one before was not received");
        self.sent = Some((thread.to_owned(), to, event["content"].clone()));
        self.must = vec![
            "session.thread_status_running",
            "agent.thread_message_received",
        ];
        Ok(())
    }

    fn received(&mut self, event: &Value, thread: &str) -> Result<(), String> {
        let from = text(event, "from_session_thread_id")?;
        let primary = self.primary().id.clone();
        hold!(
            event.get("from_agent_name").is_some() == (from != primary),
            "the primary thread has no other name"
        );
        let question = self
            .threads
            .iter()
            .any(|t| t.id == thread && t.advisor && !t.asked);
        match self.sent.take() {
            Some(sent) => hold!(
                sent == (from.to_owned(), thread.to_owned(), event["content"].clone()),
                "is not what was sent: {sent:?}"
            ),
            None => hold!(question, "nobody has sent it"),
        }
        if thread == primary {
            let sender = self.thread(from)?;
            hold!(
                sender.works() && sender.span.is_none(),
                "the sender is not at work"
            );
            hold!(!sender.reported, "reports twice");
            sender.reported = true;
            let advisor = sender.advisor;
            self.must = vec!["session.thread_status_idle"];
            if advisor {
                self.threads[0].advice = self.threads[0].advice.saturating_sub(1);
                if self.threads[0].advice == 0 && self.threads[0].calls.is_empty() {
                    self.threads[0].asked = true;
                }
                return Ok(());
            }
        }
        self.thread(thread)?.mail();
        Ok(())
    }

    fn grading(&self) -> Option<&Outcome> {
        self.outcomes.iter().find(|outcome| outcome.span.is_some())
    }

    fn evaluation(&mut self, name: &str, id: String, event: &Value) -> Result<(), String> {
        let outcome = text(event, "outcome_id")?;
        let quiet = self.threads[1..]
            .iter()
            .all(|t| !t.works() && t.calls.is_empty());
        let primary = &mut self.threads[0];
        let works = primary.status == Status::Running;
        let rests = primary.span.is_none() && primary.calls.is_empty() && !primary.has_mail;
        let current = self
            .outcomes
            .iter_mut()
            .find(|current| current.id == outcome)
            .ok_or("no such outcome is active")?;
        hold!(event["iteration"] == current.iteration, "another iteration");
        if name == "span.outcome_evaluation_start" {
            hold!(current.span.is_none(), "two evaluations at once");
            hold!(current.begun, "nobody has worked on it");
            hold!(
                works && rests && quiet,
                "something is still at work or waits"
            );
            current.span = Some(id);
            return Ok(());
        }
        if name == "span.outcome_evaluation_ongoing" {
            hold!(works && current.span.is_some(), "nothing is graded");
            return Ok(());
        }
        let result = text(event, "result")?;
        let explanation = text(event, "explanation")?;
        let start = text(event, "outcome_evaluation_start_id")?;
        hold!(
            start == current.span.take().unwrap_or_default(),
            "the end of another evaluation"
        );
        for key in ["input_tokens", "output_tokens"] {
            hold!(event["usage"][key].is_u64(), "usage lacks {key}");
        }
        if result == "interrupted" {
            hold!(explanation.is_empty(), "nobody has judged");
        } else {
            hold!(!start.is_empty() && works, "no evaluation was open");
        }
        let last = current.iteration + 1 == current.max;
        match result {
            "needs_revision" => {
                hold!(!last, "that was the last iteration");
                current.iteration += 1;
                self.threads[0].mail();
                return Ok(());
            }
            "max_iterations_reached" => {
                hold!(last, "there are iterations left");
                self.threads[0].mail();
            }
            "satisfied" | "failed" | "interrupted" => {}
            other => return Err(format!("result {other}")),
        }
        self.outcomes.retain(|current| current.id != outcome);
        Ok(())
    }

    fn error(&mut self, event: &Value) -> Result<(), String> {
        hold!(self.status == Status::Running, "an error while not running");
        text(&event["error"], "message")?;
        let kind = text(&event["error"], "type")?;
        let retry = text(&event["error"]["retry_status"], "type")?;
        if kind.starts_with("repository_") || kind.starts_with("credential_") {
            if kind.starts_with("credential_") {
                text(&event["error"], "credential_id")?;
                text(&event["error"], "vault_id")?;
            }
            hold!(retry == "retrying", "a session goes on without it");
            return Ok(());
        }
        if kind.starts_with("mcp_") {
            text(&event["error"], "mcp_server_name")?;
            hold!(retry == "exhausted", "it is given up for the turn");
            return Ok(());
        }
        self.must = match retry {
            "retrying" => vec![
                "session.status_rescheduled",
                "session.thread_status_rescheduled",
            ],
            "exhausted" => {
                self.exhausted = true;
                vec![
                    "user.message",
                    "system.message",
                    "agent.thread_message_sent",
                    "session.thread_status_idle",
                ]
            }
            "terminal" => vec!["session.thread_status_terminated"],
            other => return Err(format!("retry status {other}")),
        };
        Ok(())
    }

    fn thread_status(&mut self, name: &str, event: &Value, thread: &str) -> Result<(), String> {
        hold!(
            text(event, "session_thread_id")? == thread,
            "another thread"
        );
        text(event, "agent_name")?;
        let primary = thread == self.primary().id;
        match name {
            "session.thread_status_running" => {
                hold!(self.status == Status::Running, "the session is not");
                let t = self.thread(thread)?;
                hold!(
                    matches!(t.status, Status::Idle | Status::Rescheduling),
                    "while {:?}",
                    t.status
                );
                t.status = Status::Running;
                t.reported = false;
                self.rested = false;
                if let Some((_, to, _)) = &self.sent {
                    hold!(to == thread, "another thread was sent something");
                    self.must = vec!["agent.thread_message_received"];
                }
            }
            "session.thread_status_rescheduled" => {
                let t = self.thread(thread)?;
                hold!(
                    t.status == Status::Running && t.span.is_none(),
                    "while {:?}",
                    t.status
                );
                t.status = Status::Rescheduling;
                t.failed = false;
            }
            "session.thread_status_idle" => {
                let interrupts = self.threads[0].queued.iter().any(|(_, event)| {
                    event["type"] == "user.interrupt" && event["session_thread_id"].is_null()
                });
                let alone = self.threads.len() == 1;
                let reports = !primary;
                let exhausted = std::mem::take(&mut self.exhausted);
                if exhausted && primary {
                    // Work whose grading has failed is graded another time.
                    for outcome in &mut self.outcomes {
                        outcome.span = None;
                    }
                }
                self.thread(thread)?.idle(event, reports, exhausted)?;
                if alone && !interrupts {
                    self.must = vec!["session.usage"];
                }
                self.stop = primary.then(|| event["stop_reason"].clone());
                self.rested = true;
            }
            "session.thread_status_terminated" => {
                let t = self.thread(thread)?;
                hold!(t.status == Status::Idle, "while {:?}", t.status);
                if primary {
                    hold!(
                        self.threads.len() == 1,
                        "the primary thread is the last one"
                    );
                    self.must = vec!["session.status_terminated"];
                } else {
                    self.rested |= !t.calls.is_empty();
                    self.threads.retain(|t| t.id != thread);
                    self.over.push(thread.to_owned());
                }
            }
            _ => return Err("no status".to_owned()),
        }
        Ok(())
    }

    fn session_status(&mut self, name: &str, event: &Value) -> Result<(), String> {
        match name {
            "session.status_running" => {
                hold!(self.status != Status::Running, "already running");
                self.status = Status::Running;
                self.stop = None;
                self.must = vec!["session.thread_status_running"];
            }
            "session.status_rescheduled" => {
                hold!(self.status == Status::Running, "not running");
                self.status = Status::Rescheduling;
                // Of several threads the last one to run may have ended while others waited.
                if self.threads.len() == 1 && self.primary().status == Status::Running {
                    self.must = vec!["session.thread_status_rescheduled"];
                }
            }
            "session.usage" => {
                hold!(
                    self.rested || self.waited_for_interrupt(),
                    "nothing came to rest"
                );
                hold!(event["usage"].is_object(), "`usage` is missing");
                self.must = vec!["session.status_idle"];
            }
            "session.status_idle" => {
                let said = (&event["stop_reason"], &event["stop_details"]);
                hold!(
                    !self.threads.iter().any(Thread::works),
                    "a thread is at work"
                );
                let waiting: Vec<&str> = self.threads.iter().flat_map(Thread::waiting).collect();
                if waiting.is_empty() {
                    hold!(said.0["type"] != "requires_action", "nothing waits");
                } else {
                    let all = serde_json::json!({
                        "type": "requires_action", "event_ids": waiting,
                    });
                    hold!(*said.0 == all, "{waiting:?} wait");
                }
                if self.threads.len() == 1
                    && let Some(stop) = &self.stop
                {
                    hold!(said.0 == stop, "the thread said {stop}");
                }
                hold!(
                    said.1.is_object() == (said.0["type"] == "refusal"),
                    "stop_details {}",
                    said.1
                );
                self.status = Status::Idle;
                self.stop = None;
                self.rested = false;
                let queued = self.primary().messages_queued() > 0;
                if queued && said.0["type"] != "requires_action" {
                    self.must = vec!["session.status_running"];
                }
            }
            "session.status_terminated" => self.status = Status::Terminated,
            _ => return Err("not an event that a session writes".to_owned()),
        }
        Ok(())
    }

    /// The session's interrupt was carried out while the primary thread rested.
    fn waited_for_interrupt(&self) -> bool {
        self.status != Status::Idle
    }

    /// Whether the log may end here: it is read between two appends, and each of those is whole.
    pub(crate) fn end(&self) -> Result<(), String> {
        hold!(
            self.must.is_empty(),
            "the log stops where {:?} had to follow",
            self.must
        );
        hold!(self.sent.is_none(), "a message was not received");
        if self.status == Status::Terminated {
            return Ok(());
        }
        let any = |status| self.threads.iter().any(|t| t.status == status);
        // An interrupt that waits for the primary thread is carried out before the session rests.
        let queued = &self.primary().queued;
        let interrupted = queued
            .iter()
            .any(|(_, event)| event["type"] == "user.interrupt");
        let aggregate = if any(Status::Running) {
            Status::Running
        } else if any(Status::Rescheduling) {
            Status::Rescheduling
        } else {
            Status::Idle
        };
        hold!(
            aggregate == self.status || interrupted && aggregate != Status::Running,
            "the session is {:?}, its threads {aggregate:?}",
            self.status
        );
        for thread in &self.threads {
            hold!(
                !thread.interrupted,
                "an interrupt of {} ends in no idle",
                thread.id
            );
        }
        hold!(
            self.grading().is_none() || self.primary().works(),
            "graded while nothing runs"
        );
        Ok(())
    }
}
