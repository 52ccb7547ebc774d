//! The master keys: from the configuration, from their file, or made at the first start.

use std::{
    fs::{self, OpenOptions},
    io::{ErrorKind, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use secrecy::ExposeSecret as _;
use selfsame_store::{KeyWrap, LocalKey, SealError, Sealer, Store, StoreError};
use zeroize::Zeroizing;

use crate::config::Config;

/// How often a running server looks for new keys in the file.
const FOLLOW: Duration = Duration::from_secs(2);

type Key = Zeroizing<[u8; 32]>;

/// The store with its master keys, which must be those this database knows.
///
/// # Errors
/// When a key cannot be read, is not one, or one is missing that something is sealed with.
pub async fn unlock(config: &Config, store: Store) -> anyhow::Result<Store> {
    let keys = match given(config)? {
        Some(keys) => keys,
        None => vec![make(&file(config))?],
    };
    if config.secrets.master_key.is_none() {
        check_mode(&file(config));
    }
    let store = store.with_sealer(sealer(keys));
    match store.master_key_check().await {
        Ok(()) => Ok(store),
        Err(StoreError::Seal(SealError::OtherKey { wanted, present })) => {
            let used = store.master_keys_used().await?;
            let (source, many) = (source(config), used.iter().any(|u| u.master_key != wanted));
            let some = if many { "some secrets" } else { "the secrets" };
            bail!(
                "{some} in this database are sealed with the master key `{wanted}`, and {source} holds \
                 `{present}`. Put the right key there: the first server of this database made it as \
                 `master-key` in its data directory. During a rotation servers need both keys, until \
                 `selfsame vault rotate-key` says that the old one is retired"
            )
        }
        Err(error) => Err(error).context("cannot check the master key"),
    }
}

fn sealer(keys: Vec<Key>) -> Sealer {
    let mut keys = keys.into_iter().map(wrapping);
    let first = keys.next().expect("there is a key, or it was refused");
    let sealer = Sealer::new(first);
    for key in keys {
        sealer.add(key);
    }
    sealer
}

fn wrapping(key: Key) -> Arc<dyn KeyWrap> {
    Arc::new(LocalKey::new(key))
}

/// The name by which rows remember a key, of the first one that is configured.
///
/// # Errors
/// When there is none.
pub fn preferred(config: &Config) -> anyhow::Result<String> {
    let keys = given(config)?.context("there is no master key yet: start the server once")?;
    Ok(sealer(keys).sealing_id())
}

/// Where the keys come from, for a person.
#[must_use]
pub fn source(config: &Config) -> String {
    match &config.secrets.master_key {
        Some(_) => "secrets.master_key".to_owned(),
        None => file(config).display().to_string(),
    }
}

fn file(config: &Config) -> PathBuf {
    let named = config.secrets.master_key_file.clone();
    named.unwrap_or_else(|| config.data_dir.join("master-key"))
}

/// The configured keys. `None`: nobody named any, and there is no file yet.
fn given(config: &Config) -> anyhow::Result<Option<Vec<Key>>> {
    if let Some(text) = &config.secrets.master_key {
        return parse(text.expose_secret())
            .context("secrets.master_key")
            .map(Some);
    }
    let file = file(config);
    let keys = read(&file)?;
    if keys.is_none() && config.secrets.master_key_file.is_some() {
        bail!(
            "there is no file {} (secrets.master_key_file)",
            file.display()
        );
    }
    Ok(keys)
}

/// Takes in keys that appear in the file while the server runs, so that a rotation needs no restart. None is
/// dropped before the next start, which sees to it that nothing needs it.
pub async fn follow(config: Config, store: Store) {
    let Ok(sealer) = store.sealer() else { return };
    if config.secrets.master_key.is_some() {
        return;
    }
    let mut every = tokio::time::interval(FOLLOW);
    let mut trouble = String::new();
    loop {
        every.tick().await;
        let now = match take_in(&config, sealer) {
            Ok(()) => String::new(),
            Err(error) => format!("{error:#}"),
        };
        // Said once: what it had, it keeps.
        if !now.is_empty() && now != trouble {
            tracing::warn!(error = now, "cannot read the master keys anew");
        }
        trouble = now;
    }
}

fn take_in(config: &Config, sealer: &Sealer) -> anyhow::Result<()> {
    for key in given(config)?.into_iter().flatten().map(wrapping) {
        let id = key.id().to_owned();
        if sealer.add(key) {
            tracing::info!(key = id, "another master key is there");
        }
    }
    Ok(())
}

/// Puts a new key before those in the file. Servers on other machines need the file as it is then.
///
/// # Errors
/// When the keys are not in a file, or it cannot be written.
pub fn generate(config: &Config) -> anyhow::Result<()> {
    if config.secrets.master_key.is_some() {
        bail!(
            "the master key is in secrets.master_key: put a new one before it, as from `openssl rand -base64 32`, \
             and restart the servers one after the other"
        );
    }
    let file = file(config);
    let old = fs::read_to_string(&file)
        .map(Zeroizing::new)
        .with_context(|| format!("cannot read {}", file.display()))?;
    parse(&old).with_context(|| file.display().to_string())?;
    let new = Zeroizing::new(STANDARD.encode(*Zeroizing::new(rand::random::<[u8; 32]>())));
    let waiting = write_aside(&file, &format!("{}\n{}", *new, *old))?;
    fs::rename(&waiting, &file).with_context(|| format!("cannot write {}", file.display()))
}

/// One key or several, with white space between them.
fn parse(text: &str) -> anyhow::Result<Vec<Key>> {
    let one = |text: &str| -> Option<Key> {
        let bytes = STANDARD.decode(text).map(Zeroizing::new).ok()?;
        bytes.as_slice().try_into().ok().map(Zeroizing::new)
    };
    text.split_whitespace()
        .map(one)
        .collect::<Option<Vec<_>>>()
        .filter(|keys| !keys.is_empty())
        .context("a master key is 32 bytes in base64, as from `openssl rand -base64 32`")
}

fn read(file: &Path) -> anyhow::Result<Option<Vec<Key>>> {
    let text = match fs::read_to_string(file) {
        Ok(text) => Zeroizing::new(text),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return Err(error).with_context(|| format!("cannot read {}", file.display()));
        }
    };
    parse(&text)
        .with_context(|| file.display().to_string())
        .map(Some)
}

/// Says so when others can read the keys.
fn check_mode(file: &Path) {
    let mode = fs::metadata(file).map_or(0, |meta| meta.permissions().mode());
    if mode & 0o077 != 0 {
        tracing::warn!(file = %file.display(), "others can read the master key: chmod 600 it");
    }
}

/// A new key in its file, for nobody but us to read. Linked into place when it is complete, so that of two
/// servers on one data directory both have the first one's.
fn make(file: &Path) -> anyhow::Result<Key> {
    let key = Zeroizing::new(rand::random::<[u8; 32]>());
    let text = Zeroizing::new(STANDARD.encode(*key));
    let cannot = || format!("cannot write {}", file.display());
    let waiting = write_aside(file, &format!("{}\n", *text))?;
    let linked = fs::hard_link(&waiting, file);
    fs::remove_file(&waiting).with_context(cannot)?;
    match linked {
        Ok(()) => Ok(key),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => read(file)?
            .and_then(|keys| keys.into_iter().next())
            .with_context(cannot),
        Err(error) => Err(error).with_context(cannot),
    }
}

/// Another file beside `file`, complete on the disk, for nobody but us to read.
fn write_aside(file: &Path, text: &str) -> anyhow::Result<PathBuf> {
    let waiting = file.with_extension(format!("{}", std::process::id()));
    let _ = fs::remove_file(&waiting);
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&waiting)
        .and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        })
        .with_context(|| format!("cannot write {}", waiting.display()))?;
    Ok(waiting)
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

    #[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
    async fn a_running_server_takes_in_what_appears_in_the_file(pool: PgPool) {
        let directory = tempfile::tempdir().unwrap();
        let config = Config {
            data_dir: directory.path().to_owned(),
            ..Config::default()
        };
        let store = unlock(&config, Store::from_pool(pool)).await.unwrap();
        let first = preferred(&config).unwrap();
        let sealer = store.sealer().unwrap().clone();
        generate(&config).unwrap();
        let second = preferred(&config).unwrap();
        assert_ne!(first, second);
        let file = directory.path().join("master-key");
        let mode = fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        take_in(&config, &sealer).unwrap();
        take_in(&config, &sealer).unwrap();
        assert_eq!(sealer.key_ids(), [first.clone(), second]);
        assert_eq!(sealer.sealing_id(), first);
        fs::write(&file, "nonsense").unwrap();
        assert!(take_in(&config, &sealer).is_err());
        assert_eq!(sealer.key_ids().len(), 2);

        let mut by_text = config;
        by_text.secrets.master_key = Some("x".into());
        assert!(generate(&by_text).is_err());
        by_text.secrets.master_key = Some(" ".into());
        assert!(preferred(&by_text).is_err());
    }
}
