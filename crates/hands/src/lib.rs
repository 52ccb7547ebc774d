//! The hands: the program inside a sandbox that runs the built-in tools, and (in this library) the
//! protocol it speaks with a server.
//!
//! A server opens a private byte stream to the hands, is admitted ([`hello`]), and then both sides
//! speak yamux on it ([`mux`]): one substream for each call, carrying one request and one reply
//! ([`wire`]). Calls outlive connections. The hands keep every result until it is acknowledged, so
//! a server that lost its connection, or the successor of one that died, collects by sending the
//! same call id again.

pub mod carry;
mod content;
pub mod hello;
pub mod mux;
pub mod procs;
pub mod transfer;
pub mod wire;

pub use content::{Call, CallResult, Content, disk_full};
pub use hello::Key;
pub use transfer::{Found, Put, Ran, Run};

/// Socket that `serve` listens on and `connect` dials when they are told nothing else: a name in
/// the abstract namespace, so it needs no file inside.
pub const DEFAULT_SOCKET: &str = "@selfsame-hands";
