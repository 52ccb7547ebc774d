//! Exact sequences, one situation each.

use std::time::Duration;

use selfsame_types::{CredentialId, EventId, VaultId};
use serde_json::{Value, json};

use super::sim::*;
use crate::machine::{
    About, BlockContent, CallState, ErrorType, Input, Next, Permission, QueuedKind, Sequel, Status,
    StopReason, Trouble,
};

pub(super) const RUNNING: [&str; 2] = ["session.status_running", "session.thread_status_running"];
pub(super) const IDLE: [&str; 3] = [
    "session.thread_status_idle",
    "session.usage",
    "session.status_idle",
];
pub(super) const RESCHEDULED: [&str; 3] = [
    "session.error",
    "session.status_rescheduled",
    "session.thread_status_rescheduled",
];
pub(super) const MESSAGE: [&str; 2] = ["user.message (queued)", "user.message"];
pub(super) const INTERRUPT: [&str; 2] = ["user.interrupt (queued)", "user.interrupt"];
pub(super) const START: &str = "span.model_request_start";
pub(super) const END: &str = "span.model_request_end";

/// Follows a session's log from one look to the next.
pub(super) struct Story {
    pub sim: Sim,
    pub seen: usize,
}

impl Story {
    /// A session whose first message is about to be answered.
    pub fn begun() -> Self {
        let mut story = Self::new();
        story.send(&[message("hello")]);
        let begin = [&[MESSAGE[0]], &RUNNING[..], &[MESSAGE[1]]].concat();
        story.expect(&begin);
        story
    }

    pub fn new() -> Self {
        Self {
            sim: Sim::new(),
            seen: 0,
        }
    }

    /// What was appended since the last look.
    #[track_caller]
    pub fn expect(&mut self, names: &[&str]) {
        assert_eq!(self.sim.names(self.seen), names);
        self.seen = self.sim.log.len();
    }

    #[track_caller]
    pub fn send(&mut self, inputs: &[Input]) {
        self.sim.send(inputs).unwrap();
    }

    #[track_caller]
    pub fn refused(&mut self, inputs: &[Input]) -> String {
        let error = self.sim.send(inputs).unwrap_err();
        assert_eq!(error.kind.status(), 400);
        self.expect(&[]);
        error.message.into_owned()
    }

    /// The first request, answered with these blocks.
    #[track_caller]
    pub fn respond(&mut self, blocks: Vec<BlockContent>) -> Vec<EventId> {
        self.sim.ask();
        self.sim.respond(blocks, Sequel::EndTurn)
    }

    pub fn last(&self, name: &str) -> Value {
        let mut bodies = self.sim.bodies();
        bodies.reverse();
        let found = bodies.into_iter().find(|body| body["type"] == name);
        found.unwrap_or_else(|| panic!("no {name}"))
    }

    /// Calls that the runner may execute now.
    pub fn runnable(&self) -> Vec<EventId> {
        self.sim
            .machine
            .next()
            .into_iter()
            .filter_map(|next| match next {
                Next::Call { call, .. } => Some(call),
                _ => None,
            })
            .collect()
    }

    pub fn stop(&self) -> Value {
        let session = self.last("session.status_idle");
        assert_eq!(
            session["stop_reason"],
            self.last("session.thread_status_idle")["stop_reason"]
        );
        session["stop_reason"].clone()
    }

    #[track_caller]
    pub fn waits_for(&self, calls: &[EventId]) {
        assert_eq!(
            self.stop(),
            json!({"type": "requires_action", "event_ids": calls})
        );
        assert_eq!(self.sim.machine.status, Status::Idle);
    }

    #[track_caller]
    pub fn ended(&self) {
        assert_eq!(self.stop(), json!({"type": "end_turn"}));
        assert_eq!(self.sim.machine.status, Status::Idle);
    }

    pub fn result_text(&self) -> String {
        let result = self.last("agent.tool_result");
        result["content"][0]["text"].as_str().unwrap().to_owned()
    }
}

fn allow(name: &str) -> BlockContent {
    tool(name, Permission::Allow)
}

fn ask(name: &str) -> BlockContent {
    tool(name, Permission::Ask)
}

// Turns ------------------------------------------------------------------------------------------

#[test]
fn a_plain_turn() {
    let mut story = Story::begun();
    let thinking = BlockContent::Thinking(raw(&json!({"type": "thinking"})));
    story.respond(vec![thinking, say("hi")]);
    story.expect(&[
        START,
        "agent.thinking",
        "agent.message",
        END,
        IDLE[0],
        IDLE[1],
        IDLE[2],
    ]);
    story.ended();
    let end = story.last(END);
    assert_eq!(end["is_error"], false);
    assert_eq!(end["model_usage"]["output_tokens"], 5);
    assert_eq!(
        story.last("session.usage")["usage"]["cache_creation"]["ephemeral_5m_input_tokens"],
        3
    );
}

