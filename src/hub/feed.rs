//! The newest part of a room's log, as bytes that are ready for the wire, and the cursors of its subscribers.
//!
//! Each broadcast is encoded once, into memory that all subscribers share. A subscriber is a cursor: when its transport has
//! room, it takes everything from its cursor to the end of a block as one slice. There is no queue, no copy and no encoding
//! per subscriber.
//!
//! The log is divided in two ways. A *block* is contiguous memory. A *run* is a range of events that every cursor reads as a
//! whole: a cursor always stands between two runs, and the room's actor starts a new run wherever something happens to one
//! cursor alone (it starts or closes there, or has a notice there). Each run counts the cursors that have read
//! everything before it but not the run itself, so the feed knows which runs everybody has read without looking at the
//! cursors.
//!
//! ```text
//! blocks   |      a       |         b          |    c    |
//! runs     | 7  |    8    |    9    |    10    |   11    |
//! cursors  ^ x            ^ y, z                         ^ w (at the end)
//! ```
//!
//! Run 7 counts one cursor, run 9 two, the others none; `at_end` is one. When `x` has read runs 7 and 8, both runs and block
//! `a` are freed.
//!
//! Guarantees:
//!
//! - A cursor yields each event after its start once and in order, and each of its notices between the two events where it
//!   was published.
//! - The feed retains at most its capacity and one batch, no matter how slow a subscriber is, and its share if all feeds together
//!   retain too much. What everybody has read is freed at once. A cursor whose next run was dropped yields [`FeedItem::Lagged`]; it
//!   never skips on its own. Its reader then continues from the store. A cursor whose notices were dropped closes.
//! - Publishing never waits for a subscriber.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use hashbrown::HashMap;
use parking_lot::{Mutex, MutexGuard};

use super::fair_budget::{FairBudget, FairUse, Shrink};
use super::observer::{FanOut, Observer};
use super::room_writers::RoomWriters;
use super::wake_queue::WakeQueue;
use crate::domain::{BanTarget, Origin, Rejection, Sequence};
use crate::spare_capacity::reduced_capacity;

/// Small batches are merged into blocks of up to this size, in bytes, while a subscriber has yet to read them, so that it
/// then reads few large slices; a transport frame has 16 KiB. While all subscribers keep up, nothing is copied.
const MERGED_BLOCK: usize = 16 * 1024;

/// What the feed retains for a notice beside its bytes, roughly, in bytes.
const NOTICE_OVERHEAD: usize = 128;

/// For how many runs and blocks the feed keeps memory while it retains none.
const SPARE_CAPACITY: usize = 64;

/// The newest part of one room's log.
pub struct Feed {
    capacity: usize,
    observer: Arc<dyn Observer>,
    /// What it retains, of the budget of all feeds.
    used: FairUse<Self>,
    /// The number of lagging readers, which are served from the store.
    lagging: AtomicUsize,
    state: Mutex<State>,
}

struct State {
    /// Contiguous: each starts where the one before ends.
    blocks: VecDeque<Block>,
    /// The retained runs, numbered from `first_run`. Unless empty, at least one cursor has yet to read the first.
    runs: VecDeque<Run>,
    first_run: u64,
    /// The offset at which the last run ends.
    end: u64,
    /// The last event.
    last: Sequence,
    /// The number of cursors that have read everything.
    at_end: usize,
    cursors: HashMap<CursorKey, Slot>,
    /// The newest cursor.
    last_key: CursorKey,
    /// The cursors that wait for more.
    parked: Vec<CursorKey>,
    /// What the notices of all cursors take, in bytes.
    notice_bytes: usize,
}

struct Block {
    start: u64,
    bytes: Bytes,
}

struct Run {
    start: u64,
    end: u64,
    events: u32,
    /// The last event of the run.
    last: Sequence,
    /// When the oldest command of the run was decoded.
    received_at: Instant,
    /// The number of cursors that have read everything before the run, but not the run.
    waiting: usize,
}

struct Slot {
    /// The number of the run to read next.
    run: u64,
    /// Notices, each with the number of the run that it precedes.
    notices: VecDeque<(u64, Bytes)>,
    close: Option<Close>,
    /// The last event that was read.
    position: Sequence,
    /// Who reads, if it is not a participant.
    reader: Origin,
    waker: Option<Waker>,
    /// The index in `parked`.
    parked: Option<usize>,
}

