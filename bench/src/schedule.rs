//! When which publisher has to send: the fixed timetable of an open loop.

/// A fixed number of messages per second in total, dealt to the publishers in turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Schedule {
    /// Messages per second of all publishers together; never 0.
    rate: u64,
    publishers: u64,
    /// When the first message is due, in nanoseconds since the run's origin.
    start: u64,
}

const SECOND: u128 = 1_000_000_000;

impl Schedule {
    /// A timetable that begins at `start`. A rate or a number of publishers of 0 counts as 1.
    pub(super) fn new(rate: u64, publishers: u64, start: u64) -> Self {
        Self {
            rate: rate.max(1),
            publishers: publishers.max(1),
            start,
        }
    }

    /// When the `index`-th message of all publishers is due. Computed from the start each time, so that rounding does
    /// not add up.
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
    fn rounding_does_not_add_up() {
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