#[test]
fn an_answer_without_blocks_ends_the_turn() {
    let mut story = Story::begun();
    story.respond(vec![]);
    story.expect(&[START, END, IDLE[0], IDLE[1], IDLE[2]]);
}

#[test]
fn a_tool_turn() {
    let mut story = Story::begun();
    let calls = story.respond(vec![say("let me look"), allow("bash")]);
    story.expect(&[START, "agent.message", "agent.tool_use", END]);
    assert_eq!(story.runnable(), [calls[1]]);
    assert!(story.sim.finish_call(calls[1], "done"));
    assert!(story.sim.is_asked());
    story.respond(vec![say("it is done")]);
    story.expect(&[
        "agent.tool_result",
        START,
        "agent.message",
        END,
        IDLE[0],
        IDLE[1],
        IDLE[2],
    ]);
    story.ended();
}

#[test]
fn reads_run_beside_each_other_but_never_past_a_write() {
    let mut story = Story::begun();
    let names = ["read", "grep", "bash", "read", "write", "edit", "glob"];
    let calls = story.respond(names.iter().map(|name| allow(name)).collect());
    assert_eq!(story.runnable(), calls[..3]);
    story.sim.finish_call(calls[1], "");
    assert_eq!(story.runnable(), [calls[0], calls[2]]);
    story.sim.finish_call(calls[2], "");
    assert_eq!(story.runnable(), [calls[0], calls[3], calls[4]]);
    story.sim.finish_call(calls[0], "");
    story.sim.finish_call(calls[4], "");
    assert_eq!(story.runnable(), [calls[3], calls[5]]);
    story.sim.finish_call(calls[5], "");
    assert_eq!(story.runnable(), [calls[3], calls[6]]);
    story.sim.finish_call(calls[6], "");
    assert!(!story.sim.is_asked(), "a result is missing");
    story.sim.finish_call(calls[3], "");
    assert!(story.sim.is_asked());
}

#[test]
fn one_that_waits_for_a_human_holds_nobody_up() {
    let mut story = Story::begun();
    let calls = story.respond(vec![ask("bash"), allow("write"), allow("read")]);
    assert_eq!(story.runnable(), [calls[1]]);
    story.send(&[confirm(calls[0], None)]);
    assert_eq!(
        story.runnable(),
        [calls[0]],
        "in the order of the response again"
    );
}

#[test]
fn a_model_that_paused_is_asked_again() {
    let mut story = Story::begun();
    story.sim.ask();
    story.sim.respond(vec![say("half")], Sequel::Again);
    story.expect(&[START, "agent.message", END]);
    assert!(story.sim.is_asked());
}

#[test]
fn a_refusal() {
    let mut story = Story::begun();
    story.sim.ask();
    let sequel = Sequel::Refusal {
        category: Some("bio".to_owned()),
        explanation: Some("no".to_owned()),
    };
    story.sim.respond(vec![say("I would rather not")], sequel);
    assert_eq!(story.stop(), json!({"type": "refusal"}));
    assert_eq!(
        story.last("session.status_idle")["stop_details"],
        json!({"type": "refusal", "category": "bio", "explanation": "no"})
    );
    // The next turn has nothing to do with it.
    story.send(&[message("sorry")]);
    story.respond(vec![say("fine")]);
    story.ended();
}

#[test]
fn what_the_server_refuses_is_answered_at_once() {
    let mut story = Story::begun();
    story.respond(vec![refused("fly"), say("hm")]);
    story.expect(&[
        START,
        "agent.tool_use",
        "agent.message",
        END,
        "agent.tool_result",
    ]);
    let call = story.last("agent.tool_use");
    assert_eq!(call["evaluated_permission"], "deny");
    assert!(call.get("evaluation").is_none());
    assert_eq!(story.last("agent.tool_result")["is_error"], true);
    assert!(story.sim.is_asked());
}

#[test]
fn a_call_to_an_mcp_server() {
    let mut story = Story::begun();
    let calls = story.respond(vec![
        allow("bash"),
        mcp("look", Permission::Allow),
        mcp("buy", Permission::Ask),
    ]);
    story.expect(&[
        START,
        "agent.tool_use",
        "agent.mcp_tool_use",
        "agent.mcp_tool_use",
        END,
    ]);
    let shown = story.last("agent.mcp_tool_use");
    assert_eq!(shown["mcp_server_name"], "there");
    assert_eq!(shown["name"], "buy", "as its server calls it");
    assert_eq!(shown["evaluated_permission"], "ask");
    assert_eq!(shown["evaluation"], json!({"type": "always_ask"}));
    assert_eq!(story.runnable(), calls[..1], "never past a bash");
    story.sim.finish_call(calls[0], "");
    assert_eq!(story.runnable(), calls[1..2]);
    story.sim.finish_call(calls[1], "seen");
    story.expect(&[
        "agent.tool_result",
        "agent.mcp_tool_result",
        IDLE[0],
        IDLE[1],
        IDLE[2],
    ]);
    let result = story.last("agent.mcp_tool_result");
    assert_eq!(result["mcp_tool_use_id"], json!(calls[1]));
    assert!(result.get("tool_use_id").is_none());
    story.waits_for(&calls[2..]);
    story.send(&[confirm(calls[2], Some(Some("too dear")))]);
    story.expect(&[
        "user.tool_confirmation",
        RUNNING[0],
        RUNNING[1],
        "agent.mcp_tool_result",
    ]);
    let denied = &story.last("agent.mcp_tool_result")["content"][0]["text"];
    assert!(denied.as_str().unwrap().contains("too dear"));
    assert!(story.sim.is_asked());
}

