//! A replica at work: what joins the command log, NATS and the rooms of this process.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_nats::Message as NatsMessage;
use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::task::AbortOnDropHandle;
use tracing::{error, info, warn};

use super::bootstrap::{Bootstrap, WARN_INTERVAL};
use super::checkpoint::Checkpoint;
use super::checkpoint_transfer;
use super::checkpointer::{Checkpointer, Finished, StopRequest};
use super::fingerprint::Fingerprint;
use super::membership::{CUT_OFF, LEASE, Membership};
use super::message::{Content, LogPosition, Message, RoomCommand};
use super::nats::{Delivered, FETCHED_MESSAGES, NatsError, Stream, Subscriptions, publish_error};
use super::observer::{IGNORED, Observer, ReplicaStats};
use super::options::{ClusterOptions, MAX_NAME_LEN};
use super::producer::Producer;
use super::rules::{ClusterRules, FoldVersions};
use super::state_machine::{Applied, ApplyError, Decision, Ignored, RoutingError, StateMachine};
use super::stream_reader::{Missing, StreamReader};
use super::truncation::{self, TruncationView};
use crate::domain::{DecodeError, RoomName, WallTime};
use crate::hub::{Hub, HubError, OrderedCommand, Submission};
use crate::wall_clock::wall_time;

/// How often to check for work that is due.
const TICK: Duration = Duration::from_millis(10);

/// How many messages are applied before what they have made due is done.
const MAX_MESSAGES_PER_ITERATION: usize = 256;

/// How often to check whether the stream can be truncated.
const TRUNCATION_INTERVAL: Duration = Duration::from_secs(60);

/// How many commands of rooms wait for the replica.
pub(crate) const SUBMISSIONS: usize = 1_024;

/// Why a replica cannot go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReplicaError {
    #[error(transparent)]
    Nats(#[from] NatsError),
    #[error(
        "cannot decode the message at {0} of the stream ({1}); a newer version of the program may have written it"
    )]
    Unknown(LogPosition, DecodeError),
    #[error(transparent)]
    Missing(#[from] Missing),
    #[error(transparent)]
    Apply(#[from] ApplyError),
    #[error(
        "the settings of this replica differ from those of the running replicas: start all with the same --max-message-chars, \
         --max-clock-ahead, --max-participants, --max-rooms and --allow-duplicate-names, and the same Unicode tables of the program; to \
         change them, stop all replicas first"
    )]
    OtherRules,
    #[error("it has diverged: its decisions differ from those of most other replicas")]
    Diverged,
    #[error("the room {room:?} does not apply what has its position in the command log: {error}")]
    Room { room: RoomName, error: HubError },
    #[error("the subscriptions to NATS have ended")]
    Ended,
    #[error("the rooms of its checkpoint cannot be restored: {0:?}")]
    Restore(HubError),
}

impl ReplicaError {
    /// Whether the operator has started something that does not fit to the other replicas or to NATS.
    pub(crate) const fn is_misconfiguration(&self) -> bool {
        matches!(
            self,
            Self::OtherRules
                | Self::Apply(ApplyError::Unsupported { .. })
                | Self::Nats(NatsError::Payload { .. })
        )
    }
}

/// A replica, what comes from its stream, and whether clients are welcome.
pub(crate) type ConnectedReplica = (Replica, Subscriptions, watch::Receiver<bool>);

