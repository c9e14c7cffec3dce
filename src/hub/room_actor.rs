//! The actor of a room: the task that drains the room's mailbox, applies the requests, stores the accepted events, and
//! publishes them once they are durable.
//!
//! Nothing else appends to the room's log and feed, so all subscribers see the order in which it applies requests. All
//! requests that are queued form one batch: encoded into a few buffers, stored with one sync, published under one lock per
//! chunk, with one round of wake-ups. While a batch is being stored, the next one grows in the mailbox.

use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::Instant;

use super::batch::{Chunk, Effect};
use super::context::HubContext;
use super::end_proposals::EndProposals;
use super::feed::{CloseReason, Cursor, CursorKey, Feed, Publication};
use super::handle::{Envelope, Member, ModerationReporter, Reply, RequestCost, RoomHandle};
use super::message_id_use::MessageIdUse;
use super::observer::StoredBatch;
use super::reader::Reader;
use super::recovery::Recovered;
use super::replication::{OrderedCommand, OrderedItem, OrderedQueue, Replication};
use super::request::{HubError, JoinInfo, PostOutcome, RoomInfo};
use super::room_sessions::RoomSessions;
use super::room_writers::RoomWriters;
use super::snapshot_schedule::SnapshotSchedule;
use super::wake_queue::WakeQueue;
use crate::domain::{Attachment, Command, End, EndStage, Origin, Room, RoomName, Sequence, WallTime};
use crate::failpoint;
use crate::run_queue::{WAKE_GROUP, requeue};
use crate::spare_capacity::SpareCapacity as _;
use crate::store::{Append, EncodedSnapshot, LogId, RoomStatus, StoreError, encode_snapshot};
use crate::wall_clock::wall_time;

/// A room without participants, subscribers and requests is unloaded after this time. Its log remains.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// By how much the clock of a replica that proposes may be ahead of those of others, in milliseconds.
const PROPOSAL_MARGIN_MILLIS: u64 = 5_000;

/// Roughly the cost of notifying one subscriber of a batch: a wake-up and a write to its connection.
const NOTIFY_COST: Duration = Duration::from_micros(24);

/// The resolution of the runtime's timer. A shorter sleep takes this long.
const TIMER_RESOLUTION: Duration = Duration::from_millis(1);

/// How many messages are handled before the task yields: for at most about a millisecond. [`PollBudget::spend`] counts a costly request as
/// several.
const POLL_BUDGET: u32 = 1_024;

/// The CPU cost of other requests, in messages.
const JOIN_COST: u32 = 64;
const POST_COST: u32 = 32;
const ROSTER_COST: u32 = 64;

/// What the actor of a room may still do before it yields.
struct PollBudget {
    messages: u32,
}

impl Default for PollBudget {
    fn default() -> Self {
        Self {
            messages: POLL_BUDGET,
        }
    }
}

impl PollBudget {
    /// Counts a request, and yields first if nothing is left. Thousands of JOINs can wait in a mailbox, and take
    /// tens of milliseconds.
    async fn spend(&mut self, cost: RequestCost) {
        let cost = match cost {
            RequestCost::Join => JOIN_COST,
            RequestCost::Post => POST_COST,
            RequestCost::Roster => ROSTER_COST,
            RequestCost::Constant => 1,
        };
        if self.messages < cost {
            *self = Self::default();
            requeue().await;
        }
        self.messages -= cost;
    }
}

/// Runs one room.
pub(super) struct RoomActor {
    sessions: RoomSessions,
    log: LogId,
    context: HubContext,
    handle: Arc<RoomHandle>,
    feed: Arc<Feed>,
    /// The cursors of the attachments whose stream has started and not closed.
    cursors: HashMap<Attachment, CursorKey>,
    snapshots: SnapshotSchedule,
    message_ids: Arc<MessageIdUse>,
    writers: Arc<RoomWriters>,
    /// The readers to wake after the publications of this iteration.
    woken: WakeQueue,
    /// Held until what was interrupted is finished, except that participants may still be lost, or until somebody asks for the room.
    recovery_permit: Option<OwnedSemaphorePermit>,
    /// Whether nobody has asked for the room since the restart: it only finishes what was interrupted, and does not wait to be idle.
    is_only_recovered: bool,
    end_proposals: EndProposals,
}

/// An answer to a request. It is sent after the publication: the feed must not be locked, because a [`Member`] or [`Reader`]
/// that nobody receives is dropped, and its cursor then locks the feed.
enum Answer {
    Attached(Cursor, JoinInfo, Reply<Member>),
    Subscribed(Cursor, Sequence, Reply<Reader>),
    Posted(PostOutcome, Reply<PostOutcome>),
    Info(RoomInfo, Reply<RoomInfo>),
    Moderated(usize, ModerationReporter, Reply<usize>),
}