#[test]
fn an_mcp_server_that_is_given_up_ends_no_turn() {
    let mut story = Story::begun();
    let thread = story.sim.thread();
    let troubles = [Trouble {
        error_type: ErrorType::McpConnectionFailedError,
        message: "It does not answer.".to_owned(),
        about: About::McpServer("there".to_owned()),
    }];
    story.sim.run(|step| step.trouble(thread, &troubles));
    story.expect(&["session.error"]);
    assert_eq!(
        story.last("session.error")["error"],
        json!({
            "type": "mcp_connection_failed_error", "message": "It does not answer.",
            "retry_status": {"type": "exhausted"}, "mcp_server_name": "there",
        })
    );
    story.respond(vec![say("then without it")]);
    story.ended();
}

#[test]
fn a_host_that_a_credential_is_meant_for_is_missed_once() {
    let mut story = Story::begun();
    let thread = story.sim.thread();
    let (one, other, vault) = (CredentialId::new(), CredentialId::new(), VaultId::new());
    let of = |credential| Trouble {
        error_type: ErrorType::CredentialHostUnreachableError,
        message: "It has no address.".to_owned(),
        about: About::Credential { credential, vault },
    };
    story
        .sim
        .run(|step| step.trouble(thread, &[of(one), of(one)]));
    story.expect(&["session.error"]);
    assert_eq!(
        story.last("session.error")["error"],
        json!({
            "type": "credential_host_unreachable_error", "message": "It has no address.",
            "retry_status": {"type": "retrying"}, "credential_id": one, "vault_id": vault,
        })
    );
    story
        .sim
        .run(|step| step.trouble(thread, &[of(one), of(other)]));
    story.expect(&["session.error"]);
    assert_eq!(story.sim.machine.unreachable, [one, other]);
    story.respond(vec![say("then without it")]);
    story.ended();
}

// Waiting for the client -------------------------------------------------------------------------

#[test]
fn allowed_calls_run_before_the_session_waits() {
    let mut story = Story::begun();
    let calls = story.respond(vec![allow("bash"), ask("edit"), custom("lookup")]);
    story.expect(&[
        START,
        "agent.tool_use",
        "agent.tool_use",
        "agent.custom_tool_use",
        END,
    ]);
    assert_eq!(story.runnable(), [calls[0]]);
    story.sim.finish_call(calls[0], "");
    story.expect(&["agent.tool_result", IDLE[0], IDLE[1], IDLE[2]]);
    story.waits_for(&calls[1..]);

    // Some of the answers: the client is told what is left.
    story.send(&[answer(calls[2])]);
    story.expect(&["user.custom_tool_result", IDLE[0], IDLE[1], IDLE[2]]);
    story.waits_for(&calls[1..2]);

    // The last one: it goes on.
    story.send(&[confirm(calls[1], None)]);
    story.expect(&["user.tool_confirmation", RUNNING[0], RUNNING[1]]);
    assert_eq!(story.runnable(), [calls[1]]);
    story.sim.finish_call(calls[1], "");
    story.respond(vec![]);
    story.expect(&["agent.tool_result", START, END, IDLE[0], IDLE[1], IDLE[2]]);
    story.ended();
}

#[test]
fn several_answers_of_one_request_are_taken_together() {
    let mut story = Story::begun();
    let calls = story.respond(vec![ask("bash"), ask("edit"), custom("lookup")]);
    story.waits_for(&calls);
    story.seen = story.sim.log.len();
    story.send(&[confirm(calls[0], None), answer(calls[2])]);
    story.expect(&[
        "user.tool_confirmation",
        "user.custom_tool_result",
        IDLE[0],
        IDLE[1],
        IDLE[2],
    ]);
    story.waits_for(&calls[1..2]);
    assert_eq!(
        story.runnable(),
        [],
        "nothing runs before all have answered"
    );
    story.send(&[confirm(calls[1], None)]);
    assert_eq!(story.runnable(), [calls[0]]);
}

