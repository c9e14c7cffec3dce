//! The running rooms: one actor per room, which turns the room's requests into an ordered, durable log that all subscribers
//! read.
//!
//! # The path of one message
//!
//! 1. **Decode.** The transport (`rpc`) decodes a message from a client's stream, validates it into a
//!    [`Message`](crate::domain::Message), and hands it to the participant's [`Member`]. It reads the next message only when
//!    the mailbox has taken this one, so HTTP/2 flow control slows down a client that is faster than its room.
//! 2. **Mailbox.** The [`Member`] pushes the message into the mailbox of the room (`mailbox.rs`). *This is the order*: the
//!    position in the mailbox decides the position in the log.
//! 3. **Actor.** The room's actor (`room_actor.rs`) drains the mailbox, everything at once, and passes the requests one by
//!    one to its sessions (`room_sessions.rs`), which know who is notified.
//! 4. **Fold.** [`Room::apply`](crate::domain::Room::apply) decides. An accepted message is an event, with its sequence and
//!    Lamport time; a repeat or a rejection becomes a private notice for its sender.
//! 5. **Batch.** The event is encoded, once, as the bytes of its broadcast ([`frame`]), behind the other events of this
//!    batch (`batch.rs`). Notices, new streams and stream ends are ordered between the events.
//! 6. **Store.** The batch is appended to the room's log, and the actor waits until it is durable. Until then nobody
//!    sees any of it, not even its senders. Meanwhile the next batch grows in the mailbox.
//! 7. **Feed.** The same bytes are published to the room's [`Feed`], which wakes every waiting subscriber. For the sender,
//!    its own message is the acknowledgement.
//! 8. **Bytes.** When a subscriber's transport has room, it polls the subscriber's reader (`reader.rs`), which yields
//!    everything from its [`Cursor`] to the end of a block as one slice of the shared bytes. A subscriber that lags reads
//!    the events that the feed no longer retains from the store, where they are the same bytes, until it has caught up.
//!
//! The fold, the store and the feed do not know of each other; only the actor calls all three, in this order.
//!
//! # Guarantees
//!
//! - All subscribers of a room see the same events in the same order, and none that is not durable.
//! - Each JOIN is followed by exactly one LEAVE, unless the room is deleted: whenever a stream ends, its [`Member`] is dropped, and the mailbox always
//!   accepts the request that the drop sends.
//! - Memory is bounded: per room by the mailbox, the feed and one batch; per subscriber by one page of the store; and of all
//!   mailboxes and all feeds together by [`RoomBudgets`].
//! - No subscriber delays the actor or another subscriber.
//!
//! # Caveats
//!
//! - If an append fails, the room and then the process end. Events of the failed batch may be in the log although nobody
//!   has seen them; clients send the messages again with the same message ids.
//! - A busy room with many subscribers delays its batches by up to [`HubOptions::coalesce`] to save wake-ups.
//! - Grace periods are measured by the actor, because the fold has no clock: after a restart they start anew.
//! - A client that joins under a lost participant's name, without the token of its session, evicts that participant.

mod batch;
mod blocked_senders;
mod context;
mod end_proposals;
mod fair_budget;
mod feed;
pub mod frame;
mod grace_timers;
mod handle;
mod history;
mod mailbox;
mod message_id_use;
mod notice;
mod observer;
mod read_permits;
mod reader;
mod recovery;
mod registry;
mod replication;
mod request;
mod restored_room;
mod room_actor;
mod room_sessions;
mod room_writers;
mod session_token;
mod snapshot_schedule;
mod submissions;
mod wake_queue;

use std::any::Any;
use std::future::poll_fn;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::error;

use self::context::HubContext;
use self::handle::{Envelope, Reply, Request, RoomHandle};
use self::mailbox::Sender;
use self::recovery::Recovered;
use self::registry::{Lookup, Registry};
use self::replication::{OrderedItem, Replication};
use self::room_actor::RoomActor;
use self::session_token::SessionTokens;
use crate::blocking::blocking;
use crate::domain::{
    Command, Epoch, LamportTime, Moderation, Origin, Outcome, ParticipantId, Post, Rejection, Room, RoomName,
    Rules, Sequence,
};
use crate::store::{MemoryStore, Record, Store, StoreError};
use crate::wall_clock::wall_time;

