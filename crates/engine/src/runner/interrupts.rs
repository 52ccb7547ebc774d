//! Interrupts: what is in flight is stopped, then the log says so.

use std::{sync::Arc, time::Duration};

use selfsame_types::{EventId, ThreadId};

use super::{Done, Runner, Stopped};
use crate::{fail, transcript::CallInfo, web::is_web};

/// A cancelled call has two seconds to end, and its sandbox this long to say so.
const CANCEL_PATIENCE: Duration = Duration::from_secs(10);

impl Runner {
    /// Stops what is in flight; once nothing is, carries the interrupt out.
    pub(super) async fn interrupt(&mut self, thread: ThreadId) -> Result<(), Stopped> {
        if let Some((_, handle)) = self.waiting.remove(&thread) {
            handle.abort();
        }
        if thread == self.machine.primary().id {
            self.stop_grading();
        }
        if let Some(handle) = self.equipping.take() {
            handle.abort();
        }
        self.tools.interrupt(thread);
        let Some(state) = self.machine.thread(thread) else {
            return Ok(());
        };
        if let Some(request) = state.request
            && let Some(handle) = self.asking.remove(&request)
        {
            handle.abort();
        }
        let calls: Vec<_> = state.calls.iter().map(|c| c.id).collect();
        for call in &calls {
            // Nothing of these goes on in a sandbox; an MCP server is told by letting go.
            let transcript = self.transcripts.get(&thread);
            let here = |info: &CallInfo| info.mcp_server.is_some() || is_web(&info.name);
            if transcript.is_some_and(|t| t.call(*call).is_some_and(here))
                && let Some(handle) = self.calling.remove(call)
            {
                handle.abort();
            }
        }
        let (running, others): (Vec<_>, Vec<_>) = calls
            .into_iter()
            .partition(|id| self.calling.contains_key(id));
        for call in &running {
            if self.cancelled.insert(*call) {
                self.cancel(*call);
                let call = *call;
                self.jobs.spawn(async move {
                    tokio::time::sleep(CANCEL_PATIENCE).await;
                    Done::Overdue { call }
                });
            }
        }
        if running.is_empty() && self.machine.may_interrupt(thread) {
            for call in others {
                // A server before us may have started it.
                if self.in_doubt.remove(&call) && self.life_before.is_some() {
                    self.cancel(call);
                }
            }
            let results = self.stopped.remove(&thread).unwrap_or_default();
            fail::point("before_idle_commit");
            self.append(&[], |step| step.interrupt(thread, results.clone()))
                .await?;
            for (call, _) in results {
                self.acknowledge(call);
            }
        }
        Ok(())
    }

    fn cancel(&self, call: EventId) {
        let inner = Arc::clone(&self.inner);
        let (session, epoch) = (self.session, self.epoch);
        self.inner.tasks.spawn(async move {
            let cancelled = match inner.sandboxes.acquire(session, epoch).await {
                Ok(sandbox) => sandbox.cancel(call.0).await.map_err(Into::into),
                Err(error) => Err(error),
            };
            if let Err(error) = cancelled {
                tracing::warn!(%session, %error, "cannot cancel a call");
            }
        });
    }
}
