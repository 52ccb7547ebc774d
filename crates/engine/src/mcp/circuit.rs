//! Servers that cost time and gave nothing are left alone for a while.
//!
//! What a failure costs is the time until it was known: a connection that is refused costs nothing and is
//! tried again with the next turn, one that runs into a time limit is not. So a dead server takes a small
//! part of the time of those who use it, however many turns they have.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::error::Fault;

/// A server is left alone for this many times what its failure took.
const PATIENCE: u32 = 6;
/// What is quicker is not remembered.
const QUICK: Duration = Duration::from_millis(500);
/// Servers that are remembered.
const MAX_SERVERS: usize = 4096;

/// By address, for all sessions of this server.
#[derive(Debug, Default)]
pub(super) struct Circuits(Mutex<HashMap<String, Open>>);

#[derive(Debug)]
struct Open {
    until: Instant,
    fault: Fault,
}

impl Circuits {
    fn table(&self) -> MutexGuard<'_, HashMap<String, Open>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why a server is not tried now.
    pub(super) fn check(&self, url: &str, now: Instant) -> Result<(), Fault> {
        match self.table().get(url) {
            Some(open) if open.until > now => Err(Fault::Connection(format!(
                "{}; it is tried again in {} seconds",
                open.fault,
                (open.until - now).as_secs() + 1
            ))),
            _ => Ok(()),
        }
    }

    /// Notes what came of an attempt that began at `began` and ended now. A credential that is refused says
    /// nothing about those of others.
    pub(super) fn note(
        &self,
        url: &str,
        began: Instant,
        now: Instant,
        outcome: Result<(), &Fault>,
    ) {
        let took = now.duration_since(began);
        let mut table = self.table();
        match outcome {
            Err(fault @ Fault::Connection(_)) if took >= QUICK => {
                table.retain(|_, open| open.until > now);
                if table.len() < MAX_SERVERS {
                    let (until, fault) = (now + took * PATIENCE, fault.clone());
                    table.insert(url.to_owned(), Open { until, fault });
                }
            }
            Ok(()) => {
                table.remove(url);
            }
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_slow_failure_is_not_repeated_at_once() {
        let circuits = Circuits::default();
        let fault = Fault::connection("it did not answer");
        let began = Instant::now();
        let now = began + 10 * SECOND;
        circuits.note("a", began, now, Err(&fault));
        let refused = circuits.check("a", now).unwrap_err().to_string();
        assert_eq!(
            refused,
            "it did not answer; it is tried again in 61 seconds"
        );
        assert_eq!(circuits.check("b", now), Ok(()));
        assert!(circuits.check("a", now + 59 * SECOND).is_err());
        assert_eq!(circuits.check("a", now + 60 * SECOND), Ok(()));
    }

    #[test]
    fn what_costs_nothing_is_not_remembered() {
        let circuits = Circuits::default();
        let began = Instant::now();
        let now = began + 10 * SECOND;
        circuits.note("a", began, began, Err(&Fault::connection("refused")));
        circuits.note(
            "a",
            began,
            now,
            Err(&Fault::Authentication("no".to_owned())),
        );
        assert_eq!(circuits.check("a", now), Ok(()));
        circuits.note("a", began, now, Err(&Fault::connection("slow")));
        assert!(circuits.check("a", now).is_err());
        circuits.note("a", began, now, Ok(()));
        assert_eq!(circuits.check("a", now), Ok(()), "it works again");
    }
}
