//! The fold: a deterministic state machine that turns a room's commands into the events of its log.
//!
//! Invariants, for every sequence of commands:
//!
//! - The sequences of events are 1, 2, 3, … without gaps.
//! - The Lamport times of events strictly increase, and each is later than the timestamp of its command.
//! - A participant is in the roster from its JOIN in the log to its LEAVE in the log.
//! - A command that is rejected or ignored changes nothing, except that a text that is too long ticks the clock.
//! - Only a participant's current attachment speaks for it.
//! - A JOIN evicts a participant that owns its name only if the owner joins. A participant that does not own its name leaves when the
//!   owner joins.
//! - A JOIN from an address that has three quarters of the places is rejected, except from moderators and resumed sessions.
//! - The cost of a command depends neither on the number of participants nor on how many of them are lost, except for those of
//!   moderators.
//! - Whom a ban keeps out is not in the room, unless the room was restored and has not seen it since.
//! - A room that is recovered from what was stored continues later than all times that the room has shown, if a snapshot is
//!   stored whenever [`Room::needs_snapshot`] says so.
//!
//! There is no I/O and no wall clock, and nothing depends on randomness or on hashes that differ from process to process: times and
//! identities arrive with the commands. The caller ensures what the fold cannot know: that a command comes from the attachment or session
//! that it names, that an attachment that is gone is detached, and that grace periods expire.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::dedup_window::{DedupWindow, Seen, is_in_window};
use super::limits::{CLOCK_RESERVE, MAX_BANS};
use super::moderation::{Bans, Matcher};
use super::room_state::{InvalidState, RoomState};
use super::roster::Roster;
use super::skeleton::{Skeletons, skeletons};
use super::{
    Attachment, Ban, Command, End, EndStage, Event, EventKind, Join, LamportClock, LamportTime, Leave,
    Message, Moderation, Name, Origin, Outcome, Participant, ParticipantId, Post, Rejection, RemoveTarget,
    Rules, Say, Sequence, Session, TextError, Timestamp, TraceContext, WallTime,
};

/// The state of one room after some prefix of its log.
///
/// [`Room::apply`] extends the log, [`Room::replay`] rebuilds the state from it. Both lead to the same state, except for what
/// is not in the log: all participants of a replayed room are lost, and [`Room::finish_recovery`] makes up for the ticks. Bans, and
/// whether the room is closed, are in snapshots alone.
#[derive(Debug, Clone)]
pub struct Room {
    rules: Rules,
    clock: LamportClock,
    last: Sequence,
    roster: Roster,
    dedup: DedupWindow,
    has_messages: bool,
    /// The time at which a room continues that is recovered from the events so far and the newest snapshot.
    recovery_time: LamportTime,
    bans: Bans,
    is_closed: bool,
    is_gone: bool,
    /// Whether the newest snapshot lacks the current bans, or that the room is closed.
    is_moderation_unsaved: bool,
}

/// The state of a room without its deduplication window, which can be restored from the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The Lamport time.
    pub time: LamportTime,
    /// The newest event.
    pub last: Sequence,
    /// The id that the room assigns next, unless a participant has it.
    pub next_id: i32,
    /// The roster, by ascending id.
    pub participants: Vec<(ParticipantId, Participant)>,
    /// Whether a message was ever accepted.
    pub has_messages: bool,
    /// The Lamport time at which the room continues if no event follows.
    pub recovery_time: LamportTime,
    /// The bans, some of which may have ended.
    pub bans: Vec<Ban>,
    /// Whether a moderator has closed the room.
    pub is_closed: bool,
}

impl Snapshot {
    /// Until when the room must not end although it is vacant, because it keeps somebody out; [`WallTime::MAX`] for a closed room.
    #[must_use]
    pub fn needed_until(&self) -> WallTime {
        let bans = self.bans.iter().map(|ban| ban.until);
        let closed = self.is_closed.then_some(WallTime::MAX);
        bans.chain(closed).max().unwrap_or_default()
    }
}

/// Why a log cannot be replayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    /// Events are missing.
    #[error("events {} to {} are missing", .after.next(), .next.previous())]
    Gap {
        /// The last event before the gap.
        after: Sequence,
        /// The first event after the gap.
        next: Sequence,
    },
    /// The Lamport time does not increase.
    #[error("event {sequence} is not later than the one before it")]
    TimeNotIncreasing {
        /// The event.
        sequence: Sequence,
    },
    /// A participant joins who is in the room already, or leaves who is not in it.
    #[error("event {sequence} does not match the roster")]
    RosterMismatch {
        /// The event.
        sequence: Sequence,
    },
}

