//! What the store keeps in memory: the rooms and their logs, the segments, and the index of the segment that is not sealed.
//!
//! The catalog is a function of the journal. The writer applies each entry once it is durable; opening the store applies the same
//! entries, or, for sealed segments, their summaries.
//!
//! Entries that nobody needs are *garbage*: records that retention has removed, snapshots that have been replaced, everything
//! of logs that were deleted. The compactor removes them.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::entry::{EntryKind, Header};
use super::segment::{BootId, READ_INDEX_ENTRIES, Segment, SegmentHeader};
use super::segment_index::{
    EntryLocation, IndexEntry, LogMetadata, LogRecords, LogSummary, NeededUntil, SegmentIndex,
};
use super::{Bounds, LogId, RoomStatus, StoreError, decode_snapshot};
use crate::domain::{Epoch, ReplayError, RoomName, Sequence, WallTime};

/// The logs and segments of a store.
#[derive(Default)]
pub(super) struct Catalog {
    pub(super) rooms: BTreeMap<RoomName, LogId>,
    pub(super) logs: HashMap<LogId, LogState>,
    /// The logs that may have records to trim, by the size of their records.
    pub(super) by_size: BTreeSet<(u64, LogId)>,
    /// The segments by number. The last one is not sealed.
    pub(super) segments: BTreeMap<u32, SegmentState>,
    /// The index of the segment that is not sealed. Shared while the segment is being sealed.
    pub(super) active: Arc<SegmentIndex>,
    /// The number of events in all logs.
    pub(super) events: u64,
    /// The size of the records of all logs, in bytes, with their index entries.
    pub(super) bytes: u64,
    /// Logs with entries, whose room is not known. They must have been deleted later.
    orphans: HashSet<LogId>,
    /// Whether a log counts as deleted where a later one of the same room begins, since its own deletion may be lost.
    accepts_loss: bool,
    /// The logs that were deleted so, with their rooms.
    superseded: HashMap<LogId, RoomName>,
    next_log: LogId,
    newest_epoch: u64,
    /// The boot on which unsynced writes were made since the latest orderly shutdown.
    pub(super) unsynced: Option<BootId>,
}

/// The log of a room.
pub(super) struct LogState {
    pub(super) room: RoomName,
    pub(super) epoch: Epoch,
    /// When the room was created.
    pub(super) created_at: WallTime,
    pub(super) first: Sequence,
    pub(super) last: Sequence,
    /// The size of the retained records, in bytes, with their index entries.
    pub(super) bytes: u64,
    pub(super) snapshot: Option<EntryLocation>,
    /// The newest event that the snapshot covers.
    pub(super) snapshot_sequence: Sequence,
    needed_until: NeededUntil,
    /// The entry that names the room; `None` until it is written with the first append.
    pub(super) room_entry: Option<EntryLocation>,
    /// The segment with the newest trim.
    pub(super) trimmed_in: Option<u32>,
    /// The segments that have records of the log, ascending.
    segments: Vec<u32>,
    pub(super) status: RoomStatus,
    /// At most the oldest time of a record, as [`IndexEntry::at`].
    oldest_at: u32,
    /// The time of the newest record.
    pub(super) newest_at: u32,
    /// The newest gap between the records: the events before and after it.
    gap: Option<(Sequence, Sequence)>,
}

/// A segment and its garbage.
pub(super) struct SegmentState {
    pub(super) segment: Arc<Segment>,
    /// In bytes.
    pub(super) garbage: u64,
    /// Whether an entry is damaged, so that the segment cannot be rewritten.
    pub(super) is_damaged: bool,
}

impl SegmentState {
    /// The size of what the compactor must keep, in bytes.
    pub(super) fn needed(&self) -> u64 {
        u64::from(self.segment.len).saturating_sub(self.garbage)
    }

    /// Whether the compactor can rewrite the segment.
    pub(super) fn is_rewritable(&self) -> bool {
        self.segment.sealed.is_some() && !self.is_damaged
    }
}

/// Where to read records of a log from.
pub(super) struct ReadSource {
    pub(super) segment: Arc<Segment>,
    /// The index of the segment that is not sealed; that of a sealed one is read from it.
    index: Option<Vec<IndexEntry>>,
}