impl Slot {
    fn notice_bytes(&self) -> usize {
        self.notices.iter().map(|(_, notice)| notice_bytes(notice)).sum()
    }
}

/// Where and why a cursor closes.
struct Close {
    /// The number of the run that it precedes.
    run: u64,
    /// The last event that the cursor yields.
    after: Sequence,
    reason: CloseReason,
}

/// Identifies a cursor of a feed. Never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CursorKey(u64);

/// What a cursor yields.
#[derive(Debug, PartialEq, Eq)]
pub enum FeedItem {
    /// Events, framed.
    Events(Bytes),
    /// A notice, framed.
    Notice(Bytes),
    /// The stream is closed: no further item follows.
    Closed(CloseReason),
    /// The next event is no longer in the feed. A [`Cursor`] may continue once it has caught up from the store; from a
    /// `Reader` this is final, because the store does not retain the event either.
    Lagged,
}

/// Why a room closes a subscriber's stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CloseReason {
    /// The attachment has ended, because the participant left or may resume.
    Detached,
    /// The participant's last command was rejected in a way that ends the stream, or would be from now on.
    Rejected(Rejection),
    /// The session was resumed on another stream.
    TakenOver,
    /// The owner of the participant's name has joined.
    NameClaimed,
    /// The server is draining. The client should connect again after about this delay.
    Draining(Duration),
    /// The room has ended, because nobody needed it. Whoever comes next begins another one.
    RoomEnded,
    /// Too many notices wait for the client to read them. It should connect again.
    FellBehind,
    /// The room has failed, or its replica is suspended. The client should connect again.
    Failed,
    /// The room's log is damaged, and the events that the client has yet to read are lost.
    Damaged,
}

impl Feed {
    /// A feed of the events after `last` that retains at most `capacity` bytes, and less when all feeds of the `budget` retain too much.
    #[must_use]
    pub fn new(
        capacity: usize,
        last: Sequence,
        observer: Arc<dyn Observer>,
        budget: &Arc<FairBudget<Self>>,
        writers: Arc<RoomWriters>,
    ) -> Arc<Self> {
        let state = State {
            blocks: VecDeque::new(),
            runs: VecDeque::new(),
            first_run: 0,
            end: 0,
            last,
            at_end: 0,
            cursors: HashMap::new(),
            last_key: CursorKey(0),
            parked: Vec::new(),
            notice_bytes: 0,
        };
        Arc::new_cyclic(|feed: &Weak<Self>| Self {
            capacity,
            observer,
            used: budget.register(feed.clone(), writers),
            lagging: AtomicUsize::new(0),
            state: Mutex::new(state),
        })
    }

    /// Starts to publish `bytes`, the events of one batch. [`Publication::push_run`] adds them run by run. No subscriber sees
    /// any of them before the publication is dropped. `woken` then has those that must be woken.
    pub fn publish<'a>(self: &'a Arc<Self>, bytes: Bytes, woken: &'a mut WakeQueue) -> Publication<'a> {
        let mut state = self.state.lock();
        if !bytes.is_empty() {
            state.append(bytes);
        }
        Publication {
            feed: self,
            state: Some(state),
            woken,
            has_grown: false,
        }
    }

    /// A reader lags: it is served from the store from now on.
    pub(super) fn lag_started(&self) {
        self.lagging.fetch_add(1, Ordering::Relaxed);
        self.observer.lag_started();
    }

    /// A reader that was served from the store has caught up, or is gone.
    pub(super) fn lag_ended(&self) {
        self.lagging.fetch_sub(1, Ordering::Relaxed);
        self.observer.lag_ended();
    }

    pub(super) fn cursor_count(&self) -> usize {
        self.state.lock().cursors.len()
    }
}

