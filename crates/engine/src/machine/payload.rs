//! What events say, before they become JSON text.

use selfsame_types::{
    CredentialId, EventId, OutcomeId, ThreadId, Timestamp, VaultId,
    event::{EventType, fields},
    session::SessionUsage,
};
use serde::{Deserialize, Serialize};
use serde_json::{json, value::RawValue};

use super::{Role, outcome::EvaluationResult};

/// Tokens as the API counts them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelUsage {
    pub input_tokens: i64,
    pub output_tokens: i64,
    pub cache_creation_input_tokens: i64,
    pub cache_read_input_tokens: i64,
    #[serde(default)]
    pub ephemeral_5m_input_tokens: i64,
    #[serde(default)]
    pub ephemeral_1h_input_tokens: i64,
    /// Not of the model, but counted with it.
    #[serde(default)]
    pub web_search_requests: i64,
}

impl ModelUsage {
    pub fn add(&mut self, other: &Self) {
        self.input_tokens += other.input_tokens;
        self.output_tokens += other.output_tokens;
        self.cache_creation_input_tokens += other.cache_creation_input_tokens;
        self.cache_read_input_tokens += other.cache_read_input_tokens;
        self.ephemeral_5m_input_tokens += other.ephemeral_5m_input_tokens;
        self.ephemeral_1h_input_tokens += other.ephemeral_1h_input_tokens;
        self.web_search_requests += other.web_search_requests;
    }

    /// Less what has been counted already.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        Self {
            input_tokens: self.input_tokens - other.input_tokens,
            output_tokens: self.output_tokens - other.output_tokens,
            cache_creation_input_tokens: self.cache_creation_input_tokens
                - other.cache_creation_input_tokens,
            cache_read_input_tokens: self.cache_read_input_tokens - other.cache_read_input_tokens,
            ephemeral_5m_input_tokens: self.ephemeral_5m_input_tokens
                - other.ephemeral_5m_input_tokens,
            ephemeral_1h_input_tokens: self.ephemeral_1h_input_tokens
                - other.ephemeral_1h_input_tokens,
            web_search_requests: self.web_search_requests - other.web_search_requests,
        }
    }

    /// As a span shows it.
    fn span(&self) -> serde_json::Value {
        json!({
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "cache_creation_input_tokens": self.cache_creation_input_tokens,
            "cache_read_input_tokens": self.cache_read_input_tokens,
        })
    }

    /// What a span does not show.
    fn ephemeral(&self) -> (i64, i64) {
        (
            self.ephemeral_5m_input_tokens,
            self.ephemeral_1h_input_tokens,
        )
    }
}

/// Why a session or thread idles.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum StopReason {
    EndTurn,
    RequiresAction {
        event_ids: Vec<EventId>,
    },
    RetriesExhausted,
    Refusal {
        category: Option<String>,
        explanation: Option<String>,
    },
}

impl StopReason {
    /// The two keys that idle events carry.
    fn fields(&self) -> serde_json::Value {
        match self {
            Self::EndTurn | Self::RetriesExhausted | Self::RequiresAction { .. } => {
                json!({"stop_reason": self, "stop_details": null})
            }
            Self::Refusal {
                category,
                explanation,
            } => json!({
                "stop_reason": {"type": "refusal"},
                "stop_details": {
                    "type": "refusal", "category": category, "explanation": explanation,
                },
            }),
        }
    }
}

/// Names of `session.error` that the engine emits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorType {
    UnknownError,
    ModelOverloadedError,
    ModelRateLimitedError,
    ModelRequestFailedError,
    BillingError,
    RepositoryAuthenticationError,
    RepositoryForbiddenError,
    RepositoryNotFoundError,
    RepositoryCheckoutError,
    RepositoryCloneError,
    McpConnectionFailedError,
    McpAuthenticationFailedError,
    CredentialHostUnreachableError,
}

/// Something that a session goes on without: a repository that could not be cloned, an MCP server that
/// does not answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    pub error_type: ErrorType,
    pub message: String,
    pub about: About,
}

/// What a [`Trouble`] is with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum About {
    /// Something of the sandbox, named in the message alone.
    Sandbox,
    /// The repository at this address.
    Repository(String),
    /// The MCP server of this name. It is given up for the turn.
    McpServer(String),
    /// A host that this credential is meant for. It is said once in a session.
    Credential {
        credential: CredentialId,
        vault: VaultId,
    },
}

