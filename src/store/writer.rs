//! The writer: the thread that appends to the journal.
//!
//! Appends that wait, of all rooms, are written together and made durable with one sync (group commit). Then they are
//! applied to the catalog, and their futures complete.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;
use tracing::error;

use super::catalog::{Catalog, encode_room};
use super::compactor::{AppendThrottle, CompactorHandle};
use super::directory::{Directory, HighWatermark, cannot_use};
use super::entry::{ENTRY_HEADER_LEN, EntryKind, Header, encode};
use super::recovery::Loaded;
use super::retention::Trim;
use super::segment::{BootId, Segment};
use super::segment_index::EntryLocation;
use super::turn_queue::TurnQueue;
use super::{Append, AppendFuture, DiskOptions, Durability, LogId, Observer, StoreError};
use crate::domain::{Epoch, Sequence};
use crate::failpoint;

/// How much is committed at once, in bytes. A larger append is committed alone. What comes meanwhile waits for it.
const COMMIT_BYTES: u64 = 2 << 20;

/// The interval at which idle logs are checked for expired events.
const EXPIRY_INTERVAL: Duration = Duration::from_millis(if cfg!(test) { 100 } else { 60_000 });

/// The interval at which a delayed append looks whether the compactor has raised the rate.
const RATE_INTERVAL: Duration = Duration::from_millis(20);

/// If a write fails while fewer bytes than this are free, the disk is reported as full.
const DISK_FULL_BELOW: u64 = 1 << 20;

/// A change of one log.
pub(super) enum Change {
    Append(Append),
    /// The log ends.
    Delete,
    /// The log continues under another epoch.
    RenewEpoch(Epoch),
    /// The events before this one are given up.
    Trim(Sequence),
}

struct Queued {
    log: LogId,
    change: Change,
    done: oneshot::Sender<Completion>,
}

/// The result of a change.
struct Completion {
    result: Result<(), StoreError>,
    /// Dropped by the task that this wakes, wherever that is.
    _others: Completions,
}

/// The results of changes whose futures wait for them. Dropping it sends them.
/// The writer's thread sends only one result of a commit, with the others: the task that it wakes drops those. Busy workers take tasks from the
/// runtime's global queue one by one, each after several others.
#[derive(Default)]
struct Completions(Vec<(oneshot::Sender<Completion>, Result<(), StoreError>)>);

impl Completions {
    /// Sends one result, and the others with it.
    fn send(mut self) {
        if let Some((first, result)) = self.0.pop() {
            send_result(first, result, self);
        }
    }
}

impl Drop for Completions {
    fn drop(&mut self) {
        for (done, result) in self.0.drain(..) {
            send_result(done, result, Self::default());
        }
    }
}

/// If the future was dropped, so are `others`, here.
fn send_result(done: oneshot::Sender<Completion>, result: Result<(), StoreError>, others: Completions) {
    let completion = Completion {
        result,
        _others: others,
    };
    done.send(completion).ok();
}

/// What waits for the writer thread.
struct Queue {
    changes: TurnQueue<Queued>,
    is_closed: bool,
}

/// The queue of the writer thread, which both sides have.
struct SharedQueue {
    queue: Mutex<Queue>,
    changed: Condvar,
}

impl SharedQueue {
    /// Takes what is committed next. Waits for it until `deadline`; then there may be nothing. `None` once the queue is closed and empty.
    fn take(
        &self,
        writer: &JournalWriter,
        throttle: &mut AppendThrottle,
        deadline: Instant,
    ) -> Option<Vec<Queued>> {
        let mut is_delayed = false;
        loop {
            let rate = writer.compactor.rate(&writer.catalog);
            let mut queue = self.queue.lock();
            let now = Instant::now();
            let wait = match queue.changes.next_cost() {
                None if queue.is_closed => return None,
                None => Duration::MAX,
                Some(cost) => throttle.delay(cost, rate, now).min(RATE_INTERVAL),
            };
            if wait.is_zero() || now >= deadline {
                let mut taken = Vec::new();
                let mut left = COMMIT_BYTES;
                while let Some(cost) = queue.changes.next_cost()
                    && (taken.is_empty() || cost <= left)
                    && throttle.delay(cost, rate, now).is_zero()
                    && let Some(change) = queue.changes.pop()
                {
                    throttle.spend(cost);
                    left = left.saturating_sub(cost);
                    taken.push(change);
                }
                return Some(taken);
            }
            if queue.changes.next_cost().is_some() && !std::mem::replace(&mut is_delayed, true) {
                writer.observer.write_stalled();
            }
            self.changed
                .wait_for(&mut queue, wait.min(deadline.saturating_duration_since(now)));
        }
    }

