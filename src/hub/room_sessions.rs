//! A room's sessions: applies the requests of a room's mailbox, one after another, to the fold, and knows which
//! participants have a stream and which may still resume.
//!
//! The fold ([`Room`]) decides what becomes of a command. This module decides who may issue it, who is notified, and when
//! a disconnected participant has to leave. Decisions accumulate in a [`Batch`], which the room's actor stores and
//! publishes.
//!
//! A *session* is a participant's presence in the room from its JOIN to its LEAVE, over any number of streams. Each stream
//! is an *attachment*. A participant without an attachment is *lost*: it leaves when its grace period expires.

use std::ops::Bound;
use std::sync::Arc;

use tokio::time::Instant;

use super::attachments::Attachments;
use super::batch::{Batch, Chunk, Effect};
use super::context::{HubContext, wall_time};
use super::feed::CloseReason;
use super::frame;
use super::handle::{Member, Reply, Request, RoomHandle};
use super::notice;
use super::observer::{self, AcceptedEvent, MessageTrace};
use super::reader::Reader;
use super::request::{
    HubError, JoinInfo, JoinRequest, PostOutcome, RequestMeta, ResumePoint, RoomInfo, RosterEntry,
    StartPosition, StreamStart,
};
use super::session_token::Session;
use crate::domain::{
    Command, Epoch, Event, Join, LamportTime, Leave, Message, Name, Outcome, ParticipantId, Post, Rejection,
    Room, Say, Sequence, Timestamp, WallTime,
};
use crate::failpoint;
use crate::store::{Bounds, Log, LogId, StoreError};

/// The maximum number of past events that a client can ask a stream to start with.
const MAX_HISTORY: u32 = 10_000;

/// A room's fold and its sessions.
pub(super) struct RoomSessions {
    room: Room,
    log: LogId,
    epoch: Epoch,
    context: HubContext,
    handle: Arc<RoomHandle>,
    attachments: Attachments,
    batch: Batch,
    /// Sequence and Lamport time of the newest event.
    newest: (Sequence, LamportTime),
}

impl RoomSessions {
    /// Continues with `room`, whose log is `log`.
    pub(super) fn new(room: Room, log: &Log, context: HubContext, handle: Arc<RoomHandle>) -> Self {
        let newest = (room.last(), room.time());
        Self {
            room,
            log: log.id,
            epoch: log.epoch,
            context,
            handle,
            attachments: Attachments::default(),
            batch: Batch::default(),
            newest,
        }
    }

    /// The room after all decisions, including those that are not stored yet.
    pub(super) const fn room(&self) -> &Room {
        &self.room
    }

    /// Takes the decisions since the last call, in order.
    pub(super) fn take_batch(&mut self) -> Vec<Chunk> {
        self.batch.take()
    }

    /// When the next grace period expires.
    pub(super) fn next_grace_deadline(&self) -> Option<Instant> {
        self.attachments.next_deadline()
    }

    /// Starts the grace periods of the participants at the time when the server stopped. Those who cannot resume leave.
    pub(super) fn restore_lost(&mut self) {
        let at = wall_time();
        let participants: Vec<ParticipantId> = self.room.participants().keys().copied().collect();
        for participant in participants {
            self.on_lost(participant, at);
        }
    }

    /// Applies one request.
    pub(super) fn handle(&mut self, request: Request, at: WallTime) {
        match request {
            Request::Join { request, meta, reply } => self.handle_join(*request, reply, &meta, at),
            Request::Say { say, meta } => self.handle_say(say, &meta, at),
            Request::Post { post, meta, reply } => self.handle_post(*post, reply, &meta, at),
            Request::Leave {
                leave,
                attachment,
                meta,
            } => {
                if self.attachments.get(leave.participant) == Some(attachment) {
                    self.leave(leave, &meta, at);
                }
            }
            Request::Disconnected {
                participant,
                attachment,
            } => self.on_disconnect(participant, attachment, at),
            Request::Subscribe { start, reply } => self.handle_subscribe(start, reply),
            Request::Info { after, limit, reply } => {
                let info = self.info(after, limit);
                self.batch.push(Effect::Info { info, reply });
            }
            Request::Close(reason) => self.batch.push(Effect::CloseAll(reason)),
        }
    }

