//! A persistent bash.
//!
//! The shell runs a small loop and is told what to do over descriptors of its own, above the
//! numbers that commands use:
//!
//! ```text
//! control  hands ─► bash   "<call id>\n": run what is in the command file
//! command  hands ─► bash   a memory file with the command and a NUL; seekable, so that bash reads
//!                          it in blocks and not byte by byte as it must from a pipe
//! output   bash ─► hands   standard output and error of the commands
//! status   bash ─► hands   "<call id> <exit status>\n": it is done
//! ```
//!
//! While a command runs, all four are closed for it. So nothing that it prints can look like its
//! end, unfinished quotes and here-documents are `eval`'s syntax errors, and `exit` and `exec` end
//! the shell, which is seen by its exit status. A command that writes to the status pipe all the same
//! (through `/proc`) can end itself early, but no later one, whose id it does not know.

use std::{
    fs::File,
    io,
    os::{fd::AsRawFd, fd::OwnedFd, unix::fs::FileExt, unix::process::CommandExt},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use rustix::{
    fs::{MemfdFlags, memfd_create},
    io::{fcntl_dupfd_cloexec, ioctl_fionread},
    pipe::{PipeFlags, pipe_with},
    process::{Pid, Signal},
};
use selfsame_hands::procs::Prey;
use tokio::{
    net::unix::pipe,
    sync::{oneshot, watch},
    task::JoinHandle,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    children::{self, Exit},
    disk::{Disk, Problem},
    environment,
    output::{Capture, text},
};

/// The lowest number of a descriptor that a shell is given.
const FIRST_DESCRIPTOR: i32 = 200;
/// How long the output of an ended shell is waited for when a process in the background still
/// holds it.
const OUTPUT_GRACE: Duration = Duration::from_millis(300);
/// Between TERM and KILL.
pub(super) const TERM_GRACE: Duration = Duration::from_secs(2);
/// Bytes kept of what background processes print between two commands.
const MAX_BETWEEN: usize = 16 << 10;

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// With this status; the shell lives.
    Status(i32),
    /// And the shell with it (`exit`, `exec`, a crash).
    Shell(Exit),
    TimedOut,
    Cancelled,
    NoRoom(Problem),
}

#[derive(Debug)]
pub(super) struct Shell {
    pid: Pid,
    marker: String,
    exit: watch::Receiver<Option<Exit>>,
    control: OwnedFd,
    command: File,
    status: pipe::Receiver,
    /// What came over `status` and is not a whole line yet.
    status_line: Vec<u8>,
    /// The call whose command runs, or ran last.
    call: Uuid,
    output: Output,
}

/// The output pipe: with the shell while a command runs, and with a task that keeps it from
/// filling up in between. Otherwise a server in the background would block on its own log.
#[derive(Debug)]
enum Output {
    Here(pipe::Receiver),
    Between(oneshot::Sender<()>, JoinHandle<(pipe::Receiver, Vec<u8>)>),
    Lost,
}

impl Shell {
    pub(super) fn start(directory: &Path) -> io::Result<Self> {
        let (control_read, control_write) = pipe_with(PipeFlags::CLOEXEC)?;
        let (status_read, status_write) = pipe_with(PipeFlags::CLOEXEC)?;
        let (output_read, output_write) = pipe_with(PipeFlags::CLOEXEC)?;
        let command = memfd_create("command", MemfdFlags::CLOEXEC)?;
        let given = [
            raise(&control_read)?,
            raise(&command)?,
            raise(&output_write)?,
            raise(&status_write)?,
        ];
        let [control, file, output, status] = given.each_ref().map(AsRawFd::as_raw_fd);
        let marker = format!("HANDS_SHELL={}", Uuid::now_v7());
        // Everything that is not the command itself is silent, `set -x` included. `builtin` keeps
        // functions of the same names out.
        let script = format!(
            "while IFS= builtin read -r -u {control} _hands_call; do \
               builtin export HANDS_CALL=\"$_hands_call\"; \
               IFS= builtin read -r -d '' -u {file} _hands_command; \
               builtin eval \"$_hands_command\" \
                 </dev/null >&{output} 2>&{output} \
                 {control}<&- {file}<&- {output}>&- {status}>&-; \
               builtin printf '%s %s\\n' \"$_hands_call\" \"$?\" >&{status}; \
             done"
        );
        let started = ["/bin/bash", "bash"].into_iter().find_map(|bash| {
            let mut child = Command::new(bash);
            child
                .args(["--noprofile", "--norc", "-c", &script, "bash"])
                .current_dir(directory)
                .env_clear()
                .envs(environment())
                .env("HANDS_CALL", "")
                .env("HANDS_SHELL", marker.trim_start_matches("HANDS_SHELL="))
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .process_group(0);
            match children::start(&mut child, &given.each_ref()) {
                Err(error) if error.kind() == io::ErrorKind::NotFound && bash != "bash" => None,
                result => Some(result),
            }
        });
        let started = started.unwrap_or_else(|| Err(io::ErrorKind::NotFound.into()))?;
        Ok(Self {
            pid: started.pid,
            marker,
            exit: started.exit,
            control: control_write,
            command: command.into(),
            status: pipe::Receiver::from_owned_fd(status_read)?,
            status_line: Vec::new(),
            call: Uuid::nil(),
            output: Output::Here(pipe::Receiver::from_owned_fd(output_read)?),
        })
    }

