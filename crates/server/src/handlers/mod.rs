//! One function per operation, one file per resource.

pub mod agents;
pub mod environments;
pub mod events;
pub mod files;
pub mod models;
pub mod operations;
pub mod resources;
pub mod sessions;
pub mod skills;
pub mod streams;
pub mod threads;
pub mod vaults;
mod views;
pub mod webhooks;
