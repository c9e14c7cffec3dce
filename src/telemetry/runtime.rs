//! How busy the runtime is.

use tokio::runtime::RuntimeMetrics;

use super::catalog::{self, TOKIO_BUSY, TOKIO_PARKS, TOKIO_QUEUE, TOKIO_TASKS, TOKIO_WORKERS};

/// The metrics of a runtime.
#[expect(clippy::cast_precision_loss, reason = "metrics are floats")]
pub(super) fn read(runtime: &RuntimeMetrics) -> [(catalog::Definition, f64); 5] {
    let workers = || 0..runtime.num_workers();
    let busy: f64 = workers()
        .map(|worker| runtime.worker_total_busy_duration(worker).as_secs_f64())
        .sum();
    let parks: u64 = workers().map(|worker| runtime.worker_park_count(worker)).sum();
    [
        (TOKIO_WORKERS, runtime.num_workers() as f64),
        (TOKIO_TASKS, runtime.num_alive_tasks() as f64),
        (TOKIO_QUEUE, runtime.global_queue_depth() as f64),
        (TOKIO_BUSY, busy),
        (TOKIO_PARKS, parks as f64),
    ]
}
