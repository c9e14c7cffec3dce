//! What a room says about itself.

use crate::domain::{LamportTime, Participant, ParticipantId, Sequence};

/// Who is in a room, as of one place in its log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// The place of the newest event.
    pub sequence: Sequence,
    /// The Lamport time.
    pub time: LamportTime,
    /// The participants by id, and whether each one's connection is there.
    pub participants: Vec<(ParticipantId, Participant, bool)>,
}
