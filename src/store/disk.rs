//! A store on disk: the logs in an embedded database (fjall, a log-structured merge tree), one directory per server.
//!
//! | file | content |
//! |---|---|
//! | `LOCK` | locked by the server that has the directory open |
//! | `FORMAT` | the version of the directory's layout |
//! | `secret` | the key of session tokens |
//! | `db` | the database |
//! | `heads` | the high watermarks of the logs |
//! | `cut` | the tails that recovery has truncated from journals, until it has verified that they are not needed |
//! | `unsynced` | exists while the store has unsynced writes |

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::Mutex;

use super::anchors::Anchors;
use super::committer::{Committer, Observer};
use super::directory::{Directory, cannot_use};
use super::log_stats::LogStats;
use super::opening::Opened;
use super::tables::{Durability, Tables, decode_record_key, record_key};
use super::unsynced_marker::UnsyncedMarker;
use super::watermarks::HighWatermarks;
use super::writer::Writer;
use super::{Append, AppendFuture, Bounds, Log, LogId, Record, Retention, Store, StoreError, StoreUsage};
use crate::domain::{Epoch, RoomName, Sequence, WallTime};

/// A store on disk. Dropping it blocks until the queued appends are written, and releases the directory.
pub struct DiskStore {
    directory: Arc<Directory>,
    tables: Tables,
    max_rooms: usize,
    rooms: Mutex<HashMap<RoomName, (LogId, Epoch)>>,
    next_log: Mutex<u32>,
    stats: Arc<Mutex<HashMap<LogId, LogStats>>>,
    secret: [u8; 32],
    torn_bytes: u64,
    writer: Writer,
    thread: Option<JoinHandle<()>>,
}

/// How a [`DiskStore`] is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskOptions {
    /// What acknowledged events survive.
    pub durability: Durability,
    /// How much of each log is kept.
    pub retention: Retention,
    /// The maximum number of rooms.
    pub max_rooms: usize,
    /// Whether to continue a log that has lost acknowledged events, under a new epoch, instead of refusing to open it.
    pub accept_loss: bool,
}

impl DiskStore {
    /// Opens the directory at `path`, creating it if it does not exist. Blocks while all logs are read and verified.
    ///
    /// # Errors
    ///
    /// Fails if the directory cannot be used, is locked by another server, has an unknown format or is damaged. A log that
    /// has lost acknowledged events counts as damaged unless `accept_loss` is set.
    pub fn open(path: &Path, options: DiskOptions, observer: Arc<dyn Observer>) -> Result<Self, StoreError> {
        let DiskOptions {
            durability,
            retention,
            max_rooms,
            accept_loss,
        } = options;
        let directory = Arc::new(Directory::lock(path)?);
        let secret = directory.secret().map_err(cannot_use(path))?;
        let watermarks = HighWatermarks::open(path).map_err(cannot_use(path))?;
        let Opened {
            tables,
            known,
            kept,
            next,
            torn,
        } = Opened::open(&directory, durability, &watermarks, accept_loss)?;
        let stats = Arc::new(Mutex::new(kept));
        let committer = Committer::new(
            Arc::clone(&directory),
            Anchors::of(&directory).map_err(cannot_use(path))?,
            tables.clone(),
            watermarks,
            retention,
            Arc::clone(&stats),
            observer,
        );
        let (writer, thread) = Writer::start(committer).map_err(cannot_use(path))?;
        Ok(Self {
            directory,
            tables,
            max_rooms,
            rooms: Mutex::new(known),
            next_log: Mutex::new(next),
            stats,
            secret,
            torn_bytes: torn,
            writer,
            thread: Some(thread),
        })
    }

    /// Returns the key of session tokens. It is stored in the directory, so it survives restarts.
    #[must_use]
    pub const fn secret(&self) -> [u8; 32] {
        self.secret
    }

    /// Returns how many bytes of journals were truncated when the directory was opened: those of a torn write, which was
    /// never acknowledged, and with `accept_loss` also those after damage.
    #[must_use]
    pub const fn torn_bytes(&self) -> u64 {
        self.torn_bytes
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
        // Held during the write, so that a room is created only once. Readers do not take this lock.
        let mut next = self.next_log.lock();
        let (found, count) = {
            let rooms = self.rooms.lock();
            (rooms.get(room).copied(), rooms.len())
        };
        let entry = match found {
            Some(entry) => entry,
            None if count >= self.max_rooms => return Err(StoreError::TooManyRooms(count)),
            None => {
                let entry = (LogId(*next), Epoch::created_at(at));
                // The id is not reused even if the write fails, because the write may have reached the disk.
                *next = next.saturating_add(1);
                self.tables.create_log(room, entry.0, entry.1)?;
                self.stats.lock().insert(entry.0, LogStats::EMPTY);
                self.rooms.lock().insert(room.clone(), entry);
                entry
            }
        };
        drop(next);
        self.log(entry)
    }

    fn find(&self, room: &RoomName) -> Result<Option<Log>, StoreError> {
        let entry = self.rooms.lock().get(room).copied();
        entry.map(|entry| self.log(entry)).transpose()
    }

    fn rooms(&self) -> Result<Vec<RoomName>, StoreError> {
        let mut rooms: Vec<_> = self.rooms.lock().keys().cloned().collect();
        rooms.sort_unstable();
        Ok(rooms)
    }

    fn exists(&self, room: &RoomName) -> bool {
        self.rooms.lock().contains_key(room)
    }

    fn bounds(&self, log: LogId) -> Result<Bounds, StoreError> {
        let stats = self.stats.lock().get(&log).copied().ok_or(StoreError::Failed)?;
        Ok(Bounds {
            first: stats.first,
            last: stats.last,
        })
    }

    fn records(&self, log: LogId, after: Sequence, max_bytes: usize) -> Result<Vec<Record>, StoreError> {
        let records = &self.tables.records;
        // The next event may be in the middle of a record.
        let next = after.next();
        let before = records
            .range(record_key(log, Sequence::ZERO)..=record_key(log, next))
            .next_back();
        let from = match before {
            Some(entry) => decode_record_key(&entry.key()?)?,
            None => next,
        };
        let mut found = Vec::new();
        let mut bytes = 0;
        for entry in records.range(record_key(log, from)..=record_key(log, Sequence::new(u64::MAX))) {
            let (key, value) = entry.into_inner()?;
            let record = Record::decode(decode_record_key(&key)?, value.to_vec().into())?;
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

    fn append(&self, log: LogId, append: Append) -> AppendFuture<'_> {
        self.writer.append(log, append)
    }

    fn usage(&self) -> StoreUsage {
        let events = self.stats.lock().values().map(LogStats::events).sum();
        StoreUsage {
            events,
            bytes: self.tables.db.disk_space().unwrap_or_default(),
            available: self.directory.available(),
        }
    }
}

impl Drop for DiskStore {
    fn drop(&mut self) {
        self.writer.close();
        if let Some(thread) = self.thread.take() {
            // If the thread has panicked, the waiting appends have failed already.
            thread.join().ok();
        }
        // If this sync fails, the marker stays, and the next start treats events as lost if the system was rebooted.
        if self.tables.durability == Durability::Os && self.tables.sync().is_ok() {
            UnsyncedMarker::new(self.directory.path()).remove().ok();
        }
    }
}

#[cfg(test)]
#[path = "disk_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "damage_tests.rs"]
mod damage_tests;
