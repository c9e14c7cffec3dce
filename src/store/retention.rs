//! Retention: how much of the logs is kept, and which records are removed to keep to it.

use std::collections::HashSet;
use std::time::Duration;

use parking_lot::Mutex;
use tracing::warn;

use super::catalog::Catalog;
use super::segment::READ_INDEX_ENTRIES;
use super::segment_index::{IndexEntry, seconds};
use super::{LogId, StoreError};
use crate::domain::{Sequence, WallTime};
use crate::wall_clock::wall_time;

/// The limits of a log may be exceeded by 1/`SLACK_DIVISOR` of themselves before records are removed, so that most commits remove none.
const SLACK_DIVISOR: u64 = 16;

/// The total size keeps to its limit. Once it is reached, 1/`TOTAL_SLACK_DIVISOR` of it is removed: little enough that the compactor keeps
/// up with what becomes garbage at once.
const TOTAL_SLACK_DIVISOR: u64 = 128;

/// The maximum number of records that are removed from a log at a time, so that a lowered limit does not block the writer.
const MAX_REMOVED_RECORDS: usize = 4_096;

/// The maximum number of logs that are trimmed at a time to keep to a limit that concerns all.
const MAX_TRIMMED_LOGS: usize = 16;

/// The maximum number of logs that are found to have nothing to trim at a time. They are not tried again before they change.
const MAX_UNTRIMMABLE_LOGS: usize = 256;

/// How much of each room's log is kept. The oldest records are removed once any of these limits is exceeded, as far as a
/// snapshot covers them. Only age removes the newest record of a log, and only on disk. A store on disk lets the events and bytes of a log exceed
/// their limits by 1/16 before it removes any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// The maximum number of events per log.
    pub max_events: u64,
    /// The maximum size of a log, in bytes.
    pub max_bytes: u64,
    /// The maximum age of an event, measured from its broadcast; `None` means unlimited.
    pub max_age: Option<Duration>,
    /// The maximum size of all logs together, in bytes. The largest logs are trimmed first, and lose at most half at a time.
    pub max_total_bytes: u64,
}

/// The removal of the oldest records of a log.
pub(super) struct Trim {
    pub(super) log: LogId,
    /// The first event that is retained.
    pub(super) first: Sequence,
    events: u64,
    bytes: u64,
    /// The size of the removed records in each segment.
    by_segment: Vec<(u32, u64)>,
}

impl Trim {
    /// Updates the sizes, once the trim is applied.
    pub(super) fn account(&self, catalog: &mut Catalog) {
        for (segment, bytes) in &self.by_segment {
            catalog.discard(*segment, *bytes);
        }
        catalog.events = catalog.events.saturating_sub(self.events);
        catalog.resize(self.log, |bytes| bytes.saturating_sub(self.bytes));
        catalog.forget_segments(self.log);
    }
}

impl Retention {
    /// The defaults of an in-memory store.
    pub const IN_MEMORY: Self = Self {
        max_events: 100_000,
        max_bytes: 32 << 20,
        max_age: None,
        max_total_bytes: 256 << 20,
    };

    /// The defaults of a store on disk.
    pub const ON_DISK: Self = Self {
        max_events: 1_000_000,
        max_bytes: 256 << 20,
        max_age: None,
        max_total_bytes: 8 << 30,
    };

    /// Returns the time before which broadcasts have expired, or `None` if age is unlimited.
    pub(super) fn cutoff(&self) -> Option<WallTime> {
        let max_age = u64::try_from(self.max_age?.as_millis()).unwrap_or(u64::MAX);
        let cutoff = wall_time().as_millis().saturating_sub(max_age);
        Some(WallTime::from_millis(cutoff))
    }

    /// How many bytes a log may grow without a new snapshot, so that enough can be removed to keep to the limits: a quarter of
    /// the total size, divided among all rooms.
    pub(super) fn snapshot_interval(&self, rooms: usize) -> u64 {
        let share = self.max_total_bytes / 4 / (rooms.max(1) as u64);
        share.min(self.max_bytes / 4).clamp(16 << 10, 8 << 20)
    }

