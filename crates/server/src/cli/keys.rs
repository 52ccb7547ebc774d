//! `selfsame keys`

use anyhow::Context as _;
use clap::{Subcommand, ValueEnum};
use selfsame_store::{Actor, Key, Scope, Store, Workspace};
use selfsame_types::{KeyId, WorkspaceId};

use super::{
    Context,
    database::{Database, make_data_dir},
};
use crate::app::{key_for, new_token};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Makes a key and prints it, this once
    Create {
        /// What to recognise it by
        #[arg(long, default_value = "")]
        name: String,
        #[arg(long, value_enum, default_value_t = ScopeName::Standard)]
        scope: ScopeName,
        /// Id or name; a workspace of a new name is made
        #[arg(long, default_value = "default")]
        workspace: String,
    },
    /// Lists keys, without the keys themselves
    List {
        /// Id or name; all workspaces when absent
        #[arg(long)]
        workspace: Option<String>,
    },
    /// Makes a key useless, within a few seconds everywhere
    Revoke {
        /// As listed (`apikey_01...`)
        id: KeyId,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(super) enum ScopeName {
    /// Everything, and the management of keys
    Admin,
    /// Everything but the management of keys
    Standard,
    /// GET alone
    ReadOnly,
}

impl From<ScopeName> for Scope {
    fn from(name: ScopeName) -> Self {
        match name {
            ScopeName::Admin => Self::Admin,
            ScopeName::Standard => Self::Standard,
            ScopeName::ReadOnly => Self::ReadOnly,
        }
    }
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

/// Does it, and answers what to print.
async fn execute(store: &Store, command: Command) -> anyhow::Result<String> {
    let operator = Actor::default();
    match command {
        Command::Create {
            name,
            scope,
            workspace,
        } => {
            let workspace = match find(store, &workspace).await? {
                Some(workspace) => workspace,
                None if workspace.parse::<WorkspaceId>().is_ok() => {
                    anyhow::bail!("there is no workspace {workspace}")
                }
                None => {
                    let made = store.workspace_create(&workspace, &operator).await?;
                    eprintln!("made workspace {} ({})", made.name, made.id);
                    made
                }
            };
            let token = new_token();
            let key = key_for(&token, workspace.id, scope.into(), &name);
            let key = store.key_create(key, &operator).await?;
            let key = key.context("the random key exists already; try again")?;
            eprintln!("made {} in workspace {}", key.id, workspace.name);
            Ok(format!("{token}\n"))
        }
        Command::List { workspace } => {
            let workspace = match workspace {
                None => None,
                Some(wanted) => Some(
                    find(store, &wanted)
                        .await?
                        .with_context(|| format!("there is no workspace {wanted}"))?
                        .id,
                ),
            };
            Ok(table(
                &store.key_list(workspace).await?,
                &store.workspace_list().await?,
            ))
        }
        Command::Revoke { id } => {
            if !store.key_revoke(id, &operator).await? {
                anyhow::bail!("{id} does not exist or is revoked already");
            }
            Ok(format!("revoked {id}\n"))
        }
    }
}

/// A workspace by id or by name, the oldest of that name.
pub(super) async fn find(store: &Store, wanted: &str) -> anyhow::Result<Option<Workspace>> {
    let workspaces = store.workspace_list().await?;
    Ok(workspaces
        .into_iter()
        .find(|workspace| workspace.name == wanted || workspace.id.to_string() == wanted))
}

fn table(keys: &[Key], workspaces: &[Workspace]) -> String {
    let mut rows = vec![
        [
            "ID",
            "WORKSPACE",
            "SCOPE",
            "KEY",
            "CREATED",
            "LAST USED",
            "STATE",
            "NAME",
        ]
        .map(str::to_owned),
    ];
    for key in keys {
        let workspace = workspaces
            .iter()
            .find(|workspace| workspace.id == key.workspace)
            .map_or_else(String::new, |workspace| workspace.name.clone());
        let state = match (key.revoked_at, key.expires_at) {
            (Some(at), _) => format!("revoked {at}"),
            (None, Some(at)) => format!("until {at}"),
            (None, None) => "live".to_owned(),
        };
        rows.push([
            key.id.to_string(),
            workspace,
            key.scope.as_str().to_owned(),
            key.hint.clone(),
            key.created_at.to_string(),
            key.last_used_at
                .map_or_else(|| "never".to_owned(), |at| at.to_string()),
            state,
            key.name.clone(),
        ]);
    }
    super::align(&rows)
}

#[cfg(test)]
mod tests {
    use selfsame_store::TokenHash;
    use sqlx::PgPool;

    use super::*;

    #[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
    async fn keys_are_made_listed_and_revoked(pool: PgPool) {
        let store = Store::from_pool(pool);
        let create = |scope, workspace: &str| Command::Create {
            name: "mine".to_owned(),
            scope,
            workspace: workspace.to_owned(),
        };
        let token = execute(&store, create(ScopeName::ReadOnly, "new"))
            .await
            .unwrap();
        let hash = TokenHash::of(token.trim());
        let key = store.key_authenticate(hash).await.unwrap().unwrap();
        assert_eq!((key.scope, &*key.name), (Scope::ReadOnly, "mine"));
        // The workspace of that name is taken the second time, by its id, too.
        execute(&store, create(ScopeName::Admin, "new"))
            .await
            .unwrap();
        let id = key.workspace.to_string();
        execute(&store, create(ScopeName::Admin, &id))
            .await
            .unwrap();
        assert_eq!(store.workspace_list().await.unwrap().len(), 1);
        let nowhere = WorkspaceId::new().to_string();
        assert!(
            execute(&store, create(ScopeName::Admin, &nowhere))
                .await
                .is_err()
        );

        let list = || Command::List { workspace: None };
        let listed = execute(&store, list()).await.unwrap();
        assert_eq!(listed.lines().count(), 4);
        assert!(listed.contains(&key.id.to_string()) && !listed.contains(token.trim()));

        let revoke = || Command::Revoke { id: key.id };
        execute(&store, revoke()).await.unwrap();
        assert!(execute(&store, revoke()).await.is_err());
        assert_eq!(store.key_authenticate(hash).await.unwrap(), None);
        let listed = execute(&store, list()).await.unwrap();
        assert!(listed.contains("revoked 20"), "{listed}");
    }
}