impl Shrink for Feed {
    /// Drops the oldest runs, and then, if that is not enough, all notices of the cursors that have more than an equal part of `bytes`.
    /// Notices that take more than half of `bytes` come first: others should not lose events because of them.
    fn shrink(&self, bytes: usize) {
        let mut woken = Vec::new();
        let mut guard = self.state.lock();
        let state = &mut *guard;
        if state.notice_bytes > bytes / 2 {
            state.drop_notices(bytes / 2, &mut woken);
        }
        state.drop_runs_while(|state| state.retained() > bytes, Instant::now(), self);
        if state.retained() > bytes {
            state.drop_notices(bytes, &mut woken);
        }
        self.used.set(state.retained());
        drop(guard);
        woken.into_iter().for_each(Waker::wake);
    }
}

impl State {
    fn next_run(&self) -> u64 {
        self.first_run + self.runs.len() as u64
    }

    fn run_mut(&mut self, number: u64) -> Option<&mut Run> {
        let index = number.checked_sub(self.first_run)?;
        self.runs.get_mut(usize::try_from(index).ok()?)
    }

    fn append(&mut self, bytes: Bytes) {
        let start = self
            .blocks
            .back()
            .map_or(self.end, |last| last.start + last.bytes.len() as u64);
        // Blocks that everybody has read are freed, so somebody has yet to read the last one.
        if let Some(last) = self.blocks.back_mut()
            && last.bytes.len() + bytes.len() <= MERGED_BLOCK
        {
            let mut merged = BytesMut::with_capacity(last.bytes.len() + bytes.len());
            merged.extend_from_slice(&last.bytes);
            merged.extend_from_slice(&bytes);
            last.bytes = merged.freeze();
        } else {
            self.blocks.push_back(Block { start, bytes });
        }
    }

    /// Frees the runs that everybody has read, and the blocks without runs.
    fn trim(&mut self, now: Instant, feed: &Feed) {
        while let Some(run) = self.runs.pop_front_if(|run| run.waiting == 0) {
            feed.observer
                .fan_out_completed(run.events, now.saturating_duration_since(run.received_at));
            self.first_run += 1;
        }
        self.trim_blocks();
    }

    fn trim_blocks(&mut self) {
        let start = self.runs.front().map_or(self.end, |run| run.start);
        while self
            .blocks
            .pop_front_if(|block| block.start + block.bytes.len() as u64 <= start)
            .is_some()
        {}
        if self.runs.is_empty() && self.runs.capacity() > SPARE_CAPACITY {
            self.runs.shrink_to(SPARE_CAPACITY);
            self.blocks.shrink_to(SPARE_CAPACITY);
        }
    }

    /// Drops the oldest runs, read or not, while they are too many.
    fn drop_runs_while(&mut self, are_too_many: impl Fn(&Self) -> bool, now: Instant, feed: &Feed) {
        while are_too_many(self)
            && let Some(run) = self.runs.pop_front()
        {
            // The cursors that have yet to read it lag from now on, and do not count.
            feed.observer
                .fan_out_completed(run.events, now.saturating_duration_since(run.received_at));
            self.first_run += 1;
            self.trim_blocks();
        }
        // Perhaps only cursors that lag had yet to read what is left.
        self.trim(now, feed);
    }

    /// Drops the oldest runs until no more bytes are retained than the capacity allows.
    fn enforce_capacity(&mut self, now: Instant, feed: &Feed) {
        let oldest = |state: &Self| state.runs.front().map_or(state.end, |run| run.start);
        let exceeds = |state: &Self| state.end - oldest(state) > feed.capacity as u64;
        self.drop_runs_while(exceeds, now, feed);
    }

    /// Roughly the bytes that are retained: events, what is known of each run, and notices.
    fn retained(&self) -> usize {
        let start = self.blocks.front().map_or(0, |block| block.start);
        let end = self
            .blocks
            .back()
            .map_or(0, |block| block.start + block.bytes.len() as u64);
        let events = usize::try_from(end - start).unwrap_or(usize::MAX);
        events + self.runs.len() * size_of::<Run>() + self.notice_bytes
    }

