//! The built-in tools: one call in, one result out.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use selfsame_hands::{Call, CallResult, Content};
use serde::{Deserialize, de::DeserializeOwned};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    children::Exit,
    disk::{Disk, Problem},
    files, grep,
    output::{Capture, Spill, shorten},
    outputs,
    places::Places,
    search::{self, GrepInput},
    shell::{End, Shell},
};

pub(super) const INTERRUPTED: &str =
    "Tool execution was interrupted before completion. Please retry.";

/// Limit of a `bash` command that names none.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(120);
/// Limit of every other tool.
const TOOL_TIMEOUT: Duration = Duration::from_secs(150);
/// Most shells at once: one per thread of a session, with plenty to spare.
const MAX_SHELLS: usize = 512;

/// A tool that failed: a short phrase for the model.
#[derive(Debug)]
pub(super) struct Failure(pub(super) String);

impl Failure {
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

type Outcome = Result<CallResult, Failure>;

#[derive(Debug)]
pub(super) struct Tools {
    places: Places,
    disk: Arc<Disk>,
    max_timeout: Duration,
    shells: Mutex<HashMap<Uuid, Arc<tokio::sync::Mutex<Seat>>>>,
}

/// Where a thread's shell sits; locked while a command runs in it.
#[derive(Debug, Default)]
struct Seat {
    shell: Option<Shell>,
    /// Why the next shell is a new one, when the model does not know.
    notice: Option<String>,
}

#[derive(Debug, Deserialize)]
struct BashInput {
    command: Option<String>,
    restart: Option<bool>,
    timeout_ms: Option<f64>,
}

impl Tools {
    pub(super) fn new(places: Places, disk: Arc<Disk>, max_timeout: Duration) -> Self {
        Self {
            places,
            disk,
            max_timeout,
            shells: Mutex::default(),
        }
    }

    /// Runs `call` to its end. Cancelling ends it soon, with an error result.
    pub(super) async fn run(&self, call: Call, cancel: &CancellationToken) -> CallResult {
        let tool = call.tool.clone();
        let outcome = if cancel.is_cancelled() {
            Ok(CallResult::error(INTERRUPTED))
        } else {
            match tool.as_str() {
                "bash" => self.bash(call, cancel).await,
                "grep" => self.grep(call, cancel).await,
                "read" => self.blocking(call, cancel, files::read).await,
                "write" | "edit" if let Some(problem) = self.disk.problem() => {
                    Err(Failure::new(problem.to_string()))
                }
                "write" => self.blocking(call, cancel, files::write).await,
                "edit" => self.blocking(call, cancel, files::edit).await,
                "glob" => self.blocking(call, cancel, search::glob).await,
                _ => Err(Failure::new("no such tool")),
            }
        };
        let mut result = outcome
            .unwrap_or_else(|Failure(message)| CallResult::error(format!("{tool}: {message}")));
        if matches!(tool.as_str(), "bash" | "write" | "edit") {
            result.outputs = outputs::fingerprint(&self.places.outputs()).await;
        }
        result
    }

    fn spill(&self, name: &str) -> Option<Spill> {
        Spill::new(&self.places.tool_outputs(), name)
    }

    async fn bash(&self, call: Call, cancel: &CancellationToken) -> Outcome {
        let input: BashInput = input(&call)?;
        let seat = {
            let mut shells = self.shells.lock().unwrap_or_else(PoisonError::into_inner);
            if !shells.contains_key(&call.shell) && shells.len() >= MAX_SHELLS {
                return Err(Failure::new("too many shells"));
            }
            Arc::clone(shells.entry(call.shell).or_default())
        };
        let mut seat = tokio::select! {
            biased;
            () = cancel.cancelled() => return Ok(CallResult::error(INTERRUPTED)),
            seat = seat.lock() => seat,
        };
        if input.restart == Some(true) {
            if let Some(shell) = seat.shell.take() {
                shell.end().await;
            }
            seat.notice = None;
            seat.shell = Some(self.new_shell()?);
            return Ok(CallResult::text("bash session restarted"));
        }
        let command = input
            .command
            .filter(|command| !command.is_empty())
            .ok_or_else(|| Failure::new("command is required"))?;
        if command.contains('\0') {
            return Err(Failure::new("command contains a NUL character"));
        }
        let limit = match input.timeout_ms {
            Some(millis) if millis >= 1.0 => {
                Duration::try_from_secs_f64(millis / 1000.0).unwrap_or(Duration::MAX)
            }
            Some(millis) if millis < 0.0 => return Err(Failure::new("timeout_ms is negative")),
            _ => DEFAULT_TIMEOUT,
        };
        let limit = limit.min(self.max_timeout);
        self.command(&mut seat, &call, &command, limit, cancel)
            .await
    }

