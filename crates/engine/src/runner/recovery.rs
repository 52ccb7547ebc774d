//! Taking over from a server that is gone, and handing over to the next one.

use std::time::Duration;

use selfsame_types::ThreadId;

use super::{Runner, Stopped, retry};
use crate::{change::works, machine::Status};

impl Runner {
    /// Closes what a server before us left open.
    pub(super) async fn recover(&mut self) -> Result<(), Stopped> {
        let unclean = self.unclean;
        if !self.in_doubt.is_empty() {
            // Read before we connect ourselves, which may begin another life.
            let sandbox = retry(|| self.inner.store.sandbox_of(self.session)).await?;
            self.life_before = sandbox.and_then(|sandbox| sandbox.boot_id);
        }
        let open: Vec<_> = self
            .machine
            .threads
            .iter()
            .filter(|t| {
                let lost = t
                    .request
                    .is_some_and(|span| !self.asking.contains_key(&span));
                lost || (unclean && t.status == Status::Running)
            })
            .map(|t| t.id)
            .collect();
        if open.is_empty() {
            return Ok(());
        }
        self.resume(&open).await
    }

    /// Whoever worked on these threads is gone. Nobody will hear the answers of their open requests: those
    /// count as failed.
    pub(super) async fn resume(&mut self, threads: &[ThreadId]) -> Result<(), Stopped> {
        let backoff = self.inner.config.backoff.clone();
        let random: f64 = rand::random();
        self.append_at(&[], |step, now| {
            step.recover(threads, |failed| {
                let wait = backoff.wait(failed, None, random)?;
                // The first time it is a server's end and not the request's fault.
                Some(now.after(if failed == 1 { Duration::ZERO } else { wait }))
            });
        })
        .await?;
        Ok(())
    }

    /// A drain: nothing new is started, and what can be asked again is left to the next server.
    pub(super) async fn hand_over(mut self) -> Result<(), Stopped> {
        let deadline = tokio::time::Instant::now() + self.inner.config.drain;
        while self.is_busy() {
            match tokio::time::timeout_at(deadline, self.jobs.join_next()).await {
                Ok(Some(Ok(done))) => self.finish(done).await?,
                Ok(Some(Err(_))) => {}
                Ok(None) | Err(_) => break,
            }
        }
        if works(&self.machine) {
            let unclean = self.is_busy();
            self.inner
                .store
                .session_release(self.session, self.inner.server, self.epoch, unclean)
                .await
                .map_err(Stopped::Store)?;
            self.inner.notifier.wake(self.session, self.last_seq);
        }
        Ok(())
    }

    /// Something is under way whose end this server would have to see.
    fn is_busy(&self) -> bool {
        !self.asking.is_empty() || !self.calling.is_empty() || self.grading.is_some()
    }
}