impl Room {
    /// A room with an empty log.
    #[must_use]
    pub fn new(rules: Rules) -> Self {
        Self {
            rules,
            clock: LamportClock::default(),
            last: Sequence::ZERO,
            roster: Roster::new(),
            dedup: DedupWindow::default(),
            has_messages: false,
            recovery_time: LamportTime::default(),
            bans: Bans::default(),
            is_closed: false,
            is_gone: false,
            is_moderation_unsaved: false,
        }
    }

    /// Restores a room from a snapshot. The deduplication window is empty; fill it with [`Room::remember_message_id`]. Then
    /// [replay](Room::replay) the events after the snapshot, and [finish](Room::finish_recovery).
    #[must_use]
    pub fn from_snapshot(rules: Rules, snapshot: Snapshot) -> Self {
        let Snapshot {
            time,
            last,
            next_id,
            participants,
            has_messages,
            recovery_time,
            bans,
            is_closed,
        } = snapshot;
        let mut room = Self::new(rules);
        room.clock = LamportClock::at(time);
        room.last = last;
        room.has_messages = has_messages;
        room.recovery_time = recovery_time;
        room.bans = Bans::restore(bans);
        room.is_closed = is_closed;
        room.roster.set_next_id(next_id);
        for (id, participant) in participants {
            room.roster.restore(id, participant);
        }
        room
    }

    /// Applies a command. `at` is the wall clock's time, which is recorded, and decides which bans have ended. It has no other influence.
    pub fn apply(&mut self, command: Command, at: WallTime) -> Outcome {
        let outcome = match command {
            // One that has ended, rather than was deleted, gets no commands: the hub replaces it first.
            _ if self.is_gone => Err(Rejection::RoomDeleted),
            Command::Join(join) => self.join(join, at),
            Command::Say(say) => self.say(say, at),
            Command::Post(post) => self.post(post, at),
            Command::Leave(leave) => self.leave(leave, at),
            Command::Detach(attachment) => Ok(self.detach(attachment, at)),
            Command::ExpireGrace(attachment) => Ok(self.expire_grace(attachment, at)),
            Command::Moderate(moderation) => self.moderate(moderation, at),
            Command::End(end) => Ok(self.end(end, at)),
        };
        outcome.unwrap_or_else(|rejection| Outcome::Rejected {
            rejection,
            time: self.clock.now(),
        })
    }

    /// Applies an event of the log. It was accepted before, so no rule is checked again.
    ///
    /// # Errors
    ///
    /// The event cannot follow the events before it: the log is damaged.
    pub fn replay(&mut self, event: &Event, is_resumable: bool) -> Result<(), ReplayError> {
        let sequence = event.sequence;
        if sequence != self.last.next() {
            return Err(ReplayError::Gap {
                after: self.last,
                next: sequence,
            });
        }
        if event.time <= self.clock.now() {
            return Err(ReplayError::TimeNotIncreasing { sequence });
        }
        match &event.kind {
            EventKind::Join => {
                if self.roster.get(event.participant).is_some() {
                    return Err(ReplayError::RosterMismatch { sequence });
                }
                let participant = Participant {
                    name: event.name.clone(),
                    join_time: event.time,
                    join_sequence: sequence,
                    is_resumable,
                };
                self.roster.restore(event.participant, participant);
                self.roster.replay_assigned(event.participant);
            }
            EventKind::Message { .. } => {
                if self.roster.get(event.participant).is_none() {
                    // A post.
                    self.roster.replay_assigned(event.participant);
                }
                self.has_messages = true;
                self.insert_message_id(event);
            }
            EventKind::Leave => {
                self.roster
                    .remove(event.participant)
                    .ok_or(ReplayError::RosterMismatch { sequence })?;
            }
        }
        self.clock = LamportClock::at(event.time);
        self.last = sequence;
        self.dedup.advance(sequence);
        self.on_event(event.time);
        Ok(())
    }

