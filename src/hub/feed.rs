//! The newest part of a room's log, as bytes that are ready for the wire, and the cursors of those who read it.
//!
//! Each broadcast is encoded once, into one piece of memory that all subscribers share. A subscriber is a cursor: when
//! its transport has room, it takes everything from its cursor to the end of the piece as one slice. There is no queue,
//! no copy and no encoding per subscriber.
//!
//! The feed is cut in two ways. *Pieces* are contiguous bytes. *Runs* are stretches of events that every cursor reads
//! as a whole: a cursor always stands between two runs, and the driver begins a new run wherever something is to happen
//! to one cursor alone (it starts there, ends there, or has a private notice there). Each run counts the cursors that
//! have yet to read it, so the feed knows, without looking at the cursors, what everybody has read and can let go.
//!
//! Promises:
//!
//! - A cursor yields each event from where it began, once, in order, and its private notices between the same two
//!   events at which they were given.
//! - The feed holds at most its capacity (and one batch), however slow a subscriber is; what everybody has read is let
//!   go at once. A cursor whose next run is gone is told so ([`Piece::FellBehind`]); it never skips by itself. A
//!   [`super::Reader`] reads on from the store then.
//! - Whatever a reader does, a writer never waits for it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use slab::Slab;

use super::end::End;
use super::observer::{Audience, Observer};
use crate::domain::Sequence;

/// Batches smaller than this are copied together while somebody is behind, so that who catches up takes few large
/// pieces and not many small ones: a transport frame has 16 KiB. While everybody keeps up nothing is copied.
const MERGED_PIECE: usize = 16 * 1024;

/// The newest part of one room's log.
pub struct Feed {
    capacity: usize,
    observer: Arc<dyn Observer>,
    /// How many readers are served from the store.
    behind: AtomicUsize,
    state: Mutex<State>,
}

struct State {
    /// Contiguous: each begins where the one before ends.
    pieces: VecDeque<PlacedPiece>,
    /// The runs that are kept; the first one's number is `first_run`. Unless empty, somebody has yet to read the first.
    runs: VecDeque<Run>,
    first_run: u64,
    /// The offset at which the last run ends.
    end: u64,
    /// The place in the log of the last event.
    last: Sequence,
    /// How many cursors have read everything.
    at_end: usize,
    cursors: Slab<Slot>,
    /// How many cursors there ever were.
    numbered: u64,
    /// The cursors that wait for more.
    parked: Vec<usize>,
}

struct PlacedPiece {
    start: u64,
    bytes: Bytes,
}

struct Run {
    start: u64,
    end: u64,
    events: u32,
    /// The place in the log of its last event.
    last: Sequence,
    /// When the oldest command of the run was decoded.
    received: Instant,
    /// How many cursors have yet to read it and have read everything before it.
    waiting: usize,
}

struct Slot {
    /// Tells it from another that had the same place in the slab.
    id: u64,
    /// The run to read next.
    run: u64,
    notices: VecDeque<(u64, Bytes)>,
    /// Before which run it ends, after which event, and why.
    end: Option<(u64, Sequence, End)>,
    /// The place in the log of the last event it has read.
    seen: Sequence,
    waker: Option<Waker>,
    /// Its place among the parked.
    parked: Option<usize>,
}

/// Names a cursor towards its feed, for as long as it lives and never again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CursorKey {
    index: usize,
    id: u64,
}

/// What a cursor yields.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece {
    /// Events, framed.
    Events(Bytes),
    /// A private message, framed.
    Notice(Bytes),
    /// Nothing more comes.
    End(End),
    /// What comes next is no longer in the feed.
    FellBehind,
}

