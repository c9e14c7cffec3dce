//! Where lines are shown.

use std::io::{self, BufWriter, ErrorKind, Write as _};

use tokio::sync::{mpsc, oneshot};

use super::input::spawn;
use crate::cmd::Failure;
use crate::cmd::aside::aside;

/// How many lines wait to be written; then nothing more is taken from the server, and its flow control does the rest.
const BEHIND: usize = 64;

/// Something that shows lines, and may block.
pub(super) trait Show: Send + 'static {
    /// Takes a line (without its end) to be shown.
    fn show(&mut self, line: String) -> io::Result<()>;
    /// Shows all that was taken.
    fn flush(&mut self) -> io::Result<()>;
}

/// A queue of lines that a thread of its own writes.
pub(super) struct Output {
    lines: mpsc::Sender<String>,
    written: oneshot::Receiver<io::Result<()>>,
}

impl Output {
    /// To stdout, as plain lines.
    pub(super) fn to_stdout() -> Result<Self, Failure> {
        Self::through(Plain(BufWriter::new(io::stdout())))
    }

    /// To stderr, as lines of the command.
    pub(super) fn to_stderr() -> Result<Self, Failure> {
        Self::through(Aside)
    }

    /// To `face`.
    pub(super) fn through(face: impl Show) -> Result<Self, Failure> {
        let (lines, queue) = mpsc::channel(BEHIND);
        let (done, written) = oneshot::channel();
        spawn("output", move || {
            // Nobody may wait for the result any more.
            drop(done.send(write_all(queue, face)));
        })?;
        Ok(Self { lines, written })
    }

    /// A place for a line; `None` when lines can no longer be shown. Cancelling loses nothing.
    pub(super) async fn place(&self) -> Option<mpsc::Permit<'_, String>> {
        self.lines.reserve().await.ok()
    }

    /// Takes a line if there is a place for it at once.
    pub(super) fn offer(&self, line: String) {
        // Where nobody reads, nobody misses it.
        self.lines.try_send(line).ok();
    }

    /// Whether as many lines wait as can: nothing is taken from the server meanwhile.
    pub(super) fn is_behind(&self) -> bool {
        self.lines.capacity() == 0
    }

    /// Waits until lines can no longer be shown. Cancelling loses nothing.
    pub(super) async fn closed(&self) {
        self.lines.closed().await;
    }

    /// Waits until all is written. A reader that went away (`| head -1`) has seen what it wanted.
    pub(super) async fn finish(self) -> Result<(), Failure> {
        drop(self.lines);
        match self.written.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
            Ok(Err(error)) => Err(Failure::Io(format!("cannot write the output: {error}"))),
            Err(_) => Err(Failure::Software("the output ended without a result".into())),
        }
    }
}

fn write_all(mut queue: mpsc::Receiver<String>, mut face: impl Show) -> io::Result<()> {
    while let Some(line) = queue.blocking_recv() {
        face.show(line)?;
        // Whatever waits goes out in one piece.
        while let Ok(line) = queue.try_recv() {
            face.show(line)?;
        }
        face.flush()?;
    }
    Ok(())
}

struct Plain<W: io::Write>(BufWriter<W>);

impl<W: io::Write + Send + 'static> Show for Plain<W> {
    fn show(&mut self, line: String) -> io::Result<()> {
        writeln!(self.0, "{line}")
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

struct Aside;

impl Show for Aside {
    fn show(&mut self, line: String) -> io::Result<()> {
        aside(line);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
