//! The fold: a deterministic state machine that turns a room's commands into the events of its log.
//!
//! Invariants, for every sequence of commands:
//!
//! - The sequences of events are 1, 2, 3, … without gaps.
//! - The Lamport times of events strictly increase, and each is later than the timestamp of its command.
//! - A participant is in the roster from its JOIN in the log to its LEAVE in the log.
//! - A command that is rejected or ignored changes nothing, except that a text that is too long ticks the clock.
//! - Only a participant's current attachment speaks for it.
//! - A participant that owns its name leaves for nobody but its owner. One that does not, leaves when the owner joins.
//! - The cost of a command depends neither on the number of participants nor on how many of them are lost.
//! - A room that is recovered from what was stored continues later than all times that the room has shown, if a snapshot is
//!   stored whenever [`Room::needs_snapshot`] says so.
//!
//! There is no I/O, no wall clock and no randomness: times and identities arrive with the commands. The caller ensures what
//! the fold cannot know: that a command comes from the attachment or session that it names, that an attachment that is gone
//! is detached, and that grace periods expire.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::dedup_window::{DedupWindow, Seen};
use super::limits::CLOCK_RESERVE;
use super::roster::Roster;
use super::skeleton::{Skeletons, skeletons};
use super::{
    Attachment, Command, Event, EventKind, Join, LamportClock, LamportTime, Leave, Message, Name, Outcome,
    Participant, ParticipantId, Post, Rejection, Rules, Say, Sequence, Session, TextError, Timestamp,
    TraceContext, WallTime,
};