    /// Resumes the session that the token names, or else joins anew.
    fn handle_join(&mut self, request: JoinRequest, reply: Reply<Member>, meta: &RequestMeta, at: WallTime) {
        let session = request
            .session_token
            .as_deref()
            .and_then(|token| self.session_for_token(token));
        // Checked first: a request that is rejected must not evict anybody.
        if let Err(rejection) = self.room.check_timestamp(request.join.timestamp) {
            return self.reject(reply, rejection);
        }
        if session.is_none() {
            self.evict_lost(&request.join, at);
        }
        let Ok(bounds) = self.bounds() else {
            return fail(reply, HubError::Failed);
        };
        let (after, is_recovered) = self.start_position(bounds, request.resume_point, request.history);
        if request.resume_point.is_some() {
            self.context.observer.resumed(is_recovered);
        }
        let start = StreamStart {
            bounds,
            after,
            is_recovered,
            time: self.room.time(),
        };
        match session {
            Some((session, name)) => self.resume(session, name, start, reply),
            None => self.join(request.join, start, reply, meta, at),
        }
    }

    /// Attaches a new stream to a session. This is not an event of the log.
    fn resume(&mut self, session: Session, name: Name, start: StreamStart, reply: Reply<Member>) {
        let participant = session.participant;
        let (attachment, previous) = self.attachments.attach(participant);
        if let Some(previous) = previous {
            self.batch.push(Effect::Detach {
                attachment: previous,
                reason: CloseReason::TakenOver,
            });
        }
        let info = JoinInfo {
            participant,
            name,
            epoch: self.epoch,
            start,
            joined: None,
            session_token: Some(self.issue_token(session)),
            attachment,
        };
        self.batch.push(Effect::Attach { info, reply });
    }

    fn join(
        &mut self,
        join: Join,
        start: StreamStart,
        reply: Reply<Member>,
        meta: &RequestMeta,
        at: WallTime,
    ) {
        let is_resumable = join.is_resumable;
        match self.room.apply(Command::Join(join), at) {
            Outcome::Accepted(event) => {
                let session = Session {
                    participant: event.participant,
                    join_sequence: event.sequence,
                };
                let (attachment, _) = self.attachments.attach(event.participant);
                let info = JoinInfo {
                    participant: event.participant,
                    name: event.name.clone(),
                    epoch: self.epoch,
                    start,
                    joined: Some((event.sequence, event.time)),
                    session_token: is_resumable.then(|| self.issue_token(session)),
                    attachment,
                };
                // The stream starts before its own JOIN, so the JOIN is the first event that it yields.
                self.batch.push(Effect::Attach { info, reply });
                // A JOIN is not traced as a message: the stream has a span of its own.
                self.append(event, None, meta);
            }
            Outcome::Rejected { rejection, .. } => self.reject(reply, rejection),
            Outcome::Repeated { .. } => {}
        }
    }

    fn reject<T>(&self, reply: Reply<T>, rejection: Rejection) {
        self.context.observer.command_rejected(&rejection);
        fail(reply, rejection.into());
    }

    /// Makes lost participants leave if `join` asks for their id or name. Otherwise a user who restarts the client would
    /// have to wait until the grace period of the earlier session expires.
    fn evict_lost(&mut self, join: &Join, at: WallTime) {
        let is_unique = !self.room.rules().allow_duplicate_names;
        let lost: Vec<ParticipantId> = self
            .attachments
            .lost()
            .filter(|participant| {
                let holder = self.room.participants().get(participant);
                holder.is_some_and(|holder| {
                    Some(*participant) == join.id || is_unique && holder.name.is_confusable_with(&join.name)
                })
            })
            .collect();
        for participant in lost {
            self.leave_lost(participant, at);
        }
    }

    fn issue_token(&self, session: Session) -> String {
        self.context.tokens.issue(&self.handle.name, self.epoch, session)
    }

    /// The session that `token` names and its participant's name, if the token is valid and the session has not ended.
    fn session_for_token(&self, token: &str) -> Option<(Session, Name)> {
        let session = self.context.tokens.verify(token, &self.handle.name, self.epoch)?;
        let holder = self.room.participants().get(&session.participant)?;
        (holder.join_sequence == session.join_sequence).then(|| (session, holder.name.clone()))
    }

    /// The session of a participant who is in the room.
    fn session_of(&self, participant: ParticipantId) -> Option<Session> {
        let join_sequence = self.room.participants().get(&participant)?.join_sequence;
        Some(Session {
            participant,
            join_sequence,
        })
    }

    /// The part of the log that streams can read. What is in the current batch is stored before a stream can read it.
    fn bounds(&self) -> Result<Bounds, StoreError> {
        let stored = self.context.store.bounds(self.log)?;
        Ok(Bounds {
            first: stored.first,
            last: self.room.last(),
        })
    }