    /// Makes a room that was restored or replayed ready to continue: its clock skips the times that the room may have shown
    /// and that are not in the log.
    pub fn finish_recovery(&mut self) {
        self.clock = LamportClock::at(self.recovery_time.max(self.clock.now()));
    }

    /// Adds an event that precedes the snapshot to the deduplication window, if it is a message with an id.
    /// Call it for events in the order of the log.
    pub fn remember_message_id(&mut self, event: &Event) {
        if is_in_window(event.sequence, self.last) {
            self.insert_message_id(event);
        }
    }

    fn insert_message_id(&mut self, event: &Event) {
        if let EventKind::Message {
            text,
            message_id: Some(id),
        } = &event.kind
        {
            self.dedup.insert(id, text, event.sequence);
        }
    }

    /// The current state without the deduplication window, to be stored.
    #[must_use]
    pub fn take_snapshot(&mut self) -> Snapshot {
        let mut clock = self.clock;
        if self.clock.now() > self.recovery_time {
            // So that the ticks that follow do not need one each.
            clock.skip(CLOCK_RESERVE);
        }
        self.recovery_time = clock.now();
        self.is_moderation_unsaved = false;
        Snapshot {
            time: self.clock.now(),
            last: self.last,
            next_id: self.roster.next_id(),
            participants: self
                .participants()
                .iter()
                .map(|(id, participant)| (*id, participant.clone()))
                .collect(),
            has_messages: self.has_messages,
            recovery_time: self.recovery_time,
            bans: self.bans.iter().cloned().collect(),
            is_closed: self.is_closed,
        }
    }

    /// Whether a snapshot must be stored before anybody sees the room's time or a moderator's command is answered: there were so many
    /// ticks since the last event that a recovered room would continue earlier, or it would not know what moderators have decided.
    #[must_use]
    pub fn needs_snapshot(&self) -> bool {
        self.clock.now() > self.recovery_time || self.is_moderation_unsaved
    }

    /// The whole state.
    #[must_use]
    pub fn state(&self) -> RoomState {
        // What the newest snapshot has matters only to a room that is recovered from it.
        let Self {
            rules,
            clock,
            last,
            roster,
            dedup,
            has_messages,
            recovery_time: _,
            bans,
            is_closed,
            is_gone,
            is_moderation_unsaved: _,
        } = self;
        RoomState {
            rules: *rules,
            time: clock.now(),
            last: *last,
            next_id: roster.next_id(),
            last_attachment: roster.last_attachment(),
            has_messages: *has_messages,
            participants: roster.states().collect(),
            message_ids: dedup.entries().copied().collect(),
            bans: bans.iter().cloned().collect(),
            is_closed: *is_closed,
            is_gone: *is_gone,
        }
    }

    /// The room with this state. It decides as the room does whose state it is.
    ///
    /// # Errors
    ///
    /// No room can have this state.
    pub fn from_state(state: RoomState) -> Result<Self, InvalidState> {
        let RoomState {
            rules,
            time,
            last,
            next_id,
            last_attachment,
            has_messages,
            participants,
            message_ids,
            bans,
            is_closed,
            is_gone,
        } = state;
        if bans.len() > MAX_BANS {
            return Err(InvalidState("there are too many bans"));
        }
        let mut room = Self::new(rules);
        room.clock = LamportClock::at(time);
        room.last = last;
        room.has_messages = has_messages;
        room.recovery_time = time;
        room.roster = Roster::from_states(participants, next_id, last_attachment, last)?;
        room.dedup = DedupWindow::from_entries(message_ids, last)
            .ok_or(InvalidState("the message ids are not those of the newest events"))?;
        room.bans = Bans::restore(bans);
        room.is_closed = is_closed;
        room.is_gone = is_gone;
        Ok(room)
    }

    /// The participants who are lost, each with the attachment that is gone.
    pub fn lost(&self) -> impl Iterator<Item = Attachment> {
        let ids = self.participants().keys();
        ids.filter_map(|id| self.roster.lost_attachment(*id))
    }

    /// Whether this participant is in the room and not lost.
    #[must_use]
    pub fn is_attached(&self, participant: ParticipantId) -> bool {
        self.roster.current_attachment(participant).is_some()
    }

    /// Whether the participant is lost because this attachment is gone.
    #[must_use]
    pub fn is_lost(&self, attachment: Attachment) -> bool {
        self.roster.lost_attachment(attachment.participant) == Some(attachment)
    }

