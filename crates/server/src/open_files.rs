//! How many files this process may have open: each connection is one.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Lifts the limit as far as the system lets us. What services and shells start with, often 1024,
/// is meant for programs that still use `select`.
pub fn raise() {
    let limit = getrlimit(Resource::Nofile);
    let lifted = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if limit.current != limit.maximum
        && let Err(error) = setrlimit(Resource::Nofile, lifted)
    {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}

/// Connections of sandboxes that leave enough for everything else.
#[must_use]
pub fn spare(wanted: usize) -> usize {
    let limit = getrlimit(Resource::Nofile).current;
    let half = limit.map_or(usize::MAX, |limit| {
        usize::try_from(limit / 2).unwrap_or(usize::MAX)
    });
    if half < wanted {
        tracing::warn!(
            wanted,
            connections = half,
            "net.max_connections is more than half of the files that this process may open"
        );
    }
    wanted.min(half)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_files_for_the_rest() {
        raise();
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
        assert_eq!(spare(1), 1);
        if let Some(limit) = limit.current {
            assert_eq!(spare(usize::MAX) as u64, limit / 2);
        }
    }
}
