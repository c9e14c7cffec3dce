//! The database's parts.

use std::error::Error;
use std::io::{self, ErrorKind};
use std::iter::successors;

use fjall::{Database, Keyspace, KeyspaceCreateOptions, OwnedWriteBatch, PersistMode};

use super::directory::Directory;
use super::layout::{encode_entry, first_key};
use super::{Bounds, Durability, LogId, StoreError};
use crate::domain::{Epoch, RoomName, Sequence};

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
    /// Opens the database of `directory`, making it if there is none. Without `workers` nothing is moved from journals to
    /// tables, so that what was opened to look at it stays as it was.
    pub(super) fn open(
        directory: &Directory,
        durability: Durability,
        workers: usize,
    ) -> Result<Self, StoreError> {
        let cannot_open = |error: fjall::Error| match (&error, outside(&error)) {
            // By another program: a server is kept out by the lock above it.
            (fjall::Error::Locked, _) => StoreError::Locked(directory.path().into()),
            (_, Some(outside)) => directory.cannot_use(&outside.to_string()),
            _ => directory.unreadable(error.to_string()),
        };
        let db = Database::builder(directory.database())
            .cache_size(CACHE)
            .worker_threads_unchecked(workers)
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
        let mut batch = self.batch();
        self.put_entry(&mut batch, room, log, epoch);
        self.put_first(&mut batch, log, Bounds::EMPTY.first);
        Ok(batch.commit()?)
    }

    /// Notes that the logs of some rooms have other epochs.
    pub(super) fn renew<'a>(
        &self,
        rooms: impl IntoIterator<Item = (&'a RoomName, &'a (LogId, Epoch))>,
    ) -> Result<(), StoreError> {
        let mut batch = self.batch();
        for (room, (log, epoch)) in rooms {
            self.put_entry(&mut batch, room, *log, *epoch);
        }
        Ok(batch.commit()?)
    }

    /// Lets go of the snapshot of a log that is all there, from its first event on.
    pub(super) fn remove_snapshot(&self, log: LogId) -> Result<(), StoreError> {
        let mut batch = self.batch();
        batch.remove(&self.snapshots, log.0.to_be_bytes());
        self.put_first(&mut batch, log, Bounds::EMPTY.first);
        Ok(batch.commit()?)
    }

    /// Makes all that was written survive a power cut.
    pub(super) fn sync(&self) -> Result<(), StoreError> {
        Ok(self.db.persist(PersistMode::SyncAll)?)
    }

    fn batch(&self) -> OwnedWriteBatch {
        self.db.batch().durability(Some(self.durability.mode()))
    }

    fn put_entry(&self, batch: &mut OwnedWriteBatch, room: &RoomName, log: LogId, epoch: Epoch) {
        let entry = encode_entry(log, epoch).to_vec();
        batch.insert(&self.rooms, room.as_str().as_bytes(), entry);
    }

    /// Notes with which event a log begins.
    pub(super) fn put_first(&self, batch: &mut OwnedWriteBatch, log: LogId, first: Sequence) {
        batch.insert(&self.snapshots, first_key(log), first.get().to_be_bytes());
    }
}

/// What is wrong outside of the database: the disk is full, a file may not be opened. A file that is not there has been, and
/// one that is too short was longer: that is damage.
fn outside(error: &fjall::Error) -> Option<&io::Error> {
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
