//! The whole state of a room.

use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

use super::dedup_window::Entry;
use super::{Ban, LamportTime, Origin, Participant, ParticipantId, Rules, Sequence};

/// Everything that the outcomes of later commands depend on. Unlike a [`Snapshot`](super::Snapshot), which a log and a clock that skips
/// ahead complete, it needs nothing else: a replica that starts with it decides exactly as those do that have applied all commands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoomState {
    pub(super) rules: Rules,
    pub(super) time: LamportTime,
    pub(super) last: Sequence,
    pub(super) next_id: i32,
    pub(super) last_attachment: u64,
    pub(super) has_messages: bool,
    /// By ascending id.
    pub(super) participants: Vec<ParticipantState>,
    /// By ascending sequence.
    pub(super) message_ids: Vec<Entry>,
    pub(super) bans: Vec<Ban>,
    pub(super) is_closed: bool,
    pub(super) is_gone: bool,
}

/// A participant with what is not in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ParticipantState {
    pub(super) id: ParticipantId,
    pub(super) participant: Participant,
    /// The number of the newest attachment.
    pub(super) attachment: u64,
    pub(super) is_lost: bool,
    pub(super) owner: Option<Arc<str>>,
    pub(super) origin: Origin,
}

/// The state cannot be one of a room: it is damaged or forged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no room can have this state: {0}")]
pub struct InvalidState(pub(super) &'static str);

impl RoomState {
    /// A hash of the state, by which replicas notice that their rooms are not the same. Takes time for each participant and message id.
    #[must_use]
    pub fn hash(&self) -> u64 {
        xxh3_64(&self.encode())
    }
}