/// One replica. It follows the command log, applies it to the rooms of a hub, and adds what those submit.
pub(crate) struct Replica {
    hub: Arc<Hub>,
    observer: Arc<dyn Observer>,
    stream: Stream,
    state_machine: StateMachine,
    stream_reader: StreamReader,
    producer: Producer,
    membership: Membership,
    /// The incarnations that have decided otherwise.
    diverged: BTreeSet<LogPosition>,
    /// Times are measured from then.
    started: Instant,
    /// When something last came from NATS.
    heard_at: Duration,
    /// When the stream last had what this replica has applied.
    verified_at: Duration,
    /// When the replica last turned to another NATS server.
    switched_at: Duration,
    /// Since when the replica writes.
    writing_since: Option<Duration>,
    is_ready: watch::Sender<bool>,
    /// Whether the live ones had other rules when this replica asked to take part. It waits then until they are fenced.
    has_other_rules: bool,
    /// When it last logged what it waits for.
    warned_at: Option<Duration>,
    name: Arc<str>,
    /// Where to begin, until that is known.
    bootstrap: Option<Bootstrap>,
    /// Without a data directory there are no checkpoints.
    checkpointer: Option<Checkpointer>,
    /// What the task that truncates the stream must know.
    truncation: watch::Sender<TruncationView>,
    /// What runs beside the replica, and ends with it.
    tasks: Vec<AbortOnDropHandle<()>>,
}

