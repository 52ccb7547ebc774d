//! What models see of threads: whom a coordinator can start and how it talks to them, and what an agent
//! that was started is told of its place.
//!
//! The machine (`machine::coordinate`) carries out what is asked for here, and the transcript shows the
//! messages. A call of these tools has no event of its own: clients see the threads and the messages that
//! come of it.

mod tools;

use selfsame_types::agent::{AgentSnapshot, AgentSpec, ThreadAgent};
use serde_json::{
    json,
    value::{RawValue, to_raw_value},
};

use crate::machine::MAX_CHILDREN;

/// Whom a session's primary thread can start and ask.
#[derive(Debug, Clone)]
pub(crate) struct Roster {
    agents: Vec<ThreadAgent>,
    /// What an agent is made of that the model defines itself, when it may.
    inline: Option<AgentSpec>,
    /// The model that gives advice.
    advisor: Option<String>,
    shared_sandbox: bool,
}

/// What an agent is told that another one has started.
const STARTED: &str = "Another agent, the coordinator, has started you in a thread of its session. The \
messages that you get come from it. Nobody else reads along, and nobody answers while you work.\n\
- When your turn ends, the coordinator gets your last message and nothing of what was before it. Put in \
all that it needs: results, paths of files, what is uncertain, what did not work.\n\
- When something is missing, do what can be done without it, and say in that message what you need.\n\
- You keep what you know: a later message may ask for more of the same work.";

const STARTED_SHARED: &str = "- Other threads work in the same sandbox at the same time. Change the files \
that are your task's, and leave those of others alone.";

/// What the model is told that is asked for advice.
pub(crate) const ADVISING: &str = "You advise another AI agent in the middle of its work. It sees one answer \
of yours, and you see what it has written to you and nothing else. You have no tools. Judge its plan or \
problem, name what it has overlooked, and say what you would do next and why. Be concrete and brief.";

impl Roster {
    /// `None` when the agent works alone.
    pub(crate) fn of(agent: &AgentSnapshot) -> Option<Self> {
        let multiagent = agent.multiagent.as_ref()?;
        let agents: Vec<_> = multiagent.subagents().into_iter().cloned().collect();
        let inline = multiagent.inline_agents().then(|| agent.spec.clone());
        let advisor = multiagent.advisor().map(str::to_owned);
        if agents.is_empty() && inline.is_none() && advisor.is_none() {
            return None;
        }
        Some(Self {
            shared_sandbox: agent.needs_sandbox(),
            agents,
            inline,
            advisor,
        })
    }

    /// Whether threads can be started.
    fn directs(&self) -> bool {
        !self.agents.is_empty() || self.inline.is_some()
    }

    /// The section of the system prompt.
    pub(crate) fn briefing(&self) -> String {
        let mut parts = Vec::new();
        if self.directs() {
            parts.push(self.about_threads());
        }
        if self.advisor.is_some() {
            parts.push(
                "You can ask an advisor, another model, with `consult_advisor`: before a decision that is \
                 hard to take back, when two ways look equally good, or when you are stuck. It sees only \
                 your question, so write down what it has to know. Weigh what it says; the decision is \
                 yours."
                    .to_owned(),
            );
        }
        parts.join("\n\n")
    }

    fn about_threads(&self) -> String {
        let mut text = "You can give work to other agents. Each one that you start with `create_agent` has \
             a thread of its own, beside yours and all others. It knows nothing of this conversation but \
             what you write to it: name the goal, what is known, and what its last message shall contain.\n"
            .to_owned();
        if self.shared_sandbox {
            text.push_str(
                "- All threads share one sandbox. Files are the way to hand over much: say where they are, \
                 and let no two threads write to the same ones.\n",
            );
        }
        text.push_str(&format!(
            "- Threads run at the same time. Start those that do not need each other's results in one go.\n\
             - When a thread's turn ends, its last message comes to you, with the thread's id. There is no \
             need to wait or to ask: when you have nothing else to do, end your turn, and you will be asked \
             again when a message has come.\n\
             - A thread keeps what it knows. Send follow-ups to it with `send_to_agent` instead of starting \
             another one.\n\
             - At most {MAX_CHILDREN} threads can be there at once, idle ones included.\n\
             - Report to the user yourself; they do not read the threads.\n\nAgents that you can start:",
        ));
        for agent in &self.agents {
            text.push_str(&format!("\n- `{}` ({})", agent.spec.name, agent.id));
            if let Some(description) = &agent.spec.description {
                text.push_str(": ");
                text.push_str(description);
            }
        }
        if self.inline.is_some() {
            text.push_str(
                "\n- An agent that you define yourself for one task, with `inline_agent`: it has your model, \
                 your tools and your skills, and the instructions that you give it.",
            );
        }
        text
    }

    /// The agents as `list_agents` shows them.
    fn listed(&self) -> Box<RawValue> {
        let agents: Vec<_> = self
            .agents
            .iter()
            .map(|agent| {
                json!({
                    "agent_name": agent.spec.name, "agent_id": agent.id,
                    "description": agent.spec.description,
                })
            })
            .collect();
        to_raw_value(&agents).expect("agents serialize")
    }

    fn names(&self) -> String {
        let names: Vec<_> = self
            .agents
            .iter()
            .map(|agent| format!("`{}`", agent.spec.name))
            .collect();
        if names.is_empty() {
            "none but those that you define with `inline_agent`".to_owned()
        } else {
            names.join(", ")
        }
    }
}

/// What an agent in a thread of its own is told of its place.
pub(crate) fn started(spec: &AgentSpec) -> String {
    if spec.needs_sandbox() {
        format!("{STARTED}\n{STARTED_SHARED}")
    } else {
        STARTED.to_owned()
    }
}

/// Why a call of a coordinator's tool comes to nothing in another thread.
pub(crate) const TOO_DEEP: &str = "Only the session's primary thread starts agents, sends to them and asks \
an advisor, and this is not that thread. Do the work yourself, and say in your last message what else is \
needed.";

#[cfg(test)]
mod tests;
