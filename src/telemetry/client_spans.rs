//! The spans of a client: `send` for each message that it sends, `receive` for each that it receives.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Instant, SystemTime};

use opentelemetry::KeyValue;
use opentelemetry::trace::{SpanKind, Status};
use parking_lot::Mutex;

use super::attributes::{MessageAttributes, Operation};
use super::otlp::{FinishedSpan, SpanIds, Tracer, remote_span_context};
use crate::client::SendObserver;
use crate::domain::TraceContext;
use crate::proto::{EventType, ServerMessage};

/// Traces the messages of one client, if a collector is configured.
#[derive(Debug, Clone, Default)]
pub struct ClientSpans {
    tracer: Option<Tracer>,
}

/// The span of a message that is being sent. It is exported when it is dropped, unless it was abandoned: as an error if the
/// message was rejected or no outcome was recorded.
#[derive(Debug)]
pub struct SendSpan {
    tracer: Tracer,
    ids: SpanIds,
    started_at: Instant,
    start_time: SystemTime,
    room: Arc<str>,
    body_size: usize,
    timestamp: AtomicI64,
    outcome: Mutex<Outcome>,
}

#[derive(Debug, Default)]
enum Outcome {
    #[default]
    Unknown,
    Acknowledged {
        message_id: String,
        sequence: u64,
    },
    Rejected(String),
    HandedOver,
    Abandoned,
}

impl ClientSpans {
    /// Creates spans with `tracer`. Without a tracer, nothing is traced.
    #[must_use]
    pub const fn new(tracer: Option<Tracer>) -> Self {
        Self { tracer }
    }

    /// Starts the span of a message to `room`, if it is sampled.
    #[must_use]
    pub fn start_send(&self, room: &str, body_size: usize) -> Option<Arc<SendSpan>> {
        let tracer = self.tracer.as_ref()?;
        let ids = tracer.sample(None, 1)?;
        Some(Arc::new(SendSpan {
            tracer: tracer.clone(),
            ids,
            started_at: Instant::now(),
            start_time: SystemTime::now(),
            room: room.into(),
            body_size,
            timestamp: AtomicI64::new(0),
            outcome: Mutex::default(),
        }))
    }

    /// Records the span of a message that was received at `start` and has been handled. `lamport_time` is the receiver's
    /// Lamport time after the message. Ignores private notices, which have no sequence.
    pub fn record_received(&self, message: &ServerMessage, lamport_time: i64, start: SystemTime) {
        let Some(tracer) = self.tracer.as_ref().filter(|_| message.sequence != 0) else {
            return;
        };
        let origin = TraceContext::parse(&message.traceparent, &message.tracestate);
        let Some(ids) = tracer.sample_linked(origin.as_ref()) else {
            return;
        };
        let message_id = Some(message.message_id.as_str()).filter(|id| !id.is_empty());
        let attributes = MessageAttributes {
            room: message.room.as_str().into(),
            event_type: message.r#type(),
            message_id: message_id.map(Arc::from),
            body_size: Some(message.msg_stream.len()),
            sequence: Some(message.sequence),
            lamport_time,
            received_time: Some(message.timestamp),
        };
        tracer.export(FinishedSpan {
            ids,
            name: Operation::Receive.span_name(),
            kind: SpanKind::Consumer,
            start,
            end: SystemTime::now(),
            attributes: attributes.with_operation(Operation::Receive),
            link: origin.as_ref().map(remote_span_context),
            status: Status::Unset,
        });
    }
}

impl SendSpan {
    /// Records that the server has broadcast the message as `broadcast`.
    pub fn record_acknowledged(&self, broadcast: &ServerMessage) {
        self.set_outcome(Outcome::Acknowledged {
            message_id: broadcast.message_id.clone(),
            sequence: broadcast.sequence,
        });
    }

    /// Records that the server has rejected the message. `message_id` may be empty.
    pub fn record_rejected(&self, message_id: &str) {
        self.set_outcome(Outcome::Rejected(message_id.to_owned()));
    }

    /// Records that the message was handed to the transport and that no acknowledgement is awaited.
    pub fn record_handed_over(&self) {
        self.set_outcome(Outcome::HandedOver);
    }

    /// Discards the span, because the message was not sent.
    pub fn abandon(&self) {
        self.set_outcome(Outcome::Abandoned);
    }

    fn set_outcome(&self, outcome: Outcome) {
        *self.outcome.lock() = outcome;
    }
}

impl SendObserver for SendSpan {
    fn trace_context(&self) -> TraceContext {
        self.ids.trace_context()
    }

    fn on_sent(&self, timestamp: i64) {
        self.timestamp.store(timestamp, Ordering::Relaxed);
    }
}

impl Drop for SendSpan {
    fn drop(&mut self) {
        let outcome = std::mem::take(self.outcome.get_mut());
        let (message_id, sequence, failure) = match outcome {
            Outcome::Unknown => (None, None, Some("not_acknowledged")),
            Outcome::Acknowledged { message_id, sequence } => (Some(message_id), Some(sequence), None),
            Outcome::Rejected(message_id) => (Some(message_id), None, Some("rejected")),
            Outcome::HandedOver => (None, None, None),
            Outcome::Abandoned => return,
        };
        let attributes = MessageAttributes {
            room: Arc::clone(&self.room),
            event_type: EventType::Message,
            message_id: message_id.filter(|id| !id.is_empty()).map(Arc::from),
            body_size: Some(self.body_size),
            sequence: sequence.filter(|sequence| *sequence != 0),
            lamport_time: self.timestamp.load(Ordering::Relaxed),
            received_time: None,
        };
        let mut attributes = attributes.with_operation(Operation::Send);
        attributes.extend(failure.map(|failure| KeyValue::new("error.type", failure)));
        self.tracer.export(FinishedSpan {
            ids: self.ids.clone(),
            name: Operation::Send.span_name(),
            kind: SpanKind::Producer,
            start: self.start_time,
            end: self.start_time + self.started_at.elapsed(),
            attributes,
            link: None,
            status: failure.map_or(Status::Unset, Status::error),
        });
    }
}
