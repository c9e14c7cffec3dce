//! A store on disk: one journal for all rooms, in segments, in one directory per server.
//!
//! | file | content |
//! |---|---|
//! | `LOCK` | locked by the server that has the directory open |
//! | `FORMAT` | the version of the directory's layout |
//! | `secret` | the key of session tokens |
//! | `log` | the [segments](super::segment) of the journal |
//! | `watermark` | the [high watermark](super::directory::HighWatermark) of the journal |
//! | `renew-epochs` | exists while every room needs a new epoch: in a copy, and until a repair is complete |
//!
//! Models: Kafka's and Apache Iggy's segments and sparse indexes; TiKV's raft-engine, which keeps many small logs in one, with
//! group commit and rewriting; Bitcask, which keeps where everything is in memory.

use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use bytes::Bytes;
use parking_lot::Mutex;

use super::catalog::{Catalog, LogState};
use super::compactor::{Compactor, CompactorHandle};
use super::directory::{Directory, cannot_use};
use super::recovery::boot_id;
use super::salvage::Repairs;
use super::segment::Segment;
use super::writer::{Change, JournalWriter, Writer};
use super::{
    Append, AppendFuture, Bounds, DiskOptions, Log, LogId, Observer, Record, Store, StoreError, StoreUsage,
};
use crate::domain::{Epoch, RoomName, Sequence, WallTime};

/// A store on disk. Dropping it blocks until the queued appends are written, and releases the directory.
pub struct DiskStore {
    directory: Arc<Directory>,
    catalog: Arc<Mutex<Catalog>>,
    options: DiskOptions,
    secret: [u8; 32],
    torn_bytes: u64,
    writer: Writer,
    compactor: Arc<CompactorHandle>,
    threads: Vec<JoinHandle<()>>,
}

impl DiskStore {
    /// Opens the directory at `path`, creating it if it does not exist. Blocks while the newest segment and the indexes of the
    /// others are read; with `accept_loss`, after damage, while everything is read.
    ///
    /// # Errors
    ///
    /// Fails if the directory cannot be used, is locked by another server, has an unknown format or is damaged. A log that
    /// has lost acknowledged events counts as damaged unless `accept_loss` is set. A failed open changes nothing.
    pub fn open(path: &Path, options: DiskOptions, observer: Arc<dyn Observer>) -> Result<Self, StoreError> {
        Self::open_in(Directory::lock(path)?, options, observer)
    }

    /// Creates a store in an empty directory, or one that does not exist. No server opens it before it is [finished](Self::finish).
    ///
    /// # Errors
    ///
    /// The directory is not empty, or cannot be written.
    pub(crate) fn create(
        path: &Path,
        options: DiskOptions,
        observer: Arc<dyn Observer>,
    ) -> Result<Self, StoreError> {
        let directory = Directory::create_empty(path)?;
        directory.create_journal().map_err(cannot_use(path))?;
        Self::open_in(directory, options, observer)
    }

    /// Closes a store that was [created](Self::create). Its directory is a data directory from now on.
    pub(crate) fn finish(self) -> Result<(), StoreError> {
        let directory = Arc::clone(&self.directory);
        drop(self);
        directory.write_format().map_err(cannot_use(directory.path()))
    }

