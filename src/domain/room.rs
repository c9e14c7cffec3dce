//! The fold: what a room becomes, command by command.
//!
//! Invariants, for every sequence of commands:
//!
//! - Sequences of accepted commands are 1, 2, 3, … without a hole.
//! - Lamport times of accepted commands strictly increase, and each is later than the time stamp its command carried.
//! - A participant enters the roster with the JOIN in the log and leaves it with the LEAVE in the log, and with nothing
//!   else.
//! - A refused command changes nothing, except that the receipt of a refused text ticks the clock.
//!
//! What it does not do: no I/O, no clock of the wall, no randomness. Times and identities come in with the commands.

use std::collections::BTreeMap;

use super::message_ids::{Known, MessageIds};
use super::roster::Roster;
use super::{
    Command, Event, EventKind, Join, LamportClock, LamportTime, Leave, MessageId, MessageIdError, Name,
    Outcome, Participant, ParticipantId, Post, Refusal, Rules, Say, Sequence, Text, TextError, Timestamp,
    TraceContext, WallTime,
};

/// A room's state at one place of its log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The Lamport time.
    pub time: LamportTime,
    /// The place of the newest event.
    pub last: Sequence,
    /// The next id that may be assigned.
    pub next_id: i32,
    /// Who is in the room.
    pub participants: Vec<(ParticipantId, Participant)>,
}

/// A log that no room can have written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    /// Events are missing.
    #[error("events {} to {} are missing", .after.next(), .next.previous())]
    Hole {
        /// The last event before the hole.
        after: Sequence,
        /// The first event after it.
        next: Sequence,
    },
    /// The Lamport time does not increase.
    #[error("event {sequence} is not later than the one before it")]
    Time {
        /// Where.
        sequence: Sequence,
    },
    /// Somebody joined who was there, or left who was not.
    #[error("event {sequence} does not fit who was in the room")]
    Roster {
        /// Where.
        sequence: Sequence,
    },
}

/// The state of one room.
#[derive(Debug, Clone)]
pub struct Room {
    rules: Rules,
    clock: LamportClock,
    last: Sequence,
    roster: Roster,
    message_ids: MessageIds,
}

impl Room {
    /// A room in which nothing has happened.
    #[must_use]
    pub fn new(rules: Rules) -> Self {
        Self {
            rules,
            clock: LamportClock::default(),
            last: Sequence::ZERO,
            roster: Roster::new(),
            message_ids: MessageIds::default(),
        }
    }

    /// Takes one command, at the wall clock's `at`.
    pub fn apply(&mut self, command: Command, at: WallTime) -> Outcome {
        let outcome = match command {
            Command::Join(join) => self.join(join, at),
            Command::Say(say) => self.say(say, at),
            Command::Post(post) => self.post(post, at),
            Command::Leave(leave) => self.leave(leave, at),
        };
        outcome.unwrap_or_else(|refusal| Outcome::Refused {
            refusal,
            time: self.clock.now(),
        })
    }

    /// The room's Lamport time.
    #[must_use]
    pub const fn time(&self) -> LamportTime {
        self.clock.now()
    }

    /// Judges the time that somebody claims.
    ///
    /// # Errors
    ///
    /// When it is out of range.
    pub fn check_time(&self, timestamp: Timestamp) -> Result<(), Refusal> {
        let mut clock = self.clock;
        clock.receive(timestamp, self.rules.max_clock_ahead)?;
        Ok(())
    }

    /// The rules of the room.
    #[must_use]
    pub const fn rules(&self) -> &Rules {
        &self.rules
    }

    /// The place of the newest event.
    #[must_use]
    pub const fn last(&self) -> Sequence {
        self.last
    }

    /// Who is in the room.
    #[must_use]
    pub const fn participants(&self) -> &BTreeMap<ParticipantId, Participant> {
        self.roster.participants()
    }

