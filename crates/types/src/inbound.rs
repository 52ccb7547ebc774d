//! Events that clients send: their parameters, the rules of a single request, and what the log keeps.
//!
//! Content is checked block by block and then kept as the client sent it, keys in the client's order.
//! Whether an event is welcome in the session's present state is the engine's question.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::{
    ApiError, EventId, ThreadId, check,
    content::{MAX_FILE_DOCUMENTS, MessageBlock, TextBlock, ToolResultBlock},
    event::{self, EventType},
    outcome::{UserDefineOutcome, UserDefineOutcomeParams},
    wire,
};

/// Most events in one request.
pub const MAX_EVENTS: usize = 100;
/// Most events that a session may be created with.
pub const MAX_INITIAL_EVENTS: usize = 50;

wire::literals! {
    UserMessageType = "user.message";
    UserInterruptType = "user.interrupt";
    UserToolConfirmationType = "user.tool_confirmation";
    UserCustomToolResultType = "user.custom_tool_result";
    UserToolResultType = "user.tool_result";
    SystemMessageType = "system.message";
}

// Parameters -------------------------------------------------------------------------------------

/// The body of `POST /v1/sessions/{session_id}/events`.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SendEvents {
    #[schema(value_type = Vec<InboundEventParams>, min_items = 1, max_items = 100)]
    pub events: Vec<Value>,
}

/// An event in a request.
#[derive(Debug, Clone, PartialEq, ToSchema)]
#[serde(untagged)]
#[schema(discriminator(property_name = "type", mapping(
    ("user.message" = "#/components/schemas/UserMessageParams"),
    ("user.interrupt" = "#/components/schemas/UserInterruptParams"),
    ("user.tool_confirmation" = "#/components/schemas/UserToolConfirmationParams"),
    ("user.custom_tool_result" = "#/components/schemas/UserCustomToolResultParams"),
    ("user.tool_result" = "#/components/schemas/UserToolResultParams"),
    ("user.define_outcome" = "#/components/schemas/UserDefineOutcomeParams"),
    ("system.message" = "#/components/schemas/SystemMessageParams"),
)))]
pub enum InboundEventParams {
    UserMessage(UserMessageParams),
    UserInterrupt(UserInterruptParams),
    UserToolConfirmation(UserToolConfirmationParams),
    UserCustomToolResult(UserCustomToolResultParams),
    UserToolResult(UserToolResultParams),
    UserDefineOutcome(UserDefineOutcomeParams),
    SystemMessage(SystemMessageParams),
}

