//! What is remembered of a message while it is decided.

use crate::domain::{MessageId, MessageIdError, Timestamp, TraceContext};

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
}