#[test]
fn a_denied_call_never_runs_and_says_why() {
    let mut story = Story::begun();
    let calls = story.respond(vec![ask("bash"), ask("bash")]);
    story.seen = story.sim.log.len();
    story.send(&[
        confirm(calls[0], Some(Some("too dangerous"))),
        confirm(calls[1], Some(None)),
    ]);
    story.expect(&[
        "user.tool_confirmation",
        "user.tool_confirmation",
        RUNNING[0],
        RUNNING[1],
        "agent.tool_result",
        "agent.tool_result",
    ]);
    let bodies = story.sim.bodies();
    let results = &bodies[bodies.len() - 2..];
    assert!(results.iter().all(|result| result["is_error"] == true));
    let text = results[0]["content"][0]["text"].as_str().unwrap();
    assert!(text.contains("rejected") && text.contains("too dangerous"));
    assert!(story.sim.is_asked(), "the model hears of it");
}

#[test]
fn a_custom_tool() {
    let mut story = Story::begun();
    let calls = story.respond(vec![custom("lookup")]);
    assert!(
        story
            .last("agent.custom_tool_use")
            .get("evaluated_permission")
            .is_none()
    );
    story.waits_for(&calls);
    story.seen = story.sim.log.len();
    story.send(&[answer(calls[0])]);
    story.expect(&["user.custom_tool_result", RUNNING[0], RUNNING[1]]);
    assert!(story.sim.is_asked());
}

#[test]
fn answers_that_come_before_the_idle_spare_it() {
    let mut story = Story::begun();
    let calls = story.respond(vec![
        allow("bash"),
        ask("edit"),
        custom("lookup"),
        ask("read"),
    ]);
    story.seen = story.sim.log.len();
    story.send(&[answer(calls[2])]);
    story.send(&[confirm(calls[3], Some(None))]);
    story.expect(&[
        "user.custom_tool_result",
        "user.tool_confirmation",
        "agent.tool_result",
    ]);
    story.send(&[confirm(calls[1], None)]);
    story.sim.finish_call(calls[0], "");
    story.sim.finish_call(calls[1], "");
    story.expect(&[
        "user.tool_confirmation",
        "agent.tool_result",
        "agent.tool_result",
    ]);
    assert!(story.sim.is_asked());
}

#[test]
fn answers_to_the_wrong_call_are_refused() {
    let mut story = Story::begun();
    let calls = story.respond(vec![
        allow("bash"),
        ask("edit"),
        custom("lookup"),
        refused("fly"),
        say("so"),
    ]);
    story.seen = story.sim.log.len();
    for (input, problem) in [
        (confirm(calls[0], None), "does not wait for an answer"),
        (confirm(calls[2], None), "is a custom tool call"),
        (answer(calls[1]), "waits for a confirmation"),
        (confirm(calls[3], None), "is not a pending tool call"),
        (answer(calls[4]), "is not a pending tool call"),
    ] {
        let message = story.refused(&[input]);
        assert!(message.contains(problem), "{message}");
        assert!(message.starts_with("Invalid user."), "{message}");
        assert!(message.contains("events[0]"), "{message}");
    }
    // One wrong answer refuses the right one beside it.
    story.refused(&[confirm(calls[1], None), confirm(calls[1], None)]);
    story.send(&[confirm(calls[1], None)]);
    story.seen = story.sim.log.len();
    let twice = story.refused(&[confirm(calls[1], Some(None))]);
    assert!(twice.contains("already been answered"), "{twice}");
}

#[test]
fn a_waiting_session_takes_only_answers() {
    let mut story = Story::begun();
    let calls = story.respond(vec![custom("a"), ask("bash")]);
    story.seen = story.sim.log.len();
    let waiting = format!(
        "waiting on responses to events [{}, {}]; only `user.tool_confirmation`, \
         `user.custom_tool_result`, `user.tool_result`, or `user.interrupt` may be sent",
        calls[0], calls[1]
    );
    assert_eq!(story.refused(&[message("hello?")]), waiting);
    assert_eq!(story.refused(&[system("psst")]), waiting);
    let rest = story.refused(&[answer(calls[0]), message("and")]);
    assert!(rest.contains(&calls[1].to_string()), "{rest}");
    // With the last answer a message may come along.
    story.send(&[answer(calls[0]), confirm(calls[1], None), message("go on")]);
    story.expect(&[
        "user.custom_tool_result",
        "user.tool_confirmation",
        RUNNING[0],
        RUNNING[1],
        MESSAGE[0],
    ]);
    story.sim.finish_call(calls[1], "");
    story.sim.ask();
    story.expect(&["agent.tool_result", MESSAGE[1], START]);
}

// System messages --------------------------------------------------------------------------------

#[test]
fn a_system_message_waits_for_the_next_request() {
    let mut story = Story::new();
    story.send(&[system("be brief")]);
    story.expect(&["system.message (queued)"]);
    assert_eq!(story.sim.machine.status, Status::Idle);
    story.send(&[message("hello"), system("be kind")]);
    story.expect(&[
        "user.message (queued)",
        RUNNING[0],
        RUNNING[1],
        "system.message",
        "user.message",
        "system.message (queued)",
    ]);
    story.sim.ask();
    story.expect(&["system.message", START]);
    // None of its own: it is kept for the next turn.
    story.send(&[system("be quick")]);
    story.sim.respond(vec![], Sequel::EndTurn);
    story.expect(&["system.message (queued)", END, IDLE[0], IDLE[1], IDLE[2]]);
    assert_eq!(story.sim.machine.primary().queue.len(), 1);
}

