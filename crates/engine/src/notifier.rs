//! Hints to the other servers: batched, outside any append's transaction, and never needed for
//! correctness.
//!
//! One line per session: `<session> <seq> [w]`, where `w` says that somebody should drive it. A
//! notification inside every append would serialize all commits of the database.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use selfsame_store::Store;
use selfsame_types::{ServerId, SessionId};
use tokio::sync::Notify;

/// A payload must stay below 8000 bytes; a line takes up to 70.
const LINES: usize = 100;

#[derive(Debug, Default, Clone, Copy)]
struct Pending {
    seq: i64,
    wake: bool,
    deleted: bool,
}

/// Collects hints and sends them together.
#[derive(Debug, Clone)]
pub(crate) struct Notifier {
    store: Store,
    server: ServerId,
    pending: Arc<Mutex<HashMap<SessionId, Pending>>>,
    work: Arc<Notify>,
}

/// One hint as received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hint {
    pub session: SessionId,
    pub seq: i64,
    pub wake: bool,
    pub deleted: bool,
}

impl Notifier {
    pub fn new(store: Store, server: ServerId) -> Self {
        Self {
            store,
            server,
            pending: Arc::default(),
            work: Arc::default(),
        }
    }

    fn add(&self, session: SessionId, change: impl FnOnce(&mut Pending)) {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        change(pending.entry(session).or_default());
        drop(pending);
        self.work.notify_one();
    }

    /// Rows up to `seq` were committed.
    pub fn appended(&self, session: SessionId, seq: i64) {
        self.add(session, |pending| pending.seq = pending.seq.max(seq));
    }

    /// Somebody should drive this session.
    pub fn wake(&self, session: SessionId, seq: i64) {
        self.add(session, |pending| {
            pending.seq = pending.seq.max(seq);
            pending.wake = true;
        });
    }

    pub fn deleted(&self, session: SessionId) {
        self.add(session, |pending| pending.deleted = true);
    }

    fn take(&self) -> Vec<String> {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        let lines: Vec<_> = pending
            .drain()
            .map(|(session, hint)| {
                let wake = if hint.wake { " w" } else { "" };
                let deleted = if hint.deleted { " d" } else { "" };
                format!("{session} {}{wake}{deleted}", hint.seq)
            })
            .collect();
        lines
            .chunks(LINES)
            .map(|lines| format!("{}\n{}", self.server, lines.join("\n")))
            .collect()
    }

    /// Sends what is pending.
    pub async fn flush(&self) {
        for payload in self.take() {
            if let Err(error) = self.store.notify(&payload).await {
                // The other servers' sweeps find what they were not told of.
                tracing::debug!(%error, "cannot notify");
            }
        }
    }

    /// Sends for ever; while one payload is on its way, the next one fills.
    pub async fn run(&self) {
        loop {
            self.work.notified().await;
            self.flush().await;
        }
    }

    /// The hints of a payload that another server sent.
    pub fn read(&self, payload: &str) -> Vec<Hint> {
        let Some((sender, lines)) = payload.split_once('\n') else {
            return Vec::new();
        };
        if sender == self.server.to_string() {
            return Vec::new();
        }
        lines
            .lines()
            .filter_map(|line| {
                let mut words = line.split(' ');
                let session = words.next()?.parse().ok()?;
                let seq = words.next()?.parse().ok()?;
                let flags: Vec<_> = words.collect();
                Some(Hint {
                    session,
                    seq,
                    wake: flags.contains(&"w"),
                    deleted: flags.contains(&"d"),
                })
            })
            .collect()
    }
}
