//! From an empty database to one that can be used.

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use secrecy::{ExposeSecret as _, SecretString};
use selfsame_store::{Actor, Deployment, Scope, Store};
use selfsame_types::WorkspaceId;

use crate::app::{key_for, new_deployment, new_token};

/// The first key of a new deployment, to be shown once.
#[derive(Debug)]
pub struct FirstKey {
    pub token: SecretString,
    /// Where it was written.
    pub file: PathBuf,
}

/// Reads the deployment's row, or makes it with a workspace and a first key; and sees to it that the
/// configured key, if there is one, works.
///
/// # Errors
/// When the database fails, or the key's file cannot be written: then nothing was made.
pub async fn bootstrap(
    store: &Store,
    data_dir: &Path,
    fixed: Option<&SecretString>,
) -> anyhow::Result<(Deployment, Option<FirstKey>)> {
    if let Some(deployment) = store.deployment_get().await? {
        ensure_fixed(store, fixed).await?;
        return Ok((deployment, None));
    }
    let token = fixed.map_or_else(new_token, |key| key.expose_secret().to_owned());
    let deployment = new_deployment();
    // Before the database: a key that exists must be known to somebody.
    let waiting = write_key(data_dir, &token)?;
    // Its workspace is made with it.
    let key = key_for(&token, WorkspaceId::new(), Scope::Admin, "first");
    if store.deployment_create(&deployment, key).await?.is_none() {
        let _ = fs::remove_file(&waiting);
        ensure_fixed(store, fixed).await?;
        let deployment = store.deployment_get().await?;
        return Ok((deployment.context("the deployment's row is gone")?, None));
    }
    let file = data_dir.join("key");
    fs::rename(&waiting, &file).with_context(|| format!("cannot write {}", file.display()))?;
    let first = FirstKey {
        token: token.into(),
        file,
    };
    Ok((deployment, Some(first)))
}

async fn ensure_fixed(store: &Store, fixed: Option<&SecretString>) -> anyhow::Result<()> {
    let Some(token) = fixed else { return Ok(()) };
    let workspaces = store.workspace_list().await?;
    let first = workspaces.first().context("there is no workspace")?;
    let key = key_for(token.expose_secret(), first.id, Scope::Admin, "auth.key");
    if store.key_create(key, &Actor::default()).await?.is_some() {
        tracing::info!("added the key of the configuration");
    }
    Ok(())
}

/// Writes the token beside where it will be, for nobody but us to read.
fn write_key(data_dir: &Path, token: &str) -> anyhow::Result<PathBuf> {
    let path = data_dir.join(format!(".key-{}", std::process::id()));
    let _ = fs::remove_file(&path);
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .and_then(|mut file| {
            file.write_all(token.as_bytes())?;
            file.write_all(b"\n")?;
            file.sync_all()
        })
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use selfsame_store::TokenHash;
    use sqlx::PgPool;

    use super::*;

    #[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
    async fn the_first_start_makes_a_key_and_later_ones_do_not(pool: PgPool) {
        let store = Store::from_pool(pool);
        let directory = tempfile::tempdir().unwrap();
        let (deployment, first) = bootstrap(&store, directory.path(), None).await.unwrap();
        let first = first.unwrap();
        let written = fs::read_to_string(&first.file).unwrap();
        assert_eq!(written.trim(), first.token.expose_secret());
        let mode = fs::metadata(&first.file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        let hash = TokenHash::of(written.trim());
        let key = store.key_authenticate(hash).await.unwrap().unwrap();
        assert_eq!(key.scope, Scope::Admin);
        assert!(!key.hint.contains(written.trim()) && key.hint.starts_with("sk-selfsame-"));

        let (again, none) = bootstrap(&store, directory.path(), None).await.unwrap();
        assert!(none.is_none());
        assert_eq!(again, deployment);

        // A fixed key is added to what is there, once.
        let fixed = SecretString::from("a-fixed-key-of-an-operator");
        for _ in 0..2 {
            let result = bootstrap(&store, directory.path(), Some(&fixed)).await;
            assert!(result.unwrap().1.is_none());
        }
        assert_eq!(store.key_list(None).await.unwrap().len(), 2);
        let hash = TokenHash::of(fixed.expose_secret());
        assert!(store.key_authenticate(hash).await.unwrap().is_some());
    }

    #[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
    async fn a_fixed_key_is_the_first_one_of_an_empty_database(pool: PgPool) {
        let store = Store::from_pool(pool);
        let directory = tempfile::tempdir().unwrap();
        let fixed = SecretString::from("a-fixed-key-of-an-operator");
        let (_, first) = bootstrap(&store, directory.path(), Some(&fixed))
            .await
            .unwrap();
        assert_eq!(first.unwrap().token.expose_secret(), fixed.expose_secret());
        assert_eq!(store.key_list(None).await.unwrap().len(), 1);
    }

    #[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
    async fn without_a_place_for_the_key_nothing_is_made(pool: PgPool) {
        let store = Store::from_pool(pool);
        let nowhere = Path::new("/nonexistent/selfsame");
        assert!(bootstrap(&store, nowhere, None).await.is_err());
        assert_eq!(store.deployment_get().await.unwrap(), None);
    }
}
