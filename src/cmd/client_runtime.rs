//! The runtime of the client commands, and the export of their spans.

use std::time::Duration;

use tokio::runtime::{Builder, Runtime};

use super::Failure;
use super::stderr::note;
use crate::telemetry::{ClientSpans, OtlpOptions, Tracer};

/// Default for `OTEL_SERVICE_NAME`.
const SERVICE_NAME: &str = "chitchat-client";

/// How long the export of the last spans may delay the exit of the command.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// Runs `work` to completion on a new runtime. Does not wait for blocking tasks that are still running, such as a DNS
/// lookup.
pub(super) fn run<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = start()?;
    let result = runtime.block_on(work);
    runtime.shutdown_background();
    result
}

/// Runs `work` to completion on a new runtime, and exports the spans that it records before returning. The export takes at
/// most 2 s. Must not be called within a Tokio runtime.
///
/// # Errors
///
/// The error of `work`, [`Failure::Config`] if the exporter's environment variables are invalid, or [`Failure::Software`]
/// if the runtime cannot be started.
pub fn run_traced<T, F>(work: impl FnOnce(ClientSpans) -> F) -> Result<T, Failure>
where
    F: Future<Output = Result<T, Failure>>,
{
    // The remaining options concern only the server.
    let OtlpOptions { traces, sampler, .. } = OtlpOptions::from_env().map_err(Failure::Config)?;
    run(async move {
        let tracer = traces
            .as_deref()
            .map(|endpoint| Tracer::start(endpoint, &sampler, SERVICE_NAME, false))
            .transpose()
            .map_err(|error| Failure::Config(vec![format!("OTEL_EXPORTER_OTLP_*: {error}")]))?;
        let result = work(ClientSpans::new(tracer.clone())).await;
        if let Some(tracer) = tracer {
            flush(tracer).await;
        }
        result
    })
}

async fn flush(tracer: Tracer) {
    let flushing = tokio::task::spawn_blocking(move || {
        tracer.shut_down(FLUSH_TIMEOUT);
        tracer.dropped()
    });
    // The task has a timeout and does not panic.
    if let Ok(lost @ 1..) = flushing.await {
        note(format_args!(
            "{lost} spans could not be exported; check that the collector is reachable"
        ));
    }
}

fn start() -> Result<Runtime, Failure> {
    // One worker in addition to the main thread, so that the transport makes progress while the command is busy.
    Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(|error| Failure::Software(format!("the runtime did not start: {error}")))
}
