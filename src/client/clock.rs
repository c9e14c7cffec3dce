//! A participant's Lamport clock.

use crate::domain::limits::MAX_TIMESTAMP;

/// The latest time the clock takes, from others or by itself: a server accepts none that is later. A room that ticks a
/// million times a second needs 146,000 years to get there.
const LATEST: i64 = MAX_TIMESTAMP;

/// A participant's Lamport clock: 0 at first, ticks before each send, merges with each receive. It never runs backwards,
/// never overflows, and no server can push it out of range.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LamportClock(i64);

impl LamportClock {
    /// Before any event.
    pub(super) const START: Self = Self(0);

    /// The time of the last event.
    #[must_use]
    pub const fn now(self) -> i64 {
        self.0
    }

    /// The time of the next event, which is to be sent.
    pub fn tick(&mut self) -> i64 {
        self.0 = (self.0 + 1).min(LATEST);
        self.0
    }

    /// Takes in the time of something received: `max(own, received) + 1`. A time that no room can have (negative, or
    /// later than half the range) is ignored.
    pub fn merge(&mut self, received: i64) {
        if (0..=LATEST).contains(&received) {
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
    fn sends_are_later_than_all_that_was_received() {
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
    fn impossible_times_are_ignored() {
        let mut clock = LamportClock(5);
        for absurd in [-1, i64::MIN, i64::MAX, LATEST + 1] {
            clock.merge(absurd);
            assert_eq!(clock.now(), 5);
        }
    }

    #[test]
    fn at_the_end_of_time_it_stands_still() {
        let mut clock = LamportClock::default();
        clock.merge(LATEST);
        assert_eq!(clock.tick(), LATEST);
    }

    proptest! {
        #[test]
        fn it_never_runs_backwards_or_out_of_range(received in prop::collection::vec(any::<i64>(), 0..50)) {
            let mut clock = LamportClock::default();
            for time in received {
                let before = clock;
                clock.merge(time);
                prop_assert!(clock.now() >= before.now());
                let merged = clock.now();
                prop_assert!(clock.tick() > merged || merged == LATEST);
                prop_assert!((0..=LATEST).contains(&clock.now()));
            }
        }
    }
}
