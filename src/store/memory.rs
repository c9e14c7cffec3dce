//! A store that is gone with the process: for tests, for benchmarks, and for rooms that nobody wants to keep.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{
    Append, Appended, Bounds, Fill, Log, LogId, Record, Retention, Store, StoreError, decode_snapshot,
};
use crate::domain::{Epoch, RoomName, Sequence, WallTime};

/// Logs in memory, bounded like those on disk.
pub struct MemoryStore {
    retention: Retention,
    max_rooms: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The bytes of all logs.
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
    /// The place of the snapshot.
    covered: Sequence,
}

impl MemoryStore {
    /// An empty store that keeps so much of each log, of at most so many rooms.
    #[must_use]
    pub fn new(retention: Retention, max_rooms: usize) -> Self {
        Self {
            retention,
            max_rooms,
            state: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing in here panics while the lock is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl MemoryLog {
    /// Lets the oldest records go as long as `is_wanted` says so, and the snapshot stands for them. The newest stays.
    fn let_go_while(&mut self, is_wanted: impl Fn(&Self, &Record) -> bool) {
        while let Some(oldest) = self.records.front()
            && self.records.len() > 1
            && oldest.last() <= self.covered
            && is_wanted(self, oldest)
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
        let expired = retention.expired();
        log.let_go_while(|log, oldest| {
            log.events > retention.events
                || log.bytes > retention.bytes
                || expired.is_some_and(|expired| oldest.is_older_than(expired))
        });
        self.total = self.total - before + log.bytes;
        if self.total > retention.total_bytes {
            self.give_way(retention.total_bytes);
        }
        Ok(())
    }

    /// Lets the largest log give way until all together have no more than `limit`, as far as there are snapshots.
    fn give_way(&mut self, limit: u64) {
        if let Some(largest) = self.logs.iter_mut().max_by_key(|log| log.bytes) {
            let others = self.total - largest.bytes;
            largest.let_go_while(|log, _| others + log.bytes > limit);
            self.total = others + largest.bytes;
        }
    }

    fn shown(&self, index: usize) -> Option<Log> {
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
        let mut state = self.lock();
        let index = match state.by_name.get(room) {
            Some(index) => *index,
            None if state.logs.len() >= self.max_rooms => {
                return Err(StoreError::TooManyRooms(state.logs.len()));
            }
            None => {
                let epoch = Epoch::created_at(at);
                let records = VecDeque::new();
                state.logs.push(MemoryLog {
                    epoch,
                    records,
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
        state.shown(index).ok_or(StoreError::Failed)
    }

    fn find(&self, room: &RoomName) -> Result<Option<Log>, StoreError> {
        let state = self.lock();
        Ok(state.by_name.get(room).and_then(|index| state.shown(*index)))
    }

    fn rooms(&self) -> Result<Vec<RoomName>, StoreError> {
        Ok(self.lock().by_name.keys().cloned().collect())
    }

    fn exists(&self, room: &RoomName) -> bool {
        self.lock().by_name.contains_key(room)
    }

    fn bounds(&self, log: LogId) -> Result<Bounds, StoreError> {
        let state = self.lock();
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
        let state = self.lock();
        let records = &state.log(log)?.records;
        let mut bytes = 0;
        let from = records.partition_point(|record| record.last() <= after);
        let some = records.range(from..).take_while(|record| {
            let fits = bytes == 0 || bytes + record.frames.len() <= max_bytes;
            bytes += record.frames.len();
            fits
        });
        Ok(some.cloned().collect())
    }

    fn append(&self, log: LogId, append: Append) -> Appended<'_> {
        let appended = self.lock().append(log, append, &self.retention);
        Box::pin(std::future::ready(appended))
    }

    fn fill(&self) -> Fill {
        let state = self.lock();
        Fill {
            events: state.logs.iter().map(|log| log.events).sum(),
            bytes: state.total,
            available: None,
        }
    }
}
