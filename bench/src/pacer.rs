//! Wakes the publishers of an open loop on time. A thread of its own, because the runtime's timers round to a whole
//! millisecond, which is as long as what is measured.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::schedule::Schedule;
use super::shared::{Phase, Shared};

/// The shortest sleep: waking more often would cost more than it sharpens.
const SHORTEST: Duration = Duration::from_micros(50);
/// The longest sleep, so that a run that ends early is noticed.
const LONGEST: Duration = Duration::from_millis(50);

/// Wakes each publisher when one of its messages is due, until `end` or until the run leaves its sending phase.
pub(super) fn pace(shared: &Shared, schedule: Schedule, end: u64, alarms: &[Arc<Notify>]) {
    let mut index = 0_u64;
    while matches!(*shared.phase.borrow(), Phase::Join | Phase::Run { .. }) {
        let due = schedule.due(index);
        if due >= end {
            return;
        }
        let wait = shared.instant(due).saturating_duration_since(Instant::now());
        if !wait.is_zero() {
            thread::sleep(wait.clamp(SHORTEST, LONGEST));
            continue;
        }
        let turn = index % alarms.len().max(1) as u64;
        if let Some(alarm) = usize::try_from(turn).ok().and_then(|turn| alarms.get(turn)) {
            alarm.notify_one();
        }
        index += 1;
    }
}
