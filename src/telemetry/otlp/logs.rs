//! Log records on their way to a collector, beside stdout.

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

use super::exporter::Booked;
use super::losses::Ledger;
use super::{QUEUE, number, resource};

/// Exports log records. Clones share one queue.
#[derive(Debug, Clone)]
pub struct OtlpLogs {
    provider: SdkLoggerProvider,
    ledger: Arc<Ledger>,
}

impl OtlpLogs {
    /// Begins to export to the collector at `endpoint`, as `service` unless the environment names it. Must be called
    /// within a Tokio runtime, which has to live until [`OtlpLogs::shut_down`]; does not wait for the collector.
    ///
    /// # Errors
    ///
    /// When the endpoint or another of the `OTEL_*` variables makes no sense.
    pub fn start(endpoint: &str, service: &'static str) -> Result<Self, ExporterBuildError> {
        let exporter = LogExporter::builder()
            .with_tonic()
            .with_endpoint(endpoint)
            .build()?;
        let capacity = number("OTEL_BLRP_MAX_QUEUE_SIZE").unwrap_or(QUEUE);
        let ledger = Arc::new(Ledger::new("logs", capacity));
        let batches = BatchLogProcessor::builder(Booked::new(exporter, Arc::clone(&ledger)))
            .with_batch_config(
                BatchConfigBuilder::default()
                    .with_max_queue_size(capacity)
                    .build(),
            );
        let queue = Queue {
            ledger: Arc::clone(&ledger),
            batches: batches.build(),
        };
        let provider = SdkLoggerProvider::builder()
            .with_resource(resource(service))
            .with_log_processor(queue)
            .build();
        Ok(Self { provider, ledger })
    }

    /// What turns the process's log lines into records.
    pub(in crate::telemetry) fn layer(&self) -> OpenTelemetryTracingBridge<SdkLoggerProvider, SdkLogger> {
        OpenTelemetryTracingBridge::new(&self.provider)
    }

    /// How many records were lost so far.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.ledger.lost()
    }

    /// Exports what waits, for at most this long; what is left then is lost. Blocks: not for a runtime's thread.
    pub fn shut_down(&self, timeout: Duration) {
        let result = self.provider.shutdown_with_timeout(timeout);
        let reason = result.map_or_else(|error| error.to_string(), |()| "the end came first".to_owned());
        self.ledger.close(&reason);
    }
}

/// Records that wait to be exported: a bounded number of them, whatever the collector does.
#[derive(Debug)]
struct Queue {
    ledger: Arc<Ledger>,
    batches: BatchLogProcessor,
}

impl LogProcessor for Queue {
    fn emit(&self, record: &mut SdkLogRecord, scope: &InstrumentationScope) {
        if self.ledger.admit() {
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
