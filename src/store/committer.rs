//! Commits appends to the database and applies retention.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fjall::{OwnedWriteBatch, PersistMode};
use parking_lot::Mutex;
use tracing::error;

use super::anchors::Anchors;
use super::directory::Directory;
use super::log_stats::LogStats;
use super::tables::{Tables, decode_record_key, record_key};
use super::watermarks::HighWatermarks;
use super::{Append, LogId, Record, Retention, StoreError, decode_snapshot};
use crate::failpoint;

/// Observes a store. Called on the writer thread, so its methods must not block.
pub trait Observer: Send + Sync + 'static {
    /// Called after each commit. `took` is the time to write the commit and to make it as durable as configured.
    fn committed(&self, took: Duration);
}

impl<F: Fn(Duration) + Send + Sync + 'static> Observer for F {
    fn committed(&self, took: Duration) {
        self(took);
    }
}

/// A limit may be exceeded by 1/`SLACK_DIVISOR` of itself before records are removed, so that most commits remove none.
const SLACK_DIVISOR: u64 = 16;

/// The maximum number of records that one commit removes from a log, so that a lowered limit does not block the writer.
const MAX_REMOVED_RECORDS: usize = 4_096;

/// The maximum number of logs that one commit trims to enforce the limit of the total size.
const MAX_TRIMMED_LOGS: usize = 16;

/// If a write fails while fewer bytes than this are free, the disk is reported as full.
const DISK_FULL_BELOW: u64 = 1 << 20;

/// The state of the writer thread.
pub(super) struct Committer {
    directory: Arc<Directory>,
    anchors: Anchors,
    tables: Tables,
    watermarks: HighWatermarks,
    retention: Retention,
    /// Shared with [`DiskStore`](super::DiskStore), which reads the bounds of logs from it.
    stats: Arc<Mutex<HashMap<LogId, LogStats>>>,
    observer: Arc<dyn Observer>,
    /// The size of the encoded records of all logs, in bytes.
    total: u64,
    /// The total size, in bytes, from which on the largest logs are trimmed.
    evict_at: u64,
    has_failed: bool,
}

impl Committer {
    pub(super) fn new(
        directory: Arc<Directory>,
        anchors: Anchors,
        tables: Tables,
        watermarks: HighWatermarks,
        retention: Retention,
        stats: Arc<Mutex<HashMap<LogId, LogStats>>>,
        observer: Arc<dyn Observer>,
    ) -> Self {
        let total = stats.lock().values().map(|stats| stats.bytes).sum();
        Self {
            directory,
            anchors,
            tables,
            watermarks,
            stats,
            observer,
            total,
            evict_at: with_slack(retention.max_total_bytes),
            retention,
            has_failed: false,
        }
    }

    /// Returns the logs that may contain expired events.
    pub(super) fn logs_to_expire(&self) -> Vec<LogId> {
        match self.retention.max_age {
            Some(_) => self.stats.lock().keys().copied().collect(),
            None => Vec::new(),
        }
    }

    /// Commits `appends` as one batch. Blocks until the batch is as durable as configured.
    ///
    /// # Errors
    ///
    /// After the first error every later call fails too, because the content of the disk is then unknown.
    pub(super) fn commit(&mut self, appends: Vec<(LogId, Append)>) -> Result<(), StoreError> {
        if self.has_failed {
            return Err(StoreError::Failed);
        }
        self.try_commit(appends).inspect_err(|error| {
            self.has_failed = true;
            error!(event = "store_failed", %error, "the store failed; nothing is acknowledged any more");
        })
    }

    fn try_commit(&mut self, appends: Vec<(LogId, Append)>) -> Result<(), StoreError> {
        let mut batch = self.tables.db.batch();
        let mut changed: HashMap<LogId, LogStats> = HashMap::new();
        for (log, append) in appends {
            let mut stats = match changed.get(&log) {
                Some(stats) => *stats,
                None => self.stats.lock().get(&log).copied().ok_or(StoreError::Failed)?,
            };
            self.total -= stats.bytes;
            self.add(log, append, &mut stats, &mut batch)?;
            self.apply_retention(log, &mut stats, &mut batch)?;
            self.total += stats.bytes;
            changed.insert(log, stats);
        }
        if self.total >= self.evict_at {
            self.evict_largest(&mut changed, &mut batch)?;
        }
        if batch.is_empty() {
            return Ok(());
        }
        let started = Instant::now();
        self.write(batch).map_err(|error| self.describe_failure(&error))?;
        self.observer.committed(started.elapsed());
        self.anchors.check(&self.directory)?;
        self.raise_watermarks(&changed)?;
        self.stats.lock().extend(changed);
        Ok(())
    }

    /// Adds the records and the snapshot of one append to the batch.
    fn add(
        &self,
        log: LogId,
        append: Append,
        stats: &mut LogStats,
        batch: &mut OwnedWriteBatch,
    ) -> Result<(), StoreError> {
        for record in append.records {
            let value = record.encode();
            stats.bytes += value.len() as u64;
            stats.last = record.last();
            let key = record_key(log, record.first);
            batch.insert(&self.tables.records, key, value.to_vec());
        }
        if let Some(snapshot) = append.snapshot {
            stats.snapshot = decode_snapshot(&snapshot)?.last;
            batch.insert(&self.tables.snapshots, log.0.to_be_bytes(), snapshot.to_vec());
        }
        Ok(())
    }

