//! The memory that all rooms together use for one purpose.

use std::sync::atomic::{AtomicUsize, Ordering};

/// How many bytes of a budget are used. Exceeding it is not an error: whoever uses some must then make do with less.
#[derive(Debug)]
pub struct UsedBytes {
    limit: usize,
    used: AtomicUsize,
}

impl UsedBytes {
    /// Nothing is used of `limit` bytes.
    #[must_use]
    pub const fn new(limit: usize) -> Self {
        Self {
            limit,
            used: AtomicUsize::new(0),
        }
    }

    pub(super) fn add(&self, bytes: usize) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn remove(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub(super) fn is_exceeded(&self) -> bool {
        self.used.load(Ordering::Relaxed) > self.limit
    }
}