    /// Closes the queue, and gives up what waits if nobody writes it any more.
    fn close(&self, is_given_up: bool) {
        let mut queue = self.queue.lock();
        queue.is_closed = true;
        let given_up = is_given_up.then(|| std::mem::replace(&mut queue.changes, TurnQueue::new()));
        drop(queue);
        self.changed.notify_all();
        drop(given_up);
    }
}

/// Ends the waiting of appends with the thread, even if it panics.
struct GiveUpOnDrop<'a>(&'a SharedQueue);

impl Drop for GiveUpOnDrop<'_> {
    fn drop(&mut self) {
        self.0.close(true);
    }
}

/// The handle of the writer thread. Dropping it closes the queue.
pub(super) struct Writer {
    queue: Arc<SharedQueue>,
}

impl Writer {
    /// Starts the thread.
    pub(super) fn start(writer: JournalWriter) -> io::Result<(Self, JoinHandle<()>)> {
        let queue = Arc::new(SharedQueue {
            queue: Mutex::new(Queue {
                changes: TurnQueue::new(),
                is_closed: false,
            }),
            changed: Condvar::new(),
        });
        let handle = Self {
            queue: Arc::clone(&queue),
        };
        let thread = std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || run(writer, &queue))?;
        Ok((handle, thread))
    }

    /// Queues a change once the future is polled. The future completes once the change is durable; it fails if the queue is closed.
    pub(super) fn submit(&self, log: LogId, change: Change) -> AppendFuture<'_> {
        Box::pin(async move {
            let (done, result) = oneshot::channel();
            // If the queue is closed or the thread ends, `done` is dropped, and the future fails.
            {
                let mut queue = self.queue.queue.lock();
                if !queue.is_closed {
                    let size = change.size();
                    queue.changes.push(log, size, Queued { log, change, done });
                }
            }
            self.queue.changed.notify_one();
            result
                .await
                .map_or(Err(StoreError::Failed), |completion| completion.result)
        })
    }

    /// Closes the queue. The thread ends once it has written what is queued.
    pub(super) fn close(&self) {
        self.queue.close(false);
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.close();
    }
}

impl Change {
    /// The size of the entries, in bytes, at most.
    fn size(&self) -> usize {
        // The entry that names the room of a new log.
        let room = 2 * ENTRY_HEADER_LEN + 8 + crate::domain::limits::MAX_NAME_CHARS * 4;
        let Self::Append(append) = self else { return room };
        let entry = |len: usize| ENTRY_HEADER_LEN + len + 8;
        let records = append.records.iter();
        let records: usize = records
            .map(|record| entry(record.frames.len() + 4 + 4 * record.resumable.len()))
            .sum();
        room + records
            + append
                .snapshot
                .as_ref()
                .map_or(0, |snapshot| entry(snapshot.bytes.len()))
    }
}

fn run(mut writer: JournalWriter, queue: &SharedQueue) {
    let _guard = GiveUpOnDrop(queue);
    let mut throttle = AppendThrottle::new(Instant::now());
    let mut expire_at = Instant::now() + EXPIRY_INTERVAL;
    let mut expired = None;
    loop {
        let deadline = if writer.trims.is_empty() {
            expire_at
        } else {
            Instant::now()
        };
        let Some(queued) = queue.take(&writer, &mut throttle, deadline) else {
            break;
        };
        if Instant::now() >= expire_at {
            let retention = &writer.options.retention;
            expired = retention.plan_expiry(&writer.catalog, expired, &mut writer.trims);
            let has_more = expired.is_some();
            expire_at = Instant::now() + if has_more { Duration::ZERO } else { EXPIRY_INTERVAL };
        }
        let (changes, done): (Vec<_>, Vec<_>) = queued
            .into_iter()
            .map(|queued| ((queued.log, queued.change), queued.done))
            .unzip();
        let results = writer.commit(changes);
        Completions(done.into_iter().zip(results).collect()).send();
    }
    writer.close();
}

