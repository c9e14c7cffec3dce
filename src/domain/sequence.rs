//! Positions in a room's log.

use std::fmt;
use std::num::NonZeroU64;

use super::clock::WallTime;

/// The position of an event in its room's log: 1, 2, 3, … without gaps. [`Sequence::ZERO`] is before the first event.
///
/// A sequence is meaningful only together with the [`Epoch`] of its log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Sequence(u64);

impl Sequence {
    /// The position before the first event.
    pub const ZERO: Self = Self(0);

    /// The position with this number.
    #[must_use]
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The position after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        // Never saturates in practice: a million events a second would take half a million years.
        Self(self.0.saturating_add(1))
    }

    /// The last of `count` positions that start with this one; the position before it if there are none.
    #[must_use]
    pub const fn last_of(self, count: u32) -> Self {
        Self(self.0.saturating_add(count as u64).saturating_sub(1))
    }

    /// The position before this one; [`Sequence::ZERO`] for [`Sequence::ZERO`].
    #[must_use]
    pub const fn previous(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Identifies one log of a room, from its creation until it is lost. Never zero.
///
/// When a log loses acknowledged events it continues under a new epoch, so that a client that has seen them learns that
/// its sequence no longer means what it did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(NonZeroU64);

impl Epoch {
    /// The epoch of a log created at this time: its milliseconds. Two logs of a room have the same epoch only if the wall
    /// clock was set back and shows the same millisecond again.
    #[must_use]
    pub fn created_at(at: WallTime) -> Self {
        Self(NonZeroU64::new(at.as_millis()).unwrap_or(NonZeroU64::MIN))
    }

    /// An epoch as stored or received; `None` for zero.
    #[must_use]
    pub fn from_wire(epoch: u64) -> Option<Self> {
        NonZeroU64::new(epoch).map(Self)
    }

    /// The epoch under which a log that lost its newest events continues at `at`. It is greater than this one. It depends on
    /// the time because a later epoch may be among what was lost.
    #[must_use]
    pub fn renewed(self, at: WallTime) -> Self {
        Self(self.0.saturating_add(1)).max(Self::created_at(at))
    }

    /// The number, which is never zero.
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
