//! What servers tell each other: batched, outside any append's transaction, and never needed for
//! correctness.
//!
//! Four kinds of line go over one channel. *Hints* say how far a session's log has come, and whether
//! somebody should drive it. *Interest* says that a server's client wants previews of a session; it is
//! renewed while that lasts. *Previews* are sent only for sessions that somebody else is interested in,
//! and gathered to twenty a second for each message. And whoever changes
//! a credential says so, because every server remembers some. A notification inside every append would serialize
//! all commits of the database.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use selfsame_store::Store;
use selfsame_types::{CredentialId, EventId, ServerId, SessionId, ThreadId};
use serde::{Deserialize, Serialize};
use tokio::{sync::Notify, time::Instant};

use crate::hub::PreviewKind;

/// A payload must stay below 8000 bytes.
const PAYLOAD: usize = 7800;
/// Text of a preview line, before JSON escapes it: at worst six bytes for one.
const PREVIEW_TEXT: usize = 1000;
/// Previews are gathered for this long.
const GATHER: Duration = Duration::from_millis(50);
/// Previews waiting to be sent; beyond, further ones of the same message are dropped at its end.
const MAX_PREVIEWS: usize = 10_000;
/// Interest that is not renewed is over.
pub(crate) const INTEREST: Duration = Duration::from_secs(60);

#[derive(Debug, Default, Clone, Copy)]
struct Pending {
    seq: i64,
    wake: bool,
    deleted: bool,
    interest: bool,
    equipped: bool,
}

/// What one server says of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hint {
    pub session: SessionId,
    pub seq: i64,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub wake: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub deleted: bool,
    /// A client of the sender wants previews.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub interest: bool,
    /// The session's resources have changed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub equipped: bool,
}

/// A piece of a message that another server generates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RemotePreview {
    pub session: SessionId,
    pub thread: ThreadId,
    pub span_seq: i64,
    pub event: EventId,
    pub kind: PreviewKind,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub text: String,
}

/// A line of a payload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Line {
    Hint(Hint),
    Preview(RemotePreview),
    /// This credential has changed; without one, any may have.
    Vaults(Option<CredentialId>),
}

#[derive(Debug, Default)]
struct Outbox {
    hints: HashMap<SessionId, Pending>,
    vaults: HashSet<Option<CredentialId>>,
    previews: Vec<RemotePreview>,
    shed: HashSet<EventId>,
}

/// Collects lines and sends them together.
#[derive(Debug, Clone)]
pub(crate) struct Notifier {
    store: Store,
    server: ServerId,
    outbox: Arc<Mutex<Outbox>>,
    hinted: Arc<Notify>,
    previewed: Arc<Notify>,
    /// Sessions that other servers' clients want previews of, and until when.
    interest: Arc<Mutex<HashMap<SessionId, Instant>>>,
}

impl Notifier {
    pub fn new(store: Store, server: ServerId) -> Self {
        Self {
            store,
            server,
            outbox: Arc::default(),
            hinted: Arc::default(),
            previewed: Arc::default(),
            interest: Arc::default(),
        }
    }

    fn hint(&self, session: SessionId, change: impl FnOnce(&mut Pending)) {
        let mut outbox = self.outbox.lock().unwrap_or_else(PoisonError::into_inner);
        change(outbox.hints.entry(session).or_default());
        drop(outbox);
        self.hinted.notify_one();
    }

    /// Rows up to `seq` were committed.
    pub fn appended(&self, session: SessionId, seq: i64) {
        self.hint(session, |pending| pending.seq = pending.seq.max(seq));
    }

    /// Somebody should drive this session.
    pub fn wake(&self, session: SessionId, seq: i64) {
        self.hint(session, |pending| {
            pending.seq = pending.seq.max(seq);
            pending.wake = true;
        });
    }

    pub fn deleted(&self, session: SessionId) {
        self.hint(session, |pending| pending.deleted = true);
    }

    /// A session's resources have changed: whoever holds its sandbox sees to it.
    pub fn equipped(&self, session: SessionId) {
        self.hint(session, |pending| pending.equipped = true);
    }

    /// A credential has changed; without one, any may have.
    pub fn vaults_changed(&self, credential: Option<CredentialId>) {
        let mut outbox = self.outbox.lock().unwrap_or_else(PoisonError::into_inner);
        outbox.vaults.insert(credential);
        drop(outbox);
        self.hinted.notify_one();
    }

    /// A client here wants previews of a session.
    pub fn interested(&self, session: SessionId) {
        self.hint(session, |pending| pending.interest = true);
    }

    /// Another server's client wants previews of a session.
    pub fn note_interest(&self, session: SessionId) {
        let mut interest = self.interest.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        interest.retain(|_, until| *until > now);
        interest.insert(session, now + INTEREST);
    }

