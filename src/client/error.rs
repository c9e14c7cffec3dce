//! The errors of the client library.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::retry::clamp_retry_delay;
use super::server_address::ServerAddress;
use super::tls_error::TlsError;

// Values of `google.rpc.ErrorInfo.reason`.
const NAME_TAKEN: &str = "NAME_TAKEN";
const REQUEST_TOO_LARGE: &str = "REQUEST_TOO_LARGE";
const TAKEN_OVER: &str = "TAKEN_OVER";
const TIMESTAMP_OUT_OF_RANGE: &str = "TIMESTAMP_OUT_OF_RANGE";
const TLS_REQUIRED: &str = "TLS_REQUIRED";
const TOO_MANY_ROOMS: [&str; 2] = ["TOO_MANY_ROOMS", "TOO_MANY_ROOMS_PER_ADDRESS"];
const TOKEN_EXPIRED: &str = "TOKEN_EXPIRED";

/// Why a call, a stream or a session failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No connection could be established, or it broke before the first response.
    #[error("no chat server can be reached at {address}: {}{}", RootCause(.source.as_ref()), hint(.source.as_ref()))]
    Unreachable {
        /// The server's address.
        address: ServerAddress,
        /// The transport's error.
        source: Box<dyn StdError + Send + Sync>,
    },
    /// No connection could be established because the client and the server do not agree on TLS, or one does not trust the
    /// other. Permanent, except [`TlsError::Handshake`].
    #[error("no secure connection to {address}: {error}")]
    Tls {
        /// The server's address.
        address: ServerAddress,
        /// What is wrong.
        error: TlsError,
    },
    /// There is no token where [`ConnectOptions::token`](super::ConnectOptions::token) says, or it would be sent in plain text.
    /// Permanent.
    #[error("{0}")]
    Token(String),
    /// The server did not respond in time.
    #[error("{address} did not answer within {}", humantime::format_duration(*.waited))]
    Timeout {
        /// The server's address.
        address: ServerAddress,
        /// The timeout, from [`ConnectOptions::response_timeout`](super::ConnectOptions::response_timeout).
        waited: Duration,
    },
    /// The server does not implement this call: it is not a chat server, or an older version of one.
    #[error("the server does not offer this service: {message}")]
    Unimplemented {
        /// The server's explanation.
        message: String,
    },
    /// The server rejected the request. Permanent unless [`Rejection::retry_after`] is set.
    #[error("{0}")]
    Rejected(Rejection),
    /// The server is reachable but does not accept calls: it is starting, draining, or its store has failed.
    #[error("the server is not available: {message}")]
    Unavailable {
        /// The server's explanation.
        message: String,
        /// The delay after which the server asks to retry.
        retry_after: Option<Duration>,
    },
    /// The server ended the stream because this client read too slowly.
    #[error("the server ended the stream because this client is too slow: {message}")]
    Lagged {
        /// The server's explanation.
        message: String,
        /// The delay after which the server asks to retry.
        retry_after: Option<Duration>,
    },
    /// Another connection has resumed this participant's session.
    #[error("another connection took over this session: {message}")]
    TakenOver {
        /// The server's explanation.
        message: String,
    },
    /// The server does not retain the requested part of the log.
    #[error("{message}")]
    OutOfRange {
        /// The server's explanation.
        message: String,
    },
    /// [`Session::WINDOW`](super::Session::WINDOW) messages are unacknowledged.
    #[error("too many messages are not acknowledged yet")]
    WindowFull,
    /// The connection broke.
    #[error("the connection was lost: {}", RootCause(.0))]
    ConnectionLost(#[source] Status),
    /// The server ended the stream without giving a reason.
    #[error("the server ended the conversation")]
    StreamEnded,
    /// The server failed, or its response could not be decoded.
    #[error("the server failed ({code:?}): {message}")]
    Internal {
        /// The gRPC status code.
        code: Code,
        /// The server's explanation.
        message: String,
    },
    /// The session is closed: [`Session::leave`](super::Session::leave) was called, or its stream has yielded an error.
    #[error("the session is closed")]
    Closed,
}

