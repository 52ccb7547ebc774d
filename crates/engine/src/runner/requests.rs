//! Requests to the model: one at a time in each thread.

use std::sync::Arc;

use selfsame_store::ModelRequest;
use selfsame_types::{EventId, ThreadId, Timestamp};
use tracing::Instrument as _;

use super::{Done, Runner, Stopped, retry};
use crate::{
    ask::{self, Answer, Previews},
    content, fail,
    machine::{Failure, ModelUsage, Trouble},
    prompt::SharedSpec,
    sandboxes::AcquireError,
    workbench::Briefing,
};

impl Runner {
    /// Sees to it that what the session has is in its sandbox. Answers whether that is so already.
    pub(super) fn equip(&mut self, thread: ThreadId) -> bool {
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

    pub(super) async fn equipped(
        &mut self,
        thread: ThreadId,
        briefing: Result<(Briefing, Vec<Trouble>), AcquireError>,
    ) -> Result<(), Stopped> {
        match briefing {
            Ok((briefing, troubles)) => {
                self.briefing = Some(briefing);
                self.append(&[], |step| step.trouble(thread, &troubles))
                    .await?;
            }
            Err(error) => {
                tracing::warn!(session = %self.session, %error, "a sandbox could not be fitted out");
                let backoff = self.inner.config.backoff.clone();
                let random: f64 = rand::random();
                let message = error.told();
                self.append_at(&[], |step, now| {
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

    /// Opens every request that is due, and sends them.
    pub(super) async fn ask(&mut self) -> Result<(), Stopped> {
        let appended = self.append_and_begin(&[], |_, _| {}).await?;
        self.send_begun(appended).await
    }

    /// The next attempt of a thread's request is due, or of grading its work.
    pub(super) async fn ask_again(&mut self, thread: ThreadId) -> Result<(), Stopped> {
        let graded = self.machine.grading().map(|(_, span)| span);
        if let Some(span) = graded.filter(|_| self.machine.primary().id == thread) {
            self.append(&[], |step| step.resume_grading(span)).await?;
            return Ok(());
        }
        let equipped = self.equip(thread);
        if !(self.learn_tools(thread).await? && equipped) {
            return Ok(());
        }
        let span = EventId::new();
        let appended = self
            .append(&[], |step| {
                step.start_request(thread, span);
            })
            .await?;
        self.send_begun(appended).await
    }

    /// What a thread is asked with.
    pub(super) async fn spec_of(&mut self, thread: ThreadId) -> Result<SharedSpec, Stopped> {
        if thread == self.machine.primary().id {
            return Ok(Arc::clone(&self.spec));
        }
        if let Some(spec) = self.specs.get(&thread) {
            return Ok(Arc::clone(spec));
        }
        let record = retry(|| self.inner.store.thread_get(self.session, thread)).await?;
        let record = record.ok_or(Stopped::Contradiction("a thread of the state has no row"))?;
        let spec = Arc::new(self.spec.thread(&record.agent, &self.inner.models)?);
        self.specs.insert(thread, Arc::clone(&spec));
        Ok(spec)
    }

    pub(super) async fn send(
        &mut self,
        thread: ThreadId,
        span: EventId,
        span_seq: i64,
        started_at: Timestamp,
    ) -> Result<(), Stopped> {
        self.load(thread).await?;
        let spec = self.spec_of(thread).await?;
        let transcript = self.transcripts.entry(thread).or_default();
        let tools = self.tools.of(thread);
        let briefing = self.briefing.as_ref().filter(|_| spec.is_equipped());
        let briefing = briefing.map(|briefing| briefing.text(&spec.agent.spec.skills));
        let request = spec.request(transcript, briefing.as_deref(), &tools);
        let previews = Previews {
            hub: self.inner.hub.clone(),
            notifier: self.inner.notifier.clone(),
            session: self.session,
            thread,
            span_seq,
        };
        let inner = Arc::clone(&self.inner);
        let session = self.session;
        let handle = self.jobs.spawn(async move {
            let span_of_request = tracing::info_span!("model_request", %session, %thread, %span);
            let provider = Arc::clone(&inner.provider);
            let asked = async {
                match content::resolve(&inner, session, request).await {
                    Ok(request) => ask::ask(provider, request, spec, tools, previews).await,
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
    pub(super) async fn load(&mut self, thread: ThreadId) -> Result<(), Stopped> {
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

    pub(super) async fn answered(
        &mut self,
        thread: ThreadId,
        span: EventId,
        started_at: Timestamp,
        answer: Answer,
    ) -> Result<(), Stopped> {
        let model = self.spec_of(thread).await?.model().to_owned();
        let ledger = |outcome: &'static str, usage: ModelUsage| ModelRequest {
            id: span,
            thread,
            model: model.clone(),
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
                let ledger = [ledger("answered", response.usage)];
                let appended = self
                    .append_and_begin(&ledger, |step, _| {
                        step.finish_request(thread, span, response.clone());
                    })
                    .await?;
                fail::point("after_response_commit");
                self.send_begun(appended).await?;
            }
            Answer::Failed { error, usage } => {
                metrics::counter!("selfsame_model_request_failures_total").increment(1);
                tracing::warn!(session = %self.session, %error, "a model request failed");
                let ledger = [ledger("failed", usage)];
                let backoff = self.inner.config.backoff.clone();
                let random: f64 = rand::random();
                self.append_at(&ledger, |step, now| {
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
