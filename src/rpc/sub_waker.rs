//! A waker that does not wake a task which is at work: for what a task polls apart from its other parts.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Wake, Waker};

use futures_util::task::AtomicWaker;

/// Rings for one part of a task. Who answers it looks whether it has rung and polls that part only then; and whatever
/// the task itself makes ring while it is at work costs no second turn of the task.
#[derive(Debug, Default)]
pub(super) struct SubWaker {
    task: AtomicWaker,
    has_rung: AtomicBool,
    is_heard: AtomicBool,
}

impl SubWaker {
    /// The task is at work, and looks at the sub_waker before it rests. `task` is woken from then on.
    pub(super) fn begin_poll(&self, task: &Waker) {
        self.task.register(task);
        self.is_heard.store(true, Ordering::SeqCst);
    }

    /// Whether it has rung since it was last asked.
    pub(super) fn take_woken(&self) -> bool {
        self.has_rung.swap(false, Ordering::SeqCst)
    }

    /// Whether the task may rest: nothing has rung, and what rings from now on wakes it.
    pub(super) fn end_poll(&self) -> bool {
        // Either the ringer sees that nobody hears it and wakes the task, or it has rung before and is seen here: both
        // sides write, then read what the other writes.
        self.is_heard.store(false, Ordering::SeqCst);
        !self.has_rung.load(Ordering::SeqCst)
    }
}

impl Wake for SubWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.has_rung.store(true, Ordering::SeqCst);
        if !self.is_heard.load(Ordering::SeqCst) {
            self.task.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts how often it was woken.
    #[derive(Default)]
    struct Count(std::sync::atomic::AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn it_wakes_who_rests_and_not_who_works() {
        let count = Arc::new(Count::default());
        let woken = || count.0.load(Ordering::SeqCst);
        let task = Waker::from(Arc::clone(&count));
        let sub_waker = Arc::new(SubWaker::default());
        let waker = Waker::from(Arc::clone(&sub_waker));

        sub_waker.begin_poll(&task);
        waker.wake_by_ref();
        assert_eq!((woken(), sub_waker.end_poll()), (0, false));
        sub_waker.begin_poll(&task);
        assert!(sub_waker.take_woken());
        assert!(!sub_waker.take_woken());
        assert!(sub_waker.end_poll());
        waker.wake_by_ref();
        assert_eq!(woken(), 1);
        sub_waker.begin_poll(&task);
        assert!(sub_waker.take_woken());
    }
}
