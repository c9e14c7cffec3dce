//! A replica at work: what joins the order, NATS and the rooms of this process.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_nats::Message as NatsMessage;
use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::{error, info, warn};

use super::follower::{Follower, Hole};
use super::message::{Content, Message, Place, RoomCommand};
use super::nats::{Delivered, FETCHED_MESSAGES, NatsError, NatsOptions, Stream, Subscriptions, refusal};
use super::partition::{Applied, Decision, Ignored, OutOfOrder, Partition, Refusal};
use super::presence::{CUT_OFF, LEASE, Presence};
use super::producer::Producer;
use crate::domain::{DecodeError, Rejection, RoomName, WallTime};
use crate::hub::{Hub, HubError, Ordered, Submission};
use crate::wall_clock::wall_time;

/// How often is looked whether something is due.
const TICK: Duration = Duration::from_millis(10);

/// How many messages are applied before what they have made due is done.
const MAX_TURN: usize = 256;

/// How many commands of rooms wait for the replica.
pub(crate) const SUBMISSIONS: usize = 1_024;

/// Observes a replica. Its methods must not block.
pub trait Observer: Send + Sync + 'static {
    /// Called every few milliseconds.
    fn observed(&self, state: &ReplicaState);

    /// Called after a message of the order was applied. It was read from the stream if it did not come by itself.
    fn applied(&self, is_fetched: bool);

    /// Called after a batch of this replica was applied, with how long ago it was written.
    fn ordered(&self, took: Duration);

    /// Called after batches were written again.
    fn resent(&self, batches: usize);

    /// Called after NATS has refused to store a message of this replica.
    fn refused(&self);

    /// Called after one had no effect, for one of the [reasons](IGNORED).
    fn ignored(&self, reason: &'static str);

    /// Called after a replica was declared lost.
    fn lost(&self, is_own: bool);

    /// Called when the replica turns to another NATS server.
    fn server_switched(&self);
}

/// What a replica is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplicaState {
    /// Whether clients are welcome.
    pub is_ready: bool,
    /// How many replicas live.
    pub replicas: usize,
    /// How many of them decide otherwise.
    pub diverged: usize,
    /// How long it has not heard itself.
    pub silence: Duration,
    /// The place of the last message that it has applied.
    pub applied: u64,
    /// How many more it knows of.
    pub lag: u64,
    /// How many of its batches have not come back.
    pub in_flight: usize,
    /// The size of the commands that wait to be written, in bytes.
    pub waiting: usize,
}

/// Why messages have no effect.
pub const IGNORED: [&str; 4] = ["repeated", "early", "fenced", "other"];

/// Why a replica cannot go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReplicaError {
    #[error(transparent)]
    Nats(#[from] NatsError),
    #[error(
        "cannot decode the message at {0} of the stream ({1}); a newer version of the program may have written it"
    )]
    Unknown(Place, DecodeError),
    #[error(transparent)]
    Hole(#[from] Hole),
    #[error(transparent)]
    OutOfOrder(#[from] OutOfOrder),
    #[error(
        "the other replicas do not accept it: start all with the same --max-message-chars, --max-clock-ahead, --max-participants and \
         --allow-duplicate-names, and no more than 64"
    )]
    Unwelcome,
    #[error("it decides otherwise than most of the other replicas")]
    Diverged,
    #[error("the room {room:?} does not apply what has its place in the order: {error}")]
    Room { room: RoomName, error: HubError },
    #[error("the subscriptions to NATS have ended")]
    Ended,
}

/// A replica, what comes from its stream, and whether clients are welcome.
pub(crate) type ConnectedReplica = (Replica, Subscriptions, watch::Receiver<bool>);

