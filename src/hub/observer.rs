//! The interface through which the hub reports to telemetry, so that it names no metric, span or log event itself.

use std::time::{Duration, Instant};

use super::request::RequestMeta;
use crate::domain::{
    Event, LamportTime, Message, MessageId, Rejection, RoomName, Sequence, Timestamp, TraceContext,
};
use crate::proto::EventType;

/// An event that a client's command produced.
#[derive(Debug, Clone, Copy)]
pub struct AcceptedEvent<'a> {
    /// The room.
    pub room: &'a RoomName,
    /// The event.
    pub event: &'a Event,
    /// The Lamport time that the client sent.
    pub client_time: Timestamp,
    /// When the command was decoded.
    pub received_at: Instant,
    /// The trace of the stream or call that carried the command, if that is traced.
    pub stream_trace: Option<&'a TraceContext>,
}

/// A message that the room rejected.
#[derive(Debug, Clone, Copy)]
pub struct RejectedMessage<'a> {
    /// The room.
    pub room: &'a RoomName,
    /// Why the room rejected it.
    pub rejection: &'a Rejection,
    /// Its message id, if it has a valid one.
    pub message_id: Option<&'a MessageId>,
    /// The room's Lamport time after the rejection.
    pub time: LamportTime,
    /// The Lamport time that the client sent.
    pub client_time: Timestamp,
    /// When the message was decoded.
    pub received_at: Instant,
    /// The trace context that the client sent with the message.
    pub trace: Option<&'a TraceContext>,
    /// The trace of the stream or call that carried the message, if that is traced.
    pub stream_trace: Option<&'a TraceContext>,
}

/// A batch that the store has made durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredBatch {
    /// When the batch was handed to the store.
    pub submitted_at: Instant,
    /// When the store reported it durable.
    pub durable_at: Instant,
    /// The size of its events as stored, in bytes.
    pub bytes: usize,
    /// The number of its events.
    pub events: u32,
}

/// The subscribers of a room at the time of a publication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FanOut {
    /// All subscribers.
    pub subscribers: usize,
    /// Those that lag and are served from the store.
    pub lagging: usize,
}

/// Follows one traced message through the hub. Dropped when the message's path ends, whether it was published or not.
pub trait MessageTrace: Send + Sync {
    /// The trace context that the broadcast carries if its sender sent none.
    fn context(&self) -> TraceContext;
    /// The message is durable.
    fn stored(&mut self, batch: StoredBatch);
    /// The message was published to the room's feed. The publication started at `started_at` and has just ended.
    fn published(&mut self, started_at: Instant, fan_out: FanOut);
}

/// Receives what happens in the rooms.
///
/// The methods are called on hot paths, some of them under a feed's lock: they must be cheap and must not block.
pub trait Observer: Send + Sync + 'static {
    /// An event is durable, and is published next.
    fn event_stored(&self, kind: EventType, time: LamportTime);
    /// Decides whether a message is traced. Most are not, and for those this must cost next to nothing.
    fn trace_message(&self, _accepted: &AcceptedEvent<'_>) -> Option<Box<dyn MessageTrace>> {
        None
    }
    /// A command was rejected.
    fn command_rejected(&self, rejection: &Rejection);
    /// The rejected command was a message. Follows [`Observer::command_rejected`].
    fn message_rejected(&self, _rejected: &RejectedMessage<'_>) {}
    /// `events` were handed to one subscriber's transport, `latency` after the oldest of them was decoded.
    fn delivered(&self, events: u32, latency: Duration);
    /// `events` that a lagging subscriber missed were read from the store and handed to its transport.
    fn delivered_from_store(&self, events: u32);
    /// `events` were handed to the last subscriber that does not lag, `latency` after the oldest of them was decoded.
    fn fan_out_completed(&self, events: u32, latency: Duration);
    /// A participant's stream was attached to a room.
    fn participant_connected(&self);
    /// A participant's stream has ended.
    fn participant_disconnected(&self);
    /// A room started to run.
    fn room_loaded(&self);
    /// A room stopped running; its log remains.
    fn room_unloaded(&self);
    /// A subscriber that lags begins to wait for others that read the log.
    fn page_read_throttled(&self);
    /// A subscriber lags: it is served from the store from now on.
    fn lag_started(&self);
    /// A lagging subscriber has caught up, or is gone.
    fn lag_ended(&self);
    /// A batch became durable, `latency` after it was handed to the store.
    fn batch_stored(&self, latency: Duration);
    /// An event's sequence or Lamport time does not follow that of the event before it: the fold has a bug.
    fn causality_violated(&self, room: &RoomName, sequence: Sequence);
    /// A client named a resume point. `is_recovered` tells whether it receives everything after it.
    fn resumed(&self, is_recovered: bool);
}

/// Reports the rejection of a message.
pub(super) fn report_rejected(
    observer: &dyn Observer,
    room: &RoomName,
    message: &Message,
    rejection: &Rejection,
    time: LamportTime,
    meta: &RequestMeta,
) {
    observer.command_rejected(rejection);
    observer.message_rejected(&RejectedMessage {
        room,
        rejection,
        message_id: message.valid_id(),
        time,
        client_time: message.timestamp,
        received_at: meta.received_at,
        trace: message.trace.as_ref(),
        stream_trace: meta.stream_trace.as_deref(),
    });
}
