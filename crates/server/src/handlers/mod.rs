//! One function per operation, one file per resource.

pub mod models;
pub mod operations;
