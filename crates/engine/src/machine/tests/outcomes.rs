//! Exact sequences of sessions with an outcome.

use selfsame_types::{OutcomeId, ThreadId, session::OutcomeResult};
use serde_json::json;
use uuid::Uuid;

use super::{sim::*, tables::*};
use crate::{
    machine::{Next, Permission, Sequel, Status},
    outcomes::Judgement::{Failed, NeedsRevision, Satisfied},
};

const GRADED: &str = "span.outcome_evaluation_start";
const VERDICT: &str = "span.outcome_evaluation_end";

fn outcome(number: u128) -> OutcomeId {
    OutcomeId(Uuid::from_u128(9_000_000 + number))
}

impl Story {
    /// A session with an outcome whose agent is about to be asked.
    fn defined(max_iterations: u32) -> Self {
        let mut story = Self::new();
        story.send(&[define(outcome(1), max_iterations)]);
        story.expect(&["user.define_outcome", RUNNING[0], RUNNING[1]]);
        story
    }

    /// .. and has worked once.
    fn worked(max_iterations: u32) -> Self {
        let mut story = Self::defined(max_iterations);
        story.respond(vec![say("here it is")]);
        story.expect(&[START, "agent.message", END, GRADED]);
        story
    }

    fn outcome(&self) -> (OutcomeResult, u32) {
        let outcome = self.sim.machine.outcomes.last().unwrap();
        (outcome.result, outcome.iteration)
    }
}

#[test]
fn satisfied_after_one_revision() {
    let mut story = Story::defined(3);
    assert_eq!(story.outcome(), (OutcomeResult::Pending, 0));
    story.sim.ask();
    assert_eq!(story.outcome(), (OutcomeResult::Running, 0));
    story.sim.respond(vec![say("here it is")], Sequel::EndTurn);
    story.expect(&[START, "agent.message", END, GRADED]);
    assert_eq!(story.outcome(), (OutcomeResult::Evaluating, 0));
    assert_eq!(story.sim.machine.status, Status::Running);
    let (_, span) = story.sim.machine.grading().unwrap();
    let thread = story.sim.thread();
    let grade = Next::Grade {
        thread,
        outcome: outcome(1),
        span,
    };
    assert_eq!(story.sim.machine.next(), [grade]);
    story.sim.run(|step| step.grading_goes_on(span));
    story.expect(&["span.outcome_evaluation_ongoing"]);

    story.sim.grade(NeedsRevision);
    story.expect(&[VERDICT]);
    let end = story.last(VERDICT);
    assert_eq!(end["result"], "needs_revision");
    assert_eq!(end["iteration"], 0);
    assert_eq!(end["outcome_evaluation_start_id"], json!(span));
    assert_eq!(end["usage"]["input_tokens"], 100);
    assert_eq!(story.outcome(), (OutcomeResult::Running, 1));
    assert!(story.sim.is_asked(), "the agent hears what is missing");

    story.respond(vec![say("now it is")]);
    story.expect(&[START, "agent.message", END, GRADED]);
    assert_eq!(story.last(GRADED)["iteration"], 1);
    story.sim.grade(Satisfied);
    story.expect(&[VERDICT, IDLE[0], IDLE[1], IDLE[2]]);
    story.ended();
    assert_eq!(story.outcome(), (OutcomeResult::Satisfied, 1));
    assert_eq!(
        story.last("session.usage")["usage"]["input_tokens"],
        220,
        "graders count"
    );
    // From here on it is an ordinary conversation, and another outcome may come.
    story.send(&[message("thanks")]);
    story.respond(vec![say("not at all")]);
    story.ended();
    story.send(&[define(outcome(2), 1)]);
    assert_eq!(story.outcome(), (OutcomeResult::Pending, 0));
}

#[test]
fn the_last_iteration_is_followed_by_one_more_turn() {
    let mut story = Story::worked(2);
    story.sim.grade(NeedsRevision);
    story.respond(vec![say("better")]);
    story.seen = story.sim.log.len();
    story.sim.grade(NeedsRevision);
    story.expect(&[VERDICT]);
    assert_eq!(story.last(VERDICT)["result"], "max_iterations_reached");
    assert_eq!(story.outcome(), (OutcomeResult::MaxIterationsReached, 1));
    assert!(story.sim.machine.outcome().is_none());
    story.respond(vec![say("this is as far as I came")]);
    story.expect(&[START, "agent.message", END, IDLE[0], IDLE[1], IDLE[2]]);
    story.ended();
}

#[test]
fn a_rubric_that_does_not_apply_ends_it() {
    let mut story = Story::worked(3);
    story.sim.grade(Failed);
    story.expect(&[VERDICT, IDLE[0], IDLE[1], IDLE[2]]);
    assert_eq!(story.outcome(), (OutcomeResult::Failed, 0));
}

