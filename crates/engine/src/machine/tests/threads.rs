//! Exact sequences of sessions with several threads.

use std::time::Duration;

use selfsame_types::{EventId, ThreadId};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{sim::*, tables::*};
use crate::machine::{BlockContent, MAX_CHILDREN, Next, Role, Sequel, Status};

const SENT: &str = "agent.thread_message_sent";
const RECEIVED: &str = "agent.thread_message_received";
const CREATED: &str = "session.thread_created";
const THREAD_RUNNING: &str = "session.thread_status_running";
const THREAD_IDLE: &str = "session.thread_status_idle";
const THREAD_OVER: &str = "session.thread_status_terminated";

fn thread(number: u128) -> ThreadId {
    ThreadId(Uuid::from_u128(5_000_000 + number))
}

impl Story {
    /// A session whose primary thread has started this many children, and looks at the results of that.
    fn coordinator(children: u128) -> Self {
        let mut story = Self::begun();
        story.respond((1..=children).map(|n| spawn(thread(n), "worker")).collect());
        story.seen = story.sim.log.len();
        story
    }

    /// .. and has ended its turn.
    fn resting_coordinator(children: u128) -> Self {
        let mut story = Self::coordinator(children);
        story.respond(vec![say("they are at work")]);
        story.seen = story.sim.log.len();
        story
    }

    fn respond_of(&mut self, thread: ThreadId, blocks: Vec<BlockContent>) -> Vec<EventId> {
        self.sim.ask_of(thread);
        self.sim.respond_of(thread, blocks, Sequel::EndTurn)
    }

    /// What the session's own list shows since the last look.
    #[track_caller]
    fn expect_on_session(&mut self, names: &[&str]) {
        let shown: Vec<_> = self.sim.log[self.seen..]
            .iter()
            .filter(|stored| stored.event.on_session)
            .map(|stored| stored.event.event_type.as_str())
            .collect();
        assert_eq!(shown, names);
        self.seen = self.sim.log.len();
    }

    fn status(&self, thread: ThreadId) -> Status {
        self.sim.machine.thread(thread).unwrap().status
    }

    fn find(&self, name: &str, key: &str, value: &Value) -> Value {
        let found = self.sim.bodies().into_iter().rev();
        found
            .into_iter()
            .find(|body| body["type"] == name && body[key] == *value)
            .unwrap_or_else(|| panic!("no {name} with {key} {value}"))
    }
}

// Spawning and reporting -------------------------------------------------------------------------

#[test]
fn a_child_is_started_works_and_reports() {
    let mut story = Story::begun();
    let child = thread(1);
    story.respond(vec![say("I shall ask for help"), spawn(child, "worker")]);
    // The call itself is nowhere to be seen.
    story.expect(&[
        START,
        "agent.message",
        END,
        CREATED,
        SENT,
        THREAD_RUNNING,
        RECEIVED,
    ]);
    let created = story.last(CREATED);
    assert_eq!(created["session_thread_id"], json!(child));
    assert_eq!(created["agent_name"], "worker");
    assert_eq!(created["workflow_run_id"], Value::Null);
    let sent = story.last(SENT);
    assert_eq!(sent["to_session_thread_id"], json!(child));
    assert_eq!(sent["to_agent_name"], "worker");
    let received = story.last(RECEIVED);
    assert_eq!(
        received["from_session_thread_id"],
        json!(story.sim.thread())
    );
    assert!(received.get("from_agent_name").is_none());
    assert_eq!(received["content"], sent["content"]);
    let primary = story.sim.thread();
    assert_eq!(
        story.sim.machine.next(),
        [Next::Ask { thread: primary }, Next::Ask { thread: child }],
        "both go on, beside each other"
    );

    story.respond(vec![say("they are at work")]);
    story.expect(&[START, "agent.message", END, THREAD_IDLE]);
    assert_eq!(story.sim.machine.status, Status::Running);

    story.respond_of(child, vec![say("it is"), say("done")]);
    story.expect(&[
        START,
        "agent.message",
        "agent.message",
        END,
        SENT,
        RECEIVED,
        THREAD_IDLE,
        THREAD_RUNNING,
    ]);
    let report = story.last(RECEIVED);
    assert_eq!(report["from_session_thread_id"], json!(child));
    assert_eq!(report["from_agent_name"], "worker");
    assert_eq!(
        report["content"],
        json!([{"type": "text", "text": "it is"}, {"type": "text", "text": "done"}])
    );
    assert!(story.last(SENT).get("to_agent_name").is_none());
    story.respond(vec![say("all is done")]);
    story.expect(&[START, "agent.message", END, IDLE[0], IDLE[1], IDLE[2]]);
    story.ended();
}

