//! Refreshing the access token of an `mcp_oauth` credential, once at a time over all servers.
//!
//! Whoever refreshes holds the credential's row while the token endpoint is asked. Everybody else who wants the
//! same, and every client who changes the credential, waits, and then sees the result. A refresh token that was
//! used up is never used again, and its successor is stored before anyone has the access token.

use std::{fmt, time::Duration};

use secrecy::SecretString;
use selfsame_types::{
    CredentialId,
    vault::CredentialSecrets,
    webhook::{WebhookEvent, WebhookEventType},
};
use sqlx::PgTransaction;

use super::{credentials::locked, note, opened};
use crate::{Actor, OpenCredential, Sealer, Store, StoreError, leases::interval, webhooks::emit};

/// How long a refresh may take. The database ends the transaction of a server that was frozen meanwhile.
const HELD: &str = "60s";
/// How long to wait for another one's.
const WAIT: &str = "90s";
/// The background leaves a token alone for at least this long after it was refreshed, however short its life.
const REST: Duration = Duration::from_secs(30);

/// What a token endpoint gave.
#[derive(Debug, Clone)]
pub struct RefreshedTokens {
    pub access_token: SecretString,
    /// `None`: it does not expire, as far as is known.
    pub expires_in: Option<Duration>,
    /// The next refresh token, if it changed.
    pub refresh_token: Option<SecretString>,
}

/// A credential whose row is held. Dropped, it leaves everything as it was.
pub struct CredentialRefresh {
    tx: PgTransaction<'static>,
    store: Store,
    sealer: Sealer,
    credential: OpenCredential,
}

impl fmt::Debug for CredentialRefresh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CredentialRefresh")
            .field("credential", &self.credential)
            .finish_non_exhaustive()
    }
}

impl Store {
    /// Waits for the row of a credential in use, and holds it. What is read then is the result of
    /// whoever held it before: compare [`OpenCredential::generation`]. `None`: it is gone or archived.
    ///
    /// # Errors
    /// Database faults, among them that the wait took too long, and a sealed value that does not open.
    pub async fn credential_refresh(
        &self,
        id: CredentialId,
    ) -> Result<Option<CredentialRefresh>, StoreError> {
        let mut tx = self.refresh_begin().await?;
        let Some(row) = locked(&mut tx, id).await? else {
            return Ok(None);
        };
        self.refresh_of(tx, &row).await
    }

    /// Takes a credential whose access token expires within `horizon`, if there is one that nobody
    /// holds, for the background to refresh. Those that failed for good, or are to rest, are left out.
    ///
    /// # Errors
    /// Database faults, and a sealed value that does not open.
    pub async fn credential_refresh_due(
        &self,
        horizon: Duration,
    ) -> Result<Option<CredentialRefresh>, StoreError> {
        let mut tx = self.refresh_begin().await?;
        let id = sqlx::query_scalar!(
            r#"
            SELECT id FROM vault_credentials
            WHERE refreshable AND archived_at IS NULL AND refresh_failed_at IS NULL
              AND expires_at < clock_timestamp() + $1::interval
              AND (refresh_next_at IS NULL OR refresh_next_at <= clock_timestamp())
            ORDER BY expires_at
            LIMIT 1
            FOR NO KEY UPDATE SKIP LOCKED
            "#,
            interval(horizon),
        )
        .fetch_optional(&mut *tx)
        .await?;
        let Some(id) = id else { return Ok(None) };
        let Some(row) = locked(&mut tx, CredentialId(id)).await? else {
            return Ok(None);
        };
        self.refresh_of(tx, &row).await
    }

    async fn refresh_begin(&self) -> Result<PgTransaction<'static>, StoreError> {
        let mut tx = self.pool.begin().await?;
        sqlx::query!(
            r#"
            SELECT set_config('idle_in_transaction_session_timeout', $1, true) AS held,
                   set_config('lock_timeout', $2, true) AS wait
            "#,
            HELD,
            WAIT,
        )
        .fetch_one(&mut *tx)
        .await?;
        Ok(tx)
    }

    async fn refresh_of(
        &self,
        tx: PgTransaction<'static>,
        row: &super::credentials::Row,
    ) -> Result<Option<CredentialRefresh>, StoreError> {
        let sealer = self.sealer()?;
        let credential = opened::open_row(sealer, row).await?;
        Ok(credential.map(|credential| CredentialRefresh {
            tx,
            store: self.clone(),
            sealer: sealer.clone(),
            credential,
        }))
    }
}

