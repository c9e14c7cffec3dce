//! The outcomes of commands.

use super::{
    ClockError, Event, LamportTime, MessageId, MessageIdError, Name, ParticipantId, Sequence, TextError,
};

/// What a room decided about a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The command is an event of the log. Everybody receives it.
    Accepted(Event),
    /// The message is in the log already, under the same message id. Only its sender is told.
    Repeated {
        /// The original event.
        original: Sequence,
        /// The room's time after the receipt.
        time: LamportTime,
    },
    /// The command was rejected. Only its sender is told.
    Rejected {
        /// Why.
        rejection: Rejection,
        /// The room's time after the receipt.
        time: LamportTime,
    },
}

/// Why a room rejects a command. `Display` is the text that the sender receives.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// The timestamp is out of range.
    #[error(transparent)]
    Clock(#[from] ClockError),
    /// The text is invalid.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The message id is invalid.
    #[error(transparent)]
    MessageId(#[from] MessageIdError),
    /// The message id belongs to a message with another text.
    #[error("Message id {id} is taken by another text, at sequence {original}. Use a new id.")]
    MessageIdTaken {
        /// The message id.
        id: MessageId,
        /// The event that has the id.
        original: Sequence,
    },
    /// A participant has this id.
    #[error("participant id {0} is already connected; choose another, or 0 to have one assigned")]
    IdTaken(ParticipantId),
    /// A participant has this name, or one that is confusable with it.
    #[error("the name {:?} is taken in this room; choose another", .0.as_str())]
    NameTaken(Name),
    /// The room has reached its limit of participants.
    #[error("the room is full: it has {0} participants, which is the limit")]
    RoomFull(usize),
    /// The sender is not in the room.
    #[error("participant {0} is not in this room")]
    NotInRoom(ParticipantId),
}
