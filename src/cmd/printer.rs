//! The output of the commands that print one line per item, as text or JSON.

use std::io::{self, ErrorKind, Write as _};

use clap::Args;
use serde_json::Value;

use super::{Failure, json};
use crate::client::format_message;
use crate::proto::ServerMessage;

#[derive(Debug, Default, Args)]
pub(super) struct JsonArg {
    /// Print one JSON object per line
    #[arg(long)]
    pub(super) json: bool,
}

/// Prints lines to stdout, as text or JSON. Once the reader has closed the pipe (`| head -1`), output is discarded and
/// [`is_closed`](Self::is_closed) returns true.
pub(super) struct Printer {
    json: bool,
    out: io::Stdout,
    closed: bool,
}

impl Printer {
    pub(super) fn new(argument: &JsonArg) -> Self {
        Self {
            json: argument.json,
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
        self.print(|| format_message(message), || json::message(message))
    }

    /// Prints `line`, or `object` if the output is JSON.
    pub(super) fn print(
        &mut self,
        line: impl FnOnce() -> String,
        object: impl FnOnce() -> Value,
    ) -> Result<(), Failure> {
        let line = if self.json { json::line(&object()) } else { line() };
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
