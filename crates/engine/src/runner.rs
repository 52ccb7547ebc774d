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

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use selfsame_model::retry::Backoff;
use selfsame_sandbox::{Call, Content, SandboxError};
use selfsame_store::{
    Actor, AppendError, Appended, Change, Guard, Head, LeaseChange, ModelRequest, StoreError,
};
use selfsame_types::{EventId, SessionId, ThreadId, Timestamp};
use serde_json::value::to_raw_value;
use tokio::{
    sync::Notify,
    task::{AbortHandle, JoinSet},
};

use tracing::Instrument as _;

use crate::{
    Inner,
    ask::{self, Answer, Previews},
    change::{change, works},
    fail,
    machine::{CallResult, Failure, Machine, Next, Status, Step},
    prompt::SharedSpec,
    sandboxes::{AcquireError, shell_of},
    transcript::Transcript,
};

/// Longest sleep for what should be over at once; a safety net, not a schedule.
const STORE_RETRY: Duration = Duration::from_millis(250);
/// Attempts to give a call a sandbox before it gets an error result.
const SANDBOX_ATTEMPTS: u32 = 3;

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
        result: CallResult,
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
    /// Somebody else drove it before and let go in the middle.
    pub unclean: bool,
}

pub(crate) struct Runner {
    inner: Arc<Inner>,
    session: SessionId,
    epoch: i64,
    machine: Machine,
    last_seq: i64,
    spec: SharedSpec,
    transcripts: HashMap<ThreadId, Transcript>,
    jobs: JoinSet<Done>,
    asking: HashMap<EventId, AbortHandle>,
    calling: HashSet<EventId>,
    cancelled: HashSet<EventId>,
    waiting: Option<(Timestamp, AbortHandle)>,
    /// Results of calls that an interrupt cut off, until the interrupt is carried out.
    stopped: HashMap<ThreadId, Vec<(EventId, CallResult)>>,
    /// Calls that a server before us may have sent.
    in_doubt: HashSet<EventId>,
    unclean: bool,
    poke: Arc<Notify>,
}

impl Runner {
    pub(crate) fn new(inner: Arc<Inner>, start: Start, poke: Arc<Notify>) -> Self {
        let in_doubt = if start.unclean {
            start
                .machine
                .threads
                .iter()
                .flat_map(|t| t.calls.iter().map(|call| call.id))
                .collect()
        } else {
            HashSet::new()
        };
        Self {
            inner,
            session: start.session,
            epoch: start.epoch,
            machine: start.machine,
            last_seq: start.last_seq,
            spec: start.spec,
            transcripts: HashMap::new(),
            jobs: JoinSet::new(),
            asking: HashMap::new(),
            calling: HashSet::new(),
            cancelled: HashSet::new(),
            waiting: None,
            stopped: HashMap::new(),
            in_doubt,
            unclean: start.unclean,
            poke,
        }
    }

    /// Runs until the session idles or this server must let go.
    pub(crate) async fn run(mut self) -> Result<(), Stopped> {
        self.recover().await?;
        loop {
            // What starting appends may open up more: an interrupt carried out lets queued messages in.
            loop {
                let seq = self.last_seq;
                self.start_work().await?;
                if self.last_seq == seq {
                    break;
                }
            }
            if !works(&self.machine) {
                return Ok(());
            }
            let shutdown = self.inner.shutdown.clone();
            tokio::select! {
                biased;
                done = self.jobs.join_next(), if !self.jobs.is_empty() => {
                    match done {
                        Some(Ok(done)) => self.finish(done).await?,
                        // Aborted on purpose; what it was doing is not wanted any more.
                        Some(Err(error)) if error.is_cancelled() => {}
                        Some(Err(error)) => {
                            tracing::error!(session = %self.session, %error, "a job panicked");
                            return Err(Stopped::LeaseLost);
                        }
                        None => {}
                    }
                }
                () = self.poke.notified() => self.refresh().await?,
                () = shutdown.cancelled() => return self.hand_over().await,
            }
        }
    }

