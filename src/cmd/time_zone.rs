//! Wall-clock times in a time zone.

use jiff::Timestamp;
use jiff::civil::{DateTime, Time};

use super::parse::duration;

/// The time zone in which times are shown.
#[derive(Debug, Clone)]
pub(super) struct TimeZone(jiff::tz::TimeZone);

impl TimeZone {
    /// The zone of the variable `TZ` or, if it is not set, of the system; UTC if neither is known.
    pub(super) fn local() -> Self {
        Self(jiff::tz::TimeZone::system())
    }

    pub(super) const fn utc() -> Self {
        Self(jiff::tz::TimeZone::UTC)
    }

    /// The date and time of day in this zone. `None` for a time outside of the years -9999 to 9999.
    pub(super) fn date_time(&self, time: &prost_types::Timestamp) -> Option<DateTime> {
        let time = Timestamp::new(time.seconds, time.nanos).ok()?;
        Some(self.0.to_datetime(time))
    }

    /// Parses a point in time: a duration before `now` such as `2h`, a date and time with a time zone (RFC 3339), or one in this
    /// zone, of which either the date, which is then the current one, or the time may be missing.
    fn parse(&self, raw: &str, now: Timestamp) -> Result<Timestamp, String> {
        if let Ok(duration) = duration(raw) {
            return now.checked_sub(duration).map_err(|error| error.to_string());
        }
        if let Ok(time) = raw.parse() {
            return Ok(time);
        }
        // A date first, because jiff reads the time of one as a time, and "10" too.
        let time = |raw: &str| raw.contains(':').then(|| raw.parse::<Time>().ok()).flatten();
        let today = |time| self.0.to_datetime(now).date().to_datetime(time);
        let date_time = raw.parse::<DateTime>().ok().or_else(|| time(raw).map(today));
        date_time
            .and_then(|date_time| self.0.to_timestamp(date_time).ok())
            .ok_or_else(|| {
                "expected a duration like 2h, or a time like 10:30, 2026-11-26 or 2026-11-26T10:30".to_owned()
            })
    }
}

/// Parses the value of a flag: a point in time, in the local time zone unless it says otherwise.
pub(super) fn point_in_time(raw: &str) -> Result<Timestamp, String> {
    TimeZone::local().parse(raw, Timestamp::now())
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
    fn points_in_time_are_durations_or_times() {
        let zone = TimeZone(jiff::tz::TimeZone::fixed(jiff::tz::offset(1)));
        let now: Timestamp = "2026-11-26T10:00:00Z".parse().unwrap();
        for (raw, time) in [
            ("2h 30m", "2026-11-26T07:30:00Z"),
            ("2026-11-25T09:00:00Z", "2026-11-25T09:00:00Z"),
            ("2026-11-25T09:00:00+02:00", "2026-11-25T07:00:00Z"),
            ("2026-11-25T09:00", "2026-11-25T08:00:00Z"),
            ("2026-11-25 09:00:30", "2026-11-25T08:00:30Z"),
            ("2026-11-25", "2026-11-24T23:00:00Z"),
            ("09:15", "2026-11-26T08:15:00Z"),
        ] {
            assert_eq!(zone.parse(raw, now), Ok(time.parse().unwrap()), "{raw}");
        }
        for wrong in [
            "",
            "yesterday",
            "2026-13-01",
            "25:00",
            "7",
            "10",
            "1030",
            "2026",
            "-2h",
        ] {
            assert!(zone.parse(wrong, now).is_err(), "{wrong}");
        }
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
