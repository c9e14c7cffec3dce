//! Collections that do not stay as large as they have ever been. A room that has had many participants can go on for months with few.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, Hash};

/// A collection keeps at least the memory for this many items.
const MIN_CAPACITY: usize = 64;

/// To what the capacity of a collection of `len` items should be reduced; `None` if at least a quarter is in use, or if it is small.
///
/// As many items can be added again before it has to grow, and between two reductions at least as many are removed as the second one moves:
/// amortized, both take constant time.
pub(crate) fn reduced_capacity(len: usize, capacity: usize) -> Option<usize> {
    let is_sparse = capacity > 2 * MIN_CAPACITY && len < capacity / 4;
    is_sparse.then(|| (2 * len).max(MIN_CAPACITY))
}

/// A collection that can free memory that it does not use.
pub(crate) trait SpareCapacity {
    /// Frees [spare memory](reduced_capacity). Called after each removal.
    fn free_spare_capacity(&mut self);
}

impl<T> SpareCapacity for VecDeque<T> {
    fn free_spare_capacity(&mut self) {
        if let Some(capacity) = reduced_capacity(self.len(), self.capacity()) {
            self.shrink_to(capacity);
        }
    }
}

impl<K: Eq + Hash, V, S: BuildHasher> SpareCapacity for HashMap<K, V, S> {
    fn free_spare_capacity(&mut self) {
        if let Some(capacity) = reduced_capacity(self.len(), self.capacity()) {
            self.shrink_to(capacity);
        }
    }
}
