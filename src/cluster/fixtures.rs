//! Commands, for tests.

use crate::domain::{Join, Message, MessageId, Name, Origin, Post, Text, Timestamp};

/// A JOIN of somebody who was never there.
pub(super) fn join(name: &str) -> Join {
    Join {
        session: None,
        id: None,
        name: Name::try_from(name).unwrap(),
        owner: None,
        origin: Origin::default(),
        timestamp: Timestamp(0),
        is_resumable: true,
        trace: None,
    }
}

pub(super) fn message(text: &str, id: Option<String>) -> Message {
    Message {
        timestamp: Timestamp(0),
        text: Text::parse(text, 100),
        message_id: id.map(|id| MessageId::try_from(id.as_str())),
        trace: None,
    }
}

/// A message of somebody who is not in the room.
pub(super) fn post(id: Option<String>) -> Post {
    Post {
        name: Name::try_from("poster").unwrap(),
        origin: Origin::default(),
        message: message("hi", id),
    }
}
