//! What the hub tells of itself: one small interface, so that logic is not cluttered by telemetry and telemetry can be
//! anything.

use std::time::Duration;

use crate::domain::{EventKind, LamportTime, Refusal, RoomName, Sequence};

/// Listens to what happens in the rooms. The calls come from hot paths, some of them under a room's lock: they must be
/// cheap and must not block.
pub trait Observer: Send + Sync + 'static {
    /// An event was accepted and handed to the feed.
    fn broadcast(&self, kind: &EventKind, time: LamportTime);
    /// A command was refused.
    fn refused(&self, refusal: &Refusal);
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
