//! Threads for what can block.

use std::thread;

use super::Failure;

/// Starts a thread, which is detached if the handle is dropped.
pub(super) fn spawn_thread(
    name: &str,
    work: impl FnOnce() + Send + 'static,
) -> Result<thread::JoinHandle<()>, Failure> {
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(work)
        .map_err(|error| Failure::Software(format!("cannot start a thread: {error}")))
}
