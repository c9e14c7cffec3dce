//! Export of traces and logs to an OpenTelemetry collector: OTLP over gRPC, in batches, on one thread per signal.
//!
//! Nothing waits for the collector. Records that do not fit into a queue or cannot be exported are dropped and counted.

mod drop_counter;
mod logs;
mod options;
mod sampling;
mod spans;

use std::time::{Duration, Instant};

use opentelemetry::{Key, KeyValue, Value};
use opentelemetry_otlp::ExporterBuildError;
use opentelemetry_sdk::Resource;
use tracing::info;

pub(super) use logs::OtlpLogs;
pub use options::OtlpOptions;
pub use sampling::{DEFAULT_REMOTE_LIMIT_PER_SECOND, SamplerOptions};
pub use spans::Tracer;
pub(super) use spans::{FinishedSpan, SpanIds, remote_span_context, system_time};

/// The queue size of each signal, in records, that the OpenTelemetry specification defines as the default.
const DEFAULT_QUEUE_SIZE: usize = 2_048;

/// The minimum time to flush the logs, even if the deadline has passed: enough for a collector that responds.
const MIN_FLUSH_TIME: Duration = Duration::from_millis(50);

/// Exports the spans and log records of a process, if endpoints are configured. Clones share their queues.
#[derive(Debug, Clone, Default)]
pub struct OtlpPipeline {
    tracer: Option<Tracer>,
    logs: Option<OtlpLogs>,
}

impl OtlpPipeline {
    /// Starts the exporters that `options` configure. The service is named `service` unless the environment names it.
    ///
    /// Must be called within a Tokio runtime, which has to live until [`OtlpPipeline::shut_down`]. Does not wait for a
    /// collector.
    ///
    /// # Errors
    ///
    /// Fails if one of the `OTEL_*` variables is invalid.
    pub fn start(options: &OtlpOptions, service: &'static str) -> Result<Self, ExporterBuildError> {
        let traces = options.traces.as_deref();
        let logs = options.logs.as_deref();
        Ok(Self {
            tracer: traces
                .map(|endpoint| Tracer::start(endpoint, &options.sampler, service, true))
                .transpose()?,
            logs: logs
                .map(|endpoint| OtlpLogs::start(endpoint, service))
                .transpose()?,
        })
    }

    /// Returns the tracer, if spans are exported.
    #[must_use]
    pub const fn tracer(&self) -> Option<&Tracer> {
        self.tracer.as_ref()
    }

    pub(super) const fn logs(&self) -> Option<&OtlpLogs> {
        self.logs.as_ref()
    }

    /// Returns whether anything is exported.
    #[must_use]
    pub const fn is_enabled(&self) -> bool {
        self.tracer.is_some() || self.logs.is_some()
    }

    /// Returns how many spans were dropped.
    pub(super) fn dropped_spans(&self) -> u64 {
        self.tracer.as_ref().map_or(0, Tracer::dropped)
    }

    /// Returns how many log records were dropped.
    pub(super) fn dropped_logs(&self) -> u64 {
        self.logs.as_ref().map_or(0, OtlpLogs::dropped)
    }

    /// Flushes both queues until `deadline`, and drops the rest. Spans are flushed first and take at most half of the time if
    /// logs are exported too. Logs are flushed last, so that they include this shutdown; they may take 50 ms even if the
    /// deadline has passed.
    ///
    /// If the future is dropped, a flush that has started continues in the background, and the next one does not start.
    pub async fn shut_down(self, deadline: Instant) {
        let remaining = move || deadline.saturating_duration_since(Instant::now());
        let Self { tracer, logs } = self;
        if let Some(tracer) = tracer {
            let timeout = if logs.is_some() {
                remaining() / 2
            } else {
                remaining()
            };
            run_blocking(move || tracer.shut_down(timeout)).await;
        }
        info!(event = "ended", "ended");
        if let Some(logs) = logs {
            run_blocking(move || logs.shut_down(remaining().max(MIN_FLUSH_TIME))).await;
        }
    }
}

async fn run_blocking(work: impl FnOnce() + Send + 'static) {
    tokio::task::spawn_blocking(work).await.ok();
}

/// Returns the resource attributes: those of the environment (`OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`), with
/// `service` as the default name.
fn resource(service: &'static str) -> Resource {
    let defaults = Resource::builder_empty()
        .with_attributes([
            KeyValue::new("service.name", service),
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("service.instance.id", format!("{:032x}", rand::random::<u128>())),
        ])
        .build();
    let environment = Resource::builder().build();
    // Without a name in the environment, the SDK sets `unknown_service`, which must not replace the default.
    let is_named = std::env::var("OTEL_SERVICE_NAME").is_ok_and(|name| !name.is_empty())
        || std::env::var("OTEL_RESOURCE_ATTRIBUTES").is_ok_and(|value| value.contains("service.name="));
    let attribute = |(key, value): (&Key, &Value)| KeyValue::new(key.clone(), value.clone());
    let overrides = environment
        .iter()
        .filter(|(key, _)| is_named || key.as_str() != "service.name")
        .map(attribute);
    Resource::builder_empty()
        .with_attributes(defaults.iter().map(attribute))
        .with_attributes(overrides)
        .build()
}

/// Reads a positive number from the environment. Like the SDK, it ignores invalid values.
fn positive_number(variable: &str) -> Option<usize> {
    std::env::var(variable)
        .ok()?
        .parse()
        .ok()
        .filter(|number| *number > 0)
}