#[test]
fn an_interrupt_before_grading_has_no_start() {
    let mut story = Story::defined(3);
    story.sim.ask();
    story.send(&[interrupt()]);
    story.sim.interrupt(Vec::new());
    story.expect(&[
        START,
        INTERRUPT[0],
        END,
        INTERRUPT[1],
        VERDICT,
        IDLE[0],
        IDLE[1],
        IDLE[2],
    ]);
    let end = story.last(VERDICT);
    assert_eq!(end["result"], "interrupted");
    assert_eq!(end["outcome_evaluation_start_id"], "");
    assert_eq!(end["explanation"], "");
    assert_eq!(end["usage"]["output_tokens"], 0);
    assert_eq!(story.outcome(), (OutcomeResult::Interrupted, 0));
}

#[test]
fn an_interrupt_during_grading_closes_its_span() {
    let mut story = Story::worked(3);
    let (_, span) = story.sim.machine.grading().unwrap();
    story.send(&[interrupt()]);
    story.sim.interrupt(Vec::new());
    story.expect(&[
        INTERRUPT[0],
        INTERRUPT[1],
        VERDICT,
        IDLE[0],
        IDLE[1],
        IDLE[2],
    ]);
    assert_eq!(
        story.last(VERDICT)["outcome_evaluation_start_id"],
        json!(span)
    );
    // The grader comes too late.
    let verdict = crate::outcomes::Verdict {
        judgement: Satisfied,
        explanation: "late".to_owned(),
    };
    let usage = crate::machine::ModelUsage::default();
    story
        .sim
        .run(|step| step.finish_grading(span, verdict, &usage));
    story.expect(&[]);
}

#[test]
fn one_at_a_time_unless_an_interrupt_comes_between() {
    let mut story = Story::defined(3);
    story.sim.ask();
    story.seen = story.sim.log.len();
    let refused = story.refused(&[define(outcome(2), 3)]);
    assert!(
        refused.contains("an outcome is already active"),
        "{refused}"
    );
    story.refused(&[interrupt(), define(outcome(2), 3), define(outcome(3), 3)]);
    story.send(&[interrupt(), define(outcome(2), 3)]);
    story.expect(&[INTERRUPT[0], "user.define_outcome"]);
    story.sim.interrupt(Vec::new());
    story.expect(&[
        END,
        INTERRUPT[1],
        VERDICT,
        IDLE[0],
        IDLE[1],
        IDLE[2],
        RUNNING[0],
        RUNNING[1],
    ]);
    assert_eq!(story.last(VERDICT)["outcome_id"], json!(outcome(1)));
    story.respond(vec![say("the other one")]);
    assert_eq!(story.outcome(), (OutcomeResult::Evaluating, 0));
}

#[test]
fn messages_steer_while_an_outcome_is_active() {
    let mut story = Story::worked(3);
    story.send(&[message("in blue, please")]);
    story.expect(&[MESSAGE[0]]);
    story.sim.grade(NeedsRevision);
    story.respond(vec![say("in blue")]);
    story.expect(&[VERDICT, MESSAGE[1], START, "agent.message", END, GRADED]);
    // What comes before the last verdict is still answered.
    story.send(&[message("thank you")]);
    story.sim.grade(Satisfied);
    story.expect(&[MESSAGE[0], VERDICT]);
    story.respond(vec![]);
    story.expect(&[MESSAGE[1], START, END, IDLE[0], IDLE[1], IDLE[2]]);
}

#[test]
fn an_outcome_of_a_running_session_is_heard_with_the_next_request() {
    let mut story = Story::begun();
    story.sim.ask();
    story.send(&[define(outcome(1), 3)]);
    story.expect(&[START, "user.define_outcome"]);
    story.sim.respond(vec![say("hello")], Sequel::EndTurn);
    story.expect(&["agent.message", END]);
    assert_eq!(story.outcome(), (OutcomeResult::Pending, 0));
    story.respond(vec![say("here it is")]);
    story.expect(&[START, "agent.message", END, GRADED]);
}

#[test]
fn grading_waits_for_answers_of_the_client() {
    let mut story = Story::defined(3);
    let calls = story.respond(vec![tool("bash", Permission::Ask)]);
    story.waits_for(&calls);
    story.seen = story.sim.log.len();
    story.refused(&[define(outcome(2), 3)]);
    story.send(&[confirm(calls[0], None)]);
    story.sim.finish_call(calls[0], "done");
    story.respond(vec![say("here it is")]);
    assert_eq!(story.outcome(), (OutcomeResult::Evaluating, 0));
}

