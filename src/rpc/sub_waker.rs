//! Tracks which parts of a task have been woken: here the connection and its streams.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Wake, Waker};

use futures_util::task::AtomicWaker;

/// A waker for one sub-future of a task.
///
/// It tells the task whether that sub-future needs to be polled, and wakes the task only when the task is not being polled
/// already: a wake-up that the task itself causes costs no second poll.
#[derive(Debug)]
pub(super) struct SubWaker {
    state: Arc<State>,
    /// Wakes `state`.
    waker: Waker,
}

#[derive(Debug, Default)]
struct State {
    task: AtomicWaker,
    is_woken: AtomicBool,
    is_polling: AtomicBool,
}

impl SubWaker {
    /// A waker that has already been woken, because a future must be polled once before it can wake anything.
    pub(super) fn new() -> Self {
        let state = Arc::new(State::default());
        state.is_woken.store(true, Ordering::SeqCst);
        let waker = Waker::from(Arc::clone(&state));
        Self { state, waker }
    }

    /// The context to poll the sub-future with.
    pub(super) fn context(&self) -> Context<'_> {
        Context::from_waker(&self.waker)
    }

    /// Marks the sub-future as woken, and wakes the task unless it is being polled.
    pub(super) fn wake(&self) {
        self.waker.wake_by_ref();
    }

    /// Called when a poll of the task begins, with the waker of the task. From now on a wake-up only marks the sub-future as
    /// woken. The task must call [`SubWaker::end_poll`] before it returns `Pending`.
    pub(super) fn begin_poll(&self, task: &Waker) {
        self.state.task.register(task);
        self.state.is_polling.store(true, Ordering::SeqCst);
    }

    /// Returns whether the sub-future was woken since the last call, and so needs to be polled.
    pub(super) fn take_woken(&self) -> bool {
        self.state.is_woken.swap(false, Ordering::SeqCst)
    }

    /// From now on a wake-up wakes the task. Returns whether the task can return `Pending`: false if the sub-future has
    /// been woken in the meantime.
    pub(super) fn end_poll(&self) -> bool {
        // Here and in `wake_by_ref` each side writes its own flag and then reads the other's. So a concurrent wake-up is seen
        // here, or wakes the task.
        self.state.is_polling.store(false, Ordering::SeqCst);
        !self.state.is_woken.load(Ordering::SeqCst)
    }
}

impl Wake for State {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.is_woken.store(true, Ordering::SeqCst);
        if !self.is_polling.load(Ordering::SeqCst) {
            self.task.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run_queue::tests::CountingTask;

    #[test]
    fn a_task_is_woken_only_while_it_is_not_polled() {
        let task = Arc::new(CountingTask::default());
        let wake_ups = || task.wake_ups();
        let task_waker = Waker::from(Arc::clone(&task));
        let sub_waker = SubWaker::new();
        assert!(sub_waker.take_woken());

        sub_waker.begin_poll(&task_waker);
        sub_waker.wake();
        assert_eq!((wake_ups(), sub_waker.end_poll()), (0, false));
        sub_waker.begin_poll(&task_waker);
        assert!(sub_waker.take_woken());
        assert!(!sub_waker.take_woken());
        assert!(sub_waker.end_poll());
        sub_waker.wake();
        assert_eq!(wake_ups(), 1);
        sub_waker.begin_poll(&task_waker);
        assert!(sub_waker.take_woken());
    }
}
