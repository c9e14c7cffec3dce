//! The fold of the order: all rooms, and who of those that write into the order lives.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::message::{Content, Message, Place, RoomCommand};
use super::partition_state::{AttachmentState, IncarnationState, PartitionState, ReplicatedRoom, RoomStates};
use crate::domain::{
    Attachment, Command, Epoch, EventKind, Outcome, ParticipantId, Room, RoomName, Rules, WallTime,
};

/// The maximum number of incarnations that live at a time. Those that end without a word live until their lease is over.
const MAX_INCARNATIONS: usize = 64;

/// How many digests are remembered. Heartbeats with older ones are not compared.
const MAX_DIGESTS: usize = 8_192;

/// The state that a prefix of the order leads to, on every replica.
///
/// Invariants, for every sequence of messages:
///
/// - The batches of an incarnation are applied in the order of their numbers, each once, and none after it was declared lost.
/// - An incarnation is declared lost only if the order has nothing of it since whoever says so last heard of it.
/// - The attachments of an incarnation that is lost are detached in all rooms.
#[derive(Debug)]
pub(crate) struct Partition {
    max_rooms: usize,
    applied: Place,
    /// Of all decisions so far: replicas that have the same digest at a place have decided alike.
    digest: u64,
    /// The digests at the newest places, the newest first.
    digests: VecDeque<u64>,
    /// Those of the first [`Content::Hello`].
    rules: Option<Rules>,
    /// Shared with the states that were taken, until they change.
    rooms: RoomStates,
    newest_epoch: Option<Epoch>,
    /// Those that live.
    incarnations: BTreeMap<Place, Incarnation>,
    /// The current attachments, and who serves them.
    attachments: BTreeMap<(RoomName, ParticipantId), (Attachment, Place)>,
}

#[derive(Debug)]
struct Incarnation {
    nonce: u64,
    last_number: u64,
    /// The newest message of it.
    seen: Place,
}

/// What has become of a message.
#[derive(Debug)]
pub(crate) enum Applied {
    /// An incarnation lives from now on.
    Hello { nonce: u64, incarnation: Place },
    /// The commands of a batch were applied.
    Batch {
        incarnation: Place,
        number: u64,
        decisions: Vec<Decision>,
    },
    /// A replica lives, and has decided alike as far as is known; `false` if it has not, and one of the two is wrong.
    Heartbeat { incarnation: Place, is_alike: bool },
    /// An incarnation is lost; its attachments were detached.
    Lost {
        incarnation: Place,
        decisions: Vec<Decision>,
    },
    /// It has no effect.
    Ignored(Ignored),
}

/// Why a message has no effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ignored {
    /// The batch was applied before.
    Repeated,
    /// A batch of this incarnation before it is missing. It must be sent again, with all that follow.
    Early(Place),
    /// Its incarnation is lost, or never was.
    Fenced,
    /// Who is said to be lost has written since.
    Alive,
    /// The replica has other rules, or there are too many.
    Unwelcome,
}

/// What a room has made of a command.
#[derive(Debug)]
pub(crate) struct Decision {
    pub(crate) room: RoomName,
    /// The number of the command's request at its incarnation; `None` if the loss of a replica has caused it.
    pub(crate) request: Option<u64>,
    pub(crate) command: Command,
    /// With the epoch of the room.
    pub(crate) outcome: Result<(Epoch, Outcome), Refusal>,
    /// Whether there was no room before, and there is none now: it matters to nobody but its caller.
    pub(crate) is_void: bool,
}

/// Why a command does not reach a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// There are too many rooms to make another.
    TooManyRooms,
    /// The room that it was meant for was deleted.
    RoomDeleted,
}

/// The messages before this one were not applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{next} was applied after {applied}")]
pub(crate) struct OutOfOrder {
    applied: Place,
    next: Place,
}

impl Partition {
    /// Before the first message.
    pub(crate) fn new(max_rooms: usize) -> Self {
        Self {
            max_rooms,
            applied: Place::default(),
            digest: 0,
            digests: VecDeque::new(),
            rules: None,
            rooms: RoomStates::new(),
            newest_epoch: None,
            incarnations: BTreeMap::new(),
            attachments: BTreeMap::new(),
        }
    }

    /// All that later decisions depend on. Takes no time for what is in the rooms: they are copied when they change while somebody has
    /// them.
    pub(crate) fn state(&self) -> (PartitionState, RoomStates) {
        let Self {
            max_rooms: _,
            applied,
            digest,
            digests,
            rules,
            rooms,
            newest_epoch,
            incarnations,
            attachments,
        } = self;
        let incarnations = incarnations.iter().map(|(place, incarnation)| {
            let Incarnation {
                nonce,
                last_number,
                seen,
            } = incarnation;
            IncarnationState {
                place: *place,
                nonce: *nonce,
                last_number: *last_number,
                seen: *seen,
            }
        });
        let attachments = attachments
            .iter()
            .map(|((room, _), (attachment, server))| AttachmentState {
                room: room.clone(),
                attachment: *attachment,
                server: *server,
            });
        let state = PartitionState {
            applied: *applied,
            digest: *digest,
            digests: digests.iter().copied().collect(),
            rules: *rules,
            newest_epoch: *newest_epoch,
            incarnations: incarnations.collect(),
            attachments: attachments.collect(),
        };
        (state, rooms.clone())
    }

