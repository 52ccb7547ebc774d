//! The master key: from the configuration, from its file, or made at the first start.

use std::{
    fs::{self, OpenOptions},
    io::{ErrorKind, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
    sync::Arc,
};

use anyhow::{Context as _, bail};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use secrecy::ExposeSecret as _;
use selfsame_store::{LocalKey, SealError, Sealer, Store, StoreError};
use zeroize::Zeroizing;

use crate::config::Config;

/// The store with its master key, which must be the one this database knows.
///
/// # Errors
/// When the key cannot be read, is not one, or is another than the database's.
pub async fn unlock(config: &Config, store: Store) -> anyhow::Result<Store> {
    let (key, source) = match &config.secrets.master_key {
        Some(text) => (
            parse(text.expose_secret()).context("secrets.master_key")?,
            "secrets.master_key".to_owned(),
        ),
        None => {
            let file = match &config.secrets.master_key_file {
                Some(file) => file.clone(),
                None => config.data_dir.join("master-key"),
            };
            let key = match read(&file)? {
                Some(key) => key,
                None if config.secrets.master_key_file.is_some() => {
                    bail!(
                        "there is no file {} (secrets.master_key_file)",
                        file.display()
                    )
                }
                None => make(&file)?,
            };
            (key, file.display().to_string())
        }
    };
    let store = store.with_sealer(Sealer::new(Arc::new(LocalKey::new(key))));
    match store.master_key_check().await {
        Ok(()) => Ok(store),
        Err(StoreError::Seal(SealError::OtherKey { wanted, present })) => bail!(
            "the secrets in this database are sealed with the master key `{wanted}`, and {source} holds \
             `{present}`. Set secrets.master_key, or put the right key's file there: the first server of \
             this database made it as `master-key` in its data directory"
        ),
        Err(error) => Err(error).context("cannot check the master key"),
    }
}

fn parse(text: &str) -> anyhow::Result<Zeroizing<[u8; 32]>> {
    let bytes = STANDARD.decode(text.trim()).map(Zeroizing::new);
    bytes
        .ok()
        .and_then(|bytes| bytes.as_slice().try_into().ok())
        .map(Zeroizing::new)
        .context("a master key is 32 bytes in base64, as from `openssl rand -base64 32`")
}

fn read(file: &Path) -> anyhow::Result<Option<Zeroizing<[u8; 32]>>> {
    let text = match fs::read_to_string(file) {
        Ok(text) => Zeroizing::new(text),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return Err(error).with_context(|| format!("cannot read {}", file.display()));
        }
    };
    let mode = fs::metadata(file).map_or(0, |meta| meta.permissions().mode());
    if mode & 0o077 != 0 {
        tracing::warn!(file = %file.display(), "others can read the master key: chmod 600 it");
    }
    parse(&text)
        .with_context(|| file.display().to_string())
        .map(Some)
}

/// A new key in its file, for nobody but us to read. Linked into place when it is complete, so that of two
/// servers on one data directory both have the first one's.
fn make(file: &Path) -> anyhow::Result<Zeroizing<[u8; 32]>> {
    let key = Zeroizing::new(rand::random::<[u8; 32]>());
    let text = Zeroizing::new(STANDARD.encode(*key));
    let cannot = || format!("cannot write {}", file.display());
    let waiting = file.with_extension(format!("{}", std::process::id()));
    let _ = fs::remove_file(&waiting);
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&waiting)
        .and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.write_all(b"\n")?;
            file.sync_all()
        })
        .with_context(cannot)?;
    let linked = fs::hard_link(&waiting, file);
    fs::remove_file(&waiting).with_context(cannot)?;
    match linked {
        Ok(()) => Ok(key),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => read(file)?.with_context(cannot),
        Err(error) => Err(error).with_context(cannot),
    }
}

#[cfg(test)]
mod tests {
    use sqlx::PgPool;

    use super::*;

    #[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
    async fn the_first_start_makes_a_key_and_another_one_is_refused(pool: PgPool) {
        let store = Store::from_pool(pool);
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let config = |directory: &Path| Config {
            data_dir: directory.to_owned(),
            ..Config::default()
        };
        unlock(&config(one.path()), store.clone()).await.unwrap();
        let file = one.path().join("master-key");
        let mode = fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(one.path()).unwrap().count(), 1);
        unlock(&config(one.path()), store.clone()).await.unwrap();

        let refused = unlock(&config(two.path()), store.clone())
            .await
            .unwrap_err();
        assert!(
            refused.to_string().contains("sealed with the master key"),
            "{refused}"
        );

        // The same key by another way.
        let text = fs::read_to_string(&file).unwrap();
        let mut by_text = config(two.path());
        by_text.secrets.master_key = Some(text.trim().into());
        unlock(&by_text, store.clone()).await.unwrap();
        let mut by_file = config(two.path());
        by_file.secrets.master_key_file = Some(file);
        unlock(&by_file, store.clone()).await.unwrap();

        by_text.secrets.master_key = Some("c2hvcnQ=".into());
        let refused = format!("{:#}", unlock(&by_text, store.clone()).await.unwrap_err());
        assert!(
            refused.contains("32 bytes") && !refused.contains("c2hvcnQ="),
            "{refused}"
        );
        by_file.secrets.master_key_file = Some(two.path().join("absent"));
        assert!(unlock(&by_file, store).await.is_err());
        assert!(!two.path().join("absent").exists());
    }
}
