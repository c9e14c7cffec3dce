//! A room as those outside its driver see it.

use std::sync::Arc;

use super::feed::Feed;
use super::request::Request;
use crate::domain::{Epoch, RoomName};
use crate::order::Inbox;

/// How much may wait in a room's inbox, in bytes: some thousand short messages, so that a batch is worth its wake-up,
/// and little enough that a message does not wait long behind it.
const INBOX_CAPACITY: usize = 1 << 20;

/// A room's ends: the inbox into which its commands go, and the feed out of which its events come.
pub(super) struct RoomHandle {
    pub(super) name: RoomName,
    pub(super) epoch: Epoch,
    pub(super) inbox: Arc<Inbox<Request>>,
    pub(super) feed: Arc<Feed>,
}

impl RoomHandle {
    pub(super) fn new(name: RoomName, epoch: Epoch, feed: Arc<Feed>) -> Arc<Self> {
        Arc::new(Self {
            name,
            epoch,
            inbox: Arc::new(Inbox::new(INBOX_CAPACITY)),
            feed,
        })
    }
}
