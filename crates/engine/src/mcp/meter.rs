//! What one server may send: how much at once, how much in all, how often.

use std::sync::Arc;

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

use super::error::HttpError;

/// Bytes that every answer may have without asking.
const FREE: usize = 256 << 10;
/// What one event costs besides its bytes.
const EVENT: f64 = 1024.0;
const UNIT: usize = 1024;

/// Memory for answers of all servers together. What is over, fails: it is better that a large answer is
/// lost than that the process is.
#[derive(Debug, Clone)]
pub(super) struct Memory(Arc<Semaphore>);

impl Memory {
    pub(super) fn new(bytes: usize) -> Self {
        Self(Arc::new(Semaphore::new(bytes / UNIT)))
    }
}

/// Watches the bytes of one answer go by.
#[derive(Debug)]
pub(super) struct Meter {
    memory: Memory,
    max: usize,
    /// Bytes since the last event ended: what a reader has to keep.
    kept: usize,
    held: Option<OwnedSemaphorePermit>,
    line: usize,
    after_cr: bool,
    /// What may still come, and what is added to it each second.
    left: f64,
    most: f64,
    per_second: f64,
    since: Instant,
}

impl Meter {
    /// For one answer to one request: it may hold `max` bytes.
    pub(super) fn answer(memory: &Memory, max: usize) -> Self {
        let most = u32::try_from(max).map_or(f64::MAX, f64::from) * 2.0 + f64::from(1 << 20);
        Self::new(memory, max, most, 0.0)
    }

    /// For a stream that stays open as long as the connection.
    pub(super) fn stream(memory: &Memory, max: usize) -> Self {
        Self::new(memory, max.min(1 << 20), f64::from(4 << 20), 16_384.0)
    }

    fn new(memory: &Memory, max: usize, most: f64, per_second: f64) -> Self {
        Self {
            memory: memory.clone(),
            max,
            kept: 0,
            held: None,
            line: 0,
            after_cr: false,
            left: most,
            most,
            per_second,
            since: Instant::now(),
        }
    }

    /// The next bytes of a body that is one whole.
    pub(super) fn body(&mut self, bytes: usize) -> Result<(), HttpError> {
        self.kept += bytes;
        self.keep()
    }

    /// The next bytes of an event stream.
    pub(super) fn events(&mut self, chunk: &[u8], now: Instant) -> Result<(), HttpError> {
        let earned = now.duration_since(self.since).as_secs_f64() * self.per_second;
        self.since = now;
        self.left = (self.left + earned).min(self.most);
        for byte in chunk {
            self.left -= 1.0;
            let after_cr = std::mem::replace(&mut self.after_cr, *byte == b'\r');
            match byte {
                b'\n' if after_cr => {}
                b'\r' | b'\n' if self.line == 0 => {
                    self.left -= EVENT;
                    self.kept = 0;
                    self.held = None;
                }
                b'\r' | b'\n' => self.line = 0,
                _ => {
                    self.line += 1;
                    self.kept += 1;
                    if self.kept > self.max {
                        return Err(HttpError::TooLarge(self.max));
                    }
                }
            }
        }
        if self.left < 0.0 {
            return Err(HttpError::Flood);
        }
        self.keep()
    }

    fn keep(&mut self) -> Result<(), HttpError> {
        if self.kept > self.max {
            return Err(HttpError::TooLarge(self.max));
        }
        let wanted = self.kept.saturating_sub(FREE).div_ceil(UNIT);
        let have = self
            .held
            .as_ref()
            .map_or(0, OwnedSemaphorePermit::num_permits);
        let more = u32::try_from(wanted.saturating_sub(have)).unwrap_or(u32::MAX);
        if more > 0 {
            let permit = Arc::clone(&self.memory.0)
                .try_acquire_many_owned(more)
                .map_err(|_| HttpError::Busy)?;
            match &mut self.held {
                Some(held) => held.merge(permit),
                None => self.held = Some(permit),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fails(meter: &mut Meter, chunk: &[u8]) -> String {
        meter.events(chunk, Instant::now()).unwrap_err().to_string()
    }

    #[test]
    fn one_event_may_be_so_large() {
        let memory = Memory::new(1 << 20);
        let mut meter = Meter::answer(&memory, 20);
        meter
            .events(b"data: 0123456789\r\n\r\n", Instant::now())
            .unwrap();
        meter
            .events(b": ping\n\n: ping\n\n: ping\n\n: ping\n\n", Instant::now())
            .unwrap();
        meter.events(b"data: 0123456789\n", Instant::now()).unwrap();
        assert_eq!(
            fails(&mut meter, b"data: 0123"),
            "its answer is larger than 20 bytes"
        );
        let mut meter = Meter::answer(&memory, 20);
        meter.body(20).unwrap();
        assert!(meter.body(1).is_err());
    }

    #[test]
    fn endless_streams_end() {
        let memory = Memory::new(1 << 20);
        for (mut meter, event) in [
            (Meter::answer(&memory, 1 << 16), &b": nothing\n\n"[..]),
            (Meter::stream(&memory, 1 << 16), b"data: {}\n\n"),
        ] {
            let failed = (0..10_000).find_map(|_| meter.events(event, Instant::now()).err());
            assert!(matches!(failed, Some(HttpError::Flood)), "{failed:?}");
        }
    }

    #[test]
    fn a_quiet_stream_may_last_for_ever() {
        let memory = Memory::new(1 << 20);
        let mut meter = Meter::stream(&memory, 1 << 16);
        let mut now = Instant::now();
        for _ in 0..100_000 {
            meter
                .events(b"data: {\"method\": \"notifications/message\"}\n\n", now)
                .unwrap();
            now += std::time::Duration::from_millis(200);
        }
    }

    #[test]
    fn all_together_have_so_much_memory() {
        let memory = Memory::new(1 << 20);
        let large = || Meter::answer(&memory, 16 << 20);
        let (mut first, mut second) = (large(), large());
        first.body(FREE + (1 << 20)).unwrap();
        assert!(matches!(second.body(FREE + 1), Err(HttpError::Busy)));
        let mut small = large();
        small.body(FREE).unwrap();
        drop(first);
        second.body(0).unwrap();
    }
}