    /// Writes a batch and makes it as durable as configured.
    fn write(&self, batch: OwnedWriteBatch) -> fjall::Result<()> {
        let mode = self.tables.durability.mode();
        if !failpoint::ENABLED {
            return batch.durability(Some(mode)).commit();
        }
        // In two steps, so that a crash can happen between them.
        failpoint::hit("before-write");
        if failpoint::is_enabled("skip-sync") {
            return batch.durability(None).commit();
        }
        batch.durability(Some(PersistMode::Buffer)).commit()?;
        failpoint::hit("before-sync");
        if failpoint::is_enabled("slow-sync") {
            std::thread::sleep(Duration::from_millis(50));
        }
        if failpoint::fails("before-sync") {
            return Err(io::Error::other("simulated disk failure").into());
        }
        self.tables.db.persist(mode)?;
        failpoint::hit("after-sync");
        Ok(())
    }

    /// Raises the watermarks of the changed logs to their ends. Called once the commit is durable.
    fn raise_watermarks(&self, changed: &HashMap<LogId, LogStats>) -> Result<(), StoreError> {
        if failpoint::is_enabled("skip-sync") {
            return Ok(());
        }
        for (log, stats) in changed {
            self.watermarks
                .set(*log, stats.last)
                .map_err(|error| StoreError::Database(format!("cannot write `heads`: {error}")))?;
        }
        Ok(())
    }

    fn describe_failure(&self, error: &fjall::Error) -> StoreError {
        let why = match error {
            fjall::Error::Io(error) => error.to_string(),
            // The database does not keep the error of the background write that failed.
            fjall::Error::Poisoned => "the database has stopped after a failed background write".into(),
            error => error.to_string(),
        };
        let full = match self.directory.available() {
            Some(available) if available < DISK_FULL_BELOW => {
                format!(" (the disk is full: {available} bytes are free)")
            }
            _ => String::new(),
        };
        let path = self.directory.path().display();
        StoreError::Database(format!("cannot write in {path}: {why}{full}"))
    }

    /// Removes the oldest records of `log` that exceed its limits, as far as its snapshot covers them.
    fn apply_retention(
        &self,
        log: LogId,
        stats: &mut LogStats,
        batch: &mut OwnedWriteBatch,
    ) -> Result<(), StoreError> {
        let Retention {
            max_events,
            max_bytes,
            ..
        } = self.retention;
        let cutoff = self.retention.cutoff();
        let exceeds_slack = stats.events() > with_slack(max_events) || stats.bytes > with_slack(max_bytes);
        if !exceeds_slack && cutoff.is_none() {
            return Ok(());
        }
        self.remove_while(log, stats, batch, |stats, oldest| {
            stats.events() > max_events
                || stats.bytes > max_bytes
                || cutoff.is_some_and(|cutoff| oldest.is_older_than(cutoff))
        })
    }

    /// Removes the oldest records of the largest logs until the total size is within its limit, as far as snapshots cover
    /// them.
    fn evict_largest(
        &mut self,
        changed: &mut HashMap<LogId, LogStats>,
        batch: &mut OwnedWriteBatch,
    ) -> Result<(), StoreError> {
        let limit = self.retention.max_total_bytes;
        let mut logs = self.stats.lock().clone();
        logs.extend(changed.iter().map(|(log, stats)| (*log, *stats)));
        let mut logs: Vec<(LogId, LogStats)> = logs.into_iter().collect();
        logs.sort_unstable_by_key(|(log, stats)| (Reverse(stats.bytes), *log));
        for (log, mut stats) in logs.into_iter().take(MAX_TRIMMED_LOGS) {
            let others = self.total - stats.bytes;
            self.remove_while(log, &mut stats, batch, |stats, _| others + stats.bytes > limit)?;
            self.total = others + stats.bytes;
            changed.insert(log, stats);
        }
        // If snapshots do not cover enough to reach the limit, do not try again at every commit.
        self.evict_at = self.total.max(limit).saturating_add(limit / SLACK_DIVISOR);
        Ok(())
    }

    /// Removes the oldest records of `log` while `should_remove` returns true and its snapshot covers them. The newest record
    /// always stays, because a start reads the last sequence of the log from it.
    fn remove_while(
        &self,
        log: LogId,
        stats: &mut LogStats,
        batch: &mut OwnedWriteBatch,
        should_remove: impl Fn(&LogStats, &Record) -> bool,
    ) -> Result<(), StoreError> {
        let range = record_key(log, stats.first)..=record_key(log, stats.snapshot);
        let first_before = stats.first;
        for entry in self.tables.records.range(range).take(MAX_REMOVED_RECORDS) {
            let (key, value) = entry.into_inner()?;
            let record = Record::decode(decode_record_key(&key)?, value.to_vec().into())?;
            let is_removable = record.last() <= stats.snapshot && record.last() < stats.last;
            if !is_removable || !should_remove(stats, &record) {
                break;
            }
            stats.first = record.last().next();
            stats.bytes = stats.bytes.saturating_sub(value.len() as u64);
            batch.remove(&self.tables.records, key.to_vec());
        }
        if stats.first > first_before {
            self.tables.put_first_sequence(batch, log, stats.first);
        }
        Ok(())
    }
}

const fn with_slack(limit: u64) -> u64 {
    limit.saturating_add(limit / SLACK_DIVISOR)
}