pub use context::{HubOptions, RoomBudgets};
pub use fair_budget::FairBudget;
pub use feed::{CloseReason, Cursor, CursorKey, Feed, FeedItem, Publication};
pub use handle::Member;
pub(crate) use history::{HistoryPage, HistoryRange, RoomSummary};
pub use observer::{AcceptedEvent, FanOut, MessageTrace, Observer, RejectedMessage, StoredBatch};
pub(crate) use read_permits::ReadPermits;
pub(crate) use reader::Reader;
pub(crate) use replication::{OrderedCommand, Submission};
pub use request::{HubError, JoinRequest, ResumePoint};
pub(crate) use request::{PostOutcome, RequestMeta, RoomInfo, StartPosition};
pub(crate) use restored_room::{RestoredRoom, recover_for_import};
#[cfg(any(feature = "fuzzing", test))]
pub(crate) use session_token::fuzz_tokens;
pub use wake_queue::WakeQueue;

/// How often unused rooms are looked for.
const END_INTERVAL: Duration = Duration::from_secs(30);

/// The maximum number of rooms that are loaded at a time after a restart although nobody asks for them.
const MAX_RECOVERING_ROOMS: usize = 256;

/// The maximum number of unused rooms that are ended at a time.
const MAX_ENDED_ROOMS: usize = 1_000;

/// What the task of a room does first.
enum Start {
    /// Recovers the room from the store, and holds something meanwhile, such as a permit.
    Recover(Box<dyn Any + Send>),
    /// Runs a room that was recovered when the server started.
    Recovered(Box<Result<Recovered, StoreError>>, OwnedSemaphorePermit),
    /// Runs a room that a replica has restored from a checkpoint.
    Restored(Box<Recovered>),
    /// Ends the room, that is, deletes its log, if it is unused. The task then runs the room only if somebody has asked for it meanwhile.
    EndUnused,
}

/// The rooms of a store.
///
/// A room runs from the first request for it until it is vacant and idle; its log remains in the store.
pub struct Hub {
    rules: Rules,
    context: HubContext,
    registry: Arc<Registry>,
    failed: CancellationToken,
    /// The first error, once the hub has failed.
    cause: OnceLock<StoreError>,
}

impl Hub {
    /// Creates a hub for the rooms in `store`. `secret` signs the session tokens.
    #[must_use]
    pub fn new(
        rules: Rules,
        options: HubOptions,
        store: Arc<dyn Store>,
        secret: &[u8; 32],
        observer: Arc<dyn Observer>,
    ) -> Arc<Self> {
        Self::with_replication(rules, options, store, secret, observer, None)
    }

    /// A hub for one of several replicas. Its rooms send their commands into `submissions`, and apply what [`Hub::apply_ordered`] brings.
    pub(crate) fn replicated(
        rules: Rules,
        options: HubOptions,
        store: Arc<MemoryStore>,
        secret: &[u8; 32],
        observer: Arc<dyn Observer>,
        submissions: mpsc::Sender<Submission>,
    ) -> Arc<Self> {
        let replication = Replication::new(Arc::clone(&store), submissions, rules);
        Self::with_replication(rules, options, store, secret, observer, Some(replication))
    }

    fn with_replication(
        rules: Rules,
        options: HubOptions,
        store: Arc<dyn Store>,
        secret: &[u8; 32],
        observer: Arc<dyn Observer>,
        replication: Option<Replication>,
    ) -> Arc<Self> {
        let is_replicated = replication.is_some();
        Arc::new(Self {
            rules,
            context: HubContext {
                replication,
                options,
                store,
                tokens: SessionTokens::new(secret),
                read_permits: ReadPermits::of_all(options.budgets.feeds),
                wake_permits: Arc::default(),
                observer,
                feed_budget: Arc::new(FairBudget::new(options.budgets.feeds)),
                message_id_budget: Arc::new(FairBudget::new(options.budgets.message_ids)),
                tasks: TaskTracker::new(),
            },
            registry: Arc::new(Registry::new(options.budgets.mailboxes, is_replicated)),
            failed: CancellationToken::new(),
            cause: OnceLock::new(),
        })
    }

    pub(crate) const fn rules(&self) -> &Rules {
        &self.rules
    }

    pub(crate) const fn options(&self) -> &HubOptions {
        &self.context.options
    }

