//! Sandboxes: where they run ([`Backend`]) and how the server talks to the hands inside.

mod backend;
mod error;

pub use backend::{Backend, Duplex, Handle, Listed, Spec, Status};
pub use error::SandboxError;
