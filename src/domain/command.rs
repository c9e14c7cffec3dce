//! What participants ask of a room.

use super::{MessageId, MessageIdError, Name, ParticipantId, Text, TextError, Timestamp, TraceContext};

/// What a participant asks of a room. The order in which a room takes its commands is the order of its log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Come in.
    Join(Join),
    /// Say something.
    Say(Say),
    /// Say something from outside.
    Post(Post),
    /// Go.
    Leave(Leave),
}

/// Somebody wants to come in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Join {
    /// The id the client chose; none = the room assigns one.
    pub id: Option<ParticipantId>,
    /// Who it is.
    pub name: Name,
    /// The client's Lamport time.
    pub timestamp: Timestamp,
    /// Whether the client can come back to its stay after losing its connection.
    pub is_resumable: bool,
    /// The trace it belongs to.
    pub trace: Option<TraceContext>,
}

/// Somebody who is not in the room says one thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Post {
    /// Who it is.
    pub name: Name,
    /// The client's Lamport time.
    pub timestamp: Timestamp,
    /// What is said, as in [`Say`].
    pub text: Result<Text, TextError>,
    /// The message's id, as in [`Say`].
    pub message_id: Option<Result<MessageId, MessageIdError>>,
    /// The trace it belongs to.
    pub trace: Option<TraceContext>,
}

/// A participant says something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Say {
    /// Who speaks.
    pub speaker: ParticipantId,
    /// The client's Lamport time.
    pub timestamp: Timestamp,
    /// What is said, or why it cannot be: the receipt of either is an event that the room's clock counts.
    pub text: Result<Text, TextError>,
    /// The message's id, for idempotent sends, if it has one.
    pub message_id: Option<Result<MessageId, MessageIdError>>,
    /// The trace it belongs to.
    pub trace: Option<TraceContext>,
}

/// A participant goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leave {
    /// Who goes.
    pub participant: ParticipantId,
    /// The client's Lamport time; none when the connection was lost and the server speaks for the client.
    pub timestamp: Option<Timestamp>,
    /// The trace it belongs to.
    pub trace: Option<TraceContext>,
}
