//! Files that are read again when they change, while the server runs.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

/// How often files are read to find out whether they have changed.
const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// What files contained when they were last read, and requests to read them again.
pub(crate) struct FilePoller<T> {
    last_read: Mutex<T>,
    requested: Notify,
}

impl<T: PartialEq> FilePoller<T> {
    /// Watches files that contain `content` now.
    pub(crate) fn new(content: T) -> Self {
        Self {
            last_read: Mutex::new(content),
            requested: Notify::new(),
        }
    }

    /// Looks at what the files contained when they were last read.
    pub(crate) fn with<R>(&self, look: impl FnOnce(&T) -> R) -> R {
        look(&self.last_read.lock())
    }

    /// Makes [`FilePoller::watch`] call its function at once.
    pub(crate) fn request(&self) {
        self.requested.notify_one();
    }

    /// Calls `reload` every two seconds, with false, and when it is requested, with true. It may block. Never completes.
    pub(crate) async fn watch(&self, reload: impl Fn(bool) + Clone + Send + 'static) {
        loop {
            let is_requested = tokio::select! {
                () = tokio::time::sleep(POLL_INTERVAL) => false,
                () = self.requested.notified() => true,
            };
            let reload = reload.clone();
            // Reading can block, for example on a network file system.
            tokio::task::spawn_blocking(move || reload(is_requested))
                .await
                .ok();
        }
    }

    /// Passes what was just read to `apply` if it has changed, or if that `is_requested`.
    pub(crate) fn update(&self, content: T, is_requested: bool, apply: impl FnOnce(&T)) {
        let mut last_read = self.last_read.lock();
        if *last_read != content || is_requested {
            apply(&content);
            *last_read = content;
        }
    }
}
