//! Lamport time (L. Lamport, "Time, Clocks, and the Ordering of Events in a Distributed System", 1978), with one rule
//! more: nobody's time stamp can carry the clock out of its range.

use std::fmt;

use super::limits::MAX_TIMESTAMP;

/// A room's Lamport time: not negative, and never decreasing along the room's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct LamportTime(i64);

impl LamportTime {
    /// A time that stands in a log; none for a negative number.
    #[must_use]
    pub const fn recorded(time: i64) -> Option<Self> {
        if time < 0 { None } else { Some(Self(time)) }
    }

    /// The time as it goes over the wire.
    #[must_use]
    pub const fn get(self) -> i64 {
        self.0
    }
}

impl fmt::Display for LamportTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A Lamport time that a client claims: any number until a [`LamportClock`] has accepted it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timestamp(pub i64);

/// A time stamp that the clock does not follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ClockError {
    /// Before the beginning of time.
    #[error("Timestamp {0} is negative. A Lamport time is 0 or more.")]
    Negative(i64),
    /// Further ahead of the room's clock than allowed.
    #[error(
        "Timestamp {timestamp} is too far ahead of the room's clock ({now}). Limit is {max_ahead} ahead."
    )]
    TooFarAhead {
        /// What the client sent.
        timestamp: i64,
        /// The room's time.
        now: LamportTime,
        /// The limit.
        max_ahead: i64,
    },
}

/// The clock of one room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LamportClock(LamportTime);

impl LamportClock {
    /// The time of the latest event.
    #[must_use]
    pub const fn now(self) -> LamportTime {
        self.0
    }

    /// A clock that goes on from the time of a recorded event.
    #[must_use]
    pub const fn at(time: LamportTime) -> Self {
        Self(time)
    }

    /// An event of the server's own: `L = L + 1`.
    pub fn tick(&mut self) -> LamportTime {
        // Saturation is out of reach: `receive` keeps the clock below half the range, and the other half holds
        // 2^62 ticks.
        self.0 = LamportTime(self.0.0.saturating_add(1));
        self.0
    }

    /// The receipt of a message: `L = max(L, timestamp) + 1`.
    ///
    /// # Errors
    ///
    /// For a time stamp that is negative or more than `max_ahead` ahead; the clock has not moved then.
    pub fn receive(&mut self, timestamp: Timestamp, max_ahead: i64) -> Result<LamportTime, ClockError> {
        let Timestamp(claimed) = timestamp;
        if claimed < 0 {
            return Err(ClockError::Negative(claimed));
        }
        let latest = self
            .0
            .0
            .saturating_add(max_ahead.max(0))
            .min(MAX_TIMESTAMP)
            .max(self.0.0);
        if claimed > latest {
            return Err(ClockError::TooFarAhead {
                timestamp: claimed,
                now: self.0,
                max_ahead,
            });
        }
        self.0 = LamportTime(self.0.0.max(claimed));
        Ok(self.tick())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn receipt_takes_the_later_of_both_times_and_one_more() {
        let mut clock = LamportClock::default();
        assert_eq!(clock.receive(Timestamp(0), 100).unwrap().get(), 1);
        assert_eq!(clock.receive(Timestamp(10), 100).unwrap().get(), 11);
        assert_eq!(clock.receive(Timestamp(3), 100).unwrap().get(), 12);
        assert_eq!(clock.tick().get(), 13);
    }

    #[test]
    fn a_time_out_of_range_does_not_move_the_clock() {
        let mut clock = LamportClock::default();
        clock.receive(Timestamp(5), 100).unwrap();
        for wrong in [-1, i64::MIN, 107, 1 << 40, MAX_TIMESTAMP + 1, i64::MAX] {
            assert!(clock.receive(Timestamp(wrong), 100).is_err(), "{wrong}");
            assert_eq!(clock.now().get(), 6);
        }
        assert_eq!(clock.receive(Timestamp(106), 100).unwrap().get(), 107);
    }

    proptest! {
        #[test]
        fn time_grows_whatever_clients_claim(claims in prop::collection::vec(any::<i64>(), 0..200), ahead in any::<i64>()) {
            let mut clock = LamportClock::default();
            for claim in claims {
                let before = clock.now();
                match clock.receive(Timestamp(claim), ahead) {
                    Ok(time) => prop_assert!(time > before && time.get() > claim),
                    Err(_) => prop_assert_eq!(clock.now(), before),
                }
            }
        }
    }
}
