//! Exponential backoff.

use std::time::Duration;

use rand::Rng;
use tokio::time::Instant;

/// The longest delay that a server can ask for. A longer one is a mistake, or meant to keep clients away.
const MAX_REQUESTED_DELAY: Duration = Duration::from_secs(60 * 60);

/// The delay that the server asks for with `delay`: at most an hour, and none if it is negative.
pub(super) fn parse_retry_delay(delay: prost_types::Duration) -> Duration {
    let seconds = u64::try_from(delay.seconds).unwrap_or(0);
    let nanos = u32::try_from(delay.nanos).unwrap_or(0);
    clamp_retry_delay(Duration::new(seconds, nanos))
}

/// Limits a delay that the server asks for.
pub(super) fn clamp_retry_delay(delay: Duration) -> Duration {
    delay.min(MAX_REQUESTED_DELAY)
}

/// The upper limit of the delay if the server asks for a shorter one. If it asks again and again, attempts must not become a tight loop.
const MIN_DELAY_LIMIT: Duration = Duration::from_secs(1);

/// When to retry after the connection is lost or the server is unavailable: exponential backoff with full jitter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryPolicy {
    /// The maximum delay before the first attempt. It doubles with each attempt; the actual delay is chosen uniformly
    /// between zero and the maximum. Default: 100 ms.
    pub base_delay: Duration,
    /// Upper limit for the maximum delay. A connection that has lasted this long also resets the backoff. A longer delay
    /// that the server asks for, of at most an hour, takes precedence; a shorter one takes its place as the limit, but not below 1 s,
    /// because the server knows when it may be available again. Default: 5 s.
    pub max_delay: Duration,
    /// How long to keep trying after the connection was lost. An attempt that has started by then is completed. Zero
    /// disables retries. Default: 2 min.
    pub patience: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            base_delay: Duration::from_millis(100),
            max_delay: Duration::from_secs(5),
            patience: Duration::from_secs(120),
        }
    }
}

/// The progress of a [`RetryPolicy`]. Its jitter prevents the clients of a restarted server from reconnecting all at once.
#[derive(Debug)]
pub(crate) struct Backoff {
    policy: RetryPolicy,
    attempt: u32,
    /// When the connection was lost.
    lost_at: Option<Instant>,
    /// When the current connection was established.
    connected_at: Option<Instant>,
}

/// An attempt to reconnect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Attempt {
    /// 1 for the first attempt.
    pub(crate) number: u32,
    pub(crate) delay: Duration,
}

impl Backoff {
    pub(crate) const fn new(policy: RetryPolicy) -> Self {
        Self {
            policy,
            attempt: 0,
            lost_at: None,
            connected_at: None,
        }
    }

    /// Returns the next attempt, delayed by at least `min_delay`; `None` if the policy permits no further attempt.
    pub(crate) fn next(
        &mut self,
        now: Instant,
        min_delay: Option<Duration>,
        rng: &mut impl Rng,
    ) -> Option<Attempt> {
        let lasted = self.connected_at.take().map(|connected_at| now - connected_at);
        if lasted.is_some_and(|lasted| lasted >= self.policy.max_delay) {
            self.reset();
        }
        let lost_at = *self.lost_at.get_or_insert(now);
        let remaining = self.policy.patience.saturating_sub(now - lost_at);
        let limit = min_delay.map_or(Duration::MAX, |asked| asked.max(MIN_DELAY_LIMIT));
        let min_delay = min_delay.unwrap_or_default();
        if remaining.is_zero() || min_delay > remaining {
            return None;
        }
        let max_delay = self
            .policy
            .base_delay
            .saturating_mul(2_u32.saturating_pow(self.attempt))
            .min(self.policy.max_delay)
            .min(limit);
        self.attempt = self.attempt.saturating_add(1);
        let jitter = max_delay.mul_f64(rng.random::<f64>()).min(remaining);
        Some(Attempt {
            number: self.attempt,
            delay: jitter.max(min_delay),
        })
    }

    /// Records that an attempt succeeded at `now`. Unless [`reset`](Self::reset) is called or the connection lasts for
    /// [`RetryPolicy::max_delay`], the backoff continues when the connection is lost again.
    pub(crate) const fn connected(&mut self, now: Instant) {
        self.connected_at = Some(now);
    }

