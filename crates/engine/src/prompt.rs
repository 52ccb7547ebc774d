//! What the model is told beside the conversation: system prompt and tools.
//!
//! Both depend only on the session's agent, so they are the same bytes in every request of a session.

use std::sync::Arc;

use selfsame_model::{Models, Request};
use selfsame_types::{
    agent::{AgentSnapshot, AgentSpec},
    environment::{EnvironmentConfig, LimitedNetwork, Networking},
    model::{ModelConfig, Speed},
    multiagent::COORDINATION_TOOLS,
    thread::ThreadDefinition,
    tool::{BuiltinTool, PolicyKind},
};
use serde_json::{
    json,
    value::{RawValue, to_raw_value},
};

use crate::{
    machine::{Coordination, NewCall, Permission, Verdict},
    mcp::Toolset,
    threads::{self, Roster},
    transcript::{Transcript, with_cache_breakpoint},
};

/// The part of a session that its requests are made from.
#[derive(Debug, Clone)]
pub struct Spec {
    pub agent: AgentSnapshot,
    place: Place,
    environment: EnvironmentConfig,
    model: String,
    max_tokens: u32,
    thinking: selfsame_model::Thinking,
    effort: Option<String>,
    speed: Option<String>,
    system: Vec<Box<RawValue>>,
    tools: Vec<Box<RawValue>>,
}

/// Where a thread stands in its session.
#[derive(Debug, Clone)]
enum Place {
    /// What users talk to, with whom it can start and ask.
    Primary(Option<Arc<Roster>>),
    /// Started by an agent of this definition, whose rules hold here, too.
    Started(Arc<AgentSpec>),
    Advising,
}

/// Where things are in a sandbox, for an agent that has one.
const SANDBOX: &str = "You work in a Linux sandbox of your own. Its files and your shell stay as you \
leave them from one call to the next.\n\
- Working directory: /workspace\n\
- Files the user has provided, read-only: /mnt/session/uploads\n\
- Write everything the user is meant to receive to: /mnt/session/outputs\n\
- The full text of tool outputs that are too long to show: /mnt/session/tool-outputs";

impl Spec {
    /// What a session's primary thread is asked with.
    ///
    /// # Panics
    /// Never: everything here is JSON already.
    #[must_use]
    pub fn new(agent: AgentSnapshot, environment: &EnvironmentConfig, models: &Models) -> Self {
        let roster = Roster::of(&agent).map(Arc::new);
        Self::placed(agent, Place::Primary(roster), environment, models)
    }

