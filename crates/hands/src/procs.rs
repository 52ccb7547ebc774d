//! Finding and ending the processes that a command left, wherever they went.
//!
//! A process group is not enough: `setsid` leaves it. So everything the hands start carries a
//! marker in its environment, which children inherit, and a sweep over `/proc` finds it.

use std::{
    collections::{HashMap, HashSet},
    fs,
    io::Read,
};

use rustix::process::{
    Pid, PidfdFlags, Signal, kill_process, kill_process_group, pidfd_open, pidfd_send_signal,
};

/// Longest environment looked at, in bytes.
const MAX_ENVIRON: u64 = 4 << 20;

/// Which processes are meant: those that match any of the two.
#[derive(Debug, Clone, Default)]
pub struct Prey {
    /// Members of this process group, and descendants of the process of the same number; of these
    /// not the ones that carry the marker's name with another value, for they belong elsewhere.
    pub group: Option<Pid>,
    /// `NAME=value` in the environment they were started with.
    pub marker: Option<String>,
}

impl Prey {
    /// Sends `signal` to every process meant, except this one and the first process of the
    /// namespace. Returns how many there were. Processes that only wait to be reaped do not count.
    pub fn signal(&self, signal: Signal) -> usize {
        let found = self.find();
        if let Some(group) = self.group
            && group != rustix::process::getpgrp()
            && found
                .iter()
                .any(|(_, stat)| stat.group == group.as_raw_nonzero().get())
        {
            // All of them in one step first: nobody forks or reports a death in between.
            let _ = kill_process_group(group, signal);
        }
        let mut hit = 0;
        for (pid, Stat { started, .. }) in found {
            // The descriptor is taken before the second look: a number that has been given to
            // another process in between is noticed, not killed.
            let sent = match pidfd_open(pid, PidfdFlags::empty()) {
                Ok(fd) => same(pid, started) && pidfd_send_signal(&fd, signal).is_ok(),
                Err(rustix::io::Errno::SRCH) => false,
                // Kernels and runtimes without such descriptors.
                Err(_) => same(pid, started) && kill_process(pid, signal).is_ok(),
            };
            hit += usize::from(sent);
        }
        hit
    }

    /// Whether any such process is alive.
    #[must_use]
    pub fn alive(&self) -> bool {
        !self.find().is_empty()
    }

    fn find(&self) -> Vec<(Pid, Stat)> {
        let own = rustix::process::getpid().as_raw_nonzero().get();
        let mut stats = HashMap::new();
        let Ok(entries) = fs::read_dir("/proc") else {
            return Vec::new();
        };
        for entry in entries.flatten() {
            let Some(pid) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse::<i32>().ok())
            else {
                continue;
            };
            if pid != own
                && pid != 1
                && let Some(stat) = Stat::read(pid)
                && !stat.dead
            {
                stats.insert(pid, stat);
            }
        }
        let tags: HashMap<i32, Tag> = match &self.marker {
            Some(marker) => stats.keys().map(|pid| (*pid, tag(*pid, marker))).collect(),
            None => HashMap::new(),
        };
        let mut meant: HashSet<i32> = HashSet::new();
        if let Some(group) = self.group {
            let root = group.as_raw_nonzero().get();
            let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
            for (&pid, stat) in &stats {
                children.entry(stat.parent).or_default().push(pid);
                if stat.group == root {
                    meant.insert(pid);
                }
            }
            let mut queue = vec![root];
            while let Some(parent) = queue.pop() {
                for &child in children.get(&parent).into_iter().flatten() {
                    if tags.get(&child) != Some(&Tag::Other) {
                        meant.insert(child);
                        queue.push(child);
                    }
                }
            }
        }
        meant.extend(
            tags.iter()
                .filter(|(_, tag)| **tag == Tag::Same)
                .map(|(pid, _)| *pid),
        );
        meant
            .into_iter()
            .filter_map(|pid| Some((Pid::from_raw(pid)?, *stats.get(&pid)?)))
            .collect()
    }
}

/// Whether `pid` still is the process that started then.
fn same(pid: Pid, started: u64) -> bool {
    Stat::read(pid.as_raw_nonzero().get()).is_some_and(|stat| stat.started == started)
}

/// What a process's environment says about the marker's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tag {
    None,
    Same,
    Other,
}

fn tag(pid: i32, marker: &str) -> Tag {
    let mut environ = Vec::new();
    let Ok(file) = fs::File::open(format!("/proc/{pid}/environ")) else {
        return Tag::None;
    };
    if file.take(MAX_ENVIRON).read_to_end(&mut environ).is_err() {
        return Tag::None;
    }
    let marker = marker.as_bytes();
    let name = marker
        .iter()
        .position(|byte| *byte == b'=')
        .map_or(marker.len(), |at| at + 1);
    let mut values = environ
        .split(|byte| *byte == 0)
        .filter(|entry| entry.starts_with(&marker[..name]));
    match values.next() {
        Some(entry) if entry == marker => Tag::Same,
        // Without a value it says nothing.
        Some(entry) if entry.len() > name => Tag::Other,
        _ => Tag::None,
    }
}

/// The part of `/proc/<pid>/stat` that is of use here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    pub parent: i32,
    pub group: i32,
    /// In clock ticks after boot: with the number it names one process for ever.
    pub started: u64,
    /// It has ended and only waits to be reaped.
    pub dead: bool,
}

impl Stat {
    /// `None` when there is no such process.
    #[must_use]
    pub fn read(pid: i32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    fn parse(stat: &str) -> Option<Self> {
        // The second field is the program's name in parentheses, and it may hold anything.
        let (_, rest) = stat.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        Some(Self {
            dead: matches!(*fields.first()?, "Z" | "X"),
            parent: fields.get(1)?.parse().ok()?,
            group: fields.get(2)?.parse().ok()?,
            started: fields.get(19)?.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_parentheses_do_not_confuse() {
        let line = "42 (a) b (c)) S 7 42 42 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 12345 1 1";
        let stat = Stat::parse(line).unwrap();
        assert_eq!(
            (stat.parent, stat.group, stat.started, stat.dead),
            (7, 42, 12345, false)
        );
        assert_eq!(Stat::parse("42 (x"), None);
    }
}
