//! The writer thread: commits all queued appends, of all rooms, as one batch with one sync (group commit).

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::committer::Committer;
use super::{Append, AppendFuture, LogId, StoreError};

/// The interval at which idle logs are checked for expired events.
const EXPIRY_INTERVAL: Duration = Duration::from_millis(if cfg!(test) { 100 } else { 60_000 });

/// An append in the queue. The hub awaits each append of a room before the next one, which bounds the queue.
struct QueuedAppend {
    log: LogId,
    append: Append,
    done: oneshot::Sender<Result<(), StoreError>>,
}

/// A handle to the writer thread.
pub(super) struct Writer {
    /// `None` once closed.
    queue: Mutex<Option<Sender<QueuedAppend>>>,
}

impl Writer {
    /// Starts the thread.
    pub(super) fn start(committer: Committer) -> std::io::Result<(Self, JoinHandle<()>)> {
        let (sender, receiver) = channel();
        let thread = std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || run(committer, &receiver))?;
        let queue = Mutex::new(Some(sender));
        Ok((Self { queue }, thread))
    }

    /// Queues an append. The future completes once the append is durable; it fails if the queue is closed.
    pub(super) fn append(&self, log: LogId, append: Append) -> AppendFuture<'static> {
        let (done, result) = oneshot::channel();
        // If the queue is closed or the thread has ended, `done` is dropped, and the future below fails.
        if let Some(queue) = &*self.queue.lock() {
            queue.send(QueuedAppend { log, append, done }).ok();
        }
        Box::pin(async move { result.await.unwrap_or(Err(StoreError::Failed)) })
    }

    /// Closes the queue. The thread ends once it has committed the queued appends.
    pub(super) fn close(&self) {
        self.queue.lock().take();
    }
}

fn run(mut committer: Committer, queue: &Receiver<QueuedAppend>) {
    let mut expire_at = Instant::now() + EXPIRY_INTERVAL;
    loop {
        let first = match queue.recv_timeout(expire_at.saturating_duration_since(Instant::now())) {
            Ok(first) => Some(first),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        let (mut appends, done): (Vec<_>, Vec<_>) = first
            .into_iter()
            .chain(queue.try_iter())
            .map(|QueuedAppend { log, append, done }| ((log, append), done))
            .unzip();
        if Instant::now() >= expire_at {
            expire_at = Instant::now() + EXPIRY_INTERVAL;
            // Committing an append, even an empty one, applies retention.
            appends.extend(
                committer
                    .logs_to_expire()
                    .into_iter()
                    .map(|log| (log, Append::default())),
            );
        }
        let result = committer.commit(appends);
        for done in done {
            // The future may have been dropped.
            done.send(result.clone()).ok();
        }
    }
}
