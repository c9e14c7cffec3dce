//! A room as those outside its driver see it.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};

use super::request::Request;
use crate::domain::{LamportTime, RoomName};
use crate::order::Inbox;

/// How much may wait in a room's inbox, in bytes: some thousand short messages, so that a batch is worth its wake-up,
/// and little enough that a message does not wait long behind it.
const INBOX_CAPACITY: usize = 1 << 20;

/// A room that is running: the inbox into which its requests go, and a glance at it.
pub(super) struct RoomHandle {
    pub(super) name: RoomName,
    pub(super) inbox: Arc<Inbox<Request>>,
    time: AtomicI64,
    participants: AtomicU32,
}

impl RoomHandle {
    pub(super) fn new(name: RoomName) -> Arc<Self> {
        let inbox = Arc::new(Inbox::new(INBOX_CAPACITY));
        Arc::new(Self {
            name,
            inbox,
            time: AtomicI64::new(0),
            participants: AtomicU32::new(0),
        })
    }

    /// Says how the room stands, for [`RoomHandle::glance`].
    pub(super) fn show(&self, time: LamportTime, participants: usize) {
        self.time.store(time.get(), Ordering::Relaxed);
        self.participants
            .store(u32::try_from(participants).unwrap_or(u32::MAX), Ordering::Relaxed);
    }

    /// The latest Lamport time and the number of participants.
    pub(super) fn glance(&self) -> (i64, u32) {
        (
            self.time.load(Ordering::Relaxed),
            self.participants.load(Ordering::Relaxed),
        )
    }
}
