//! MCP servers in a thread's turn: asked for their tools before the first request, called when the model
//! wants it, and each told to the client once when it fails.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use selfsame_types::ThreadId;
use serde_json::Value;
use tokio::task::AbortHandle;

use super::{Done, Runner, Stopped, execute::Executed};
use crate::{
    Inner,
    machine::{About, Status, Trouble},
    mcp::{Called, Toolset, failure},
    prompt::SharedSpec,
    web::Caller,
};

const IN_DOUBT: &str = "The server was restarted while this call was under way. Whether it reached the MCP \
    server and took effect is unknown; it was not made again. Check before you repeat it.";

/// What threads know of their servers, for one turn each.
#[derive(Debug, Default)]
pub(super) struct Tools {
    asking: HashMap<ThreadId, AbortHandle>,
    known: HashMap<ThreadId, Arc<Toolset>>,
    /// Servers whose failure the client has been told of.
    told: HashMap<ThreadId, HashSet<String>>,
}

impl Tools {
    /// What a thread's model is offered.
    pub(super) fn of(&self, thread: ThreadId) -> Arc<Toolset> {
        self.known.get(&thread).cloned().unwrap_or_default()
    }

    /// An interrupt ends the asking.
    pub(super) fn interrupt(&mut self, thread: ThreadId) {
        if let Some(handle) = self.asking.remove(&thread) {
            handle.abort();
        }
    }

    /// Those of the troubles that the client has not been told of in this turn.
    fn news(&mut self, thread: ThreadId, mut troubles: Vec<Trouble>) -> Vec<Trouble> {
        let told = self.told.entry(thread).or_default();
        troubles.retain(|trouble| match &trouble.about {
            About::McpServer(name) => told.insert(name.clone()),
            _ => true,
        });
        troubles
    }
}

impl Runner {
    /// Whether a thread's servers have been asked what they can do, in this turn and since they said that
    /// it has changed.
    pub(super) fn knows_tools(&self, thread: ThreadId) -> bool {
        let agent = &self.spec.agent.spec;
        agent.mcp_servers.is_empty()
            || (self.tools.known.contains_key(&thread)
                && !self.inner.mcp.has_changed(self.session, agent))
    }

    /// Sees to it that they are asked. Answers whether that is done.
    pub(super) fn learn_tools(&mut self, thread: ThreadId) -> bool {
        if self.knows_tools(thread) {
            return true;
        }
        if !self.tools.asking.contains_key(&thread) {
            let (inner, session) = (Arc::clone(&self.inner), self.session);
            let spec = Arc::clone(&self.spec);
            let handle = self.jobs.spawn(async move {
                let (toolset, troubles) =
                    inner.mcp.toolset(&inner, session, &spec.agent.spec).await;
                Done::Learned {
                    thread,
                    toolset: Arc::new(toolset),
                    troubles,
                }
            });
            self.tools.asking.insert(thread, handle);
        }
        false
    }

    pub(super) async fn learned(
        &mut self,
        thread: ThreadId,
        toolset: Arc<Toolset>,
        troubles: Vec<Trouble>,
    ) -> Result<(), Stopped> {
        self.tools.asking.remove(&thread);
        self.tools.known.insert(thread, toolset);
        let news = self.tools.news(thread, troubles);
        self.append(None, |step| step.trouble(thread, &news))
            .await?;
        Ok(())
    }

    /// The trouble that a call has found, if it is news.
    pub(super) fn call_trouble(
        &mut self,
        thread: ThreadId,
        found: Option<Trouble>,
    ) -> Vec<Trouble> {
        self.tools.news(thread, found.into_iter().collect())
    }

    /// A thread whose turn is over asks anew in its next one.
    pub(super) fn forget_tools(&mut self) {
        let machine = &self.machine;
        let over = |thread: &ThreadId| {
            machine
                .thread(*thread)
                .is_none_or(|t| !matches!(t.status, Status::Running | Status::Rescheduling))
        };
        self.tools.known.retain(|thread, _| !over(thread));
        self.tools.told.retain(|thread, _| !over(thread));
    }
}

/// Makes a call to the MCP server of this name.
pub(super) async fn call(
    inner: &Inner,
    spec: &SharedSpec,
    caller: Caller,
    server: &str,
    tool: &str,
    input: Value,
) -> Executed {
    if caller.in_doubt {
        return failure(IN_DOUBT).into();
    }
    let agent = &spec.agent.spec;
    let Some(server) = agent.mcp_servers.iter().find(|known| known.name == server) else {
        return failure(&format!(
            "The agent no longer has an MCP server `{server}`, so the call was not made."
        ))
        .into();
    };
    let has_sandbox = agent.needs_sandbox();
    let Called { result, fault } = inner
        .mcp
        .call(inner, caller, server, tool, input, has_sandbox)
        .await;
    Executed {
        trouble: fault.map(|fault| fault.trouble(&server.name)),
        ..Executed::from(result)
    }
}
