//! Who is in a room.

use std::collections::{BTreeMap, HashMap};

use super::limits::{FIRST_ASSIGNED_ID, SERVER_NAME};
use super::name_key::NameKeys;
use super::{LamportTime, Name, ParticipantId, Sequence};

/// Somebody who is in a room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Participant {
    /// The name.
    pub name: Name,
    /// The Lamport time of the JOIN.
    pub joined: LamportTime,
    /// The place of the JOIN in the log: with the id it names this stay and no other.
    pub since: Sequence,
    /// Whether the client can come back to its stay after losing its connection.
    pub is_resumable: bool,
}

/// Who is in a room: by id, and by what their names look like.
#[derive(Debug, Clone)]
pub(super) struct Roster {
    by_id: BTreeMap<ParticipantId, Participant>,
    /// How many participants have a name of this look: more than one only where duplicate names are allowed, or where
    /// one name has the look twice.
    looks: HashMap<Box<str>, usize>,
    next_id: i32,
}

impl Roster {
    pub(super) fn new() -> Self {
        let mut roster = Self {
            by_id: BTreeMap::new(),
            looks: HashMap::new(),
            next_id: FIRST_ASSIGNED_ID,
        };
        // Nobody leaves under it, so it stays taken.
        if let Ok(server) = Name::try_from(SERVER_NAME) {
            roster.take_look_of(&server);
        }
        roster
    }

    fn take_look_of(&mut self, name: &Name) {
        let keys = NameKeys::of(name);
        for key in [keys.as_written, keys.in_lower_case] {
            *self.looks.entry(key).or_default() += 1;
        }
    }

    /// The next id that may be assigned.
    pub(super) const fn next_id(&self) -> i32 {
        self.next_id
    }

    /// Takes note that an id was assigned, now or in the past.
    pub(super) fn note_assigned(&mut self, id: i32) {
        if id >= self.next_id {
            self.next_id = id.checked_add(1).unwrap_or(FIRST_ASSIGNED_ID);
        }
    }

    pub(super) const fn participants(&self) -> &BTreeMap<ParticipantId, Participant> {
        &self.by_id
    }

    pub(super) fn get(&self, id: ParticipantId) -> Option<&Participant> {
        self.by_id.get(&id)
    }

    /// Whether somebody has this name or one that looks like it.
    pub(super) fn has_look_of(&self, name: &Name) -> bool {
        let keys = NameKeys::of(name);
        self.looks.contains_key(&keys.as_written) || self.looks.contains_key(&keys.in_lower_case)
    }

    /// Whether the name is the server's own, or looks like it.
    pub(super) fn is_reserved(name: &Name) -> bool {
        Name::try_from(SERVER_NAME).is_ok_and(|server| server.looks_like(name))
    }

    /// An id that nobody in the room has. Ids are given once, as long as there are new ones, so that an old event's
    /// sender is not mistaken for somebody who came later.
    pub(super) fn vacant_id(&mut self) -> ParticipantId {
        // Ends: a room has fewer participants than there are ids.
        loop {
            let candidate = ParticipantId::chosen(self.next_id);
            self.next_id = self.next_id.checked_add(1).unwrap_or(FIRST_ASSIGNED_ID);
            if let Some(id) = candidate
                && !self.by_id.contains_key(&id)
            {
                return id;
            }
        }
    }

    pub(super) fn enter(&mut self, id: ParticipantId, participant: Participant) {
        self.take_look_of(&participant.name);
        self.by_id.insert(id, participant);
    }

    pub(super) fn leave(&mut self, id: ParticipantId) -> Option<Participant> {
        let participant = self.by_id.remove(&id)?;
        let keys = NameKeys::of(&participant.name);
        for key in [keys.as_written, keys.in_lower_case] {
            if let Some(count) = self.looks.get_mut(&key) {
                *count -= 1;
                if *count == 0 {
                    self.looks.remove(&key);
                }
            }
        }
        Some(participant)
    }
}
