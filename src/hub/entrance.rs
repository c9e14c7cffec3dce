//! How somebody comes into a room.

use super::start::Place;
use crate::domain::Join;

/// How somebody comes into a room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entrance {
    /// Who, if it is a new stay.
    pub join: Join,
    /// The token of the stay that is to go on; empty for a new one.
    pub token: String,
    /// The last event that was seen.
    pub seen: Option<Place>,
    /// How many of the newest events to begin with, where nothing was seen.
    pub history: u32,
}
