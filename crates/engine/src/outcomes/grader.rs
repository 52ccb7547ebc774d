//! One grading, from its first request to the verdict.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use selfsame_model::{ModelError, ModelErrorKind, Request, StopReason, Thinking};
use selfsame_sandbox::{Call, Found, SandboxError};
use selfsame_store::ModelRequest;
use selfsame_types::{EventId, tool::BuiltinTool};
use serde_json::{Value, json, value::to_raw_value};
use tokio::time::{Instant, timeout, timeout_at};

use super::{
    Graded, Grading,
    conversation::{Called, Conversation},
    fence::{Fence, text_block},
    verdict::{self, Verdict},
    words,
};
use crate::{
    Inner,
    ask::{self, Whole},
    fail,
    machine::ModelUsage,
    prompt::{SharedSpec, definition},
    runner::execute::execute,
    sandboxes::{AcquireError, shell_of},
    transcript::with_cache_breakpoint,
    workbench::OUTPUTS,
};

/// What a grader may do in a sandbox: look.
const TOOLS: [BuiltinTool; 3] = [BuiltinTool::Read, BuiltinTool::Glob, BuiltinTool::Grep];
/// Most requests before the verdict is asked for.
const MAX_LOOKS: u32 = 40;
/// Time for them.
const LOOKING: Duration = Duration::from_mins(15);
/// Time for one request, however much the model says.
const REQUEST: Duration = Duration::from_mins(10);
/// Attempts to get a verdict that can be used.
const VERDICTS: u32 = 3;
/// Files of the outputs that are listed; a grader finds the others itself.
const MAX_FILES: usize = 500;
/// Images and documents that one grading can show, in bytes of base64.
const MAX_MEDIA: usize = 24 << 20;
/// Most bytes of text from tools whatever the model's window is.
const MAX_TEXT: u64 = 2 << 20;
/// Least bytes of text from tools, however long the rubric is.
const MIN_TEXT: u64 = 64 << 10;
/// Longest last message that is shown, in characters.
const MAX_MESSAGE: usize = 100_000;

/// Bytes of text that tools can bring: with what else there is, they stay within the model's window.
fn room(inner: &Inner, spec: &SharedSpec, grading: &Grading) -> usize {
    let outcome = &grading.outcome;
    let message = grading.last_message.as_ref().map_or(0, String::len);
    let told = outcome.description.len() + outcome.rubric.content.len() + message;
    let window = inner.models.window(spec.model());
    let room = window
        .saturating_mul(2)
        .saturating_sub(told as u64)
        .clamp(MIN_TEXT, MAX_TEXT);
    usize::try_from(room).unwrap_or(usize::MAX)
}

/// One grading. When a request fails it can be run again, and goes on from there.
pub(crate) struct Grader {
    inner: Arc<Inner>,
    spec: SharedSpec,
    grading: Grading,
    fence: Fence,
    conversation: Conversation,
    stage: Stage,
    /// Of this run.
    usage: ModelUsage,
    requests: Vec<ModelRequest>,
    /// Bytes of text, and of media, that can still be shown.
    room: usize,
    media: usize,
}

#[derive(Debug, Clone, Copy)]
enum Stage {
    Opening,
    Looking { left: u32, until: Instant },
    Verdict { left: u32 },
}

impl std::fmt::Debug for Grader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Grader")
            .field("grading", &self.grading)
            .field("stage", &self.stage)
            .finish_non_exhaustive()
    }
}

impl Grader {
    pub(crate) fn new(inner: Arc<Inner>, spec: SharedSpec, mut grading: Grading) -> Self {
        if let Some(message) = &mut grading.last_message
            && let Some((end, _)) = message.char_indices().nth(MAX_MESSAGE)
        {
            message.truncate(end);
            message.push_str("\n[The rest of this message is not shown.]");
        }
        Self {
            room: room(&inner, &spec, &grading),
            media: MAX_MEDIA,
            inner,
            spec,
            grading,
            fence: Fence::new(),
            conversation: Conversation::default(),
            stage: Stage::Opening,
            usage: ModelUsage::default(),
            requests: Vec::new(),
        }
    }

    /// Grades, up to a verdict or to a request that fails.
    pub(crate) async fn run(mut self) -> Graded {
        fail::point("before_grading");
        let verdict = self.go_on().await;
        // The session may idle with this verdict, and by then its outputs are to be there.
        self.inner.capture(self.grading.session).await;
        Graded {
            verdict,
            usage: std::mem::take(&mut self.usage),
            requests: std::mem::take(&mut self.requests),
            grader: Box::new(self),
        }
    }

