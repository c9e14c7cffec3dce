//! Export of log records.

use std::sync::Arc;
use std::time::Duration;

use opentelemetry::InstrumentationScope;
use opentelemetry_appender_tracing::layer::OpenTelemetryTracingBridge;
use opentelemetry_otlp::{ExporterBuildError, LogExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::logs::{
    BatchConfigBuilder, BatchLogProcessor, LogProcessor, SdkLogRecord, SdkLogger, SdkLoggerProvider,
};

use super::drop_counter::{CountingExporter, DropCounter};
use super::{DEFAULT_QUEUE_SIZE, positive_number, resource};

/// Exports log records. Clones share one queue.
#[derive(Debug, Clone)]
pub(crate) struct OtlpLogs {
    provider: SdkLoggerProvider,
    counter: Arc<DropCounter>,
}

impl OtlpLogs {
    /// Starts to export to the collector at `endpoint`; see [`OtlpPipeline::start`](super::OtlpPipeline::start).
    pub(super) fn start(endpoint: &str, service: &'static str) -> Result<Self, ExporterBuildError> {
        let exporter = LogExporter::builder()
            .with_tonic()
            .with_endpoint(endpoint)
            .build()?;
        let capacity = positive_number("OTEL_BLRP_MAX_QUEUE_SIZE").unwrap_or(DEFAULT_QUEUE_SIZE);
        let counter = Arc::new(DropCounter::new("logs", capacity));
        let batches = BatchLogProcessor::builder(CountingExporter::new(exporter, Arc::clone(&counter)))
            .with_batch_config(
                BatchConfigBuilder::default()
                    .with_max_queue_size(capacity)
                    .build(),
            );
        let queue = BoundedLogProcessor {
            counter: Arc::clone(&counter),
            batches: batches.build(),
        };
        let provider = SdkLoggerProvider::builder()
            .with_resource(resource(service))
            .with_log_processor(queue)
            .build();
        Ok(Self { provider, counter })
    }

    /// Returns the `tracing` layer that converts events to log records.
    pub(crate) fn layer(&self) -> OpenTelemetryTracingBridge<SdkLoggerProvider, SdkLogger> {
        OpenTelemetryTracingBridge::new(&self.provider)
    }

    pub(super) fn dropped(&self) -> u64 {
        self.counter.dropped()
    }

    /// Flushes the queue for at most `timeout` and drops the rest. Blocks, so do not call it from an async task.
    pub(super) fn shut_down(&self, timeout: Duration) {
        self.counter.close(&self.provider.shutdown_with_timeout(timeout));
    }
}

/// A batch processor that counts the records that its queue cannot take.
#[derive(Debug)]
struct BoundedLogProcessor {
    counter: Arc<DropCounter>,
    batches: BatchLogProcessor,
}

impl LogProcessor for BoundedLogProcessor {
    fn emit(&self, record: &mut SdkLogRecord, scope: &InstrumentationScope) {
        if self.counter.try_enqueue() {
            self.batches.emit(record, scope);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.batches.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.batches.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.batches.set_resource(resource);
    }
}