    fn open_in(
        directory: Directory,
        options: DiskOptions,
        observer: Arc<dyn Observer>,
    ) -> Result<Self, StoreError> {
        let path = directory.path().to_owned();
        let (directory, cannot) = (Arc::new(directory), cannot_use(&path));
        let (mut loaded, repairs) = Repairs::load(&directory, &options)?;
        let secret = directory.secret().map_err(&cannot)?;
        loaded.clean_up(&directory).map_err(&cannot)?;
        loaded.make_durable()?;
        if loaded.catalog.newest().is_none() {
            let header = loaded.catalog.header(1);
            let (len, min_len) = options.segment_len(0);
            let segment = Segment::create(&directory.journal(), header, len, min_len).map_err(&cannot)?;
            loaded.catalog.add_segment(segment);
        }
        let torn_bytes = loaded.torn_bytes;
        let mut writer = JournalWriter::new(Arc::clone(&directory), loaded, options, Arc::clone(&observer))?;
        let (catalog, compactor) = (Arc::clone(&writer.catalog), Arc::clone(&writer.compactor));
        // In this order: after a crash in between, the next open does the same again.
        repairs.apply(&catalog, &mut writer)?;
        writer.mark_opened(boot_id().unwrap_or([b'?'; 36]))?;
        directory.set_renews_epochs(false).map_err(&cannot)?;
        // If the second thread cannot be started, the first one ends because its queue is dropped.
        let (writer, writer_thread) = Writer::start(writer).map_err(&cannot)?;
        let compactor_thread = Compactor {
            handle: Arc::clone(&compactor),
            catalog: Arc::clone(&catalog),
            directory: directory.journal(),
            segment_len: options.segment_len(0).0.into(),
            durability: options.durability,
            observer,
        };
        let threads = vec![writer_thread, compactor_thread.start().map_err(&cannot)?];
        Ok(Self {
            directory,
            catalog,
            options,
            secret,
            torn_bytes,
            writer,
            compactor,
            threads,
        })
    }

    /// Adds a log that begins with the event `first`, and has this epoch, for a room that has none. It is stored with its first append.
    pub(crate) fn restore(
        &self,
        room: &RoomName,
        epoch: Epoch,
        first: Sequence,
        at: WallTime,
    ) -> Result<LogId, StoreError> {
        let mut catalog = self.catalog.lock();
        if catalog.rooms.contains_key(room) {
            return Err(StoreError::Failed);
        }
        let (id, _) = catalog.allocate(at);
        let mut state = LogState::new(room.clone(), epoch, at);
        (state.first, state.last) = (first, first.previous());
        catalog.insert(id, state);
        Ok(id)
    }

    /// Returns the key of session tokens. It is stored in the directory, so it survives restarts.
    #[must_use]
    pub const fn secret(&self) -> [u8; 32] {
        self.secret
    }

    /// Returns how many bytes of a torn write, which was never acknowledged, were cut off when the directory was opened.
    #[must_use]
    pub const fn torn_bytes(&self) -> u64 {
        self.torn_bytes
    }
}

/// Reads a snapshot as [`Store::snapshot`].
pub(super) fn read_snapshot(catalog: &Mutex<Catalog>, log: LogId) -> Result<Option<Bytes>, StoreError> {
    let (location, segment) = {
        let catalog = catalog.lock();
        let Some(location) = catalog.log(log)?.snapshot else {
            return Ok(None);
        };
        (location, catalog.segment(location.segment).cloned())
    };
    let segment = segment.ok_or(StoreError::Failed)?;
    Ok(Some(segment.read_entry(location.offset, location.len)?.body))
}

/// Reads records as [`Store::records`].
pub(super) fn read_records(
    catalog: &Mutex<Catalog>,
    log: LogId,
    after: Sequence,
    max_bytes: usize,
) -> Result<Vec<Record>, StoreError> {
    let mut next = after.next();
    let (mut records, mut bytes) = (Vec::new(), 0);
    loop {
        let (first, source) = {
            let catalog = catalog.lock();
            let first = catalog.log(log)?.first;
            (first, catalog.locate(log, next.max(first)))
        };
        if first > next && !records.is_empty() {
            // Retention has removed what follows.
            break;
        }
        next = next.max(first);
        let Some(source) = source else { break };
        let (segment, index) = source.index(log, next)?;
        let read = segment.read_records(log, &index, max_bytes - bytes)?;
        for record in read {
            if record.last() < next {
                continue;
            }
            // Only the first record may start earlier than at the event that is next.
            if record.first > next || (!records.is_empty() && record.first != next) {
                return Err(segment.damaged(segment.data_end(), "its index lacks records"));
            }
            bytes += record.frames.len();
            if !records.is_empty() && bytes > max_bytes {
                return Ok(records);
            }
            next = record.last().next();
            records.push(record);
        }
        if bytes >= max_bytes {
            break;
        }
    }
    Ok(records)
}

