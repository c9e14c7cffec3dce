//! Line editing on a terminal. Messages that arrive while a line is being edited are shown above it.
//!
//! The editor puts the terminal into raw mode while it waits for a line, and stops waiting only at a key press or a signal.
//! To restore the terminal's mode at the end, the process sends itself a SIGINT.

use std::io;
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::{Signal, getpid, kill_process};
use rustyline::config::Configurer as _;
use rustyline::error::ReadlineError;
use rustyline::{DefaultEditor, ExternalPrinter};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use super::input::{INPUT_QUEUE_LEN, Input, spawn_thread};
use super::output::{LineSink, Output};
use crate::cmd::Failure;
use crate::cmd::stderr::note;

const PROMPT: &str = "> ";

const HINT: &str = "press Enter to send a line; /leave, Ctrl-D or Ctrl-C leaves";

/// How long to wait for the editor to restore the terminal.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// Interval between signals to the editor, which ignores one that arrives between two lines.
const SIGNAL_INTERVAL: Duration = Duration::from_millis(20);

/// A terminal with a line editor. The editor's thread ends after it has sent [`Input::Leave`] or [`Input::Failed`], or when
/// the terminal is [closed](Self::close).
pub(super) struct Terminal {
    editor: JoinHandle<()>,
}

impl Terminal {
    /// Starts the editor; `None` if the terminal does not support line editing.
    pub(super) fn open() -> Result<Option<(Self, mpsc::Receiver<Input>, Output)>, Failure> {
        let mut editor =
            DefaultEditor::new().map_err(|error| Failure::Io(format!("cannot use the terminal: {error}")))?;
        editor.set_auto_add_history(true);
        let Ok(printer) = editor.create_external_printer() else {
            return Ok(None);
        };
        note(HINT);
        let (sender, inputs) = mpsc::channel(INPUT_QUEUE_LEN);
        let editor = spawn_thread("editor", move || edit(editor, &sender))?;
        let output = Output::new(AbovePrompt(printer))?;
        Ok(Some((Self { editor }, inputs, output)))
    }

    /// Stops the editor and waits until it has restored the terminal, for at most [`CLOSE_TIMEOUT`]. Call it after the
    /// receiver of the inputs has been dropped.
    pub(super) async fn close(self) {
        let deadline = Instant::now() + CLOSE_TIMEOUT;
        while !self.editor.is_finished() && Instant::now() < deadline {
            // A process always has permission to signal itself.
            kill_process(getpid(), Signal::INT).ok();
            sleep(SIGNAL_INTERVAL).await;
        }
    }
}

fn edit(mut editor: DefaultEditor, inputs: &mpsc::Sender<Input>) {
    let mut number = 0;
    loop {
        let input = match editor.readline(PROMPT) {
            Ok(line) => {
                number += 1;
                match Input::parse(number, &line) {
                    Some(input) => input,
                    None => continue,
                }
            }
            Err(ReadlineError::Eof | ReadlineError::Interrupted | ReadlineError::Signal(_)) => Input::Leave,
            Err(error) => Input::Failed(Failure::Io(format!("cannot read from the terminal: {error}"))),
        };
        let last = !matches!(input, Input::Line { .. });
        if inputs.blocking_send(input).is_err() || last {
            return;
        }
    }
}

/// Writes lines above the line that is being edited.
struct AbovePrompt<P>(P);

impl<P: ExternalPrinter + Send + 'static> LineSink for AbovePrompt<P> {
    fn write_line(&mut self, mut line: String) -> io::Result<()> {
        line.push('\n');
        self.0.print(line).map_err(io::Error::other)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
