//! Upstream model APIs behind one trait.
//!
//! A [`Provider`] takes a [`Request`] in the shape of the Messages API and gives a stream of
//! [`Delta`]s that ends with [`Delta::Done`] or with one [`ModelError`]. Dropping the stream cancels
//! the request upstream at once.
//!
//! ```text
//! Router ── picks by model id ──▶ AnthropicProvider ── bytes ──▶ sse::Decoder ──▶ messages::Parser ──▶ Delta
//! ```
//!
//! The parser is pure: bytes in, deltas out, however the bytes are cut. Retrying is the caller's,
//! because the attempt count must survive a crash; [`retry`] says how long to wait.

mod anthropic;
mod catalog;
mod error;
pub mod messages;
mod request;
mod response;
pub mod retry;
mod router;
pub mod sse;

pub use anthropic::{AnthropicConfig, AnthropicProvider};
pub use catalog::{ModelInfo, Models, ThinkingSupport};
pub use error::{ModelError, ModelErrorKind};
pub use request::{Request, Thinking};
pub use response::{Block, BlockKind, Delta, ResponseStream, StopDetails, StopReason, Usage};
pub use router::{Route, Router};

/// An API that answers Messages requests.
#[async_trait::async_trait]
pub trait Provider: Send + Sync + std::fmt::Debug {
    /// Sends the request and returns once the upstream has accepted it.
    ///
    /// # Errors
    /// What the upstream answered instead, or why it could not be asked.
    async fn stream(&self, request: Request) -> Result<ResponseStream, ModelError>;
}
