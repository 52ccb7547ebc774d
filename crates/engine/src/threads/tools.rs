//! The tools of a coordinator, and what their calls ask for.

use selfsame_types::{
    AgentId, ThreadId,
    agent::{AgentSpec, ThreadAgent},
    multiagent::{ADVISOR, Advisor, AdvisorType},
    thread::{InlineAgent, InlineType, ThreadDefinition},
};
use serde::Deserialize;
use serde_json::{
    json,
    value::{RawValue, to_raw_value},
};

use super::Roster;
use crate::machine::Coordination;

/// Longest name and description of an agent that a model defines, in characters; more is cut off.
const MAX_NAME: usize = 64;
const MAX_DESCRIPTION: usize = 256;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Create {
    #[serde(default)]
    agent_name: Option<String>,
    #[serde(default)]
    agent_id: Option<String>,
    #[serde(default)]
    inline_agent: Option<Inline>,
    message: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Inline {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    description: Option<String>,
    #[serde(default)]
    system: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Send {
    session_thread_id: String,
    message: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Consult {
    question: String,
}

#[derive(Deserialize)]
struct List {}

impl Roster {
    /// The tools as the model sees them.
    pub(crate) fn tools(&self) -> Vec<Box<RawValue>> {
        let mut tools = Vec::new();
        if self.directs() {
            tools.push(json!({
                "name": "list_agents",
                "description": "Lists the agents that you can start, and the threads that you have \
                    started: each with its id, its agent and its status. `idle`: it has ended its turn \
                    and takes a message; `running`: it is at work, and its report will come to you.",
                "input_schema": {"type": "object", "properties": {}, "required": []},
            }));
            tools.push(self.create_tool());
            tools.push(json!({
                "name": "send_to_agent",
                "description": "Sends a message to a thread that you have started: a follow-up, a \
                    correction, an answer to what it was missing. It remembers its work. An idle thread \
                    starts a new turn; one at work sees the message at its next step. Its report comes to \
                    you when its turn ends.",
                "input_schema": {
                    "type": "object",
                    "properties": {
                        "session_thread_id": {
                            "type": "string",
                            "description": "The thread's id, as `create_agent` and `list_agents` give it.",
                        },
                        "message": {"type": "string", "description": "What to tell it."},
                    },
                    "required": ["session_thread_id", "message"],
                },
            }));
        }
        if self.advisor.is_some() {
            tools.push(json!({
                "name": "consult_advisor",
                "description": "Asks the advisor one question and gives you its answer. It sees the \
                    question alone, nothing of this conversation and no files.",
                "input_schema": {
                    "type": "object",
                    "properties": {
                        "question": {
                            "type": "string",
                            "description": "The question, with everything it takes to answer it: the \
                                goal, the facts, what you have tried, the choices you see.",
                        },
                    },
                    "required": ["question"],
                },
            }));
        }
        tools
            .iter()
            .map(|tool| to_raw_value(tool).expect("tools serialize"))
            .collect()
    }

    fn create_tool(&self) -> serde_json::Value {
        let mut properties = json!({});
        let mut ways = Vec::new();
        if !self.agents.is_empty() {
            let mut names: Vec<&str> = Vec::new();
            for agent in &self.agents {
                if !names.contains(&agent.spec.name.as_str()) {
                    names.push(&agent.spec.name);
                }
            }
            properties["agent_name"] = json!({
                "type": "string", "enum": names, "description": "The agent to start, by its name.",
            });
            properties["agent_id"] = json!({
                "type": "string",
                "description": "Instead of `agent_name`: the agent's id, when two have the same name.",
            });
            ways.push("`agent_name` (or `agent_id`)");
        }
        if self.inline.is_some() {
            properties["inline_agent"] = json!({
                "type": "object",
                "description": "An agent for this task alone. It has your model, tools and skills.",
                "properties": {
                    "name": {"type": "string", "description": "A short name, at most 64 characters."},
                    "description": {
                        "type": "string", "description": "What it is for, at most 256 characters.",
                    },
                    "system": {
                        "type": "string",
                        "description": "Its instructions: role, way of working, what to leave alone.",
                    },
                },
                "required": ["name"],
            });
            ways.push("`inline_agent`");
        }
        properties["message"] = json!({
            "type": "string",
            "description": "Its task. It knows nothing else of what you know.",
        });
        json!({
            "name": "create_agent",
            "description": format!(
                "Starts an agent in a new thread and gives it its task. Answers with the thread's id at \
                 once; the agent works beside you, and its report comes to you as a message when its turn \
                 ends. Calls in one response start agents that work at the same time. Give {}.",
                ways.join(" or ")
            ),
            "input_schema": {"type": "object", "properties": properties, "required": ["message"]},
        })
    }

    /// What a call wants; `None` when it is of another tool.
    pub(crate) fn judge(
        &self,
        name: &str,
        input: &Result<Box<RawValue>, String>,
    ) -> Option<Coordination> {
        let judge: fn(&Self, &RawValue) -> Result<Coordination, String> = match name {
            "list_agents" if self.directs() => Self::list,
            "create_agent" if self.directs() => Self::create,
            "send_to_agent" if self.directs() => Self::send,
            "consult_advisor" if self.advisor.is_some() => Self::consult,
            _ => return None,
        };
        let judged = match input {
            Ok(input) => judge(self, input),
            Err(_) => Err("its input is not a JSON object".to_owned()),
        };
        Some(judged.unwrap_or_else(|problem| Coordination::Refused {
            reason: format!("This `{name}` call was not carried out: {problem}."),
        }))
    }

    fn list(&self, input: &RawValue) -> Result<Coordination, String> {
        let List {} = read(input)?;
        Ok(Coordination::List {
            agents: self.listed(),
        })
    }

    fn create(&self, input: &RawValue) -> Result<Coordination, String> {
        let Create {
            agent_name,
            agent_id,
            inline_agent,
            message,
        } = read(input)?;
        let content = content("message", &message)?;
        let agent = match (agent_name, agent_id, inline_agent) {
            (Some(name), None, None) => self.named(&name)?,
            (name, Some(id), None) => self.with_id(name.as_deref(), &id)?,
            (None, None, Some(inline)) => self.inline(inline)?,
            (None, None, None) => return Err("it does not say which agent to start".to_owned()),
            _ => return Err("it names more than one agent; make one call for each".to_owned()),
        };
        Ok(Coordination::Spawn {
            thread: ThreadId::new(),
            agent_name: agent.name().to_owned(),
            agent: text(&agent),
            content,
        })
    }

    fn named(&self, name: &str) -> Result<ThreadDefinition, String> {
        let found: Vec<&ThreadAgent> = self.agents.iter().filter(|a| a.spec.name == name).collect();
        match found.as_slice() {
            [agent] => Ok(ThreadDefinition::Agent(Box::new((*agent).clone()))),
            [] => Err(format!(
                "there is no agent named `{}`; there are: {}",
                excerpt(name),
                self.names()
            )),
            several => {
                let ids: Vec<String> = several.iter().map(|a| a.id.to_string()).collect();
                Err(format!(
                    "several agents are named `{}`; say which one by `agent_id`: {}",
                    excerpt(name),
                    ids.join(", ")
                ))
            }
        }
    }

    fn with_id(&self, name: Option<&str>, id: &str) -> Result<ThreadDefinition, String> {
        let parsed: Option<AgentId> = id.parse().ok();
        let found = self.agents.iter().find(|agent| Some(agent.id) == parsed);
        let Some(agent) = found else {
            let ids: Vec<String> = self
                .agents
                .iter()
                .map(|a| format!("{} (`{}`)", a.id, a.spec.name))
                .collect();
            return Err(format!(
                "there is no agent with the id `{}` to start; there are: {}",
                excerpt(id),
                ids.join(", ")
            ));
        };
        if name.is_some_and(|name| name != agent.spec.name) {
            return Err(format!(
                "the agent {} is named `{}`; give its name or its id",
                agent.id, agent.spec.name
            ));
        }
        Ok(ThreadDefinition::Agent(Box::new(agent.clone())))
    }

    fn inline(&self, inline: Inline) -> Result<ThreadDefinition, String> {
        let Some(own) = &self.inline else {
            return Err(format!(
                "agents cannot be defined here; there are: {}",
                self.names()
            ));
        };
        let filled = |text: Option<String>| text.filter(|text| !text.trim().is_empty());
        let name = filled(inline.name).map_or_else(|| "inline".to_owned(), |n| cut(&n, MAX_NAME));
        if name == ADVISOR {
            return Err(format!(
                "`{ADVISOR}` is a reserved name; choose another one"
            ));
        }
        Ok(ThreadDefinition::Inline(Box::new(InlineAgent {
            r#type: InlineType,
            spec: AgentSpec {
                name,
                description: filled(inline.description).map(|d| cut(&d, MAX_DESCRIPTION)),
                system: filled(inline.system),
                ..own.clone()
            },
        })))
    }

    fn send(&self, input: &RawValue) -> Result<Coordination, String> {
        let Send {
            session_thread_id,
            message,
        } = read(input)?;
        let content = content("message", &message)?;
        let thread = session_thread_id.parse().map_err(|_| {
            format!(
                "`{}` is not the id of a thread; `list_agents` shows those there are",
                excerpt(&session_thread_id)
            )
        })?;
        Ok(Coordination::Send { thread, content })
    }

    fn consult(&self, input: &RawValue) -> Result<Coordination, String> {
        let Consult { question } = read(input)?;
        let content = content("question", &question)?;
        let model = self.advisor.clone().unwrap_or_default();
        let advisor = ThreadDefinition::Advisor(Advisor {
            r#type: AdvisorType,
            model,
        });
        Ok(Coordination::Consult {
            thread: ThreadId::new(),
            agent_name: ADVISOR.to_owned(),
            agent: text(&advisor),
            content,
        })
    }
}

fn read<'a, T: Deserialize<'a>>(input: &'a RawValue) -> Result<T, String> {
    serde_json::from_str(input.get()).map_err(|error| {
        let error = error.to_string();
        let words = error.split(" at line ").next().unwrap_or_default();
        format!("its input is wrong: {words}")
    })
}

/// A message's content.
fn content(field: &str, text: &str) -> Result<Box<RawValue>, String> {
    if text.trim().is_empty() {
        return Err(format!("`{field}` is empty"));
    }
    Ok(to_raw_value(&json!([{"type": "text", "text": text}])).expect("text serializes"))
}

fn text(agent: &ThreadDefinition) -> String {
    serde_json::to_string(agent).expect("definitions serialize")
}

fn cut(text: &str, length: usize) -> String {
    text.trim().chars().take(length).collect()
}

fn excerpt(text: &str) -> String {
    text.chars().take(80).collect()
}
