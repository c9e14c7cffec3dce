//! Storage of the rooms' logs.
//!
//! A log is a sequence of *records*. Each record holds the events of one batch as the bytes that are sent over the wire, so
//! what is durable is, byte for byte, what every subscriber receives, and a lagging reader is served stored bytes unchanged.
//!
//! Two implementations stand behind the [`Store`] trait: a database on disk and memory. Every store guarantees:
//!
//! - Once [`Store::append`] has completed successfully, the records survive every crash that the store's durability covers.
//! - Failures are final: after the first failed append the store accepts no more.
//!
//! Callers must append contiguous records: each starts at the sequence after the end of the previous one. An append does not
//! verify this, but the store on disk reports a gap as damage when it is opened.

mod anchors;
mod committer;
mod directory;
mod disk;
mod error;
mod files;
mod journal;
mod journals;
mod log_stats;
mod memory;
mod opening;
mod page;
mod parts;
mod record;
mod retention;
mod snapshot;
mod tables;
mod unsynced_marker;
mod watermarks;
mod writer;

use std::future::Future;
use std::pin::Pin;

use bytes::Bytes;

use crate::domain::{Epoch, RoomName, Sequence, WallTime};

pub use committer::Observer;
pub use disk::{DiskOptions, DiskStore};
pub use error::StoreError;
pub use memory::MemoryStore;
pub use page::{Page, read_page, read_page_back};
pub use record::{Record, frames};
pub use retention::Retention;
pub use snapshot::{decode_snapshot, encode_snapshot};
pub use tables::Durability;

/// Stores the rooms' logs.
///
/// Methods may block on the disk unless they say otherwise; do not call those from an async task if
/// [`is_blocking`](Store::is_blocking) returns true.
pub trait Store: Send + Sync + 'static {
    /// Returns whether methods may block on a disk.
    fn is_blocking(&self) -> bool;

    /// Returns the log of `room`, creating it if it does not exist. The epoch of a new log derives from `at`.
    ///
    /// # Errors
    ///
    /// Fails if the log cannot be read or created, or if the limit of rooms is reached.
    fn open(&self, room: &RoomName, at: WallTime) -> Result<Log, StoreError>;

    /// Returns the log of `room`, or `None` if there is none.
    ///
    /// # Errors
    ///
    /// Fails if the store cannot be read.
    fn find(&self, room: &RoomName) -> Result<Option<Log>, StoreError>;

    /// Returns whether `room` has a log. Does not block.
    fn exists(&self, room: &RoomName) -> bool;

    /// Returns the names of all rooms that have a log, sorted.
    ///
    /// # Errors
    ///
    /// Fails if the store cannot be read.
    fn rooms(&self) -> Result<Vec<RoomName>, StoreError>;

    /// Returns the range of events that a log holds. Does not block.
    ///
    /// # Errors
    ///
    /// Fails if the log does not exist.
    fn bounds(&self, log: LogId) -> Result<Bounds, StoreError>;

    /// Returns consecutive records, starting with the one that contains the event after `after`, or with the oldest one if
    /// retention has removed that event. Stops before the record with which the frames would exceed `max_bytes` in total, but
    /// returns at least one record, if there is one.
    ///
    /// # Errors
    ///
    /// Fails if the store cannot be read or a record is damaged.
    fn records(&self, log: LogId, after: Sequence, max_bytes: usize) -> Result<Vec<Record>, StoreError>;

    /// Appends to a log. Does not block. The append starts with the call, and the future completes once it is durable.
    /// Dropping the future does not cancel the append.
    ///
    /// # Errors
    ///
    /// The future fails if the append cannot be written, or with [`StoreError::Failed`] after an earlier failure. After a
    /// write error it is unknown whether the append is stored.
    fn append(&self, log: LogId, append: Append) -> AppendFuture<'_>;

    /// Returns the amount of stored data, for metrics. Blocks at most for the system call that reads the free space.
    fn usage(&self) -> StoreUsage;
}

/// The future of [`Store::append`]. Completes once the append is durable or has failed.
pub type AppendFuture<'a> = Pin<Box<dyn Future<Output = Result<(), StoreError>> + Send + 'a>>;

/// Identifies a log within its store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogId(pub(crate) u32);

/// The log of one room.
#[derive(Debug, Clone)]
pub struct Log {
    /// Identifies the log in calls to the store.
    pub id: LogId,
    /// Changes whenever sequence numbers that clients may have seen could be reused.
    pub epoch: Epoch,
    /// The newest snapshot of the room, encoded by [`encode_snapshot`].
    pub snapshot: Option<Bytes>,
}

/// The range of events that a log holds, both ends included. The log is empty if `first` is greater than `last`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// The oldest event, or the next event if the log is empty.
    pub first: Sequence,
    /// The newest event.
    pub last: Sequence,
}

impl Bounds {
    /// The bounds of a new log.
    pub const EMPTY: Self = Self {
        first: Sequence::new(1),
        last: Sequence::ZERO,
    };

    /// Returns whether the log holds every event after `sequence`. False if `sequence` is beyond the newest event.
    #[must_use]
    pub fn has_all_after(self, sequence: Sequence) -> bool {
        sequence.next() >= self.first && sequence <= self.last
    }
}

/// What one call to [`Store::append`] stores, atomically.
#[derive(Debug, Default)]
pub struct Append {
    /// The new records, in order.
    pub records: Vec<Record>,
    /// A snapshot of the room after these records, encoded by [`encode_snapshot`].
    pub snapshot: Option<Bytes>,
}

/// How much a store holds, and how much space is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreUsage {
    /// The number of events in all logs.
    pub events: u64,
    /// The bytes used: on disk with the database's overhead, in memory those of the events alone.
    pub bytes: u64,
    /// The free bytes on the file system of the data directory; `None` in memory.
    pub available: Option<u64>,
}
