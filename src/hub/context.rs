//! The options, the store and the other objects that all rooms of a hub share.

use std::sync::Arc;
use std::time::Duration;

use super::observer::Observer;
use super::session_token::SessionTokens;
use crate::store::Store;

/// What all rooms of a hub share. Cheap to clone.
#[derive(Clone)]
pub(super) struct HubContext {
    pub(super) options: HubOptions,
    pub(super) store: Arc<dyn Store>,
    pub(super) tokens: SessionTokens,
    pub(super) observer: Arc<dyn Observer>,
}

/// The options of a hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HubOptions {
    /// The maximum number of rooms.
    pub max_rooms: usize,
    /// The capacity of a room's feed, in bytes: a subscriber that lags by more is served from the store.
    pub feed_bytes: usize,
    /// How long a disconnected participant may resume its session before it leaves.
    pub resume_grace: Duration,
    /// The longest interval between two batches of a busy room with many subscribers.
    pub coalesce: Duration,
    /// The maximum age of retained events; `None` for no limit. The store deletes only what a snapshot covers, so a room
    /// writes snapshots often enough for this age.
    pub retain_age: Option<Duration>,
}

impl Default for HubOptions {
    fn default() -> Self {
        Self {
            max_rooms: 10_000,
            feed_bytes: 4 << 20,
            resume_grace: Duration::from_secs(10),
            coalesce: Duration::from_millis(50),
            retain_age: None,
        }
    }
}
