//! How long to wait before asking again. Pure: the attempt is in the caller's saved state, the
//! randomness is the caller's.

use std::time::Duration;

/// The rule. The defaults suit an interactive session: six attempts over about half a minute.
#[derive(Debug, Clone, PartialEq)]
pub struct Backoff {
    /// Before the second attempt; doubles with each further one.
    pub base: Duration,
    /// Where the doubling ends.
    pub cap: Duration,
    /// Most of a `retry-after` that is honoured.
    pub retry_after_cap: Duration,
    /// Attempts in all, the first included.
    pub max_attempts: u32,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            base: Duration::from_millis(500),
            cap: Duration::from_secs(30),
            retry_after_cap: Duration::from_secs(300),
            max_attempts: 6,
        }
    }
}

impl Backoff {
    /// The wait after the `failed`-th attempt (from 1); `None` when there shall be no further one.
    ///
    /// `random` is in `[0, 1)` and spreads the wait over the upper half of its step, so that sessions
    /// that failed together do not come back together. A `retry_after` is a lower bound: the spread is
    /// added to it, too.
    #[must_use]
    pub fn wait(
        &self,
        failed: u32,
        retry_after: Option<Duration>,
        random: f64,
    ) -> Option<Duration> {
        if failed >= self.max_attempts {
            return None;
        }
        let doublings = failed.saturating_sub(1).min(31);
        let step = self.base.saturating_mul(1 << doublings).min(self.cap);
        let random = if random.is_finite() {
            random.clamp(0.0, 1.0)
        } else {
            0.0
        };
        let spread = (step / 2).mul_f64(random);
        let own = step / 2 + spread;
        Some(match retry_after {
            None => own,
            Some(asked) => own.max(asked.min(self.retry_after_cap) + spread),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits() {
        let ms = Duration::from_millis;
        let s = Duration::from_secs;
        let backoff = Backoff {
            max_attempts: 100,
            ..Backoff::default()
        };
        for (failed, retry_after, random, wait) in [
            (1, None, 0.0, ms(250)),
            (1, None, 0.5, ms(375)),
            (1, None, 1.0, ms(500)),
            (0, None, 1.0, ms(500)),
            (2, None, 1.0, s(1)),
            (3, None, 1.0, s(2)),
            (4, None, 1.0, s(4)),
            (5, None, 1.0, s(8)),
            (6, None, 1.0, s(16)),
            (7, None, 1.0, s(30)),
            (7, None, 0.0, s(15)),
            (99, None, 1.0, s(30)),
            (1, Some(s(0)), 0.0, ms(250)),
            (1, Some(s(3)), 0.0, s(3)),
            (1, Some(s(3)), 1.0, ms(3250)),
            (7, Some(s(3)), 0.0, s(15)),
            (1, Some(s(299)), 0.0, s(299)),
            (1, Some(s(86_400)), 0.0, s(300)),
            (1, Some(Duration::MAX), 0.0, s(300)),
            (1, None, f64::NAN, ms(250)),
            (1, None, -4.0, ms(250)),
            (1, None, 9.0, ms(500)),
        ] {
            assert_eq!(
                backoff.wait(failed, retry_after, random),
                Some(wait),
                "{failed} {retry_after:?} {random}"
            );
        }
    }

    #[test]
    fn attempts_end() {
        let backoff = Backoff::default();
        assert!(backoff.wait(5, None, 0.0).is_some());
        assert_eq!(backoff.wait(6, None, 0.0), None);
        assert_eq!(backoff.wait(u32::MAX, Some(Duration::ZERO), 0.0), None);
    }
}
