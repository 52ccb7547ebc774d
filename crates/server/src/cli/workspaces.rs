//! `selfsame workspaces`

use clap::Subcommand;
use selfsame_store::{Actor, Store};

use super::{
    Context,
    database::{Database, make_data_dir},
};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Makes a workspace and prints its id
    Create { name: String },
    /// Lists workspaces, the default first
    List,
}

pub(super) async fn run(context: Context, command: Command) -> anyhow::Result<()> {
    let data_dir = &context.config.data_dir;
    make_data_dir(data_dir)?;
    let database = Database::visit(&context).await?;
    let done = match database.bootstrap(data_dir, &context).await {
        Ok(_) => execute(&database.store, command).await,
        Err(error) => Err(error),
    };
    database.close().await;
    print!("{}", done?);
    Ok(())
}

async fn execute(store: &Store, command: Command) -> anyhow::Result<String> {
    let workspaces = store.workspace_list().await?;
    match command {
        Command::Create { name } => {
            // Names are how operators speak of them; the API knows ids alone.
            if workspaces.iter().any(|workspace| workspace.name == name) {
                anyhow::bail!("there is a workspace named {name} already");
            }
            let made = store.workspace_create(&name, &Actor::default()).await?;
            Ok(format!("{}\n", made.id))
        }
        Command::List => {
            let mut rows = vec![["ID", "CREATED", "NAME"].map(str::to_owned)];
            rows.extend(workspaces.into_iter().map(|workspace| {
                [
                    workspace.id.to_string(),
                    workspace.created_at.to_string(),
                    workspace.name,
                ]
            }));
            Ok(super::align(&rows))
        }
    }
}
