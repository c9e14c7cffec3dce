//! How a command ends when it does not succeed: one line on stderr and an exit code of sysexits(3).

use std::fmt;
use std::io::{self, Write as _};
use std::process::ExitCode;

use crate::shutdown::Signal;

/// The command line was wrong (`EX_USAGE`).
const USAGE: u8 = 64;
/// The input was wrong (`EX_DATAERR`).
const DATA: u8 = 65;
/// What is to be read is not there (`EX_NOINPUT`).
const NOT_FOUND: u8 = 66;
/// A service is not there (`EX_UNAVAILABLE`).
const UNAVAILABLE: u8 = 69;
/// The program itself is at fault (`EX_SOFTWARE`).
const SOFTWARE: u8 = 70;
/// Something could not be read or written (`EX_IOERR`).
const IO: u8 = 74;
/// The other side broke a promise (`EX_PROTOCOL`).
const PROTOCOL: u8 = 76;
/// The other side refused (`EX_NOPERM`).
const REFUSED: u8 = 77;
/// The configuration is wrong (`EX_CONFIG`).
const CONFIG: u8 = 78;

/// Why a command failed. The text is one line for people: what was wrong, with what value, and what would be right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The command line was wrong: 64.
    Usage(String),
    /// The input was wrong: 65.
    Data(String),
    /// What is to be read is not there: 66.
    NotFound(String),
    /// The server is not there, or went away: 69.
    Unavailable(String),
    /// The program itself is at fault: 70.
    Software(String),
    /// Something could not be read or written: 74.
    Io(String),
    /// The server broke a promise: 76.
    Protocol(String),
    /// The server refused what was asked: 77.
    Refused(String),
    /// The configuration is wrong: 78. One line a mistake.
    Config(Vec<String>),
    /// A signal ended it before it was done: 130 or 143.
    Interrupted(Signal),
}

impl Failure {
    fn code(&self) -> u8 {
        match self {
            Self::Usage(_) => USAGE,
            Self::Data(_) => DATA,
            Self::NotFound(_) => NOT_FOUND,
            Self::Unavailable(_) => UNAVAILABLE,
            Self::Software(_) => SOFTWARE,
            Self::Io(_) => IO,
            Self::Protocol(_) => PROTOCOL,
            Self::Refused(_) => REFUSED,
            Self::Config(_) => CONFIG,
            Self::Interrupted(signal) => signal.exit_code(),
        }
    }

    /// The same, of line `number` of the input.
    #[must_use]
    pub(super) fn of_line(mut self, number: u64) -> Self {
        match &mut self {
            Self::Usage(text)
            | Self::Data(text)
            | Self::NotFound(text)
            | Self::Unavailable(text)
            | Self::Software(text)
            | Self::Io(text)
            | Self::Protocol(text)
            | Self::Refused(text) => *text = format!("line {number} was not acknowledged: {text}"),
            Self::Config(_) | Self::Interrupted(_) => {}
        }
        self
    }

    /// Writes the line (or lines) to stderr and gives the exit code.
    pub fn report(&self) -> ExitCode {
        // A closed stderr leaves nobody to tell.
        drop(writeln!(io::stderr(), "{self}"));
        ExitCode::from(self.code())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(text)
            | Self::Data(text)
            | Self::NotFound(text)
            | Self::Unavailable(text)
            | Self::Software(text)
            | Self::Io(text)
            | Self::Protocol(text)
            | Self::Refused(text) => write!(f, "chitchat: {text}"),
            Self::Interrupted(_) => write!(f, "chitchat: interrupted"),
            Self::Config(mistakes) => {
                for (index, mistake) in mistakes.iter().enumerate() {
                    let end = if index == 0 { "" } else { "\n" };
                    write!(f, "{end}chitchat: {mistake}")?;
                }
                Ok(())
            }
        }
    }
}

/// Prints what clap has to say: help and version to stdout with success, mistakes to stderr with the usage code.
pub(super) fn report_usage(error: &clap::Error) -> ExitCode {
    // A closed stdout or stderr leaves nobody to tell.
    drop(error.print());
    if error.use_stderr() {
        ExitCode::from(USAGE)
    } else {
        ExitCode::SUCCESS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_configuration_mistakes_are_reported_a_line_each() {
        let failure = Failure::Config(vec!["--listen: no port".into(), "--admin: no port".into()]);
        assert_eq!(
            failure.to_string(),
            "chitchat: --listen: no port\nchitchat: --admin: no port"
        );
        assert_eq!(failure.code(), 78);
    }
}
