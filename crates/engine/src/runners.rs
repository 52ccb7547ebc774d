//! The sessions this server drives: who they are, how to wake them, what becomes of them.
//!
//! A lease and the runner that uses it begin at different moments: the lease with a commit, the runner
//! a little later. Whoever appends something in between finds the lease taken and nobody to wake. So a
//! place for the wake-up is made *before* the commit ([`Runners::expect`]), and a runner that starts
//! from a claim looks at the log once more.

use std::{
    collections::HashMap,
    panic::AssertUnwindSafe,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use futures_util::FutureExt as _;
use selfsame_types::SessionId;
use tokio::sync::Notify;

use crate::{
    Inner,
    runner::{Runner, Start, Stopped},
};

/// A session that fails for a reason of its own is not taken up again at once.
const FAILED_PAUSE: Duration = Duration::from_secs(10);

/// How the rest of the server reaches a runner.
#[derive(Debug, Default)]
pub(crate) struct Link {
    poke: Notify,
    /// The position that the runner has seen.
    seq: AtomicI64,
}

impl Link {
    /// Resolves when the log is to be looked at again.
    pub async fn poked(&self) {
        self.poke.notified().await;
    }

    pub fn seen(&self, seq: i64) {
        self.seq.store(seq, Ordering::Relaxed);
    }
}

#[derive(Debug, Default)]
struct Tables {
    running: HashMap<SessionId, Arc<Link>>,
    /// Leases about to be taken by a client's request, with the number of such requests.
    expected: HashMap<SessionId, (Arc<Link>, usize)>,
}

/// All runners of this server.
#[derive(Debug, Clone, Default)]
pub(crate) struct Runners(Arc<Mutex<Tables>>);

/// A place for a runner that may start soon. Dropping it gives the place up.
#[derive(Debug)]
pub(crate) struct Expected {
    runners: Runners,
    session: SessionId,
    link: Arc<Link>,
}

impl Drop for Expected {
    fn drop(&mut self) {
        let mut tables = self.runners.tables();
        if let Some((_, count)) = tables.expected.get_mut(&self.session) {
            *count -= 1;
            if *count == 0 {
                tables.expected.remove(&self.session);
            }
        }
    }
}

impl Runners {
    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn len(&self) -> usize {
        self.tables().running.len()
    }

    pub fn contains(&self, session: SessionId) -> bool {
        self.tables().running.contains_key(&session)
    }

    /// Pokes of this session are kept from now on for the runner that may start.
    pub fn expect(&self, session: SessionId) -> Expected {
        let mut tables = self.tables();
        let (link, count) = tables.expected.entry(session).or_default();
        *count += 1;
        Expected {
            runners: self.clone(),
            session,
            link: Arc::clone(link),
        }
    }

    /// Something was appended to a session: its runner looks again, if it is here.
    pub fn poke(&self, session: SessionId) {
        let tables = self.tables();
        if let Some((link, _)) = tables.expected.get(&session) {
            link.poke.notify_one();
        }
        if let Some(link) = tables.running.get(&session) {
            link.poke.notify_one();
        }
    }

    /// Every session that is driven here, with the position its runner has seen.
    pub fn seen(&self) -> Vec<(SessionId, i64)> {
        self.tables()
            .running
            .iter()
            .map(|(session, link)| (*session, link.seq.load(Ordering::Relaxed)))
            .collect()
    }

    fn insert(&self, session: SessionId, link: &Arc<Link>) {
        let replaced = self.tables().running.insert(session, Arc::clone(link));
        if let Some(replaced) = replaced {
            // Either on its way out, or one whose lease we have lost and taken again: it looks at the
            // log and finds out.
            replaced.poke.notify_one();
        }
    }

    /// `false` when a later runner of the session stands there already.
    fn remove(&self, session: SessionId, link: &Arc<Link>) -> bool {
        let mut tables = self.tables();
        let own = tables
            .running
            .get(&session)
            .is_some_and(|other| Arc::ptr_eq(other, link));
        if own {
            tables.running.remove(&session);
        }
        own
    }
}

impl Inner {
    /// How many more sessions may be driven here.
    pub(crate) fn room(&self) -> usize {
        if self.shutdown.is_cancelled() {
            return 0;
        }
        self.config.max_runners.saturating_sub(self.runners.len())
    }

    /// Drives a session whose lease this server has just taken. Without a place that was kept for it,
    /// something may have been appended since `start` was read.
    pub(crate) fn drive(self: &Arc<Self>, start: Start, expected: Option<Expected>) {
        let session = start.session;
        let epoch = start.epoch;
        let link = match &expected {
            Some(expected) => Arc::clone(&expected.link),
            None => Arc::default(),
        };
        if expected.is_none() {
            link.poke.notify_one();
        }
        link.seen(start.last_seq);
        self.runners.insert(session, &link);
        drop(expected);
        metrics::gauge!("selfsame_running_sessions").increment(1.0);
        let inner = Arc::clone(self);
        let runner = Runner::new(Arc::clone(self), start, Arc::clone(&link));
        self.tasks.spawn(async move {
            let ended = AssertUnwindSafe(runner.run()).catch_unwind().await;
            let ended = ended.unwrap_or(Err(Stopped::Panicked));
            let last = inner.runners.remove(session, &link);
            metrics::gauge!("selfsame_running_sessions").decrement(1.0);
            match ended {
                Ok(()) => inner.idle(session),
                Err(Stopped::LeaseLost | Stopped::Gone) => {
                    tracing::info!(%session, epoch, "let go of a session that is another's now");
                    if last {
                        inner.sandboxes.disconnect(session);
                        inner.mcp.release(&inner, session);
                    }
                }
                Err(error) => {
                    tracing::error!(%session, error = &error as &dyn std::error::Error,
                        "a session's runner failed");
                    let pause = if error.is_transient() {
                        Duration::ZERO
                    } else {
                        FAILED_PAUSE
                    };
                    inner.give_up(session, epoch, pause).await;
                }
            }
        });
    }

    /// Keeps the sandbox and MCP servers connected for a while: the next turn is likely soon.
    fn idle(self: &Arc<Self>, session: SessionId) {
        let sandbox = self.sandboxes.last_use(session);
        let mcp = self.mcp.last_use(session);
        if sandbox.is_none() && mcp.is_none() {
            return;
        }
        let inner = Arc::clone(self);
        let keep = self.config.keep_connected;
        self.tasks.spawn(async move {
            tokio::select! {
                () = tokio::time::sleep(keep) => {}
                () = inner.shutdown.cancelled() => {}
            }
            if inner.runners.contains(session) {
                return;
            }
            if sandbox.is_some() && inner.sandboxes.last_use(session) == sandbox {
                inner.sandboxes.disconnect(session);
            }
            if mcp.is_some() && inner.mcp.last_use(session) == mcp {
                inner.mcp.release(&inner, session);
            }
        });
    }

    /// Releases a lease that this server holds and cannot use, however long the database is away.
    /// Nobody takes the session up again before `pause` is over.
    pub(crate) async fn give_up(&self, session: SessionId, epoch: i64, pause: Duration) {
        while let Err(error) = self
            .store
            .session_give_up(session, self.server, epoch, pause)
            .await
        {
            tracing::warn!(%session, %error, "cannot release a lease yet");
            tokio::select! {
                () = tokio::time::sleep(self.config.lease_ttl) => {}
                () = self.shutdown.cancelled() => return,
            }
        }
        self.claims.notify_one();
    }

    /// Releases leases of this server that no runner uses: whatever went wrong between a claim and
    /// its runner, the session is not stuck. A lease taken a moment ago may still wait for its runner,
    /// so only what was unused at the last look, too, is released.
    pub(crate) async fn release_unused(
        &self,
        before: &mut HashMap<SessionId, i64>,
    ) -> Result<(), selfsame_store::StoreError> {
        let held = self.store.sessions_held(self.server).await?;
        let unused: HashMap<_, _> = held
            .into_iter()
            .filter(|(session, _)| !self.runners.contains(*session))
            .collect();
        for (session, epoch) in &unused {
            if before.get(session) == Some(epoch) {
                tracing::error!(%session, epoch, "held the lease of a session without driving it");
                self.give_up(*session, *epoch, Duration::ZERO).await;
            }
        }
        *before = unused;
        Ok(())
    }
}