/// Why the server rejected a request. Displayed as its [`message`](Self::message).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// The gRPC status code.
    pub code: Code,
    /// The server's explanation for users.
    pub message: String,
    /// The delay after which the server asks to retry. `None` if a retry would be rejected again.
    pub retry_after: Option<Duration>,
    /// The machine-readable reason (`google.rpc.ErrorInfo.reason`), such as `NAME_TAKEN`. Empty if the server gave none.
    pub reason: String,
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.message.is_empty() {
            return write!(f, "{:?}", self.code);
        }
        f.write_str(&self.message)
    }
}

/// Displays the last error of a chain of sources: the transport wraps "connection refused" several times.
struct RootCause<'a>(&'a (dyn StdError + 'a));

impl fmt::Display for RootCause<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut root = self.0;
        while let Some(cause) = root.source() {
            root = cause;
        }
        fmt::Display::fmt(root, f)
    }
}

/// A hint for a port on which something other than a gRPC server answers.
fn hint(error: &(dyn StdError + 'static)) -> &'static str {
    let mut causes = std::iter::successors(Some(error), |error| (*error).source());
    if causes.any(<dyn StdError>::is::<hyper::Error>) {
        "; is that the port for gRPC, and does it expect TLS (https://)?"
    } else {
        ""
    }
}

impl ClientError {
    /// Whether the same request may succeed later, because the cause is temporary or lies with the server or the network.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. }
            | Self::Timeout { .. }
            | Self::Unavailable { .. }
            | Self::Lagged { .. }
            | Self::ConnectionLost(_)
            | Self::StreamEnded => true,
            Self::Rejected(rejection) => rejection.retry_after.is_some(),
            Self::Tls { error, .. } => matches!(error, TlsError::Handshake(_)),
            Self::Internal { code, .. } => matches!(code, Code::Cancelled | Code::DeadlineExceeded),
            Self::Unimplemented { .. }
            | Self::Token(_)
            | Self::TakenOver { .. }
            | Self::OutOfRange { .. }
            | Self::WindowFull
            | Self::Closed => false,
        }
    }

    /// Whether a client that has already joined or read a room should try to reconnect after this error.
    ///
    /// In addition to [transient](Self::is_transient) errors, this includes a taken name, because the client's own earlier
    /// session may hold it until the grace period has expired, a missing room, because it may be created again, an expired
    /// token, because its file may have been renewed, and certificates that cannot be used, because their files may be in the middle of a renewal.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        self.is_transient()
            || matches!(
                self,
                Self::Tls {
                    error: TlsError::Options(_),
                    ..
                }
            )
            || matches!(self, Self::Rejected(rejection) if [NAME_TAKEN, TOKEN_EXPIRED].contains(&rejection.reason.as_str()) || rejection.code == Code::NotFound)
    }

    /// The delay after which the server asks to retry; `None` if it did not ask for one.
    #[must_use]
    pub const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Unavailable { retry_after, .. }
            | Self::Lagged { retry_after, .. }
            | Self::Rejected(Rejection { retry_after, .. }) => *retry_after,
            _ => None,
        }
    }

    /// Whether a participant of the room has the client's name.
    #[must_use]
    pub fn is_name_taken(&self) -> bool {
        matches!(self, Self::Rejected(rejection) if rejection.reason == NAME_TAKEN)
    }

    /// Whether the token has expired. Its file may have been renewed.
    pub(super) fn is_token_expired(&self) -> bool {
        matches!(self, Self::Rejected(rejection) if rejection.reason == TOKEN_EXPIRED)
    }

    /// Whether the room would be a new one, for which there is no place.
    pub(super) fn is_room_limit(&self) -> bool {
        matches!(self, Self::Rejected(rejection) if TOO_MANY_ROOMS.contains(&rejection.reason.as_str()))
    }

    /// Whether the client's Lamport time is too far ahead of the room's.
    pub(super) fn is_timestamp_out_of_range(&self) -> bool {
        matches!(self, Self::Rejected(rejection) if rejection.reason == TIMESTAMP_OUT_OF_RANGE)
    }

    /// Converts the status of a call that failed before its first response. A connection that was lost that early is
    /// reported as [`Unreachable`](Self::Unreachable).
    pub(super) fn before_first_response(status: Status, address: &ServerAddress) -> Self {
        match Self::from(status) {
            Self::ConnectionLost(status) => Self::unreachable(Box::new(status), address),
            Self::Rejected(rejection) if rejection.reason == TLS_REQUIRED => Self::Tls {
                address: address.clone(),
                error: TlsError::Required,
            },
            error => error,
        }
    }

    /// Converts the reason why no connection could be established.
    pub(super) fn unreachable(source: Box<dyn StdError + Send + Sync>, address: &ServerAddress) -> Self {
        let address = address.clone();
        if let Some(error) = TlsError::find(source.as_ref()) {
            return Self::Tls { address, error };
        }
        Self::Unreachable { address, source }
    }
}

