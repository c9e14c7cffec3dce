//! What the threads of a run share: the phase they are in, and what they have counted.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use tokio::sync::watch;

use super::error::BenchError;

/// What the clients are to do. Times are nanoseconds since the run's origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Connect and join.
    Join,
    /// Send, from `start` on. What is sent from `begin` up to `end` counts.
    Run { start: u64, begin: u64, end: u64 },
    /// Send nothing new; receive what is under way.
    Drain { start: u64, begin: u64, end: u64 },
    /// Say goodbye.
    Leave,
}

/// Counters that only grow. Each thread adds to them once a read, not once a message.
#[derive(Debug, Default)]
pub(super) struct Counters {
    /// Clients that take part.
    pub(super) joined: AtomicU64,
    /// When the latest of them joined.
    pub(super) joined_at: AtomicU64,
    /// Everything that was received, announcements included.
    pub(super) events: AtomicU64,
    /// Messages of this run that a client received for the first time.
    pub(super) fresh: AtomicU64,
    /// Those of them that arrived within the measured time.
    pub(super) measured: AtomicU64,
    /// When the latest of them arrived.
    pub(super) fresh_at: AtomicU64,
    /// Publishers that will send nothing any more.
    pub(super) finished: AtomicU64,
    /// Clients whose connection or stream ended before they left.
    pub(super) cut: AtomicU64,
    /// Connections that have said goodbye.
    pub(super) closed: AtomicU64,
}

/// What the threads of a run share.
#[derive(Debug)]
pub(super) struct Shared {
    /// What times are counted from.
    origin: Instant,
    /// Tells this run's texts from others'.
    pub(super) run: u16,
    pub(super) phase: watch::Sender<Phase>,
    pub(super) counters: Counters,
    /// How many messages each publisher has sent.
    pub(super) sent: Vec<AtomicU32>,
    /// Why the run cannot go on.
    failure: Mutex<Option<BenchError>>,
    /// Why the first stream ended that ended too early.
    first_cut: Mutex<Option<String>>,
}

impl Shared {
    pub(super) fn new(run: u16, publishers: u32) -> Self {
        Self {
            origin: Instant::now(),
            run,
            phase: watch::Sender::new(Phase::Join),
            counters: Counters::default(),
            sent: (0..publishers).map(|_| AtomicU32::new(0)).collect(),
            failure: Mutex::new(None),
            first_cut: Mutex::new(None),
        }
    }

    /// Nanoseconds since the run's origin.
    #[inline]
    pub(super) fn now(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// When a time since the run's origin is.
    pub(super) fn instant(&self, nanoseconds: u64) -> Instant {
        self.origin + std::time::Duration::from_nanos(nanoseconds)
    }

    /// Notes why the run cannot go on; the first reason is the one that is told.
    pub(super) fn fail(&self, error: BenchError) {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.get_or_insert(error);
    }

    /// Why the run cannot go on.
    pub(super) fn failure(&self) -> Option<BenchError> {
        self.failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Notes why a stream ended too early; the first reason is kept.
    pub(super) fn cut(&self, why: &str) {
        let mut first = self.first_cut.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert_with(|| why.to_owned());
    }

    /// Why the first stream ended that ended too early.
    pub(super) fn first_cut(&self) -> Option<String> {
        self.first_cut
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// How many messages a publisher has sent.
    pub(super) fn sent_by(&self, publisher: usize) -> u32 {
        self.sent
            .get(publisher)
            .map_or(0, |sent| sent.load(Ordering::Relaxed))
    }

    /// How many deliveries the messages sent so far make, when a room's message goes to `listeners(room)` clients.
    pub(super) fn expected(&self, rooms: usize, listeners: impl Fn(usize) -> u64) -> u64 {
        (0..self.sent.len())
            .map(|publisher| u64::from(self.sent_by(publisher)) * listeners(publisher % rooms))
            .sum()
    }
}

/// Shorthand: these counters order nothing, they are only added up.
pub(super) trait Tally {
    fn add(&self, more: u64);
    fn get(&self) -> u64;
    fn raise(&self, to: u64);
}

impl Tally for AtomicU64 {
    fn add(&self, more: u64) {
        self.fetch_add(more, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.load(Ordering::Relaxed)
    }

    fn raise(&self, to: u64) {
        self.fetch_max(to, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_failure_is_told() {
        let shared = Shared::new(1, 1);
        shared.fail(BenchError::Io("first".into()));
        shared.fail(BenchError::Io("second".into()));
        assert_eq!(shared.failure(), Some(BenchError::Io("first".into())));
    }

    #[test]
    fn expected_deliveries_follow_the_rooms() {
        let shared = Shared::new(1, 3);
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
