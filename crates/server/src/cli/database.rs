//! The database of a command or of the server: a configured one, or the private one.

use std::{ffi::OsStr, path::Path};

use anyhow::Context as _;
use secrecy::ExposeSecret as _;
use selfsame_store::{Deployment, Store};

use super::Context;
use crate::postgres::{Options, Postgres};

/// A connected store, and the private Postgres below it, if there is one.
#[derive(Debug)]
pub(super) struct Database {
    pub(super) store: Store,
    postgres: Option<Postgres>,
}

impl Database {
    /// For the server, which owns its private Postgres.
    pub(super) async fn open(context: &Context) -> anyhow::Result<Self> {
        Self::connect(context, true).await
    }

    /// For a command, which uses that of a running server if there is one.
    pub(super) async fn visit(context: &Context) -> anyhow::Result<Self> {
        Self::connect(context, false).await
    }

    async fn connect(context: &Context, own: bool) -> anyhow::Result<Self> {
        let database = &context.config.database;
        let connections = if own { database.connections } else { 2 };
        if let Some(url) = &database.url {
            let store = Store::connect(url.expose_secret(), connections)
                .await
                .context("cannot use the database of database.url")?;
            return Ok(Self {
                store,
                postgres: None,
            });
        }
        let options = Options {
            data_dir: &context.config.data_dir,
            bin: database.postgres_bin.as_deref(),
            search_path: OsStr::new(&context.search_path),
            connections: database.connections,
        };
        let postgres = if own {
            Postgres::start(options).await?
        } else {
            Postgres::visit(options).await?
        };
        match Store::connect(postgres.url(), connections).await {
            Ok(store) => Ok(Self {
                store,
                postgres: Some(postgres),
            }),
            Err(error) => {
                postgres.stop().await;
                Err(error).context("cannot use the private Postgres")
            }
        }
    }

    pub(super) async fn close(self) {
        drop(self.store);
        if let Some(postgres) = self.postgres {
            postgres.stop().await;
        }
    }

    /// For a command: makes sure that there is a deployment to manage.
    pub(super) async fn bootstrap(
        &self,
        data_dir: &Path,
        context: &Context,
    ) -> anyhow::Result<Deployment> {
        let fixed = context.config.auth.key.as_ref();
        let (deployment, first) = crate::bootstrap::bootstrap(&self.store, data_dir, fixed).await?;
        if let Some(first) = first {
            eprintln!(
                "This database is new: its first key is in {}",
                first.file.display()
            );
        }
        Ok(deployment)
    }
}

/// Makes the data directory where it does not exist yet.
pub(super) fn make_data_dir(path: &Path) -> anyhow::Result<()> {
    crate::postgres::create_data_dir(path)
        .with_context(|| format!("cannot make the data directory {}", path.display()))
}
