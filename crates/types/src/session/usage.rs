//! What a session has used, and the running sums it is computed from.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::params::Money;
use crate::{OutcomeId, Timestamp, wire};

wire::literals! { OutcomeEvaluationType = "outcome_evaluation"; }

/// `usage` of a session or thread.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct SessionUsage {
    /// Without what came from or went into a cache.
    pub input_tokens: u64,
    pub output_tokens: u64,
    pub cache_read_input_tokens: u64,
    pub cache_creation: CacheCreation,
    /// Seconds in which any thread ran.
    pub active_seconds: f64,
    /// Null: no prices are known.
    #[schema(required)]
    pub list_cost: Option<Money>,
    pub server_tool_use: ServerToolUse,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct CacheCreation {
    pub ephemeral_5m_input_tokens: u64,
    pub ephemeral_1h_input_tokens: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct ServerToolUse {
    pub web_search_requests: u64,
    /// Always 0, as upstream.
    pub web_fetch_requests: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, ToSchema)]
pub struct SessionStats {
    /// Seconds of running, added up over threads.
    pub active_seconds: f64,
    /// Seconds since creation, until termination.
    pub duration_seconds: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OutcomeResult {
    Pending,
    Running,
    Evaluating,
    Satisfied,
    MaxIterationsReached,
    Failed,
    Interrupted,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OutcomeEvaluation {
    #[schema(inline)]
    pub r#type: OutcomeEvaluationType,
    pub outcome_id: OutcomeId,
    pub description: String,
    pub result: OutcomeResult,
    /// From 0.
    pub iteration: u32,
    #[schema(required)]
    pub explanation: Option<String>,
    #[schema(required)]
    pub completed_at: Option<Timestamp>,
}

/// The parts of a session that the engine writes with each step. Stored as JSON; never shown as it
/// is. Missing keys read as nothing yet, so that later versions can add some.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SessionView {
    pub tokens: TokenTotals,
    pub running: RunningTime,
    /// When the session was terminated or archived.
    pub ended_at: Option<Timestamp>,
    pub outcome_evaluations: Vec<OutcomeEvaluation>,
}

/// Tokens and billed calls so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TokenTotals {
    pub input_tokens: u64,
    pub output_tokens: u64,
    pub cache_read_input_tokens: u64,
    pub ephemeral_5m_input_tokens: u64,
    pub ephemeral_1h_input_tokens: u64,
    pub web_search_requests: u64,
}

/// How long threads have run. Every change of a thread's status passes through it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RunningTime {
    /// Threads that run now.
    pub threads: u32,
    /// Until when the sums below are settled.
    pub since: Option<Timestamp>,
    /// Microseconds in which any thread ran.
    pub any_micros: i64,
    /// Microseconds of running, added up over threads.
    pub total_micros: i64,
}

impl TokenTotals {
    pub fn add(&mut self, other: &Self) {
        self.input_tokens += other.input_tokens;
        self.output_tokens += other.output_tokens;
        self.cache_read_input_tokens += other.cache_read_input_tokens;
        self.ephemeral_5m_input_tokens += other.ephemeral_5m_input_tokens;
        self.ephemeral_1h_input_tokens += other.ephemeral_1h_input_tokens;
        self.web_search_requests += other.web_search_requests;
    }

    /// With the time that belongs to it.
    #[must_use]
    pub fn usage(&self, active_seconds: f64) -> SessionUsage {
        SessionUsage {
            input_tokens: self.input_tokens,
            output_tokens: self.output_tokens,
            cache_read_input_tokens: self.cache_read_input_tokens,
            cache_creation: CacheCreation {
                ephemeral_5m_input_tokens: self.ephemeral_5m_input_tokens,
                ephemeral_1h_input_tokens: self.ephemeral_1h_input_tokens,
            },
            active_seconds,
            list_cost: None,
            server_tool_use: ServerToolUse {
                web_search_requests: self.web_search_requests,
                web_fetch_requests: 0,
            },
        }
    }
}

impl RunningTime {
    /// A thread begins to run.
    pub fn start(&mut self, at: Timestamp) {
        self.settle(at);
        self.threads += 1;
    }

    /// A thread stops running.
    pub fn stop(&mut self, at: Timestamp) {
        self.settle(at);
        self.threads = self.threads.saturating_sub(1);
    }

    /// Seconds in which any thread ran, until `now`.
    #[must_use]
    pub fn any_seconds(&self, now: Timestamp) -> f64 {
        let mut settled = *self;
        settled.settle(now);
        seconds(settled.any_micros)
    }

    /// Seconds of running added up over threads, until `now`.
    #[must_use]
    pub fn total_seconds(&self, now: Timestamp) -> f64 {
        let mut settled = *self;
        settled.settle(now);
        seconds(settled.total_micros)
    }

    fn settle(&mut self, at: Timestamp) {
        if self.threads > 0
            && let Some(since) = self.since
        {
            let passed = (at.as_micros() - since.as_micros()).max(0);
            self.any_micros += passed;
            self.total_micros += passed.saturating_mul(i64::from(self.threads));
        }
        // A clock that steps back must not make the same time count twice.
        self.since = self.since.max(Some(at));
    }
}

impl SessionView {
    #[must_use]
    pub fn usage(&self, now: Timestamp) -> SessionUsage {
        self.tokens
            .usage(self.running.any_seconds(self.ended_at.unwrap_or(now)))
    }

    #[must_use]
    pub fn stats(&self, created_at: Timestamp, now: Timestamp) -> SessionStats {
        let until = self.ended_at.unwrap_or(now);
        SessionStats {
            active_seconds: self.running.total_seconds(until),
            duration_seconds: until.seconds_since(created_at),
        }
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "microseconds of centuries fit an f64"
)]
fn seconds(micros: i64) -> f64 {
    micros as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    #[test]
    fn overlapping_threads_count_once_and_twice() {
        let mut running = RunningTime::default();
        running.start(at(10));
        running.start(at(12));
        running.stop(at(15));
        running.stop(at(20));
        assert!((running.any_seconds(at(100)) - 10.0).abs() < 1e-9);
        assert!((running.total_seconds(at(100)) - 13.0).abs() < 1e-9);
        running.start(at(100));
        assert!((running.any_seconds(at(101)) - 11.0).abs() < 1e-9);
        // Steps back, forward again: no time twice.
        running.stop(at(90));
        running.start(at(95));
        assert!((running.any_seconds(at(102)) - 12.0).abs() < 1e-9);
    }

    #[test]
    fn a_stop_without_a_start_and_a_fresh_view_are_nothing() {
        let mut running = RunningTime::default();
        running.stop(at(5));
        assert!(running.total_seconds(at(9)) == 0.0);
        let view: SessionView = serde_json::from_str("{}").unwrap();
        assert_eq!(view, SessionView::default());
        let text = serde_json::to_string(&view).unwrap();
        assert_eq!(serde_json::from_str::<SessionView>(&text).unwrap(), view);
    }

    #[test]
    fn an_ended_session_does_not_age() {
        let mut view = SessionView::default();
        view.running.start(at(1));
        view.ended_at = Some(at(4));
        let stats = view.stats(at(0), at(1000));
        assert!((stats.duration_seconds - 4.0).abs() < 1e-9);
        assert!((stats.active_seconds - 3.0).abs() < 1e-9);
    }
}
