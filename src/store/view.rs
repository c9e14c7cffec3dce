//! A view of a data directory: reads it, checks it and copies it, also while a server uses it.
//!
//! A server never changes a sealed segment; the compactor replaces it under its name, and what is open stays as it was. So a
//! view is consistent once all segments are open. If the set of segments changes while they are being opened, the view is
//! opened again.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;

use super::catalog::Catalog;
use super::directory::{Directory, HighWatermark, cannot_use, none_if_missing, write_atomically};
use super::disk::read_records;
use super::recovery::Loaded;
use super::{Bounds, LogId, Record, StoreError};
use crate::domain::{Epoch, RoomName, Sequence};

/// How often a view is opened again if the segments change meanwhile.
const ATTEMPTS: u32 = 20;

/// The time between two attempts.
const RETRY_INTERVAL: Duration = Duration::from_millis(50);

/// A view of a data directory. It shows the events that were durable when it was opened, and changes nothing.
pub struct StoreView {
    is_in_use: bool,
    catalog: Mutex<Catalog>,
    /// Where the entries of the newest segment end.
    end: u32,
    torn_bytes: u64,
}

/// What is in a data directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ViewSummary {
    /// The number of rooms.
    pub rooms: usize,
    /// The number of retained events.
    pub events: u64,
    /// The size of the retained events, in bytes.
    pub retained: u64,
    /// The number of segments.
    pub segments: usize,
    /// The size of the segments, in bytes, without the allocated space of the newest.
    pub bytes: u64,
    /// The size of what is not needed any more and has not been removed yet, in bytes.
    pub garbage: u64,
    /// The size of a torn write at the end, in bytes. The next start cuts it off.
    pub torn_bytes: u64,
    /// Whether a server uses the directory.
    pub is_in_use: bool,
}

/// A room in a data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoomView {
    /// Identifies the log in calls to the view.
    pub log: LogId,
    /// The room.
    pub room: RoomName,
    /// The epoch of its log.
    pub epoch: Epoch,
    /// The events that are retained.
    pub bounds: Bounds,
    /// Their size, in bytes.
    pub bytes: u64,
}

