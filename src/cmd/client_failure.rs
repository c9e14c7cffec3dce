//! How an error of the client library ends a command.

use tonic::Code;

use super::Failure;
use crate::client::{Error, escape};

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        // Part of it may be the server's words.
        let line = escape::text(&error.to_string()).into_owned();
        match error {
            Error::Refused(refusal) if refusal.code == Code::NotFound => Self::NotFound(line),
            Error::NotKept { .. } => Self::NotFound(line),
            Error::Refused(_) | Error::TakenOver { .. } => Self::Refused(line),
            Error::Full => Self::Software(line),
            Error::Unreachable { .. }
            | Error::NoAnswer { .. }
            | Error::NotOffered { .. }
            | Error::Unavailable { .. }
            | Error::FellBehind { .. }
            | Error::Lost(_)
            | Error::Ended
            | Error::Failed { .. }
            | Error::Over => Self::Unavailable(line),
        }
    }
}

#[cfg(test)]
mod tests {
    use tonic::Status;

    use super::*;

    #[test]
    fn refusals_and_absences_have_their_own_codes() {
        let refused = Error::from(Status::already_exists("somebody is called Ada"));
        assert_eq!(
            Failure::from(refused),
            Failure::Refused("somebody is called Ada".into())
        );
        assert!(matches!(Failure::from(Error::Ended), Failure::Unavailable(_)));
        let missing = Error::from(Status::not_found("there is no room \"tea\""));
        assert!(matches!(Failure::from(missing), Failure::NotFound(_)));
    }

    #[test]
    fn the_servers_words_are_escaped() {
        let hostile = Error::from(Status::invalid_argument("\u{1b}[2J\nchitchat: all is well"));
        assert_eq!(
            Failure::from(hostile),
            Failure::Refused(r"\u{1b}[2J\nchitchat: all is well".into())
        );
    }
}
