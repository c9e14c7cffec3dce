//! The server's spans of one message: `process`, and its children `append` and `broadcast`.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use opentelemetry::KeyValue;
use opentelemetry::trace::{SpanContext, SpanKind, Status};

use super::attributes::{MessageAttributes, Operation, number};
use super::otlp::{FinishedSpan, SpanIds, Tracer, remote_span_context, system_time};
use crate::domain::{EventKind, MessageId, TraceContext};
use crate::hub::{AcceptedEvent, FanOut, MessageTrace, RejectedMessage, StoredBatch};
use crate::proto::EventType;
use crate::reason::Reason;

/// The maximum number of spans per message.
const SPANS: usize = 3;

/// A traced message on its way through the hub. Its spans are exported when it is dropped, `process` as an error if the
/// message was not published.
pub(super) struct MessageSpans {
    tracer: Tracer,
    ids: SpanIds,
    attributes: MessageAttributes,
    link: Option<SpanContext>,
    received_at: Instant,
    /// The wall-clock time of `received_at`.
    start: SystemTime,
    stored: Option<StoredBatch>,
    published: Option<Publication>,
}

struct Publication {
    started_at: Instant,
    ended_at: Instant,
    fan_out: FanOut,
}

impl MessageSpans {
    /// Starts to trace an accepted event, if it is sampled.
    pub(super) fn start(tracer: &Tracer, accepted: &AcceptedEvent<'_>) -> Option<Self> {
        let event = accepted.event;
        let ids = tracer.sample(event.trace.as_ref(), SPANS)?;
        let body_size = match &event.kind {
            EventKind::Message { text, .. } => Some(text.as_str().len()),
            EventKind::Join | EventKind::Leave => None,
        };
        Some(Self {
            tracer: tracer.clone(),
            ids,
            attributes: MessageAttributes {
                room: accepted.room.as_str().into(),
                event_type: EventType::from(&event.kind),
                message_id: event.message_id().map(MessageId::as_str).map(Arc::from),
                body_size,
                sequence: Some(event.sequence.get()),
                lamport_time: event.time.get(),
                received_time: Some(accepted.client_time.0),
            },
            link: accepted.stream_trace.map(remote_span_context),
            received_at: accepted.received_at,
            start: system_time(accepted.received_at),
            stored: None,
            published: None,
        })
    }

    /// Converts to wall-clock time relative to `start`, so that setting the clock does not reorder the spans of a message.
    fn wall_time(&self, at: Instant) -> SystemTime {
        self.start + at.saturating_duration_since(self.received_at)
    }

    fn export_child(&self, name: &'static str, start: Instant, end: Instant, extra: [KeyValue; 2]) {
        let mut attributes = self.attributes.to_vec();
        attributes.extend(extra);
        self.tracer.export(FinishedSpan {
            ids: self.ids.child(),
            name,
            kind: SpanKind::Internal,
            start: self.wall_time(start),
            end: self.wall_time(end),
            attributes,
            link: None,
            status: Status::Unset,
        });
    }
}

/// Records the `process` span of a rejected message. It has no child spans.
pub(super) fn record_rejected(tracer: &Tracer, rejected: &RejectedMessage<'_>) {
    let Some(ids) = tracer.sample(rejected.trace, 1) else {
        return;
    };
    let attributes = MessageAttributes {
        room: rejected.room.as_str().into(),
        event_type: EventType::Message,
        message_id: rejected.message_id.map(MessageId::as_str).map(Arc::from),
        body_size: None,
        sequence: None,
        lamport_time: rejected.time.get(),
        received_time: Some(rejected.client_time.0),
    };
    let mut attributes = attributes.with_operation(Operation::Process);
    let reason = Reason::from(rejected.rejection).as_str().to_lowercase();
    attributes.push(KeyValue::new("error.type", reason));
    tracer.export(FinishedSpan {
        ids,
        name: Operation::Process.span_name(),
        kind: SpanKind::Consumer,
        start: system_time(rejected.received_at),
        end: SystemTime::now(),
        attributes,
        link: rejected.stream_trace.map(remote_span_context),
        status: Status::error(rejected.rejection.to_string()),
    });
}

impl MessageTrace for MessageSpans {
    fn context(&self) -> TraceContext {
        self.ids.trace_context()
    }

    fn stored(&mut self, batch: StoredBatch) {
        self.stored = Some(batch);
    }

    fn published(&mut self, started_at: Instant, fan_out: FanOut) {
        self.published = Some(Publication {
            started_at,
            ended_at: Instant::now(),
            fan_out,
        });
    }
}

impl Drop for MessageSpans {
    fn drop(&mut self) {
        if let Some(batch) = &self.stored {
            let extra = [
                KeyValue::new("chitchat.store.bytes", number(batch.bytes)),
                KeyValue::new("messaging.batch.message_count", i64::from(batch.events)),
            ];
            self.export_child("append", batch.submitted_at, batch.durable_at, extra);
        }
        let mut attributes = self.attributes.with_operation(Operation::Process);
        let (end, status) = if let Some(publication) = &self.published {
            let fan_out = publication.fan_out;
            let extra = [
                KeyValue::new("chitchat.subscribers", number(fan_out.subscribers)),
                KeyValue::new("chitchat.subscribers.behind", number(fan_out.lagging)),
            ];
            self.export_child("broadcast", publication.started_at, publication.ended_at, extra);
            (publication.ended_at, Status::Unset)
        } else {
            attributes.push(KeyValue::new("error.type", "not_stored"));
            (Instant::now(), Status::error("not stored"))
        };
        self.tracer.export(FinishedSpan {
            ids: self.ids.clone(),
            name: Operation::Process.span_name(),
            kind: SpanKind::Consumer,
            start: self.start,
            end: self.wall_time(end),
            attributes,
            link: self.link.take(),
            status,
        });
    }
}
