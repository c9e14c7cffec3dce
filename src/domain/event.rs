//! What happened in a room.

use std::borrow::Cow;

use super::{LamportTime, MessageId, Name, ParticipantId, Sequence, Text, TraceContext, WallTime};

/// One entry of a room's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Its place in the log.
    pub sequence: Sequence,
    /// The room's Lamport time of it.
    pub time: LamportTime,
    /// The wall clock when it was taken up.
    pub at: WallTime,
    /// Who caused it.
    pub participant: ParticipantId,
    /// The name of who caused it.
    pub name: Name,
    /// What it is.
    pub kind: EventKind,
    /// The trace it belongs to.
    pub trace: Option<TraceContext>,
}

/// The kinds of event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventKind {
    /// The participant came in.
    Joined,
    /// The participant said something.
    Said {
        /// What.
        text: Text,
        /// The id the sender gave it.
        message_id: Option<MessageId>,
    },
    /// The participant went, or was lost.
    Left,
}

impl Event {
    /// The words of the broadcast.
    #[must_use]
    pub fn words(&self) -> Cow<'_, str> {
        match &self.kind {
            EventKind::Joined => format!(
                "Participant {} joined Chit Chat at logical time L={}",
                self.name, self.time
            )
            .into(),
            EventKind::Said { text, .. } => text.as_str().into(),
            EventKind::Left => format!(
                "Participant {} left Chit Chat at logical time L={}",
                self.name, self.time
            )
            .into(),
        }
    }

    /// The id the sender gave the message, if this is one and it has one.
    #[must_use]
    pub const fn message_id(&self) -> Option<&MessageId> {
        match &self.kind {
            EventKind::Said { message_id, .. } => message_id.as_ref(),
            EventKind::Joined | EventKind::Left => None,
        }
    }
}
