//! When to try again.

use std::time::Duration;

use rand::Rng;
use tokio::time::Instant;

/// How often and for how long a lost connection is sought again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retry {
    /// The longest wait before the first attempt; it doubles with each attempt.
    pub base: Duration,
    /// The longest wait before any attempt. A connection that stood for this long was no failed attempt.
    pub cap: Duration,
    /// How long to keep trying altogether; zero = not at all. An attempt that has begun is finished.
    pub patience: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            base: Duration::from_millis(100),
            cap: Duration::from_secs(5),
            patience: Duration::from_secs(120),
        }
    }
}

/// The attempts of one interruption: exponential backoff with full jitter (each wait is drawn evenly from zero to its
/// bound), so that the clients of a server that went away do not come back in step.
#[derive(Debug)]
pub(super) struct Backoff {
    retry: Retry,
    attempt: u32,
    /// When the interruption began.
    began: Option<Instant>,
    /// When the connection that may be lost next was made.
    connected: Option<Instant>,
}

/// What to do next: wait, then try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Attempt {
    /// Which attempt of this interruption it is, from 1.
    pub(super) number: u32,
    /// How long to wait before it.
    pub(super) delay: Duration,
}

impl Backoff {
    pub(super) const fn new(retry: Retry) -> Self {
        Self {
            retry,
            attempt: 0,
            began: None,
            connected: None,
        }
    }

    /// The next attempt; `None` when patience is at its end, or would be before `at_least`, which is what the server
    /// asked to wait.
    pub(super) fn next(
        &mut self,
        now: Instant,
        at_least: Option<Duration>,
        rng: &mut impl Rng,
    ) -> Option<Attempt> {
        let stood = self.connected.take().map(|connected| now - connected);
        if stood.is_some_and(|stood| stood >= self.retry.cap) {
            self.settled();
        }
        let began = *self.began.get_or_insert(now);
        let rest = self.retry.patience.saturating_sub(now - began);
        let at_least = at_least.unwrap_or_default();
        if rest.is_zero() || at_least > rest {
            return None;
        }
        let bound = self
            .retry
            .base
            .saturating_mul(2_u32.saturating_pow(self.attempt))
            .min(self.retry.cap);
        self.attempt = self.attempt.saturating_add(1);
        let jitter = bound.mul_f64(rng.random::<f64>()).min(rest);
        Some(Attempt {
            number: self.attempt,
            delay: jitter.max(at_least),
        })
    }

    /// An attempt succeeded at `now`; whether the connection is good remains to be seen.
    pub(super) const fn connected(&mut self, now: Instant) {
        self.connected = Some(now);
    }

    /// The connection is good: the interruption is over.
    pub(super) const fn settled(&mut self) {
        self.attempt = 0;
        self.began = None;
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
    fn waits_fill_their_whole_range() {
        let mut rng = StdRng::seed_from_u64(7);
        let delays: Vec<Duration> = (0..1000)
            .map(|_| {
                let mut backoff = Backoff::new(Retry::default());
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
    fn without_patience_nothing_is_tried() {
        let mut rng = StdRng::seed_from_u64(7);
        let mut backoff = Backoff::new(Retry {
            patience: Duration::ZERO,
            ..Retry::default()
        });
        assert_eq!(backoff.next(Instant::now(), None, &mut rng), None);
        let mut backoff = Backoff::new(Retry::default());
        let too_long = Some(Duration::from_secs(121));
        assert_eq!(backoff.next(Instant::now(), too_long, &mut rng), None);
    }

    #[test]
    fn a_connection_that_stood_was_no_failed_attempt() {
        let mut rng = StdRng::seed_from_u64(7);
        let mut backoff = Backoff::new(Retry::default());
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
        backoff.settled();
        assert_eq!(backoff.next(start, None, &mut rng).unwrap().number, 1);
    }

    proptest! {
        #[test]
        fn every_wait_is_within_its_bounds_and_all_of_them_within_patience(
            seed in any::<u64>(),
            base in 1_u64..1_000,
            cap in 1_u64..10_000,
            patience in 1_u64..100_000,
            asked in prop::collection::vec(prop::option::of(0_u64..20_000), 1..200),
        ) {
            let retry = Retry { base: millis(base), cap: millis(cap), patience: millis(patience) };
            let mut rng = StdRng::seed_from_u64(seed);
            let mut backoff = Backoff::new(retry);
            let start = Instant::now();
            let mut now = start;
            for (attempts, asked) in asked.into_iter().enumerate() {
                let at_least = asked.map(millis);
                let rest = millis(patience).saturating_sub(now - start);
                let Some(attempt) = backoff.next(now, at_least, &mut rng) else {
                    prop_assert!(rest.is_zero() || at_least.is_some_and(|at_least| at_least > rest));
                    return Ok(());
                };
                let doubled = 2_u32.saturating_pow(u32::try_from(attempts).unwrap());
                let bound = millis(base).saturating_mul(doubled).min(millis(cap));
                let at_least = at_least.unwrap_or_default();
                prop_assert_eq!(usize::try_from(attempt.number).unwrap(), attempts + 1);
                prop_assert!(attempt.delay >= at_least);
                prop_assert!(attempt.delay <= bound.max(at_least));
                now += attempt.delay;
                prop_assert!(now - start <= millis(patience));
            }
        }
    }
}
