//! The thread that writes: everything that waits is one commit and one sync, whichever room it is of.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::writing::Writing;
use super::{Append, Appended, LogId, StoreError};

/// How often logs in which nothing happens are looked through for what has grown too old.
const EXPIRE_EVERY: Duration = Duration::from_millis(if cfg!(test) { 100 } else { 60_000 });

type Done = oneshot::Sender<Result<(), StoreError>>;

/// One append that waits. Each room has at most one at a time, which bounds the queue.
struct Waiting {
    log: LogId,
    append: Append,
    done: Done,
}

/// The way to the thread.
pub(super) struct Writer {
    /// None once it is closed.
    queue: Mutex<Option<Sender<Waiting>>>,
}

impl Writer {
    pub(super) fn append(&self, log: LogId, append: Append) -> Appended<'static> {
        let (done, appended) = oneshot::channel();
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        // If the thread is gone, so is `done`, and the wait below ends.
        let sent = queue
            .as_ref()
            .map(|queue| queue.send(Waiting { log, append, done }).is_ok());
        drop(queue);
        Box::pin(async move {
            match sent {
                Some(true) => appended.await.unwrap_or(Err(StoreError::Failed)),
                _ => Err(StoreError::Failed),
            }
        })
    }

    /// Lets nothing more in; the thread ends when it has written what is in.
    pub(super) fn close(&self) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// Starts the thread.
pub(super) fn start(writing: Writing) -> std::io::Result<(Writer, JoinHandle<()>)> {
    let (queue, waiting) = channel();
    let thread = std::thread::Builder::new()
        .name("store-writer".into())
        .spawn(move || run(writing, &waiting))?;
    let queue = Mutex::new(Some(queue));
    Ok((Writer { queue }, thread))
}

fn run(mut writing: Writing, waiting: &Receiver<Waiting>) {
    let mut expire_at = Instant::now() + EXPIRE_EVERY;
    loop {
        let first = match waiting.recv_timeout(expire_at.saturating_duration_since(Instant::now())) {
            Ok(first) => Some(first),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        let all: Vec<Waiting> = first.into_iter().chain(waiting.try_iter()).collect();
        let (mut appends, done): (Vec<_>, Vec<Done>) = all
            .into_iter()
            .map(|Waiting { log, append, done }| ((log, append), done))
            .unzip();
        if Instant::now() >= expire_at {
            expire_at = Instant::now() + EXPIRE_EVERY;
            appends.extend(writing.aging().map(|log| (log, Append::default())));
        }
        let written = writing.write(appends);
        for done in done {
            // Who does not wait any more need not know.
            done.send(written.clone()).ok();
        }
    }
}
