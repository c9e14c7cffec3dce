//! Work that may wait for the disk.

use tokio::task::{JoinError, spawn_blocking};

/// Runs `work` on a thread that may block. `permit` is held until `work` is done: dropping the future does not stop it, so
/// a client that cancels its calls must not be able to start more.
///
/// # Errors
///
/// `work` has panicked, or the runtime is shutting down.
pub(crate) async fn blocking<T: Send + 'static>(
    permit: impl Send + 'static,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, JoinError> {
    let holding = move || {
        let done = work();
        drop(permit);
        done
    };
    spawn_blocking(holding).await
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, mpsc};

    use tokio::sync::Semaphore;

    use super::*;

    #[tokio::test]
    async fn the_permit_is_held_until_the_work_is_done_even_if_the_caller_is_gone() {
        let permits = Arc::new(Semaphore::new(1));
        let permit = Arc::clone(&permits).try_acquire_owned().unwrap();
        let (started, wait_for_start) = mpsc::channel();
        let (finish, wait_for_finish) = mpsc::channel::<()>();
        let calling = tokio::spawn(blocking(permit, move || {
            started.send(()).unwrap();
            wait_for_finish.recv().unwrap();
        }));
        spawn_blocking(move || wait_for_start.recv().unwrap())
            .await
            .unwrap();
        calling.abort();
        calling.await.unwrap_err();
        assert_eq!(permits.available_permits(), 0);
        finish.send(()).unwrap();
        drop(permits.acquire().await.unwrap());
    }
}
