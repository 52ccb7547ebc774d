//! One function per operation, one file per resource.

pub mod agents;
pub mod environments;
pub mod models;
pub mod operations;
