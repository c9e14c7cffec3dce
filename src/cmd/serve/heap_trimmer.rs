//! Gives memory that the server has freed back to the system.
//!
//! The allocator of glibc keeps what is freed, unless it is at the end of a heap: after thousands of connections or rooms the process
//! would stay as large as it has ever been, and look as if it had leaked. Other allocators give memory back by themselves.

use std::time::{Duration, Instant};

use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval};
use tracing::debug;

use crate::procfs::resident_memory;

/// How often to check whether a trim is due.
const INTERVAL: Duration = Duration::from_secs(10);

/// By how much the process must have grown, in bytes. A trim takes up to tens of milliseconds, in which no thread can allocate from the heap
/// that is being trimmed.
const MIN_GROWTH: u64 = 32 << 20;

/// A trim that gives back less than this, in bytes, increases the back-off.
const MIN_TRIMMED: u64 = MIN_GROWTH / 4;

/// How many trims that are due are skipped at most before the next one.
const MAX_BACKOFF: u32 = 5;

/// Trims the heap whenever that is due. Never completes; can be dropped at any time.
pub(super) async fn trim_periodically() {
    let mut interval = interval(INTERVAL);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut schedule = TrimSchedule::new();
    loop {
        interval.tick().await;
        let Some(before) = resident_memory().filter(|resident| schedule.is_due(*resident)) else {
            continue;
        };
        let started = Instant::now();
        // It holds locks of the allocator. It cannot panic, and a server without it works, too.
        spawn_blocking(trim_heap).await.ok();
        let took = started.elapsed();
        let after = resident_memory().unwrap_or(before);
        schedule.on_trimmed(after);
        debug!(event = "heap_trimmed", before, after, ?took, "heap trimmed");
    }
}

/// When to trim: as long as the process is larger than it was when it was smallest, but not while it grows. Trims that give little back become
/// rarer. Sizes are in bytes.
#[derive(Debug)]
struct TrimSchedule {
    min_resident: u64,
    last_resident: u64,
    /// How many trims were skipped since the last one.
    skipped: u32,
    /// How many to skip.
    backoff: u32,
}

impl TrimSchedule {
    const fn new() -> Self {
        Self {
            min_resident: u64::MAX,
            last_resident: 0,
            skipped: 0,
            backoff: 0,
        }
    }

    /// Returns whether to trim the heap of a process that takes `resident` bytes.
    fn is_due(&mut self, resident: u64) -> bool {
        let is_growing = resident > self.last_resident;
        self.min_resident = self.min_resident.min(resident);
        self.last_resident = resident;
        if is_growing || resident - self.min_resident < MIN_GROWTH {
            return false;
        }
        let is_due = self.skipped == self.backoff;
        self.skipped += u32::from(!is_due);
        is_due
    }

    /// The heap was trimmed. The process takes `resident` bytes now.
    fn on_trimmed(&mut self, resident: u64) {
        let is_in_use = self.last_resident.saturating_sub(resident) < MIN_TRIMMED;
        self.backoff = if is_in_use {
            (2 * self.backoff + 1).min(MAX_BACKOFF)
        } else {
            0
        };
        self.skipped = 0;
        self.last_resident = resident;
    }
}

#[expect(unsafe_code, reason = "there is no other way to ask glibc for it")]
fn trim_heap() {
    // SAFETY: `malloc_trim` has no precondition, and locks what it changes. It touches no memory that is in use.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// The first of these sizes at which a trim is due.
    fn first_due(schedule: &mut TrimSchedule, sizes: &[u64]) -> Option<u64> {
        sizes.iter().copied().find(|size| schedule.is_due(size * MIB))
    }

    #[test]
    fn a_trim_is_due_once_a_process_that_has_grown_does_not_grow_any_more() {
        let mut schedule = TrimSchedule::new();
        assert_eq!(first_due(&mut schedule, &[20, 51, 51, 60, 90, 89, 88]), Some(89));
        schedule.on_trimmed(40 * MIB);
        assert_eq!(first_due(&mut schedule, &[51, 51, 19, 50, 50, 52, 51]), Some(51));
    }

    #[test]
    fn trims_of_memory_that_is_in_use_become_rarer() {
        let mut schedule = TrimSchedule::new();
        schedule.is_due(20 * MIB);
        schedule.is_due(600 * MIB);
        let mut due = Vec::new();
        for tick in 0..30 {
            if schedule.is_due(600 * MIB) {
                due.push(tick);
                schedule.on_trimmed(599 * MIB);
                schedule.is_due(600 * MIB);
            }
        }
        assert_eq!(due, [0, 2, 6, 12, 18, 24]);
        // Most of it is free now.
        schedule.on_trimmed(50 * MIB);
        assert!(!schedule.is_due(60 * MIB) && schedule.is_due(60 * MIB));
    }

    #[test]
    fn free_memory_between_what_is_in_use_is_given_back() {
        // Each block is small enough to come from a heap, and each heap ends with one that is in use.
        let mut blocks: Vec<_> = (0..100_000).map(|_| vec![1_u8; 1_024]).collect();
        let mut used = 0;
        blocks.retain(|_| {
            used += 1;
            used % 100 == 0
        });
        let before = resident_memory().unwrap();
        trim_heap();
        let after = resident_memory().unwrap();
        assert!(before.saturating_sub(after) > 30 << 20, "{before} {after}");
        assert_eq!(blocks.len(), 1_000);
    }
}
