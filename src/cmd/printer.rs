//! The output of the commands that print one line per item, as text or JSON.

use std::io::{self, ErrorKind, Write as _};

use clap::Args;
use serde_json::Value;

use super::message_format::MessageFormat;
use super::table::{self, Align};
use super::{Failure, json};
use crate::proto::ServerMessage;

#[derive(Debug, Default, Args)]
pub(super) struct JsonArg {
    /// Print one JSON object per line
    #[arg(long, help_heading = "Output")]
    pub(super) json: bool,
}

/// Prints lines to stdout, as text or JSON. Once the reader has closed the pipe (`| head -1`), output is discarded and
/// [`is_closed`](Self::is_closed) returns true.
pub(super) struct Printer {
    json: bool,
    format: MessageFormat,
    out: io::Stdout,
    closed: bool,
}

impl Printer {
    pub(super) fn new(argument: &JsonArg) -> Self {
        Self::with_format(argument, MessageFormat::Lamport)
    }

    /// A printer of messages in `format`.
    pub(super) fn with_format(argument: &JsonArg, format: MessageFormat) -> Self {
        Self {
            json: argument.json,
            format,
            out: io::stdout(),
            closed: false,
        }
    }

    /// A printer of JSON objects.
    pub(super) fn json() -> Self {
        Self::new(&JsonArg { json: true })
    }

    pub(super) const fn is_closed(&self) -> bool {
        self.closed
    }

    pub(super) fn message(&mut self, message: &ServerMessage) -> Result<(), Failure> {
        let line = self.format_message(message);
        self.write(&line)
    }

    /// Formats `message` as one line, for a command that writes it itself.
    pub(super) fn format_message(&self, message: &ServerMessage) -> String {
        if self.json {
            json::line(&json::message(message))
        } else {
            self.format.format(message)
        }
    }

    /// Prints `items`, as a table with a `header` or as JSON.
    pub(super) fn table<T, const N: usize>(
        &mut self,
        aligns: [Align; N],
        header: [&str; N],
        items: &[T],
        row: impl Fn(&T) -> [String; N],
        object: impl Fn(&T) -> Value,
    ) -> Result<(), Failure> {
        if self.json {
            return items
                .iter()
                .try_for_each(|item| self.print(String::new, || object(item)));
        }
        let header = header.map(str::to_owned);
        let rows: Vec<[String; N]> = std::iter::once(header).chain(items.iter().map(row)).collect();
        table::lines(aligns, &rows)
            .into_iter()
            .try_for_each(|line| self.print(|| line, || Value::Null))
    }

    /// Prints `line`, or `object` if the output is JSON.
    pub(super) fn print(
        &mut self,
        line: impl FnOnce() -> String,
        object: impl FnOnce() -> Value,
    ) -> Result<(), Failure> {
        let line = if self.json { json::line(&object()) } else { line() };
        self.write(&line)
    }

    fn write(&mut self, line: &str) -> Result<(), Failure> {
        if self.closed {
            return Ok(());
        }
        // Stdout is line buffered.
        match writeln!(self.out, "{line}") {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                self.closed = true;
                Ok(())
            }
            Err(error) => Err(Failure::Io(format!("cannot write the output: {error}"))),
        }
    }
}
