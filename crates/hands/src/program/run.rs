//! Commands of the server's own: a clone, an installation. Nothing of them stays: not their processes,
//! and not their result when nobody waits for it any more.

use std::{
    collections::VecDeque,
    io,
    os::unix::process::CommandExt,
    path::Path,
    pin::pin,
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use rustix::{
    pipe::{PipeFlags, pipe_with},
    process::Pid,
};
use selfsame_hands::{Ran, Run, mux::Substream, procs::Prey, wire::Reply};
use tokio::{
    io::AsyncReadExt,
    net::unix::pipe,
    sync::RwLock,
    time::{sleep_until, timeout},
};

use super::{
    children,
    disk::{Disk, Problem},
    environment,
    output::text,
    places::{Fault, Places},
    shell::{TERM_GRACE, end_all},
};

/// How long the output is waited for when something that was left behind still holds it.
const OUTPUT_GRACE: Duration = Duration::from_millis(300);
/// Most bytes of output that are returned.
const MAX_OUTPUT: usize = 1 << 20;

#[derive(Debug)]
pub(super) struct Runs {
    places: Places,
    disk: Arc<Disk>,
    /// Held for reading by each command until the last process of it has ended, also after its server
    /// has gone. Taken for writing before the first command of a new session, so that what a dead server
    /// began and what its successor begins are never beside each other.
    going: Arc<RwLock<()>>,
}

/// Ends the command's processes, at the latest when the waiting for it is dropped.
struct Leash {
    prey: Option<Prey>,
    going: Option<tokio::sync::OwnedRwLockReadGuard<()>>,
}

impl Leash {
    async fn end(mut self) {
        if let Some(prey) = self.prey.take() {
            end_all(prey).await;
        }
    }
}

impl Drop for Leash {
    fn drop(&mut self) {
        if let Some(prey) = self.prey.take() {
            let going = self.going.take();
            tokio::spawn(async move {
                end_all(prey).await;
                drop(going);
            });
        }
    }
}

impl Runs {
    pub(super) fn new(places: Places, disk: Arc<Disk>) -> Self {
        Self {
            places,
            disk,
            going: Arc::default(),
        }
    }

    /// Resolves when nothing of earlier sessions runs any more.
    pub(super) async fn settle(&self) {
        drop(self.going.write().await);
    }

    /// Runs it to its end, or until `substream` ends.
    pub(super) async fn run(&self, run: Run, substream: &mut Substream) -> Result<Reply, Fault> {
        let going = Arc::clone(&self.going).read_owned().await;
        let program = run.argv.first().ok_or_else(|| Fault::new("no command"))?;
        let no_room = |problem: Problem| Fault::new(format!("{program}: {problem}"));
        if let Some(problem) = self.disk.problem() {
            return Err(no_room(problem));
        }
        let directory = match &run.cwd {
            Some(path) => self.places.of_server(path)?,
            None => self.places.workdir(),
        };
        let (started, output) = start(&run, &directory).map_err(Fault::at(program))?;
        let leash = Leash {
            prey: Some(prey(started.pid, &run)),
            going: Some(going),
        };
        let mut tail = Tail::new(run.output_limit.min(MAX_OUTPUT));
        let deadline = tokio::time::Instant::now() + run.timeout;
        let code = {
            let mut reading = pin!(tail.read(output));
            let mut worse = pin!(self.disk.worse_than(None));
            let mut closed = false;
            let code = loop {
                tokio::select! {
                    biased;
                    () = sleep_until(deadline) => break None,
                    () = gone(substream) => return Err(Fault::new("nobody waits any more")),
                    problem = &mut worse => return Err(no_room(problem)),
                    exit = children::ended(&started.exit) => break Some(exit.code()),
                    () = &mut reading, if !closed => closed = true,
                }
            };
            // What it left in the background is not to go on either.
            tokio::join!(leash.end(), async {
                let grace = if code.is_some() {
                    OUTPUT_GRACE
                } else {
                    TERM_GRACE
                };
                if !closed {
                    let _ = timeout(grace, reading).await;
                }
            });
            code
        };
        Ok(Reply::Ran(Ran {
            code,
            output: tail.text(),
            timed_out: code.is_none(),
        }))
    }
}

fn start(run: &Run, directory: &Path) -> io::Result<(children::Started, pipe::Receiver)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    let mut command = Command::new(run.argv.first().map_or("", String::as_str));
    command
        .args(run.argv.iter().skip(1))
        .current_dir(directory)
        .env_clear()
        .envs(environment())
        .envs(run.env.iter().map(|(name, value)| (name, value)))
        .env("HANDS_CALL", run.id.to_string())
        .stdin(Stdio::null())
        .stdout(write.try_clone()?)
        .stderr(write)
        .process_group(0);
    let started = children::start(&mut command, &[])?;
    Ok((started, pipe::Receiver::from_owned_fd(read)?))
}

fn prey(pid: Pid, run: &Run) -> Prey {
    Prey {
        group: Some(pid),
        marker: Some(format!("HANDS_CALL={}", run.id)),
    }
}

/// Resolves when the other side has gone: it has nothing more to say.
async fn gone(substream: &mut Substream) {
    let mut byte = [0];
    while matches!(substream.read(&mut byte).await, Ok(1..)) {}
}

/// The last bytes of an output.
struct Tail {
    bytes: VecDeque<u8>,
    limit: usize,
}

impl Tail {
    fn new(limit: usize) -> Self {
        Self {
            bytes: VecDeque::new(),
            limit,
        }
    }

    async fn read(&mut self, mut output: pipe::Receiver) {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(length @ 1..) = output.read(&mut buffer).await {
            self.push(&buffer[..length]);
        }
    }

    fn push(&mut self, bytes: &[u8]) {
        let bytes = &bytes[bytes.len().saturating_sub(self.limit)..];
        let excess = (self.bytes.len() + bytes.len()).saturating_sub(self.limit);
        self.bytes.drain(..excess.min(self.bytes.len()));
        self.bytes.extend(bytes);
    }

    fn text(mut self) -> String {
        // Where the beginning was cut off, it may be within a character.
        if self.bytes.len() == self.limit {
            while self.bytes.front().is_some_and(|byte| byte & 0xc0 == 0x80) {
                self.bytes.pop_front();
            }
        }
        text(self.bytes.make_contiguous()).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_end_of_an_output_is_kept() {
        for limit in [0, 1, 4, 10] {
            let mut tail = Tail::new(limit);
            for piece in ["", "ab", "cdef", "ghijklmnopqrs", "t"] {
                tail.push(piece.as_bytes());
                assert!(tail.bytes.len() <= limit);
            }
            let whole = "abcdefghijklmnopqrst";
            assert_eq!(tail.text(), whole[whole.len() - limit..]);
        }
        let mut tail = Tail::new(5);
        tail.push("grünün".as_bytes());
        assert_eq!(tail.text(), "nün");
    }
}