    /// Records that the connection has made progress: its loss starts a new backoff.
    pub(crate) const fn reset(&mut self) {
        self.attempt = 0;
        self.lost_at = None;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::SeedableRng as _;
    use rand::rngs::StdRng;

    use super::*;

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn delays_are_spread_over_their_whole_range() {
        let mut rng = StdRng::seed_from_u64(7);
        let delays: Vec<Duration> = (0..1000)
            .map(|_| {
                let mut backoff = Backoff::new(RetryPolicy::default());
                let now = Instant::now();
                backoff.next(now, None, &mut rng).unwrap();
                backoff.next(now, None, &mut rng).unwrap().delay
            })
            .collect();
        assert!(delays.iter().any(|delay| *delay < millis(10)));
        assert!(delays.iter().any(|delay| *delay > millis(190)));
        assert!(delays.iter().all(|delay| *delay <= millis(200)));
    }

    #[test]
    fn no_attempt_is_made_after_the_patience() {
        let mut rng = StdRng::seed_from_u64(7);
        let mut backoff = Backoff::new(RetryPolicy {
            patience: Duration::ZERO,
            ..RetryPolicy::default()
        });
        assert_eq!(backoff.next(Instant::now(), None, &mut rng), None);
        let mut backoff = Backoff::new(RetryPolicy::default());
        let too_long = Some(Duration::from_secs(121));
        assert_eq!(backoff.next(Instant::now(), too_long, &mut rng), None);
    }

    #[test]
    fn a_connection_that_lasted_resets_the_backoff() {
        let mut rng = StdRng::seed_from_u64(7);
        let mut backoff = Backoff::new(RetryPolicy::default());
        let start = Instant::now();
        for number in 1..=3 {
            let attempt = backoff.next(start, None, &mut rng).unwrap();
            assert_eq!(attempt.number, number);
            backoff.connected(start);
        }
        assert_eq!(
            backoff
                .next(start + millis(4_999), None, &mut rng)
                .unwrap()
                .number,
            4
        );
        backoff.connected(start);
        assert_eq!(
            backoff
                .next(start + millis(5_000), None, &mut rng)
                .unwrap()
                .number,
            1
        );
        backoff.reset();
        assert_eq!(backoff.next(start, None, &mut rng).unwrap().number, 1);
    }

    #[test]
    fn a_server_cannot_ask_for_an_absurd_delay() {
        for (seconds, nanos, delay) in [
            (i64::MAX, 999_999_999, MAX_REQUESTED_DELAY),
            (i64::MAX, i32::MAX, MAX_REQUESTED_DELAY),
            (3_601, 0, MAX_REQUESTED_DELAY),
            (3, 500_000_000, millis(3_500)),
            (-1, 0, Duration::ZERO),
            (i64::MIN, i32::MIN, Duration::ZERO),
        ] {
            assert_eq!(parse_retry_delay(prost_types::Duration { seconds, nanos }), delay);
        }
    }

    proptest! {
        #[test]
        fn every_delay_is_within_its_bounds_and_all_of_them_within_the_patience(
            seed in any::<u64>(),
            base_delay in 1_u64..1_000,
            max_delay in 1_u64..10_000,
            patience in 1_u64..100_000,
            asked in prop::collection::vec(prop::option::of(0_u64..20_000), 1..200),
        ) {
            let policy = RetryPolicy { base_delay: millis(base_delay), max_delay: millis(max_delay), patience: millis(patience) };
            let mut rng = StdRng::seed_from_u64(seed);
            let mut backoff = Backoff::new(policy);
            let start = Instant::now();
            let mut now = start;
            for (attempts, asked) in asked.into_iter().enumerate() {
                let min_delay = asked.map(millis);
                let remaining = millis(patience).saturating_sub(now - start);
                let Some(attempt) = backoff.next(now, min_delay, &mut rng) else {
                    prop_assert!(remaining.is_zero() || min_delay.is_some_and(|min_delay| min_delay > remaining));
                    return Ok(());
                };
                let factor = 2_u32.saturating_pow(u32::try_from(attempts).unwrap());
                let limit = millis(base_delay).saturating_mul(factor).min(millis(max_delay));
                let limit = min_delay.map_or(limit, |asked| limit.min(asked.max(millis(1_000))));
                let min_delay = min_delay.unwrap_or_default();
                prop_assert_eq!(usize::try_from(attempt.number).unwrap(), attempts + 1);
                prop_assert!(attempt.delay >= min_delay);
                prop_assert!(attempt.delay <= limit.max(min_delay));
                now += attempt.delay;
                prop_assert!(now - start <= millis(patience));
            }
        }
    }
}
