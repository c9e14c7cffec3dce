//! What the message ids of a room take of the budget of all rooms.

use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::task::TaskTracker;

use super::fair_budget::{FairBudget, FairUse, Shrink};
use super::room_writers::RoomWriters;
use crate::domain::DEDUP_ENTRY_BYTES;
use crate::run_queue::{WAKE_GROUP, requeue};

/// What the message ids of a room take of the budget of all rooms.
pub(super) struct MessageIdUse {
    used: FairUse<Self>,
    /// How many the room may remember, until its actor has forgotten the others.
    limit: Mutex<Option<usize>>,
    has_limit: Notify,
}

impl MessageIdUse {
    pub(super) fn new(budget: &Arc<FairBudget<Self>>, writers: Arc<RoomWriters>) -> Arc<Self> {
        Arc::new_cyclic(|this: &Weak<Self>| Self {
            used: budget.register(this.clone(), writers),
            limit: Mutex::new(None),
            has_limit: Notify::new(),
        })
    }

    /// Waits until the room must forget ids. Cancellation safe.
    pub(super) async fn limited(&self) {
        self.has_limit.notified().await;
    }

    /// How many ids the room may still remember, if that has changed since the last call.
    pub(super) fn take_limit(&self) -> Option<usize> {
        self.limit.lock().take()
    }

    /// Reports how many ids the room remembers. If all rooms remember too many, a task of `tasks` makes those with most forget some.
    pub(super) fn set(&self, ids: usize, tasks: &TaskTracker) {
        self.used.set(ids * DEDUP_ENTRY_BYTES);
        let limited = self.used.enforce();
        if !limited.is_empty() {
            tasks.spawn(notify_all(limited));
        }
    }
}

impl Shrink for MessageIdUse {
    /// Counts the memory as freed. The room's actor frees it with the next batch, or once it is notified.
    fn shrink(&self, bytes: usize) {
        *self.limit.lock() = Some(bytes / DEDUP_ENTRY_BYTES);
        self.used.set(bytes);
    }
}

/// Notifies the actors, some at a time: there may be thousands, and whoever is woken meanwhile waits for those that were before.
async fn notify_all(limited: Vec<Arc<MessageIdUse>>) {
    for group in limited.chunks(WAKE_GROUP) {
        group.iter().for_each(|room| room.has_limit.notify_one());
        requeue().await;
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn rooms_that_must_forget_ids_are_notified_some_at_a_time() {
        let budget = Arc::new(FairBudget::new(1_000 * DEDUP_ENTRY_BYTES));
        let tasks = TaskTracker::new();
        let rooms: Vec<_> = (0..100)
            .map(|_| MessageIdUse::new(&budget, Arc::default()))
            .collect();
        for room in &rooms {
            room.set(10, &tasks);
        }
        assert!(tasks.is_empty(), "so many are allowed");
        rooms[0].set(11, &tasks);
        assert_eq!(tasks.len(), 1);
        // Like the rooms' actors, a task of the runtime.
        let all = rooms.clone();
        let counted = tokio::spawn(async move {
            let mut groups = Vec::new();
            while !tasks.is_empty() {
                let notified = all.iter().filter(|room| room.limited().now_or_never().is_some());
                groups.push(notified.count());
                requeue().await;
            }
            groups
        });
        let groups = counted.await.unwrap();
        assert!(groups.iter().all(|count| *count <= WAKE_GROUP), "{groups:?}");
        assert_eq!(groups.iter().sum::<usize>(), 100);
        assert!(rooms.iter().all(|room| room.take_limit() == Some(6)));
    }
}
