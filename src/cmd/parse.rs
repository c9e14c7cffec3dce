//! Parsers for the values of flags.

use std::fmt::Display;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

/// Upper limit for durations, so that adding one to a point in time cannot overflow.
const MAX_DURATION: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Binary and decimal units with their sizes in bytes.
const SIZE_UNITS: [(&str, u64); 8] = [
    ("", 1),
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
];

/// Parses a duration such as `90s` or `1h 30m`, of at most 365 days. A number without a unit is an error.
///
/// # Errors
///
/// A message for users that says what is wrong and what is expected.
pub fn duration(raw: &str) -> Result<Duration, String> {
    match humantime::parse_duration(raw) {
        Ok(duration) if duration > MAX_DURATION => {
            Err("more than a year; expected a duration like 2m".into())
        }
        Ok(duration) => Ok(duration),
        Err(error) => Err(format!("{error}; expected a duration like 2m")),
    }
}

/// Parses a timeout: a [`duration`] greater than zero.
pub(super) fn timeout(raw: &str) -> Result<Duration, String> {
    match duration(raw) {
        Ok(Duration::ZERO) => Err("a timeout must be greater than zero; expected a duration like 2m".into()),
        result => result,
    }
}

/// Parses the address of a port of this machine: an IP address or `localhost`, and a port.
pub(super) fn socket_address(raw: &str) -> Result<SocketAddr, String> {
    let numeric = match raw.strip_prefix("localhost:") {
        Some(port) => format!("127.0.0.1:{port}"),
        None => raw.to_owned(),
    };
    numeric.parse().map_err(|_| {
        "expected an IP address and a port like 127.0.0.1:50052, or 0.0.0.0:50052 for all interfaces".into()
    })
}

/// Parses an integer within the range of `T`.
///
/// # Errors
///
/// A message for users that says what is wrong and what is expected.
pub fn integer<T: FromStr<Err: Display>>(raw: &str) -> Result<T, String> {
    raw.parse()
        .map_err(|error| format!("{error}; expected a whole number like 100"))
}

/// Parses a size in bytes: a whole number, optionally with one of [`SIZE_UNITS`] in upper or lower case, such as `64MiB`.
pub(super) fn size<T: TryFrom<u64>>(raw: &str) -> Result<T, String> {
    let raw = raw.trim();
    let digits = raw.len() - raw.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = raw.split_at(digits);
    let (_, unit) = SIZE_UNITS
        .iter()
        .find(|(name, _)| unit.trim_start().eq_ignore_ascii_case(name))
        .ok_or("not a size; expected one like 64MiB")?;
    let bytes = number
        .parse()
        .ok()
        .and_then(|number: u64| number.checked_mul(*unit));
    let bytes = bytes.and_then(|bytes| bytes.try_into().ok());
    bytes.ok_or_else(|| "the size is missing or out of range; expected one like 64MiB".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_a_port() {
        for (raw, address) in [
            ("localhost:0", "127.0.0.1:0"),
            ("0.0.0.0:7", "0.0.0.0:7"),
            ("[::]:7", "[::]:7"),
        ] {
            assert_eq!(socket_address(raw), Ok(address.parse().unwrap()));
        }
        for wrong in [":50052", "localhost", "50052", "example.com:1", "127.0.0.1:65536"] {
            assert!(socket_address(wrong).unwrap_err().contains("127.0.0.1:50052"));
        }
    }

    #[test]
    fn a_duration_has_a_unit_and_a_maximum() {
        assert_eq!(duration("1h 30m"), Ok(Duration::from_secs(5_400)));
        assert_eq!(duration("365d"), Ok(MAX_DURATION));
        for wrong in ["", "3", "soon", "-1s", "366d", "500000000000years"] {
            assert!(duration(wrong).unwrap_err().ends_with("like 2m"), "{wrong}");
        }
    }

    #[test]
    fn a_timeout_is_greater_than_zero() {
        assert_eq!(timeout("500ms"), Ok(Duration::from_millis(500)));
        for wrong in ["", "0s", "3", "soon", "-1s"] {
            assert!(timeout(wrong).unwrap_err().ends_with("like 2m"), "{wrong}");
        }
    }

    #[test]
    fn a_size_may_have_a_unit() {
        for (raw, bytes) in [
            ("0", 0),
            ("1048576", 1 << 20),
            ("64MiB", 64 << 20),
            ("64 mib", 64 << 20),
            ("8GiB", 8 << 30),
            ("500MB", 500_000_000),
            ("3B", 3),
        ] {
            assert_eq!(size::<u64>(raw), Ok(bytes), "{raw}");
        }
        for wrong in [
            "",
            "MiB",
            "-1",
            "1.5GiB",
            "64M",
            "64 apples",
            "18446744073709551615GiB",
        ] {
            assert!(size::<u64>(wrong).unwrap_err().ends_with("like 64MiB"), "{wrong}");
        }
        assert!(size::<u32>("8GiB").is_err());
    }

    #[test]
    fn the_error_for_a_malformed_number_shows_a_valid_one() {
        assert_eq!(integer::<u32>("17"), Ok(17));
        for wrong in ["", "-1", "1.5", "x", "64MiB", "4294967296"] {
            assert!(
                integer::<u32>(wrong).unwrap_err().ends_with("like 100"),
                "{wrong}"
            );
        }
    }
}
