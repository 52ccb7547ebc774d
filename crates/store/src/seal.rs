//! Sealing: how secrets stand in the database.
//!
//! Each secret is encrypted with a data key of its own (XChaCha20-Poly1305, random nonce), and the data
//! key with the master key, which is never in the database. The *context* says whose secret it is and is
//! authenticated with it: a sealed value moved to another row does not open. Wrapping is a trait, so that
//! an external key service can take the master key's place.
//!
//! A server may have several master keys. All of them open; the one that seals is the deployment's, which is the
//! one that the row [`CHECK`] is sealed with. [`rotate`] has how it becomes another.

mod rotate;

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use chacha20poly1305::{
    KeyInit as _, XChaCha20Poly1305, XNonce,
    aead::{Aead as _, Payload},
};
use secrecy::SecretString;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

pub use rotate::{KeyUse, ServerKeys};

use crate::{Store, StoreError};

const NONCE: usize = 24;
/// Name of the row that tells a wrong master key.
pub(crate) const CHECK: &str = "master_key_check";

/// Why a sealed value does not open.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// `present` lists the keys that are here.
    #[error("it is sealed with the master key `{wanted}`, and this server has `{present}`")]
    OtherKey { wanted: String, present: String },
    #[error("it was changed, or belongs to something else")]
    Broken,
    #[error("this server has no master key")]
    NoKey,
}

/// A secret as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    pub ciphertext: Vec<u8>,
    /// Wrapped by the master key.
    pub data_key: Vec<u8>,
    /// Which master key that was.
    pub master_key: String,
}

/// Whatever holds one master key.
#[async_trait]
pub trait KeyWrap: Send + Sync + fmt::Debug {
    /// A name of the key, for rows to remember.
    fn id(&self) -> &str;
    async fn wrap(&self, data_key: &[u8; 32]) -> Result<Vec<u8>, SealError>;
    async fn unwrap(&self, wrapped: &[u8]) -> Result<Zeroizing<[u8; 32]>, SealError>;
}

/// A master key in this process's memory.
pub struct LocalKey {
    id: String,
    key: Zeroizing<[u8; 32]>,
}

impl fmt::Debug for LocalKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalKey")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl LocalKey {
    #[must_use]
    pub fn new(key: Zeroizing<[u8; 32]>) -> Self {
        let digest = Sha256::new()
            .chain_update(b"selfsame master key id\0")
            .chain_update(*key)
            .finalize();
        let id = digest[..8]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        Self { id, key }
    }
}

#[async_trait]
impl KeyWrap for LocalKey {
    fn id(&self) -> &str {
        &self.id
    }

    async fn wrap(&self, data_key: &[u8; 32]) -> Result<Vec<u8>, SealError> {
        encrypt(&self.key, data_key, self.id.as_bytes())
    }

    async fn unwrap(&self, wrapped: &[u8]) -> Result<Zeroizing<[u8; 32]>, SealError> {
        let bytes = decrypt(&self.key, wrapped, self.id.as_bytes())?;
        let key: [u8; 32] = bytes.as_slice().try_into().map_err(|_| SealError::Broken)?;
        Ok(Zeroizing::new(key))
    }
}

/// Seals and opens. Cheap to clone; clones have the same keys, also those that are added later.
#[derive(Debug, Clone)]
pub struct Sealer(Arc<Mutex<Ring>>);

/// The master keys of this server.
#[derive(Debug)]
struct Ring {
    sealing: Arc<dyn KeyWrap>,
    /// The sealing one among them.
    all: Vec<Arc<dyn KeyWrap>>,
}

impl Ring {
    fn find(&self, id: &str) -> Result<Arc<dyn KeyWrap>, SealError> {
        let found = self.all.iter().find(|key| key.id() == id);
        found.cloned().ok_or_else(|| SealError::OtherKey {
            wanted: id.to_owned(),
            present: self.ids().join(", "),
        })
    }

    fn ids(&self) -> Vec<String> {
        self.all.iter().map(|key| key.id().to_owned()).collect()
    }
}

impl Sealer {
    /// With one key, which seals.
    #[must_use]
    pub fn new(key: Arc<dyn KeyWrap>) -> Self {
        Self(Arc::new(Mutex::new(Ring {
            sealing: Arc::clone(&key),
            all: vec![key],
        })))
    }

