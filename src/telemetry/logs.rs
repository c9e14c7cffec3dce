//! Logging to stdout, and to an OpenTelemetry collector if one is configured.

use std::io::{IsTerminal, stdout};

use clap::ValueEnum;
use tracing::info;
use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::{LevelFilter, ParseError};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

use super::log_format::{JsonFormat, PrettyFormat};
use super::otlp::OtlpPipeline;

/// The format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum LogFormat {
    /// `pretty` on a terminal, otherwise `json`.
    #[default]
    Auto,
    /// One JSON object per line.
    Json,
    /// Plain text for people.
    Pretty,
}

/// What is logged, and in which format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogOptions {
    /// The format of log lines.
    pub format: LogFormat,
    /// A filter in the syntax of [`EnvFilter`]: a level, or `target=level` pairs.
    pub filter: String,
}

impl LogOptions {
    /// Validates the filter.
    ///
    /// # Errors
    ///
    /// Fails if the filter cannot be parsed, or contains a bare word that is not a level. [`EnvFilter`] would take such a word
    /// for a target and log nothing else, but it is most likely a misspelled level.
    pub fn check(&self) -> Result<(), String> {
        let is_level = |word: &str| word.parse::<LevelFilter>().is_ok();
        let mut words = self.filter.split(',').map(str::trim);
        if let Some(word) = words.find(|word| !word.contains(['=', '[']) && !is_level(word)) {
            return Err(format!("{word:?} is not a level"));
        }
        EnvFilter::try_new(&self.filter)
            .map(drop)
            .map_err(|error| error.to_string())
    }
}

/// The filter while the log is verbose.
const VERBOSE: &str = "debug";

/// Flushes the log to stdout when dropped.
#[must_use = "buffered log lines are lost unless the guard is held until the end"]
pub struct LogGuard {
    #[expect(dead_code, reason = "held for its drop")]
    worker: WorkerGuard,
    /// Replace the filters of the log's outputs.
    reload: Vec<Box<dyn Fn(EnvFilter) + Send + Sync>>,
    filter: String,
    is_verbose: bool,
}

impl LogGuard {
    /// Makes the log verbose (level `debug`), or if it is, returns to the configured filter.
    pub fn toggle_verbose(&mut self) {
        self.is_verbose = !self.is_verbose;
        let filter = if self.is_verbose { VERBOSE } else { &self.filter };
        for reload in &self.reload {
            reload(without_exporters(filter));
        }
        info!(event = "log_filter_changed", filter, "log filter changed");
    }
}

/// Filter directives for the libraries that export telemetry. Their events are never logged: each would be exported, which
/// would cause further events without end. Failed exports are logged by `DropCounter` instead.
const EXPORTER_TARGETS: [&str; 8] = [
    "opentelemetry=off",
    "opentelemetry_sdk=off",
    "opentelemetry-otlp=off",
    "opentelemetry_otlp=off",
    "h2=off",
    "hyper=off",
    "tonic=off",
    "tower=off",
];

/// Installs the global `tracing` subscriber, which logs to stdout and exports log records and `tracing` spans to `otlp`.
///
/// A separate thread writes to stdout. If stdout blocks, lines are dropped, so that logging never blocks the server. If a
/// subscriber is already installed, it stays.
///
/// # Errors
///
/// Fails if the filter cannot be parsed.
pub fn init(options: &LogOptions, otlp: &OtlpPipeline) -> Result<LogGuard, ParseError> {
    let is_terminal = stdout().is_terminal();
    let (writer, worker): (NonBlocking, WorkerGuard) = NonBlockingBuilder::default().finish(stdout());
    let is_pretty = match options.format {
        LogFormat::Auto => is_terminal,
        LogFormat::Json => false,
        LogFormat::Pretty => true,
    };
    // Errors would go to stderr, and if that is closed, panic.
    let lines = fmt::layer()
        .with_writer(writer)
        .with_ansi(is_terminal)
        .log_internal_errors(false);
    let lines = if is_pretty {
        lines.event_format(PrettyFormat).boxed()
    } else {
        lines.event_format(JsonFormat).boxed()
    };
    let mut reload: Vec<Box<dyn Fn(EnvFilter) + Send + Sync>> = Vec::new();
    let spans = otlp.tracer().map(|tracer| {
        tracing_opentelemetry::layer()
            .with_tracer(tracer.sdk_tracer())
            .with_location(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
            .with_filter(reloadable(&options.filter, &mut reload))
    });
    let records = otlp
        .logs()
        .map(|logs| logs.layer().with_filter(reloadable(&options.filter, &mut reload)));
    let lines = lines.with_filter(reloadable(&options.filter, &mut reload));
    // The span layer comes first, so that log lines can read the ids of the current span.
    let subscriber = Registry::default().with(spans).with(lines).with(records);
    EnvFilter::try_new(&options.filter)?;
    // Fails if a subscriber is installed already, as in tests that run several servers in one process.
    subscriber.try_init().ok();
    Ok(LogGuard {
        worker,
        reload,
        filter: options.filter.clone(),
        is_verbose: false,
    })
}

/// A filter, and in `reload` what replaces it.
fn reloadable<S: 'static>(
    filter: &str,
    reload: &mut Vec<Box<dyn Fn(EnvFilter) + Send + Sync>>,
) -> reload::Layer<EnvFilter, S> {
    let (filter, handle) = reload::Layer::new(without_exporters(filter));
    // Fails if another subscriber was installed before, so that this one does not exist.
    reload.push(Box::new(move |filter| drop(handle.reload(filter))));
    filter
}

fn without_exporters(filter: &str) -> EnvFilter {
    let mut filter = EnvFilter::try_new(filter).unwrap_or_default();
    for directive in EXPORTER_TARGETS {
        if let Ok(directive) = directive.parse() {
            filter = filter.add_directive(directive);
        }
    }
    filter
}