/// A tool of an MCP server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct McpTool {
    pub server: String,
    /// The name under which the model knows it.
    pub offered: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RetryStatus {
    Retrying,
    Exhausted,
    Terminal,
}

/// Whether a call may run, as shown with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Permission {
    Allow,
    Ask,
    Deny,
}

/// An event's content.
#[derive(Debug, Clone)]
pub enum Payload {
    /// A client's event, echoed as it was sent.
    Message {
        fields: String,
        flushed: bool,
    },
    System {
        fields: String,
        flushed: bool,
    },
    Interrupt {
        fields: String,
        /// Of every thread, not only of the one in whose log it stands.
        all: bool,
    },
    DefineOutcome {
        fields: String,
        outcome: OutcomeId,
        description: String,
        max_iterations: u32,
    },
    Confirmation {
        fields: String,
        call: EventId,
        allow: bool,
        deny_message: Option<String>,
    },
    CustomResult {
        fields: String,
        call: EventId,
    },

    AgentMessage {
        text: String,
    },
    /// The block itself goes back to the model and to nobody else.
    AgentThinking {
        block: Box<RawValue>,
    },
    ToolUse {
        name: String,
        input: Box<RawValue>,
        permission: Permission,
        /// Absent when the server itself refuses the call.
        evaluation: Option<&'static str>,
        model_id: String,
        serial: bool,
        /// The call goes to an MCP server; `name` is the tool's name there.
        mcp: Option<McpTool>,
    },
    CustomToolUse {
        name: String,
        input: Box<RawValue>,
        model_id: String,
    },
    ToolResult {
        call: EventId,
        content: Box<RawValue>,
        is_error: bool,
        searches: u32,
        /// It answers a call to an MCP server.
        mcp: bool,
    },

    /// A thread's message to another one: on the sender's side ..
    MessageSent {
        to: ThreadId,
        /// `None` for the primary thread, which has no other name.
        to_agent: Option<String>,
        content: Box<RawValue>,
    },
    /// .. and on the receiver's.
    MessageReceived {
        from: ThreadId,
        from_agent: Option<String>,
        content: Box<RawValue>,
        /// The hidden call whose result it is; otherwise it is a message of its own.
        answers: Option<EventId>,
    },

    Error {
        error_type: ErrorType,
        message: String,
        retry: RetryStatus,
        /// Of a grader's attempt: that has no span of its own.
        spent: ModelUsage,
    },
    Trouble(Trouble),
    SessionRunning,
    SessionIdle {
        stop: StopReason,
    },
    SessionRescheduled,
    SessionTerminated,
    SessionUpdated {
        fields: String,
    },
    SessionUsage {
        usage: SessionUsage,
    },
    ThreadCreated {
        thread: ThreadId,
        agent_name: String,
        role: Role,
    },
    ThreadRunning,
    ThreadIdle {
        stop: StopReason,
    },
    ThreadRescheduled {
        attempt: u32,
        wake_at: Timestamp,
    },
    ThreadTerminated,

    RequestStart,
    RequestEnd {
        start: EventId,
        failed: bool,
        usage: ModelUsage,
        /// The model stopped in the middle and is to be asked again.
        again: bool,
        /// How the turn ends when no call is left.
        sequel: StopReason,
        /// Calls of the response that clients do not see.
        hidden: Vec<HiddenCall>,
    },

    EvaluationStart {
        outcome: OutcomeId,
        iteration: u32,
    },
    EvaluationOngoing {
        outcome: OutcomeId,
        iteration: u32,
    },
    EvaluationEnd {
        /// `None`: an interrupt came before any start.
        start: Option<EventId>,
        outcome: OutcomeId,
        iteration: u32,
        result: EvaluationResult,
        explanation: String,
        usage: ModelUsage,
    },
}

/// A call by which the primary thread's model directs other threads. It has no event of its own: the
/// transcript puts it back into its response from here.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HiddenCall {
    pub id: EventId,
    /// Blocks of the response before it.
    pub at: usize,
    pub model_id: String,
    pub name: String,
    pub input: Box<RawValue>,
    /// `None`: a message that is received later brings it.
    pub result: Option<HiddenResult>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HiddenResult {
    pub text: String,
    pub is_error: bool,
}

