//! The outcomes of commands.

use super::limits::{FIRST_ASSIGNED_ID, LAST_ASSIGNED_ID};
use super::{
    Attachment, ClockError, Event, LamportTime, MessageId, MessageIdError, Name, ParticipantId, Sequence,
    Session, Text, TextError, WallTime,
};

/// What a room decided about a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The command is an event of the log. Everybody receives it.
    Accepted(Event),
    /// The participant has entered the room.
    Joined {
        /// The LEAVEs of participants that had the id or the name, which precede the JOIN in the log.
        evicted: Vec<Event>,
        /// The attachments of those that were not lost: they had a name whose owner has joined.
        displaced: Vec<Attachment>,
        /// The JOIN.
        joined: Event,
        /// The participant's first attachment.
        attachment: Attachment,
    },
    /// The participant has resumed its session, which is not an event of the log.
    Resumed {
        /// The session.
        session: Session,
        /// The participant's name.
        name: Name,
        /// The new attachment, which is the current one from now on.
        attachment: Attachment,
        /// The attachment that the new one takes over from, if the participant was not lost.
        replaced: Option<Attachment>,
    },
    /// The participant is lost, which is not an event of the log. It leaves when its grace period expires.
    Lost,
    /// The command has no effect, because its attachment is not what it takes it for: a newer one has taken over, or the
    /// participant has left or is no longer lost. Nobody is told.
    Ignored,
    /// A moderator's decision has been carried out.
    Moderated {
        /// The LEAVEs of those whom it makes leave.
        removed: Vec<Event>,
        /// The attachments of those that were not lost.
        attachments: Vec<Attachment>,
    },
    /// The room has ended, because nobody needs it.
    Ended,
    /// The message is in the log already, under the same message id. Only its sender is told.
    Repeated {
        /// The original event.
        original: Sequence,
        /// The room's time.
        time: LamportTime,
    },
    /// The command was rejected. Only its sender is told.
    Rejected {
        /// Why.
        rejection: Rejection,
        /// The room's time, after the tick if the rejection is one that ticks.
        time: LamportTime,
    },
}

impl Outcome {
    /// The events of the log that the command has produced, in order.
    pub fn events(&self) -> impl Iterator<Item = &Event> {
        let (before, event) = match self {
            Self::Accepted(event) => (&[][..], Some(event)),
            Self::Joined { evicted, joined, .. } => (&evicted[..], Some(joined)),
            Self::Moderated { removed, .. } => (&removed[..], None),
            _ => (&[][..], None),
        };
        before.iter().chain(event)
    }
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
    /// Rooms assign this id themselves.
    #[error(
        "participant id {0} is one that the server assigns ({FIRST_ASSIGNED_ID} to {LAST_ASSIGNED_ID}); choose another, or 0 to have one assigned"
    )]
    IdReserved(ParticipantId),
    /// A participant has this name, or one that is confusable with it.
    #[error("the name {:?} is taken in this room; choose another", .0.as_str())]
    NameTaken(Name),
    /// The room has reached its limit of participants.
    #[error("the room is full: it has {0} participants, which is the limit")]
    RoomFull(usize),
    /// The room has as many participants from the client's address as it may have from one.
    #[error(
        "the room is full for your address: {0} participants have joined from it, which is the limit for one address"
    )]
    RoomFullForAddress(usize),
    /// A moderator has removed the participant, for this reason. Ends its stream.
    #[error("a moderator has removed you from the room{}", because(.0))]
    Removed(Text),
    /// A ban keeps the client out.
    #[error("you are banned from this room until {}{}", .until.display(), because(.reason))]
    Banned {
        /// When the ban ends.
        until: WallTime,
        /// Why the moderator has banned the client.
        reason: Text,
    },
    /// A moderator has closed the room.
    #[error("the room is closed; only moderators can join it or send messages")]
    RoomClosed,
    /// A moderator has deleted the room.
    #[error("a moderator has deleted the room")]
    RoomDeleted,
    /// The room has reached its limit of bans.
    #[error("the room has {0} bans, which is the limit; end one that is not needed any more")]
    TooManyBans(usize),
    /// Nobody in the room is meant by what a moderator has asked for, or there is no such ban.
    #[error("there is no such {0} in this room")]
    TargetNotFound(&'static str),
}

/// The end of a sentence that tells a moderator's reason, if there is one.
fn because(reason: &Text) -> String {
    match reason.as_str() {
        "" => String::new(),
        reason => format!(": {reason}"),
    }
}
