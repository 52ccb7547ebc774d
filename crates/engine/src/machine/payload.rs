//! What events say, before they become JSON text.

use selfsame_types::{
    CredentialId, EventId, Timestamp, VaultId,
    event::{EventType, fields},
    session::SessionUsage,
};
use serde::{Deserialize, Serialize};
use serde_json::{json, value::RawValue};

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

    Error {
        error_type: ErrorType,
        message: String,
        retry: RetryStatus,
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
    },
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
            Self::Confirmation { .. } => EventType::UserToolConfirmation,
            Self::CustomResult { .. } => EventType::UserCustomToolResult,
            Self::AgentMessage { .. } => EventType::AgentMessage,
            Self::AgentThinking { .. } => EventType::AgentThinking,
            Self::ToolUse { mcp: None, .. } => EventType::AgentToolUse,
            Self::ToolUse { mcp: Some(_), .. } => EventType::AgentMcpToolUse,
            Self::CustomToolUse { .. } => EventType::AgentCustomToolUse,
            Self::ToolResult { mcp: false, .. } => EventType::AgentToolResult,
            Self::ToolResult { mcp: true, .. } => EventType::AgentMcpToolResult,
            Self::Error { .. } | Self::Trouble(_) => EventType::SessionError,
            Self::SessionRunning => EventType::SessionStatusRunning,
            Self::SessionIdle { .. } => EventType::SessionStatusIdle,
            Self::SessionRescheduled => EventType::SessionStatusRescheduled,
            Self::SessionTerminated => EventType::SessionStatusTerminated,
            Self::SessionUpdated { .. } => EventType::SessionUpdated,
            Self::SessionUsage { .. } => EventType::SessionUsage,
            Self::ThreadRunning => EventType::SessionThreadStatusRunning,
            Self::ThreadIdle { .. } => EventType::SessionThreadStatusIdle,
            Self::ThreadRescheduled { .. } => EventType::SessionThreadStatusRescheduled,
            Self::ThreadTerminated => EventType::SessionThreadStatusTerminated,
            Self::RequestStart => EventType::SpanModelRequestStart,
            Self::RequestEnd { .. } => EventType::SpanModelRequestEnd,
        }
    }

    /// The inside of the event's JSON object. Thread events name their thread.
    #[must_use]
    pub fn fields(&self, thread: &super::Thread) -> String {
        let named = json!({"session_thread_id": thread.id, "agent_name": thread.agent_name});
        match self {
            Self::Message { fields, .. }
            | Self::System { fields, .. }
            | Self::Interrupt { fields }
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
            Self::Error {
                error_type,
                message,
                retry,
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
                "model_usage": {
                    "input_tokens": usage.input_tokens,
                    "output_tokens": usage.output_tokens,
                    "cache_creation_input_tokens": usage.cache_creation_input_tokens,
                    "cache_read_input_tokens": usage.cache_read_input_tokens,
                },
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
                ..
            } => Private {
                again: *again,
                sequel: Some(sequel.clone()),
                ephemeral: Some((
                    usage.ephemeral_5m_input_tokens,
                    usage.ephemeral_1h_input_tokens,
                )),
                ..Private::default()
            }
            .text(),
            _ => None,
        }
    }
}
