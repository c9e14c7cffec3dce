//! Replicas in a simulated network, which loses, repeats, reorders and delays what they send, and in which they stop, pause and are cut
//! off. Everything is drawn from a seed.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::Duration;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::checkpoint::{self, Checkpoint};
use super::fingerprint::Fingerprint;
use super::fixtures;
use super::membership::{CUT_OFF, Membership};
use super::message::{Content, LogPosition, Message, NewestCheckpoint, RoomCommand};
use super::producer::Producer;
use super::rules::{ClusterRules, FoldVersions};
use super::state_machine::{Applied, ApplyError, Decision, Ignored, RoutingError, StateMachine};
use super::stream_reader::{Missing, StreamReader};
use crate::domain::{
    Attachment, Command, End, EndStage, Epoch, EventKind, Join, LamportTime, Leave, Moderation, Outcome,
    Rejection, RoomName, Rules, Say, Sequence, Session, WallTime,
};

const SEEDS: u64 = 6;
const REPLICAS: usize = 3;
const CLIENTS: usize = 9;
/// Those from here on leave their room, and come back, so that it ends again and again.
const FIRST_GUEST: usize = 6;
/// For how long they stay away at most.
const ABSENCE: u64 = 4_000;
const GRACE: u64 = 20_000;
/// A client that gets no answer for so long goes to another replica.
const PATIENCE: u64 = 2_500;

/// Each replica writes a checkpoint at these positions.
const CHECKPOINT_EVERY: u64 = 500;

/// In milliseconds.
type Time = u64;

/// What the network delivers.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Delivery {
    /// To the stream.
    Publish(usize, Vec<u8>),
    /// To a replica: a republished message.
    Published(usize, u64),
    /// To the stream: a replica asks for the messages from this position on.
    Fetch(usize, u64),
    /// To a replica: these messages, each with the one before it in the answer, and the newest that there is.
    Fetched(usize, Vec<(u64, u64)>, u64),
    /// To a replica: what a client sends.
    Request(usize, usize, u64),
}

struct Replica {
    /// Changes when the process restarts: what was sent to the one before does not reach it.
    supported: FoldVersions,
    state_machine: StateMachine,
    stream_reader: StreamReader,
    producer: Producer,
    membership: Membership,
    /// Lost participants and when their grace periods end.
    grace: Vec<(Time, RoomName, Epoch, Attachment)>,
    /// Which client each request is of, and which attempt of it.
    requests: BTreeMap<u64, (usize, u64)>,
    next_request: u64,
    /// It does nothing until then, but what is sent to it waits.
    paused_until: Time,
    /// Nothing reaches it, and it reaches nobody.
    cut_until: Time,
}

/// Joins the room of its number, says one thing after another, and goes to another replica if it is not answered.
#[derive(Default)]
struct Client {
    replica: usize,
    session: Option<Session>,
    attachment: Option<Attachment>,
    /// Of the room that the session is in.
    epoch: Option<Epoch>,
    said: u64,
    /// Distinguishes the attempts, so that late answers are not taken for others.
    attempt: u64,
    sent_at: Option<Time>,
    away_until: Time,
}

struct Simulation {
    random: StdRng,
    now: Time,
    count: u64,
    network: BinaryHeap<Reverse<(Time, u64, Delivery)>>,
    stream: Vec<Vec<u8>>,
    /// The first message that the stream still has.
    first: u64,
    /// The newest checkpoint on the disk of each replica, and its position.
    disks: Vec<Option<(u64, Vec<u8>)>>,
    /// The hashes of checkpoints.
    checkpoints: BTreeMap<u64, u64>,
    restored: u64,
    /// The stream stores nothing until then.
    down_until: Time,
    is_faulty: bool,
    /// By the program of processes that start.
    supported: FoldVersions,
    replicas: Vec<Replica>,
    clients: Vec<Client>,
    digests: BTreeMap<LogPosition, u64>,
    /// The events with a message id, by room and id, as the first replica that applied them saw them.
    said: BTreeMap<String, BTreeSet<u64>>,
    acknowledged: BTreeMap<String, u64>,
    /// The JOIN of each participant.
    sessions: BTreeMap<(RoomName, i32), Sequence>,
    left: usize,
    lost: usize,
    fenced: BTreeSet<LogPosition>,
    /// The newest request of each incarnation that was applied.
    applied: BTreeMap<LogPosition, u64>,
    ignored: BTreeMap<String, usize>,
    /// The rooms that a moderator has deleted.
    deleted: BTreeSet<Epoch>,
    /// The participants of each room.
    present: BTreeMap<RoomName, BTreeSet<i32>>,
    /// How many rooms have ended.
    ended: usize,
    /// How many commands came too late for a room.
    too_late: usize,
}