    /// The room's Lamport time.
    #[must_use]
    pub const fn time(&self) -> LamportTime {
        self.clock.now()
    }

    /// The newest event; [`Sequence::ZERO`] if the log is empty.
    #[must_use]
    pub const fn last(&self) -> Sequence {
        self.last
    }

    /// Whether a message was ever accepted, even if the log no longer has it.
    #[must_use]
    pub const fn has_messages(&self) -> bool {
        self.has_messages
    }

    /// The roster.
    #[must_use]
    pub const fn participants(&self) -> &BTreeMap<ParticipantId, Participant> {
        self.roster.participants()
    }

    /// The bans that have not ended at the time `at`.
    pub fn bans(&self, at: WallTime) -> impl Iterator<Item = &Ban> {
        self.bans.iter().filter(move |ban| ban.until > at)
    }

    /// Whether a moderator has closed the room.
    #[must_use]
    pub const fn is_closed(&self) -> bool {
        self.is_closed
    }

    /// Whether the room is gone: a moderator has deleted it, or it has ended. It then rejects every command.
    #[must_use]
    pub const fn is_gone(&self) -> bool {
        self.is_gone
    }

    /// Whether the room may end at the time `at` for all that it knows itself: nobody is in it, nothing has happened since its event `last`,
    /// and it keeps nobody out.
    pub(crate) fn is_unused_since(&self, last: Sequence, at: WallTime) -> bool {
        self.last == last
            && self.participants().is_empty()
            && !self.is_closed
            && self.bans(at).next().is_none()
    }

    /// Checks that a client may read the room at the time `at` without joining it. It has no name there.
    ///
    /// # Errors
    ///
    /// The room is gone, or a ban keeps the client out.
    pub fn check_reader(&self, origin: &Origin, at: WallTime) -> Result<(), Rejection> {
        if self.is_gone {
            return Err(Rejection::RoomDeleted);
        }
        self.check_banned(None, origin, at)
    }

    /// The rules that are in force.
    #[must_use]
    pub const fn rules(&self) -> &Rules {
        &self.rules
    }

    /// Changes the rules for what follows. Replicas of a room must do so at the same position in its order.
    pub(crate) const fn set_rules(&mut self, rules: Rules) {
        self.rules = rules;
    }

    /// How many message ids the deduplication window has.
    pub(crate) fn message_ids(&self) -> usize {
        self.dedup.len()
    }

    /// Drops all but the newest `len` message ids of the deduplication window. A single server may decide that by the memory that it
    /// has; replicas of a room must do the same at the same position in its order.
    pub(crate) fn keep_newest_message_ids(&mut self, len: usize) {
        self.dedup.keep_newest(len);
    }

    fn join(&mut self, join: Join, at: WallTime) -> Result<Outcome, Rejection> {
        let timestamp = self.check_timestamp(join.timestamp)?;
        let skeletons = skeletons(join.name.as_str());
        self.check_banned(Some(&skeletons), &join.origin, at)?;
        if let Some(resumed) = join.session.and_then(|session| self.resume(session, &join, at)) {
            return Ok(resumed);
        }
        self.check_open(&join.origin)?;
        let Join {
            id,
            name,
            owner,
            origin,
            is_resumable,
            trace,
            ..
        } = join;
        let leaving = self.participants_to_evict(id, &name, owner.as_ref(), &skeletons);
        self.check_capacity(&origin, leaving.as_ref().map_or(&[], Vec::as_slice))?;
        // The JOIN is accepted from here on.
        let leaving = leaving?;
        let attachments = leaving.iter().map(|id| self.roster.current_attachment(*id));
        let displaced = attachments.flatten().collect();
        let evicted = leaving
            .into_iter()
            .filter_map(|participant| self.leave_now(participant, at))
            .collect();
        let time = self.clock.merge(timestamp);
        let id = id.unwrap_or_else(|| self.roster.allocate_id());
        let participant = Participant {
            name: name.clone(),
            join_time: time,
            join_sequence: self.last.next(),
            is_resumable,
        };
        let attachment = self.roster.insert(id, participant, skeletons);
        self.roster.set_owner(id, owner);
        self.roster.set_origin(id, origin);
        Ok(Outcome::Joined {
            evicted,
            displaced,
            joined: self.accept(time, at, id, name, EventKind::Join, trace),
            attachment,
        })
    }

