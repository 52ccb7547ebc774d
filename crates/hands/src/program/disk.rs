//! Room on the disk, where the system itself sets no bound to all of a sandbox's files together.
//!
//! How much a sandbox has written can only be measured from outside; the server says so in
//! `Request::Disk`. How much the machine has left is seen from here. While either is a problem nothing
//! may grow: `write`, `edit`, transfers and the server's own commands are refused, and commands of
//! `bash` run with a limit of 0 on the size of files, so that they can still read and delete. A command
//! that runs when the problem arises is ended, and when it grows all the same, so is everything.

use std::{fmt, path::PathBuf, time::Duration};

use rustix::{
    fs::statvfs,
    process::{Pid, Resource, Rlimit, Signal, getrlimit, prlimit},
};
use selfsame_hands::procs::Prey;
use tokio::{sync::watch, time::sleep};

/// How often the machine's free space is looked at while a command runs.
const LOOK: Duration = Duration::from_secs(1);
/// Growth beyond a full disk that no command may be the cause of.
const TOLERANCE: u64 = 16 << 20;
/// Growth in spite of everything: then nothing goes on.
const LAST_TOLERANCE: u64 = 64 << 20;

#[derive(Debug)]
pub(super) struct Disk {
    /// Somewhere on it.
    place: PathBuf,
    /// Free bytes that are the machine's; 0 for none.
    low_water: u64,
    told: watch::Sender<Option<Told>>,
}

/// What the server has measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Told {
    used: u64,
    limit: u64,
}

/// Why nothing may be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Problem {
    Full { used: u64, limit: u64 },
    MachineFull,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full { used, limit } => f.write_str(&selfsame_hands::disk_full(*used, *limit)),
            Self::MachineFull => f.write_str(
                "the disk of the machine that runs the sandbox is almost full: nothing can be \
                 written for now, reading and deleting files works",
            ),
        }
    }
}

impl Disk {
    pub(super) fn new(place: PathBuf, low_water: u64) -> Self {
        Self {
            place,
            low_water,
            told: watch::Sender::new(None),
        }
    }

    /// Takes what the server has measured.
    pub(super) fn tell(&self, used: u64, limit: u64) {
        let before = self.told.send_replace(Some(Told { used, limit }));
        let was_full = before.filter(|told| told.used > told.limit);
        if was_full.is_some_and(|before| used > before.used.saturating_add(LAST_TOLERANCE)) {
            eprintln!("selfsame-hands: the disk is full and still fills: everything is ended");
            let all = Prey {
                group: Some(rustix::process::getpid()),
                marker: None,
            };
            tokio::task::spawn_blocking(move || all.signal(Signal::KILL));
        }
    }

    pub(super) fn problem(&self) -> Option<Problem> {
        self.problem_with(0)
    }

    /// Why `size` bytes more cannot be written.
    pub(super) fn problem_with(&self, size: u64) -> Option<Problem> {
        match *self.told.borrow() {
            Some(Told { used, limit }) if used.saturating_add(size) > limit => {
                Some(Problem::Full { used, limit })
            }
            _ => self.machine_problem(size),
        }
    }

    fn machine_problem(&self, size: u64) -> Option<Problem> {
        if self.low_water == 0 {
            return None;
        }
        let disk = statvfs(&self.place).ok()?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        (free < self.low_water.saturating_add(size)).then_some(Problem::MachineFull)
    }

    /// Resolves when something that began with `before` may not go on.
    pub(super) async fn worse_than(&self, before: Option<Problem>) -> Problem {
        let mut told = self.told.subscribe();
        loop {
            match (before, self.problem()) {
                (None, Some(now)) => return now,
                (
                    Some(Problem::Full { used: before, .. }),
                    Some(now @ Problem::Full { used, .. }),
                ) if used > before.saturating_add(TOLERANCE) => {
                    return now;
                }
                _ => {}
            }
            tokio::select! {
                // The sender is there for as long as this is.
                _ = told.changed() => {}
                () = sleep(LOOK) => {}
            }
        }
    }

    /// Lets what a shell starts from now on write files, or only read and delete. Whoever runs as root
    /// inside can undo it, and is then found by what is measured next.
    pub(super) fn let_write(&self, shell: Pid, yes: bool) {
        let Rlimit { current, maximum } = getrlimit(Resource::Fsize);
        let current = if yes { current } else { Some(0) };
        let _ = prlimit(Some(shell), Resource::Fsize, Rlimit { current, maximum });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_full_disk_is_one_until_less_is_used() {
        let disk = Disk::new("/".into(), 0);
        assert_eq!(disk.problem(), None);
        disk.tell(10, 10);
        assert_eq!(disk.problem(), None);
        assert!(disk.problem_with(1).is_some());
        disk.tell(11, 10);
        let full = disk.problem();
        assert_eq!(
            full,
            Some(Problem::Full {
                used: 11,
                limit: 10
            })
        );
        assert_eq!(disk.worse_than(None).await, full.unwrap());
        // More, but not much more.
        disk.tell(TOLERANCE, 10);
        let patience = Duration::from_millis(20);
        assert!(
            tokio::time::timeout(patience, disk.worse_than(full))
                .await
                .is_err()
        );
        disk.tell(TOLERANCE + 12, 10);
        disk.worse_than(full).await;
        disk.tell(9, 10);
        assert_eq!(disk.problem(), None);
    }

    #[tokio::test]
    async fn a_machine_keeps_some_for_itself() {
        assert_eq!(Disk::new("/".into(), 1).problem(), None);
        let disk = Disk::new("/".into(), u64::MAX);
        assert_eq!(disk.problem(), Some(Problem::MachineFull));
        assert_eq!(disk.worse_than(None).await, Problem::MachineFull);
        assert!(
            Disk::new("/".into(), 1)
                .problem_with(u64::MAX - 1)
                .is_some()
        );
    }
}
