//! The events of a room's log.

use std::borrow::Cow;

use super::{LamportTime, MessageId, Name, ParticipantId, Sequence, Text, TraceContext, WallTime};

/// An event of a room's log. It never changes: it is broadcast, stored and replayed as it was accepted.
///
/// Along a log, `sequence` increases by one and `time` strictly increases. `at` need not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The position in the log.
    pub sequence: Sequence,
    /// The room's Lamport time.
    pub time: LamportTime,
    /// The wall clock's time when the command was applied.
    pub at: WallTime,
    /// The participant, or the id that was assigned to the sender of a post.
    pub participant: ParticipantId,
    /// The name of the participant or sender.
    pub name: Name,
    /// What happened.
    pub kind: EventKind,
    /// The trace context of the command, or the one that the server made for it.
    pub trace: Option<TraceContext>,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventKind {
    /// The participant entered the room.
    Join,
    /// The participant, or somebody outside the room, sent a message.
    Message {
        /// The text.
        text: Text,
        /// The id that the sender gave the message.
        message_id: Option<MessageId>,
    },
    /// The participant left, or its connection was lost for good.
    Leave,
}

impl Event {
    /// The text of the broadcast. For JOIN and LEAVE the wording is exactly that of the first version of the protocol.
    #[must_use]
    pub fn display_text(&self) -> Cow<'_, str> {
        let announce = |verb| {
            format!(
                "Participant {} {verb} Chit Chat at logical time L={}",
                self.name, self.time
            )
        };
        match &self.kind {
            EventKind::Join => announce("joined").into(),
            EventKind::Message { text, .. } => text.as_str().into(),
            EventKind::Leave => announce("left").into(),
        }
    }

    /// The id that the sender gave the message, if this is a message and has one.
    #[must_use]
    pub const fn message_id(&self) -> Option<&MessageId> {
        match &self.kind {
            EventKind::Message { message_id, .. } => message_id.as_ref(),
            EventKind::Join | EventKind::Leave => None,
        }
    }
}
