//! Storage of the rooms' logs.
//!
//! A log is a sequence of *records*. Each record holds up to about 64 KiB of the events of one batch as the bytes that are sent over
//! the wire, so what is durable is, byte for byte, what every subscriber receives, and a lagging reader is served stored bytes unchanged.
//!
//! Two implementations stand behind the [`Store`] trait: a segmented log on disk and memory. Every store guarantees:
//!
//! - Once [`Store::append`] has completed successfully, the records survive every crash that the store's durability covers.
//! - Failures are final: after the first failed append the store accepts no more.
//!
//! Records are contiguous: each starts at the sequence after the end of the previous one. An append that does not is rejected.

mod catalog;
mod compactor;
mod directory;
mod disk;
mod entry;
mod error;
#[cfg(any(feature = "fuzzing", test))]
pub(crate) mod fuzzing;
mod memory;
#[cfg(test)]
mod operation;
mod options;
mod page;
mod read_only;
mod record;
mod recovery;
mod retention;
mod salvage;
mod segment;
mod segment_index;
mod snapshot;
mod turn_queue;
mod view;
mod writer;

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;

use crate::domain::{Epoch, RoomName, Sequence, WallTime};

pub(crate) use directory::{
    CLUSTER_FORMAT, PRIVATE, cannot_use, create_private, lock_file, none_if_missing, sync_parent,
    write_atomically,
};
pub use disk::DiskStore;
pub use error::StoreError;
pub use memory::MemoryStore;
pub use options::{DiskOptions, Durability};
pub use page::{Page, read_page, read_page_back};
pub(crate) use read_only::ReadOnlyStore;
pub use record::{Record, frames};
pub use retention::Retention;
pub use snapshot::{EncodedSnapshot, decode_snapshot, encode_snapshot};
pub use view::{RoomView, StoreView, ViewSummary};

/// Stores the rooms' logs.
///
/// Methods may block on the disk unless they say otherwise; do not call those from an async task if
/// [`is_blocking`](Store::is_blocking) returns true.
pub trait Store: Send + Sync + 'static {
    /// Returns whether methods may block on a disk.
    fn is_blocking(&self) -> bool;

    /// Returns the log of `room`, creating it if it does not exist. Does not block: a new log is stored with its first append.
    /// Its epoch derives from `at`, and no log of this store has had it.
    ///
    /// # Errors
    ///
    /// Fails if the limit of rooms is reached, unless `room` is the lobby.
    fn open(&self, room: &RoomName, at: WallTime) -> Result<Log, StoreError>;

    /// Returns the log of `room`, or `None` if there is none. Does not block.
    fn find(&self, room: &RoomName) -> Option<Log>;

    /// Returns at most `limit` names of rooms that have a log, in order, starting after `after`. Does not block.
    fn rooms(&self, after: Option<&RoomName>, limit: usize) -> Vec<RoomName>;

    /// Returns the rooms whose actors have work to do although nobody asks for them: participants were in them when they were
    /// last appended to, or no snapshot covers their newest events.
    fn unfinished(&self) -> Vec<RoomName>;

    /// Returns at most `limit` rooms whose logs are unused. Does not block.
    fn unused(&self, at: WallTime, limit: usize) -> Vec<RoomName>;

    /// Returns whether nobody needs a log at the time `at`: its room has been without participants for [`UNUSED_AFTER`], and
    /// nobody has said anything in it, or all events have expired, although a store in memory still keeps the newest ones. A room
    /// whose newest snapshot says that it must be kept is never unused.
    fn is_unused(&self, log: LogId, at: WallTime) -> bool;

    /// Returns the range of events that a log holds. Does not block.
    ///
    /// # Errors
    ///
    /// Fails if the log does not exist.
    fn bounds(&self, log: LogId) -> Result<Bounds, StoreError>;

    /// Returns the newest snapshot of the room, encoded by [`encode_snapshot`].
    ///
    /// # Errors
    ///
    /// Fails if the store cannot be read or the snapshot is damaged.
    fn snapshot(&self, log: LogId) -> Result<Option<Bytes>, StoreError>;

    /// Returns consecutive records, starting with the one that contains the event after `after`, or with the oldest one if
    /// retention has removed that event. Stops before the record with which the frames would exceed `max_bytes` in total, but
    /// returns at least one record, if there is one.
    ///
    /// # Errors
    ///
    /// Fails if the store cannot be read or a record is damaged.
    fn records(&self, log: LogId, after: Sequence, max_bytes: usize) -> Result<Vec<Record>, StoreError>;

    /// Appends to a log. The future completes once the append is durable. While many rooms append, those that append little go first.
    /// Dropping the future cancels the append only before it is polled. Once polled, it must be polled on when it is woken, or dropped: the
    /// appends of others may wait for it to tell them that they are durable.
    ///
    /// # Errors
    ///
    /// The future fails with [`StoreError::NotContiguous`] if the records do not continue the log, if the append cannot be
    /// written, or with [`StoreError::Failed`] after an earlier failure. After a write error it is unknown whether the append is
    /// stored.
    fn append(&self, log: LogId, append: Append) -> AppendFuture<'_>;

    /// Deletes a log: removes its records and its room. A room with the same name gets another log. As [`Store::append`].
    fn delete_log(&self, log: LogId) -> AppendFuture<'_>;

    /// Returns how many bytes of events a room may append without a snapshot, so that retention can remove enough.
    fn snapshot_interval(&self) -> u64;

    /// Returns the amount of stored data, for metrics. Blocks at most for the system call that reads the free space.
    fn usage(&self) -> StoreUsage;
}