    fn placed(
        agent: AgentSnapshot,
        place: Place,
        environment: &EnvironmentConfig,
        models: &Models,
    ) -> Self {
        let spec = &agent.spec;
        let model = spec.model.id.clone();
        let max_tokens = models.max_tokens(&model);
        let mut system = Vec::new();
        if spec.needs_sandbox() {
            let network = network(environment, spec);
            system.push(text(&format!("{SANDBOX}\n\n{network}")));
        }
        match &place {
            Place::Primary(None) => {}
            Place::Primary(Some(roster)) => system.push(text(&roster.briefing())),
            Place::Started(_) => system.push(text(&threads::started(spec))),
            Place::Advising => system.push(text(threads::ADVISING)),
        }
        if let Some(own) = spec.system.as_deref().filter(|own| !own.is_empty()) {
            system.push(text(own));
        }
        let mut tools: Vec<Box<RawValue>> = BuiltinTool::ALL
            .into_iter()
            .filter(|tool| spec.builtin(*tool).enabled)
            .map(definition)
            .collect();
        tools.extend(spec.custom_tools().map(|tool| {
            to_raw_value(&json!({
                "name": tool.name,
                "description": tool.description,
                "input_schema": tool.input_schema,
            }))
            .expect("tools serialize")
        }));
        if let Place::Primary(Some(roster)) = &place {
            tools.extend(roster.tools());
        }
        mark_last(&mut system);
        Self {
            thinking: models.thinking(&model, max_tokens),
            effort: models.effort(&model, Some(spec.model.effort.r#type.as_str())),
            speed: (spec.model.speed == Speed::Fast).then(|| "fast".to_owned()),
            max_tokens,
            model,
            system,
            tools,
            agent,
            place,
            environment: environment.clone(),
        }
    }

    /// What another thread of the session is asked with, from what its row says of its agent.
    ///
    /// # Errors
    /// When that is not what this program writes.
    pub fn thread(&self, definition: &str, models: &Models) -> serde_json::Result<Self> {
        let mut agent = AgentSnapshot {
            multiagent: None,
            ..self.agent.clone()
        };
        let mut place = Place::Started(Arc::new(self.agent.spec.clone()));
        match serde_json::from_str(definition)? {
            ThreadDefinition::Agent(started) => {
                (agent.id, agent.version) = (started.id, started.version);
                agent.spec = started.spec;
            }
            ThreadDefinition::Inline(started) => agent.spec = started.spec,
            ThreadDefinition::Advisor(advisor) => {
                agent.spec = AgentSpec {
                    model: ModelConfig {
                        inference_geo: agent.spec.model.inference_geo,
                        ..ModelConfig::of(advisor.model)
                    },
                    system: None,
                    tools: Vec::new(),
                    mcp_servers: Vec::new(),
                    skills: Vec::new(),
                    ..agent.spec
                };
                place = Place::Advising;
            }
        }
        Ok(Self::placed(agent, place, &self.environment, models))
    }

    /// The agents whose rules for the web hold in this thread, its own first.
    #[must_use]
    pub fn web_rules(&self) -> Vec<&AgentSpec> {
        match &self.place {
            Place::Started(coordinator) => vec![&self.agent.spec, coordinator],
            Place::Primary(_) | Place::Advising => vec![&self.agent.spec],
        }
    }

    /// Whether it is to be told of the session's material.
    #[must_use]
    pub fn is_equipped(&self) -> bool {
        !matches!(self.place, Place::Advising)
    }

    /// What a call by which the model directs other threads asks for; `None` for other calls.
    fn coordination(
        &self,
        name: &str,
        input: &Result<Box<RawValue>, String>,
    ) -> Option<Coordination> {
        match &self.place {
            Place::Primary(Some(roster)) => roster.judge(name, input),
            Place::Primary(None) | Place::Started(_) | Place::Advising => None,
        }
    }

    /// What a session's rows say.
    ///
    /// # Errors
    /// When one of the texts is not what this program writes.
    pub fn read(agent: &str, environment: &str, models: &Models) -> serde_json::Result<Self> {
        let agent = serde_json::from_str(agent)?;
        Ok(Self::new(
            agent,
            &serde_json::from_str(environment)?,
            models,
        ))
    }

    /// The next request of a thread. `briefing` is about the session's own material, `mcp` has the tools of
    /// its MCP servers.
    #[must_use]
    pub fn request(
        &self,
        transcript: &Transcript,
        briefing: Option<&str>,
        mcp: &Toolset,
    ) -> Request {
        let mut system = self.system.clone();
        if let Some(briefing) = briefing.filter(|briefing| !briefing.is_empty()) {
            // Behind what is said of the sandbox. The agent's own words come last, and with them the
            // cache breakpoint, unless it has none.
            let block = text(briefing);
            if system.len() > 1 {
                system.insert(1, block);
            } else {
                system.push(with_cache_breakpoint(&block));
            }
        }
        let mut tools = self.tools.clone();
        tools.extend_from_slice(mcp.definitions());
        mark_last(&mut tools);
        Request {
            model: self.model.clone(),
            max_tokens: self.max_tokens,
            system,
            tools,
            messages: transcript.messages(),
            thinking: self.thinking,
            effort: self.effort.clone(),
            speed: self.speed.clone(),
            tool_choice: None,
        }
    }

    /// A request to the same model that is none of the agent's.
    #[must_use]
    pub fn other_request(
        &self,
        system: Vec<Box<RawValue>>,
        tools: Vec<Box<RawValue>>,
        messages: Vec<Box<RawValue>>,
    ) -> Request {
        Request {
            model: self.model.clone(),
            max_tokens: self.max_tokens,
            system,
            tools,
            messages,
            thinking: self.thinking,
            effort: self.effort.clone(),
            speed: self.speed.clone(),
            tool_choice: None,
        }
    }

    #[must_use]
    pub fn model(&self) -> &str {
        &self.model
    }

    /// Judges a call that the model wants to make.
    ///
    /// # Panics
    /// Never: an empty object is JSON.
    #[must_use]
    pub fn judge(
        &self,
        mcp: &Toolset,
        model_id: String,
        name: String,
        input: Result<Box<RawValue>, String>,
    ) -> NewCall {
        let spec = &self.agent.spec;
        let coordination = self.coordination(&name, &input);
        let (input, broken) = match input {
            Ok(input) => (input, false),
            Err(_) => (to_raw_value(&json!({})).expect("an empty object"), true),
        };
        let refuse = |reason: String| Verdict::Refused { reason };
        let verdict = if let Some(what) = coordination {
            Verdict::Hidden(what)
        } else if broken {
            refuse(format!(
                "The input of this `{name}` call is not a JSON object, so it was not run. Call the \
                 tool again with a complete JSON object as its input."
            ))
        } else if spec.custom_tool(&name).is_some() {
            Verdict::Custom
        } else if let Some(verdict) = mcp.judge(&name) {
            verdict
        } else {
            match BuiltinTool::parse(&name).map(|tool| (tool, spec.builtin(tool))) {
                Some((tool, setting)) if setting.enabled => {
                    let (permission, policy) = match setting.policy.r#type {
                        PolicyKind::AlwaysAllow => (Permission::Allow, "always_allow"),
                        PolicyKind::AlwaysAsk | PolicyKind::Auto => (Permission::Ask, "always_ask"),
                    };
                    let serial = matches!(
                        tool,
                        BuiltinTool::Bash | BuiltinTool::Write | BuiltinTool::Edit
                    );
                    Verdict::Builtin {
                        permission,
                        policy,
                        serial,
                    }
                }
                Some(_) => refuse(format!("The tool `{name}` is not enabled for this agent.")),
                None if COORDINATION_TOOLS.contains(&&*name)
                    && matches!(self.place, Place::Started(_)) =>
                {
                    refuse(threads::TOO_DEEP.to_owned())
                }
                None if name.starts_with("mcp__") => refuse(format!(
                    "There is no tool named `{name}` now: its MCP server does not offer it, is not to be \
                     had, or the tool is not enabled."
                )),
                None => refuse(format!("There is no tool named `{name}`.")),
            }
        };
        NewCall {
            model_id,
            name,
            input,
            verdict,
        }
    }
}

/// Whether an agent, as a session keeps it, or a member of its has MCP servers. Asked with every message that
/// starts a turn, so the text is not read but searched: it is this program's own, without a space between
/// key and value, and inside a string the quotes would be escaped.
pub fn uses_mcp(agent: &str) -> bool {
    agent.contains(r#""mcp_servers":[{"#)
}

/// What the sandbox can reach.
fn network(environment: &EnvironmentConfig, spec: &selfsame_types::agent::AgentSpec) -> String {
    const NONE: &str = "The sandbox has no network access.";
    let EnvironmentConfig::Cloud(cloud) = environment else {
        return NONE.to_owned();
    };
    let LimitedNetwork {
        allowed_hosts,
        allow_mcp_servers,
        allow_package_managers,
        ..
    } = match &cloud.networking {
        Networking::Unrestricted(_) => {
            return "The sandbox reaches the public internet.".to_owned();
        }
        Networking::Limited(limited) => limited,
    };
    let mut reached = allowed_hosts.clone();
    if *allow_package_managers {
        reached.push("the registries of package managers (apt, pip, npm and the like)".to_owned());
    }
    if *allow_mcp_servers {
        reached.extend(spec.mcp_servers.iter().map(|server| server.url.clone()));
    }
    if reached.is_empty() {
        return NONE.to_owned();
    }
    format!(
        "The sandbox reaches these places and nothing else: {}. Connections to others are reset.",
        reached.join(", ")
    )
}

/// The upstream keeps what lies before a breakpoint.
fn mark_last(blocks: &mut [Box<RawValue>]) {
    if let Some(last) = blocks.last_mut() {
        *last = with_cache_breakpoint(last);
    }
}

fn text(text: &str) -> Box<RawValue> {
    to_raw_value(&json!({"type": "text", "text": text})).expect("text serializes")
}

/// A built-in tool as the model sees it.
pub(crate) fn definition(tool: BuiltinTool) -> Box<RawValue> {
    let string = |description: &str| json!({"type": "string", "description": description});
    let (description, properties, required) = match tool {
        BuiltinTool::Bash => (
            "Runs a command in a persistent bash shell. Working directory, variables and background \
             jobs stay between calls. Standard error is part of the output; standard input is empty. \
             A command that runs over its time limit is killed, and so is the shell.",
            json!({
                "command": string("The command to run. Required unless `restart` is true."),
                "restart": {"type": "boolean", "description": "Start a fresh shell instead."},
                "timeout_ms": {
                    "type": "integer",
                    "description": "Time limit in milliseconds; default 120000.",
                },
            }),
            json!([]),
        ),
        BuiltinTool::Read => (
            "Reads a file: text as it is, images (png, jpg, gif, webp) and PDFs as such. Text files \
             over 256 KiB need a `view_range`.",
            json!({
                "file_path": string("Path, absolute or relative to the working directory."),
                "view_range": {
                    "type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2,
                    "description": "First and last line, from 1; a last line of 0 or less means the end.",
                },
            }),
            json!(["file_path"]),
        ),
        BuiltinTool::Write => (
            "Writes a file, replacing what was there. Missing directories are made.",
            json!({
                "file_path": string("Path, absolute or relative to the working directory."),
                "content": string("The whole new content."),
            }),
            json!(["file_path", "content"]),
        ),
        BuiltinTool::Edit => (
            "Replaces a piece of a text file. `old_string` must occur exactly once, unless \
             `replace_all` is true.",
            json!({
                "file_path": string("Path, absolute or relative to the working directory."),
                "old_string": string("The text to replace, exactly as it stands in the file."),
                "new_string": string("What to put in its place."),
                "replace_all": {"type": "boolean", "description": "Replace every occurrence."},
            }),
            json!(["file_path", "old_string", "new_string"]),
        ),
        BuiltinTool::Glob => (
            "Lists files whose path matches a pattern such as `src/**/*.rs`, newest first, at most 200.",
            json!({
                "pattern": string("The pattern; `**` stands for any number of directories."),
                "path": string("Directory to search; default the working directory."),
            }),
            json!(["pattern"]),
        ),
        BuiltinTool::Grep => (
            "Searches file contents for a regular expression. Each hit is `file:line:text`.",
            json!({
                "pattern": string("The regular expression."),
                "path": string("File or directory to search; default the working directory."),
            }),
            json!(["pattern"]),
        ),
        BuiltinTool::WebFetch => (
            "Fetches a page from the web: HTML as Markdown, text and JSON as they are, PDFs and images as \
             such. Pages that need a login or scripts show little.",
            json!({
                "url": string("The whole address, as in https://example.com/page."),
            }),
            json!(["url"]),
        ),
        BuiltinTool::WebSearch => (
            "Searches the web. Each result has an address, a title and an excerpt; fetch the address for more.",
            json!({
                "query": string("What to search for, at most 400 characters."),
            }),
            json!(["query"]),
        ),
    };
    to_raw_value(&json!({
        "name": tool.as_str(),
        "description": description,
        "input_schema": {"type": "object", "properties": properties, "required": required},
    }))
    .expect("tools serialize")
}

/// Shared by all requests of a session.
pub type SharedSpec = Arc<Spec>;
