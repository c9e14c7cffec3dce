//! What the one-shot commands write to stdout.

use std::io::{self, ErrorKind, Write as _};

use clap::Args;
use serde_json::Value;

use super::{Failure, json};
use crate::client::line_of;
use crate::proto::ServerMessage;

#[derive(Debug, Args)]
pub(super) struct JsonArgument {
    /// Print one JSON object a line, for programs.
    #[arg(long)]
    json: bool,
}

/// Writes lines, for people or for programs. A reader that went away (`| head -1`) has seen what it wanted: what is
/// written then is dropped, and [`is_closed`](Self::is_closed) tells.
pub(super) struct Printer {
    json: bool,
    out: io::Stdout,
    closed: bool,
}

impl Printer {
    pub(super) fn new(argument: &JsonArgument) -> Self {
        Self {
            json: argument.json,
            out: io::stdout(),
            closed: false,
        }
    }

    pub(super) const fn is_closed(&self) -> bool {
        self.closed
    }

    /// A message: as `chat` shows it, or as an object.
    pub(super) fn message(&mut self, message: &ServerMessage) -> Result<(), Failure> {
        self.either(|| line_of(message), || json::message(message))
    }

    /// Something else: `line` for people, `object` for programs.
    pub(super) fn either(
        &mut self,
        line: impl FnOnce() -> String,
        object: impl FnOnce() -> Value,
    ) -> Result<(), Failure> {
        let line = if self.json { json::line(&object()) } else { line() };
        if self.closed {
            return Ok(());
        }
        // Stdout is flushed at every line's end.
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
