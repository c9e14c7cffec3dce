//! What clients recorded of a run.

use std::sync::Arc;
use std::time::Duration;

use chitchat::proto::ServerMessage;

/// What was recorded of a run.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// What each client recorded. Everybody who sent anything must be among them.
    pub clients: Vec<Client>,
    /// The rooms' logs as the server had them at the end, whole or from where they are kept; none = not asked for.
    pub log: Option<Vec<Arc<ServerMessage>>>,
    /// Who was in a room, as the server told.
    pub rosters: Vec<Roster>,
    /// Whether everybody had left at the end.
    pub is_over: bool,
}

/// What one client recorded, in its own order.
#[derive(Debug, Clone, Default)]
pub struct Client {
    /// Its participant's name.
    pub name: String,
    /// The room it was in.
    pub room: String,
    /// What happened.
    pub steps: Vec<Step>,
}

/// One thing that happened to a client.
#[derive(Debug, Clone)]
pub struct Step {
    /// When, on a clock that all clients of the history share. What is sent is noted before, what is received after it
    /// happens, so that "received before another was sent" is certain.
    pub at: Duration,
    /// What.
    pub what: What,
}

/// What can happen to a client.
#[derive(Debug, Clone)]
pub enum What {
    /// A stream began: the client sent JOIN.
    Join {
        /// The place after which it wants to go on.
        resume: Option<Place>,
        /// Whether it came with a session token.
        has_token: bool,
    },
    /// It sent a message, for the first time or again.
    Sent {
        /// The message's id.
        message_id: Arc<str>,
        /// The text.
        text: Arc<str>,
        /// The client's Lamport time.
        timestamp: i64,
    },
    /// It received something: an event, the welcome, a notice.
    Received(Arc<ServerMessage>),
    /// It sent LEAVE.
    Leave,
    /// Its stream ended.
    Ended {
        /// Whether the server ended it with success.
        is_clean: bool,
    },
}

/// A place in a room's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Which log.
    pub epoch: u64,
    /// Which event of it.
    pub sequence: u64,
}

/// Who was in a room at one place of its log.
#[derive(Debug, Clone)]
pub struct Roster {
    /// The room.
    pub room: String,
    /// The newest event of which the roster knew.
    pub place: Place,
    /// The ids and names.
    pub participants: Vec<(i32, String)>,
}

impl Place {
    /// Where an event stands; none for what is not an event.
    #[must_use]
    pub fn of(message: &ServerMessage) -> Option<Self> {
        (message.sequence > 0).then_some(Self {
            epoch: message.epoch,
            sequence: message.sequence,
        })
    }
}
