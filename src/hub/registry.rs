//! All rooms, by name.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::error;

use super::asking::Asking;
use super::description::Description;
use super::driver::Driver;
use super::end::End;
use super::entrance::Entrance;
use super::error::HubError;
use super::frame;
use super::member::Member;
use super::now::wall_time;
use super::observer::Observer;
use super::reader::Reader;
use super::receipt::Receipt;
use super::recovery::{self, Recovered};
use super::request::{Posted, Request};
use super::room::RoomHandle;
use super::said::Said;
use super::shared::Shared;
use super::start::Start;
use super::token::Tokens;
use crate::domain::{Command, Epoch, LamportTime, Outcome, Post, Refusal, Room, RoomName, Rules, Sequence};
use crate::order::Sender;
use crate::store::{Bounds, Page, Store, StoreError, read_page, read_page_back};

/// How many rooms without anybody in them are kept in memory after a start, until they have been idle for a while: the
/// first message in a busy room is then as fast as any.
const KEPT_WARM: usize = 16;

/// How the rooms of a hub are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HubOptions {
    /// How many rooms there may be.
    pub max_rooms: usize,
    /// How much a room's feed keeps for those who are behind, in bytes.
    pub feed_bytes: usize,
    /// How long a client that can resume has to come back.
    pub resume_grace: Duration,
    /// The longest that events of a busy room with many subscribers are gathered, to be told together.
    pub coalesce: Duration,
    /// How old events may be, zero for however old: the store lets go of what a snapshot stands for, so there is one often
    /// enough.
    pub retain_age: Duration,
}

impl Default for HubOptions {
    fn default() -> Self {
        Self {
            max_rooms: 10_000,
            feed_bytes: 4 << 20,
            resume_grace: Duration::from_secs(10),
            coalesce: Duration::from_millis(50),
            retain_age: Duration::ZERO,
        }
    }
}

/// All rooms, by name.
pub struct Hub {
    rules: Rules,
    options: HubOptions,
    shared: Shared,
    rooms: Mutex<Rooms>,
    drivers: TaskTracker,
    failed: CancellationToken,
    /// Why, once it has.
    cause: OnceLock<StoreError>,
    me: Weak<Self>,
}

#[derive(Default)]
struct Rooms {
    running: HashMap<RoomName, Arc<RoomHandle>>,
    draining: bool,
}

/// A part of a room's log.
#[derive(Debug, Clone)]
pub struct HistoryPage {
    /// The events.
    pub page: Page,
    /// The log's epoch.
    pub epoch: Epoch,
    /// What is kept of the log.
    pub bounds: Bounds,
}

/// Which part of a room's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HistoryRange {
    /// The newest events.
    Newest,
    /// The events that follow.
    After(Sequence),
    /// The events that precede.
    Before(Sequence),
}

/// A room at a glance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Its name.
    pub room: RoomName,
    /// How many are in it.
    pub participants: u32,
    /// Its Lamport time, as of its newest event at least.
    pub time: i64,
    /// Its log's epoch.
    pub epoch: Epoch,
    /// What is kept of its log.
    pub bounds: Bounds,
}

impl Hub {
    /// A hub of the rooms in `store`. A room runs from when somebody asks for it until nobody is there.
    #[must_use]
    pub fn new(
        rules: Rules,
        options: HubOptions,
        store: Arc<dyn Store>,
        secret: &[u8; 32],
        observer: Arc<dyn Observer>,
    ) -> Arc<Self> {
        let shared = Shared {
            store,
            tokens: Tokens::new(secret),
            observer,
            feed_bytes: options.feed_bytes,
            resume_grace: options.resume_grace,
            coalesce: options.coalesce,
            retain_age: options.retain_age,
        };
        Arc::new_cyclic(|me| Self {
            rules,
            options,
            shared,
            rooms: Mutex::default(),
            drivers: TaskTracker::new(),
            failed: CancellationToken::new(),
            cause: OnceLock::new(),
            me: Weak::clone(me),
        })
    }

