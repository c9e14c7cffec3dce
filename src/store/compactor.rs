//! The compactor: the thread that removes garbage from sealed segments.
//!
//! It replaces a run of adjacent segments by one that has only the entries that are needed, under the number of the first. The
//! replacement is written to a temporary file and renamed, so that after a crash there is either the old segment or the new
//! one; the other segments of the run are removed last, and the next start removes those that a crash has left.
//!
//! It works when garbage is more than [`BACKGROUND_PERCENT`] of what is needed, at a bounded rate. Above [`THROTTLE_PERCENT`] it works as fast
//! as it can, and the writer is slowed down, the more the nearer the garbage is to [`LIMIT_PERCENT`]; above that the writer waits.
//!
//! It also merges segments when there are nearly too many, because each is an open file: segments with little garbage that were rewritten
//! can be short. That is measured on the same scale, on which the maximum number of segments is [`LIMIT_PERCENT`].

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use parking_lot::{Condvar, Mutex};
use tracing::error;

use super::catalog::{Catalog, SegmentState};
use super::directory::{none_if_missing, segment_path};
use super::entry::{Header, encode};
use super::segment::{SEGMENT_HEADER_LEN, Segment, SegmentHeader};
use super::segment_index::{EntryLocation, SegmentIndex};
use super::{Durability, Observer, StoreError};
use crate::failpoint;

/// Compaction starts when the garbage is more than this percentage of what is needed.
const BACKGROUND_PERCENT: u64 = 20;

/// The writer is slowed down while the garbage is more than this percentage of what is needed.
const THROTTLE_PERCENT: u64 = 25;

/// The writer waits while the garbage is more than this percentage of what is needed.
const LIMIT_PERCENT: u64 = 30;

/// How many bytes per second are appended just above [`THROTTLE_PERCENT`]. It halves with each half percent.
const MAX_THROTTLED_RATE: u64 = 512 << 20;

/// How much may be appended at once while the writer is slowed down, in bytes.
const THROTTLED_BURST: u64 = 1 << 20;

/// How many bytes per second are rewritten in the background. No limit while the writer waits or is slowed down.
const BYTES_PER_SECOND: u64 = 64 << 20;

/// How many bytes are written at a time.
const WRITE_BYTES: usize = 1 << 20;

/// How often the compactor looks for work without being woken.
const IDLE_INTERVAL: Duration = Duration::from_secs(1);

/// How many segments are rewritten together at most, so that one rewrite does not take long even if little of them is needed.
const MAX_RUN: usize = 16;

/// A segment with less garbage than this percentage is not rewritten.
const MIN_PERCENT: u64 = 5;

/// How large a segment may become by merging, in bytes. Offsets in a segment have 32 bits.
const MAX_MERGED_BYTES: u64 = 1 << 30;

/// A segment with at least this percentage of garbage is rewritten even while disk use is below its limit.
const DEAD_PERCENT: u64 = 98;

/// One percent in the unit of [`Excess`].
const PERCENT: u64 = 1_000;

/// How far garbage and segments are above what is needed, in thousandths of a percent; both limits are at [`LIMIT_PERCENT`]. Rounded up, so
/// that what is above a limit is never taken to be at it.
#[derive(Debug, Clone, Copy)]
struct Excess {
    garbage: u64,
    segments: u64,
}

impl Excess {
    fn of(catalog: &Catalog, max_segments: u64) -> Self {
        let (needed, garbage) = catalog.disk_usage();
        let segments = u64::try_from(catalog.segments.len()).unwrap_or(u64::MAX);
        let segments = segments.saturating_mul((100 + LIMIT_PERCENT) * PERCENT);
        Self {
            garbage: garbage.saturating_mul(100 * PERCENT).div_ceil(needed.max(1)),
            segments: segments
                .div_ceil(max_segments.max(1))
                .saturating_sub(100 * PERCENT),
        }
    }

    fn largest(self) -> u64 {
        self.garbage.max(self.segments)
    }
}

