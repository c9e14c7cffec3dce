//! The readers of a room that have something to read, and are woken some at a time.
//!
//! The runtime runs tasks in the order in which they are woken, and a reader takes some ten microseconds, most of them for the write to
//! its socket. If an event woke thousands of readers at once, everybody else would wait until all of them had run. So a room wakes a group of
//! them and goes to the back of the run queue before it wakes the next one, and all rooms together wake only some groups at a time.

use std::collections::VecDeque;
use std::task::Waker;

use tokio::sync::Semaphore;

use crate::run_queue::{SATURATING_TASKS, WAKE_GROUP, requeue};
use crate::spare_capacity::reduced_capacity;

/// Permits to wake the second group of a publication and the following ones, which all rooms share. A room holds one from
/// before it wakes the group until its task runs again. A room with no more readers than a group never waits for other rooms.
#[derive(Debug)]
pub(super) struct WakePermits(Semaphore);

impl Default for WakePermits {
    fn default() -> Self {
        Self(Semaphore::new(*SATURATING_TASKS))
    }
}

/// The readers that a room has to wake. Dropping the queue wakes those that are left.
#[derive(Debug, Default)]
pub struct WakeQueue {
    wakers: VecDeque<Waker>,
    /// How many readers the room has.
    readers: usize,
}

impl WakeQueue {
    pub(super) fn push(&mut self, reader: Option<Waker>) {
        self.wakers.extend(reader);
    }

    /// Sets how many readers the room has, so that the queue does not stay as large as it was with more of them.
    pub(super) const fn set_readers(&mut self, readers: usize) {
        self.readers = readers;
    }

    /// Wakes all of them, in groups: the first one at once, each of the others with a permit.
    ///
    /// Cancellation safe: those that are left stay in the queue.
    pub(super) async fn wake_all(&mut self, permits: &WakePermits) {
        self.wake(WAKE_GROUP);
        while !self.wakers.is_empty() {
            // An error would mean that the semaphore is closed, which it never is.
            let permit = permits.0.acquire().await;
            self.wake(WAKE_GROUP);
            requeue().await;
            drop(permit);
        }
    }

    /// Wakes the first `count`, or all if there are fewer.
    pub fn wake(&mut self, count: usize) {
        let count = count.min(self.wakers.len());
        self.wakers.drain(..count).for_each(Waker::wake);
        if self.wakers.is_empty()
            && let Some(capacity) = reduced_capacity(self.readers, self.wakers.capacity())
        {
            self.wakers.shrink_to(capacity);
        }
    }
}

impl Drop for WakeQueue {
    fn drop(&mut self) {
        self.wake(usize::MAX);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::task::Context;

    use futures_util::FutureExt as _;

    use super::*;
    use crate::run_queue::tests::CountingTask;

    fn queue(len: usize) -> (WakeQueue, Arc<CountingTask>) {
        let count = Arc::<CountingTask>::default();
        let mut queue = WakeQueue::default();
        queue.set_readers(len);
        (0..len).for_each(|_| queue.push(Some(Arc::clone(&count).into())));
        (queue, count)
    }

    #[tokio::test]
    async fn others_run_between_groups_of_readers() {
        let (mut queue, woken) = queue(10 * WAKE_GROUP);
        // The first group and the next one are woken together.
        let permits = WakePermits::default();
        let waking = tokio::spawn(async move { queue.wake_all(&permits).await });
        // In a task of its own: that of the test is in no queue.
        let observing = tokio::spawn(async move {
            let mut seen = vec![0];
            while !waking.is_finished() {
                seen.push(woken.wake_ups());
                requeue().await;
            }
            seen.push(woken.wake_ups());
            seen
        });
        let seen = observing.await.unwrap();
        let steps: Vec<_> = seen.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(steps.iter().all(|step| *step <= 2 * WAKE_GROUP), "{seen:?}");
        assert_eq!(seen.last(), Some(&(10 * WAKE_GROUP)));
    }

    #[test]
    fn each_group_but_the_first_waits_for_those_of_other_rooms() {
        let permits = WakePermits(Semaphore::new(1));
        let (mut one, _) = queue(3 * WAKE_GROUP);
        let (mut other, woken) = queue(2 * WAKE_GROUP);
        let mut waking = Box::pin(one.wake_all(&permits));
        let mut cx = Context::from_waker(Waker::noop());
        assert!(waking.poll_unpin(&mut cx).is_pending());
        let mut waiting = Box::pin(other.wake_all(&permits));
        assert!(waiting.poll_unpin(&mut cx).is_pending());
        assert_eq!(woken.wake_ups(), WAKE_GROUP);
        drop(waking);
        assert!(waiting.poll_unpin(&mut cx).is_pending());
        assert_eq!(woken.wake_ups(), 2 * WAKE_GROUP);
        assert!(waiting.poll_unpin(&mut cx).is_ready());
    }

    #[test]
    fn readers_are_woken_although_the_room_ends() {
        let (mut queue, woken) = queue(3 * WAKE_GROUP);
        assert!(
            queue
                .wake_all(&WakePermits(Semaphore::new(0)))
                .now_or_never()
                .is_none()
        );
        assert_eq!(woken.wake_ups(), WAKE_GROUP);
        drop(queue);
        assert_eq!(woken.wake_ups(), 3 * WAKE_GROUP);
    }

    #[test]
    fn the_queue_does_not_stay_larger_than_the_room() {
        let (mut queue, _) = queue(5_000);
        queue.set_readers(1);
        queue.wake(usize::MAX);
        assert!(queue.wakers.capacity() < 200);
    }
}