    /// The rules of its rooms.
    #[must_use]
    pub const fn rules(&self) -> &Rules {
        &self.rules
    }

    /// How its rooms are kept.
    #[must_use]
    pub const fn options(&self) -> &HubOptions {
        &self.options
    }

    /// Cancelled when the store has failed: nothing more is accepted then, and the process should end.
    #[must_use]
    pub const fn failed(&self) -> &CancellationToken {
        &self.failed
    }

    /// Follows every log in the store to its end, and runs the rooms in which there was somebody when the server ended,
    /// and a few more, the busiest. Gives the number of rooms and of events. Waits for the disk; must be called within a
    /// Tokio runtime, from where blocking is allowed.
    ///
    /// # Errors
    ///
    /// When a log is damaged.
    pub fn recover(self: &Arc<Self>) -> Result<(usize, u64), StoreError> {
        let rooms = self.shared.store.rooms()?;
        let mut events = 0;
        let mut occupied: Vec<(RoomName, Recovered)> = Vec::new();
        let mut busiest: Vec<(RoomName, Recovered)> = Vec::new();
        for name in &rooms {
            let recovered = recovery::recover(&*self.shared.store, self.rules, name, wall_time())?;
            events += recovered.room.last().get();
            if recovered.room.participants().is_empty() {
                busiest.push((name.clone(), recovered));
                busiest.sort_by_key(|(_, recovered)| Reverse(recovered.room.last()));
                busiest.truncate(KEPT_WARM);
            } else {
                occupied.push((name.clone(), recovered));
            }
        }
        // Only now: the time to come back runs when there is, soon, a server to come back to.
        for (name, recovered) in occupied.into_iter().chain(busiest) {
            self.run(name, recovered);
        }
        Ok((rooms.len(), events))
    }

    fn run(self: &Arc<Self>, name: RoomName, recovered: Recovered) {
        let room = RoomHandle::new(name.clone());
        self.lock().running.insert(name, Arc::clone(&room));
        self.drive(room, Some(recovered));
    }

    /// Begins to enter `room`, which is made if need be. What the JOIN says was decoded at `received`. Here as below, the
    /// future must be polled within a Tokio runtime.
    #[must_use]
    pub fn join(self: &Arc<Self>, room: RoomName, entrance: Entrance, received: Instant) -> Asking<Member> {
        let first = || Command::Join(entrance.join.clone());
        if let Some((refusal, _)) = self.refusal_of_first(&room, first) {
            self.shared.observer.refused(&refusal);
            return Asking::refused(Arc::clone(self), room, refusal.into());
        }
        let received = received.into();
        let entrance = Box::new(entrance);
        Asking::new(Arc::clone(self), room, |reply| Request::Join {
            entrance,
            reply,
            received,
        })
    }

    /// Says something in `room`, which is made if need be, without entering it. Ready when it is durable.
    #[must_use]
    pub fn post(self: &Arc<Self>, room: RoomName, post: Post, received: Receipt) -> Asking<Posted> {
        if let Some((refusal, time)) = self.refusal_of_first(&room, || Command::Post(post.clone())) {
            Said::from(&post).refused(&*self.shared.observer, &room, &refusal, time, &received);
            return Asking::refused(Arc::clone(self), room, refusal.into());
        }
        let post = Box::new(post);
        Asking::new(Arc::clone(self), room, |reply| Request::Post {
            post,
            reply,
            received,
        })
    }

    /// Begins to read `room`.
    ///
    /// # Errors
    ///
    /// When there is no such room, or its log does not have what is asked for.
    pub async fn subscribe(self: &Arc<Self>, room: RoomName, start: Start) -> Result<Reader, HubError> {
        self.check_exists(&room)?;
        Asking::new(Arc::clone(self), room, |reply| Request::Subscribe {
            start,
            reply,
        })
        .await
    }

    /// Who is in `room`.
    ///
    /// # Errors
    ///
    /// When there is no such room.
    pub async fn describe(self: &Arc<Self>, room: RoomName) -> Result<Description, HubError> {
        self.check_exists(&room)?;
        Asking::new(Arc::clone(self), room, |reply| Request::Describe { reply }).await
    }

