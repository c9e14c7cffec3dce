//! The log: one event a line, JSON for machines, plain for people.

use std::io::{IsTerminal, stdout};

use clap::ValueEnum;
use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::util::SubscriberInitExt;

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
    /// When it cannot.
    pub fn check(&self) -> Result<(), ParseError> {
        EnvFilter::try_new(&self.filter).map(drop)
    }
}

/// Writes out what has been logged when it is dropped.
#[must_use = "lines that have not been written are lost with the guard"]
pub struct LogGuard(#[expect(dead_code, reason = "held for its drop")] WorkerGuard);

/// Begins to log to stdout. Lines are written by a thread of their own, so that a stdout which nobody reads stops no
/// conversation: lines are lost then. A second call in a process changes nothing.
///
/// # Errors
///
/// When the filter cannot be understood.
pub fn init(options: &LogOptions) -> Result<LogGuard, ParseError> {
    let filter = EnvFilter::try_new(&options.filter)?;
    let (writer, guard): (NonBlocking, WorkerGuard) = NonBlockingBuilder::default().finish(stdout());
    let is_terminal = stdout().is_terminal();
    let is_pretty = match options.format {
        LogFormat::Auto => is_terminal,
        LogFormat::Json => false,
        LogFormat::Pretty => true,
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        .with_ansi(is_terminal);
    // Whoever has set a subscriber already (a test of many servers) keeps it.
    if is_pretty {
        builder.with_target(false).finish().try_init().ok();
    } else {
        builder
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(false)
            .finish()
            .try_init()
            .ok();
    }
    Ok(LogGuard(guard))
}
