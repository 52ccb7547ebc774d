//! Logs go to standard error; standard output belongs to what commands print.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

use crate::config::{Log, LogFormat};

/// Starts logging for the process.
///
/// # Errors
/// When `log.level` cannot be understood, or logging has begun already.
pub fn install(log: &Log) -> anyhow::Result<()> {
    // Postgres' notices are about migrations that have run already. The client of MCP servers logs what
    // they say; what matters of it is logged by the engine, in words of its own.
    let quiet = "sqlx::postgres::notice=warn,rmcp=off";
    let filter = EnvFilter::try_new(format!("{quiet},{}", log.level))
        .map_err(|error| anyhow::anyhow!("log.level: {error}"))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    let installed = match log.format {
        LogFormat::Text => builder.with_target(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    installed.map_err(|error| anyhow::anyhow!("logging: {error}"))
}
