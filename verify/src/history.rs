//! The recorded history of a run.

use std::sync::Arc;
use std::time::Duration;

use chitchat::proto::ServerMessage;

/// The recorded history of a run.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// The history of each client. Every client that sent a message must be included.
    pub clients: Vec<ClientHistory>,
    /// The logs of all rooms at the end, from the oldest event that the server retains; `None` if they were not read.
    pub log: Option<Vec<Arc<ServerMessage>>>,
    /// Participant lists that the server returned.
    pub rosters: Vec<Roster>,
    /// Whether all participants had left at the end of the run.
    pub everybody_left: bool,
}

/// What one client did and received, in its own order.
#[derive(Debug, Clone, Default)]
pub struct ClientHistory {
    pub name: String,
    pub room: String,
    pub events: Vec<TimedEvent>,
}

/// An event of a client and its time.
#[derive(Debug, Clone)]
pub struct TimedEvent {
    /// The time since the start of the run, on a clock that all clients share. A client records a message before it
    /// sends it, and after it has received it, so comparing two times shows whether one message was received before
    /// another one was sent.
    pub at: Duration,
    pub event: ClientEvent,
}

/// Something that a client did or received.
#[derive(Debug, Clone)]
pub enum ClientEvent {
    /// The client opened a stream and sent JOIN.
    Join {
        resume: Option<Position>,
        /// Whether the JOIN had a session token.
        has_token: bool,
    },
    /// The client sent a message, for the first time or again.
    Sent {
        message_id: Arc<str>,
        text: Arc<str>,
        /// The Lamport time of the client.
        timestamp: i64,
    },
    /// The client received an event, a welcome or a notice.
    Received(Arc<ServerMessage>),
    Leave,
    Ended {
        /// Whether the server ended it with status OK.
        is_clean: bool,
    },
}

/// A position in the log of a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    pub epoch: u64,
    pub sequence: u64,
}

/// The participants of a room at a position of its log.
#[derive(Debug, Clone)]
pub struct Roster {
    pub room: String,
    /// The latest event that the list includes.
    pub position: Position,
    /// Ids and names.
    pub participants: Vec<(i32, String)>,
}

impl Position {
    /// The position of an event; `None` if the message is not an event.
    #[must_use]
    pub fn of(message: &ServerMessage) -> Option<Self> {
        (message.sequence > 0).then_some(Self {
            epoch: message.epoch,
            sequence: message.sequence,
        })
    }
}
