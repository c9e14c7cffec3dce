//! Why a subscriber's stream ends.

use std::time::Duration;

use crate::domain::Refusal;

/// Why a subscriber's stream ends, said by the room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The participant left.
    Left,
    /// The participant did what ends a stream.
    Refused(Refusal),
    /// The client has come back on another connection.
    TakenOver,
    /// The server is draining: connect again, after a delay of about this much.
    Draining(Duration),
    /// The room can go on no more; connect again.
    Failed,
}
