//! A budget of bytes, parts of which are reserved.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;

/// A number of bytes that can be reserved.
#[derive(Debug)]
pub(super) struct ByteBudget {
    limit: usize,
    used: AtomicUsize,
    /// What is reserved here is reserved there, too.
    parent: Option<Arc<Self>>,
}

impl ByteBudget {
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            limit,
            used: AtomicUsize::new(0),
            parent: None,
        })
    }

    /// A part of this budget.
    pub(super) fn child(self: &Arc<Self>, limit: usize) -> Arc<Self> {
        Arc::new(Self {
            limit,
            used: AtomicUsize::new(0),
            parent: Some(Arc::clone(self)),
        })
    }

    /// Reserves `bytes`, or nothing if that exceeds this budget or its parent.
    pub(super) fn try_reserve(self: &Arc<Self>, bytes: usize) -> Option<Reservation> {
        self.try_add(bytes).then(|| Reservation {
            budget: Arc::clone(self),
            bytes,
        })
    }

    fn try_add(&self, bytes: usize) -> bool {
        let within = |used: usize| used.checked_add(bytes).filter(|sum| *sum <= self.limit);
        if self
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, within)
            .is_err()
        {
            return false;
        }
        if self.parent.as_ref().is_some_and(|parent| !parent.try_add(bytes)) {
            self.used.fetch_sub(bytes, Ordering::Relaxed);
            return false;
        }
        true
    }

    fn add(&self, bytes: usize) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
        if let Some(parent) = &self.parent {
            parent.add(bytes);
        }
    }

    fn release(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
        if let Some(parent) = &self.parent {
            parent.release(bytes);
        }
    }
}

/// A part of a [`ByteBudget`] that is in use until this is dropped.
#[derive(Debug)]
pub(super) struct Reservation {
    budget: Arc<ByteBudget>,
    bytes: usize,
}

impl Reservation {
    /// Changes the size. Returns false, and leaves the size as it was, if the budget does not have that much.
    pub(super) fn try_resize(&mut self, bytes: usize) -> bool {
        if bytes > self.bytes && !self.budget.try_add(bytes - self.bytes) {
            return false;
        }
        self.budget.release(self.bytes.saturating_sub(bytes));
        self.bytes = bytes;
        true
    }

    /// Changes the size even if the budget does not have that much.
    pub(super) fn resize(&mut self, bytes: usize) {
        self.budget.add(bytes.saturating_sub(self.bytes));
        self.budget.release(self.bytes.saturating_sub(bytes));
        self.bytes = bytes;
    }

    /// `bytes`, with this reservation released when the last reference to them is dropped.
    pub(super) fn attach_to(self, bytes: Bytes) -> Bytes {
        Bytes::from_owner(Reserved {
            bytes,
            _reservation: self,
        })
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.release(self.bytes);
    }
}

struct Reserved {
    bytes: Bytes,
    _reservation: Reservation,
}

impl AsRef<[u8]> for Reserved {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reservation_counts_for_the_connection_and_for_the_server_until_it_is_dropped() {
        let server = ByteBudget::new(100);
        let (one, other) = (server.child(60), server.child(60));
        assert!(one.try_reserve(61).is_none());
        let mut held = one.try_reserve(50).unwrap();
        assert!(other.try_reserve(51).is_none());
        assert!(!held.try_resize(61));
        assert!(held.try_resize(40));
        let bytes = other
            .try_reserve(60)
            .unwrap()
            .attach_to(Bytes::from_static(b"abc"));
        assert!(!held.try_resize(41));
        held.resize(70);
        let slice = bytes.slice(1..);
        drop(bytes);
        assert_eq!(server.used.load(Ordering::Relaxed), 130);
        drop((slice, held));
        assert_eq!(
            [&server, &one, &other].map(|budget| budget.used.load(Ordering::Relaxed)),
            [0; 3]
        );
    }
}