impl ReadSource {
    /// Returns index entries, starting with that of the record that contains `next`.
    pub(super) fn index(
        self,
        log: LogId,
        next: Sequence,
    ) -> Result<(Arc<Segment>, Vec<IndexEntry>), StoreError> {
        let index = match self.index {
            Some(index) => index,
            None => self.segment.index(log, next)?,
        };
        Ok((self.segment, index))
    }
}

impl LogState {
    pub(super) const fn new(room: RoomName, epoch: Epoch, created_at: WallTime) -> Self {
        Self {
            room,
            epoch,
            created_at,
            first: Bounds::EMPTY.first,
            last: Bounds::EMPTY.last,
            bytes: 0,
            snapshot: None,
            snapshot_sequence: Sequence::ZERO,
            needed_until: NeededUntil::UNSET,
            room_entry: None,
            trimmed_in: None,
            segments: Vec::new(),
            status: RoomStatus {
                is_occupied: false,
                has_messages: false,
            },
            oldest_at: u32::MAX,
            newest_at: 0,
            gap: None,
        }
    }

    pub(super) const fn bounds(&self) -> Bounds {
        Bounds {
            first: self.first,
            last: self.last,
        }
    }

    /// Returns the number of events.
    pub(super) const fn events(&self) -> u64 {
        (self.last.get() + 1).saturating_sub(self.first.get())
    }

    /// See [`Store::is_unused`](super::Store::is_unused).
    pub(super) fn is_unused(&self, at: WallTime) -> bool {
        let newest = WallTime::from_millis(u64::from(self.newest_at) * 1000).max(self.created_at);
        let is_needed = self.status.is_occupied || (self.status.has_messages && self.first <= self.last);
        !is_needed && self.needed_until.has_passed(at) && super::is_quiet(newest, at)
    }

    /// Whether a record may be older than `cutoff` and be removed.
    pub(super) const fn has_expired(&self, cutoff: u32) -> bool {
        self.oldest_at < cutoff && self.first.get() <= self.snapshot_sequence.get()
    }

    /// Whether a snapshot covers events that are retained.
    fn is_trimmable(&self) -> bool {
        self.first <= self.last.min(self.snapshot_sequence)
    }

    /// Notes records of a segment.
    fn extend(&mut self, segment: u32, records: &LogRecords) {
        let end = self.last.max(self.first.previous());
        if records.first > end.next() {
            self.gap = Some((end, records.first));
        }
        self.last = self.last.max(records.last);
        self.oldest_at = self.oldest_at.min(records.oldest_at);
        self.newest_at = records.newest_at;
        if self.segments.last() != Some(&segment) {
            self.segments.push(segment);
        }
    }

    fn trim(&mut self, first: Sequence, segment: u32) {
        self.trimmed_in = Some(segment);
        self.first = self.first.max(first);
        // All events may be gone, but their sequences are not used again.
        self.last = self.last.max(self.first.previous());
    }

    /// The events that are lost, as those before and after a gap.
    fn find_gap(&self) -> Option<ReplayError> {
        let gap = self.gap.filter(|(_, next)| *next > self.first);
        let unexplained_start =
            (self.snapshot_sequence < self.first.previous()).then_some((self.snapshot_sequence, self.first));
        let missing_end =
            (self.snapshot_sequence > self.last).then(|| (self.last, self.snapshot_sequence.next()));
        let (after, next) = gap.or(unexplained_start).or(missing_end)?;
        Some(ReplayError::Gap { after, next })
    }
}

impl Catalog {
    /// An empty catalog. With `accepts_loss`, the deletion of a log may be lost if a later log of the same room follows.
    pub(super) fn new(accepts_loss: bool) -> Self {
        Self {
            accepts_loss,
            ..Self::default()
        }
    }

    pub(super) fn log(&self, log: LogId) -> Result<&LogState, StoreError> {
        self.logs.get(&log).ok_or(StoreError::Failed)
    }

    /// The segment with this number, or into which it was merged.
    pub(super) fn segment(&self, number: u32) -> Option<&Arc<Segment>> {
        let (_, state) = self.segments.range(..=number).next_back()?;
        Some(&state.segment)
    }

