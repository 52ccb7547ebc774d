//! A machine's state as the columns that the store keeps.

use selfsame_store::{Change, LeaseChange, ThreadChange};
use selfsame_types::{
    Timestamp,
    event::NewEvent,
    session::{RunningTime, SessionView, TokenTotals},
    thread::ThreadView,
};
use serde::Serialize;

use crate::machine::{Machine, ModelUsage, Status, Thread};

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
    now: Timestamp,
) -> RunningTime {
    threads.fold(
        RunningTime {
            threads: 0,
            since: Some(now),
            any_micros,
            total_micros: 0,
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
        running: running(machine.threads.iter(), machine.active_until(now), now),
        ended_at: machine.ended_at,
        outcome_evaluations: Vec::new(),
    }
}

pub(crate) fn thread_view(thread: &Thread, now: Timestamp) -> ThreadView {
    let mut running = running(std::iter::once(thread), thread.active_until(now), now);
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

/// What an append writes when the state becomes `machine`.
pub(crate) fn change(
    machine: &Machine,
    events: Vec<NewEvent>,
    now: Timestamp,
    lease: LeaseChange,
) -> Change {
    Change {
        events,
        status: machine.status.as_str(),
        view: text(&session_view(machine, now)),
        threads: machine
            .threads
            .iter()
            .map(|thread| ThreadChange {
                id: thread.id,
                status: thread.status.as_str(),
                view: text(&thread_view(thread, now)),
            })
            .collect(),
        queued: machine.queued(),
        wake_at: machine.wake_at(now),
        machine: text(machine),
        lease,
        touched: false,
        accepted: false,
        cold: None,
        end: None,
        request: None,
    }
}

/// Whether anything is to be done for a session in this state.
pub(crate) fn works(machine: &Machine) -> bool {
    matches!(machine.status, Status::Running | Status::Rescheduling)
}