    fn is_wanted(&self, session: SessionId) -> bool {
        let interest = self.interest.lock().unwrap_or_else(PoisonError::into_inner);
        interest
            .get(&session)
            .is_some_and(|until| *until > Instant::now())
    }

    /// A piece of a message that is being generated here.
    pub fn preview(&self, session: SessionId, preview: impl FnOnce() -> RemotePreview) {
        if !self.is_wanted(session) {
            return;
        }
        let preview = preview();
        let mut outbox = self.outbox.lock().unwrap_or_else(PoisonError::into_inner);
        if outbox.shed.contains(&preview.event) {
            return;
        }
        let full = outbox.previews.len() >= MAX_PREVIEWS;
        match outbox.previews.last_mut() {
            Some(last)
                if last.event == preview.event
                    && last.kind == PreviewKind::Delta
                    && preview.kind == PreviewKind::Delta
                    && last.text.len() + preview.text.len() <= PREVIEW_TEXT =>
            {
                last.text.push_str(&preview.text);
            }
            // Never a hole in the middle: this message has no further previews.
            _ if full => {
                outbox.shed.insert(preview.event);
            }
            _ => outbox.previews.extend(pieces(preview)),
        }
        drop(outbox);
        self.previewed.notify_one();
    }

    fn take_hints(&self) -> Vec<Line> {
        let mut outbox = self.outbox.lock().unwrap_or_else(PoisonError::into_inner);
        let (hints, vaults) = (
            std::mem::take(&mut outbox.hints),
            std::mem::take(&mut outbox.vaults),
        );
        let vaults = vaults.into_iter().map(Line::Vaults);
        hints
            .into_iter()
            .map(|(session, pending)| {
                Line::Hint(Hint {
                    session,
                    seq: pending.seq,
                    wake: pending.wake,
                    deleted: pending.deleted,
                    interest: pending.interest,
                    equipped: pending.equipped,
                })
            })
            .chain(vaults)
            .collect()
    }

    fn take_previews(&self) -> Vec<Line> {
        let mut outbox = self.outbox.lock().unwrap_or_else(PoisonError::into_inner);
        if outbox.previews.is_empty() {
            // Nothing was generated for a while: the messages that were cut short are long over.
            outbox.shed.clear();
        }
        std::mem::take(&mut outbox.previews)
            .into_iter()
            .map(Line::Preview)
            .collect()
    }

    /// Lines cut into payloads, each with its sender in front.
    fn payloads(&self, lines: &[Line]) -> Vec<String> {
        let mut payloads: Vec<String> = Vec::new();
        for line in lines {
            let text = serde_json::to_string(line).expect("lines serialize");
            match payloads.last_mut() {
                Some(payload) if payload.len() + text.len() < PAYLOAD => {
                    payload.push('\n');
                    payload.push_str(&text);
                }
                _ => payloads.push(format!("{}\n{text}", self.server)),
            }
        }
        payloads
    }

    async fn send(&self, lines: Vec<Line>) {
        for payload in self.payloads(&lines) {
            if let Err(error) = self.store.notify(&payload).await {
                // The other servers' sweeps find what they were not told of.
                tracing::debug!(%error, "cannot notify");
            }
        }
    }

    /// Sends the pending hints.
    pub async fn flush(&self) {
        self.send(self.take_hints()).await;
    }

    /// Sends hints for ever; while one payload is on its way, the next one fills.
    pub async fn run(&self) {
        loop {
            self.hinted.notified().await;
            self.flush().await;
        }
    }

    /// Sends previews for ever, a little later and more at once.
    pub async fn run_previews(&self) {
        loop {
            self.previewed.notified().await;
            tokio::time::sleep(GATHER).await;
            self.send(self.take_previews()).await;
        }
    }

    /// The lines of a payload that another server sent.
    pub fn read(&self, payload: &str) -> Vec<Line> {
        let Some((sender, lines)) = payload.split_once('\n') else {
            return Vec::new();
        };
        if sender == self.server.to_string() {
            return Vec::new();
        }
        // A server of another version may say what this one does not know.
        lines
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }
}

/// A preview in pieces that fit a line.
fn pieces(preview: RemotePreview) -> Vec<RemotePreview> {
    if preview.text.len() <= PREVIEW_TEXT {
        return vec![preview];
    }
    let mut pieces = Vec::new();
    let mut rest = preview.text.as_str();
    while !rest.is_empty() {
        let cut = rest.floor_char_boundary(PREVIEW_TEXT);
        pieces.push(RemotePreview {
            text: rest[..cut].to_owned(),
            ..preview.clone()
        });
        rest = &rest[cut..];
    }
    pieces
}
