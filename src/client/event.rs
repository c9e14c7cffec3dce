//! What happens to somebody who stays in a room, or goes on reading it, whatever the connection does.

use std::time::Duration;

use super::error::Error;
use super::hole::Hole;
use crate::proto::ServerMessage;

/// What happens to somebody who stays in a room, or goes on reading it, whatever the connection does.
#[derive(Debug)]
pub enum Event {
    /// An event of the room, each once and in order, or a private notice.
    Message(Box<ServerMessage>),
    /// There is no connection; one is tried after `delay`. Comes before each attempt.
    Reconnecting {
        /// Which attempt of this interruption it is, from 1.
        attempt: u32,
        /// How long is waited before it.
        delay: Duration,
        /// What happened.
        because: Error,
    },
    /// There is a connection again.
    Resumed {
        /// Whether nothing is missing. If something is, a [`Hole`](Self::Hole) follows that says what.
        recovered: bool,
    },
    /// A part of the room's log is missing here, between what came before and what comes next.
    Hole(Hole),
}