#[test]
fn a_system_message_never_comes_between_a_call_and_its_result_alone() {
    let mut story = Story::begun();
    let calls = story.respond(vec![allow("bash"), custom("a"), custom("b")]);
    story.seen = story.sim.log.len();
    story.refused(&[system("running, and calls wait")]);
    story.send(&[message("with a message"), system("it may")]);
    story.expect(&["user.message (queued)", "system.message (queued)"]);
    story.sim.finish_call(calls[0], "");
    story.seen = story.sim.log.len();
    story.refused(&[system("idle, and calls wait")]);
    story.send(&[answer(calls[1]), system("behind a result")]);
    story.expect(&[
        "user.custom_tool_result",
        "system.message (queued)",
        IDLE[0],
        IDLE[1],
        IDLE[2],
    ]);
    story.waits_for(&calls[2..]);
    story.send(&[answer(calls[2])]);
    story.sim.ask();
    story.expect(&[
        "user.custom_tool_result",
        RUNNING[0],
        RUNNING[1],
        "user.message",
        "system.message",
        "system.message",
        START,
    ]);
}

// Queued messages --------------------------------------------------------------------------------

#[test]
fn messages_are_heard_with_the_next_request() {
    let mut story = Story::begun();
    let calls = story.respond(vec![allow("bash")]);
    story.send(&[message("one"), message("two")]);
    story.sim.finish_call(calls[0], "");
    story.sim.ask();
    assert_eq!(
        story.sim.names(story.seen + 3),
        [
            MESSAGE[0],
            MESSAGE[0],
            "agent.tool_result",
            MESSAGE[1],
            MESSAGE[1],
            START
        ]
    );
}

#[test]
fn messages_that_came_during_the_last_request_keep_the_turn_going() {
    let mut story = Story::begun();
    story.sim.ask();
    story.send(&[message("one more thing")]);
    story.sim.respond(vec![say("done")], Sequel::EndTurn);
    story.expect(&[START, MESSAGE[0], "agent.message", END]);
    assert!(story.sim.is_asked());
    story.respond(vec![]);
    story.expect(&[MESSAGE[1], START, END, IDLE[0], IDLE[1], IDLE[2]]);
}

#[test]
fn messages_stay_queued_while_calls_wait_for_the_client() {
    let mut story = Story::begun();
    story.sim.ask();
    story.send(&[message("one more thing")]);
    let calls = story.sim.respond(vec![custom("a")], Sequel::EndTurn);
    story.waits_for(&calls);
    assert_eq!(story.sim.machine.queued(), [6]);
    story.seen = story.sim.log.len();
    story.send(&[answer(calls[0])]);
    story.sim.ask();
    story.expect(&[
        "user.custom_tool_result",
        RUNNING[0],
        RUNNING[1],
        MESSAGE[1],
        START,
    ]);
}

// Interrupts -------------------------------------------------------------------------------------

#[test]
fn interrupt_while_the_model_speaks() {
    let mut story = Story::begun();
    story.sim.ask();
    story.send(&[interrupt()]);
    story.expect(&[START, INTERRUPT[0]]);
    let thread = story.sim.thread();
    assert_eq!(story.sim.machine.next(), [Next::Interrupt { thread }]);
    story.sim.interrupt(Vec::new());
    story.expect(&[END, INTERRUPT[1], IDLE[0], IDLE[1], IDLE[2]]);
    assert_eq!(story.last(END)["is_error"], true);
    story.ended();
}

#[test]
fn interrupt_while_tools_run() {
    let mut story = Story::begun();
    let calls = story.respond(vec![
        allow("read"),
        allow("bash"),
        allow("bash"),
        custom("a"),
    ]);
    story.send(&[interrupt()]);
    assert_eq!(
        story.sim.machine.status,
        Status::Running,
        "until it is done"
    );
    story.seen = story.sim.log.len();
    // One was done in time, one was stopped, one had not begun; the custom one leaves no result.
    story.sim.finish_call(calls[0], "in time");
    story.expect(&["agent.tool_result"]);
    story.sim.interrupt(vec![(calls[1], result("stopped"))]);
    story.expect(&[
        "agent.tool_result",
        "agent.tool_result",
        INTERRUPT[1],
        IDLE[0],
        IDLE[1],
        IDLE[2],
    ]);
    assert_eq!(
        story.result_text(),
        "Tool execution was interrupted before completion. Please retry."
    );
    story.ended();
    let late = story.refused(&[answer(calls[3])]);
    assert!(late.contains("is not a pending tool call"), "{late}");
}