/// One replica. It follows the order, applies it to the rooms of a hub, and adds what those submit.
pub(crate) struct Replica {
    hub: Arc<Hub>,
    observer: Arc<dyn Observer>,
    stream: Stream,
    partition: Partition,
    follower: Follower,
    producer: Producer,
    presence: Presence,
    /// The incarnations that have decided otherwise.
    diverged: BTreeSet<Place>,
    /// Times are measured from then.
    started: Instant,
    /// When something came from a server, and when the replica turned to another one.
    heard_at: Duration,
    switched_at: Duration,
    /// Since when the replica writes.
    writing_since: Option<Duration>,
    is_ready: watch::Sender<bool>,
}

impl Replica {
    /// Connects to NATS. Also returns what tells whether clients are welcome.
    pub(crate) async fn connect(
        options: &NatsOptions,
        name: Arc<str>,
        hub: Arc<Hub>,
        observer: Arc<dyn Observer>,
    ) -> Result<ConnectedReplica, NatsError> {
        let client = options.connect(&name).await?;
        let (stream, subscriptions) = Stream::subscribe(client, options.addresses()?).await?;
        let (is_ready, ready) = watch::channel(false);
        let zero = Duration::ZERO;
        let replica = Self {
            stream,
            partition: Partition::new(hub.options().max_rooms),
            follower: Follower::new(Place::default(), zero),
            producer: Producer::new(*hub.rules(), name, rand::random()),
            presence: Presence::new(zero),
            diverged: BTreeSet::new(),
            started: Instant::now(),
            heard_at: zero,
            switched_at: zero,
            writing_since: None,
            is_ready,
            hub,
            observer,
        };
        Ok((replica, subscriptions, ready))
    }

    /// Never completes unless the replica must not go on. Can be dropped at any time.
    pub(crate) async fn run(
        mut self,
        subscriptions: Subscriptions,
        mut submissions: mpsc::Receiver<Submission>,
    ) -> ReplicaError {
        let Subscriptions {
            mut published,
            mut fetched,
            mut acknowledged,
        } = subscriptions;
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let can_submit = self.producer.has_room() && self.producer.incarnation().is_some();
            let turn = tokio::select! {
                message = published.next() => self.take_all(message, &mut published).await,
                message = fetched.next() => self.take_all(message, &mut fetched).await,
                Some(message) = acknowledged.next() => {
                    if let Some(why) = refusal(&message) {
                        self.observer.refused();
                        warn!(event = "publication_refused", why, "NATS does not store a message of this replica");
                    }
                    Ok(())
                }
                Some(submission) = submissions.recv(), if can_submit => {
                    self.submit(submission);
                    while self.producer.has_room() && let Ok(submission) = submissions.try_recv() {
                        self.submit(submission);
                    }
                    Ok(())
                }
                _ = ticks.tick() => Ok(()),
            };
            if let Err(error) = turn {
                self.is_ready.send_replace(false);
                return error;
            }
            self.write().await;
            self.supervise();
        }
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn submit(&mut self, submission: Submission) {
        let Submission {
            room,
            epoch,
            request,
            command,
            fences,
        } = submission;
        if fences < self.hub.fences() {
            // It was meant for an incarnation that is lost. Nobody waits for it any more.
            return;
        }
        self.producer.push(RoomCommand {
            room,
            epoch,
            request,
            command,
        });
    }

    /// Takes a message, and those that wait behind it.
    async fn take_all(
        &mut self,
        first: Option<NatsMessage>,
        others: &mut async_nats::Subscriber,
    ) -> Result<(), ReplicaError> {
        self.take(first.ok_or(ReplicaError::Ended)?).await?;
        for _ in 1..MAX_TURN {
            let Some(Some(message)) = others.next().now_or_never() else {
                break;
            };
            self.take(message).await?;
        }
        Ok(())
    }

