//! The limits of the logs' size and age.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How much of each room's log is kept. The oldest records are removed once any of these limits is exceeded, as far as a
/// snapshot covers them. The newest record of a log always stays. A store on disk lets events and bytes exceed their limits
/// by 1/16 before it removes any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// The maximum number of events per log.
    pub max_events: u64,
    /// The maximum size of a log, in bytes.
    pub max_bytes: u64,
    /// The maximum age of an event, measured from its broadcast; `None` means unlimited.
    pub max_age: Option<Duration>,
    /// The maximum size of all logs together, in bytes. The largest logs are trimmed first.
    pub max_total_bytes: u64,
}

impl Retention {
    /// The defaults of an in-memory store.
    pub const IN_MEMORY: Self = Self {
        max_events: 100_000,
        max_bytes: 32 << 20,
        max_age: None,
        max_total_bytes: 256 << 20,
    };

    /// The defaults of a store on disk.
    pub const ON_DISK: Self = Self {
        max_events: 1_000_000,
        max_bytes: 256 << 20,
        max_age: None,
        max_total_bytes: 8 << 30,
    };

    /// Returns the Unix time before which broadcasts have expired, or `None` if age is unlimited.
    pub(super) fn cutoff(&self) -> Option<Duration> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.max_age.map(|max_age| now.saturating_sub(max_age))
    }
}
