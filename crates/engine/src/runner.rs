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
pub(crate) mod execute;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use selfsame_sandbox::Call;
use selfsame_store::{AppendError, ModelRequest, Row, StoreError};
use selfsame_types::{EventId, SessionId, ThreadId, Timestamp};
use tokio::task::{AbortHandle, JoinSet};
use tracing::Instrument as _;
use uuid::Uuid;

use crate::{
    Inner,
    ask::{self, Answer, Previews},
    change::works,
    content, fail,
    machine::{CallResult, Failure, Machine, Next, Status, Step, Trouble},
    prompt::SharedSpec,
    runners::Link,
    sandboxes::{AcquireError, shell_of},
    transcript::Transcript,
    web::{Caller, WebCall, is_web},
};
use execute::{Executed, execute, failure};

/// Between two attempts while the database is away ..
const STORE_RETRY: Duration = Duration::from_millis(250);
/// .. of which there are this many before the session is left to whoever claims it next.
const STORE_RETRIES: u32 = 20;
/// A cancelled call has two seconds to end, and its sandbox this long to say so.
const CANCEL_PATIENCE: Duration = Duration::from_secs(10);

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
        briefing: Result<(String, Vec<Trouble>), AcquireError>,
    },
    Waited,
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

/// Opens the requests that are due, so that a turn's first commit is also its first request's.
pub(crate) fn begin(step: &mut Step<'_>) -> Vec<Begun> {
    let mut begun = Vec::new();
    for next in step.machine.next() {
        let Next::Ask { thread } = next else { continue };
        let span = EventId::new();
        if step.start_request(thread, span) {
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
    spec: SharedSpec,
    equipped: bool,
    /// About what is mounted; made before the first request.
    briefing: Option<String>,
    equipping: Option<AbortHandle>,
    transcripts: HashMap<ThreadId, Transcript>,
    jobs: JoinSet<Done>,
    asking: HashMap<EventId, AbortHandle>,
    calling: HashMap<EventId, AbortHandle>,
    cancelled: HashSet<EventId>,
    waiting: Option<(Timestamp, AbortHandle)>,
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
            spec: start.spec,
            equipped: start.equipped,
            briefing: None,
            equipping: None,
            transcripts: transcripts(&start.rows),
            begun,
            jobs: JoinSet::new(),
            asking: HashMap::new(),
            calling: HashMap::new(),
            cancelled: HashSet::new(),
            waiting: None,
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

    /// Closes what a server before us left open.
    async fn recover(&mut self) -> Result<(), Stopped> {
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
        for thread in open {
            self.resume(thread).await?;
        }
        Ok(())
    }

    /// Whoever worked on a thread is gone. Nobody will hear the answer of its open request: that counts
    /// as failed.
    async fn resume(&mut self, thread: ThreadId) -> Result<(), Stopped> {
        let backoff = self.inner.config.backoff.clone();
        let random: f64 = rand::random();
        self.append_at(None, |step, now| {
            let failed = step.machine.thread(thread).map_or(1, |t| t.attempt + 1);
            let wait = backoff.wait(failed, None, random);
            // The first time it is a server's end and not the request's fault.
            let wait = wait.map(|wait| if failed == 1 { Duration::ZERO } else { wait });
            step.recover(thread, wait.map(|wait| now.after(wait)));
        })
        .await?;
        Ok(())
    }

    /// A drain: nothing new is started, and what can be asked again is left to the next server.
    async fn hand_over(mut self) -> Result<(), Stopped> {
        let deadline = tokio::time::Instant::now() + self.inner.config.drain;
        while !self.asking.is_empty() || !self.calling.is_empty() {
            match tokio::time::timeout_at(deadline, self.jobs.join_next()).await {
                Ok(Some(Ok(done))) => self.finish(done).await?,
                Ok(Some(Err(_))) => {}
                Ok(None) | Err(_) => break,
            }
        }
        if works(&self.machine) {
            let unclean = !self.asking.is_empty() || !self.calling.is_empty();
            self.inner
                .store
                .session_release(self.session, self.inner.server, self.epoch, unclean)
                .await
                .map_err(Stopped::Store)?;
            self.inner.notifier.wake(self.session, self.last_seq);
        }
        Ok(())
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
        for next in self.machine.next() {
            match next {
                Next::Ask { thread } => self.ask(thread).await?,
                Next::Await { thread, request } => {
                    if !self.asking.contains_key(&request) {
                        self.resume(thread).await?;
                    }
                }
                Next::Call { thread, call } => self.call(thread, call).await?,
                Next::Interrupt { thread } => self.interrupt(thread).await?,
                Next::Wait { until, .. } => self.wait(until).await?,
            }
        }
        Ok(())
    }

    async fn wait(&mut self, until: Timestamp) -> Result<(), Stopped> {
        if self
            .waiting
            .as_ref()
            .is_some_and(|(planned, _)| *planned == until)
        {
            return Ok(());
        }
        let now = retry(|| self.inner.store.now()).await?;
        let left = until.as_micros().saturating_sub(now.as_micros()).max(0);
        let left = Duration::from_micros(u64::try_from(left).unwrap_or(0));
        let handle = self.jobs.spawn(async move {
            tokio::time::sleep(left).await;
            Done::Waited
        });
        self.waiting = Some((until, handle));
        Ok(())
    }

    /// Sees to it that what the session has is in its sandbox. Answers whether that is so already.
    fn equip(&mut self, thread: ThreadId) -> bool {
        if !self.equipped || self.briefing.is_some() {
            return true;
        }
        if self.equipping.is_none() {
            let inner = Arc::clone(&self.inner);
            let (session, epoch) = (self.session, self.epoch);
            self.equipping = Some(self.jobs.spawn(async move {
                let briefing = inner.sandboxes.briefing(session, epoch).await;
                Done::Equipped { thread, briefing }
            }));
        }
        false
    }

    async fn equipped(
        &mut self,
        thread: ThreadId,
        briefing: Result<(String, Vec<Trouble>), AcquireError>,
    ) -> Result<(), Stopped> {
        match briefing {
            Ok((briefing, troubles)) => {
                self.briefing = Some(briefing);
                self.append(None, |step| step.trouble(thread, &troubles))
                    .await?;
            }
            Err(error) => {
                tracing::warn!(session = %self.session, %error, "a sandbox could not be fitted out");
                let backoff = self.inner.config.backoff.clone();
                let random: f64 = rand::random();
                let message = error.told();
                self.append_at(None, |step, now| {
                    let failed = step.machine.thread(thread).map_or(1, |t| t.attempt + 1);
                    let wait = error
                        .is_passing()
                        .then(|| backoff.wait(failed, None, random))
                        .flatten();
                    step.unprepared(thread, message.clone(), wait.map(|wait| now.after(wait)));
                })
                .await?;
            }
        }
        Ok(())
    }

    /// Opens a request and sends it, once what it is about is there.
    async fn ask(&mut self, thread: ThreadId) -> Result<(), Stopped> {
        if !self.equip(thread) {
            return Ok(());
        }
        let span = EventId::new();
        let appended = self
            .append(None, |step| {
                step.start_request(thread, span);
            })
            .await?;
        if let Some(appended) = appended
            && let Some(row) = appended.rows.iter().find(|row| row.id == span)
        {
            let (seq, at) = (row.seq, appended.at);
            self.send(thread, span, seq, at).await?;
        }
        Ok(())
    }

    async fn send(
        &mut self,
        thread: ThreadId,
        span: EventId,
        span_seq: i64,
        started_at: Timestamp,
    ) -> Result<(), Stopped> {
        self.load(thread).await?;
        let transcript = self.transcripts.entry(thread).or_default();
        let request = self.spec.request(transcript, self.briefing.as_deref());
        let previews = Previews {
            hub: self.inner.hub.clone(),
            notifier: self.inner.notifier.clone(),
            session: self.session,
            thread,
            span_seq,
        };
        let inner = Arc::clone(&self.inner);
        let spec = Arc::clone(&self.spec);
        let session = self.session;
        let handle = self.jobs.spawn(async move {
            let span_of_request = tracing::info_span!("model_request", %session, %thread, %span);
            let provider = Arc::clone(&inner.provider);
            let asked = async {
                match content::resolve(&inner, session, request).await {
                    Ok(request) => ask::ask(provider, request, spec, previews).await,
                    Err(error) => Answer::unsent(session, &error),
                }
            };
            let answer = asked.instrument(span_of_request).await;
            if matches!(answer, Answer::Response(_)) {
                // The session may idle with this answer, and by then its outputs are to be there.
                inner.capture(session).await;
            }
            Done::Asked {
                thread,
                span,
                started_at,
                answer,
            }
        });
        self.asking.insert(span, handle);
        Ok(())
    }

    /// Brings a thread's transcript up to the log.
    async fn load(&mut self, thread: ThreadId) -> Result<(), Stopped> {
        const CHUNK: i64 = 1000;
        let last_seq = self.last_seq;
        let transcript = self.transcripts.entry(thread).or_default();
        while transcript.last_seq < last_seq {
            let after = transcript.last_seq;
            let store = &self.inner.store;
            let rows = retry(|| store.event_transcript(self.session, thread, after, CHUNK)).await?;
            let complete = rows.len() < usize::try_from(CHUNK).unwrap_or(usize::MAX);
            transcript.extend(&rows)?;
            if complete {
                // What lies between the thread's last row and here belongs to other threads.
                transcript.last_seq = last_seq;
            }
        }
        Ok(())
    }

    /// Executes a call, unless it is being executed.
    async fn call(&mut self, thread: ThreadId, id: EventId) -> Result<(), Stopped> {
        if self.calling.contains_key(&id) {
            return Ok(());
        }
        self.load(thread).await?;
        let transcript = self.transcripts.entry(thread).or_default();
        let Some(info) = transcript.call(id).cloned() else {
            // The state knows a call that the log does not: only a fault of ours can do that.
            return Err(Stopped::Contradiction("a pending call is not in the log"));
        };
        let web = WebCall::of(&self.spec.agent.spec, &info.name, transcript);
        let caller = Caller {
            session: self.session,
            epoch: self.epoch,
            call: id,
            in_doubt: self.in_doubt.contains(&id),
        };
        let inner = Arc::clone(&self.inner);
        let (session, epoch) = (self.session, self.epoch);
        let sent = self.life_before.filter(|_| self.in_doubt.contains(&id));
        let handle = self.jobs.spawn(async move {
            // JSON that the model may write and that no program can hold: numbers beyond every
            // float, hundreds of nested brackets.
            let executed = match (serde_json::from_str(info.input.get()), web) {
                (Ok(input), Some(web)) => {
                    let span =
                        tracing::info_span!("tool_call", %session, call = %id, tool = info.name);
                    web.run(&inner, caller, &input)
                        .instrument(span)
                        .await
                        .into()
                }
                (Ok(input), None) => {
                    let call = Call {
                        id: id.0,
                        shell: shell_of(thread),
                        tool: info.name,
                        input,
                        spill_name: id.to_string(),
                    };
                    let span =
                        tracing::info_span!("tool_call", %session, call = %id, tool = call.tool);
                    execute(&inner, session, epoch, &call, sent)
                        .instrument(span)
                        .await
                }
                (Err(error), _) => failure(&format!(
                    "The input of this call cannot be read, so it was not run: {error}"
                ))
                .into(),
            };
            Done::Called {
                thread,
                call: id,
                executed,
            }
        });
        self.calling.insert(id, handle);
        Ok(())
    }

    /// Stops what is in flight; once nothing is, carries the interrupt out.
    async fn interrupt(&mut self, thread: ThreadId) -> Result<(), Stopped> {
        if let Some((_, handle)) = self.waiting.take() {
            handle.abort();
        }
        if let Some(handle) = self.equipping.take() {
            handle.abort();
        }
        let Some(state) = self.machine.thread(thread) else {
            return Ok(());
        };
        if let Some(request) = state.request
            && let Some(handle) = self.asking.remove(&request)
        {
            handle.abort();
        }
        let calls: Vec<_> = state.calls.iter().map(|c| c.id).collect();
        for call in &calls {
            // Nothing of these goes on elsewhere.
            let transcript = self.transcripts.get(&thread);
            if transcript.is_some_and(|t| t.call(*call).is_some_and(|info| is_web(&info.name)))
                && let Some(handle) = self.calling.remove(call)
            {
                handle.abort();
            }
        }
        let (running, others): (Vec<_>, Vec<_>) = calls
            .into_iter()
            .partition(|id| self.calling.contains_key(id));
        for call in &running {
            if self.cancelled.insert(*call) {
                self.cancel(*call);
                let call = *call;
                self.jobs.spawn(async move {
                    tokio::time::sleep(CANCEL_PATIENCE).await;
                    Done::Overdue { call }
                });
            }
        }
        if running.is_empty() {
            for call in others {
                // A server before us may have started it.
                if self.in_doubt.remove(&call) && self.life_before.is_some() {
                    self.cancel(call);
                }
            }
            let results = self.stopped.remove(&thread).unwrap_or_default();
            fail::point("before_idle_commit");
            self.append(None, |step| step.interrupt(thread, results.clone()))
                .await?;
            for (call, _) in results {
                self.acknowledge(call);
            }
        }
        Ok(())
    }

    fn cancel(&self, call: EventId) {
        let inner = Arc::clone(&self.inner);
        let (session, epoch) = (self.session, self.epoch);
        self.inner.tasks.spawn(async move {
            let cancelled = match inner.sandboxes.acquire(session, epoch).await {
                Ok(sandbox) => sandbox.cancel(call.0).await.map_err(Into::into),
                Err(error) => Err(error),
            };
            if let Err(error) = cancelled {
                tracing::warn!(%session, %error, "cannot cancel a call");
            }
        });
    }

    async fn finish(&mut self, done: Done) -> Result<(), Stopped> {
        match done {
            Done::Waited => {
                if self.waiting.take().is_some() && !self.inner.shutdown.is_cancelled() {
                    let due: Vec<_> = self
                        .machine
                        .threads
                        .iter()
                        .filter(|t| t.status == Status::Rescheduling && !t.is_interrupted())
                        .map(|t| t.id)
                        .collect();
                    for thread in due {
                        self.ask(thread).await?;
                    }
                }
                Ok(())
            }
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
                executed: Executed { result, new_life },
            } => {
                if self.calling.remove(&call).is_none() {
                    return Ok(());
                }
                self.in_doubt.remove(&call);
                if self.cancelled.remove(&call) {
                    self.stopped.entry(thread).or_default().push((call, result));
                    return Ok(());
                }
                // Calls beside each other lose it together, and it is told once.
                let lost = new_life.is_some() && new_life != self.life_told;
                self.life_told = new_life.or(self.life_told);
                fail::point("before_result_commit");
                let appended = self.result(thread, call, result, lost).await?;
                fail::point("after_result_commit");
                self.acknowledge(call);
                if let Some((span, seq, at)) = appended {
                    self.send(thread, span, seq, at).await?;
                }
                Ok(())
            }
        }
    }

    /// Appends a call's result, and with it the start of the next request when it was the last one.
    async fn result(
        &mut self,
        thread: ThreadId,
        call: EventId,
        result: CallResult,
        sandbox_lost: bool,
    ) -> Result<Option<(EventId, i64, Timestamp)>, Stopped> {
        let span = EventId::new();
        let troubles = self.inner.sandboxes.unreachable(self.session);
        // A drain leaves the next request to the next server, and new resources come first.
        let go_on =
            !self.inner.shutdown.is_cancelled() && (!self.equipped || self.briefing.is_some());
        let appended = self
            .append(None, |step| {
                if sandbox_lost {
                    step.sandbox_lost(thread);
                }
                step.trouble(thread, &troubles);
                step.finish_call(thread, call, result.clone());
                if go_on && step.machine.next().contains(&Next::Ask { thread }) {
                    step.start_request(thread, span);
                }
            })
            .await?;
        Ok(appended.and_then(|appended| {
            let row = appended.rows.iter().find(|row| row.id == span)?;
            Some((span, row.seq, appended.at))
        }))
    }

    /// The result is durable: the hands may forget it.
    fn acknowledge(&self, call: EventId) {
        if let Some(sandbox) = self.inner.sandboxes.connected(self.session) {
            self.inner.tasks.spawn(async move {
                // Not heard: the hands keep it until their next start.
                let _ = sandbox.ack(call.0).await;
            });
        }
    }

    async fn answered(
        &mut self,
        thread: ThreadId,
        span: EventId,
        started_at: Timestamp,
        answer: Answer,
    ) -> Result<(), Stopped> {
        let ledger = |outcome: &'static str, usage: crate::machine::ModelUsage| ModelRequest {
            id: span,
            thread,
            model: self.spec.model().to_owned(),
            route: self.inner.config.route.clone(),
            started_at,
            outcome,
            input_tokens: usage.input_tokens,
            output_tokens: usage.output_tokens,
            cache_read_input_tokens: usage.cache_read_input_tokens,
            cache_creation_input_tokens: usage.cache_creation_input_tokens,
        };
        match answer {
            Answer::Response(response) => {
                fail::point("before_response_commit");
                let ledger = ledger("answered", response.usage);
                self.append(Some(&ledger), |step| {
                    step.finish_request(thread, span, response.clone());
                })
                .await?;
                fail::point("after_response_commit");
            }
            Answer::Failed { error, usage } => {
                metrics::counter!("selfsame_model_request_failures_total").increment(1);
                tracing::warn!(session = %self.session, %error, "a model request failed");
                let ledger = ledger("failed", usage);
                let backoff = self.inner.config.backoff.clone();
                let random: f64 = rand::random();
                self.append_at(Some(&ledger), |step, now| {
                    let failed = step.machine.thread(thread).map_or(1, |t| t.attempt + 1);
                    let wait = error
                        .retryable
                        .then(|| backoff.wait(failed, ask::wait(&error), random))
                        .flatten();
                    let failure = Failure {
                        error_type: ask::error_type(error.kind),
                        message: error.message.clone(),
                        retry_at: wait.map(|wait| now.after(wait)),
                        usage,
                    };
                    step.fail_request(thread, span, failure);
                })
                .await?;
            }
        }
        Ok(())
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