impl From<Status> for ClientError {
    fn from(status: Status) -> Self {
        // A status from the server has no source; a status that the transport created from its own error has one.
        if status.source().is_some() {
            return Self::ConnectionLost(status);
        }
        let code = status.code();
        let message = status.message().to_owned();
        let retry_after = status
            .get_details_retry_info()
            .and_then(|info| info.retry_delay)
            .map(clamp_retry_delay);
        let reason = status
            .get_details_error_info()
            .map(|info| info.reason)
            .unwrap_or_default();
        match code {
            Code::OutOfRange if reason != REQUEST_TOO_LARGE => Self::OutOfRange { message },
            Code::AlreadyExists
            | Code::InvalidArgument
            | Code::ResourceExhausted
            | Code::FailedPrecondition
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::DataLoss
            | Code::OutOfRange
            | Code::NotFound => Self::Rejected(Rejection {
                code,
                message,
                retry_after,
                reason,
            }),
            Code::Unavailable => Self::Unavailable { message, retry_after },
            Code::Aborted if reason == TAKEN_OVER => Self::TakenOver { message },
            Code::Aborted => Self::Lagged { message, retry_after },
            Code::Unimplemented => Self::Unimplemented { message },
            Code::Ok => Self::StreamEnded,
            Code::Cancelled | Code::Unknown | Code::DeadlineExceeded | Code::Internal => {
                Self::Internal { code, message }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use prost::Message as _;
    use tokio::time::Instant;
    use tonic_types::ErrorDetails;

    use super::super::retry::{Backoff, RetryPolicy};
    use super::*;

    #[test]
    fn a_rejection_keeps_the_servers_message_and_delay() {
        let delay = Duration::from_secs(3);
        let status = Status::with_error_details(
            Code::ResourceExhausted,
            "the room is full",
            ErrorDetails::with_retry_info(Some(delay)),
        );
        let ClientError::Rejected(rejection) = ClientError::from(status) else {
            unreachable!("a rejection");
        };
        assert_eq!(rejection.retry_after, Some(delay));
        assert_eq!(rejection.to_string(), "the room is full");
    }

    /// A client with unlimited patience panicked when its `Instant` overflowed.
    #[test]
    fn the_longest_delay_that_a_status_can_ask_for_can_be_waited_for() {
        let policy = RetryPolicy {
            patience: Duration::MAX,
            ..RetryPolicy::default()
        };
        for code in [Code::ResourceExhausted, Code::Unavailable, Code::Aborted] {
            for seconds in [i64::MAX, -1] {
                let error = ClientError::from(asking_for(code, seconds));
                let now = Instant::now();
                let mut backoff = Backoff::new(policy.clone());
                let attempt = backoff.next(now, error.retry_after(), &mut rand::rng());
                assert!(now.checked_add(attempt.unwrap().delay).is_some());
            }
        }
    }

    /// A status with a `RetryInfo` that no server with the same library can make.
    fn asking_for(code: Code, seconds: i64) -> Status {
        #[derive(prost::Message)]
        struct RetryInfo {
            #[prost(message, tag = "1")]
            retry_delay: Option<prost_types::Duration>,
        }
        #[derive(prost::Message)]
        struct RpcStatus {
            #[prost(message, repeated, tag = "3")]
            details: Vec<prost_types::Any>,
        }
        let info = RetryInfo {
            retry_delay: Some(prost_types::Duration { seconds, nanos: 0 }),
        };
        let details = RpcStatus {
            details: vec![prost_types::Any {
                type_url: "type.googleapis.com/google.rpc.RetryInfo".into(),
                value: info.encode_to_vec(),
            }],
        };
        Status::with_details(code, "", details.encode_to_vec().into())
    }

    #[test]
    fn retryable_errors_are_told_apart_from_permanent_ones() {
        let of = |code, reason: &str| {
            let details = ErrorDetails::with_error_info(reason, "chitchat.itu", []);
            ClientError::from(Status::with_error_details(code, "no", details))
        };
        for (code, reason) in [
            (Code::Unavailable, "DRAINING"),
            (Code::Aborted, "FELL_BEHIND"),
            (Code::AlreadyExists, "NAME_TAKEN"),
            (Code::Unauthenticated, "TOKEN_EXPIRED"),
            (Code::DeadlineExceeded, "JOIN_TIMEOUT"),
        ] {
            assert!(of(code, reason).is_retryable(), "{reason}");
        }
        for (code, reason) in [
            (Code::Aborted, "TAKEN_OVER"),
            (Code::AlreadyExists, "ID_TAKEN"),
            (Code::InvalidArgument, "NAME_INVALID"),
            (Code::OutOfRange, ""),
            (Code::OutOfRange, "REQUEST_TOO_LARGE"),
            (Code::Unauthenticated, "TOKEN_SIGNATURE"),
            (Code::PermissionDenied, "ROOM_NOT_GRANTED"),
            (Code::Unimplemented, ""),
            (Code::Internal, ""),
        ] {
            assert!(!of(code, reason).is_retryable(), "{reason}");
        }
        assert!(of(Code::InvalidArgument, "TIMESTAMP_OUT_OF_RANGE").is_timestamp_out_of_range());
        // Unlike events that the server does not retain any more.
        let too_large = of(Code::OutOfRange, "REQUEST_TOO_LARGE");
        assert!(matches!(too_large, ClientError::Rejected(_)), "{too_large:?}");
    }

    #[test]
    fn a_draining_server_is_not_a_lost_connection() {
        let draining = Status::unavailable("draining");
        assert!(matches!(
            ClientError::from(draining),
            ClientError::Unavailable { .. }
        ));

        let mut broken = Status::unavailable("transport error");
        broken.set_source(Arc::new(io::Error::from(io::ErrorKind::BrokenPipe)));
        let lost = ClientError::from(broken);
        assert!(matches!(lost, ClientError::ConnectionLost(_)));
        assert_eq!(lost.to_string(), "the connection was lost: broken pipe");
    }

    #[test]
    fn a_connection_lost_before_the_first_response_counts_as_unreachable() {
        let mut broken = Status::unknown("transport error");
        broken.set_source(Arc::new(io::Error::from(io::ErrorKind::ConnectionReset)));
        let error = ClientError::before_first_response(broken, &"localhost:1".parse().unwrap());
        assert_eq!(
            error.to_string(),
            "no chat server can be reached at localhost:1: connection reset"
        );
    }
}
