//! The runtime's queue of tasks.

use std::future::poll_fn;
use std::task::Poll;

/// Continues behind everything that is to run now. After [`yield_now`](tokio::task::yield_now) a task is the next one as soon as the runtime
/// has looked at the sockets, which it does after some tasks, however many wait: one that always yields so and wakes others each time fills
/// the queue.
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
    async fn everything_that_is_to_run_runs_before_the_task_continues() {
        let ran = Arc::<AtomicUsize>::default();
        for _ in 0..1_000 {
            let ran = Arc::clone(&ran);
            tokio::spawn(async move { ran.fetch_add(1, Ordering::Relaxed) });
        }
        let counted = Arc::clone(&ran);
        let requeued = tokio::spawn(async move {
            requeue().await;
            counted.load(Ordering::Relaxed)
        });
        assert_eq!(requeued.await.unwrap(), 1_000);
    }
}
