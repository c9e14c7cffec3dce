//! Where the hub reads the clock of the wall.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::domain::WallTime;

/// The time of day; 1970 when the system's clock stands before it.
pub(super) fn wall_time() -> WallTime {
    let millis = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis());
    WallTime::from_millis(u64::try_from(millis).unwrap_or(u64::MAX))
}
