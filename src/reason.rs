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
    /// A Subscribe call ended before its request.
    RequestMissing,
    /// The message is larger than the limit of its method.
    RequestTooLarge,
    /// Too many bytes were received and not decoded yet.
    ReceiveBudgetExceeded,
    /// Too many bytes of responses wait to be read.
    ResponseBudgetExceeded,
    /// The participant or the address sends messages too fast.
    TooFast,
    /// The address sends JOINs too fast.
    JoinsTooFast,
    /// The address creates rooms too fast.
    NewRoomsTooFast,
    /// As many rooms that the address has created exist as the limit allows.
    TooManyRoomsPerAddress,
    /// A second JOIN came on the same stream.
    SecondJoin,
    /// The event type is not defined in the protocol.
    UnknownType,
    /// The name of a participant or a room is invalid.
    NameInvalid,
    /// The message cannot be decoded.
    Undecodable,
    /// The Lamport time is negative or too far ahead of the room's clock.
    TimestampOutOfRange,
    /// The text exceeds the length limit.
    MessageTooLong,
    /// The text contains control characters other than tab and newline.
    MessageInvalid,
    /// The message id is invalid.
    MessageIdInvalid,
    /// Another text was broadcast under this message id.
    MessageIdTaken,
    /// A participant of the room has this id, or it is one that rooms assign.
    IdTaken,
    /// A participant of the room has this name or a confusable one.
    NameTaken,
    /// The room has as many participants as the limit allows.
    RoomFull,
    /// The server has as many rooms as the limit allows.
    TooManyRooms,
    /// The server has as many connections as the limit allows.
    TooManyConnections,
    /// There are too many streams beyond those that each connection may have.
    TooManyStreams,
    /// The connection is not encrypted, and the server requires TLS.
    TlsRequired,
    /// The call has no token, and the server requires one.
    TokenMissing,
    /// The token cannot be parsed, or lacks a required claim.
    TokenMalformed,
    /// The token is not signed, or with another algorithm than that of its key.
    TokenAlgorithm,
    /// The server does not have the key of the token.
    TokenKeyUnknown,
    /// The signature of the token is not valid.
    TokenSignature,
    /// The token has expired.
    TokenExpired,
    /// The token is not valid yet.
    TokenNotYetValid,
    /// The token is for another audience.
    TokenAudience,
    /// The token is from another issuer.
    TokenIssuer,
    /// The address sends too many tokens that are not valid.
    TooManyInvalidTokens,
    /// The token does not grant the right.
    RightNotGranted,
    /// The token does not grant the room.
    RoomNotGranted,
    /// The token is for another name.
    NameNotGranted,
    /// The owner of the participant's name has joined.
    NameClaimed,
    /// A moderator has removed the participant.
    Removed,
    /// A moderator has banned the client from the room.
    Banned,
    /// A moderator has closed the room.
    RoomClosed,
    /// A moderator has deleted the room.
    RoomDeleted,
    /// The room has as many bans as the limit allows.
    TooManyBans,
    /// The participant or ban that a moderator names does not exist.
    TargetNotFound,
    /// What a moderator asks for is not complete, or invalid.
    ModerationInvalid,
    /// The room does not exist.
    NoRoom,
    /// The log does not contain the events after the requested position.
    NotKept,
    /// The page token was not issued by this server.
    PageTokenInvalid,
    /// A newer connection has resumed the session.
    TakenOver,
    /// The events that the subscriber has yet to read are no longer retained, or too many notices wait for it to read them.
    FellBehind,
    /// The deadline that the client has set for the call is over.
    DeadlineExceeded,
    /// The stream is as old as streams may become.
    StreamAged,
    /// The server is shutting down.
    Draining,
    /// The room has ended, because nobody needed it.
    RoomEnded,
    /// The room has stopped after an error of the server.
    RoomFailed,
    /// The room's log is damaged.
    LogDamaged,
}

