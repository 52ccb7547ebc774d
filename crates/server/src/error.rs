//! From faults to answers.
//!
//! Handlers return [`Result<T>`]. An [`ApiError`] is for the client and goes out as it is; any fault
//! of ours ([`StoreError`], a bug) is logged here, once, with its whole chain, and the client gets
//! a bare 500 or 503. A response made from an [`Error`] has no body yet: it carries the error in its
//! extensions, and [`crate::middleware::observe`], which knows the request id, writes the envelope.

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use selfsame_engine::vaults::{ValidateError, VaultsError};
use selfsame_store::{BlobError, StoreError};
use selfsame_types::{ApiError, ErrorKind};

/// What a handler fails with.
#[derive(Debug)]
pub enum Error {
    /// The client's mistake, or a state it must know about.
    Api(ApiError),
    /// The database's.
    Store(StoreError),
    /// Of the place where contents are.
    Blob(BlobError),
    /// Ours. Shown in the log, never to the client.
    Internal(Box<dyn std::error::Error + Send + Sync>),
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// A fault of this program: logged in full, answered with a bare 500.
    pub fn internal(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Internal(source.into())
    }

    /// What the client is told. Logs what it is not told.
    #[must_use]
    pub fn into_api(self) -> ApiError {
        match self {
            Self::Api(error) => error,
            Self::Store(error)
                if error.is_transient() || matches!(error, StoreError::LeaseLost) =>
            {
                tracing::warn!(error = chain(&error), "the database is not available");
                ApiError {
                    should_retry: Some(true),
                    retry_after: Some(1),
                    ..ApiError::new(
                        ErrorKind::Unavailable,
                        "The server is not available at the moment; try again",
                    )
                }
            }
            Self::Store(error) => {
                tracing::error!(error = chain(&error), "the database failed");
                ApiError::internal()
            }
            Self::Blob(BlobError::TooLarge(limit)) => ApiError::new(
                ErrorKind::TooLarge,
                format!("The file is larger than {limit} bytes"),
            ),
            Self::Blob(error @ BlobError::Storage(_)) => {
                tracing::error!(error = chain(&error), "the place of files is not available");
                ApiError::new(
                    ErrorKind::Unavailable,
                    "The contents of files are not available at the moment; try again",
                )
            }
            Self::Blob(error) => {
                tracing::error!(error = chain(&error), "a content failed");
                ApiError::internal()
            }
            Self::Internal(error) => {
                tracing::error!(error = chain(&*error), "a request failed");
                ApiError::internal()
            }
        }
    }
}

impl From<ApiError> for Error {
    fn from(error: ApiError) -> Self {
        Self::Api(error)
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<BlobError> for Error {
    fn from(error: BlobError) -> Self {
        Self::Blob(error)
    }
}

impl From<ValidateError> for Error {
    fn from(error: ValidateError) -> Self {
        match error {
            ValidateError::Api(error) => Self::Api(error),
            ValidateError::Vaults(VaultsError::Store(error)) => Self::Store(error),
            ValidateError::Vaults(error) => Self::internal(error),
        }
    }
}

/// An error that still has to be written as a body.
#[derive(Debug, Clone)]
pub(crate) struct Failure(pub(crate) ApiError);

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let error = self.into_api();
        let status = StatusCode::from_u16(error.kind.status())
            .expect("every kind of error has a valid status");
        let mut response = status.into_response();
        let headers = response.headers_mut();
        if let Some(retry) = error.should_retry {
            headers.insert(
                "x-should-retry",
                HeaderValue::from_static(if retry { "true" } else { "false" }),
            );
        }
        if let Some(seconds) = error.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response.extensions_mut().insert(Failure(error));
        response
    }
}

/// An error and everything behind it, in one line.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    use std::fmt::Write as _;
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let _ = write!(text, ": {error}");
        source = error.source();
    }
    text
}
