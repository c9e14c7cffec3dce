//! What can go wrong between a client and its server.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::address::ServerAddress;

/// What a server calls it when somebody holds the name.
const NAME_TAKEN: &str = "NAME_TAKEN";
/// What a server calls it when a newer connection has the session.
const TAKEN_OVER: &str = "TAKEN_OVER";
/// What a server calls a time that its room cannot have.
const TIMESTAMP_OUT_OF_RANGE: &str = "TIMESTAMP_OUT_OF_RANGE";

/// Why there is no conversation, or no more.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing that speaks gRPC is there.
    #[error("no chat server can be reached at {address}: {}{}", Root(.source.as_ref()), hint(.source.as_ref()))]
    Unreachable {
        /// Where it was looked for.
        address: ServerAddress,
        /// What happened instead.
        source: Box<dyn StdError + Send + Sync>,
    },
    /// The server took longer than the client waits.
    #[error("{address} did not answer within {}", humantime::format_duration(*.waited))]
    NoAnswer {
        /// Who should have answered.
        address: ServerAddress,
        /// How long was waited.
        waited: Duration,
    },
    /// What answers is not a chat server, or does not know this call.
    #[error("the server does not offer this service: {reason}")]
    NotOffered {
        /// In its words.
        reason: String,
    },
    /// The server will not have it: asking again for the same gives the same answer, or (with a delay) may not.
    #[error("{0}")]
    Refused(Refusal),
    /// The server is there but takes no part: it is starting, draining, or its store is down.
    #[error("the server is not available: {reason}")]
    Unavailable {
        /// In its words.
        reason: String,
        /// When to try again, if it says so.
        retry_after: Option<Duration>,
    },
    /// This reader fell behind what the server keeps.
    #[error("the server dropped this reader: {reason}")]
    FellBehind {
        /// In the server's words.
        reason: String,
        /// When to come back, if it says so.
        retry_after: Option<Duration>,
    },
    /// A newer connection took this participant's session over.
    #[error("another connection took over this session: {reason}")]
    TakenOver {
        /// In the server's words.
        reason: String,
    },
    /// The server does not keep the part of the log that was asked for.
    #[error("{reason}")]
    NotKept {
        /// In the server's words.
        reason: String,
    },
    /// As many messages as may be are not acknowledged: another one has to wait.
    #[error("too many messages are not acknowledged yet")]
    Full,
    /// The connection broke, or the server is gone.
    #[error("the connection was lost: {}", Root(.0))]
    Lost(#[source] Status),
    /// The server ended the conversation, although nobody had left it.
    #[error("the server ended the conversation")]
    Ended,
    /// The server is at fault, or what it sent was not understood.
    #[error("the server failed ({code:?}): {reason}")]
    Failed {
        /// The kind of failure.
        code: Code,
        /// In its words.
        reason: String,
    },
    /// Nothing can be said any more: the conversation is over. What ended it is what [`Listener::next`] answers.
    ///
    /// [`Listener::next`]: super::Listener::next
    #[error("the conversation is over")]
    Over,
}

/// What the server refused, and why. Displayed as the server's reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The kind of refusal.
    pub code: Code,
    /// In the server's words.
    pub reason: String,
    /// When to try again, if that could help.
    pub retry_after: Option<Duration>,
    /// The server's word for the reason, for programs: `NAME_TAKEN`, for instance. Empty when it has none.
    pub kind: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.reason.is_empty() {
            return write!(f, "{:?}", self.code);
        }
        f.write_str(&self.reason)
    }
}

/// Shows what is at the end of an error's chain of causes: the transport wraps "connection refused" several times.
struct Root<'a>(&'a (dyn StdError + 'a));

impl fmt::Display for Root<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut root = self.0;
        while let Some(cause) = root.source() {
            root = cause;
        }
        fmt::Display::fmt(root, f)
    }
}

