//! A waker that does not wake a task which is at work: for what a task polls apart from its other parts.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Wake, Waker};

use futures_util::task::AtomicWaker;

/// Rings for one part of a task. Who answers it looks whether it has rung and polls that part only then; and whatever
/// the task itself makes ring while it is at work costs no second turn of the task.
#[derive(Debug, Default)]
pub(super) struct Bell {
    task: AtomicWaker,
    has_rung: AtomicBool,
    is_heard: AtomicBool,
}

impl Bell {
    /// The task is at work, and looks at the bell before it rests. `task` is woken from then on.
    pub(super) fn hear(&self, task: &Waker) {
        self.task.register(task);
        self.is_heard.store(true, Ordering::SeqCst);
    }

    /// Whether it has rung since it was last asked.
    pub(super) fn answer(&self) -> bool {
        self.has_rung.swap(false, Ordering::SeqCst)
    }

    /// Whether the task may rest: nothing has rung, and what rings from now on wakes it.
    pub(super) fn rest(&self) -> bool {
        // Either the ringer sees that nobody hears it and wakes the task, or it has rung before and is seen here: both
        // sides write, then read what the other writes.
        self.is_heard.store(false, Ordering::SeqCst);
        !self.has_rung.load(Ordering::SeqCst)
    }
}

impl Wake for Bell {
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
        let bell = Arc::new(Bell::default());
        let waker = Waker::from(Arc::clone(&bell));

        bell.hear(&task);
        waker.wake_by_ref();
        assert_eq!((woken(), bell.rest()), (0, false));
        bell.hear(&task);
        assert!(bell.answer());
        assert!(!bell.answer());
        assert!(bell.rest());
        waker.wake_by_ref();
        assert_eq!(woken(), 1);
        bell.hear(&task);
        assert!(bell.answer());
    }
}