    /// Closes what a server before us left open.
    async fn recover(&mut self) -> Result<(), Stopped> {
        let unclean = self.unclean;
        let open: Vec<_> = self
            .machine
            .threads
            .iter()
            .filter(|t| t.request.is_some() || (unclean && t.status == Status::Running))
            .map(|t| t.id)
            .collect();
        for thread in open {
            self.append(None, |step| step.recover(thread)).await?;
        }
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
        if record.last_seq > self.last_seq {
            self.machine = serde_json::from_str(&record.machine)?;
            self.last_seq = record.last_seq;
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
                        // Its answer was lost with a failed append: the request counts as failed.
                        self.append(None, |step| step.recover(thread)).await?;
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

    /// Opens a request and sends it.
    async fn ask(&mut self, thread: ThreadId) -> Result<(), Stopped> {
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
        let request = self.spec.request(transcript);
        let previews = Previews {
            hub: self.inner.hub.clone(),
            notifier: self.inner.notifier.clone(),
            session: self.session,
            thread,
            span_seq,
        };
        let provider = Arc::clone(&self.inner.provider);
        let spec = Arc::clone(&self.spec);
        let session = self.session;
        let handle = self.jobs.spawn(async move {
            let span_of_request = tracing::info_span!("model_request", %session, %thread, %span);
            let answer = ask::ask(provider, request, spec, previews)
                .instrument(span_of_request)
                .await;
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
        if self.calling.contains(&id) {
            return Ok(());
        }
        self.load(thread).await?;
        let Some(info) = self
            .transcripts
            .get(&thread)
            .and_then(|t| t.call(id))
            .cloned()
        else {
            // The state knows a call that the log does not: only a fault of ours can do that.
            tracing::error!(session = %self.session, call = %id, "a pending call is not in the log");
            return Err(Stopped::Gone);
        };
        let call = Call {
            id: id.0,
            shell: shell_of(thread),
            tool: info.name,
            input: serde_json::from_str(info.input.get())?,
            spill_name: id.to_string(),
        };
        self.calling.insert(id);
        let inner = Arc::clone(&self.inner);
        let (session, epoch, in_doubt) = (self.session, self.epoch, self.in_doubt.contains(&id));
        self.jobs.spawn(async move {
            let span = tracing::info_span!("tool_call", %session, call = %id, tool = call.tool);
            let result = execute(&inner, session, epoch, &call, in_doubt)
                .instrument(span)
                .await;
            Done::Called {
                thread,
                call: id,
                result,
            }
        });
        Ok(())
    }

    /// Stops what is in flight; once nothing is, carries the interrupt out.
    async fn interrupt(&mut self, thread: ThreadId) -> Result<(), Stopped> {
        if let Some((_, handle)) = self.waiting.take() {
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
        let running: Vec<_> = state
            .calls
            .iter()
            .map(|c| c.id)
            .filter(|id| self.calling.contains(id))
            .collect();
        for id in &running {
            if self.cancelled.insert(*id) {
                let inner = Arc::clone(&self.inner);
                let (session, epoch, call) = (self.session, self.epoch, id.0);
                self.inner.tasks.spawn(async move {
                    if let Ok(acquired) = inner.sandboxes.acquire(session, epoch).await
                        && let Err(error) = acquired.sandbox.cancel(call).await
                    {
                        tracing::debug!(%session, %error, "cannot cancel a call");
                    }
                });
            }
        }
        if running.is_empty() {
            let results = self.stopped.remove(&thread).unwrap_or_default();
            fail::point("before_idle_commit");
            self.append(None, |step| step.interrupt(thread, results))
                .await?;
        }
        Ok(())
    }

    async fn finish(&mut self, done: Done) -> Result<(), Stopped> {
        match done {
            Done::Waited => {
                if let Some((_, _)) = self.waiting.take() {
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
            Done::Called {
                thread,
                call,
                result,
            } => {
                self.calling.remove(&call);
                self.in_doubt.remove(&call);
                let interrupted = self
                    .machine
                    .thread(thread)
                    .is_some_and(super::machine::Thread::is_interrupted);
                if interrupted || self.cancelled.remove(&call) {
                    self.stopped.entry(thread).or_default().push((call, result));
                    return Ok(());
                }
                fail::point("before_result_commit");
                let appended = self.result(thread, call, result).await?;
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
    ) -> Result<Option<(EventId, i64, Timestamp)>, Stopped> {
        let span = EventId::new();
        let appended = self
            .append(None, |step| {
                step.finish_call(thread, call, result);
                if step.machine.next().contains(&Next::Ask { thread }) {
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
        let inner = Arc::clone(&self.inner);
        let (session, epoch) = (self.session, self.epoch);
        self.inner.tasks.spawn(async move {
            if let Ok(acquired) = inner.sandboxes.acquire(session, epoch).await {
                // Not heard: the hands keep it until their next start.
                let _ = acquired.sandbox.ack(call.0).await;
            }
        });
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
                self.append(Some(ledger), |step| {
                    step.finish_request(thread, span, response)
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
                self.append_at(Some(ledger), |step, now| {
                    let failed = step.machine.thread(thread).map_or(1, |t| t.attempt + 1);
                    let wait = error
                        .retryable
                        .then(|| Backoff::wait(&backoff, failed, ask::wait(&error), random))
                        .flatten();
                    let failure = Failure {
                        error_type: ask::error_type(error.kind),
                        message: error.message.clone(),
                        retry_at: wait.map(|wait| {
                            let micros = i64::try_from(wait.as_micros()).unwrap_or(i64::MAX);
                            Timestamp::from_micros(now.as_micros().saturating_add(micros))
                        }),
                        usage,
                    };
                    step.fail_request(thread, span, failure);
                })
                .await?;
            }
        }
        Ok(())
    }

    async fn append(
        &mut self,
        ledger: Option<ModelRequest>,
        decide: impl FnOnce(&mut Step<'_>) + Send,
    ) -> Result<Option<Appended>, Stopped> {
        self.append_at(ledger, |step, _| decide(step)).await
    }

    /// Decides under the lock, appends, publishes, and takes over the new state. Lets the lease go in
    /// the same transaction when the session is done for now.
    async fn append_at(
        &mut self,
        ledger: Option<ModelRequest>,
        decide: impl FnOnce(&mut Step<'_>, Timestamp) + Send,
    ) -> Result<Option<Appended>, Stopped> {
        let guard = Guard::Runner {
            server: self.inner.server,
            epoch: self.epoch,
        };
        let (known_seq, known) = (self.last_seq, self.machine.clone());
        let mut after: Option<Result<Machine, serde_json::Error>> = None;
        let mut unreadable = None;
        let appended = self
            .inner
            .store
            .append(self.session, guard, &Actor::default(), |head: &Head| {
                let machine = if head.last_seq == known_seq {
                    known
                } else {
                    match serde_json::from_str(&head.machine) {
                        Ok(machine) => machine,
                        Err(error) => {
                            unreadable = Some(error);
                            return Ok(None);
                        }
                    }
                };
                let mut new_id = EventId::new;
                let mut step = Step::new(machine, head.last_seq, head.now, &mut new_id);
                decide(&mut step, head.now);
                let (machine, events) = step.finish();
                after = Some(Ok(machine.clone()));
                if events.is_empty() && head.last_seq == known_seq {
                    return Ok(None);
                }
                let lease = if works(&machine) {
                    LeaseChange::Keep
                } else {
                    LeaseChange::Release { unclean: false }
                };
                Ok(Some(Change {
                    request: ledger,
                    ..change(&machine, events, head.now, lease)
                }))
            })
            .await?;
        if let Some(error) = unreadable {
            return Err(error.into());
        }
        if let Some(machine) = after {
            self.machine = machine?;
        }
        if let Some(appended) = &appended {
            if let Some(first) = appended.rows.first() {
                for (thread, transcript) in &mut self.transcripts {
                    // Only what joins up: a gap is read from the log before the next request.
                    if transcript.last_seq + 1 == first.seq {
                        transcript.extend(appended.rows.iter().filter(|r| r.thread == *thread))?;
                        transcript.last_seq = appended.rows.last().map_or(0, |row| row.seq);
                    }
                }
                self.last_seq = appended.rows.last().map_or(self.last_seq, |row| row.seq);
            }
            self.inner.published(self.session, &appended.rows);
        }
        Ok(appended)
    }
}

/// Executes a call in the session's sandbox. Whatever happens, there is a result.
async fn execute(
    inner: &Inner,
    session: SessionId,
    epoch: i64,
    call: &Call,
    in_doubt: bool,
) -> CallResult {
    // Once it may have been sent, another life of the hands cannot tell what became of it.
    let mut sent = in_doubt;
    let mut failures = 0;
    loop {
        let problem = match inner.sandboxes.acquire(session, epoch).await {
            Ok(acquired) if acquired.reborn && sent => {
                return failure(
                    "The sandbox was restarted while this call was under way. Whether it took \
                     effect is unknown: check before you repeat it.",
                );
            }
            Ok(acquired) => {
                fail::point("before_call_send");
                let running = acquired.sandbox.call(call);
                sent = true;
                match watch(running).await {
                    Ok(result) => return convert(result),
                    Err(SandboxError::Refused(reason)) => return failure(&reason),
                    Err(error) => AcquireError::from(error),
                }
            }
            Err(error) => error,
        };
        failures += 1;
        tracing::warn!(%session, error = %problem, failures, "a sandbox call failed");
        if failures >= SANDBOX_ATTEMPTS {
            metrics::counter!("selfsame_sandbox_failures_total").increment(1);
            return failure(&format!("The sandbox is not available: {problem}"));
        }
        if !matches!(problem, AcquireError::Sandbox(SandboxError::Lost)) {
            tokio::time::sleep(STORE_RETRY * failures).await;
        }
    }
}

/// Lets a crash test end the server while the call runs.
async fn watch<T>(running: impl Future<Output = T>) -> T {
    let mut running = std::pin::pin!(running);
    tokio::select! {
        biased;
        done = &mut running => return done,
        () = tokio::time::sleep(Duration::from_millis(50)) => fail::point("call_running"),
    }
    running.await
}

fn failure(text: &str) -> CallResult {
    convert(selfsame_sandbox::CallResult::error(text))
}

/// A result of the hands as event content.
fn convert(result: selfsame_sandbox::CallResult) -> CallResult {
    let blocks: Vec<serde_json::Value> = result
        .content
        .into_iter()
        .map(|content| match content {
            Content::Text(text) => serde_json::json!({"type": "text", "text": text}),
            Content::Image {
                media_type,
                data_base64,
            } => serde_json::json!({
                "type": "image",
                "source": {"type": "base64", "media_type": media_type, "data": data_base64},
            }),
            Content::Document {
                media_type,
                data_base64,
            } => serde_json::json!({
                "type": "document",
                "source": {"type": "base64", "media_type": media_type, "data": data_base64},
            }),
        })
        .collect();
    CallResult {
        content: to_raw_value(&blocks).expect("blocks serialize"),
        is_error: result.is_error,
    }
}

/// Repeats a read while the database is away for a moment.
async fn retry<T, F: Future<Output = Result<T, StoreError>>>(
    mut read: impl FnMut() -> F,
) -> Result<T, Stopped> {
    for _ in 0..20 {
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
