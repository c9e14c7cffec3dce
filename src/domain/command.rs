//! The commands of a room.

use super::{MessageId, MessageIdError, Name, ParticipantId, Text, TextError, Timestamp, TraceContext};

/// A command to a room. The order in which a room applies its commands is the order of its log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Enter the room.
    Join(Join),
    /// Send a message as a participant.
    Say(Say),
    /// Send a message without being a participant.
    Post(Post),
    /// Leave the room.
    Leave(Leave),
}

/// Enters a room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Join {
    /// The id that the client chose; `None` if the room is to assign one.
    pub id: Option<ParticipantId>,
    /// The participant's name.
    pub name: Name,
    /// The client's Lamport time.
    pub timestamp: Timestamp,
    /// Whether the client can resume its session after its connection is lost.
    pub is_resumable: bool,
    /// The trace context that the client sent.
    pub trace: Option<TraceContext>,
}

/// Sends a message as a participant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Say {
    /// The sender.
    pub participant: ParticipantId,
    /// The message.
    pub message: Message,
}

/// Sends a message without being a participant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Post {
    /// The name to send it under, which must not be a participant's.
    pub name: Name,
    /// The message.
    pub message: Message,
}

/// A message as a client sent it. Cheap to clone.
///
/// Text and message id arrive parsed but may be invalid: the receipt of an invalid message is an event that ticks the
/// room's clock, so the room itself has to reject it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The client's Lamport time.
    pub timestamp: Timestamp,
    /// The text.
    pub text: Result<Text, TextError>,
    /// The id for idempotent sends, if the client set one.
    pub message_id: Option<Result<MessageId, MessageIdError>>,
    /// The trace context that the client sent.
    pub trace: Option<TraceContext>,
}

impl Message {
    /// The message id, if the client set one and it is valid.
    #[must_use]
    pub fn valid_id(&self) -> Option<&MessageId> {
        self.message_id.as_ref()?.as_ref().ok()
    }
}

/// Leaves a room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leave {
    /// The participant that leaves.
    pub participant: ParticipantId,
    /// The client's Lamport time; `None` if the server acts for a client whose connection is lost.
    pub timestamp: Option<Timestamp>,
    /// The trace context that the client sent.
    pub trace: Option<TraceContext>,
}

impl Leave {
    /// The LEAVE that the server issues for a participant whose connection is lost.
    #[must_use]
    pub const fn by_server(participant: ParticipantId) -> Self {
        Self {
            participant,
            timestamp: None,
            trace: None,
        }
    }
}