/// The connection between the writer and the compactor.
pub(super) struct CompactorHandle {
    max_segments: u64,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Whether the thread runs. Before it does, nobody waits for it.
    is_running: bool,
    is_stopped: bool,
    /// Whether the writer waits or is slowed down.
    is_urgent: bool,
    /// The number of completed rewrites, and of searches that found nothing to rewrite.
    rounds: u64,
    /// Whether the latest rewrite failed. It is tried again, and nobody waits for it.
    has_failed: bool,
    /// Whether the latest round has changed nothing.
    is_idle: bool,
    /// Why written entries may be lost. Nothing is rewritten or acknowledged any more.
    failure: Option<StoreError>,
}

impl CompactorHandle {
    /// The journal is to have at most `max_segments` segments.
    pub(super) fn new(max_segments: u64) -> Self {
        Self {
            max_segments,
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    fn excess(&self, catalog: &Catalog) -> Excess {
        Excess::of(catalog, self.max_segments)
    }

    /// Whether a limit is exceeded and the compactor can do something about it.
    fn must_wait(&self, catalog: &Catalog) -> bool {
        let excess = self.excess(catalog);
        excess.largest() > LIMIT_PERCENT * PERCENT && pick(catalog, excess).is_some()
    }

    /// Tells the compactor to look for work.
    pub(super) fn wake(&self) {
        self.changed.notify_all();
    }

    /// Stops the thread. A rewrite that is not complete is abandoned.
    pub(super) fn stop(&self) {
        self.state.lock().is_stopped = true;
        self.changed.notify_all();
    }

    /// Blocks while a limit is exceeded and the compactor can do something about it. Returns whether it has blocked.
    ///
    /// # Errors
    ///
    /// The compactor could not sync what was written without a sync.
    pub(super) fn wait_for_space(&self, catalog: &Mutex<Catalog>) -> Result<bool, StoreError> {
        let mut state = self.state.lock();
        let mut has_waited = false;
        loop {
            if let Some(failure) = &state.failure {
                return Err(failure.clone());
            }
            if !state.is_running || state.is_stopped || state.has_failed || !self.must_wait(&catalog.lock()) {
                return Ok(has_waited);
            }
            (state.is_urgent, has_waited) = (true, true);
            self.changed.notify_all();
            let rounds = state.rounds;
            self.changed
                .wait_while_for(&mut state, |state| state.rounds == rounds, IDLE_INTERVAL);
            if state.rounds != rounds && state.is_idle {
                return Ok(has_waited);
            }
        }
    }

    /// How many bytes per second may be appended, so that the compactor keeps up and nobody has to wait for it; `None` while there is little
    /// garbage and there are few segments, or that cannot be changed.
    pub(super) fn rate(&self, catalog: &Mutex<Catalog>) -> Option<u64> {
        let excess = self.excess(&catalog.lock()).largest();
        let above = excess.checked_sub(THROTTLE_PERCENT * PERCENT);
        let mut state = self.state.lock();
        let is_slowed = state.is_running && !state.is_stopped && !state.has_failed && !state.is_idle;
        let rate = above.filter(|_| is_slowed).map(|above| {
            let halvings = above / (PERCENT / 2);
            MAX_THROTTLED_RATE >> halvings.min(2 * (LIMIT_PERCENT - THROTTLE_PERCENT))
        });
        if rate.is_some() != state.is_urgent {
            state.is_urgent = rate.is_some();
            self.changed.notify_all();
        }
        rate
    }

    fn is_stopped(&self) -> bool {
        self.state.lock().is_stopped
    }

    /// Sleeps as long as `written` bytes since `started` are ahead of the rate.
    fn pace(&self, started: Instant, written: u64) {
        let due = Duration::from_micros(written.saturating_mul(1_000_000) / BYTES_PER_SECOND);
        let mut state = self.state.lock();
        self.changed.wait_while_for(
            &mut state,
            |state| !state.is_stopped && !state.is_urgent,
            due.saturating_sub(started.elapsed()),
        );
    }
}

/// What the writer may append while it is slowed down: a token bucket.
pub(super) struct AppendThrottle {
    /// What may be appended now, in bytes.
    allowed: u64,
    at: Instant,
}

impl AppendThrottle {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            allowed: THROTTLED_BURST,
            at: now,
        }
    }