    /// How the shell ended while no command ran, if it did.
    pub(super) fn ended(&self) -> Option<Exit> {
        *self.exit.borrow()
    }

    /// Runs one command; its output goes to `capture`. After anything but [`End::Status`] the
    /// shell is gone, and so is every process that belonged to the command.
    pub(super) async fn run(
        &mut self,
        call: Uuid,
        command: &str,
        limit: Duration,
        cancel: &CancellationToken,
        disk: &Disk,
        capture: &mut Capture,
    ) -> io::Result<End> {
        let (output, between) = self.take_output().await?;
        capture.push(&between).await;
        self.call = call;
        // Nobody has said anything yet: what is there is forged or late.
        while self.read_status() && !self.status_line.is_empty() {
            self.status_line.clear();
        }
        self.command.set_len(0)?;
        self.command.write_all_at(command.as_bytes(), 0)?;
        self.command.write_all_at(b"\0", command.len() as u64)?;
        // The position is shared with the shell, which reads on from it.
        rustix::fs::seek(&self.command, rustix::fs::SeekFrom::Start(0))?;
        let before = disk.problem();
        disk.let_write(self.pid, before.is_none());
        let order = format!("{call}\n");
        // Never blocks: the pipe is empty, because the shell has taken every order before this one.
        // When it has just died, its exit is what is seen next.
        let _ = rustix::io::write(&self.control, order.as_bytes());

        let waiting = self.wait(&output, limit, cancel, capture);
        let end = tokio::select! {
            biased;
            end = waiting => end,
            problem = disk.worse_than(before) => End::NoRoom(problem),
        };
        match end {
            End::Status(_) => {
                // The command wrote all it had to before it ended: exactly what is in the pipe now.
                // More may come from the background, without end.
                let left = ioctl_fionread(&output).unwrap_or(0);
                drain(&output, left, capture).await;
                let (stop, stopped) = oneshot::channel();
                self.output = Output::Between(stop, tokio::spawn(keep_empty(output, stopped)));
            }
            End::Shell(_) => {
                let rest = read_to_end(&output, capture);
                let _ = timeout(OUTPUT_GRACE, rest).await;
            }
            End::TimedOut | End::Cancelled | End::NoRoom(_) => {
                let prey = Prey {
                    group: Some(self.pid),
                    marker: Some(format!("HANDS_CALL={call}")),
                };
                tokio::join!(end_all(prey), async {
                    let _ = timeout(TERM_GRACE, read_to_end(&output, capture)).await;
                });
            }
        }
        Ok(end)
    }

    async fn wait(
        &mut self,
        output: &pipe::Receiver,
        limit: Duration,
        cancel: &CancellationToken,
        capture: &mut Capture,
    ) -> End {
        let deadline = Instant::now() + limit;
        let exited = self.exit.clone();
        let mut buffer = vec![0; 64 << 10];
        let (mut output_open, mut status_open) = (true, true);
        loop {
            tokio::select! {
                biased;
                () = cancel.cancelled() => return End::Cancelled,
                () = sleep_until(deadline) => return End::TimedOut,
                ready = self.status.readable(), if status_open => {
                    // Closed means that the shell has ended or become another program.
                    status_open = ready.is_ok() && self.read_status();
                    if let Some(status) = self.parse_status() {
                        return End::Status(status);
                    }
                }
                exit = children::ended(&exited) => return End::Shell(exit),
                ready = output.readable(), if output_open => {
                    output_open = ready.is_ok();
                    match output.try_read(&mut buffer) {
                        Ok(0) => output_open = false,
                        Ok(length) => capture.push(&buffer[..length]).await,
                        Err(error) => output_open &= error.kind() == io::ErrorKind::WouldBlock,
                    }
                }
            }
        }
    }

