//! Writes lines on a thread of its own, because writing can block.

use std::io::{self, BufWriter, ErrorKind, Write as _};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};

use super::Failure;
use super::stderr::note;
use super::thread::spawn_thread;
use crate::signals::Signals;

/// Capacity of an output's queue, in lines. While it is full, nothing is received, so flow control slows the server down.
const OUTPUT_QUEUE_LEN: usize = 64;

/// A destination for lines. Its methods may block.
pub(super) trait LineSink: Send + 'static {
    /// Writes or buffers a line, which has no line terminator.
    fn write_line(&mut self, line: String) -> io::Result<()>;
    /// Writes all buffered lines.
    fn flush(&mut self) -> io::Result<()>;
}

/// A queue of lines, written by a thread of its own.
pub(super) struct Output {
    lines: mpsc::Sender<String>,
    result: oneshot::Receiver<io::Result<()>>,
}

impl Output {
    pub(super) fn stdout() -> Result<Self, Failure> {
        Self::new(Plain(BufWriter::new(io::stdout())))
    }

    /// Writes to stderr, as [`note`] does.
    pub(super) fn stderr() -> Result<Self, Failure> {
        Self::new(Notes)
    }

    pub(super) fn new(sink: impl LineSink) -> Result<Self, Failure> {
        let (lines, queue) = mpsc::channel(OUTPUT_QUEUE_LEN);
        let (done, result) = oneshot::channel();
        spawn_thread("output", move || {
            // The receiver may be gone.
            drop(done.send(write_all(queue, sink)));
        })?;
        Ok(Self { lines, result })
    }

    /// Waits for capacity for a line; `None` if lines can no longer be written. Cancel safe.
    pub(super) async fn reserve(&self) -> Option<mpsc::Permit<'_, String>> {
        self.lines.reserve().await.ok()
    }

    /// Queues a line, or drops it if the queue is full.
    pub(super) fn try_send(&self, line: String) {
        self.lines.try_send(line).ok();
    }

    pub(super) fn is_full(&self) -> bool {
        self.lines.capacity() == 0
    }

    /// Waits until lines can no longer be written. Cancel safe.
    pub(super) async fn closed(&self) {
        self.lines.closed().await;
    }

    /// Waits until all lines are written, without a timeout. It is not an error if the reader has closed the pipe
    /// (`| head -1`). Dropping the future detaches the thread.
    pub(super) async fn close(self) -> Result<(), Failure> {
        drop(self.lines);
        match self.result.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
            Ok(Err(error)) => Err(Failure::Io(format!("cannot write the output: {error}"))),
            Err(_) => Err(Failure::Software("the output ended without a result".into())),
        }
    }
}

/// How long stderr may take to accept the last notes, and stdout the last lines if there is a grace period.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// Closes the outputs of a command that has `ended`. The output may take as long as it needs, until the next signal, or with
/// `has_timeout` for [`FLUSH_TIMEOUT`].
pub(super) async fn close(
    ended: Result<(), Failure>,
    (output, notes): (Output, Output),
    signals: &mut Signals,
    has_timeout: bool,
) -> Result<(), Failure> {
    let written = tokio::select! {
        written = output.close() => written,
        signal = signals.next() => Err(Failure::Interrupted(signal)),
        () = sleep(FLUSH_TIMEOUT), if has_timeout => Ok(()),
    };
    // Notes that cannot be written are lost.
    timeout(FLUSH_TIMEOUT, notes.close()).await.ok();
    ended.and(written)
}

fn write_all(mut queue: mpsc::Receiver<String>, mut sink: impl LineSink) -> io::Result<()> {
    while let Some(line) = queue.blocking_recv() {
        sink.write_line(line)?;
        // One flush for all lines that are waiting.
        while let Ok(line) = queue.try_recv() {
            sink.write_line(line)?;
        }
        sink.flush()?;
    }
    Ok(())
}

struct Plain<W: io::Write>(BufWriter<W>);

impl<W: io::Write + Send + 'static> LineSink for Plain<W> {
    fn write_line(&mut self, line: String) -> io::Result<()> {
        writeln!(self.0, "{line}")
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

struct Notes;

impl LineSink for Notes {
    fn write_line(&mut self, line: String) -> io::Result<()> {
        note(line);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
