//! When an access token is refreshed, by whom, and what follows.
//!
//! One at a time for each credential over all servers: the store holds its row meanwhile, and whoever waited
//! finds the tokens of whoever was first. A refresh that has begun is never abandoned, since the endpoint may
//! have used up the old refresh token: it runs in a task of its own, which a drain waits for.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::{Duration, Instant},
};

use secrecy::SecretString;
use selfsame_store::{CredentialRefresh, OpenCredential, RefreshedTokens};
use selfsame_types::{
    CredentialId, Timestamp,
    vault::{ClientAuthType, CredentialAuth, McpOauthAuth},
};
use tokio::sync::Semaphore;

use super::{
    Vaults, VaultsError,
    cache::Found,
    token::{self, ClientAuth, Failure, Grant},
};

/// The background refreshes what expires sooner.
const HORIZON: Duration = Duration::from_secs(10 * 60);
/// Whoever uses a token begins to refresh it so long before it expires, unless its whole life is short.
const MARGIN: f64 = 5.0 * 60.0;
/// Refreshes at once. Each holds a connection to the database for as long as the endpoint takes.
const MAX_FLIGHTS: usize = 8;
/// Of these, by the background.
const BACKGROUND: usize = 4;
/// A token that was made so recently and is refused is not what is wrong.
const FRESH: f64 = 10.0;
const SHORTEST_WAIT: Duration = Duration::from_secs(30);
const LONGEST_WAIT: Duration = Duration::from_secs(15 * 60);

/// Whether it is time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    No,
    /// The token is good for a while.
    Soon,
    Now,
}

/// What a refresh is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    Expiry,
    /// A server answered 401.
    Refused,
    /// A client wants to know whether it works, whatever was found out before.
    Validation,
    Background,
}

impl Why {
    fn label(self) -> &'static str {
        match self {
            Self::Expiry => "expiry",
            Self::Refused => "refused",
            Self::Validation => "validation",
            Self::Background => "background",
        }
    }
}

/// What came of it.
#[derive(Debug)]
pub(super) enum Attempt {
    /// Refreshed, or changed by somebody else meanwhile.
    Fresh(Box<OpenCredential>),
    Failed(Failure),
    /// It failed before, and it is not time to try again.
    Resting,
    /// It has no refresh token.
    Impossible,
    /// It was archived or deleted.
    Gone,
}

/// Refreshes that this server has in the works.
#[derive(Debug)]
pub(super) struct Flights {
    permits: Semaphore,
    credentials: Mutex<HashMap<CredentialId, Weak<tokio::sync::Mutex<()>>>>,
}

impl Default for Flights {
    fn default() -> Self {
        Self {
            permits: Semaphore::new(MAX_FLIGHTS),
            credentials: Mutex::default(),
        }
    }
}

impl Flights {
    /// Whoever holds it is alone with the credential on this server, so that only one waits for its row.
    fn of(&self, id: CredentialId) -> Arc<tokio::sync::Mutex<()>> {
        let mut credentials = self
            .credentials
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = credentials.get(&id).and_then(Weak::upgrade) {
            return flight;
        }
        credentials.retain(|_, flight| flight.strong_count() > 0);
        let flight = Arc::default();
        credentials.insert(id, Arc::downgrade(&flight));
        flight
    }
}

impl Found {
    pub(super) fn refresh_due(&self) -> Due {
        due(&self.credential, self.now())
    }
}

fn oauth(open: &OpenCredential) -> Option<&McpOauthAuth> {
    match &open.credential.auth {
        CredentialAuth::McpOauth(auth) => Some(auth),
        _ => None,
    }
}

fn due(open: &OpenCredential, now: Timestamp) -> Due {
    let expires_at = oauth(open).and_then(|auth| auth.expires_at);
    let Some(expires_at) = expires_at.filter(|_| open.secrets.refresh_token.is_some()) else {
        return Due::No;
    };
    if is_resting(open, now) {
        return Due::No;
    }
    let life = open
        .refresh
        .refreshed_at
        .map(|at| expires_at.seconds_since(at));
    let margin = life.map_or(MARGIN, |life| MARGIN.min(life / 4.0));
    let left = expires_at.seconds_since(now);
    // A request takes a while to arrive.
    if left <= margin / 10.0 {
        Due::Now
    } else if left <= margin {
        Due::Soon
    } else {
        Due::No
    }
}

/// Whether it failed, and nothing has changed or no time has passed since.
fn is_resting(open: &OpenCredential, now: Timestamp) -> bool {
    let state = &open.refresh;
    state.failed_at.is_some()
        || (state.failure.is_some() && state.next_at.is_some_and(|next| now < next))
}

/// How long to leave an endpoint alone that could not answer. The longer a token has been over, the longer:
/// that grows like any backoff and needs no count.
fn wait(open: &OpenCredential, retry_after: Option<Duration>, random: f64) -> Duration {
    let expires_at = oauth(open).and_then(|auth| auth.expires_at);
    let overdue = expires_at.map_or(0.0, |at| open.now.seconds_since(at));
    let own = Duration::from_secs_f64(overdue / 4.0);
    let wait = own
        .max(retry_after.unwrap_or_default())
        .clamp(SHORTEST_WAIT, LONGEST_WAIT);
    wait + wait.mul_f64(random / 4.0)
}