impl RoomActor {
    pub(super) fn new(
        recovered: Recovered,
        context: HubContext,
        handle: Arc<RoomHandle>,
        recovery_permit: Option<OwnedSemaphorePermit>,
    ) -> Self {
        let Recovered {
            room,
            log,
            snapshot_sequence,
            bytes_since_snapshot,
        } = recovered;
        context.observer.room_loaded();
        let last = room.last();
        let writers = Arc::<RoomWriters>::default();
        Self {
            feed: new_feed(&context, last, &writers),
            log: log.id,
            snapshots: SnapshotSchedule::new(
                snapshot_sequence,
                bytes_since_snapshot,
                context.options.retain_age,
            ),
            sessions: RoomSessions::new(room, &log, context.clone(), Arc::clone(&handle)),
            message_ids: MessageIdUse::new(&context.message_id_budget, Arc::clone(&writers)),
            writers,
            context,
            handle,
            cursors: HashMap::new(),
            woken: WakeQueue::default(),
            is_only_recovered: recovery_permit.is_some(),
            recovery_permit,
            end_proposals: EndProposals::new(Instant::now()),
        }
    }

    /// Runs until the room has been idle for [`IDLE_TIMEOUT`], or its mailbox is closed and empty.
    ///
    /// # Errors
    ///
    /// The store has failed. Nothing that is not durable has been published.
    pub(super) async fn run(mut self) -> Result<(), StoreError> {
        self.sessions.restore_lost();
        if self.context.replication.is_none() {
            self.limit_message_ids();
        }
        let message_ids = Arc::clone(&self.message_ids);
        self.handle
            .publish_stats(self.room().time(), self.room().participants().len());
        self.store_and_publish().await?;
        let ordered = self.handle.ordered.as_ref().and_then(OrderedQueue::take_receiver);
        if let (Some(ordered), Some(replication)) = (ordered, self.context.replication.clone()) {
            return self.run_replica(ordered, replication).await;
        }
        let mailbox = Arc::clone(&self.handle.mailbox);
        let mut requests = Vec::new();
        let mut next_batch_due = Instant::now();
        loop {
            let interval = self.batch_interval();
            self.coalesce_until(next_batch_due).await;
            let idle_timeout = if self.is_only_recovered {
                Duration::ZERO
            } else {
                IDLE_TIMEOUT
            };
            let grace_deadline = self.sessions.next_grace_deadline();
            if grace_deadline.is_some() || !self.is_only_recovered {
                // Other rooms must not wait for the grace periods here before those of their participants begin.
                self.recovery_permit = None;
            }
            let wake_at = grace_deadline.unwrap_or_else(|| Instant::now() + idle_timeout);
            tokio::select! {
                biased;
                is_open = poll_fn(|cx| mailbox.poll_take(cx, &mut requests)) => {
                    if !is_open {
                        // With a snapshot the room's clock continues exactly where it stops.
                        return self.write_snapshot().await;
                    }
                    self.is_only_recovered = false;
                }
                () = message_ids.limited() => {
                    self.limit_message_ids();
                    continue;
                }
                () = tokio::time::sleep_until(wake_at) => {
                    if self.on_timer().await? {
                        return Ok(());
                    }
                    if self.sessions.next_grace_deadline().is_none() {
                        self.is_only_recovered = false;
                    }
                }
            }
            // Token bucket of depth 1: one batch per interval, measured from when the batch was due, so a late wake-up does
            // not accumulate.
            let now = Instant::now();
            let received_at = requests
                .first()
                .and_then(|envelope: &Envelope| envelope.request.received_at());
            let received_at = received_at.map_or(now, Instant::from_std);
            next_batch_due = received_at.min(now).max(next_batch_due + interval);
            let applied = async {
                self.apply(&mut requests).await;
                self.store_and_publish().await
            };
            let ((), stored) = tokio::join!(mailbox.wake_senders(), applied);
            stored?;
            if self.room().is_gone() {
                self.close_gone();
                return Ok(());
            }
            // Subscribers that were woken run before the mailbox is drained again. It fills meanwhile.
            requeue().await;
        }
    }