#[test]
fn the_session_shows_the_documented_part() {
    let mut story = Story::begun();
    let child = thread(1);
    story.respond(vec![spawn(child, "worker")]);
    story.respond(vec![]);
    story.seen = 0;
    story.seen = story.sim.log.len();
    let calls = story.respond_of(child, vec![tool("bash", crate::machine::Permission::Allow)]);
    story.sim.finish_call(calls[0], "done");
    story.expect_on_session(&[]);
    story.respond_of(child, vec![say("done")]);
    story.expect_on_session(&[RECEIVED, THREAD_IDLE, THREAD_RUNNING]);
}

#[test]
fn reports_reach_a_parent_that_is_busy_and_one_that_waits() {
    // Busy: the report is heard with the next request, and keeps the turn going.
    let mut story = Story::coordinator(2);
    story.sim.ask();
    story.respond_of(thread(1), vec![say("one")]);
    story.sim.respond(vec![say("so")], Sequel::EndTurn);
    assert!(story.sim.is_asked(), "the report is to be answered");
    // Waiting: it is heard once the client has answered.
    let calls = story.respond(vec![custom("lookup")]);
    assert_eq!(story.sim.machine.primary().status, Status::Idle);
    story.respond_of(thread(2), vec![say("two")]);
    assert_eq!(story.sim.machine.status, Status::Idle, "it waits on");
    let stop = story.last("session.status_idle")["stop_reason"].clone();
    assert_eq!(stop["event_ids"], json!(calls));
    story.send(&[answer(calls[0])]);
    story.respond(vec![say("both have reported")]);
    story.ended();
    let received = story.sim.bodies();
    let received = received
        .iter()
        .filter(|body| body["type"] == RECEIVED && body.get("from_agent_name").is_some());
    assert_eq!(received.count(), 2, "each once");
}

#[test]
fn a_follow_up_begins_another_turn() {
    let mut story = Story::resting_coordinator(1);
    let child = thread(1);
    story.respond_of(child, vec![say("done")]);
    story.seen = story.sim.log.len();
    story.respond(vec![send_to(child)]);
    story.expect(&[START, END, SENT, THREAD_RUNNING, RECEIVED]);
    assert_eq!(story.last(SENT)["content"][0]["text"], "go on");
    // One that works hears it with its next request.
    story.respond(vec![send_to(child)]);
    story.expect(&[START, END, SENT, RECEIVED]);
    story.respond_of(child, vec![say("done again")]);
    story.respond(vec![]);
    story.ended();
}

#[test]
fn the_26th_thread_is_refused_until_one_is_archived() {
    let limit = u128::try_from(MAX_CHILDREN).unwrap();
    let mut story = Story::coordinator(limit);
    story.respond(vec![spawn(thread(26), "worker"), list_agents()]);
    story.expect(&[START, END]);
    assert!(story.sim.is_asked(), "the model hears of it");
    assert_eq!(story.sim.machine.threads.len(), 1 + MAX_CHILDREN);
    story.respond_of(thread(7), vec![say("done")]);
    story
        .sim
        .step(|step| step.archive_thread(thread(7)))
        .unwrap();
    story.respond(vec![spawn(thread(27), "worker")]);
    assert!(story.sim.machine.thread(thread(27)).is_some());
    // Several in one response count one by one.
    assert_eq!(story.sim.machine.threads.len(), 1 + MAX_CHILDREN);
}

