//! Why an MCP server cannot be used, in words that clients and models may read.

use std::time::Duration;

use rmcp::{
    model::ErrorData, service::ClientInitializeError, service::ServiceError,
    transport::DynamicTransportError, transport::streamable_http_client::StreamableHttpError,
};
use selfsame_net::{NetError, Refused, refusal, reqwest};

use crate::machine::{About, ErrorType, Trouble};

/// Of a server's own words so many characters are passed on.
const EXCERPT: usize = 300;

/// What is wrong with a server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Fault {
    /// It wants a credential, or does not take the one it was shown.
    #[error("{0}")]
    Authentication(String),
    /// Everything else.
    #[error("{0}")]
    Connection(String),
}

impl Fault {
    pub(super) fn connection(message: impl Into<String>) -> Self {
        Self::Connection(message.into())
    }

    pub(super) fn outcome(&self) -> &'static str {
        match self {
            Self::Authentication(_) => "authentication",
            Self::Connection(_) => "connection",
        }
    }

    /// What clients are told when a turn goes on without the server.
    pub(crate) fn trouble(&self, server: &str) -> Trouble {
        Trouble {
            error_type: match self {
                Self::Authentication(_) => ErrorType::McpAuthenticationFailedError,
                Self::Connection(_) => ErrorType::McpConnectionFailedError,
            },
            message: format!("The MCP server `{server}` cannot be used: {self}."),
            about: About::McpServer(server.to_owned()),
        }
    }
}

/// What went wrong with one HTTP exchange.
#[derive(Debug, thiserror::Error)]
pub(super) enum HttpError {
    #[error("it answers HTTP {0} and takes no credential that this session's vaults have for it")]
    Unauthorized(u16),
    #[error("the credential that a vault has for it cannot be sent in a header")]
    Credential,
    #[error("the credentials for it cannot be read at the moment")]
    Vaults,
    #[error("{0}")]
    Refused(Refused),
    #[error("no connection to it can be made")]
    Unreachable,
    #[error("the connection to it broke off")]
    Broken,
    #[error("it did not answer in time")]
    Timeout,
    #[error("it answers HTTP {0}")]
    Status(u16),
    #[error("it redirects to another place, which is not followed")]
    Redirect,
    #[error("its answer is neither JSON nor an event stream")]
    ContentType,
    #[error("its answer is no message of the protocol")]
    Unreadable,
    #[error("its answer is larger than {0} bytes")]
    TooLarge(usize),
    #[error("it sends more than anybody can read")]
    Flood,
    #[error("this server has too many large answers in the air; try again")]
    Busy,
    #[error("it names no place to send messages to")]
    NoEndpoint,
}

impl HttpError {
    /// The server is there and speaks something else: another way of connecting may be the right one.
    pub(super) fn is_dialect(&self) -> bool {
        match self {
            Self::Status(status) => *status != 429,
            Self::ContentType | Self::Unreadable | Self::NoEndpoint => true,
            _ => false,
        }
    }

    fn fault(&self) -> Fault {
        match self {
            Self::Unauthorized(_) | Self::Credential => Fault::Authentication(self.to_string()),
            _ => Fault::Connection(self.to_string()),
        }
    }
}

impl From<reqwest::Error> for HttpError {
    fn from(error: reqwest::Error) -> Self {
        if let Some(refused) = refusal(&error) {
            Self::Refused(refused.clone())
        } else if error.is_builder() {
            Self::Credential
        } else if error.is_timeout() {
            Self::Timeout
        } else if error.is_connect() {
            Self::Unreachable
        } else {
            Self::Broken
        }
    }
}

impl From<NetError> for HttpError {
    fn from(error: NetError) -> Self {
        match error {
            NetError::TooLarge(max) => Self::TooLarge(max),
            _ => Self::Broken,
        }
    }
}

/// The exchange behind an error of the library's transports.
fn exchange(error: &DynamicTransportError) -> Option<&HttpError> {
    let error = error.error.as_ref();
    error.downcast_ref::<HttpError>().or_else(|| {
        match error.downcast_ref::<StreamableHttpError<HttpError>>()? {
            StreamableHttpError::Client(error) => Some(error),
            _ => None,
        }
    })
}

/// Why a connection could not be made.
pub(super) enum Unconnected {
    /// The exchange that failed.
    Http(Fault, bool),
    Other(Fault),
}

impl Unconnected {
    pub(super) fn of(error: &ClientInitializeError) -> Self {
        match error {
            ClientInitializeError::TransportError { error, .. } => match exchange(error) {
                Some(http) => Self::Http(http.fault(), http.is_dialect()),
                None => Self::Other(Fault::connection("the connection to it broke off")),
            },
            // What it made of the older handshake tells more than what it made of the newer one.
            ClientInitializeError::LegacyFallbackFailed { fallback, .. } => Self::of(fallback),
            ClientInitializeError::JsonRpcError(error) => {
                Self::Other(Fault::connection(format!("it refuses: {}", said(error))))
            }
            ClientInitializeError::NoCompatibleProtocolVersion { .. } => Self::Other(
                Fault::connection("it speaks no version of the protocol that is known here"),
            ),
            _ => Self::Http(
                Fault::connection("its answer to the first request is not one of the protocol"),
                true,
            ),
        }
    }

    pub(super) fn http(error: &HttpError) -> Self {
        Self::Http(error.fault(), error.is_dialect())
    }

    pub(super) fn is_dialect(&self) -> bool {
        matches!(self, Self::Http(_, true))
    }

    pub(super) fn fault(self) -> Fault {
        match self {
            Self::Http(fault, _) | Self::Other(fault) => fault,
        }
    }
}

/// How a request ended that has no result.
#[derive(Debug)]
pub(super) enum Unanswered {
    /// The server refused this request; it works all the same.
    Refused(String),
    Fault(Fault),
}

impl From<ServiceError> for Unanswered {
    fn from(error: ServiceError) -> Self {
        match &error {
            ServiceError::McpError(error) => Self::Refused(said(error)),
            ServiceError::TransportSend(error) => Self::Fault(match exchange(error) {
                Some(http) => http.fault(),
                None => Fault::connection("the connection to it broke off"),
            }),
            ServiceError::UnexpectedResponse => {
                Self::Refused("its answer is not what was asked for".to_owned())
            }
            _ => Self::Fault(Fault::connection("the connection to it broke off")),
        }
    }
}

pub(super) fn late(limit: Duration) -> Fault {
    Fault::Connection(format!(
        "it did not answer within {} seconds",
        limit.as_secs_f64()
    ))
}

/// A server's own words, as far as they are for others to read.
fn said(error: &ErrorData) -> String {
    let message: String = error
        .message
        .chars()
        .take(EXCERPT)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    format!("{message} ({})", error.code.0)
}