    /// Cancelled when the store has failed. The hub then rejects all requests, and the process should end.
    #[must_use]
    pub const fn failed(&self) -> &CancellationToken {
        &self.failed
    }

    /// Why the store has failed, if it has.
    #[must_use]
    pub fn cause(&self) -> Option<&StoreError> {
        self.cause.get()
    }

    /// Starts loading the rooms that have work to do although nobody asks for them: their lost participants leave after the
    /// grace period, and their newest events get a snapshot. Must be called within a Tokio runtime.
    pub(crate) fn recover_unfinished_rooms(self: &Arc<Self>) {
        let hub = Arc::clone(self);
        self.context.tasks.spawn(async move {
            let permits = Arc::new(Semaphore::new(MAX_RECOVERING_ROOMS));
            // One after the other, so that rooms that are asked for do not wait for the disk.
            for name in hub.context.store.unfinished() {
                // A drain ends the rooms that hold the permits, and then no room is inserted any more.
                let permit = Arc::clone(&permits).acquire_owned().await;
                let (Ok(permit), Ok(Lookup::Inserted(room))) = (permit, hub.registry.get_or_insert(&name))
                else {
                    continue;
                };
                let recovered = hub.recover_room(&room, ()).await;
                hub.spawn_actor(room, Start::Recovered(Box::new(recovered), permit));
            }
        });
    }

    /// Ends rooms that nobody needs any more, so that others can be created, again and again. Never completes; can
    /// be dropped at any time.
    pub(crate) async fn end_unused_rooms(self: &Arc<Self>) {
        let mut interval = tokio::time::interval(END_INTERVAL);
        loop {
            interval.tick().await;
            for name in self.context.store.unused(wall_time(), MAX_ENDED_ROOMS) {
                // A room that is running is in use.
                if let Ok(Lookup::Inserted(room)) = self.registry.get_or_insert(&name) {
                    self.spawn_actor(room, Start::EndUnused);
                }
            }
        }
    }

    /// Applies commands that have their positions in the command log of all replicas, in this order, after those of the calls before. Waits
    /// while the room is slow.
    ///
    /// # Errors
    ///
    /// The room does not apply them. The replica then lacks what the others have.
    pub(crate) async fn apply_ordered(
        self: &Arc<Self>,
        room: &RoomName,
        commands: Vec<OrderedCommand>,
    ) -> Result<(), HubError> {
        let mut item = OrderedItem::Commands(commands);
        loop {
            // While the hub drains, the rooms that run go on.
            let handle = match self.registry.get(room).filter(|room| !room.is_closed()) {
                Some(handle) => Ok(handle),
                None => self.get_or_start(room),
            };
            let handle = match handle {
                Ok(handle) => handle,
                Err(HubError::Draining) => return Ok(()),
                Err(error) => return Err(error),
            };
            let Some(ordered) = &handle.ordered else {
                return Err(HubError::Failed);
            };
            match ordered.send(item).await {
                Ok(()) => return Ok(()),
                Err(unsent) if handle.is_closed() => item = unsent,
                // A room that has finished while the hub drains has no clients left.
                Err(_) if self.registry.is_draining() => return Ok(()),
                Err(_) => return Err(HubError::Failed),
            }
        }
    }

    /// Starts a room of a replica as it was at some position in the command log. It must not be running.
    ///
    /// # Errors
    ///
    /// It is running, or the hub is draining or has failed.
    pub(crate) fn restore_room(self: &Arc<Self>, room: RestoredRoom) -> Result<(), HubError> {
        let Some(replication) = &self.context.replication else {
            return Err(HubError::Failed);
        };
        let name = room.name.clone();
        let recovered = room.into_recovered(&replication.store)?;
        match self.registry.get_or_insert(&name)? {
            Lookup::Inserted(room) => {
                self.spawn_actor(room, Start::Restored(Box::new(recovered)));
                Ok(())
            }
            Lookup::Running(_) => Err(HubError::Failed),
        }
    }

    /// Whether a room's log has got to the event `last`.
    pub(crate) fn has_reached(&self, room: &RoomName, epoch: Epoch, last: Sequence) -> bool {
        let store = &self.context.store;
        let log = store.find(room).filter(|log| log.epoch == epoch);
        let bounds = log.and_then(|log| store.bounds(log.id).ok());
        bounds.is_some_and(|bounds| bounds.last >= last)
    }