#[test]
fn no_thread_can_be_reached_that_is_over_or_no_child() {
    let mut story = Story::resting_coordinator(1);
    story.respond_of(thread(1), vec![say("done")]);
    story
        .sim
        .step(|step| step.archive_thread(thread(1)))
        .unwrap();
    let primary = story.sim.thread();
    story.seen = story.sim.log.len();
    story.respond(vec![
        send_to(thread(1)),
        send_to(primary),
        send_to(thread(9)),
    ]);
    story.expect(&[START, END]);
    assert!(story.sim.is_asked());
}

#[test]
fn children_start_no_threads() {
    let mut story = Story::resting_coordinator(1);
    story.respond_of(thread(1), vec![spawn(thread(2), "worker")]);
    story.expect(&[START, END]);
    assert_eq!(story.sim.machine.threads.len(), 2);
}

// Failures ---------------------------------------------------------------------------------------

#[test]
fn a_child_that_fails_is_over_and_reported() {
    let mut story = Story::resting_coordinator(1);
    let child = thread(1);
    story.sim.ask_of(child);
    story.sim.fail_of(child, None);
    story.expect(&[
        START,
        END,
        "session.error",
        SENT,
        RECEIVED,
        THREAD_IDLE,
        THREAD_OVER,
        THREAD_RUNNING,
    ]);
    let idle = story.find(THREAD_IDLE, "session_thread_id", &json!(child));
    assert_eq!(idle["stop_reason"]["type"], "retries_exhausted");
    let text = story.last(RECEIVED)["content"][0]["text"].to_string();
    assert!(text.contains("has failed"), "{text}");
    assert!(story.sim.machine.thread(child).is_none());
    story.respond(vec![say("then without it")]);
    story.ended();
}

#[test]
fn a_session_waits_for_the_next_attempt_of_its_last_thread() {
    let mut story = Story::resting_coordinator(2);
    story.sim.ask_of(thread(1));
    let until = story.sim.now.after(Duration::from_secs(5));
    story.sim.fail_of(thread(1), Some(until));
    story.expect(&[
        START,
        END,
        "session.error",
        "session.thread_status_rescheduled",
    ]);
    assert_eq!(story.sim.machine.status, Status::Running);
    // The other one is stopped and says nothing: only the attempt is left.
    story.send(&[interrupt_of(thread(2))]);
    story.sim.interrupt_of(thread(2), Vec::new());
    story.expect(&[
        "user.interrupt (queued)",
        "user.interrupt",
        THREAD_IDLE,
        "session.status_rescheduled",
    ]);
    assert_eq!(story.sim.machine.wake_at(story.sim.now), Some(until));
    story.sim.now = until;
    story.respond_of(thread(1), vec![say("there")]);
    story.expect(&[
        RUNNING[0],
        RUNNING[1],
        START,
        "agent.message",
        END,
        SENT,
        RECEIVED,
        THREAD_IDLE,
        THREAD_RUNNING,
    ]);
}

// Waiting for the client -------------------------------------------------------------------------

