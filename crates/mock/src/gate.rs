//! Gates: points in a response that a test opens.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::watch;

#[derive(Debug, Default)]
pub(crate) struct Gates(Mutex<BTreeMap<String, Arc<Gate>>>);

#[derive(Debug)]
pub(crate) struct Gate(watch::Sender<State>);

#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct State {
    pub(crate) open: bool,
    pub(crate) waiting: usize,
    /// Responses that may pass although the gate is closed.
    permits: u32,
}

impl Gates {
    pub(crate) fn get(&self, name: &str) -> Arc<Gate> {
        let mut gates = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || Arc::new(Gate(watch::Sender::default()));
        gates.entry(name.to_owned()).or_insert_with(new).clone()
    }

    pub(crate) fn list(&self) -> Vec<(String, State)> {
        let gates = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        gates
            .iter()
            .map(|(name, gate)| (name.clone(), *gate.0.borrow()))
            .collect()
    }

    /// Forgets all gates; who waits at one passes.
    pub(crate) fn reset(&self) {
        let mut gates = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for gate in std::mem::take(&mut *gates).into_values() {
            gate.release(None);
        }
    }
}

impl Gate {
    /// Opens for good, or lets `times` more responses pass.
    pub(crate) fn release(&self, times: Option<u32>) {
        self.0.send_modify(|s| match times {
            None => s.open = true,
            Some(n) => s.permits = s.permits.saturating_add(n),
        });
    }

    /// Waits until it may pass.
    pub(crate) async fn pass(&self) {
        self.0.send_modify(|s| s.waiting += 1);
        let _leave = Leave(self);
        let mut changes = self.0.subscribe();
        loop {
            let passed = self.0.send_if_modified(|s| {
                let with_permit = !s.open && s.permits > 0;
                s.permits -= u32::from(with_permit);
                with_permit
            });
            if passed || self.0.borrow().open || changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Waits until somebody waits here.
    pub(crate) async fn reached(&self) {
        let _ = self.0.subscribe().wait_for(|s| s.waiting > 0).await;
    }
}

/// A response that leaves the gate, whether let through or because its client is gone.
struct Leave<'a>(&'a Gate);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.0.0.send_modify(|s| s.waiting -= 1);
    }
}
