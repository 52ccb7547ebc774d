//! Drives one session while this server holds its lease.
//!
//! ```text
//!        ┌──────────── state ◀──────────── append (decide under the lock) ◀──────┐
//!        ▼                                                                       │
//!   machine.next() ── start what is not under way ──▶ jobs: request, call, timer ─┘
//!        ▲                                                                 outcome
//!        └── poke: a client or another server appended something
//! ```
//!
//! The runner has no truth of its own. Whatever it believes is compared with the log under the
//! session's lock, and when the lease is gone every append is refused and it stops.

mod append;
mod calls;
pub(crate) mod execute;
mod grading;
mod interrupts;
mod mcp;
mod recovery;
mod requests;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use selfsame_store::{AppendError, Row, StoreError};
use selfsame_types::{EventId, SessionId, ThreadId, Timestamp};
use tokio::task::{AbortHandle, JoinSet};
use uuid::Uuid;

use crate::{
    Inner,
    ask::Answer,
    change::works,
    machine::{CallResult, Machine, Next, Step, Trouble},
    mcp::Toolset,
    outcomes::{Graded, Grader},
    prompt::SharedSpec,
    runners::Link,
    sandboxes::AcquireError,
    transcript::Transcript,
    workbench::Briefing,
};
use execute::Executed;
use mcp::Tools;

/// Between two attempts while the database is away ..
const STORE_RETRY: Duration = Duration::from_millis(250);
/// .. of which there are this many before the session is left to whoever claims it next.
const STORE_RETRIES: u32 = 20;

