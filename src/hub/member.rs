//! A participant's hold on a room.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use super::feed::{Cursor, Piece};
use super::observer::Observer;
use super::request::Request;
use super::room::RoomHandle;
use crate::domain::LamportTime;
use crate::domain::{Epoch, Leave, Name, ParticipantId, RoomName, Say, Sequence, Timestamp, TraceContext};
use crate::order::{Closed, Sender};

/// A participant's hold on a room: made when its JOIN was accepted, and the only way to speak there. However it ends,
/// the room hears of exactly one LEAVE: dropping it is a LEAVE too.
pub struct Member {
    room: Arc<RoomHandle>,
    sender: Sender<Request>,
    cursor: Cursor,
    observer: Arc<dyn Observer>,
    /// A message that the room's inbox had no room for.
    unsent: Option<Request>,
    has_left: bool,
    entry: Entry,
}

/// What a participant finds on entering.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The participant's id.
    pub participant: ParticipantId,
    /// The participant's name.
    pub name: Name,
    /// The room's newest event before the own JOIN.
    pub sequence: Sequence,
    /// The room's Lamport time before the own JOIN.
    pub time: LamportTime,
}

impl Member {
    pub(super) fn new(
        room: Arc<RoomHandle>,
        cursor: Cursor,
        observer: Arc<dyn Observer>,
        entry: Entry,
    ) -> Self {
        observer.connected(true);
        let sender = Sender::new(Arc::clone(&room.inbox));
        Self {
            room,
            sender,
            cursor,
            observer,
            unsent: None,
            has_left: false,
            entry,
        }
    }

    /// What was found on entering.
    #[must_use]
    pub const fn entry(&self) -> &Entry {
        &self.entry
    }

    /// The room's name.
    #[must_use]
    pub fn room(&self) -> &RoomName {
        &self.room.name
    }

    /// The epoch of the room's log.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.room.epoch
    }

    /// What comes next for this participant; see [`Cursor::poll_next`].
    pub fn poll_next(&mut self, cx: &Context<'_>) -> Poll<Piece> {
        self.cursor.poll_next(cx)
    }

    /// How many bytes of the feed this participant has yet to read.
    #[must_use]
    pub fn lag(&self) -> u64 {
        self.cursor.lag()
    }

    /// Ready when the room takes another message. To be asked before each [`Member::say`].
    ///
    /// # Errors
    ///
    /// When the room takes nothing more.
    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Closed>> {
        self.sender.poll_push(cx, &mut self.unsent)
    }

    /// Says something. It is in the room's order once [`Member::poll_ready`] is ready again.
    pub fn say(&mut self, mut say: Say, received: Instant) {
        say.speaker = self.entry.participant;
        self.unsent = Some(Request::Say { say, received });
    }

    /// Leaves. What the room says before that can still be read, then comes the end.
    pub fn leave(&mut self, timestamp: Option<Timestamp>, trace: Option<TraceContext>) {
        if !std::mem::replace(&mut self.has_left, true) {
            let leave = Leave {
                participant: self.entry.participant,
                timestamp,
                trace,
            };
            // A closed room has no participants to tell, and has ended this stream itself.
            self.sender
                .push_reserved(Request::Leave {
                    leave,
                    received: Instant::now(),
                })
                .ok();
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if !self.has_left {
            // As above.
            self.sender
                .push_reserved(Request::lost(self.entry.participant))
                .ok();
        }
        self.observer.connected(false);
    }
}
