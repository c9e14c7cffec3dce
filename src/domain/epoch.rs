//! Which log a sequence belongs to.

use std::fmt;
use std::num::NonZeroU64;

use super::wall_time::WallTime;

/// Names one log of one room: made when the log is created, kept for as long as the log exists. A client that comes
/// back with another epoch knows (and is told) that its sequence means nothing any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(NonZeroU64);

impl Epoch {
    /// The epoch of a log that is created at this time: its milliseconds, which no earlier log of the room can have
    /// unless the wall clock was set back to the very millisecond.
    #[must_use]
    pub fn created_at(at: WallTime) -> Self {
        Self(NonZeroU64::new(at.as_millis()).unwrap_or(NonZeroU64::MIN))
    }

    /// The epoch that stands in a store or came over the wire; none for zero.
    #[must_use]
    pub fn recorded(epoch: u64) -> Option<Self> {
        NonZeroU64::new(epoch).map(Self)
    }

    /// The epoch of a log that goes on at `at` after it has lost its end: later than this one, and made of the time as well,
    /// since what is lost may have been an epoch between the two.
    #[must_use]
    pub fn renewed(self, at: WallTime) -> Self {
        Self(self.0.saturating_add(1)).max(Self::created_at(at))
    }

    /// The epoch as it goes over the wire, where zero stands for none.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0.get()
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
