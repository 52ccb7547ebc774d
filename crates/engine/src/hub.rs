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
    collections::{HashMap, HashSet, VecDeque},
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
    subscribers: usize,
    /// Those that want previews.
    previewers: usize,
    /// Something came in since the last trim.
    fresh: bool,
    /// The newest span that had previews ..
    previewed: i64,
    /// .. and the newest whose previews have a hole.
    cut: i64,
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
        self.fresh = true;
    }

    /// Lets go of what has been here since the last time.
    fn trim(&mut self) {
        if !std::mem::take(&mut self.fresh) && !self.entries.is_empty() {
            self.base = self.end();
            self.entries = VecDeque::new();
            self.bytes = 0;
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
    /// Every topic, without holding on to the table.
    fn topics(&self) -> Vec<Arc<Topic>> {
        let topics = self.topics.lock().unwrap_or_else(PoisonError::into_inner);
        topics.values().cloned().collect()
    }

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
            topic.change(|ring| {
                ring.previewed = ring.previewed.max(preview.span_seq);
                if preview.span_seq > ring.cut {
                    ring.push(Entry::Preview(preview));
                }
            });
        }
    }

    /// Previews may have been lost on their way: what they belong to has no further ones, because none
    /// may be missing in the middle.
    pub fn cut_previews(&self) {
        for topic in self.topics() {
            let mut ring = topic.ring.lock().unwrap_or_else(PoisonError::into_inner);
            ring.cut = ring.previewed;
        }
    }

    /// Empties rings at rest, so that an idle session that is watched costs little. Who was slower
    /// than that reads the table.
    pub fn trim(&self) {
        for topic in self.topics() {
            topic
                .ring
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .trim();
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
        let cursor = {
            let mut ring = topic.ring.lock().unwrap_or_else(PoisonError::into_inner);
            ring.subscribers += 1;
            ring.previewers += usize::from(previews);
            ring.end()
        };
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
            started: HashSet::new(),
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
    /// Messages whose previews began here and whose request is still open.
    started: HashSet<EventId>,
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
                        // Told of a position that is not there: a session that is being purged.
                        let seq = self.seq;
                        self.topic.change(|ring| ring.known = ring.known.min(seq));
                        self.cursor = self.end();
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

    fn end(&self) -> u64 {
        self.topic
            .ring
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .end()
    }

    fn delivered(&mut self, row: &Row) {
        self.seq = row.seq;
        if row.event_type == EventType::SpanModelRequestEnd {
            self.closed_span = self.closed_span.max(row.seq);
            self.started.clear();
        }
    }

    /// Whether a preview still means something here. A piece of a message whose beginning was not
    /// shown does not.
    fn is_stale(&self, preview: &Preview) -> bool {
        if preview.span_seq <= self.start_seq || preview.span_seq <= self.closed_span {
            return true;
        }
        match preview.kind {
            PreviewKind::StartMessage | PreviewKind::StartThinking => false,
            PreviewKind::Delta => !self.started.contains(&preview.event),
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
                    let stale = self.is_stale(&preview);
                    if !stale && preview.span_seq > self.seq {
                        // Its beginning is committed, but not delivered here yet.
                        return Look::Read;
                    }
                    self.cursor += 1;
                    if !stale {
                        if preview.kind == PreviewKind::StartMessage {
                            self.started.insert(preview.event);
                        }
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
        let mut ring = self
            .topic
            .ring
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        ring.previewers -= usize::from(self.previews);
        ring.subscribers -= 1;
        if ring.subscribers == 0 {
            topics.remove(&self.session);
        }
    }
}
