//! The task that runs one room: it empties the inbox, lets the fold decide, has what was accepted stored, and publishes
//! it when it is durable.
//!
//! It alone appends to the room's log and feed, so what it does in order, everybody sees in that order. All that waits
//! in the inbox is one batch: encoded into a few pieces of memory, stored with one sync, published under one lock each,
//! told with one round of wake-ups. While a batch is being stored the next one grows.

use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::batch::{Batch, Chunk, Step};
use super::description::Description;
use super::end::End;
use super::entrance::Entrance;
use super::error::HubError;
use super::feed::{CursorKey, Feed};
use super::frame;
use super::member::{Entry, Member};
use super::notice::{self, Speaking};
use super::now::wall_time;
use super::observer::{Accepted, Observer, Stored, Trail};
use super::reader::Reader;
use super::receipt::Receipt;
use super::recovery::Recovered;
use super::request::{Posted, Reply, Request};
use super::room::RoomHandle;
use super::said::Said;
use super::start::{Place, Start};
use super::token::Tokens;
use crate::domain::{
    Command, Epoch, Event, Join, LamportTime, Leave, Name, Outcome, ParticipantId, Post, Refusal, Room, Say,
    Sequence, Timestamp, WallTime,
};
use crate::store::{Append, Bounds, LogId, Store, StoreError, encode_snapshot};

/// A room that nobody is in, reads or asks for this long leaves memory; its log stays.
const IDLE: Duration = Duration::from_secs(60);

/// A snapshot is stored when the log has grown by this many events (and at least as many as the room has participants,
/// since it names them all).
const SNAPSHOT_EVERY: u64 = 10_000;

/// Or by this many bytes: what no snapshot stands for is kept, whatever the retention.
const SNAPSHOT_BYTES: usize = 8 << 20;

/// The most events that a stream begins with on request.
const MAX_HISTORY: u32 = 10_000;

/// What it costs, about, to tell one subscriber of a batch: a wake-up and a write of its connection.
const TELLING: Duration = Duration::from_micros(24);

/// The runtime's timer goes by this: a shorter wait would be a longer one.
const TICK: Duration = Duration::from_millis(1);

/// What all rooms of a hub share.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) store: Arc<dyn Store>,
    pub(super) tokens: Tokens,
    pub(super) observer: Arc<dyn Observer>,
    pub(super) feed_bytes: usize,
    pub(super) resume_grace: Duration,
    pub(super) coalesce: Duration,
    /// How old a snapshot may become when something has happened since; nothing: however old.
    pub(super) snapshot_after: Option<Duration>,
}

/// How old snapshots may become where events may be kept for `retain_age`, zero for however long.
pub(super) fn snapshot_after(retain_age: Duration) -> Option<Duration> {
    (!retain_age.is_zero()).then(|| (retain_age / 4).max(Duration::from_secs(1)))
}