fn room(client: usize) -> RoomName {
    let number = if client < FIRST_GUEST { client % 2 } else { 2 };
    RoomName::try_from(format!("room{number}").as_str()).unwrap()
}

/// A checkpoint without records.
fn encode(state_machine: &StateMachine, newest: Fingerprint) -> Vec<u8> {
    let (state, rooms) = state_machine.state();
    let mut bytes = Vec::new();
    checkpoint::write(&mut bytes, state, newest, rooms, |_, _, _| Ok(Vec::new())).unwrap();
    bytes
}

fn decode(bytes: &[u8]) -> Checkpoint {
    checkpoint::read(bytes, bytes.len() as u64).unwrap()
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let mut simulation = Self {
            random: StdRng::seed_from_u64(seed),
            now: 0,
            count: 0,
            network: BinaryHeap::new(),
            stream: Vec::new(),
            first: 1,
            disks: vec![None; REPLICAS],
            checkpoints: BTreeMap::new(),
            restored: 0,
            down_until: 0,
            is_faulty: true,
            supported: FoldVersions::supported(),
            replicas: Vec::new(),
            clients: Vec::new(),
            digests: BTreeMap::new(),
            said: BTreeMap::new(),
            acknowledged: BTreeMap::new(),
            sessions: BTreeMap::new(),
            left: 0,
            lost: 0,
            fenced: BTreeSet::new(),
            applied: BTreeMap::new(),
            ignored: BTreeMap::new(),
            deleted: BTreeSet::new(),
            present: BTreeMap::new(),
            ended: 0,
            too_late: 0,
        };
        for _ in 0..REPLICAS {
            let replica = simulation.start(None);
            simulation.replicas.push(replica);
        }
        simulation.clients = (0..CLIENTS)
            .map(|n| Client {
                replica: n % REPLICAS,
                ..Client::default()
            })
            .collect();
        simulation
    }

    /// A new process, with a checkpoint or with nothing.
    fn start(&mut self, checkpoint: Option<&[u8]>) -> Replica {
        let now = Duration::from_millis(self.now);
        let (state_machine, newest) = checkpoint.map(decode).map_or_else(
            || (StateMachine::new(), Fingerprint::default()),
            |checkpoint| (checkpoint.state_machine, checkpoint.id.fingerprint),
        );
        let state_machine = state_machine.with_supported(self.supported);
        let mut membership = Membership::new(now);
        for (incarnation, seen) in state_machine.incarnations() {
            membership.on_message(incarnation, seen, now);
        }
        let at = self.now + GRACE;
        let lost = state_machine.rooms().flat_map(|(name, room)| {
            let epoch = state_machine.epoch(name).unwrap();
            let lost = room.lost();
            lost.map(move |attachment| (at, name.clone(), epoch, attachment))
        });
        let grace = lost.collect();
        self.restored += u64::from(checkpoint.is_some());
        Replica {
            grace,
            supported: self.supported,
            stream_reader: StreamReader::new(state_machine.applied(), newest, now),
            state_machine,
            producer: Producer::new(
                ClusterRules::new(Rules::default(), 10),
                self.supported,
                "replica".into(),
                self.random.random(),
            ),
            membership,
            requests: BTreeMap::new(),
            next_request: 0,
            paused_until: 0,
            cut_until: 0,
        }
    }

    /// A replica's process dies, and another starts. What was sent to the old one does not reach it.
    fn restart(&mut self, replica: usize, checkpoint: Option<&[u8]>) {
        self.replicas[replica] = self.start(checkpoint);
        self.clients
            .iter_mut()
            .filter(|client| client.replica == replica)
            .for_each(|client| client.attachment = None);
        self.network.retain(|Reverse((_, _, delivery))| {
            !matches!(delivery,
            Delivery::Published(to, _) | Delivery::Fetch(to, _) | Delivery::Fetched(to, ..) if *to == replica)
        });
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.is_faulty && self.random.random_ratio(percent, 100)
    }

    /// Sends something through the network.
    fn send(&mut self, delivery: Delivery) {
        if self.chance(3) {
            return;
        }
        let copies = if self.chance(3) { 2 } else { 1 };
        for _ in 0..copies {
            let delay = if self.chance(3) {
                self.random.random_range(0..1_500)
            } else {
                self.random.random_range(1..8)
            };
            self.count += 1;
            self.network
                .push(Reverse((self.now + delay, self.count, delivery.clone())));
        }
    }

    /// Of the message that the stream has at this position.
    fn fingerprint(&self, position: u64) -> Fingerprint {
        Fingerprint::new(
            &self.stream[usize::try_from(position).unwrap() - 1],
            Some(position),
        )
    }

    fn is_reachable(&self, replica: usize) -> bool {
        self.replicas[replica].cut_until <= self.now
    }

    fn deliver(&mut self, delivery: Delivery) {
        let to = match &delivery {
            Delivery::Publish(..) | Delivery::Fetch(..) => None,
            Delivery::Published(to, _) | Delivery::Fetched(to, ..) | Delivery::Request(to, ..) => Some(*to),
        };
        if let Some(to) = to
            && self.replicas[to].paused_until > self.now
        {
            // It waits in the socket.
            self.count += 1;
            let at = self.replicas[to].paused_until;
            self.network.push(Reverse((at, self.count, delivery)));
            return;
        }
        let now = Duration::from_millis(self.now);
        match delivery {
            Delivery::Publish(_, _) if self.down_until > self.now => {}
            Delivery::Publish(_, bytes) => {
                self.stream.push(bytes);
                let position = self.stream.len() as u64;
                for replica in 0..REPLICAS {
                    self.send(Delivery::Published(replica, position));
                }
            }
            Delivery::Published(to, position) => {
                if !self.is_reachable(to) {
                    return;
                }
                let fingerprint = self.fingerprint(position);
                let stream_reader = &mut self.replicas[to].stream_reader;
                if stream_reader
                    .accept_published(LogPosition::new(position), fingerprint, now)
                    .unwrap()
                {
                    self.apply(to, position);
                }
            }
            Delivery::Fetch(from, position) => {
                // A server that lags does not have the newest.
                let last = (self.stream.len() as u64).saturating_sub(self.random.random_range(0..3));
                let first = position.max(self.first);
                let mut positions: Vec<_> = (first..=last.min(first + 200))
                    .map(|position| (position, if position == first { 0 } else { position - 1 }))
                    .collect();
                if self.chance(10) && !positions.is_empty() {
                    // A slow reader loses what its server cannot keep for it.
                    let lost = self.random.random_range(0..positions.len());
                    positions.remove(lost);
                }
                self.send(Delivery::Fetched(from, positions, last));
            }
            Delivery::Fetched(to, positions, last) if self.is_reachable(to) => {
                for (position, previous) in positions {
                    let fingerprint = self.fingerprint(position);
                    let stream_reader = &mut self.replicas[to].stream_reader;
                    match stream_reader.accept_fetched(
                        LogPosition::new(position),
                        LogPosition::new(previous),
                        fingerprint,
                        now,
                    ) {
                        Err(error @ Missing::Replaced(_)) => panic!("{error}"),
                        Ok(true) => self.apply(to, position),
                        Ok(false) => {}
                        Err(Missing::Truncated { found, .. } | Missing::Gap { found, .. }) => {
                            // It ends, and begins with what another one has.
                            assert!(found.get() <= self.first, "{found} {}", self.first);
                            let newest = self.disks.iter().flatten().max_by_key(|(position, _)| *position);
                            let (position, bytes) = newest.unwrap().clone();
                            assert!(position + 1 >= found.get(), "{position} {found}");
                            self.restart(to, Some(&bytes));
                            return;
                        }
                    }
                }
                self.replicas[to]
                    .stream_reader
                    .on_fetched(LogPosition::new(last), now);
            }
            Delivery::Request(to, client, attempt) => self.request(to, client, attempt),
            _ => {}
        }
    }

    /// A client's command reaches a replica.
    fn request(&mut self, to: usize, n: usize, attempt: u64) {
        let client = &self.clients[n];
        let replica = &mut self.replicas[to];
        if client.attempt != attempt || client.replica != to || replica.producer.incarnation().is_none() {
            return;
        }
        // The token may be of a room that this replica does not know yet.
        let known = replica.state_machine.epoch(&room(n));
        let session = client.session.filter(|_| client.epoch >= known);
        let is_bound = session.is_some() || client.attachment.is_some();
        let epoch = if is_bound { client.epoch } else { known };
        let is_leaving = n >= FIRST_GUEST && client.said % 5 == 4;
        let command = match client.attachment {
            Some(attachment) if is_leaving => Command::Leave(Leave {
                attachment,
                timestamp: None,
                trace: None,
            }),
            Some(attachment) => Command::Say(Say {
                attachment,
                message: fixtures::message("hi", Some(format!("c{n}-{}", client.said))),
            }),
            None => Command::Join(Join {
                session,
                ..fixtures::join(&format!("client{n}"))
            }),
        };
        replica.next_request += 1;
        let request = replica.next_request;
        replica.requests.insert(request, (n, attempt));
        replica.producer.push(RoomCommand {
            room: room(n),
            epoch,
            request,
            command,
        });
    }

    /// A replica applies the message at `position`.
    fn apply(&mut self, to: usize, position: u64) {
        let now = Duration::from_millis(self.now);
        let bytes = self.stream[usize::try_from(position).unwrap() - 1].clone();
        let message = Message::decode(&bytes).unwrap();
        let writer = match &message.content {
            Content::Hello { .. } => Some(LogPosition::new(position)),
            Content::Batch { incarnation, .. } | Content::Heartbeat { incarnation, .. } => Some(*incarnation),
            Content::Fence { .. } | Content::Activate { .. } => None,
        };
        let meant: Vec<_> = match &message.content {
            Content::Batch { commands, .. } => commands.iter().map(|command| command.epoch).collect(),
            _ => Vec::new(),
        };
        let checkpoint = match &message.content {
            Content::Heartbeat {
                incarnation,
                checkpoint,
                ..
            } => Some((*incarnation, *checkpoint)),
            _ => None,
        };
        let replica = &mut self.replicas[to];
        let applied = replica
            .state_machine
            .apply(LogPosition::new(position), message)
            .unwrap();
        let digest = replica.state_machine.digest();
        let is_first = !self.digests.contains_key(&LogPosition::new(position));
        assert_eq!(
            *self.digests.entry(LogPosition::new(position)).or_insert(digest),
            digest,
            "at {position}"
        );
        let fenced = matches!(applied, Applied::Ignored(Ignored::Fenced))
            || (writer == Some(LogPosition::new(position)) && matches!(applied, Applied::Ignored(_)));
        if let (Some(writer), false) = (writer, fenced) {
            replica
                .membership
                .on_message(writer, LogPosition::new(position), now);
        }
        if let Some((incarnation, checkpoint)) = checkpoint {
            replica.membership.on_checkpoint(incarnation, checkpoint);
            if replica.membership.is_oldest()
                && let Some(safe) = replica.membership.safe_position()
            {
                self.first = self.first.max(safe.get());
            }
        }
        if position.is_multiple_of(CHECKPOINT_EVERY) {
            let newest = replica.stream_reader.newest();
            let bytes = encode(&replica.state_machine, newest);
            let hash = xxhash_rust::xxh3::xxh3_64(&bytes);
            assert_eq!(
                *self.checkpoints.entry(position).or_insert(hash),
                hash,
                "at {position}"
            );
            // From here on it is another one, which must not matter.
            replica.state_machine = decode(&bytes).state_machine.with_supported(replica.supported);
            assert!(encode(&replica.state_machine, newest) == bytes, "at {position}");
            self.disks[to] = Some((position, bytes));
        }
        let is_own = |incarnation| replica.producer.incarnation() == Some(incarnation);
        match applied {
            Applied::Hello {
                nonce, incarnation, ..
            } => {
                if replica.producer.on_hello(nonce, incarnation) {
                    replica.membership.set_own(Some(incarnation), now);
                }
            }
            Applied::Batch {
                incarnation,
                number,
                decisions,
            } => {
                if is_first {
                    assert!(!self.fenced.contains(&incarnation), "{incarnation} is lost");
                    for request in decisions.iter().filter_map(|decision| decision.request) {
                        let last = self.applied.insert(incarnation, request).unwrap_or_default();
                        assert_eq!(
                            request,
                            last + 1,
                            "the commands of {incarnation} are applied once and in turn"
                        );
                    }
                }
                let is_own = is_own(incarnation);
                if is_own {
                    replica.producer.on_batch(number, now);
                }
                for (meant, decision) in meant.into_iter().zip(decisions) {
                    if let (Some(meant), Ok((epoch, _))) = (meant, &decision.outcome) {
                        assert_eq!(meant, *epoch, "a command reaches the room that it was meant for");
                    }
                    self.decided(to, decision, is_own, is_first);
                }
            }
            Applied::Heartbeat {
                incarnation,
                is_alike,
            } => assert!(is_alike, "{incarnation} differs"),
            Applied::Fenced {
                incarnation,
                decisions,
            } => {
                replica.membership.on_fenced(incarnation);
                if is_own(incarnation) {
                    // It lives, but was silent. All of its streams end.
                    replica.producer.on_fenced(self.random.random());
                    replica.membership.set_own(None, now);
                    replica.requests.clear();
                    replica.next_request = 0;
                }
                if is_first {
                    self.fenced.insert(incarnation);
                    self.lost += 1;
                }
                for decision in decisions {
                    self.decided(to, decision, false, is_first);
                }
            }
            Applied::Activated(_) => {}
            Applied::Ignored(why) => {
                if let Ignored::Gap(incarnation) = why
                    && is_own(incarnation)
                {
                    replica.producer.resend();
                }
                let why = format!("{why:?}").split('(').next().unwrap().to_owned();
                *self.ignored.entry(why).or_default() += usize::from(is_first);
            }
        }
    }

    fn decided(&mut self, to: usize, decision: Decision, is_own: bool, is_first: bool) {
        let (epoch, outcome) = match decision.outcome {
            Ok((epoch, outcome)) => (Some(epoch), outcome),
            Err(RoutingError::RoomGone) => {
                self.too_late += usize::from(is_first);
                let (rejection, time) = (Rejection::RoomDeleted, LamportTime::default());
                (None, Outcome::Rejected { rejection, time })
            }
            Err(RoutingError::TooManyRooms) => panic!("there are only three rooms"),
        };
        let is_gone = epoch.is_none();
        let deletion = Command::Moderate(Moderation::Delete);
        let has_ended = outcome == Outcome::Ended;
        let is_deleted = decision.command == deletion && matches!(outcome, Outcome::Moderated { .. });
        if let (true, true, Some(epoch)) = (is_first, is_deleted || has_ended, epoch) {
            let present = self.present.remove(&decision.room).unwrap_or_default();
            if has_ended {
                assert!(present.is_empty(), "{present:?} are in a room that ends");
                self.ended += 1;
            } else {
                self.deleted.insert(epoch);
            }
            for client in self
                .clients
                .iter_mut()
                .filter(|client| client.epoch == Some(epoch))
            {
                // Its stream closes. What it said last was meant for the room that is gone.
                (client.session, client.attachment, client.sent_at) = (None, None, None);
                client.attempt += 1;
                client.said += 1;
            }
        }
        for event in outcome.events().filter(|_| is_first) {
            let key = (decision.room.clone(), event.participant.get());
            match &event.kind {
                EventKind::Join => {
                    let present = self.present.entry(key.0.clone()).or_default();
                    assert!(present.insert(key.1));
                    self.sessions.insert(key, event.sequence);
                }
                EventKind::Message {
                    message_id: Some(id), ..
                } => {
                    let positions = self.said.entry(id.to_string()).or_default();
                    assert!(
                        positions.insert(event.sequence.get()) && positions.len() == 1,
                        "{id} comes twice: {positions:?}"
                    );
                }
                EventKind::Leave => {
                    let session = Some(Session {
                        participant: event.participant,
                        join_sequence: self.sessions[&key],
                    });
                    let has_session =
                        |(n, client): (usize, &Client)| room(n) == decision.room && client.session == session;
                    // An earlier attempt to join may arrive now, which had no session yet.
                    let is_late = matches!(&decision.command, Command::Join(join) if join.session.is_none() && join.name == event.name)
                        || matches!(decision.command, Command::Leave(_));
                    self.present.entry(key.0.clone()).or_default().remove(&key.1);
                    let mut clients = self.clients.iter().enumerate();
                    assert!(
                        is_late || !clients.any(has_session),
                        "a client has left that has its session"
                    );
                    self.left += 1;
                }
                _ => {}
            }
        }
        if let Command::End(End { last, stage }) = decision.command {
            let replica = &mut self.replicas[to];
            let is_asked = stage == EndStage::Proposed && !is_own && replica.producer.incarnation().is_some();
            // Sometimes somebody reads the room.
            if is_asked && self.random.random_ratio(4, 5) {
                self.end(to, decision.room, epoch, last, EndStage::Agreed);
            }
            return;
        }
        if outcome == Outcome::Lost {
            let replica = &mut self.replicas[to];
            // It may have been deleted in the same batch.
            let mut rooms = replica.state_machine.rooms();
            let room = rooms.find(|(name, _)| **name == decision.room);
            let lost: Vec<_> = room.into_iter().flat_map(|(_, room)| room.lost()).collect();
            for attachment in lost {
                let key = (decision.room.clone(), epoch.unwrap(), attachment);
                if !replica
                    .grace
                    .iter()
                    .any(|(_, room, epoch, other)| (room, epoch, other) == (&key.0, &key.1, &key.2))
                {
                    replica.grace.push((self.now + GRACE, key.0, key.1, key.2));
                }
            }
        }
        let Some((n, attempt)) = decision
            .request
            .filter(|_| is_own)
            .and_then(|request| self.replicas[to].requests.remove(&request))
        else {
            return;
        };
        let client = &mut self.clients[n];
        if client.replica != to || client.attempt != attempt {
            // Its stream has ended meanwhile.
            if let Outcome::Joined { attachment, .. } | Outcome::Resumed { attachment, .. } = outcome
                && client.attachment != Some(attachment)
            {
                self.detach(to, decision.room, epoch, attachment);
            }
            return;
        }
        let is_deleted = epoch.is_some_and(|epoch| self.deleted.contains(&epoch));
        match outcome {
            // Its stream closes at once.
            Outcome::Joined { .. } | Outcome::Resumed { .. } if is_deleted => client.attachment = None,
            Outcome::Joined {
                joined, attachment, ..
            } => {
                client.epoch = epoch;
                client.session = Some(Session {
                    participant: joined.participant,
                    join_sequence: joined.sequence,
                });
                client.attachment = Some(attachment);
            }
            Outcome::Resumed { attachment, .. } => client.attachment = Some(attachment),
            Outcome::Accepted(event) if event.kind == EventKind::Leave => {
                (client.session, client.attachment) = (None, None);
                client.said += 1;
                client.away_until = self.now + self.random.random_range(0..ABSENCE);
            }
            Outcome::Accepted(event) => {
                let id = event.message_id().unwrap().to_string();
                if id == format!("c{n}-{}", client.said) {
                    self.acknowledged.insert(id, event.sequence.get());
                    client.said += 1;
                }
            }
            Outcome::Repeated { original, .. } => {
                self.acknowledged
                    .insert(format!("c{n}-{}", client.said), original.get());
                client.said += 1;
            }
            // Another attachment has taken over, the name is held by the session before, or the room was deleted.
            _ => {
                client.attachment = None;
                if is_gone {
                    // It joins the next room of this name, without a token of the one before.
                    client.session = None;
                }
            }
        }
        client.attempt += 1;
        client.sent_at = None;
    }

    /// A replica notices that a stream has ended.
    fn detach(&mut self, at: usize, room: RoomName, epoch: Option<Epoch>, attachment: Attachment) {
        let replica = &mut self.replicas[at];
        replica.next_request += 1;
        let (request, command) = (replica.next_request, Command::Detach(attachment));
        replica.producer.push(RoomCommand {
            room,
            epoch,
            request,
            command,
        });
    }

    /// A replica proposes the end of a room, or agrees to it.
    fn end(&mut self, at: usize, room: RoomName, epoch: Option<Epoch>, last: Sequence, stage: EndStage) {
        let replica = &mut self.replicas[at];
        replica.next_request += 1;
        replica.producer.push(RoomCommand {
            room,
            epoch,
            request: replica.next_request,
            command: Command::End(End { last, stage }),
        });
    }

    /// The oldest replica proposes the ends of rooms in which nobody is, as far as it knows, and now and then another one does.
    fn propose_ends(&mut self) {
        for n in 0..REPLICAS {
            let is_oldest = self.replicas[n].membership.is_oldest();
            let is_proposing = is_oldest || self.random.random_ratio(1, 20);
            let replica = &self.replicas[n];
            if !is_proposing || replica.producer.incarnation().is_none() || replica.paused_until > self.now {
                continue;
            }
            let rooms = replica.state_machine.rooms();
            let unused = rooms.filter(|(_, room)| room.participants().is_empty());
            let unused: Vec<_> = unused.map(|(name, room)| (name.clone(), room.last())).collect();
            for (name, last) in unused {
                let epoch = self.replicas[n].state_machine.epoch(&name);
                self.end(n, name, epoch, last, EndStage::Proposed);
            }
        }
    }

    /// A moderator deletes a room.
    fn delete(&mut self, at: usize, room: RoomName) {
        let replica = &mut self.replicas[at];
        if let (Some(epoch), Some(_)) = (replica.state_machine.epoch(&room), replica.producer.incarnation()) {
            replica.next_request += 1;
            replica.producer.push(RoomCommand {
                room,
                epoch: Some(epoch),
                request: replica.next_request,
                command: Command::Moderate(Moderation::Delete),
            });
        }
    }

    /// Everything that happens by itself in one millisecond.
    fn tick(&mut self) {
        while let Some(Reverse((at, ..))) = self.network.peek()
            && *at <= self.now
        {
            let Some(Reverse((_, _, delivery))) = self.network.pop() else {
                break;
            };
            self.deliver(delivery);
        }
        let now = Duration::from_millis(self.now);
        let at = WallTime::from_millis(1_700_000_000_000 + self.now);
        for n in 0..REPLICAS {
            let replica = &mut self.replicas[n];
            if replica.paused_until > self.now {
                continue;
            }
            let is_cut = replica.cut_until > self.now;
            let expired: Vec<_> = replica.grace.extract_if(.., |(at, ..)| *at <= self.now).collect();
            for (_, room, epoch, attachment) in expired {
                replica.next_request += 1;
                let (request, command) = (replica.next_request, Command::ExpireGrace(attachment));
                replica.producer.push(RoomCommand {
                    room,
                    epoch: Some(epoch),
                    request,
                    command,
                });
            }
            let mut messages: Vec<Bytes> = Vec::new();
            let fetch = replica.stream_reader.poll_fetch(now);
            let is_verified = replica.stream_reader.is_verified(now);
            if is_verified && replica.stream_reader.is_caught_up() {
                messages.extend(replica.producer.poll(now, at));
            }
            if let Some(incarnation) = replica.producer.incarnation().filter(|_| is_verified) {
                if replica.membership.is_heartbeat_due(now) {
                    let (applied, digest) = (replica.state_machine.applied(), replica.state_machine.digest());
                    let checkpoint = self.disks[n].as_ref().map(|(position, _)| NewestCheckpoint {
                        directory: n as u64,
                        position: LogPosition::new(*position),
                    });
                    let content = Content::Heartbeat {
                        incarnation,
                        applied,
                        digest,
                        checkpoint,
                        name: "replica".into(),
                        version: "1".into(),
                    };
                    messages.push(Message { at, content }.encode());
                    if replica.membership.is_oldest()
                        && let Some(version) = replica.state_machine.next_version()
                    {
                        let content = Content::Activate { version };
                        messages.push(Message { at, content }.encode());
                    }
                }
                messages.extend(
                    replica
                        .membership
                        .poll_silent(now)
                        .into_iter()
                        .map(|content| Message { at, content }.encode()),
                );
            }
            if !is_cut {
                messages
                    .into_iter()
                    .for_each(|message| self.send(Delivery::Publish(n, message.to_vec())));
                fetch
                    .into_iter()
                    .for_each(|position| self.send(Delivery::Fetch(n, position.get())));
            }
        }
        for n in 0..CLIENTS {
            let client = &mut self.clients[n];
            if client.away_until > self.now {
                continue;
            }
            let is_served = self.replicas[client.replica].producer.incarnation().is_some();
            match client.sent_at {
                Some(at) if self.now < at + PATIENCE && (is_served || client.attachment.is_none()) => {
                    continue;
                }
                Some(_) => {
                    let replica = client.replica;
                    client.replica = (replica + 1) % REPLICAS;
                    let epoch = client.epoch;
                    if let Some(attachment) = client.attachment.take() {
                        self.detach(replica, room(n), epoch, attachment);
                    }
                }
                None => {}
            }
            let client = &mut self.clients[n];
            client.attempt += 1;
            client.sent_at = Some(self.now);
            let (replica, attempt) = (client.replica, client.attempt);
            self.send(Delivery::Request(replica, n, attempt));
        }
        self.now += 1;
    }

    /// A replica's process dies, and another starts, with what is on its disk.
    fn restart_with_disk(&mut self, replica: usize) {
        if replica == 0 {
            self.disks[0] = None;
        }
        let disk = self.disks[replica].clone().filter(|_| replica < REPLICAS - 1);
        self.restart(replica, disk.as_ref().map(|(_, bytes)| &bytes[..]));
    }

    fn inject_fault(&mut self) {
        let replica = self.random.random_range(0..REPLICAS);
        let is_faulty = |replica: &Replica| replica.paused_until.max(replica.cut_until) > self.now;
        // A client that can reach nobody for the length of a grace period rightly leaves.
        if self.replicas.iter().any(is_faulty) {
            return;
        }
        let until = self.now + self.random.random_range(100..9_000);
        match self.random.random_range(0..4) {
            // Its process dies, and another starts. The first replica has lost its disk, too, and the last one has none.
            0 => self.restart_with_disk(replica),
            1 => self.replicas[replica].paused_until = until,
            2 => self.replicas[replica].cut_until = until,
            // As when the leader of the stream dies.
            _ => self.down_until = self.now + self.random.random_range(100..5_000),
        }
    }

    fn run(&mut self, millis: Time) {
        for _ in 0..millis {
            if self.is_faulty && self.random.random_ratio(1, 1_500) {
                self.inject_fault();
            }
            if self.is_faulty && self.random.random_ratio(1, 15_000) {
                let (at, n) = (
                    self.random.random_range(0..REPLICAS),
                    self.random.random_range(0..2),
                );
                self.delete(at, room(n));
            }
            if self.now.is_multiple_of(300) {
                self.propose_ends();
            }
            self.tick();
        }
    }
}