    /// Runs a room that several replicas share, until its mailbox is closed and what was in it has its position in the command log.
    /// A replica keeps all rooms until they are gone: deleted or ended.
    async fn run_replica(
        mut self,
        mut ordered: mpsc::Receiver<OrderedItem>,
        replication: Replication,
    ) -> Result<(), StoreError> {
        let mailbox = Arc::clone(&self.handle.mailbox);
        let mut requests = Vec::new();
        let mut is_open = true;
        let mut next_batch_due = Instant::now();
        let mut status = replication.status.subscribe();
        // How many suspensions had begun when the open streams started.
        let mut suspensions = status.borrow_and_update().suspensions;
        while is_open || !self.sessions.finish_closing() {
            let is_suspended = replication.is_suspended();
            let grace_deadline = self.sessions.next_grace_deadline();
            let Some(submissions) = self.sessions.submissions() else {
                return Ok(());
            };
            let is_blocked = submissions.has_unsent();
            // A replica that does not know what the others do must not end grace periods.
            let may_expire = !is_suspended && !is_blocked;
            let wake_at = grace_deadline.filter(|_| may_expire);
            let mut wake_at = wake_at.unwrap_or_else(|| Instant::now() + IDLE_TIMEOUT);
            if let Some(at) = self.end_proposals.proposal_time().filter(|_| may_expire) {
                wake_at = wake_at.min(at);
            }
            let is_due = next_batch_due <= Instant::now();
            if !is_due {
                wake_at = wake_at.min(next_batch_due);
            }
            // A room that drains while it is suspended waits for nothing.
            let takes_requests = is_open && (!is_blocked || (is_suspended && mailbox.is_closed()));
            let send = async {
                if is_blocked {
                    submissions.send().await;
                } else {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                _ = status.changed() => {
                    let now = status.borrow_and_update().suspensions;
                    if std::mem::replace(&mut suspensions, now) < now {
                        self.sessions.close_all(CloseReason::Failed);
                    }
                }
                item = ordered.recv(), if is_due => {
                    next_batch_due = Instant::now() + self.batch_interval();
                    let mut item = item;
                    let mut budget = PollBudget::default();
                    // Those that wait share a publication with it.
                    for _ in 0..=ordered.len() {
                        match item.take().or_else(|| ordered.try_recv().ok()) {
                            Some(OrderedItem::Commands(commands)) => self.apply_ordered(commands, &mut budget).await?,
                            Some(OrderedItem::Fenced(generation)) => self.sessions.on_fenced(generation, wall_time()),
                            Some(OrderedItem::Rules(rules)) => self.sessions.set_rules(rules),
                            None => break,
                        }
                    }
                }
                () = send => {}
                is_still_open = poll_fn(|cx| mailbox.poll_take(cx, &mut requests)), if takes_requests => {
                    is_open = is_still_open;
                    let at = wall_time();
                    let submitted = async {
                        let mut budget = PollBudget::default();
                        for envelope in requests.drain(..).filter(Envelope::is_needed) {
                            budget.spend(envelope.request.cost()).await;
                            self.sessions.submit(envelope, at);
                        }
                    };
                    tokio::join!(mailbox.wake_senders(), submitted);
                }
                () = tokio::time::sleep_until(wake_at) => {
                    if may_expire {
                        self.sessions.expire_grace(wall_time());
                        self.propose_end(&replication);
                    }
                    if is_open && is_due && self.close_if_idle(&mut ordered) {
                        return self.context.store.delete_log(self.log).await;
                    }
                }
            }
            self.store_and_publish().await?;
        }
        self.store_and_publish().await
    }

    /// Whether nobody here needs the room: nobody is in it or reads it, and at the time `at` nothing has happened for long enough.
    fn is_unused(&self, at: WallTime) -> bool {
        let last = self.room().last();
        last > Sequence::ZERO
            && self.feed.cursor_count() == 0
            && self.room().is_unused_since(last, at)
            && self.context.store.is_unused(self.log, at)
    }

    /// Proposes to the other replicas that the room ends, if this is the one to do so and it is its turn.
    fn propose_end(&mut self, replication: &Replication) {
        let now = Instant::now();
        if !self.end_proposals.is_due(now) {
            return;
        }
        // With a margin, so that those whose clocks are behind agree at once.
        let at = wall_time().as_millis().saturating_sub(PROPOSAL_MARGIN_MILLIS);
        let is_unused = replication.is_proposing() && self.is_unused(WallTime::from_millis(at));
        let last_if_unused = is_unused.then(|| self.room().last());
        let reserve = || replication.reserve_proposal(now);
        if self.end_proposals.advance(now, last_if_unused, reserve) {
            self.sessions.issue_end(EndStage::Proposed);
        }
    }

    /// Closes the mailbox and the queue of a room that does not exist, unless something is in them or on its way. What comes next begins
    /// another actor.
    fn close_if_idle(&mut self, receiver: &mut mpsc::Receiver<OrderedItem>) -> bool {
        let is_idle = self.room().last() == Sequence::ZERO
            && self.handle.name != RoomName::default()
            && self.feed.cursor_count() == 0
            && self
                .sessions
                .submissions()
                .is_none_or(|submissions| submissions.is_empty());
        let handle = &self.handle;
        is_idle
            && handle
                .ordered
                .as_ref()
                .is_some_and(|ordered| ordered.close_if_empty(receiver, || handle.mailbox.close_if_empty()))
    }

    async fn apply_ordered(
        &mut self,
        commands: Vec<OrderedCommand>,
        budget: &mut PollBudget,
    ) -> Result<(), StoreError> {
        for command in commands {
            budget.spend(RequestCost::of_command(&command.command)).await;
            self.writers.note(command.command.origin());
            let is_of_other_replica = command.request.is_none();
            let proposed = match command.command {
                Command::End(End {
                    last,
                    stage: EndStage::Proposed,
                }) if is_of_other_replica && command.epoch.is_ok() => Some(last),
                _ => None,
            };
            self.sessions.apply_ordered(command);
            let is_suspended = || {
                let replication = self.context.replication.as_ref();
                replication.is_none_or(Replication::is_suspended)
            };
            if proposed == Some(self.room().last()) && !is_suspended() && self.is_unused(wall_time()) {
                // At once, because what is true now need not be so later.
                self.sessions.issue_end(EndStage::Agreed);
            }
            if self.room().is_gone() {
                self.store_and_publish().await?;
                self.close_streams_of_gone();
                self.woken.wake_all(&self.context.wake_permits).await;
                // The next command that is accepted begins another room. Until then nobody sees its log.
                let log = self.context.store.open(&self.handle.name, wall_time())?;
                self.log = log.id;
                self.sessions.restart(&log);
                self.handle.publish_stats(self.room().time(), 0);
                self.feed = new_feed(&self.context, Sequence::ZERO, &self.writers);
                self.cursors.clear();
                self.end_proposals = EndProposals::new(Instant::now());
                self.snapshots = SnapshotSchedule::new(Sequence::ZERO, 0, self.context.options.retain_age);
            }
        }
        Ok(())
    }

    /// The minimum interval between two batches of a busy room: about as long as it takes to notify every subscriber, so
    /// that with many of them one wake-up and one write each serve several events. Zero if a sleep would take longer.
    fn batch_interval(&self) -> Duration {
        let subscribers = u32::try_from(self.feed.cursor_count()).unwrap_or(u32::MAX);
        let interval = NOTIFY_COST
            .saturating_mul(subscribers)
            .min(self.context.options.coalesce);
        if interval < TIMER_RESOLUTION {
            Duration::ZERO
        } else {
            interval
        }
    }

    /// Lets requests accumulate until `due` or until the mailbox is full.
    ///
    /// Leading-edge coalescing: `due` is in the future only if the latest batch was less than an interval ago, so a request
    /// after a quiet moment does not wait.
    async fn coalesce_until(&self, due: Instant) {
        if due > Instant::now() {
            let mailbox = &self.handle.mailbox;
            tokio::select! {
                () = tokio::time::sleep_until(due) => {}
                () = poll_fn(|cx| mailbox.poll_full(cx)) => {}
            }
        }
    }

    /// A grace deadline or [`IDLE_TIMEOUT`] has passed without a request. Returns true if the room is idle and closed.
    async fn on_timer(&mut self) -> Result<bool, StoreError> {
        let is_vacant = self.room().participants().is_empty() && self.feed.cursor_count() == 0;
        if is_vacant || self.snapshots.is_old() {
            self.write_snapshot().await?;
        }
        Ok(is_vacant && self.handle.mailbox.close_if_empty())
    }

    /// Applies requests. Yields meanwhile.
    async fn apply(&mut self, requests: &mut Vec<Envelope>) {
        let at = wall_time();
        self.sessions.inject_faults(requests);
        let mut budget = PollBudget::default();
        for Envelope { request, .. } in requests.drain(..).filter(Envelope::is_needed) {
            budget.spend(request.cost()).await;
            self.writers.note(request.origin());
            self.sessions.handle(request, at);
        }
        self.sessions.expire_grace(at);
        self.limit_message_ids();
    }

    /// Forgets the oldest message ids if all rooms together remember too many and this one is among those that remember most.
    fn limit_message_ids(&mut self) {
        if let Some(most) = self.message_ids.take_limit()
            && self.room().message_ids() > most
        {
            self.sessions.keep_newest_message_ids(most);
        }
        self.message_ids
            .set(self.room().message_ids(), &self.context.tasks);
    }

    const fn room(&self) -> &Room {
        self.sessions.room()
    }

    /// Stores the decisions of this iteration, publishes them and wakes the readers.
    async fn store_and_publish(&mut self) -> Result<(), StoreError> {
        let mut chunks = self.sessions.take_batch();
        if chunks.is_empty() {
            return Ok(());
        }
        self.store(&mut chunks).await?;
        if self.room().is_gone() {
            // First, so that a reader who no longer finds the log knows why.
            self.close_streams_of_gone();
            self.context.store.delete_log(self.log).await?;
        }
        self.handle
            .publish_stats(self.room().time(), self.room().participants().len());
        for mut chunk in chunks {
            chunk.inject_faults();
            let answers = self.publish(chunk);
            self.answer_all(answers).await;
            failpoint::hit("after-publish");
        }
        self.woken.wake_all(&self.context.wake_permits).await;
        Ok(())
    }

    /// Closes all streams of a room that is gone, and rejects what waits in the mailbox.
    fn close_gone(&mut self) {
        // Also those that were attached after that.
        self.close_streams_of_gone();
        self.handle.reject_all(&self.handle.gone_error());
    }

    fn close_streams_of_gone(&mut self) {
        let reason = self.handle.gone_reason();
        self.feed
            .publish(Bytes::new(), &mut self.woken)
            .close_all(&reason);
    }

    /// Appends the chunks' events to the log, with a snapshot if one is due, and waits until they are durable.
    async fn store(&mut self, chunks: &mut [Chunk]) -> Result<(), StoreError> {
        let records: Vec<_> = chunks.iter().filter_map(Chunk::record).collect();
        if records.is_empty() {
            return self.store_time().await;
        }
        let (bytes, events) = records.iter().fold((0, 0), |(bytes, events), record| {
            (bytes + record.frames.len(), events + record.events)
        });
        self.snapshots.on_stored(bytes);
        let is_due = self
            .snapshots
            .is_due(self.room(), self.context.store.snapshot_interval())
            || self.room().needs_snapshot();
        let snapshot = is_due.then(|| self.take_snapshot());
        let submitted_at = std::time::Instant::now();
        let status = self.status();
        self.append(Append {
            records,
            snapshot,
            status,
        })
        .await?;
        let batch = StoredBatch {
            submitted_at,
            durable_at: std::time::Instant::now(),
            bytes,
            events,
        };
        self.context
            .observer
            .batch_stored(batch.durable_at - batch.submitted_at);
        for (kind, time) in chunks.iter().flat_map(|chunk| &chunk.kinds) {
            self.context.observer.event_stored(*kind, *time);
        }
        for trace in chunks.iter_mut().flat_map(|chunk| &mut chunk.traces) {
            trace.stored(batch);
        }
        Ok(())
    }

    async fn append(&self, append: Append) -> Result<(), StoreError> {
        failpoint::hit("before-append");
        if !failpoint::is_enabled("skip-append") {
            self.context.store.append(self.log, append).await?;
        }
        failpoint::hit("after-append");
        Ok(())
    }

    fn status(&self) -> RoomStatus {
        RoomStatus {
            is_occupied: !self.room().participants().is_empty(),
            has_messages: self.room().has_messages(),
        }
    }

    fn take_snapshot(&mut self) -> EncodedSnapshot {
        self.snapshots.on_snapshot(self.sessions.room());
        encode_snapshot(&self.sessions.take_snapshot())
    }

    /// Stores the room's time if notices are about to show it and it would not survive a restart.
    async fn store_time(&mut self) -> Result<(), StoreError> {
        if self.room().needs_snapshot() {
            self.store_snapshot().await?;
        }
        Ok(())
    }

    /// Stores a snapshot of a quiet room unless the newest one is current. Retention can then delete the events that it
    /// covers, and the room recovers faster.
    async fn write_snapshot(&mut self) -> Result<(), StoreError> {
        if self.snapshots.is_current(self.room()) {
            return Ok(());
        }
        self.store_snapshot().await
    }

    async fn store_snapshot(&mut self) -> Result<(), StoreError> {
        let append = Append {
            records: Vec::new(),
            snapshot: Some(self.take_snapshot()),
            status: self.status(),
        };
        self.context.store.append(self.log, append).await
    }

    /// Publishes a durable chunk to the feed. Returns the answers to the requests that it contains.
    fn publish(&mut self, chunk: Chunk) -> Vec<Answer> {
        let Chunk {
            bytes,
            effects,
            mut traces,
            ..
        } = chunk;
        let started_at = (!traces.is_empty()).then(std::time::Instant::now);
        let mut publication = self.feed.publish(bytes, &mut self.woken);
        let answers: Vec<Answer> = effects
            .into_iter()
            .filter_map(|effect| perform(effect, &mut publication, &mut self.cursors))
            .collect();
        let traced = started_at.map(|started_at| (started_at, publication.fan_out()));
        drop(publication);
        if let Some((started_at, fan_out)) = traced {
            for trace in &mut traces {
                trace.published(started_at, fan_out);
            }
        }
        answers
    }

    /// Sends the answers, each of which wakes its caller. Thousands may have joined at once, so it yields meanwhile.
    async fn answer_all(&self, answers: Vec<Answer>) {
        let mut answers = answers.into_iter();
        loop {
            for answer in answers.by_ref().take(WAKE_GROUP) {
                self.answer(answer);
            }
            if answers.len() == 0 {
                return;
            }
            requeue().await;
        }
    }

    /// Sends an answer. It is dropped if its receiver is gone, which detaches a [`Member`].
    fn answer(&self, answer: Answer) {
        match answer {
            Answer::Attached(cursor, info, reply) => {
                let reader = self.reader(cursor, info.start.after);
                let observer = Arc::clone(&self.context.observer);
                let member = Member::new(Arc::clone(&self.handle), reader, observer, info);
                drop(reply.send(Ok(member)));
            }
            Answer::Subscribed(cursor, after, reply) => {
                drop(reply.send(Ok(self.reader(cursor, after))));
            }
            Answer::Posted(outcome, reply) => drop(reply.send(Ok(outcome))),
            Answer::Info(info, reply) => drop(reply.send(Ok(info))),
            Answer::Moderated(removed, report, reply) => {
                report(removed);
                drop(reply.send(Ok(removed)));
            }
        }
    }

    fn reader(&self, cursor: Cursor, after: Sequence) -> Reader {
        Reader::new(&self.context, self.log, cursor, after)
    }
}

fn new_feed(context: &HubContext, last: Sequence, writers: &Arc<RoomWriters>) -> Arc<Feed> {
    let observer = Arc::clone(&context.observer);
    let writers = Arc::clone(writers);
    Feed::new(
        context.options.feed_bytes,
        last,
        observer,
        &context.feed_budget,
        writers,
    )
}

/// Performs an effect on the feed. Returns the answer to send, if the effect has one.
fn perform(
    effect: Effect,
    publication: &mut Publication<'_>,
    cursors: &mut HashMap<Attachment, CursorKey>,
) -> Option<Answer> {
    match effect {
        Effect::Publish {
            len,
            events,
            received_at,
        } => publication.push_run(len, events, received_at),
        Effect::Attach { info, reply } => {
            let cursor = publication.subscribe(Origin::default());
            cursors.insert(info.attachment, cursor.key());
            return Some(Answer::Attached(cursor, info, reply));
        }
        Effect::Subscribe { after, origin, reply } => {
            let cursor = publication.subscribe(origin);
            return Some(Answer::Subscribed(cursor, after, reply));
        }
        Effect::Notify { attachment, notice } => {
            if let Some(&cursor) = cursors.get(&attachment) {
                publication.notify(cursor, notice);
            }
        }
        Effect::CloseStream { attachment, reason } => {
            if let Some(cursor) = cursors.remove(&attachment) {
                cursors.free_spare_capacity();
                publication.close(cursor, reason);
            }
        }
        Effect::CloseAll(reason) => {
            *cursors = HashMap::new();
            publication.close_all(&reason);
        }
        Effect::CloseBanned { target, reason } => publication.close_banned(&target, &reason),
        Effect::Posted { outcome, reply } => return Some(Answer::Posted(outcome, reply)),
        Effect::Info { info, reply } => return Some(Answer::Info(info, reply)),
        Effect::Moderated {
            removed,
            report,
            reply,
        } => return Some(Answer::Moderated(removed, report, reply)),
    }
    None
}

impl Drop for RoomActor {
    /// Whether the actor returns, fails or panics, no sender, caller or subscriber waits for it forever.
    fn drop(&mut self) {
        self.handle.reject_all(&HubError::Failed);
        self.feed
            .publish(Bytes::new(), &mut self.woken)
            .close_all(&CloseReason::Failed);
        self.context.observer.room_unloaded();
    }
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use futures_util::FutureExt as _;
    use futures_util::future::join_all;

