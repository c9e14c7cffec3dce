//! A store in memory, for tests, benchmarks and servers whose rooms need not outlive the process.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ops::Bound;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;

use super::retention::bytes_to_trim;
use super::{
    Append, AppendFuture, Bounds, EncodedSnapshot, Log, LogId, Record, Retention, RoomStatus, Store,
    StoreError, StoreUsage,
};
use crate::domain::{Epoch, RoomName, Sequence, WallTime};

/// A store in memory. Its records are lost when it is dropped. It applies the same retention as the store on disk, but only
/// when it appends: an idle log keeps expired events.
pub struct MemoryStore {
    retention: Retention,
    /// `None` for a replica: the command log of all replicas decides which rooms there are.
    max_rooms: Option<usize>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The size of the frames of all logs, in bytes.
    total: u64,
    rooms: BTreeMap<RoomName, LogId>,
    logs: HashMap<LogId, MemoryLog>,
    /// The logs that can be trimmed, by size.
    by_size: BTreeSet<(u64, LogId)>,
    next_log: LogId,
    newest_epoch: Option<Epoch>,
}

struct MemoryLog {
    room: RoomName,
    epoch: Epoch,
    records: VecDeque<Record>,
    last: Sequence,
    events: u64,
    bytes: u64,
    snapshot: Option<EncodedSnapshot>,
    status: RoomStatus,
    /// When the newest event was broadcast, or the room was created.
    newest_at: WallTime,
}

impl MemoryStore {
    /// Creates an empty store for at most `max_rooms` rooms.
    #[must_use]
    pub fn new(retention: Retention, max_rooms: usize) -> Self {
        Self {
            retention,
            max_rooms: Some(max_rooms),
            state: Mutex::default(),
        }
    }

    /// Creates an empty store for a replica. It has as many rooms as the command log of all replicas. A room other than the lobby exists only
    /// once its log has an event.
    pub(crate) fn replicated(retention: Retention) -> Self {
        Self {
            max_rooms: None,
            ..Self::new(retention, 0)
        }
    }

    /// Adds the log of a room that is restored, in place of one that it may have. The snapshot covers its newest event.
    ///
    /// # Errors
    ///
    /// The store has failed.
    pub(crate) fn restore(
        &self,
        room: &RoomName,
        epoch: Epoch,
        records: Vec<Record>,
        snapshot: EncodedSnapshot,
        status: RoomStatus,
    ) -> Result<Log, StoreError> {
        let newest_at = records.last().map_or(WallTime::default(), |newest| newest.at);
        let log = self.open(room, newest_at)?;
        let mut state = self.state.lock();
        state.update(log.id, |restored| {
            restored.events = records.iter().map(|record| u64::from(record.events)).sum();
            restored.bytes = records.iter().map(|record| record.frames.len() as u64).sum();
            restored.epoch = epoch;
            restored.records = records.into();
            restored.last = snapshot.last;
            restored.snapshot = Some(snapshot);
            restored.status = status;
            restored.newest_at = newest_at;
        })?;
        state.rooms.insert(room.clone(), log.id);
        // Whoever wrote the records may have retained more.
        state.append(log.id, Append::default(), &self.retention)?;
        Ok(Log { id: log.id, epoch })
    }

    /// Changes the epoch of a log that is empty.
    pub(crate) fn set_epoch(&self, log: LogId, epoch: Epoch) {
        if let Some(log) = self.state.lock().logs.get_mut(&log) {
            log.epoch = epoch;
        }
    }
}

impl MemoryLog {
    fn is_unused(&self, at: WallTime, retention: &Retention) -> bool {
        let age = Duration::from_millis(at.as_millis().saturating_sub(self.newest_at.as_millis()));
        let has_expired = retention.max_age.is_some_and(|max_age| age > max_age);
        let is_kept = self
            .snapshot
            .as_ref()
            .is_some_and(|snapshot| snapshot.needed_until > at);
        !self.status.is_occupied
            && (!self.status.has_messages || has_expired)
            && !is_kept
            && super::is_quiet(self.newest_at, at)
    }

    /// Adds what continues the log, and removes what is not retained.
    fn append(&mut self, append: Append, retention: &Retention) {
        for record in append.records {
            self.last = record.last();
            self.newest_at = record.at;
            self.status = append.status;
            self.events += u64::from(record.events);
            self.bytes += record.frames.len() as u64;
            self.records.push_back(record);
        }
        self.snapshot = append.snapshot.or(self.snapshot.take());
        let cutoff = retention.cutoff();
        self.remove_while(|log, oldest| {
            log.events > retention.max_events
                || log.bytes > retention.max_bytes
                || cutoff.is_some_and(|cutoff| oldest.at < cutoff)
        });
    }

    /// Removes the oldest records while `should_remove` returns true and the snapshot covers them. Keeps the newest record.
    fn remove_while(&mut self, should_remove: impl Fn(&Self, &Record) -> bool) {
        while let Some(oldest) = self.removable()
            && should_remove(self, oldest)
        {
            let (events, bytes) = (u64::from(oldest.events), oldest.frames.len() as u64);
            self.events -= events;
            self.bytes -= bytes;
            self.records.pop_front();
        }
    }

    /// The oldest record, if it can be removed.
    fn removable(&self) -> Option<&Record> {
        let covered = self.snapshot.as_ref()?.last;
        let oldest = self.records.front().filter(|_| self.records.len() > 1)?;
        (oldest.last() <= covered).then_some(oldest)
    }
}

impl State {
    fn log(&self, log: LogId) -> Result<&MemoryLog, StoreError> {
        self.logs.get(&log).ok_or(StoreError::Failed)
    }

