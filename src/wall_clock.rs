//! The wall clock.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::domain::WallTime;
use crate::failpoint;

/// How far the clock is wrong with a failpoint.
const WRONG_BY: Duration = Duration::from_secs(3_600);

/// The wall clock's time, which the domain takes as an argument; 1970 if the clock is set to before that.
pub(crate) fn wall_time() -> WallTime {
    let mut since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    if failpoint::is_enabled("clock-ahead") {
        since += WRONG_BY;
    } else if failpoint::is_enabled("clock-behind") {
        since = since.saturating_sub(WRONG_BY);
    }
    WallTime::from_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Seconds since 1970, by the wall clock.
pub(crate) fn unix_time() -> u64 {
    wall_time().as_millis() / 1_000
}