#[test]
fn interrupt_while_calls_wait() {
    let mut story = Story::begun();
    let calls = story.respond(vec![ask("bash"), custom("a"), ask("edit")]);
    story.send(&[confirm(calls[0], None)]);
    story.waits_for(&calls[1..]);
    story.seen = story.sim.log.len();
    story.send(&[interrupt()]);
    // Processed on receipt; the allowed call and the waiting one are dropped, and no request follows.
    story.expect(&[
        INTERRUPT[1],
        "agent.tool_result",
        "agent.tool_result",
        IDLE[0],
        IDLE[1],
        IDLE[2],
    ]);
    story.ended();
}

#[test]
fn interrupt_while_calls_wait_lets_queued_messages_start_the_next_turn() {
    let mut story = Story::begun();
    story.sim.ask();
    story.send(&[message("one more thing")]);
    story.sim.respond(vec![custom("a")], Sequel::EndTurn);
    story.seen = story.sim.log.len();
    story.send(&[interrupt()]);
    let idle_and_on = [&[INTERRUPT[1]], &IDLE[..], &RUNNING[..], &[MESSAGE[1]]].concat();
    story.expect(&idle_and_on);
    assert!(story.sim.is_asked());
}

#[test]
fn interrupt_while_idle() {
    let mut story = Story::new();
    story.send(&[interrupt()]);
    story.expect(&[INTERRUPT[1]]);
    assert_eq!(story.sim.machine.status, Status::Idle);
    story.send(&[message("hello")]);
    assert!(story.sim.is_asked(), "it does not reach into the next turn");
}

#[test]
fn interrupt_between_two_attempts() {
    let mut story = Story::begun();
    story.sim.ask();
    story
        .sim
        .fail(Some(story.sim.now.after(Duration::from_secs(9))));
    story.send(&[interrupt()]);
    assert_eq!(
        story.sim.machine.wake_at(story.sim.now),
        Some(story.sim.now)
    );
    story.seen = story.sim.log.len();
    story.sim.interrupt(Vec::new());
    story.expect(&[INTERRUPT[1], IDLE[0], IDLE[1], IDLE[2]]);
    assert_eq!(story.sim.machine.primary().attempt, 0);
}

#[test]
fn interrupt_and_message_in_one_request() {
    let mut story = Story::begun();
    story.sim.ask();
    story.send(&[message("before")]);
    story.send(&[interrupt(), message("after")]);
    story.expect(&[START, MESSAGE[0], INTERRUPT[0], MESSAGE[0]]);
    story.sim.interrupt(Vec::new());
    let on = [
        &[END, INTERRUPT[1]],
        &IDLE[..],
        &RUNNING[..],
        &[MESSAGE[1], MESSAGE[1]],
    ];
    story.expect(&on.concat());
    assert!(story.sim.is_asked());

    // While calls wait it is all one append.
    let mut story = Story::begun();
    story.respond(vec![ask("bash")]);
    story.seen = story.sim.log.len();
    story.send(&[interrupt(), message("rather this")]);
    let on = [
        &[INTERRUPT[1], "agent.tool_result"],
        &IDLE[..],
        &[MESSAGE[0]],
        &RUNNING[..],
        &[MESSAGE[1]],
    ];
    story.expect(&on.concat());
}

#[test]
fn an_answer_that_was_faster_than_the_interrupt_is_kept() {
    let mut story = Story::begun();
    story.sim.ask();
    story.send(&[interrupt()]);
    let calls = story
        .sim
        .respond(vec![say("done"), allow("bash")], Sequel::EndTurn);
    story.expect(&[START, INTERRUPT[0], "agent.message", "agent.tool_use", END]);
    assert_eq!(story.runnable(), []);
    assert_eq!(story.sim.machine.primary().calls[0].id, calls[1]);
    story.sim.interrupt(Vec::new());
    story.expect(&["agent.tool_result", INTERRUPT[1], IDLE[0], IDLE[1], IDLE[2]]);
}

#[test]
fn a_second_interrupt_is_carried_out_with_the_first() {
    let mut story = Story::begun();
    story.sim.ask();
    story.send(&[interrupt()]);
    story.send(&[interrupt()]);
    story.expect(&[START, INTERRUPT[0], INTERRUPT[0]]);
    story.sim.interrupt(Vec::new());
    story.expect(&[END, INTERRUPT[1], INTERRUPT[1], IDLE[0], IDLE[1], IDLE[2]]);
}

// Failures ---------------------------------------------------------------------------------------

#[test]
fn a_retry_that_succeeds() {
    let mut story = Story::begun();
    story.sim.ask();
    let until = story.sim.now.after(Duration::from_secs(2));
    story.sim.fail(Some(until));
    story.expect(&[START, END, RESCHEDULED[0], RESCHEDULED[1], RESCHEDULED[2]]);
    let error = story.last("session.error")["error"].clone();
    assert_eq!(error["type"], "model_overloaded_error");
    assert_eq!(error["retry_status"]["type"], "retrying");
    let thread = story.sim.thread();
    assert_eq!(story.sim.machine.next(), [Next::Wait { thread, until }]);
    assert_eq!(story.sim.machine.wake_at(story.sim.now), Some(until));
    assert_eq!(story.sim.machine.primary().attempt, 1);
    // What comes meanwhile is heard, too.
    story.send(&[message("still there?")]);
    story.sim.now = until;
    story.sim.ask();
    story.expect(&[MESSAGE[0], RUNNING[0], RUNNING[1], MESSAGE[1], START]);
    story.sim.respond(vec![say("yes")], Sequel::EndTurn);
    assert_eq!(story.sim.machine.primary().attempt, 0);
    story.ended();
}

