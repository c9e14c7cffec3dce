//! What the hub tells of itself: one small interface, so that logic is not cluttered by telemetry and telemetry can be
//! anything.

use std::time::{Duration, Instant};

use crate::domain::{
    Event, EventKind, LamportTime, MessageId, Refusal, RoomName, Sequence, Timestamp, TraceContext,
};

/// What a client said, as it was accepted.
#[derive(Debug, Clone, Copy)]
pub struct Accepted<'a> {
    /// Where.
    pub room: &'a RoomName,
    /// What became of it.
    pub event: &'a Event,
    /// The client's Lamport time, as it was sent.
    pub claimed: Timestamp,
    /// When it was decoded.
    pub received: Instant,
    /// The trace of the stream or call by which it came, where that has one.
    pub stream: Option<&'a TraceContext>,
}

/// What a client said, as it was refused.
#[derive(Debug, Clone, Copy)]
pub struct Refused<'a> {
    /// Where.
    pub room: &'a RoomName,
    /// Why.
    pub refusal: &'a Refusal,
    /// Its id, where it has one.
    pub message_id: Option<&'a MessageId>,
    /// The room's Lamport time of the answer.
    pub time: LamportTime,
    /// The client's Lamport time, as it was sent.
    pub claimed: Timestamp,
    /// When it was decoded.
    pub received: Instant,
    /// The trace that its sender gave it.
    pub trace: Option<&'a TraceContext>,
    /// The trace of the stream or call by which it came, where that has one.
    pub stream: Option<&'a TraceContext>,
}

/// What became durable together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// When it was given to the store.
    pub given: Instant,
    /// When it was durable.
    pub durable: Instant,
    /// How many bytes it has.
    pub bytes: usize,
    /// How many events it has.
    pub events: u32,
}

/// Who was there when something was published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Audience {
    /// How many subscribers the room has.
    pub subscribers: usize,
    /// How many of them are served from the store.
    pub behind: usize,
}

/// A message that is followed on its way. It is dropped where its way ends, published or not.
pub trait Trail: Send + Sync {
    /// The trace context that the broadcast carries, if its sender gave none.
    fn context(&self) -> TraceContext;
    /// It is durable.
    fn stored(&mut self, stored: Stored);
    /// It was handed to the room's feed, beginning then.
    fn published(&mut self, begun: Instant, audience: Audience);
}

/// Listens to what happens in the rooms. The calls come from hot paths, some of them under a room's lock: they must be
/// cheap and must not block.
pub trait Observer: Send + Sync + 'static {
    /// An event was accepted and handed to the feed.
    fn broadcast(&self, kind: &EventKind, time: LamportTime);
    /// Asks whether what a client said is to be followed. For most messages it is not, and that must cost next to
    /// nothing.
    fn follow(&self, _accepted: &Accepted<'_>) -> Option<Box<dyn Trail>> {
        None
    }
    /// A command was refused.
    fn refused(&self, refusal: &Refusal);
    /// The command that was refused is a message: this is its whole way.
    fn refused_message(&self, _refused: &Refused<'_>) {}
    /// `events` that were decoded `latency` ago were handed to one subscriber's transport.
    fn delivered(&self, events: u32, latency: Duration);
    /// `events` that were decoded `latency` ago were handed to the last live subscriber's transport.
    fn completed(&self, events: u32, latency: Duration);
    /// A participant is in a room and its stream is open (`true`), or its stream has ended (`false`).
    fn connected(&self, connected: bool);
    /// A room was created (`true`) or let go (`false`).
    fn room(&self, exists: bool);
    /// A subscriber is served from the store from now on (`true`), or no longer is (`false`).
    fn behind(&self, behind: bool);
    /// `events` were read from the store and handed to one subscriber's transport.
    fn replayed(&self, events: u32);
    /// A batch was stored, `latency` after it was given to the store.
    fn stored(&self, latency: Duration);
    /// An event does not follow on the one before it, in sequence or Lamport time: the fold is wrong.
    fn violated(&self, room: &RoomName, sequence: Sequence);
    /// A client named the last event it had seen, and gets all that followed (`true`) or cannot (`false`).
    fn resumed(&self, is_complete: bool);
}