    /// Checks that there is a place for a client once `leaving` have left.
    fn check_capacity(&self, origin: &Origin, leaving: &[ParticipantId]) -> Result<(), Rejection> {
        let remaining = self.participants().len().saturating_sub(leaving.len());
        if remaining >= self.rules.max_participants {
            return Err(Rejection::RoomFull(remaining));
        }
        let Some(address) = origin.address.filter(|_| !origin.is_moderator) else {
            return Ok(());
        };
        let is_from_there = |id: &&ParticipantId| {
            let origin = self.roster.origin(**id);
            origin.is_some_and(|origin| origin.address == Some(address))
        };
        let leaving = leaving.iter().filter(is_from_there).count();
        let remaining = self.roster.count_from(address).saturating_sub(leaving);
        if remaining >= self.rules.max_participants_per_address() {
            return Err(Rejection::RoomFullForAddress(remaining));
        }
        Ok(())
    }

    /// Attaches a new stream to a session; `None` if the session has ended, the name of one of the two is owned and does not fit, or the
    /// name of the session is banned.
    fn resume(&mut self, session: Session, join: &Join, at: WallTime) -> Option<Outcome> {
        let participant = self.roster.get(session.participant)?;
        let owns_other = join.owner.is_some() && participant.name != join.name;
        if participant.join_sequence != session.join_sequence
            || owns_other
            || !self.is_evictable_by(session.participant, join.owner.as_ref())
            || self
                .check_banned(self.roster.skeletons(session.participant), &join.origin, at)
                .is_err()
        {
            return None;
        }
        let name = participant.name.clone();
        // The owners in a room are forgotten when it is restored.
        if join.owner.is_some() {
            self.roster.set_owner(session.participant, join.owner.clone());
        }
        self.roster.set_origin(session.participant, join.origin.clone());
        let (attachment, replaced) = self.roster.attach(session.participant)?;
        Some(Outcome::Resumed {
            session,
            name,
            attachment,
            replaced,
        })
    }

    /// Whether somebody who joins as `owner` may evict this participant once it is lost: if nobody owns it, or `owner` does.
    fn is_evictable_by(&self, participant: ParticipantId, owner: Option<&Arc<str>>) -> bool {
        let own = self.roster.owner(participant);
        own.is_none() || own == owner
    }

    /// The participants that leave for somebody who joins: those that have a name whose owner joins, and lost ones that have the id or
    /// the name. That is most often the same person with a restarted client, who would otherwise have to wait until the grace period
    /// expires.
    fn participants_to_evict(
        &self,
        id: Option<ParticipantId>,
        name: &Name,
        owner: Option<&Arc<str>>,
        skeletons: &Skeletons,
    ) -> Result<Vec<ParticipantId>, Rejection> {
        let mut leaving = Vec::new();
        if let Some(id) = id {
            if id.is_assigned() {
                return Err(Rejection::IdReserved(id));
            }
            if self.is_attached(id) || !self.is_evictable_by(id, owner) {
                return Err(Rejection::IdTaken(id));
            }
            leaving.extend(self.roster.get(id).map(|_| id));
        }
        let name_taken = || Rejection::NameTaken(name.clone());
        if self.roster.is_reserved(skeletons) {
            return Err(name_taken());
        }
        if self.rules.allow_duplicate_names {
            return Ok(leaving);
        }
        for mut holders in self.roster.confusable(skeletons) {
            let Some(holder) = holders.next() else { continue };
            // Several have the name only if they joined while that was allowed. They are not searched for somebody who is
            // not lost.
            let is_displaced = owner.is_some() && self.roster.owner(holder).is_none();
            let remains = self.is_attached(holder) || !self.is_evictable_by(holder, owner);
            if (remains && !is_displaced) || holders.next().is_some() {
                return Err(name_taken());
            }
            if !leaving.contains(&holder) {
                leaving.push(holder);
            }
        }
        Ok(leaving)
    }

    fn say(&mut self, say: Say, at: WallTime) -> Result<Outcome, Rejection> {
        let Say { attachment, message } = say;
        let Some(name) = self.name_of(attachment) else {
            return Ok(Outcome::Ignored);
        };
        if let Some(origin) = self.roster.origin(attachment.participant)
            && let Err(closed) = self.check_open(origin)
            && !self.is_repeat(&message)
        {
            return Err(closed);
        }
        self.message(|_| attachment.participant, name, message, at)
    }