    /// The segment that is not sealed; `None` if the directory is new.
    pub(super) fn newest(&self) -> Option<Arc<Segment>> {
        let (_, state) = self.segments.last_key_value()?;
        Some(Arc::clone(&state.segment))
    }

    /// Reads all entries and index entries of all sealed segments. Returns the first damage of each.
    ///
    /// # Errors
    ///
    /// A segment cannot be read.
    pub(super) fn find_damage(&self) -> Result<Vec<StoreError>, StoreError> {
        let mut damage = Vec::new();
        let sealed = self
            .segments
            .values()
            .filter(|state| state.segment.sealed.is_some());
        for state in sealed {
            match state.segment.verify() {
                Err(error) if error.is_damage() => damage.push(error),
                result => result?,
            }
        }
        Ok(damage)
    }

    /// The header of a new segment.
    pub(super) fn header(&self, number: u32) -> SegmentHeader {
        SegmentHeader {
            number,
            covers_to: number,
            next_log: self.next_log,
            newest_epoch: self.newest_epoch,
            unsynced: self.unsynced,
        }
    }

    /// Adds a segment without entries, or whose entries are applied next.
    pub(super) fn add_segment(&mut self, segment: Segment) -> Arc<Segment> {
        let header = segment.header;
        self.next_log = self.next_log.max(header.next_log);
        self.newest_epoch = self.newest_epoch.max(header.newest_epoch);
        self.unsynced = header.unsynced;
        self.active = Arc::default();
        let segment = Arc::new(segment);
        let state = SegmentState {
            segment: Arc::clone(&segment),
            garbage: 0,
            is_damaged: false,
        };
        self.segments.insert(header.number, state);
        segment
    }

    /// Replaces the segment that is not sealed by its sealed form and a new segment.
    pub(super) fn roll(&mut self, sealed: Segment, active: Segment) -> Arc<Segment> {
        if let Some(state) = self.segments.get_mut(&sealed.number()) {
            state.segment = Arc::new(sealed);
        }
        self.add_segment(active)
    }

    /// Notes that an entry has become garbage.
    pub(super) fn discard(&mut self, segment: u32, bytes: u64) {
        if let Some((_, state)) = self.segments.range_mut(..=segment).next_back() {
            state.garbage += bytes;
        }
    }

    /// Notes that an entry of a segment is damaged.
    pub(super) fn set_damaged(&mut self, segment: u32) {
        if let Some(state) = self.segments.get_mut(&segment) {
            state.is_damaged = true;
        }
    }

    /// The id and the epoch of a log that is created at `at`. Neither was ever used.
    pub(super) fn allocate(&mut self, at: WallTime) -> (LogId, Epoch) {
        let log = self.next_log;
        self.next_log = LogId(log.0.saturating_add(1));
        (log, self.next_epoch(at))
    }

    /// An epoch that is newer than every other.
    pub(super) fn next_epoch(&mut self, at: WallTime) -> Epoch {
        let epoch = Epoch::from_wire(self.newest_epoch)
            .map_or_else(|| Epoch::created_at(at), |newest| newest.renewed(at));
        self.newest_epoch = epoch.get();
        epoch
    }

    pub(super) fn insert(&mut self, log: LogId, state: LogState) {
        self.newest_epoch = self.newest_epoch.max(state.epoch.get());
        self.next_log = self.next_log.max(LogId(log.0.saturating_add(1)));
        self.rooms.insert(state.room.clone(), log);
        self.logs.insert(log, state);
    }

