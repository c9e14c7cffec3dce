//! The decisions that a room has not published yet: encoded events, and the effects between them.

use std::time::Instant;

use bytes::{Bytes, BytesMut};

use super::feed::CloseReason;
use super::frame;
use super::handle::{Member, ModerationReporter, Reply};
use super::observer::MessageTrace;
use super::reader::Reader;
use super::request::{JoinInfo, PostOutcome, RoomInfo};
use crate::domain::{Attachment, BanTarget, Epoch, Event, LamportTime, Origin, RoomName, Sequence, WallTime};
use crate::failpoint;
use crate::proto::EventType;
use crate::store::{Record, frames};

/// A chunk is sealed at this size, in bytes. The feed frees a chunk as a whole, so this bounds the memory that one unread
/// event retains.
const CHUNK_BYTES: usize = 64 * 1024;

/// The decisions of one iteration of the room's actor, in order.
#[derive(Default)]
pub(super) struct Batch {
    sealed: Vec<Chunk>,
    /// The chunk that grows; its events are in `bytes` until it is sealed.
    open: Chunk,
    bytes: BytesMut,
    /// The length of the newest sealed chunk: the next one is likely to be as long.
    expected_len: usize,
}

/// A part of a batch that is stored as one record and published under one lock.
#[derive(Default)]
pub(super) struct Chunk {
    /// The events, framed.
    pub(super) bytes: Bytes,
    /// What happens when the chunk is published, in order.
    pub(super) effects: Vec<Effect>,
    /// The traces of those events that are traced.
    pub(super) traces: Vec<Box<dyn MessageTrace>>,
    first: Sequence,
    events: u32,
    /// When the newest event was accepted.
    at: WallTime,
    /// The indexes of the JOINs of resumable participants.
    resumable: Vec<u32>,
    /// Kind and time of each event.
    pub(super) kinds: Vec<(EventType, LamportTime)>,
}

/// Something that happens between two events.
pub(super) enum Effect {
    /// The next `len` bytes of the chunk, which are `events` consecutive events, are published.
    Publish {
        len: usize,
        events: u32,
        /// When the oldest of them was decoded.
        received_at: Instant,
    },
    /// A participant's stream starts.
    Attach { info: JoinInfo, reply: Reply<Member> },
    /// The stream of a `Subscribe` call starts, with the event after `after`.
    Subscribe {
        after: Sequence,
        origin: Origin,
        reply: Reply<Reader>,
    },
    /// One participant receives a notice.
    Notify { attachment: Attachment, notice: Bytes },
    /// A participant's stream closes.
    CloseStream {
        attachment: Attachment,
        reason: CloseReason,
    },
    /// All streams close.
    CloseAll(CloseReason),
    /// The streams of banned readers close.
    CloseBanned { target: BanTarget, reason: CloseReason },
    /// A post is answered.
    Posted {
        outcome: PostOutcome,
        reply: Reply<PostOutcome>,
    },
    /// A request for the roster is answered.
    Info { info: RoomInfo, reply: Reply<RoomInfo> },
    /// A moderator's command is answered with the number of participants that it has removed.
    Moderated {
        removed: usize,
        report: ModerationReporter,
        reply: Reply<usize>,
    },
}

impl Batch {
    pub(super) fn push(&mut self, effect: Effect) {
        self.open.effects.push(effect);
    }

    pub(super) fn append(
        &mut self,
        room: &RoomName,
        epoch: Epoch,
        event: &Event,
        is_resumable: bool,
        received_at: Instant,
        trace: Option<Box<dyn MessageTrace>>,
    ) {
        if self.bytes.is_empty() {
            self.bytes.reserve(self.expected_len);
        }
        let before = self.bytes.len();
        frame::write_event(&mut self.bytes, room, epoch, event);
        let written = self.bytes.len() - before;
        let chunk = &mut self.open;
        if chunk.events == 0 {
            chunk.first = event.sequence;
        }
        if is_resumable {
            chunk.resumable.push(chunk.events);
        }
        chunk.events += 1;
        chunk.kinds.push(((&event.kind).into(), event.time));
        chunk.at = event.at;
        chunk.traces.extend(trace);
        // Consecutive events are published together. The first of them is the oldest.
        if let Some(Effect::Publish { len, events, .. }) = chunk.effects.last_mut() {
            *len += written;
            *events += 1;
        } else {
            chunk.effects.push(Effect::Publish {
                len: written,
                events: 1,
                received_at,
            });
        }
        if self.bytes.len() >= CHUNK_BYTES {
            self.seal();
        }
    }

    fn seal(&mut self) {
        let mut chunk = std::mem::take(&mut self.open);
        let bytes = std::mem::take(&mut self.bytes);
        self.expected_len = bytes.len();
        // As long as anybody has yet to read it, it should take no more than its length.
        chunk.bytes = if bytes.capacity() > 2 * bytes.len() {
            Bytes::copy_from_slice(&bytes)
        } else {
            bytes.freeze()
        };
        self.sealed.push(chunk);
    }

    /// Takes all chunks, in order.
    pub(super) fn take(&mut self) -> Vec<Chunk> {
        if !self.open.effects.is_empty() {
            self.seal();
        }
        std::mem::take(&mut self.sealed)
    }
}

impl Chunk {
    /// The record to store for this chunk; `None` if it has no events.
    pub(super) fn record(&self) -> Option<Record> {
        (self.events > 0).then(|| Record {
            first: self.first,
            events: self.events,
            at: self.at,
            resumable: self.resumable.clone(),
            frames: self.bytes.clone(),
        })
    }

    /// Swaps the first two events if that fault is injected.
    pub(super) fn inject_faults(&mut self) {
        let is_pair = matches!(self.effects.first(), Some(Effect::Publish { events: 2.., .. }));
        if is_pair && failpoint::is_enabled("swap-events") {
            let mut events: Vec<Bytes> = frames(self.bytes.clone()).collect();
            events.swap(0, 1);
            self.bytes = events.concat().into();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{EventKind, Name, ParticipantId};

    #[test]
    fn a_chunk_takes_little_more_memory_than_its_events_and_the_next_ones_keep_none_of_it() {
        let event = Event {
            sequence: Sequence::new(1),
            time: LamportTime::from_wire(1).unwrap(),
            at: WallTime::from_millis(0),
            participant: ParticipantId::from_wire(1).unwrap(),
            name: Name::try_from("Ada").unwrap(),
            kind: EventKind::Join,
            trace: None,
        };
        let mut batch = Batch::default();
        let mut take = |events: usize| {
            for _ in 0..events {
                batch.append(
                    &RoomName::default(),
                    Epoch::from_wire(1).unwrap(),
                    &event,
                    false,
                    Instant::now(),
                    None,
                );
            }
            batch.take()
        };
        for events in [2_500, 1, 1] {
            for chunk in take(events) {
                let len = chunk.bytes.len();
                let capacity = chunk.bytes.try_into_mut().unwrap().capacity();
                assert!(capacity <= 2 * len, "{events}: {capacity} for {len}");
            }
        }
        assert_eq!(batch.bytes.capacity(), 0);
    }
}