    /// Why a room that there is not yet would refuse what is to be its first event: what is refused makes no room.
    fn refusal_of_first(
        &self,
        room: &RoomName,
        first: impl FnOnce() -> Command,
    ) -> Option<(Refusal, LamportTime)> {
        if self.shared.store.exists(room) {
            return None;
        }
        match Room::new(self.rules).apply(first(), wall_time()) {
            Outcome::Refused { refusal, time } => Some((refusal, time)),
            Outcome::Accepted(_) | Outcome::Repeated { .. } => None,
        }
    }

    fn check_exists(&self, room: &RoomName) -> Result<(), HubError> {
        if self.shared.store.exists(room) {
            Ok(())
        } else {
            Err(HubError::NoRoom(room.clone()))
        }
    }

    /// A part of the log of `room`: at most `limit` events, and at most about `max_bytes` of them, those nearest to what is
    /// asked for.
    ///
    /// # Errors
    ///
    /// When there is no such room, or the log does not have what is asked for.
    pub async fn history(
        &self,
        room: RoomName,
        range: HistoryRange,
        limit: u32,
        max_bytes: usize,
    ) -> Result<HistoryPage, HubError> {
        self.check_exists(&room)?;
        let store = Arc::clone(&self.shared.store);
        blocking(move || {
            let log = store.find(&room)?.ok_or(HubError::NoRoom(room))?;
            let bounds = store.bounds(log.id)?;
            let limit = u64::from(limit);
            let kept = bounds.first.previous();
            let back_from = |upto: Sequence| {
                let after = Sequence::new(upto.get().saturating_sub(limit)).max(kept);
                read_page_back(&*store, log.id, after, upto, max_bytes)
            };
            // What was let go is left out; the bounds say so.
            let page = match range {
                HistoryRange::Newest => back_from(bounds.last)?,
                HistoryRange::Before(before) => back_from(before.previous().min(bounds.last))?,
                HistoryRange::After(after) => {
                    let after = after.max(kept);
                    let upto = Sequence::new(after.get().saturating_add(limit));
                    read_page(&*store, log.id, after, upto, max_bytes)?
                }
            };
            Ok(HistoryPage {
                page,
                epoch: log.epoch,
                bounds,
            })
        })
        .await
    }

    /// At most `limit` rooms, by name, from the one after `after`.
    ///
    /// # Errors
    ///
    /// When the store cannot be read.
    pub async fn summaries(&self, after: Option<RoomName>, limit: usize) -> Result<Vec<Summary>, HubError> {
        let store = Arc::clone(&self.shared.store);
        let me = Weak::clone(&self.me);
        blocking(move || {
            let names = store.rooms()?;
            let names = names
                .into_iter()
                .filter(|name| after.as_ref().is_none_or(|after| name > after))
                .take(limit);
            let mut summaries = Vec::new();
            for room in names {
                let Some(log) = store.find(&room)? else { continue };
                let bounds = store.bounds(log.id)?;
                let running = me
                    .upgrade()
                    .and_then(|hub| hub.lock().running.get(&room).cloned());
                let (time, participants) = running.map_or((0, 0), |room| room.glance());
                let newest = read_page(&*store, log.id, bounds.last.previous(), bounds.last, 1)?;
                let newest = crate::store::frames(newest.bytes).last();
                let newest = newest
                    .and_then(|frame| frame::read_message(&frame))
                    .map_or(0, |message| message.timestamp);
                summaries.push(Summary {
                    room,
                    participants,
                    time: time.max(newest),
                    epoch: log.epoch,
                    bounds,
                });
            }
            Ok(summaries)
        })
        .await
    }