#[test]
fn replicas_decide_alike_and_nothing_is_lost_or_comes_twice() {
    let (mut lost, mut ended, mut restored, mut too_late, mut ignored) =
        (0, 0, 0, 0, BTreeMap::<String, usize>::new());
    let first: u64 = std::env::var("SEED").map_or(0, |seed| seed.parse().unwrap());
    for seed in first..first + SEEDS {
        let mut simulation = Simulation::new(seed);
        simulation.run(60_000);
        simulation.is_faulty = false;
        simulation.down_until = 0;
        simulation.run(20_000);
        let before: Vec<u64> = simulation.clients.iter().map(|client| client.said).collect();
        simulation.run(2_000);
        for (n, (client, before)) in simulation.clients.iter().zip(before).enumerate() {
            assert!(
                client.said > before + if n < FIRST_GUEST { 10 } else { 0 }
                    || client.away_until > simulation.now - 2_000,
                "seed {seed}: client {n} goes on: {before} {}",
                client.said
            );
        }
        for (id, sequence) in &simulation.acknowledged {
            let positions = simulation
                .said
                .get(id)
                .unwrap_or_else(|| panic!("seed {seed}: {id} is lost"));
            assert!(
                positions.contains(sequence),
                "seed {seed}: {id} is at {positions:?}, not at {sequence}"
            );
        }
        for replica in &simulation.replicas {
            assert_eq!(replica.membership.live(), REPLICAS, "seed {seed}");
            let behind = simulation.stream.len() as u64 - replica.state_machine.applied().get();
            assert!(behind < 50, "seed {seed}: {behind}");
            assert!(
                replica
                    .membership
                    .own_silence(Duration::from_millis(simulation.now))
                    < CUT_OFF
            );
        }
        println!(
            "seed {seed}: {} messages, {} acknowledged, {} replicas lost, {} left, {} rooms deleted, {} ended, {} commands too late, ignored {:?}",
            simulation.stream.len(),
            simulation.acknowledged.len(),
            simulation.lost,
            simulation.left,
            simulation.deleted.len(),
            simulation.ended,
            simulation.too_late,
            simulation.ignored
        );
        ended += simulation.ended;
        lost += simulation.lost;
        too_late += simulation.too_late;
        restored += simulation.restored;
        assert!(
            simulation.first > CHECKPOINT_EVERY,
            "seed {seed}: the stream was truncated"
        );
        for (why, count) in simulation.ignored {
            *ignored.entry(why).or_default() += count;
        }
    }
    // The faults have happened.
    assert!(
        lost > 0 && ended > 6 && too_late > 0 && restored > SEEDS,
        "{lost} {ended} {too_late} {restored}"
    );
    for why in ["Repeated", "Gap", "Fenced"] {
        assert!(ignored.contains_key(why), "{why}: {ignored:?}");
    }
}

