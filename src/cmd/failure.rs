//! The failure of a command: a message on stderr and an exit code as in sysexits(3).

use std::fmt;
use std::io::{self, Write as _};
use std::process::ExitCode;

use tonic::Code;

use crate::client::{ClientError, TlsError, escape};
use crate::signals::Signal;
use crate::store::StoreError;

const EX_USAGE: u8 = 64;

/// Why a command failed. The text is one line for users: what is wrong, the value, and what was expected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The command line is wrong (`EX_USAGE`, 64).
    Usage(String),
    /// The input is wrong (`EX_DATAERR`, 65).
    Data(String),
    /// The room or the part of its log does not exist (`EX_NOINPUT`, 66).
    NotFound(String),
    /// The server is not available (`EX_UNAVAILABLE`, 69).
    Unavailable(String),
    /// An internal error (`EX_SOFTWARE`, 70).
    Software(String),
    /// Reading or writing failed (`EX_IOERR`, 74).
    Io(String),
    /// The server violated the protocol (`EX_PROTOCOL`, 76).
    Protocol(String),
    /// The server rejected the request (`EX_NOPERM`, 77).
    Rejected(String),
    /// The configuration is wrong (`EX_CONFIG`, 78). Each mistake is one line.
    Config(Vec<String>),
    /// A signal interrupted the command (128 + the number of the signal: 130 or 143).
    Interrupted(Signal),
}

impl Failure {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => EX_USAGE,
            Self::Data(_) => 65,
            Self::NotFound(_) => 66,
            Self::Unavailable(_) => 69,
            Self::Software(_) => 70,
            Self::Io(_) => 74,
            Self::Protocol(_) => 76,
            Self::Rejected(_) => 77,
            Self::Config(_) => 78,
            Self::Interrupted(signal) => signal.exit_code(),
        }
    }

    /// Prefixes the text with the number of the input line that it concerns.
    #[must_use]
    pub(super) fn at_line(mut self, number: u64) -> Self {
        match &mut self {
            Self::Usage(text)
            | Self::Data(text)
            | Self::NotFound(text)
            | Self::Unavailable(text)
            | Self::Software(text)
            | Self::Io(text)
            | Self::Protocol(text)
            | Self::Rejected(text) => *text = format!("line {number} was not acknowledged: {text}"),
            Self::Config(_) | Self::Interrupted(_) => {}
        }
        self
    }

    /// Writes the text to stderr and returns the exit code.
    pub(super) fn report(&self) -> ExitCode {
        // A closed stderr is not an error.
        drop(writeln!(io::stderr(), "{self}"));
        ExitCode::from(self.exit_code())
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
            | Self::Rejected(text) => write!(f, "chitchat: {text}"),
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

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        // The message may contain text from the server.
        let line = escape::text(&error.to_string()).into_owned();
        match error {
            ClientError::Rejected(rejection) if rejection.code == Code::NotFound => Self::NotFound(line),
            ClientError::OutOfRange { .. } => Self::NotFound(line),
            ClientError::Rejected(_) | ClientError::TakenOver { .. } => Self::Rejected(line),
            ClientError::Tls {
                error: TlsError::ClientCertificateRequired | TlsError::ClientCertificateRejected(_),
                ..
            } => Self::Rejected(line),
            ClientError::Tls {
                error: TlsError::Options(_) | TlsError::Unsupported,
                ..
            } => Self::Config(vec![line]),
            ClientError::Token(_) => Self::Config(vec![line]),
            ClientError::WindowFull => Self::Software(line),
            ClientError::Unreachable { .. }
            | ClientError::Tls { .. }
            | ClientError::Timeout { .. }
            | ClientError::Unimplemented { .. }
            | ClientError::Unavailable { .. }
            | ClientError::Lagged { .. }
            | ClientError::ConnectionLost(_)
            | ClientError::StreamEnded
            | ClientError::Internal { .. }
            | ClientError::Closed => Self::Unavailable(line),
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let line = error.to_string();
        if error.is_damage() {
            Self::Data(line)
        } else {
            Self::Io(line)
        }
    }
}

/// Counts the lines of the input that the server has rejected, and keeps the first.
#[derive(Default)]
pub(super) struct Rejections {
    count: u64,
    first: Option<(u64, String)>,
}

impl Rejections {
    /// Records that the server has rejected line `number` with `message`.
    pub(super) fn add(&mut self, number: u64, message: &str) {
        self.count += 1;
        self.first
            .get_or_insert_with(|| (number, escape::text(message).into_owned()));
    }

    pub(super) fn into_result(self) -> Result<(), Failure> {
        let Some((number, message)) = self.first else {
            return Ok(());
        };
        Err(Failure::Data(match self.count {
            1 => format!("the server rejected line {number}: {message}"),
            count => format!("the server rejected {count} lines, the first of them line {number}: {message}"),
        }))
    }
}

/// Prints clap's output and returns the exit code: help and version go to stdout and are a success, usage errors go to
/// stderr.
pub(super) fn report_usage(error: &clap::Error) -> ExitCode {
    // A closed stdout or stderr is not an error.
    drop(error.print());
    if error.use_stderr() {
        ExitCode::from(EX_USAGE)
    } else {
        ExitCode::SUCCESS
    }
}

#[cfg(test)]
mod tests {
    use tonic::Status;

    use super::*;

    #[test]
    fn each_configuration_mistake_is_reported_on_its_own_line() {
        let failure = Failure::Config(vec!["--listen: no port".into(), "--admin: no port".into()]);
        assert_eq!(
            failure.to_string(),
            "chitchat: --listen: no port\nchitchat: --admin: no port"
        );
        assert_eq!(failure.exit_code(), 78);
    }

    #[test]
    fn client_errors_map_to_exit_codes() {
        let rejected = ClientError::from(Status::already_exists("somebody is called Ada"));
        assert_eq!(
            Failure::from(rejected),
            Failure::Rejected("somebody is called Ada".into())
        );
        assert!(matches!(
            Failure::from(ClientError::StreamEnded),
            Failure::Unavailable(_)
        ));
        let missing = ClientError::from(Status::not_found("there is no room \"tea\""));
        assert!(matches!(Failure::from(missing), Failure::NotFound(_)));
    }

    #[test]
    fn text_from_the_server_is_escaped() {
        let hostile = ClientError::from(Status::invalid_argument("\u{1b}[2J\nchitchat: all is well"));
        assert_eq!(
            Failure::from(hostile),
            Failure::Rejected(r"\u{1b}[2J\nchitchat: all is well".into())
        );
    }
}
