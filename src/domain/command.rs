//! The commands of a room.

use std::sync::Arc;

use super::{
    Attachment, MessageId, MessageIdError, Moderation, Name, Origin, ParticipantId, Sequence, Session, Text,
    TextError, Timestamp, TraceContext,
};

/// A command to a room. The order in which a room applies its commands is the order of its log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Enter the room, or attach a new stream to a session.
    Join(Join),
    /// Send a message as a participant.
    Say(Say),
    /// Send a message without being a participant.
    Post(Post),
    /// Leave the room.
    Leave(Leave),
    /// An attachment is gone without a LEAVE. A participant that cannot resume leaves, any other is lost.
    Detach(Attachment),
    /// The grace period of a participant that lost this attachment has expired. It leaves if it is still lost.
    ///
    /// Grace periods are measured by whoever issues the commands, because the fold has no clock of its own.
    ExpireGrace(Attachment),
    /// Decide about what others do. Whoever issues this command has checked that the moderator may.
    Moderate(Moderation),
    /// Nobody needs the room any more.
    End(End),
}

impl Command {
    /// Who a JOIN or a post comes from.
    pub(crate) const fn origin(&self) -> Option<&Origin> {
        match self {
            Self::Join(join) => Some(&join.origin),
            Self::Post(post) => Some(&post.origin),
            _ => None,
        }
    }
}

/// Says that nobody needs a room: nobody was in it, and nothing has happened in it since its newest event, for long enough.
///
/// What a room is needed for apart from that, the fold does not know: for whoever reads it without being in it, and for the history that
/// somebody retains. So replicas of a room ask one another before it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// The newest event of the room, as far as whoever says so knows. If there is another one, this has no effect.
    pub last: Sequence,
    /// Whether all have been asked.
    pub stage: EndStage,
}

/// How far replicas have got that end a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndStage {
    /// One of them asks the others.
    Proposed,
    /// One of them does not need the room, either.
    Agreed,
    /// The room ends.
    Decided,
}

/// Enters a room, or attaches a new stream to a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Join {
    /// The session to resume, which the client has proved to be its own. If it has ended, or has a name that another owns, the client
    /// enters anew.
    pub session: Option<Session>,
    /// The id that the client chose; `None` if the room is to assign one.
    pub id: Option<ParticipantId>,
    /// The participant's name.
    pub name: Name,
    /// Who owns the name, if the client has proved that it does.
    pub owner: Option<Arc<str>>,
    /// Who joins.
    pub origin: Origin,
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
    /// The stream that the message came from. It has no effect unless it is the sender's current one.
    pub attachment: Attachment,
    /// The message.
    pub message: Message,
}

/// Sends a message without being a participant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Post {
    /// The name to send it under, which must not be a participant's.
    pub name: Name,
    /// Who sends it.
    pub origin: Origin,
    /// The message.
    pub message: Message,
}

/// A message as a client sent it. Cheap to clone.
///
/// Text and message id arrive parsed but may be invalid: a text that is too long ticks the room's clock, so the room itself has to reject
/// it.
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
    /// The stream that the LEAVE came from. It has no effect unless it is the participant's current one.
    pub attachment: Attachment,
    /// The client's Lamport time; `None` if the server acts for the client.
    pub timestamp: Option<Timestamp>,
    /// The trace context that the client sent.
    pub trace: Option<TraceContext>,
}
