//! Fair turns between connections.
//!
//! The runtime runs tasks in the order in which they are woken, so a thousand connections that always have something to do would
//! delay everybody else by a thousand turns. Of the busy connections from one address only some run at a time; the others wait
//! for their turns, while connections that send little do not wait at all.

use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::thread::available_parallelism;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::PollSemaphore;

/// The interval over which work is counted.
const INTERVAL: Duration = Duration::from_millis(100);

/// A connection that makes more work than this in [`INTERVAL`] is busy: a thousand messages, or sixty calls.
const BUSY_WORK: u64 = 1_000;

/// How many busy connections of one address run at a time: enough to occupy the machine.
pub(super) fn turns() -> Semaphore {
    Semaphore::new(2 * available_parallelism().map_or(1, usize::from))
}

/// The turns of one connection.
#[derive(Debug)]
pub(super) struct Turns {
    /// The turns of the address.
    semaphore: PollSemaphore,
    started_at: Instant,
    /// The work until `started_at`.
    work_before: u64,
    is_busy: bool,
}

impl Turns {
    pub(super) fn new(turns: Arc<Semaphore>) -> Self {
        Self {
            semaphore: PollSemaphore::new(turns),
            started_at: Instant::now(),
            work_before: 0,
            is_busy: false,
        }
    }

    /// Waits for a turn of this connection, which has made `work` so far. The turn lasts until the permit is dropped.
    pub(super) fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
        work: u64,
    ) -> Poll<Option<OwnedSemaphorePermit>> {
        let is_busy = work - self.work_before > BUSY_WORK;
        let now = Instant::now();
        if now - self.started_at >= INTERVAL {
            (self.started_at, self.work_before) = (now, work);
            self.is_busy = is_busy;
        } else {
            self.is_busy |= is_busy;
        }
        if self.is_busy {
            Poll::Ready(ready!(self.semaphore.poll_acquire(cx)))
        } else {
            Poll::Ready(None)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn busy_connections_take_turns_and_others_do_not_wait() {
        let turns = Arc::new(Semaphore::new(1));
        let mut cx = Context::from_waker(Waker::noop());
        let [mut one, mut other, mut quiet] = [(); 3].map(|()| Turns::new(Arc::clone(&turns)));
        let Poll::Ready(Some(turn)) = one.poll_next(&mut cx, 2_000) else {
            panic!("the first busy connection waits");
        };
        assert!(other.poll_next(&mut cx, 2_000).is_pending());
        assert!(matches!(quiet.poll_next(&mut cx, 900), Poll::Ready(None)));
        drop(turn);
        assert!(matches!(other.poll_next(&mut cx, 2_000), Poll::Ready(Some(_))));
        // Once it has been quiet it needs no turn.
        tokio::time::advance(INTERVAL).await;
        assert!(matches!(other.poll_next(&mut cx, 2_001), Poll::Ready(Some(_))));
        tokio::time::advance(INTERVAL).await;
        assert!(matches!(other.poll_next(&mut cx, 2_002), Poll::Ready(None)));
    }
}
