//! The configuration: what there is ([`sections`]) and where it comes from ([`layers`]).
//!
//! `config.default.toml` is the documentation and the defaults, compiled in. Nothing else in the
//! program reads the environment.

mod layers;
mod sections;

pub use layers::{ConfigError, Sources, load, print};
pub use sections::*;

/// The documented defaults, as TOML text.
pub const DEFAULTS: &str = include_str!("../../config.default.toml");

impl Default for Config {
    /// `config.default.toml`.
    fn default() -> Self {
        toml::from_str(DEFAULTS).expect("config.default.toml is complete; a test holds it so")
    }
}
