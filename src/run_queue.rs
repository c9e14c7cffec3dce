//! The runtime's queue of tasks.

use std::future::poll_fn;
use std::sync::LazyLock;
use std::task::Poll;
use std::thread::available_parallelism;

/// How many tasks that are always ready keep the machine busy: two per processor. Finding it out takes some system calls.
pub(crate) static SATURATING_TASKS: LazyLock<usize> =
    LazyLock::new(|| 2 * available_parallelism().map_or(1, usize::from));

/// How many tasks a task wakes at a time before it goes to the back of the queue with [`requeue`].
pub(crate) const WAKE_GROUP: usize = 32;

/// Yields, and goes to the back of the worker's queue. [`yield_now`](tokio::task::yield_now) defers the wake-up only until the next poll of the
/// I/O driver, which happens every few tasks however long the queue is: a task that wakes others each time it runs would make it longer and
/// longer.
pub(crate) async fn requeue() {
    let mut has_run = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut has_run, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    /// A task that counts how often it was woken.
    #[derive(Default)]
    pub(crate) struct CountingTask(AtomicUsize);

    impl CountingTask {
        pub(crate) fn wake_ups(&self) -> usize {
            self.0.load(Ordering::SeqCst)
        }
    }

    impl Wake for CountingTask {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[tokio::test]
    async fn what_was_woken_before_runs_before_the_task_continues() {
        let ran = Arc::<AtomicUsize>::default();
        let requeued = tokio::spawn(async move {
            for _ in 0..1_000 {
                let ran = Arc::clone(&ran);
                tokio::spawn(async move { ran.fetch_add(1, Ordering::Relaxed) });
            }
            requeue().await;
            ran.load(Ordering::Relaxed)
        });
        assert_eq!(requeued.await.unwrap(), 1_000);
    }
}
