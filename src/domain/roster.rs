//! The participants of a room.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use super::limits::{FIRST_ASSIGNED_ID, LAST_ASSIGNED_ID, SERVER_NAME};
use super::moderation::Matcher;
use super::room_state::{InvalidState, ParticipantState};
use super::skeleton::{Skeletons, skeletons};
use super::{Attachment, Origin, Participant, ParticipantId, Sequence};
use crate::spare_capacity::SpareCapacity as _;

/// The participants of a room, by id and by skeleton of their names, and their attachments.
///
/// Every operation takes logarithmic time, whatever the number of participants.
///
/// Invariants: `by_id` and `states` have the same ids; `by_skeleton` has an entry for each skeleton of each participant's
/// name; `address_counts` has the number of participants of each address in `states`; `next_id` is one of the ids that rooms assign.
#[derive(Debug, Clone)]
pub(super) struct Roster {
    by_id: BTreeMap<ParticipantId, Participant>,
    states: HashMap<ParticipantId, State>,
    by_skeleton: BTreeSet<(Arc<str>, ParticipantId)>,
    address_counts: HashMap<IpAddr, usize>,
    /// Nobody can have the server's name.
    server: Skeletons,
    next_id: i32,
    last_attachment: u64,
}

/// The state of a participant that is not in the log.
#[derive(Debug, Clone)]
struct State {
    /// Kept because computing them is expensive.
    skeletons: Skeletons,
    /// The number of the newest attachment.
    attachment: u64,
    /// Whether the newest attachment is gone.
    is_lost: bool,
    /// Who owns the name.
    owner: Option<Arc<str>>,
    origin: Origin,
}

impl Roster {
    pub(super) fn new() -> Self {
        Self {
            by_id: BTreeMap::new(),
            states: HashMap::new(),
            by_skeleton: BTreeSet::new(),
            address_counts: HashMap::new(),
            server: skeletons(SERVER_NAME),
            next_id: FIRST_ASSIGNED_ID,
            last_attachment: 0,
        }
    }

    /// The participants by ascending id, with what is not in the log.
    pub(super) fn states(&self) -> impl Iterator<Item = ParticipantState> {
        self.by_id.iter().filter_map(|(id, participant)| {
            let State {
                skeletons: _,
                attachment,
                is_lost,
                owner,
                origin,
            } = self.states.get(id)?.clone();
            Some(ParticipantState {
                id: *id,
                participant: participant.clone(),
                attachment,
                is_lost,
                owner,
                origin,
            })
        })
    }

    /// The roster with these participants, of a room whose newest event is `last`.
    pub(super) fn from_states(
        participants: Vec<ParticipantState>,
        next_id: i32,
        last_attachment: u64,
        last: Sequence,
    ) -> Result<Self, InvalidState> {
        let mut roster = Self::new();
        roster.set_next_id(next_id);
        if roster.next_id != next_id {
            return Err(InvalidState("the next id is not one that rooms assign"));
        }
        if last_attachment > u64::MAX / 2 {
            return Err(InvalidState("there were too many attachments"));
        }
        if !participants.is_sorted_by(|one, next| one.id < next.id) {
            return Err(InvalidState("the participants are not in order"));
        }
        for state in participants {
            let ParticipantState {
                id,
                participant,
                attachment,
                is_lost,
                owner,
                origin,
            } = state;
            if !(1..=last_attachment).contains(&attachment) || participant.join_sequence > last {
                return Err(InvalidState("a participant is newer than the room"));
            }
            let skeletons = skeletons(participant.name.as_str());
            roster.last_attachment = attachment - 1;
            roster.insert(id, participant, skeletons);
            roster.set_owner(id, owner);
            roster.set_origin(id, origin);
            if is_lost {
                roster.mark_lost(id);
            }
        }
        roster.last_attachment = last_attachment;
        Ok(roster)
    }

    pub(super) const fn last_attachment(&self) -> u64 {
        self.last_attachment
    }

    pub(super) const fn participants(&self) -> &BTreeMap<ParticipantId, Participant> {
        &self.by_id
    }