    use super::super::{
        FeedItem, Hub, HubError, HubOptions, JoinRequest, MAX_RECOVERING_ROOMS, Reader, RequestMeta,
        RoomBudgets, StartPosition,
    };
    use super::*;
    use crate::cluster::hub_fixtures;
    use crate::domain::{
        DEDUP_ENTRY_BYTES, Message, MessageId, Moderation, Name, Post, Rejection, RoomName, Rules, Text,
        Timestamp,
    };
    use crate::store::{DiskOptions, DiskStore, Durability, MemoryStore, NoObserver, Retention, Store};
    use crate::telemetry::{Metrics, OtlpPipeline, TelemetryObserver};

    fn hub(budgets: RoomBudgets) -> Arc<Hub> {
        let store = Arc::new(MemoryStore::new(Retention::IN_MEMORY, 1_000));
        hub_of(budgets, store, HubOptions::default().resume_grace)
    }

    fn hub_of(budgets: RoomBudgets, store: Arc<dyn Store>, resume_grace: Duration) -> Arc<Hub> {
        let metrics = Arc::new(Metrics::new(1, OtlpPipeline::default()));
        let observer = Arc::new(TelemetryObserver::new(metrics, None));
        let options = HubOptions {
            budgets,
            resume_grace,
            ..HubOptions::default()
        };
        Hub::new(Rules::default(), options, store, &[0; 32], observer)
    }

