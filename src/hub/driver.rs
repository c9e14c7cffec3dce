//! The task that runs one room: it empties the inbox, lets the fold decide, has what was accepted stored, and publishes
//! it when it is durable.
//!
//! It alone appends to the room's log and feed, so what it does in order, everybody sees in that order. All that waits
//! in the inbox is one batch: encoded into a few pieces of memory, stored with one sync, published under one lock each,
//! told with one round of wake-ups. While a batch is being stored the next one grows.

use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::batch::{Chunk, Step};
use super::due::Due;
use super::end::End;
use super::feed::{CursorKey, Feed};
use super::member::Member;
use super::now::wall_time;
use super::observer::Stored;
use super::reader::Reader;
use super::recovery::Recovered;
use super::request::Request;
use super::room::RoomHandle;
use super::sequencer::Sequencer;
use super::shared::Shared;
use crate::domain::Room;
use crate::store::{Append, LogId, StoreError, encode_snapshot};

/// A room that nobody is in, reads or asks for this long leaves memory; its log stays.
const IDLE: Duration = Duration::from_secs(60);

/// What it costs, about, to tell one subscriber of a batch: a wake-up and a write of its connection.
const TELLING: Duration = Duration::from_micros(24);

/// The runtime's timer goes by this: a shorter wait would be a longer one.
const TICK: Duration = Duration::from_millis(1);

/// Runs one room.
pub(super) struct Driver {
    sequencer: Sequencer,
    log: LogId,
    shared: Shared,
    handle: Arc<RoomHandle>,
    feed: Arc<Feed>,
    /// The cursor of each connection whose stream has begun and not ended.
    cursors: HashMap<u64, CursorKey>,
    snapshot: Due,
    woken: Vec<Waker>,
}

impl Driver {
    pub(super) fn new(recovered: Recovered, shared: Shared, handle: Arc<RoomHandle>) -> Self {
        let Recovered {
            room,
            log,
            covered,
            since_snapshot,
        } = recovered;
        shared.observer.room(true);
        Self {
            feed: Feed::new(shared.feed_bytes, room.last(), Arc::clone(&shared.observer)),
            sequencer: Sequencer::new(room, &log, shared.clone(), Arc::clone(&handle)),
            log: log.id,
            snapshot: Due::new(covered, since_snapshot, shared.retain_age),
            shared,
            handle,
            cursors: HashMap::new(),
            woken: Vec::new(),
        }
    }

    /// Runs until the room has been idle for a while, or its inbox is closed and empty.
    ///
    /// # Errors
    ///
    /// When the store fails. Nothing that was not stored has been published then.
    pub(super) async fn run(mut self) -> Result<(), StoreError> {
        self.sequencer.receive_the_lost();
        self.flush().await?;
        let inbox = Arc::clone(&self.handle.inbox);
        let mut requests = Vec::new();
        let mut open_at = Instant::now();
        loop {
            let pause = self.pause();
            self.gather(open_at).await;
            let wake_at = self.sequencer.next_end();
            let wake_at = wake_at.unwrap_or_else(|| Instant::now() + IDLE);
            tokio::select! {
                biased;
                is_open = poll_fn(|cx| inbox.poll_take(cx, &mut requests)) => {
                    if !is_open {
                        return Ok(());
                    }
                }
                () = tokio::time::sleep_until(wake_at) => {
                    if self.is_vacant() {
                        self.leave_snapshot().await?;
                        if inbox.close_if_empty() {
                            return Ok(());
                        }
                    } else if self.snapshot.is_old() {
                        self.leave_snapshot().await?;
                    }
                }
            }
            let now = Instant::now();
            let first = requests.first().and_then(Request::received);
            let first = first.map_or(now, Instant::from_std);
            // A batch every `pause`, and one ahead of that: what comes evenly, though some of it late, waits for nothing. It
            // counts when this batch was due, not when its turn came: a late turn must not make the next one later still.
            open_at = first.min(now).max(open_at + pause);
            let at = wall_time();
            #[cfg(feature = "failpoints")]
            self.sequencer.spoil(&mut requests);
            for request in requests.drain(..) {
                self.sequencer.take(request, at);
            }
            self.sequencer.end_grace(at);
            self.flush().await?;
            // Those who were woken run before the next batch is looked for: it grows meanwhile.
            tokio::task::yield_now().await;
        }
    }

    /// How far apart the batches of a busy room are: about as long as it takes to tell everybody, so that with many
    /// subscribers one wake-up and one write each tell several events. Nothing where that would not be worth a wait.
    fn pause(&self) -> Duration {
        let subscribers = u32::try_from(self.feed.cursors()).unwrap_or(u32::MAX);
        let pause = TELLING.saturating_mul(subscribers).min(self.shared.coalesce);
        if pause < TICK { Duration::ZERO } else { pause }
    }

    /// Lets requests gather until then, or until there is no room for more. Only a room in which something happens more
    /// often than once in a pause waits here: an event after a quiet moment never does (leading-edge coalescing).
    async fn gather(&self, open_at: Instant) {
        if open_at > Instant::now() {
            let inbox = &self.handle.inbox;
            tokio::select! {
                () = tokio::time::sleep_until(open_at) => {}
                () = poll_fn(|cx| inbox.poll_full(cx)) => {}
            }
        }
    }

    const fn room(&self) -> &Room {
        self.sequencer.room()
    }