    fn ring<T>(&self, look: impl FnOnce(&mut Ring) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Adds a key that opens. `false`: it is here already.
    pub fn add(&self, key: Arc<dyn KeyWrap>) -> bool {
        self.ring(|ring| {
            let new = ring.find(key.id()).is_err();
            if new {
                ring.all.push(key);
            }
            new
        })
    }

    /// The names of all keys, in the order in which they came.
    #[must_use]
    pub fn key_ids(&self) -> Vec<String> {
        self.ring(|ring| ring.ids())
    }

    /// The name of the key that seals.
    #[must_use]
    pub fn sealing_id(&self) -> String {
        self.ring(|ring| ring.sealing.id().to_owned())
    }

    /// Seals with another of its keys from now on.
    ///
    /// # Errors
    /// [`SealError::OtherKey`] when it is not here.
    pub fn seal_with(&self, id: &str) -> Result<(), SealError> {
        self.ring(|ring| {
            ring.sealing = ring.find(id)?;
            Ok(())
        })
    }

    /// # Errors
    /// When the master key cannot be used.
    pub async fn seal(&self, secret: &[u8], context: &str) -> Result<Sealed, SealError> {
        let data_key = Zeroizing::new(rand::random::<[u8; 32]>());
        let key = self.ring(|ring| Arc::clone(&ring.sealing));
        Ok(Sealed {
            ciphertext: encrypt(&data_key, secret, context.as_bytes())?,
            data_key: key.wrap(&data_key).await?,
            master_key: key.id().to_owned(),
        })
    }

    /// A data key that `by` has wrapped, wrapped by `to`.
    ///
    /// # Errors
    /// [`SealError`].
    async fn rewrap(&self, wrapped: &[u8], by: &str, to: &str) -> Result<Vec<u8>, SealError> {
        let (by, to) = self.ring(|ring| Ok::<_, SealError>((ring.find(by)?, ring.find(to)?)))?;
        let data_key = by.unwrap(wrapped).await?;
        to.wrap(&data_key).await
    }

    /// # Errors
    /// [`SealError`]; `context` must be the one it was sealed with.
    pub async fn open(
        &self,
        sealed: &Sealed,
        context: &str,
    ) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let key = self.ring(|ring| ring.find(&sealed.master_key))?;
        let data_key = key.unwrap(&sealed.data_key).await?;
        decrypt(&data_key, &sealed.ciphertext, context.as_bytes())
    }

    /// [`Sealer::open`] for text.
    ///
    /// # Errors
    /// [`SealError`].
    pub async fn open_text(
        &self,
        sealed: &Sealed,
        context: &str,
    ) -> Result<SecretString, SealError> {
        let bytes = self.open(sealed, context).await?;
        let text = std::str::from_utf8(&bytes).map_err(|_| SealError::Broken)?;
        Ok(SecretString::from(text))
    }
}

fn encrypt(key: &[u8; 32], secret: &[u8], context: &[u8]) -> Result<Vec<u8>, SealError> {
    let nonce: [u8; NONCE] = rand::random();
    let payload = Payload {
        msg: secret,
        aad: context,
    };
    let sealed = XChaCha20Poly1305::new(key.into())
        .encrypt(&XNonce::from(nonce), payload)
        .map_err(|_| SealError::Broken)?;
    Ok([nonce.as_slice(), &sealed].concat())
}

fn decrypt(key: &[u8; 32], sealed: &[u8], context: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
    let (nonce, msg) = sealed
        .split_first_chunk::<NONCE>()
        .ok_or(SealError::Broken)?;
    let payload = Payload { msg, aad: context };
    XChaCha20Poly1305::new(key.into())
        .decrypt(&XNonce::from(*nonce), payload)
        .map(Zeroizing::new)
        .map_err(|_| SealError::Broken)
}

impl Store {
    /// The same database with a master key.
    #[must_use]
    pub fn with_sealer(mut self, sealer: Sealer) -> Self {
        self.sealer = Some(sealer);
        self
    }

    /// # Errors
    /// [`SealError::NoKey`].
    pub fn sealer(&self) -> Result<&Sealer, SealError> {
        self.sealer.as_ref().ok_or(SealError::NoKey)
    }

    /// Whether this server's master keys are the deployment's: it has the one that seals, which it
    /// then seals with, and all those that something is still sealed with. The first server that asks
    /// decides which one seals.
    ///
    /// # Errors
    /// [`StoreError::Seal`] with [`SealError::OtherKey`] when one is missing.
    pub async fn master_key_check(&self) -> Result<(), StoreError> {
        let sealer = self.sealer()?;
        let check = || (String::new(), SecretString::from("selfsame"));
        self.deployment_secret(CHECK, check).await?;
        if let Some(current) = self.master_key_current().await? {
            sealer.seal_with(&current)?;
        }
        for used in self.master_keys_used().await? {
            sealer.ring(|ring| ring.find(&used.master_key))?;
        }
        Ok(())
    }

