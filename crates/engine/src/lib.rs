//! Engine.
pub mod machine;
