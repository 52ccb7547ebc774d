//! A machine's state as the columns that the store keeps.

use selfsame_store::{Change, LeaseChange, ThreadChange};
use selfsame_types::{Timestamp, event::NewEvent};
use serde::{Deserialize, Serialize};

use crate::machine::{Machine, ModelUsage};

/// The parts of a session or thread object that the engine writes. `active_us` stands still unless
/// `running_since` is set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct View {
    pub usage: ModelUsage,
    /// Running time, overlapping threads counted once.
    pub active_us: i64,
    pub running_since: Option<Timestamp>,
}

impl View {
    /// Running time until `now`, in seconds.
    #[must_use]
    pub fn active_seconds(&self, now: Timestamp) -> f64 {
        #[expect(
            clippy::cast_precision_loss,
            reason = "microseconds of centuries fit an f64"
        )]
        let settled = self.active_us as f64 / 1e6;
        settled
            + self
                .running_since
                .map_or(0.0, |since| now.seconds_since(since))
    }
}

pub(crate) fn session_view(machine: &Machine) -> String {
    text(&View {
        usage: machine.usage(),
        active_us: machine.active_us,
        running_since: machine.running_since,
    })
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
        view: session_view(machine),
        threads: machine
            .threads
            .iter()
            .map(|thread| ThreadChange {
                id: thread.id,
                status: thread.status.as_str(),
                view: text(&View {
                    usage: thread.usage,
                    active_us: thread.active_us,
                    running_since: thread.running_since,
                }),
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
