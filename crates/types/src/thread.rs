//! Threads: the conversations inside a session.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    SessionId, ThreadId, Timestamp,
    agent::{AgentSpec, ThreadAgent},
    multiagent::{ADVISOR, Advisor},
    session::{RunningTime, SessionStatus, SessionUsage, TokenTotals},
    wire,
};

wire::literals! {
    ThreadType = "session_thread";
    InlineType = "inline";
}

/// A thread, as the API shows it.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Thread {
    #[schema(inline)]
    pub r#type: ThreadType,
    pub id: ThreadId,
    pub session_id: SessionId,
    /// Null on the primary thread.
    #[schema(required)]
    pub parent_thread_id: Option<ThreadId>,
    pub status: SessionStatus,
    pub agent: ThreadDefinition,
    /// Null until the thread first runs.
    #[schema(required)]
    pub stats: Option<ThreadStats>,
    /// Null until the thread is first idle.
    #[schema(required)]
    pub usage: Option<SessionUsage>,
    #[schema(required)]
    pub workflow_run_id: Option<String>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    #[schema(required)]
    pub archived_at: Option<Timestamp>,
}

/// Who speaks in a thread, as it was when the thread was created.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(untagged)]
#[schema(discriminator(property_name = "type", mapping(
    ("agent" = "#/components/schemas/ThreadAgent"),
    ("advisor" = "#/components/schemas/Advisor"),
    ("inline" = "#/components/schemas/InlineAgent"),
)))]
pub enum ThreadDefinition {
    Agent(Box<ThreadAgent>),
    Advisor(Advisor),
    Inline(Box<InlineAgent>),
}

wire::tagged_union! { ThreadDefinition:
    "agent" => Agent,
    "advisor" => Advisor,
    "inline" => Inline,
}

/// An agent that another agent has made up. It is not saved, and so has neither id nor version.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct InlineAgent {
    #[schema(inline)]
    pub r#type: InlineType,
    #[serde(flatten)]
    pub spec: AgentSpec,
}

impl ThreadDefinition {
    /// The name under which events show it.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Agent(agent) => &agent.spec.name,
            Self::Advisor(_) => ADVISOR,
            Self::Inline(agent) => &agent.spec.name,
        }
    }

    /// What it is and can do. An advisor has a model and nothing else.
    #[must_use]
    pub fn spec(&self) -> Option<&AgentSpec> {
        match self {
            Self::Agent(agent) => Some(&agent.spec),
            Self::Advisor(_) => None,
            Self::Inline(agent) => Some(&agent.spec),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, ToSchema)]
pub struct ThreadStats {
    pub active_seconds: f64,
    /// Since creation, until the thread is archived or terminated.
    pub duration_seconds: f64,
    pub startup_seconds: f64,
}

/// The parts of a thread that the engine writes with each step. Stored as JSON.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ThreadView {
    pub tokens: TokenTotals,
    pub running: RunningTime,
    /// When the thread was archived or terminated.
    pub ended_at: Option<Timestamp>,
    /// It has been idle after running: its usage is shown.
    pub was_idle: bool,
    /// Microseconds from creation to the first model request.
    pub startup_micros: i64,
}

impl ThreadView {
    #[must_use]
    pub fn stats(&self, created_at: Timestamp, now: Timestamp) -> Option<ThreadStats> {
        // Set by the first start.
        self.running.since?;
        let until = self.ended_at.unwrap_or(now);
        Some(ThreadStats {
            active_seconds: self.running.total_seconds(until),
            duration_seconds: until.seconds_since(created_at),
            startup_seconds: Timestamp::from_micros(self.startup_micros)
                .seconds_since(Timestamp::from_micros(0)),
        })
    }

    #[must_use]
    pub fn usage(&self, now: Timestamp) -> Option<SessionUsage> {
        let until = self.ended_at.unwrap_or(now);
        self.was_idle
            .then(|| self.tokens.usage(self.running.any_seconds(until)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stats_and_usage_appear_when_they_mean_something() {
        let at = Timestamp::from_micros;
        let mut view = ThreadView::default();
        assert!(view.stats(at(0), at(9)).is_none() && view.usage(at(9)).is_none());
        view.running.start(at(1_000_000));
        let stats = view.stats(at(0), at(3_000_000)).unwrap();
        assert!((stats.active_seconds - 2.0).abs() < 1e-9);
        assert!(view.usage(at(9)).is_none());
        view.was_idle = true;
        assert!(view.usage(at(9)).is_some());
    }
}