    /// The state as it is now, for a store; the memory of message ids is left out, since the log has them.
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
        }
    }

    /// The room as a snapshot shows it. What it remembered of message ids is told by [`Room::recall`].
    #[must_use]
    pub fn restore(rules: Rules, snapshot: Snapshot) -> Self {
        let Snapshot {
            time,
            last,
            next_id,
            participants,
        } = snapshot;
        let mut room = Self::new(rules);
        room.clock = LamportClock::at(time);
        room.last = last;
        room.roster.note_assigned(next_id.saturating_sub(1));
        for (id, participant) in participants {
            room.roster.enter(id, participant);
        }
        room
    }

    /// Takes note of an event before the snapshot that the room was restored from.
    pub fn recall(&mut self, event: &Event) {
        if let EventKind::Said {
            text,
            message_id: Some(id),
        } = &event.kind
        {
            self.message_ids.remember(id.clone(), text, event.sequence);
        }
    }

    /// Follows an event of the log, which was accepted once and is not judged again.
    ///
    /// # Errors
    ///
    /// When the event cannot follow on what came before: then the log is damaged.
    pub fn replay(&mut self, event: &Event, is_resumable: bool) -> Result<(), ReplayError> {
        let sequence = event.sequence;
        if sequence != self.last.next() {
            return Err(ReplayError::Hole {
                after: self.last,
                next: sequence,
            });
        }
        if event.time <= self.clock.now() {
            return Err(ReplayError::Time { sequence });
        }
        match &event.kind {
            EventKind::Joined => {
                if self.roster.get(event.participant).is_some() {
                    return Err(ReplayError::Roster { sequence });
                }
                let stay = Participant {
                    name: event.name.clone(),
                    joined: event.time,
                    since: sequence,
                    is_resumable,
                };
                self.roster.enter(event.participant, stay);
            }
            EventKind::Said { .. } => self.recall(event),
            EventKind::Left => {
                self.roster
                    .leave(event.participant)
                    .ok_or(ReplayError::Roster { sequence })?;
            }
        }
        self.roster.note_assigned(event.participant.get());
        self.clock = LamportClock::at(event.time);
        self.last = sequence;
        Ok(())
    }

    /// Breaks the promise that a message id is said once.
    #[cfg(feature = "failpoints")]
    pub fn forget_message_ids(&mut self) {
        self.message_ids = MessageIds::default();
    }

    fn join(&mut self, join: Join, at: WallTime) -> Result<Outcome, Refusal> {
        let Join {
            id,
            name,
            timestamp,
            is_resumable,
            trace,
        } = join;
        if self.participants().len() >= self.rules.max_participants {
            return Err(Refusal::RoomFull(self.participants().len()));
        }
        if let Some(id) = id.filter(|id| self.roster.get(*id).is_some()) {
            return Err(Refusal::IdTaken(id));
        }
        if !self.is_free(&name) {
            return Err(Refusal::NameTaken(name));
        }
        let time = self.clock.receive(timestamp, self.rules.max_clock_ahead)?;
        let participant = id.unwrap_or_else(|| self.roster.vacant_id());
        let sequence = self.advance();
        let stay = Participant {
            name: name.clone(),
            joined: time,
            since: sequence,
            is_resumable,
        };
        self.roster.enter(participant, stay);
        Ok(Outcome::Accepted(Event {
            sequence,
            time,
            at,
            participant,
            name,
            kind: EventKind::Joined,
            trace,
        }))
    }

    fn say(&mut self, say: Say, at: WallTime) -> Result<Outcome, Refusal> {
        let Say {
            speaker,
            timestamp,
            text,
            message_id,
            trace,
        } = say;
        let name = self
            .roster
            .get(speaker)
            .ok_or(Refusal::NotInRoom(speaker))?
            .name
            .clone();
        self.message(|_| speaker, name, timestamp, text, message_id, trace, at)
    }

    fn post(&mut self, post: Post, at: WallTime) -> Result<Outcome, Refusal> {
        let Post {
            name,
            timestamp,
            text,
            message_id,
            trace,
        } = post;
        // What was said already is answered with its place, whoever has the name meanwhile: most likely its own sender.
        if !self.is_free(&name) && !self.is_known(message_id.as_ref(), &text) {
            return Err(Refusal::NameTaken(name));
        }
        self.message(Roster::vacant_id, name, timestamp, text, message_id, trace, at)
    }

    /// Whether somebody may come or speak under `name`.
    fn is_free(&self, name: &Name) -> bool {
        if self.rules.allow_duplicate_names {
            !Roster::is_reserved(name)
        } else {
            !self.roster.has_look_of(name)
        }
    }

    fn is_known(
        &self,
        id: Option<&Result<MessageId, MessageIdError>>,
        text: &Result<Text, TextError>,
    ) -> bool {
        let (Some(Ok(id)), Ok(text)) = (id, text) else {
            return false;
        };
        self.message_ids.find(id, text).is_some()
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "the parts of a Say and of a Post, taken apart once"
    )]
    fn message(
        &mut self,
        speaker: impl FnOnce(&mut Roster) -> ParticipantId,
        name: Name,
        timestamp: Timestamp,
        text: Result<Text, TextError>,
        message_id: Option<Result<MessageId, MessageIdError>>,
        trace: Option<TraceContext>,
        at: WallTime,
    ) -> Result<Outcome, Refusal> {
        let time = self.clock.receive(timestamp, self.rules.max_clock_ahead)?;
        // From here on the receipt is an event: it has ticked the clock, whatever becomes of the text.
        let text = text?;
        let message_id = message_id.transpose()?;
        if let Some(id) = &message_id {
            match self.message_ids.find(id, &text) {
                Some(Known::Same(original)) => return Ok(Outcome::Repeated { original, time }),
                Some(Known::Other(original)) => {
                    return Err(Refusal::MessageIdTaken {
                        id: id.clone(),
                        original,
                    });
                }
                None => {}
            }
        }
        let sequence = self.advance();
        if let Some(id) = &message_id {
            self.message_ids.remember(id.clone(), &text, sequence);
        }
        let participant = speaker(&mut self.roster);
        let kind = EventKind::Said { text, message_id };
        Ok(Outcome::Accepted(Event {
            sequence,
            time,
            at,
            participant,
            name,
            kind,
            trace,
        }))
    }

    fn leave(&mut self, leave: Leave, at: WallTime) -> Result<Outcome, Refusal> {
        let Leave {
            participant,
            timestamp,
            trace,
        } = leave;
        let name = self
            .roster
            .get(participant)
            .ok_or(Refusal::NotInRoom(participant))?
            .name
            .clone();
        let time = match timestamp {
            Some(timestamp) => self.clock.receive(timestamp, self.rules.max_clock_ahead)?,
            None => self.clock.tick(),
        };
        self.roster.leave(participant);
        let sequence = self.advance();
        Ok(Outcome::Accepted(Event {
            sequence,
            time,
            at,
            participant,
            name,
            kind: EventKind::Left,
            trace,
        }))
    }

    fn advance(&mut self) -> Sequence {
        self.last = self.last.next();
        self.last
    }
}

#[cfg(test)]
#[path = "room_tests.rs"]
mod tests;