impl Feed {
    /// A feed of what follows the event at `last`, which keeps at most `capacity` bytes for those who are behind.
    #[must_use]
    pub fn new(capacity: usize, last: Sequence, observer: Arc<dyn Observer>) -> Arc<Self> {
        let state = State {
            pieces: VecDeque::new(),
            runs: VecDeque::new(),
            first_run: 0,
            end: 0,
            last,
            at_end: 0,
            cursors: Slab::new(),
            numbered: 0,
            parked: Vec::new(),
        };
        Arc::new(Self {
            capacity,
            observer,
            behind: AtomicUsize::new(0),
            state: Mutex::new(state),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing in here panics while the lock is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to publish `bytes`, the events of one batch. They appear to subscribers run by run, as
    /// [`Publication::run`] is called for them, and nobody sees any of it before the publication is dropped.
    pub fn publish<'a>(self: &'a Arc<Self>, bytes: Bytes, woken: &'a mut Vec<Waker>) -> Publication<'a> {
        let mut state = self.lock();
        if !bytes.is_empty() {
            state.place(bytes);
        }
        Publication {
            feed: self,
            state: Some(state),
            woken,
            grown: false,
        }
    }

    /// A reader is served from the store from now on (`true`), or no longer is (`false`).
    pub(super) fn behind(&self, behind: bool) {
        if behind {
            self.behind.fetch_add(1, Ordering::Relaxed);
        } else {
            self.behind.fetch_sub(1, Ordering::Relaxed);
        }
        self.observer.behind(behind);
    }

    /// How many cursors there are.
    #[must_use]
    pub fn cursors(&self) -> usize {
        self.lock().cursors.len()
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

    fn place(&mut self, bytes: Bytes) {
        let start = self
            .pieces
            .back()
            .map_or(self.end, |last| last.start + last.bytes.len() as u64);
        // Someone has yet to read the last piece: what is small is read together.
        if let Some(last) = self.pieces.back_mut()
            && last.bytes.len() + bytes.len() <= MERGED_PIECE
        {
            let mut merged = BytesMut::with_capacity(last.bytes.len() + bytes.len());
            merged.extend_from_slice(&last.bytes);
            merged.extend_from_slice(&bytes);
            last.bytes = merged.freeze();
        } else {
            self.pieces.push_back(PlacedPiece { start, bytes });
        }
    }

    /// Lets go of the runs that nobody waits for, and of the pieces without runs.
    fn trim(&mut self, now: Instant, observer: &dyn Observer) {
        while let Some(run) = self.runs.pop_front_if(|run| run.waiting == 0) {
            observer.completed(run.events, now.saturating_duration_since(run.received));
            self.first_run += 1;
        }
        self.trim_pieces();
    }

    fn trim_pieces(&mut self) {
        let start = self.runs.front().map_or(self.end, |run| run.start);
        while self
            .pieces
            .pop_front_if(|piece| piece.start + piece.bytes.len() as u64 <= start)
            .is_some()
        {}
    }

    /// Keeps no more than `capacity` bytes, whoever has yet to read them.
    fn bound(&mut self, capacity: usize, now: Instant, observer: &dyn Observer) {
        while let Some(run) = self.runs.front()
            && self.end - run.start > capacity as u64
        {
            // Nobody who is still waiting for it counts as live.
            observer.completed(run.events, now.saturating_duration_since(run.received));
            self.runs.pop_front();
            self.first_run += 1;
        }
        self.trim_pieces();
    }

    fn park(&mut self, key: usize, cx: &Context<'_>) {
        let place = self.parked.len();
        let slot = &mut self.cursors[key];
        match &mut slot.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            None => {
                slot.waker = Some(cx.waker().clone());
                slot.parked = Some(place);
                self.parked.push(key);
            }
        }
    }

    fn unpark(&mut self, key: usize) -> Option<Waker> {
        let slot = &mut self.cursors[key];
        let (waker, place) = (slot.waker.take(), slot.parked.take());
        if let Some(place) = place {
            self.parked.swap_remove(place);
            if let Some(&moved) = self.parked.get(place) {
                self.cursors[moved].parked = Some(place);
            }
        }
        waker
    }
}

/// A batch that is being published: the feed is locked until it is dropped, and nobody is woken before.
pub struct Publication<'a> {
    feed: &'a Arc<Feed>,
    /// None once it is dropped.
    state: Option<MutexGuard<'a, State>>,
    woken: &'a mut Vec<Waker>,
    grown: bool,
}

impl Publication<'_> {
    fn state(&mut self) -> &mut State {
        // Only `drop` takes it.
        self.state
            .as_mut()
            .expect("the publication holds its lock until it is dropped")
    }

    /// The next `len` bytes of the batch are `events`, of which the oldest was decoded at `received`.
    pub fn run(&mut self, len: usize, events: u32, received: Instant) {
        let state = self.state();
        let (start, end) = (state.end, state.end + len as u64);
        let last = Sequence::new(state.last.get() + u64::from(events));
        let waiting = std::mem::take(&mut state.at_end);
        state.runs.push_back(Run {
            start,
            end,
            events,
            last,
            received,
            waiting,
        });
        state.end = end;
        state.last = last;
        self.grown = true;
    }

    /// A new cursor, which yields what comes after here.
    #[must_use]
    pub fn enter(&mut self) -> Cursor {
        let feed = Arc::clone(self.feed);
        let state = self.state();
        let run = state.next_run();
        state.at_end += 1;
        state.numbered += 1;
        let (seen, id) = (state.last, state.numbered);
        let slot = Slot {
            id,
            run,
            notices: VecDeque::new(),
            end: None,
            seen,
            waker: None,
            parked: None,
        };
        let key = CursorKey {
            index: state.cursors.insert(slot),
            id,
        };
        Cursor { key, feed }
    }

    /// A private message for one cursor, between what came before and what comes after.
    ///
    /// A notice answers a command, and a client's commands are not read while its notices wait, so the room's inbox
    /// bounds how many there are.
    pub fn notify(&mut self, key: CursorKey, notice: Bytes) {
        let state = self.state();
        let run = state.next_run();
        if let Some(slot) = state.cursors.get_mut(key.index).filter(|slot| slot.id == key.id) {
            slot.notices.push_back((run, notice));
            self.wake(key.index);
        }
    }

    /// Ends one cursor after what came before. Where an end is set already, that one holds.
    pub fn end(&mut self, key: CursorKey, end: End) {
        let state = self.state();
        let run = state.next_run();
        let last = state.last;
        if let Some(slot) = state.cursors.get_mut(key.index).filter(|slot| slot.id == key.id) {
            slot.end.get_or_insert((run, last, end));
            self.wake(key.index);
        }
    }

    /// Ends every cursor after what came before.
    pub fn end_all(&mut self, end: &End) {
        let cursors = self.state().cursors.iter();
        let keys: Vec<_> = cursors
            .map(|(index, slot)| CursorKey { index, id: slot.id })
            .collect();
        for key in keys {
            self.end(key, end.clone());
        }
    }

    /// Who is there.
    #[must_use]
    pub fn audience(&mut self) -> Audience {
        Audience {
            subscribers: self.state().cursors.len(),
            behind: self.feed.behind.load(Ordering::Relaxed),
        }
    }

    fn wake(&mut self, key: usize) {
        let waker = self.state().unpark(key);
        self.woken.extend(waker);
    }
}

impl Drop for Publication<'_> {
    fn drop(&mut self) {
        let Some(mut state) = self.state.take() else {
            return;
        };
        if self.grown {
            let now = Instant::now();
            state.trim(now, &*self.feed.observer);
            state.bound(self.feed.capacity, now, &*self.feed.observer);
            let state = &mut *state;
            for key in state.parked.drain(..) {
                let slot = &mut state.cursors[key];
                slot.parked = None;
                self.woken.extend(slot.waker.take());
            }
        }
        drop(state);
        self.woken.drain(..).for_each(Waker::wake);
    }
}

