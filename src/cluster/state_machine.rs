//! The fold of the command log: all rooms, and who of those that write into the command log lives.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::message::{Content, LogPosition, Message, RoomCommand};
use super::rules::{ClusterRules, FoldVersions};
use super::state_machine_snapshot::{
    AttachmentState, EndState, IncarnationState, ReplicatedRoom, ReplicatedRooms, StateMachineSnapshot,
};
use crate::domain::{
    Attachment, Command, End, EndStage, Epoch, EventKind, Outcome, ParticipantId, Room, RoomName, Rules,
    Sequence, WallTime,
};

/// The maximum number of live incarnations at a time. Those that end without a word count as live until their lease is over.
const MAX_INCARNATIONS: usize = 64;

/// How many digests are remembered. Heartbeats with older ones are not compared.
const MAX_DIGESTS: usize = 8_192;

/// How many message ids all rooms together remember before those that grow forget their oldest ones: each takes 48 bytes, twice. Part of
/// what all replicas must decide alike, as is the next one.
const MAX_MESSAGE_IDS: usize = 1 << 20;

/// How many of its newest message ids a room remembers at least.
const MIN_ROOM_MESSAGE_IDS: usize = 256;

/// The state that a prefix of the command log leads to, on every replica.
///
/// Invariants, for every sequence of messages:
///
/// - The batches of an incarnation are applied in the order of their numbers, each once, and none after it was fenced.
/// - An incarnation is fenced only if the command log has nothing of it since whoever says so last heard of it.
/// - The attachments of an incarnation that is fenced are detached in all rooms.
/// - A room ends only if nobody is in it, and all live incarnations have agreed to it since it was proposed and since the room's newest
///   event.
#[derive(Debug)]
pub(crate) struct StateMachine {
    applied: LogPosition,
    /// Of all decisions so far: replicas that have the same digest at a position have decided alike.
    digest: u64,
    /// The digests at the newest positions, the newest first.
    digests: VecDeque<u64>,
    /// Those of the incarnations that are live, or were last.
    rules: Option<ClusterRules>,
    /// What this program supports, and which version is active.
    supported: FoldVersions,
    version: u64,
    /// Shared with the states that were taken, until they change.
    rooms: ReplicatedRooms,
    newest_epoch: Option<Epoch>,
    /// The live ones.
    incarnations: BTreeMap<LogPosition, Incarnation>,
    /// How many message ids all rooms remember, and may.
    message_ids: usize,
    max_message_ids: usize,
    /// The current attachments, and who serves them.
    attachments: BTreeMap<(RoomName, ParticipantId), (Attachment, LogPosition)>,
    /// Of rooms that are to end, because nothing has happened in them since.
    ends: BTreeMap<RoomName, ProposedEnd>,
}

/// Whether a room is to end.
#[derive(Debug)]
struct ProposedEnd {
    /// Its newest event.
    last: Sequence,
    /// The incarnations that do not need it.
    agreed: BTreeSet<LogPosition>,
}

#[derive(Debug)]
struct Incarnation {
    nonce: u64,
    last_number: u64,
    /// The newest message of it.
    seen: LogPosition,
    supported: FoldVersions,
}

/// What has become of a message.
#[derive(Debug)]
pub(crate) enum Applied {
    /// An incarnation lives from now on.
    Hello {
        nonce: u64,
        incarnation: LogPosition,
        /// The rules of all rooms from now on, if they were others before.
        rules: Option<Rules>,
        /// The incarnation that it takes the place of, because there are too many. It is fenced.
        evicted: Option<(LogPosition, Vec<Decision>)>,
    },
    /// The commands of a batch were applied.
    Batch {
        incarnation: LogPosition,
        number: u64,
        decisions: Vec<Decision>,
    },
    /// A replica lives, and has decided alike as far as is known; `false` if it has not, and one of the two is wrong.
    Heartbeat {
        incarnation: LogPosition,
        is_alike: bool,
    },
    /// An incarnation is fenced; its attachments were detached.
    Fenced {
        incarnation: LogPosition,
        decisions: Vec<Decision>,
    },
    /// A version of the fold is active from now on.
    Activated(u64),
    /// It has no effect.
    Ignored(Ignored),
}