    /// The partition with this state, which decides as the one whose state it is.
    pub(crate) fn from_state(state: PartitionState, rooms: RoomStates, max_rooms: usize) -> Self {
        let PartitionState {
            applied,
            digest,
            digests,
            rules,
            newest_epoch,
            incarnations,
            attachments,
        } = state;
        let incarnations = incarnations.into_iter().map(|incarnation| {
            let IncarnationState {
                place,
                nonce,
                last_number,
                seen,
            } = incarnation;
            let incarnation = Incarnation {
                nonce,
                last_number,
                seen,
            };
            (place, incarnation)
        });
        let attachments = attachments.into_iter().map(|attached| {
            let AttachmentState {
                room,
                attachment,
                server,
            } = attached;
            ((room, attachment.participant), (attachment, server))
        });
        Self {
            max_rooms,
            applied,
            digest,
            digests: digests.into(),
            rules,
            rooms,
            newest_epoch,
            incarnations: incarnations.collect(),
            attachments: attachments.collect(),
        }
    }

    /// The incarnations that live, each with the newest message of it.
    pub(crate) fn incarnations(&self) -> impl Iterator<Item = (Place, Place)> {
        self.incarnations
            .iter()
            .map(|(place, incarnation)| (*place, incarnation.seen))
    }

    /// The newest message that was applied.
    pub(crate) const fn applied(&self) -> Place {
        self.applied
    }

    pub(crate) const fn digest(&self) -> u64 {
        self.digest
    }

    /// The epoch of a room that exists.
    #[cfg(test)]
    pub(crate) fn epoch(&self, room: &RoomName) -> Option<Epoch> {
        Some(self.rooms.get(room)?.epoch)
    }

    #[cfg(test)]
    pub(crate) fn rooms(&self) -> impl Iterator<Item = (&RoomName, &Room)> {
        self.rooms
            .iter()
            .map(|(name, replicated)| (name, &replicated.room))
    }

    /// Applies the next message.
    ///
    /// # Errors
    ///
    /// It is not the next one.
    pub(crate) fn apply(&mut self, place: Place, message: Message) -> Result<Applied, OutOfOrder> {
        if place != self.applied.next() {
            return Err(OutOfOrder {
                applied: self.applied,
                next: place,
            });
        }
        self.applied = place;
        let Message { at, content } = message;
        let applied = match content {
            Content::Hello { nonce, rules, .. } => self.hello(place, nonce, rules),
            Content::Batch {
                incarnation,
                number,
                commands,
            } => self.batch(place, at, (incarnation, number), commands),
            Content::Heartbeat {
                incarnation,
                digest,
                applied,
                durable: _,
                name: _,
                version: _,
            } => self.heartbeat(place, incarnation, (applied, digest)),
            Content::Lost { incarnation, seen } => self.lost(at, incarnation, seen),
        };
        self.remember_digest(&applied);
        Ok(applied)
    }

    fn hello(&mut self, place: Place, nonce: u64, rules: Rules) -> Applied {
        let is_known = self
            .incarnations
            .values()
            .any(|incarnation| incarnation.nonce == nonce);
        let has_room = self.incarnations.len() < MAX_INCARNATIONS;
        if is_known || !has_room || *self.rules.get_or_insert(rules) != rules {
            return Applied::Ignored(Ignored::Unwelcome);
        }
        let incarnation = Incarnation {
            nonce,
            last_number: 0,
            seen: place,
        };
        self.incarnations.insert(place, incarnation);
        Applied::Hello {
            nonce,
            incarnation: place,
        }
    }

    fn batch(
        &mut self,
        place: Place,
        at: WallTime,
        (incarnation, number): (Place, u64),
        commands: Vec<RoomCommand>,
    ) -> Applied {
        let (Some(writer), Some(rules)) = (self.incarnations.get_mut(&incarnation), self.rules) else {
            return Applied::Ignored(Ignored::Fenced);
        };
        // Whoever writes lives, even if it must write again.
        writer.seen = place;
        if number <= writer.last_number {
            return Applied::Ignored(Ignored::Repeated);
        }
        if number != writer.last_number + 1 {
            return Applied::Ignored(Ignored::Early(incarnation));
        }
        writer.last_number = number;
        let decide = |command: RoomCommand| {
            let request = Some(command.request);
            self.decide(
                rules,
                incarnation,
                (command.room, command.epoch),
                command.command,
                request,
                at,
            )
        };
        let decisions = commands.into_iter().map(decide).collect();
        Applied::Batch {
            incarnation,
            number,
            decisions,
        }
    }

