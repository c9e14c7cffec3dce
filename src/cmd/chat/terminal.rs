//! A terminal with somebody in front of it: lines are edited, and what arrives meanwhile is shown above the line that is
//! being typed.
//!
//! The line editor changes the terminal's mode while it waits for a line, and only ends on a key or a signal. So that the
//! terminal is never left changed, it is ended with the signal that Ctrl-C would send.

use std::io;
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::{Signal, getpid, kill_process};
use rustyline::config::Configurer as _;
use rustyline::error::ReadlineError;
use rustyline::{DefaultEditor, ExternalPrinter};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use super::input::{Input, READ_AHEAD, spawn};
use super::output::{Output, Show};
use crate::cmd::Failure;
use crate::cmd::aside::aside;

const PROMPT: &str = "> ";

/// For whoever is there for the first time.
const HINT: &str = "a line is said when you press Enter; /leave, Ctrl-D or Ctrl-C leaves";

/// How long the editor has to put the terminal back.
const CLOSE_WITHIN: Duration = Duration::from_secs(1);
/// How often it is asked meanwhile: a request between two lines goes unheard.
const ASK_EVERY: Duration = Duration::from_millis(20);

/// A terminal in use. The thread of the editor ends by itself after [`Input::Leave`].
pub(super) struct Terminal {
    editor: JoinHandle<()>,
}

impl Terminal {
    /// Begins to edit lines; `None` when the terminal is too plain for it.
    pub(super) fn open() -> Result<Option<(Self, mpsc::Receiver<Input>, Output)>, Failure> {
        let mut editor =
            DefaultEditor::new().map_err(|error| Failure::Io(format!("cannot use the terminal: {error}")))?;
        editor.set_auto_add_history(true);
        let Ok(printer) = editor.create_external_printer() else {
            return Ok(None);
        };
        aside(HINT);
        let (sender, inputs) = mpsc::channel(READ_AHEAD);
        let editor = spawn("editor", move || edit(editor, &sender))?;
        let output = Output::through(Above(printer))?;
        Ok(Some((Self { editor }, inputs, output)))
    }

    /// Ends the editor and waits until the terminal is as it was. To be called when the inputs are dropped.
    pub(super) async fn close(self) {
        let deadline = Instant::now() + CLOSE_WITHIN;
        while !self.editor.is_finished() && Instant::now() < deadline {
            // A process may always signal itself.
            kill_process(getpid(), Signal::INT).ok();
            sleep(ASK_EVERY).await;
        }
    }
}

fn edit(mut editor: DefaultEditor, inputs: &mpsc::Sender<Input>) {
    let mut number = 0;
    loop {
        let input = match editor.readline(PROMPT) {
            Ok(line) => {
                number += 1;
                match Input::of_line(number, &line) {
                    Some(input) => input,
                    None => continue,
                }
            }
            Err(ReadlineError::Eof | ReadlineError::Interrupted | ReadlineError::Signal(_)) => Input::Leave,
            Err(error) => Input::Broken(Failure::Io(format!("cannot read from the terminal: {error}"))),
        };
        let last = !matches!(input, Input::Say { .. });
        if inputs.blocking_send(input).is_err() || last {
            return;
        }
    }
}

/// Shows lines above the one that is being typed.
struct Above<P>(P);

impl<P: ExternalPrinter + Send + 'static> Show for Above<P> {
    fn show(&mut self, mut line: String) -> io::Result<()> {
        line.push('\n');
        self.0.print(line).map_err(io::Error::other)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
