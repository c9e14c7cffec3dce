//! The mode of the terminal, and what is written to it.
//!
//! A thread of its own writes, because a terminal can block. Whatever ends the program, the terminal gets its mode back: the
//! loop restores it when it ends, a panic hook before a panic is reported.

use std::io::{self, Write as _};
use std::mem;
use std::panic;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Once};
use std::time::Duration;

use parking_lot::Mutex;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::{MoveTo, Show};
use ratatui::crossterm::event::{
    DisableBracketedPaste, DisableFocusChange, DisableMouseCapture, EnableBracketedPaste, EnableFocusChange,
    EnableMouseCapture,
};
use ratatui::crossterm::queue;
use ratatui::crossterm::style::{Attribute, SetAttribute};
use ratatui::crossterm::terminal::{
    Clear, ClearType, EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use ratatui::layout::Rect;
use ratatui::{Frame, Terminal, TerminalOptions, Viewport};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::cmd::Failure;
use crate::cmd::thread::spawn_thread;

/// How long the terminal may take to show what is written before its mode is restored.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// Whether the terminal is in the mode of the full screen.
static IS_ACTIVE: AtomicBool = AtomicBool::new(false);

/// Whether the terminal is gone. Its end then has no input for ever, at which nothing waits.
pub(super) fn is_hung_up() -> bool {
    let stdin = io::stdin();
    let mut state = [PollFd::new(&stdin, PollFlags::empty())];
    let polled = poll(&mut state, Some(&Timespec::default()));
    polled.is_ok() && state[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
}

/// Bytes for the terminal.
pub(super) struct Output {
    pub(super) bytes: Vec<u8>,
    /// Told when they are written.
    written: Option<oneshot::Sender<()>>,
}

impl From<Vec<u8>> for Output {
    fn from(bytes: Vec<u8>) -> Self {
        Self { bytes, written: None }
    }
}

/// A terminal in the mode of the full screen.
pub(super) struct Tty {
    /// What the drawing writes.
    buffer: SharedBuffer,
    terminal: Terminal<CrosstermBackend<SharedBuffer>>,
    queue: mpsc::Sender<Output>,
}

#[derive(Clone, Default)]
struct SharedBuffer(Arc<Mutex<Vec<u8>>>);

impl SharedBuffer {
    fn take(&self) -> Vec<u8> {
        mem::take(&mut self.0.lock())
    }
}

impl io::Write for SharedBuffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Tty {
    /// Changes the mode of the terminal. The first drawing draws everything.
    pub(super) fn open(size: (u16, u16)) -> Result<Self, Failure> {
        restore_before_panics();
        enter()?;
        let (queue, mut outputs) = mpsc::channel::<Output>(1);
        spawn_thread("terminal", move || {
            let mut stdout = io::stdout();
            while let Some(output) = outputs.blocking_recv() {
                if stdout
                    .write_all(&output.bytes)
                    .and_then(|()| stdout.flush())
                    .is_err()
                {
                    return;
                }
                if let Some(written) = output.written {
                    // Nobody may wait any more.
                    written.send(()).ok();
                }
            }
        })
        .inspect_err(|_| restore())?;
        let buffer = SharedBuffer::default();
        let mut tty = Self {
            terminal: terminal(&buffer, size)?,
            buffer,
            queue,
        };
        tty.reset(size)?;
        Ok(tty)
    }

    /// The queue of what is written. While it is full, the terminal is busy.
    pub(super) fn queue(&self) -> mpsc::Sender<Output> {
        self.queue.clone()
    }

    /// Makes the next drawing set the mode and draw everything.
    pub(super) fn reset(&mut self, size: (u16, u16)) -> Result<(), Failure> {
        self.terminal = terminal(&self.buffer, size)?;
        queue!(
            self.buffer,
            EnterAlternateScreen,
            EnableBracketedPaste,
            EnableFocusChange,
            EnableMouseCapture,
            SetAttribute(Attribute::Reset),
            Clear(ClearType::All)
        )
        .map_err(unwritable)
    }

    /// Returns what shows the difference to the previous drawing.
    pub(super) fn draw(&mut self, draw: impl FnOnce(&mut Frame<'_>)) -> Result<Vec<u8>, Failure> {
        self.terminal.draw(draw).map_err(unwritable)?;
        Ok(self.buffer.take())
    }

    /// Returns what shows `lines` without the mouse. The terminal wraps them.
    pub(super) fn draw_bare(&mut self, lines: &[String]) -> Result<Vec<u8>, Failure> {
        queue!(
            self.buffer,
            DisableMouseCapture,
            SetAttribute(Attribute::Reset),
            Clear(ClearType::All),
            MoveTo(0, 0),
            Show
        )
        .and_then(|()| write!(self.buffer, "{}\r\n-- F2 returns", lines.join("\r\n")))
        .map_err(unwritable)?;
        Ok(self.buffer.take())
    }

    /// Restores the mode of the terminal, and waits until it has shown what was written before.
    pub(super) async fn restore(&self) {
        let (written, is_written) = oneshot::channel();
        let output = Output {
            bytes: leave_sequence(),
            written: Some(written),
        };
        let showing = async {
            self.queue.send(output).await.ok();
            is_written.await.ok();
        };
        // A terminal that blocks gets its mode back all the same.
        timeout(FLUSH_TIMEOUT, showing).await.ok();
        if IS_ACTIVE.swap(false, Ordering::SeqCst) {
            disable_raw_mode().ok();
        }
    }
}

impl Drop for Tty {
    fn drop(&mut self) {
        restore();
    }
}

fn terminal(
    buffer: &SharedBuffer,
    (columns, rows): (u16, u16),
) -> Result<Terminal<CrosstermBackend<SharedBuffer>>, Failure> {
    // With a fixed size, the terminal is never asked where its cursor is: its answer would be among the keys.
    let options = TerminalOptions {
        viewport: Viewport::Fixed(Rect::new(0, 0, columns, rows)),
    };
    Terminal::with_options(CrosstermBackend::new(buffer.clone()), options).map_err(unwritable)
}

/// The columns and rows of the terminal.
pub(super) fn size() -> (u16, u16) {
    match rustix::termios::tcgetwinsize(io::stdout()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => (size.ws_col, size.ws_row),
        _ => (80, 24),
    }
}

/// Puts the terminal into raw mode. Keys that were typed before are kept.
pub(super) fn enter() -> Result<(), Failure> {
    enable_raw_mode().map_err(|error| Failure::Io(format!("cannot use the terminal: {error}")))?;
    IS_ACTIVE.store(true, Ordering::SeqCst);
    Ok(())
}

fn leave_sequence() -> Vec<u8> {
    let mut bytes = Vec::new();
    // Writing to memory does not fail.
    queue!(
        bytes,
        DisableMouseCapture,
        DisableFocusChange,
        DisableBracketedPaste,
        SetAttribute(Attribute::Reset),
        LeaveAlternateScreen,
        Show
    )
    .ok();
    bytes
}

/// Restores the mode of the terminal at once, if it has not been restored.
fn restore() {
    if IS_ACTIVE.swap(false, Ordering::SeqCst) {
        // There is nothing else to try.
        io::stdout().write_all(&leave_sequence()).ok();
        io::stdout().flush().ok();
        disable_raw_mode().ok();
    }
}

fn restore_before_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let report = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            restore();
            report(info);
        }));
    });
}