    fn heartbeat(&mut self, place: Place, incarnation: Place, (applied, digest): (Place, u64)) -> Applied {
        let Some(writer) = self.incarnations.get_mut(&incarnation) else {
            return Applied::Ignored(Ignored::Fenced);
        };
        writer.seen = place;
        let age = place.get().saturating_sub(1).checked_sub(applied.get());
        let own = age.and_then(|age| self.digests.get(usize::try_from(age).ok()?));
        Applied::Heartbeat {
            incarnation,
            is_alike: own.is_none_or(|own| *own == digest),
        }
    }

    fn lost(&mut self, at: WallTime, incarnation: Place, seen: Place) -> Applied {
        match self.incarnations.get(&incarnation) {
            None => return Applied::Ignored(Ignored::Fenced),
            Some(writer) if writer.seen != seen => return Applied::Ignored(Ignored::Alive),
            Some(_) => self.incarnations.remove(&incarnation),
        };
        let served = self
            .attachments
            .iter()
            .filter(|(_, (_, server))| *server == incarnation);
        let served: Vec<_> = served
            .map(|((room, _), (attachment, _))| (room.clone(), *attachment))
            .collect();
        let decisions = served.into_iter().map(|(room, attachment)| {
            let command = Command::Detach(attachment);
            let rules = self.rules.unwrap_or_default();
            self.decide(rules, incarnation, (room, None), command, None, at)
        });
        Applied::Lost {
            incarnation,
            decisions: decisions.collect(),
        }
    }

    /// Applies a command that `server` has written, to the room of this name that had this epoch for it. A room begins with the first
    /// command that it does not reject.
    fn decide(
        &mut self,
        rules: Rules,
        server: Place,
        (name, meant): (RoomName, Option<Epoch>),
        command: Command,
        request: Option<u64>,
        at: WallTime,
    ) -> Decision {
        let known = self.rooms.get(&name).map(|replicated| replicated.epoch);
        let outcome = if meant.is_some() && meant != known {
            Err(Refusal::RoomDeleted)
        } else if known.is_none() && self.rooms.len() >= self.max_rooms {
            Err(Refusal::TooManyRooms)
        } else {
            Ok(self.apply_to_room(rules, server, &name, command.clone(), at))
        };
        if let Err(refusal) = outcome {
            self.digest = xxh3_64_with_seed(&[refusal as u8], self.digest);
        }
        Decision {
            is_void: outcome.is_err() || (known.is_none() && !self.rooms.contains_key(&name)),
            room: name,
            request,
            command,
            outcome,
        }
    }

    fn apply_to_room(
        &mut self,
        rules: Rules,
        server: Place,
        name: &RoomName,
        command: Command,
        at: WallTime,
    ) -> (Epoch, Outcome) {
        // Greater than all before, so that no room of the same name has had it.
        let epoch = self
            .newest_epoch
            .map_or(Epoch::created_at(at), |newest| newest.renewed(at));
        let replicated = self.rooms.entry(name.clone());
        let replicated = replicated.or_insert_with(|| {
            Arc::new(ReplicatedRoom {
                epoch,
                room: Room::new(rules),
            })
        });
        let replicated = Arc::make_mut(replicated);
        let epoch = replicated.epoch;
        let detached = match &command {
            Command::Detach(attachment) => Some(*attachment),
            _ => None,
        };
        let outcome = replicated.room.apply(command, at);
        let room = &replicated.room;
        let state = [
            room.last().get(),
            room.time().get().cast_unsigned(),
            room.participants().len() as u64,
        ];
        let bytes: Vec<u8> = state.iter().flat_map(|number| number.to_le_bytes()).collect();
        self.digest = xxh3_64_with_seed(&bytes, self.digest);
        if room.last().get() > 0 {
            self.newest_epoch = self.newest_epoch.max(Some(epoch));
        }
        for event in outcome.events().filter(|event| event.kind == EventKind::Leave) {
            self.attachments.remove(&(name.clone(), event.participant));
        }
        if let (Outcome::Lost, Some(attachment)) = (&outcome, detached) {
            self.attachments.remove(&(name.clone(), attachment.participant));
        }
        if let Outcome::Joined { attachment, .. } | Outcome::Resumed { attachment, .. } = &outcome {
            let key = (name.clone(), attachment.participant);
            self.attachments.insert(key, (*attachment, server));
        }
        if room.is_deleted() {
            for participant in room.participants().keys() {
                self.attachments.remove(&(name.clone(), *participant));
            }
        }
        // The next command begins another room.
        if room.last().get() == 0 || room.is_deleted() {
            self.rooms.remove(name);
        }
        (epoch, outcome)
    }

    /// Remembers the digest at this place.
    fn remember_digest(&mut self, applied: &Applied) {
        let kind = match applied {
            Applied::Hello { .. } => 1,
            Applied::Batch { .. } => 2,
            Applied::Heartbeat { .. } => 3,
            Applied::Lost { .. } => 4,
            Applied::Ignored(_) => 5,
        };
        self.digest = xxh3_64_with_seed(&[kind], self.digest);
        self.digests.truncate(MAX_DIGESTS - 1);
        self.digests.push_front(self.digest);
    }
}