/// What may help where a connection was made and something else answers, or nothing.
fn hint(error: &(dyn StdError + 'static)) -> &'static str {
    let mut causes = std::iter::successors(Some(error), |error| (*error).source());
    if causes.any(<dyn StdError>::is::<hyper::Error>) {
        "; is that the port for gRPC, without TLS?"
    } else {
        ""
    }
}

impl Error {
    /// Whether it is the server or the way to it that is at fault, for the time being: the same may go well later,
    /// without anybody changing anything.
    #[must_use]
    pub fn is_outage(&self) -> bool {
        match self {
            Self::Unreachable { .. }
            | Self::NoAnswer { .. }
            | Self::Unavailable { .. }
            | Self::FellBehind { .. }
            | Self::Lost(_)
            | Self::Ended => true,
            Self::Refused(refusal) => refusal.retry_after.is_some(),
            Self::Failed { code, .. } => matches!(code, Code::Cancelled | Code::DeadlineExceeded),
            Self::NotOffered { .. }
            | Self::TakenOver { .. }
            | Self::NotKept { .. }
            | Self::Full
            | Self::Over => false,
        }
    }

    /// What a client that was in a room, or read it, keeps trying after an interruption: outages; a name that is taken,
    /// as its own earlier stay may hold it until the server's grace for it is over; and a room that is not there yet.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        self.is_outage()
            || matches!(self, Self::Refused(refusal) if refusal.kind == NAME_TAKEN || refusal.code == Code::NotFound)
    }

    /// How long the server asked to wait before trying again.
    #[must_use]
    pub const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Unavailable { retry_after, .. }
            | Self::FellBehind { retry_after, .. }
            | Self::Refused(Refusal { retry_after, .. }) => *retry_after,
            _ => None,
        }
    }

    /// Whether a room's clock is too far behind the client's.
    pub(super) fn is_out_of_time(&self) -> bool {
        matches!(self, Self::Refused(refusal) if refusal.kind == TIMESTAMP_OUT_OF_RANGE)
    }

    /// For a call to `address` that got no answer from it: a connection lost then was never there.
    pub(super) fn before_any_answer(status: Status, address: &ServerAddress) -> Self {
        match Self::from(status) {
            Self::Lost(status) => Self::Unreachable {
                address: address.clone(),
                source: Box::new(status),
            },
            error => error,
        }
    }
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        // A status with a cause was made on this side, of a transport error; what the server sends is bare.
        if status.source().is_some() {
            return Self::Lost(status);
        }
        let code = status.code();
        let reason = status.message().to_owned();
        let retry_after = status.get_details_retry_info().and_then(|info| info.retry_delay);
        let kind = status
            .get_details_error_info()
            .map(|info| info.reason)
            .unwrap_or_default();
        match code {
            Code::AlreadyExists
            | Code::InvalidArgument
            | Code::ResourceExhausted
            | Code::FailedPrecondition
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::NotFound => Self::Refused(Refusal {
                code,
                reason,
                retry_after,
                kind,
            }),
            Code::Unavailable => Self::Unavailable { reason, retry_after },
            Code::Aborted if kind == TAKEN_OVER => Self::TakenOver { reason },
            Code::DataLoss | Code::Aborted => Self::FellBehind { reason, retry_after },
            Code::OutOfRange => Self::NotKept { reason },
            Code::Unimplemented => Self::NotOffered { reason },
            Code::Ok => Self::Ended,
            Code::Cancelled | Code::Unknown | Code::DeadlineExceeded | Code::Internal => {
                Self::Failed { code, reason }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use tonic_types::ErrorDetails;

    use super::*;

    #[test]
    fn refusals_keep_the_servers_words_and_its_delay() {
        let delay = Duration::from_secs(3);
        let status = Status::with_error_details(
            Code::ResourceExhausted,
            "the room is full",
            ErrorDetails::with_retry_info(Some(delay)),
        );
        let Error::Refused(refusal) = Error::from(status) else {
            unreachable!("a refusal");
        };
        assert_eq!(refusal.retry_after, Some(delay));
        assert_eq!(refusal.to_string(), "the room is full");
    }

    #[test]
    fn what_passes_is_told_apart_from_what_stays() {
        let of = |code, kind: &str| {
            let details = ErrorDetails::with_error_info(kind, "chitchat.itu", []);
            Error::from(Status::with_error_details(code, "no", details))
        };
        for (code, kind) in [
            (Code::Unavailable, "DRAINING"),
            (Code::Aborted, "FELL_BEHIND"),
            (Code::AlreadyExists, "NAME_TAKEN"),
            (Code::DeadlineExceeded, "JOIN_TIMEOUT"),
        ] {
            assert!(of(code, kind).may_pass(), "{kind}");
        }
        for (code, kind) in [
            (Code::Aborted, "TAKEN_OVER"),
            (Code::AlreadyExists, "ID_TAKEN"),
            (Code::InvalidArgument, "NAME_INVALID"),
            (Code::OutOfRange, ""),
            (Code::Unimplemented, ""),
            (Code::Internal, ""),
        ] {
            assert!(!of(code, kind).may_pass(), "{kind}");
        }
        assert!(of(Code::InvalidArgument, "TIMESTAMP_OUT_OF_RANGE").is_out_of_time());
    }

    #[test]
    fn a_draining_server_is_not_a_lost_one() {
        let draining = Status::unavailable("draining");
        assert!(matches!(Error::from(draining), Error::Unavailable { .. }));

        let mut broken = Status::unavailable("transport error");
        broken.set_source(Arc::new(io::Error::from(io::ErrorKind::BrokenPipe)));
        let lost = Error::from(broken);
        assert!(matches!(lost, Error::Lost(_)));
        assert_eq!(lost.to_string(), "the connection was lost: broken pipe");
    }

    #[test]
    fn what_breaks_before_any_answer_was_never_reached() {
        let mut broken = Status::unknown("transport error");
        broken.set_source(Arc::new(io::Error::from(io::ErrorKind::ConnectionReset)));
        let error = Error::before_any_answer(broken, &"localhost:1".parse().unwrap());
        assert_eq!(
            error.to_string(),
            "no chat server can be reached at localhost:1: connection reset"
        );
    }
}