/// The engine's own notes beside an event; what is absent says nothing.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Private {
    /// The model's id of a call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_id: Option<String>,
    /// The name under which the model knows the tool, when events show another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offered: Option<String>,
    /// A block that only the model sees again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block: Option<Box<RawValue>>,
    /// An input that was dropped with a failed turn.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub flushed: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub serial: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub again: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequel: Option<StopReason>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wake_at: Option<Timestamp>,
    /// Cache tokens by time to live, which the public usage does not tell apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ephemeral: Option<(i64, i64)>,
    /// Searches of the web that a call took.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub searches: u32,
    /// Calls of a response that clients do not see.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hidden: Vec<HiddenCall>,
    /// The hidden call that a message answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answers: Option<EventId>,
    /// What a new thread is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// Tokens that no public field of the event tells of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spent: Option<ModelUsage>,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
fn is_zero(count: &u32) -> bool {
    *count == 0
}

impl Private {
    fn text(&self) -> Option<String> {
        let text = serde_json::to_string(self).expect("private notes serialize");
        (text != "{}").then_some(text)
    }
}

impl Payload {
    #[must_use]
    pub fn event_type(&self) -> EventType {
        match self {
            Self::Message { .. } => EventType::UserMessage,
            Self::System { .. } => EventType::SystemMessage,
            Self::Interrupt { .. } => EventType::UserInterrupt,
            Self::DefineOutcome { .. } => EventType::UserDefineOutcome,
            Self::Confirmation { .. } => EventType::UserToolConfirmation,
            Self::CustomResult { .. } => EventType::UserCustomToolResult,
            Self::AgentMessage { .. } => EventType::AgentMessage,
            Self::AgentThinking { .. } => EventType::AgentThinking,
            Self::ToolUse { mcp: None, .. } => EventType::AgentToolUse,
            Self::ToolUse { mcp: Some(_), .. } => EventType::AgentMcpToolUse,
            Self::CustomToolUse { .. } => EventType::AgentCustomToolUse,
            Self::ToolResult { mcp: false, .. } => EventType::AgentToolResult,
            Self::ToolResult { mcp: true, .. } => EventType::AgentMcpToolResult,
            Self::MessageSent { .. } => EventType::AgentThreadMessageSent,
            Self::MessageReceived { .. } => EventType::AgentThreadMessageReceived,
            Self::Error { .. } | Self::Trouble(_) => EventType::SessionError,
            Self::SessionRunning => EventType::SessionStatusRunning,
            Self::SessionIdle { .. } => EventType::SessionStatusIdle,
            Self::SessionRescheduled => EventType::SessionStatusRescheduled,
            Self::SessionTerminated => EventType::SessionStatusTerminated,
            Self::SessionUpdated { .. } => EventType::SessionUpdated,
            Self::SessionUsage { .. } => EventType::SessionUsage,
            Self::ThreadCreated { .. } => EventType::SessionThreadCreated,
            Self::ThreadRunning => EventType::SessionThreadStatusRunning,
            Self::ThreadIdle { .. } => EventType::SessionThreadStatusIdle,
            Self::ThreadRescheduled { .. } => EventType::SessionThreadStatusRescheduled,
            Self::ThreadTerminated => EventType::SessionThreadStatusTerminated,
            Self::RequestStart => EventType::SpanModelRequestStart,
            Self::RequestEnd { .. } => EventType::SpanModelRequestEnd,
            Self::EvaluationStart { .. } => EventType::SpanOutcomeEvaluationStart,
            Self::EvaluationOngoing { .. } => EventType::SpanOutcomeEvaluationOngoing,
            Self::EvaluationEnd { .. } => EventType::SpanOutcomeEvaluationEnd,
        }
    }

    /// It is about the session, whichever thread it comes from.
    #[must_use]
    pub fn is_of_session(&self) -> bool {
        matches!(
            self,
            Self::Error { .. }
                | Self::Trouble(_)
                | Self::SessionRunning
                | Self::SessionIdle { .. }
                | Self::SessionRescheduled
                | Self::SessionTerminated
                | Self::SessionUpdated { .. }
                | Self::SessionUsage { .. }
                | Self::ThreadCreated { .. }
        )
    }

