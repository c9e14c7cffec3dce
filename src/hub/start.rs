//! Where a reader begins.

use crate::domain::Sequence;

/// A place in some log, as a client names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The log's epoch; any number.
    pub epoch: u64,
    /// The last event that was seen; zero = none.
    pub sequence: Sequence,
}

/// Where a reader begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// With what comes next.
    Now,
    /// After this event.
    After(Place),
    /// With this many of the newest events.
    Last(u32),
}
