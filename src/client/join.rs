//! Who joins which room.

use crate::domain::TraceContext;
use crate::proto::{EventType, JoinMsgLeave};

/// Who joins which room.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Join {
    name: String,
    room: String,
    trace: Option<TraceContext>,
}

impl Join {
    /// `name` joins the server's default room.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            room: String::new(),
            trace: None,
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

    /// The JOIN belongs to this trace.
    #[must_use]
    pub fn trace(self, trace: TraceContext) -> Self {
        Self {
            trace: Some(trace),
            ..self
        }
    }

    /// The JOIN, sent at `timestamp`.
    pub(super) fn frame(&self, timestamp: i64) -> JoinMsgLeave {
        let trace = |field: fn(&TraceContext) -> &str| {
            self.trace
                .as_ref()
                .map_or_else(String::new, |trace| field(trace).to_owned())
        };
        JoinMsgLeave {
            client_name: self.name.clone(),
            room: self.room.clone(),
            timestamp,
            r#type: EventType::Join.into(),
            wants_welcome: true,
            traceparent: trace(TraceContext::traceparent),
            tracestate: trace(TraceContext::tracestate),
            ..JoinMsgLeave::default()
        }
    }
}