/// Runs one room.
pub(super) struct Driver {
    room: Room,
    log: LogId,
    epoch: Epoch,
    shared: Shared,
    handle: Arc<RoomHandle>,
    feed: Arc<Feed>,
    /// The newest connection of each participant; a participant without one is lost, and has some time to come back.
    connections: HashMap<ParticipantId, u64>,
    /// The cursor of each connection whose stream has begun and not ended.
    cursors: HashMap<u64, CursorKey>,
    last_connection: u64,
    /// When the time of each lost participant is over, soonest first.
    grace: VecDeque<(Instant, ParticipantId, Sequence)>,
    batch: Batch,
    /// The place and Lamport time of the newest event.
    newest: (Sequence, LamportTime),
    /// The place of the newest stored snapshot.
    snapshot: Sequence,
    /// How many bytes were stored since.
    since_snapshot: usize,
    /// When it was due at the latest.
    snapshot_at: Instant,
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
        let feed = Feed::new(shared.feed_bytes, room.last(), Arc::clone(&shared.observer));
        let newest = (room.last(), room.time());
        Self {
            room,
            log: log.id,
            epoch: log.epoch,
            shared,
            handle,
            feed,
            connections: HashMap::new(),
            cursors: HashMap::new(),
            last_connection: 0,
            grace: VecDeque::new(),
            batch: Batch::default(),
            newest,
            snapshot: covered,
            since_snapshot,
            snapshot_at: Instant::now(),
            woken: Vec::new(),
        }
    }

    /// Runs until the room has been idle for a while, or its inbox is closed and empty.
    ///
    /// # Errors
    ///
    /// When the store fails. Nothing that was not stored has been published then.
    pub(super) async fn run(mut self) -> Result<(), StoreError> {
        self.receive_the_lost();
        self.flush().await?;
        let inbox = Arc::clone(&self.handle.inbox);
        let mut requests = Vec::new();
        let mut open_at = Instant::now();
        loop {
            let pause = self.pause();
            self.gather(open_at).await;
            let wake_at = self
                .grace
                .front()
                .map_or_else(|| Instant::now() + IDLE, |(end, ..)| *end);
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
                    } else if self.is_snapshot_old() {
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
            self.spoil(&mut requests);
            for request in requests.drain(..) {
                self.take(request, at);
            }
            self.end_grace(at);
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

    /// Whoever was in the room when its server ended: who can come back has the time to, anybody else has left.
    fn receive_the_lost(&mut self) {
        let at = wall_time();
        let lost: Vec<_> = self
            .room
            .participants()
            .iter()
            .map(|(id, stay)| (*id, stay.is_resumable))
            .collect();
        for (participant, is_resumable) in lost {
            self.lose(participant, is_resumable, at);
        }
    }

    fn is_vacant(&self) -> bool {
        self.room.participants().is_empty() && self.feed.cursors() == 0
    }

    fn take(&mut self, request: Request, at: WallTime) {
        match request {
            Request::Join {
                entrance,
                reply,
                received,
            } => self.enter(*entrance, reply, received, at),
            Request::Say { say, received } => self.say(say, received, at),
            Request::Post {
                post,
                reply,
                received,
            } => self.post(*post, reply, received, at),
            Request::Leave {
                leave,
                connection,
                received,
            } => {
                if self.is_connected(leave.participant, connection) {
                    self.leave(leave, &received, at);
                }
            }
            Request::Lost {
                participant,
                connection,
            } => {
                // Where only the client's side has ended, the stream does too.
                self.batch.step(Step::End {
                    connection,
                    end: End::Left,
                });
                if self.is_connected(participant, connection) {
                    self.connections.remove(&participant);
                    let is_resumable = self
                        .room
                        .participants()
                        .get(&participant)
                        .is_some_and(|stay| stay.is_resumable);
                    self.lose(participant, is_resumable, at);
                }
            }
            Request::Subscribe { start, reply } => self.subscribe(start, reply),
            Request::Describe { reply } => {
                self.batch.step(Step::Describe {
                    description: self.describe(),
                    reply,
                });
            }
            Request::Close(end) => self.batch.step(Step::EndAll(end)),
        }
    }

    fn is_connected(&self, participant: ParticipantId, connection: u64) -> bool {
        self.connections.get(&participant) == Some(&connection)
    }

    fn enter(&mut self, entrance: Entrance, reply: Reply<Member>, received: Receipt, at: WallTime) {
        let Entrance {
            join,
            token,
            seen,
            history,
        } = entrance;
        let stay = self.stay_of(&token);
        // Whoever is refused for that changes nothing.
        if let Err(refusal) = self.room.check_time(join.timestamp) {
            self.shared.observer.refused(&refusal);
            reply.send(Err(refusal.into())).ok();
            return;
        }
        if stay.is_none() {
            self.make_way(&join, at);
        }
        let bounds = match self.bounds() {
            Ok(bounds) => bounds,
            Err(_) => return drop(reply.send(Err(HubError::Failed))),
        };
        let (after, is_recovered) = self.begin(bounds, seen, history);
        if seen.is_some() {
            self.shared.observer.resumed(is_recovered);
        }
        let time = self.room.time();
        self.last_connection += 1;
        let connection = self.last_connection;
        let epoch = self.epoch;
        let entry = |participant, name, joined: Option<(Sequence, LamportTime)>, token| Entry {
            participant,
            name,
            epoch,
            bounds,
            after,
            is_recovered,
            time,
            joined,
            connection,
            token,
        };
        if let Some((participant, name, since)) = stay {
            // The stay goes on, under its name. Nobody else hears of it.
            if let Some(older) = self.connections.insert(participant, connection) {
                self.batch.step(Step::End {
                    connection: older,
                    end: End::TakenOver,
                });
            }
            let token = Some(self.token(participant, since));
            let entry = entry(participant, name, None, token);
            self.batch.step(Step::Enter { entry, reply });
            return;
        }
        let is_resumable = join.is_resumable;
        match self.room.apply(Command::Join(join), at) {
            Outcome::Accepted(event) => {
                let token = is_resumable.then(|| self.token(event.participant, event.sequence));
                let joined = Some((event.sequence, event.time));
                let entry = entry(event.participant, event.name.clone(), joined, token);
                self.connections.insert(event.participant, connection);
                self.batch.step(Step::Enter { entry, reply });
                // The stream's own trace is its JOIN's.
                self.append(event, None, &received);
            }
            Outcome::Refused { refusal, .. } => {
                self.shared.observer.refused(&refusal);
                // Whoever does not wait for the answer any more needs none.
                reply.send(Err(refusal.into())).ok();
            }
            Outcome::Repeated { .. } => {}
        }
    }

    /// Lets those leave who are lost and stand in the way of `join` by their name or id: somebody whose client was
    /// restarted would else have to wait for the own ghost to leave.
    fn make_way(&mut self, join: &Join, at: WallTime) {
        let is_unique = !self.room.rules().allow_duplicate_names;
        let lost: Vec<ParticipantId> = self
            .grace
            .iter()
            .map(|(_, participant, _)| *participant)
            .filter(|participant| !self.connections.contains_key(participant))
            .filter(|participant| {
                let stay = self.room.participants().get(participant);
                stay.is_some_and(|stay| {
                    Some(*participant) == join.id || is_unique && stay.name.looks_like(&join.name)
                })
            })
            .collect();
        for participant in lost {
            self.announce_loss(participant, at);
        }
    }

    fn token(&self, participant: ParticipantId, since: Sequence) -> String {
        self.shared
            .tokens
            .make(&self.handle.name, self.epoch, participant, since)
    }

    /// The stay that goes on, if the token is for one.
    fn stay_of(&self, token: &str) -> Option<(ParticipantId, Name, Sequence)> {
        let (participant, since) = self.shared.tokens.check(token, &self.handle.name, self.epoch)?;
        let stay = self.room.participants().get(&participant)?;
        (stay.since == since).then(|| (participant, stay.name.clone(), since))
    }

    fn bounds(&self) -> Result<Bounds, StoreError> {
        let stored = self.shared.store.bounds(self.log)?;
        // What is in this batch will be stored before anybody can read.
        Ok(Bounds {
            first: stored.first,
            last: self.room.last(),
        })
    }

    /// After which event a stream begins, and whether that is the place that was named.
    fn begin(&self, bounds: Bounds, seen: Option<Place>, history: u32) -> (Sequence, bool) {
        match seen {
            Some(seen) if seen.epoch == self.epoch.get() && bounds.cover(seen.sequence) => {
                (seen.sequence, true)
            }
            _ => (newest(bounds, history), false),
        }
    }

    fn subscribe(&mut self, start: Start, reply: Reply<Reader>) {
        let bounds = match self.bounds() {
            Ok(bounds) => bounds,
            Err(_) => return drop(reply.send(Err(HubError::Failed))),
        };
        let after = match start {
            Start::Now => bounds.last,
            Start::Last(count) => newest(bounds, count),
            Start::After(place) => {
                let (after, is_kept) = self.begin(bounds, Some(place), 0);
                self.shared.observer.resumed(is_kept);
                if !is_kept {
                    return drop(reply.send(Err(HubError::NotKept {
                        epoch: self.epoch,
                        bounds,
                    })));
                }
                after
            }
        };
        self.batch.step(Step::Subscribe { after, reply });
    }

    fn say(&mut self, say: Say, received: Receipt, at: WallTime) {
        let participant = say.speaker;
        let said = Said::new(say.timestamp, say.message_id.as_ref(), say.trace.as_ref());
        let outcome = self.room.apply(Command::Say(say), at);
        let speaking = Speaking {
            name: &self.handle.name,
            epoch: self.epoch,
        };
        let notice = match outcome {
            Outcome::Accepted(event) => return self.append(event, Some(said.claimed), &received),
            Outcome::Repeated { original, time } => {
                notice::repeated(&speaking, original, time, said.message_id.as_ref())
            }
            Outcome::Refused { refusal, time } => {
                said.refused(
                    &*self.shared.observer,
                    &self.handle.name,
                    &refusal,
                    time,
                    &received,
                );
                notice::refused(&speaking, &refusal, time, said.message_id.as_ref())
            }
        };
        if let Some(&connection) = self.connections.get(&participant) {
            self.batch.step(Step::Notify {
                connection,
                notice: frame::private(&notice),
            });
        }
    }

    fn post(&mut self, post: Post, reply: Reply<Posted>, received: Receipt, at: WallTime) {
        let said = Said::from(&post);
        match self.room.apply(Command::Post(post), at) {
            Outcome::Accepted(mut event) => {
                let trail = self.follow(&mut event, said.claimed, &received);
                let message = frame::message(&self.handle.name, self.epoch, &event);
                self.add(&event, &received, trail);
                self.batch.step(Step::Posted {
                    posted: Posted::Broadcast(Box::new(message)),
                    reply,
                });
            }
            Outcome::Repeated { original, .. } => {
                self.batch.step(Step::Posted {
                    posted: Posted::Repeated(original),
                    reply,
                });
            }
            Outcome::Refused { refusal, time } => {
                said.refused(
                    &*self.shared.observer,
                    &self.handle.name,
                    &refusal,
                    time,
                    &received,
                );
                reply.send(Err(refusal.into())).ok();
            }
        }
    }

    fn leave(&mut self, leave: Leave, received: &Receipt, at: WallTime) {
        let (participant, claimed) = (leave.participant, leave.timestamp);
        let mut end = End::Left;
        let mut outcome = self.room.apply(Command::Leave(leave), at);
        if let Outcome::Refused {
            refusal: refusal @ Refusal::Clock(_),
            ..
        } = outcome
        {
            // The client goes whatever time it claims; only the claim is refused.
            self.shared.observer.refused(&refusal);
            end = End::Refused(refusal);
            outcome = self.room.apply(
                Command::Leave(Leave {
                    participant,
                    timestamp: None,
                    trace: None,
                }),
                at,
            );
        }
        if let Outcome::Accepted(event) = outcome {
            if let Some(connection) = self.connections.remove(&participant) {
                self.batch.step(Step::End { connection, end });
            }
            self.append(event, claimed, received);
        }
    }

    /// A participant's connection is gone.
    fn lose(&mut self, participant: ParticipantId, is_resumable: bool, at: WallTime) {
        let since = self.room.participants().get(&participant).map(|stay| stay.since);
        match since {
            Some(since) if is_resumable && !self.shared.resume_grace.is_zero() => {
                self.grace
                    .push_back((Instant::now() + self.shared.resume_grace, participant, since));
            }
            _ => self.announce_loss(participant, at),
        }
    }

    fn announce_loss(&mut self, participant: ParticipantId, at: WallTime) {
        self.leave(
            Leave {
                participant,
                timestamp: None,
                trace: None,
            },
            &Receipt::now(),
            at,
        );
    }

    /// Those whose time to come back is over leave.
    fn end_grace(&mut self, at: WallTime) {
        let now = Instant::now();
        while let Some((_, participant, since)) = self.grace.pop_front_if(|(end, ..)| *end <= now) {
            let is_there = self
                .room
                .participants()
                .get(&participant)
                .is_some_and(|stay| stay.since == since);
            // Who was lost again meanwhile has a later entry in the queue.
            let has_more_time = self
                .grace
                .iter()
                .any(|(_, other, stay)| (*other, *stay) == (participant, since));
            if is_there && !has_more_time && !self.connections.contains_key(&participant) {
                self.announce_loss(participant, at);
            }
        }
    }

    /// Takes in what was accepted; `claimed` is the time of the client that said it.
    fn append(&mut self, mut event: Event, claimed: Option<Timestamp>, received: &Receipt) {
        let trail = claimed.and_then(|claimed| self.follow(&mut event, claimed, received));
        self.add(&event, received, trail);
    }

    fn follow(&self, event: &mut Event, claimed: Timestamp, received: &Receipt) -> Option<Box<dyn Trail>> {
        let trail = self.shared.observer.follow(&Accepted {
            room: &self.handle.name,
            event,
            claimed,
            received: received.at,
            stream: received.stream.as_deref(),
        })?;
        event.trace.get_or_insert_with(|| trail.context());
        Some(trail)
    }

    fn add(&mut self, event: &Event, received: &Receipt, trail: Option<Box<dyn Trail>>) {
        // The fold's promise, checked from outside it.
        let (sequence, time) = std::mem::replace(&mut self.newest, (event.sequence, event.time));
        if event.sequence != sequence.next() || event.time <= time {
            self.shared.observer.violated(&self.handle.name, event.sequence);
        }
        self.shared.observer.broadcast(&event.kind, event.time);
        let is_resumable = self
            .room
            .participants()
            .get(&event.participant)
            .is_some_and(|stay| stay.since == event.sequence && stay.is_resumable);
        self.batch.append(
            &self.handle.name,
            self.epoch,
            event,
            is_resumable,
            received.at,
            trail,
        );
    }

    fn describe(&self) -> Description {
        let participants = self.room.participants().iter();
        Description {
            sequence: self.room.last(),
            time: self.room.time(),
            participants: participants
                .map(|(id, stay)| (*id, stay.clone(), self.connections.contains_key(id)))
                .collect(),
        }
    }

    /// Stores what was accepted, then lets everybody see it.
    async fn flush(&mut self) -> Result<(), StoreError> {
        let mut chunks = self.batch.take();
        if chunks.is_empty() {
            return Ok(());
        }
        let records: Vec<_> = chunks.iter().filter_map(Chunk::record).collect();
        if !records.is_empty() {
            self.since_snapshot += records.iter().map(|record| record.frames.len()).sum::<usize>();
            let snapshot = self.snapshot_if_due();
            let (bytes, events) = records.iter().fold((0, 0), |(bytes, events), record| {
                (bytes + record.frames.len(), events + record.events)
            });
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
        self.handle.show(self.room.time(), self.room.participants().len());
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

    /// Breaks promises on request, before a batch is decided.
    #[cfg(feature = "failpoints")]
    fn spoil(&mut self, requests: &mut [Request]) {
        use crate::failpoint::is_on;

        if is_on("skip-dedupe") {
            self.room.forget_message_ids();
        }
        let speaker = |request: &Request| match request {
            Request::Say { say, .. } => Some(say.speaker),
            _ => None,
        };
        let pair = requests
            .windows(2)
            .position(|pair| speaker(&pair[0]).is_some() && speaker(&pair[0]) == speaker(&pair[1]));
        if let Some(first) = pair.filter(|_| is_on("swap-requests")) {
            requests.swap(first, first + 1);
        }
    }

    fn snapshot_if_due(&mut self) -> Option<Bytes> {
        let last = self.room.last();
        let grown = last.get() - self.snapshot.get();
        let due = SNAPSHOT_EVERY.max(self.room.participants().len() as u64);
        (grown >= due || self.since_snapshot >= SNAPSHOT_BYTES || self.is_snapshot_old())
            .then(|| self.take_snapshot())
    }

    fn is_snapshot_old(&self) -> bool {
        let age = self.shared.snapshot_after;
        age.is_some_and(|age| self.snapshot_at.elapsed() >= age)
    }

    fn take_snapshot(&mut self) -> Bytes {
        self.snapshot = self.room.last();
        self.since_snapshot = 0;
        self.snapshot_at = Instant::now();
        encode_snapshot(&self.room.snapshot())
    }

    /// Stores a snapshot of a room in which nothing happens: its log may be let go then as far as the limits say, and it is
    /// soon back when it is needed again.
    async fn leave_snapshot(&mut self) -> Result<(), StoreError> {
        if self.snapshot == self.room.last() {
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

/// After which event the newest `count` begin.
fn newest(bounds: Bounds, count: u32) -> Sequence {
    let begin = bounds.last.get().saturating_sub(count.min(MAX_HISTORY).into());
    Sequence::new(begin).max(bounds.first.previous())
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