    /// Whether the rooms of this replica propose their ends to the others.
    pub(crate) fn set_proposing_ends(&self, is_proposing: bool) {
        if let Some(replication) = &self.context.replication {
            replication.set_proposing(is_proposing);
        }
    }

    /// What a replica retains of a room's log, if it [has reached](Self::has_reached) the event `last`.
    pub(crate) fn retained(&self, room: &RoomName, epoch: Epoch, last: Sequence) -> Option<Vec<Record>> {
        let store = &self.context.store;
        let log = store.find(room).filter(|log| log.epoch == epoch);
        let log = log.filter(|_| self.has_reached(room, epoch, last));
        store.records(log?.id, Sequence::ZERO, usize::MAX).ok()
    }

    /// Ends all streams and calls, and rejects new ones until [`Hub::end_suspension`], because it is unknown what the other replicas do.
    pub(crate) fn suspend(&self) {
        if let Some(replication) = &self.context.replication {
            replication.status.send_if_modified(|status| {
                let is_new = !std::mem::replace(&mut status.is_suspended, true);
                status.suspensions += u64::from(is_new);
                is_new
            });
        }
    }

    /// Like [`Hub::suspend`], even if it is suspended: what was submitted and is not committed never will be.
    pub(crate) async fn fence(&self) {
        let Some(replication) = &self.context.replication else {
            return;
        };
        replication.status.send_modify(|status| {
            status.is_suspended = true;
            status.suspensions += 1;
            status.generation += 1;
        });
        let generation = replication.status().generation;
        for room in self.registry.all() {
            if let Some(ordered) = &room.ordered {
                // A room that has ended has no callers.
                ordered.send(OrderedItem::Fenced(generation)).await.ok();
            }
        }
    }

    /// The rules of the rooms that a replica restores. They precede those that it was started with.
    pub(crate) fn restore_rules(&self, rules: Rules) {
        if let Some(replication) = &self.context.replication {
            replication.set_rules(rules);
        }
    }

    /// Changes the rules of all rooms at this position in the command log.
    pub(crate) async fn set_rules(&self, rules: Rules) {
        self.restore_rules(rules);
        for room in self.registry.all() {
            if let Some(ordered) = &room.ordered {
                ordered.send(OrderedItem::Rules(rules)).await.ok();
            }
        }
    }

    /// Counts the incarnations of this replica: one more each time it is [fenced](Hub::fence). What was submitted in an earlier generation and
    /// is not committed is lost.
    pub(crate) fn generation(&self) -> u64 {
        let replication = self.context.replication.as_ref();
        replication.map_or(0, |replication| replication.status().generation)
    }

    /// How many rooms run.
    #[cfg(test)]
    pub(crate) fn running(&self) -> usize {
        self.registry.all().len()
    }

    /// Accepts calls again.
    pub(crate) fn end_suspension(&self) {
        if let Some(replication) = &self.context.replication {
            replication
                .status
                .send_if_modified(|status| std::mem::replace(&mut status.is_suspended, false));
        }
    }

    /// Joins a room, which is created if it does not exist, or resumes a session. The JOIN was decoded at `received_at`.
    ///
    /// This and the methods below must be polled within a Tokio runtime. Dropping the future is safe, but the room may have
    /// applied the request all the same; a [`Member`] that nobody receives detaches.
    ///
    /// # Errors
    ///
    /// The room rejected the JOIN, there are too many rooms, or the hub is draining or has failed.
    pub async fn join(
        self: &Arc<Self>,
        request: JoinRequest,
        received_at: Instant,
    ) -> Result<Member, HubError> {
        let command = || Command::Join(request.join.clone());
        if let Some((rejection, _)) = self.rejection_by_new_room(&request.room, command) {
            self.context.observer.command_rejected(&rejection);
            return Err(rejection.into());
        }
        let room = request.room.clone();
        let (request, meta) = (Box::new(request), received_at.into());
        self.call(&room, |reply| Request::Join { request, meta, reply })
            .await
    }