    /// Drops the notices of cursors that have more than an equal part of `bytes`, and closes them.
    fn drop_notices(&mut self, bytes: usize, woken: &mut Vec<Waker>) {
        let has_notices = |slot: &&Slot| !slot.notices.is_empty();
        let count = self.cursors.values().filter(has_notices).count();
        let share = bytes / count.max(1);
        let too_many = |slot: &Slot| slot.notice_bytes() > share;
        let cursors = self.cursors.iter().filter(|(_, slot)| too_many(slot));
        for cursor in cursors.map(|(cursor, _)| *cursor).collect::<Vec<_>>() {
            let slot = slot(&mut self.cursors, cursor);
            self.notice_bytes -= slot.notice_bytes();
            slot.notices = VecDeque::new();
            slot.close = Some(Close {
                run: 0,
                after: slot.position,
                reason: CloseReason::FellBehind,
            });
            woken.extend(self.unpark(cursor));
        }
    }

    fn park(&mut self, cursor: CursorKey, cx: &Context<'_>) {
        let index = self.parked.len();
        let slot = slot(&mut self.cursors, cursor);
        match &mut slot.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            None => {
                slot.waker = Some(cx.waker().clone());
                slot.parked = Some(index);
                self.parked.push(cursor);
            }
        }
    }

    fn unpark(&mut self, cursor: CursorKey) -> Option<Waker> {
        let parked = slot(&mut self.cursors, cursor);
        let (waker, index) = (parked.waker.take(), parked.parked.take());
        if let Some(index) = index {
            self.parked.swap_remove(index);
            if let Some(&moved) = self.parked.get(index) {
                slot(&mut self.cursors, moved).parked = Some(index);
            }
        }
        waker
    }
}

/// A batch that is being published. The feed is locked until it is dropped.
pub struct Publication<'a> {
    feed: &'a Arc<Feed>,
    /// `None` only while it is being dropped.
    state: Option<MutexGuard<'a, State>>,
    woken: &'a mut WakeQueue,
    has_grown: bool,
}

impl Publication<'_> {
    fn state(&mut self) -> &mut State {
        self.state
            .as_mut()
            .expect("the publication holds its lock until it is dropped")
    }

    /// Adds a run: the next `len` bytes of the batch, which are `events`, the oldest of which was decoded at
    /// `received_at`.
    pub fn push_run(&mut self, len: usize, events: u32, received_at: Instant) {
        let state = self.state();
        let (start, end) = (state.end, state.end + len as u64);
        let last = Sequence::new(state.last.get() + u64::from(events));
        let waiting = std::mem::take(&mut state.at_end);
        state.runs.push_back(Run {
            start,
            end,
            events,
            last,
            received_at,
            waiting,
        });
        state.end = end;
        state.last = last;
        self.has_grown = true;
    }

    /// Creates a cursor that yields the events after this point. `reader` is whose it is, unless it is a participant's.
    #[must_use]
    pub fn subscribe(&mut self, reader: Origin) -> Cursor {
        let feed = Arc::clone(self.feed);
        let state = self.state();
        let run = state.next_run();
        state.at_end += 1;
        state.last_key.0 += 1;
        let (position, key) = (state.last, state.last_key);
        let slot = Slot {
            run,
            notices: VecDeque::new(),
            close: None,
            position,
            reader,
            waker: None,
            parked: None,
        };
        state.cursors.insert(key, slot);
        Cursor { key, feed }
    }

    /// Sends one cursor a notice at this point, unless it is being closed.
    ///
    /// A notice answers a command, and no commands are read from a client that has unread notices, so its mailbox bounds how many each
    /// cursor has, and the budget of the feeds how many all have.
    pub fn notify(&mut self, key: CursorKey, notice: Bytes) {
        let state = self.state();
        let run = state.next_run();
        let is_open = |slot: &&mut Slot| slot.close.is_none();
        if let Some(slot) = state.cursors.get_mut(&key).filter(is_open) {
            let bytes = notice_bytes(&notice);
            slot.notices.push_back((run, notice));
            state.notice_bytes += bytes;
            self.wake(key);
        }
    }

    /// Closes one cursor at this point, unless it is being closed already.
    pub fn close(&mut self, key: CursorKey, reason: CloseReason) {
        let state = self.state();
        let run = state.next_run();
        let after = state.last;
        if let Some(slot) = state.cursors.get_mut(&key) {
            slot.close.get_or_insert(Close { run, after, reason });
            self.wake(key);
        }
    }

    /// Closes every cursor at this point.
    pub fn close_all(&mut self, reason: &CloseReason) {
        self.close_where(|_| true, reason);
    }

    /// Closes the cursors of banned readers at this point. Those of participants close when these leave.
    pub fn close_banned(&mut self, target: &BanTarget, reason: &CloseReason) {
        self.close_where(|slot| target.is_origin(&slot.reader), reason);
    }

    fn close_where(&mut self, is_meant: impl Fn(&Slot) -> bool, reason: &CloseReason) {
        let cursors = self.state().cursors.iter();
        let keys: Vec<_> = cursors
            .filter(|(_, slot)| is_meant(slot))
            .map(|(key, _)| *key)
            .collect();
        for key in keys {
            self.close(key, reason.clone());
        }
    }

    /// The current number of subscribers.
    pub(super) fn fan_out(&mut self) -> FanOut {
        FanOut {
            subscribers: self.state().cursors.len(),
            lagging: self.feed.lagging.load(Ordering::Relaxed),
        }
    }

    fn wake(&mut self, cursor: CursorKey) {
        let waker = self.state().unpark(cursor);
        self.woken.push(waker);
    }
}