impl Reason {
    /// All reasons.
    pub const ALL: [Self; 63] = [
        Self::Left,
        Self::HalfClosed,
        Self::ConnectionLost,
        Self::Stalled,
        Self::NotJoined,
        Self::JoinTimeout,
        Self::RequestTimeout,
        Self::RequestMissing,
        Self::RequestTooLarge,
        Self::ReceiveBudgetExceeded,
        Self::ResponseBudgetExceeded,
        Self::TooFast,
        Self::JoinsTooFast,
        Self::NewRoomsTooFast,
        Self::TooManyRoomsPerAddress,
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
        Self::TooManyStreams,
        Self::TlsRequired,
        Self::TokenMissing,
        Self::TokenMalformed,
        Self::TokenAlgorithm,
        Self::TokenKeyUnknown,
        Self::TokenSignature,
        Self::TokenExpired,
        Self::TokenNotYetValid,
        Self::TokenAudience,
        Self::TokenIssuer,
        Self::TooManyInvalidTokens,
        Self::RightNotGranted,
        Self::RoomNotGranted,
        Self::NameNotGranted,
        Self::NameClaimed,
        Self::Removed,
        Self::Banned,
        Self::RoomClosed,
        Self::RoomDeleted,
        Self::TooManyBans,
        Self::TargetNotFound,
        Self::ModerationInvalid,
        Self::NoRoom,
        Self::NotKept,
        Self::PageTokenInvalid,
        Self::TakenOver,
        Self::FellBehind,
        Self::DeadlineExceeded,
        Self::StreamAged,
        Self::Draining,
        Self::RoomEnded,
        Self::RoomFailed,
        Self::LogDamaged,
    ];