impl StoreView {
    /// Opens the data directory at `path`. If no server uses it, none can start until this returns.
    ///
    /// # Errors
    ///
    /// It is not a data directory, is damaged or cannot be read.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let mut directory = Directory::read_only(path)?;
        let is_in_use = directory.is_in_use();
        let mut attempts = 1..;
        loop {
            match Loaded::load(&directory, false, false) {
                Ok(loaded) => {
                    if let Some((log, why)) = loaded.lost.first() {
                        let room = loaded.catalog.log(*log)?.room.clone();
                        return Err(StoreError::Log { room, why: *why });
                    }
                    // What is open stays as it is.
                    directory.unlock();
                    return Ok(Self {
                        is_in_use,
                        catalog: Mutex::new(loaded.catalog),
                        end: loaded.end,
                        torn_bytes: loaded.torn_bytes,
                    });
                }
                Err(error) if !is_in_use || attempts.next() == Some(ATTEMPTS) => {
                    return Err(error);
                }
                Err(_) => std::thread::sleep(RETRY_INTERVAL),
            }
        }
    }

    /// Returns what is in the directory.
    #[must_use]
    pub fn summary(&self) -> ViewSummary {
        let catalog = self.catalog.lock();
        let (needed, garbage) = catalog.disk_usage();
        ViewSummary {
            rooms: catalog.rooms.len(),
            events: catalog.events,
            retained: catalog.bytes,
            segments: catalog.segments.len(),
            bytes: needed + garbage + u64::from(self.end),
            garbage,
            torn_bytes: self.torn_bytes,
            is_in_use: self.is_in_use,
        }
    }

    /// Returns the rooms, by name.
    #[must_use]
    pub fn rooms(&self) -> Vec<RoomView> {
        let catalog = self.catalog.lock();
        let rooms = catalog
            .rooms
            .values()
            .filter_map(|log| Some((*log, catalog.logs.get(log)?)));
        let rooms = rooms.map(|(log, state)| RoomView {
            log,
            room: state.room.clone(),
            epoch: state.epoch,
            bounds: state.bounds(),
            bytes: state.bytes,
        });
        rooms.collect()
    }

    /// Reads records as [`Store::records`](super::Store::records).
    ///
    /// # Errors
    ///
    /// A record is damaged or cannot be read.
    pub fn records(&self, log: LogId, after: Sequence, max_bytes: usize) -> Result<Vec<Record>, StoreError> {
        read_records(&self.catalog, log, after, max_bytes)
    }

    /// Returns the newest snapshot of a log.
    ///
    /// # Errors
    ///
    /// It is damaged or cannot be read.
    pub fn snapshot(&self, log: LogId) -> Result<Option<Bytes>, StoreError> {
        super::disk::read_snapshot(&self.catalog, log)
    }

    /// Reads the entries and indexes of all segments. Returns the first damage of each segment.
    ///
    /// # Errors
    ///
    /// A segment cannot be read.
    pub fn find_damage(&self) -> Result<Vec<StoreError>, StoreError> {
        self.catalog.lock().find_damage()
    }

    /// Copies the data directory at `source` to `destination`, which must be empty or not exist. Sealed segments are linked if
    /// both are in the same file system. The server that opens the copy gives every room a new epoch, because the original may
    /// have used the next sequences.
    ///
    /// # Errors
    ///
    /// The source is damaged or cannot be read, or the destination is not empty or cannot be written.
    pub fn backup(source: &Path, destination: &Path) -> Result<Self, StoreError> {
        let mut view = Self::open(source)?;
        let copy = Directory::create_empty(destination)?;
        let secret = source.join("secret");
        let secret = none_if_missing(fs::read(&secret))
            .map_err(|error| StoreError::cannot("read", &secret, &error))?;
        let mut copied = view.copy_to(&copy, secret.as_deref());
        for _ in 1..ATTEMPTS {
            if !matches!(copied, Ok(false)) {
                break;
            }
            std::thread::sleep(RETRY_INTERVAL);
            view = Self::open(source)?;
            copied = view.copy_to(&copy, secret.as_deref());
        }
        match copied {
            Ok(true) => Ok(view),
            Ok(false) => Err(StoreError::Io(format!(
                "cannot copy {}: its segments change too fast",
                source.display()
            ))),
            Err(error) => Err(cannot_use(destination)(error)),
        }
    }

    /// Copies what this view shows. Returns false if a segment has been replaced meanwhile.
    fn copy_to(&self, copy: &Directory, secret: Option<&[u8]>) -> io::Result<bool> {
        if !self.copy_segments(copy)? {
            return Ok(false);
        }
        if let Some(secret) = secret {
            write_atomically(&copy.path().join("secret"), secret)?;
        }
        copy.set_renews_epochs(true)?;
        // Without it, the copy is not a data directory: an interrupted backup is not taken for a complete one.
        copy.write_format()?;
        Ok(true)
    }

    /// Copies the segments of this view. Returns false if one of them has been replaced meanwhile.
    fn copy_segments(&self, copy: &Directory) -> io::Result<bool> {
        none_if_missing(fs::remove_dir_all(copy.journal()))?;
        copy.create_journal()?;
        let catalog = self.catalog.lock();
        for state in catalog.segments.values() {
            let segment = &state.segment;
            let target = copy.journal().join(segment.path.file_name().unwrap_or_default());
            if segment.sealed.is_none() {
                let bytes = segment.read(0, self.end).map_err(io::Error::other)?;
                write_atomically(&target, &bytes)?;
                let watermark = HighWatermark {
                    segment: segment.number(),
                    offset: self.end,
                };
                watermark.write(&copy.open_watermark()?)?;
                continue;
            }
            match fs::hard_link(&segment.path, &target) {
                Ok(()) if segment.is_at(&target)? => {}
                Ok(()) => return Ok(false),
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
                // In another file system, or in one without links.
                Err(_) => write_atomically(&target, &segment.read_file().map_err(io::Error::other)?)?,
            }
        }
        File::open(copy.journal())?.sync_all()?;
        Ok(true)
    }
}