    /// After which event a stream starts, and whether that is the given resume point.
    fn start_position(
        &self,
        bounds: Bounds,
        resume_point: Option<ResumePoint>,
        history: u32,
    ) -> (Sequence, bool) {
        match resume_point {
            Some(point) if point.epoch == self.epoch.get() && bounds.has_all_after(point.sequence) => {
                (point.sequence, true)
            }
            _ => (before_newest(bounds, history), false),
        }
    }

    fn handle_subscribe(&mut self, start: StartPosition, reply: Reply<Reader>) {
        let Ok(bounds) = self.bounds() else {
            return fail(reply, HubError::Failed);
        };
        let after = match start {
            StartPosition::Tail => bounds.last,
            StartPosition::Last(count) => before_newest(bounds, count),
            StartPosition::After(point) => {
                let (after, is_recovered) = self.start_position(bounds, Some(point), 0);
                self.context.observer.resumed(is_recovered);
                if !is_recovered {
                    let epoch = self.epoch;
                    return fail(reply, HubError::NotKept { epoch, bounds });
                }
                after
            }
        };
        self.batch.push(Effect::Subscribe { after, reply });
    }

    fn handle_say(&mut self, say: Say, meta: &RequestMeta, at: WallTime) {
        let participant = say.participant;
        let message = say.message.clone();
        let outcome = self.room.apply(Command::Say(say), at);
        let (room, epoch) = (&self.handle.name, self.epoch);
        let message_id = message.valid_id();
        let notice = match outcome {
            Outcome::Accepted(event) => return self.append(event, Some(message.timestamp), meta),
            Outcome::Repeated { original, time } => notice::repeated(room, epoch, original, time, message_id),
            Outcome::Rejected { rejection, time } => {
                self.report_rejected(&message, &rejection, time, meta);
                notice::rejected(room, epoch, &rejection, time, message_id)
            }
        };
        if let Some(attachment) = self.attachments.get(participant) {
            self.batch.push(Effect::Notify {
                attachment,
                notice: frame::encode(&notice),
            });
        }
    }

    fn handle_post(&mut self, post: Post, reply: Reply<PostOutcome>, meta: &RequestMeta, at: WallTime) {
        let message = post.message.clone();
        let outcome = match self.room.apply(Command::Post(post), at) {
            Outcome::Accepted(mut event) => {
                let trace = self.trace_message(&mut event, message.timestamp, meta);
                let broadcast = frame::broadcast(&self.handle.name, self.epoch, &event);
                self.append_traced(&event, meta, trace);
                PostOutcome::Broadcast(Box::new(broadcast))
            }
            Outcome::Repeated { original, .. } => PostOutcome::Repeated(original),
            Outcome::Rejected { rejection, time } => {
                self.report_rejected(&message, &rejection, time, meta);
                return fail(reply, rejection.into());
            }
        };
        self.batch.push(Effect::Posted { outcome, reply });
    }

    fn report_rejected(
        &self,
        message: &Message,
        rejection: &Rejection,
        time: LamportTime,
        meta: &RequestMeta,
    ) {
        let observer = &*self.context.observer;
        observer::report_rejected(observer, &self.handle.name, message, rejection, time, meta);
    }

    fn leave(&mut self, leave: Leave, meta: &RequestMeta, at: WallTime) {
        let (participant, client_time) = (leave.participant, leave.timestamp);
        let mut reason = CloseReason::Left;
        let mut outcome = self.room.apply(Command::Leave(leave), at);
        if let Outcome::Rejected {
            rejection: rejection @ Rejection::Clock(_),
            ..
        } = outcome
        {
            // Only the timestamp is rejected; the participant leaves all the same.
            self.context.observer.command_rejected(&rejection);
            reason = CloseReason::Rejected(rejection);
            outcome = self.room.apply(Command::Leave(Leave::by_server(participant)), at);
        }
        if let Outcome::Accepted(event) = outcome {
            if let Some(attachment) = self.attachments.detach(participant) {
                self.batch.push(Effect::Detach { attachment, reason });
            }
            self.append(event, client_time, meta);
        }
    }

    fn on_disconnect(&mut self, participant: ParticipantId, attachment: u64, at: WallTime) {
        // Closes the stream too: it may still be open if only the client's side of it has ended.
        self.batch.push(Effect::Detach {
            attachment,
            reason: CloseReason::Left,
        });
        if self.attachments.get(participant) == Some(attachment) {
            self.attachments.detach(participant);
            self.on_lost(participant, at);
        }
    }

