//! The public API as Rust types: what a request may say, what a response looks like, and the rules
//! that need nothing but the value itself. No I/O.
//!
//! Request types refuse unknown fields; response types write every nullable key. Rules that span
//! fields are methods named `validate` and answer [`ApiError`] with a message that says what to do.

pub mod agent;
mod check;
pub mod content;
pub mod environment;
pub mod error;
pub mod event;
pub mod ids;
pub mod inbound;
pub mod metadata;
pub mod model;
pub mod multiagent;
pub mod page;
pub mod patch;
pub mod session;
pub mod thread;
pub mod time;
pub mod tool;
mod wire;

pub use error::{ApiError, ErrorKind};
pub use ids::*;
pub use metadata::{EmptyValue, Metadata, MetadataPatch};
pub use page::{Order, Page, Position, TwoWayPage};
pub use patch::Patch;
pub use time::Timestamp;