    /// Ends every stream after what its room has accepted, telling it to come back after about `retry`, takes nobody
    /// in any more, and returns when all rooms have come to their end.
    ///
    /// Cancellation safe: calling it again goes on where it was.
    pub async fn drain(&self, retry: Duration) {
        let rooms: Vec<Arc<RoomHandle>> = {
            let mut rooms = self.lock();
            rooms.draining = true;
            rooms.running.values().map(Arc::clone).collect()
        };
        self.drivers.close();
        for room in rooms {
            // A room that is closed already ends by itself.
            Sender::new(Arc::clone(&room.inbox))
                .push_reserved(Request::Close(End::Draining(retry)))
                .ok();
            room.inbox.close();
        }
        self.drivers.wait().await;
    }

    /// Why the store has failed, if it has.
    #[must_use]
    pub fn cause(&self) -> Option<&StoreError> {
        self.cause.get()
    }

    fn lock(&self) -> MutexGuard<'_, Rooms> {
        // Nothing in here panics while the lock is held.
        self.rooms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The room of this name, running.
    pub(super) fn room(self: &Arc<Self>, name: &RoomName) -> Result<Arc<RoomHandle>, HubError> {
        let mut rooms = self.lock();
        if rooms.draining {
            return Err(HubError::Draining);
        }
        if self.failed.is_cancelled() {
            return Err(HubError::Failed);
        }
        if let Some(room) = rooms.running.get(name).filter(|room| !room.inbox.is_closed()) {
            return Ok(Arc::clone(room));
        }
        let room = RoomHandle::new(name.clone());
        rooms.running.insert(name.clone(), Arc::clone(&room));
        drop(rooms);
        self.drive(Arc::clone(&room), None);
        Ok(room)
    }

    fn drive(self: &Arc<Self>, room: Arc<RoomHandle>, recovered: Option<Recovered>) {
        let hub = Arc::clone(self);
        self.drivers.spawn(async move {
            let recovered = match recovered {
                Some(recovered) => Ok(recovered),
                None => hub.recover_room(&room).await,
            };
            match recovered {
                Ok(recovered) => {
                    let driver = Driver::new(recovered, hub.shared.clone(), Arc::clone(&room));
                    if let Err(error) = driver.run().await {
                        hub.fail(error);
                    }
                }
                Err(error) => {
                    refuse_all(&room, &error.clone().into());
                    // What is wrong with one log alone is no reason to end all rooms.
                    if error.is_of_the_store() {
                        hub.fail(error);
                    } else if !matches!(error, StoreError::TooManyRooms(_)) {
                        error!(event = "room_failed", room = %room.name, %error, "a room cannot be opened");
                    }
                }
            }
            let mut rooms = hub.lock();
            if rooms
                .running
                .get(&room.name)
                .is_some_and(|running| Arc::ptr_eq(running, &room))
            {
                rooms.running.remove(&room.name);
            }
        });
    }

    /// Nothing more is taken in: the store has failed.
    fn fail(&self, error: StoreError) {
        // The first to fail knows why.
        self.cause.set(error).ok();
        self.failed.cancel();
    }

    async fn recover_room(&self, room: &Arc<RoomHandle>) -> Result<Recovered, StoreError> {
        let (store, rules, name) = (Arc::clone(&self.shared.store), self.rules, room.name.clone());
        let recover = move || recovery::recover(&*store, rules, &name, wall_time());
        if self.shared.store.is_blocking() {
            let recovered = tokio::task::spawn_blocking(recover).await;
            // Following the log panicked: others can be followed all the same.
            recovered.unwrap_or(Err(StoreError::Record {
                sequence: Sequence::ZERO,
                why: "it cannot be followed",
            }))
        } else {
            recover()
        }
    }
}

/// Answers everybody who asked for a room that cannot run.
fn refuse_all(room: &RoomHandle, error: &HubError) {
    room.inbox.close();
    let mut requests = Vec::new();
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    while room.inbox.poll_take(&mut cx, &mut requests) == std::task::Poll::Ready(true) {
        requests
            .drain(..)
            .for_each(|request| request.refuse(error.clone()));
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, HubError> + Send + 'static,
) -> Result<T, HubError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or(Err(HubError::Failed))
}