    /// Sends a message to a room, which is created if it does not exist, without joining it. Ready when it is durable.
    pub(crate) async fn post(
        self: &Arc<Self>,
        room: &RoomName,
        post: Post,
        meta: RequestMeta,
    ) -> Result<PostOutcome, HubError> {
        if let Some((rejection, time)) = self.rejection_by_new_room(room, || Command::Post(post.clone())) {
            let observer = &*self.context.observer;
            observer::report_rejected(observer, room, &post.message, &rejection, time, &meta);
            return Err(rejection.into());
        }
        let post = Box::new(post);
        self.call(room, |reply| Request::Post { post, meta, reply }).await
    }

    /// The permits that the readers of one address share.
    pub(crate) fn read_permits_of_address(&self) -> ReadPermits {
        ReadPermits::of_address(self.context.options.budgets.feeds)
    }

    /// Subscribes to a room without joining it.
    pub(crate) async fn subscribe(
        self: &Arc<Self>,
        room: &RoomName,
        start: StartPosition,
        origin: Origin,
    ) -> Result<Reader, HubError> {
        self.check_readable(room)?;
        let request = |reply| Request::Subscribe { start, origin, reply };
        self.call_existing(room, request).await
    }

    /// Carries out a moderator's decision. Returns how many participants leave because of it, once it is durable. Calls `report`
    /// with their number then, even if the future has been dropped.
    pub(crate) async fn moderate(
        self: &Arc<Self>,
        room: &RoomName,
        moderation: Moderation,
        report: impl FnOnce(usize) + Send + Sync + 'static,
    ) -> Result<usize, HubError> {
        self.check_exists(room)?;
        let (moderation, report) = (Box::new(moderation), Box::new(report));
        let request = |reply| Request::Moderate {
            moderation,
            report,
            reply,
        };
        self.call_existing(room, request).await
    }

    /// At most `limit` participants of a room, by id, starting after the participant `after`.
    pub(crate) async fn room_info(
        self: &Arc<Self>,
        room: &RoomName,
        after: Option<ParticipantId>,
        limit: usize,
    ) -> Result<RoomInfo, HubError> {
        self.check_readable(room)?;
        let request = |reply| Request::Info { after, limit, reply };
        self.call_existing(room, request).await
    }

    /// The events of `range` nearest to the position that it names: at most `limit`, and about `max_bytes`. `permit` is held
    /// as long as this takes, even if the future is dropped.
    pub(crate) async fn history(
        self: &Arc<Self>,
        room: RoomName,
        range: HistoryRange,
        limit: u32,
        max_bytes: usize,
        permit: impl Send + 'static,
    ) -> Result<HistoryPage, HubError> {
        self.check_readable(&room)?;
        if !self.has_room(&room) {
            // The lobby. Starting it gives its log an epoch.
            self.room_info(&room, None, 0).await?;
        }
        let store = Arc::clone(&self.context.store);
        blocking(permit, move || {
            history::read_history(&*store, room, range, limit, max_bytes)
        })
        .await?
    }

    /// At most `limit` rooms, by name, starting after the room `after`. `permit` is held as long as this takes, even if the
    /// future is dropped.
    pub(crate) async fn list_rooms(
        &self,
        after: Option<RoomName>,
        limit: usize,
        is_visible: impl Fn(&RoomName) -> bool + Send + 'static,
        permit: impl Send + 'static,
    ) -> Result<Vec<RoomSummary>, HubError> {
        let store = Arc::clone(&self.context.store);
        let registry = Arc::clone(&self.registry);
        blocking(permit, move || {
            history::list_rooms(&*store, &registry, after, limit, is_visible)
        })
        .await?
    }

    /// Closes every stream after the events that its room has accepted, tells the clients to return after about `retry`,
    /// and accepts no new requests. Returns when all rooms have stopped.
    ///
    /// Cancel safe: a second call continues where the first one stopped.
    pub(crate) async fn drain(&self, retry: Duration) {
        let rooms = self.registry.drain();
        self.context.tasks.close();
        for room in rooms {
            close_streams_of(&room, CloseReason::Draining(retry));
            room.mailbox.close();
        }
        self.context.tasks.wait().await;
    }

    /// Like [`Hub::call`], for a request that does not begin a room. The lobby can be asked again.
    async fn call_existing<T>(
        self: &Arc<Self>,
        name: &RoomName,
        request: impl FnOnce(Reply<T>) -> Request,
    ) -> Result<T, HubError> {
        self.call(name, request).await.map_err(|error| match error {
            HubError::RoomEnded if name.as_str() != RoomName::LOBBY => HubError::NoRoom(name.clone()),
            error => error,
        })
    }