#[test]
fn a_new_version_is_rolled_through_a_cluster() {
    let new = FoldVersions { oldest: 1, newest: 2 };
    let old = FoldVersions { oldest: 1, newest: 1 };
    let mut simulation = Simulation::new(1);
    (simulation.supported, simulation.is_faulty) = (new, false);
    let version = |simulation: &Simulation| {
        let versions: BTreeSet<u64> = simulation
            .replicas
            .iter()
            .map(|replica| replica.state_machine.state().0.version)
            .collect();
        versions.into_iter().collect::<Vec<_>>()
    };
    for n in 0..REPLICAS {
        simulation.run(12_000);
        assert_eq!(
            version(&simulation),
            [1],
            "an old program lives, or lived a moment ago"
        );
        simulation.restart_with_disk(n);
    }
    simulation.run(20_000);
    assert_eq!(version(&simulation), [2]);
    // An old program that follows the command log stops where it does not know what the messages mean.
    let mut late = StateMachine::new().with_supported(old);
    let stopped = simulation.stream.iter().enumerate().find_map(|(index, bytes)| {
        let message = Message::decode(bytes).unwrap();
        late.apply(LogPosition::new(index as u64 + 1), message).err()
    });
    assert_eq!(
        stopped,
        Some(ApplyError::Unsupported {
            active: 2,
            supported: old
        })
    );
    let before: Vec<u64> = simulation.clients.iter().map(|client| client.said).collect();
    simulation.run(2_000);
    assert!(
        simulation
            .clients
            .iter()
            .zip(before)
            .all(|(client, before)| client.said > before)
    );
}