    /// Plans what to remove from a log that exceeds its limits.
    pub(super) fn plan(&self, catalog: &Mutex<Catalog>, log: LogId) -> Option<Trim> {
        let (events, bytes) = {
            let catalog = catalog.lock();
            let state = catalog.logs.get(&log)?;
            (state.events(), state.bytes)
        };
        if events <= with_slack(self.max_events) && bytes <= with_slack(self.max_bytes) {
            return self.plan_log_expiry(catalog, log);
        }
        let excess_events = events.saturating_sub(self.max_events);
        let excess_bytes = bytes.saturating_sub(self.max_bytes);
        let trim = plan_trim(catalog, log, true, |trim, _| {
            trim.events < excess_events || trim.bytes < excess_bytes
        });
        trim.or_else(|| self.plan_log_expiry(catalog, log))
    }

    /// The size to which all logs together are trimmed if they exceed their limit, in bytes.
    pub(super) const fn trim_target(&self) -> u64 {
        self.max_total_bytes - self.max_total_bytes / TOTAL_SLACK_DIVISOR
    }

    /// Plans what to remove from the largest logs if all together are too large. What is still too much is planned next time.
    pub(super) fn plan_total(&self, catalog: &Mutex<Catalog>, trims: &mut Vec<Trim>) {
        let total = catalog.lock().bytes;
        if total <= self.max_total_bytes {
            return;
        }
        let planned_bytes: u64 = trims.iter().map(|trim| trim.bytes).sum();
        let mut excess = total.saturating_sub(self.trim_target() + planned_bytes);
        // A log that is trimmed for its own limits already is trimmed further next time.
        let planned: HashSet<LogId> = trims.iter().map(|trim| trim.log).collect();
        let (mut trimmed, mut untrimmable) = (0, 0);
        let mut below = (u64::MAX, LogId(u32::MAX));
        while excess > 0 && trimmed < MAX_TRIMMED_LOGS && untrimmable < MAX_UNTRIMMABLE_LOGS {
            let next = catalog.lock().by_size.range(..below).next_back().copied();
            let Some((size, log)) = next else { return };
            below = (size, log);
            if planned.contains(&log) {
                continue;
            }
            let share = bytes_to_trim(size, excess);
            match plan_trim(catalog, log, true, |trim, _| trim.bytes < share) {
                Some(trim) => {
                    trimmed += 1;
                    excess = excess.saturating_sub(trim.bytes);
                    trims.push(trim);
                }
                None => {
                    untrimmable += 1;
                    catalog.lock().set_untrimmable(log);
                }
            }
        }
    }

    /// Plans the removal of expired events of the first logs after `after` that have any. Returns the last of them if there may
    /// be more.
    pub(super) fn plan_expiry(
        &self,
        catalog: &Mutex<Catalog>,
        after: Option<LogId>,
        trims: &mut Vec<Trim>,
    ) -> Option<LogId> {
        let cutoff = self.cutoff().map(seconds)?;
        let mut expired: Vec<LogId> = {
            let catalog = catalog.lock();
            let logs = catalog.logs.iter();
            let expired = logs.filter(|(log, state)| Some(**log) > after && state.has_expired(cutoff));
            expired.map(|(log, _)| *log).collect()
        };
        expired.sort_unstable();
        let last = expired.get(MAX_TRIMMED_LOGS - 1).copied();
        for log in expired.into_iter().take(MAX_TRIMMED_LOGS) {
            if trims.iter().all(|trim| trim.log != log) {
                trims.extend(self.plan_log_expiry(catalog, log));
            }
        }
        last
    }

    /// Plans the removal of the events up to the newest expired one. Events before it have been there for longer, even if the
    /// clock was ahead when they were broadcast.
    fn plan_log_expiry(&self, catalog: &Mutex<Catalog>, log: LogId) -> Option<Trim> {
        let cutoff = self.cutoff().map(seconds)?;
        let from = {
            let catalog = catalog.lock();
            catalog.logs.get(&log).filter(|state| state.has_expired(cutoff))?;
            catalog.newest_expired(log, cutoff)?
        };
        let newest_expired =
            find_expired(catalog, log, from, cutoff).unwrap_or_else(|error| report(log, &error))?;
        plan_trim(catalog, log, false, |_, indexed| indexed.first <= newest_expired)
    }
}

