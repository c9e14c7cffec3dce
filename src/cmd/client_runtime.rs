//! The runtime of the client commands, and the spans that they make on it.

use std::time::Duration;

use tokio::runtime::{Builder, Runtime};

use super::Failure;
use super::aside::aside;
use crate::telemetry::{ClientSpans, OtlpOptions, Tracer};

/// The name under which spans of clients come in where the environment gives no other.
const SERVICE: &str = "chitchat-client";

/// How long the last spans may take to be exported: whoever waits for the command waits for them.
const LAST_SPANS_WITHIN: Duration = Duration::from_secs(2);

/// Runs `work` to its end. What it leaves behind (a name that is still being looked up, for instance) does not hold the
/// program back.
pub(super) fn run<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = start()?;
    let result = runtime.block_on(work);
    runtime.shutdown_background();
    result
}

/// As [`run`], with the spans of the client, which are exported before it ends.
pub(super) fn run_traced<T, F>(work: impl FnOnce(ClientSpans) -> F) -> Result<T, Failure>
where
    F: Future<Output = Result<T, Failure>>,
{
    // What matters to the server alone is the server's affair.
    let OtlpOptions { traces, sampler, .. } = OtlpOptions::from_env().map_err(Failure::Config)?;
    run(async move {
        let tracer = traces
            .as_deref()
            .map(|endpoint| Tracer::start(endpoint, &sampler, SERVICE, false))
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
        tracer.shut_down(LAST_SPANS_WITHIN);
        tracer.lost()
    });
    // It ends in time by itself, and does not panic.
    if let Ok(lost @ 1..) = flushing.await {
        aside(format_args!(
            "{lost} spans could not be exported: look for the collector"
        ));
    }
}

fn start() -> Result<Runtime, Failure> {
    // One worker beside the main thread: the transport goes on while the command is busy.
    Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(|error| Failure::Software(format!("the runtime did not start: {error}")))
}