    async fn go_on(&mut self) -> Result<Verdict, ModelError> {
        loop {
            self.stage = match self.stage {
                Stage::Opening => self.open().await?,
                Stage::Looking { left: 0, .. } => self.stop_looking(),
                Stage::Looking { left, until } => {
                    let more = timeout_at(until, self.look()).await;
                    if more.unwrap_or(Ok(false))? {
                        let left = left - 1;
                        Stage::Looking { left, until }
                    } else {
                        self.stop_looking()
                    }
                }
                Stage::Verdict { left: 0 } => return Err(no_verdict()),
                Stage::Verdict { left } => match self.verdict().await? {
                    Some(verdict) => return Ok(verdict),
                    None => Stage::Verdict { left: left - 1 },
                },
            };
        }
    }

    fn has_sandbox(&self) -> bool {
        self.spec.agent.spec.needs_sandbox()
    }

    async fn open(&mut self) -> Result<Stage, ModelError> {
        let files = if self.has_sandbox() {
            Some(self.files().await?)
        } else {
            None
        };
        let outcome = &self.grading.outcome;
        for text in words::opening(
            &self.fence,
            &outcome.description,
            &outcome.rubric.content,
            files.as_deref(),
            self.grading.last_message.as_deref(),
        ) {
            self.conversation.tell(&text);
        }
        Ok(if self.has_sandbox() {
            Stage::Looking {
                left: MAX_LOOKS,
                until: Instant::now() + LOOKING,
            }
        } else {
            self.stop_looking()
        })
    }

    /// The files below the outputs directory, one a line.
    async fn files(&self) -> Result<String, ModelError> {
        let Grading { session, epoch, .. } = self.grading;
        let found = match self.inner.sandboxes.acquire(session, epoch).await {
            Ok(sandbox) => match sandbox.walk(OUTPUTS, MAX_FILES).await {
                // There is no such directory.
                Err(SandboxError::Failed(_)) => Ok(Vec::new()),
                found => found.map_err(AcquireError::from),
            },
            Err(error) => Err(error),
        };
        found.map(|found| listing(&found)).map_err(|error| {
            tracing::warn!(%session, %error, "a grader's sandbox cannot be reached");
            ModelError {
                kind: ModelErrorKind::Unknown,
                retryable: error.is_passing(),
                ..ModelError::connection(error.told())
            }
        })
    }

    /// One request before the verdict. `false` when the grader has seen enough.
    async fn look(&mut self) -> Result<bool, ModelError> {
        let whole = self.ask(false).await?;
        let calls = self.conversation.hear(whole.blocks);
        let runs = calls.iter().map(|call| self.run_call(call));
        let results = join_all(runs).await;
        let mut more = !calls.is_empty();
        for (call, (content, is_error)) in calls.iter().zip(results) {
            more &= call.name != verdict::TOOL;
            let fits = self.fits(&content);
            let content = if fits { content } else { told(words::NO_ROOM) };
            more &= fits;
            self.conversation.answer(call, &content, is_error);
        }
        Ok(more)
    }

    /// Runs one of the three tools; there is a result whatever the call is.
    async fn run_call(&self, call: &Called) -> (Vec<Value>, bool) {
        if call.name == verdict::TOOL {
            return (told(words::TOO_EARLY), true);
        }
        let Some(tool) = TOOLS.into_iter().find(|tool| tool.as_str() == call.name) else {
            return (told(words::NO_SUCH_TOOL), true);
        };
        let input = call.input.as_ref().ok();
        let Some(input) = input.and_then(|input| serde_json::from_str::<Value>(input.get()).ok())
        else {
            return (told(words::BROKEN_INPUT), true);
        };
        let Grading {
            session,
            epoch,
            thread,
            ..
        } = self.grading;
        let id = EventId::new();
        let name = format!("{} {input}", tool.as_str());
        let request = Call {
            id: id.0,
            shell: shell_of(thread),
            tool: tool.as_str().to_owned(),
            input,
            spill_name: id.to_string(),
        };
        let result = execute(&self.inner, session, epoch, &request, None)
            .await
            .result;
        if let Some(sandbox) = self.inner.sandboxes.connected(session) {
            // Nobody will ask for it again. Not heard: the hands keep it until their next start.
            self.inner.tasks.spawn(async move {
                let _ = sandbox.ack(id.0).await;
            });
        }
        let blocks: Vec<Value> = serde_json::from_str(result.content.get()).unwrap_or_default();
        (self.fence.blocks("result", &name, &blocks), result.is_error)
    }

    /// Whether a result can be shown beside all others; if so, it counts.
    fn fits(&mut self, content: &[Value]) -> bool {
        let (mut text, mut media) = (0, 0);
        for block in content {
            text += block["text"].as_str().map_or(0, str::len);
            media += block["source"]["data"].as_str().map_or(0, str::len);
        }
        if text > self.room || media > self.media {
            return false;
        }
        self.room -= text;
        self.media -= media;
        true
    }

    /// Asks for the verdict. Nothing that was said before counts.
    fn stop_looking(&mut self) -> Stage {
        fail::point("mid_grading");
        self.conversation.close(&told(words::TIME_IS_UP));
        self.conversation.forget_thinking();
        self.conversation.tell(words::VERDICT);
        Stage::Verdict { left: VERDICTS }
    }

