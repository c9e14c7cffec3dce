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
/// Whoever exceeds it makes the largest users shrink until at most three quarters of it are used: to the size at which they are equal, while
/// all others are smaller (max-min fairness). The cost is one look at each user for each quarter of the budget that is used.
///
/// Users that have up to a fifth more than that size keep it. Otherwise thousands that have shrunk before would each have to shrink by a
/// little whenever another user comes.
pub struct FairBudget<T> {
    limit: usize,
    used: AtomicUsize,
    users: Mutex<Slab<User<T>>>,
    /// Held by the one who makes others shrink.
    shrinking: Mutex<()>,
}

struct User<T> {
    bytes: Arc<AtomicUsize>,
    user: Weak<T>,
}

impl<T> FairBudget<T> {
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
    pub(super) fn register(self: &Arc<Self>, user: Weak<T>) -> FairUse<T> {
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

    /// The users that must shrink, and the size to which they must.
    fn largest(&self) -> (usize, Vec<Arc<T>>) {
        let users = self.users.lock();
        let size = |user: &User<T>| user.bytes.load(Ordering::Relaxed);
        let mut sizes: Vec<usize> = users
            .iter()
            .map(|(_, user)| size(user))
            .filter(|size| *size > 0)
            .collect();
        let share = max_min_share(self.limit / 8 * 5, &mut sizes);
        let tolerated = share.saturating_add(share / 5);
        let too_large = users.iter().filter(|(_, user)| size(user) > tolerated);
        (
            share,
            too_large.filter_map(|(_, user)| user.user.upgrade()).collect(),
        )
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
pub(super) struct FairUse<T> {
    budget: Arc<FairBudget<T>>,
    key: usize,
    bytes: Arc<AtomicUsize>,
}

impl<T> FairUse<T> {
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
}

impl<T: Shrink> FairUse<T> {
    /// Makes the largest users shrink, perhaps this one, if the budget is exceeded. Returns them. No user may be locked.
    pub(super) fn enforce(&self) -> Vec<Arc<T>> {
        let budget = &self.budget;
        if !budget.is_exceeded() {
            return Vec::new();
        }
        let Some(_shrinking) = budget.shrinking.try_lock().filter(|_| budget.is_exceeded()) else {
            return Vec::new();
        };
        // Not while the users are locked: whoever is dropped here removes itself.
        let (share, users) = budget.largest();
        for user in &users {
            user.shrink(share);
        }
        users
    }
}

impl<T> Drop for FairUse<T> {
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
        used: FairUse<Self>,
    }

    impl Shrink for Room {
        fn shrink(&self, bytes: usize) {
            self.used.set(bytes);
        }
    }

    fn room(budget: &Arc<FairBudget<Room>>, bytes: usize) -> Arc<Room> {
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
        assert_eq!(sizes(&rooms), [10, 267, 0, 80]);
        assert_eq!(sizes(&[last]), [267]);
        drop(rooms);
        assert_eq!(budget.used.load(Ordering::Relaxed), 0);
        assert!(budget.users.lock().is_empty());
    }

    #[test]
    fn a_new_user_makes_few_of_those_shrink_that_have_shrunk_before() {
        let budget = Arc::new(FairBudget::new(100_000));
        let mut rooms = vec![room(&budget, 0)];
        let mut shrunk = 0;
        for _ in 0..1_000 {
            let new = room(&budget, 0);
            new.used.set(10_000);
            shrunk += new.used.enforce().len();
            rooms.push(new);
        }
        // Two or three new ones exceed the budget. Their shares become a hundred times smaller, in steps of a sixth or more.
        assert!(shrunk < 1_000 * 30, "{shrunk}");
    }

    proptest! {
        #[test]
        fn who_shrinks_gives_back_much_and_what_is_left_fits(sizes in prop::collection::vec(1_usize..10_000, 0..50)) {
            let budget = Arc::new(FairBudget::new(10_000));
            let rooms: Vec<_> = sizes.iter().map(|_| room(&budget, 0)).collect();
            for (room, size) in rooms.iter().zip(&sizes) {
                room.used.set(*size);
            }
            let is_exceeded = budget.is_exceeded();
            let used = |room: &Room| room.used.bytes.load(Ordering::Relaxed);
            let shrunk = rooms.first().map(|room| room.used.enforce()).unwrap_or_default();
            prop_assert_eq!(shrunk.is_empty(), !is_exceeded);
            for (room, size) in rooms.iter().zip(sizes) {
                let left = used(room);
                prop_assert!(left == size || left + left / 5 < size);
                prop_assert!(left == size || rooms.iter().all(|other| used(other) <= left + left / 5));
            }
            prop_assert!(!is_exceeded || budget.used.load(Ordering::Relaxed) <= 7_500);
        }

        #[test]
        fn a_share_is_the_largest_that_fits(limit in 0_usize..10_000, sizes in prop::collection::vec(1_usize..1_000, 0..50)) {
            let kept = |share: usize| sizes.iter().map(|size| *size.min(&share)).sum::<usize>();
            let share = max_min_share(limit, &mut sizes.clone());
            prop_assert!(kept(share) <= limit);
            prop_assert!(share == usize::MAX || kept(share + 1) > limit);
        }
    }
}
