//! Whole numbers and sizes on the command line.

use std::fmt::Display;
use std::str::FromStr;

/// A whole number that `T` can hold.
pub(super) fn whole<T: FromStr<Err: Display>>(raw: &str) -> Result<T, String> {
    raw.parse()
        .map_err(|error| format!("{error}; expected a whole number like 100"))
}

/// The units of sizes: binary ones, and decimal ones as disks are sold.
const UNITS: [(&str, u64); 8] = [
    ("", 1),
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
];

/// A size in bytes: a whole number, or one with a unit such as `64MiB`.
pub(super) fn size<T: TryFrom<u64>>(raw: &str) -> Result<T, String> {
    let raw = raw.trim();
    let digits = raw.len() - raw.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = raw.split_at(digits);
    let (_, unit) = UNITS
        .iter()
        .find(|(name, _)| unit.trim_start().eq_ignore_ascii_case(name))
        .ok_or("not a size; expected one like 64MiB")?;
    let bytes = number
        .parse()
        .ok()
        .and_then(|number: u64| number.checked_mul(*unit));
    let bytes = bytes.and_then(|bytes| bytes.try_into().ok());
    bytes.ok_or_else(|| "not a size that can be; expected one like 64MiB".into())
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn what_is_no_number_is_told_what_would_be() {
        assert_eq!(whole::<u32>("17"), Ok(17));
        for wrong in ["", "-1", "1.5", "x", "64MiB", "4294967296"] {
            assert!(whole::<u32>(wrong).unwrap_err().ends_with("like 100"), "{wrong}");
        }
    }
}