    /// The session's own list shows it, too, when it is another thread's: its status, calls that wait for
    /// a client, and what clients send.
    #[must_use]
    pub fn is_cross_posted(&self) -> bool {
        matches!(
            self,
            Self::ThreadRunning
                | Self::ThreadIdle { .. }
                | Self::ThreadRescheduled { .. }
                | Self::ThreadTerminated
                | Self::CustomToolUse { .. }
                | Self::ToolUse {
                    permission: Permission::Ask,
                    ..
                }
                | Self::Confirmation { .. }
                | Self::CustomResult { .. }
                | Self::Interrupt { .. }
        )
    }

    /// The inside of the event's JSON object. Thread events name their thread.
    #[must_use]
    pub fn fields(&self, thread: &super::Thread) -> String {
        let named = json!({"session_thread_id": thread.id, "agent_name": thread.agent_name});
        match self {
            Self::Message { fields, .. }
            | Self::System { fields, .. }
            | Self::Interrupt { fields, .. }
            | Self::DefineOutcome { fields, .. }
            | Self::Confirmation { fields, .. }
            | Self::CustomResult { fields, .. }
            | Self::SessionUpdated { fields } => fields.clone(),
            Self::AgentMessage { text } => {
                fields(&json!({"content": [{"type": "text", "text": text}]}))
            }
            Self::ToolUse {
                name,
                input,
                permission,
                evaluation,
                mcp,
                ..
            } => {
                #[derive(Serialize)]
                struct Fields<'a> {
                    #[serde(skip_serializing_if = "Option::is_none")]
                    mcp_server_name: Option<&'a str>,
                    name: &'a str,
                    input: &'a RawValue,
                    evaluated_permission: Permission,
                    #[serde(skip_serializing_if = "Option::is_none")]
                    evaluation: Option<serde_json::Value>,
                }
                fields(&Fields {
                    mcp_server_name: mcp.as_ref().map(|mcp| mcp.server.as_str()),
                    name,
                    input,
                    evaluated_permission: *permission,
                    evaluation: evaluation.map(|policy| json!({"type": policy})),
                })
            }
            Self::CustomToolUse { name, input, .. } => {
                #[derive(Serialize)]
                struct Fields<'a> {
                    name: &'a str,
                    input: &'a RawValue,
                }
                fields(&Fields { name, input })
            }
            Self::ToolResult {
                call,
                content,
                is_error,
                mcp,
                ..
            } => {
                #[derive(Serialize)]
                struct Fields<'a> {
                    #[serde(skip_serializing_if = "Option::is_none")]
                    tool_use_id: Option<EventId>,
                    #[serde(skip_serializing_if = "Option::is_none")]
                    mcp_tool_use_id: Option<EventId>,
                    content: &'a RawValue,
                    is_error: bool,
                }
                fields(&Fields {
                    tool_use_id: (!mcp).then_some(*call),
                    mcp_tool_use_id: mcp.then_some(*call),
                    content,
                    is_error: *is_error,
                })
            }
            Self::MessageSent {
                to,
                to_agent,
                content,
            } => {
                #[derive(Serialize)]
                struct Fields<'a> {
                    to_session_thread_id: ThreadId,
                    #[serde(skip_serializing_if = "Option::is_none")]
                    to_agent_name: Option<&'a str>,
                    content: &'a RawValue,
                }
                fields(&Fields {
                    to_session_thread_id: *to,
                    to_agent_name: to_agent.as_deref(),
                    content,
                })
            }
            Self::MessageReceived {
                from,
                from_agent,
                content,
                ..
            } => {
                #[derive(Serialize)]
                struct Fields<'a> {
                    from_session_thread_id: ThreadId,
                    #[serde(skip_serializing_if = "Option::is_none")]
                    from_agent_name: Option<&'a str>,
                    content: &'a RawValue,
                }
                fields(&Fields {
                    from_session_thread_id: *from,
                    from_agent_name: from_agent.as_deref(),
                    content,
                })
            }
            Self::Error {
                error_type,
                message,
                retry,
                ..
            } => fields(&json!({
                "error": {"type": error_type, "message": message, "retry_status": {"type": retry}},
            })),
            Self::Trouble(trouble) => {
                let retry = match trouble.about {
                    About::Sandbox | About::Repository(_) | About::Credential { .. } => {
                        RetryStatus::Retrying
                    }
                    About::McpServer(_) => RetryStatus::Exhausted,
                };
                let mut error = json!({
                    "type": trouble.error_type, "message": trouble.message,
                    "retry_status": {"type": retry},
                });
                match &trouble.about {
                    About::Sandbox => {}
                    About::Repository(url) => error["repository_url"] = json!(url),
                    About::McpServer(name) => error["mcp_server_name"] = json!(name),
                    About::Credential { credential, vault } => {
                        error["credential_id"] = json!(credential);
                        error["vault_id"] = json!(vault);
                    }
                }
                fields(&json!({"error": error}))
            }
            Self::SessionIdle { stop } => fields(&stop.fields()),
            Self::SessionUsage { usage } => fields(&json!({"usage": usage, "budget": null})),
            Self::ThreadIdle { stop } => {
                format!("{},{}", fields(&named), fields(&stop.fields()))
            }
            Self::ThreadCreated {
                thread, agent_name, ..
            } => fields(&json!({
                "session_thread_id": thread, "agent_name": agent_name, "workflow_run_id": null,
            })),
            Self::ThreadRunning | Self::ThreadRescheduled { .. } | Self::ThreadTerminated => {
                fields(&named)
            }
            Self::RequestEnd {
                start,
                failed,
                usage,
                ..
            } => fields(&json!({
                "model_request_start_id": start,
                "is_error": failed,
                "model_usage": usage.span(),
            })),
            Self::EvaluationStart { outcome, iteration }
            | Self::EvaluationOngoing { outcome, iteration } => {
                fields(&json!({"outcome_id": outcome, "iteration": iteration}))
            }
            Self::EvaluationEnd {
                start,
                outcome,
                iteration,
                result,
                explanation,
                usage,
            } => fields(&json!({
                "outcome_evaluation_start_id":
                    start.map_or_else(String::new, |start| start.to_string()),
                "outcome_id": outcome,
                "iteration": iteration,
                "result": result,
                "explanation": explanation,
                "usage": usage.span(),
            })),
            Self::AgentThinking { .. }
            | Self::SessionRunning
            | Self::SessionRescheduled
            | Self::SessionTerminated
            | Self::RequestStart => String::new(),
        }
    }

    /// The engine's notes beside the event.
    #[must_use]
    pub fn private(&self) -> Option<String> {
        match self {
            Self::Message { flushed, .. } | Self::System { flushed, .. } => Private {
                flushed: *flushed,
                ..Private::default()
            }
            .text(),
            Self::AgentThinking { block } => Private {
                block: Some(block.clone()),
                ..Private::default()
            }
            .text(),
            Self::ToolUse {
                model_id,
                serial,
                mcp,
                ..
            } => Private {
                model_id: Some(model_id.clone()),
                offered: mcp.as_ref().map(|mcp| mcp.offered.clone()),
                serial: *serial,
                ..Private::default()
            }
            .text(),
            Self::CustomToolUse { model_id, .. } => Private {
                model_id: Some(model_id.clone()),
                ..Private::default()
            }
            .text(),
            Self::ToolResult { searches, .. } => Private {
                searches: *searches,
                ..Private::default()
            }
            .text(),
            Self::ThreadRescheduled { attempt, wake_at } => Private {
                attempt: Some(*attempt),
                wake_at: Some(*wake_at),
                ..Private::default()
            }
            .text(),
            Self::RequestEnd {
                usage,
                again,
                sequel,
                hidden,
                ..
            } => Private {
                again: *again,
                sequel: Some(sequel.clone()),
                ephemeral: Some(usage.ephemeral()),
                hidden: hidden.clone(),
                ..Private::default()
            }
            .text(),
            Self::MessageReceived { answers, .. } => Private {
                answers: *answers,
                ..Private::default()
            }
            .text(),
            Self::ThreadCreated { role, .. } => Private {
                role: Some(*role),
                ..Private::default()
            }
            .text(),
            Self::Error { spent, .. } => Private {
                spent: (*spent != ModelUsage::default()).then_some(*spent),
                ..Private::default()
            }
            .text(),
            Self::EvaluationEnd { usage, .. } => Private {
                ephemeral: Some(usage.ephemeral()),
                ..Private::default()
            }
            .text(),
            _ => None,
        }
    }
}
