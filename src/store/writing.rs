//! The appends of one commit, made durable.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use fjall::OwnedWriteBatch;
use tracing::error;

use super::anchors::Anchors;
use super::directory::Directory;
use super::heads::Heads;
use super::kept::Kept;
use super::layout::{record_key, record_place};
use super::observer::Observer;
use super::tables::Tables;
use super::{Append, LogId, Record, Retention, StoreError, decode_snapshot};

/// Records are let go in portions of at least this share of what may be kept, so that most appends need not look.
const PORTION: u64 = 16;

/// The most records that one commit lets go of from a log, so that a changed limit does not stop the writer for long.
const LET_GO_AT_ONCE: usize = 4_096;

/// The most logs that one commit lets give way to the others.
const GIVE_WAY_AT_ONCE: usize = 16;

/// Where fewer bytes are free than this, a failure is that of a full disk.
const FULL: u64 = 1 << 20;

/// Commits appends, and lets go of what is beyond the limits.
pub(super) struct Writing {
    directory: Arc<Directory>,
    anchors: Anchors,
    tables: Tables,
    heads: Heads,
    retention: Retention,
    /// The bytes of all logs.
    total: u64,
    /// From how many on the largest logs give way.
    give_way_at: u64,
    /// What is kept of each log: shared with those who ask for its bounds.
    kept: Arc<Mutex<HashMap<LogId, Kept>>>,
    observer: Arc<dyn Observer>,
    has_failed: bool,
}

impl Writing {
    pub(super) fn new(
        directory: Arc<Directory>,
        anchors: Anchors,
        tables: Tables,
        heads: Heads,
        retention: Retention,
        kept: Arc<Mutex<HashMap<LogId, Kept>>>,
        observer: Arc<dyn Observer>,
    ) -> Self {
        let total = lock(&kept).values().map(|kept| kept.bytes).sum();
        let limit = retention.total_bytes;
        Self {
            directory,
            anchors,
            tables,
            heads,
            retention,
            total,
            give_way_at: limit.saturating_add(limit / PORTION),
            kept,
            observer,
            has_failed: false,
        }
    }

    /// The logs that may have what is too old.
    pub(super) fn aging(&self) -> impl Iterator<Item = LogId> + use<> {
        let logs = match self.retention.expired() {
            Some(_) => self.lock().keys().copied().collect(),
            None => Vec::new(),
        };
        logs.into_iter()
    }

    /// Writes `appends` in one commit. Waits for the disk.
    ///
    /// # Errors
    ///
    /// When one write or sync has failed, now or before: nobody knows what is on the disk then, so nothing more is written.
    pub(super) fn write(&mut self, appends: Vec<(LogId, Append)>) -> Result<(), StoreError> {
        if self.has_failed {
            return Err(StoreError::Failed);
        }
        self.try_write(appends).inspect_err(|error| {
            self.has_failed = true;
            error!(event = "store_failed", %error, "the store failed; nothing more is acknowledged");
        })
    }

    fn try_write(&mut self, appends: Vec<(LogId, Append)>) -> Result<(), StoreError> {
        let mut batch = self.tables.db.batch();
        let mut changed: HashMap<LogId, Kept> = HashMap::new();
        for (log, Append { records, snapshot }) in appends {
            let mut kept = match changed.get(&log) {
                Some(kept) => *kept,
                None => self.kept(log)?,
            };
            self.total -= kept.bytes;
            for record in records {
                let value = record.encode();
                kept.bytes += value.len() as u64;
                kept.last = record.last();
                batch.insert(
                    &self.tables.records,
                    record_key(log, record.first),
                    value.to_vec(),
                );
            }
            if let Some(snapshot) = snapshot {
                kept.snapshot = decode_snapshot(&snapshot)?.last;
                batch.insert(&self.tables.snapshots, log.0.to_be_bytes(), snapshot.to_vec());
            }
            self.let_go(log, &mut kept, &mut batch)?;
            self.total += kept.bytes;
            changed.insert(log, kept);
        }
        if self.total >= self.give_way_at {
            self.let_give_way(&mut changed, &mut batch)?;
        }
        if batch.is_empty() {
            return Ok(());
        }
        let begun = Instant::now();
        self.commit(batch).map_err(|error| self.explain(&error))?;
        self.observer.committed(begun.elapsed());
        self.anchors.check(&self.directory)?;
        self.note(&changed)?;
        self.lock().extend(changed);
        Ok(())
    }

    /// Notes how far the logs are, now that it is durable.
    fn note(&self, changed: &HashMap<LogId, Kept>) -> Result<(), StoreError> {
        #[cfg(feature = "failpoints")]
        if crate::failpoint::is_on("skip-sync") {
            return Ok(());
        }
        for (log, kept) in changed {
            let noted = self.heads.note(*log, kept.last);
            noted.map_err(|error| StoreError::Database(format!("cannot write `heads`: {error}")))?;
        }
        Ok(())
    }

