//! The database's parts.

use std::io::ErrorKind;

use fjall::{Database, Keyspace, KeyspaceCreateOptions, OwnedWriteBatch};

use super::directory::Directory;
use super::layout::{encode_entry, first_key};
use super::{Bounds, Durability, LogId, StoreError};
use crate::domain::{Epoch, RoomName};

/// How much the database may keep of what it has read, in bytes.
const CACHE: u64 = 16 << 20;

/// How much of a keyspace is collected in memory before it is written to a table of its own, in bytes.
const MEMTABLE: u64 = 16 << 20;

/// The database's parts.
#[derive(Clone)]
pub(super) struct Tables {
    pub(super) db: Database,
    /// Room name to log and epoch.
    pub(super) rooms: Keyspace,
    /// Log and sequence to record.
    pub(super) records: Keyspace,
    /// Log to snapshot, and to the first event that is kept.
    pub(super) snapshots: Keyspace,
    /// What an append survives.
    pub(super) durability: Durability,
}

impl Tables {
    /// Opens the database of `directory`, making it if there is none.
    pub(super) fn open(directory: &Directory, durability: Durability) -> Result<Self, StoreError> {
        let cannot_open = |error: fjall::Error| match error {
            // A file that is not there has been.
            fjall::Error::Io(error) if error.kind() != ErrorKind::NotFound => {
                directory.cannot_use(&error.to_string())
            }
            // By another program: a server is kept out by the lock above it.
            fjall::Error::Locked => StoreError::Locked(directory.path().into()),
            error => directory.unreadable(error.to_string()),
        };
        let db = Database::builder(directory.database())
            .cache_size(CACHE)
            .worker_threads(1)
            .open()
            .map_err(cannot_open)?;
        let options = || KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE);
        let keyspace = |name| db.keyspace(name, options).map_err(cannot_open);
        Ok(Self {
            rooms: keyspace("rooms")?,
            records: keyspace("records")?,
            snapshots: keyspace("snapshots")?,
            db,
            durability,
        })
    }

    /// Notes that a room has a new log, and its epoch.
    pub(super) fn enter(&self, room: &RoomName, log: LogId, epoch: Epoch) -> Result<(), StoreError> {
        let mut batch = self.entry(room, log, epoch);
        let first = Bounds::EMPTY.first.get().to_be_bytes();
        batch.insert(&self.snapshots, first_key(log), first);
        Ok(batch.commit()?)
    }

    /// Notes that a room's log has another epoch.
    pub(super) fn renew(&self, room: &RoomName, log: LogId, epoch: Epoch) -> Result<(), StoreError> {
        Ok(self.entry(room, log, epoch).commit()?)
    }

    fn entry(&self, room: &RoomName, log: LogId, epoch: Epoch) -> OwnedWriteBatch {
        let mut batch = self.db.batch().durability(Some(self.durability.mode()));
        let entry = encode_entry(log, epoch).to_vec();
        batch.insert(&self.rooms, room.as_str().as_bytes(), entry);
        batch
    }
}