#[test]
fn a_childs_calls_wait_beside_the_session_and_are_answered_by_their_ids() {
    let mut story = Story::resting_coordinator(2);
    let (one, two) = (thread(1), thread(2));
    let asked = story.respond_of(one, vec![tool("bash", crate::machine::Permission::Ask)]);
    story.expect_on_session(&["agent.tool_use", THREAD_IDLE]);
    assert_eq!(
        story.sim.machine.status,
        Status::Running,
        "the other one works"
    );
    let looked_up = story.respond_of(two, vec![custom("lookup"), custom("lookup")]);
    story.expect_on_session(&[
        "agent.custom_tool_use",
        "agent.custom_tool_use",
        IDLE[0],
        IDLE[1],
        IDLE[2],
    ]);
    let all = [asked[0], looked_up[0], looked_up[1]];
    let stop = story.last("session.status_idle")["stop_reason"].clone();
    assert_eq!(stop, json!({"type": "requires_action", "event_ids": all}));
    let refused = story.refused(&[message("hello?")]);
    assert!(refused.contains(&all[2].to_string()), "{refused}");
    // A part of the answers.
    story.send(&[answer(looked_up[0])]);
    story.expect(&["user.custom_tool_result", IDLE[0], IDLE[1], IDLE[2]]);
    let stop = story.last("session.status_idle")["stop_reason"].clone();
    assert_eq!(stop["event_ids"], json!([asked[0], looked_up[1]]));
    let stop = story.last(THREAD_IDLE)["stop_reason"].clone();
    assert_eq!(stop["event_ids"], json!([looked_up[1]]));
    // The last one of a thread: that goes on, the other one waits.
    story.send(&[confirm(asked[0], None)]);
    story.expect(&["user.tool_confirmation", RUNNING[0], RUNNING[1]]);
    assert_eq!(story.runnable(), asked);
    assert_eq!(story.status(two), Status::Idle);
    story.send(&[answer(looked_up[1])]);
    story.expect(&["user.custom_tool_result", THREAD_RUNNING]);
}

// Interrupts -------------------------------------------------------------------------------------

#[test]
fn an_interrupt_of_all_reaches_every_thread_and_none_reports() {
    let mut story = Story::resting_coordinator(3);
    let calls = story.respond_of(thread(1), vec![custom("lookup")]);
    story.sim.ask_of(thread(2));
    let running = story.respond_of(
        thread(3),
        vec![tool("bash", crate::machine::Permission::Allow)],
    );
    story.seen = story.sim.log.len();
    story.send(&[interrupt(), message("rather this")]);
    story.expect(&["user.interrupt (queued)", "user.message (queued)"]);
    let primary = story.sim.thread();
    let next = [primary, thread(2), thread(3)].map(|thread| Next::Interrupt { thread });
    assert_eq!(story.sim.machine.next(), next);
    assert!(
        !story.sim.machine.may_interrupt(primary),
        "it is the last one"
    );
    story.sim.interrupt_of(thread(2), Vec::new());
    story.expect(&[END, THREAD_IDLE]);
    story
        .sim
        .interrupt_of(thread(3), vec![(running[0], result("stopped"))]);
    story.expect(&["agent.tool_result", THREAD_IDLE]);
    story.sim.interrupt(Vec::new());
    story.expect(&[
        "user.interrupt",
        THREAD_IDLE,
        "session.usage",
        "session.status_idle",
        RUNNING[0],
        RUNNING[1],
        "user.message",
    ]);
    let late = story.refused(&[answer(calls[0])]);
    assert!(late.contains("is not a pending tool call"), "{late}");
    assert!(story.sim.is_asked());
}

impl Story {
    fn interrupt_all_while_idle(&mut self) {
        self.send(&[interrupt()]);
    }
}

#[test]
fn an_interrupt_of_an_idle_session_drops_what_waits_in_every_thread() {
    let mut story = Story::resting_coordinator(2);
    story.respond_of(
        thread(1),
        vec![tool("bash", crate::machine::Permission::Ask)],
    );
    story.respond_of(thread(2), vec![custom("lookup")]);
    story.seen = story.sim.log.len();
    story.interrupt_all_while_idle();
    story.expect(&[
        "user.interrupt",
        "agent.tool_result",
        THREAD_IDLE,
        THREAD_IDLE,
        "session.usage",
        "session.status_idle",
    ]);
    let stop = story.last("session.status_idle")["stop_reason"].clone();
    assert_eq!(stop["type"], "end_turn");
}

