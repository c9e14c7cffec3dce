//! The keyspaces of the database, and the encoding of their keys and values.
//!
//! | keyspace | key | value |
//! |---|---|---|
//! | `rooms` | room name | log id (4 bytes), epoch (8) |
//! | `records` | log id (4), sequence of the first event (8) | [`Record`](super::Record) |
//! | `snapshots` | log id (4) | [snapshot](super::encode_snapshot) |
//! | `snapshots` | log id (4), `f` | first sequence that retention has kept (8) |
//!
//! All numbers are big-endian, so that the records of a log are one range, in order.

use std::error::Error;
use std::io::{self, ErrorKind};
use std::iter::successors;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use fjall::{Database, Keyspace, KeyspaceCreateOptions, OwnedWriteBatch, PersistMode};

use super::directory::Directory;
use super::{Bounds, LogId, StoreError};
use crate::domain::{Epoch, RoomName, Sequence};

/// What acknowledged events survive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Durability {
    /// A crash of the machine: every commit is synced to the disk.
    #[default]
    Sync,
    /// A crash of the process: commits are written to the operating system, and a power cut may lose the newest.
    Os,
}

impl Durability {
    pub(super) const fn mode(self) -> PersistMode {
        match self {
            Self::Sync => PersistMode::SyncData,
            Self::Os => PersistMode::Buffer,
        }
    }
}

/// The size of the block cache, in bytes.
const CACHE_BYTES: u64 = 16 << 20;

/// The size, in bytes, at which a memtable is written to a table file.
const MEMTABLE_BYTES: u64 = 16 << 20;

/// The open database.
#[derive(Clone)]
pub(super) struct Tables {
    pub(super) db: Database,
    pub(super) rooms: Keyspace,
    pub(super) records: Keyspace,
    pub(super) snapshots: Keyspace,
    pub(super) durability: Durability,
}

impl Tables {
    /// Opens the database of `directory`, creating it if it does not exist. Without `workers`, journals are not flushed to
    /// tables, so opening it for inspection changes nothing.
    pub(super) fn open(
        directory: &Directory,
        durability: Durability,
        workers: usize,
    ) -> Result<Self, StoreError> {
        let cannot_open = |error: fjall::Error| match (&error, environment_error(&error)) {
            // Locked by another program: the lock of the directory already excludes other servers.
            (fjall::Error::Locked, _) => StoreError::Locked(directory.path().into()),
            (_, Some(error)) => directory.cannot_use(&error.to_string()),
            _ => directory.unreadable(error.to_string()),
        };
        let db = Database::builder(directory.database())
            .cache_size(CACHE_BYTES)
            .worker_threads_unchecked(workers)
            .open()
            .map_err(cannot_open)?;
        let options = || KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_BYTES);
        let keyspace = |name| db.keyspace(name, options).map_err(cannot_open);
        Ok(Self {
            rooms: keyspace("rooms")?,
            records: keyspace("records")?,
            snapshots: keyspace("snapshots")?,
            db,
            durability,
        })
    }

    /// Stores a new, empty log.
    pub(super) fn create_log(&self, room: &RoomName, log: LogId, epoch: Epoch) -> Result<(), StoreError> {
        let mut batch = self.batch();
        self.put_room(&mut batch, room, log, epoch);
        self.put_first_sequence(&mut batch, log, Bounds::EMPTY.first);
        Ok(batch.commit()?)
    }

    /// Replaces the epochs of some rooms.
    pub(super) fn set_epochs<'a>(
        &self,
        rooms: impl IntoIterator<Item = (&'a RoomName, &'a (LogId, Epoch))>,
    ) -> Result<(), StoreError> {
        let mut batch = self.batch();
        for (room, (log, epoch)) in rooms {
            self.put_room(&mut batch, room, *log, *epoch);
        }
        Ok(batch.commit()?)
    }

    /// Removes the snapshot of a log that still starts at event 1, so that the room can be replayed without it.
    pub(super) fn remove_snapshot(&self, log: LogId) -> Result<(), StoreError> {
        let mut batch = self.batch();
        batch.remove(&self.snapshots, log.0.to_be_bytes());
        self.put_first_sequence(&mut batch, log, Bounds::EMPTY.first);
        Ok(batch.commit()?)
    }

    /// Syncs everything that was written.
    pub(super) fn sync(&self) -> Result<(), StoreError> {
        Ok(self.db.persist(PersistMode::SyncAll)?)
    }

    fn batch(&self) -> OwnedWriteBatch {
        self.db.batch().durability(Some(self.durability.mode()))
    }

    fn put_room(&self, batch: &mut OwnedWriteBatch, room: &RoomName, log: LogId, epoch: Epoch) {
        let value = encode_room(log, epoch).to_vec();
        batch.insert(&self.rooms, room.as_str().as_bytes(), value);
    }

    pub(super) fn put_first_sequence(&self, batch: &mut OwnedWriteBatch, log: LogId, first: Sequence) {
        batch.insert(
            &self.snapshots,
            first_sequence_key(log),
            first.get().to_be_bytes(),
        );
    }
}

