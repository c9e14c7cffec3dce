//! A rate limiter for what is recorded.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// A lock-free rate limiter: the generic cell rate algorithm (ITU-T I.371).
#[derive(Debug)]
pub(super) struct RateLimiter {
    started: Instant,
    /// The interval between two acquisitions at the limit; `None` rejects all.
    interval_nanos: Option<u64>,
    burst_nanos: u64,
    /// The theoretical arrival time of the next acquisition, in nanoseconds since `started`.
    next: AtomicU64,
}

impl RateLimiter {
    /// Allows `per_second` acquisitions, and after a pause a burst of as many as in `burst_seconds`.
    pub(super) fn new(per_second: u32, burst_seconds: u32) -> Self {
        Self {
            started: Instant::now(),
            interval_nanos: NANOS_PER_SECOND.checked_div(per_second.into()),
            burst_nanos: NANOS_PER_SECOND * u64::from(burst_seconds),
            next: AtomicU64::new(0),
        }
    }

    pub(super) fn try_acquire(&self) -> bool {
        let now = u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.try_acquire_at(now)
    }

    fn try_acquire_at(&self, now: u64) -> bool {
        let advance = |next: u64| {
            let next = next.max(now).saturating_add(self.interval_nanos?);
            (next <= now.saturating_add(self.burst_nanos)).then_some(next)
        };
        self.next
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, advance)
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_limiter_refills() {
        let limiter = RateLimiter::new(10, 1);
        assert_eq!((0..20).filter(|_| limiter.try_acquire_at(0)).count(), 10);
        let later = NANOS_PER_SECOND / 2;
        assert_eq!((0..20).filter(|_| limiter.try_acquire_at(later)).count(), 5);
        let much_later = 60 * NANOS_PER_SECOND;
        assert_eq!((0..99).filter(|_| limiter.try_acquire_at(much_later)).count(), 10);
        assert!(!RateLimiter::new(0, 1).try_acquire());
        let patient = RateLimiter::new(10, 5);
        assert_eq!((0..99).filter(|_| patient.try_acquire_at(0)).count(), 50);
    }
}
