//! One tool call, from the session's sandbox to the content of its result event.

use std::{sync::Arc, time::Duration};

use selfsame_sandbox::{Call, Content, SandboxError};
use selfsame_types::SessionId;
use serde_json::value::to_raw_value;
use uuid::Uuid;

use super::{STORE_RETRIES, STORE_RETRY};
use crate::{
    Inner, fail,
    images::ImageError,
    machine::{CallResult, Trouble},
    sandboxes::AcquireError,
};

/// Attempts to give a call a sandbox before it gets an error result. They span some seconds: a loaded daemon is
/// slow to notice that a container has died, and calls it running meanwhile.
const SANDBOX_ATTEMPTS: u32 = 6;

const RESTARTED: &str = "The sandbox was restarted while this call was under way, and nothing runs in it \
    any more. Whether the call took effect is unknown: check before you repeat it.";
const REPLACED: &str = "The sandbox was lost while this call was under way and replaced by a new one: the \
    files and programs in it are gone, except for what this session has mounted.";

/// What became of a call.
#[derive(Debug)]
pub(crate) struct Executed {
    pub(crate) result: CallResult,
    /// The life of the hands that began in the middle of it.
    pub(crate) new_life: Option<Uuid>,
    /// What the session is told besides.
    pub(crate) trouble: Option<Trouble>,
}

impl From<CallResult> for Executed {
    fn from(result: CallResult) -> Self {
        Self {
            result,
            new_life: None,
            trouble: None,
        }
    }
}

/// Executes a call in the session's sandbox. Whatever happens, there is a result.
///
/// `sent` is the life of the hands that may know this call already. Another life cannot tell what
/// became of it, so from there on it is never sent again.
pub(crate) async fn execute(
    inner: &Arc<Inner>,
    session: SessionId,
    epoch: i64,
    call: &Call,
    mut sent: Option<Uuid>,
) -> Executed {
    // The sandbox that it was sent to by this server.
    let mut known = None;
    let mut failures = 0;
    let mut outages = 0;
    loop {
        let problem = match inner.sandboxes.acquire(session, epoch).await {
            Ok(sandbox) => {
                let life = sandbox.boot_id();
                if sent.is_some_and(|before| before != life) {
                    let replaced = known.is_some_and(|before| before != *sandbox.handle());
                    return Executed {
                        result: failure(if replaced { REPLACED } else { RESTARTED }),
                        new_life: Some(life),
                        trouble: None,
                    };
                }
                known = Some(sandbox.handle().clone());
                fail::point("before_call_send");
                sent = Some(life);
                match watch(sandbox.call(call)).await {
                    Ok(result) => {
                        if inner.sandboxes.outputs_told(session, result.outputs) {
                            inner.capture_soon(session);
                        }
                        return convert(result).into();
                    }
                    Err(SandboxError::Refused(reason)) => return failure(&reason).into(),
                    Err(error) => AcquireError::from(error),
                }
            }
            Err(error) => error,
        };
        if matches!(&problem, AcquireError::Store(error) if error.is_transient())
            && outages < STORE_RETRIES
        {
            outages += 1;
            tokio::time::sleep(STORE_RETRY).await;
            continue;
        }
        if let AcquireError::Image(ImageError::Failed(reason)) = &problem {
            return failure(reason).into();
        }
        failures += 1;
        tracing::warn!(%session, error = %problem, failures, "a sandbox call failed");
        if failures >= SANDBOX_ATTEMPTS {
            metrics::counter!("selfsame_sandbox_failures_total").increment(1);
            return failure(&format!("The sandbox is not available: {problem}")).into();
        }
        if !matches!(problem, AcquireError::Sandbox(SandboxError::Lost)) {
            tokio::time::sleep(STORE_RETRY * failures).await;
        }
    }
}

impl Inner {
    /// Captures a session's outputs. What cannot be had now is captured the next time.
    pub(crate) async fn capture(&self, session: SessionId) {
        if let Err(error) = self.sandboxes.capture(session).await {
            tracing::warn!(%session, %error, "cannot capture outputs yet");
        }
    }

    /// The same beside what is going on, so that a client sees outputs while the agent works.
    fn capture_soon(self: &Arc<Self>, session: SessionId) {
        let inner = Arc::clone(self);
        self.tasks
            .spawn(async move { inner.capture(session).await });
    }
}

/// Lets a crash test end the server while the call runs.
async fn watch<T>(running: impl Future<Output = T>) -> T {
    let mut running = std::pin::pin!(running);
    tokio::select! {
        biased;
        done = &mut running => return done,
        () = tokio::time::sleep(Duration::from_millis(50)) => fail::point("call_running"),
    }
    running.await
}

pub(super) fn failure(text: &str) -> CallResult {
    convert(selfsame_sandbox::CallResult::error(text))
}

/// A result of the hands as event content.
fn convert(result: selfsame_sandbox::CallResult) -> CallResult {
    let blocks: Vec<serde_json::Value> = result
        .content
        .into_iter()
        .map(|content| match content {
            Content::Text(text) => serde_json::json!({"type": "text", "text": text}),
            Content::Image {
                media_type,
                data_base64,
            } => serde_json::json!({
                "type": "image",
                "source": {"type": "base64", "media_type": media_type, "data": data_base64},
            }),
            Content::Document {
                media_type,
                data_base64,
            } => serde_json::json!({
                "type": "document",
                "source": {"type": "base64", "media_type": media_type, "data": data_base64},
            }),
        })
        .collect();
    CallResult {
        content: to_raw_value(&blocks).expect("blocks serialize"),
        is_error: result.is_error,
        searches: 0,
    }
}