    /// Starts the grace period of a participant without an attachment, or makes it leave if it cannot resume.
    fn on_lost(&mut self, participant: ParticipantId, at: WallTime) {
        let grace = self.context.options.resume_grace;
        let holder = self.room.participants().get(&participant);
        let is_resumable = holder.is_some_and(|holder| holder.is_resumable);
        match self.session_of(participant) {
            Some(session) if is_resumable && !grace.is_zero() => {
                self.attachments.start_grace(session, Instant::now() + grace);
            }
            _ => self.leave_lost(participant, at),
        }
    }

    fn leave_lost(&mut self, participant: ParticipantId, at: WallTime) {
        self.leave(Leave::by_server(participant), &RequestMeta::now(), at);
    }

    /// Makes the lost participants leave whose grace period has expired.
    pub(super) fn expire_grace(&mut self, at: WallTime) {
        let now = Instant::now();
        while let Some(session) = self.attachments.pop_expired(now) {
            if self.session_of(session.participant) == Some(session) {
                self.leave_lost(session.participant, at);
            }
        }
    }

    /// Adds an event to the batch. It is a candidate for tracing only if a client caused it, and so has sent a `client_time`.
    fn append(&mut self, mut event: Event, client_time: Option<Timestamp>, meta: &RequestMeta) {
        let trace = client_time.and_then(|client_time| self.trace_message(&mut event, client_time, meta));
        self.append_traced(&event, meta, trace);
    }

    fn trace_message(
        &self,
        event: &mut Event,
        client_time: Timestamp,
        meta: &RequestMeta,
    ) -> Option<Box<dyn MessageTrace>> {
        let trace = self.context.observer.trace_message(&AcceptedEvent {
            room: &self.handle.name,
            event,
            client_time,
            received_at: meta.received_at,
            stream_trace: meta.stream_trace.as_deref(),
        })?;
        event.trace.get_or_insert_with(|| trace.context());
        Some(trace)
    }

    fn append_traced(&mut self, event: &Event, meta: &RequestMeta, trace: Option<Box<dyn MessageTrace>>) {
        // The fold guarantees this order; it is checked here independently.
        let (sequence, time) = std::mem::replace(&mut self.newest, (event.sequence, event.time));
        if event.sequence != sequence.next() || event.time <= time {
            self.context
                .observer
                .causality_violated(&self.handle.name, event.sequence);
        }
        self.context.observer.event_accepted(&event.kind, event.time);
        let participant = self.room.participants().get(&event.participant);
        let is_resumable = participant.is_some_and(|participant| {
            participant.join_sequence == event.sequence && participant.is_resumable
        });
        self.batch.append(
            &self.handle.name,
            self.epoch,
            event,
            is_resumable,
            meta.received_at,
            trace,
        );
    }

    fn info(&self, after: Option<ParticipantId>, limit: usize) -> RoomInfo {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let participants = self.room.participants().range((start, Bound::Unbounded));
        RoomInfo {
            sequence: self.room.last(),
            time: self.room.time(),
            participants: participants
                .take(limit)
                .map(|(id, participant)| RosterEntry {
                    id: *id,
                    participant: participant.clone(),
                    is_connected: self.attachments.get(*id).is_some(),
                })
                .collect(),
        }
    }

    /// Injects the faults that are switched on, before the requests of a batch are applied.
    pub(super) fn inject_faults(&mut self, requests: &mut [Request]) {
        if failpoint::is_enabled("skip-dedupe") {
            self.room.forget_message_ids();
        }
        if !failpoint::is_enabled("swap-requests") {
            return;
        }
        let sender = |request: &Request| match request {
            Request::Say { say, .. } => Some(say.participant),
            _ => None,
        };
        let pair = requests
            .windows(2)
            .position(|pair| sender(&pair[0]).is_some() && sender(&pair[0]) == sender(&pair[1]));
        if let Some(first) = pair {
            requests.swap(first, first + 1);
        }
    }
}

/// Answers with an error.
fn fail<T>(reply: Reply<T>, error: HubError) {
    reply.send(Err(error)).ok();
}

/// The event after which the newest `count` events start.
fn before_newest(bounds: Bounds, count: u32) -> Sequence {
    let start = bounds.last.get().saturating_sub(count.min(MAX_HISTORY).into());
    Sequence::new(start).max(bounds.first.previous())
}
