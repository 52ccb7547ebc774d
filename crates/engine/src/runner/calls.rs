//! Calls: given to the sandbox, to the web or to an MCP server, and their results to the log.

use std::sync::Arc;

use selfsame_sandbox::Call;
use selfsame_types::{EventId, ThreadId};
use tracing::Instrument as _;

use super::{
    Done, Runner, Stopped,
    execute::{Executed, execute, failure},
    mcp,
};
use crate::{
    fail,
    sandboxes::shell_of,
    web::{Caller, WebCall},
};

impl Runner {
    /// Executes a call, unless it is being executed.
    pub(super) async fn call(&mut self, thread: ThreadId, id: EventId) -> Result<(), Stopped> {
        if self.calling.contains_key(&id) {
            return Ok(());
        }
        self.load(thread).await?;
        let spec = self.spec_of(thread).await?;
        let transcript = self.transcripts.entry(thread).or_default();
        let Some(info) = transcript.call(id).cloned() else {
            // The state knows a call that the log does not: only a fault of ours can do that.
            return Err(Stopped::Contradiction("a pending call is not in the log"));
        };
        let web = WebCall::of(&spec.web_rules(), &info.name, transcript);
        let caller = Caller {
            session: self.session,
            epoch: self.epoch,
            call: id,
            in_doubt: self.in_doubt.contains(&id),
        };
        let inner = Arc::clone(&self.inner);
        let (session, epoch) = (self.session, self.epoch);
        let sent = self.life_before.filter(|_| self.in_doubt.contains(&id));
        let handle = self.jobs.spawn(async move {
            // JSON that the model may write and that no program can hold: numbers beyond every
            // float, hundreds of nested brackets.
            let executed = match (serde_json::from_str(info.input.get()), web) {
                (Ok(input), _) if info.mcp_server.is_some() => {
                    let server = info.mcp_server.unwrap_or_default();
                    let span = tracing::info_span!("mcp_call", %session, call = %id);
                    mcp::call(&inner, &spec, caller, &server, &info.name, input)
                        .instrument(span)
                        .await
                }
                (Ok(input), Some(web)) => {
                    let span =
                        tracing::info_span!("tool_call", %session, call = %id, tool = info.name);
                    web.run(&inner, caller, &input)
                        .instrument(span)
                        .await
                        .into()
                }
                (Ok(input), None) => {
                    let call = Call {
                        id: id.0,
                        shell: shell_of(thread),
                        tool: info.name,
                        input,
                        spill_name: id.to_string(),
                    };
                    let span =
                        tracing::info_span!("tool_call", %session, call = %id, tool = call.tool);
                    execute(&inner, session, epoch, &call, sent)
                        .instrument(span)
                        .await
                }
                (Err(error), _) => failure(&format!(
                    "The input of this call cannot be read, so it was not run: {error}"
                ))
                .into(),
            };
            Done::Called {
                thread,
                call: id,
                executed,
            }
        });
        self.calling.insert(id, handle);
        Ok(())
    }

    /// A call has ended: its result goes to the log, and with it the start of the next request when it was
    /// the last one.
    pub(super) async fn called(
        &mut self,
        thread: ThreadId,
        call: EventId,
        executed: Executed,
    ) -> Result<(), Stopped> {
        let Executed {
            result,
            new_life,
            trouble,
        } = executed;
        if self.calling.remove(&call).is_none() {
            return Ok(());
        }
        self.in_doubt.remove(&call);
        if self.cancelled.remove(&call) {
            self.stopped.entry(thread).or_default().push((call, result));
            return Ok(());
        }
        // Calls beside each other lose it together, and it is told once.
        let lost = new_life.is_some() && new_life != self.life_told;
        self.life_told = new_life.or(self.life_told);
        let mut troubles = self.inner.sandboxes.unreachable(self.session);
        troubles.extend(trouble.and_then(|trouble| self.tools.news(thread, trouble)));
        fail::point("before_result_commit");
        let appended = self
            .append_and_begin(&[], |step, _| {
                if lost {
                    step.sandbox_lost(thread);
                }
                step.trouble(thread, &troubles);
                step.finish_call(thread, call, result.clone());
            })
            .await?;
        fail::point("after_result_commit");
        self.acknowledge(call);
        self.send_begun(appended).await
    }

    /// The result is durable: the hands may forget it.
    pub(super) fn acknowledge(&self, call: EventId) {
        if let Some(sandbox) = self.inner.sandboxes.connected(self.session) {
            self.inner.tasks.spawn(async move {
                // Not heard: the hands keep it until their next start.
                let _ = sandbox.ack(call.0).await;
            });
        }
    }
}
