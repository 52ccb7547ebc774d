//! What sessions' credentials were a moment ago.
//!
//! A request to an MCP server must not cost two queries. Whoever changes a credential says so to all servers;
//! where that is lost, an entry is forgotten by its age.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use selfsame_store::OpenCredential;
use selfsame_types::{CredentialId, SessionId, Timestamp};
use tokio::time::Instant;

use super::Variable;

/// A credential, and when it was read.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub credential: Arc<OpenCredential>,
    read: Instant,
}

impl Found {
    pub(super) fn new(credential: OpenCredential) -> Self {
        Self {
            credential: Arc::new(credential),
            read: Instant::now(),
        }
    }

    /// The database's clock, as far as it can be told without asking.
    pub(super) fn now(&self) -> Timestamp {
        self.credential.now.after(self.read.elapsed())
    }
}

#[derive(Debug)]
struct Kept<T> {
    since: Instant,
    what: T,
}

#[derive(Debug, Default)]
struct Session {
    /// By server key. That there is none is remembered, too.
    servers: HashMap<String, Kept<Option<Found>>>,
    variables: Option<Kept<Vec<Variable>>>,
}

#[derive(Debug)]
struct State {
    /// Grows with everything that is forgotten: what was read before then must not be kept after.
    epoch: u64,
    sessions: HashMap<SessionId, Session>,
    swept: Instant,
}

#[derive(Debug)]
pub(super) struct Cache {
    life: Duration,
    state: Mutex<State>,
}

/// Taken before the database is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ticket(u64);

impl Cache {
    pub(super) fn new(life: Duration) -> Self {
        Self {
            life,
            state: Mutex::new(State {
                epoch: 0,
                sessions: HashMap::new(),
                swept: Instant::now(),
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_good<T>(&self, kept: &Kept<T>) -> bool {
        kept.since.elapsed() < self.life
    }

    fn keep<T>(what: T) -> Kept<T> {
        Kept {
            since: Instant::now(),
            what,
        }
    }

    pub(super) fn ticket(&self) -> Ticket {
        Ticket(self.state().epoch)
    }

    /// The outer `None`: nobody has looked.
    pub(super) fn server(&self, session: SessionId, key: &str) -> Option<Option<Found>> {
        let state = self.state();
        let kept = state.sessions.get(&session)?.servers.get(key)?;
        self.is_good(kept).then(|| kept.what.clone())
    }

    pub(super) fn variables(&self, session: SessionId) -> Option<Vec<Variable>> {
        let state = self.state();
        let kept = state.sessions.get(&session)?.variables.as_ref()?;
        self.is_good(kept).then(|| kept.what.clone())
    }

    pub(super) fn put_server(
        &self,
        ticket: Ticket,
        session: SessionId,
        key: String,
        found: Option<Found>,
    ) {
        self.put(ticket, session, |kept| {
            kept.servers.insert(key, Self::keep(found));
        });
    }

    pub(super) fn put_variables(
        &self,
        ticket: Ticket,
        session: SessionId,
        variables: Vec<Variable>,
    ) {
        self.put(ticket, session, |kept| {
            kept.variables = Some(Self::keep(variables));
        });
    }

    fn put(&self, ticket: Ticket, session: SessionId, put: impl FnOnce(&mut Session)) {
        let mut state = self.state();
        // Secrets of sessions that are over do not stay.
        if state.swept.elapsed() >= self.life {
            state.swept = Instant::now();
            state.sessions.retain(|_, session| {
                session.servers.retain(|_, kept| self.is_good(kept));
                session.variables = session.variables.take().filter(|kept| self.is_good(kept));
                !session.servers.is_empty() || session.variables.is_some()
            });
        }
        if ticket == Ticket(state.epoch) {
            put(state.sessions.entry(session).or_default());
        }
    }

    /// Forgets one credential, wherever it is the answer.
    pub(super) fn forget(&self, credential: CredentialId) {
        let mut state = self.state();
        state.epoch += 1;
        let is_other = |found: &Option<Found>| {
            found
                .as_ref()
                .is_none_or(|found| found.credential.credential.id != credential)
        };
        for session in state.sessions.values_mut() {
            session.servers.retain(|_, kept| is_other(&kept.what));
        }
    }

    pub(super) fn clear(&self) {
        let mut state = self.state();
        state.epoch += 1;
        state.sessions.clear();
    }
}
