//! The error envelope, free of any transport.
//!
//! Every layer below the HTTP server that can refuse a *client* speaks [`ApiError`]; faults of our
//! own stay narrow types (`StoreError`, `SandboxError`, ...) and become [`ApiError::internal`] at the
//! server's boundary, where they are logged once and never shown.

use std::borrow::Cow;

use serde::Serialize;

/// What went wrong, as the API names it. Decides status and `error.type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    InvalidRequest,
    Authentication,
    Billing,
    Permission,
    NotFound,
    MethodNotAllowed,
    Timeout,
    Conflict,
    PreconditionFailed,
    TooLarge,
    RateLimit,
    Internal,
    NotImplemented,
    Unavailable,
    Overloaded,
}

impl ErrorKind {
    /// The HTTP status code.
    #[must_use]
    pub fn status(self) -> u16 {
        match self {
            Self::InvalidRequest => 400,
            Self::Authentication => 401,
            Self::Billing => 402,
            Self::Permission => 403,
            Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::Timeout => 408,
            Self::Conflict => 409,
            Self::PreconditionFailed => 412,
            Self::TooLarge => 413,
            Self::RateLimit => 429,
            Self::Internal => 500,
            Self::NotImplemented => 501,
            Self::Unavailable => 503,
            Self::Overloaded => 529,
        }
    }

    /// The value of `error.type`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::InvalidRequest | Self::MethodNotAllowed | Self::PreconditionFailed => {
                "invalid_request_error"
            }
            Self::Authentication => "authentication_error",
            Self::Billing => "billing_error",
            Self::Permission => "permission_error",
            Self::NotFound => "not_found_error",
            Self::Timeout => "timeout_error",
            Self::Conflict => "conflict_error",
            Self::TooLarge => "request_too_large",
            Self::RateLimit => "rate_limit_error",
            Self::Internal | Self::NotImplemented | Self::Unavailable => "api_error",
            Self::Overloaded => "overloaded_error",
        }
    }
}

/// An error that a client may see. Its message says what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {message}", kind.name())]
pub struct ApiError {
    pub kind: ErrorKind,
    pub message: Cow<'static, str>,
    /// `error.details.error_code`
    pub code: Option<&'static str>,
    /// `x-should-retry`; `None` leaves the client to its own rule.
    pub should_retry: Option<bool>,
    /// `retry-after`, seconds.
    pub retry_after: Option<u32>,
}

impl ApiError {
    pub fn new(kind: ErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            kind,
            message: message.into(),
            code: None,
            should_retry: None,
            retry_after: None,
        }
    }

    /// 400: the request is wrong or comes at the wrong time.
    pub fn invalid(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::InvalidRequest, message)
    }

    /// The same about a field further in.
    #[must_use]
    pub fn under(self, parent: &str) -> Self {
        Self {
            message: format!("{parent}.{}", self.message).into(),
            ..self
        }
    }

    /// 404 for an id that is unknown here: never existed, deleted, or of another workspace.
    pub fn not_found(what: &str, id: impl std::fmt::Display) -> Self {
        Self::new(ErrorKind::NotFound, format!("{what} `{id}` was not found"))
    }

    /// 409 that no retry can cure.
    pub fn conflict(message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            should_retry: Some(false),
            ..Self::new(ErrorKind::Conflict, message)
        }
    }

    /// 501: known to the API, not offered by this server.
    pub fn not_implemented(message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            should_retry: Some(false),
            ..Self::new(ErrorKind::NotImplemented, message)
        }
    }

    /// 500 without a word about its cause, which belongs in the log.
    #[must_use]
    pub fn internal() -> Self {
        Self::new(ErrorKind::Internal, "Internal server error")
    }

    #[must_use]
    pub fn with_code(mut self, code: &'static str) -> Self {
        self.code = Some(code);
        self
    }

    /// The JSON body.
    #[must_use]
    pub fn envelope(&self, request_id: Option<&str>) -> serde_json::Value {
        serde_json::to_value(Envelope {
            r#type: "error",
            error: Body {
                r#type: self.kind.name(),
                message: &self.message,
                details: self.code.map(|error_code| Details { error_code }),
            },
            request_id,
        })
        .expect("the envelope has only strings")
    }
}

#[derive(Serialize)]
struct Envelope<'a> {
    r#type: &'static str,
    error: Body<'a>,
    request_id: Option<&'a str>,
}

#[derive(Serialize)]
struct Body<'a> {
    r#type: &'static str,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<Details>,
}

#[derive(Serialize)]
struct Details {
    error_code: &'static str,
}