    async fn command(
        &self,
        seat: &mut Seat,
        call: &Call,
        command: &str,
        limit: Duration,
        cancel: &CancellationToken,
    ) -> Outcome {
        if let Some(exit) = seat.shell.as_ref().and_then(Shell::ended) {
            seat.shell = None;
            seat.notice = Some(format!("the previous shell ended with {}", describe(exit)));
        }
        let mut shell = match seat.shell.take() {
            Some(shell) => shell,
            None => self.new_shell()?,
        };
        let mut capture = Capture::new(self.spill(&call.spill_name));
        if let Some(notice) = seat.notice.take() {
            let notice = format!("[new bash session: {notice}; its state is lost]\n");
            capture.push(notice.as_bytes()).await;
        }
        let end = shell
            .run(call.id, command, limit, cancel, &self.disk, &mut capture)
            .await
            .map_err(|error| Failure::new(format!("the shell failed: {error}")));
        let end = match end {
            Ok(end) => end,
            Err(failure) => {
                seat.notice = Some("the previous shell failed".into());
                shell.end().await;
                return Err(failure);
            }
        };
        let blank = capture.is_blank();
        let text = capture.finish().await;
        Ok(match end {
            End::Status(status) => {
                seat.shell = Some(shell);
                self.finished(text, blank, Exit::Code(status))
            }
            End::Shell(exit) => {
                seat.notice = Some(format!("the previous shell ended with {}", describe(exit)));
                self.finished(text, blank, exit)
            }
            End::TimedOut => {
                seat.notice =
                    Some("the previous command timed out and its shell was killed".into());
                let limit = limit.as_secs_f64();
                let message = format!("bash: command timed out after {limit}s and was killed");
                CallResult::error(joined(text, blank, &message))
            }
            End::NoRoom(problem) => {
                seat.notice =
                    Some("the previous command filled the disk and its shell was killed".into());
                let message = format!("bash: the command was killed, because {problem}");
                CallResult::error(joined(text, blank, &message))
            }
            End::Cancelled => {
                seat.notice =
                    Some("the previous command was interrupted and its shell killed".into());
                let partial = if blank {
                    String::new()
                } else {
                    format!("\n\n{text}")
                };
                CallResult::error(format!("{INTERRUPTED}{partial}"))
            }
        })
    }

    fn finished(&self, text: String, blank: bool, exit: Exit) -> CallResult {
        match (self.disk.problem(), exit.code()) {
            // A full sandbox may have less by now: the server says so if it has not.
            (Some(problem @ Problem::MachineFull), _) => {
                CallResult::error(joined(text, blank, &format!("bash: {problem}")))
            }
            (_, 0) if blank => CallResult::text("(no output)"),
            (_, 0) => CallResult::text(text),
            _ if blank => CallResult::error(describe(exit)),
            _ => CallResult::error(text),
        }
    }

    fn new_shell(&self) -> Result<Shell, Failure> {
        Shell::start(&self.places.workdir()).map_err(|error| {
            Failure::new(format!("cannot start a shell: {}", files::phrase(&error)))
        })
    }

    async fn grep(&self, call: Call, cancel: &CancellationToken) -> Outcome {
        let Some(rg) = grep::find_rg() else {
            return self.blocking(call, cancel, search::grep).await;
        };
        let input: GrepInput = input(&call)?;
        let path = input.root(&self.places);
        tokio::select! {
            biased;
            () = cancel.cancelled() => Ok(CallResult::error(INTERRUPTED)),
            done = tokio::time::timeout(TOOL_TIMEOUT, grep::run(&rg, &input.pattern, &path)) => {
                let text = done.unwrap_or_else(|_| Err(timed_out()))?;
                Ok(CallResult::text(shorten(text, self.spill(&call.spill_name)).await))
            }
        }
    }

    /// Runs a tool that only works on files, on a thread of its own. It is told to stop by the
    /// flag; when it hangs in the file system it is left behind.
    async fn blocking<I, F>(&self, call: Call, cancel: &CancellationToken, tool: F) -> Outcome
    where
        I: DeserializeOwned + Send + 'static,
        F: FnOnce(I, &Places, &AtomicBool) -> Result<Content, Failure> + Send + 'static,
    {
        let input: I = input(&call)?;
        let places = self.places.clone();
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        let work = tokio::task::spawn_blocking(move || tool(input, &places, &flag));
        let outcome = tokio::select! {
            biased;
            () = cancel.cancelled() => {
                stop.store(true, Ordering::Relaxed);
                return Ok(CallResult::error(INTERRUPTED));
            }
            done = tokio::time::timeout(TOOL_TIMEOUT, work) => done,
        };
        let content = match outcome {
            Ok(Ok(result)) => result?,
            Ok(Err(panic)) => return Err(Failure::new(format!("internal error: {panic}"))),
            Err(_) => {
                stop.store(true, Ordering::Relaxed);
                return Err(timed_out());
            }
        };
        let content = match content {
            Content::Text(text) if text.is_empty() => Content::Text("(no output)".into()),
            Content::Text(text) => Content::Text(shorten(text, self.spill(&call.spill_name)).await),
            other => other,
        };
        Ok(CallResult {
            content: vec![content],
            is_error: false,
            outputs: 0,
        })
    }
}

fn input<I: DeserializeOwned>(call: &Call) -> Result<I, Failure> {
    I::deserialize(&call.input).map_err(|error| {
        // serde's own words: "missing field `file_path`", "invalid type: integer `1`, expected ...".
        Failure::new(format!("invalid input: {error}"))
    })
}

fn timed_out() -> Failure {
    Failure::new(format!("timed out after {}s", TOOL_TIMEOUT.as_secs()))
}

fn describe(exit: Exit) -> String {
    match exit {
        Exit::Code(code) => format!("exit code {code}"),
        Exit::Signal(signal) => format!("signal {signal}"),
    }
}

fn joined(text: String, blank: bool, message: &str) -> String {
    if blank {
        message.to_owned()
    } else {
        format!("{text}\n\n{message}")
    }
}
