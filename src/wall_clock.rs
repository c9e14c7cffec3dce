//! The wall clock.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::domain::WallTime;

/// The wall clock's time, which the domain takes as an argument; 1970 if the clock is set to before that.
pub(crate) fn wall_time() -> WallTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    WallTime::from_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Seconds since 1970, by the wall clock.
pub(crate) fn unix_time() -> u64 {
    wall_time().as_millis() / 1_000
}
