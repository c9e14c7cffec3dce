//! Who joins which room.

use crate::proto::{EventType, JoinMsgLeave};

/// Who joins which room.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Join {
    name: String,
    room: String,
}

impl Join {
    /// `name` joins the server's default room.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            room: String::new(),
        }
    }

    /// Joins `room` instead. Empty is the default room.
    #[must_use]
    pub fn room(self, room: impl Into<String>) -> Self {
        Self {
            room: room.into(),
            ..self
        }
    }

    /// The JOIN, sent at `timestamp`.
    pub(super) fn frame(&self, timestamp: i64) -> JoinMsgLeave {
        JoinMsgLeave {
            client_name: self.name.clone(),
            room: self.room.clone(),
            timestamp,
            r#type: EventType::Join.into(),
            wants_welcome: true,
            ..JoinMsgLeave::default()
        }
    }
}
