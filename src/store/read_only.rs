//! A data directory as a store to which nothing can be added.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::path::Path;

use bytes::Bytes;

use super::{
    Append, AppendFuture, Bounds, Log, LogId, Record, RoomView, Store, StoreError, StoreUsage, StoreView,
};
use crate::domain::{RoomName, Sequence, WallTime};

/// A data directory as a store to which nothing can be added. It is not changed.
pub(crate) struct ReadOnlyStore {
    view: StoreView,
    rooms: BTreeMap<RoomName, RoomView>,
    bounds: HashMap<LogId, Bounds>,
}

impl ReadOnlyStore {
    /// Opens the data directory at `path`.
    ///
    /// # Errors
    ///
    /// A server uses it, it is not a data directory, is damaged or cannot be read.
    pub(crate) fn open(path: &Path) -> Result<Self, StoreError> {
        let view = StoreView::open(path)?;
        if view.summary().is_in_use {
            return Err(StoreError::Locked(path.into()));
        }
        let rooms = view.rooms();
        let bounds = rooms.iter().map(|room| (room.log, room.bounds)).collect();
        let rooms = rooms.into_iter().map(|room| (room.room.clone(), room));
        let rooms = rooms.collect();
        Ok(Self { view, rooms, bounds })
    }
}

impl Store for ReadOnlyStore {
    fn is_blocking(&self) -> bool {
        true
    }

    fn open(&self, room: &RoomName, _: WallTime) -> Result<Log, StoreError> {
        self.find(room).ok_or(StoreError::Failed)
    }

    fn find(&self, room: &RoomName) -> Option<Log> {
        let room = self.rooms.get(room)?;
        let (id, epoch) = (room.log, room.epoch);
        Some(Log { id, epoch })
    }

    fn rooms(&self, after: Option<&RoomName>, limit: usize) -> Vec<RoomName> {
        let after = after.map_or(Bound::Unbounded, Bound::Excluded);
        let rooms = self.rooms.range::<RoomName, _>((after, Bound::Unbounded));
        rooms.take(limit).map(|(room, _)| room.clone()).collect()
    }

    fn unfinished(&self) -> Vec<RoomName> {
        Vec::new()
    }

    fn unused(&self, _: WallTime, _: usize) -> Vec<RoomName> {
        Vec::new()
    }

    fn is_unused(&self, _: LogId, _: WallTime) -> bool {
        false
    }

    fn bounds(&self, log: LogId) -> Result<Bounds, StoreError> {
        self.bounds.get(&log).copied().ok_or(StoreError::Failed)
    }

    fn snapshot(&self, log: LogId) -> Result<Option<Bytes>, StoreError> {
        self.view.snapshot(log)
    }

    fn records(&self, log: LogId, after: Sequence, max_bytes: usize) -> Result<Vec<Record>, StoreError> {
        self.view.records(log, after, max_bytes)
    }

    fn append(&self, _: LogId, _: Append) -> AppendFuture<'_> {
        Box::pin(std::future::ready(Err(StoreError::Failed)))
    }

    fn delete_log(&self, _: LogId) -> AppendFuture<'_> {
        Box::pin(std::future::ready(Err(StoreError::Failed)))
    }

    fn snapshot_interval(&self) -> u64 {
        u64::MAX
    }

    fn usage(&self) -> StoreUsage {
        let summary = self.view.summary();
        StoreUsage {
            rooms: summary.rooms,
            events: summary.events,
            retained: summary.retained,
            bytes: summary.bytes,
            garbage: summary.garbage,
            segments: summary.segments,
            available: None,
        }
    }
}
