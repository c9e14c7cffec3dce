//! The memory that all rooms together use for one purpose.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How many bytes of a budget are used. Exceeding it is not an error: whoever uses some must then make do with less.
#[derive(Debug)]
pub struct UsedBytes {
    limit: usize,
    used: AtomicUsize,
    /// How many [`RoomUse`]s are not zero.
    rooms: AtomicUsize,
}

impl UsedBytes {
    /// Nothing is used of `limit` bytes.
    #[must_use]
    pub const fn new(limit: usize) -> Self {
        Self {
            limit,
            used: AtomicUsize::new(0),
            rooms: AtomicUsize::new(0),
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

/// What one room uses of a budget, until this is dropped.
#[derive(Debug)]
pub(super) struct RoomUse {
    all: Arc<UsedBytes>,
    bytes: usize,
}

impl RoomUse {
    pub(super) const fn new(all: Arc<UsedBytes>) -> Self {
        Self { all, bytes: 0 }
    }

    /// Sets how many bytes the room uses. Returns how many it may use if the budget is exceeded: an equal part of it.
    pub(super) fn set(&mut self, bytes: usize) -> Option<usize> {
        match (self.bytes, bytes) {
            (0, 1..) => self.all.rooms.fetch_add(1, Ordering::Relaxed),
            (1.., 0) => self.all.rooms.fetch_sub(1, Ordering::Relaxed),
            _ => 0,
        };
        self.all.add(bytes.saturating_sub(self.bytes));
        self.all.remove(self.bytes.saturating_sub(bytes));
        self.bytes = bytes;
        let rooms = self.all.rooms.load(Ordering::Relaxed).max(1);
        self.all.is_exceeded().then(|| self.all.limit / rooms)
    }
}

impl Drop for RoomUse {
    fn drop(&mut self) {
        self.set(0);
    }
}
