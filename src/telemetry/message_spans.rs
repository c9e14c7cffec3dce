//! The spans of one message on its way through the server: `process`, and below it `append` and `broadcast`.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use opentelemetry::KeyValue;
use opentelemetry::trace::{SpanContext, SpanKind, Status};

use super::attributes::{Operation, Subject, number};
use super::otlp::{Finished, Ids, Tracer, remote, wall_time};
use crate::domain::{EventKind, MessageId, TraceContext};
use crate::hub::{AcceptedEvent, FanOut, MessageTrace, RejectedMessage, StoredBatch};
use crate::proto::EventType;
use crate::rpc::Reason;

/// How many spans a message has in the server.
const SPANS: usize = 3;

/// One message on its way. Its spans are exported when it is dropped.
pub(super) struct MessageSpans {
    tracer: Tracer,
    ids: Ids,
    subject: Subject,
    link: Option<SpanContext>,
    received: Instant,
    /// The same on the clock of the wall.
    received_at: SystemTime,
    stored: Option<StoredBatch>,
    published: Option<Published>,
}

struct Published {
    begun: Instant,
    ended: Instant,
    fan_out: FanOut,
}

impl MessageSpans {
    /// Follows a message if it is to be recorded.
    pub(super) fn begin(tracer: &Tracer, accepted: &AcceptedEvent<'_>) -> Option<Self> {
        let event = accepted.event;
        let ids = tracer.begin(event.trace.as_ref(), SPANS)?;
        let body_size = match &event.kind {
            EventKind::Message { text, .. } => Some(text.as_str().len()),
            EventKind::Join | EventKind::Leave => None,
        };
        Some(Self {
            tracer: tracer.clone(),
            ids,
            subject: Subject {
                room: accepted.room.as_str().into(),
                event_type: EventType::from(&event.kind),
                message_id: event.message_id().map(MessageId::as_str).map(Arc::from),
                body_size,
                sequence: Some(event.sequence.get()),
                time: event.time.get(),
                received_time: Some(accepted.claimed.0),
            },
            link: accepted.stream_trace.map(remote),
            received: accepted.received_at,
            received_at: wall_time(accepted.received_at),
            stored: None,
            published: None,
        })
    }

    fn wall_time(&self, at: Instant) -> SystemTime {
        self.received_at + at.saturating_duration_since(self.received)
    }

    fn child(&self, name: &'static str, begun: Instant, ended: Instant, more: [KeyValue; 2]) {
        let mut attributes = self.subject.attributes();
        attributes.extend(more);
        self.tracer.export(Finished {
            ids: self.ids.child(),
            name,
            kind: SpanKind::Internal,
            begun: self.wall_time(begun),
            ended: self.wall_time(ended),
            attributes,
            link: None,
            status: Status::Unset,
        });
    }
}

/// Records the `process` of a message that was refused, which is all there is of it.
pub(super) fn record_refused(tracer: &Tracer, refused: &RejectedMessage<'_>) {
    let Some(ids) = tracer.begin(refused.trace, 1) else {
        return;
    };
    let subject = Subject {
        room: refused.room.as_str().into(),
        event_type: EventType::Message,
        message_id: refused.message_id.map(MessageId::as_str).map(Arc::from),
        body_size: None,
        sequence: None,
        time: refused.time.get(),
        received_time: Some(refused.claimed.0),
    };
    let mut attributes = subject.attributes_of(Operation::Process);
    let reason = Reason::from(refused.rejection).as_str().to_lowercase();
    attributes.push(KeyValue::new("error.type", reason));
    tracer.export(Finished {
        ids,
        name: Operation::Process.span_name(),
        kind: SpanKind::Consumer,
        begun: wall_time(refused.received_at),
        ended: SystemTime::now(),
        attributes,
        link: refused.stream_trace.map(remote),
        status: Status::error(refused.rejection.to_string()),
    });
}

impl MessageTrace for MessageSpans {
    fn context(&self) -> TraceContext {
        self.ids.trace_context()
    }

    fn stored(&mut self, stored: StoredBatch) {
        self.stored = Some(stored);
    }

    fn published(&mut self, begun: Instant, fan_out: FanOut) {
        self.published = Some(Published {
            begun,
            ended: Instant::now(),
            fan_out,
        });
    }
}

impl Drop for MessageSpans {
    fn drop(&mut self) {
        if let Some(StoredBatch {
            submitted_at,
            durable_at,
            bytes,
            events,
        }) = self.stored
        {
            let more = [
                KeyValue::new("chitchat.store.bytes", number(bytes)),
                KeyValue::new("messaging.batch.message_count", i64::from(events)),
            ];
            self.child("append", submitted_at, durable_at, more);
        }
        let mut ended = Instant::now();
        let mut status = Status::error("not stored");
        if let Some(Published {
            begun,
            ended: published,
            fan_out,
        }) = self.published
        {
            let more = [
                KeyValue::new("chitchat.subscribers", number(fan_out.subscribers)),
                KeyValue::new("chitchat.subscribers.behind", number(fan_out.lagging)),
            ];
            self.child("broadcast", begun, published, more);
            ended = published;
            status = Status::Unset;
        }
        let mut attributes = self.subject.attributes_of(Operation::Process);
        if matches!(status, Status::Error { .. }) {
            attributes.push(KeyValue::new("error.type", "not_stored"));
        }
        self.tracer.export(Finished {
            ids: self.ids.clone(),
            name: Operation::Process.span_name(),
            kind: SpanKind::Consumer,
            begun: self.received_at,
            ended: self.wall_time(ended),
            attributes,
            link: self.link.take(),
            status,
        });
    }
}
