//! The signals that the process handles.

use std::fmt;
use std::io;
use std::time::Duration;

use tokio::signal::unix::{self, SignalKind, signal};
use tokio::time::Instant;

/// A signal that asks the process to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM, usually from a supervisor.
    Terminate,
    /// SIGINT, usually Ctrl-C on a terminal.
    Interrupt,
}

impl Signal {
    /// The name of the signal.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Terminate => "SIGTERM",
            Self::Interrupt => "SIGINT",
        }
    }

    /// The exit code of a process that the signal ended, by the convention of shells: 128 plus the signal number.
    #[must_use]
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Terminate => 143,
            Self::Interrupt => 130,
        }
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A signal that follows the first within this time is not a second one: supervisors and terminals can send one signal to a
/// process several times, to itself and to its group.
const REPEAT_TIME: Duration = Duration::from_millis(500);

/// A stream of SIGTERM and SIGINT. The first signal asks for a graceful shutdown, the second for an immediate one.
pub struct Signals {
    terminate: unix::Signal,
    interrupt: unix::Signal,
}

impl Signals {
    /// Installs the signal handlers: from now on the signals no longer end the process by themselves. Must be called
    /// within a Tokio runtime.
    ///
    /// # Errors
    ///
    /// If a handler cannot be installed.
    pub fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for a second signal, which comes 500 ms after the first or later. Called directly after the first.
    pub async fn second(&mut self) -> Signal {
        let first = Instant::now();
        loop {
            let signal = self.next().await;
            if first.elapsed() >= REPEAT_TIME {
                return signal;
            }
        }
    }

    /// Waits for the next signal. Cancellation safe: no signal is lost if the future is dropped.
    pub async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.terminate.recv() => Signal::Terminate,
            _ = self.interrupt.recv() => Signal::Interrupt,
        }
    }
}

/// A signal that asks the process to do something else than to end. By default it would end the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ControlSignal {
    /// SIGHUP.
    Hangup,
    /// SIGUSR1.
    User1,
}

/// A stream of [`ControlSignal`]s.
pub struct ControlSignals {
    hangup: unix::Signal,
    user1: unix::Signal,
}

impl ControlSignals {
    /// Installs the signal handlers. Must be called within a Tokio runtime.
    ///
    /// # Errors
    ///
    /// If a handler cannot be installed.
    pub fn listen() -> io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            user1: signal(SignalKind::user_defined1())?,
        })
    }

    /// Waits for the next signal; `None` if there will be no more. Cancellation safe: no signal is lost if the future is
    /// dropped.
    pub async fn next(&mut self) -> Option<ControlSignal> {
        tokio::select! {
            received = self.hangup.recv() => received.map(|()| ControlSignal::Hangup),
            received = self.user1.recv() => received.map(|()| ControlSignal::User1),
        }
    }
}

/// A signal of a shell's job control or of a terminal, for a process that has changed the mode of its terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobSignal {
    /// SIGTSTP: stop until [`Continue`](Self::Continue).
    Stop,
    /// SIGCONT.
    Continue,
    /// SIGHUP: the terminal is gone.
    Hangup,
}

/// A stream of [`JobSignal`]s.
pub struct JobSignals {
    stop: unix::Signal,
    resume: unix::Signal,
    hangup: unix::Signal,
}

impl JobSignals {
    /// Installs the signal handlers: SIGTSTP no longer stops the process by itself. Must be called within a Tokio runtime.
    ///
    /// # Errors
    ///
    /// If a handler cannot be installed.
    pub fn listen() -> io::Result<Self> {
        let raw = |signal: rustix::process::Signal| unix::signal(SignalKind::from_raw(signal.as_raw()));
        Ok(Self {
            stop: raw(rustix::process::Signal::TSTP)?,
            resume: raw(rustix::process::Signal::CONT)?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for the next signal. Cancellation safe: no signal is lost if the future is dropped.
    pub async fn next(&mut self) -> JobSignal {
        tokio::select! {
            _ = self.stop.recv() => JobSignal::Stop,
            _ = self.resume.recv() => JobSignal::Continue,
            _ = self.hangup.recv() => JobSignal::Hangup,
        }
    }
}
