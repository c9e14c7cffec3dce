//! The thread that writes: everything that waits is one commit and one sync, whichever room it is of.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fjall::OwnedWriteBatch;
use tokio::sync::oneshot;
use tracing::error;

use super::disk::Tables;
use super::heads::Heads;
use super::layout::{record_key, record_place};
use super::observer::Observer;
use super::{Append, Appended, Bounds, LogId, Record, Retention, StoreError, decode_snapshot};
use crate::domain::{ReplayError, RoomName, Sequence};

/// Records are let go in portions of at least this share of what may be kept, so that most appends need not look.
const PORTION: u64 = 16;

/// The most records that one commit lets go of from a log, so that a changed limit does not stop the writer for long.
const LET_GO_AT_ONCE: usize = 4_096;

/// How often logs in which nothing happens are looked through for what has grown too old.
const EXPIRE_EVERY: Duration = Duration::from_millis(if cfg!(test) { 100 } else { 60_000 });

/// The most logs that one commit lets give way to the others.
const GIVE_WAY_AT_ONCE: usize = 16;

type Done = oneshot::Sender<Result<(), StoreError>>;

/// One append that waits. Each room has at most one at a time, which bounds the queue.
struct Waiting {
    log: LogId,
    append: Append,
    done: Done,
}

/// The way to the thread.
pub(super) struct Writer {
    /// None once it is closed.
    queue: Mutex<Option<Sender<Waiting>>>,
}

impl Writer {
    pub(super) fn append(&self, log: LogId, append: Append) -> Appended<'static> {
        let (done, appended) = oneshot::channel();
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        // If the thread is gone, so is `done`, and the wait below ends.
        let sent = queue
            .as_ref()
            .map(|queue| queue.send(Waiting { log, append, done }).is_ok());
        drop(queue);
        Box::pin(async move {
            match sent {
                Some(true) => appended.await.unwrap_or(Err(StoreError::Failed)),
                _ => Err(StoreError::Failed),
            }
        })
    }

    /// Lets nothing more in; the thread ends when it has written what is in.
    pub(super) fn close(&self) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// Starts the thread.
pub(super) fn start(
    tables: Tables,
    heads: Heads,
    retention: Retention,
    kept: Arc<Mutex<HashMap<LogId, Kept>>>,
    observer: Arc<dyn Observer>,
) -> std::io::Result<(Writer, JoinHandle<()>)> {
    let (queue, waiting) = channel();
    let total = lock(&kept).values().map(|kept| kept.bytes).sum();
    let thread = std::thread::Builder::new()
        .name("store-writer".into())
        .spawn(move || {
            let limit = retention.total_bytes;
            let writing = Writing {
                tables,
                heads,
                retention,
                total,
                give_way_at: limit.saturating_add(limit / PORTION),
                kept,
                observer,
            };
            writing.run(&waiting);
        })?;
    Ok((
        Writer {
            queue: Mutex::new(Some(queue)),
        },
        thread,
    ))
}

struct Writing {
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
}

/// What is kept of a log.
#[derive(Clone, Copy)]
pub(super) struct Kept {
    pub(super) first: Sequence,
    pub(super) last: Sequence,
    pub(super) bytes: u64,
    /// Up to where a snapshot makes the records dispensable.
    snapshot: Sequence,
}

impl Kept {
    /// Of a log in which nothing has happened.
    pub(super) const EMPTY: Self = Self {
        first: Bounds::EMPTY.first,
        last: Bounds::EMPTY.last,
        bytes: 0,
        snapshot: Sequence::ZERO,
    };

    /// How many events there are.
    pub(super) const fn events(&self) -> u64 {
        (self.last.get() + 1).saturating_sub(self.first.get())
    }

    /// Counts what `tables` have of the log of `room`, and makes sure that nothing is missing in it: reads all of it.
    pub(super) fn count(tables: &Tables, room: &RoomName, log: LogId) -> Result<Self, StoreError> {
        let mut kept = Self::EMPTY;
        let range = record_key(log, Sequence::ZERO)..=record_key(log, Sequence::new(u64::MAX));
        for (index, entry) in tables.records.range(range).enumerate() {
            let (key, value) = entry.into_inner()?;
            let record = Record::decode(record_place(&key)?, value.to_vec().into())?;
            if index == 0 {
                kept.first = record.first;
            } else if record.first != kept.last.next() {
                return Err(StoreError::Log {
                    room: room.clone(),
                    why: ReplayError::Hole {
                        after: kept.last,
                        next: record.first,
                    },
                });
            }
            kept.last = record.last();
            kept.bytes += value.len() as u64;
        }
        if let Some(snapshot) = tables.snapshots.get(log.0.to_be_bytes())? {
            kept.snapshot = decode_snapshot(&snapshot)?.last;
        }
        Ok(kept)
    }
}

impl Writing {
    fn run(mut self, waiting: &Receiver<Waiting>) {
        let mut expire_at = Instant::now() + EXPIRE_EVERY;
        loop {
            let first = match waiting.recv_timeout(expire_at.saturating_duration_since(Instant::now())) {
                Ok(first) => Some(first),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let all: Vec<Waiting> = first.into_iter().chain(waiting.try_iter()).collect();
            let (mut appends, done): (Vec<_>, Vec<Done>) = all
                .into_iter()
                .map(|Waiting { log, append, done }| ((log, append), done))
                .unzip();
            if Instant::now() >= expire_at {
                expire_at = Instant::now() + EXPIRE_EVERY;
                appends.extend(self.aging().map(|log| (log, Append::default())));
            }
            let written = self.write(appends);
            for done in done {
                // Who does not wait any more need not know.
                done.send(written.clone()).ok();
            }
            if let Err(error) = written {
                // After a failed write or sync nobody knows what is on the disk: nothing more is acknowledged.
                error!(event = "store_failed", %error, "the store failed; nothing more is acknowledged");
                for Waiting { done, .. } in waiting.iter() {
                    done.send(Err(StoreError::Failed)).ok();
                }
                return;
            }
        }
    }

    /// The logs that may have what is too old.
    fn aging(&self) -> impl Iterator<Item = LogId> {
        let logs = match self.retention.expired() {
            Some(_) => self.lock().keys().copied().collect(),
            None => Vec::new(),
        };
        logs.into_iter()
    }

    fn write(&mut self, appends: Vec<(LogId, Append)>) -> Result<(), StoreError> {
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
        self.commit(batch)?;
        self.observer.committed(begun.elapsed());
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
    fn commit(&self, batch: OwnedWriteBatch) -> Result<(), StoreError> {
        batch.durability(Some(self.tables.durability.mode())).commit()?;
        Ok(())
    }

    /// The same in two steps, to crash in between.
    #[cfg(feature = "failpoints")]
    fn commit(&self, batch: OwnedWriteBatch) -> Result<(), StoreError> {
        use crate::failpoint::{fails, is_on, pass};

        pass("before-write");
        if is_on("skip-sync") {
            batch.durability(None).commit()?;
            return Ok(());
        }
        batch.durability(Some(fjall::PersistMode::Buffer)).commit()?;
        pass("before-sync");
        if is_on("slow-sync") {
            std::thread::sleep(Duration::from_millis(50));
        }
        if fails("before-sync") {
            return Err(StoreError::Database("the disk fails on request".into()));
        }
        self.tables.db.persist(self.tables.durability.mode())?;
        pass("after-sync");
        Ok(())
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
        Ok(())
    }
}

fn lock(kept: &Mutex<HashMap<LogId, Kept>>) -> MutexGuard<'_, HashMap<LogId, Kept>> {
    // Nothing in here panics while the lock is held.
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}
