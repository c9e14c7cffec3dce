//! All rooms, by name.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio_util::task::TaskTracker;

use super::driver::Driver;
use super::end::End;
use super::feed::Feed;
use super::joining::{JoinError, Joining};
use super::now::wall_time;
use super::observer::Observer;
use super::request::Request;
use super::room::RoomHandle;
use crate::domain::{Epoch, Join, RoomName, Rules};
use crate::order::Sender;

/// The limits of a hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HubLimits {
    /// How many rooms there may be.
    pub max_rooms: usize,
    /// How much a room's feed keeps for those who are behind, in bytes.
    pub feed_bytes: usize,
}

impl Default for HubLimits {
    fn default() -> Self {
        Self {
            max_rooms: 10_000,
            feed_bytes: 16 << 20,
        }
    }
}

/// All rooms, by name.
pub struct Hub {
    rules: Rules,
    limits: HubLimits,
    observer: Arc<dyn Observer>,
    rooms: Mutex<Rooms>,
    drivers: TaskTracker,
}

#[derive(Default)]
struct Rooms {
    by_name: HashMap<RoomName, Arc<RoomHandle>>,
    draining: bool,
}

impl Hub {
    /// A hub without rooms. They are made when somebody joins them.
    #[must_use]
    pub fn new(rules: Rules, limits: HubLimits, observer: Arc<dyn Observer>) -> Arc<Self> {
        Arc::new(Self {
            rules,
            limits,
            observer,
            rooms: Mutex::default(),
            drivers: TaskTracker::new(),
        })
    }

    /// The rules of its rooms.
    #[must_use]
    pub const fn rules(&self) -> &Rules {
        &self.rules
    }

    /// Begins to join `room`. What the JOIN says was decoded at `received`. Must be called, and the future polled,
    /// within a Tokio runtime.
    #[must_use]
    pub fn join(self: &Arc<Self>, room: RoomName, join: Join, received: Instant) -> Joining {
        Joining::new(Arc::clone(self), room, join, received)
    }

    /// Ends every stream after what its room has accepted, telling it to come back after about `retry`, takes nobody
    /// in any more, and returns when all rooms have come to their end.
    ///
    /// Cancellation safe: calling it again goes on where it was.
    pub async fn drain(&self, retry: Duration) {
        let rooms: Vec<Arc<RoomHandle>> = {
            let mut rooms = self.lock();
            rooms.draining = true;
            rooms.by_name.drain().map(|(_, room)| room).collect()
        };
        self.drivers.close();
        for room in rooms {
            // A room that is closed already ends by itself.
            Sender::new(Arc::clone(&room.inbox))
                .push_reserved(Request::Close(End::Draining(retry)))
                .ok();
            room.inbox.close();
        }
        self.drivers.wait().await;
    }

    fn lock(&self) -> MutexGuard<'_, Rooms> {
        // Nothing in here panics while the lock is held.
        self.rooms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The room of this name, made if need be.
    pub(super) fn room(&self, name: &RoomName) -> Result<Arc<RoomHandle>, JoinError> {
        let mut rooms = self.lock();
        if rooms.draining {
            return Err(JoinError::Draining);
        }
        if let Some(room) = rooms.by_name.get(name).filter(|room| !room.inbox.is_closed()) {
            return Ok(Arc::clone(room));
        }
        if rooms.by_name.len() >= self.limits.max_rooms && !rooms.let_one_go() {
            return Err(JoinError::TooManyRooms(rooms.by_name.len()));
        }
        let feed = Feed::new(self.limits.feed_bytes, Arc::clone(&self.observer));
        let room = RoomHandle::new(name.clone(), Epoch::created_at(wall_time()), feed);
        self.drivers
            .spawn(Driver::new(self.rules, Arc::clone(&room), Arc::clone(&self.observer)).run());
        rooms.by_name.insert(name.clone(), Arc::clone(&room));
        Ok(room)
    }
}

impl Rooms {
    /// Makes place for a room by letting one go in which nobody is. Its log goes with it: when it comes back it has
    /// another epoch.
    fn let_one_go(&mut self) -> bool {
        let vacant = self.by_name.values().find(|room| {
            room.feed.cursors() == 0 && room.name.as_str() != RoomName::LOBBY && Arc::strong_count(room) <= 2
        });
        let Some(name) = vacant.map(|room| room.name.clone()) else {
            return false;
        };
        if let Some(room) = self.by_name.remove(&name) {
            room.inbox.close();
        }
        true
    }
}
