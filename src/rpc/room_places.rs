//! Limits how many of the rooms one address has created.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::domain::RoomName;

/// How many rooms are remembered at most. The creators of further ones are not: other limits hold for them.
const MAX_ROOMS: usize = 65_536;

/// How often rooms that do not exist any more are looked for.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// The rooms that were created since the start, and who has created them.
#[derive(Debug)]
pub(super) struct RoomPlaces {
    per_address: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    creators: HashMap<RoomName, IpAddr>,
    counts: HashMap<IpAddr, usize>,
    swept_at: Option<Instant>,
}

impl RoomPlaces {
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
            state.sweep(exists);
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
    /// Forgets rooms that do not exist any more.
    fn sweep(&mut self, exists: impl Fn(&RoomName) -> bool) {
        let now = Instant::now();
        let is_due = |swept_at| now - swept_at >= SWEEP_INTERVAL;
        if !self.swept_at.is_none_or(is_due) {
            return;
        }
        self.swept_at = Some(now);
        for (_, creator) in self
            .creators
            .extract_if(|room, _| !exists(room))
            .collect::<Vec<_>>()
        {
            self.uncount(creator);
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
    use std::cell::RefCell;
    use std::collections::HashSet;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_address_may_create_rooms_as_long_as_few_of_its_rooms_exist() {
        let name = |room: &str| RoomName::try_from(room).unwrap();
        let places = RoomPlaces::new(2);
        let rooms = RefCell::new(HashSet::new());
        let create = |address: &str, room: &str| {
            let room = name(room);
            let is_allowed = places.try_create(address.parse().unwrap(), &room, |room| {
                rooms.borrow().contains(room)
            });
            is_allowed && rooms.borrow_mut().insert(room)
        };
        assert!(create("192.0.2.1", "one") && create("192.0.2.1", "two"));
        assert!(!create("192.0.2.1", "three") && create("192.0.2.2", "four"));
        rooms.borrow_mut().remove(&name("one"));
        // Rooms that have ended are not looked for all the time.
        assert!(!create("192.0.2.1", "three"));
        tokio::time::advance(SWEEP_INTERVAL).await;
        assert!(create("192.0.2.1", "three") && !create("192.0.2.1", "five"));
        // Whoever creates a room anew is its creator.
        rooms.borrow_mut().remove(&name("two"));
        assert!(create("192.0.2.2", "two") && create("192.0.2.1", "five"));
        assert_eq!(places.state.lock().creators.len(), 4);
    }
}
