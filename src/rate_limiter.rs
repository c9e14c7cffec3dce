//! A rate limiter: the generic cell rate algorithm (ITU-T I.371).

use std::time::Duration;

use tokio::time::Instant;

/// A rate, and how much may happen at once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rate {
    interval: Duration,
    burst: u32,
}

impl Rate {
    /// `count` events in each `period`, and after a pause `burst` at once. Both are at least one.
    pub(crate) fn new(count: u32, period: Duration, burst: u32) -> Self {
        Self {
            interval: period / count.max(1),
            burst: burst.max(1),
        }
    }
}

/// How much of a rate is used up: the theoretical arrival time of the next event.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct RateLimiter(Option<Instant>);

impl RateLimiter {
    /// Counts an event at the time `now`.
    ///
    /// # Errors
    ///
    /// The rate is exceeded; it is not if the event comes after this time.
    pub(crate) fn try_acquire(&mut self, rate: Rate, now: Instant) -> Result<(), Duration> {
        let next = self.0.map_or(now, |next| next.max(now)) + rate.interval;
        let ahead = next - now;
        let allowed = rate.interval.saturating_mul(rate.burst);
        if ahead > allowed {
            return Err(ahead - allowed);
        }
        self.0 = Some(next);
        Ok(())
    }

    /// Counts `count` events at the time `now`, allowed or not. Returns how long there must be none until the rate is kept: 0 if it
    /// is, at most `max`, which is also as far as exceeding it is remembered.
    pub(crate) fn record(&mut self, count: u32, rate: Rate, max: Duration, now: Instant) -> Duration {
        let allowed = rate.interval.saturating_mul(rate.burst);
        let next = self.0.map_or(now, |next| next.max(now)) + rate.interval.saturating_mul(count);
        let next = next.min(now + allowed + max);
        self.0 = Some(next);
        (next - now).saturating_sub(allowed)
    }

    /// Whether nothing of the rate is used up.
    pub(crate) fn is_unused(&self, now: Instant) -> bool {
        self.0.is_none_or(|next| next <= now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_allowed_is_waited_for() {
        let rate = Rate::new(10, Duration::from_secs(1), 30);
        let max = Duration::from_secs(5);
        let start = Instant::now();
        let mut limiter = RateLimiter::default();
        let mut record = |count, seconds| {
            let now = start + Duration::from_secs(seconds);
            limiter.record(count, rate, max, now).as_millis()
        };
        assert_eq!([record(30, 0), record(1, 0), record(9, 0)], [0, 100, 1_000]);
        assert_eq!([record(0, 1), record(10, 1), record(10, 3)], [0, 1_000, 0]);
        assert_eq!([record(u32::MAX, 3), record(0, 8), record(1, 60)], [5_000, 0, 0]);
    }

    #[test]
    fn a_burst_is_allowed_and_then_the_rate() {
        let rate = Rate::new(10, Duration::from_secs(1), 30);
        let start = Instant::now();
        let mut limiter = RateLimiter::default();
        let mut count = |millis| {
            let now = start + Duration::from_millis(millis);
            (0..99).filter(|_| limiter.try_acquire(rate, now).is_ok()).count()
        };
        assert_eq!([count(0), count(500), count(60_000)], [30, 5, 30]);
        let wait = Duration::from_millis(100);
        assert_eq!(
            limiter.try_acquire(rate, start + Duration::from_secs(60)),
            Err(wait)
        );
    }
}
