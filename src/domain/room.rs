//! The fold: a deterministic state machine that turns a room's commands into the events of its log.
//!
//! Invariants, for every sequence of commands:
//!
//! - The sequences of accepted commands are 1, 2, 3, … without gaps.
//! - The Lamport times of accepted commands strictly increase, and each is later than the timestamp of its command.
//! - A participant is in the roster from its JOIN in the log to its LEAVE in the log.
//! - A rejected command changes nothing, except that a message with a valid timestamp and an invalid text or message id
//!   ticks the clock.
//!
//! There is no I/O, no wall clock and no randomness: times and identities arrive with the commands. The caller ensures what
//! the fold cannot know: that a command comes from the participant that it names, and that a participant whose connection
//! is lost leaves.

use std::collections::BTreeMap;

use super::dedup_window::{DedupWindow, Seen};
use super::roster::Roster;
use super::{
    Command, Event, EventKind, Join, LamportClock, LamportTime, Leave, Message, Name, Outcome, Participant,
    ParticipantId, Post, Rejection, Rules, Say, Sequence, Timestamp, TraceContext, WallTime,
};

/// The state of one room after some prefix of its log.
///
/// [`Room::apply`] extends the log, [`Room::replay`] rebuilds the state from it. Both lead to the same state, except that
/// the ticks of rejected messages are not in the log: a replayed room's clock may be behind, but not behind its last event.
#[derive(Debug, Clone)]
pub struct Room {
    rules: Rules,
    clock: LamportClock,
    last: Sequence,
    roster: Roster,
    dedup: DedupWindow,
    has_messages: bool,
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
        }
    }

    /// Restores a room from a snapshot. The deduplication window is empty; fill it with [`Room::remember_message_id`].
    #[must_use]
    pub fn restore(rules: Rules, snapshot: Snapshot) -> Self {
        let Snapshot {
            time,
            last,
            next_id,
            participants,
            has_messages,
        } = snapshot;
        let mut room = Self::new(rules);
        room.clock = LamportClock::at(time);
        room.last = last;
        room.has_messages = has_messages;
        room.roster.reserve_through(next_id.saturating_sub(1));
        for (id, participant) in participants {
            room.roster.insert(id, participant);
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
                self.roster.insert(event.participant, participant);
            }
            EventKind::Message { .. } => {
                self.has_messages = true;
                self.remember_message_id(event);
            }
            EventKind::Leave => {
                self.roster
                    .remove(event.participant)
                    .ok_or(ReplayError::RosterMismatch { sequence })?;
            }
        }
        self.roster.reserve_through(event.participant.get());
        self.clock = LamportClock::at(event.time);
        self.last = sequence;
        Ok(())
    }

    /// Adds an event that precedes the snapshot to the deduplication window, if it is a message with an id.
    pub fn remember_message_id(&mut self, event: &Event) {
        if let EventKind::Message {
            text,
            message_id: Some(id),
        } = &event.kind
        {
            self.dedup.insert(id.clone(), text, event.sequence);
        }
    }

    /// The current state without the deduplication window.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
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
        }
    }

    /// Checks that the room's clock would accept this timestamp now.
    ///
    /// # Errors
    ///
    /// The timestamp is out of range.
    pub fn check_timestamp(&self, timestamp: Timestamp) -> Result<(), Rejection> {
        let mut clock = self.clock;
        clock.receive(timestamp, self.rules.max_clock_ahead)?;
        Ok(())
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

    /// Empties the deduplication window. For fault injection.
    pub(crate) fn forget_message_ids(&mut self) {
        self.dedup = DedupWindow::default();
    }

    fn join(&mut self, join: Join, at: WallTime) -> Result<Outcome, Rejection> {
        let Join {
            id,
            name,
            timestamp,
            is_resumable,
            trace,
        } = join;
        if self.participants().len() >= self.rules.max_participants {
            return Err(Rejection::RoomFull(self.participants().len()));
        }
        if let Some(id) = id.filter(|id| self.roster.get(*id).is_some()) {
            return Err(Rejection::IdTaken(id));
        }
        if !self.is_name_available(&name) {
            return Err(Rejection::NameTaken(name));
        }
        let time = self.clock.receive(timestamp, self.rules.max_clock_ahead)?;
        let id = id.unwrap_or_else(|| self.roster.allocate_id());
        let participant = Participant {
            name: name.clone(),
            join_time: time,
            join_sequence: self.last.next(),
            is_resumable,
        };
        self.roster.insert(id, participant);
        Ok(self.accept(time, at, id, name, EventKind::Join, trace))
    }

    fn say(&mut self, say: Say, at: WallTime) -> Result<Outcome, Rejection> {
        let Say { participant, message } = say;
        let name = self.name_of(participant)?;
        self.message(|_| participant, name, message, at)
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
        let time = self
            .clock
            .receive(message.timestamp, self.rules.max_clock_ahead)?;
        // From here on the clock has ticked, even if the message is rejected.
        let text = message.text?;
        let message_id = message.message_id.transpose()?;
        if let Some(id) = &message_id {
            match self.dedup.get(id, &text) {
                Some(Seen::SameText(original)) => return Ok(Outcome::Repeated { original, time }),
                Some(Seen::OtherText(original)) => {
                    let id = id.clone();
                    return Err(Rejection::MessageIdTaken { id, original });
                }
                None => self.dedup.insert(id.clone(), &text, self.last.next()),
            }
        }
        let sender = sender(&mut self.roster);
        self.has_messages = true;
        let kind = EventKind::Message { text, message_id };
        Ok(self.accept(time, at, sender, name, kind, message.trace))
    }

    fn leave(&mut self, leave: Leave, at: WallTime) -> Result<Outcome, Rejection> {
        let Leave {
            participant,
            timestamp,
            trace,
        } = leave;
        let name = self.name_of(participant)?;
        let time = match timestamp {
            Some(timestamp) => self.clock.receive(timestamp, self.rules.max_clock_ahead)?,
            None => self.clock.tick(),
        };
        self.roster.remove(participant);
        Ok(self.accept(time, at, participant, name, EventKind::Leave, trace))
    }

    fn name_of(&self, participant: ParticipantId) -> Result<Name, Rejection> {
        let holder = self.roster.get(participant);
        Ok(holder.ok_or(Rejection::NotInRoom(participant))?.name.clone())
    }

    /// Whether somebody may join or post under `name`.
    fn is_name_available(&self, name: &Name) -> bool {
        if self.rules.allow_duplicate_names {
            !Roster::is_reserved(name)
        } else {
            !self.roster.has_confusable(name)
        }
    }

    fn is_repeat(&self, message: &Message) -> bool {
        match (message.valid_id(), &message.text) {
            (Some(id), Ok(text)) => self.dedup.get(id, text).is_some(),
            _ => false,
        }
    }

    fn accept(
        &mut self,
        time: LamportTime,
        at: WallTime,
        participant: ParticipantId,
        name: Name,
        kind: EventKind,
        trace: Option<TraceContext>,
    ) -> Outcome {
        self.last = self.last.next();
        Outcome::Accepted(Event {
            sequence: self.last,
            time,
            at,
            participant,
            name,
            kind,
            trace,
        })
    }
}

#[cfg(test)]
#[path = "room_tests.rs"]
mod tests;