    /// Applies an entry of the segment that is not sealed.
    ///
    /// # Errors
    ///
    /// The entry cannot be where it is: the journal is damaged.
    pub(super) fn apply(
        &mut self,
        location: EntryLocation,
        header: &Header,
        body: &[u8],
    ) -> Result<(), &'static str> {
        match header.kind {
            EntryKind::Unsynced => {
                self.unsynced = Some(body.try_into().map_err(|_| "a boot id has a wrong length")?);
                return Ok(());
            }
            EntryKind::Synced => {
                self.unsynced = None;
                return Ok(());
            }
            _ => {}
        }
        Arc::make_mut(&mut self.active)
            .entry(header.log)
            .or_default()
            .add(location, header);
        let records = LogRecords::of_entry(location, header);
        let mut metadata = LogMetadata::default();
        metadata.add(location, header);
        self.apply_summary(
            location.segment,
            &LogSummary { records, metadata },
            Some((header, body)),
        )?;
        if records.count > 0 && self.logs.contains_key(&header.log) {
            self.events += u64::from(header.events);
            self.resize(header.log, |bytes| bytes + u64::from(records.bytes));
        } else {
            // A snapshot may cover more.
            self.resize(header.log, |bytes| bytes);
        }
        Ok(())
    }

    /// Applies what a segment has of a log. `room` is the entry that names the room, if the summary refers to one.
    ///
    /// # Errors
    ///
    /// The summary cannot follow what was applied before: the journal is damaged.
    pub(super) fn apply_summary(
        &mut self,
        segment: u32,
        LogSummary { records, metadata }: &LogSummary,
        room: Option<(&Header, &[u8])>,
    ) -> Result<(), &'static str> {
        let log = records.log;
        self.next_log = self.next_log.max(LogId(log.0.saturating_add(1)));
        if let (Some((header, body)), Some(location)) = (room, metadata.room) {
            self.apply_room(log, location, header, body)?;
        }
        if metadata.is_deleted {
            self.orphans.remove(&log);
            self.remove(log);
            return Ok(());
        }
        let Some(state) = self.logs.get_mut(&log) else {
            // The compactor removes the entry that names a room once its log is deleted.
            self.orphans.insert(log);
            return Ok(());
        };
        if records.count > 0 {
            state.extend(segment, records);
            state.status = metadata.status;
        }
        if let Some(first) = metadata.trimmed_to {
            state.trim(first, segment);
        }
        if let Some((location, covered)) = metadata.snapshot {
            state.snapshot_sequence = covered;
            state.needed_until = metadata.needed_until;
            if let Some(replaced) = state.snapshot.replace(location) {
                self.discard(replaced.segment, replaced.size());
            }
        }
        Ok(())
    }

    fn apply_room(
        &mut self,
        log: LogId,
        location: EntryLocation,
        header: &Header,
        body: &[u8],
    ) -> Result<(), &'static str> {
        let (epoch, name) = decode_room(body).ok_or("the entry of a room is malformed")?;
        match self.rooms.get(&name).copied() {
            Some(other) if self.accepts_loss && other < log => {
                self.remove(other);
                self.superseded.insert(other, name.clone());
            }
            Some(other) if other != log => return Err("two logs belong to the same room"),
            _ => {}
        }
        self.newest_epoch = self.newest_epoch.max(epoch.get());
        if !self.logs.contains_key(&log) {
            self.insert(log, LogState::new(name, epoch, header.at));
        }
        if let Some(state) = self.logs.get_mut(&log) {
            state.epoch = epoch;
            state.first = state.first.max(header.sequence);
            state.last = state.last.max(state.first.previous());
            state.room_entry = Some(location);
        }
        Ok(())
    }

    /// Checks the logs once everything is applied, and computes all sizes. Returns the logs that have lost events.
    ///
    /// # Errors
    ///
    /// A segment cannot be read, or its index is damaged.
    pub(super) fn finish(&mut self) -> Result<Vec<(LogId, ReplayError)>, StoreError> {
        (self.events, self.bytes) = (0, 0);
        let mut sizes: HashMap<LogId, u64> = HashMap::new();
        let mut garbage: BTreeMap<u32, u64> = BTreeMap::new();
        for (number, state) in &self.segments {
            let segment = &state.segment;
            let mut live = 0;
            let mut add = |log: LogId, size: u64| {
                live += size;
                *sizes.entry(log).or_default() += size;
            };
            match &segment.sealed {
                Some(sealed) => {
                    for records in &sealed.logs {
                        add(records.log, self.retained_size(segment, records)?);
                    }
                }
                None => {
                    for (log, index) in &*self.active {
                        let state = self.logs.get(log);
                        add(*log, state.map_or(0, |state| index.retained(state.first)));
                    }
                }
            }
            garbage.insert(*number, self.entries_size(segment).saturating_sub(live));
        }
        self.by_size.clear();
        for (log, state) in &mut self.logs {
            state.bytes = sizes.get(log).copied().unwrap_or(0);
            self.events += state.events();
            self.bytes += state.bytes;
            if state.is_trimmable() {
                self.by_size.insert((state.bytes, *log));
            }
            for location in [state.snapshot, state.room_entry].into_iter().flatten() {
                if let Some((_, garbage)) = garbage.range_mut(..=location.segment).next_back() {
                    *garbage = garbage.saturating_sub(location.size());
                }
            }
        }
        for (state, garbage) in self.segments.values_mut().zip(garbage.into_values()) {
            state.garbage = garbage;
        }
        self.restore_statuses()?;
        let lost = self
            .logs
            .iter()
            .filter_map(|(log, state)| Some((*log, state.find_gap()?)));
        Ok(lost.collect())
    }

    /// Reads the status of the logs without events from their snapshots. The records that noted it have been removed, perhaps
    /// not all of them yet.
    fn restore_statuses(&mut self) -> Result<(), StoreError> {
        for state in self.logs.values_mut().filter(|state| state.first > state.last) {
            let Some(location) = state.snapshot else { continue };
            let segment = self.segments.range(..=location.segment).next_back();
            let Some((_, SegmentState { segment, .. })) = segment else {
                continue;
            };
            let entry = segment.read_entry(location.offset, location.len);
            match entry.and_then(|entry| decode_snapshot(&entry.body)) {
                Ok(snapshot) => {
                    state.status = RoomStatus {
                        is_occupied: !snapshot.participants.is_empty(),
                        has_messages: snapshot.has_messages,
                    };
                }
                // A room that may have participants must not end.
                Err(error) if error.is_damage() => state.status.is_occupied = true,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The logs with entries whose room is not known although they were not deleted.
    pub(super) const fn orphans(&self) -> &HashSet<LogId> {
        &self.orphans
    }

    /// The logs whose deletions are lost, with their rooms, which have later logs.
    pub(super) const fn superseded(&self) -> &HashMap<LogId, RoomName> {
        &self.superseded
    }

    /// The size of the entries of a segment, in bytes, with the index entries of the records. Of the segment that is not sealed,
    /// only that of the records.
    fn entries_size(&self, segment: &Segment) -> u64 {
        match segment.sealed {
            Some(_) => segment.entries_size(),
            None => self.active.values().map(|index| index.bytes).sum(),
        }
    }

    /// The size of those records of a sealed segment that are retained.
    fn retained_size(&self, segment: &Segment, records: &LogRecords) -> Result<u64, StoreError> {
        let all = u64::from(records.bytes);
        let log = self.logs.get(&records.log);
        let Some(log) = log.filter(|log| records.last >= log.first) else {
            return Ok(0);
        };
        if records.first >= log.first {
            return Ok(all);
        }
        let (mut size, mut next) = (0, log.first);
        loop {
            let index = segment.index(records.log, next)?;
            size += index.iter().map(IndexEntry::cost).sum::<u64>();
            match index.last() {
                // There may be more. They start with the last one, which was counted.
                Some(last) if index.len() == READ_INDEX_ENTRIES as usize => {
                    next = last.first;
                    size -= last.cost();
                }
                _ => return Ok(size.min(all)),
            }
        }
    }

    /// Removes a log that was deleted. Its entries become garbage.
    fn remove(&mut self, log: LogId) {
        let Some(state) = self.logs.remove(&log) else {
            return;
        };
        if self.rooms.get(&state.room) == Some(&log) {
            self.rooms.remove(&state.room);
        }
        self.by_size.remove(&(state.bytes, log));
        self.events = self.events.saturating_sub(state.events());
        self.bytes = self.bytes.saturating_sub(state.bytes);
        for location in [state.snapshot, state.room_entry].into_iter().flatten() {
            self.discard(location.segment, location.size());
        }
        // Of the oldest segment with retained records, some may have been removed before.
        let mut retained = state.bytes;
        for number in state.segments.iter().rev() {
            let in_segment = self
                .records(*number, log)
                .map_or(0, |records| records.bytes.into());
            let bytes = retained.min(in_segment);
            self.discard(*number, bytes);
            retained -= bytes;
        }
    }

    /// Changes the size of a log, which may have other records to trim than before.
    pub(super) fn resize(&mut self, log: LogId, change: impl FnOnce(u64) -> u64) {
        if let Some(state) = self.logs.get_mut(&log) {
            self.by_size.remove(&(state.bytes, log));
            let before = state.bytes;
            state.bytes = change(before);
            self.bytes = self.bytes.saturating_sub(before) + state.bytes;
            if state.is_trimmable() {
                self.by_size.insert((state.bytes, log));
            }
        }
    }

    /// Notes that nothing of a log can be trimmed until it changes.
    pub(super) fn set_untrimmable(&mut self, log: LogId) {
        if let Some(state) = self.logs.get(&log) {
            self.by_size.remove(&(state.bytes, log));
        }
    }

    /// Removes the numbers of the segments that have no retained records of a log any more.
    pub(super) fn forget_segments(&mut self, log: LogId) {
        let Some(state) = self.logs.get(&log) else { return };
        let is_before = |number: &u32| self.is_before(*number, log, state.first);
        let before = state.segments.partition_point(is_before);
        if let Some(state) = self.logs.get_mut(&log) {
            state.segments.drain(..before);
        }
        // The segment of the oldest retained record may have older ones.
        let oldest_at = self.oldest_in(log, 0);
        if let Some(state) = self.logs.get_mut(&log) {
            state.oldest_at = oldest_at;
        }
    }

    /// Notes that `oldest_at` is the time of the oldest retained record of `log` in `segment`, which has its first ones.
    pub(super) fn set_oldest(&mut self, log: LogId, segment: &Segment, oldest_at: u32) {
        let oldest_at = oldest_at.min(self.oldest_in(log, segment.header.covers_to + 1));
        if let Some(state) = self.logs.get_mut(&log) {
            state.oldest_at = oldest_at;
        }
    }

    /// The oldest time of a record of `log` in the segments from the number `from`.
    fn oldest_in(&self, log: LogId, from: u32) -> u32 {
        let numbers = self.logs.get(&log).into_iter().flat_map(|state| &state.segments);
        let records = numbers.filter(|number| **number >= from);
        let records = records.filter_map(|number| self.records(*number, log));
        records.map(|records| records.oldest_at).min().unwrap_or(u32::MAX)
    }

    /// The records of `log` in a segment, if there are any.
    fn records(&self, number: u32, log: LogId) -> Option<LogRecords> {
        let segment = self.segment(number)?;
        let records = match segment.sealed {
            Some(_) => segment.log(log).copied(),
            None => self.active.get(&log).map(|index| index.records(log, 0)),
        };
        records.filter(|records| records.count > 0)
    }

    /// Whether the segment has only records of `log` before `next`.
    fn is_before(&self, number: u32, log: LogId, next: Sequence) -> bool {
        self.records(number, log)
            .is_none_or(|records| records.last < next)
    }

    /// The first event of `log` in its newest segment with a record that is older than `cutoff`.
    pub(super) fn newest_expired(&self, log: LogId, cutoff: u32) -> Option<Sequence> {
        let numbers = self.logs.get(&log)?.segments.iter().rev();
        let mut records = numbers.filter_map(|number| self.records(*number, log));
        Some(records.find(|records| records.oldest_at < cutoff)?.first)
    }

    /// Where the record with the event `next` is, or the first record after it. `None` if the log ends before `next`.
    pub(super) fn locate(&self, log: LogId, next: Sequence) -> Option<ReadSource> {
        let state = self.logs.get(&log)?;
        if next > state.last {
            return None;
        }
        let next = next.max(state.first);
        let before = state
            .segments
            .partition_point(|number| self.is_before(*number, log, next));
        let segment = Arc::clone(self.segment(*state.segments.get(before)?)?);
        let index = segment
            .sealed
            .is_none()
            .then(|| self.active_index(log, next).to_vec());
        Some(ReadSource { segment, index })
    }

    /// Index entries of the segment that is not sealed, starting with that of the record that contains `next`.
    fn active_index(&self, log: LogId, next: Sequence) -> &[IndexEntry] {
        let index = self
            .active
            .get(&log)
            .map_or(&[][..], |index| index.entries.as_slice());
        let from = index
            .partition_point(|indexed| indexed.first <= next)
            .saturating_sub(1);
        let upto = index.len().min(from + READ_INDEX_ENTRIES as usize);
        index.get(from..upto).unwrap_or_default()
    }

    /// What the sealed segments have that is needed, and their garbage, in bytes.
    pub(super) fn disk_usage(&self) -> (u64, u64) {
        let sealed = self
            .segments
            .values()
            .filter(|state| state.segment.sealed.is_some());
        sealed.fold((0, 0), |(needed, garbage), state| {
            (needed + state.needed(), garbage + state.garbage)
        })
    }

    /// Whether the compactor must keep an entry of a sealed segment that covers the segments up to `covers_to`, when it
    /// rewrites a run of segments that starts with `run_start`.
    pub(super) fn is_needed(
        &self,
        location: EntryLocation,
        header: &Header,
        covers_to: u32,
        run_start: u32,
    ) -> bool {
        let log = self.logs.get(&header.log);
        match header.kind {
            EntryKind::Record => log.is_some_and(|log| header.last() >= log.first),
            EntryKind::Snapshot => log.is_some_and(|log| log.snapshot == Some(location)),
            // All of them are kept, so that the room of each record is known before the record.
            EntryKind::Room => log.is_some(),
            EntryKind::Trim => log.is_some_and(|log| {
                let is_here = log
                    .trimmed_in
                    .is_some_and(|number| (location.segment..=covers_to).contains(&number));
                is_here && header.sequence == log.first
            }),
            // Without it, older entries would bring the log back. Those in the run are removed.
            EntryKind::Deletion => {
                let mut older = self.segments.range(..run_start);
                older.any(|(_, state)| state.segment.log(header.log).is_some())
            }
            // The header of the newest segment says it.
            EntryKind::Unsynced | EntryKind::Synced => false,
        }
    }

    /// Puts a rewritten segment in the place of those that it covers. Some of it may have become garbage while it was written.
    pub(super) fn replace(&mut self, segment: Segment, index: &SegmentIndex) {
        let (number, covers_to) = (segment.number(), segment.header.covers_to);
        let is_covered = |number: u32| (segment.number()..=covers_to).contains(&number);
        let mut garbage = 0;
        for (log, index) in index {
            let Some(state) = self.logs.get_mut(log) else {
                garbage += index.bytes;
                continue;
            };
            garbage += index.bytes - index.retained(state.first);
            let is_moved = |location: &EntryLocation| is_covered(location.segment);
            let snapshot = index.metadata().snapshot.map(|(location, _)| location);
            if state.snapshot.as_ref().is_some_and(is_moved) {
                state.snapshot = snapshot;
            } else {
                garbage += snapshot.map_or(0, |replaced| replaced.size());
            }
            if state.room_entry.as_ref().is_some_and(is_moved) {
                state.room_entry = index.metadata().room;
            }
            for covered in state.segments.iter_mut().filter(|number| is_covered(**number)) {
                *covered = number;
            }
            state.segments.dedup();
        }
        self.segments.retain(|other, _| !is_covered(*other));
        let segment = Arc::new(segment);
        let state = SegmentState {
            segment,
            garbage,
            is_damaged: false,
        };
        self.segments.insert(number, state);
    }
}

/// The body of the entry that names a room.
pub(super) fn encode_room(epoch: Epoch, room: &RoomName) -> Vec<u8> {
    [&epoch.get().to_be_bytes(), room.as_str().as_bytes()].concat()
}

fn decode_room(body: &[u8]) -> Option<(Epoch, RoomName)> {
    let (epoch, name) = body.split_first_chunk()?;
    let name = std::str::from_utf8(name).ok()?;
    Some((
        Epoch::from_wire(u64::from_be_bytes(*epoch))?,
        RoomName::try_from(name).ok()?,
    ))
}