/// One subscriber's place in a feed. Dropping it gives the place up.
pub struct Cursor {
    feed: Arc<Feed>,
    key: CursorKey,
}

impl Cursor {
    /// Names this cursor towards its feed's publications.
    #[must_use]
    pub const fn key(&self) -> CursorKey {
        self.key
    }

    /// The feed it reads.
    pub(super) const fn feed(&self) -> &Arc<Feed> {
        &self.feed
    }

    /// The place in the log of the last event it has read (or stands after).
    #[must_use]
    pub fn seen(&self) -> Sequence {
        self.feed.lock().cursors[self.key.index].seen
    }

    /// Goes to the end of the feed, and gives the place in the log up to which the reader must look elsewhere (or after
    /// which it has nothing to read, where its end was set meanwhile). For a cursor that fell behind.
    pub fn skip_to_end(&mut self) -> Sequence {
        let mut guard = self.feed.lock();
        let state = &mut *guard;
        let (next_run, last) = (state.next_run(), state.last);
        let slot = &mut state.cursors[self.key.index];
        let from = std::mem::replace(&mut slot.run, next_run);
        let upto = slot.end.as_ref().map_or(last, |(_, end, _)| *end);
        slot.seen = upto;
        // It is counted among those at the end now, and nowhere else.
        if from != next_run {
            if let Some(run) = state.run_mut(from) {
                run.waiting -= 1;
            }
            state.at_end += 1;
            state.trim(Instant::now(), &*self.feed.observer);
        }
        upto
    }

