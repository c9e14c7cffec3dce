//! Bounds the queues of the exporters and counts what is dropped.
//!
//! The SDK's batch processors drop silently when their queues are full, and only log when an export fails.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use opentelemetry_otlp::{LogExporter, SpanExporter};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::logs::{LogBatch, LogExporter as ExportLogs};
use opentelemetry_sdk::trace::{SpanData, SpanExporter as ExportSpans};
use parking_lot::Mutex;
use tracing::{info, warn};

/// The minimum interval between two log lines that report an outage of the collector.
const WARN_INTERVAL: Duration = Duration::from_secs(60);

/// Counts the queued and the dropped records of one signal.
#[derive(Debug)]
pub(super) struct DropCounter {
    signal: &'static str,
    /// The maximum number of queued records.
    capacity: usize,
    queued: AtomicUsize,
    dropped: AtomicU64,
    /// Whether an outage was logged and no export has succeeded since.
    is_down: AtomicBool,
    warned_at: Mutex<Option<Instant>>,
}

impl DropCounter {
    pub(super) const fn new(signal: &'static str, capacity: usize) -> Self {
        Self {
            signal,
            capacity,
            queued: AtomicUsize::new(0),
            dropped: AtomicU64::new(0),
            is_down: AtomicBool::new(false),
            warned_at: Mutex::new(None),
        }
    }

    /// Returns how many records were dropped.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Returns whether the queue has capacity for `records` more records, without reserving it. If not, counts them as dropped,
    /// and the caller must not create them.
    pub(super) fn check_capacity(&self, records: usize) -> bool {
        let has_capacity = self.queued.load(Ordering::Relaxed) + records <= self.capacity;
        if !has_capacity {
            self.record_drop(records, "the queue is full");
        }
        has_capacity
    }

    /// Adds a record to the queue, or counts it as dropped and returns false if the queue is full.
    pub(super) fn try_enqueue(&self) -> bool {
        if self.queued.fetch_add(1, Ordering::AcqRel) < self.capacity {
            return true;
        }
        self.queued.fetch_sub(1, Ordering::AcqRel);
        self.record_drop(1, "the queue is full");
        false
    }

    /// Removes records from the queue: they were exported, or, if there is a `failure`, dropped.
    pub(super) fn dequeue(&self, records: usize, failure: Option<&str>) {
        // Saturating, because `close` resets the count while the last export may still be running.
        let rest = |queued: usize| Some(queued.saturating_sub(records));
        self.queued
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, rest)
            .ok();
        match failure {
            Some(reason) => self.record_drop(records, reason),
            None => self.record_recovery(),
        }
    }

    /// Counts everything in the queue as dropped, after the exporter was shut down with this result.
    pub(super) fn close(&self, shutdown: &OTelSdkResult) {
        let queued = self.queued.swap(0, Ordering::AcqRel);
        if queued > 0 {
            match shutdown {
                Ok(()) => self.record_drop(queued, "the exporter was shut down"),
                Err(error) => self.record_drop(queued, &error.to_string()),
            }
        }
    }

    fn record_drop(&self, records: usize, reason: &str) {
        let total = self.dropped.fetch_add(records as u64, Ordering::Relaxed) + records as u64;
        if self.is_down.load(Ordering::Relaxed) {
            return;
        }
        // If another thread holds the lock, it is already logging this.
        let Some(mut warned_at) = self.warned_at.try_lock() else {
            return;
        };
        let now = Instant::now();
        if warned_at.is_some_and(|at| now.saturating_duration_since(at) < WARN_INTERVAL) {
            return;
        }
        *warned_at = Some(now);
        self.is_down.store(true, Ordering::Relaxed);
        drop(warned_at);
        let signal = self.signal;
        warn!(
            event = "telemetry_lost",
            signal,
            total,
            reason,
            "telemetry cannot be exported and is dropped; this is logged again when exports succeed"
        );
    }

    fn record_recovery(&self) {
        if self.is_down.load(Ordering::Relaxed) && self.is_down.swap(false, Ordering::Relaxed) {
            let (signal, total) = (self.signal, self.dropped());
            info!(
                event = "telemetry_exported",
                signal, total, "telemetry is exported again"
            );
        }
    }
}

/// Exports through `E` and counts the results.
#[derive(Debug)]
pub(super) struct CountingExporter<E> {
    exporter: E,
    counter: Arc<DropCounter>,
}

impl<E> CountingExporter<E> {
    pub(super) const fn new(exporter: E, counter: Arc<DropCounter>) -> Self {
        Self { exporter, counter }
    }

    fn count(&self, records: usize, result: &OTelSdkResult) {
        let failure = result.as_ref().err().map(ToString::to_string);
        self.counter.dequeue(records, failure.as_deref());
    }
}

impl ExportSpans for CountingExporter<SpanExporter> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let records = batch.len();
        let result = self.exporter.export(batch).await;
        self.count(records, &result);
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

impl ExportLogs for CountingExporter<LogExporter> {
    async fn export(&self, batch: LogBatch<'_>) -> OTelSdkResult {
        let records = batch.iter().count();
        let result = self.exporter.export(batch).await;
        self.count(records, &result);
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_over_the_capacity_and_failed_exports_are_counted() {
        let counter = DropCounter::new("traces", 2);
        assert!(counter.try_enqueue() && counter.try_enqueue());
        assert!(!counter.try_enqueue());
        assert_eq!(counter.dropped(), 1);
        counter.dequeue(1, None);
        assert!(counter.check_capacity(1));
        assert!(!counter.check_capacity(2));
        assert_eq!(counter.dropped(), 3);
        assert!(counter.try_enqueue());
        counter.dequeue(1, Some("away"));
        counter.close(&Ok(()));
        assert_eq!(counter.dropped(), 5);
    }
}
