//! How much of a log is kept.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How much of the rooms' logs is kept. The oldest records are let go when any of these is exceeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// At most this many events of each log.
    pub events: u64,
    /// At most this many bytes of each log.
    pub bytes: u64,
    /// Nothing older than this; zero = however old.
    pub age: Duration,
    /// At most this many bytes of all logs together: the largest log gives way.
    pub total_bytes: u64,
}

impl Retention {
    /// What was broadcast before this, since 1970, is too old; none where nothing is.
    pub(super) fn expired(&self) -> Option<Duration> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        (!self.age.is_zero()).then(|| now.saturating_sub(self.age))
    }

    /// What a store in memory keeps of each log where nothing else is said.
    pub const IN_MEMORY: Self = Self {
        events: 100_000,
        bytes: 32 << 20,
        age: Duration::ZERO,
        total_bytes: 256 << 20,
    };

    /// What a store on disk keeps of each log where nothing else is said.
    pub const ON_DISK: Self = Self {
        events: 1_000_000,
        bytes: 256 << 20,
        age: Duration::ZERO,
        total_bytes: 8 << 30,
    };
}
