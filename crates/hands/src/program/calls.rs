//! Which calls are known. This is what makes a call run once, however often it is sent.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use selfsame_hands::{Call, CallResult, wire::Reply};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::tools::{INTERRUPTED, Tools};

/// Most calls that are running or not yet acknowledged.
const MAX_CALLS: usize = 4096;
/// How many ids are remembered after they were acknowledged, or cancelled before they came.
const MAX_REMEMBERED: usize = 4096;

#[derive(Debug)]
pub(super) struct Calls {
    tools: Arc<Tools>,
    book: Mutex<Book>,
}

#[derive(Debug, Default)]
struct Book {
    calls: HashMap<Uuid, Entry>,
    acknowledged: Remembered,
    /// A cancellation may overtake its call, because each travels on a substream of its own.
    cancelled: Remembered,
}

#[derive(Debug)]
struct Entry {
    cancel: CancellationToken,
    result: watch::Receiver<Option<CallResult>>,
}

/// The last so many ids.
#[derive(Debug, Default)]
struct Remembered {
    ids: HashSet<Uuid>,
    order: VecDeque<Uuid>,
}

impl Remembered {
    fn insert(&mut self, id: Uuid) {
        if self.ids.insert(id) {
            self.order.push_back(id);
            if self.order.len() > MAX_REMEMBERED
                && let Some(oldest) = self.order.pop_front()
            {
                self.ids.remove(&oldest);
            }
        }
    }
}

impl Calls {
    pub(super) fn new(tools: Tools) -> Self {
        Self {
            tools: Arc::new(tools),
            book: Mutex::default(),
        }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the call unless it is known, and waits for its result. Dropping this future stops
    /// only the waiting.
    pub(super) async fn run(&self, call: Call) -> Reply {
        let mut result = match self.enter(call) {
            Ok(result) => result,
            Err(message) => {
                return Reply::Refused {
                    message: message.into(),
                };
            }
        };
        let result = result
            .wait_for(Option::is_some)
            .await
            .ok()
            .and_then(|result| result.clone());
        Reply::Result(
            result.unwrap_or_else(|| CallResult::error("internal error: the call was lost")),
        )
    }

    fn enter(&self, call: Call) -> Result<watch::Receiver<Option<CallResult>>, &'static str> {
        let mut book = self.book();
        if let Some(entry) = book.calls.get(&call.id) {
            return Ok(entry.result.clone());
        }
        if book.acknowledged.ids.contains(&call.id) {
            return Err("the call was already acknowledged");
        }
        if book.calls.len() >= MAX_CALLS {
            return Err("too many calls without acknowledgement");
        }
        let id = call.id;
        let cancel = CancellationToken::new();
        let (sender, result) = watch::channel(None);
        if book.cancelled.ids.contains(&id) {
            sender.send_replace(Some(CallResult::error(INTERRUPTED)));
        } else {
            let (tools, cancelled) = (Arc::clone(&self.tools), cancel.clone());
            let work = tokio::spawn(async move { tools.run(call, &cancelled).await });
            tokio::spawn(async move {
                // A panic ends its own call and nothing else.
                let result = work
                    .await
                    .unwrap_or_else(|panic| CallResult::error(format!("internal error: {panic}")));
                sender.send_replace(Some(result));
            });
        }
        book.calls.insert(
            id,
            Entry {
                cancel,
                result: result.clone(),
            },
        );
        Ok(result)
    }

    /// Forgets a result. A call that still runs is not forgotten.
    pub(super) fn acknowledge(&self, id: Uuid) {
        let mut book = self.book();
        if book
            .calls
            .get(&id)
            .is_some_and(|entry| entry.result.borrow().is_some())
        {
            book.calls.remove(&id);
            book.acknowledged.insert(id);
        }
    }

    pub(super) fn cancel(&self, id: Uuid) {
        let mut book = self.book();
        match book.calls.get(&id) {
            Some(entry) => entry.cancel.cancel(),
            None => book.cancelled.insert(id),
        }
    }
}
