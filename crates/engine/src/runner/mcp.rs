//! MCP servers in a thread's turn: asked for their tools before the first request, called when the model
//! wants it, and each told to the client once when it fails.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use selfsame_types::{ThreadId, agent::AgentSnapshot};
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
#[derive(Debug)]
pub(super) struct Tools {
    /// The session's agent, or a member of it, has servers at all.
    used: bool,
    asking: HashMap<ThreadId, AbortHandle>,
    known: HashMap<ThreadId, Known>,
    /// Servers whose failure the client has been told of.
    told: HashMap<ThreadId, HashSet<String>>,
}

#[derive(Debug)]
struct Known {
    spec: SharedSpec,
    toolset: Arc<Toolset>,
    /// No request has been made with it yet. A server that changes all the time holds nobody up for ever.
    is_fresh: bool,
}

impl Tools {
    pub(super) fn new(agent: &AgentSnapshot) -> Self {
        let mut specs = agent.specs().into_iter();
        Self {
            used: specs.any(|spec| !spec.mcp_servers.is_empty()),
            asking: HashMap::new(),
            known: HashMap::new(),
            told: HashMap::new(),
        }
    }

    /// What a thread's model is offered in the request that is about to be sent.
    pub(super) fn of(&mut self, thread: ThreadId) -> Arc<Toolset> {
        let Some(known) = self.known.get_mut(&thread) else {
            return Arc::default();
        };
        known.is_fresh = false;
        Arc::clone(&known.toolset)
    }

    pub(super) fn is_asking(&self, thread: ThreadId) -> bool {
        self.asking.contains_key(&thread)
    }

    /// An interrupt ends the asking.
    pub(super) fn interrupt(&mut self, thread: ThreadId) {
        if let Some(handle) = self.asking.remove(&thread) {
            handle.abort();
        }
    }

    /// A trouble, unless the client has been told in this turn that there is one with this server.
    pub(super) fn news(&mut self, thread: ThreadId, trouble: Trouble) -> Option<Trouble> {
        let told = self.told.entry(thread).or_default();
        let news = match &trouble.about {
            About::McpServer(name) => told.insert(name.clone()),
            _ => true,
        };
        news.then_some(trouble)
    }
}

impl Runner {
    /// A thread's servers have been asked what they can do, in this turn and since they said that it has
    /// changed.
    fn knows_tools(&self, thread: ThreadId) -> bool {
        self.tools.known.get(&thread).is_some_and(|known| {
            let agent = &known.spec.agent.spec;
            known.is_fresh
                || agent.mcp_servers.is_empty()
                || !self.inner.mcp.has_changed(self.session, agent)
        })
    }

    /// Threads whose next request may be opened; `None`: any.
    pub(super) fn ready(&self) -> Option<HashSet<ThreadId>> {
        let known = self.tools.known.keys().copied();
        self.tools
            .used
            .then(|| known.filter(|thread| self.knows_tools(*thread)).collect())
    }

    /// Sees to it that a thread's servers are asked. Answers whether that is done.
    pub(super) async fn learn_tools(&mut self, thread: ThreadId) -> Result<bool, Stopped> {
        if !self.tools.used || self.knows_tools(thread) {
            return Ok(true);
        }
        if self.tools.is_asking(thread) {
            return Ok(false);
        }
        let spec = self.spec_of(thread).await?;
        if spec.agent.spec.mcp_servers.is_empty() {
            let known = Known {
                spec,
                toolset: Arc::default(),
                is_fresh: true,
            };
            self.tools.known.insert(thread, known);
            return Ok(true);
        }
        let (inner, session) = (Arc::clone(&self.inner), self.session);
        let handle = self.jobs.spawn(async move {
            let (toolset, troubles) = inner.mcp.toolset(&inner, session, &spec.agent.spec).await;
            Done::Learned {
                thread,
                toolset,
                troubles,
            }
        });
        self.tools.asking.insert(thread, handle);
        Ok(false)
    }

    pub(super) async fn learned(
        &mut self,
        thread: ThreadId,
        toolset: Toolset,
        troubles: Vec<Trouble>,
    ) -> Result<(), Stopped> {
        if self.tools.asking.remove(&thread).is_none() {
            return Ok(());
        }
        let known = Known {
            spec: self.spec_of(thread).await?,
            toolset: Arc::new(toolset),
            is_fresh: true,
        };
        self.tools.known.insert(thread, known);
        let mut news = Vec::new();
        for trouble in troubles {
            news.extend(self.tools.news(thread, trouble));
        }
        self.append(&[], |step| step.trouble(thread, &news)).await?;
        Ok(())
    }

    /// A thread whose turn is over asks anew in its next one.
    pub(super) fn forget_tools(&mut self) {
        let machine = &self.machine;
        let works = |thread: &ThreadId| {
            machine
                .thread(*thread)
                .is_some_and(|t| matches!(t.status, Status::Running | Status::Rescheduling))
        };
        self.tools.known.retain(|thread, _| works(thread));
        self.tools.told.retain(|thread, _| works(thread));
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
