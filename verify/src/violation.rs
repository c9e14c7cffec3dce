//! The invariants and their violations.

use std::fmt;

/// A guarantee of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Invariant {
    /// I1: every broadcast event reaches every participant.
    Validity,
    /// I2: every delivered message was sent, is unchanged, and is in the log once.
    Integrity,
    /// I3: there is one event per room, epoch and sequence.
    Agreement,
    /// I4: all clients receive the events in the same, dense order.
    Order,
    /// I5: the messages of a sender stay in the order in which they were sent.
    Fifo,
    /// I6: a message has a later Lamport time than everything that its sender had received.
    Causality,
    /// I7: a message has a later position than everything that anybody had received before it was sent.
    RealTime,
    /// I8: Lamport times strictly increase along the log, and the text of a JOIN or LEAVE contains that event's time.
    Lamport,
    /// I9: a delivered event is never lost.
    Durability,
    /// I10: a resumed stream continues at the resume point, or reports that it does not.
    Resume,
    /// I11: the list of participants agrees with the log.
    Roster,
    /// I12: each JOIN has one LEAVE, and a participant who resumes in time causes neither.
    Leave,
    /// I13: nobody receives an event of another room.
    Rooms,
}

/// A violated guarantee.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    pub invariant: Invariant,
    /// What happened, in one line.
    pub details: String,
}

impl Violation {
    pub(super) fn new(invariant: Invariant, details: impl Into<String>) -> Self {
        Self {
            invariant,
            details: details.into(),
        }
    }
}

impl Invariant {
    /// Its number and a short description.
    #[must_use]
    pub const fn description(self) -> &'static str {
        match self {
            Self::Validity => "I1, a broadcast reaches every participant",
            Self::Integrity => "I2, a delivered message was sent, once",
            Self::Agreement => "I3, one event per position",
            Self::Order => "I4, one dense order",
            Self::Fifo => "I5, a sender's messages keep their order",
            Self::Causality => "I6, later than what its sender had received",
            Self::RealTime => "I7, after what was received before it was sent",
            Self::Lamport => "I8, Lamport times increase",
            Self::Durability => "I9, a delivered event is not lost",
            Self::Resume => "I10, a resumed stream has no gap and no repeat",
            Self::Roster => "I11, the participants agree with the log",
            Self::Leave => "I12, one LEAVE for each JOIN",
            Self::Rooms => "I13, no event of another room",
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.invariant.description(), self.details)
    }
}