    pub(super) fn get(&self, id: ParticipantId) -> Option<&Participant> {
        self.by_id.get(&id)
    }

    /// Whether a name with these skeletons is confusable with the server's own.
    pub(super) fn is_reserved(&self, skeletons: &Skeletons) -> bool {
        self.server.iter().any(|skeleton| skeletons.contains(skeleton))
    }

    /// The participants whose names are confusable with a name that has these skeletons, by skeleton. Most often there is one at most; there
    /// can be more if duplicate names were allowed when they joined.
    pub(super) fn confusable(
        &self,
        skeletons: &Skeletons,
    ) -> impl Iterator<Item = impl Iterator<Item = ParticipantId>> {
        skeletons.iter().map(|skeleton| {
            self.by_skeleton
                .range((Arc::clone(skeleton), ParticipantId::MIN)..)
                .take_while(move |(other, _)| other == skeleton)
                .map(|(_, id)| *id)
        })
    }

    /// Adds a participant, whose name has these skeletons, with its first attachment. No other may have `id`.
    pub(super) fn insert(
        &mut self,
        id: ParticipantId,
        participant: Participant,
        skeletons: Skeletons,
    ) -> Attachment {
        for skeleton in &skeletons {
            self.by_skeleton.insert((Arc::clone(skeleton), id));
        }
        self.by_id.insert(id, participant);
        self.last_attachment += 1;
        let state = State {
            skeletons,
            attachment: self.last_attachment,
            is_lost: false,
            owner: None,
            origin: Origin::default(),
        };
        self.states.insert(id, state);
        Attachment {
            participant: id,
            number: self.last_attachment,
        }
    }

    /// Adds a participant of a room that is restored. It is lost.
    pub(super) fn restore(&mut self, id: ParticipantId, participant: Participant) {
        let skeletons = skeletons(participant.name.as_str());
        self.insert(id, participant, skeletons);
        self.mark_lost(id);
    }

    pub(super) fn remove(&mut self, id: ParticipantId) -> Option<Participant> {
        if let Some(state) = self.states.remove(&id) {
            for skeleton in state.skeletons {
                self.by_skeleton.remove(&(skeleton, id));
            }
            self.uncount(state.origin.address);
            self.states.free_spare_capacity();
        }
        self.by_id.remove(&id)
    }

    /// Attaches a participant again. Returns the new attachment, and the one that it takes over from, if that is not gone.
    pub(super) fn attach(&mut self, id: ParticipantId) -> Option<(Attachment, Option<Attachment>)> {
        let previous = self.current_attachment(id);
        let state = self.states.get_mut(&id)?;
        self.last_attachment += 1;
        state.attachment = self.last_attachment;
        state.is_lost = false;
        let attachment = Attachment {
            participant: id,
            number: self.last_attachment,
        };
        Some((attachment, previous))
    }

    /// Who owns the name of this participant, if anybody.
    pub(super) fn owner(&self, id: ParticipantId) -> Option<&Arc<str>> {
        self.states.get(&id)?.owner.as_ref()
    }

    pub(super) fn set_owner(&mut self, id: ParticipantId, owner: Option<Arc<str>>) {
        if let Some(state) = self.states.get_mut(&id) {
            state.owner = owner;
        }
    }

    pub(super) fn skeletons(&self, id: ParticipantId) -> Option<&Skeletons> {
        self.states.get(&id).map(|state| &state.skeletons)
    }

    pub(super) fn origin(&self, id: ParticipantId) -> Option<&Origin> {
        self.states.get(&id).map(|state| &state.origin)
    }

    pub(super) fn set_origin(&mut self, id: ParticipantId, origin: Origin) {
        if let Some(state) = self.states.get_mut(&id) {
            if let Some(address) = origin.address {
                *self.address_counts.entry(address).or_default() += 1;
            }
            let previous = std::mem::replace(&mut state.origin, origin);
            self.uncount(previous.address);
        }
    }

