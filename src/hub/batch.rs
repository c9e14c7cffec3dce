//! What a room has decided and not yet told: the events, encoded, and what is to happen between them.

use std::time::Instant;

use bytes::{Bytes, BytesMut};

use super::description::Description;
use super::end::End;
use super::frame;
use super::member::{Entry, Member};
use super::observer::Trail;
use super::reader::Reader;
use super::request::{Posted, Reply};
use crate::domain::{Epoch, Event, RoomName, Sequence};
use crate::store::Record;

/// A chunk of a batch has at most about this many bytes: what is published at once is let go at once.
const CHUNK_BYTES: usize = 64 * 1024;

/// What a room has decided and not yet told.
#[derive(Default)]
pub(super) struct Batch {
    chunks: Vec<Chunk>,
    bytes: BytesMut,
    open: Chunk,
}

/// A part of a batch that is stored as one record and published under one lock.
#[derive(Default)]
pub(super) struct Chunk {
    /// The events, framed.
    pub(super) bytes: Bytes,
    /// What is to happen, in order.
    pub(super) steps: Vec<Step>,
    /// Those of the events that are followed.
    pub(super) trails: Vec<Box<dyn Trail>>,
    first: Sequence,
    events: u32,
    resumable: Vec<u32>,
}

pub(super) enum Step {
    /// So many bytes, so many events, the oldest decoded then.
    Run {
        len: usize,
        events: u32,
        received: Instant,
    },
    /// A participant's stream begins here.
    Enter { entry: Entry, reply: Reply<Member> },
    /// A reader's stream begins here.
    Subscribe { after: Sequence, reply: Reply<Reader> },
    /// The client of a connection is told something.
    Notify { connection: u64, notice: Bytes },
    /// The stream of a connection ends here.
    End { connection: u64, end: End },
    /// All streams end here.
    EndAll(End),
    /// A post is answered.
    Posted { posted: Posted, reply: Reply<Posted> },
    /// A question is answered.
    Describe {
        description: Description,
        reply: Reply<Description>,
    },
}

impl Batch {
    pub(super) fn step(&mut self, step: Step) {
        self.open.steps.push(step);
    }

    pub(super) fn append(
        &mut self,
        room: &RoomName,
        epoch: Epoch,
        event: &Event,
        is_resumable: bool,
        received: Instant,
        trail: Option<Box<dyn Trail>>,
    ) {
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
        chunk.trails.extend(trail);
        // One run for all events in a row; the first of them is the oldest.
        if let Some(Step::Run { len, events, .. }) = chunk.steps.last_mut() {
            *len += written;
            *events += 1;
        } else {
            chunk.steps.push(Step::Run {
                len: written,
                events: 1,
                received,
            });
        }
        if self.bytes.len() >= CHUNK_BYTES {
            self.seal();
        }
    }

    fn seal(&mut self) {
        let mut chunk = std::mem::take(&mut self.open);
        chunk.bytes = self.bytes.split().freeze();
        self.chunks.push(chunk);
    }

    /// All there is, in order.
    pub(super) fn take(&mut self) -> Vec<Chunk> {
        if !self.open.steps.is_empty() {
            self.seal();
        }
        std::mem::take(&mut self.chunks)
    }
}

impl Chunk {
    /// Swaps the first two events, on request.
    #[cfg(feature = "failpoints")]
    pub(super) fn spoiled(mut self) -> Self {
        let is_run = matches!(self.steps.first(), Some(Step::Run { events: 2.., .. }));
        if is_run && crate::failpoint::is_on("swap-events") {
            let mut events: Vec<Bytes> = crate::store::frames(self.bytes.clone()).collect();
            events.swap(0, 1);
            self.bytes = events.concat().into();
        }
        self
    }

    /// What is to be stored of it, if anything.
    pub(super) fn record(&self) -> Option<Record> {
        (self.events > 0).then(|| Record {
            first: self.first,
            events: self.events,
            resumable: self.resumable.clone(),
            frames: self.bytes.clone(),
        })
    }
}