/// Why a runner stopped before its session was idle.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Stopped {
    #[error("the lease is lost")]
    LeaseLost,
    #[error("the session is gone")]
    Gone,
    #[error(transparent)]
    Store(StoreError),
    #[error(transparent)]
    Unreadable(#[from] crate::transcript::Unreadable),
    #[error("the saved state cannot be read back")]
    State(#[from] serde_json::Error),
    #[error("state and log contradict each other: {0}")]
    Contradiction(&'static str),
    #[error("a job of the session panicked")]
    Panicked,
}

impl Stopped {
    /// The same work may succeed a moment later.
    pub(crate) fn is_transient(&self) -> bool {
        matches!(self, Self::Store(error) if error.is_transient())
    }
}

impl From<AppendError> for Stopped {
    fn from(error: AppendError) -> Self {
        match error {
            AppendError::NotFound => Self::Gone,
            AppendError::Store(StoreError::LeaseLost) => Self::LeaseLost,
            AppendError::Store(error) => Self::Store(error),
            // A runner's decisions refuse nothing.
            AppendError::Refused(_) => Self::Gone,
        }
    }
}

/// What a job came back with.
#[derive(Debug)]
enum Done {
    Asked {
        thread: ThreadId,
        span: EventId,
        started_at: Timestamp,
        answer: Answer,
    },
    Called {
        thread: ThreadId,
        call: EventId,
        executed: Executed,
    },
    /// A cancelled call whose sandbox does not answer.
    Overdue {
        call: EventId,
    },
    /// What the session has mounted is in its sandbox.
    Equipped {
        thread: ThreadId,
        briefing: Result<(Briefing, Vec<Trouble>), AcquireError>,
    },
    /// A thread's MCP servers have been asked for their tools.
    Learned {
        thread: ThreadId,
        toolset: Toolset,
        troubles: Vec<Trouble>,
    },
    /// A thread's next attempt is due.
    Waited {
        thread: ThreadId,
    },
    Graded {
        span: EventId,
        graded: Box<Graded>,
    },
    /// The grader has been at work for a while.
    StillGrading {
        span: EventId,
    },
}

/// A session as a runner starts with it.
#[derive(Debug)]
pub(crate) struct Start {
    pub session: SessionId,
    pub epoch: i64,
    pub machine: Machine,
    pub last_seq: i64,
    pub spec: SharedSpec,
    /// It has, or had, something to mount: the model is asked when that is done.
    pub equipped: bool,
    /// Somebody else drove it before and let go in the middle.
    pub unclean: bool,
    /// Requests that the append which took the lease has opened; they are to be sent now.
    pub begun: Vec<Begun>,
    /// What that append wrote. When it is the whole log, nothing has to be read.
    pub rows: Vec<Row>,
}

/// A request that is in the log and not sent yet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Begun {
    pub thread: ThreadId,
    pub span: EventId,
}

/// Opens the requests of threads that are due and ready, so that a turn's first commit is also its first
/// request's.
pub(crate) fn begin(step: &mut Step<'_>, is_ready: impl Fn(ThreadId) -> bool) -> Vec<Begun> {
    let mut begun = Vec::new();
    for next in step.machine.next() {
        let Next::Ask { thread } = next else { continue };
        let span = EventId::new();
        if is_ready(thread) && step.start_request(thread, span) {
            begun.push(Begun { thread, span });
        }
    }
    begun
}

pub(crate) struct Runner {
    inner: Arc<Inner>,
    session: SessionId,
    epoch: i64,
    machine: Machine,
    last_seq: i64,
    /// Of the primary thread.
    spec: SharedSpec,
    /// Of the others that have been asked.
    specs: HashMap<ThreadId, SharedSpec>,
    equipped: bool,
    /// About what is mounted; made before the first request.
    briefing: Option<Briefing>,
    equipping: Option<AbortHandle>,
    tools: Tools,
    transcripts: HashMap<ThreadId, Transcript>,
    jobs: JoinSet<Done>,
    asking: HashMap<EventId, AbortHandle>,
    calling: HashMap<EventId, AbortHandle>,
    cancelled: HashSet<EventId>,
    waiting: HashMap<ThreadId, (Timestamp, AbortHandle)>,
    /// The open evaluation: the grader, and the clock that tells clients of it.
    grading: Option<(EventId, [AbortHandle; 2])>,
    /// One whose request failed, to go on from there.
    grader: Option<(EventId, Box<Grader>)>,
    /// Results of calls that an interrupt cut off, until the interrupt is carried out.
    stopped: HashMap<ThreadId, Vec<(EventId, CallResult)>>,
    /// Calls that a server before us may have sent ..
    in_doubt: HashSet<EventId>,
    unclean: bool,
    /// .. to this life of the hands.
    life_before: Option<Uuid>,
    /// The life of the hands that the session was last told to have lost the one before.
    life_told: Option<Uuid>,
    link: Arc<Link>,
    begun: Vec<(Begun, i64, Timestamp)>,
}

impl Runner {
    pub(crate) fn new(inner: Arc<Inner>, start: Start, link: Arc<Link>) -> Self {
        let in_doubt = if start.unclean {
            start
                .machine
                .threads
                .iter()
                .flat_map(|t| t.calls.iter().filter(|call| call.is_runnable()))
                .map(|call| call.id)
                .collect()
        } else {
            HashSet::new()
        };
        let begun = start
            .begun
            .iter()
            .filter_map(|begun| {
                let row = start.rows.iter().find(|row| row.id == begun.span)?;
                Some((*begun, row.seq, row.processed_at?))
            })
            .collect();
        Self {
            inner,
            session: start.session,
            epoch: start.epoch,
            machine: start.machine,
            last_seq: start.last_seq,
            tools: Tools::new(&start.spec.agent),
            spec: start.spec,
            specs: HashMap::new(),
            equipped: start.equipped,
            briefing: None,
            equipping: None,
            transcripts: transcripts(&start.rows),
            begun,
            jobs: JoinSet::new(),
            asking: HashMap::new(),
            calling: HashMap::new(),
            cancelled: HashSet::new(),
            waiting: HashMap::new(),
            grading: None,
            grader: None,
            stopped: HashMap::new(),
            in_doubt,
            unclean: start.unclean,
            life_before: None,
            life_told: None,
            link,
        }
    }

    /// Runs until the session idles or this server must let go.
    pub(crate) async fn run(mut self) -> Result<(), Stopped> {
        for (begun, seq, at) in std::mem::take(&mut self.begun) {
            self.send(begun.thread, begun.span, seq, at).await?;
        }
        self.recover().await?;
        let shutdown = self.inner.shutdown.clone();
        loop {
            if !works(&self.machine) {
                return Ok(());
            }
            let seen = self.last_seq;
            self.forget_tools();
            self.start_work().await?;
            if self.last_seq != seen {
                // What was appended may ask for more, and nobody would wake us for it.
                continue;
            }
            tokio::select! {
                biased;
                done = self.jobs.join_next(), if !self.jobs.is_empty() => {
                    match done {
                        Some(Ok(done)) => self.finish(done).await?,
                        // Aborted on purpose; what it was doing is not wanted any more.
                        Some(Err(error)) if error.is_cancelled() => {}
                        Some(Err(error)) => {
                            tracing::error!(session = %self.session, %error, "a job panicked");
                            return Err(Stopped::Panicked);
                        }
                        None => {}
                    }
                }
                () = self.link.poked() => self.refresh().await?,
                () = shutdown.cancelled() => return self.hand_over().await,
            }
        }
    }

    /// Looks at the log again.
    async fn refresh(&mut self) -> Result<(), Stopped> {
        let record = retry(|| self.inner.store.session_load(self.session)).await?;
        let record = record.ok_or(Stopped::Gone)?;
        if record.epoch != self.epoch {
            return Err(Stopped::LeaseLost);
        }
        if record.equipped {
            // Resources may have come or gone: the next request says so.
            self.equipped = true;
            self.briefing = None;
        }
        if record.last_seq > self.last_seq {
            self.machine = serde_json::from_str(&record.machine)?;
            self.last_seq = record.last_seq;
            self.link.seen(self.last_seq);
        }
        Ok(())
    }

    /// Starts whatever should be under way and is not.
    async fn start_work(&mut self) -> Result<(), Stopped> {
        let mut asks = false;
        let mut lost = Vec::new();
        for next in self.machine.next() {
            match next {
                // All that are due are opened in one append, once what they are about is there.
                Next::Ask { thread } => {
                    let equipped = self.equip(thread);
                    asks |= self.learn_tools(thread).await? && equipped;
                }
                Next::Await { thread, request } => {
                    if !self.asking.contains_key(&request) {
                        lost.push(thread);
                    }
                }
                Next::Call { thread, call } => self.call(thread, call).await?,
                Next::Grade { span, .. } => self.grade(span).await?,
                Next::Interrupt { thread } => self.interrupt(thread).await?,
                Next::Wait { thread, until } => self.wait(thread, until).await?,
            }
        }
        if !lost.is_empty() {
            self.resume(&lost).await?;
        }
        if asks { self.ask().await } else { Ok(()) }
    }

    async fn wait(&mut self, thread: ThreadId, until: Timestamp) -> Result<(), Stopped> {
        if self.equipping.is_some() {
            // What comes first ends with a look at what is next.
            return Ok(());
        }
        if let Some((planned, handle)) = self.waiting.get(&thread) {
            if *planned == until {
                return Ok(());
            }
            handle.abort();
        }
        if self.equipping.is_some() || self.tools.is_asking(thread) {
            // The time has come, and what the request is about is not there yet.
            return Ok(());
        }
        let now = retry(|| self.inner.store.now()).await?;
        let left = until.as_micros().saturating_sub(now.as_micros()).max(0);
        let left = Duration::from_micros(u64::try_from(left).unwrap_or(0));
        let handle = self.jobs.spawn(async move {
            tokio::time::sleep(left).await;
            Done::Waited { thread }
        });
        self.waiting.insert(thread, (until, handle));
        Ok(())
    }

    /// A request may follow in the append that makes it due. A drain leaves it to the next server, and new
    /// resources come first.
    fn may_ask(&self) -> bool {
        !self.inner.shutdown.is_cancelled() && (!self.equipped || self.briefing.is_some())
    }

    async fn finish(&mut self, done: Done) -> Result<(), Stopped> {
        match done {
            Done::Waited { thread } => {
                if self.waiting.remove(&thread).is_some() && !self.inner.shutdown.is_cancelled() {
                    self.ask_again(thread).await?;
                }
                Ok(())
            }
            Done::Graded { span, graded } => self.graded(span, *graded).await,
            Done::StillGrading { span } => self.still_grading(span).await,
            Done::Learned {
                thread,
                toolset,
                troubles,
            } => self.learned(thread, toolset, troubles).await,
            Done::Equipped { thread, briefing } => {
                self.equipping = None;
                self.equipped(thread, briefing).await
            }
            Done::Asked {
                thread,
                span,
                started_at,
                answer,
            } => {
                if self.asking.remove(&span).is_none() {
                    return Ok(());
                }
                self.answered(thread, span, started_at, answer).await
            }
            Done::Overdue { call } => {
                if let Some(handle) = self.calling.remove(&call) {
                    tracing::warn!(session = %self.session, %call, "a cancelled call does not end");
                    handle.abort();
                }
                Ok(())
            }
            Done::Called {
                thread,
                call,
                executed,
            } => self.called(thread, call, executed).await,
        }
    }
}

/// What rows say that are a whole log; of any others nothing, because their beginning is missing.
fn transcripts(rows: &[Row]) -> HashMap<ThreadId, Transcript> {
    let mut transcripts = HashMap::<ThreadId, Transcript>::new();
    if rows.first().is_none_or(|row| row.seq != 1) {
        return transcripts;
    }
    let last_seq = rows.last().map_or(0, |row| row.seq);
    for row in rows {
        // Rows of ours read back; if one does not, the log is read and says so.
        if transcripts
            .entry(row.thread)
            .or_default()
            .extend([row])
            .is_err()
        {
            return HashMap::new();
        }
    }
    for transcript in transcripts.values_mut() {
        transcript.last_seq = last_seq;
    }
    transcripts
}

/// Repeats a read while the database is away for a moment.
async fn retry<T, F: Future<Output = Result<T, StoreError>>>(
    mut read: impl FnMut() -> F,
) -> Result<T, Stopped> {
    for _ in 0..STORE_RETRIES {
        match read().await {
            Err(error) if error.is_transient() => {
                tracing::warn!(%error, "the database does not answer");
                tokio::time::sleep(STORE_RETRY).await;
            }
            done => return done.map_err(Stopped::Store),
        }
    }
    read().await.map_err(Stopped::Store)
}
