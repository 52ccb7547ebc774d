//! Named points at which a test ends the process as `kill -9` would.
//!
//! `SELFSAME_FAIL=name` aborts at the first passage, `name:3` at the third. Without the variable a
//! point costs one load.

use std::sync::{
    OnceLock,
    atomic::{AtomicU32, Ordering},
};

static ARMED: OnceLock<(String, AtomicU32)> = OnceLock::new();

/// Every point there is, so that a test can visit each.
pub const POINTS: &[&str] = &[
    "before_model_request",
    "mid_model_stream",
    "before_response_commit",
    "after_response_commit",
    "before_call_send",
    "call_running",
    "before_result_commit",
    "after_result_commit",
    "before_input_commit",
    "after_input_commit",
    "before_idle_commit",
    "before_grading",
    "mid_grading",
    "before_verdict_commit",
    "after_verdict_commit",
    "before_sandbox_create",
    "after_sandbox_create",
    "after_webhook_claim",
    "after_webhook_answer",
];

/// Arms one point. An unknown name is an error, so that no test waits for nothing.
///
/// # Errors
/// The text that names no point.
pub fn arm(spec: &str) -> Result<(), String> {
    let (name, count) = spec.split_once(':').unwrap_or((spec, "1"));
    let count: u32 = count
        .parse()
        .map_err(|_| format!("`{spec}`: the count is not a number"))?;
    if !POINTS.contains(&name) {
        return Err(format!(
            "`{name}` is not a fail point; there are {}",
            POINTS.join(", ")
        ));
    }
    let _ = ARMED.set((name.to_owned(), AtomicU32::new(count.max(1))));
    Ok(())
}

/// Passes a point.
pub(crate) fn point(name: &'static str) {
    if let Some((armed, left)) = ARMED.get()
        && armed == name
        && left.fetch_sub(1, Ordering::SeqCst) == 1
    {
        tracing::error!(name, "fail point: aborting");
        std::process::abort();
    }
}