    /// How long to wait before `bytes` are appended at this rate. What is larger than the burst waits as long as that.
    pub(super) fn delay(&mut self, bytes: u64, rate: Option<u64>, now: Instant) -> Duration {
        let elapsed = now.saturating_duration_since(self.at).as_micros();
        let gained = rate.map_or(u128::MAX, |rate| {
            u128::from(rate).saturating_mul(elapsed) / 1_000_000
        });
        if gained > 0 {
            let gained = u64::try_from(gained).unwrap_or(u64::MAX);
            self.allowed = self.allowed.saturating_add(gained).min(THROTTLED_BURST);
            self.at = now;
        }
        let missing = bytes.min(THROTTLED_BURST).saturating_sub(self.allowed);
        Duration::from_micros((missing * 1_000_000).div_ceil(rate.unwrap_or(u64::MAX)))
    }

    /// Notes that `bytes` are appended.
    pub(super) fn spend(&mut self, bytes: u64) {
        self.allowed = self.allowed.saturating_sub(bytes);
    }
}

/// The compactor's thread.
pub(super) struct Compactor {
    pub(super) handle: Arc<CompactorHandle>,
    pub(super) catalog: Arc<Mutex<Catalog>>,
    /// The directory of the segments.
    pub(super) directory: PathBuf,
    /// The largest size of what a run of segments is merged into, in bytes.
    pub(super) segment_len: u64,
    pub(super) durability: Durability,
    pub(super) observer: Arc<dyn Observer>,
}

impl Compactor {
    pub(super) fn start(self) -> io::Result<JoinHandle<()>> {
        self.handle.state.lock().is_running = true;
        std::thread::Builder::new()
            .name("store-compactor".into())
            .spawn(move || self.run())
    }

    fn run(self) {
        loop {
            let result = self.compact();
            let mut state = self.handle.state.lock();
            state.rounds += 1;
            if let Err(error) = &result
                && !state.has_failed
            {
                error!(event = "compaction_failed", %error, "segments cannot be rewritten; it is tried again");
            }
            state.has_failed = result.is_err();
            state.is_idle = !matches!(result, Ok(true));
            self.handle.changed.notify_all();
            if state.is_stopped {
                return;
            }
            if state.is_idle {
                self.handle.changed.wait_for(&mut state, IDLE_INTERVAL);
            }
        }
    }

    /// Rewrites one run of segments. Returns whether the journal has become smaller by it, or has fewer segments.
    fn compact(&self) -> Result<bool, StoreError> {
        let run = {
            let catalog = self.catalog.lock();
            match pick(&catalog, self.handle.excess(&catalog)) {
                Some(Work::Garbage(number)) => self.extend(&catalog, number),
                Some(Work::Merge(segments)) => segments.to_vec(),
                None => return Ok(false),
            }
        };
        let Some((segment, index)) = self.rewrite(&run)? else {
            return Ok(false);
        };
        let bytes = u64::from(segment.len);
        let before: u64 = run.iter().map(|segment| u64::from(segment.len)).sum();
        let removed = run
            .iter()
            .skip(1)
            .map(|segment| segment_path(&self.directory, segment.number()));
        self.sync_newest()?;
        let replaced = segment.replace();
        replaced.map_err(|error| StoreError::cannot("write", &segment.path, &error))?;
        self.catalog.lock().replace(segment, &index);
        for path in removed {
            failpoint::hit("rewrite-unlink");
            none_if_missing(fs::remove_file(&path))
                .map_err(|error| StoreError::cannot("remove", &path, &error))?;
        }
        self.observer.rewritten(bytes);
        Ok(bytes < before || run.len() > 1)
    }

    /// Syncs the newest segment. Its snapshots and trims are why older entries are garbage: if those were removed, and a power cut
    /// then lost the newest segment, the journal would have a gap.
    fn sync_newest(&self) -> Result<(), StoreError> {
        if self.durability == Durability::Sync {
            return Ok(());
        }
        if let Some(failure) = &self.handle.state.lock().failure {
            // Another sync would succeed without what this one has not written.
            return Err(failure.clone());
        }
        let Some(newest) = self.catalog.lock().newest() else {
            return Ok(());
        };
        newest.sync().map_err(|error| {
            let failure = StoreError::cannot("write", &newest.path, &error);
            self.handle.state.lock().failure = Some(failure.clone());
            failure
        })
    }

