//! Starting and reaping processes.
//!
//! As PID 1 (or as a sub-reaper) the hands inherit every orphan of the sandbox, so they wait for
//! *any* child. That would steal the exit status of a child somebody else waits for; therefore all
//! starts go through here, and a start and its registration are one step under the lock that
//! reaping takes. A process has one set of children, hence the static.

use std::{
    collections::HashMap,
    io,
    os::fd::OwnedFd,
    process::Command,
    sync::{Mutex, PoisonError},
};

use rustix::{
    io::{FdFlags, fcntl_getfd, fcntl_setfd},
    process::{Pid, WaitOptions, WaitStatus, wait},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

static CHILDREN: Mutex<Option<HashMap<Pid, watch::Sender<Option<Exit>>>>> = Mutex::new(None);

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Exit {
    Code(i32),
    Signal(i32),
}

impl Exit {
    fn from_status(status: WaitStatus) -> Option<Self> {
        status
            .exit_status()
            .map(Self::Code)
            .or_else(|| status.terminating_signal().map(Self::Signal))
    }

    /// As a shell counts: 128 and more for signals.
    pub(super) fn code(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128 + signal,
        }
    }
}

/// A started process. Dropping it changes nothing for the process.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) pid: Pid,
    /// `Some` once it has ended.
    pub(super) exit: watch::Receiver<Option<Exit>>,
}

/// Waits for a process to end. Can be dropped and called again.
pub(super) async fn ended(exit: &watch::Receiver<Option<Exit>>) -> Exit {
    let mut exit = exit.clone();
    let exit = exit
        .wait_for(Option::is_some)
        .await
        .ok()
        .and_then(|exit| *exit);
    // The sender lives until it has sent, so there is a status.
    exit.unwrap_or(Exit::Signal(9))
}

/// Starts `command`, which inherits `descriptors` under their own numbers besides its standard
/// streams.
pub(super) fn start(command: &mut Command, descriptors: &[&OwnedFd]) -> io::Result<Started> {
    let mut children = CHILDREN.lock().unwrap_or_else(PoisonError::into_inner);
    // Under the lock: no other child can be started while these are inheritable.
    let started = set_inheritable(descriptors, true).and_then(|()| command.spawn());
    set_inheritable(descriptors, false)?;
    // Dropping this handle neither waits nor kills.
    let child = started?;
    let pid = i32::try_from(child.id())
        .ok()
        .and_then(Pid::from_raw)
        .ok_or(io::ErrorKind::Other)?;
    let (sender, exit) = watch::channel(None);
    children.get_or_insert_default().insert(pid, sender);
    Ok(Started { pid, exit })
}

fn set_inheritable(descriptors: &[&OwnedFd], inheritable: bool) -> io::Result<()> {
    for fd in descriptors {
        let mut flags = fcntl_getfd(fd)?;
        flags.set(FdFlags::CLOEXEC, !inheritable);
        fcntl_setfd(fd, flags)?;
    }
    Ok(())
}

/// Reaps for as long as the program runs. Returns only when signals cannot be received.
pub(super) async fn reap_for_ever() -> io::Result<()> {
    let mut signals = signal(SignalKind::child())?;
    loop {
        reap();
        signals.recv().await;
    }
}

fn reap() {
    let mut children = CHILDREN.lock().unwrap_or_else(PoisonError::into_inner);
    // Ends with `None` (nobody has ended) or an error (no child at all).
    while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
        if let Some(exit) = Exit::from_status(status)
            && let Some(waiter) = children.get_or_insert_default().remove(&pid)
        {
            waiter.send_replace(Some(exit));
        }
    }
}