    fn is_vacant(&self) -> bool {
        self.room().participants().is_empty() && self.feed.cursors() == 0
    }

    /// Stores what was accepted, then lets everybody see it.
    async fn flush(&mut self) -> Result<(), StoreError> {
        let mut chunks = self.sequencer.decided();
        if chunks.is_empty() {
            return Ok(());
        }
        let records: Vec<_> = chunks.iter().filter_map(Chunk::record).collect();
        if !records.is_empty() {
            let (bytes, events) = records.iter().fold((0, 0), |(bytes, events), record| {
                (bytes + record.frames.len(), events + record.events)
            });
            self.snapshot.stored(bytes);
            let is_due = self.snapshot.is_due(self.room());
            let snapshot = is_due.then(|| self.take_snapshot());
            let given = std::time::Instant::now();
            self.store(Append { records, snapshot }).await?;
            let stored = Stored {
                given,
                durable: std::time::Instant::now(),
                bytes,
                events,
            };
            self.shared.observer.stored(stored.durable - given);
            for trail in chunks.iter_mut().flat_map(|chunk| &mut chunk.trails) {
                trail.stored(stored);
            }
        }
        self.handle
            .show(self.room().time(), self.room().participants().len());
        #[cfg(feature = "failpoints")]
        let chunks: Vec<Chunk> = chunks.into_iter().map(Chunk::spoiled).collect();
        for chunk in chunks {
            self.publish(chunk);
            #[cfg(feature = "failpoints")]
            crate::failpoint::pass("after-publish");
        }
        Ok(())
    }

    #[cfg(not(feature = "failpoints"))]
    async fn store(&self, append: Append) -> Result<(), StoreError> {
        self.shared.store.append(self.log, append).await
    }

    #[cfg(feature = "failpoints")]
    async fn store(&self, append: Append) -> Result<(), StoreError> {
        use crate::failpoint::{is_on, pass};

        pass("before-append");
        if !is_on("skip-append") {
            self.shared.store.append(self.log, append).await?;
        }
        pass("after-append");
        Ok(())
    }

    fn take_snapshot(&mut self) -> Bytes {
        self.snapshot.taken(self.sequencer.room());
        encode_snapshot(&self.room().snapshot())
    }

    /// Stores a snapshot of a room in which nothing happens: its log may be let go then as far as the limits say, and it is
    /// soon back when it is needed again.
    async fn leave_snapshot(&mut self) -> Result<(), StoreError> {
        if self.snapshot.is_covered(self.room()) {
            return Ok(());
        }
        let snapshot = Some(self.take_snapshot());
        let records = Vec::new();
        self.shared
            .store
            .append(self.log, Append { records, snapshot })
            .await
    }

    fn publish(&mut self, chunk: Chunk) {
        let mut trails = chunk.trails;
        let begun = (!trails.is_empty()).then(std::time::Instant::now);
        let reader = |cursor, after| {
            let Shared { store, observer, .. } = &self.shared;
            Reader::new(Arc::clone(store), self.log, cursor, after, Arc::clone(observer))
        };
        // Cursors are numbered under the feed's lock; readers are made after it.
        let mut entered = Vec::new();
        let mut subscribed = Vec::new();
        let mut answered = Vec::new();
        let mut publication = self.feed.publish(chunk.bytes, &mut self.woken);
        for step in chunk.steps {
            match step {
                Step::Run {
                    len,
                    events,
                    received,
                } => publication.run(len, events, received),
                Step::Enter { entry, reply } => {
                    let cursor = publication.enter();
                    self.cursors.insert(entry.connection, cursor.key());
                    entered.push((cursor, entry, reply));
                }
                Step::Subscribe { after, reply } => subscribed.push((publication.enter(), after, reply)),
                Step::Notify { connection, notice } => {
                    if let Some(&cursor) = self.cursors.get(&connection) {
                        publication.notify(cursor, notice);
                    }
                }
                Step::End { connection, end } => {
                    if let Some(cursor) = self.cursors.remove(&connection) {
                        publication.end(cursor, end);
                    }
                }
                Step::EndAll(end) => publication.end_all(&end),
                Step::Posted { posted, reply } => answered.push((posted, reply)),
                Step::Describe { description, reply } => {
                    reply.send(Ok(description)).ok();
                }
            }
        }
        let way = begun.map(|begun| (begun, publication.audience()));
        drop(publication);
        if let Some((begun, audience)) = way {
            for trail in &mut trails {
                trail.published(begun, audience);
            }
        }
        for (cursor, entry, reply) in entered {
            let observer = Arc::clone(&self.shared.observer);
            let reader = reader(cursor, entry.after);
            // A member that nobody waits for any more is dropped here, and is lost by that.
            drop(reply.send(Ok(Member::new(Arc::clone(&self.handle), reader, observer, entry))));
        }
        for (cursor, after, reply) in subscribed {
            drop(reply.send(Ok(reader(cursor, after))));
        }
        for (posted, reply) in answered {
            reply.send(Ok(posted)).ok();
        }
    }
}

impl Drop for Driver {
    /// Whatever ends the driver, nobody is left waiting for it.
    fn drop(&mut self) {
        self.handle.inbox.close();
        self.feed
            .publish(Bytes::new(), &mut self.woken)
            .end_all(&End::Failed);
        self.shared.observer.room(false);
    }
}
