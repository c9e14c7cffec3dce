//! Why the server refuses: one closed vocabulary for `ErrorInfo` details, metrics and logs.

use crate::domain::{Rejection, TextError};

/// Whose fault a refusal is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The client asked for what cannot be.
    Client,
    /// The server could not do what can be asked of it.
    Server,
}

impl Fault {
    /// Its name in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
        }
    }
}

/// Why the server refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The first message was no JOIN.
    NotJoined,
    /// The JOIN did not come in time.
    JoinTimeout,
    /// The request of a Subscribe call did not come in time.
    RequestTimeout,
    /// A JOIN on a stream that has one.
    SecondJoin,
    /// A type that the contract does not have.
    UnknownType,
    /// A name of a participant or a room that is none.
    NameInvalid,
    /// What came is no message of the contract.
    Undecodable,
    /// A time stamp that is negative or too far ahead.
    TimestampOutOfRange,
    /// A text over the limit.
    MessageTooLong,
    /// A text with control characters.
    MessageInvalid,
    /// A message id that is none.
    MessageIdInvalid,
    /// A message id that names another text.
    MessageIdTaken,
    /// A participant id that somebody has.
    IdTaken,
    /// A name that somebody has.
    NameTaken,
    /// A room with as many as may be.
    RoomFull,
    /// As many rooms as may be.
    TooManyRooms,
    /// As many connections as may be.
    TooManyConnections,
    /// A room that is not there.
    NoRoom,
    /// A place in a log that is not kept, or never was.
    NotKept,
    /// A page token that is none.
    PageTokenInvalid,
    /// The client came back on another connection.
    TakenOver,
    /// A reader behind what the server keeps.
    FellBehind,
    /// The server is draining.
    Draining,
    /// The room came to a halt.
    RoomFailed,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 24] = [
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

    /// Its name in `ErrorInfo`; metrics and logs write it in lower case.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotJoined => "NOT_JOINED",
            Self::JoinTimeout => "JOIN_TIMEOUT",
            Self::RequestTimeout => "REQUEST_TIMEOUT",
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
            Self::NoRoom => "NO_ROOM",
            Self::NotKept => "NOT_KEPT",
            Self::PageTokenInvalid => "PAGE_TOKEN_INVALID",
            Self::TakenOver => "TAKEN_OVER",
            Self::FellBehind => "FELL_BEHIND",
            Self::Draining => "DRAINING",
            Self::RoomFailed => "ROOM_FAILED",
        }
    }

    /// Whose fault it is.
    #[must_use]
    pub const fn fault(self) -> Fault {
        match self {
            Self::Draining | Self::RoomFailed | Self::FellBehind => Fault::Server,
            _ => Fault::Client,
        }
    }
}

impl From<&Rejection> for Reason {
    fn from(refusal: &Rejection) -> Self {
        match refusal {
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