impl Applied {
    /// What has become of commands.
    pub(crate) fn decisions(&self) -> &[Decision] {
        match self {
            Self::Batch { decisions, .. }
            | Self::Fenced { decisions, .. }
            | Self::Hello {
                evicted: Some((_, decisions)),
                ..
            } => decisions,
            _ => &[],
        }
    }
}

/// Why a message has no effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ignored {
    /// The message was applied before.
    Repeated,
    /// A batch of this incarnation before it is missing. It must be sent again, with all that follow.
    Gap(LogPosition),
    /// Its incarnation has been fenced, or never existed.
    Fenced,
    /// Who is to be fenced has written since.
    Alive,
    /// The replica has other rules than the live ones.
    OtherRules,
    /// The replica does not support the version of the fold that is active.
    Unsupported { active: u64 },
    /// Not all replicas support the version that is to be activated.
    NotReady,
}

/// What a room has made of a command.
#[derive(Debug)]
pub(crate) struct Decision {
    pub(crate) room: RoomName,
    /// The number of the command's request at its incarnation; `None` if the loss of a replica has caused it.
    pub(crate) request: Option<u64>,
    /// With the stage that the end of a room has got to, if it is about that.
    pub(crate) command: Command,
    /// With the epoch of the room.
    pub(crate) outcome: Result<(Epoch, Outcome), RoutingError>,
    /// Whether it has changed no room: it matters to nobody but its caller.
    pub(crate) is_void: bool,
    /// How many of its newest message ids the room keeps now, if not all.
    pub(crate) kept_message_ids: Option<usize>,
}

/// Why a command does not reach a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RoutingError {
    /// There are too many rooms to make another.
    TooManyRooms,
    /// The room that it was meant for was deleted, or has ended.
    RoomGone,
}

/// Why a message cannot be applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ApplyError {
    /// The messages before this one were not applied.
    #[error("{next} was applied after {applied}")]
    OutOfOrder { applied: LogPosition, next: LogPosition },
    /// The program does not know what the messages from here on mean.
    #[error(
        "version {active} of the command log is active, and this program supports {supported}: start a version of the program that supports it"
    )]
    Unsupported { active: u64, supported: FoldVersions },
}

impl StateMachine {
    /// Before the first message.
    pub(crate) fn new() -> Self {
        let supported = FoldVersions::supported();
        Self {
            supported,
            version: supported.oldest,
            message_ids: 0,
            max_message_ids: MAX_MESSAGE_IDS,
            applied: LogPosition::default(),
            digest: 0,
            digests: VecDeque::new(),
            rules: None,
            rooms: ReplicatedRooms::new(),
            newest_epoch: None,
            incarnations: BTreeMap::new(),
            attachments: BTreeMap::new(),
            ends: BTreeMap::new(),
        }
    }

    /// All that later decisions depend on. Takes no time for what is in the rooms: they are copied when they change while somebody has
    /// them.
    pub(crate) fn state(&self) -> (StateMachineSnapshot, ReplicatedRooms) {
        let Self {
            applied,
            digest,
            digests,
            rules,
            supported: _,
            version,
            message_ids: _,
            max_message_ids: _,
            rooms,
            newest_epoch,
            incarnations,
            attachments,
            ends,
        } = self;
        let incarnations = incarnations.iter().map(|(position, incarnation)| {
            let Incarnation {
                nonce,
                last_number,
                seen,
                supported,
            } = incarnation;
            IncarnationState {
                position: *position,
                nonce: *nonce,
                last_number: *last_number,
                seen: *seen,
                supported: *supported,
            }
        });
        let attachments = attachments
            .iter()
            .map(|((room, _), (attachment, incarnation))| AttachmentState {
                room: room.clone(),
                attachment: *attachment,
                incarnation: *incarnation,
            });
        let ends = ends.iter().map(|(room, end)| EndState {
            room: room.clone(),
            last: end.last,
            agreed: end.agreed.iter().copied().collect(),
        });
        let state = StateMachineSnapshot {
            applied: *applied,
            digest: *digest,
            digests: digests.iter().copied().collect(),
            rules: *rules,
            version: *version,
            newest_epoch: *newest_epoch,
            incarnations: incarnations.collect(),
            attachments: attachments.collect(),
            ends: ends.collect(),
        };
        (state, rooms.clone())
    }

