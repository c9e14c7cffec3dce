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
    Command, Event, EventKind, Join, LamportClock, LamportTime, Leave, Outcome, Participant, ParticipantId,
    Refusal, Rules, Say, Sequence, WallTime,
};

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

    fn join(&mut self, join: Join, at: WallTime) -> Result<Outcome, Refusal> {
        let Join {
            id,
            name,
            timestamp,
            trace,
        } = join;
        if self.participants().len() >= self.rules.max_participants {
            return Err(Refusal::RoomFull(self.participants().len()));
        }
        if let Some(id) = id.filter(|id| self.roster.get(*id).is_some()) {
            return Err(Refusal::IdTaken(id));
        }
        if !self.rules.allow_duplicate_names && self.roster.has_look_of(&name) {
            return Err(Refusal::NameTaken(name));
        }
        let time = self.clock.receive(timestamp, self.rules.max_clock_ahead)?;
        let participant = id.unwrap_or_else(|| self.roster.vacant_id());
        self.roster.enter(
            participant,
            Participant {
                name: name.clone(),
                joined: time,
            },
        );
        let sequence = self.advance();
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
        let kind = EventKind::Said { text, message_id };
        Ok(Outcome::Accepted(Event {
            sequence,
            time,
            at,
            participant: speaker,
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