    /// A secret of the deployment with its public half, made when there is none yet. Of several
    /// servers that make it at once one wins, and all have the winner's.
    ///
    /// # Errors
    /// Database faults, and [`StoreError::Seal`].
    pub async fn deployment_secret(
        &self,
        name: &str,
        make: impl FnOnce() -> (String, SecretString) + Send,
    ) -> Result<(String, SecretString), StoreError> {
        use secrecy::ExposeSecret as _;
        let sealer = self.sealer()?;
        let context = format!("deployment:{name}");
        if let Some((public, sealed)) = self.deployment_secret_find(name).await? {
            return Ok((public, sealer.open_text(&sealed, &context).await?));
        }
        let (public, secret) = make();
        let sealed = sealer
            .seal(secret.expose_secret().as_bytes(), &context)
            .await?;
        sqlx::query!(
            r#"
            INSERT INTO deployment_secrets (name, public, ciphertext, data_key, master_key)
            VALUES ($1, $2, $3, $4, $5)
            ON CONFLICT (name) DO NOTHING
            "#,
            name,
            public,
            sealed.ciphertext,
            sealed.data_key,
            sealed.master_key,
        )
        .execute(&self.pool)
        .await?;
        let (public, sealed) = self
            .deployment_secret_find(name)
            .await?
            .ok_or(sqlx::Error::RowNotFound)?;
        Ok((public, sealer.open_text(&sealed, &context).await?))
    }

    async fn deployment_secret_find(
        &self,
        name: &str,
    ) -> Result<Option<(String, Sealed)>, StoreError> {
        Ok(sqlx::query!(
            r#"
            SELECT public, ciphertext, data_key, master_key FROM deployment_secrets WHERE name = $1
            "#,
            name,
        )
        .fetch_optional(&self.pool)
        .await?
        .map(|row| {
            let sealed = Sealed {
                ciphertext: row.ciphertext,
                data_key: row.data_key,
                master_key: row.master_key,
            };
            (row.public, sealed)
        }))
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;
    use sqlx::PgPool;

    use super::*;

    fn sealer(byte: u8) -> Sealer {
        Sealer::new(Arc::new(LocalKey::new(Zeroizing::new([byte; 32]))))
    }

    #[tokio::test]
    async fn what_is_sealed_opens_in_its_own_place_only() {
        let sealer = sealer(1);
        let sealed = sealer.seal(b"a token", "row 1").await.unwrap();
        assert_eq!(&**sealer.open(&sealed, "row 1").await.unwrap(), b"a token");
        assert_eq!(
            sealer.open(&sealed, "row 2").await.unwrap_err(),
            SealError::Broken
        );
        let other = self::sealer(2);
        assert!(matches!(
            other.open(&sealed, "row 1").await,
            Err(SealError::OtherKey { .. })
        ));
        for position in 0..sealed.ciphertext.len() {
            let mut changed = sealed.clone();
            changed.ciphertext[position] ^= 1;
            assert!(sealer.open(&changed, "row 1").await.is_err(), "{position}");
        }
        let mut changed = sealed.clone();
        changed.data_key.truncate(10);
        assert!(sealer.open(&changed, "row 1").await.is_err());
        // Twice the same is never the same.
        let again = sealer.seal(b"a token", "row 1").await.unwrap();
        assert_ne!(again.ciphertext, sealed.ciphertext);
        assert!(!format!("{sealed:?}{sealer:?}").contains("a token"));
    }

    #[sqlx::test(migrator = "crate::MIGRATOR")]
    async fn a_deployment_has_one_master_key_and_one_of_each_secret(pool: PgPool) {
        let store = Store::from_pool(pool);
        assert!(matches!(
            store.master_key_check().await,
            Err(StoreError::Seal(SealError::NoKey))
        ));
        let first = store.clone().with_sealer(sealer(1));
        first.master_key_check().await.unwrap();
        first.master_key_check().await.unwrap();
        let other = store.with_sealer(sealer(2));
        assert!(matches!(
            other.master_key_check().await,
            Err(StoreError::Seal(SealError::OtherKey { .. }))
        ));

        let made =
            |name: &'static str| move || (format!("{name} public"), SecretString::from(name));
        let (a, b) = tokio::join!(
            first.deployment_secret("ca", made("a")),
            first.deployment_secret("ca", made("b")),
        );
        let (a, b) = (a.unwrap(), b.unwrap());
        assert_eq!(a.0, b.0);
        assert_eq!(a.1.expose_secret(), b.1.expose_secret());
        assert_eq!(a.0, format!("{} public", a.1.expose_secret()));
    }
}
