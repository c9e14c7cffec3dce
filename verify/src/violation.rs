//! What can be wrong with a history.

use std::fmt;

/// What a history must keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Invariant {
    /// I1: what was broadcast reaches every member.
    Validity,
    /// I2: what is delivered was sent, unchanged, and is in the log once.
    Integrity,
    /// I3: one event per room, epoch and sequence, the same for everybody and for ever.
    Agreement,
    /// I4: one order, dense.
    Order,
    /// I5: the messages of a sender keep their order.
    Fifo,
    /// I6: what was sent after something was seen has a later Lamport time.
    Causality,
    /// I7: what was sent after something was received has a later place.
    RealTime,
    /// I8: Lamport times strictly increase along the log, and are the ones that the announcements name.
    Lamport,
    /// I9: what was delivered is never lost.
    Durability,
    /// I10: a resumed stream goes on where the client was, or says that it does not.
    Resume,
    /// I11: the roster is what the log says.
    Roster,
    /// I12: one LEAVE for each JOIN, and none for who comes back in time.
    Leave,
    /// I13: nobody receives what belongs to another room.
    Rooms,
}

/// One thing that is wrong with a history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// What it breaks.
    pub invariant: Invariant,
    /// How, in one line.
    pub how: String,
}

impl Violation {
    pub(super) fn new(invariant: Invariant, how: impl Into<String>) -> Self {
        Self {
            invariant,
            how: how.into(),
        }
    }
}

impl Invariant {
    /// Its number and its promise, in short.
    #[must_use]
    pub const fn promise(self) -> &'static str {
        match self {
            Self::Validity => "I1, what is broadcast reaches every member",
            Self::Integrity => "I2, what is delivered was sent, once",
            Self::Agreement => "I3, one event per place",
            Self::Order => "I4, one dense order",
            Self::Fifo => "I5, a sender's messages keep their order",
            Self::Causality => "I6, later than what its sender had seen",
            Self::RealTime => "I7, behind what was received before it was sent",
            Self::Lamport => "I8, Lamport times increase",
            Self::Durability => "I9, what was delivered is not lost",
            Self::Resume => "I10, a resumed stream has no hole and no repeat",
            Self::Roster => "I11, the roster is what the log says",
            Self::Leave => "I12, one LEAVE for each JOIN",
            Self::Rooms => "I13, nothing of another room",
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.invariant.promise(), self.how)
    }
}
