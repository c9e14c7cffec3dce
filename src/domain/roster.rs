//! The participants of a room.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::num::NonZeroI32;

use super::limits::{FIRST_ASSIGNED_ID, SERVER_NAME};
use super::skeleton::skeletons;
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
}

impl fmt::Display for ParticipantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The participants of a room, by id and by skeleton of their names.
///
/// Invariants: `skeleton_counts` counts both skeletons of each participant's name and of the server's own, so a count is
/// never 0; `next_id` is at least [`FIRST_ASSIGNED_ID`].
#[derive(Debug, Clone)]
pub(super) struct Roster {
    by_id: BTreeMap<ParticipantId, Participant>,
    skeleton_counts: HashMap<Box<str>, usize>,
    next_id: i32,
}

impl Roster {
    pub(super) fn new() -> Self {
        let mut roster = Self {
            by_id: BTreeMap::new(),
            skeleton_counts: HashMap::new(),
            next_id: FIRST_ASSIGNED_ID,
        };
        // Never removed, so nobody can have the server's name.
        if let Ok(server) = Name::try_from(SERVER_NAME) {
            roster.add_skeletons(&server);
        }
        roster
    }

    pub(super) const fn participants(&self) -> &BTreeMap<ParticipantId, Participant> {
        &self.by_id
    }

    pub(super) fn get(&self, id: ParticipantId) -> Option<&Participant> {
        self.by_id.get(&id)
    }

    /// Whether a participant or the server has this name or one that is confusable with it.
    pub(super) fn has_confusable(&self, name: &Name) -> bool {
        skeletons(name)
            .iter()
            .any(|skeleton| self.skeleton_counts.contains_key(skeleton))
    }

    /// Whether the name is confusable with the server's own.
    pub(super) fn is_reserved(name: &Name) -> bool {
        Name::try_from(SERVER_NAME).is_ok_and(|server| server.is_confusable_with(name))
    }

    /// Adds a participant. No other may have `id`.
    pub(super) fn insert(&mut self, id: ParticipantId, participant: Participant) {
        self.add_skeletons(&participant.name);
        self.by_id.insert(id, participant);
    }

    pub(super) fn remove(&mut self, id: ParticipantId) -> Option<Participant> {
        let participant = self.by_id.remove(&id)?;
        for skeleton in skeletons(&participant.name) {
            if let Some(count) = self.skeleton_counts.get_mut(&skeleton) {
                *count -= 1;
                if *count == 0 {
                    self.skeleton_counts.remove(&skeleton);
                }
            }
        }
        Some(participant)
    }

    fn add_skeletons(&mut self, name: &Name) {
        for skeleton in skeletons(name) {
            *self.skeleton_counts.entry(skeleton).or_default() += 1;
        }
    }

    /// Assigns an id that no participant has. An id is not assigned again before all others have been, so that the sender of
    /// an old event is not mistaken for somebody who joined later.
    pub(super) fn allocate_id(&mut self) -> ParticipantId {
        // Terminates: a room has fewer participants than there are ids.
        loop {
            let candidate = ParticipantId::from_wire(self.next_id);
            self.next_id = self.next_id.checked_add(1).unwrap_or(FIRST_ASSIGNED_ID);
            if let Some(id) = candidate
                && !self.by_id.contains_key(&id)
            {
                return id;
            }
        }
    }

    /// Marks all ids up to and including `id` as assigned.
    pub(super) fn reserve_through(&mut self, id: i32) {
        if id >= self.next_id {
            self.next_id = id.checked_add(1).unwrap_or(FIRST_ASSIGNED_ID);
        }
    }

    /// The id that [`Roster::allocate_id`] tries next.
    pub(super) const fn next_id(&self) -> i32 {
        self.next_id
    }
}