#[test]
fn an_interrupt_of_one_child_leaves_the_others_and_reports_nothing() {
    let mut story = Story::resting_coordinator(2);
    story.sim.ask_of(thread(1));
    story.seen = story.sim.log.len();
    story.send(&[interrupt_of(thread(1))]);
    story.sim.interrupt_of(thread(1), Vec::new());
    story.expect(&[
        "user.interrupt (queued)",
        END,
        "user.interrupt",
        THREAD_IDLE,
    ]);
    assert_eq!(story.status(thread(2)), Status::Running);
    // Blocked on a client: errors, then idle again, and no request.
    let calls = story.respond_of(
        thread(2),
        vec![tool("bash", crate::machine::Permission::Ask)],
    );
    story.seen = story.sim.log.len();
    story.send(&[interrupt_of(thread(2))]);
    story.expect(&[
        "user.interrupt",
        "agent.tool_result",
        IDLE[0],
        IDLE[1],
        IDLE[2],
    ]);
    assert_eq!(
        story.result_text(),
        "Tool execution was interrupted before completion. Please retry."
    );
    assert_eq!(
        story.last("agent.tool_result")["tool_use_id"],
        json!(calls[0])
    );
    // Idle: no effect. Over: refused.
    story.send(&[interrupt_of(thread(2))]);
    story.expect(&["user.interrupt"]);
    story
        .sim
        .step(|step| step.archive_thread(thread(2)))
        .unwrap();
    story.seen = story.sim.log.len();
    let over = story.refused(&[interrupt_of(thread(2))]);
    assert!(over.contains("terminated"), "{over}");
}

#[test]
fn what_is_sent_after_an_interrupt_is_not_lost() {
    let mut story = Story::coordinator(1);
    let child = thread(1);
    story.sim.ask_of(child);
    story.send(&[interrupt_of(child)]);
    story.respond(vec![send_to(child)]);
    story.seen = story.sim.log.len();
    story.sim.interrupt_of(child, Vec::new());
    story.expect(&[END, "user.interrupt", THREAD_IDLE, THREAD_RUNNING]);
    story.respond_of(child, vec![say("something else, then")]);
    assert_eq!(story.last(RECEIVED)["from_session_thread_id"], json!(child));
}

// Archiving --------------------------------------------------------------------------------------

#[test]
fn a_child_is_archived_when_it_rests() {
    let mut story = Story::resting_coordinator(2);
    let (one, two) = (thread(1), thread(2));
    let error = story.sim.step(|step| step.archive_thread(one)).unwrap_err();
    assert!(error.message.contains("running"), "{error:?}");
    let primary = story.sim.thread();
    let error = story
        .sim
        .step(|step| step.archive_thread(primary))
        .unwrap_err();
    assert!(error.message.contains("primary"), "{error:?}");
    story.respond_of(one, vec![custom("lookup")]);
    let left = story.respond_of(two, vec![custom("lookup")]);
    story.seen = story.sim.log.len();
    // It waits for a client, and so does the session: that says what is left.
    assert!(story.sim.step(|step| step.archive_thread(one)).unwrap());
    story.expect(&[THREAD_OVER, "session.usage", "session.status_idle"]);
    let stop = story.last("session.status_idle")["stop_reason"].clone();
    assert_eq!(stop["event_ids"], json!(left));
    assert!(story.sim.step(|step| step.archive_thread(two)).unwrap());
    story.expect(&[THREAD_OVER, "session.usage", "session.status_idle"]);
    let stop = story.last("session.status_idle")["stop_reason"].clone();
    assert_eq!(stop["type"], "end_turn");
    assert!(!story.sim.step(|step| step.archive_thread(two)).unwrap());
    story.expect(&[]);
}

#[test]
fn the_end_of_a_session_ends_its_threads_first() {
    let mut story = Story::resting_coordinator(2);
    for n in [1, 2] {
        story.respond_of(thread(n), vec![say("done")]);
    }
    story.respond(vec![]);
    story.seen = story.sim.log.len();
    story.sim.step(|step| step.terminate("archive")).unwrap();
    story.expect(&[
        THREAD_OVER,
        THREAD_OVER,
        THREAD_OVER,
        "session.status_terminated",
    ]);
    let last = story.last(THREAD_OVER);
    assert_eq!(last["session_thread_id"], json!(story.sim.thread()));
}

