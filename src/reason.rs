//! Why a call or a stream ended, or a message was rejected: one vocabulary for status codes, `ErrorInfo` details,
//! notices, metrics and logs.

use std::time::Duration;

use tonic::Code;

use crate::domain::{Rejection, TextError};
use crate::proto::NoticeCode;

/// Why a call or a stream ended, or a message was rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The client sent a LEAVE.
    Left,
    /// The client closed its half of the stream without a LEAVE.
    HalfClosed,
    /// The connection broke or the client reset the stream.
    ConnectionLost,
    /// The client accepted no data for longer than the stall timeout.
    Stalled,
    /// A message came before the JOIN.
    NotJoined,
    /// No JOIN came within the time limit.
    JoinTimeout,
    /// The request of a Subscribe call did not come within the time limit.
    RequestTimeout,
    /// A second JOIN came on the same stream.
    SecondJoin,
    /// The event type is not defined in the protocol.
    UnknownType,
    /// The name of a participant or a room is invalid.
    NameInvalid,
    /// The message cannot be decoded, or is larger than the decode limit.
    Undecodable,
    /// The Lamport time is negative or too far ahead of the room's clock.
    TimestampOutOfRange,
    /// The text exceeds the length limit.
    MessageTooLong,
    /// The text contains control characters.
    MessageInvalid,
    /// The message id is invalid.
    MessageIdInvalid,
    /// Another text was broadcast under this message id.
    MessageIdTaken,
    /// A participant of the room has this id.
    IdTaken,
    /// A participant of the room has this name or a confusable one.
    NameTaken,
    /// The room has as many participants as the limit allows.
    RoomFull,
    /// The server has as many rooms as the limit allows.
    TooManyRooms,
    /// The server has as many connections as the limit allows.
    TooManyConnections,
    /// The room does not exist.
    NoRoom,
    /// The log does not contain the events after the requested position.
    NotKept,
    /// The page token was not issued by this server.
    PageTokenInvalid,
    /// A newer connection has resumed the session.
    TakenOver,
    /// The events that the subscriber has yet to read are no longer retained.
    FellBehind,
    /// The server is shutting down.
    Draining,
    /// The room has stopped after an error of the server.
    RoomFailed,
}

/// The row of a [`Reason`] in the table below.
#[derive(Clone, Copy)]
struct Row {
    name: &'static str,
    code: Code,
    fault: &'static str,
    stream_end: &'static str,
    notice: NoticeCode,
    retry_delay: Option<Duration>,
}

impl Row {
    /// A request that fails in the same way when it is repeated.
    const fn rejection(name: &'static str, code: Code) -> Self {
        Self {
            name,
            code,
            fault: "client",
            stream_end: "refused",
            notice: NoticeCode::Unspecified,
            retry_delay: None,
        }
    }

    /// A stream that ended by the client's or the network's doing; the client is told nothing.
    const fn departure(name: &'static str, stream_end: &'static str) -> Self {
        Self {
            stream_end,
            ..Self::rejection(name, Code::Ok)
        }
    }

    /// A condition of the server.
    const fn server(
        name: &'static str,
        code: Code,
        stream_end: &'static str,
        notice: NoticeCode,
        retry_delay: Duration,
    ) -> Self {
        Self {
            fault: "server",
            stream_end,
            notice,
            retry_delay: Some(retry_delay),
            ..Self::rejection(name, code)
        }
    }

    const fn with_notice(self, notice: NoticeCode) -> Self {
        Self { notice, ..self }
    }

    /// A limit that may have room again after some seconds.
    const fn full(name: &'static str) -> Self {
        Self {
            retry_delay: Some(Duration::from_secs(5)),
            ..Self::rejection(name, Code::ResourceExhausted)
        }
    }
}

impl Reason {
    /// All reasons.
    pub const ALL: [Self; 28] = [
        Self::Left,
        Self::HalfClosed,
        Self::ConnectionLost,
        Self::Stalled,
        Self::NotJoined,
        Self::JoinTimeout,
        Self::RequestTimeout,
        Self::SecondJoin,
        Self::UnknownType,
        Self::NameInvalid,
        Self::Undecodable,
        Self::TimestampOutOfRange,
        Self::MessageTooLong,
        Self::MessageInvalid,
        Self::MessageIdInvalid,
        Self::MessageIdTaken,
        Self::IdTaken,
        Self::NameTaken,
        Self::RoomFull,
        Self::TooManyRooms,
        Self::TooManyConnections,
        Self::NoRoom,
        Self::NotKept,
        Self::PageTokenInvalid,
        Self::TakenOver,
        Self::FellBehind,
        Self::Draining,
        Self::RoomFailed,
    ];