    /// Writes a batch, and makes it durable.
    #[cfg(not(feature = "failpoints"))]
    fn commit(&self, batch: OwnedWriteBatch) -> fjall::Result<()> {
        batch.durability(Some(self.tables.durability.mode())).commit()
    }

    /// The same in two steps, to crash in between.
    #[cfg(feature = "failpoints")]
    fn commit(&self, batch: OwnedWriteBatch) -> fjall::Result<()> {
        use crate::failpoint::{fails, is_on, pass};

        pass("before-write");
        if is_on("skip-sync") {
            return batch.durability(None).commit();
        }
        batch.durability(Some(fjall::PersistMode::Buffer)).commit()?;
        pass("before-sync");
        if is_on("slow-sync") {
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        if fails("before-sync") {
            return Err(std::io::Error::other("the disk fails on request").into());
        }
        self.tables.db.persist(self.tables.durability.mode())?;
        pass("after-sync");
        Ok(())
    }

    /// Why a commit failed.
    fn explain(&self, error: &fjall::Error) -> StoreError {
        let why = match error {
            fjall::Error::Io(error) => error.to_string(),
            // Of what failed in the background, the writing of a table, the database says nothing else.
            fjall::Error::Poisoned => {
                "the database has stopped after a write that failed in the background".into()
            }
            error => error.to_string(),
        };
        let full = match self.directory.available() {
            Some(available) if available < FULL => format!(" (the disk is full: {available} bytes are free)"),
            _ => String::new(),
        };
        let path = self.directory.path().display();
        StoreError::Database(format!("cannot write in {path}: {why}{full}"))
    }

    /// What is kept of `log`, which was counted or made.
    fn kept(&self, log: LogId) -> Result<Kept, StoreError> {
        self.lock().get(&log).copied().ok_or(StoreError::Failed)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<LogId, Kept>> {
        lock(&self.kept)
    }

    /// Removes the oldest records of `log` beyond the limits, as far as a snapshot stands for them.
    fn let_go(&self, log: LogId, kept: &mut Kept, batch: &mut OwnedWriteBatch) -> Result<(), StoreError> {
        let Retention { events, bytes, .. } = self.retention;
        let is_over = |kept: &Kept, slack: u64| {
            kept.events() > events.saturating_add(events / PORTION * slack)
                || kept.bytes > bytes.saturating_add(bytes / PORTION * slack)
        };
        let expired = self.retention.expired();
        if !is_over(kept, 1) && expired.is_none() {
            return Ok(());
        }
        self.remove_while(log, kept, batch, |kept, record| {
            is_over(kept, 0) || expired.is_some_and(|expired| record.is_older_than(expired))
        })
    }

    /// Lets the largest logs give way until all together have no more than they may, as far as there are snapshots.
    fn let_give_way(
        &mut self,
        changed: &mut HashMap<LogId, Kept>,
        batch: &mut OwnedWriteBatch,
    ) -> Result<(), StoreError> {
        let limit = self.retention.total_bytes;
        let mut logs = self.lock().clone();
        logs.extend(changed.iter().map(|(log, kept)| (*log, *kept)));
        let mut logs: Vec<(LogId, Kept)> = logs.into_iter().collect();
        logs.sort_unstable_by_key(|(log, kept)| (Reverse(kept.bytes), *log));
        for (log, mut kept) in logs.into_iter().take(GIVE_WAY_AT_ONCE) {
            let others = self.total - kept.bytes;
            self.remove_while(log, &mut kept, batch, |kept, _| others + kept.bytes > limit)?;
            self.total = others + kept.bytes;
            changed.insert(log, kept);
        }
        // What cannot go for want of a snapshot is not looked for again at every commit.
        self.give_way_at = self.total.max(limit).saturating_add(limit / PORTION);
        Ok(())
    }

    /// Removes the oldest records of `log` as long as `is_wanted` says so, and a snapshot stands for them.
    fn remove_while(
        &self,
        log: LogId,
        kept: &mut Kept,
        batch: &mut OwnedWriteBatch,
        is_wanted: impl Fn(&Kept, &Record) -> bool,
    ) -> Result<(), StoreError> {
        let range = record_key(log, kept.first)..=record_key(log, kept.snapshot);
        let before = kept.first;
        for entry in self.tables.records.range(range).take(LET_GO_AT_ONCE) {
            let (key, value) = entry.into_inner()?;
            let record = Record::decode(record_place(&key)?, value.to_vec().into())?;
            // The newest record stays, whatever the limits: it says where the log stands.
            if record.last() > kept.snapshot || record.last() >= kept.last || !is_wanted(kept, &record) {
                break;
            }
            kept.first = record.last().next();
            kept.bytes = kept.bytes.saturating_sub(value.len() as u64);
            batch.remove(&self.tables.records, key.to_vec());
        }
        if kept.first > before {
            self.tables.put_first(batch, log, kept.first);
        }
        Ok(())
    }
}

fn lock(kept: &Mutex<HashMap<LogId, Kept>>) -> MutexGuard<'_, HashMap<LogId, Kept>> {
    // Nothing in here panics while the lock is held.
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}