impl Drop for Publication<'_> {
    fn drop(&mut self) {
        let Some(mut state) = self.state.take() else {
            return;
        };
        if self.has_grown {
            let now = Instant::now();
            state.trim(now, self.feed);
            state.enforce_capacity(now, self.feed);
            let state = &mut *state;
            for cursor in state.parked.drain(..) {
                let slot = slot(&mut state.cursors, cursor);
                slot.parked = None;
                self.woken.push(slot.waker.take());
            }
        }
        self.feed.used.set(state.retained());
        self.woken.set_readers(state.cursors.len());
        drop(state);
        self.feed.used.enforce();
    }
}

/// One subscriber's position in a feed. Dropping it unsubscribes.
pub struct Cursor {
    feed: Arc<Feed>,
    key: CursorKey,
}

impl Cursor {
    /// Identifies this cursor to the publications of its feed.
    #[must_use]
    pub const fn key(&self) -> CursorKey {
        self.key
    }

    /// Why the cursor closes, if it does.
    pub(super) fn close_reason(&self) -> Option<CloseReason> {
        let state = self.feed.state.lock();
        let slot = state.cursors.get(&self.key)?;
        slot.close.as_ref().map(|close| close.reason.clone())
    }

    pub(super) const fn feed(&self) -> &Arc<Feed> {
        &self.feed
    }

    /// The last event that was read, or the one after which the cursor started.
    pub(super) fn position(&self) -> Sequence {
        self.feed.state.lock().cursors[&self.key].position
    }

    /// Moves a lagging cursor to the end of the feed. Returns the last event that it skips; if the cursor is being closed,
    /// that is the last one before the close.
    pub(super) fn skip_to_end(&mut self) -> Sequence {
        let mut guard = self.feed.state.lock();
        let state = &mut *guard;
        let (next_run, last) = (state.next_run(), state.last);
        let slot = slot(&mut state.cursors, self.key);
        let from = std::mem::replace(&mut slot.run, next_run);
        let upto = slot.close.as_ref().map_or(last, |close| close.after);
        slot.position = upto;
        // It now counts in `at_end`, and in no run.
        if from != next_run {
            if let Some(run) = state.run_mut(from) {
                run.waiting -= 1;
            }
            state.at_end += 1;
            state.trim(Instant::now(), &self.feed);
            self.feed.used.set(state.retained());
        }
        upto
    }

    /// The unread bytes; `u64::MAX` if the next event is no longer retained.
    pub(super) fn lag(&self) -> u64 {
        let mut state = self.feed.state.lock();
        let run = state.cursors[&self.key].run;
        let end = state.end;
        if run == state.next_run() {
            return 0;
        }
        state.run_mut(run).map_or(u64::MAX, |run| end - run.start)
    }

