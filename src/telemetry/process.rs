//! The metrics of the process, from `/proc`, and of its Tokio runtime.

use std::fs;

use tokio::runtime::RuntimeMetrics;

use super::catalog::{
    Definition, PROCESS_CPU, PROCESS_MAX_FDS, PROCESS_OPEN_FDS, PROCESS_RESIDENT, PROCESS_START,
    PROCESS_THREADS, PROCESS_VIRTUAL, TOKIO_BUSY, TOKIO_PARKS, TOKIO_QUEUE, TOKIO_TASKS, TOKIO_WORKERS,
};
use crate::procfs::{CPU_FIELDS, TICKS_PER_SECOND, number_after, stat_field};

/// Reads the metrics of this process. Omits those that the system does not provide.
pub(super) fn process_metrics() -> Vec<(Definition, f64)> {
    let file = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let (stat, status, limits) = (
        file("/proc/self/stat"),
        file("/proc/self/status"),
        file("/proc/self/limits"),
    );
    let in_status = |key: &str| number_after::<f64>(&status, key);
    let bytes = |key: &str| in_status(key).map(|kibibytes| kibibytes * 1024.0);
    let started =
        || Some(number_after::<f64>(&file("/proc/stat"), "btime ")? + seconds(stat_field(&stat, 19)?));
    #[expect(clippy::cast_precision_loss, reason = "metrics are floats")]
    let open = fs::read_dir("/proc/self/fd").ok().map(|fds| fds.count() as f64);
    [
        (PROCESS_CPU, cpu(&stat)),
        (PROCESS_RESIDENT, bytes("VmRSS:")),
        (PROCESS_VIRTUAL, bytes("VmSize:")),
        (PROCESS_OPEN_FDS, open),
        (PROCESS_MAX_FDS, number_after(&limits, "Max open files")),
        (PROCESS_THREADS, in_status("Threads:")),
        (PROCESS_START, started()),
    ]
    .into_iter()
    .filter_map(|(definition, value)| Some((definition, value?)))
    .collect()
}

fn cpu(stat: &str) -> Option<f64> {
    let [user, system] = CPU_FIELDS.map(|field| stat_field::<u64>(stat, field));
    Some(seconds(user? + system?))
}

#[expect(clippy::cast_precision_loss, reason = "metrics are floats")]
fn seconds(ticks: u64) -> f64 {
    ticks as f64 / TICKS_PER_SECOND as f64
}

/// Reads the metrics of a runtime.
#[expect(clippy::cast_precision_loss, reason = "metrics are floats")]
pub(super) fn runtime_metrics(runtime: &RuntimeMetrics) -> [(Definition, f64); 5] {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn program_names_with_spaces_and_brackets_are_skipped() {
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 4 0 12345 1000 200";
        assert_eq!(cpu(stat), Some(3.0));
        assert_eq!(stat_field(stat, 19), Some(12_345.0));
        assert_eq!(number_after("Name:\tx\nVmRSS:\t  12 kB\n", "VmRSS:"), Some(12.0));
        assert_eq!(
            number_after("Max open files            1024  4096  files", "Max open files"),
            Some(1024.0)
        );
    }
}