/// The future of [`Store::append`]. Completes once the append is durable or has failed.
pub type AppendFuture<'a> = Pin<Box<dyn Future<Output = Result<(), StoreError>> + Send + 'a>>;

/// A room without participants in which nobody has said anything is unused after this time, and so is one whose events have
/// expired.
pub const UNUSED_AFTER: Duration = Duration::from_secs(600);

/// Whether the limit of rooms does not apply to a room: the lobby, where everybody starts, can always be created.
fn is_exempt(room: &RoomName) -> bool {
    *room == RoomName::default()
}

/// Whether a room whose newest event or creation was at `newest` has been quiet for [`UNUSED_AFTER`] at the time `at`.
fn is_quiet(newest: WallTime, at: WallTime) -> bool {
    u128::from(at.as_millis().saturating_sub(newest.as_millis())) >= UNUSED_AFTER.as_millis()
}

/// Observes a store. Called on the store's threads, so its methods must not block.
pub trait Observer: Send + Sync + 'static {
    /// Called after each commit. `took` is the time to write the commit and to make it as durable as configured.
    fn committed(&self, took: Duration);

    /// Called after segments were rewritten without what is not retained any more, as one of `bytes` bytes.
    fn rewritten(&self, bytes: u64);

    /// Called when a commit is delayed or has waited because garbage grows faster than segments are rewritten.
    fn write_stalled(&self);
}

/// Of a store that nobody watches.
pub(crate) struct NoObserver;

impl Observer for NoObserver {
    fn committed(&self, _: Duration) {}
    fn rewritten(&self, _: u64) {}
    fn write_stalled(&self) {}
}

/// Identifies a log within its store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct LogId(pub(crate) u32);

/// The log of one room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Log {
    /// Identifies the log in calls to the store.
    pub id: LogId,
    /// Changes whenever sequence numbers that clients may have seen could be reused.
    pub epoch: Epoch,
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

/// What one call to [`Store::append`] stores. After a crash, a part of it from the start may be stored.
#[derive(Debug, Default)]
pub struct Append {
    /// The new records, in order.
    pub records: Vec<Record>,
    /// A snapshot of the room after these records.
    pub snapshot: Option<EncodedSnapshot>,
    /// The status of the room after these records.
    pub status: RoomStatus,
}

/// What a store notes about a room with each record, so that it need not ask the room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RoomStatus {
    /// Whether the room has participants.
    pub is_occupied: bool,
    /// Whether a message was ever sent to the room.
    pub has_messages: bool,
}

impl RoomStatus {
    fn to_bits(self) -> u8 {
        u8::from(self.is_occupied) | u8::from(self.has_messages) << 1
    }

    const fn from_bits(bits: u8) -> Self {
        Self {
            is_occupied: bits & 1 != 0,
            has_messages: bits & 2 != 0,
        }
    }
}

/// How much a store holds, and how much space is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreUsage {
    /// The number of rooms.
    pub rooms: usize,
    /// The number of events in all logs.
    pub events: u64,
    /// The size of the retained events, in bytes, as far as retention counts it.
    pub retained: u64,
    /// The bytes used: on disk those of all segments, in memory those of the events alone.
    pub bytes: u64,
    /// The bytes of segments that are not needed any more and have not been removed yet.
    pub garbage: u64,
    /// The number of segments.
    pub segments: usize,
    /// The free bytes on the file system of the data directory; `None` in memory.
    pub available: Option<u64>,
}
