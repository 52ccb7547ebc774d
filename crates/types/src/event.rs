//! Events: the names, what clients may send, and how a stored event becomes the text clients see.

use serde::Serialize;

use crate::{EventId, ThreadId, Timestamp};

macro_rules! event_types {
    ($($variant:ident = $name:literal,)*) => {
        /// Every persisted event type, in the order of the API's own list.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum EventType { $($variant,)* }

        impl EventType {
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            #[must_use]
            pub fn parse(text: &str) -> Option<Self> {
                match text { $($name => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

event_types! {
    UserMessage = "user.message",
    UserInterrupt = "user.interrupt",
    UserToolConfirmation = "user.tool_confirmation",
    UserCustomToolResult = "user.custom_tool_result",
    UserDefineOutcome = "user.define_outcome",
    UserToolResult = "user.tool_result",
    SystemMessage = "system.message",
    AgentMessage = "agent.message",
    AgentThinking = "agent.thinking",
    AgentToolUse = "agent.tool_use",
    AgentToolResult = "agent.tool_result",
    AgentMcpToolUse = "agent.mcp_tool_use",
    AgentMcpToolResult = "agent.mcp_tool_result",
    AgentCustomToolUse = "agent.custom_tool_use",
    AgentThreadMessageReceived = "agent.thread_message_received",
    AgentThreadMessageSent = "agent.thread_message_sent",
    AgentThreadContextCompacted = "agent.thread_context_compacted",
    SessionError = "session.error",
    SessionStatusRescheduled = "session.status_rescheduled",
    SessionStatusRunning = "session.status_running",
    SessionStatusIdle = "session.status_idle",
    SessionStatusTerminated = "session.status_terminated",
    SessionUpdated = "session.updated",
    SessionUsage = "session.usage",
    SessionThreadCreated = "session.thread_created",
    SessionThreadStatusRunning = "session.thread_status_running",
    SessionThreadStatusIdle = "session.thread_status_idle",
    SessionThreadStatusRescheduled = "session.thread_status_rescheduled",
    SessionThreadStatusTerminated = "session.thread_status_terminated",
    SpanModelRequestStart = "span.model_request_start",
    SpanModelRequestEnd = "span.model_request_end",
    SpanOutcomeEvaluationStart = "span.outcome_evaluation_start",
    SpanOutcomeEvaluationOngoing = "span.outcome_evaluation_ongoing",
    SpanOutcomeEvaluationEnd = "span.outcome_evaluation_end",
    WorkflowRunCreated = "workflow_run.created",
    WorkflowRunStatusRunning = "workflow_run.status_running",
    WorkflowRunStatusIdle = "workflow_run.status_idle",
    WorkflowRunStatusEnded = "workflow_run.status_ended",
    WorkflowRunError = "workflow_run.error",
    WorkflowRunPhaseStarted = "workflow_run.phase_started",
    WorkflowRunPhaseEnded = "workflow_run.phase_ended",
}

/// When an appended event counts as processed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Processed {
    /// At the append itself.
    Now,
    /// Later: this is the queued form of an input; its processed form follows under the same id.
    Queued,
}

/// An event about to be appended. Position and time are given by the append.
#[derive(Debug, Clone, PartialEq)]
pub struct NewEvent {
    pub id: EventId,
    pub event_type: EventType,
    /// The thread whose log this is.
    pub thread: ThreadId,
    /// Shown in the session's own list and stream: all of the primary thread, some of the others.
    pub on_session: bool,
    pub processed: Processed,
    /// The type's own fields: the inside of a JSON object, without braces, possibly empty.
    pub fields: String,
    /// JSON that only the engine reads again: thinking signatures, the model's own call ids.
    pub private: Option<String>,
}

impl NewEvent {
    /// The exact text that is stored and that clients see.
    #[must_use]
    pub fn render(&self, at: Timestamp) -> String {
        let mut text = String::with_capacity(self.fields.len() + 128);
        text.push_str("{\"type\":\"");
        text.push_str(self.event_type.as_str());
        text.push_str("\",\"id\":\"");
        text.push_str(&self.id.to_string());
        match self.processed {
            Processed::Now => {
                text.push_str("\",\"processed_at\":\"");
                text.push_str(&at.to_string());
                text.push('"');
            }
            Processed::Queued => text.push_str("\",\"processed_at\":null"),
        }
        if !self.fields.is_empty() {
            text.push(',');
            text.push_str(&self.fields);
        }
        text.push('}');
        text
    }
}

/// Writes a struct or map as the inside of a JSON object.
///
/// # Panics
/// When `value` does not serialize to an object, which is a mistake in this program.
pub fn fields<T: Serialize>(value: &T) -> String {
    let text = serde_json::to_string(value).expect("event fields serialize");
    text.strip_prefix('{')
        .and_then(|rest| rest.strip_suffix('}'))
        .expect("event fields are an object")
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_has_all_41_names_and_each_reads_back() {
        assert_eq!(EventType::ALL.len(), 41);
        for event_type in EventType::ALL {
            assert_eq!(EventType::parse(event_type.as_str()), Some(*event_type));
        }
    }

    #[test]
    fn rendered_text_is_json_with_and_without_fields() {
        let mut event = NewEvent {
            id: EventId::new(),
            event_type: EventType::AgentThinking,
            thread: ThreadId::new(),
            on_session: true,
            processed: Processed::Now,
            fields: String::new(),
            private: None,
        };
        let at = Timestamp::from_micros(1);
        let json: serde_json::Value = serde_json::from_str(&event.render(at)).unwrap();
        assert_eq!(json["processed_at"], "1970-01-01T00:00:00.000001Z");
        event.processed = Processed::Queued;
        event.fields = fields(&serde_json::json!({"content": []}));
        let json: serde_json::Value = serde_json::from_str(&event.render(at)).unwrap();
        assert!(json["processed_at"].is_null() && json["content"].is_array());
    }
}