fn unwritable(error: io::Error) -> Failure {
    Failure::Io(format!("cannot write to the terminal: {error}"))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read as _;
    use std::process::{Command, Stdio};

    use nix::pty::openpty;
    use nix::sys::termios::{LocalFlags, tcgetattr};

    use super::*;

    /// Set in the process that panics.
    const PANICS: &str = "CHITCHAT_TEST_PANICS";

    /// The test runs twice: in a process of its own, on a pseudo-terminal, it panics while the full screen is shown.
    #[test]
    fn a_panic_restores_the_terminal() {
        if std::env::var_os(PANICS).is_some() {
            let tty = Tty::open((80, 24)).unwrap();
            tty.queue().try_send(leave_sequence().into()).ok();
            panic!("on purpose");
        }
        let pty = openpty(None, None).unwrap();
        let stdio = || Stdio::from(pty.slave.try_clone().unwrap());
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "--nocapture",
                "cmd::chat::full_screen::tty::tests::a_panic_restores_the_terminal",
            ])
            .env(PANICS, "1")
            .stdin(stdio())
            .stdout(stdio())
            .stderr(stdio())
            .spawn()
            .unwrap();
        assert!(!child.wait().unwrap().success());
        let mode = tcgetattr(&pty.slave).unwrap();
        assert!(mode.local_flags.contains(LocalFlags::ICANON));
        drop(pty.slave);
        let mut output = Vec::new();
        // Reading ends with an error when the other side is closed.
        File::from(pty.master).read_to_end(&mut output).ok();
        let output = String::from_utf8_lossy(&output);
        let restored = output.find("\u{1b}[?1049l");
        assert!(
            restored.is_some() && restored < output.find("on purpose"),
            "{output:?}"
        );
    }
}
