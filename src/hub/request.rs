//! What sessions and calls put in a room's inbox.

use tokio::sync::oneshot;

use super::description::Description;
use super::end::End;
use super::entrance::Entrance;
use super::error::HubError;
use super::member::Member;
use super::reader::Reader;
use super::receipt::Receipt;
use super::start::Start;
use crate::domain::{Leave, ParticipantId, Post, Say};
use crate::order::Weight;
use crate::proto::ServerMessage;

/// About the bytes that a request occupies besides its text.
const REQUEST_WEIGHT: usize = 256;

/// The answer to a request, when there is one.
pub(super) type Reply<T> = oneshot::Sender<Result<T, HubError>>;

/// What became of a post.
#[derive(Debug, Clone, PartialEq)]
pub enum Posted {
    /// It was broadcast.
    Broadcast(Box<ServerMessage>),
    /// It was broadcast before, at this place.
    Repeated(crate::domain::Sequence),
}

/// One entry of a room's inbox.
pub(super) enum Request {
    /// Somebody wants to come in, or back.
    Join {
        entrance: Box<Entrance>,
        reply: Reply<Member>,
        received: Receipt,
    },
    /// A participant says something.
    Say { say: Say, received: Receipt },
    /// Somebody outside says something.
    Post {
        post: Box<Post>,
        reply: Reply<Posted>,
        received: Receipt,
    },
    /// A participant goes, if it is still there on this connection.
    Leave {
        leave: Leave,
        connection: u64,
        received: Receipt,
    },
    /// A participant's connection is gone.
    Lost {
        participant: ParticipantId,
        connection: u64,
    },
    /// Somebody wants to read.
    Subscribe { start: Start, reply: Reply<Reader> },
    /// Somebody wants to know who is there.
    Describe { reply: Reply<Description> },
    /// Nothing more comes: every subscriber's stream ends after what came before.
    Close(End),
}

impl Request {
    /// When it was decoded, where it came off the wire.
    pub(super) fn received(&self) -> Option<std::time::Instant> {
        match self {
            Self::Join { received, .. }
            | Self::Say { received, .. }
            | Self::Post { received, .. }
            | Self::Leave { received, .. } => Some(received.at),
            Self::Lost { .. } | Self::Subscribe { .. } | Self::Describe { .. } | Self::Close(_) => None,
        }
    }

    /// Answers a request that cannot be served.
    pub(super) fn refuse(self, error: HubError) {
        // Whoever does not wait for the answer any more needs none.
        match self {
            Self::Join { reply, .. } => drop(reply.send(Err(error))),
            Self::Post { reply, .. } => drop(reply.send(Err(error))),
            Self::Subscribe { reply, .. } => drop(reply.send(Err(error))),
            Self::Describe { reply } => drop(reply.send(Err(error))),
            Self::Say { .. } | Self::Leave { .. } | Self::Lost { .. } | Self::Close(_) => {}
        }
    }
}

impl Weight for Request {
    fn weight(&self) -> usize {
        let text = match self {
            Self::Say { say, .. } => say.text.as_ref().map_or(0, |text| text.as_str().len()),
            Self::Post { post, .. } => post.text.as_ref().map_or(0, |text| text.as_str().len()),
            _ => 0,
        };
        REQUEST_WEIGHT + text
    }
}
