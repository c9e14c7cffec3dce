//! What a store tells of itself.

use std::time::Duration;

/// Listens to a store. Called from the thread that writes: must not block.
pub trait Observer: Send + Sync + 'static {
    /// A commit, of one log or of many, was written and made as durable as it is to be; it took so long.
    fn committed(&self, took: Duration);
}

impl<F: Fn(Duration) + Send + Sync + 'static> Observer for F {
    fn committed(&self, took: Duration) {
        self(took);
    }
}
