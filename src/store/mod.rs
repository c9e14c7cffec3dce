//! Where the rooms' logs are kept.
//!
//! A log is a row of *records*: each is the events of one batch, as the bytes that went (or will go) over the wire. So
//! what is durable is what everybody saw, to the byte, and a reader that is behind is handed stored bytes as they are.
//!
//! Two implementations stand behind one trait: a database on disk, and memory. What a store promises:
//!
//! - What [`Store::append`] has said to be durable is there after any crash that its durability covers.
//! - Records of a room are appended in order, each beginning where the one before ended.
//! - A failure is final: nothing more is appended, and nothing that failed is acknowledged.

mod anchors;
mod boot;
mod directory;
mod disk;
mod durability;
mod error;
mod files;
mod heads;
mod journal;
mod journals;
mod kept;
mod layout;
mod memory;
mod observer;
mod opening;
mod parts;
mod record;
mod retention;
mod snapshot;
mod tables;
mod writer;
mod writing;

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;

use bytes::{Bytes, BytesMut};

use crate::domain::{Epoch, RoomName, Sequence, WallTime};

pub use disk::{DiskOptions, DiskStore};
pub use durability::Durability;
pub use error::StoreError;
pub use memory::MemoryStore;
pub use observer::Observer;
pub use record::{Record, frames};
pub use retention::Retention;
pub use snapshot::{decode_snapshot, encode_snapshot};

/// Names a room's log within its store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogId(pub(crate) u32);

/// A room's log, found or made.
#[derive(Debug, Clone)]
pub struct Log {
    /// What the store calls it.
    pub id: LogId,
    /// Its epoch.
    pub epoch: Epoch,
    /// The newest snapshot of the room, as [`encode_snapshot`] made it.
    pub snapshot: Option<Bytes>,
}

/// What a store keeps of a log: the events from `first` to `last`, none when `first` is past `last`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// The oldest event that is kept, or the next one to come.
    pub first: Sequence,
    /// The newest event.
    pub last: Sequence,
}

impl Bounds {
    /// Of a log in which nothing has happened.
    pub const EMPTY: Self = Self {
        first: Sequence::new(1),
        last: Sequence::ZERO,
    };

    /// Whether every event after `sequence` is kept.
    #[must_use]
    pub fn cover(self, sequence: Sequence) -> bool {
        sequence.next() >= self.first && sequence <= self.last
    }
}

/// Events that stand next to one another in a log, framed for the wire.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// Each event with its gRPC prefix.
    pub bytes: Bytes,
    /// The place of the first one.
    pub first: Sequence,
    /// How many there are.
    pub events: u32,
}

impl Page {
    /// The place of the last event, or the one before where there would be a first.
    #[must_use]
    pub fn last(&self) -> Sequence {
        Sequence::new((self.first.get() + u64::from(self.events)).saturating_sub(1))
    }
}

/// What is appended at once.
#[derive(Debug, Default)]
pub struct Append {
    /// The records, in order.
    pub records: Vec<Record>,
    /// The room's state after them, when it is time for one.
    pub snapshot: Option<Bytes>,
}

/// The end of an append: ready when it is durable.
pub type Appended<'a> = Pin<Box<dyn Future<Output = Result<(), StoreError>> + Send + 'a>>;

/// Where the rooms' logs are kept. Methods that may wait for the disk must not be called
/// from an async task.
pub trait Store: Send + Sync + 'static {
    /// Whether its methods wait for a disk.
    fn is_blocking(&self) -> bool;

    /// The log of `room`, made at `at` if there is none.
    ///
    /// # Errors
    ///
    /// When it cannot be read or made, or when there are as many logs as may be.
    fn open(&self, room: &RoomName, at: WallTime) -> Result<Log, StoreError>;

    /// The log of `room`, if there is one.
    ///
    /// # Errors
    ///
    /// When the store cannot be read.
    fn find(&self, room: &RoomName) -> Result<Option<Log>, StoreError>;

    /// Whether there is a log of `room`. Does not wait for the disk.
    fn exists(&self, room: &RoomName) -> bool;

    /// The names of the rooms that have a log, sorted.
    ///
    /// # Errors
    ///
    /// When the store cannot be read.
    fn rooms(&self) -> Result<Vec<RoomName>, StoreError>;

    /// What is kept of a log. Does not wait for the disk.
    ///
    /// # Errors
    ///
    /// When the store cannot be read.
    fn bounds(&self, log: LogId) -> Result<Bounds, StoreError>;

    /// The records that follow `after`, from the one in which the next event lies, until together they have `max_bytes`
    /// (at least one, if there is one).
    ///
    /// # Errors
    ///
    /// When the store cannot be read, or a record is damaged.
    fn records(&self, log: LogId, after: Sequence, max_bytes: usize) -> Result<Vec<Record>, StoreError>;

    /// Appends to a log. Ready when it is durable. Dropping the future does not undo it.
    fn append(&self, log: LogId, append: Append) -> Appended<'_>;

    /// How much there is, for metrics. Does not wait for the disk longer than it takes to ask for what is free.
    fn fill(&self) -> Fill;
}

/// How much a store holds, and how much more it can.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fill {
    /// The events of all logs.
    pub events: u64,
    /// The bytes on disk, with all that the database needs beside the events; in memory, those of the events.
    pub bytes: u64,
    /// The bytes that are free where it writes; none where that is memory.
    pub available: Option<u64>,
}

/// The events after `after` up to and with `upto`, at most about `max_bytes` of them. Empty where the next event is not
/// kept.
///
/// # Errors
///
/// When the store cannot be read, or a record is damaged.
pub fn read_page(
    store: &dyn Store,
    log: LogId,
    after: Sequence,
    upto: Sequence,
    max_bytes: usize,
) -> Result<Page, StoreError> {
    let records = store.records(log, after, max_bytes)?;
    record::page(&records, after, upto)
}

/// As [`read_page`], but what is beyond `max_bytes` is left out at the beginning and not at the end.
///
/// # Errors
///
/// Those of [`read_page`].
pub fn read_page_back(
    store: &dyn Store,
    log: LogId,
    after: Sequence,
    upto: Sequence,
    max_bytes: usize,
) -> Result<Page, StoreError> {
    let mut page = read_page(store, log, after, upto, max_bytes)?;
    let mut last = page.last();
    let (mut newest, mut len) = (VecDeque::new(), 0);
    // Most pages are whole at once.
    while page.events > 0 && !(newest.is_empty() && last == upto) {
        for frame in frames(page.bytes) {
            len += frame.len();
            newest.push_back(frame);
            while len > max_bytes
                && newest.len() > 1
                && let Some(oldest) = newest.pop_front()
            {
                len -= oldest.len();
            }
        }
        page = read_page(store, log, last, upto, max_bytes)?;
        last = page.last();
    }
    if newest.is_empty() {
        return Ok(page);
    }
    let mut bytes = BytesMut::with_capacity(len);
    let first = Sequence::new((last.get() + 1).saturating_sub(newest.len() as u64));
    // A page has at most as many events as its records, whose numbers are of that size.
    let events = u32::try_from(newest.len()).unwrap_or(u32::MAX);
    newest.iter().for_each(|frame| bytes.extend_from_slice(frame));
    Ok(Page {
        bytes: bytes.freeze(),
        first,
        events,
    })
}