    /// The state machine with this state, which decides as the one whose state it is.
    pub(crate) fn from_state(state: StateMachineSnapshot, rooms: ReplicatedRooms) -> Self {
        let StateMachineSnapshot {
            applied,
            digest,
            digests,
            rules,
            version,
            newest_epoch,
            incarnations,
            attachments,
            ends,
        } = state;
        let incarnations = incarnations.into_iter().map(|incarnation| {
            let IncarnationState {
                position,
                nonce,
                last_number,
                seen,
                supported,
            } = incarnation;
            let incarnation = Incarnation {
                nonce,
                last_number,
                seen,
                supported,
            };
            (position, incarnation)
        });
        let attachments = attachments.into_iter().map(|attached| {
            let AttachmentState {
                room,
                attachment,
                incarnation,
            } = attached;
            ((room, attachment.participant), (attachment, incarnation))
        });
        let ends = ends.into_iter().map(|EndState { room, last, agreed }| {
            let agreed = agreed.into_iter().collect();
            (room, ProposedEnd { last, agreed })
        });
        Self {
            supported: FoldVersions::supported(),
            version,
            message_ids: rooms
                .values()
                .map(|replicated| replicated.room.message_ids())
                .sum(),
            max_message_ids: MAX_MESSAGE_IDS,
            applied,
            digest,
            digests: digests.into(),
            rules,
            rooms,
            newest_epoch,
            incarnations: incarnations.collect(),
            attachments: attachments.collect(),
            ends: ends.collect(),
        }
    }

    /// The live incarnations, each with the newest message of it.
    pub(crate) fn incarnations(&self) -> impl Iterator<Item = (LogPosition, LogPosition)> {
        self.incarnations
            .iter()
            .map(|(position, incarnation)| (*position, incarnation.seen))
    }

    /// The newest message that was applied.
    pub(crate) const fn applied(&self) -> LogPosition {
        self.applied
    }

    pub(crate) const fn digest(&self) -> u64 {
        self.digest
    }

    /// The epoch of a room that exists.
    pub(crate) fn epoch(&self, room: &RoomName) -> Option<Epoch> {
        Some(self.rooms.get(room)?.epoch)
    }

