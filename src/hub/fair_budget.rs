//! A budget of memory that rooms share: when it is exceeded, those that use most give memory back.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use slab::Slab;

/// Something that uses memory and can do with less.
pub(super) trait Shrink: Send + Sync {
    /// Gives memory back until no more than `bytes` are used, and reports that with [`FairUse::set`].
    fn shrink(&self, bytes: usize);
}

/// A number of bytes that many users share.
///
/// Whoever exceeds it makes the largest users shrink until three quarters of it are used: to the size at which they are equal, while
/// all others are smaller (max-min fairness). The cost is one look at each user for each quarter of the budget that is used.
pub struct FairBudget {
    limit: usize,
    used: AtomicUsize,
    users: Mutex<Slab<User>>,
    /// Held by the one who makes others shrink.
    shrinking: Mutex<()>,
}

struct User {
    bytes: Arc<AtomicUsize>,
    user: Weak<dyn Shrink>,
}

impl FairBudget {
    /// A budget of `limit` bytes.
    #[must_use]
    pub const fn new(limit: usize) -> Self {
        Self {
            limit,
            used: AtomicUsize::new(0),
            users: Mutex::new(Slab::new()),
            shrinking: Mutex::new(()),
        }
    }

    /// Registers a user, which uses nothing yet.
    pub(super) fn register(self: &Arc<Self>, user: Weak<dyn Shrink>) -> FairUse {
        let bytes = Arc::<AtomicUsize>::default();
        let key = self.users.lock().insert(User {
            bytes: Arc::clone(&bytes),
            user,
        });
        FairUse {
            budget: Arc::clone(self),
            key,
            bytes,
        }
    }

    fn is_exceeded(&self) -> bool {
        self.used.load(Ordering::Relaxed) > self.limit
    }

    fn shrink_largest(&self) {
        let Some(_shrinking) = self.shrinking.try_lock().filter(|_| self.is_exceeded()) else {
            return;
        };
        // Not while the users are locked: whoever is dropped here removes itself.
        for (share, user) in self.largest() {
            user.shrink(share);
        }
    }

    /// The users that must shrink, each with the size to which it must.
    fn largest(&self) -> Vec<(usize, Arc<dyn Shrink>)> {
        let users = self.users.lock();
        let size = |user: &User| user.bytes.load(Ordering::Relaxed);
        let mut sizes: Vec<usize> = users
            .iter()
            .map(|(_, user)| size(user))
            .filter(|size| *size > 0)
            .collect();
        let share = max_min_share(self.limit / 4 * 3, &mut sizes);
        users
            .iter()
            .filter(|(_, user)| size(user) > share)
            .filter_map(|(_, user)| Some((share, user.user.upgrade()?)))
            .collect()
    }
}

/// The largest size that users of these sizes may keep, so that all together keep at most `limit`.
fn max_min_share(limit: usize, sizes: &mut [usize]) -> usize {
    sizes.sort_unstable();
    let mut rest = limit;
    for (index, size) in sizes.iter().enumerate() {
        let equal = rest / (sizes.len() - index);
        if *size > equal {
            return equal;
        }
        rest -= size;
    }
    usize::MAX
}

/// What one user uses of a budget, until this is dropped.
pub(super) struct FairUse {
    budget: Arc<FairBudget>,
    key: usize,
    bytes: Arc<AtomicUsize>,
}

impl FairUse {
    /// Sets how many bytes are used. Makes nobody shrink, so it may be called with the user locked.
    pub(super) fn set(&self, bytes: usize) {
        if self.bytes.load(Ordering::Relaxed) != bytes {
            let before = self.bytes.swap(bytes, Ordering::Relaxed);
            // Wraps around if it is less than before.
            self.budget
                .used
                .fetch_add(bytes.wrapping_sub(before), Ordering::Relaxed);
        }
    }

    /// Makes the largest users shrink, perhaps this one, if the budget is exceeded. No user may be locked.
    pub(super) fn enforce(&self) {
        if self.budget.is_exceeded() {
            self.budget.shrink_largest();
        }
    }
}

impl Drop for FairUse {
    fn drop(&mut self) {
        self.budget.users.lock().remove(self.key);
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    struct Room {
        used: FairUse,
    }

    impl Shrink for Room {
        fn shrink(&self, bytes: usize) {
            self.used.set(bytes);
        }
    }

    fn room(budget: &Arc<FairBudget>, bytes: usize) -> Arc<Room> {
        let room = Arc::new_cyclic(|room: &Weak<Room>| Room {
            used: budget.register(room.clone()),
        });
        room.used.set(bytes);
        room.used.enforce();
        room
    }

    fn sizes(rooms: &[Arc<Room>]) -> Vec<usize> {
        rooms
            .iter()
            .map(|room| room.used.bytes.load(Ordering::Relaxed))
            .collect()
    }

    #[test]
    fn the_largest_shrink_and_the_others_keep_what_they_have() {
        let budget = Arc::new(FairBudget::new(1_000));
        let rooms = [10, 900, 0, 80].map(|bytes| room(&budget, bytes));
        assert_eq!(sizes(&rooms), [10, 900, 0, 80]);
        let last = room(&budget, 500);
        assert_eq!(sizes(&rooms), [10, 330, 0, 80]);
        assert_eq!(sizes(&[last]), [330]);
        drop(rooms);
        assert_eq!(budget.used.load(Ordering::Relaxed), 0);
        assert!(budget.users.lock().is_empty());
    }

    proptest! {
        #[test]
        fn a_share_is_the_largest_that_fits(limit in 0_usize..10_000, sizes in prop::collection::vec(1_usize..1_000, 0..50)) {
            let kept = |share: usize| sizes.iter().map(|size| *size.min(&share)).sum::<usize>();
            let share = max_min_share(limit, &mut sizes.clone());
            prop_assert!(kept(share) <= limit);
            prop_assert!(share == usize::MAX || kept(share + 1) > limit);
        }
    }
}