    /// Posts a message with the id `n` to `room`.
    async fn post(hub: &Arc<Hub>, room: &RoomName, n: usize) -> Result<PostOutcome, HubError> {
        post_from(hub, Origin::default(), room, n).await
    }

    async fn post_from(
        hub: &Arc<Hub>,
        origin: Origin,
        room: &RoomName,
        n: usize,
    ) -> Result<PostOutcome, HubError> {
        post_text(hub, origin, room, n, "hi").await
    }

    async fn post_text(
        hub: &Arc<Hub>,
        origin: Origin,
        room: &RoomName,
        n: usize,
        text: &str,
    ) -> Result<PostOutcome, HubError> {
        let post = Post {
            name: Name::try_from("poster").unwrap(),
            origin,
            message: Message {
                timestamp: Timestamp(0),
                text: Text::parse(text, 100_000),
                message_id: Some(MessageId::try_from(format!("m{n}").as_str())),
                trace: None,
            },
        };
        hub.post(room, post, RequestMeta::now()).await
    }

    /// A room in which something was said, and which is not loaded any more.
    async fn unloaded(hub: &Arc<Hub>) -> RoomName {
        let room = RoomName::try_from("tea").unwrap();
        post(hub, &room, 0).await.unwrap();
        while hub.running() > 0 {
            tokio::time::sleep(IDLE_TIMEOUT).await;
        }
        assert!(hub.needs_loading(&room));
        room
    }

