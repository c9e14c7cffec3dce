//! The runtime's queue of tasks.

use std::future::poll_fn;
use std::task::Poll;

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
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

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
