//! Participants, their sessions, and the streams that these are attached to.

use std::fmt;
use std::num::NonZeroI32;

use super::limits::{FIRST_ASSIGNED_ID, LAST_ASSIGNED_ID};
use super::{LamportTime, Name, Sequence};

/// A participant of a room.
///
/// Its *session* lasts from its JOIN to its LEAVE. Ids are reused by later participants; the id together with
/// `join_sequence` identifies the session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Participant {
    /// The name.
    pub name: Name,
    /// The Lamport time of the JOIN.
    pub join_time: LamportTime,
    /// The sequence of the JOIN.
    pub join_sequence: Sequence,
    /// Whether the client can resume its session after its connection is lost.
    pub is_resumable: bool,
}

/// A participant's id: any number but zero, which is the server's. Unique among the participants of a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ParticipantId(NonZeroI32);

impl ParticipantId {
    /// The smallest id.
    pub(super) const MIN: Self = Self(NonZeroI32::MIN);

    /// The id that a client chose; `None` for zero, which asks the room to assign one.
    #[must_use]
    pub fn from_wire(id: i32) -> Option<Self> {
        NonZeroI32::new(id).map(Self)
    }

    /// The number, which is never zero.
    #[must_use]
    pub const fn get(self) -> i32 {
        self.0.get()
    }

    /// Whether this is one of the ids that rooms assign, which no client may choose.
    #[must_use]
    pub const fn is_assigned(self) -> bool {
        matches!(self.get(), FIRST_ASSIGNED_ID..=LAST_ASSIGNED_ID)
    }
}

impl fmt::Display for ParticipantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A participant's presence in a room, from its JOIN to its LEAVE, over any number of streams. Ids are reused; the sequence
/// of the JOIN is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Session {
    /// The participant.
    pub participant: ParticipantId,
    /// The sequence of its JOIN.
    pub join_sequence: Sequence,
}

/// One stream of a session. A session has at most one *current* attachment; a participant whose current attachment is gone
/// is *lost*, until it attaches again or leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Attachment {
    /// The participant.
    pub participant: ParticipantId,
    /// The attachments of a room are numbered in the order in which they begin. A room that is recovered
    /// from a log begins again, one that is made from a [`RoomState`](super::RoomState) continues.
    pub(super) number: u64,
}
