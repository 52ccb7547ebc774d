//! The environment variables of one session's vaults, as they are at the moment.

use std::{
    collections::HashSet,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use secrecy::ExposeSecret as _;
use selfsame_types::{CredentialId, SessionId, VaultId};
use tokio::time::Instant;

use super::{placeholder::Placeholders, scan::Values};
use crate::vaults::{Networking, Variable, Vaults, VaultsError};

/// How long what was read last counts while the vaults cannot be read.
const STALE: Duration = Duration::from_secs(60);

/// Which part of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::door) enum Part {
    Header,
    Body,
}

/// A host that a credential names and the session cannot reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unreachable {
    pub credential: CredentialId,
    pub vault: VaultId,
    pub secret_name: String,
    pub host: String,
    pub reason: String,
}

/// What a session's sandbox and the door know of its variables. It is asked at each use, so what changes in
/// a vault changes here.
pub struct Wallet {
    session: SessionId,
    placeholders: Placeholders,
    source: Source,
    last: Mutex<Option<(Instant, Arc<Known>)>>,
    unreachable: Mutex<Reports>,
}

#[derive(Debug)]
enum Source {
    Vaults(Vaults),
    #[cfg(test)]
    List(Arc<Mutex<Vec<Variable>>>),
}

#[derive(Debug, Default)]
struct Reports {
    made: HashSet<CredentialId>,
    waiting: Vec<Unreachable>,
}

impl fmt::Debug for Wallet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wallet")
            .field("session", &self.session)
            .finish_non_exhaustive()
    }
}

/// The variables at one moment, with their placeholders.
pub(in crate::door) struct Known(Vec<(String, Variable)>);

impl Known {
    /// Whether some variable may go to `host`.
    pub(in crate::door) fn lists(&self, host: &str) -> bool {
        self.of_host(host).next().is_some()
    }

    /// What may be put into this part of a request to `host`.
    pub(in crate::door) fn values(&self, host: &str, part: Part) -> Values {
        let mut values = Values::default();
        for (placeholder, variable) in self.of_host(host) {
            let location = variable.injection_location;
            let enabled = match part {
                Part::Header => location.header,
                Part::Body => location.body,
            };
            if enabled {
                let secret = variable.secret_value.expose_secret().as_bytes();
                values.insert(placeholder, Bytes::copy_from_slice(secret));
            }
        }
        values
    }

    fn of_host<'a>(&'a self, host: &'a str) -> impl Iterator<Item = &'a (String, Variable)> {
        self.0
            .iter()
            .filter(|(_, variable)| match &variable.networking {
                // Whatever the session may reach: that was judged before.
                Networking::Unrestricted => true,
                Networking::Limited(hosts) => hosts.covers(host),
            })
    }
}

impl Wallet {
    pub(crate) fn new(session: SessionId, placeholders: Placeholders, vaults: Vaults) -> Self {
        Self::of(session, placeholders, Source::Vaults(vaults))
    }

    #[cfg(test)]
    pub(in crate::door) fn of_list(
        session: SessionId,
        placeholders: Placeholders,
        list: Arc<Mutex<Vec<Variable>>>,
    ) -> Self {
        Self::of(session, placeholders, Source::List(list))
    }

    fn of(session: SessionId, placeholders: Placeholders, source: Source) -> Self {
        Self {
            session,
            placeholders,
            source,
            last: Mutex::default(),
            unreachable: Mutex::default(),
        }
    }

    /// What programs inside find in their environment: names and placeholders.
    ///
    /// # Errors
    /// When the vaults cannot be read.
    pub(crate) async fn environment(&self) -> Result<Vec<(String, String)>, VaultsError> {
        let variables = self.read().await?;
        let pairs = variables.into_iter().map(|variable| {
            let placeholder = self.placeholders.of(self.session, variable.credential);
            (variable.secret_name, placeholder)
        });
        Ok(pairs.collect())
    }

    /// The variables as they are now, or were a moment ago when the vaults cannot be read.
    ///
    /// # Errors
    /// They have not been read for long.
    pub(in crate::door) async fn known(&self) -> Result<Arc<Known>, VaultsError> {
        let at = Instant::now();
        let read = self.read().await;
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match read {
            Ok(variables) => {
                let with_placeholder = |variable: Variable| {
                    let placeholder = self.placeholders.of(self.session, variable.credential);
                    (placeholder, variable)
                };
                let known: Vec<_> = variables.into_iter().map(with_placeholder).collect();
                let known = Arc::new(Known(known));
                *last = Some((at, Arc::clone(&known)));
                Ok(known)
            }
            Err(error) => match &*last {
                Some((at, known)) if at.elapsed() < STALE => {
                    tracing::warn!(session = %self.session, %error, "a session's variables are old");
                    Ok(Arc::clone(known))
                }
                _ => Err(error),
            },
        }
    }

    async fn read(&self) -> Result<Vec<Variable>, VaultsError> {
        match &self.source {
            Source::Vaults(vaults) => vaults.variables(self.session).await,
            #[cfg(test)]
            Source::List(list) => Ok(list.lock().unwrap_or_else(PoisonError::into_inner).clone()),
        }
    }

    /// `host` cannot be reached: to be told once of each credential that names it.
    pub(in crate::door) async fn unreachable(&self, host: &str, reason: &str) {
        let Ok(known) = self.known().await else {
            return;
        };
        let mut reports = self.reports();
        for (_, variable) in known.of_host(host) {
            let names_it = matches!(variable.networking, Networking::Limited(_));
            if names_it && reports.made.insert(variable.credential) {
                reports.waiting.push(Unreachable {
                    credential: variable.credential,
                    vault: variable.vault,
                    secret_name: variable.secret_name.clone(),
                    host: host.to_owned(),
                    reason: reason.to_owned(),
                });
            }
        }
    }

    /// What is to be told and has not been taken yet.
    pub(crate) fn take_unreachable(&self) -> Vec<Unreachable> {
        std::mem::take(&mut self.reports().waiting)
    }

    fn reports(&self) -> std::sync::MutexGuard<'_, Reports> {
        self.unreachable
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
