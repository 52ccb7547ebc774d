//! Sandboxes: where they run ([`Backend`]) and how the server talks to the hands inside.

mod backend;
mod error;
mod sandbox;

pub use backend::{Backend, Duplex, Handle, Listed, Spec, Status};
pub use error::SandboxError;
pub use sandbox::Sandbox;
pub use selfsame_hands::{Call, CallResult, Content, Key};