    /// As in a program that supports these versions.
    #[cfg(test)]
    pub(crate) fn with_supported(self, supported: FoldVersions) -> Self {
        Self { supported, ..self }
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
    /// It is not the next one, or the program does not know what it means.
    pub(crate) fn apply(&mut self, position: LogPosition, message: Message) -> Result<Applied, ApplyError> {
        if position != self.applied.next() {
            return Err(ApplyError::OutOfOrder {
                applied: self.applied,
                next: position,
            });
        }
        self.applied = position;
        let Message { at, content } = message;
        let applied = match content {
            Content::Hello {
                nonce,
                rules,
                supported,
                ..
            } => self.hello(position, at, nonce, rules, supported),
            Content::Batch {
                incarnation,
                number,
                commands,
            } => self.batch(position, at, (incarnation, number), commands),
            Content::Heartbeat {
                incarnation,
                digest,
                applied,
                checkpoint: _,
                name: _,
                version: _,
            } => self.heartbeat(position, incarnation, (applied, digest)),
            Content::Fence { incarnation, seen } => self.fence(at, incarnation, seen),
            Content::Activate { version } => self.activate(version),
        };
        self.check_version()?;
        self.remember_digest(&applied);
        Ok(applied)
    }

    /// Checks that this program supports the version of the fold that is active.
    pub(crate) fn check_version(&self) -> Result<(), ApplyError> {
        let (active, supported) = (self.version, self.supported);
        if supported.contains(active) {
            Ok(())
        } else {
            Err(ApplyError::Unsupported { active, supported })
        }
    }

    /// The rules of all rooms, if a replica has brought any.
    pub(crate) fn rules(&self) -> Option<Rules> {
        Some(self.rules?.rooms)
    }

    /// The newest version of the fold that all replicas support, if it is not active yet.
    pub(crate) fn next_version(&self) -> Option<u64> {
        let supported = self
            .incarnations
            .values()
            .map(|incarnation| incarnation.supported.newest);
        supported.min().filter(|newest| *newest > self.version)
    }

    fn activate(&mut self, version: u64) -> Applied {
        if version <= self.version {
            return Applied::Ignored(Ignored::Repeated);
        }
        let is_supported = |incarnation: &Incarnation| incarnation.supported.contains(version);
        if self.incarnations.is_empty() || !self.incarnations.values().all(is_supported) {
            return Applied::Ignored(Ignored::NotReady);
        }
        self.version = version;
        Applied::Activated(version)
    }

    fn hello(
        &mut self,
        position: LogPosition,
        at: WallTime,
        nonce: u64,
        rules: ClusterRules,
        supported: FoldVersions,
    ) -> Applied {
        let mut incarnations = self.incarnations.values();
        if incarnations.any(|incarnation| incarnation.nonce == nonce) {
            return Applied::Ignored(Ignored::Repeated);
        }
        if self.rules.is_none() {
            // Whoever begins the command log does so with the oldest version that it knows.
            self.version = supported.oldest;
        }
        if !supported.contains(self.version) {
            return Applied::Ignored(Ignored::Unsupported { active: self.version });
        }
        let is_same = self.rules == Some(rules);
        if !is_same && !self.incarnations.is_empty() {
            return Applied::Ignored(Ignored::OtherRules);
        }
        let changed = (!is_same).then_some(rules.rooms);
        if let Some(rules) = changed {
            for replicated in self.rooms.values_mut() {
                Arc::make_mut(replicated).room.set_rules(rules);
            }
        }
        // Whoever begins has not agreed to anything, and what others agreed to is not new any more.
        self.ends.clear();
        self.rules = Some(rules);
        let mut evicted = None;
        if self.incarnations.len() >= MAX_INCARNATIONS
            && let Some((_, oldest)) = self
                .incarnations
                .iter()
                .map(|(position, other)| (other.seen, *position))
                .min()
        {
            evicted = Some((oldest, self.remove_incarnation(at, oldest)));
        }
        let incarnation = Incarnation {
            nonce,
            last_number: 0,
            seen: position,
            supported,
        };
        self.incarnations.insert(position, incarnation);
        Applied::Hello {
            nonce,
            incarnation: position,
            rules: changed,
            evicted,
        }
    }

    fn batch(
        &mut self,
        position: LogPosition,
        at: WallTime,
        (incarnation, number): (LogPosition, u64),
        commands: Vec<RoomCommand>,
    ) -> Applied {
        let (Some(writer), Some(rules)) = (self.incarnations.get_mut(&incarnation), self.rules) else {
            return Applied::Ignored(Ignored::Fenced);
        };
        // Whoever writes lives, even if it must write again.
        writer.seen = position;
        if number <= writer.last_number {
            return Applied::Ignored(Ignored::Repeated);
        }
        if number != writer.last_number + 1 {
            return Applied::Ignored(Ignored::Gap(incarnation));
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

    fn heartbeat(
        &mut self,
        position: LogPosition,
        incarnation: LogPosition,
        (applied, digest): (LogPosition, u64),
    ) -> Applied {
        let Some(writer) = self.incarnations.get_mut(&incarnation) else {
            return Applied::Ignored(Ignored::Fenced);
        };
        writer.seen = position;
        let age = position.get().saturating_sub(1).checked_sub(applied.get());
        let own = age.and_then(|age| self.digests.get(usize::try_from(age).ok()?));
        Applied::Heartbeat {
            incarnation,
            is_alike: own.is_none_or(|own| *own == digest),
        }
    }

    fn fence(&mut self, at: WallTime, incarnation: LogPosition, seen: LogPosition) -> Applied {
        match self.incarnations.get(&incarnation) {
            None => Applied::Ignored(Ignored::Fenced),
            Some(writer) if writer.seen != seen => Applied::Ignored(Ignored::Alive),
            Some(_) => Applied::Fenced {
                incarnation,
                decisions: self.remove_incarnation(at, incarnation),
            },
        }
    }

    /// Detaches the attachments that an incarnation serves, which is fenced.
    fn remove_incarnation(&mut self, at: WallTime, incarnation: LogPosition) -> Vec<Decision> {
        self.incarnations.remove(&incarnation);
        let Some(rules) = self.rules else {
            return Vec::new();
        };
        let served = self
            .attachments
            .iter()
            .filter(|(_, (_, serving))| *serving == incarnation);
        let served: Vec<_> = served
            .map(|((room, _), (attachment, _))| (room.clone(), *attachment))
            .collect();
        let decisions = served.into_iter().map(|(room, attachment)| {
            let command = Command::Detach(attachment);
            self.decide(rules, incarnation, (room, None), command, None, at)
        });
        decisions.collect()
    }

    /// Applies a command that `incarnation` has written, to the room of this name that had this epoch for it. A room begins with the first
    /// command that it does not reject.
    fn decide(
        &mut self,
        rules: ClusterRules,
        incarnation: LogPosition,
        (name, meant): (RoomName, Option<Epoch>),
        command: Command,
        request: Option<u64>,
        at: WallTime,
    ) -> Decision {
        let known = self.rooms.get(&name).map(|replicated| replicated.epoch);
        let is_full = self.rooms.len() >= rules.max_rooms && name != RoomName::default();
        let mut command = command;
        let outcome = if meant.is_some() && meant != known {
            Err(RoutingError::RoomGone)
        } else if known.is_none() && is_full {
            Err(RoutingError::TooManyRooms)
        } else {
            if let Command::End(end) = &mut command {
                end.stage = self.end_stage(incarnation, (&name, meant), *end, at);
            }
            Ok(self.apply_to_room(rules.rooms, incarnation, &name, command.clone(), at))
        };
        let (outcome, kept_message_ids) = match outcome {
            Ok((epoch, outcome, kept)) => (Ok((epoch, outcome)), kept),
            Err(error) => (Err(error), None),
        };
        if let Err(error) = outcome {
            self.digest = xxh3_64_with_seed(&[error as u8], self.digest);
        }
        Decision {
            is_void: outcome.is_err() || (known.is_none() && !self.rooms.contains_key(&name)),
            room: name,
            request,
            command,
            outcome,
            kept_message_ids,
        }
    }

    /// How far the end of a room has got for which `incarnation` proposes it or agrees to it.
    fn end_stage(
        &mut self,
        incarnation: LogPosition,
        (name, meant): (&RoomName, Option<Epoch>),
        End { last, stage }: End,
        at: WallTime,
    ) -> EndStage {
        let is_unused = |replicated: &Arc<ReplicatedRoom>| replicated.room.is_unused_since(last, at);
        if meant.is_none() || !self.rooms.get(name).is_some_and(is_unused) {
            // It has no effect: nobody reacts to this stage.
            return EndStage::Agreed;
        }
        if stage == EndStage::Proposed {
            // What was said before, may not hold any more.
            let agreed = BTreeSet::new();
            self.ends.insert(name.clone(), ProposedEnd { last, agreed });
        }
        let Some(end) = self.ends.get_mut(name).filter(|end| end.last == last) else {
            return EndStage::Agreed;
        };
        end.agreed.insert(incarnation);
        if self.incarnations.keys().all(|live| end.agreed.contains(live)) {
            EndStage::Decided
        } else if stage == EndStage::Proposed {
            EndStage::Proposed
        } else {
            EndStage::Agreed
        }
    }

    fn apply_to_room(
        &mut self,
        rules: Rules,
        incarnation: LogPosition,
        name: &RoomName,
        command: Command,
        at: WallTime,
    ) -> (Epoch, Outcome, Option<usize>) {
        // Greater than all before, so that no room of the same name has had it.
        let epoch = self
            .newest_epoch
            .map_or(Epoch::created_at(at), |newest| newest.renewed(at));
        let rooms = self.rooms.len().max(1);
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
        let before = replicated.room.message_ids();
        let outcome = replicated.room.apply(command, at);
        let others = self.message_ids - before;
        let share = (self.max_message_ids / rooms).max(MIN_ROOM_MESSAGE_IDS);
        let ids = replicated.room.message_ids();
        // Not one by one, because it takes time to free memory.
        let is_too_large = others + ids > self.max_message_ids && ids > share;
        let kept = is_too_large.then_some((share / 2).max(MIN_ROOM_MESSAGE_IDS));
        if let Some(kept) = kept {
            replicated.room.keep_newest_message_ids(kept);
        }
        let room = &replicated.room;
        self.message_ids = others + room.message_ids();
        let state = [
            room.last().get(),
            room.time().get().cast_unsigned(),
            room.participants().len() as u64,
            room.message_ids() as u64,
            u64::from(room.is_gone()),
        ];
        let bytes: Vec<u8> = state.iter().flat_map(|number| number.to_le_bytes()).collect();
        self.digest = xxh3_64_with_seed(&bytes, self.digest);
        if room.last().get() > 0 {
            self.newest_epoch = self.newest_epoch.max(Some(epoch));
        }
        if outcome.events().next().is_some() {
            self.ends.remove(name);
        }
        for event in outcome.events().filter(|event| event.kind == EventKind::Leave) {
            self.attachments.remove(&(name.clone(), event.participant));
        }
        if let (Outcome::Lost, Some(attachment)) = (&outcome, detached) {
            self.attachments.remove(&(name.clone(), attachment.participant));
        }
        if let Outcome::Joined { attachment, .. } | Outcome::Resumed { attachment, .. } = &outcome {
            let key = (name.clone(), attachment.participant);
            self.attachments.insert(key, (*attachment, incarnation));
        }
        if room.is_gone() {
            for participant in room.participants().keys() {
                self.attachments.remove(&(name.clone(), *participant));
            }
        }
        // The next command begins another room.
        if room.last().get() == 0 || room.is_gone() {
            self.message_ids -= room.message_ids();
            self.rooms.remove(name);
            self.ends.remove(name);
        }
        (epoch, outcome, kept)
    }

    /// Remembers the digest at this position.
    fn remember_digest(&mut self, applied: &Applied) {
        let kind = match applied {
            Applied::Hello { .. } => 1,
            Applied::Batch { .. } => 2,
            Applied::Heartbeat { .. } => 3,
            Applied::Fenced { .. } => 4,
            Applied::Ignored(_) => 5,
            Applied::Activated(_) => 6,
        };
        self.digest = xxh3_64_with_seed(&[kind], self.digest);
        self.digests.truncate(MAX_DIGESTS - 1);
        self.digests.push_front(self.digest);
    }
}

#[cfg(test)]
#[path = "state_machine_tests.rs"]
mod tests;
