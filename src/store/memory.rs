//! A store in memory, for tests, benchmarks and servers whose rooms need not outlive the process.

use std::collections::{BTreeMap, VecDeque};

use parking_lot::Mutex;

use super::{
    Append, AppendFuture, Bounds, Log, LogId, Record, Retention, Store, StoreError, StoreUsage,
    decode_snapshot,
};
use crate::domain::{Epoch, RoomName, Sequence, WallTime};

/// A store in memory. Its records are lost when it is dropped. It applies the same retention as the store on disk, but only
/// when it appends: an idle log keeps expired events.
pub struct MemoryStore {
    retention: Retention,
    max_rooms: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The size of the frames of all logs, in bytes.
    total: u64,
    by_name: BTreeMap<RoomName, usize>,
    logs: Vec<MemoryLog>,
}

struct MemoryLog {
    epoch: Epoch,
    records: VecDeque<Record>,
    last: Sequence,
    events: u64,
    bytes: u64,
    snapshot: Option<bytes::Bytes>,
    /// The sequence up to which the snapshot covers the log.
    covered: Sequence,
}

impl MemoryStore {
    /// Creates an empty store for at most `max_rooms` rooms.
    #[must_use]
    pub fn new(retention: Retention, max_rooms: usize) -> Self {
        Self {
            retention,
            max_rooms,
            state: Mutex::default(),
        }
    }
}

impl MemoryLog {
    /// Removes the oldest records while `should_remove` returns true and the snapshot covers them. Keeps the newest record.
    fn remove_while(&mut self, should_remove: impl Fn(&Self, &Record) -> bool) {
        while let Some(oldest) = self.records.front()
            && self.records.len() > 1
            && oldest.last() <= self.covered
            && should_remove(self, oldest)
        {
            self.events -= u64::from(oldest.events);
            self.bytes -= oldest.frames.len() as u64;
            self.records.pop_front();
        }
    }
}

impl State {
    fn log(&self, id: LogId) -> Result<&MemoryLog, StoreError> {
        self.logs.get(id.0 as usize).ok_or(StoreError::Failed)
    }

    fn append(&mut self, id: LogId, append: Append, retention: &Retention) -> Result<(), StoreError> {
        let log = self.logs.get_mut(id.0 as usize).ok_or(StoreError::Failed)?;
        let before = log.bytes;
        for record in append.records {
            log.last = record.last();
            log.events += u64::from(record.events);
            log.bytes += record.frames.len() as u64;
            log.records.push_back(record);
        }
        if let Some(snapshot) = append.snapshot {
            log.covered = decode_snapshot(&snapshot)?.last;
            log.snapshot = Some(snapshot);
        }
        let cutoff = retention.cutoff();
        log.remove_while(|log, oldest| {
            log.events > retention.max_events
                || log.bytes > retention.max_bytes
                || cutoff.is_some_and(|cutoff| oldest.is_older_than(cutoff))
        });
        self.total = self.total - before + log.bytes;
        if self.total > retention.max_total_bytes {
            self.evict_largest(retention.max_total_bytes);
        }
        Ok(())
    }

    /// Removes the oldest records of the largest log until the total size is within `limit`, as far as its snapshot covers
    /// them.
    fn evict_largest(&mut self, limit: u64) {
        if let Some(largest) = self.logs.iter_mut().max_by_key(|log| log.bytes) {
            let others = self.total - largest.bytes;
            largest.remove_while(|log, _| others + log.bytes > limit);
            self.total = others + largest.bytes;
        }
    }

    fn describe(&self, index: usize) -> Option<Log> {
        let (id, log) = (u32::try_from(index).ok()?, self.logs.get(index)?);
        Some(Log {
            id: LogId(id),
            epoch: log.epoch,
            snapshot: log.snapshot.clone(),
        })
    }
}

impl Store for MemoryStore {
    fn is_blocking(&self) -> bool {
        false
    }

    fn open(&self, room: &RoomName, at: WallTime) -> Result<Log, StoreError> {
        let mut state = self.state.lock();
        let index = match state.by_name.get(room) {
            Some(index) => *index,
            None if state.logs.len() >= self.max_rooms => {
                return Err(StoreError::TooManyRooms(state.logs.len()));
            }
            None => {
                state.logs.push(MemoryLog {
                    epoch: Epoch::created_at(at),
                    records: VecDeque::new(),
                    last: Sequence::ZERO,
                    events: 0,
                    bytes: 0,
                    snapshot: None,
                    covered: Sequence::ZERO,
                });
                let index = state.logs.len() - 1;
                state.by_name.insert(room.clone(), index);
                index
            }
        };
        state.describe(index).ok_or(StoreError::Failed)
    }

    fn find(&self, room: &RoomName) -> Result<Option<Log>, StoreError> {
        let state = self.state.lock();
        Ok(state.by_name.get(room).and_then(|index| state.describe(*index)))
    }

    fn rooms(&self) -> Result<Vec<RoomName>, StoreError> {
        Ok(self.state.lock().by_name.keys().cloned().collect())
    }

    fn exists(&self, room: &RoomName) -> bool {
        self.state.lock().by_name.contains_key(room)
    }

    fn bounds(&self, log: LogId) -> Result<Bounds, StoreError> {
        let state = self.state.lock();
        let log = state.log(log)?;
        let first = log
            .records
            .front()
            .map_or_else(|| log.last.next(), |record| record.first);
        Ok(Bounds {
            first,
            last: log.last,
        })
    }

    fn records(&self, log: LogId, after: Sequence, max_bytes: usize) -> Result<Vec<Record>, StoreError> {
        let state = self.state.lock();
        let records = &state.log(log)?.records;
        let mut bytes = 0;
        let from = records.partition_point(|record| record.last() <= after);
        let found = records.range(from..).take_while(|record| {
            let fits = bytes == 0 || bytes + record.frames.len() <= max_bytes;
            bytes += record.frames.len();
            fits
        });
        Ok(found.cloned().collect())
    }

    fn append(&self, log: LogId, append: Append) -> AppendFuture<'_> {
        let result = self.state.lock().append(log, append, &self.retention);
        Box::pin(std::future::ready(result))
    }

    fn usage(&self) -> StoreUsage {
        let state = self.state.lock();
        StoreUsage {
            events: state.logs.iter().map(|log| log.events).sum(),
            bytes: state.total,
            available: None,
        }
    }
}
