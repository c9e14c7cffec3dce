//! A budget of memory that rooms share: when it is exceeded, those that use most give memory back.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use slab::Slab;

use super::room_writers::{RoomWriters, Writers};

/// Something that uses memory and can do with less.
pub(super) trait Shrink: Send + Sync {
    /// Gives memory back until no more than `bytes` are used, and reports that with [`FairUse::set`].
    fn shrink(&self, bytes: usize);
}

/// A number of bytes that many users share.
///
/// Whoever exceeds it makes the largest users shrink until at most three quarters of it are used: to the size at which they are equal, while
/// all others are smaller (max-min fairness). The rooms that clients of one address write to alone have one share together, which is divided
/// between them in the same way, so that thousands of them take little from the rooms of others. So have the rooms that nobody has written to
/// since they were loaded, because whoever reads rooms can load thousands. The cost is one look at each user, and
/// sorting them, for each quarter of the budget that is used.
///
/// Who has up to a fifth more than its share keeps it. Otherwise thousands that have shrunk before would each have to shrink by a little
/// whenever another user comes.
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
    writers: Arc<RoomWriters>,
}

/// Who has a share: the rooms with the same writers, and each room with several by itself.
type Holder = (Writers, Option<usize>);

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

    /// Registers a user, which uses nothing yet, of the room with these writers.
    pub(super) fn register(self: &Arc<Self>, user: Weak<T>, writers: Arc<RoomWriters>) -> FairUse<T> {
        let bytes = Arc::<AtomicUsize>::default();
        let key = self.users.lock().insert(User {
            bytes: Arc::clone(&bytes),
            user,
            writers,
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

    /// The users that must shrink, each with the size to which it must.
    fn too_large(&self) -> Vec<(Arc<T>, usize)> {
        let users = self.users.lock();
        let mut sizes: Vec<(Holder, usize, usize)> = users
            .iter()
            .map(|(key, user)| {
                let writers = user.writers.get();
                let holder = (writers, (writers == Writers::Several).then_some(key));
                (holder, user.bytes.load(Ordering::Relaxed), key)
            })
            .filter(|(_, size, _)| *size > 0)
            .collect();
        sizes.sort_unstable();
        let of_holders = || sizes.chunk_by(|(holder, ..), (next, ..)| holder == next);
        let mut totals: Vec<usize> = of_holders().map(total).collect();
        // With the fifth that is tolerated this is three quarters.
        let share = max_min_share(self.limit / 8 * 5, &mut totals);
        let mut too_large = Vec::new();
        for rooms in of_holders().filter(|rooms| total(rooms) > tolerated(share)) {
            let mut sizes: Vec<usize> = rooms.iter().map(|(_, size, _)| *size).collect();
            let share = max_min_share(share, &mut sizes);
            let of_holder = rooms.iter().filter(|(_, size, _)| *size > tolerated(share));
            too_large
                .extend(of_holder.filter_map(|(.., key)| Some((users.get(*key)?.user.upgrade()?, share))));
        }
        too_large
    }
}

/// What the rooms of a holder use together.
fn total(rooms: &[(Holder, usize, usize)]) -> usize {
    rooms.iter().map(|(_, size, _)| *size).sum()
}

/// Up to how much whoever has this share may use without having to shrink.
const fn tolerated(share: usize) -> usize {
    share.saturating_add(share / 5)
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
        let shrink = |(user, share): (Arc<T>, usize)| {
            user.shrink(share);
            user
        };
        budget.too_large().into_iter().map(shrink).collect()
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
    use crate::domain::Origin;

    struct Room {
        used: FairUse<Self>,
    }

    impl Shrink for Room {
        fn shrink(&self, bytes: usize) {
            self.used.set(bytes);
        }
    }

    /// A room that only the client with this number writes to, or nobody if it is 0, or several clients if there is none.
    fn room_of(budget: &Arc<FairBudget<Room>>, client: Option<u8>, bytes: usize) -> Arc<Room> {
        let writers = RoomWriters::default();
        for writer in client.map_or(1..3, |client| client..client + 1) {
            writers.note(Some(&Origin {
                address: (writer > 0).then(|| [192, 0, 2, writer].into()),
                ..Origin::default()
            }));
        }
        let room = Arc::new_cyclic(|room: &Weak<Room>| Room {
            used: budget.register(room.clone(), Arc::new(writers)),
        });
        room.used.set(bytes);
        room.used.enforce();
        room
    }

    fn room(budget: &Arc<FairBudget<Room>>, bytes: usize) -> Arc<Room> {
        room_of(budget, None, bytes)
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

    #[test]
    fn many_rooms_of_one_address_take_no_more_than_one_room_of_others() {
        let budget = Arc::new(FairBudget::new(100_000));
        let large = room(&budget, 30_000);
        let other = room_of(&budget, Some(2), 20_000);
        let rooms: Vec<_> = (0..1_000).map(|_| room_of(&budget, Some(1), 1_000)).collect();
        assert_eq!(sizes(&[large, other]), [21_250, 20_000]);
        let left = sizes(&rooms);
        assert!(left.iter().all(|size| *size > 0) && left.iter().sum::<usize>() <= 58_750);
    }

    proptest! {
        #[test]
        fn who_shrinks_gives_back_much_and_what_is_left_fits(
            sizes in prop::collection::vec((1_usize..10_000, prop::option::of(0_u8..5)), 0..50)
        ) {
            let budget = Arc::new(FairBudget::new(10_000));
            let rooms: Vec<_> = sizes.iter().map(|(_, client)| room_of(&budget, *client, 0)).collect();
            for (room, (size, _)) in rooms.iter().zip(&sizes) {
                room.used.set(*size);
            }
            let is_exceeded = budget.is_exceeded();
            let used = |room: &Room| room.used.bytes.load(Ordering::Relaxed);
            let shrunk = rooms.first().map(|room| room.used.enforce()).unwrap_or_default();
            prop_assert_eq!(shrunk.is_empty(), !is_exceeded);
            let all = || rooms.iter().zip(&sizes).map(|(room, (size, client))| (used(room), *size, *client));
            let of_holder = |left: usize, client: Option<u8>| {
                let others = all().filter(|(.., other)| client.is_some() && *other == client);
                others.map(|(left, ..)| left).reduce(|sum, left| sum + left).unwrap_or(left)
            };
            // Shares are rounded down, for each room by less than a byte.
            let at_most_a_fifth_more = |more: usize, less: usize| more <= less + less / 5 + 2 * rooms.len();
            for (left, size, client) in all() {
                prop_assert!(left == size || left + left / 5 < size);
                for (other_left, _, other) in all().filter(|_| left < size) {
                    if client.is_some() && client == other {
                        prop_assert!(other_left <= left + left / 5);
                    }
                    prop_assert!(at_most_a_fifth_more(of_holder(other_left, other), of_holder(left, client)));
                }
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