/// An entry that is in the buffer and not durable yet.
struct Staged {
    location: EntryLocation,
    header: Header,
    /// The body of those entries that the catalog reads.
    body: Vec<u8>,
}

/// The state of the writer thread.
pub(super) struct JournalWriter {
    directory: Arc<Directory>,
    pub(super) catalog: Arc<Mutex<Catalog>>,
    pub(super) compactor: Arc<CompactorHandle>,
    options: DiskOptions,
    observer: Arc<dyn Observer>,
    watermark: File,
    active: Arc<Segment>,
    /// Where the entries of the segment that is not sealed end.
    end: u32,
    /// The encoded entries that are written next, at `end`.
    buffer: BytesMut,
    staged: Vec<Staged>,
    /// What retention removes with the next commit.
    trims: Vec<Trim>,
    has_failed: bool,
}

impl JournalWriter {
    /// Continues the journal that was loaded from `directory`.
    pub(super) fn new(
        directory: Arc<Directory>,
        loaded: Loaded,
        options: DiskOptions,
        observer: Arc<dyn Observer>,
    ) -> Result<Self, StoreError> {
        let watermark = directory.open_watermark();
        Ok(Self {
            active: loaded.catalog.newest().ok_or(StoreError::Failed)?,
            watermark: watermark.map_err(cannot_use(directory.path()))?,
            directory,
            catalog: Arc::new(Mutex::new(loaded.catalog)),
            // Beside the new segment of a roll, and one that is written to replace others.
            compactor: Arc::new(CompactorHandle::new(
                DiskOptions::max_segments(&options.retention) - 2,
            )),
            options,
            observer,
            end: loaded.end,
            buffer: BytesMut::new(),
            staged: Vec::new(),
            trims: Vec::new(),
            has_failed: false,
        })
    }

    /// Commits `changes`. Blocks until they are as durable as configured. Returns a result for each.
    ///
    /// A change that does not continue its log fails alone. After an error of the disk everything fails, now and later,
    /// because the content of the disk is then unknown.
    pub(super) fn commit(&mut self, changes: Vec<(LogId, Change)>) -> Vec<Result<(), StoreError>> {
        let count = changes.len();
        if self.has_failed {
            self.trims.clear();
            return vec![Err(StoreError::Failed); count];
        }
        match self.try_commit(changes) {
            Ok(results) => results,
            Err(failure) => {
                self.has_failed = true;
                error!(event = "store_failed", error = %failure, "the store failed; nothing is acknowledged any more");
                vec![Err(failure); count]
            }
        }
    }

    fn try_commit(
        &mut self,
        changes: Vec<(LogId, Change)>,
    ) -> Result<Vec<Result<(), StoreError>>, StoreError> {
        let mut results = Vec::with_capacity(changes.len());
        let mut ends: HashMap<LogId, Sequence> = HashMap::new();
        let mut deleted = Vec::new();
        for (log, change) in changes {
            self.ensure_capacity(change.size())?;
            if matches!(change, Change::Delete) {
                deleted.push(log);
            }
            results.push(self.stage_change(log, change, &mut ends));
        }
        let mut trims = std::mem::take(&mut self.trims);
        // Nothing may follow the deletion of a log.
        trims.retain(|trim| !deleted.contains(&trim.log));
        for trim in &trims {
            self.ensure_capacity(2 * ENTRY_HEADER_LEN)?;
            self.stage(Header::new(EntryKind::Trim, trim.log, trim.first), &[]);
        }
        self.flush(self.options.durability == Durability::Sync)?;
        if !trims.is_empty() {
            let mut catalog = self.catalog.lock();
            for trim in &trims {
                trim.account(&mut catalog);
            }
            drop(catalog);
            self.compactor.wake();
        }
        // What is left of a log is planned once the removal before it is applied.
        for log in ends.keys() {
            self.trims
                .extend(self.options.retention.plan(&self.catalog, *log));
        }
        self.options.retention.plan_total(&self.catalog, &mut self.trims);
        Ok(results)
    }