    #[tokio::test]
    async fn a_room_yields_between_many_requests_and_fewer_costly_ones() {
        for (cost, per_turn) in [
            (RequestCost::Constant, POLL_BUDGET),
            (RequestCost::Roster, POLL_BUDGET / ROSTER_COST),
            (RequestCost::Post, POLL_BUDGET / POST_COST),
            (RequestCost::Join, POLL_BUDGET / JOIN_COST),
        ] {
            let mut budget = PollBudget::default();
            let mut spending = Box::pin(async {
                for _ in 0..=per_turn {
                    budget.spend(cost).await;
                }
            });
            let mut turns = 1;
            poll_fn(|cx| {
                let done = spending.as_mut().poll(cx);
                turns += usize::from(done.is_pending());
                done
            })
            .await;
            assert_eq!(turns, 2, "{cost:?}");
        }
    }

    #[tokio::test]
    async fn a_join_whose_caller_is_gone_has_no_effect() {
        let hub = hub(RoomBudgets::default());
        let room = RoomName::default();
        let request = || JoinRequest {
            room: room.clone(),
            ..hub_fixtures::join("Ada")
        };
        let mut cancelled = Box::pin(hub.join(request(), std::time::Instant::now()));
        assert!(poll_fn(|cx| Poll::Ready(cancelled.as_mut().poll(cx).is_pending())).await);
        drop(cancelled);
        let info = hub.room_info(&room, None, 10).await.unwrap();
        assert_eq!((info.participants.len(), info.sequence), (0, Sequence::ZERO));
        let _member = hub.join(request(), std::time::Instant::now()).await.unwrap();
        let info = hub.room_info(&room, None, 10).await.unwrap();
        assert_eq!(info.participants.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_room_holds_while_it_is_loaded_is_given_back() {
        let hub = hub(RoomBudgets::default());
        let room = unloaded(&hub).await;
        let permit = Arc::new(());
        hub.load(&room, Arc::clone(&permit)).unwrap();
        assert!(!hub.needs_loading(&room));
        assert_eq!(Arc::strong_count(&permit), 2);
        post(&hub, &room, 1).await.unwrap();
        assert_eq!(Arc::strong_count(&permit), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_asks_for_a_room_that_ends_meanwhile_does_not_create_it_again() {
        let hub = hub(RoomBudgets::default());
        let room = RoomName::try_from("tea").unwrap();
        hub.context.store.open(&room, WallTime::from_millis(0)).unwrap();
        let mut ending = Box::pin(hub.end_unused_rooms());
        assert!(poll_fn(|cx| Poll::Ready(ending.as_mut().poll(cx).is_pending())).await);
        assert_eq!(post(&hub, &room, 1).await, Err(HubError::RoomEnded));
        assert!(!hub.has_room(&room));
    }

    async fn is_repeat(hub: &Arc<Hub>, room: &RoomName, n: usize) -> bool {
        matches!(post(hub, room, n).await.unwrap(), PostOutcome::Repeated(_))
    }

    #[tokio::test]
    async fn a_decision_is_reported_even_if_nobody_waits_for_it() {
        let hub = hub(RoomBudgets::default());
        let room = RoomName::try_from("tea").unwrap();
        post(&hub, &room, 0).await.unwrap();
        let (report, reported) = tokio::sync::oneshot::channel();
        let mut decision = Box::pin(hub.moderate(&room, Moderation::Close, move |removed| {
            report.send(removed).ok();
        }));
        assert!(poll_fn(|cx| Poll::Ready(decision.as_mut().poll(cx).is_pending())).await);
        drop(decision);
        assert_eq!(reported.await, Ok(0));
    }

    #[tokio::test]
    async fn nobody_who_waits_for_a_deleted_room_creates_it_again() {
        let hub = hub(RoomBudgets::default());
        let room = RoomName::try_from("tea").unwrap();
        post(&hub, &room, 0).await.unwrap();
        let deletion = hub.moderate(&room, Moderation::Delete, |_| {});
        // More than the mailbox holds. The room's actor runs only once all of them wait.
        let posts = join_all((1..6_000).map(|n| post(&hub, &room, n)));
        let (deleted, posted) = tokio::join!(deletion, posts);
        assert_eq!(deleted, Ok(0));
        let rejected = Err(HubError::Rejected(Rejection::RoomDeleted));
        assert!(posted.iter().all(|posted| *posted == rejected));
        assert!(!hub.has_room(&room));
    }

    #[tokio::test]
    async fn rooms_share_the_memory_for_message_ids_and_those_with_most_forget_their_oldest() {
        let hub = hub(RoomBudgets {
            message_ids: 1_000 * DEDUP_ENTRY_BYTES,
            ..RoomBudgets::default()
        });
        let [small, one, other] = ["small", "one", "other"].map(|room| RoomName::try_from(room).unwrap());
        for n in 0..10 {
            assert!(!is_repeat(&hub, &small, n).await);
        }
        for n in 0..900 {
            assert!(!is_repeat(&hub, &one, n).await);
        }
        assert!(
            is_repeat(&hub, &one, 0).await,
            "alone, they have the whole budget"
        );
        for n in 0..200 {
            assert!(!is_repeat(&hub, &other, n).await);
        }
        // Five eighths are left, 415 of them to the largest, which has received nothing meanwhile.
        for (room, n) in [(&small, 0), (&other, 0), (&one, 899)] {
            assert!(is_repeat(&hub, room, n).await, "{n}");
        }
        assert!(!is_repeat(&hub, &one, 0).await);
    }

    #[tokio::test]
    async fn many_rooms_of_one_address_do_not_make_others_forget_message_ids() {
        let hub = hub(RoomBudgets {
            message_ids: 1_000 * DEDUP_ENTRY_BYTES,
            ..RoomBudgets::default()
        });
        let room = |room: String| RoomName::try_from(room.as_str()).unwrap();
        let at = |address: &str| Origin {
            address: address.parse().ok(),
            ..Origin::default()
        };
        let victims = ["one".to_owned(), "two".to_owned()].map(room);
        for n in 0..100 {
            // Somebody else is in the second room, too.
            for (address, room) in [
                ("192.0.2.1", &victims[0]),
                ("192.0.2.1", &victims[1]),
                ("192.0.2.2", &victims[1]),
            ] {
                post_from(&hub, at(address), room, n).await.unwrap();
            }
        }
        for n in 0..5_000 {
            let room = room(format!("flooded-{}", n % 500));
            post_from(&hub, at("192.0.2.3"), &room, n).await.unwrap();
        }
        for room in &victims {
            assert!(is_repeat(&hub, room, 0).await);
        }
    }

    #[tokio::test]
    async fn readers_hold_few_events_that_are_larger_than_a_first_page() {
        let hub = hub(RoomBudgets {
            // For two pages of 64 KiB.
            feeds: 4 * 64 * 1024,
            ..RoomBudgets::default()
        });
        let room = RoomName::default();
        let text = "x".repeat(100_000);
        let posted = post_text(&hub, Origin::default(), &room, 0, &text).await;
        posted.unwrap();
        let subscribe = || hub.subscribe(&room, StartPosition::Last(1), Origin::default());
        let (mut one, mut other) = (subscribe().await.unwrap(), subscribe().await.unwrap());
        let is_event = |item: Option<FeedItem>| matches!(item, Some(FeedItem::Events(_)));
        let next = |reader: &mut Reader| poll_fn(|cx| reader.poll_next(cx)).now_or_never();
        assert!(is_event(next(&mut one)));
        assert_eq!(next(&mut other), None);
        assert_eq!(next(&mut one), None, "its client has accepted the event");
        assert!(is_event(next(&mut other)));
    }

    #[tokio::test]
    async fn after_a_restart_no_room_waits_for_the_grace_periods_of_others() {
        let directory = tempfile::tempdir().unwrap();
        let options = DiskOptions {
            durability: Durability::Os,
            retention: Retention::ON_DISK,
            max_rooms: 1_000,
            accept_loss: false,
        };
        let store = DiskStore::open(&directory.path().join("data"), options, Arc::new(NoObserver));
        let store: Arc<dyn Store> = Arc::new(store.unwrap());
        let hub = || {
            hub_of(
                RoomBudgets::default(),
                Arc::clone(&store),
                Duration::from_secs(3_600),
            )
        };
        let interrupted = hub();
        let rooms = MAX_RECOVERING_ROOMS + 10;
        for n in 0..rooms {
            let mut request = JoinRequest {
                room: RoomName::try_from(format!("room-{n}").as_str()).unwrap(),
                ..hub_fixtures::join("Ada")
            };
            request.join.is_resumable = true;
            // As after a crash, nobody notices that the stream is gone.
            std::mem::forget(
                interrupted
                    .join(request, std::time::Instant::now())
                    .await
                    .unwrap(),
            );
        }
        let restarted = hub();
        restarted.recover_unfinished_rooms();
        tokio::time::timeout(Duration::from_secs(60), async {
            while restarted.running() < rooms {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await
        .unwrap();
    }
}
