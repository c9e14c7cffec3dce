//! A participant's Lamport clock.

/// The clock stops here, so that a server cannot make it overflow. At a million ticks per second this takes 146,000 years.
const MAX: i64 = 1 << 62;

/// Ticks before each send and merges each received timestamp. Starts at 0, never runs backwards, and cannot be pushed out
/// of range by a server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct LamportClock(i64);

impl LamportClock {
    pub(super) const START: Self = Self(0);

    pub(super) const fn now(self) -> i64 {
        self.0
    }

    /// Advances the clock, and returns the timestamp of the message that is about to be sent.
    pub(super) fn tick(&mut self) -> i64 {
        self.0 = (self.0 + 1).min(MAX);
        self.0
    }

    /// Merges a received timestamp: `max(own, received) + 1`. Timestamps out of range are ignored.
    pub(super) fn merge(&mut self, received: i64) {
        if (0..=MAX).contains(&received) {
            self.0 = self.0.max(received);
            self.tick();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_send_is_later_than_everything_received() {
        let mut clock = LamportClock::default();
        assert_eq!(clock.tick(), 1);
        clock.merge(1);
        assert_eq!(clock.now(), 2);
        clock.merge(40);
        assert_eq!(clock.tick(), 42);
        clock.merge(7);
        assert_eq!(clock.now(), 43);
    }

    #[test]
    fn timestamps_out_of_range_are_ignored() {
        let mut clock = LamportClock(5);
        for timestamp in [-1, i64::MIN, i64::MAX, MAX + 1] {
            clock.merge(timestamp);
            assert_eq!(clock.now(), 5);
        }
    }

    #[test]
    fn the_clock_stops_at_its_maximum() {
        let mut clock = LamportClock::default();
        clock.merge(MAX);
        assert_eq!(clock.tick(), MAX);
    }

    proptest! {
        #[test]
        fn the_clock_never_runs_backwards_or_out_of_range(received in prop::collection::vec(any::<i64>(), 0..50)) {
            let mut clock = LamportClock::default();
            for time in received {
                let before = clock;
                clock.merge(time);
                prop_assert!(clock.now() >= before.now());
                let merged = clock.now();
                prop_assert!(clock.tick() > merged || merged == MAX);
                prop_assert!((0..=MAX).contains(&clock.now()));
            }
        }
    }
}
