//! What could not be exported.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use tracing::{info, warn};

/// A collector that goes away is worth a line, and another one when it is back; one that comes and goes all the time no more
/// than one in this time.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// One kind of telemetry on its way out: how much of it waits, how much was lost.
#[derive(Debug)]
pub(super) struct Ledger {
    signal: &'static str,
    /// How many records may wait.
    capacity: usize,
    waiting: AtomicUsize,
    lost: AtomicU64,
    /// Whether it was told that records are lost, and none has got through since.
    is_away: AtomicBool,
    told_at: Mutex<Option<Instant>>,
}

impl Ledger {
    pub(super) const fn new(signal: &'static str, capacity: usize) -> Self {
        Self {
            signal,
            capacity,
            waiting: AtomicUsize::new(0),
            lost: AtomicU64::new(0),
            is_away: AtomicBool::new(false),
            told_at: Mutex::new(None),
        }
    }

    /// How many records were lost.
    pub(super) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Whether so many more may wait now; if not, they are lost. It is for the caller not to make them then.
    pub(super) fn has_room(&self, records: usize) -> bool {
        let has_room = self.waiting.load(Ordering::Relaxed) + records <= self.capacity;
        if !has_room {
            self.lose(records, "the queue is full");
        }
        has_room
    }

    /// Whether one more may wait; if so it does, if not it is lost.
    pub(super) fn admit(&self) -> bool {
        if self.waiting.fetch_add(1, Ordering::AcqRel) < self.capacity {
            return true;
        }
        self.waiting.fetch_sub(1, Ordering::AcqRel);
        self.lose(1, "the queue is full");
        false
    }

    /// So many wait no longer: they were exported, or lost for this reason.
    pub(super) fn settle(&self, records: usize, failure: Option<&str>) {
        // After the end none is counted as waiting, though the last ones may still be under way.
        let rest = |waiting: usize| Some(waiting.saturating_sub(records));
        self.waiting
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, rest)
            .ok();
        match failure {
            Some(reason) => self.lose(records, reason),
            None if self.is_away.load(Ordering::Relaxed) => self.come_back(),
            None => {}
        }
    }

    /// Nothing is exported any more: what waits is lost.
    pub(super) fn close(&self, reason: &str) {
        let waiting = self.waiting.swap(0, Ordering::AcqRel);
        if waiting > 0 {
            self.lose(waiting, reason);
        }
    }

    fn lose(&self, records: usize, reason: &str) {
        let total = self.lost.fetch_add(records as u64, Ordering::Relaxed) + records as u64;
        if self.is_away.load(Ordering::Relaxed) {
            return;
        }
        // Whoever finds it taken need not tell: another does.
        let mut told_at = match self.told_at.try_lock() {
            Ok(told_at) => told_at,
            Err(TryLockError::Poisoned(poisoned)) => PoisonError::into_inner(poisoned),
            Err(TryLockError::WouldBlock) => return,
        };
        let now = Instant::now();
        if told_at.is_some_and(|at| now.saturating_duration_since(at) < TELL_EVERY) {
            return;
        }
        *told_at = Some(now);
        self.is_away.store(true, Ordering::Relaxed);
        drop(told_at);
        let signal = self.signal;
        warn!(
            event = "telemetry_lost",
            signal,
            total,
            reason,
            "telemetry cannot be exported and is lost; the next line about it comes when it can"
        );
    }

    fn come_back(&self) {
        if self.is_away.swap(false, Ordering::Relaxed) {
            let (signal, total) = (self.signal, self.lost());
            info!(
                event = "telemetry_exported",
                signal, total, "telemetry is exported again"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_finds_no_room_or_fails_is_lost_and_nothing_else() {
        let ledger = Ledger::new("traces", 2);
        assert!(ledger.admit() && ledger.admit());
        assert!(!ledger.admit());
        assert_eq!(ledger.lost(), 1);
        ledger.settle(1, None);
        assert!(ledger.has_room(1));
        assert!(!ledger.has_room(2));
        assert_eq!(ledger.lost(), 3);
        assert!(ledger.admit());
        ledger.settle(1, Some("away"));
        ledger.close("ended");
        assert_eq!(ledger.lost(), 5);
    }
}
