//! Whose view of a session's log is shown: the session's own, or one thread's.
//!
//! The session's view is the primary thread's log and what other threads' events clients must see there.
//! An event stands in the log once; a call of a child, and its answer, say in the session's view whose
//! they are.

use std::borrow::Cow;

use selfsame_store::Row;
use selfsame_types::{ThreadId, event::EventType};

#[derive(Debug, Clone, Copy)]
pub(crate) enum View {
    Session { primary: ThreadId },
    Thread(ThreadId),
}

impl View {
    /// The view of a thread. The primary thread's is the session's.
    pub(crate) fn thread(id: ThreadId, is_primary: bool) -> Self {
        if is_primary {
            Self::Session { primary: id }
        } else {
            Self::Thread(id)
        }
    }

    /// The thread that a list is limited to.
    pub(crate) fn only(self) -> Option<ThreadId> {
        match self {
            Self::Session { .. } => None,
            Self::Thread(thread) => Some(thread),
        }
    }

    pub(crate) fn shows(self, row: &Row) -> bool {
        match self {
            Self::Session { .. } => row.on_session,
            Self::Thread(thread) => row.thread == thread,
        }
    }

    /// Previews are for those who read their thread; a child's never reach the session's stream.
    pub(crate) fn previews(self, of: ThreadId) -> bool {
        match self {
            Self::Session { primary: thread } | Self::Thread(thread) => of == thread,
        }
    }

    /// Whether nothing follows this event.
    pub(crate) fn ends(self, row: &Row) -> bool {
        match self {
            Self::Session { .. } => row.event_type == EventType::SessionStatusTerminated,
            Self::Thread(thread) => {
                row.thread == thread && row.event_type == EventType::SessionThreadStatusTerminated
            }
        }
    }

    /// The event as this view shows it.
    pub(crate) fn body(self, row: &Row) -> Cow<'_, str> {
        match self {
            Self::Session { primary } if row.thread != primary && names_thread(row.event_type) => {
                let open = row.body.strip_suffix('}').unwrap_or(&row.body);
                Cow::Owned(format!("{open},\"session_thread_id\":\"{}\"}}", row.thread))
            }
            _ => Cow::Borrowed(&row.body),
        }
    }
}

/// Calls that wait for a client, and its answers.
fn names_thread(event: EventType) -> bool {
    matches!(
        event,
        EventType::AgentToolUse
            | EventType::AgentMcpToolUse
            | EventType::AgentCustomToolUse
            | EventType::UserToolConfirmation
            | EventType::UserCustomToolResult
            | EventType::UserToolResult
    )
}

#[cfg(test)]
mod tests {
    use selfsame_types::EventId;

    use super::*;

    fn row(thread: ThreadId, event_type: EventType, on_session: bool) -> Row {
        Row {
            seq: 1,
            id: EventId::new(),
            thread,
            on_session,
            event_type,
            processed_at: None,
            body: "{\"type\":\"t\"}".into(),
            private: None,
        }
    }

    #[test]
    fn a_childs_call_is_named_in_the_sessions_view_alone() {
        let (primary, child) = (ThreadId::new(), ThreadId::new());
        let session = View::thread(primary, true);
        let own = View::thread(child, false);
        let call = row(child, EventType::AgentCustomToolUse, true);
        assert!(session.shows(&call) && own.shows(&call));
        let expected = format!("{{\"type\":\"t\",\"session_thread_id\":\"{child}\"}}");
        assert_eq!(session.body(&call), expected);
        assert_eq!(own.body(&call), "{\"type\":\"t\"}");
        let message = row(child, EventType::AgentMessage, false);
        assert!(!session.shows(&message) && own.shows(&message));
        for event in [EventType::AgentCustomToolUse, EventType::UserMessage] {
            let row = row(primary, event, true);
            assert!(session.shows(&row) && !own.shows(&row));
            assert_eq!(session.body(&row), "{\"type\":\"t\"}");
        }
        // It names its thread by itself.
        let idle = row(child, EventType::SessionThreadStatusIdle, true);
        assert_eq!(session.body(&idle), "{\"type\":\"t\"}");
    }

    #[test]
    fn each_view_has_its_end_and_its_previews() {
        let (primary, child) = (ThreadId::new(), ThreadId::new());
        let session = View::thread(primary, true);
        let own = View::thread(child, false);
        let over = row(child, EventType::SessionThreadStatusTerminated, true);
        assert!(own.ends(&over) && !session.ends(&over));
        let over = row(primary, EventType::SessionStatusTerminated, true);
        assert!(session.ends(&over) && !own.ends(&over));
        assert!(session.previews(primary) && !session.previews(child));
        assert!(own.previews(child) && !own.previews(primary));
    }
}