    /// The run of segments around `number` that is rewritten together: neighbours of which little is needed join it.
    fn extend(&self, catalog: &Catalog, number: u32) -> Vec<Arc<Segment>> {
        let mut size = 0;
        let mut joins = |state: &SegmentState, is_first: bool| {
            let needed = state.needed();
            let is_small = size + needed <= self.segment_len && needed <= self.segment_len / 4;
            let joins = state.is_rewritable() && (is_first || is_small);
            size += if joins { needed } else { 0 };
            joins
        };
        let mut run = VecDeque::new();
        for (_, state) in catalog.segments.range(number..) {
            if run.len() == MAX_RUN || !joins(state, run.is_empty()) {
                break;
            }
            run.push_back(Arc::clone(&state.segment));
        }
        for (_, state) in catalog.segments.range(..number).rev() {
            if run.len() == MAX_RUN || !joins(state, false) {
                break;
            }
            run.push_front(Arc::clone(&state.segment));
        }
        run.into()
    }

    /// Writes what is needed of `run` to a new segment, which is sealed but not in its place yet. `None` if the compactor is
    /// stopped.
    fn rewrite(&self, run: &[Arc<Segment>]) -> Result<Option<(Segment, SegmentIndex)>, StoreError> {
        let (Some(first), Some(last)) = (run.first(), run.last()) else {
            return Ok(None);
        };
        let mut header = first.header;
        header.covers_to = last.header.covers_to;
        let started = Instant::now();
        let mut replacement = Replacement::create(&self.directory, header)?;
        for source in run {
            let mut is_stopped = false;
            let mut scanned = 0;
            let end = source.scan(|location, entry| {
                let offset = location.offset as usize / WRITE_BYTES;
                if std::mem::replace(&mut scanned, offset) != offset {
                    is_stopped |= self.handle.is_stopped();
                }
                if !is_stopped
                    && self.is_needed(location, &entry.header, source, header.number)
                    && replacement.push(&entry.header, &entry.body)?
                {
                    self.handle.pace(started, replacement.end.into());
                }
                Ok(())
            })?;
            is_stopped |= self.handle.is_stopped();
            if is_stopped {
                return Ok(None);
            }
            if end < source.data_end() {
                self.catalog.lock().set_damaged(source.number());
                return Err(source.damaged(end, "the entry there is damaged"));
            }
        }
        replacement.seal().map(Some)
    }

    fn is_needed(&self, location: EntryLocation, header: &Header, source: &Segment, run_start: u32) -> bool {
        let covers_to = source.header.covers_to;
        self.catalog
            .lock()
            .is_needed(location, header, covers_to, run_start)
    }
}

/// A segment that is written to replace others.
pub(super) struct Replacement {
    segment: Segment,
    buffer: BytesMut,
    /// Where the entries end that are written.
    end: u32,
    index: SegmentIndex,
}

impl Replacement {
    pub(super) fn create(directory: &Path, header: SegmentHeader) -> Result<Self, StoreError> {
        let segment = Segment::create_replacement(directory, header);
        let segment = segment
            .map_err(|error| StoreError::Io(format!("cannot write in {}: {error}", directory.display())))?;
        Ok(Self {
            segment,
            buffer: BytesMut::new(),
            end: SEGMENT_HEADER_LEN,
            index: SegmentIndex::new(),
        })
    }

    /// Adds an entry. Returns true if this caused a write.
    pub(super) fn push(&mut self, header: &Header, body: &[u8]) -> Result<bool, StoreError> {
        let segment = self.segment.number();
        let offset = self.end + u32::try_from(self.buffer.len()).unwrap_or(u32::MAX);
        let len = encode(&mut self.buffer, segment, self.end, *header, &[body]);
        let location = EntryLocation { segment, offset, len };
        self.index.entry(header.log).or_default().add(location, header);
        let is_full = self.buffer.len() >= WRITE_BYTES;
        if is_full {
            self.write()?;
        }
        Ok(is_full)
    }

