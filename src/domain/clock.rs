//! Lamport time (L. Lamport, "Time, Clocks, and the Ordering of Events in a Distributed System", 1978), with one addition:
//! a client's timestamp cannot make the clock overflow. Also wall time, which is recorded but orders nothing.

use std::fmt;
use std::time::{Duration, UNIX_EPOCH};

use super::limits::{MAX_CLOCK_AHEAD_ABOVE_SOFT_LIMIT, SOFT_CLOCK_LIMIT};

/// A room's Lamport time: 0 or more, never decreasing along the room's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct LamportTime(i64);

impl LamportTime {
    /// A time as stored or received; `None` for a negative number.
    #[must_use]
    pub const fn from_wire(time: i64) -> Option<Self> {
        if time < 0 { None } else { Some(Self(time)) }
    }

    /// The number, which is not negative.
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

/// The Lamport time that a client claims: any number, until a [`LamportClock`] has accepted it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timestamp(pub i64);

/// Why a clock rejects a timestamp.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ClockError {
    /// The timestamp is negative.
    #[error("Timestamp {0} is negative. A Lamport time is 0 or more.")]
    Negative(i64),
    /// The timestamp is further ahead of the room's clock than allowed.
    #[error(
        "Timestamp {timestamp} is too far ahead of the room's clock ({now}). Limit is {max_ahead} ahead."
    )]
    TooFarAhead {
        /// The timestamp.
        timestamp: i64,
        /// The room's time.
        now: LamportTime,
        /// The limit.
        max_ahead: i64,
    },
}

/// The Lamport clock of one room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LamportClock(LamportTime);

impl LamportClock {
    /// A clock that continues at the time of a stored event.
    #[must_use]
    pub const fn at(time: LamportTime) -> Self {
        Self(time)
    }

    /// The time of the latest tick: of an event, or of a text that was too long.
    #[must_use]
    pub const fn now(self) -> LamportTime {
        self.0
    }

    /// Advances the clock for an event that the server itself causes: `L = L + 1`.
    pub fn tick(&mut self) -> LamportTime {
        self.skip(1)
    }

    /// Advances the clock by `ticks`.
    pub(super) fn skip(&mut self, ticks: i64) -> LamportTime {
        // Never saturates in practice: `check` bounds how far timestamps move the clock beyond `SOFT_CLOCK_LIMIT`.
        self.0 = LamportTime(self.0.0.saturating_add(ticks));
        self.0
    }

    /// Checks a client's timestamp. The clock does not move.
    ///
    /// # Errors
    ///
    /// The timestamp is negative, or later than the clock by more than `max_ahead`, or by more than
    /// [`MAX_CLOCK_AHEAD_ABOVE_SOFT_LIMIT`] if it is also later than [`SOFT_CLOCK_LIMIT`].
    pub fn check(self, timestamp: Timestamp, max_ahead: i64) -> Result<LamportTime, ClockError> {
        let Timestamp(claimed) = timestamp;
        if claimed < 0 {
            return Err(ClockError::Negative(claimed));
        }
        let now = self.0.0;
        // A client that merges what it receives and counts its own messages is never refused, wherever the clock is.
        let max_ahead = max_ahead.min((SOFT_CLOCK_LIMIT - now).max(MAX_CLOCK_AHEAD_ABOVE_SOFT_LIMIT));
        if claimed > now.saturating_add(max_ahead.max(0)) {
            return Err(ClockError::TooFarAhead {
                timestamp: claimed,
                now: self.0,
                max_ahead,
            });
        }
        Ok(LamportTime(claimed))
    }

    /// Advances the clock for the receipt of a command with this timestamp, which was checked: `L = max(L, timestamp) + 1`.
    pub fn merge(&mut self, timestamp: LamportTime) -> LamportTime {
        self.0 = self.0.max(timestamp);
        self.tick()
    }
}

/// The last millisecond of the year 9999.
const LAST_WRITABLE: u64 = 253_402_300_799_999;

/// Milliseconds since 1970-01-01T00:00:00Z. It orders nothing: it is recorded for display, and ends bans.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct WallTime(u64);

impl WallTime {
    /// Later than every other.
    pub const MAX: Self = Self(u64::MAX);

    /// The time this many milliseconds after the epoch.
    #[must_use]
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// Milliseconds since the epoch.
    #[must_use]
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// As RFC 3339 writes it, in seconds: `2026-11-26T12:00:00Z`.
    #[must_use]
    pub fn display(self) -> impl fmt::Display {
        // The year 9999 is the last one that can be written.
        let time = UNIX_EPOCH + Duration::from_millis(self.0.min(LAST_WRITABLE));
        humantime::format_rfc3339_seconds(time)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn receive(clock: &mut LamportClock, timestamp: i64, max_ahead: i64) -> Result<i64, ClockError> {
        let timestamp = clock.check(Timestamp(timestamp), max_ahead)?;
        Ok(clock.merge(timestamp).get())
    }

    #[test]
    fn a_receipt_sets_the_clock_to_one_more_than_the_later_time() {
        let mut clock = LamportClock::default();
        assert_eq!(receive(&mut clock, 0, 100), Ok(1));
        assert_eq!(receive(&mut clock, 10, 100), Ok(11));
        assert_eq!(receive(&mut clock, 3, 100), Ok(12));
        assert_eq!(clock.tick().get(), 13);
    }

    #[test]
    fn a_timestamp_out_of_range_does_not_move_the_clock() {
        let mut clock = LamportClock::default();
        receive(&mut clock, 5, 100).unwrap();
        for wrong in [-1, i64::MIN, 107, 1 << 40, i64::MAX] {
            assert!(receive(&mut clock, wrong, 100).is_err(), "{wrong}");
            assert_eq!(clock.now().get(), 6);
        }
        assert_eq!(receive(&mut clock, 106, 100), Ok(107));
    }

    #[test]
    fn a_late_clock_still_accepts_clients_that_merge_what_they_receive() {
        for now in [
            SOFT_CLOCK_LIMIT - 1,
            SOFT_CLOCK_LIMIT,
            SOFT_CLOCK_LIMIT + 1,
            1 << 60,
        ] {
            let mut clock = LamportClock::at(LamportTime(now));
            assert!(clock.check(Timestamp(now + 1_001), 1_000_000).is_err(), "{now}");
            let sent = now + MAX_CLOCK_AHEAD_ABOVE_SOFT_LIMIT;
            assert_eq!(receive(&mut clock, sent, 1_000_000), Ok(sent + 1));
        }
        let before = LamportClock::at(LamportTime(SOFT_CLOCK_LIMIT - 2_000));
        assert!(before.check(Timestamp(SOFT_CLOCK_LIMIT), 1_000_000).is_ok());
        assert!(before.check(Timestamp(SOFT_CLOCK_LIMIT + 1), 1_000_000).is_err());
    }

    proptest! {
        #[test]
        fn time_increases_whatever_clients_claim(claims in prop::collection::vec(any::<i64>(), 0..200), ahead in any::<i64>()) {
            let mut clock = LamportClock::default();
            for claim in claims {
                let before = clock.now();
                match receive(&mut clock, claim, ahead) {
                    Ok(time) => prop_assert!(time > before.get() && time > claim),
                    Err(_) => prop_assert_eq!(clock.now(), before),
                }
            }
        }
    }
}
