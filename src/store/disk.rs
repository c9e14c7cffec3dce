//! A store on disk: the logs in an embedded database (fjall, a log-structured merge tree), one directory a server.
//!
//! The directory holds `LOCK` (held by the server that has it open), `FORMAT` (which version wrote it), `secret` (from
//! which session tokens are made), `db` (the database), `heads` (how far each log had come), `cut` (what a start has cut
//! from journals, while it is not sure) and `unsynced` (the mark of a store that does not wait for the disk).

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::anchors::Anchors;
use super::boot::Mark;
use super::directory::{Directory, cannot_use};
use super::heads::Heads;
use super::kept::Kept;
use super::layout::{record_key, record_place};
use super::opening::Opened;
use super::tables::Tables;
use super::writer::{self, Writer};
use super::writing::Writing;
use super::{
    Append, Appended, Bounds, Durability, Fill, Log, LogId, Observer, Record, Retention, Store, StoreError,
};
use crate::domain::{Epoch, RoomName, Sequence, WallTime};

/// How a directory is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskOptions {
    /// What an append survives.
    pub durability: Durability,
    /// How much is kept.
    pub retention: Retention,
    /// How many rooms there may be.
    pub max_rooms: usize,
    /// Whether a log that has lost events at its end goes on, under a new epoch, instead of being refused.
    pub accept_loss: bool,
}

/// A store on disk. Its directory is free for another server when it is dropped.
pub struct DiskStore {
    directory: Arc<Directory>,
    tables: Tables,
    max_rooms: usize,
    known: Mutex<HashMap<RoomName, (LogId, Epoch)>>,
    /// The next log's id.
    next: Mutex<u32>,
    /// What is kept of each log.
    kept: Arc<Mutex<HashMap<LogId, Kept>>>,
    secret: [u8; 32],
    torn: u64,
    writer: Writer,
    thread: Option<JoinHandle<()>>,
}

impl DiskStore {
    /// Opens the directory at `path`, making it if there is none. Waits for the disk.
    ///
    /// # Errors
    ///
    /// When the directory cannot be used, another server has it, its format is not known, or the database is damaged; a log
    /// that is shorter than it was counts as that unless `accept_loss` is set.
    pub fn open(path: &Path, options: DiskOptions, observer: Arc<dyn Observer>) -> Result<Self, StoreError> {
        let DiskOptions {
            durability,
            retention,
            max_rooms,
            accept_loss,
        } = options;
        let directory = Arc::new(Directory::take(path)?);
        let secret = directory.secret().map_err(cannot_use(path))?;
        let heads = Heads::open(path).map_err(cannot_use(path))?;
        let Opened {
            tables,
            known,
            kept,
            next,
            torn,
        } = Opened::open(&directory, durability, &heads, accept_loss)?;
        let kept = Arc::new(Mutex::new(kept));
        let writing = Writing::new(
            Arc::clone(&directory),
            Anchors::of(&directory).map_err(cannot_use(path))?,
            tables.clone(),
            heads,
            retention,
            Arc::clone(&kept),
            observer,
        );
        let (writer, thread) = writer::start(writing).map_err(cannot_use(path))?;
        Ok(Self {
            directory,
            tables,
            max_rooms,
            known: Mutex::new(known),
            next: Mutex::new(next),
            kept,
            secret,
            torn,
            writer,
            thread: Some(thread),
        })
    }

    /// What session tokens are made from: the same for as long as the directory exists.
    #[must_use]
    pub const fn secret(&self) -> [u8; 32] {
        self.secret
    }

