//! The runtime of the client commands.

use tokio::runtime::{Builder, Runtime};

use super::Failure;

/// Runs `work` to its end. What it leaves behind (a name that is still being looked up, for instance) does not hold the
/// program back.
pub(super) fn run<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = start()?;
    let result = runtime.block_on(work);
    runtime.shutdown_background();
    result
}

fn start() -> Result<Runtime, Failure> {
    // One worker beside the main thread: the transport goes on while the command is busy.
    Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(|error| Failure::Software(format!("the runtime did not start: {error}")))
}