#[test]
fn retries_exhausted_throw_the_queue_away() {
    let mut story = Story::begun();
    story.sim.ask();
    story.send(&[message("one"), system("two")]);
    story.sim.fail(None);
    story.expect(&[
        START,
        MESSAGE[0],
        "system.message (queued)",
        END,
        "session.error",
        MESSAGE[1],
        "system.message",
        IDLE[0],
        IDLE[1],
        IDLE[2],
    ]);
    assert_eq!(
        story.last("session.error")["error"]["retry_status"]["type"],
        "exhausted"
    );
    assert_eq!(story.stop(), json!({"type": "retries_exhausted"}));
    assert!(!story.sim.machine.primary().due);
    // A new message starts afresh.
    story.send(&[message("again")]);
    assert_eq!(story.sim.machine.primary().attempt, 0);
    story.respond(vec![say("here I am")]);
    story.ended();
}

#[test]
fn an_interrupt_that_meets_the_last_failure_is_carried_out() {
    let mut story = Story::begun();
    story.sim.ask();
    story.send(&[interrupt(), message("rather this")]);
    story.sim.fail(None);
    story.expect(&[START, INTERRUPT[0], MESSAGE[0], END]);
    story.sim.interrupt(Vec::new());
    let on = [&[INTERRUPT[1]], &IDLE[..], &RUNNING[..], &[MESSAGE[1]]];
    story.expect(&on.concat());
    story.ended_before();
}

impl Story {
    /// The turn before the running one.
    #[track_caller]
    fn ended_before(&self) {
        assert_eq!(self.stop(), json!({"type": "end_turn"}));
    }
}

// The sandbox ------------------------------------------------------------------------------------

#[test]
fn a_lost_sandbox_is_told_and_the_turn_goes_on() {
    let mut story = Story::begun();
    let calls = story.respond(vec![allow("read"), allow("bash")]);
    let thread = story.sim.thread();
    story.seen = story.sim.log.len();
    story.sim.run(|step| {
        step.sandbox_lost(thread);
        step.finish_call(thread, calls[0], super::sim::result("unknown"));
    });
    story.expect(&[&RESCHEDULED[..], &RUNNING[..], &["agent.tool_result"]].concat());
    assert_eq!(
        story.last("session.error")["error"]["type"],
        "unknown_error"
    );
    assert_eq!(story.runnable(), calls[1..]);
    assert_eq!(story.sim.machine.primary().attempt, 0);
    // An interrupt that waits comes first, and an idle session has nothing to say.
    story.send(&[interrupt()]);
    story.seen = story.sim.log.len();
    story.sim.run(|step| step.sandbox_lost(thread));
    story.expect(&[]);
    story.sim.interrupt(Vec::new());
    story.seen = story.sim.log.len();
    story.sim.run(|step| step.sandbox_lost(thread));
    story.expect(&[]);
}

// Takeover ---------------------------------------------------------------------------------------

#[test]
fn a_request_that_was_open_is_asked_again() {
    let mut story = Story::begun();
    story.sim.ask();
    let (thread, now) = (story.sim.thread(), story.sim.now);
    story.sim.run(|step| step.recover(&[thread], |_| Some(now)));
    story.expect(&[START, END, RESCHEDULED[0], RESCHEDULED[1], RESCHEDULED[2]]);
    let error = story.last("session.error")["error"].clone();
    assert_eq!(error["type"], "unknown_error");
    assert_eq!(error["retry_status"]["type"], "retrying");
    assert_eq!(story.sim.machine.primary().attempt, 1);
    story.sim.ask();
    story.expect(&[RUNNING[0], RUNNING[1], START]);
}

#[test]
fn a_takeover_says_so_and_goes_on() {
    // Before the first request.
    let mut story = Story::begun();
    let (thread, now) = (story.sim.thread(), story.sim.now);
    story.sim.run(|step| step.recover(&[thread], |_| None));
    story.expect(&RESCHEDULED);
    assert_eq!(
        story.sim.machine.next(),
        [Next::Wait { thread, until: now }],
        "at once"
    );
    story.sim.run(|step| step.recover(&[thread], |_| None));
    story.expect(&[]);
    // While calls run.
    let calls = story.respond(vec![allow("read"), allow("bash"), custom("a")]);
    story.seen = story.sim.log.len();
    story.sim.run(|step| step.recover(&[thread], |_| None));
    story.expect(&[&RESCHEDULED[..], &RUNNING[..]].concat());
    assert_eq!(story.runnable(), calls[..2]);
    assert_eq!(story.sim.machine.primary().attempt, 0);
    // While an interrupt waits: that is carried out, and nothing goes on.
    story.send(&[interrupt()]);
    story.seen = story.sim.log.len();
    story.sim.run(|step| step.recover(&[thread], |_| None));
    story.expect(&[]);
    // While nothing runs.
    story.sim.interrupt(Vec::new());
    story.seen = story.sim.log.len();
    story.sim.run(|step| step.recover(&[thread], |_| None));
    story.expect(&[]);
}