    /// The reason in `ErrorInfo`. Metrics and logs write it in lower case.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Left => "LEFT",
            Self::HalfClosed => "HALF_CLOSED",
            Self::ConnectionLost => "CONNECTION_LOST",
            Self::Stalled => "STALLED",
            Self::NotJoined => "NOT_JOINED",
            Self::JoinTimeout => "JOIN_TIMEOUT",
            Self::RequestTimeout => "REQUEST_TIMEOUT",
            Self::RequestMissing => "REQUEST_MISSING",
            Self::RequestTooLarge => "REQUEST_TOO_LARGE",
            Self::ReceiveBudgetExceeded => "RECEIVE_BUDGET_EXCEEDED",
            Self::ResponseBudgetExceeded => "RESPONSE_BUDGET_EXCEEDED",
            Self::TooFast => "TOO_FAST",
            Self::JoinsTooFast => "JOINS_TOO_FAST",
            Self::NewRoomsTooFast => "NEW_ROOMS_TOO_FAST",
            Self::TooManyRoomsPerAddress => "TOO_MANY_ROOMS_PER_ADDRESS",
            Self::SecondJoin => "SECOND_JOIN",
            Self::UnknownType => "UNKNOWN_TYPE",
            Self::NameInvalid => "NAME_INVALID",
            Self::Undecodable => "UNDECODABLE",
            Self::TimestampOutOfRange => "TIMESTAMP_OUT_OF_RANGE",
            Self::MessageTooLong => "MESSAGE_TOO_LONG",
            Self::MessageInvalid => "MESSAGE_INVALID",
            Self::MessageIdInvalid => "MESSAGE_ID_INVALID",
            Self::MessageIdTaken => "MESSAGE_ID_TAKEN",
            Self::IdTaken => "ID_TAKEN",
            Self::NameTaken => "NAME_TAKEN",
            Self::RoomFull => "ROOM_FULL",
            Self::TooManyRooms => "TOO_MANY_ROOMS",
            Self::TooManyConnections => "TOO_MANY_CONNECTIONS",
            Self::TooManyStreams => "TOO_MANY_STREAMS",
            Self::TlsRequired => "TLS_REQUIRED",
            Self::TokenMissing => "TOKEN_MISSING",
            Self::TokenMalformed => "TOKEN_MALFORMED",
            Self::TokenAlgorithm => "TOKEN_ALGORITHM",
            Self::TokenKeyUnknown => "TOKEN_KEY_UNKNOWN",
            Self::TokenSignature => "TOKEN_SIGNATURE",
            Self::TokenExpired => "TOKEN_EXPIRED",
            Self::TokenNotYetValid => "TOKEN_NOT_YET_VALID",
            Self::TokenAudience => "TOKEN_AUDIENCE",
            Self::TokenIssuer => "TOKEN_ISSUER",
            Self::TooManyInvalidTokens => "TOO_MANY_INVALID_TOKENS",
            Self::RightNotGranted => "RIGHT_NOT_GRANTED",
            Self::RoomNotGranted => "ROOM_NOT_GRANTED",
            Self::NameNotGranted => "NAME_NOT_GRANTED",
            Self::NameClaimed => "NAME_CLAIMED",
            Self::Removed => "REMOVED",
            Self::Banned => "BANNED",
            Self::RoomClosed => "ROOM_CLOSED",
            Self::RoomDeleted => "ROOM_DELETED",
            Self::TooManyBans => "TOO_MANY_BANS",
            Self::TargetNotFound => "TARGET_NOT_FOUND",
            Self::ModerationInvalid => "MODERATION_INVALID",
            Self::NoRoom => "NO_ROOM",
            Self::NotKept => "NOT_KEPT",
            Self::PageTokenInvalid => "PAGE_TOKEN_INVALID",
            Self::TakenOver => "TAKEN_OVER",
            Self::FellBehind => "FELL_BEHIND",
            Self::DeadlineExceeded => "DEADLINE_EXCEEDED",
            Self::StreamAged => "STREAM_AGED",
            Self::Draining => "DRAINING",
            Self::RoomEnded => "ROOM_ENDED",
            Self::RoomFailed => "ROOM_FAILED",
            Self::LogDamaged => "LOG_DAMAGED",
        }
    }

    /// The gRPC status code.
    #[must_use]
    pub const fn code(self) -> Code {
        match self {
            Self::Left | Self::HalfClosed | Self::ConnectionLost | Self::Stalled => Code::Ok,
            Self::NotJoined | Self::SecondJoin | Self::TlsRequired => Code::FailedPrecondition,
            Self::JoinTimeout | Self::RequestTimeout | Self::DeadlineExceeded => Code::DeadlineExceeded,
            Self::UnknownType
            | Self::NameInvalid
            | Self::TimestampOutOfRange
            | Self::MessageTooLong
            | Self::MessageInvalid
            | Self::MessageIdInvalid
            | Self::PageTokenInvalid
            | Self::ModerationInvalid
            | Self::RequestMissing => Code::InvalidArgument,
            Self::Undecodable => Code::Internal,
            Self::MessageIdTaken | Self::IdTaken | Self::NameTaken => Code::AlreadyExists,
            Self::RoomFull
            | Self::TooManyRooms
            | Self::TooManyConnections
            | Self::TooManyStreams
            | Self::ReceiveBudgetExceeded
            | Self::ResponseBudgetExceeded
            | Self::TooFast
            | Self::JoinsTooFast
            | Self::NewRoomsTooFast
            | Self::TooManyRoomsPerAddress
            | Self::TooManyBans
            | Self::TooManyInvalidTokens => Code::ResourceExhausted,
            Self::TokenMissing
            | Self::TokenMalformed
            | Self::TokenAlgorithm
            | Self::TokenKeyUnknown
            | Self::TokenSignature
            | Self::TokenExpired
            | Self::TokenNotYetValid
            | Self::TokenAudience
            | Self::TokenIssuer => Code::Unauthenticated,
            Self::RightNotGranted
            | Self::RoomNotGranted
            | Self::NameNotGranted
            | Self::NameClaimed
            | Self::Removed
            | Self::Banned
            | Self::RoomClosed
            | Self::RoomDeleted => Code::PermissionDenied,
            Self::NoRoom | Self::TargetNotFound => Code::NotFound,
            Self::NotKept | Self::RequestTooLarge => Code::OutOfRange,
            Self::TakenOver | Self::FellBehind => Code::Aborted,
            Self::StreamAged | Self::Draining | Self::RoomEnded | Self::RoomFailed => Code::Unavailable,
            Self::LogDamaged => Code::DataLoss,
        }
    }

    /// The code of the private notice; `NOTICE_CODE_UNSPECIFIED` if no notice has this reason.
    #[must_use]
    pub const fn notice_code(self) -> NoticeCode {
        match self {
            Self::TimestampOutOfRange => NoticeCode::TimestampOutOfRange,
            Self::MessageTooLong => NoticeCode::MessageTooLong,
            Self::TooFast => NoticeCode::TooFast,
            Self::MessageInvalid => NoticeCode::MessageInvalid,
            Self::MessageIdInvalid => NoticeCode::MessageIdInvalid,
            Self::MessageIdTaken => NoticeCode::MessageIdTaken,
            Self::TakenOver => NoticeCode::TakenOver,
            Self::FellBehind => NoticeCode::FellBehind,
            Self::RoomClosed => NoticeCode::RoomClosed,
            Self::StreamAged | Self::Draining | Self::RoomEnded | Self::RoomFailed => NoticeCode::Reconnect,
            _ => NoticeCode::Unspecified,
        }
    }

    /// How long clients should wait, on average, before they repeat the same request. `None` if it would fail again.
    #[must_use]
    pub const fn retry_delay(self) -> Option<Duration> {
        match self {
            Self::RoomFull
            | Self::TooManyRooms
            | Self::TooManyRoomsPerAddress
            | Self::TooManyConnections
            | Self::TooManyStreams => Some(Duration::from_secs(5)),
            Self::Draining
            | Self::RoomFailed
            | Self::ReceiveBudgetExceeded
            | Self::ResponseBudgetExceeded
            | Self::TooFast
            | Self::JoinsTooFast
            | Self::NewRoomsTooFast => Some(Duration::from_secs(1)),
            // The client could join again at once; the delay only prevents a tight loop.
            Self::FellBehind | Self::StreamAged | Self::RoomEnded => Some(Duration::from_millis(100)),
            _ => None,
        }
    }

    /// Whether the server rejected a call, a stream or a message.
    #[must_use]
    pub const fn is_rejection(self) -> bool {
        !matches!(
            self,
            Self::Left
                | Self::HalfClosed
                | Self::ConnectionLost
                | Self::Stalled
                | Self::DeadlineExceeded
                | Self::StreamAged
        )
    }

    /// The `fault` label of rejections in metrics: which side caused it, `client` or `server`.
    #[must_use]
    pub const fn fault(self) -> &'static str {
        match self {
            Self::Draining | Self::RoomFailed | Self::LogDamaged | Self::FellBehind => "server",
            _ => "client",
        }
    }

    /// The `reason` label of a Chat stream that ended for this reason, in metrics and logs. `has_joined` tells whether its JOIN
    /// was accepted.
    #[must_use]
    pub const fn stream_end_label(self, has_joined: bool) -> &'static str {
        match self {
            Self::Left => "left",
            Self::HalfClosed => "closed",
            Self::ConnectionLost => "lost",
            Self::Stalled | Self::FellBehind => "slow",
            Self::DeadlineExceeded => "deadline",
            Self::StreamAged => "aged",
            Self::RoomEnded => "room_ended",
            Self::TakenOver | Self::NameClaimed => "taken_over",
            Self::Draining => "drain",
            Self::Removed | Self::Banned | Self::RoomDeleted if has_joined => "moderated",
            Self::TokenExpired if has_joined => "expired",
            // If the room fails before, it has rejected the JOIN.
            Self::RoomFailed | Self::LogDamaged if has_joined => "error",
            _ => "refused",
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
            Rejection::IdTaken(_) | Rejection::IdReserved(_) => Self::IdTaken,
            Rejection::NameTaken(_) => Self::NameTaken,
            Rejection::RoomFull(_) | Rejection::RoomFullForAddress(_) => Self::RoomFull,
            Rejection::Removed(_) => Self::Removed,
            Rejection::Banned { .. } => Self::Banned,
            Rejection::RoomClosed => Self::RoomClosed,
            Rejection::RoomDeleted => Self::RoomDeleted,
            Rejection::TooManyBans(_) => Self::TooManyBans,
            Rejection::TargetNotFound(_) => Self::TargetNotFound,
        }
    }
}
