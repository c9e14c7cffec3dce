//! Errors of calls and streams as gRPC statuses.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::Frame;
use rand::Rng;
use tonic::Status;
use tonic_types::{ErrorDetails, StatusExt};

use super::observer::Observer;
use crate::auth::{Denied, TokenError};
use crate::domain::{NameError, Rejection, WallTime};
use crate::hub::{CloseReason, HubError};
use crate::reason::Reason;

/// The `domain` of every `ErrorInfo`.
const DOMAIN: &str = "chitchat.itu";

/// An error that ends a call or a stream, as the client receives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RpcError {
    reason: Reason,
    message: String,
    /// How long the client should wait before it tries again. `None` if that would fail again.
    retry_delay: Option<Duration>,
    /// Whether the hub has already reported the rejection to its own observer.
    is_reported: bool,
    /// When the ban ends that is the reason.
    until: Option<WallTime>,
}

impl RpcError {
    pub(super) fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
            retry_delay: reason.retry_delay().map(jittered),
            is_reported: false,
            until: None,
        }
    }

    pub(super) fn invalid_name(field: &str, error: &NameError) -> Self {
        Self::new(Reason::NameInvalid, format!("{field} {error}"))
    }

    pub(super) fn unknown_type(number: i32) -> Self {
        let message = format!("event type {number} is unknown; it is JOIN (0), MESSAGE (1) or LEAVE (2)");
        Self::new(Reason::UnknownType, message)
    }

    pub(super) fn draining() -> Self {
        Self::new(Reason::Draining, "the server is draining; connect again")
    }

    pub(super) fn fell_behind() -> Self {
        Self::new(
            Reason::FellBehind,
            "this reader fell behind: its next events are no longer retained; join or subscribe again",
        )
    }

    pub(super) fn room_failed() -> Self {
        Self::new(Reason::RoomFailed, "the room has failed; connect again")
    }

    /// Replaces the delay after which the client should try again.
    pub(super) const fn with_retry_delay(mut self, delay: Duration) -> Self {
        self.retry_delay = Some(delay);
        self
    }

    pub(super) const fn reason(&self) -> Reason {
        self.reason
    }

    pub(super) const fn retry_delay(&self) -> Option<Duration> {
        self.retry_delay
    }

    /// Reports the rejection to `observer`, unless the hub has reported it.
    pub(super) fn report(&self, observer: &dyn Observer) {
        if !self.is_reported {
            observer.rejected(self.reason);
        }
    }

    /// The status, with an `ErrorInfo`, and with a `RetryInfo` if the client should try again.
    pub(super) fn to_status(&self) -> Status {
        let until = self
            .until
            .map(|until| ("until".to_owned(), until.display().to_string()));
        let metadata: HashMap<_, _> = until.into_iter().collect();
        let mut details = ErrorDetails::with_error_info(self.reason.as_str(), DOMAIN, metadata);
        if let Some(delay) = self.retry_delay {
            details.set_retry_info(Some(delay));
        }
        Status::with_error_details(self.reason.code(), &self.message, details)
    }
}

impl From<&Rejection> for RpcError {
    fn from(rejection: &Rejection) -> Self {
        Self {
            is_reported: true,
            until: match rejection {
                Rejection::Banned { until, .. } => Some(*until),
                _ => None,
            },
            ..Self::new(rejection.into(), rejection.to_string())
        }
    }
}

impl From<TokenError> for RpcError {
    fn from(error: TokenError) -> Self {
        let reason = match error {
            TokenError::Missing => Reason::TokenMissing,
            TokenError::Malformed(_) => Reason::TokenMalformed,
            TokenError::Algorithm => Reason::TokenAlgorithm,
            TokenError::UnknownKey => Reason::TokenKeyUnknown,
            TokenError::Signature => Reason::TokenSignature,
            TokenError::Expired => Reason::TokenExpired,
            TokenError::NotYetValid => Reason::TokenNotYetValid,
            TokenError::Audience => Reason::TokenAudience,
            TokenError::Issuer => Reason::TokenIssuer,
            TokenError::TooManyInvalid(delay) => {
                return Self::new(Reason::TooManyInvalidTokens, error.to_string()).with_retry_delay(delay);
            }
        };
        Self::new(reason, error.to_string())
    }
}