/// Returns the first event of the newest record that is older than `cutoff` in the segment with the event `from`. If none is,
/// the segment has expired records only in what was removed before, which is then noted.
fn find_expired(
    catalog: &Mutex<Catalog>,
    log: LogId,
    from: Sequence,
    cutoff: u32,
) -> Result<Option<Sequence>, StoreError> {
    let (mut newest_expired, mut oldest_at, mut next) = (None, u32::MAX, from);
    while let Some(source) = locate(catalog, log, next) {
        let (segment, index) = source.index(log, next)?;
        let expired = index.iter().rev().find(|indexed| indexed.at < cutoff);
        newest_expired = expired.map(|indexed| indexed.first).or(newest_expired);
        let oldest = index.iter().map(|indexed| indexed.at).min();
        oldest_at = oldest_at.min(oldest.unwrap_or(u32::MAX));
        match index.last() {
            Some(last) if last.first > next => next = last.first,
            _ => {
                if newest_expired.is_none() {
                    catalog.lock().set_oldest(log, &segment, oldest_at);
                }
                break;
            }
        }
    }
    Ok(newest_expired)
}

/// Reports that nothing can be removed from a log.
fn report<T>(log: LogId, error: &StoreError) -> Option<T> {
    warn!(event = "retention_failed", log = log.0, %error, "old events cannot be removed");
    None
}

fn locate(catalog: &Mutex<Catalog>, log: LogId, next: Sequence) -> Option<super::catalog::ReadSource> {
    catalog.lock().locate(log, next)
}

/// Plans the removal of the oldest records of `log`, while `should_remove` returns true for what is planned so far and the next
/// record, and a snapshot covers the record. With `keeps_newest`, the newest record is not removed.
fn plan_trim(
    catalog: &Mutex<Catalog>,
    log: LogId,
    keeps_newest: bool,
    should_remove: impl Fn(&Trim, &IndexEntry) -> bool,
) -> Option<Trim> {
    let planned = try_plan_trim(catalog, log, keeps_newest, should_remove);
    planned.unwrap_or_else(|error| report(log, &error))
}

fn try_plan_trim(
    catalog: &Mutex<Catalog>,
    log: LogId,
    keeps_newest: bool,
    should_remove: impl Fn(&Trim, &IndexEntry) -> bool,
) -> Result<Option<Trim>, StoreError> {
    let (first, last, covered) = match catalog.lock().logs.get(&log) {
        Some(state) => (state.first, state.last, state.snapshot_sequence),
        None => return Ok(None),
    };
    let end = last.next();
    let removable = if keeps_newest {
        covered.min(last.previous())
    } else {
        covered
    };
    let mut trim = Trim {
        log,
        first,
        events: 0,
        bytes: 0,
        by_segment: Vec::new(),
    };
    let mut removed = 0;
    while let Some(source) = locate(catalog, log, trim.first) {
        let (segment, index) = source.index(log, trim.first)?;
        let segment_end = segment.log(log).map_or(end, |records| records.last.next());
        // A record ends where the next one starts. If more may follow, the end of the last one is not known yet.
        let has_all = index.len() < READ_INDEX_ENTRIES as usize;
        let ends = index.iter().skip(1).map(|indexed| indexed.first);
        let ends = ends.chain(has_all.then_some(segment_end));
        let (before, mut bytes) = (trim.first, 0);
        for (indexed, next) in index.iter().zip(ends) {
            let is_removable = next.previous() <= removable && removed < MAX_REMOVED_RECORDS;
            if !is_removable || !should_remove(&trim, indexed) {
                removed = MAX_REMOVED_RECORDS;
                break;
            }
            removed += 1;
            trim.events += next.get() - trim.first.get();
            trim.first = next;
            trim.bytes += indexed.cost();
            bytes += indexed.cost();
        }
        if bytes > 0 {
            trim.by_segment.push((segment.number(), bytes));
        }
        if removed >= MAX_REMOVED_RECORDS || trim.first == before {
            break;
        }
    }
    Ok((trim.first > first).then_some(trim))
}

/// How much of a log of `size` bytes is removed if all logs together have `excess` bytes too many: at most half, so that the next
/// largest ones lose some, too.
pub(super) fn bytes_to_trim(size: u64, excess: u64) -> u64 {
    excess.min(size.div_ceil(2))
}

const fn with_slack(limit: u64) -> u64 {
    limit.saturating_add(limit / SLACK_DIVISOR)
}