    /// Sends a request to a room and waits for the answer, unless the hub is suspended.
    async fn call<T>(
        self: &Arc<Self>,
        name: &RoomName,
        request: impl FnOnce(Reply<T>) -> Request,
    ) -> Result<T, HubError> {
        let Some(replication) = &self.context.replication else {
            return self.call_room(name, request).await;
        };
        let mut status = replication.status.subscribe();
        let before = *status.borrow_and_update();
        let suspended = status.wait_for(|now| now.is_suspended || now.suspensions > before.suspensions);
        tokio::select! {
            // A stream that starts now would not be closed.
            biased;
            _ = suspended => Err(HubError::Suspended),
            answer = self.call_room(name, request) => answer,
        }
    }

    async fn call_room<T>(
        self: &Arc<Self>,
        name: &RoomName,
        request: impl FnOnce(Reply<T>) -> Request,
    ) -> Result<T, HubError> {
        let (reply, answer) = oneshot::channel();
        let existed = self.has_room(name);
        let mut envelope = Some(Envelope {
            epoch: self.epoch(name),
            request: request(reply),
        });
        while envelope.is_some() {
            let room = self.get_or_start(name)?;
            let mut sender = Sender::new(Arc::clone(&room.mailbox));
            let pushed = poll_fn(|cx| sender.poll_push(cx, &mut envelope)).await;
            // A moderator has deleted the room, or it has ended, and not everybody who may write to a room may create it again.
            if pushed.is_err() && existed && !self.has_room(name) {
                return Err(room.gone_error());
            }
            // Otherwise the room was unloaded since the lookup, and the next lookup loads it again.
        }
        // A room that ends without an answer has failed.
        answer.await.unwrap_or(Err(HubError::Failed))
    }

    /// Why a new room would reject this command; `None` if the room exists. A rejected command must not create a room.
    fn rejection_by_new_room(
        &self,
        room: &RoomName,
        command: impl FnOnce() -> Command,
    ) -> Option<(Rejection, LamportTime)> {
        if self.has_room(room) {
            return None;
        }
        match Room::new(self.rules).apply(command(), wall_time()) {
            Outcome::Rejected { rejection, time } => Some((rejection, time)),
            _ => None,
        }
    }

    /// The epoch of a room that has events.
    fn epoch(&self, room: &RoomName) -> Option<Epoch> {
        let log = self.context.store.find(room)?;
        let bounds = self.context.store.bounds(log.id).ok()?;
        (bounds.last > Sequence::ZERO).then_some(log.epoch)
    }

    /// Whether the room exists, so that joining it or posting to it does not create it.
    pub(crate) fn has_room(&self, room: &RoomName) -> bool {
        self.context.store.find(room).is_some()
    }

    /// Whether the room exists but does not run.
    pub(crate) fn needs_loading(&self, room: &RoomName) -> bool {
        self.registry.get(room).is_none() && self.has_room(room)
    }

    /// Begins to load a room, unless it runs. `permit` is held until it is loaded.
    ///
    /// # Errors
    ///
    /// The hub is draining or has failed.
    pub(crate) fn load(
        self: &Arc<Self>,
        room: &RoomName,
        permit: impl Send + 'static,
    ) -> Result<(), HubError> {
        if let Lookup::Inserted(room) = self.registry.get_or_insert(room)? {
            self.spawn_actor(room, Start::Recover(Box::new(permit)));
        }
        Ok(())
    }

    fn check_exists(&self, room: &RoomName) -> Result<(), HubError> {
        if self.has_room(room) {
            Ok(())
        } else {
            Err(HubError::NoRoom(room.clone()))
        }
    }

    /// Checks that the room can be read. The lobby always can: it is created if necessary.
    fn check_readable(&self, room: &RoomName) -> Result<(), HubError> {
        if room.as_str() == RoomName::LOBBY {
            Ok(())
        } else {
            self.check_exists(room)
        }
    }

    /// The room with this name. Starts it if it is not running.
    fn get_or_start(self: &Arc<Self>, name: &RoomName) -> Result<Arc<RoomHandle>, HubError> {
        match self.registry.get_or_insert(name)? {
            Lookup::Running(room) => Ok(room),
            Lookup::Inserted(room) => {
                self.spawn_actor(Arc::clone(&room), Start::Recover(Box::new(())));
                Ok(room)
            }
        }
    }