/// The state of one room after some prefix of its log.
///
/// [`Room::apply`] extends the log, [`Room::replay`] rebuilds the state from it. Both lead to the same state, except for what
/// is not in the log: all participants of a replayed room are lost, and [`Room::finish_recovery`] makes up for the ticks.
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
        }
    }

    /// Restores a room from a snapshot. The deduplication window is empty; fill it with [`Room::remember_message_id`]. Then
    /// [replay](Room::replay) the events after the snapshot, and [finish](Room::finish_recovery).
    #[must_use]
    pub fn restore(rules: Rules, snapshot: Snapshot) -> Self {
        let Snapshot {
            time,
            last,
            next_id,
            participants,
            has_messages,
            recovery_time,
        } = snapshot;
        let mut room = Self::new(rules);
        room.clock = LamportClock::at(time);
        room.last = last;
        room.has_messages = has_messages;
        room.recovery_time = recovery_time;
        room.roster.set_next_id(next_id);
        for (id, participant) in participants {
            room.roster.restore(id, participant);
        }
        room
    }

    /// Applies a command. `at` is the wall clock's time, which is recorded and has no influence.
    pub fn apply(&mut self, command: Command, at: WallTime) -> Outcome {
        let outcome = match command {
            Command::Join(join) => self.join(join, at),
            Command::Say(say) => self.say(say, at),
            Command::Post(post) => self.post(post, at),
            Command::Leave(leave) => self.leave(leave, at),
            Command::Detach(attachment) => Ok(self.detach(attachment, at)),
            Command::ExpireGrace(attachment) => Ok(self.expire_grace(attachment, at)),
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
                self.remember_message_id(event);
            }
            EventKind::Leave => {
                self.roster
                    .remove(event.participant)
                    .ok_or(ReplayError::RosterMismatch { sequence })?;
            }
        }
        self.clock = LamportClock::at(event.time);
        self.last = sequence;
        self.on_event(event.time);
        Ok(())
    }

    /// Makes a room that was restored or replayed ready to continue: its clock skips the times that the room may have shown
    /// and that are not in the log.
    pub fn finish_recovery(&mut self) {
        self.clock = LamportClock::at(self.recovery_time.max(self.clock.now()));
    }

    /// Adds an event that precedes the snapshot to the deduplication window, if it is a message with an id.
    pub fn remember_message_id(&mut self, event: &Event) {
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
        if self.needs_snapshot() {
            // So that the ticks that follow do not need one each.
            clock.skip(CLOCK_RESERVE);
        }
        self.recovery_time = clock.now();
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
        }
    }

    /// Whether a snapshot must be stored before anybody sees the room's time: there were so many ticks since the last event
    /// that a recovered room would continue earlier.
    #[must_use]
    pub fn needs_snapshot(&self) -> bool {
        self.clock.now() > self.recovery_time
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

    /// The rules that the room was created with.
    #[must_use]
    pub const fn rules(&self) -> &Rules {
        &self.rules
    }

    /// How many message ids the deduplication window has.
    pub(crate) fn message_ids(&self) -> usize {
        self.dedup.len()
    }

    /// Drops all but the newest `len` message ids of the deduplication window. Replicas of a room must do the same at the same
    /// position in its order.
    pub(crate) fn truncate_message_ids(&mut self, len: usize) {
        self.dedup.truncate(len);
    }

    fn join(&mut self, join: Join, at: WallTime) -> Result<Outcome, Rejection> {
        let timestamp = self.check_timestamp(join.timestamp)?;
        if let Some(resumed) = join.session.and_then(|session| self.resume(session, &join)) {
            return Ok(resumed);
        }
        let Join {
            id,
            name,
            owner,
            is_resumable,
            trace,
            ..
        } = join;
        let skeletons = skeletons(&name);
        let places = self.places_to_vacate(id, &name, owner.as_ref(), &skeletons);
        let vacated = places.as_ref().map_or(0, Vec::len);
        let remaining = self.participants().len().saturating_sub(vacated);
        if remaining >= self.rules.max_participants {
            return Err(Rejection::RoomFull(remaining));
        }
        // The JOIN is accepted from here on.
        let places = places?;
        let attachments = places.iter().map(|id| self.roster.current_attachment(*id));
        let displaced = attachments.flatten().collect();
        let evicted = places
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
        Ok(Outcome::Joined {
            evicted,
            displaced,
            joined: self.accept(time, at, id, name, EventKind::Join, trace),
            attachment,
        })
    }

    /// Attaches a new stream to a session; `None` if the session has ended, or the name of one of the two is owned and does not fit.
    fn resume(&mut self, session: Session, join: &Join) -> Option<Outcome> {
        let participant = self.roster.get(session.participant)?;
        let owns_other = join.owner.is_some() && participant.name != join.name;
        if participant.join_sequence != session.join_sequence
            || owns_other
            || !self.yields(session.participant, join.owner.as_ref())
        {
            return None;
        }
        let name = participant.name.clone();
        // The owners in a room are forgotten when it is restored.
        if join.owner.is_some() {
            self.roster.set_owner(session.participant, join.owner.clone());
        }
        let (attachment, replaced) = self.roster.attach(session.participant)?;
        Some(Outcome::Resumed {
            session,
            name,
            attachment,
            replaced,
        })
    }

    /// Whether a participant leaves, once it is lost, for somebody who joins and who is `owner` if that is not `None`.
    fn yields(&self, participant: ParticipantId, owner: Option<&Arc<str>>) -> bool {
        let own = self.roster.owner(participant);
        own.is_none() || own == owner
    }

    /// The participants that leave for somebody who joins: those that have a name whose owner joins, and lost ones that have the id or
    /// the name. That is most often the same person with a restarted client, who would otherwise have to wait until the grace period
    /// expires.
    fn places_to_vacate(
        &self,
        id: Option<ParticipantId>,
        name: &Name,
        owner: Option<&Arc<str>>,
        skeletons: &Skeletons,
    ) -> Result<Vec<ParticipantId>, Rejection> {
        let mut places = Vec::new();
        if let Some(id) = id {
            if id.is_assigned() {
                return Err(Rejection::IdReserved(id));
            }
            if self.is_attached(id) || !self.yields(id, owner) {
                return Err(Rejection::IdTaken(id));
            }
            places.extend(self.roster.get(id).map(|_| id));
        }
        let name_taken = || Rejection::NameTaken(name.clone());
        if self.roster.is_reserved(skeletons) {
            return Err(name_taken());
        }
        if self.rules.allow_duplicate_names {
            return Ok(places);
        }
        for mut holders in self.roster.confusable(skeletons) {
            let Some(holder) = holders.next() else { continue };
            // Several have the name only if they joined while that was allowed. They are not searched for somebody who is
            // not lost.
            let is_displaced = owner.is_some() && self.roster.owner(holder).is_none();
            let remains = self.is_attached(holder) || !self.yields(holder, owner);
            if (remains && !is_displaced) || holders.next().is_some() {
                return Err(name_taken());
            }
            if !places.contains(&holder) {
                places.push(holder);
            }
        }
        Ok(places)
    }

    fn say(&mut self, say: Say, at: WallTime) -> Result<Outcome, Rejection> {
        let Say { attachment, message } = say;
        match self.name_of(attachment) {
            Some(name) => self.message(|_| attachment.participant, name, message, at),
            None => Ok(Outcome::Ignored),
        }
    }

    fn post(&mut self, post: Post, at: WallTime) -> Result<Outcome, Rejection> {
        let Post { name, message } = post;
        // A repeat is answered even if somebody has the name by now: most likely the sender itself, who has joined.
        if !self.is_name_available(&name) && !self.is_repeat(&message) {
            return Err(Rejection::NameTaken(name));
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

    /// Whether somebody outside the room may post under `name`.
    fn is_name_available(&self, name: &Name) -> bool {
        let skeletons = skeletons(name);
        let is_taken = || {
            let mut confusable = self.roster.confusable(&skeletons);
            confusable.any(|mut holders| holders.next().is_some())
        };
        !self.roster.is_reserved(&skeletons) && (self.rules.allow_duplicate_names || !is_taken())
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