impl Grant {
    /// `None`: there is nothing to refresh with. The error says what is wrong with it.
    fn of(open: &OpenCredential) -> Option<Result<Self, &'static str>> {
        let refresh = oauth(open)?.refresh.as_ref()?;
        let refresh_token = open.secrets.refresh_token.clone()?;
        let Ok(token_endpoint) = refresh.token_endpoint.parse() else {
            return Some(Err("the token endpoint is no URL"));
        };
        let secret = || {
            let secret = open.secrets.client_secret.clone();
            secret.unwrap_or_else(|| SecretString::from(""))
        };
        Some(Ok(Self {
            token_endpoint,
            client_id: refresh.client_id.clone(),
            auth: match refresh.token_endpoint_auth.r#type {
                ClientAuthType::None => ClientAuth::None,
                ClientAuthType::ClientSecretBasic => ClientAuth::Basic(secret()),
                ClientAuthType::ClientSecretPost => ClientAuth::Post(secret()),
            },
            refresh_token,
            resource: refresh.resource.clone(),
            scope: refresh.scope.clone(),
        }))
    }
}

impl Vaults {
    /// Refreshes a credential that was `seen` as it is.
    pub(super) async fn refresh(
        &self,
        seen: &OpenCredential,
        why: Why,
    ) -> Result<Attempt, VaultsError> {
        let (vaults, id, generation) = (self.clone(), seen.credential.id, seen.generation);
        let task = async move { vaults.refresh_now(id, generation, why).await };
        let done = self.0.tasks.spawn(task).await;
        done.map_err(|_| VaultsError::Interrupted)?
    }

    /// The same, and nobody waits for it.
    pub(super) fn refresh_later(&self, seen: &OpenCredential, why: Why) {
        let (vaults, id, generation) = (self.clone(), seen.credential.id, seen.generation);
        if self.0.flights.of(id).try_lock().is_err() {
            return;
        }
        self.0.tasks.spawn(async move {
            if let Err(error) = vaults.refresh_now(id, generation, why).await {
                tracing::warn!(credential = %id, %error, "cannot refresh an access token");
            }
        });
    }

    async fn refresh_now(
        &self,
        id: CredentialId,
        generation: i64,
        why: Why,
    ) -> Result<Attempt, VaultsError> {
        let flight = self.0.flights.of(id);
        let _alone = flight.lock().await;
        let _permit = self.0.flights.permits.acquire().await;
        let Some(held) = self.0.store.credential_refresh(id).await? else {
            return Ok(Attempt::Gone);
        };
        if held.credential().generation != generation {
            return Ok(Attempt::Fresh(Box::new(held.credential().clone())));
        }
        self.ask(held, why).await
    }

    /// Asks the token endpoint, and writes down what it says.
    async fn ask(&self, held: CredentialRefresh, why: Why) -> Result<Attempt, VaultsError> {
        let open = held.credential();
        let id = open.credential.id;
        let age = open
            .refresh
            .refreshed_at
            .map(|at| open.now.seconds_since(at));
        let is_fresh = why == Why::Refused && age.is_some_and(|age| age < FRESH);
        if why != Why::Validation && (is_resting(open, open.now) || is_fresh) {
            return Ok(Attempt::Resting);
        }
        let begun = Instant::now();
        let asked = match Grant::of(open) {
            None => return Ok(Attempt::Impossible),
            Some(Ok(grant)) => token::refresh(&self.0.client, &grant).await,
            Some(Err(reason)) => Err(Failure::of_ours(reason)),
        };
        let outcome = match &asked {
            Ok(_) => "refreshed",
            Err(failure) if failure.is_permanent => "refused",
            Err(_) => "unavailable",
        };
        metrics::counter!(
            "selfsame_vault_refreshes_total", "outcome" => outcome, "why" => why.label()
        )
        .increment(1);
        metrics::histogram!("selfsame_vault_refresh_seconds").record(begun.elapsed().as_secs_f64());
        let attempt = match asked {
            Ok(tokens) => {
                let tokens = RefreshedTokens {
                    access_token: tokens.access_token,
                    expires_in: tokens.expires_in,
                    refresh_token: tokens.refresh_token,
                };
                let fresh = held.succeed(tokens).await?;
                tracing::info!(credential = %id, why = why.label(), "refreshed an access token");
                Attempt::Fresh(Box::new(fresh))
            }
            Err(failure) => {
                let reason = &*failure.reason;
                if failure.is_permanent {
                    // The webhook is of the same transaction.
                    let begins = held.fail(reason).await?;
                    tracing::warn!(credential = %id, reason, begins, "an access token is refused a refresh");
                } else {
                    let wait = wait(open, failure.retry_after, rand::random());
                    held.retry_after(wait, reason).await?;
                    tracing::warn!(credential = %id, reason, ?wait, "an access token cannot be refreshed now");
                }
                Attempt::Failed(failure)
            }
        };
        self.0.cache.forget(id);
        self.0.notifier.vaults_changed(Some(id));
        Ok(attempt)
    }

    /// Refreshes everything that expires soon, whether a session uses it or not.
    pub(crate) async fn refresh_due(&self) {
        let workers: Vec<_> = (0..BACKGROUND)
            .map(|_| {
                let vaults = self.clone();
                self.0.tasks.spawn(async move { vaults.work().await })
            })
            .collect();
        for worker in workers {
            // It has said itself what was wrong.
            let _ = worker.await;
        }
    }

    async fn work(&self) {
        while !self.0.tasks.is_closed() {
            let _permit = self.0.flights.permits.acquire().await;
            let due = match self.0.store.credential_refresh_due(HORIZON).await {
                Ok(Some(held)) => self.ask(held, Why::Background).await,
                Ok(None) => return,
                Err(error) => Err(error.into()),
            };
            if let Err(error) = due {
                tracing::warn!(%error, "cannot refresh what expires soon");
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests;