    /// Spawns the actor of a room that is registered.
    fn spawn_actor(self: &Arc<Self>, room: Arc<RoomHandle>, start: Start) {
        let hub = Arc::clone(self);
        self.context.tasks.spawn(async move {
            let _registered = Registered(Arc::clone(&hub), Arc::clone(&room));
            let mut recovery_permit = None;
            let recovered = match start {
                Start::Recovered(recovered, permit) => {
                    recovery_permit = Some(permit);
                    Some(*recovered)
                }
                Start::Restored(restored) => Some(Ok(*restored)),
                Start::Recover(permit) => Some(hub.recover_room(&room, permit).await),
                Start::EndUnused => match hub.end_unused(&room.name).await {
                    Err(error) => Some(Err(error)),
                    Ok(true) => {
                        // Not everybody who has asked for it meanwhile may create another.
                        room.reject_all(&HubError::RoomEnded);
                        None
                    }
                    Ok(false) if room.mailbox.close_if_empty() => None,
                    Ok(false) => Some(hub.recover_room(&room, ()).await),
                },
            };
            match recovered {
                None => {}
                Some(Ok(recovered)) => {
                    let context = hub.context.clone();
                    let actor = RoomActor::new(recovered, context, Arc::clone(&room), recovery_permit);
                    if let Err(error) = actor.run().await {
                        hub.fail(error);
                    }
                }
                Some(Err(error)) => hub.on_recovery_failed(&room, error),
            }
        });
    }

    /// Ends a room unless it is needed, and returns whether it did. The room must be registered, so that nobody else uses
    /// the log.
    async fn end_unused(&self, room: &RoomName) -> Result<bool, StoreError> {
        let store = &self.context.store;
        match store.find(room) {
            Some(log) if store.is_unused(log.id, wall_time()) => {
                store.delete_log(log.id).await?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// Recovers a room from its log. `permit` is held as long as this takes, even if the future is dropped.
    async fn recover_room(
        &self,
        room: &RoomHandle,
        permit: impl Send + 'static,
    ) -> Result<Recovered, StoreError> {
        let replication = self.context.replication.as_ref();
        let rules = replication.map_or(self.rules, Replication::rules);
        let (store, name) = (Arc::clone(&self.context.store), room.name.clone());
        let recover = move || {
            let _permit = permit;
            recovery::recover(&*store, rules, &name, wall_time())
        };
        // Replaying many events is slow even in memory. Of a log without events nothing is read.
        if self.epoch(&room.name).is_none() {
            return recover();
        }
        // A panic during the replay of this log says nothing about other logs.
        let panicked = StoreError::Record {
            sequence: Sequence::ZERO,
            why: "it cannot be replayed",
        };
        tokio::task::spawn_blocking(recover)
            .await
            .unwrap_or(Err(panicked))
    }

    /// Fails the requests for a room that cannot start; and the hub, unless only this room's log is at fault.
    fn on_recovery_failed(&self, room: &RoomHandle, error: StoreError) {
        room.reject_all(&error.clone().into());
        if error.is_store_failure() || self.context.replication.is_some() {
            self.fail(error);
        } else if !matches!(error, StoreError::TooManyRooms(_)) {
            error!(event = "room_failed", room = %room.name, %error, "a room cannot be opened");
        }
    }

    /// Stops accepting requests, because the store has failed.
    fn fail(&self, error: StoreError) {
        // Only the first error is the cause.
        self.cause.set(error).ok();
        self.registry.fail();
        self.failed.cancel();
    }
}

/// Tells a room to close all streams, after what it has accepted. A room whose mailbox is closed stops by itself.
fn close_streams_of(room: &RoomHandle, reason: CloseReason) {
    let close = Envelope {
        epoch: None,
        request: Request::Close(reason),
    };
    Sender::new(Arc::clone(&room.mailbox)).push_last(close).ok();
}

/// Removes a room from the registry when its actor ends, even if it panics.
struct Registered(Arc<Hub>, Arc<RoomHandle>);

impl Drop for Registered {
    fn drop(&mut self) {
        let Self(hub, room) = self;
        hub.registry.remove(room);
    }
}
