//! Live streams: who watches what, and how they hear of it.
//!
//! A notification is a hint, the table is the truth. A [`Subscription`] knows the position it has
//! delivered; rows behind it come from the topic's ring when they join up, from the table when they do
//! not. Whatever is lost on the way (a notification, a ring that ran over, a listener's connection) is
//! made good by the next look at the table.
//!
//! ```text
//! append ──publish──▶ Topic (ring of rows and previews) ──wake──▶ Subscription ──▶ SSE
//! other process ──hint──▶ Topic.known ──wake──▶ Subscription ──reads──▶ table
//! ```
//!
//! Bodies are shared by all subscribers. A session nobody watches has no topic.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};

use selfsame_store::{Row, Store, StoreError};
use selfsame_types::{EventId, SessionId, ThreadId, event::EventType};
use serde_json::json;
use tokio::sync::watch;

/// Entries kept for subscribers that are a little behind.
const RING: usize = 2048;
/// Bytes kept for them.
const RING_BYTES: usize = 4 << 20;
/// Rows read from the table at once.
const READ: i64 = 500;

/// A piece of a message that is still being generated. Never stored.
#[derive(Debug, Clone)]
pub struct Preview {
    pub thread: ThreadId,
    /// Position of the span that the request began with.
    pub span_seq: i64,
    /// The event it is a preview of.
    pub event: EventId,
    pub kind: PreviewKind,
    /// The exact text clients see.
    pub body: Arc<str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PreviewKind {
    StartMessage,
    StartThinking,
    Delta,
}

impl Preview {
    /// A piece of `event`; `text` only says something with [`PreviewKind::Delta`].
    #[must_use]
    pub(crate) fn new(
        thread: ThreadId,
        span_seq: i64,
        event: EventId,
        kind: PreviewKind,
        text: &str,
    ) -> Self {
        let start =
            |name: &str| json!({"type": "event_start", "event": {"type": name, "id": event}});
        let body = match kind {
            PreviewKind::StartMessage => start("agent.message"),
            PreviewKind::StartThinking => start("agent.thinking"),
            PreviewKind::Delta => json!({
                "type": "event_delta",
                "event_id": event,
                "delta": {
                    "type": "content_delta", "index": 0,
                    "content": {"type": "text", "text": text},
                },
            }),
        };
        Self {
            thread,
            span_seq,
            event,
            kind,
            body: body.to_string().into(),
        }
    }
}

/// What a subscription delivers.
#[derive(Debug, Clone)]
pub enum Item {
    Row(Row),
    Preview(Preview),
    /// The session was deleted; nothing follows.
    Deleted,
}

#[derive(Debug, Clone)]
enum Entry {
    Row(Row),
    Preview(Preview),
}

impl Entry {
    fn bytes(&self) -> usize {
        match self {
            Self::Row(row) => row.body.len(),
            Self::Preview(preview) => preview.body.len(),
        }
    }
}

#[derive(Debug, Default)]
struct Ring {
    entries: VecDeque<Entry>,
    bytes: usize,
    /// Index of the first entry since the topic began.
    base: u64,
    /// The highest position anyone has told of.
    known: i64,
    deleted: bool,
    /// Subscribers that want previews.
    previewers: usize,
}

impl Ring {
    fn end(&self) -> u64 {
        self.base + self.entries.len() as u64
    }

    fn push(&mut self, entry: Entry) {
        self.bytes += entry.bytes();
        self.entries.push_back(entry);
        while self.entries.len() > RING || (self.bytes > RING_BYTES && self.entries.len() > 1) {
            if let Some(old) = self.entries.pop_front() {
                self.bytes -= old.bytes();
                self.base += 1;
            }
        }
    }
}

#[derive(Debug)]
struct Topic {
    ring: Mutex<Ring>,
    /// Counts changes; subscribers wait on it.
    wake: watch::Sender<u64>,
}

impl Topic {
    fn change(&self, change: impl FnOnce(&mut Ring)) {
        change(&mut self.ring.lock().unwrap_or_else(PoisonError::into_inner));
        self.wake.send_modify(|count| *count += 1);
    }
}

/// All topics of this process.
#[derive(Debug, Clone, Default)]
pub struct Hub {
    topics: Arc<Mutex<HashMap<SessionId, Arc<Topic>>>>,
}

impl Hub {
    fn topic(&self, session: SessionId) -> Option<Arc<Topic>> {
        self.topics
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&session)
            .cloned()
    }

    /// Rows that this process has just committed.
    pub fn publish(&self, session: SessionId, rows: &[Row]) {
        let Some(last) = rows.last() else { return };
        let Some(topic) = self.topic(session) else {
            return;
        };
        topic.change(|ring| {
            ring.known = ring.known.max(last.seq);
            for row in rows {
                // Private notes go no further than the engine.
                ring.push(Entry::Row(Row {
                    private: None,
                    ..row.clone()
                }));
            }
        });
    }

    pub fn preview(&self, session: SessionId, preview: Preview) {
        if let Some(topic) = self.topic(session) {
            topic.change(|ring| ring.push(Entry::Preview(preview)));
        }
    }

    /// Another process has committed up to `seq`.
    pub fn hint(&self, session: SessionId, seq: i64) {
        if let Some(topic) = self.topic(session) {
            topic.change(|ring| ring.known = ring.known.max(seq));
        }
    }

    pub fn deleted(&self, session: SessionId) {
        if let Some(topic) = self.topic(session) {
            topic.change(|ring| ring.deleted = true);
        }
    }

    /// Whether anyone here watches this session.
    #[must_use]
    pub fn is_watched(&self, session: SessionId) -> bool {
        self.topic(session).is_some()
    }