impl CredentialRefresh {
    /// As it is now, and stays while this is held.
    #[must_use]
    pub fn credential(&self) -> &OpenCredential {
        &self.credential
    }

    /// Stores the new tokens, and ends an episode of failure. Answers the credential as it is then.
    ///
    /// # Errors
    /// Database faults, and a master key that cannot be used.
    pub async fn succeed(mut self, tokens: RefreshedTokens) -> Result<OpenCredential, StoreError> {
        let (id, vault) = (
            self.credential.credential.id,
            self.credential.credential.vault_id,
        );
        let old = self.credential.secrets;
        let secrets = CredentialSecrets {
            secret: tokens.access_token,
            refresh_token: tokens.refresh_token.or(old.refresh_token),
            client_secret: old.client_secret,
        };
        let workspace = self.credential.workspace;
        let sealed = opened::seal(&self.sealer, workspace, vault, id, &secrets).await?;
        // A token of short life is not refreshed by the background over and over.
        let rest = REST.max(tokens.expires_in.unwrap_or_default() / 2);
        sqlx::query!(
            r#"
            UPDATE vault_credentials
            SET ciphertext = $2, data_key = $3, master_key = $4, generation = generation + 1,
                expires_at = clock_timestamp() + $5::interval,
                refreshed_at = clock_timestamp(),
                refresh_failed_at = NULL, refresh_failure = NULL,
                refresh_next_at = clock_timestamp() + $6::interval
            WHERE id = $1
            "#,
            id.0,
            sealed.ciphertext,
            sealed.data_key,
            sealed.master_key,
            tokens.expires_in.map(interval) as _,
            interval(rest),
        )
        .execute(&mut *self.tx)
        .await?;
        let row = locked(&mut self.tx, id).await?;
        let row = row.ok_or(sqlx::Error::RowNotFound)?;
        let credential = opened::open_row(&self.sealer, &row).await?;
        self.tx.commit().await?;
        Ok(credential.ok_or(sqlx::Error::RowNotFound)?)
    }

    /// Notes that it will not succeed until a client changes the credential. `true`: this begins an
    /// episode of failure; the ones before had ended. `reason` must contain no secret.
    ///
    /// # Errors
    /// Database faults.
    pub async fn fail(mut self, reason: &str) -> Result<bool, StoreError> {
        let begins = self.credential.refresh.failed_at.is_none();
        let id = self.credential.credential.id;
        sqlx::query!(
            r#"
            UPDATE vault_credentials
            SET refresh_failed_at = COALESCE(refresh_failed_at, clock_timestamp()),
                refresh_failure = $2, refresh_next_at = NULL
            WHERE id = $1
            "#,
            id.0,
            reason,
        )
        .execute(&mut *self.tx)
        .await?;
        let mut hooked = None;
        if begins {
            let vault = self.credential.credential.vault_id;
            let event = WebhookEvent::new(WebhookEventType::VaultCredentialRefreshFailed, id);
            let told = [event.vault(vault)];
            let workspace = self.credential.workspace;
            hooked = emit(&mut self.tx, &self.store, workspace, None, &told).await?;
            let detail = serde_json::json!({
                "vault": self.credential.credential.vault_id,
                "reason": reason,
            });
            note(
                &mut self.tx,
                self.credential.workspace,
                &Actor::default(),
                "vault_credential.refresh_failed",
                id,
                detail,
            )
            .await?;
        }
        self.tx.commit().await?;
        self.store.emitted(hooked);
        Ok(begins)
    }

    /// Notes that nobody could be asked, and that the background is to wait this long. `reason` must
    /// contain no secret.
    ///
    /// # Errors
    /// Database faults.
    pub async fn retry_after(mut self, wait: Duration, reason: &str) -> Result<(), StoreError> {
        sqlx::query!(
            r#"
            UPDATE vault_credentials
            SET refresh_failure = $2, refresh_next_at = clock_timestamp() + $3::interval
            WHERE id = $1
            "#,
            self.credential.credential.id.0,
            reason,
            interval(wait),
        )
        .execute(&mut *self.tx)
        .await?;
        self.tx.commit().await?;
        Ok(())
    }
}