    /// Stages the entries of a change. `ends` has the ends of the logs that are staged already.
    fn stage_change(
        &mut self,
        log: LogId,
        change: Change,
        ends: &mut HashMap<LogId, Sequence>,
    ) -> Result<(), StoreError> {
        let (mut end, room) = {
            let catalog = self.catalog.lock();
            let state = catalog.log(log)?;
            let header = Header {
                at: state.created_at,
                ..Header::new(EntryKind::Room, log, state.first)
            };
            let is_new = state.room_entry.is_none() && !ends.contains_key(&log);
            let is_named = is_new || matches!(change, Change::RenewEpoch(_));
            let epoch = match change {
                Change::RenewEpoch(epoch) => epoch,
                _ => state.epoch,
            };
            let room = is_named.then(|| (header, encode_room(epoch, &state.room)));
            (ends.get(&log).copied().unwrap_or(state.last), room)
        };
        if let Change::Append(append) = &change {
            let mut expected = end;
            for record in &append.records {
                if record.first != expected.next() {
                    let (last, first) = (expected, record.first);
                    return Err(StoreError::NotContiguous { last, first });
                }
                expected = record.last();
            }
        }
        if let Some((header, body)) = room {
            self.stage(header, &[&body]);
        }
        match change {
            Change::RenewEpoch(_) => {}
            Change::Delete => self.stage(Header::new(EntryKind::Deletion, log, Sequence::ZERO), &[]),
            Change::Trim(first) => self.stage(Header::new(EntryKind::Trim, log, first), &[]),
            Change::Append(append) => {
                for record in &append.records {
                    let header = Header {
                        status: append.status,
                        events: record.events,
                        at: record.at,
                        ..Header::new(EntryKind::Record, log, record.first)
                    };
                    self.stage(header, &[&record.encode_prefix(), &record.frames]);
                    end = record.last();
                }
                if let Some(snapshot) = append.snapshot {
                    let header = Header {
                        at: snapshot.needed_until,
                        ..Header::new(EntryKind::Snapshot, log, snapshot.last)
                    };
                    self.stage(header, &[&snapshot.bytes]);
                }
            }
        }
        ends.insert(log, end);
        Ok(())
    }

    fn stage(&mut self, header: Header, body: &[&[u8]]) {
        // A segment is shorter than 4 GiB.
        let offset = self.end + u32::try_from(self.buffer.len()).unwrap_or(u32::MAX);
        let segment = self.active.number();
        let len = encode(&mut self.buffer, segment, self.end, header, body);
        let is_read = matches!(header.kind, EntryKind::Room | EntryKind::Unsynced);
        self.staged.push(Staged {
            location: EntryLocation { segment, offset, len },
            header,
            body: if is_read { body.concat() } else { Vec::new() },
        });
    }

    /// Ensures that an entry of `size` bytes fits into the segment, if need be by starting the next one.
    fn ensure_capacity(&mut self, size: usize) -> Result<(), StoreError> {
        let needed = self.end as usize + self.buffer.len() + size;
        if needed <= self.active.len as usize {
            return Ok(());
        }
        self.flush(self.options.durability == Durability::Sync)?;
        self.roll(size)
    }

