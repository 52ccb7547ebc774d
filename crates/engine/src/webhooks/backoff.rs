//! How long to wait between attempts.

use std::time::Duration;

/// Each further pause is longer by this.
const GROWTH: f64 = 5.0;

/// Pauses between the attempts of one delivery.
#[derive(Debug, Clone, Copy)]
pub struct WebhookBackoff {
    pub shortest: Duration,
    pub longest: Duration,
}

impl WebhookBackoff {
    /// The pause after that many attempts: some time between one step of the ladder and the next, so that
    /// what failed together does not come back together.
    pub(super) fn pause(&self, tries: u32) -> Duration {
        self.at(tries, rand::random())
    }

    fn at(&self, tries: u32, share: f64) -> Duration {
        let step = |steps: u32| {
            let steps = i32::try_from(steps).unwrap_or(i32::MAX).min(64);
            let seconds = self.shortest.as_secs_f64() * GROWTH.powi(steps);
            seconds.min(self.longest.as_secs_f64().max(self.shortest.as_secs_f64()))
        };
        let (from, to) = (step(tries.saturating_sub(1)), step(tries));
        Duration::from_secs_f64(from + (to - from) * share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_keep_within_their_bounds() {
        let backoff = WebhookBackoff {
            shortest: Duration::from_secs(5),
            longest: Duration::from_secs(120),
        };
        let between = |tries| {
            (
                backoff.at(tries, 0.0).as_secs(),
                backoff.at(tries, 1.0).as_secs(),
            )
        };
        assert_eq!(between(1), (5, 25));
        assert_eq!(between(2), (25, 120));
        assert_eq!(between(3), (120, 120));
        assert_eq!(between(u32::MAX), (120, 120));
        for tries in 1..10 {
            let pause = backoff.pause(tries);
            assert!(pause >= backoff.shortest && pause <= backoff.longest);
        }
        let none = WebhookBackoff {
            shortest: Duration::ZERO,
            longest: Duration::ZERO,
        };
        assert_eq!(none.pause(2), Duration::ZERO);
    }
}
