//! Span attributes: OpenTelemetry's semantic conventions, and `chitchat.*` where they define none.

use std::sync::Arc;

use opentelemetry::{KeyValue, StringValue};

use crate::proto::EventType;

/// The attributes that describe the message of a span.
#[derive(Debug, Clone)]
pub(super) struct MessageAttributes {
    pub(super) room: Arc<str>,
    pub(super) event_type: EventType,
    pub(super) message_id: Option<Arc<str>>,
    pub(super) body_size: Option<usize>,
    /// The sequence in the room's log, if it has one.
    pub(super) sequence: Option<u64>,
    /// The Lamport time of the process that records the span.
    pub(super) lamport_time: i64,
    /// The Lamport time in the received message.
    pub(super) received_time: Option<i64>,
}

/// Returns the name of a kind of event in spans and metrics.
pub(super) const fn event_type(kind: EventType) -> &'static str {
    match kind {
        EventType::Join => "join",
        EventType::Message => "message",
        EventType::Leave => "leave",
    }
}

/// The messaging operation of a span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    Send,
    Process,
    Receive,
}

impl Operation {
    pub(super) const fn span_name(self) -> &'static str {
        match self {
            Self::Send => "send rooms/{room}",
            Self::Process => "process rooms/{room}",
            Self::Receive => "receive rooms/{room}",
        }
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::Send => "send",
            Self::Process => "process",
            Self::Receive => "receive",
        }
    }
}

impl MessageAttributes {
    pub(super) fn to_vec(&self) -> Vec<KeyValue> {
        let mut attributes = Vec::with_capacity(14);
        attributes.extend([
            KeyValue::new("messaging.system", "chitchat"),
            KeyValue::new("messaging.destination.name", format!("rooms/{}", self.room)),
            KeyValue::new("messaging.destination.template", "rooms/{room}"),
            KeyValue::new("chitchat.event.type", event_type(self.event_type)),
            KeyValue::new("chitchat.lamport.time", self.lamport_time),
        ]);
        let received = self
            .received_time
            .filter(|received| *received != self.lamport_time);
        attributes.extend(received.map(|time| KeyValue::new("chitchat.lamport.received", time)));
        attributes.extend(
            self.sequence
                .map(|sequence| KeyValue::new("chitchat.sequence", number(sequence))),
        );
        attributes.extend(
            self.message_id
                .as_ref()
                .map(|id| KeyValue::new("messaging.message.id", StringValue::from(Arc::clone(id)))),
        );
        attributes.extend(
            self.body_size
                .map(|bytes| KeyValue::new("messaging.message.body.size", number(bytes))),
        );
        attributes
    }

    /// Returns these attributes and those of the operation.
    pub(super) fn with_operation(&self, operation: Operation) -> Vec<KeyValue> {
        let mut attributes = self.to_vec();
        attributes.extend([
            KeyValue::new("messaging.operation.name", operation.as_str()),
            KeyValue::new("messaging.operation.type", operation.as_str()),
        ]);
        attributes
    }
}

/// Converts to `i64`, the integer type of attributes. Saturates at [`i64::MAX`].
pub(super) fn number(number: impl TryInto<i64>) -> i64 {
    number.try_into().unwrap_or(i64::MAX)
}

/// Returns the attributes of a gRPC call.
pub(super) fn rpc_attributes(method: &'static str) -> [KeyValue; 2] {
    [
        KeyValue::new("rpc.system.name", "grpc"),
        KeyValue::new("rpc.method", method),
    ]
}
