//! How much of a log is kept.

use std::time::Duration;

/// How much of each room's log is kept. The oldest records are let go when any of these is exceeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// At most this many events.
    pub events: u64,
    /// At most this many bytes.
    pub bytes: u64,
    /// Nothing older than this; zero = however old.
    pub age: Duration,
}

impl Retention {
    /// What a store in memory keeps of each log where nothing else is said.
    pub const IN_MEMORY: Self = Self {
        events: 100_000,
        bytes: 32 << 20,
        age: Duration::ZERO,
    };

    /// What a store on disk keeps of each log where nothing else is said.
    pub const ON_DISK: Self = Self {
        events: 1_000_000,
        bytes: 256 << 20,
        age: Duration::ZERO,
    };
}