#[test]
fn a_request_that_no_server_survives_ends_its_turn() {
    let mut story = Story::begun();
    story.sim.ask();
    let thread = story.sim.thread();
    story.sim.run(|step| step.recover(&[thread], |_| None));
    story.expect(&[START, END, "session.error", IDLE[0], IDLE[1], IDLE[2]]);
    assert_eq!(story.stop(), json!({"type": "retries_exhausted"}));
}

// The end ----------------------------------------------------------------------------------------

#[test]
fn an_end_needs_rest_and_is_final() {
    let mut story = Story::begun();
    for _ in 0..2 {
        let error = story
            .sim
            .step(|step| step.terminate("archive"))
            .unwrap_err();
        assert!(error.message.contains("running"), "{error:?}");
        story.expect(&[]);
        if story.sim.machine.primary().request.is_none() {
            story.sim.ask();
            story.seen = story.sim.log.len();
        }
    }
    story
        .sim
        .fail(Some(story.sim.now.after(Duration::from_secs(1))));
    let error = story.sim.step(|step| step.terminate("delete")).unwrap_err();
    assert!(error.message.contains("rescheduling"), "{error:?}");
    story.sim.ask();
    story.send(&[message("never heard")]);
    story.sim.respond(vec![custom("a")], Sequel::EndTurn);
    story.seen = story.sim.log.len();
    story.sim.step(|step| step.terminate("archive")).unwrap();
    story.expect(&[
        MESSAGE[1],
        "session.thread_status_terminated",
        "session.status_terminated",
    ]);
    let refused = story.refused(&[message("hello?")]);
    assert!(refused.contains("session is terminated"), "{refused}");
    story.sim.step(|step| step.terminate("archive")).unwrap();
    story.sim.run(|step| step.updated(String::new()));
    story.expect(&[]);
    assert!(story.sim.machine.ended_at.is_some());
}

#[test]
fn an_interrupt_names_a_thread_of_this_session() {
    let mut story = Story::new();
    let other = crate::machine::InputKind::Interrupt {
        thread: Some(selfsame_types::ThreadId(uuid::Uuid::from_u128(9))),
    };
    let error = story.refused(&[input(other, &json!({}))]);
    assert!(error.contains("is not a thread of this session"), "{error}");
}

// Time -------------------------------------------------------------------------------------------

#[test]
fn running_time_is_counted_while_it_runs() {
    let mut story = Story::begun();
    let second = Duration::from_secs(1);
    story.sim.now = story.sim.now.after(second);
    story.sim.ask();
    story.sim.now = story.sim.now.after(second);
    story.sim.fail(Some(story.sim.now.after(second)));
    // Waiting for the next attempt is no running time.
    story.sim.now = story.sim.now.after(10 * second);
    story.sim.ask();
    story.sim.now = story.sim.now.after(second);
    story.sim.respond(vec![], Sequel::EndTurn);
    assert_eq!(story.sim.machine.active_us, 3_000_000);
    assert_eq!(story.sim.machine.primary().active_us, 3_000_000);
    assert_eq!(
        story.last("session.usage")["usage"]["active_seconds"],
        json!(3.0)
    );
    story.sim.now = story.sim.now.after(second);
    assert_eq!(story.sim.machine.active_until(story.sim.now), 3_000_000);
}

#[test]
fn states_of_calls() {
    let mut story = Story::begun();
    let calls = story.respond(vec![ask("bash"), custom("a"), ask("read")]);
    story.send(&[confirm(calls[0], None), confirm(calls[2], Some(Some("no")))]);
    let states: Vec<_> = story
        .sim
        .machine
        .primary()
        .calls
        .iter()
        .map(|call| call.state.clone())
        .collect();
    assert_eq!(
        states,
        [
            CallState::Allowed,
            CallState::Waiting,
            CallState::Denied(Some("no".to_owned()))
        ]
    );
    assert!(!story.sim.machine.primary().is_interrupted());
    assert_eq!(
        story.sim.machine.primary().stop,
        Some(StopReason::RequiresAction {
            event_ids: vec![calls[1]]
        })
    );
    story.send(&[interrupt()]);
    assert!(
        !story
            .sim
            .machine
            .primary()
            .queue
            .iter()
            .any(|input| input.kind == QueuedKind::Interrupt)
    );
}
