//! Who asks: from a token in the headers to a [`Principal`].

use std::{
    collections::HashMap,
    sync::Mutex,
    time::{Duration, Instant},
};

use axum::http::{HeaderMap, header};
use selfsame_store::{Scope, Store, TokenHash};
use selfsame_types::{ApiError, ErrorKind};

use crate::{app::Principal, error::Result};

/// How long a token that was good is taken for good: the longest a revoked key goes on working.
const REMEMBER: Duration = Duration::from_secs(2);
/// Most remembered tokens. Only good ones are, so that guesses cannot push them out.
const CAPACITY: usize = 10_000;

/// Good tokens of the last moments, by hash, so that not every request asks the database.
#[derive(Debug)]
pub(crate) struct KeyCache {
    known: Mutex<HashMap<TokenHash, (Instant, Principal)>>,
}

impl KeyCache {
    pub(crate) fn new() -> Self {
        Self {
            known: Mutex::default(),
        }
    }

    async fn authenticate(&self, store: &Store, token: &str) -> Result<Option<Principal>> {
        let hash = TokenHash::of(token);
        if let Some((since, principal)) = self.lock().get(&hash)
            && since.elapsed() < REMEMBER
        {
            return Ok(Some(principal.clone()));
        }
        // From before the question: an answer must not count as fresher than it is.
        let asked = Instant::now();
        let found = store.key_authenticate(hash).await?.map(|key| Principal {
            workspace: key.workspace,
            key: key.id,
            kind: key.kind,
            scope: key.scope,
        });
        let mut known = self.lock();
        match &found {
            Some(principal) => {
                if known.len() >= CAPACITY {
                    known.retain(|_, (since, _)| since.elapsed() < REMEMBER);
                }
                if known.len() < CAPACITY {
                    known.insert(hash, (asked, principal.clone()));
                }
            }
            None => {
                known.remove(&hash);
            }
        }
        Ok(found)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<TokenHash, (Instant, Principal)>> {
        self.known
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Finds out who asks. Of two tokens, `x-api-key` counts when it is good: old clients set only that.
///
/// # Errors
/// 401 without a good token; a fault of the database.
pub(crate) async fn identify(
    cache: &KeyCache,
    store: &Store,
    headers: &HeaderMap,
) -> Result<Principal> {
    let (api_key, bearer) = (api_key(headers), bearer(headers));
    if api_key.is_none() && bearer.is_none() {
        return Err(unauthenticated(
            "No API key: send `Authorization: Bearer <key>` or `x-api-key: <key>`",
        ));
    }
    for token in [api_key, bearer].into_iter().flatten() {
        if let Some(principal) = cache.authenticate(store, token).await? {
            return Ok(principal);
        }
    }
    Err(unauthenticated("Invalid API key"))
}

fn api_key(headers: &HeaderMap) -> Option<&str> {
    let token = headers.get("x-api-key")?.to_str().ok()?.trim();
    (!token.is_empty()).then_some(token)
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.trim().split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

fn unauthenticated(message: &'static str) -> crate::error::Error {
    ApiError::new(ErrorKind::Authentication, message).into()
}

impl Principal {
    /// # Errors
    /// 403 unless this is an admin key.
    pub fn require_admin(&self) -> Result<(), ApiError> {
        if self.scope == Scope::Admin {
            return Ok(());
        }
        Err(ApiError::new(
            ErrorKind::Permission,
            "This needs a key of scope `admin`",
        ))
    }
}
