//! The `selfsame` server: HTTP, configuration, command line, private Postgres.
//!
//! A request passes [`middleware::observe`] (id, span, envelope), [`middleware::authenticate`]
//! (principal, limits, beta header), an extractor of [`extract`], and a function of [`handlers`].

pub mod app;
pub mod assembly;
mod auth;
pub mod bootstrap;
pub mod cli;
pub mod config;
pub mod error;
pub mod extract;
pub mod handlers;
mod limits;
mod linger;
pub mod listen;
pub mod logging;
pub mod master_key;
pub mod metrics;
pub mod middleware;
pub mod open_files;
mod openapi;
pub mod postgres;
pub mod router;
#[cfg(test)]
pub mod testing;
#[cfg(test)]
mod tests;
mod unread;