    /// Writes what is staged, makes it durable if `sync` says so, and applies it to the catalog.
    fn flush(&mut self, sync: bool) -> Result<(), StoreError> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        if self.compactor.wait_for_space(&self.catalog)? {
            self.observer.write_stalled();
        }
        let started = Instant::now();
        self.write(sync).map_err(|error| self.describe_failure(&error))?;
        self.observer.committed(started.elapsed());
        self.end += u32::try_from(self.buffer.len()).unwrap_or(u32::MAX);
        self.buffer.clear();
        if !failpoint::is_enabled("skip-sync") {
            self.check_in_place()?;
            let watermark = HighWatermark {
                segment: self.active.number(),
                offset: self.end,
            };
            watermark
                .write(&self.watermark)
                .map_err(|error| self.describe_failure(&error))?;
        }
        let mut catalog = self.catalog.lock();
        for Staged {
            location,
            header,
            body,
        } in self.staged.drain(..)
        {
            // Only damage makes this fail, and these entries were just made.
            catalog
                .apply(location, &header, &body)
                .map_err(|why| self.active.damaged(location.offset, why))?;
        }
        Ok(())
    }

    fn write(&self, sync: bool) -> io::Result<()> {
        failpoint::hit("before-write");
        self.active.write(&self.buffer, self.end)?;
        failpoint::hit("before-sync");
        if failpoint::is_enabled("slow-sync") {
            std::thread::sleep(Duration::from_millis(50));
        }
        if failpoint::fails("before-sync") {
            return Err(io::Error::other("simulated disk failure"));
        }
        if sync {
            self.active.sync()?;
        }
        failpoint::hit("after-sync");
        Ok(())
    }

    /// Seals the segment and continues in a new one, which has place for `size` bytes.
    ///
    /// The new segment is created first: a sealed segment always has a successor, so that the loss of the newest segment is
    /// noticed.
    fn roll(&mut self, size: usize) -> Result<(), StoreError> {
        let (header, index) = {
            let catalog = self.catalog.lock();
            let number = self.active.number().checked_add(1).ok_or(StoreError::Failed)?;
            (catalog.header(number), Arc::clone(&catalog.active))
        };
        let (len, min_len) = self.options.segment_len(size);
        let rolled = Segment::create(&self.directory.journal(), header, len, min_len)
            .and_then(|next| Ok((next, self.active.seal(self.end, &index)?)));
        let (next, sealed) = rolled.map_err(|error| self.describe_failure(&error))?;
        drop(index);
        self.active = self.catalog.lock().roll(sealed, next);
        self.end = super::segment::SEGMENT_HEADER_LEN;
        self.compactor.wake();
        Ok(())
    }

    /// Fails if the journal is not where it was opened: what is written is then not where the next start looks for it.
    fn check_in_place(&self) -> Result<(), StoreError> {
        self.directory.check_in_place()?;
        match self.active.is_at(&self.active.path) {
            Ok(true) => Ok(()),
            moved => Err(StoreError::Directory {
                path: self.directory.path().into(),
                why: match moved {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => error.to_string(),
                    _ => "its log was removed or moved".into(),
                },
            }),
        }
    }

    fn describe_failure(&self, error: &io::Error) -> StoreError {
        let full = match self.directory.available() {
            Some(available) if available < DISK_FULL_BELOW => {
                format!(" (the disk is full: {available} bytes are free)")
            }
            _ => String::new(),
        };
        let path = self.directory.path().display();
        StoreError::Io(format!("cannot write in {path}: {error}{full}"))
    }

    /// Writes and syncs the entry that says whether what follows is synced: with [`Durability::Os`] always, otherwise only if the journal says
    /// that it was not. What was read is durable.
    pub(super) fn mark_opened(&mut self, boot: BootId) -> Result<(), StoreError> {
        let was_unsynced = self.catalog.lock().unsynced.is_some();
        match self.options.durability {
            Durability::Os => self.stage(
                Header::new(EntryKind::Unsynced, LogId(0), Sequence::ZERO),
                &[&boot],
            ),
            Durability::Sync if was_unsynced => {
                self.stage(Header::new(EntryKind::Synced, LogId(0), Sequence::ZERO), &[]);
            }
            Durability::Sync => {}
        }
        self.flush(true)
    }

    /// Makes everything that was written durable, and notes it in the journal.
    fn close(&mut self) {
        if self.has_failed {
            return;
        }
        let closed = self.ensure_capacity(ENTRY_HEADER_LEN).and_then(|()| {
            self.stage(Header::new(EntryKind::Synced, LogId(0), Sequence::ZERO), &[]);
            self.flush(true)
        });
        if let Err(error) = closed {
            error!(event = "store_failed", %error, "the store could not be closed in order");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_result_of_a_commit_brings_the_others() {
        let start = || {
            let (senders, receivers): (Vec<_>, Vec<_>) = (0..3).map(|_| oneshot::channel()).unzip();
            (
                senders.into_iter().map(|sender| (sender, Ok(()))).collect(),
                receivers,
            )
        };
        let is_done = |receiver: &mut oneshot::Receiver<Completion>| receiver.try_recv().is_ok();

        let (changes, mut receivers) = start();
        Completions(changes).send();
        let mut first = receivers.pop().unwrap();
        assert!(!receivers.iter_mut().any(is_done));
        assert!(is_done(&mut first));
        assert!(receivers.iter_mut().all(is_done));

        // Its future was dropped before.
        let (changes, mut receivers) = start();
        receivers.pop();
        Completions(changes).send();
        assert!(receivers.iter_mut().all(is_done));

        // Or is dropped before its task runs.
        let (changes, mut receivers) = start();
        Completions(changes).send();
        receivers.pop();
        assert!(receivers.iter_mut().all(is_done));
    }
}