    fn write(&mut self) -> Result<(), StoreError> {
        let written = self.segment.write(&self.buffer, self.end);
        written.map_err(|error| StoreError::cannot("write", &self.segment.path, &error))?;
        self.end += u32::try_from(self.buffer.len()).unwrap_or(u32::MAX);
        self.buffer.clear();
        Ok(())
    }

    /// Seals the segment. It gets into its place with [`Segment::replace`].
    pub(super) fn seal(mut self) -> Result<(Segment, SegmentIndex), StoreError> {
        self.write()?;
        failpoint::hit("rewrite-written");
        let sealed = self.segment.seal(self.end, &self.index);
        let sealed = sealed.map_err(|error| StoreError::cannot("write", &self.segment.path, &error))?;
        Ok((sealed, self.index))
    }
}

/// Whether the garbage is more than this percentage of what is needed. The segment that is not sealed does not count.
/// What the compactor does next.
enum Work {
    /// Rewrites this segment.
    Garbage(u32),
    /// Merges two adjacent segments.
    Merge([Arc<Segment>; 2]),
}

fn pick(catalog: &Catalog, excess: Excess) -> Option<Work> {
    if excess.segments > BACKGROUND_PERCENT * PERCENT
        && excess.segments >= excess.garbage
        && let Some(pair) = smallest_pair(catalog)
    {
        return Some(Work::Merge(pair));
    }
    most_garbage(catalog, excess.garbage > BACKGROUND_PERCENT * PERCENT).map(Work::Garbage)
}

/// The two adjacent segments of which the least is needed. Merging them costs less than twice the mean of what is needed of a segment.
fn smallest_pair(catalog: &Catalog) -> Option<[Arc<Segment>; 2]> {
    let next = catalog.segments.values().skip(1);
    let pairs = catalog.segments.values().zip(next);
    let (needed, first, second) = pairs
        .filter(|(first, second)| first.is_rewritable() && second.is_rewritable())
        .map(|(first, second)| (first.needed() + second.needed(), first, second))
        .min_by_key(|(needed, ..)| *needed)?;
    (needed <= MAX_MERGED_BYTES).then(|| [first, second].map(|state| Arc::clone(&state.segment)))
}

/// The segment with the largest share of garbage, if it is worth rewriting. Unless there is much garbage in all, only a dead one is.
fn most_garbage(catalog: &Catalog, is_much: bool) -> Option<u32> {
    let sealed = catalog.segments.iter().filter(|(_, state)| state.is_rewritable());
    let percent = |state: &SegmentState| state.garbage * 100 / u64::from(state.segment.len.max(1));
    let (number, state) = sealed.max_by_key(|(_, state)| percent(state))?;
    let is_worth = percent(state) >= if is_much { MIN_PERCENT } else { DEAD_PERCENT };
    is_worth.then_some(*number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_writer_may_append_as_much_as_the_rate_permits() {
        let start = Instant::now();
        let mut throttle = AppendThrottle::new(start);
        let rate = Some(THROTTLED_BURST);
        assert!(throttle.delay(THROTTLED_BURST, rate, start).is_zero());
        throttle.spend(THROTTLED_BURST);
        assert_eq!(
            throttle.delay(THROTTLED_BURST / 4, rate, start),
            Duration::from_millis(250)
        );
        let later = start + Duration::from_millis(125);
        assert_eq!(
            throttle.delay(THROTTLED_BURST / 4, rate, later),
            Duration::from_millis(125)
        );
        // A short append goes meanwhile, and what waits must wait for it only as long as it takes.
        assert!(throttle.delay(THROTTLED_BURST / 8, rate, later).is_zero());
        throttle.spend(THROTTLED_BURST / 8);
        assert_eq!(
            throttle.delay(THROTTLED_BURST / 4, rate, later),
            Duration::from_millis(250)
        );
        // Nothing is saved beyond the burst, and what is longer than it does not wait for more.
        let later = later + Duration::from_secs(60);
        assert!(throttle.delay(3 * THROTTLED_BURST, rate, later).is_zero());
        throttle.spend(3 * THROTTLED_BURST);
        assert_eq!(throttle.delay(1, Some(1), later), Duration::from_secs(1));
        assert!(throttle.delay(THROTTLED_BURST, None, later).is_zero());
    }
}
