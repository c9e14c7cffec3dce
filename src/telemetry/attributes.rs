//! The attributes of spans: OpenTelemetry's where it has one, `chitchat.` where not.

use std::sync::Arc;

use opentelemetry::{KeyValue, StringValue};

use crate::proto::EventType;

/// Attributes that name the message that a span is about.
#[derive(Debug, Clone)]
pub(super) struct Subject {
    pub(super) room: Arc<str>,
    pub(super) event_type: EventType,
    pub(super) message_id: Option<Arc<str>>,
    pub(super) body_size: Option<usize>,
    /// Its place in the room's log, where that is known.
    pub(super) sequence: Option<u64>,
    /// The Lamport time of whoever the span is of.
    pub(super) time: i64,
    /// The Lamport time that came with the message.
    pub(super) received_time: Option<i64>,
}

/// The name of all rooms as places where messages go.
const TEMPLATE: &str = "rooms/{room}";

/// What a kind of event is called, in metrics too.
pub(super) const fn event_type(kind: EventType) -> &'static str {
    match kind {
        EventType::Join => "join",
        EventType::Message => "message",
        EventType::Leave => "leave",
    }
}

/// What somebody does with a message.
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

impl Subject {
    /// The attributes, with room for a few more.
    pub(super) fn attributes(&self) -> Vec<KeyValue> {
        let mut attributes = Vec::with_capacity(14);
        attributes.extend([
            KeyValue::new("messaging.system", "chitchat"),
            KeyValue::new("messaging.destination.name", format!("rooms/{}", self.room)),
            KeyValue::new("messaging.destination.template", TEMPLATE),
            KeyValue::new("chitchat.event.type", event_type(self.event_type)),
            KeyValue::new("chitchat.lamport.time", self.time),
        ]);
        let received = self.received_time.filter(|received| *received != self.time);
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
        attributes.extend(self.body_size.map(size_attribute));
        attributes
    }

    /// The attributes of a span of this operation.
    pub(super) fn attributes_of(&self, operation: Operation) -> Vec<KeyValue> {
        let mut attributes = self.attributes();
        attributes.extend([
            KeyValue::new("messaging.operation.name", operation.as_str()),
            KeyValue::new("messaging.operation.type", operation.as_str()),
        ]);
        attributes
    }
}

fn size_attribute(bytes: usize) -> KeyValue {
    KeyValue::new("messaging.message.body.size", number(bytes))
}

/// Attributes have signed numbers.
pub(super) fn number(number: impl TryInto<i64>) -> i64 {
    number.try_into().unwrap_or(i64::MAX)
}

/// The attributes of a call, as the conventions for gRPC have them.
pub(super) fn of_call(method: &'static str) -> [KeyValue; 2] {
    [
        KeyValue::new("rpc.system.name", "grpc"),
        KeyValue::new("rpc.method", method),
    ]
}