#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UserMessageParams {
    #[schema(inline)]
    pub r#type: UserMessageType,
    #[schema(min_items = 1)]
    pub content: Vec<MessageBlock>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UserInterruptParams {
    #[schema(inline)]
    pub r#type: UserInterruptType,
    /// The thread to interrupt. Absent or null: every thread.
    pub session_thread_id: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ConfirmationResult {
    Allow,
    Deny,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UserToolConfirmationParams {
    #[schema(inline)]
    pub r#type: UserToolConfirmationType,
    /// The id of an `agent.tool_use` or `agent.mcp_tool_use` event.
    #[schema(min_length = 1, max_length = 128)]
    pub tool_use_id: String,
    pub result: ConfirmationResult,
    /// Only with `deny`.
    #[schema(max_length = 10_000)]
    pub deny_message: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UserCustomToolResultParams {
    #[schema(inline)]
    pub r#type: UserCustomToolResultType,
    /// The id of an `agent.custom_tool_use` event.
    #[schema(min_length = 1, max_length = 128)]
    pub custom_tool_use_id: String,
    #[serde(default)]
    pub content: Vec<ToolResultBlock>,
    pub is_error: Option<bool>,
}

#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UserToolResultParams {
    #[schema(inline)]
    pub r#type: UserToolResultType,
    /// The id of an `agent.tool_use` event of a session in a self-hosted environment.
    #[schema(min_length = 1, max_length = 128)]
    pub tool_use_id: String,
    #[serde(default)]
    pub content: Vec<ToolResultBlock>,
    pub is_error: Option<bool>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SystemMessageParams {
    #[schema(inline)]
    pub r#type: SystemMessageType,
    #[schema(min_items = 1, max_items = 1000)]
    pub content: Vec<TextBlock>,
}

// Checked ----------------------------------------------------------------------------------------

/// An event of a client, checked as far as the request alone allows.
#[derive(Debug, Clone, PartialEq)]
pub enum InboundEvent {
    UserMessage(UserMessage),
    UserInterrupt(UserInterrupt),
    UserToolConfirmation(UserToolConfirmation),
    UserCustomToolResult(UserCustomToolResult),
    UserToolResult(UserToolResult),
    UserDefineOutcome(UserDefineOutcome),
    SystemMessage(SystemMessage),
}

// Each of these serializes to the fields of its event in the log, in this order.

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct UserMessage {
    /// An array of at least one block, as it was sent.
    pub content: Value,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UserInterrupt {
    /// `None`: every thread.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_thread_id: Option<ThreadId>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UserToolConfirmation {
    pub tool_use_id: EventId,
    pub result: ConfirmationResult,
    pub deny_message: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct UserCustomToolResult {
    pub custom_tool_use_id: EventId,
    /// An array of blocks, as it was sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<Value>,
    pub is_error: Option<bool>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct UserToolResult {
    pub tool_use_id: EventId,
    /// An array of blocks, as it was sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<Value>,
    pub is_error: Option<bool>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SystemMessage {
    /// An array of 1 to 1000 text blocks, as it was sent.
    pub content: Value,
}

impl InboundEvent {
    #[must_use]
    pub fn event_type(&self) -> EventType {
        match self {
            Self::UserMessage(_) => EventType::UserMessage,
            Self::UserInterrupt(_) => EventType::UserInterrupt,
            Self::UserToolConfirmation(_) => EventType::UserToolConfirmation,
            Self::UserCustomToolResult(_) => EventType::UserCustomToolResult,
            Self::UserToolResult(_) => EventType::UserToolResult,
            Self::UserDefineOutcome(_) => EventType::UserDefineOutcome,
            Self::SystemMessage(_) => EventType::SystemMessage,
        }
    }

    /// The event's own fields for [`crate::event::NewEvent::fields`]. `None` for the definition of an
    /// outcome, whose fields are those of [`crate::outcome::DefinedOutcome`].
    #[must_use]
    pub fn fields(&self) -> Option<String> {
        Some(match self {
            Self::UserMessage(event) => event::fields(event),
            Self::UserInterrupt(event) => event::fields(event),
            Self::UserToolConfirmation(event) => event::fields(event),
            Self::UserCustomToolResult(event) => event::fields(event),
            Self::UserToolResult(event) => event::fields(event),
            Self::UserDefineOutcome(_) => return None,
            Self::SystemMessage(event) => event::fields(event),
        })
    }

    /// The tool call that this event answers.
    #[must_use]
    pub fn answers(&self) -> Option<EventId> {
        match self {
            Self::UserToolConfirmation(event) => Some(event.tool_use_id),
            Self::UserCustomToolResult(event) => Some(event.custom_tool_use_id),
            Self::UserToolResult(event) => Some(event.tool_use_id),
            _ => None,
        }
    }

    /// Whether it starts a turn on an idle session.
    #[must_use]
    pub fn starts_work(&self) -> bool {
        matches!(self, Self::UserMessage(_) | Self::UserDefineOutcome(_))
    }
}

// Parsing ----------------------------------------------------------------------------------------

/// Checks the events of one request. The first problem refuses them all.
pub fn parse_events(events: Vec<Value>) -> Result<Vec<InboundEvent>, ApiError> {
    check::count("events", events.len(), 1..=MAX_EVENTS)?;
    let events = parse("events", events)?;
    let last = events.len() - 1;
    for (index, event) in events.iter().enumerate() {
        if matches!(event, InboundEvent::SystemMessage(_)) && index != last {
            return Err(refuse(
                "events",
                index,
                Some(EventType::SystemMessage),
                &ApiError::invalid(
                    "must be the last event of a request, and the only one of its type",
                ),
            ));
        }
    }
    Ok(events)
}

/// Checks the events a session is to be created with; none is fine.
pub fn parse_initial_events(events: Vec<Value>) -> Result<Vec<InboundEvent>, ApiError> {
    check::count("initial_events", events.len(), 0..=MAX_INITIAL_EVENTS)?;
    let events = parse("initial_events", events)?;
    let mut outcomes = 0;
    for (index, event) in events.iter().enumerate() {
        let problem = match event {
            InboundEvent::UserMessage(_) => continue,
            InboundEvent::UserDefineOutcome(_) => {
                outcomes += 1;
                if outcomes == 1 {
                    continue;
                }
                "only one outcome may be defined"
            }
            _ => "a session can only be created with `user.message` and `user.define_outcome`",
        };
        return Err(refuse(
            "initial_events",
            index,
            Some(event.event_type()),
            &ApiError::invalid(problem),
        ));
    }
    Ok(events)
}

fn parse(list: &str, events: Vec<Value>) -> Result<Vec<InboundEvent>, ApiError> {
    let mut read = Vec::with_capacity(events.len());
    for (index, event) in events.into_iter().enumerate() {
        let event_type = event
            .get("type")
            .and_then(Value::as_str)
            .and_then(EventType::parse);
        read.push((
            event_type,
            read_event(event).map_err(|error| refuse(list, index, event_type, &error))?,
        ));
    }
    let file_documents: usize = read
        .iter()
        .map(|(_, (event, _))| event.file_documents())
        .sum();
    if file_documents > MAX_FILE_DOCUMENTS {
        return Err(ApiError::invalid(format!(
            "{list}: at most {MAX_FILE_DOCUMENTS} documents may be named by file id in one request, \
             not {file_documents}"
        )));
    }
    read.into_iter()
        .enumerate()
        .map(|(index, (event_type, (event, content)))| {
            event
                .check(content)
                .map_err(|error| refuse(list, index, event_type, &error))
        })
        .collect()
}

/// `error`, saying which event it is about. Clients match the beginning of this text.
fn refuse(list: &str, index: usize, event_type: Option<EventType>, error: &ApiError) -> ApiError {
    let name = event_type.map_or(String::new(), |event_type| {
        format!("{} ", event_type.as_str())
    });
    ApiError {
        message: format!("Invalid {name}event at {list}[{index}]: {}", error.message).into(),
        ..error.clone()
    }
}

/// The event's parameters, and its `content` as it was sent.
fn read_event(mut event: Value) -> Result<(InboundEventParams, Option<Value>), ApiError> {
    fn read<T: serde::de::DeserializeOwned>(event: Value) -> Result<T, ApiError> {
        wire::from_value::<T, serde_json::Error>(event)
            .map_err(|error| ApiError::invalid(error.to_string()))
    }
    let tag = wire::tag::<serde_json::Error>(&event)
        .map_err(|error| ApiError::invalid(error.to_string()))?;
    // Clients echo the thread they read an event from; only an interrupt addresses one.
    if tag != "user.interrupt"
        && let Some(object) = event.as_object_mut()
    {
        object.shift_remove("session_thread_id");
    }
    let content = event.get("content").cloned();
    let params = match tag.as_str() {
        "user.message" => InboundEventParams::UserMessage(read(event)?),
        "user.interrupt" => InboundEventParams::UserInterrupt(read(event)?),
        "user.tool_confirmation" => InboundEventParams::UserToolConfirmation(read(event)?),
        "user.custom_tool_result" => InboundEventParams::UserCustomToolResult(read(event)?),
        "user.tool_result" => InboundEventParams::UserToolResult(read(event)?),
        "user.define_outcome" => InboundEventParams::UserDefineOutcome(read(event)?),
        "system.message" => InboundEventParams::SystemMessage(read(event)?),
        other => {
            let error: serde_json::Error = wire::unknown_tag(
                other,
                &[
                    "user.message",
                    "user.interrupt",
                    "user.tool_confirmation",
                    "user.custom_tool_result",
                    "user.tool_result",
                    "user.define_outcome",
                    "system.message",
                ],
            );
            return Err(ApiError::invalid(error.to_string()));
        }
    };
    Ok((params, content))
}

impl InboundEventParams {
    fn file_documents(&self) -> usize {
        match self {
            Self::UserMessage(event) => {
                let blocks = event.content.iter();
                blocks.filter(|block| block.is_file_document()).count()
            }
            Self::UserCustomToolResult(UserCustomToolResultParams { content, .. })
            | Self::UserToolResult(UserToolResultParams { content, .. }) => content
                .iter()
                .filter(|block| block.is_file_document())
                .count(),
            _ => 0,
        }
    }

    fn check(self, content: Option<Value>) -> Result<InboundEvent, ApiError> {
        // Present whenever the parameters require it.
        let required = |content: Option<Value>| content.unwrap_or_else(|| Value::Array(Vec::new()));
        Ok(match self {
            Self::UserMessage(event) => {
                check::count("content", event.content.len(), 1..=usize::MAX)?;
                for (index, block) in event.content.iter().enumerate() {
                    block.validate(&format!("content[{index}]"))?;
                }
                InboundEvent::UserMessage(UserMessage {
                    content: required(content),
                })
            }
            Self::UserInterrupt(event) => InboundEvent::UserInterrupt(UserInterrupt {
                session_thread_id: event
                    .session_thread_id
                    .map(|id| parse_id("session_thread_id", &id))
                    .transpose()?,
            }),
            Self::UserToolConfirmation(event) => {
                if event.deny_message.is_some() && event.result == ConfirmationResult::Allow {
                    return Err(ApiError::invalid(
                        "deny_message: is only allowed with `result` `deny`",
                    ));
                }
                if let Some(message) = &event.deny_message {
                    check::text("deny_message", message, 0..=10_000)?;
                }
                InboundEvent::UserToolConfirmation(UserToolConfirmation {
                    tool_use_id: parse_id("tool_use_id", &event.tool_use_id)?,
                    result: event.result,
                    deny_message: event.deny_message,
                })
            }
            Self::UserCustomToolResult(event) => {
                check_result(&event.content)?;
                InboundEvent::UserCustomToolResult(UserCustomToolResult {
                    custom_tool_use_id: parse_id("custom_tool_use_id", &event.custom_tool_use_id)?,
                    content,
                    is_error: event.is_error,
                })
            }
            Self::UserToolResult(event) => {
                check_result(&event.content)?;
                InboundEvent::UserToolResult(UserToolResult {
                    tool_use_id: parse_id("tool_use_id", &event.tool_use_id)?,
                    content,
                    is_error: event.is_error,
                })
            }
            Self::UserDefineOutcome(event) => InboundEvent::UserDefineOutcome(event.check()?),
            Self::SystemMessage(event) => {
                check::count("content", event.content.len(), 1..=1000)?;
                for (index, block) in event.content.iter().enumerate() {
                    block.validate(&format!("content[{index}]"))?;
                }
                InboundEvent::SystemMessage(SystemMessage {
                    content: required(content),
                })
            }
        })
    }
}

fn check_result(content: &[ToolResultBlock]) -> Result<(), ApiError> {
    content
        .iter()
        .enumerate()
        .try_for_each(|(index, block)| block.validate(&format!("content[{index}]")))
}

pub(crate) fn parse_id<T: std::str::FromStr>(field: &str, id: &str) -> Result<T, ApiError>
where
    T::Err: std::fmt::Display,
{
    check::text(field, id, 1..=128)?;
    id.parse()
        .map_err(|error| ApiError::invalid(format!("{field}: `{}` is {error}", check::excerpt(id))))
}

#[cfg(test)]
mod tests;