    fn post(&mut self, post: Post, at: WallTime) -> Result<Outcome, Rejection> {
        let Post {
            name,
            origin,
            message,
        } = post;
        let skeletons = skeletons(name.as_str());
        let mut allowed = self.check_banned(Some(&skeletons), &origin, at);
        allowed = allowed.and_then(|()| self.check_open(&origin));
        if allowed.is_ok() && !self.is_name_available(&skeletons) {
            allowed = Err(Rejection::NameTaken(name.clone()));
        }
        // A repeat is answered in any case, because the message is in the log. If somebody has the name by now, that is most likely
        // the sender itself, who has joined.
        if let Err(rejection) = allowed
            && !self.is_repeat(&message)
        {
            return Err(rejection);
        }
        self.message(Roster::allocate_id, name, message, at)
    }

    fn message(
        &mut self,
        sender: impl FnOnce(&mut Roster) -> ParticipantId,
        name: Name,
        message: Message,
        at: WallTime,
    ) -> Result<Outcome, Rejection> {
        let timestamp = self.check_timestamp(message.timestamp)?;
        let text = message.text.inspect_err(|error| {
            // The only rejection that ticks, as in the first version of the protocol.
            if matches!(error, TextError::TooLong { .. }) {
                self.clock.tick();
            }
        })?;
        let message_id = message.message_id.transpose()?;
        if let Some(id) = &message_id {
            match self.dedup.get(id, &text) {
                Some(Seen::SameText(original)) => {
                    let time = self.clock.now();
                    return Ok(Outcome::Repeated { original, time });
                }
                Some(Seen::OtherText(original)) => {
                    let id = id.clone();
                    return Err(Rejection::MessageIdTaken { id, original });
                }
                None => self.dedup.insert(id, &text, self.last.next()),
            }
        }
        let time = self.clock.merge(timestamp);
        let sender = sender(&mut self.roster);
        self.has_messages = true;
        let kind = EventKind::Message { text, message_id };
        let event = self.accept(time, at, sender, name, kind, message.trace);
        Ok(Outcome::Accepted(event))
    }

    fn leave(&mut self, leave: Leave, at: WallTime) -> Result<Outcome, Rejection> {
        let Leave {
            attachment,
            timestamp,
            trace,
        } = leave;
        let Some(name) = self.name_of(attachment) else {
            return Ok(Outcome::Ignored);
        };
        let time = match timestamp {
            Some(timestamp) => {
                let timestamp = self.check_timestamp(timestamp)?;
                self.clock.merge(timestamp)
            }
            None => self.clock.tick(),
        };
        let participant = attachment.participant;
        self.roster.remove(participant);
        let event = self.accept(time, at, participant, name, EventKind::Leave, trace);
        Ok(Outcome::Accepted(event))
    }

    fn detach(&mut self, attachment: Attachment, at: WallTime) -> Outcome {
        let participant = attachment.participant;
        if self.name_of(attachment).is_none() {
            return Outcome::Ignored;
        }
        if self
            .roster
            .get(participant)
            .is_some_and(|holder| holder.is_resumable)
        {
            self.roster.mark_lost(participant);
            return Outcome::Lost;
        }
        self.leave_now(participant, at)
            .map_or(Outcome::Ignored, Outcome::Accepted)
    }

    fn expire_grace(&mut self, attachment: Attachment, at: WallTime) -> Outcome {
        if !self.is_lost(attachment) {
            return Outcome::Ignored;
        }
        self.leave_now(attachment.participant, at)
            .map_or(Outcome::Ignored, Outcome::Accepted)
    }

