//! The sending times of an open loop.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::run_state::{Phase, RunState};

/// A fixed total rate, distributed over the publishers round-robin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Schedule {
    /// Messages per second of all publishers together; at least 1.
    rate: u64,
    publishers: u64,
    /// When the first message is due, in nanoseconds since the run's origin.
    start: u64,
}

const SECOND: u128 = 1_000_000_000;

impl Schedule {
    /// Creates a schedule that begins at `start`. Zero for `rate` or `publishers` counts as 1.
    pub(super) fn new(rate: u64, publishers: u64, start: u64) -> Self {
        Self {
            rate: rate.max(1),
            publishers: publishers.max(1),
            start,
        }
    }

    /// When the `index`-th message of all publishers is due. Computed from the start each time, so that rounding errors
    /// do not accumulate.
    pub(super) fn due(&self, index: u64) -> u64 {
        let after = u128::from(index) * SECOND / u128::from(self.rate);
        self.start
            .saturating_add(u64::try_from(after).unwrap_or(u64::MAX))
    }

    /// When the `number`-th message of one publisher is due.
    pub(super) fn due_of(&self, publisher: u64, number: u64) -> u64 {
        self.due(number.saturating_mul(self.publishers).saturating_add(publisher))
    }
}

/// The shortest sleep. Waking up more often costs more than it improves the accuracy.
const SHORTEST_SLEEP: Duration = Duration::from_micros(50);
/// The longest sleep, so that the end of a run is noticed.
const LONGEST_SLEEP: Duration = Duration::from_millis(50);

/// Wakes each publisher when one of its messages is due, until `end` or until the sending phase is over.
///
/// This runs on its own thread, because the timers of the runtime have a resolution of a millisecond, which is as long
/// as the latencies that are measured.
pub(super) fn pace(shared: &RunState, schedule: Schedule, end: u64, wakeups: &[Arc<Notify>]) {
    let mut index = 0_u64;
    while matches!(*shared.phase.borrow(), Phase::Join | Phase::Run { .. }) {
        let due = schedule.due(index);
        if due >= end {
            return;
        }
        let wait = shared.instant(due).saturating_duration_since(Instant::now());
        if !wait.is_zero() {
            thread::sleep(wait.clamp(SHORTEST_SLEEP, LONGEST_SLEEP));
            continue;
        }
        let turn = index % wakeups.len().max(1) as u64;
        if let Some(wakeup) = usize::try_from(turn).ok().and_then(|turn| wakeups.get(turn)) {
            wakeup.notify_one();
        }
        index += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn publishers_take_turns_at_the_total_rate() {
        let schedule = Schedule::new(200, 4, 1_000);
        assert_eq!(schedule.due(0), 1_000);
        assert_eq!(schedule.due(1), 5_001_000);
        assert_eq!(schedule.due_of(0, 0), 1_000);
        assert_eq!(schedule.due_of(3, 0), 15_001_000);
        assert_eq!(schedule.due_of(0, 1), 20_001_000);
    }

    #[test]
    fn rounding_errors_do_not_accumulate() {
        let schedule = Schedule::new(3, 1, 0);
        assert_eq!(schedule.due(1), 333_333_333);
        assert_eq!(schedule.due(3), 1_000_000_000);
        assert_eq!(schedule.due(3_000_000), 1_000_000_000_000_000);
    }

    #[test]
    fn extremes_saturate() {
        assert_eq!(Schedule::new(0, 0, 0).due(u64::MAX), u64::MAX);
    }
}