// Takeover ---------------------------------------------------------------------------------------

#[test]
fn a_takeover_says_so_once_for_all_threads() {
    let mut story = Story::coordinator(2);
    story.sim.ask();
    story.sim.ask_of(thread(1));
    let calls = story.respond_of(
        thread(2),
        vec![tool("bash", crate::machine::Permission::Allow)],
    );
    story.seen = story.sim.log.len();
    let threads: Vec<_> = story.sim.machine.threads.iter().map(|t| t.id).collect();
    let now = story.sim.now;
    story.sim.run(|step| step.recover(&threads, |_| Some(now)));
    story.expect(&[
        END,
        END,
        "session.error",
        "session.status_rescheduled",
        "session.thread_status_rescheduled",
        "session.thread_status_rescheduled",
        "session.thread_status_rescheduled",
        RUNNING[0],
        RUNNING[1],
    ]);
    assert_eq!(story.runnable(), calls);
}

// Advisors ---------------------------------------------------------------------------------------

#[test]
fn an_advisor_answers_one_question() {
    let mut story = Story::begun();
    let advisor = thread(1);
    story.respond(vec![say("let me ask"), consult(advisor)]);
    story.expect(&[
        START,
        "agent.message",
        END,
        CREATED,
        THREAD_RUNNING,
        RECEIVED,
    ]);
    assert_eq!(story.sim.machine.next(), [Next::Ask { thread: advisor }]);
    assert!(matches!(
        story.sim.machine.thread(advisor).unwrap().role,
        Role::Advisor { .. }
    ));
    story.sim.ask_of(advisor);
    story
        .sim
        .respond_of(advisor, vec![say("do this")], Sequel::EndTurn);
    story.expect(&[
        START,
        "agent.message",
        END,
        SENT,
        RECEIVED,
        THREAD_IDLE,
        THREAD_OVER,
    ]);
    let advice = story.last(RECEIVED);
    assert_eq!(advice["from_agent_name"], "anthropic.advisor");
    assert_eq!(advice["content"][0]["text"], "do this");
    assert!(story.sim.is_asked());
    story.respond(vec![say("so I do")]);
    story.ended();
}

#[test]
fn advice_beside_a_call_that_waits_for_the_client() {
    let mut story = Story::begun();
    let advisor = thread(1);
    let calls = story.respond(vec![custom("lookup"), consult(advisor)]);
    assert_eq!(story.sim.machine.primary().status, Status::Running);
    story.respond_of(advisor, vec![say("do this")]);
    let stop = story.last("session.status_idle")["stop_reason"].clone();
    assert_eq!(stop["event_ids"], json!(calls[..1]));
    story.send(&[answer(calls[0])]);
    story.respond(vec![say("so I do")]);
    story.ended();
}

#[test]
fn a_question_that_nobody_answers_fails_no_turn() {
    for failed in [true, false] {
        let mut story = Story::begun();
        let advisor = thread(1);
        story.respond(vec![consult(advisor)]);
        story.sim.ask_of(advisor);
        if failed {
            story.sim.fail_of(advisor, None);
        } else {
            story.send(&[interrupt_of(advisor)]);
            story.sim.interrupt_of(advisor, Vec::new());
        }
        let text = story.last(RECEIVED)["content"][0]["text"].to_string();
        assert!(text.contains("not available"), "{text}");
        assert!(story.sim.machine.thread(advisor).is_none());
        assert!(story.sim.is_asked());
    }
}

#[test]
fn an_interrupt_of_the_primary_thread_takes_its_advisors_with_it() {
    let mut story = Story::begun();
    let advisor = thread(1);
    story.respond(vec![consult(advisor), custom("lookup")]);
    story.sim.ask_of(advisor);
    let primary = story.sim.thread();
    story.send(&[interrupt_of(primary)]);
    story.sim.interrupt_of(advisor, Vec::new());
    story.sim.interrupt(Vec::new());
    story.ended();
    assert_eq!(story.sim.machine.threads.len(), 1);
}