    async fn take(&mut self, message: NatsMessage) -> Result<(), ReplicaError> {
        let now = self.now();
        let is_published = message.subject.as_str().starts_with("live.");
        match Delivered::from_message(message) {
            Some(Delivered::Message {
                place,
                previous,
                payload,
            }) => {
                self.heard_at = now;
                let is_next = if is_published {
                    self.follower.accept_published(place, now)
                } else {
                    self.follower.accept_fetched(place, previous, now)?
                };
                if is_next {
                    self.apply(place, &payload).await?;
                    self.observer.applied(!is_published);
                }
            }
            Some(Delivered::End(last)) => {
                self.heard_at = now;
                self.follower.on_fetched(last, now);
            }
            Some(Delivered::Failed(why)) => warn!(event = "nats", "cannot read the stream: {why}"),
            None => warn!(event = "nats", "a message of NATS is not understood"),
        }
        Ok(())
    }

    async fn apply(&mut self, place: Place, payload: &Bytes) -> Result<(), ReplicaError> {
        let now = self.now();
        let message = Message::decode(payload).map_err(|error| ReplicaError::Unknown(place, error))?;
        let at = message.at;
        let (writer, nonce) = match &message.content {
            Content::Hello { nonce, .. } => (Some(place), Some(*nonce)),
            Content::Batch { incarnation, .. } | Content::Heartbeat { incarnation, .. } => {
                (Some(*incarnation), None)
            }
            Content::Lost { .. } => (None, None),
        };
        let applied = self.partition.apply(place, message)?;
        let is_fenced = matches!(applied, Applied::Ignored(Ignored::Fenced | Ignored::Unwelcome));
        if let (Some(writer), false) = (writer, is_fenced) {
            self.presence.on_message(writer, place, now);
        }
        if let Applied::Ignored(why) = applied {
            self.observer.ignored(match why {
                Ignored::Repeated => IGNORED[0],
                Ignored::Early(_) => IGNORED[1],
                Ignored::Fenced => IGNORED[2],
                Ignored::Alive | Ignored::Unwelcome => IGNORED[3],
            });
        }
        let own = self.producer.incarnation();
        match applied {
            Applied::Hello { nonce, incarnation } => {
                if self.producer.on_hello(nonce, incarnation) {
                    self.presence.set_own(Some(incarnation), now);
                    info!(event = "replica_started", %incarnation, "this replica takes part in the order");
                }
            }
            Applied::Batch {
                incarnation,
                number,
                decisions,
            } => {
                let is_own = own == Some(incarnation);
                if is_own && let Some(took) = self.producer.on_batch(number, now) {
                    self.observer.ordered(took);
                }
                deliver(&self.hub, decisions, is_own, at).await?;
            }
            Applied::Heartbeat {
                incarnation,
                is_alike,
            } => self.compare(incarnation, is_alike)?,
            Applied::Lost {
                incarnation,
                decisions,
            } => {
                self.presence.on_lost(incarnation);
                self.diverged.remove(&incarnation);
                self.observer.lost(own == Some(incarnation));
                if own == Some(incarnation) {
                    // It lives, but was silent: its clients may be elsewhere.
                    error!(event = "replica_fenced", %incarnation, "the other replicas take this one for lost; it begins anew");
                    self.producer.on_lost(rand::random());
                    self.presence.set_own(None, now);
                    self.hub.fence().await;
                } else {
                    warn!(event = "replica_lost", %incarnation, "another replica is lost");
                }
                deliver(&self.hub, decisions, false, at).await?;
            }
            Applied::Ignored(Ignored::Early(incarnation)) if own == Some(incarnation) => {
                self.producer.resend();
            }
            Applied::Ignored(Ignored::Unwelcome) if own.is_none() && nonce == Some(self.producer.nonce()) => {
                return Err(ReplicaError::Unwelcome);
            }
            Applied::Ignored(_) => {}
        }
        Ok(())
    }