    fn moderate(&mut self, moderation: Moderation, at: WallTime) -> Result<Outcome, Rejection> {
        let mut leaving = Vec::new();
        match moderation {
            Moderation::Remove { who, .. } => {
                leaving = match who {
                    RemoveTarget::Participant(id) => self.roster.get(id).map(|_| id).into_iter().collect(),
                    RemoveTarget::All(target) => self.roster.matching(&Matcher::new(target)),
                };
                if leaving.is_empty() {
                    return Err(Rejection::TargetNotFound("participant"));
                }
                return Ok(self.remove(leaving, at));
            }
            Moderation::Ban(ban) => {
                let matcher = self.bans.insert(ban, at)?;
                leaving = self.roster.matching(&matcher);
            }
            Moderation::Unban(target) => {
                if !self.bans.remove(target, at) {
                    return Err(Rejection::TargetNotFound("ban"));
                }
            }
            Moderation::Close => self.is_closed = true,
            Moderation::Reopen => self.is_closed = false,
            Moderation::Delete => self.is_gone = true,
        }
        self.is_moderation_unsaved = true;
        Ok(self.remove(leaving, at))
    }

    fn end(&mut self, end: End, at: WallTime) -> Outcome {
        let End { last, stage } = end;
        if stage != EndStage::Decided || !self.is_unused_since(last, at) {
            return Outcome::Ignored;
        }
        self.is_gone = true;
        Outcome::Ended
    }

    fn remove(&mut self, leaving: Vec<ParticipantId>, at: WallTime) -> Outcome {
        let attachments = leaving.iter().map(|id| self.roster.current_attachment(*id));
        let attachments = attachments.flatten().collect();
        let leaving = leaving.into_iter();
        Outcome::Moderated {
            removed: leaving.filter_map(|id| self.leave_now(id, at)).collect(),
            attachments,
        }
    }

    /// Checks that no ban keeps a client out, whose name has these skeletons.
    fn check_banned(
        &self,
        skeletons: Option<&Skeletons>,
        origin: &Origin,
        at: WallTime,
    ) -> Result<(), Rejection> {
        self.bans.find(skeletons, origin, at).map_or(Ok(()), |ban| {
            let (until, reason) = (ban.until, ban.reason.clone());
            Err(Rejection::Banned { until, reason })
        })
    }

    /// Checks that a client may join or say something, as far as the room may be closed.
    const fn check_open(&self, origin: &Origin) -> Result<(), Rejection> {
        if self.is_closed && !origin.is_moderator {
            return Err(Rejection::RoomClosed);
        }
        Ok(())
    }

    /// Makes a participant leave for whom the server acts; `None` if it is not in the room.
    fn leave_now(&mut self, participant: ParticipantId, at: WallTime) -> Option<Event> {
        let name = self.roster.remove(participant)?.name;
        let time = self.clock.tick();
        Some(self.accept(time, at, participant, name, EventKind::Leave, None))
    }

    /// The name of the participant whose current attachment this is; `None` if it is not current.
    fn name_of(&self, attachment: Attachment) -> Option<Name> {
        let participant = attachment.participant;
        let is_current = self.roster.current_attachment(participant) == Some(attachment);
        let holder = self.roster.get(participant).filter(|_| is_current)?;
        Some(holder.name.clone())
    }

    fn check_timestamp(&self, timestamp: Timestamp) -> Result<LamportTime, Rejection> {
        Ok(self.clock.check(timestamp, self.rules.max_clock_ahead)?)
    }

    /// Whether somebody outside the room may post under a name with these skeletons.
    fn is_name_available(&self, skeletons: &Skeletons) -> bool {
        let is_taken = || {
            let mut confusable = self.roster.confusable(skeletons);
            confusable.any(|mut holders| holders.next().is_some())
        };
        !self.roster.is_reserved(skeletons) && (self.rules.allow_duplicate_names || !is_taken())
    }

    fn is_repeat(&self, message: &Message) -> bool {
        match (message.valid_id(), &message.text) {
            (Some(id), Ok(text)) => self.dedup.get(id, text).is_some(),
            _ => false,
        }
    }

    /// A room is recovered from its events, so their times need no snapshot.
    fn on_event(&mut self, time: LamportTime) {
        let mut clock = LamportClock::at(time);
        self.recovery_time = clock.skip(CLOCK_RESERVE);
    }

    fn accept(
        &mut self,
        time: LamportTime,
        at: WallTime,
        participant: ParticipantId,
        name: Name,
        kind: EventKind,
        trace: Option<TraceContext>,
    ) -> Event {
        self.last = self.last.next();
        self.dedup.advance(self.last);
        self.on_event(time);
        Event {
            sequence: self.last,
            time,
            at,
            participant,
            name,
            kind,
            trace,
        }
    }
}

#[cfg(test)]
#[path = "room_tests.rs"]
mod tests;
