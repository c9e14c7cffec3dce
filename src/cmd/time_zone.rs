//! Wall-clock times in a time zone.

use jiff::Timestamp;
use jiff::civil::DateTime;

/// The time zone in which times are shown.
#[derive(Debug, Clone)]
pub(super) struct TimeZone(jiff::tz::TimeZone);

impl TimeZone {
    /// The zone of the variable `TZ` or, if it is not set, of the system; UTC if neither is known.
    pub(super) fn local() -> Self {
        Self(jiff::tz::TimeZone::system())
    }

    #[allow(dead_code, reason = "for the commands that show times in UTC")]
    pub(super) const fn utc() -> Self {
        Self(jiff::tz::TimeZone::UTC)
    }

    /// The date and time of day in this zone. `None` for a time outside of the years -9999 to 9999.
    pub(super) fn date_time(&self, time: &prost_types::Timestamp) -> Option<DateTime> {
        let time = Timestamp::new(time.seconds, time.nanos).ok()?;
        Some(self.0.to_datetime(time))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timestamp(seconds: i64, nanos: i32) -> prost_types::Timestamp {
        prost_types::Timestamp { seconds, nanos }
    }

    #[test]
    fn a_time_is_converted_into_the_zone() {
        let time = timestamp(1_764_000_000, 250_000_000);
        let show = |zone: &TimeZone| zone.date_time(&time).map(|time| time.to_string());
        assert_eq!(show(&TimeZone::utc()).as_deref(), Some("2025-11-24T16:00:00.25"));
        let copenhagen = TimeZone(jiff::tz::TimeZone::fixed(jiff::tz::offset(1)));
        assert_eq!(show(&copenhagen).as_deref(), Some("2025-11-24T17:00:00.25"));
    }

    #[test]
    fn a_time_that_no_calendar_has_is_not_shown() {
        for time in [
            timestamp(i64::MAX, 0),
            timestamp(i64::MIN, -1),
            timestamp(0, i32::MAX),
        ] {
            assert_eq!(TimeZone::local().date_time(&time), None);
        }
    }
}
