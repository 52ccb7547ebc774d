//! What every request may reach.

use std::sync::Arc;

use axum::http::HeaderValue;
use rand::RngExt as _;
use selfsame_engine::Engine;
use selfsame_store::{Actor, Deployment, KeyKind, NewKey, Scope, Store, TokenHash};
use selfsame_types::{KeyId, OrganizationId, WorkspaceId};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{auth::KeyCache, config::Config, limits::Limits};

/// Most uploads of skills that are unpacked at a time; further ones wait.
const PACKING: usize = 2;

/// The server's parts, shared by all requests. Handlers take it as `State(app): State<Arc<App>>`.
#[derive(Debug)]
pub struct App {
    pub config: Config,
    pub store: Store,
    /// What is done to sessions. Plain lists and reads go to the store.
    pub engine: Engine,
    pub deployment: Deployment,
    /// Cancelled when the server drains: long-lived responses end themselves then.
    pub shutdown: CancellationToken,
    /// Uploads of skills being unpacked: each takes tens of megabytes and a thread.
    pub(crate) packing: Semaphore,
    pub(crate) keys: KeyCache,
    pub(crate) limits: Option<Limits>,
    /// `anthropic-organization-id`, ready to send.
    pub(crate) organization_header: HeaderValue,
}

impl App {
    #[must_use]
    pub fn new(
        config: Config,
        store: Store,
        engine: Engine,
        deployment: Deployment,
        shutdown: CancellationToken,
    ) -> Arc<Self> {
        let organization_header = HeaderValue::try_from(deployment.organization.0.to_string())
            .expect("a UUID is a valid header value");
        Arc::new(Self {
            packing: Semaphore::new(PACKING),
            keys: KeyCache::new(),
            limits: Limits::from_config(&config.limits),
            config,
            store,
            engine,
            deployment,
            shutdown,
            organization_header,
        })
    }
}

/// Who asks. Put into the request by [`crate::middleware::authenticate`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    pub workspace: WorkspaceId,
    pub key: KeyId,
    pub kind: KeyKind,
    pub scope: Scope,
}

impl Principal {
    /// Who a change is recorded under.
    #[must_use]
    pub fn actor(&self, request: &Arc<str>) -> Actor {
        Actor {
            key: Some(self.key),
            request: Some(request.to_string()),
        }
    }
}

/// A random token: 43 base62 characters are 256 bits.
#[must_use]
pub fn new_token() -> String {
    const ALPHABET: &[u8] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let mut random = rand::rng();
    let digits = (0..43).map(|_| char::from(ALPHABET[random.random_range(0..ALPHABET.len())]));
    format!("sk-selfsame-{}", digits.collect::<String>())
}

/// A key to be stored for `token`.
#[must_use]
pub fn key_for(token: &str, workspace: WorkspaceId, scope: Scope, name: &str) -> NewKey {
    // Enough to recognise it by; a fixed token of an operator may be short.
    let shown = (token.chars().count() / 3).min(17);
    NewKey {
        workspace,
        kind: KeyKind::Api,
        scope,
        name: name.to_owned(),
        hint: token.chars().take(shown).collect::<String>() + "…",
        hash: TokenHash::of(token),
        expires_at: None,
    }
}

/// A deployment that does not exist yet.
#[must_use]
pub fn new_deployment() -> Deployment {
    Deployment {
        id: Uuid::now_v7(),
        organization: OrganizationId(Uuid::new_v4()),
    }
}
