//! How an event changes the state. Nothing else does.

use selfsame_types::{EventId, ThreadId, Timestamp, event::Processed};

use super::{
    About, Call, CallKind, CallState, Machine, Payload, QueuedInput, QueuedKind, Status,
    StopReason, Trouble, payload::Permission,
};

/// An event at its place in the log.
#[derive(Debug, Clone, Copy)]
pub(super) struct Placed<'a> {
    pub id: EventId,
    pub seq: i64,
    pub at: Timestamp,
    pub thread: ThreadId,
    pub processed: Processed,
    pub payload: &'a Payload,
}

impl Machine {
    /// Folds one event.
    pub(super) fn fold(&mut self, event: Placed<'_>) {
        match event.payload {
            Payload::SessionRunning => self.set_status(Status::Running, event.at),
            Payload::SessionIdle { .. } => self.set_status(Status::Idle, event.at),
            Payload::SessionRescheduled => self.set_status(Status::Rescheduling, event.at),
            Payload::SessionTerminated => self.set_status(Status::Terminated, event.at),
            Payload::Trouble(Trouble {
                about: About::Credential { credential, .. },
                ..
            }) => self.unreachable.push(*credential),
            _ => self.fold_thread(event),
        }
    }

    fn set_status(&mut self, status: Status, at: Timestamp) {
        self.active_us = self.active_until(at);
        self.running_since = (status == Status::Running).then_some(at);
        self.status = status;
        if status == Status::Terminated {
            self.ended_at = Some(at);
        }
    }

    fn fold_thread(&mut self, event: Placed<'_>) {
        let Some(thread) = self.thread_mut(event.thread) else {
            return;
        };
        match event.payload {
            Payload::Message { fields, flushed } => {
                queue(thread, event, QueuedKind::Message, fields);
                thread.due |= event.processed == Processed::Now && !flushed;
            }
            Payload::System { fields, .. } => queue(thread, event, QueuedKind::System, fields),
            Payload::Interrupt { fields } => queue(thread, event, QueuedKind::Interrupt, fields),
            Payload::Confirmation {
                call,
                allow,
                deny_message,
                ..
            } => {
                if let Some(call) = thread.calls.iter_mut().find(|c| c.id == *call) {
                    call.state = if *allow {
                        CallState::Allowed
                    } else {
                        CallState::Denied(deny_message.clone())
                    };
                }
            }
            Payload::CustomResult { call, .. } => answered(thread, *call),
            Payload::ToolResult { call, searches, .. } => {
                thread.usage.web_search_requests += i64::from(*searches);
                answered(thread, *call);
            }
            Payload::ToolUse {
                permission,
                serial,
                mcp,
                ..
            } => thread.calls.push(Call {
                id: event.id,
                kind: match mcp {
                    Some(_) => CallKind::Mcp,
                    None => CallKind::Builtin,
                },
                serial: *serial,
                state: match permission {
                    Permission::Allow => CallState::Ready,
                    Permission::Ask => CallState::Waiting,
                    Permission::Deny => CallState::Denied(None),
                },
            }),
            Payload::CustomToolUse { .. } => thread.calls.push(Call {
                id: event.id,
                kind: CallKind::Custom,
                serial: false,
                state: CallState::Waiting,
            }),
            Payload::ThreadRunning => {
                thread.status = Status::Running;
                thread.stop = None;
                thread.wake_at = None;
                thread.running_since = Some(event.at);
            }
            Payload::ThreadIdle { stop } => {
                stop_clock(thread, event.at);
                thread.status = Status::Idle;
                thread.was_idle = true;
                if !matches!(stop, StopReason::RequiresAction { .. }) {
                    thread.calls.clear();
                    thread.due = false;
                    thread.attempt = 0;
                    thread.sequel = StopReason::EndTurn;
                }
                thread.wake_at = None;
                thread.stop = Some(stop.clone());
            }
            Payload::ThreadRescheduled { attempt, wake_at } => {
                stop_clock(thread, event.at);
                thread.status = Status::Rescheduling;
                thread.attempt = *attempt;
                thread.wake_at = Some(*wake_at);
            }
            Payload::ThreadTerminated => {
                stop_clock(thread, event.at);
                thread.status = Status::Terminated;
                thread.ended_at = Some(event.at);
                thread.calls.clear();
                thread.queue.clear();
                thread.due = false;
                thread.wake_at = None;
            }
            Payload::RequestStart => {
                thread.request = Some(event.id);
                thread.sequel = StopReason::EndTurn;
            }
            Payload::RequestEnd {
                failed,
                usage,
                again,
                sequel,
                ..
            } => {
                thread.request = None;
                thread.usage.add(usage);
                // A request that failed is still to be answered; one that succeeded has been.
                thread.due = *failed || *again;
                thread.sequel = sequel.clone();
                if !failed {
                    thread.attempt = 0;
                }
            }
            Payload::AgentMessage { .. }
            | Payload::AgentThinking { .. }
            | Payload::Error { .. }
            | Payload::Trouble(_)
            | Payload::SessionUpdated { .. }
            | Payload::SessionUsage { .. }
            | Payload::SessionRunning
            | Payload::SessionIdle { .. }
            | Payload::SessionRescheduled
            | Payload::SessionTerminated => {}
        }
    }
}

fn answered(thread: &mut super::Thread, call: EventId) {
    thread.calls.retain(|c| c.id != call);
    thread.due |= thread.calls.is_empty();
}

fn stop_clock(thread: &mut super::Thread, at: Timestamp) {
    thread.active_us = thread.active_until(at);
    thread.running_since = None;
}

/// The queued form enters the queue, the processed one leaves it.
fn queue(thread: &mut super::Thread, event: Placed<'_>, kind: QueuedKind, fields: &str) {
    match event.processed {
        Processed::Queued => thread.queue.push(QueuedInput {
            id: event.id,
            seq: event.seq,
            kind,
            fields: fields.to_owned(),
        }),
        Processed::Now => thread.queue.retain(|input| input.id != event.id),
    }
}
