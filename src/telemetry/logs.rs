//! The log: one event a line, JSON for machines, plain for people.

use std::io::{IsTerminal, stdout};

use clap::ValueEnum;
use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::{LevelFilter, ParseError};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt};

use super::line::{JsonLine, PrettyLine};
use super::otlp::Exports;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum LogFormat {
    /// `pretty` on a terminal, otherwise `json`.
    #[default]
    Auto,
    /// One JSON object a line.
    Json,
    /// For people.
    Pretty,
}

/// What is logged, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogOptions {
    /// How lines look.
    pub format: LogFormat,
    /// What is logged, in the syntax of `tracing_subscriber::EnvFilter`: a level, or `target=level` pairs.
    pub filter: String,
}

impl LogOptions {
    /// Whether the filter can be understood.
    ///
    /// # Errors
    ///
    /// When it cannot. A word alone that is no level counts as that, though it could be a target: most likely it is a level
    /// that is spelt wrong, and everything else would not be logged.
    pub fn check(&self) -> Result<(), String> {
        let is_level = |word: &str| word.parse::<LevelFilter>().is_ok();
        let mut words = self.filter.split(',').map(str::trim);
        if let Some(word) = words.find(|word| !word.contains(['=', '[']) && !is_level(word)) {
            return Err(format!("{word:?} is no level"));
        }
        EnvFilter::try_new(&self.filter)
            .map(drop)
            .map_err(|error| error.to_string())
    }
}

/// Writes out what has been logged when it is dropped.
#[must_use = "lines that have not been written are lost with the guard"]
pub struct LogGuard(#[expect(dead_code, reason = "held for its drop")] WorkerGuard);

/// What the libraries below say of telemetry's own way out: to export that would make more of it, and what is lost is
/// told once and counted.
const OWN_WAY_OUT: [&str; 8] = [
    "opentelemetry=off",
    "opentelemetry_sdk=off",
    "opentelemetry-otlp=off",
    "opentelemetry_otlp=off",
    "h2=off",
    "hyper=off",
    "tonic=off",
    "tower=off",
];

/// Begins to log to stdout, and to where `exports` say; what is traced with `tracing` goes there too.
/// Lines are written by a thread of their own, so that a stdout which nobody reads stops no conversation: lines are
/// lost then. A second call in a process changes nothing.
///
/// # Errors
///
/// When the filter cannot be understood.
pub fn init(options: &LogOptions, exports: &Exports) -> Result<LogGuard, ParseError> {
    let is_terminal = stdout().is_terminal();
    let (writer, guard): (NonBlocking, WorkerGuard) = NonBlockingBuilder::default().finish(stdout());
    let is_pretty = match options.format {
        LogFormat::Auto => is_terminal,
        LogFormat::Json => false,
        LogFormat::Pretty => true,
    };
    let lines = fmt::layer().with_writer(writer).with_ansi(is_terminal);
    let lines = if is_pretty {
        lines.event_format(PrettyLine).boxed()
    } else {
        lines.event_format(JsonLine).boxed()
    };
    let spans = exports.tracer().map(|tracer| {
        tracing_opentelemetry::layer()
            .with_tracer(tracer.sdk())
            .with_location(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
            .with_filter(quiet(&options.filter))
    });
    let records = exports
        .logs()
        .map(|logs| logs.layer().with_filter(quiet(&options.filter)));
    // Spans come first: what is logged within one belongs to it.
    let subscriber = Registry::default()
        .with(spans)
        .with(lines.with_filter(quiet(&options.filter)))
        .with(records);
    EnvFilter::try_new(&options.filter)?;
    // Whoever has set a subscriber already (a test of many servers) keeps it.
    subscriber.try_init().ok();
    Ok(LogGuard(guard))
}

/// What is to be logged, without the libraries' own words.
fn quiet(filter: &str) -> EnvFilter {
    let mut quiet = EnvFilter::try_new(filter).unwrap_or_default();
    for directive in OWN_WAY_OUT {
        if let Ok(directive) = directive.parse() {
            quiet = quiet.add_directive(directive);
        }
    }
    quiet
}
