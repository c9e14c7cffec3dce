//! All that a process pushes to its collector.

use std::time::{Duration, Instant};

use opentelemetry_otlp::ExporterBuildError;
use tracing::info;

use super::{OtlpLogs, OtlpOptions, Tracer};

/// All that a process pushes to its collector: nothing, unless an endpoint is configured. Clones share their queues.
#[derive(Debug, Clone, Default)]
pub struct Exports {
    tracer: Option<Tracer>,
    logs: Option<OtlpLogs>,
}

impl Exports {
    /// Begins to export what `options` say, as `service` unless the environment names it. Must be called within a Tokio
    /// runtime, which has to live until [`Exports::shut_down`]; does not wait for a collector.
    ///
    /// # Errors
    ///
    /// When one of the `OTEL_*` variables makes no sense.
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

    /// What makes spans, if they go anywhere.
    #[must_use]
    pub const fn tracer(&self) -> Option<&Tracer> {
        self.tracer.as_ref()
    }

    /// Where log records go, if anywhere.
    #[must_use]
    pub const fn logs(&self) -> Option<&OtlpLogs> {
        self.logs.as_ref()
    }

    /// Whether anything is exported.
    #[must_use]
    pub const fn is_on(&self) -> bool {
        self.tracer.is_some() || self.logs.is_some()
    }

    /// How many spans were lost.
    #[must_use]
    pub fn lost_spans(&self) -> u64 {
        self.tracer.as_ref().map_or(0, Tracer::lost)
    }

    /// How many log records were lost.
    #[must_use]
    pub fn lost_logs(&self) -> u64 {
        self.logs.as_ref().map_or(0, OtlpLogs::lost)
    }

    /// Exports what waits, until `deadline` at the latest; what is left then is lost. The log is the last.
    pub async fn shut_down(self, deadline: Instant) {
        let left = move || deadline.saturating_duration_since(Instant::now());
        let Self { tracer, logs } = self;
        if let Some(tracer) = tracer {
            // A part of the time is the log's.
            let share = if logs.is_some() { left() / 2 } else { left() };
            blocking(move || tracer.shut_down(share)).await;
        }
        info!(event = "ended", "ended");
        if let Some(logs) = logs {
            blocking(move || logs.shut_down(left().max(LEAST))).await;
        }
    }
}

/// What a flush that has no time left gets all the same: enough where the collector is well.
const LEAST: Duration = Duration::from_millis(50);

/// Runs what blocks on a thread for that. It ends in time by itself, and does not panic.
async fn blocking(work: impl FnOnce() + Send + 'static) {
    tokio::task::spawn_blocking(work).await.ok();
}
