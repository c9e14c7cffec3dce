//! What sessions put in a room's inbox.

use std::time::Instant;

use tokio::sync::oneshot;

use super::end::End;
use super::member::Member;
use crate::domain::{Join, Leave, ParticipantId, Refusal, Say};
use crate::order::Weight;

/// About the bytes that a request occupies besides its text.
const REQUEST_WEIGHT: usize = 256;

/// One entry of a room's inbox.
pub(super) enum Request {
    /// Somebody wants to come in, and waits for the answer.
    Join {
        join: Join,
        reply: oneshot::Sender<Result<Member, Refusal>>,
        received: Instant,
    },
    /// A participant says something.
    Say { say: Say, received: Instant },
    /// A participant goes.
    Leave { leave: Leave, received: Instant },
    /// Nothing more comes: every subscriber's stream ends after what came before.
    Close(End),
}

impl Request {
    /// The LEAVE of a client that cannot send one any more.
    pub(super) fn lost(participant: ParticipantId) -> Self {
        let leave = Leave {
            participant,
            timestamp: None,
            trace: None,
        };
        Self::Leave {
            leave,
            received: Instant::now(),
        }
    }
}

impl Weight for Request {
    fn weight(&self) -> usize {
        let text = match self {
            Self::Say { say, .. } => say.text.as_ref().map_or(0, |text| text.as_str().len()),
            Self::Join { .. } | Self::Leave { .. } | Self::Close(_) => 0,
        };
        REQUEST_WEIGHT + text
    }
}
