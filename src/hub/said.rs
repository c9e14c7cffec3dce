//! What is remembered of a message while it is decided.

use super::observer::{Observer, Refused};
use super::receipt::Receipt;
use crate::domain::{
    LamportTime, MessageId, MessageIdError, Post, Refusal, RoomName, Timestamp, TraceContext,
};

/// What the answer to a message, which is gone when it has been decided, takes from it.
pub(super) struct Said {
    /// The client's Lamport time.
    pub(super) claimed: Timestamp,
    pub(super) message_id: Option<MessageId>,
    pub(super) trace: Option<TraceContext>,
}

impl Said {
    pub(super) fn new(
        claimed: Timestamp,
        message_id: Option<&Result<MessageId, MessageIdError>>,
        trace: Option<&TraceContext>,
    ) -> Self {
        Self {
            claimed,
            message_id: message_id.and_then(|id| id.as_ref().ok()).cloned(),
            trace: trace.cloned(),
        }
    }

    /// Tells `observer` that it was refused in `room`.
    pub(super) fn refused(
        &self,
        observer: &dyn Observer,
        room: &RoomName,
        refusal: &Refusal,
        time: LamportTime,
        received: &Receipt,
    ) {
        observer.refused(refusal);
        observer.refused_message(&Refused {
            room,
            refusal,
            message_id: self.message_id.as_ref(),
            time,
            claimed: self.claimed,
            received: received.at,
            trace: self.trace.as_ref(),
            stream: received.stream.as_deref(),
        });
    }
}

impl From<&Post> for Said {
    fn from(post: &Post) -> Self {
        Self::new(post.timestamp, post.message_id.as_ref(), post.trace.as_ref())
    }
}
