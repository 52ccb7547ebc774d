//! A machine's state as the columns that the store keeps.

use selfsame_store::{Change, LeaseChange, NewThread, ThreadChange};
use selfsame_types::{
    Timestamp,
    session::{RunningTime, SessionView, TokenTotals},
    thread::ThreadView,
};
use serde::Serialize;

use crate::machine::{Machine, ModelUsage, Outcome, Status, Thread, Written};

fn tokens(usage: &ModelUsage) -> TokenTotals {
    let count = |tokens: i64| u64::try_from(tokens).unwrap_or(0);
    TokenTotals {
        input_tokens: count(usage.input_tokens),
        output_tokens: count(usage.output_tokens),
        cache_read_input_tokens: count(usage.cache_read_input_tokens),
        ephemeral_5m_input_tokens: count(usage.ephemeral_5m_input_tokens),
        ephemeral_1h_input_tokens: count(usage.ephemeral_1h_input_tokens),
        web_search_requests: count(usage.web_search_requests),
    }
}

/// Running time settled at `now`; whoever reads it adds what has passed since.
fn running<'a>(
    threads: impl Iterator<Item = &'a Thread>,
    any_micros: i64,
    past_micros: i64,
    now: Timestamp,
) -> RunningTime {
    threads.fold(
        RunningTime {
            threads: 0,
            since: Some(now),
            any_micros,
            total_micros: past_micros,
        },
        |sum, thread| RunningTime {
            threads: sum.threads + u32::from(thread.running_since.is_some()),
            total_micros: sum.total_micros + thread.active_until(now),
            ..sum
        },
    )
}

/// The parts of the session object that the engine writes.
pub(crate) fn session_view(machine: &Machine, now: Timestamp) -> SessionView {
    SessionView {
        tokens: tokens(&machine.usage()),
        running: running(
            machine.threads.iter(),
            machine.active_until(now),
            machine.past.active_us,
            now,
        ),
        ended_at: machine.ended_at,
        outcome_evaluations: machine.outcomes.iter().map(Outcome::evaluation).collect(),
    }
}

pub(crate) fn thread_view(thread: &Thread, now: Timestamp) -> ThreadView {
    let mut running = running(std::iter::once(thread), thread.active_until(now), 0, now);
    if !thread.has_run() {
        running.since = None;
    }
    ThreadView {
        tokens: tokens(&thread.usage),
        running,
        ended_at: thread.ended_at,
        was_idle: thread.was_idle,
        startup_micros: 0,
    }
}

pub(crate) fn text<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("state serializes")
}

fn thread_change(thread: &Thread, now: Timestamp) -> ThreadChange {
    ThreadChange {
        id: thread.id,
        status: thread.status.as_str(),
        view: text(&thread_view(thread, now)),
        archived: false,
    }
}

/// What an append writes when the state becomes `machine`. Of the threads only those that something
/// happened to: the others' views go on by themselves.
pub(crate) fn change(
    machine: &Machine,
    written: Written,
    now: Timestamp,
    lease: LeaseChange,
) -> Change {
    let Written {
        events,
        spawned,
        ended,
    } = written;
    let changed = |thread: &&Thread| events.iter().any(|event| event.thread == thread.id);
    let threads = machine
        .threads
        .iter()
        .filter(changed)
        .chain(&ended)
        .map(|thread| thread_change(thread, now));
    let (new, threads): (Vec<_>, Vec<_>) =
        threads.partition(|change| spawned.iter().any(|spawned| spawned.id == change.id));
    let spawned = spawned
        .into_iter()
        .zip(new)
        .map(|(spawned, change)| NewThread {
            parent: spawned.parent,
            position: i32::try_from(spawned.position).unwrap_or(i32::MAX),
            agent: spawned.agent,
            change,
        })
        .collect();
    Change {
        status: machine.status.as_str(),
        view: text(&session_view(machine, now)),
        threads,
        spawned,
        queued: machine.queued(),
        wake_at: machine.wake_at(now),
        machine: text(machine),
        lease,
        touched: false,
        accepted: false,
        cold: None,
        end: None,
        requests: Vec::new(),
        events,
    }
}

/// Whether anything is to be done for a session in this state.
pub(crate) fn works(machine: &Machine) -> bool {
    matches!(machine.status, Status::Running | Status::Rescheduling)
}