impl From<Denied> for RpcError {
    fn from(denied: Denied) -> Self {
        let reason = match &denied {
            Denied::Anonymous(_) => Reason::TokenMissing,
            Denied::NoKeys | Denied::Right(_) => Reason::RightNotGranted,
            Denied::Room(_) => Reason::RoomNotGranted,
            Denied::Name(_) => Reason::NameNotGranted,
        };
        Self::new(reason, denied.to_string())
    }
}

impl From<HubError> for RpcError {
    fn from(error: HubError) -> Self {
        let reason = match &error {
            HubError::Rejected(rejection) => return rejection.into(),
            HubError::Draining => return Self::draining(),
            HubError::Failed => return Self::room_failed(),
            HubError::Suspended => Reason::RoomFailed,
            HubError::RoomEnded => Reason::RoomEnded,
            HubError::Damaged => Reason::LogDamaged,
            HubError::TooManyRooms(_) => Reason::TooManyRooms,
            HubError::NoRoom(_) => Reason::NoRoom,
            HubError::NotKept { .. } => Reason::NotKept,
        };
        Self::new(reason, error.to_string())
    }
}

impl From<CloseReason> for RpcError {
    fn from(reason: CloseReason) -> Self {
        match reason {
            CloseReason::Rejected(rejection) => (&rejection).into(),
            CloseReason::TakenOver => {
                Self::new(Reason::TakenOver, "a newer connection has resumed the session")
            }
            CloseReason::NameClaimed => Self::new(
                Reason::NameClaimed,
                "the owner of your name has joined; join with another name",
            ),
            CloseReason::Draining(delay) => Self {
                retry_delay: Some(jittered(delay)),
                ..Self::draining()
            },
            // `Detached` never gets here: a Chat stream handles it before, and a subscriber is not a participant.
            CloseReason::Detached | CloseReason::Failed => Self::room_failed(),
            CloseReason::RoomEnded => HubError::RoomEnded.into(),
            CloseReason::FellBehind => Self::new(
                Reason::FellBehind,
                "too many notices to this client wait to be read; read them, and join again",
            ),
            CloseReason::Damaged => HubError::Damaged.into(),
        }
    }
}

/// The trailers frame that ends a response with `status`.
pub(super) fn trailers(status: &Status) -> Result<Frame<Bytes>, Status> {
    let mut trailers = HeaderMap::with_capacity(3);
    status.add_header(&mut trailers)?;
    Ok(Frame::trailers(trailers))
}

/// `delay` with a random jitter of up to 50 % either way, so that clients do not all reconnect at once.
fn jittered(delay: Duration) -> Duration {
    delay.mul_f64(rand::rng().random_range(0.5..1.5))
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;
    use crate::domain::{Name, ParticipantId};

    #[test]
    fn a_retriable_error_has_a_retry_delay() {
        let error = RpcError::from(CloseReason::Draining(Duration::from_secs(2)));
        let status = error.to_status();
        assert_eq!(status.code(), Code::Unavailable);
        let retry_delay = status.get_details_retry_info().and_then(|info| info.retry_delay);
        assert_eq!(retry_delay, error.retry_delay());
        assert!((1..3).contains(&retry_delay.unwrap().as_secs()));
        assert_eq!(status.get_details_error_info().unwrap().reason, "DRAINING");
    }

    #[test]
    fn a_permanent_error_says_what_is_wrong_and_has_no_retry_delay() {
        let taken = Rejection::NameTaken(Name::try_from("Ada").unwrap());
        let error = RpcError::from(HubError::Rejected(taken));
        let status = error.to_status();
        assert_eq!((status.code(), error.retry_delay()), (Code::AlreadyExists, None));
        assert_eq!(
            status.message(),
            "the name \"Ada\" is taken in this room; choose another"
        );
        let id = Rejection::IdTaken(ParticipantId::from_wire(7).unwrap());
        assert_eq!(
            RpcError::from(HubError::Rejected(id)).to_status().code(),
            Code::AlreadyExists
        );
    }
}