    /// The next item: all unread events of one block up to the next notice, or a notice, or the close. Pending while
    /// there is nothing new.
    ///
    /// Cancel safe: only what it returns counts as read.
    pub fn poll_next(&mut self, cx: &Context<'_>) -> Poll<FeedItem> {
        let mut guard = self.feed.state.lock();
        let state = &mut *guard;
        let next_run = state.next_run();
        let slot = slot(&mut state.cursors, self.key);
        if let Some((_, notice)) = slot.notices.pop_front_if(|(run, _)| *run <= slot.run) {
            if slot.notices.is_empty() {
                slot.notices = VecDeque::new();
            }
            state.notice_bytes -= notice_bytes(&notice);
            self.feed.used.set(state.retained());
            return Poll::Ready(FeedItem::Notice(notice));
        }
        if let Some(close) = slot.close.as_ref().filter(|close| close.run <= slot.run) {
            return Poll::Ready(FeedItem::Closed(close.reason.clone()));
        }
        if slot.run < state.first_run {
            return Poll::Ready(FeedItem::Lagged);
        }
        if slot.run == next_run {
            state.park(self.key, cx);
            return Poll::Pending;
        }
        let stop = [
            slot.notices.front().map(|(run, _)| *run),
            slot.close.as_ref().map(|close| close.run),
        ]
        .into_iter()
        .flatten()
        .fold(next_run, u64::min);
        Poll::Ready(FeedItem::Events(self.read(state, stop)))
    }

    /// Reads the runs before `stop`, of which there is at least one, but not beyond the end of a block.
    fn read(&self, state: &mut State, stop: u64) -> Bytes {
        let now = Instant::now();
        let observer = &*self.feed.observer;
        let first = state.cursors[&self.key].run;
        let index = |run: u64| usize::try_from(run - state.first_run).unwrap_or(usize::MAX);
        let (from, to) = (index(first), index(stop));
        let start = state.runs[from].start;
        // The block that contains the first run: the last one that starts at or before it.
        let block = &state.blocks[state.blocks.partition_point(|block| block.start <= start) - 1];
        let block_end = block.start + block.bytes.len() as u64;
        let mut end = start;
        let mut read = 0;
        let mut position = Sequence::ZERO;
        for run in state.runs.range(from..to).take_while(|run| run.end <= block_end) {
            observer.delivered(run.events, now.saturating_duration_since(run.received_at));
            end = run.end;
            position = run.last;
            read += 1;
        }
        let index = |offset: u64| usize::try_from(offset - block.start).unwrap_or(usize::MAX);
        let bytes = block.bytes.slice(index(start)..index(end));
        let slot = slot(&mut state.cursors, self.key);
        slot.run = first + read;
        slot.position = position;
        state.runs[from].waiting -= 1;
        match state.run_mut(first + read) {
            Some(run) => run.waiting += 1,
            None => state.at_end += 1,
        }
        state.trim(now, &self.feed);
        self.feed.used.set(state.retained());
        bytes
    }
}

impl Drop for Cursor {
    fn drop(&mut self) {
        let mut guard = self.feed.state.lock();
        let state = &mut *guard;
        state.unpark(self.key);
        let Some(slot) = state.cursors.remove(&self.key) else {
            return;
        };
        if let Some(capacity) = reduced_capacity(state.cursors.len(), state.cursors.capacity()) {
            state.cursors.shrink_to(capacity);
        }
        if let Some(capacity) = reduced_capacity(state.cursors.len(), state.parked.capacity()) {
            state.parked.shrink_to(capacity);
        }
        state.notice_bytes -= slot.notice_bytes();
        if slot.run == state.next_run() {
            state.at_end -= 1;
        } else if let Some(run) = state.run_mut(slot.run) {
            run.waiting -= 1;
            state.trim(Instant::now(), &self.feed);
        }
        self.feed.used.set(state.retained());
    }
}

/// The slot of a cursor that exists. Every key in `parked` has one, and so has a [`Cursor`] that calls this.
fn slot(cursors: &mut HashMap<CursorKey, Slot>, key: CursorKey) -> &mut Slot {
    cursors
        .get_mut(&key)
        .expect("a cursor has a slot until it is dropped")
}

fn notice_bytes(notice: &Bytes) -> usize {
    notice.len() + NOTICE_OVERHEAD
}

#[cfg(test)]
#[path = "feed_tests.rs"]
mod tests;
