//! The one table from what can go wrong to gRPC status.
//!
//! Each status carries an `ErrorInfo` with a reason that programs can match on; what may be tried again as it is carries
//! a `RetryInfo` with a delay.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::Frame;
use rand::Rng;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::reason::Reason;
use crate::domain::{NameError, Rejection};
use crate::hub::HubError;

/// The domain of the reasons, as `ErrorInfo` asks for one.
const DOMAIN: &str = "chitchat.itu";

/// How long to wait before a refusal for want of room may be over.
const FULL_RETRY: Duration = Duration::from_secs(5);

/// How long to wait before joining again after falling behind: nothing stands in the way, so only not to spin.
const BEHIND_RETRY: Duration = Duration::from_millis(100);

/// What a client did that a stream does not survive, and what a server does to a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum RpcError {
    /// The stream ended before its JOIN.
    NoJoin,
    /// Something other than a JOIN came first.
    NotJoin,
    /// The JOIN did not come in time.
    JoinTimeout(Duration),
    /// The request of a Subscribe call did not come in time.
    RequestTimeout(Duration),
    /// A JOIN on a stream that has one.
    SecondJoin,
    /// A type that the contract does not have.
    UnknownType(i32),
    /// A name that is none.
    Name(&'static str, NameError),
    /// The hub could not do it.
    Hub(HubError),
    /// What a participant asked was refused in a way that ends the stream.
    Refused(Rejection),
    /// A page token that is none.
    PageToken,
    /// The client came back on another connection.
    TakenOver,
    /// The reader fell behind.
    FellBehind,
    /// The server is draining.
    Draining(Duration),
    /// The room came to a halt.
    Failed,
}

impl RpcError {
    pub(super) fn reason(&self) -> Reason {
        match self {
            Self::NoJoin | Self::NotJoin => Reason::NotJoined,
            Self::JoinTimeout(_) => Reason::JoinTimeout,
            Self::RequestTimeout(_) => Reason::RequestTimeout,
            Self::SecondJoin => Reason::SecondJoin,
            Self::UnknownType(_) => Reason::UnknownType,
            Self::Name(..) => Reason::NameInvalid,
            Self::Hub(HubError::Rejected(refusal)) | Self::Refused(refusal) => refusal.into(),
            Self::Hub(HubError::TooManyRooms(_)) => Reason::TooManyRooms,
            Self::Hub(HubError::NoRoom(_)) => Reason::NoRoom,
            Self::Hub(HubError::NotKept { .. }) => Reason::NotKept,
            Self::PageToken => Reason::PageTokenInvalid,
            Self::TakenOver => Reason::TakenOver,
            Self::FellBehind => Reason::FellBehind,
            Self::Hub(HubError::Draining) | Self::Draining(_) => Reason::Draining,
            Self::Hub(HubError::Failed) | Self::Failed => Reason::RoomFailed,
        }
    }

    fn code(&self) -> Code {
        match self {
            Self::NoJoin | Self::NotJoin | Self::SecondJoin => Code::FailedPrecondition,
            Self::JoinTimeout(_) | Self::RequestTimeout(_) => Code::DeadlineExceeded,
            Self::UnknownType(_) | Self::Name(..) | Self::PageToken => Code::InvalidArgument,
            Self::Hub(HubError::Rejected(refusal)) | Self::Refused(refusal) => refusal_code(refusal),
            Self::Hub(HubError::TooManyRooms(_)) => Code::ResourceExhausted,
            Self::Hub(HubError::NoRoom(_)) => Code::NotFound,
            Self::Hub(HubError::NotKept { .. }) => Code::OutOfRange,
            Self::FellBehind | Self::TakenOver => Code::Aborted,
            Self::Hub(HubError::Draining | HubError::Failed) | Self::Draining(_) | Self::Failed => {
                Code::Unavailable
            }
        }
    }

    /// How long to wait before trying the same again; none where the same would fail again.
    fn retry(&self) -> Option<Duration> {
        match self {
            Self::Draining(delay) => Some(jittered(*delay)),
            Self::Hub(HubError::Draining | HubError::Failed) | Self::Failed => {
                Some(jittered(Duration::from_secs(1)))
            }
            Self::Hub(HubError::TooManyRooms(_) | HubError::Rejected(Rejection::RoomFull(_))) => {
                Some(jittered(FULL_RETRY))
            }
            Self::FellBehind => Some(jittered(BEHIND_RETRY)),
            _ => None,
        }
    }

