//! `selfsame vault`

use std::{io::Write as _, time::Duration};

use anyhow::{Context as _, ensure};
use clap::Subcommand;
use selfsame_store::{ServerKeys, Store};
use tokio::time::Instant;

use super::{
    Context,
    database::{Database, make_data_dir},
};
use crate::{config::Config, master_key};

/// Rows that are rewrapped in one transaction.
const BATCH: i64 = 50;
/// How often the servers are looked at.
const LOOK: Duration = Duration::from_millis(200);

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Seals everything with another master key, while servers run
    ///
    /// The new key is the first one in the key file (or in `secrets.master_key`), the old one follows it. Servers
    /// take in a changed file by themselves; where the keys come from the environment, restart them one after the
    /// other. The command waits until each running server has the new key, makes it the one that seals, rewraps
    /// what is sealed with others, and retires those. If it is interrupted, run it again.
    RotateKey {
        /// First puts a new key into the key file. Other machines' servers need the file as it is then
        #[arg(long)]
        generate: bool,
        /// How long to wait for the servers
        #[arg(long, value_name = "SECONDS", default_value_t = 60)]
        wait: u64,
    },
    /// Lists master keys, what is sealed with them, and which servers have them
    Keys,
}

pub(super) async fn run(context: Context, command: Command) -> anyhow::Result<()> {
    let config = &context.config;
    make_data_dir(&config.data_dir)?;
    let database = Database::visit(&context).await?;
    let done = execute(config, &database.store, command).await;
    database.close().await;
    done
}

async fn execute(config: &Config, store: &Store, command: Command) -> anyhow::Result<()> {
    match command {
        Command::Keys => {
            let alive = store.servers_alive(lease(config)).await?;
            print!("{}", keys(store, &alive).await?);
            Ok(())
        }
        Command::RotateKey { generate, wait } => {
            if generate {
                // With a wrong key there is nothing to add one to.
                master_key::unlock(config, store.clone()).await?;
                master_key::generate(config)?;
                say(format_args!(
                    "A new key is in {}.",
                    master_key::source(config)
                ))?;
            }
            let store = master_key::unlock(config, store.clone()).await?;
            rotate(config, &store, Duration::from_secs(wait)).await
        }
    }
}

async fn rotate(config: &Config, store: &Store, wait: Duration) -> anyhow::Result<()> {
    let to = master_key::preferred(config)?;
    let source = master_key::source(config);
    let ids = store.sealer()?.key_ids();
    let others: Vec<_> = ids.iter().filter(|id| **id != to).collect();
    ensure!(
        !others.is_empty(),
        "{source} has one key only. Put a new one before it, as from `openssl rand -base64 32`, for each server; \
         or run this with --generate"
    );
    let deadline = Instant::now() + wait;
    let has = |server: &ServerKeys| server.keys.contains(&to);
    let servers = all(config, store, deadline, "do not have the new key yet", has).await?;
    say(format_args!("{servers} running servers have the key {to}."))?;
    store.master_key_switch(&to).await?;
    say(format_args!("New secrets are sealed with it."))?;
    let uses = |server: &ServerKeys| server.sealing.as_ref() == Some(&to);
    let deadline = Instant::now() + wait;
    all(
        config,
        store,
        deadline,
        "do not seal with the new key yet",
        uses,
    )
    .await?;

    for old in others {
        let mut rewrapped = 0;
        loop {
            match store.master_key_rewrap(old, &to, BATCH).await? {
                0 if store.master_key_retire(old).await? => break,
                // Somebody was writing.
                0 => tokio::time::sleep(LOOK).await,
                rows => rewrapped += rows,
            }
        }
        say(format_args!(
            "{rewrapped} secrets were sealed with {old}. Nothing is now, and nothing will be: it is retired."
        ))?;
    }
    say(format_args!(
        "Done. Every key but the first can be removed from {source} now."
    ))
}

/// Waits until what is asked holds for each running server, and answers how many there are.
async fn all(
    config: &Config,
    store: &Store,
    deadline: Instant,
    problem: &str,
    holds: impl Fn(&ServerKeys) -> bool,
) -> anyhow::Result<usize> {
    loop {
        let alive = store.servers_alive(lease(config)).await?;
        let behind: Vec<_> = alive.iter().filter(|server| !holds(server)).collect();
        if behind.is_empty() {
            return Ok(alive.len());
        }
        if Instant::now() > deadline {
            let names = behind
                .iter()
                .map(|server| format!("{} (started {})", server.server, server.started_at));
            anyhow::bail!(
                "these servers {problem}: {}. Give them the key, then run this again; both keys stay good until then",
                names.collect::<Vec<_>>().join(", ")
            );
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// A server that is silent for longer is no server any more; what it writes with a retired key is refused.
fn lease(config: &Config) -> Duration {
    Duration::from_secs(config.lease.ttl_seconds) * 2
}

async fn keys(store: &Store, alive: &[ServerKeys]) -> anyhow::Result<String> {
    let current = store.master_key_current().await?;
    let used = store.master_keys_used().await?;
    let mut ids: Vec<&String> = used.iter().map(|used| &used.master_key).collect();
    ids.extend(&current);
    ids.extend(alive.iter().flat_map(|server| &server.keys));
    ids.sort();
    ids.dedup();
    let mut rows = vec![["KEY", "SEALS", "SECRETS", "SERVERS"].map(str::to_owned)];
    for id in ids {
        let secrets: i64 = used
            .iter()
            .filter(|used| used.master_key == *id)
            .map(|used| used.rows)
            .sum();
        let servers = alive.iter().filter(|server| server.keys.contains(id));
        rows.push([
            id.clone(),
            if current.as_ref() == Some(id) {
                "yes"
            } else {
                ""
            }
            .to_owned(),
            secrets.to_string(),
            format!("{} of {}", servers.count(), alive.len()),
        ]);
    }
    Ok(super::align(&rows))
}

/// Said at once, for whoever watches it.
fn say(line: std::fmt::Arguments<'_>) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").context("standard output")?;
    Ok(out.flush()?)
}
