//! Who a participant is within a room.

use std::fmt;
use std::num::NonZeroI32;

/// A participant's id, unique in its room while the participant is there. Zero is the server's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ParticipantId(NonZeroI32);

impl ParticipantId {
    /// The id as a client wrote it; none for zero, which asks the room to assign one.
    #[must_use]
    pub fn chosen(id: i32) -> Option<Self> {
        NonZeroI32::new(id).map(Self)
    }

    /// The id as it goes over the wire.
    #[must_use]
    pub const fn get(self) -> i32 {
        self.0.get()
    }
}

impl fmt::Display for ParticipantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
