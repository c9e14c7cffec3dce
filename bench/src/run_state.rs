//! The state that the threads of a run share: its phase and its counters.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use tokio::sync::watch;

use super::error::BenchError;

/// The phase of a run. Times are in nanoseconds since the run's origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Connect and join.
    Join,
    /// Send from `start` on. Messages sent in `begin..end` are measured.
    Run { start: u64, begin: u64, end: u64 },
    /// Send nothing new, and receive what is in flight.
    Drain { start: u64, begin: u64, end: u64 },
    /// Leave and disconnect.
    Leave,
}

/// Counters that only increase. Each thread updates them once per read, not per message.
#[derive(Debug, Default)]
pub(super) struct Counters {
    /// Clients that have joined.
    pub(super) joined: AtomicU64,
    /// When the latest client joined.
    pub(super) last_join_at: AtomicU64,
    /// All received events, including JOIN and LEAVE.
    pub(super) events: AtomicU64,
    /// First deliveries of messages of this run.
    pub(super) delivered: AtomicU64,
    /// First deliveries within the measured time.
    pub(super) measured: AtomicU64,
    /// When the latest first delivery arrived.
    pub(super) last_delivery_at: AtomicU64,
    /// Publishers that have stopped sending.
    pub(super) finished: AtomicU64,
    /// Clients whose connection or stream ended before they left.
    pub(super) disconnects: AtomicU64,
}

/// The state that the threads of a run share.
#[derive(Debug)]
pub(super) struct RunState {
    /// The origin of all times of the run.
    origin: Instant,
    /// Distinguishes the messages of this run from others.
    pub(super) run_id: u16,
    pub(super) phase: watch::Sender<Phase>,
    pub(super) counters: Counters,
    /// The number of messages sent, by publisher.
    pub(super) sent: Vec<AtomicU32>,
    /// The error that ends the run.
    failure: Mutex<Option<BenchError>>,
    /// Why the first failed stream ended.
    first_disconnect: Mutex<Option<String>>,
}

impl RunState {
    pub(super) fn new(run_id: u16, publishers: u32) -> Self {
        Self {
            origin: Instant::now(),
            run_id,
            phase: watch::Sender::new(Phase::Join),
            counters: Counters::default(),
            sent: (0..publishers).map(|_| AtomicU32::new(0)).collect(),
            failure: Mutex::new(None),
            first_disconnect: Mutex::new(None),
        }
    }

    /// Nanoseconds since the run's origin.
    #[inline]
    pub(super) fn now(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Converts nanoseconds since the run's origin to an instant.
    pub(super) fn instant(&self, nanoseconds: u64) -> Instant {
        self.origin + std::time::Duration::from_nanos(nanoseconds)
    }

    /// Sets the error that ends the run. Only the first one is kept.
    pub(super) fn fail(&self, error: BenchError) {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.get_or_insert(error);
    }

    /// The error that ends the run.
    pub(super) fn failure(&self) -> Option<BenchError> {
        self.failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Records why a stream failed. Only the first reason is kept.
    pub(super) fn record_disconnect(&self, why: &str) {
        let mut first = self
            .first_disconnect
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert_with(|| why.to_owned());
    }

    /// Why the first failed stream ended.
    pub(super) fn first_disconnect(&self) -> Option<String> {
        self.first_disconnect
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The number of messages that a publisher has sent.
    pub(super) fn sent_by(&self, publisher: usize) -> u32 {
        self.sent
            .get(publisher)
            .map_or(0, |sent| sent.load(Ordering::Relaxed))
    }

    /// The number of deliveries that the messages sent so far require, with `listeners(room)` clients in a room.
    pub(super) fn expected(&self, rooms: usize, listeners: impl Fn(usize) -> u64) -> u64 {
        (0..self.sent.len())
            .map(|publisher| u64::from(self.sent_by(publisher)) * listeners(publisher % rooms))
            .sum()
    }
}

/// Relaxed operations: these counters do not synchronize anything.
pub(super) trait Counter {
    fn add(&self, more: u64);
    fn get(&self) -> u64;
    fn raise_to(&self, to: u64);
}

impl Counter for AtomicU64 {
    fn add(&self, more: u64) {
        self.fetch_add(more, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.load(Ordering::Relaxed)
    }

    fn raise_to(&self, to: u64) {
        self.fetch_max(to, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_failure_is_kept() {
        let shared = RunState::new(1, 1);
        shared.fail(BenchError::Io("first".into()));
        shared.fail(BenchError::Io("second".into()));
        assert_eq!(shared.failure(), Some(BenchError::Io("first".into())));
    }

    #[test]
    fn expected_deliveries_are_counted_per_room() {
        let shared = RunState::new(1, 3);
        for (sent, count) in shared.sent.iter().zip([10, 20, 30]) {
            sent.store(count, Ordering::Relaxed);
        }
        assert_eq!(shared.expected(1, |_| 5), 300);
        assert_eq!(
            shared.expected(2, |room| if room == 0 { 4 } else { 7 }),
            40 * 4 + 20 * 7
        );
    }
}
