//! Watching what a sandbox writes, where its backend sets no bound to all of it together.
//!
//! The backend measures, from outside; the hands enforce, from inside. In between is a task per
//! connection: while calls are under way it measures every two seconds or so, and tells the hands. A sandbox at
//! rest is not measured.

use std::{
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use selfsame_hands::{
    Call, CallResult, Content, disk_full,
    wire::{Reply, Request},
};
use tokio::{
    sync::{Mutex, Notify},
    time::{Instant, sleep, timeout},
};
use tracing::debug;

use crate::{
    Backend, Handle, Sandbox, SandboxError,
    sandbox::{Inner, unexpected},
};

/// Between two measurements.
const PERIOD: Duration = Duration::from_secs(2);
/// A measurement that takes long is made seldom: at most this part of the time goes into it.
const SHARE: u32 = 10;
/// Time for one measurement.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is known about one sandbox's disk.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    given: OnceLock<(Arc<dyn Backend>, Handle, u64)>,
    /// What was measured last.
    used: AtomicU64,
    /// Calls under way.
    calls: AtomicUsize,
    /// There has been one.
    active: Notify,
    /// One measurement at a time.
    measuring: Mutex<()>,
}

impl Watch {
    /// For as long as the result lives, a call is under way.
    pub(crate) fn enter(self: &Arc<Self>) -> UnderWay {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.active.notify_one();
        UnderWay(Arc::clone(self))
    }

    /// The sandbox is gone, and so shall be who watches it.
    pub(crate) fn end(&self) {
        self.active.notify_one();
    }

    fn is_full(&self) -> bool {
        self.given
            .get()
            .is_some_and(|(_, _, limit)| self.used.load(Ordering::Relaxed) > *limit)
    }
}

#[derive(Debug)]
pub(crate) struct UnderWay(Arc<Watch>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.calls.fetch_sub(1, Ordering::Relaxed);
        // What it has written is to be known, too.
        self.0.active.notify_one();
    }
}

impl Sandbox {
    /// Bounds what the sandbox writes to `limit` bytes: beyond it calls get errors that say so, and
    /// files can only be read and deleted. Does nothing where `backend` enforces that by itself; a
    /// second time does nothing either.
    pub fn watch_disk(&self, backend: Arc<dyn Backend>, handle: Handle, limit: u64) {
        if self.inner.disk.given.set((backend, handle, limit)).is_ok() {
            let (inner, disk) = (Arc::downgrade(&self.inner), Arc::clone(&self.inner.disk));
            tokio::spawn(watch(inner, disk));
        }
    }

    /// A result of `bash` on a full disk: an error, unless there is room by now.
    pub(crate) async fn after_call(&self, call: &Call, result: CallResult) -> CallResult {
        let disk = &self.inner.disk;
        if call.tool != "bash" || !disk.is_full() {
            return result;
        }
        if let Err(error) = self.measure().await {
            debug!(%error, "cannot measure a sandbox's disk");
        }
        match disk.given.get() {
            Some((_, _, limit)) if disk.is_full() => marked(
                result,
                &disk_full(disk.used.load(Ordering::Relaxed), *limit),
            ),
            _ => result,
        }
    }

    /// Measures and tells the hands; answers false when there is nothing to watch.
    async fn measure(&self) -> Result<bool, SandboxError> {
        let disk = &self.inner.disk;
        let Some((backend, handle, limit)) = disk.given.get() else {
            return Ok(false);
        };
        let _one = disk.measuring.lock().await;
        let used = timeout(PATIENCE, backend.disk_used(handle))
            .await
            .map_err(|_| SandboxError::Timeout("measuring a sandbox's disk"))??;
        let Some(used) = used else {
            return Ok(false);
        };
        disk.used.store(used, Ordering::Relaxed);
        let limit = *limit;
        match self.control(&Request::Disk { used, limit }).await? {
            Reply::Done => Ok(true),
            other => Err(unexpected(other)),
        }
    }
}

async fn watch(inner: Weak<Inner>, disk: Arc<Watch>) {
    loop {
        disk.active.notified().await;
        let mut pause = PERIOD;
        loop {
            sleep(pause).await;
            // Not held while nothing happens: the last clone of a sandbox closes its stream.
            let Some(inner) = inner.upgrade() else { return };
            let sandbox = Sandbox { inner };
            if sandbox.is_closed() {
                return;
            }
            let began = Instant::now();
            match sandbox.measure().await {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => debug!(%error, "cannot measure a sandbox's disk"),
            }
            pause = PERIOD.max(began.elapsed() * SHARE);
            if disk.calls.load(Ordering::Relaxed) == 0 {
                break;
            }
        }
    }
}

fn marked(mut result: CallResult, problem: &str) -> CallResult {
    let problem = format!("bash: {problem}");
    match result.content.first_mut() {
        Some(Content::Text(text)) if text != "(no output)" => {
            if !text.contains(&problem) {
                text.push_str("\n\n");
                text.push_str(&problem);
            }
        }
        Some(Content::Text(text)) => *text = problem,
        _ => result.content.push(Content::Text(problem)),
    }
    result.is_error = true;
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_says_that_the_disk_is_full() {
        let told = marked(CallResult::text("output"), "full");
        assert!(told.is_error);
        assert_eq!(told.joined_text(), "output\n\nbash: full");
        assert_eq!(marked(told.clone(), "full"), told);
        let told = marked(CallResult::text("(no output)"), "full");
        assert_eq!(told.joined_text(), "bash: full");
    }
}