/// Returns the I/O error behind `error` if its cause is outside of the database, such as a full disk or missing permissions.
/// A missing or shortened file is damage.
fn environment_error(error: &fjall::Error) -> Option<&io::Error> {
    let causes = successors(error.source(), |cause| (*cause).source());
    let error = causes
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .last()?;
    let is_damage = matches!(
        error.kind(),
        ErrorKind::NotFound
            | ErrorKind::UnexpectedEof
            | ErrorKind::InvalidData
            | ErrorKind::InvalidInput
            | ErrorKind::Other
    );
    (!is_damage).then_some(error)
}

pub(super) fn record_key(log: LogId, first: Sequence) -> [u8; 12] {
    let mut key = [0; 12];
    key[..4].copy_from_slice(&log.0.to_be_bytes());
    key[4..].copy_from_slice(&first.get().to_be_bytes());
    key
}

/// Returns the sequence of the first event of the record with this key.
pub(super) fn decode_record_key(key: &[u8]) -> Result<Sequence, StoreError> {
    let first = key
        .get(4..12)
        .and_then(|first| first.try_into().ok())
        .map(u64::from_be_bytes);
    first.map(Sequence::new).ok_or(damaged("its key is malformed"))
}

/// Returns the log id at the start of a key of `records` or `snapshots`.
pub(super) fn decode_log_id(key: &[u8]) -> Result<LogId, StoreError> {
    let log = key.first_chunk().copied().map(u32::from_be_bytes);
    log.map(LogId).ok_or(damaged("its key is malformed"))
}

pub(super) fn first_sequence_key(log: LogId) -> [u8; 5] {
    let mut key = *b"\0\0\0\0f";
    key[..4].copy_from_slice(&log.0.to_be_bytes());
    key
}

pub(super) fn decode_first_sequence(value: &[u8]) -> Result<Sequence, StoreError> {
    let first = value.try_into().map(u64::from_be_bytes).map(Sequence::new);
    first.map_err(|_| damaged("the first sequence of its log is malformed"))
}

fn encode_room(log: LogId, epoch: Epoch) -> Bytes {
    let mut bytes = BytesMut::with_capacity(12);
    bytes.put_u32(log.0);
    bytes.put_u64(epoch.get());
    bytes.freeze()
}

pub(super) fn decode_room(mut bytes: &[u8]) -> Result<(LogId, Epoch), StoreError> {
    let malformed = || damaged("the entry of a room is malformed");
    if bytes.len() != 12 {
        return Err(malformed());
    }
    let log = LogId(bytes.get_u32());
    Epoch::from_wire(bytes.get_u64())
        .map(|epoch| (log, epoch))
        .ok_or_else(malformed)
}

const fn damaged(why: &'static str) -> StoreError {
    StoreError::Record {
        sequence: Sequence::ZERO,
        why,
    }
}