    fn message(&self) -> String {
        match self {
            Self::NoJoin => "the stream ended before a JOIN; the first message of a stream is a JOIN".into(),
            Self::NotJoin => "the first message of a stream is a JOIN".into(),
            Self::JoinTimeout(limit) => {
                format!("no JOIN came within {}", humantime::format_duration(*limit))
            }
            Self::RequestTimeout(limit) => {
                format!("no request came within {}", humantime::format_duration(*limit))
            }
            Self::SecondJoin => "this stream has joined already; open another stream to join again".into(),
            Self::UnknownType(number) => {
                format!("event type {number} is unknown; it is JOIN (0), MESSAGE (1) or LEAVE (2)")
            }
            Self::Name(field, error) => format!("{field} {error}"),
            Self::Hub(error) => error.to_string(),
            Self::Refused(refusal) => refusal.to_string(),
            Self::PageToken => "page_token is none that this server gave; begin without one".into(),
            Self::TakenOver => "the session goes on over a newer connection".into(),
            Self::FellBehind => "this reader fell behind what the server keeps; join again".into(),
            Self::Draining(_) => "the server is draining; connect again".into(),
            Self::Failed => "the room came to a halt; connect again".into(),
        }
    }

    /// The status that the client sees, and the delay it is told.
    pub(super) fn status(&self) -> (Status, Option<Duration>) {
        let retry = self.retry();
        let mut details = ErrorDetails::with_error_info(self.reason().as_str(), DOMAIN, HashMap::new());
        if let Some(delay) = retry {
            details.set_retry_info(Some(delay));
        }
        (
            Status::with_error_details(self.code(), self.message(), details),
            retry,
        )
    }
}

/// The end of a stream, as its last frame.
pub(super) fn trailers(status: &Status) -> Result<Frame<Bytes>, Status> {
    let mut trailers = HeaderMap::with_capacity(3);
    status.add_header(&mut trailers)?;
    Ok(Frame::trailers(trailers))
}

/// The answer to calls while there are as many connections as may be.
pub(super) fn too_many_connections(limit: usize) -> Status {
    let mut details =
        ErrorDetails::with_error_info(Reason::TooManyConnections.as_str(), DOMAIN, HashMap::new());
    details.set_retry_info(Some(jittered(FULL_RETRY)));
    let message = format!("the server has {limit} connections, which is the limit; try again later");
    Status::with_error_details(Code::ResourceExhausted, message, details)
}

fn refusal_code(refusal: &Rejection) -> Code {
    match refusal {
        Rejection::Clock(_) | Rejection::Text(_) | Rejection::MessageId(_) => Code::InvalidArgument,
        Rejection::IdTaken(_) | Rejection::NameTaken(_) | Rejection::MessageIdTaken { .. } => {
            Code::AlreadyExists
        }
        Rejection::RoomFull(_) => Code::ResourceExhausted,
        Rejection::NotInRoom(_) => Code::FailedPrecondition,
    }
}

/// Spreads what would otherwise happen at the same instant: between half of `delay` and one and a half.
fn jittered(delay: Duration) -> Duration {
    delay.mul_f64(rand::rng().random_range(0.5..1.5))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Name, ParticipantId};

    #[test]
    fn what_may_be_tried_again_says_when() {
        let (status, retry) = RpcError::Draining(Duration::from_secs(2)).status();
        assert_eq!(status.code(), Code::Unavailable);
        let told = status.get_details_retry_info().and_then(|info| info.retry_delay);
        assert_eq!(told, retry);
        assert!((1..3).contains(&retry.unwrap().as_secs()));
        assert_eq!(status.get_details_error_info().unwrap().reason, "DRAINING");
    }

    #[test]
    fn what_would_fail_again_says_what_is_wrong() {
        let taken = Rejection::NameTaken(Name::try_from("Ada").unwrap());
        let (status, retry) = RpcError::Hub(HubError::Rejected(taken)).status();
        assert_eq!((status.code(), retry), (Code::AlreadyExists, None));
        assert_eq!(
            status.message(),
            "the name \"Ada\" is taken in this room; choose another"
        );
        let id = Rejection::IdTaken(ParticipantId::from_wire(7).unwrap());
        assert_eq!(
            RpcError::Hub(HubError::Rejected(id)).status().0.code(),
            Code::AlreadyExists
        );
    }
}
