//! The spans of a client: `send` for each message it says, `receive` for each that it hears.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime};

use opentelemetry::KeyValue;
use opentelemetry::trace::{SpanKind, Status};

use super::attributes::{Operation, Subject};
use super::otlp::{Finished, Ids, Tracer, remote};
use crate::client::SendObserver;
use crate::domain::TraceContext;
use crate::proto::{EventType, ServerMessage};

/// Traces what one client says and hears; nothing, where no collector is configured.
#[derive(Debug, Clone, Default)]
pub struct ClientSpans {
    tracer: Option<Tracer>,
}

/// A message on its way out. Its span is exported when it is dropped, as an error if it was not acknowledged until then.
#[derive(Debug)]
pub struct SendSpan {
    tracer: Tracer,
    ids: Ids,
    began: Instant,
    began_at: SystemTime,
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
    Refused(String),
    HandedOver,
    Abandoned,
}

impl ClientSpans {
    /// Traces with this tracer, if there is one.
    #[must_use]
    pub const fn new(tracer: Option<Tracer>) -> Self {
        Self { tracer }
    }

    /// Begins to follow a message of so many bytes to this room, if it is to be recorded.
    #[must_use]
    pub fn send(&self, room: &str, body_size: usize) -> Option<Arc<SendSpan>> {
        let tracer = self.tracer.as_ref()?;
        let ids = tracer.begin(None, 1)?;
        Some(Arc::new(SendSpan {
            tracer: tracer.clone(),
            ids,
            began: Instant::now(),
            began_at: SystemTime::now(),
            room: room.into(),
            body_size,
            timestamp: AtomicI64::new(0),
            outcome: Mutex::default(),
        }))
    }

    /// Records that a message was received at `began`, and taken in by now; `time` is the receiver's Lamport time
    /// since. Private notices are not messages.
    pub fn received(&self, message: &ServerMessage, time: i64, began: SystemTime) {
        let Some(tracer) = self.tracer.as_ref().filter(|_| message.sequence != 0) else {
            return;
        };
        let origin = TraceContext::parse(&message.traceparent, &message.tracestate);
        let Some(ids) = tracer.begin_linked(origin.as_ref()) else {
            return;
        };
        let message_id = Some(message.message_id.as_str()).filter(|id| !id.is_empty());
        let subject = Subject {
            room: message.room.as_str().into(),
            event_type: message.r#type(),
            message_id: message_id.map(Arc::from),
            body_size: Some(message.msg_stream.len()),
            sequence: Some(message.sequence),
            time,
            received_time: Some(message.timestamp),
        };
        tracer.export(Finished {
            ids,
            name: Operation::Receive.span_name(),
            kind: SpanKind::Consumer,
            begun: began,
            ended: SystemTime::now(),
            attributes: subject.attributes_of(Operation::Receive),
            link: origin.as_ref().map(remote),
            status: Status::Unset,
        });
    }
}

impl SendSpan {
    /// The server's broadcast of it came back.
    pub fn acknowledged(&self, broadcast: &ServerMessage) {
        self.settle(Outcome::Acknowledged {
            message_id: broadcast.message_id.clone(),
            sequence: broadcast.sequence,
        });
    }

    /// The server refused it.
    pub fn refused(&self, message_id: &str) {
        self.settle(Outcome::Refused(message_id.to_owned()));
    }

    /// It was handed to the transport, which is all that is followed of it.
    pub fn handed_over(&self) {
        self.settle(Outcome::HandedOver);
    }

    /// It was not sent after all, and is not recorded.
    pub fn abandon(&self) {
        self.settle(Outcome::Abandoned);
    }

    fn settle(&self, outcome: Outcome) {
        *self.outcome.lock().unwrap_or_else(PoisonError::into_inner) = outcome;
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
        let outcome = std::mem::take(self.outcome.get_mut().unwrap_or_else(PoisonError::into_inner));
        let (message_id, sequence, failure) = match outcome {
            Outcome::Unknown => (None, None, Some("not_acknowledged")),
            Outcome::Acknowledged { message_id, sequence } => (Some(message_id), Some(sequence), None),
            Outcome::Refused(message_id) => (Some(message_id), None, Some("refused")),
            Outcome::HandedOver => (None, None, None),
            Outcome::Abandoned => return,
        };
        let subject = Subject {
            room: Arc::clone(&self.room),
            event_type: EventType::Message,
            message_id: message_id.filter(|id| !id.is_empty()).map(Arc::from),
            body_size: Some(self.body_size),
            sequence: sequence.filter(|sequence| *sequence != 0),
            time: self.timestamp.load(Ordering::Relaxed),
            received_time: None,
        };
        let mut attributes = subject.attributes_of(Operation::Send);
        attributes.extend(failure.map(|failure| KeyValue::new("error.type", failure)));
        self.tracer.export(Finished {
            ids: self.ids.clone(),
            name: Operation::Send.span_name(),
            kind: SpanKind::Producer,
            begun: self.began_at,
            ended: self.began_at + self.began.elapsed(),
            attributes,
            link: None,
            status: failure.map_or(Status::Unset, Status::error),
        });
    }
}
