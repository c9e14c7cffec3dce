//! Whole numbers on the command line.

use std::fmt::Display;
use std::str::FromStr;

/// A whole number that `T` can hold.
pub(super) fn whole<T: FromStr<Err: Display>>(raw: &str) -> Result<T, String> {
    raw.parse()
        .map_err(|error| format!("{error}; expected a whole number like 100"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_number_is_told_what_would_be() {
        assert_eq!(whole::<u32>("17"), Ok(17));
        for wrong in ["", "-1", "1.5", "x", "64MiB", "4294967296"] {
            assert!(whole::<u32>(wrong).unwrap_err().ends_with("like 100"), "{wrong}");
        }
    }
}