    /// How many bytes of a write that a crash had interrupted were cut when the directory was opened. What they said was
    /// not acknowledged, unless events are missing, which is refused or accepted apart from this.
    #[must_use]
    pub const fn torn(&self) -> u64 {
        self.torn
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<RoomName, (LogId, Epoch)>> {
        // Nothing in here panics while the lock is held.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kept(&self) -> MutexGuard<'_, HashMap<LogId, Kept>> {
        // As above.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn log(&self, (id, epoch): (LogId, Epoch)) -> Result<Log, StoreError> {
        let snapshot = self.tables.snapshots.get(id.0.to_be_bytes())?;
        Ok(Log {
            id,
            epoch,
            snapshot: snapshot.map(|bytes| bytes.to_vec().into()),
        })
    }
}

impl Store for DiskStore {
    fn is_blocking(&self) -> bool {
        true
    }

    fn open(&self, room: &RoomName, at: WallTime) -> Result<Log, StoreError> {
        // Held while the disk is waited for, so that a room is made once; those who only look wait for nothing.
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let (found, count) = {
            let known = self.lock();
            (known.get(room).copied(), known.len())
        };
        let entry = match found {
            Some(entry) => entry,
            None if count >= self.max_rooms => return Err(StoreError::TooManyRooms(count)),
            None => {
                let entry = (LogId(*next), Epoch::created_at(at));
                // Whether it can be entered or not: what failed may be there all the same.
                *next = next.saturating_add(1);
                self.tables.enter(room, entry.0, entry.1)?;
                self.kept().insert(entry.0, Kept::EMPTY);
                self.lock().insert(room.clone(), entry);
                entry
            }
        };
        drop(next);
        self.log(entry)
    }

    fn find(&self, room: &RoomName) -> Result<Option<Log>, StoreError> {
        let entry = self.lock().get(room).copied();
        entry.map(|entry| self.log(entry)).transpose()
    }

    fn rooms(&self) -> Result<Vec<RoomName>, StoreError> {
        let mut rooms: Vec<_> = self.lock().keys().cloned().collect();
        rooms.sort_unstable();
        Ok(rooms)
    }

    fn exists(&self, room: &RoomName) -> bool {
        self.lock().contains_key(room)
    }

    fn bounds(&self, log: LogId) -> Result<Bounds, StoreError> {
        let kept = self.kept().get(&log).copied().ok_or(StoreError::Failed)?;
        Ok(Bounds {
            first: kept.first,
            last: kept.last,
        })
    }

    fn records(&self, log: LogId, after: Sequence, max_bytes: usize) -> Result<Vec<Record>, StoreError> {
        let records = &self.tables.records;
        // The next event may lie in the record that begins before it.
        let next = after.next();
        let before = records
            .range(record_key(log, Sequence::ZERO)..=record_key(log, next))
            .next_back();
        let from = match before {
            Some(entry) => record_place(&entry.key()?)?,
            None => next,
        };
        let mut found = Vec::new();
        let mut bytes = 0;
        for entry in records.range(record_key(log, from)..=record_key(log, Sequence::new(u64::MAX))) {
            let (key, value) = entry.into_inner()?;
            let record = Record::decode(record_place(&key)?, value.to_vec().into())?;
            if record.last() <= after {
                continue;
            }
            bytes += record.frames.len();
            if !found.is_empty() && bytes > max_bytes {
                break;
            }
            found.push(record);
        }
        Ok(found)
    }

    fn append(&self, log: LogId, append: Append) -> Appended<'_> {
        self.writer.append(log, append)
    }

    fn fill(&self) -> Fill {
        let events = self.kept().values().map(Kept::events).sum();
        Fill {
            events,
            // Of a database that is there; what it cannot say it does not have.
            bytes: self.tables.db.disk_space().unwrap_or_default(),
            available: self.directory.available(),
        }
    }
}

impl Drop for DiskStore {
    fn drop(&mut self) {
        self.writer.close();
        if let Some(thread) = self.thread.take() {
            // A writer that panicked has told everybody who waited.
            thread.join().ok();
        }
        // What is not synced now is told of at the next start, if it is lost.
        if self.tables.durability == Durability::Os && self.tables.sync().is_ok() {
            Mark::of(self.directory.path()).remove().ok();
        }
    }
}

#[cfg(test)]
#[path = "disk_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "damage_tests.rs"]
mod damage_tests;