impl Store for DiskStore {
    fn is_blocking(&self) -> bool {
        true
    }

    fn open(&self, room: &RoomName, at: WallTime) -> Result<Log, StoreError> {
        let mut catalog = self.catalog.lock();
        if let Some(log) = catalog.rooms.get(room).copied() {
            let epoch = catalog.log(log)?.epoch;
            return Ok(Log { id: log, epoch });
        }
        if catalog.rooms.len() >= self.options.max_rooms && !super::is_exempt(room) {
            return Err(StoreError::TooManyRooms(catalog.rooms.len()));
        }
        // It is written with the first append, which costs no sync of its own.
        let (id, epoch) = catalog.allocate(at);
        catalog.insert(id, LogState::new(room.clone(), epoch, at));
        Ok(Log { id, epoch })
    }

    fn find(&self, room: &RoomName) -> Option<Log> {
        let catalog = self.catalog.lock();
        let id = *catalog.rooms.get(room)?;
        let epoch = catalog.logs.get(&id)?.epoch;
        Some(Log { id, epoch })
    }

    fn rooms(&self, after: Option<&RoomName>, limit: usize) -> Vec<RoomName> {
        let catalog = self.catalog.lock();
        let after = after.map_or(Bound::Unbounded, Bound::Excluded);
        let rooms = catalog.rooms.range::<RoomName, _>((after, Bound::Unbounded));
        rooms.take(limit).map(|(room, _)| room.clone()).collect()
    }

    fn unfinished(&self) -> Vec<RoomName> {
        let catalog = self.catalog.lock();
        let unfinished = catalog
            .logs
            .values()
            .filter(|log| log.status.is_occupied || log.snapshot_sequence < log.last);
        unfinished.map(|log| log.room.clone()).collect()
    }

    fn unused(&self, at: WallTime, limit: usize) -> Vec<RoomName> {
        let catalog = self.catalog.lock();
        let unused = catalog.logs.values().filter(|log| log.is_unused(at));
        unused.take(limit).map(|log| log.room.clone()).collect()
    }

    fn is_unused(&self, log: LogId, at: WallTime) -> bool {
        self.catalog
            .lock()
            .logs
            .get(&log)
            .is_some_and(|log| log.is_unused(at))
    }

    fn bounds(&self, log: LogId) -> Result<Bounds, StoreError> {
        Ok(self.catalog.lock().log(log)?.bounds())
    }

    fn snapshot(&self, log: LogId) -> Result<Option<Bytes>, StoreError> {
        read_snapshot(&self.catalog, log)
    }

    fn records(&self, log: LogId, after: Sequence, max_bytes: usize) -> Result<Vec<Record>, StoreError> {
        read_records(&self.catalog, log, after, max_bytes)
    }

    fn append(&self, log: LogId, append: Append) -> AppendFuture<'_> {
        self.writer.submit(log, Change::Append(append))
    }

    fn delete_log(&self, log: LogId) -> AppendFuture<'_> {
        self.writer.submit(log, Change::Delete)
    }

    fn snapshot_interval(&self) -> u64 {
        let rooms = self.catalog.lock().rooms.len();
        self.options.retention.snapshot_interval(rooms)
    }

    fn usage(&self) -> StoreUsage {
        // Before the lock is taken, because it asks the file system.
        let available = self.directory.available();
        let catalog = self.catalog.lock();
        let (needed, garbage) = catalog.disk_usage();
        let active = catalog
            .segments
            .last_key_value()
            .map_or(0, |(_, state)| u64::from(state.segment.len));
        StoreUsage {
            rooms: catalog.rooms.len(),
            events: catalog.events,
            retained: catalog.bytes,
            bytes: needed + garbage + active,
            garbage,
            segments: catalog.segments.len(),
            available,
        }
    }
}

impl Drop for DiskStore {
    fn drop(&mut self) {
        self.compactor.stop();
        self.writer.close();
        for thread in self.threads.drain(..) {
            // If a thread has panicked, the waiting appends have failed already.
            thread.join().ok();
        }
    }
}

#[cfg(test)]
#[path = "disk_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "damage_tests.rs"]
mod damage_tests;
