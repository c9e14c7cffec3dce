//! A participant's hold on a room.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use super::feed::Piece;
use super::observer::Observer;
use super::reader::Reader;
use super::receipt::Receipt;
use super::request::Request;
use super::room::RoomHandle;
use crate::domain::{
    Epoch, LamportTime, Leave, Name, ParticipantId, RoomName, Say, Sequence, Timestamp, TraceContext,
};
use crate::order::{Closed, Sender};
use crate::store::Bounds;

/// A participant's hold on a room: made when its JOIN was accepted or its stay goes on, and the only way to speak there.
/// Dropping it tells the room that the connection is gone: a client that can resume has the grace period to come back,
/// any other leaves. However it ends, the room's log has exactly one LEAVE for the stay.
pub struct Member {
    room: Arc<RoomHandle>,
    sender: Sender<Request>,
    reader: Reader,
    observer: Arc<dyn Observer>,
    /// A message that the room's inbox had no room for.
    unsent: Option<Request>,
    has_left: bool,
    /// The trace of the stream, where it has one.
    stream: Option<Arc<TraceContext>>,
    entry: Entry,
}

/// What a participant finds on entering.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The participant's id.
    pub participant: ParticipantId,
    /// The participant's name.
    pub name: Name,
    /// The epoch of the room's log.
    pub epoch: Epoch,
    /// What the log has, before the own JOIN.
    pub bounds: Bounds,
    /// The stream's events continue after this one.
    pub after: Sequence,
    /// Whether that is the event that the client named.
    pub is_recovered: bool,
    /// The room's Lamport time before the own JOIN.
    pub time: LamportTime,
    /// The place and the time of the own JOIN; none where an earlier stay goes on.
    pub joined: Option<(Sequence, LamportTime)>,
    /// Which of the stay's connections this is.
    pub(super) connection: u64,
    /// What the client shows to come back; none where it cannot.
    pub token: Option<String>,
}

impl Member {
    pub(super) fn new(
        room: Arc<RoomHandle>,
        reader: Reader,
        observer: Arc<dyn Observer>,
        entry: Entry,
    ) -> Self {
        observer.connected(true);
        let sender = Sender::new(Arc::clone(&room.inbox));
        Self {
            room,
            sender,
            reader,
            observer,
            unsent: None,
            has_left: false,
            stream: None,
            entry,
        }
    }

    /// What is said from now on comes by a stream of this trace.
    pub fn set_stream(&mut self, stream: Option<Arc<TraceContext>>) {
        self.stream = stream;
    }

    fn receipt(&self, at: Instant) -> Receipt {
        Receipt {
            at,
            stream: self.stream.clone(),
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

    /// The room's Lamport time.
    #[must_use]
    pub fn time(&self) -> i64 {
        self.room.glance().0
    }

    /// What comes next for this participant; see [`Reader::poll_next`].
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Piece> {
        self.reader.poll_next(cx)
    }

    /// How far behind this participant is; see [`Reader::lag`].
    #[must_use]
    pub fn lag(&self) -> u64 {
        self.reader.lag()
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
        let received = self.receipt(received);
        self.unsent = Some(Request::Say { say, received });
    }

    /// Lets the connection go without leaving: a client that can resume has the grace period to come back, any other
    /// leaves. What the room says before it notices can still be read, then comes the end.
    pub fn detach(&mut self) {
        if !std::mem::replace(&mut self.has_left, true) {
            let Entry {
                participant,
                connection,
                ..
            } = self.entry;
            // A closed room has ended this stream itself.
            self.sender
                .push_reserved(Request::Lost {
                    participant,
                    connection,
                })
                .ok();
        }
    }

    /// Leaves. What the room says before that can still be read, then comes the end.
    pub fn leave(&mut self, timestamp: Option<Timestamp>, trace: Option<TraceContext>) {
        if !std::mem::replace(&mut self.has_left, true) {
            let Entry {
                participant,
                connection,
                ..
            } = self.entry;
            let leave = Leave {
                participant,
                timestamp,
                trace,
            };
            let request = Request::Leave {
                leave,
                connection,
                received: self.receipt(Instant::now()),
            };
            // A closed room has ended this stream itself.
            self.sender.push_reserved(request).ok();
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.detach();
        self.observer.connected(false);
    }
}
