//! Limits how many of the rooms one address has created.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use indexmap::IndexMap;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::domain::RoomName;

/// How many rooms are remembered at most. The creators of further ones are not: other limits hold for them.
const MAX_ROOMS: usize = 65_536;

/// How many of them an attempt that needs a place checks for whether they still exist. Checking all would take tens of milliseconds.
const CHECKS_PER_ATTEMPT: usize = 64;

/// How often all of them are checked at most. A client that is refused a place can try again thousands of times per second.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// The rooms that were created since the start, and who has created them.
#[derive(Debug)]
pub(super) struct RoomQuotas {
    per_address: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    creators: IndexMap<RoomName, IpAddr>,
    counts: HashMap<IpAddr, usize>,
    /// The index of the room to check next.
    next: usize,
    /// How many rooms have not been checked since the checks began.
    unchecked: usize,
    checks_began_at: Option<Instant>,
}

impl RoomQuotas {
    pub(super) fn new(per_address: usize) -> Self {
        Self {
            per_address,
            state: Mutex::default(),
        }
    }

    /// Counts a room that `address` creates. Returns false if it has created as many as it may, of which those count that
    /// still exist.
    pub(super) fn try_create(
        &self,
        address: IpAddr,
        room: &RoomName,
        exists: impl Fn(&RoomName) -> bool,
    ) -> bool {
        let state = &mut *self.state.lock();
        let is_full = |state: &State| {
            let count = state.counts.get(&address).copied().unwrap_or_default();
            count >= self.per_address || state.creators.len() >= MAX_ROOMS
        };
        if is_full(state) {
            state.forget_ended(exists);
        }
        if state.creators.len() >= MAX_ROOMS {
            return true;
        }
        if is_full(state) {
            return false;
        }
        if let Some(before) = state.creators.insert(room.clone(), address) {
            state.uncount(before);
        }
        *state.counts.entry(address).or_default() += 1;
        true
    }
}

impl State {
    /// Checks the next rooms, unless all have just been checked, and forgets those that do not exist any more.
    fn forget_ended(&mut self, exists: impl Fn(&RoomName) -> bool) {
        if self.unchecked == 0 {
            let now = Instant::now();
            if self
                .checks_began_at
                .is_some_and(|began_at| now - began_at < CHECK_INTERVAL)
            {
                return;
            }
            (self.unchecked, self.checks_began_at) = (self.creators.len(), Some(now));
        }
        for _ in 0..CHECKS_PER_ATTEMPT.min(self.unchecked) {
            self.unchecked -= 1;
            self.next %= self.creators.len();
            let Some((room, creator)) = self.creators.get_index(self.next) else {
                break;
            };
            if exists(room) {
                self.next += 1;
            } else {
                let creator = *creator;
                self.creators.swap_remove_index(self.next);
                self.uncount(creator);
            }
        }
    }

    fn uncount(&mut self, address: IpAddr) {
        if let Some(count) = self.counts.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::collections::HashSet;

    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_address_may_create_rooms_as_long_as_few_of_its_rooms_exist() {
        let name = |room: &str| RoomName::try_from(room).unwrap();
        let quotas = RoomQuotas::new(2);
        let rooms = RefCell::new(HashSet::new());
        let create = |address: &str, room: &str| {
            let room = name(room);
            let is_allowed = quotas.try_create(address.parse().unwrap(), &room, |room| {
                rooms.borrow().contains(room)
            });
            is_allowed && rooms.borrow_mut().insert(room)
        };
        assert!(create("192.0.2.1", "one") && create("192.0.2.1", "two"));
        assert!(!create("192.0.2.1", "three") && create("192.0.2.2", "four"));
        rooms.borrow_mut().remove(&name("one"));
        advance(CHECK_INTERVAL).await;
        assert!(create("192.0.2.1", "three") && !create("192.0.2.1", "five"));
        // Whoever creates a room anew is its creator.
        rooms.borrow_mut().remove(&name("two"));
        advance(CHECK_INTERVAL).await;
        assert!(create("192.0.2.2", "two") && create("192.0.2.1", "five"));
        assert_eq!(quotas.state.lock().creators.len(), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn rooms_that_exist_are_not_checked_again_for_each_attempt() {
        let name = |room: usize| RoomName::try_from(format!("room {room}").as_str()).unwrap();
        let address = "192.0.2.1".parse().unwrap();
        let quotas = RoomQuotas::new(1_000);
        let checks = Cell::new(0);
        let exists = |_: &RoomName| {
            checks.update(|count| count + 1);
            true
        };
        for room in 0..1_000 {
            assert!(quotas.try_create(address, &name(room), exists));
        }
        for _ in 0..3 {
            for _ in 0..1_000 {
                assert!(!quotas.try_create(address, &name(1_000), exists));
            }
            assert_eq!(checks.take(), 1_000);
            advance(CHECK_INTERVAL).await;
        }
    }

    #[test]
    fn a_room_that_has_ended_is_found_although_there_are_many() {
        let name = |room: usize| RoomName::try_from(format!("room {room}").as_str()).unwrap();
        let address = "192.0.2.1".parse().unwrap();
        let rooms = 10 * CHECKS_PER_ATTEMPT;
        for ended in [0, 100, rooms - 1] {
            let quotas = RoomQuotas::new(rooms);
            let checks = Cell::new(0);
            let exists = |room: &RoomName| {
                checks.update(|count| count + 1);
                *room != name(ended)
            };
            let mut rejected = 0;
            for room in 0..rooms {
                assert!(quotas.try_create(address, &name(room), exists));
            }
            while !quotas.try_create(address, &name(rooms), exists) {
                rejected += 1;
                assert!(checks.take() <= CHECKS_PER_ATTEMPT && rejected < 10);
            }
            assert_eq!(quotas.state.lock().creators.len(), rooms);
        }
    }
}
