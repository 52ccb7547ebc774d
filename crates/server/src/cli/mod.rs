//! The command line.
//!
//! `anyhow` is used here and in what only commands call; everything a request passes has narrow errors.

mod database;
mod keys;
mod mock;
mod serve;
mod skills;
mod vault;
mod webhooks;
mod workspaces;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::config::{self, Config, Sources};

/// A self-hosted managed-agents server.
#[derive(Debug, Parser)]
#[command(name = "selfsame", version, propagate_version = true)]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

/// What all commands need to find configuration and database.
#[derive(Debug, Args)]
struct Common {
    /// The configuration, a TOML file [env: SELFSAME_CONFIG]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where everything lives that is not in a database elsewhere (`data_dir`)
    #[arg(long, global = true, value_name = "DIR")]
    data_dir: Option<String>,
    /// PostgreSQL 15 or later; without it a private one in the data directory (`database.url`)
    #[arg(long, global = true, value_name = "URL")]
    database_url: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the server
    Serve {
        /// Address and port (`server.listen`)
        #[arg(long, value_name = "ADDR")]
        listen: Option<String>,
    },
    /// Manages API keys
    #[command(subcommand)]
    Keys(keys::Command),
    /// Manages workspaces
    #[command(subcommand)]
    Workspaces(workspaces::Command),
    /// Manages the skills that every workspace sees, such as `xlsx`
    #[command(subcommand)]
    Skills(skills::Command),
    /// Manages the master key, which seals the secrets of vaults and all others
    #[command(subcommand)]
    Vault(vault::Command),
    /// Manages webhook endpoints: who is told of what happens in a workspace
    Webhooks(webhooks::Arguments),
    /// Runs a scripted model, to try agents and clients without a key
    Mock {
        /// Address and port
        #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8788")]
        listen: std::net::SocketAddr,
    },
    /// Prints the effective configuration, with secrets masked
    Config,
    /// Prints the OpenAPI document
    Openapi,
}

/// Runs the program.
///
/// # Errors
/// Whatever stops the command; the whole chain is for people.
pub fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let environment = environment();
    let sources = cli.common.sources(&environment);
    match cli.command {
        Command::Openapi => {
            print!("{}", crate::router::document());
            Ok(())
        }
        Command::Config => {
            print!("{}", config::print(&sources)?);
            Ok(())
        }
        Command::Serve { listen } => {
            let mut sources = sources;
            if let Some(listen) = listen {
                sources.flags.push(("--listen", "server.listen", listen));
            }
            // For crash tests: end as `kill -9` would, at a named point.
            let fail = environment.iter().find(|(name, _)| name == "SELFSAME_FAIL");
            if let Some((_, spec)) = fail.filter(|(_, spec)| !spec.is_empty()) {
                selfsame_engine::fail::arm(spec)
                    .map_err(|problem| anyhow::anyhow!("SELFSAME_FAIL: {problem}"))?;
            }
            let context = Context::load(&sources, &environment)?;
            run(serve::serve(context))
        }
        Command::Mock { listen } => run(mock::run(listen)),
        Command::Keys(command) => run(keys::run(Context::quiet(&sources, &environment)?, command)),
        Command::Skills(command) => run(skills::run(
            Context::quiet(&sources, &environment)?,
            command,
        )),
        Command::Vault(command) => {
            run(vault::run(Context::quiet(&sources, &environment)?, command))
        }
        Command::Webhooks(arguments) => run(webhooks::run(
            Context::quiet(&sources, &environment)?,
            arguments,
        )),
        Command::Workspaces(command) => run(workspaces::run(
            Context::quiet(&sources, &environment)?,
            command,
        )),
    }
}

/// The configuration, and what of the environment is no configuration.
#[derive(Debug)]
struct Context {
    config: Config,
    search_path: String,
}

impl Context {
    fn load(sources: &Sources, environment: &[(String, String)]) -> anyhow::Result<Self> {
        let config = config::load(sources)?;
        crate::logging::install(&config.log)?;
        let search_path = environment
            .iter()
            .find(|(name, _)| name == "PATH")
            .map_or(String::new(), |(_, path)| path.clone());
        Ok(Self {
            config,
            search_path,
        })
    }

    /// For commands whose output is their answer: only what went wrong is logged.
    fn quiet(sources: &Sources, environment: &[(String, String)]) -> anyhow::Result<Self> {
        let mut sources = Sources {
            file: sources.file.clone(),
            environment: sources.environment.clone(),
            flags: sources.flags.clone(),
        };
        sources
            .flags
            .push(("log.level", "log.level", "warn".to_owned()));
        Self::load(&sources, environment)
    }
}

impl Common {
    fn sources(&self, environment: &[(String, String)]) -> Sources {
        let from_environment = environment
            .iter()
            .find(|(name, path)| name == "SELFSAME_CONFIG" && !path.is_empty())
            .map(|(_, path)| PathBuf::from(path));
        let mut flags = Vec::new();
        if let Some(directory) = &self.data_dir {
            flags.push(("--data-dir", "data_dir", directory.clone()));
        }
        if let Some(url) = &self.database_url {
            flags.push(("--database-url", "database.url", url.clone()));
        }
        Sources {
            file: self.config.clone().or(from_environment),
            environment: environment.to_vec(),
            flags,
        }
    }
}

/// All variables that are text. Read here, once, and passed on.
fn environment() -> Vec<(String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

/// Columns for a terminal.
fn align<const N: usize>(rows: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(row) {
            let padding = width - cell.chars().count() + 2;
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', padding));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn run(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(work)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_win_over_everything() {
        let cli = Cli::try_parse_from(["selfsame", "config", "--data-dir", "here"]).unwrap();
        let environment = [("SELFSAME__DATA_DIR".to_owned(), "there".to_owned())];
        let config = config::load(&cli.common.sources(&environment)).unwrap();
        assert_eq!(config.data_dir, PathBuf::from("here"));
    }
}