    /// Changes a log, and updates the sizes.
    fn update(&mut self, id: LogId, change: impl FnOnce(&mut MemoryLog)) -> Result<(), StoreError> {
        let log = self.logs.get_mut(&id).ok_or(StoreError::Failed)?;
        let before = log.bytes;
        self.by_size.remove(&(before, id));
        change(log);
        self.total = self.total - before + log.bytes;
        if log.removable().is_some() {
            self.by_size.insert((log.bytes, id));
        }
        Ok(())
    }

    fn append(&mut self, id: LogId, append: Append, retention: &Retention) -> Result<(), StoreError> {
        let log = self.log(id)?;
        let mut last = log.last;
        for record in &append.records {
            if record.first != last.next() {
                let first = record.first;
                return Err(StoreError::NotContiguous { last, first });
            }
            last = record.last();
        }
        if log.last == Sequence::ZERO && !append.records.is_empty() {
            let room = log.room.clone();
            self.rooms.insert(room, id);
        }
        self.update(id, |log| log.append(append, retention))?;
        self.evict_largest(retention)
    }

    /// Removes the oldest records of the largest logs if all together are too large, as far as snapshots cover them.
    fn evict_largest(&mut self, retention: &Retention) -> Result<(), StoreError> {
        if self.total <= retention.max_total_bytes {
            return Ok(());
        }
        while let Some(excess) = self.total.checked_sub(retention.trim_target())
            && let Some((size, id)) = self.by_size.last().copied()
            && size.min(excess) > 0
        {
            let kept = size - bytes_to_trim(size, excess);
            self.update(id, |log| log.remove_while(|log, _| log.bytes > kept))?;
        }
        Ok(())
    }

    fn delete_log(&mut self, log: LogId) {
        let id = log;
        if let Some(log) = self.logs.remove(&id) {
            if self.rooms.get(&log.room) == Some(&id) {
                self.rooms.remove(&log.room);
            }
            self.by_size.remove(&(log.bytes, id));
            self.total -= log.bytes;
        }
    }
}

impl Store for MemoryStore {
    fn is_blocking(&self) -> bool {
        false
    }

    fn open(&self, room: &RoomName, at: WallTime) -> Result<Log, StoreError> {
        let mut state = self.state.lock();
        if let Some(id) = state.rooms.get(room).copied() {
            let epoch = state.log(id)?.epoch;
            return Ok(Log { id, epoch });
        }
        let is_exempt = super::is_exempt(room);
        if !is_exempt
            && self
                .max_rooms
                .is_some_and(|max_rooms| state.rooms.len() >= max_rooms)
        {
            return Err(StoreError::TooManyRooms(state.rooms.len()));
        }
        let id = state.next_log;
        let epoch = state
            .newest_epoch
            .map_or_else(|| Epoch::created_at(at), |newest| newest.renewed(at));
        let log = MemoryLog {
            room: room.clone(),
            epoch,
            records: VecDeque::new(),
            last: Sequence::ZERO,
            events: 0,
            bytes: 0,
            snapshot: None,
            status: RoomStatus::default(),
            newest_at: at,
        };
        state.next_log = LogId(id.0.saturating_add(1));
        state.newest_epoch = Some(epoch);
        if is_exempt || self.max_rooms.is_some() {
            state.rooms.insert(room.clone(), id);
        }
        state.logs.insert(id, log);
        Ok(Log { id, epoch })
    }

    fn find(&self, room: &RoomName) -> Option<Log> {
        let state = self.state.lock();
        let id = *state.rooms.get(room)?;
        let epoch = state.logs.get(&id)?.epoch;
        Some(Log { id, epoch })
    }

    fn rooms(&self, after: Option<&RoomName>, limit: usize) -> Vec<RoomName> {
        let state = self.state.lock();
        let after = after.map_or(Bound::Unbounded, Bound::Excluded);
        let rooms = state.rooms.range::<RoomName, _>((after, Bound::Unbounded));
        rooms.take(limit).map(|(room, _)| room.clone()).collect()
    }

    fn unfinished(&self) -> Vec<RoomName> {
        // It does not outlive the process, and with it the actors.
        Vec::new()
    }

    fn unused(&self, at: WallTime, limit: usize) -> Vec<RoomName> {
        let state = self.state.lock();
        let unused = state
            .logs
            .values()
            .filter(|log| log.is_unused(at, &self.retention));
        unused.take(limit).map(|log| log.room.clone()).collect()
    }

    fn is_unused(&self, log: LogId, at: WallTime) -> bool {
        let state = self.state.lock();
        state.log(log).is_ok_and(|log| log.is_unused(at, &self.retention))
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

    fn snapshot(&self, log: LogId) -> Result<Option<Bytes>, StoreError> {
        let state = self.state.lock();
        Ok(state
            .log(log)?
            .snapshot
            .as_ref()
            .map(|snapshot| snapshot.bytes.clone()))
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

    fn delete_log(&self, log: LogId) -> AppendFuture<'_> {
        self.state.lock().delete_log(log);
        Box::pin(std::future::ready(Ok(())))
    }

    fn snapshot_interval(&self) -> u64 {
        let rooms = self.state.lock().rooms.len();
        self.retention.snapshot_interval(rooms)
    }

    fn usage(&self) -> StoreUsage {
        let state = self.state.lock();
        StoreUsage {
            rooms: state.rooms.len(),
            events: state.logs.values().map(|log| log.events).sum(),
            retained: state.total,
            bytes: state.total,
            garbage: 0,
            segments: 0,
            available: None,
        }
    }
}