    /// The table from reasons to everything that depends on them.
    const fn row(self) -> Row {
        use NoticeCode as Notice;
        match self {
            Self::Left => Row::departure("LEFT", "left"),
            Self::HalfClosed => Row::departure("HALF_CLOSED", "closed"),
            Self::ConnectionLost => Row::departure("CONNECTION_LOST", "lost"),
            Self::Stalled => Row::departure("STALLED", "slow"),
            Self::NotJoined => Row::rejection("NOT_JOINED", Code::FailedPrecondition),
            Self::JoinTimeout => Row::rejection("JOIN_TIMEOUT", Code::DeadlineExceeded),
            Self::RequestTimeout => Row::rejection("REQUEST_TIMEOUT", Code::DeadlineExceeded),
            Self::SecondJoin => Row::rejection("SECOND_JOIN", Code::FailedPrecondition),
            Self::UnknownType => Row::rejection("UNKNOWN_TYPE", Code::InvalidArgument),
            Self::NameInvalid => Row::rejection("NAME_INVALID", Code::InvalidArgument),
            // The decoder's own status, which the client gets, has this code or OUT_OF_RANGE.
            Self::Undecodable => Row::rejection("UNDECODABLE", Code::Internal),
            Self::TimestampOutOfRange => Row::rejection("TIMESTAMP_OUT_OF_RANGE", Code::InvalidArgument)
                .with_notice(Notice::TimestampOutOfRange),
            Self::MessageTooLong => {
                Row::rejection("MESSAGE_TOO_LONG", Code::InvalidArgument).with_notice(Notice::MessageTooLong)
            }
            Self::MessageInvalid => {
                Row::rejection("MESSAGE_INVALID", Code::InvalidArgument).with_notice(Notice::MessageInvalid)
            }
            Self::MessageIdInvalid => Row::rejection("MESSAGE_ID_INVALID", Code::InvalidArgument)
                .with_notice(Notice::MessageIdInvalid),
            Self::MessageIdTaken => {
                Row::rejection("MESSAGE_ID_TAKEN", Code::AlreadyExists).with_notice(Notice::MessageIdTaken)
            }
            Self::IdTaken => Row::rejection("ID_TAKEN", Code::AlreadyExists),
            Self::NameTaken => Row::rejection("NAME_TAKEN", Code::AlreadyExists),
            Self::RoomFull => Row::full("ROOM_FULL"),
            Self::TooManyRooms => Row::full("TOO_MANY_ROOMS"),
            Self::TooManyConnections => Row::full("TOO_MANY_CONNECTIONS"),
            Self::NoRoom => Row::rejection("NO_ROOM", Code::NotFound),
            Self::NotKept => Row::rejection("NOT_KEPT", Code::OutOfRange),
            Self::PageTokenInvalid => Row::rejection("PAGE_TOKEN_INVALID", Code::InvalidArgument),
            Self::TakenOver => Row {
                stream_end: "taken_over",
                notice: Notice::TakenOver,
                ..Row::rejection("TAKEN_OVER", Code::Aborted)
            },
            // The client can join again at once; the delay only keeps it from spinning.
            Self::FellBehind => Row::server(
                "FELL_BEHIND",
                Code::Aborted,
                "slow",
                Notice::FellBehind,
                Duration::from_millis(100),
            ),
            Self::Draining => Row::server(
                "DRAINING",
                Code::Unavailable,
                "drain",
                Notice::Reconnect,
                Duration::from_secs(1),
            ),
            Self::RoomFailed => Row::server(
                "ROOM_FAILED",
                Code::Unavailable,
                "error",
                Notice::Reconnect,
                Duration::from_secs(1),
            ),
        }
    }

    /// The reason in `ErrorInfo`. Metrics and logs write it in lower case.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        self.row().name
    }

    /// The gRPC status code.
    #[must_use]
    pub const fn code(self) -> Code {
        self.row().code
    }

    /// The code of the private notice; `NOTICE_CODE_UNSPECIFIED` if no notice has this reason.
    #[must_use]
    pub const fn notice_code(self) -> NoticeCode {
        self.row().notice
    }

    /// How long clients wait, on average, before they try the same again; `None` if it would fail again.
    #[must_use]
    pub const fn retry_delay(self) -> Option<Duration> {
        self.row().retry_delay
    }

    /// Whether the server rejected a call, a stream or a message.
    #[must_use]
    pub const fn is_rejection(self) -> bool {
        !matches!(
            self,
            Self::Left | Self::HalfClosed | Self::ConnectionLost | Self::Stalled
        )
    }

    /// The `fault` label in metrics: `client` or `server`.
    #[must_use]
    pub const fn fault(self) -> &'static str {
        self.row().fault
    }

    /// The `reason` label of streams that ended, in metrics and logs.
    #[must_use]
    pub const fn stream_end(self, has_joined: bool) -> &'static str {
        match self {
            // The stream's JOIN was rejected; the stream did not fail.
            Self::RoomFailed if !has_joined => "refused",
            _ => self.row().stream_end,
        }
    }
}

impl From<&Rejection> for Reason {
    fn from(rejection: &Rejection) -> Self {
        match rejection {
            Rejection::Clock(_) => Self::TimestampOutOfRange,
            Rejection::Text(TextError::TooLong { .. }) => Self::MessageTooLong,
            Rejection::Text(TextError::Control { .. }) => Self::MessageInvalid,
            Rejection::MessageId(_) => Self::MessageIdInvalid,
            Rejection::MessageIdTaken { .. } => Self::MessageIdTaken,
            Rejection::IdTaken(_) => Self::IdTaken,
            Rejection::NameTaken(_) => Self::NameTaken,
            Rejection::RoomFull(_) => Self::RoomFull,
            Rejection::NotInRoom(_) => Self::NotJoined,
        }
    }
}
