//! The options, the store and the other objects that all rooms of a hub share.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::task::TaskTracker;

use super::fair_budget::FairBudget;
use super::feed::Feed;
use super::message_id_use::MessageIdUse;
use super::observer::Observer;
use super::read_permits::ReadPermits;
use super::replication::Replication;
use super::session_token::SessionTokens;
use super::wake_queue::WakePermits;
use crate::store::Store;

/// What all rooms of a hub share. Cheap to clone.
#[derive(Clone)]
pub(super) struct HubContext {
    pub(super) options: HubOptions,
    pub(super) store: Arc<dyn Store>,
    pub(super) tokens: SessionTokens,
    pub(super) read_permits: ReadPermits,
    pub(super) wake_permits: Arc<WakePermits>,
    pub(super) observer: Arc<dyn Observer>,
    /// What the feeds of all rooms hold.
    pub(super) feed_budget: Arc<FairBudget<Feed>>,
    /// What the message ids take that all rooms remember.
    pub(super) message_id_budget: Arc<FairBudget<MessageIdUse>>,
    /// The actors of the rooms, and what they spawn.
    pub(super) tasks: TaskTracker,
    /// The order of all replicas, if there are several.
    pub(super) replication: Option<Replication>,
}

/// The options of a hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HubOptions {
    /// The maximum number of rooms.
    pub max_rooms: usize,
    /// The capacity of a room's feed, in bytes: a subscriber that lags by more is served from the store.
    pub feed_bytes: usize,
    /// The memory of all rooms together.
    pub budgets: RoomBudgets,
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
            budgets: RoomBudgets::default(),
            resume_grace: Duration::from_secs(10),
            coalesce: Duration::from_millis(50),
            retain_age: None,
        }
    }
}

/// The memory that all rooms together may take, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoomBudgets {
    /// What feeds hold for slow readers. Beyond it those that hold most give some of it back.
    pub feeds: usize,
    /// Requests that wait in mailboxes, or to be stored. Beyond it each mailbox makes do with little.
    pub mailboxes: usize,
    /// The message ids that the rooms remember. Beyond it those that remember most forget their oldest.
    pub message_ids: usize,
}

impl Default for RoomBudgets {
    fn default() -> Self {
        Self {
            feeds: 32 << 20,
            mailboxes: 32 << 20,
            message_ids: 32 << 20,
        }
    }
}