    /// Another replica has decided alike, or has not. If most have not, this one is wrong.
    fn compare(&mut self, incarnation: Place, is_alike: bool) -> Result<(), ReplicaError> {
        if is_alike {
            self.diverged.remove(&incarnation);
            return Ok(());
        }
        if self.diverged.insert(incarnation) {
            error!(event = "replicas_diverged", %incarnation, "another replica decides otherwise");
        }
        let others = self.presence.live().saturating_sub(1);
        if self.diverged.len() * 2 > others && others > 1 {
            return Err(ReplicaError::Diverged);
        }
        Ok(())
    }

    /// Writes what is due, and asks for what is missing.
    async fn write(&mut self) {
        let (now, at) = (self.now(), wall_time());
        let mut messages = Vec::new();
        if self.follower.is_caught_up() {
            self.writing_since.get_or_insert(now);
            messages = self.producer.poll(now, at);
            self.observer.resent(self.producer.take_resent());
        }
        if let Some(incarnation) = self.producer.incarnation() {
            if self.presence.is_heartbeat_due(now) {
                let content = Content::Heartbeat {
                    incarnation,
                    applied: self.partition.applied(),
                    digest: self.partition.digest(),
                };
                messages.push(Message { at, content }.encode());
            }
            let lost = self.presence.poll_lost(now).into_iter();
            messages.extend(lost.map(|content| Message { at, content }.encode()));
        }
        for message in messages {
            self.stream.publish(message).await;
        }
        if let Some(place) = self.follower.poll_fetch(now) {
            self.stream.fetch(place, FETCHED_MESSAGES).await;
        }
    }

    /// Notices that this replica does not hear itself: its server is then cut off from the others, or there is no leader.
    fn supervise(&mut self) {
        let now = self.now();
        let writing = self
            .writing_since
            .map_or(Duration::ZERO, |since| now.saturating_sub(since));
        let silence = self.presence.own_silence(now).min(writing);
        let is_deaf = silence > CUT_OFF || now > self.heard_at + CUT_OFF;
        if is_deaf && now > self.switched_at + CUT_OFF {
            self.switched_at = now;
            warn!(event = "nats_switched", silence = ?silence, "turning to another NATS server");
            self.observer.server_switched();
            self.stream.switch_server();
            self.producer.resend();
        }
        let takes_part = self.writing_since.is_some() && self.producer.incarnation().is_some();
        if takes_part && silence < CUT_OFF {
            self.hub.resume();
        } else if silence > LEASE {
            self.hub.suspend();
        }
        let is_ready = takes_part && silence < CUT_OFF;
        self.observer.observed(&ReplicaState {
            is_ready,
            replicas: self.presence.live(),
            diverged: self.diverged.len(),
            silence,
            applied: self.partition.applied().get(),
            lag: self.follower.lag(),
            in_flight: self.producer.in_flight(),
            waiting: self.producer.waiting_len(),
        });
        self.is_ready
            .send_if_modified(|before| std::mem::replace(before, is_ready) != is_ready);
    }
}

/// Gives the rooms what has become of commands.
pub(super) async fn deliver(
    hub: &Arc<Hub>,
    decisions: Vec<Decision>,
    is_own: bool,
    at: WallTime,
) -> Result<(), ReplicaError> {
    let mut rooms = BTreeMap::<RoomName, Vec<Ordered>>::new();
    for decision in decisions {
        let Decision {
            room,
            request,
            command,
            outcome,
            is_void,
        } = decision;
        if is_void && !is_own {
            continue;
        }
        let ordered = Ordered {
            request: request.filter(|_| is_own),
            command,
            at,
            room: outcome.map(|(epoch, _)| epoch).map_err(|refusal| match refusal {
                Refusal::TooManyRooms => HubError::TooManyRooms(hub.options().max_rooms),
                Refusal::RoomDeleted => Rejection::RoomDeleted.into(),
            }),
        };
        rooms.entry(room).or_default().push(ordered);
    }
    for (room, commands) in rooms {
        let applied = hub.apply_ordered(&room, commands).await;
        applied.map_err(|error| ReplicaError::Room { room, error })?;
    }
    Ok(())
}
