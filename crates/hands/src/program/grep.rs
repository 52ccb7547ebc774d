//! `grep` with ripgrep, where the image has it.

use std::{
    env,
    os::unix::fs::PermissionsExt,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use rustix::{
    pipe::{PipeFlags, pipe_with},
    process::{Pid, Signal, kill_process_group},
};
use tokio::{io::AsyncReadExt, net::unix::pipe};

use super::{
    children, environment,
    files::phrase,
    output::text,
    search::{MAX_MATCHES, check, limited},
    tools::Failure,
};

/// The first `rg` in the search path. Looked up each time: an agent may install it.
pub(super) fn find_rg() -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path)
        .filter(|directory| directory.is_absolute())
        .find_map(|directory| {
            let rg = directory.join("rg");
            let metadata = rg.metadata().ok()?;
            (metadata.is_file() && metadata.permissions().mode() & 0o111 != 0).then_some(rg)
        })
}

/// Kills what is left of a search when it is dropped (cancelled, timed out, or long enough).
struct Search(Pid);

impl Drop for Search {
    fn drop(&mut self) {
        let _ = kill_process_group(self.0, Signal::KILL);
    }
}

pub(super) async fn run(rg: &Path, pattern: &str, path: &Path) -> Result<String, Failure> {
    check(pattern)?;
    if let Err(error) = tokio::fs::metadata(path).await {
        return Err(Failure::new(format!(
            "{}: {}",
            path.display(),
            phrase(&error)
        )));
    }
    let failed = |error: std::io::Error| Failure::new(format!("cannot run rg: {error}"));
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).map_err(|error| failed(error.into()))?;
    let mut command = Command::new(rg);
    command.args([
        "--no-config",
        "--line-number",
        "--no-heading",
        "--with-filename",
    ]);
    // A long line (a minified file) says that it matches, and no more.
    command.args(["--color=never", "--no-messages", "--max-columns=2000"]);
    if !path
        .components()
        .any(|part| part.as_os_str() == "node_modules")
    {
        command.args(["--glob", "!node_modules"]);
    }
    command
        .args(["-e", pattern, "--"])
        .arg(path)
        .env_clear()
        .envs(environment())
        .stdin(Stdio::null())
        .stdout(write)
        .stderr(Stdio::null())
        .process_group(0);
    let started = children::start(&mut command, &[]).map_err(failed)?;
    // It holds the writing end, which would keep the pipe open for ever.
    drop(command);
    let search = Search(started.pid);
    let output = pipe::Receiver::from_owned_fd(read).map_err(failed)?;
    let mut found = Vec::new();
    output
        .take(MAX_MATCHES as u64 + 1)
        .read_to_end(&mut found)
        .await
        .map_err(failed)?;
    if found.len() <= MAX_MATCHES {
        let exit = children::ended(&started.exit).await;
        // The process is gone and its number may be another's: nothing to kill.
        std::mem::forget(search);
        // 1 is "nothing found"; 2 is an error, often only of some of the files.
        if found.is_empty() && exit != children::Exit::Code(1) {
            return Err(Failure::new(format!(
                "rg failed on {}",
                text(pattern.as_bytes())
            )));
        }
    }
    Ok(limited(found))
}
