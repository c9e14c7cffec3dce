//! The order of a room: requests go in, decisions come out, one after another, as a batch that is stored and told.
//!
//! What it decides is the fold's affair ([`Room`]); here is who is connected, who is lost and may come back, and what is
//! answered to whom.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use tokio::time::Instant;

use super::batch::{Batch, Chunk, Step};
use super::description::Description;
use super::end::End;
use super::entrance::Entrance;
use super::error::HubError;
use super::frame;
use super::member::{Entry, Member};
use super::notice::{self, Speaking};
use super::now::wall_time;
use super::observer::{Accepted, Trail};
use super::reader::Reader;
use super::receipt::Receipt;
use super::request::{Posted, Reply, Request};
use super::room::RoomHandle;
use super::said::Said;
use super::shared::Shared;
use super::start::{Place, Start};
use crate::domain::{
    Command, Epoch, Event, Join, LamportTime, Leave, Name, Outcome, ParticipantId, Post, Refusal, Room, Say,
    Sequence, Timestamp, WallTime,
};
use crate::store::{Bounds, Log, LogId, StoreError};

/// The most events that a stream begins with on request.
const MAX_HISTORY: u32 = 10_000;

/// Puts what is asked of a room in order.
pub(super) struct Sequencer {
    room: Room,
    log: LogId,
    epoch: Epoch,
    shared: Shared,
    handle: Arc<RoomHandle>,
    /// The newest connection of each participant; a participant without one is lost, and has some time to come back.
    connections: HashMap<ParticipantId, u64>,
    last_connection: u64,
    /// When the time of each lost participant is over, soonest first.
    grace: VecDeque<(Instant, ParticipantId, Sequence)>,
    batch: Batch,
    /// The place and Lamport time of the newest event.
    newest: (Sequence, LamportTime),
}

impl Sequencer {
    /// Goes on with `room`, whose log is `log`.
    pub(super) fn new(room: Room, log: &Log, shared: Shared, handle: Arc<RoomHandle>) -> Self {
        let newest = (room.last(), room.time());
        Self {
            room,
            log: log.id,
            epoch: log.epoch,
            shared,
            handle,
            connections: HashMap::new(),
            last_connection: 0,
            grace: VecDeque::new(),
            batch: Batch::default(),
            newest,
        }
    }

    /// The room as it will be when all that was decided is told.
    pub(super) const fn room(&self) -> &Room {
        &self.room
    }

    /// What was decided since the last time, in order.
    pub(super) fn decided(&mut self) -> Vec<Chunk> {
        self.batch.take()
    }

    /// When the time of somebody who is lost is over next.
    pub(super) fn next_end(&self) -> Option<Instant> {
        self.grace.front().map(|(end, ..)| *end)
    }

    /// Whoever was in the room when its server ended: who can come back has the time to, anybody else has left.
    pub(super) fn receive_the_lost(&mut self) {
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

    /// Decides what is asked.
    pub(super) fn take(&mut self, request: Request, at: WallTime) {
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
                self.tell_refused(&said, &refusal, time, &received);
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
                self.tell_refused(&said, &refusal, time, &received);
                reply.send(Err(refusal.into())).ok();
            }
        }
    }

    fn tell_refused(&self, said: &Said, refusal: &Refusal, time: LamportTime, received: &Receipt) {
        said.refused(&*self.shared.observer, &self.handle.name, refusal, time, received);
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
    pub(super) fn end_grace(&mut self, at: WallTime) {
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

    /// Breaks promises on request, before a batch is decided.
    #[cfg(feature = "failpoints")]
    pub(super) fn spoil(&mut self, requests: &mut [Request]) {
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
}

/// After which event the newest `count` begin.
fn newest(bounds: Bounds, count: u32) -> Sequence {
    let begin = bounds.last.get().saturating_sub(count.min(MAX_HISTORY).into());
    Sequence::new(begin).max(bounds.first.previous())
}