    /// Every watched session with the highest position known of it: what a sweep asks about.
    #[must_use]
    pub fn watched(&self) -> Vec<(SessionId, i64)> {
        self.topics
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .map(|(session, topic)| {
                (
                    *session,
                    topic
                        .ring
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .known,
                )
            })
            .collect()
    }

    /// Sessions whose previews somebody here wants.
    #[must_use]
    pub fn previewed(&self) -> Vec<SessionId> {
        self.topics
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .filter(|(_, topic)| {
                topic
                    .ring
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .previewers
                    > 0
            })
            .map(|(session, _)| *session)
            .collect()
    }

    /// Begins to watch. The position to start from is set with [`Subscription::start`], *after* this,
    /// so that nothing appended in between is missed.
    #[must_use]
    pub fn subscribe(&self, session: SessionId, previews: bool) -> Subscription {
        let mut topics = self.topics.lock().unwrap_or_else(PoisonError::into_inner);
        let topic = topics.entry(session).or_insert_with(|| {
            Arc::new(Topic {
                ring: Mutex::default(),
                wake: watch::Sender::new(0),
            })
        });
        let wake = topic.wake.subscribe();
        let cursor = topic
            .ring
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .end();
        Subscription {
            hub: self.clone(),
            session,
            previews,
            topic: Arc::clone(topic),
            wake,
            cursor,
            seq: 0,
            start_seq: 0,
            closed_span: 0,
            read: VecDeque::new(),
        }
    }
}

/// One reader of a session's log, from a position on.
#[derive(Debug)]
pub struct Subscription {
    hub: Hub,
    session: SessionId,
    previews: bool,
    topic: Arc<Topic>,
    wake: watch::Receiver<u64>,
    /// Index of the next ring entry.
    cursor: u64,
    /// Position delivered last.
    seq: i64,
    /// Where it began. Requests that began earlier are shown without previews.
    start_seq: i64,
    /// Previews of spans up to here are over, or have lost their beginning.
    closed_span: i64,
    /// Rows read from the table and not yet delivered.
    read: VecDeque<Row>,
}

enum Look {
    Item(Item),
    /// The table has what the ring has not.
    Read,
    Wait,
}

impl Subscription {
    /// Delivers what lies behind `seq`. Previews are shown for requests that begin after `live`.
    pub fn start(&mut self, seq: i64, live: i64) {
        self.seq = seq;
        self.start_seq = live;
        self.topic.change(|ring| ring.known = ring.known.max(live));
    }

    #[must_use]
    pub fn session(&self) -> SessionId {
        self.session
    }

    /// The next item. Cancel-safe.
    ///
    /// # Errors
    /// When the table has to be read and cannot be.
    pub async fn next(&mut self, store: &Store) -> Result<Item, StoreError> {
        loop {
            if let Some(row) = self.read.pop_front() {
                if row.seq > self.seq {
                    self.delivered(&row);
                    return Ok(Item::Row(row));
                }
                continue;
            }
            // Marked as seen before looking: a change in between wakes us again.
            self.wake.mark_unchanged();
            match self.look() {
                Look::Item(item) => return Ok(item),
                Look::Read => {
                    let rows = store.event_tail(self.session, self.seq, READ).await?;
                    if rows.is_empty() {
                        // Told of a position that is not there: a session that is being deleted.
                        self.topic
                            .change(|ring| ring.known = ring.known.min(self.seq));
                    }
                    self.read.extend(rows);
                }
                Look::Wait => {
                    // The sender lives in our own topic, so this cannot fail.
                    let _ = self.wake.changed().await;
                }
            }
        }
    }

    fn delivered(&mut self, row: &Row) {
        self.seq = row.seq;
        if row.event_type == EventType::SpanModelRequestEnd {
            self.closed_span = self.closed_span.max(row.seq);
        }
    }

    /// Looks at the ring once.
    fn look(&mut self) -> Look {
        loop {
            let ring = self
                .topic
                .ring
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            if self.cursor < ring.base {
                // Too slow for the ring: previews of what is under way have a hole now.
                let (end, known) = (ring.end(), ring.known);
                drop(ring);
                self.cursor = end;
                self.closed_span = self.closed_span.max(known);
                return Look::Read;
            }
            let index = usize::try_from(self.cursor - ring.base).unwrap_or(usize::MAX);
            let Some(entry) = ring.entries.get(index).cloned() else {
                return match (ring.known > self.seq, ring.deleted) {
                    (_, true) => Look::Item(Item::Deleted),
                    (true, false) => Look::Read,
                    (false, false) => Look::Wait,
                };
            };
            drop(ring);
            match entry {
                Entry::Row(row) if row.seq <= self.seq => self.cursor += 1,
                Entry::Row(row) if row.seq == self.seq + 1 => {
                    self.cursor += 1;
                    self.delivered(&row);
                    return Look::Item(Item::Row(row));
                }
                Entry::Row(_) => return Look::Read,
                Entry::Preview(preview) => {
                    let stale =
                        preview.span_seq <= self.start_seq || preview.span_seq <= self.closed_span;
                    if !stale && preview.span_seq > self.seq {
                        // Its beginning is committed, but not delivered here yet.
                        return Look::Read;
                    }
                    self.cursor += 1;
                    if !stale {
                        return Look::Item(Item::Preview(preview));
                    }
                }
            }
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut topics = self
            .hub
            .topics
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if self.previews {
            let mut ring = self
                .topic
                .ring
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            ring.previewers -= 1;
        }
        // Ours and the map's: nobody else watches.
        if Arc::strong_count(&self.topic) <= 2 {
            topics.remove(&self.session);
        }
    }
}