    /// Takes what is in the status pipe; false when it is closed.
    fn read_status(&mut self) -> bool {
        let mut buffer = [0; 256];
        match self.status.try_read(&mut buffer) {
            Ok(0) => false,
            Ok(length) => {
                self.status_line.extend_from_slice(&buffer[..length]);
                true
            }
            Err(error) => error.kind() == io::ErrorKind::WouldBlock,
        }
    }

    /// The status of the command that runs, if it has come. Other lines are dropped, and so is a
    /// line without end.
    fn parse_status(&mut self) -> Option<i32> {
        let mut found = None;
        while let Some(end) = self.status_line.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.status_line.drain(..=end).collect();
            if let Some((call, status)) = text(&line).trim_end().split_once(' ')
                // A command may clear all variables, this one included.
                && (call.is_empty() || call.parse() == Ok(self.call))
            {
                found = status.parse().ok();
            }
        }
        if self.status_line.len() > 1024 {
            self.status_line.clear();
        }
        found
    }

    async fn take_output(&mut self) -> io::Result<(pipe::Receiver, Vec<u8>)> {
        match std::mem::replace(&mut self.output, Output::Lost) {
            Output::Here(receiver) => Ok((receiver, Vec::new())),
            Output::Between(stop, task) => {
                let _ = stop.send(());
                task.await.map_err(io::Error::other)
            }
            Output::Lost => Err(io::Error::other("the shell's output is lost")),
        }
    }

    /// Ends the shell and everything that was ever started in it.
    pub(super) async fn end(self) {
        end_all(Prey {
            group: Some(self.pid),
            marker: Some(self.marker),
        })
        .await;
    }
}

/// A copy of the descriptor with a number that no command uses by itself.
fn raise(fd: &OwnedFd) -> io::Result<OwnedFd> {
    Ok(fcntl_dupfd_cloexec(fd, FIRST_DESCRIPTOR)?)
}

/// Reads until the pipe is closed.
async fn read_to_end(output: &pipe::Receiver, capture: &mut Capture) {
    let mut buffer = vec![0; 64 << 10];
    while output.readable().await.is_ok() {
        match output.try_read(&mut buffer) {
            Ok(0) => return,
            Ok(length) => capture.push(&buffer[..length]).await,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}

/// Reads `left` bytes that are in the pipe already.
async fn drain(output: &pipe::Receiver, mut left: u64, capture: &mut Capture) {
    let mut buffer = vec![0; 64 << 10];
    while left > 0 {
        let most = buffer
            .len()
            .min(usize::try_from(left).unwrap_or(usize::MAX));
        // Not `try_read`: it asks nobody when it believes that there is nothing to read.
        match rustix::io::read(output, &mut buffer[..most]) {
            Ok(0) | Err(_) => return,
            Ok(length) => {
                left -= length as u64;
                capture.push(&buffer[..length]).await;
            }
        }
    }
}

/// Keeps the pipe empty and the last bytes that came.
async fn keep_empty(
    output: pipe::Receiver,
    mut stopped: oneshot::Receiver<()>,
) -> (pipe::Receiver, Vec<u8>) {
    let mut last = Vec::new();
    let mut buffer = vec![0; 4 << 10];
    loop {
        tokio::select! {
            biased;
            _ = &mut stopped => return (output, last),
            ready = output.readable() => match output.try_read(&mut buffer) {
                Ok(length) if length > 0 && ready.is_ok() => {
                    last.extend_from_slice(&buffer[..length]);
                    if last.len() > 2 * MAX_BETWEEN {
                        last.drain(..last.len() - MAX_BETWEEN);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // Closed: nothing comes any more.
                _ => {
                    let _ = stopped.await;
                    return (output, last);
                }
            },
        }
    }
}

/// TERM, and KILL for what is left after two seconds.
pub(super) async fn end_all(prey: Prey) {
    prey.signal(Signal::TERM);
    let deadline = Instant::now() + TERM_GRACE;
    let mut pause = Duration::from_millis(2);
    while prey.alive() && Instant::now() < deadline {
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(50));
    }
    // Again and again: a process may fork while it is being looked for.
    for _ in 0..100 {
        if prey.signal(Signal::KILL) == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
