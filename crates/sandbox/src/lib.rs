//! Sandboxes: where they run ([`Backend`]) and how the server talks to the hands inside.

mod backend;
mod disk;
mod docker;
mod error;
mod outgoing;
mod process;
mod sandbox;
mod transfer;

pub use backend::{Backend, Duplex, Handle, Listed, OWN_IMAGES, Spec, Status};
pub use docker::{DiskLimit, DockerBackend, DockerOptions, Limits};
pub use error::SandboxError;
pub use outgoing::{Carried, Outgoing};
pub use process::ProcessBackend;
pub use sandbox::Sandbox;
pub use selfsame_hands::{Call, CallResult, Content, Found, Key, Put, Ran, Run, wire::DoorState};
pub use transfer::Got;
