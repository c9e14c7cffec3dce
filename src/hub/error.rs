//! Why the hub cannot do what is asked of it.

use crate::domain::{Refusal, RoomName};
use crate::store::{Bounds, StoreError};

/// Why the hub cannot do what is asked of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HubError {
    /// The room said no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// There are as many rooms as may be.
    #[error("there are {0} rooms, which is the limit; join one of them")]
    TooManyRooms(usize),
    /// There is no such room.
    #[error("there is no room {:?}; a room is made by the first who joins it or posts to it", .0.as_str())]
    NoRoom(RoomName),
    /// What was asked for is not kept, or never was.
    #[error("the room's log does not have what follows that place; epoch {epoch} has events {} to {}", bounds.first, bounds.last)]
    NotKept {
        /// The log's epoch.
        epoch: crate::domain::Epoch,
        /// What it has.
        bounds: Bounds,
    },
    /// The server takes nobody in any more.
    #[error("the server is draining")]
    Draining,
    /// The room cannot go on.
    #[error("the room came to a halt")]
    Failed,
}

impl From<StoreError> for HubError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::TooManyRooms(rooms) => Self::TooManyRooms(rooms),
            _ => Self::Failed,
        }
    }
}