    /// How many participants came from this address last. In a room that is restored, where those who have not resumed come from is not
    /// known.
    pub(super) fn count_from(&self, address: IpAddr) -> usize {
        self.address_counts.get(&address).copied().unwrap_or_default()
    }

    fn uncount(&mut self, address: Option<IpAddr>) {
        if let Some(address) = address
            && let Some(count) = self.address_counts.get_mut(&address)
        {
            *count -= 1;
            if *count == 0 {
                self.address_counts.remove(&address);
                self.address_counts.free_spare_capacity();
            }
        }
    }

    /// The participants that a moderator means, by ascending id. Takes time for each participant.
    pub(super) fn matching(&self, matcher: &Matcher) -> Vec<ParticipantId> {
        let is_meant = |id: &&ParticipantId| {
            let state = self.states.get(id);
            state.is_some_and(|state| matcher.matches(Some(&state.skeletons), &state.origin))
        };
        self.by_id.keys().filter(is_meant).copied().collect()
    }

    /// The participant is lost, because its current attachment is gone.
    pub(super) fn mark_lost(&mut self, id: ParticipantId) {
        if let Some(state) = self.states.get_mut(&id) {
            state.is_lost = true;
        }
    }

    pub(super) fn current_attachment(&self, id: ParticipantId) -> Option<Attachment> {
        self.newest_attachment(id, false)
    }

    /// The attachment whose end made this participant lost.
    pub(super) fn lost_attachment(&self, id: ParticipantId) -> Option<Attachment> {
        self.newest_attachment(id, true)
    }

    fn newest_attachment(&self, id: ParticipantId, is_lost: bool) -> Option<Attachment> {
        let state = self.states.get(&id).filter(|state| state.is_lost == is_lost)?;
        Some(Attachment {
            participant: id,
            number: state.attachment,
        })
    }

    /// Assigns an id that no participant has. An id is not assigned again before all others have been, so that the sender of
    /// an old event is not mistaken for somebody who joined later.
    pub(super) fn allocate_id(&mut self) -> ParticipantId {
        // Terminates: a room has fewer participants than there are ids to assign.
        loop {
            let candidate = ParticipantId::from_wire(self.next_id);
            self.set_next_id(self.next_id.saturating_add(1));
            if let Some(id) = candidate
                && !self.by_id.contains_key(&id)
            {
                return id;
            }
        }
    }

    /// Continues after `id`, if that is one of the ids that rooms assign.
    pub(super) fn replay_assigned(&mut self, id: ParticipantId) {
        if id.is_assigned() {
            self.set_next_id(id.get() + 1);
        }
    }

    /// The id that [`Roster::allocate_id`] tries next.
    pub(super) const fn next_id(&self) -> i32 {
        self.next_id
    }

    pub(super) fn set_next_id(&mut self, id: i32) {
        let is_assigned = (FIRST_ASSIGNED_ID..=LAST_ASSIGNED_ID).contains(&id);
        self.next_id = if is_assigned { id } else { FIRST_ASSIGNED_ID };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{LamportTime, Name};

    #[test]
    fn participants_who_have_left_take_no_memory() {
        let mut roster = Roster::new();
        let participant = |n: usize| Participant {
            name: Name::try_from(format!("p{n}").as_str()).unwrap(),
            join_time: LamportTime::default(),
            join_sequence: Sequence::ZERO,
            is_resumable: true,
        };
        for n in 0..5_000 {
            let id = roster.allocate_id();
            let participant = participant(n);
            let skeletons = skeletons(participant.name.as_str());
            roster.insert(id, participant, skeletons);
            let address = IpAddr::from(u32::try_from(n).unwrap().to_be_bytes());
            roster.set_origin(
                id,
                Origin {
                    address: Some(address),
                    ..Origin::default()
                },
            );
        }
        let ids: Vec<_> = roster.participants().keys().copied().collect();
        for id in &ids[1..] {
            roster.remove(*id).unwrap();
        }
        let capacities = (roster.states.capacity(), roster.address_counts.capacity());
        assert!(capacities.0 < 200 && capacities.1 < 200, "{capacities:?}");
    }
}