    /// The last turn. `None` when what came is no verdict: the grader is told why.
    async fn verdict(&mut self) -> Result<Option<Verdict>, ModelError> {
        let whole = self.ask(true).await?;
        if whole.stop_reason == StopReason::Refusal {
            return Err(no_verdict());
        }
        let calls = self.conversation.hear(whole.blocks);
        let problem = match only_verdict(&calls) {
            Ok(verdict) => return Ok(Some(verdict)),
            Err(problem) => problem,
        };
        tracing::warn!(session = %self.grading.session, problem, "a verdict cannot be used");
        for call in &calls {
            let text = if call.name == verdict::TOOL {
                problem.as_str()
            } else {
                words::ONLY_A_VERDICT
            };
            self.conversation.answer(call, &told(text), true);
        }
        self.conversation
            .tell(&format!("{problem} {}", words::VERDICT));
        Ok(None)
    }

    fn request(&self, forced: bool) -> Request {
        let mut tools: Vec<_> = TOOLS
            .into_iter()
            .filter(|_| self.has_sandbox())
            .map(definition)
            .collect();
        tools.push(to_raw_value(&verdict::definition()).expect("tools serialize"));
        if let Some(last) = tools.last_mut() {
            *last = with_cache_breakpoint(last);
        }
        let system = vec![with_cache_breakpoint(&text_block(words::SYSTEM))];
        let mut request = self
            .spec
            .other_request(system, tools, self.conversation.messages());
        if forced {
            let choice =
                json!({"type": "tool", "name": verdict::TOOL, "disable_parallel_tool_use": true});
            request.tool_choice = Some(to_raw_value(&choice).expect("a choice serializes"));
            request.thinking = Thinking::Off;
        }
        request
    }

    /// Asks. A failure leaves everything as it is, so that the same can be asked again.
    async fn ask(&mut self, forced: bool) -> Result<Whole, ModelError> {
        let asked = self.ask_once(self.request(forced)).await;
        match asked {
            // Not every model takes images and PDFs.
            Err(error)
                if !error.retryable
                    && error.kind == ModelErrorKind::RequestFailed
                    && self.conversation.shows_media() =>
            {
                tracing::warn!(session = %self.grading.session, %error, "a grader goes on without images");
                self.conversation.forget_media();
                self.media = 0;
                self.ask_once(self.request(forced)).await
            }
            asked => asked,
        }
    }

    async fn ask_once(&mut self, request: Request) -> Result<Whole, ModelError> {
        let started_at = self.inner.store.now().await.map_err(|error| {
            tracing::warn!(session = %self.grading.session, %error, "the database does not answer");
            ModelError::connection("The database did not answer.")
        })?;
        let provider = Arc::clone(&self.inner.provider);
        let (answer, usage) = match timeout(REQUEST, ask::whole(provider, request)).await {
            Ok(asked) => asked,
            Err(_) => {
                let error = ModelError::connection("The model's response did not come to an end.");
                (Err(error), ModelUsage::default())
            }
        };
        self.usage.add(&usage);
        self.requests.push(ModelRequest {
            id: EventId::new(),
            thread: self.grading.thread,
            model: self.spec.model().to_owned(),
            route: self.inner.config.route.clone(),
            started_at,
            outcome: if answer.is_ok() { "answered" } else { "failed" },
            input_tokens: usage.input_tokens,
            output_tokens: usage.output_tokens,
            cache_read_input_tokens: usage.cache_read_input_tokens,
            cache_creation_input_tokens: usage.cache_creation_input_tokens,
        });
        answer
    }
}

fn no_verdict() -> ModelError {
    ModelError::permanent(
        "The model that was to evaluate the outcome gave no verdict that can be used.",
    )
}

/// The verdict, if it is one and the only one.
fn only_verdict(calls: &[Called]) -> Result<Verdict, String> {
    let mut verdicts = calls.iter().filter(|call| call.name == verdict::TOOL);
    match (verdicts.next(), verdicts.next()) {
        (None, _) => Err("You have not called `submit_verdict`.".to_owned()),
        (Some(_), Some(_)) => {
            Err("You have given more than one verdict, and none of them counts.".to_owned())
        }
        (Some(call), None) => match &call.input {
            Ok(input) => verdict::read(input.get()),
            Err(_) => Err(words::BROKEN_INPUT.to_owned()),
        },
    }
}

fn told(text: &str) -> Vec<Value> {
    vec![json!({"type": "text", "text": text})]
}

fn listing(found: &[Found]) -> String {
    if found.is_empty() {
        return "There are no files.".to_owned();
    }
    let mut lines: Vec<_> = found
        .iter()
        // As JSON, so that a name is one word of one line.
        .map(|file| format!("{} ({} bytes)", json!(file.path), file.size))
        .collect();
    if found.len() >= MAX_FILES {
        lines.push("There may be more: list them with `glob`.".to_owned());
    }
    lines.join("\n")
}
