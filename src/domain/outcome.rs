//! What a room answers.

use super::{
    ClockError, Event, LamportTime, MessageId, MessageIdError, Name, ParticipantId, Sequence, TextError,
};

/// What became of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is in the log; everybody hears of it.
    Accepted(Event),
    /// It was said before under the same message id; only its sender hears of it.
    Repeated {
        /// Where the original stands.
        original: Sequence,
        /// The room's time of the receipt.
        time: LamportTime,
    },
    /// It is not in the log; only its sender hears of it.
    Refused {
        /// Why.
        refusal: Refusal,
        /// The room's time: of the receipt, where the receipt counted, or else of the latest event.
        time: LamportTime,
    },
}

/// Why a room refuses a command. The words go to the sender.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The time stamp is out of range.
    #[error(transparent)]
    Clock(#[from] ClockError),
    /// The text cannot be said.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The message id is none.
    #[error(transparent)]
    MessageId(#[from] MessageIdError),
    /// The message id names another text.
    #[error("Message id {id} is taken by another text, at sequence {original}. Use a new id.")]
    MessageIdTaken {
        /// The id.
        id: MessageId,
        /// Where the other text stands.
        original: Sequence,
    },
    /// Somebody in the room has this id.
    #[error("participant id {0} is already connected; choose another, or 0 to have one assigned")]
    IdTaken(ParticipantId),
    /// Somebody in the room has this name, or one that looks like it.
    #[error("the name {:?} is taken in this room; choose another", .0.as_str())]
    NameTaken(Name),
    /// As many as may be are in the room.
    #[error("the room is full: it has {0} participants, which is the limit")]
    RoomFull(usize),
    /// Whoever speaks or leaves is not there.
    #[error("participant {0} is not in this room")]
    NotInRoom(ParticipantId),
}