impl Replica {
    /// Connects to NATS. Also returns what tells whether clients are welcome.
    pub(crate) async fn connect(
        options: &ClusterOptions,
        bootstrap: Bootstrap,
        hub: Arc<Hub>,
        observer: Arc<dyn Observer>,
    ) -> Result<ConnectedReplica, NatsError> {
        let name: Arc<str> = options.name.chars().take(MAX_NAME_LEN).collect::<String>().into();
        let client = options.nats.connect(&options.name).await?;
        let (mut stream, subscriptions) =
            Stream::subscribe(client.clone(), options.nats.addresses()?).await?;
        if let Some((error, _)) = stream.check_server(Producer::max_message_len(hub.rules())) {
            return Err(error);
        }
        let (is_ready, ready) = watch::channel(false);
        let zero = Duration::ZERO;
        let interval = options.checkpoint_interval;
        let checkpointer = bootstrap
            .directory
            .as_ref()
            .map(|directory| Checkpointer::new(Arc::clone(directory), Arc::clone(&hub), interval, zero));
        let (truncation, views) = watch::channel(TruncationView::default());
        let every = TRUNCATION_INTERVAL.min(interval);
        let truncating = truncation::run(client, views, options.keep, every, Arc::clone(&observer));
        let tasks = vec![AbortOnDropHandle::new(tokio::spawn(truncating))];
        let replica = Self {
            stream,
            state_machine: StateMachine::new(),
            stream_reader: StreamReader::new(LogPosition::default(), Fingerprint::default(), zero),
            producer: Producer::new(
                ClusterRules::new(*hub.rules(), hub.options().max_rooms),
                FoldVersions::supported(),
                Arc::clone(&name),
                rand::random(),
            ),
            membership: Membership::new(zero),
            diverged: BTreeSet::new(),
            started: Instant::now(),
            heard_at: zero,
            verified_at: zero,
            switched_at: zero,
            writing_since: None,
            is_ready,
            has_other_rules: false,
            warned_at: None,
            name,
            bootstrap: Some(bootstrap),
            checkpointer,
            truncation,
            tasks,
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
        mut stops: mpsc::Receiver<StopRequest>,
    ) -> ReplicaError {
        let Subscriptions {
            mut published,
            mut fetched,
            mut acknowledged,
        } = subscriptions;
        if let Some(bootstrap) = self.bootstrap.take() {
            let directory = bootstrap.directory.clone();
            let mut beginning = Box::pin(bootstrap.run(&mut self.stream, &*self.observer));
            let checkpoint = loop {
                tokio::select! {
                    checkpoint = &mut beginning => break checkpoint,
                    // It will be read again.
                    Some(_) = published.next() => {}
                    // Who stops has nothing to wait for.
                    Some(_) = stops.recv() => {}
                }
            };
            drop(beginning);
            if let Err(error) = self.begin(checkpoint) {
                return error;
            }
            // Not before: what it has may be of another stream.
            if let Some(directory) = directory {
                let serving = checkpoint_transfer::serve(self.stream.client().clone(), directory);
                self.tasks.push(AbortOnDropHandle::new(tokio::spawn(serving)));
            }
        }
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let can_submit = self.producer.has_room() && self.producer.incarnation().is_some();
            let turn = tokio::select! {
                message = published.next() => self.take_all(message, &mut published).await,
                message = fetched.next() => self.take_all(message, &mut fetched).await,
                Some(message) = acknowledged.next() => {
                    if let Some(why) = publish_error(&message) {
                        self.observer.publish_failed();
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
                Some(request) = stops.recv() => {
                    let now = self.now();
                    if let Some(checkpointer) = &mut self.checkpointer {
                        checkpointer.stop(request, now, &self.state_machine, self.stream_reader.newest());
                    }
                    Ok(())
                }
                _ = ticks.tick() => Ok(()),
            };
            if let Err(error) = turn {
                self.is_ready.send_replace(false);
                return error;
            }
            if let Err(error) = self.check_server() {
                return error;
            }
            self.write().await;
            self.take_checkpoint().await;
            self.supervise();
        }
    }

    /// Continues after a checkpoint, or begins with the first message.
    fn begin(&mut self, checkpoint: Option<Checkpoint>) -> Result<(), ReplicaError> {
        let mut newest = Fingerprint::default();
        if let Some(Checkpoint {
            id,
            state_machine,
            rooms,
        }) = checkpoint
        {
            newest = id.fingerprint;
            state_machine.check_version()?;
            if let Some(rules) = state_machine.rules() {
                self.hub.restore_rules(rules);
            }
            for room in rooms {
                self.hub.restore_room(room).map_err(ReplicaError::Restore)?;
            }
            self.state_machine = state_machine;
        }
        let now = self.now();
        (self.heard_at, self.verified_at, self.switched_at) = (now, now, now);
        self.stream_reader = StreamReader::new(self.state_machine.applied(), newest, now);
        self.membership = Membership::new(now);
        // Those that do not live any more have their whole lease from now on.
        for (incarnation, seen) in self.state_machine.incarnations() {
            self.membership.on_message(incarnation, seen, now);
        }
        Ok(())
    }

    /// Takes a checkpoint if it is time to.
    async fn take_checkpoint(&mut self) {
        let now = self.now();
        let Some(checkpointer) = &mut self.checkpointer else {
            return;
        };
        if let Some(finished) = checkpointer
            .poll(now, &self.state_machine, self.stream_reader.newest())
            .await
        {
            self.observer.checkpoint_finished(match finished {
                Finished::Written(id) => Some(id.len),
                Finished::Failed => None,
            });
        }
        let checkpoint = checkpointer
            .newest()
            .map_or(0, |checkpoint| checkpoint.position.get());
        let applied = self.state_machine.applied().get();
        self.observer.checkpoint_lag(applied.saturating_sub(checkpoint));
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
            generation,
        } = submission;
        if generation < self.hub.generation() {
            // It was meant for an incarnation that is fenced. Nobody waits for it any more.
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
        self.notice_reconnect();
        self.take(first.ok_or(ReplicaError::Ended)?).await?;
        for _ in 1..MAX_MESSAGES_PER_ITERATION {
            let Some(Some(message)) = others.next().now_or_never() else {
                break;
            };
            self.take(message).await?;
        }
        Ok(())
    }

    fn notice_reconnect(&mut self) {
        if self.stream.has_reconnected() {
            let now = self.now();
            self.stream_reader.reconnected(now);
        }
    }

    async fn take(&mut self, message: NatsMessage) -> Result<(), ReplicaError> {
        let now = self.now();
        let is_published = message.subject.as_str().starts_with("live.");
        match Delivered::from_message(message) {
            Some(Delivered::Message {
                position,
                previous,
                fingerprint,
                payload,
            }) => {
                self.heard_at = now;
                let is_next = if is_published {
                    self.stream_reader.accept_published(position, fingerprint, now)?
                } else {
                    self.stream_reader
                        .accept_fetched(position, previous, fingerprint, now)?
                };
                if is_next {
                    self.apply(position, &payload).await?;
                    self.observer.applied(!is_published);
                }
            }
            Some(Delivered::End(last)) => {
                self.heard_at = now;
                self.stream_reader.on_fetched(last, now);
            }
            Some(Delivered::Failed(why)) => warn!(event = "nats", "cannot read the stream: {why}"),
            None => warn!(event = "nats", "a message of NATS is not understood"),
        }
        Ok(())
    }

    async fn apply(&mut self, position: LogPosition, payload: &Bytes) -> Result<(), ReplicaError> {
        let now = self.now();
        let message = Message::decode(payload).map_err(|error| ReplicaError::Unknown(position, error))?;
        let at = message.at;
        let (writer, nonce, heartbeat) = match &message.content {
            Content::Hello { nonce, .. } => (Some(position), Some(*nonce), None),
            Content::Batch { incarnation, .. } => (Some(*incarnation), None, None),
            Content::Heartbeat {
                incarnation,
                checkpoint,
                ..
            } => (Some(*incarnation), None, Some((*incarnation, *checkpoint))),
            Content::Fence { .. } | Content::Activate { .. } => (None, None, None),
        };
        if let Some(checkpointer) = &mut self.checkpointer {
            checkpointer.on_applied(payload.len(), heartbeat.is_some());
        }
        let applied = self.state_machine.apply(position, message)?;
        if let Some(checkpointer) = &self.checkpointer {
            for decision in applied.decisions() {
                if let Ok((epoch, _)) = decision.outcome
                    && self.state_machine.epoch(&decision.room) != Some(epoch)
                {
                    checkpointer.on_ended(&decision.room, epoch);
                }
            }
        }
        // A replica whose first message has no effect does not live.
        let is_ignored = matches!(applied, Applied::Ignored(Ignored::Fenced))
            || (nonce.is_some() && matches!(applied, Applied::Ignored(_)));
        if let (Some(writer), false) = (writer, is_ignored) {
            self.membership.on_message(writer, position, now);
            // The first message of a replica that was accepted may have brought the rules of this one. Any other message means that replicas
            // with other rules live.
            self.has_other_rules &= nonce.is_none();
            if self.has_other_rules {
                return Err(ReplicaError::OtherRules);
            }
            if let Some((incarnation, checkpoint)) = heartbeat {
                self.membership.on_checkpoint(incarnation, checkpoint);
            }
        }
        if let Applied::Ignored(why) = applied {
            self.observer.ignored(match why {
                Ignored::Repeated => IGNORED[0],
                Ignored::Gap(_) => IGNORED[1],
                Ignored::Fenced => IGNORED[2],
                Ignored::Alive | Ignored::OtherRules | Ignored::Unsupported { .. } | Ignored::NotReady => {
                    IGNORED[3]
                }
            });
        }
        let own = self.producer.incarnation();
        match applied {
            Applied::Hello {
                nonce,
                incarnation,
                rules,
                evicted,
            } => {
                if let Some(rules) = rules {
                    self.hub.set_rules(rules).await;
                }
                if let Some((fenced, decisions)) = evicted {
                    self.on_fenced(fenced, decisions, at).await?;
                }
                if self.producer.on_hello(nonce, incarnation) {
                    self.membership.set_own(Some(incarnation), now);
                    info!(event = "replica_started", %incarnation, "this replica takes part in the command log");
                }
            }
            Applied::Batch {
                incarnation,
                number,
                decisions,
            } => {
                let is_own = own == Some(incarnation);
                if is_own && let Some(took) = self.producer.on_batch(number, now) {
                    self.observer.batch_committed(took);
                }
                deliver(&self.hub, decisions, is_own, at).await?;
            }
            Applied::Heartbeat {
                incarnation,
                is_alike,
            } => self.compare(incarnation, is_alike)?,
            Applied::Fenced {
                incarnation,
                decisions,
            } => self.on_fenced(incarnation, decisions, at).await?,
            Applied::Activated(version) => {
                info!(
                    event = "fold_version_activated",
                    version, "the replicas decide by this version from now on"
                );
            }
            Applied::Ignored(Ignored::Gap(incarnation)) if own == Some(incarnation) => {
                self.producer.resend();
            }
            Applied::Ignored(why) if own.is_none() && nonce == Some(self.producer.nonce()) => match why {
                Ignored::OtherRules => {
                    if !std::mem::replace(&mut self.has_other_rules, true) {
                        warn!(
                            event = "replica_waiting",
                            "the replicas before had other rules; waiting until all of them are lost"
                        );
                    }
                    self.membership.on_refused(now);
                }
                Ignored::Unsupported { active } => {
                    let supported = FoldVersions::supported();
                    return Err(ApplyError::Unsupported { active, supported }.into());
                }
                _ => {}
            },
            Applied::Ignored(_) => {}
        }
        Ok(())
    }

    /// An incarnation is fenced; these were detached.
    async fn on_fenced(
        &mut self,
        incarnation: LogPosition,
        decisions: Vec<Decision>,
        at: WallTime,
    ) -> Result<(), ReplicaError> {
        let is_own = self.producer.incarnation() == Some(incarnation);
        self.membership.on_fenced(incarnation);
        self.diverged.remove(&incarnation);
        self.observer.fenced(is_own);
        if is_own {
            // It lives, but was silent: its clients may be elsewhere.
            error!(event = "replica_fenced", %incarnation, "the other replicas have fenced this one, because they did not hear it; it rejoins as a new incarnation");
            self.producer.on_fenced(rand::random());
            self.membership.set_own(None, self.now());
            self.hub.fence().await;
        } else {
            warn!(event = "replica_lost", %incarnation, "another replica is lost");
        }
        deliver(&self.hub, decisions, false, at).await
    }

    /// Another replica has decided alike, or has not. If most have not, this one is wrong.
    fn compare(&mut self, incarnation: LogPosition, is_alike: bool) -> Result<(), ReplicaError> {
        if is_alike {
            self.diverged.remove(&incarnation);
            return Ok(());
        }
        if self.diverged.insert(incarnation) {
            error!(event = "replicas_diverged", %incarnation, "the decisions of another replica differ from this one's");
        }
        let others = self.membership.live().saturating_sub(1);
        if self.diverged.len() * 2 > others && others > 1 {
            if let Some(checkpointer) = &self.checkpointer {
                checkpointer.set_aside();
            }
            return Err(ReplicaError::Diverged);
        }
        Ok(())
    }

    /// Writes what is due, and asks for what is missing.
    async fn write(&mut self) {
        let (now, at) = (self.now(), wall_time());
        self.notice_reconnect();
        // A request without a connection would only time out.
        if self.stream.is_connected()
            && let Some(position) = self.stream_reader.poll_fetch(now)
        {
            self.stream.fetch(position, FETCHED_MESSAGES).await;
        }
        if !self.stream_reader.is_verified(now) {
            return;
        }
        let mut messages = Vec::new();
        if self.stream_reader.is_caught_up() {
            self.writing_since.get_or_insert(now);
            messages = self.producer.poll(now, at);
            self.observer.resent(self.producer.take_resent());
        }
        if let Some(incarnation) = self.producer.incarnation()
            && self.membership.is_heartbeat_due(now)
        {
            let content = Content::Heartbeat {
                incarnation,
                applied: self.state_machine.applied(),
                digest: self.state_machine.digest(),
                checkpoint: self.checkpointer.as_ref().and_then(Checkpointer::newest),
                name: Arc::clone(&self.name),
                version: env!("CARGO_PKG_VERSION").into(),
            };
            messages.push(Message { at, content }.encode());
            if self.membership.is_oldest()
                && let Some(version) = self.state_machine.next_version()
            {
                let content = Content::Activate { version };
                messages.push(Message { at, content }.encode());
            }
        }
        let fences = self.membership.poll_silent(now).into_iter();
        messages.extend(fences.map(|content| Message { at, content }.encode()));
        for message in messages {
            self.stream.publish(message).await;
        }
    }

    /// Notices a server that does not accept long messages. The first one must.
    fn check_server(&mut self) -> Result<(), ReplicaError> {
        match self
            .stream
            .check_server(Producer::max_message_len(self.hub.rules()))
        {
            None => Ok(()),
            Some((error, true)) => Err(error.into()),
            Some((error, false)) => {
                error!(event = "nats_payload_too_small", "{error}");
                Ok(())
            }
        }
    }

    /// Notices that this replica does not receive its own messages: its server is then cut off from the others, or there is no leader.
    fn supervise(&mut self) {
        let now = self.now();
        let writing = self
            .writing_since
            .map_or(Duration::ZERO, |since| now.saturating_sub(since));
        let silence = self.membership.own_silence(now).min(writing);
        let is_verified = self.stream_reader.is_verified(now);
        if is_verified {
            self.verified_at = now;
        }
        // Each connection begins unverified; to verify takes a round trip.
        let is_deaf = silence > CUT_OFF || now > self.heard_at + CUT_OFF || now > self.verified_at + CUT_OFF;
        if let Some(position) = self.stream_reader.missing().filter(|_| !is_verified)
            && self.warned_at.is_none_or(|at| now > at + WARN_INTERVAL)
        {
            self.warned_at = Some(now);
            warn!(
                event = "replica_waiting",
                %position,
                "the stream does not have what this replica has applied: the NATS server lags, or the stream was removed or restored to an \
                 earlier message"
            );
        }
        if is_deaf && now > self.switched_at + CUT_OFF {
            self.switched_at = now;
            warn!(event = "nats_switched", silence = ?silence, "turning to another NATS server");
            self.observer.server_switched();
            self.stream.switch_server();
            self.producer.resend();
        }
        let view = TruncationView {
            is_oldest: self.membership.is_oldest() && self.stream_reader.is_caught_up(),
            // As long as one of the replicas is wrong, it is not known whose checkpoints are.
            // Nor is it if the stream does not have what this replica has applied.
            safe: self
                .membership
                .safe_position()
                .filter(|_| self.diverged.is_empty() && is_verified),
        };
        self.truncation
            .send_if_modified(|before| std::mem::replace(before, view) != view);
        let takes_part = self.writing_since.is_some() && self.producer.incarnation().is_some();
        if takes_part && silence < CUT_OFF {
            self.hub.end_suspension();
        } else if silence > LEASE {
            self.hub.suspend();
        }
        let is_ready = takes_part && silence < CUT_OFF;
        self.observer.observed(&ReplicaStats {
            is_ready,
            replicas: self.membership.live(),
            diverged: self.diverged.len(),
            silence,
            applied: self.state_machine.applied().get(),
            lag: self.stream_reader.lag(),
            in_flight: self.producer.in_flight(),
            waiting: self.producer.waiting_len(),
        });
        self.hub
            .set_proposing_ends(is_ready && self.membership.is_oldest());
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
    let mut rooms = BTreeMap::<RoomName, Vec<OrderedCommand>>::new();
    for decision in decisions {
        let Decision {
            room,
            request,
            command,
            outcome,
            is_void,
            kept_message_ids,
        } = decision;
        if is_void && !is_own {
            continue;
        }
        let ordered = OrderedCommand {
            request: request.filter(|_| is_own),
            command,
            at,
            kept_message_ids,
            epoch: outcome.map(|(epoch, _)| epoch).map_err(|error| match error {
                RoutingError::TooManyRooms => HubError::TooManyRooms(hub.options().max_rooms),
                RoutingError::RoomGone => HubError::RoomEnded,
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
