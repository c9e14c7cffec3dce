//! Gives memory that the server has freed back to the system.
//!
//! The allocator of glibc keeps what is freed, unless it is at the end of a heap: after thousands of connections or rooms the process
//! would stay as large as it has ever been, and look as if it had leaked. Other allocators give memory back by themselves.

use std::fs;
use std::time::{Duration, Instant};

use tokio::time::{MissedTickBehavior, interval};
use tracing::debug;

use crate::procfs::number_after;

/// How often the size of the process is looked at.
const INTERVAL: Duration = Duration::from_secs(10);

/// By how much the process must have grown, in bytes. Giving back takes milliseconds, in which no thread can allocate from the same heap.
const MIN_GROWTH: u64 = 32 << 20;

/// A process that gives back less than this, in bytes, uses what it has.
const MIN_RELEASED: u64 = MIN_GROWTH / 4;

/// How many times it may then not be tried again.
const MAX_PAUSE: u32 = 5;

/// Gives free memory back as long as the process is larger than it was. Never completes; can be dropped at any time.
pub(super) async fn keep_releasing() {
    let mut interval = interval(INTERVAL);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut growth = Growth::new();
    loop {
        interval.tick().await;
        // It reads files and holds locks of the allocator. It cannot panic, and a server without it works, too.
        if let Ok(next) = tokio::task::spawn_blocking(move || release_if_grown(growth)).await {
            growth = next;
        }
    }
}

/// How large the process was.
#[derive(Debug, Clone, Copy)]
struct Growth {
    /// When it was smallest, in bytes.
    least: u64,
    /// When it was looked at last, in bytes.
    last: u64,
    /// How many times nothing was given back since it was last tried in vain, and how many times it shall not be.
    pauses: u32,
    max_pauses: u32,
}

impl Growth {
    const fn new() -> Self {
        Self {
            least: u64::MAX,
            last: 0,
            pauses: 0,
            max_pauses: 0,
        }
    }

    /// Notes that the process takes `resident` bytes. Returns whether to try to give some back: it has grown, and does not grow any more.
    fn is_due(&mut self, resident: u64) -> bool {
        let is_larger = resident > self.last;
        self.least = self.least.min(resident);
        self.last = resident;
        if is_larger || resident - self.least < MIN_GROWTH {
            return false;
        }
        self.pauses += 1;
        self.pauses > self.max_pauses
    }

    /// Notes that it was tried, after which the process takes `resident` bytes.
    fn tried(&mut self, resident: u64) {
        let is_in_vain = self.last.saturating_sub(resident) < MIN_RELEASED;
        self.max_pauses = if is_in_vain {
            (2 * self.max_pauses + 1).min(MAX_PAUSE)
        } else {
            0
        };
        self.pauses = 0;
        self.last = resident;
    }
}

fn release_if_grown(mut growth: Growth) -> Growth {
    let Some(before) = resident_bytes() else {
        return growth;
    };
    if growth.is_due(before) {
        let started = Instant::now();
        release();
        let took = started.elapsed();
        let after = resident_bytes().unwrap_or(before);
        debug!(
            event = "memory_released",
            before,
            after,
            ?took,
            "free memory given back to the system"
        );
        growth.tried(after);
    }
    growth
}

/// The memory of this process, in bytes. `None` if the system does not tell.
fn resident_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    number_after::<u64>(&status, "VmRSS:").map(|kibibytes| kibibytes * 1024)
}

#[expect(unsafe_code, reason = "there is no other way to ask glibc for it")]
fn release() {
    // SAFETY: `malloc_trim` has no precondition, and locks what it changes. It touches no memory that is in use.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn memory_is_given_back_once_a_process_that_has_grown_does_not_grow_any_more() {
        let mut growth = Growth::new();
        // The first of these sizes at which it is given back.
        let mut first = |sizes: &[u64]| sizes.iter().copied().find(|size| growth.is_due(size * MIB));
        assert_eq!(first(&[20, 51, 51, 60, 90, 89, 88]), Some(89));
        growth.tried(40 * MIB);
        let mut first = |sizes: &[u64]| sizes.iter().copied().find(|size| growth.is_due(size * MIB));
        assert_eq!(first(&[51, 51, 19, 50, 50, 52, 51]), Some(51));
    }

    #[test]
    fn a_process_that_uses_what_it_has_tries_again_more_and_more_rarely() {
        let mut growth = Growth::new();
        growth.is_due(20 * MIB);
        growth.is_due(600 * MIB);
        let mut due = Vec::new();
        for tick in 0..30 {
            if growth.is_due(600 * MIB) {
                due.push(tick);
                growth.tried(599 * MIB);
                growth.is_due(600 * MIB);
            }
        }
        assert_eq!(due, [0, 2, 6, 12, 18, 24]);
        // Most of it is free now.
        growth.tried(50 * MIB);
        assert!(!growth.is_due(60 * MIB) && growth.is_due(60 * MIB));
    }

    #[test]
    fn what_is_free_between_what_is_in_use_is_given_back() {
        // Each block is small enough to come from a heap, and each heap ends with one that is in use.
        let mut blocks: Vec<_> = (0..100_000).map(|_| vec![1_u8; 1_024]).collect();
        let mut used = 0;
        blocks.retain(|_| {
            used += 1;
            used % 100 == 0
        });
        let before = resident_bytes().unwrap();
        release();
        let after = resident_bytes().unwrap();
        assert!(before.saturating_sub(after) > 30 << 20, "{before} {after}");
        assert_eq!(blocks.len(), 1_000);
    }
}