    /// How many bytes are yet to be read.
    #[must_use]
    pub fn lag(&self) -> u64 {
        let mut state = self.feed.lock();
        let run = state.cursors[self.key.index].run;
        let end = state.end;
        if run == state.next_run() {
            return 0;
        }
        state.run_mut(run).map_or(u64::MAX, |run| end - run.start)
    }

    /// What comes next: as many events as are there in one piece, or a notice, or the end. Pending while there is
    /// nothing new.
    ///
    /// Cancellation safe: what it yields is read, what it does not yield is not.
    pub fn poll_next(&mut self, cx: &Context<'_>) -> Poll<Piece> {
        let mut guard = self.feed.lock();
        let state = &mut *guard;
        let next_run = state.next_run();
        let slot = &mut state.cursors[self.key.index];
        if let Some((_, notice)) = slot.notices.pop_front_if(|(run, _)| *run <= slot.run) {
            return Poll::Ready(Piece::Notice(notice));
        }
        if let Some((run, _, end)) = &slot.end
            && *run <= slot.run
        {
            return Poll::Ready(Piece::End(end.clone()));
        }
        if slot.run < state.first_run {
            return Poll::Ready(Piece::FellBehind);
        }
        if slot.run == next_run {
            state.park(self.key.index, cx);
            return Poll::Pending;
        }
        let stop = [
            slot.notices.front().map(|(run, _)| *run),
            slot.end.as_ref().map(|(run, _, _)| *run),
        ]
        .into_iter()
        .flatten()
        .fold(next_run, u64::min);
        Poll::Ready(Piece::Events(self.read(state, stop)))
    }

    /// Reads up to the run `stop`, at most to the end of the piece; there is at least one run to read.
    fn read(&self, state: &mut State, stop: u64) -> Bytes {
        let now = Instant::now();
        let observer = &*self.feed.observer;
        let first = state.cursors[self.key.index].run;
        let index = |run: u64| usize::try_from(run - state.first_run).unwrap_or(usize::MAX);
        let (from, to) = (index(first), index(stop));
        let start = state.runs[from].start;
        // The piece in which the first run lies: the last one that begins at or before it.
        let piece = &state.pieces[state.pieces.partition_point(|piece| piece.start <= start) - 1];
        let piece_end = piece.start + piece.bytes.len() as u64;
        let mut end = start;
        let mut read = 0;
        let mut seen = Sequence::ZERO;
        for run in state.runs.range(from..to).take_while(|run| run.end <= piece_end) {
            observer.delivered(run.events, now.saturating_duration_since(run.received));
            end = run.end;
            seen = run.last;
            read += 1;
        }
        let place = |offset: u64| usize::try_from(offset - piece.start).unwrap_or(usize::MAX);
        let bytes = piece.bytes.slice(place(start)..place(end));
        let slot = &mut state.cursors[self.key.index];
        slot.run = first + read;
        slot.seen = seen;
        state.runs[from].waiting -= 1;
        match state.run_mut(first + read) {
            Some(run) => run.waiting += 1,
            None => state.at_end += 1,
        }
        state.trim(now, observer);
        bytes
    }
}

impl Drop for Cursor {
    fn drop(&mut self) {
        let mut guard = self.feed.lock();
        let state = &mut *guard;
        state.unpark(self.key.index);
        let slot = state.cursors.remove(self.key.index);
        if slot.run == state.next_run() {
            state.at_end -= 1;
        } else if let Some(run) = state.run_mut(slot.run) {
            run.waiting -= 1;
            state.trim(Instant::now(), &*self.feed.observer);
        }
    }
}

#[cfg(test)]
#[path = "feed_tests.rs"]
mod tests;
