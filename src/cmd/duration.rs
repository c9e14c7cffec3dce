//! Durations on the command line.

use std::time::Duration;

/// The longest, so that no sum of a time and a duration can overflow.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// A duration such as `90s` or `1h 30m`, of at most a year.
pub(super) fn duration(raw: &str) -> Result<Duration, String> {
    match humantime::parse_duration(raw) {
        Ok(duration) if duration > LONGEST => Err("more than a year; expected a duration like 2m".into()),
        Ok(duration) => Ok(duration),
        Err(error) => Err(format!("{error}; expected a duration like 2m")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_has_a_unit_and_an_end() {
        assert_eq!(duration("1h 30m"), Ok(Duration::from_secs(5_400)));
        assert_eq!(duration("365d"), Ok(LONGEST));
        for wrong in ["", "3", "soon", "-1s", "366d", "500000000000years"] {
            assert!(duration(wrong).unwrap_err().ends_with("like 2m"), "{wrong}");
        }
    }
}