#[test]
fn grading_waits_for_children() {
    let child = ThreadId(Uuid::from_u128(5_000_001));
    let mut story = Story::defined(3);
    story.respond(vec![spawn(child, "worker")]);
    story.respond(vec![say("it is at work")]);
    assert_eq!(story.outcome(), (OutcomeResult::Running, 0));
    story.sim.ask_of(child);
    story
        .sim
        .respond_of(child, vec![say("done")], Sequel::EndTurn);
    story.seen = story.sim.log.len();
    story.respond(vec![say("here it is")]);
    story.expect(&[START, "agent.message", END, GRADED]);
    story.sim.grade(Satisfied);
    story.ended();
}

#[test]
fn a_child_that_is_stopped_does_not_hold_the_grading_up() {
    let child = ThreadId(Uuid::from_u128(5_000_001));
    for archived in [false, true] {
        let mut story = Story::defined(3);
        story.respond(vec![spawn(child, "worker")]);
        story.respond(vec![say("it is at work")]);
        story.sim.ask_of(child);
        let blocks = vec![custom("lookup")];
        story.sim.respond_of(child, blocks, Sequel::EndTurn);
        assert_eq!(story.sim.machine.status, Status::Idle);
        if archived {
            story.sim.step(|step| step.archive_thread(child)).unwrap();
        } else {
            story.send(&[interrupt_of(child)]);
        }
        // The primary thread rests already: it counts as running while its work is looked at.
        assert_eq!(story.outcome(), (OutcomeResult::Evaluating, 0));
        assert_eq!(story.sim.machine.primary().status, Status::Running);
    }
}

#[test]
fn a_grader_that_fails_is_tried_again_and_leaves_the_outcome_open() {
    let mut story = Story::worked(3);
    let (_, span) = story.sim.machine.grading().unwrap();
    let until = story.sim.now.after(std::time::Duration::from_secs(1));
    story.sim.fail_grading(Some(until));
    story.expect(&RESCHEDULED);
    let thread = story.sim.thread();
    assert_eq!(story.sim.machine.next(), [Next::Wait { thread, until }]);
    story.sim.now = until;
    story.sim.run(|step| step.resume_grading(span));
    story.expect(&RUNNING);
    assert_eq!(
        story.sim.machine.grading().unwrap().1,
        span,
        "no second start"
    );
    story.sim.fail_grading(None);
    story.expect(&["session.error", IDLE[0], IDLE[1], IDLE[2]]);
    assert_eq!(story.stop(), json!({"type": "retries_exhausted"}));
    assert_eq!(story.outcome(), (OutcomeResult::Running, 0));
    // The next message goes on with it.
    story.send(&[message("try again")]);
    story.respond(vec![say("it is as it was")]);
    story.seen = story.sim.log.len();
    story.sim.grade(Satisfied);
    assert_eq!(story.last(VERDICT)["iteration"], 0);
    assert_eq!(story.last(VERDICT)["usage"]["input_tokens"], 100);
    assert_eq!(
        story.last("session.usage")["usage"]["input_tokens"],
        134,
        "what failed was used, too"
    );
}

#[test]
fn a_takeover_in_the_middle_of_a_grading_doubles_nothing() {
    let mut story = Story::worked(3);
    let (_, span) = story.sim.machine.grading().unwrap();
    let thread = story.sim.thread();
    story.sim.run(|step| step.recover(&[thread], |_| None));
    story.expect(&[&RESCHEDULED[..], &RUNNING[..]].concat());
    assert!(matches!(
        story.sim.machine.next()[..],
        [Next::Grade { span: open, .. }] if open == span
    ));
    story.sim.grade(Satisfied);
    story.expect(&[VERDICT, IDLE[0], IDLE[1], IDLE[2]]);
}

#[test]
fn an_interrupt_of_one_child_does_not_end_an_outcome_and_one_of_the_primary_thread_does() {
    let child = ThreadId(Uuid::from_u128(5_000_001));
    let mut story = Story::defined(3);
    story.respond(vec![spawn(child, "worker")]);
    story.respond(vec![say("it is at work")]);
    story.send(&[interrupt_of(child)]);
    story.sim.interrupt_of(child, Vec::new());
    assert_eq!(story.outcome(), (OutcomeResult::Evaluating, 0));
    let primary = story.sim.thread();
    story.send(&[interrupt_of(primary)]);
    story.sim.interrupt(Vec::new());
    assert_eq!(story.outcome(), (OutcomeResult::Interrupted, 0));
    // While all rests, too: after a failure an outcome is still open.
    let mut story = Story::defined(3);
    story.sim.ask();
    story.sim.fail(None);
    assert_eq!(story.outcome(), (OutcomeResult::Running, 0));
    story.seen = story.sim.log.len();
    story.send(&[interrupt(), define(outcome(2), 1)]);
    story.expect(&[
        "user.interrupt",
        VERDICT,
        "user.define_outcome",
        RUNNING[0],
        RUNNING[1],
    ]);
}
