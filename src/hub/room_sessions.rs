//! A room's sessions: applies the requests of a room's mailbox, one after another, to the fold.
//!
//! The fold ([`Room`]) decides what becomes of a command. This module turns requests into commands, verifies session tokens,
//! measures grace periods, and decides who is notified of what the fold has decided. This accumulates in a [`Batch`], which
//! the room's actor stores and publishes.
//!
//! A *session* is a participant's presence in the room from its JOIN to its LEAVE, over any number of streams. Each stream
//! is an *attachment*. A participant without an attachment is *lost*: it leaves when its grace period expires.

use std::ops::Bound;
use std::sync::Arc;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::batch::{Batch, Chunk, Effect};
use super::context::HubContext;
use super::feed::CloseReason;
use super::frame;
use super::grace_timers::GraceTimers;
use super::handle::{Envelope, Member, ModerationReporter, Reply, Request, RoomHandle};
use super::notice;
use super::observer::{self, AcceptedEvent, MessageTrace};
use super::reader::Reader;
use super::replication::OrderedCommand;
use super::request::{
    HubError, JoinInfo, JoinRequest, PostOutcome, RequestMeta, ResumePoint, RoomInfo, RosterEntry,
    StartPosition, StreamStart,
};
use super::submissions::{PendingJoin, PendingReply, Submissions};
use crate::domain::{
    Attachment, Ban, Command, End, EndStage, Epoch, Event, Join, LamportTime, Leave, Message, Moderation,
    Origin, Outcome, ParticipantId, Post, Rejection, Room, RoomName, Rules, Say, Sequence, Session, Snapshot,
    Timestamp, WallTime,
};
use crate::failpoint;
use crate::store::{Bounds, Log, LogId, StoreError};
use crate::wall_clock::wall_time;

/// The maximum number of past events that a client can ask a stream to start with.
const MAX_HISTORY: u32 = 10_000;

/// The maximum number of grace periods that one batch ends. Those of a whole room can expire at the same moment.
const MAX_EXPIRED_PER_BATCH: usize = 200;

/// Turns the requests of a room into commands of its fold, and what those decide into a batch to publish. Keeps the streams and the timers of
/// the sessions that the fold has.
pub(super) struct RoomSessions {
    room: Room,
    log: LogId,
    epoch: Epoch,
    context: HubContext,
    handle: Arc<RoomHandle>,
    grace: GraceTimers,
    batch: Batch,
    /// Sequence and Lamport time of the newest event.
    newest: (Sequence, LamportTime),
    /// Where commands go first, if there are several replicas.
    submissions: Option<Submissions>,
    /// Why the streams are to close once nothing is on its way into the command log any more.
    closing: Option<CloseReason>,
}

impl RoomSessions {
    /// Continues with `room`, whose log is `log`.
    pub(super) fn new(mut room: Room, log: &Log, context: HubContext, handle: Arc<RoomHandle>) -> Self {
        room.finish_recovery();
        let newest = (room.last(), room.time());
        let submissions = context.replication.clone().map(Submissions::new);
        Self {
            room,
            log: log.id,
            epoch: log.epoch,
            context,
            handle,
            grace: GraceTimers::default(),
            batch: Batch::default(),
            newest,
            submissions,
            closing: None,
        }
    }

    /// The room after all decisions, including those that are not stored yet.
    pub(super) const fn room(&self) -> &Room {
        &self.room
    }

    pub(super) fn take_snapshot(&mut self) -> Snapshot {
        self.room.take_snapshot()
    }

    /// Takes the decisions since the last call, in order.
    pub(super) fn take_batch(&mut self) -> Vec<Chunk> {
        self.batch.take()
    }

    /// When the next grace period expires.
    pub(super) fn next_grace_deadline(&self) -> Option<Instant> {
        self.grace.next_deadline()
    }

    /// Starts the grace periods of the participants at the time when the server stopped. Those who cannot resume leave; if there are
    /// several replicas, they have left.
    pub(super) fn restore_lost(&mut self) {
        let at = wall_time();
        let lost: Vec<Attachment> = self.room.lost().collect();
        for attachment in lost {
            let holder = self.room.participants().get(&attachment.participant);
            if self.submissions.is_some() || holder.is_some_and(|holder| holder.is_resumable) {
                self.start_grace(attachment, at);
            } else {
                self.apply_by_server(Command::ExpireGrace(attachment), at);
            }
        }
    }

    /// Applies one request.
    pub(super) fn handle(&mut self, request: Request, at: WallTime) {
        match request {
            Request::Join { request, meta, reply } => {
                let (join, pending) = self.split_join(*request, meta, reply);
                self.handle_join(join, pending, at);
            }
            Request::Say { say, meta } => self.handle_say(say, &meta, at),
            Request::Post { post, meta, reply } => self.handle_post(*post, reply, &meta, at),
            Request::Leave { leave, meta } => self.handle_leave(leave, &meta, at),
            Request::Disconnected(attachment) => self.on_disconnect(attachment, at),
            Request::Subscribe { start, origin, reply } => self.handle_subscribe(start, origin, reply, at),
            Request::Moderate {
                moderation,
                report,
                reply,
            } => self.handle_moderate(*moderation, report, reply, at),
            Request::Info { after, limit, reply } => {
                let info = self.info(after, limit, at);
                self.batch.push(Effect::Info { info, reply });
            }
            Request::Close(reason) => self.close_all(reason),
        }
    }

    /// Submits the command of a request, if there are several replicas. A request without one is answered here.
    pub(super) fn submit(&mut self, envelope: Envelope, at: WallTime) {
        let Envelope { mut epoch, request } = envelope;
        let is_reader = matches!(request, Request::Subscribe { .. } | Request::Info { .. });
        let is_lobby = self.handle.name == RoomName::default();
        if (epoch.is_some() && epoch != self.known_epoch())
            || (is_reader && !is_lobby && self.known_epoch().is_none())
        {
            // It comes from a stream that has closed, or waits for an answer.
            return request.fail(self.handle.gone_error());
        }
        let (command, pending) = match request {
            Request::Join { request, meta, reply } => {
                // Another replica may have issued the token in a room that this one does not know yet.
                let newer = request
                    .resume_point
                    .and_then(|point| Epoch::from_wire(point.epoch));
                let newer = newer.filter(|newer| Some(*newer) > self.known_epoch());
                let token = request.session_token.clone();
                let (mut join, mut pending) = self.split_join(*request, meta, reply);
                if let (None, Some(newer), Some(token)) = (join.session, newer, token)
                    && let Some(session) = self.context.tokens.verify(&token, &self.handle.name, newer)
                {
                    (epoch, join.session) = (Some(newer), Some(session));
                    pending.is_of_unknown_room = true;
                }
                (Command::Join(join), Some(PendingReply::Join(pending)))
            }
            Request::Say { say, meta } => (Command::Say(say), Some(PendingReply::Say(meta))),
            Request::Post { post, meta, reply } => {
                (Command::Post(*post), Some(PendingReply::Post(meta, reply)))
            }
            Request::Leave { leave, meta } => (Command::Leave(leave), Some(PendingReply::Leave(meta))),
            Request::Disconnected(attachment) => {
                self.close_stream(attachment, CloseReason::Detached);
                (Command::Detach(attachment), None)
            }
            Request::Moderate {
                moderation,
                report,
                reply,
            } => {
                let pending = PendingReply::Moderate(report, reply);
                (Command::Moderate(*moderation), Some(pending))
            }
            Request::Close(reason @ CloseReason::Draining(_)) => {
                // What was accepted is finished first.
                self.closing = Some(reason);
                return;
            }
            request => return self.handle(request, at),
        };
        self.issue(epoch, command, pending);
    }

    /// Says to the other replicas that nobody here needs the room.
    pub(super) fn issue_end(&mut self, stage: EndStage) {
        let last = self.room.last();
        self.issue(self.known_epoch(), Command::End(End { last, stage }), None);
    }

    /// The epoch of the room, once it has begun.
    fn known_epoch(&self) -> Option<Epoch> {
        (self.room.last() > Sequence::ZERO).then_some(self.epoch)
    }

    fn issue(&mut self, epoch: Option<Epoch>, command: Command, pending: Option<PendingReply>) {
        if let Some(submissions) = &mut self.submissions {
            submissions.push(&self.handle.name, epoch, command, pending);
        }
    }

    /// The commands that are on their way into the command log, if there are several replicas.
    pub(super) const fn submissions(&mut self) -> Option<&mut Submissions> {
        self.submissions.as_mut()
    }

    /// Closes all streams at this point.
    pub(super) fn close_all(&mut self, reason: CloseReason) {
        self.batch.push(Effect::CloseAll(reason));
    }

    /// The replica was fenced. What was sent to the command log before `generation` and is not committed is lost.
    pub(super) fn on_fenced(&mut self, generation: u64, at: WallTime) {
        if let Some(submissions) = &mut self.submissions {
            submissions.on_fenced(generation);
        }
        // Whoever was to leave may not have left.
        self.grace = GraceTimers::default();
        let lost: Vec<Attachment> = self.room.lost().collect();
        for attachment in lost {
            self.start_grace(attachment, at);
        }
    }

    /// Closes the streams of a draining room if no submission can still be committed. Returns whether none can, draining or not.
    pub(super) fn finish_closing(&mut self) -> bool {
        let is_settled = |submissions: &Submissions| submissions.is_empty() || submissions.is_suspended();
        let is_settled = self.submissions.as_ref().is_none_or(is_settled);
        if let Some(reason) = self.closing.take_if(|_| is_settled) {
            self.close_all(reason);
        }
        is_settled
    }

    /// Applies a command that has its position in the command log of all replicas.
    pub(super) fn apply_ordered(&mut self, ordered: OrderedCommand) {
        let OrderedCommand {
            request,
            command,
            at,
            epoch,
            kept_message_ids,
        } = ordered;
        let Some(submissions) = &mut self.submissions else {
            return;
        };
        let is_own = request.is_some();
        let pending = request.and_then(|request| submissions.take_pending(request));
        let epoch = match epoch {
            Ok(epoch) => epoch,
            Err(error) => {
                let Some(pending) = pending else {
                    return;
                };
                // Of a room that is not known, nothing is known but that there is none.
                let is_known = !matches!(&pending, PendingReply::Join(join) if join.is_of_unknown_room);
                return pending.fail(if is_known && error == HubError::RoomEnded {
                    self.handle.gone_error()
                } else {
                    error
                });
            }
        };
        if self.room.last() == Sequence::ZERO && self.epoch != epoch {
            self.epoch = epoch;
            if let Some(replication) = &self.context.replication {
                replication.store.set_epoch(self.log, epoch);
            }
        }
        match (command, pending) {
            (Command::Join(join), Some(PendingReply::Join(pending))) => self.handle_join(join, pending, at),
            // Its caller does not wait any more, and so detaches.
            (Command::Join(join), _) if is_own => self.handle_join(join, PendingJoin::gone(), at),
            (Command::Say(say), Some(PendingReply::Say(meta))) => self.handle_say(say, &meta, at),
            (Command::Post(post), Some(PendingReply::Post(meta, reply))) => {
                self.handle_post(post, reply, &meta, at);
            }
            (Command::Leave(leave), Some(PendingReply::Leave(meta))) => self.handle_leave(leave, &meta, at),
            (Command::Moderate(moderation), Some(PendingReply::Moderate(report, reply))) => {
                self.handle_moderate(moderation, report, reply, at);
            }
            (Command::Moderate(moderation), _) => {
                // The streams of those who leave may be here.
                let (reply, _) = oneshot::channel();
                self.handle_moderate(moderation, Box::new(|_| ()), reply, at);
            }
            (command, _) => self.apply_by_server(command, at),
        }
        if let Some(kept) = kept_message_ids {
            self.room.keep_newest_message_ids(kept);
        }
        // A room begins with the first command that is an event.
        if self.room.last() == Sequence::ZERO {
            self.room = Room::new(*self.room.rules());
        }
    }

    pub(super) const fn set_rules(&mut self, rules: Rules) {
        self.room.set_rules(rules);
    }

    /// Begins anew, with the log of the room that has the name of one that is gone.
    pub(super) fn restart(&mut self, log: &Log) {
        self.room = Room::new(*self.room.rules());
        self.log = log.id;
        self.epoch = log.epoch;
        self.grace = GraceTimers::default();
        self.newest = (self.room.last(), self.room.time());
    }

    fn split_join(
        &self,
        request: JoinRequest,
        meta: RequestMeta,
        reply: Reply<Member>,
    ) -> (Join, PendingJoin) {
        let JoinRequest {
            mut join,
            session_token,
            resume_point,
            history,
            ..
        } = request;
        join.session = session_token.and_then(|token| self.verify_token(&token));
        let pending = PendingJoin {
            resume_point,
            history,
            meta,
            is_of_unknown_room: false,
            reply,
        };
        (join, pending)
    }

    /// Resumes the session that the token named, or else joins anew.
    fn handle_join(&mut self, join: Join, pending: PendingJoin, at: WallTime) {
        let PendingJoin {
            resume_point,
            history,
            meta,
            reply,
            ..
        } = pending;
        // Read first, because the room cannot take an accepted JOIN back.
        let Ok(mut bounds) = self.bounds() else {
            return fail(reply, HubError::Failed);
        };
        let mut time = self.room.time();
        let is_resumable = join.is_resumable;
        let (session, name, attachment, joined) = match self.room.apply(Command::Join(join), at) {
            Outcome::Joined {
                evicted,
                displaced,
                joined,
                attachment,
            } => {
                time = evicted.last().map_or(time, |event| event.time);
                self.evict(displaced, evicted, &meta);
                let session = Session {
                    participant: joined.participant,
                    join_sequence: joined.sequence,
                };
                (session, joined.name.clone(), attachment, Some(joined))
            }
            Outcome::Resumed {
                session,
                name,
                attachment,
                replaced,
            } => {
                if let Some(attachment) = replaced {
                    self.close_stream(attachment, CloseReason::TakenOver);
                }
                (session, name, attachment, None)
            }
            outcome => return self.reject(reply, outcome),
        };
        bounds.last = joined
            .as_ref()
            .map_or(self.room.last(), |joined| joined.sequence.previous());
        let (after, is_recovered) = self.start_position(bounds, resume_point, history);
        if resume_point.is_some() {
            self.context.observer.resumed(is_recovered);
        }
        let info = JoinInfo {
            participant: session.participant,
            name,
            epoch: self.epoch,
            start: StreamStart {
                bounds,
                after,
                is_recovered,
                time,
            },
            joined: joined.as_ref().map(|joined| (joined.sequence, joined.time)),
            session_token: (joined.is_none() || is_resumable).then(|| self.issue_token(session)),
            attachment,
        };
        // The stream starts before its own JOIN, so the JOIN is the first event that it yields.
        self.batch.push(Effect::Attach { info, reply });
        if let Some(joined) = joined {
            // A JOIN is not traced as a message: the stream has a span of its own.
            self.append(joined, None, &meta);
        }
    }

    /// Closes the streams of those whose name was claimed by its owner, and appends the LEAVE events of all who are evicted.
    fn evict(&mut self, displaced: Vec<Attachment>, evicted: Vec<Event>, meta: &RequestMeta) {
        for attachment in displaced {
            self.close_stream(attachment, CloseReason::NameClaimed);
        }
        for event in evicted {
            self.append(event, None, meta);
        }
    }

    fn reject<T>(&self, reply: Reply<T>, outcome: Outcome) {
        if let Outcome::Rejected { rejection, .. } = outcome {
            self.context.observer.command_rejected(&rejection);
            fail(reply, rejection.into());
        }
    }

    fn issue_token(&self, session: Session) -> String {
        self.context.tokens.issue(&self.handle.name, self.epoch, session)
    }

    /// The session that `token` names, if the token is valid. The session may have ended.
    fn verify_token(&self, token: &str) -> Option<Session> {
        self.context.tokens.verify(token, &self.handle.name, self.epoch)
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

    fn handle_subscribe(&mut self, start: StartPosition, origin: Origin, reply: Reply<Reader>, at: WallTime) {
        if let Err(rejection) = self.room.check_reader(&origin, at) {
            self.context.observer.command_rejected(&rejection);
            return fail(reply, rejection.into());
        }
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
        self.batch.push(Effect::Subscribe { after, origin, reply });
    }

    fn handle_moderate(
        &mut self,
        moderation: Moderation,
        report: ModerationReporter,
        reply: Reply<usize>,
        at: WallTime,
    ) {
        let (reason, banned) = match &moderation {
            Moderation::Ban(Ban {
                target,
                until,
                reason,
            }) => {
                let (until, reason) = (*until, reason.clone());
                let reason = CloseReason::Rejected(Rejection::Banned { until, reason });
                (reason, Some(target.clone()))
            }
            Moderation::Remove { reason, .. } => {
                (CloseReason::Rejected(Rejection::Removed(reason.clone())), None)
            }
            // Nobody leaves.
            _ => (CloseReason::Detached, None),
        };
        let (removed, attachments) = match self.room.apply(Command::Moderate(moderation), at) {
            Outcome::Moderated { removed, attachments } => (removed, attachments),
            outcome => return self.reject(reply, outcome),
        };
        if self.room.is_gone() {
            self.handle.set_deleted_by_moderator(true);
        }
        // They do not see their own LEAVE.
        for attachment in attachments {
            self.close_stream(attachment, reason.clone());
        }
        if let Some(target) = banned {
            self.batch.push(Effect::CloseBanned { target, reason });
        }
        let count = removed.len();
        for event in removed {
            self.append(event, None, &RequestMeta::now());
        }
        self.batch.push(Effect::Moderated {
            removed: count,
            report,
            reply,
        });
    }

    fn handle_say(&mut self, say: Say, meta: &RequestMeta, at: WallTime) {
        let attachment = say.attachment;
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
            // A newer stream has taken over. Its client sends the message again if it wants to know what became of it.
            _ => return,
        };
        self.batch.push(Effect::Notify {
            attachment,
            notice: frame::encode(&notice),
        });
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
            _ => return fail(reply, HubError::Failed),
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

    fn handle_leave(&mut self, leave: Leave, meta: &RequestMeta, at: WallTime) {
        let (attachment, client_time) = (leave.attachment, leave.timestamp);
        match self.room.apply(Command::Leave(leave), at) {
            Outcome::Accepted(event) => {
                self.close_stream(attachment, CloseReason::Detached);
                self.append(event, client_time, meta);
            }
            Outcome::Rejected { rejection, .. } => {
                // Only the timestamp is rejected; the participant leaves all the same.
                self.context.observer.command_rejected(&rejection);
                self.close_stream(attachment, CloseReason::Rejected(rejection));
                let leave = Command::Leave(Leave {
                    attachment,
                    timestamp: None,
                    trace: None,
                });
                if self.submissions.is_some() {
                    self.issue(self.known_epoch(), leave, None);
                } else if let Outcome::Accepted(event) = self.room.apply(leave, at) {
                    self.append(event, client_time, meta);
                }
            }
            _ => {}
        }
    }

    /// Closes a stream, if it is here and open.
    fn close_stream(&mut self, attachment: Attachment, reason: CloseReason) {
        self.batch.push(Effect::CloseStream { attachment, reason });
    }

    fn on_disconnect(&mut self, attachment: Attachment, at: WallTime) {
        // Closes the stream too: it may still be open if only the client's side of it has ended.
        self.close_stream(attachment, CloseReason::Detached);
        self.apply_by_server(Command::Detach(attachment), at);
    }

    /// Starts the grace period of a participant who can resume.
    fn start_grace(&mut self, attachment: Attachment, at: WallTime) {
        let grace = self.context.options.resume_grace;
        // A replica decides nothing by itself, and submits nothing before it takes part.
        if grace.is_zero() && self.submissions.is_none() {
            self.apply_by_server(Command::ExpireGrace(attachment), at);
        } else {
            let room = &self.room;
            self.grace
                .start(attachment, Instant::now() + grace, |other| room.is_lost(other));
        }
    }

    /// Makes lost participants leave whose grace period has expired.
    pub(super) fn expire_grace(&mut self, at: WallTime) {
        let now = Instant::now();
        for _ in 0..MAX_EXPIRED_PER_BATCH {
            let Some(attachment) = self.grace.pop_expired(now) else {
                break;
            };
            self.end_grace(attachment, at);
        }
    }

    fn end_grace(&mut self, attachment: Attachment, at: WallTime) {
        let command = Command::ExpireGrace(attachment);
        if self.submissions.is_none() {
            self.apply_by_server(command, at);
        } else if self.room.is_lost(attachment) {
            // Each replica says so. The command log decides whether the participant has resumed before.
            self.issue(self.known_epoch(), command, None);
        }
    }

    /// Applies a command for which nobody here waits: of the server itself, or of another replica.
    fn apply_by_server(&mut self, command: Command, at: WallTime) {
        let detached = match command {
            Command::Detach(attachment) => Some(attachment),
            _ => None,
        };
        match self.room.apply(command, at) {
            Outcome::Accepted(event) => self.append(event, None, &RequestMeta::now()),
            Outcome::Joined {
                evicted,
                displaced,
                joined,
                ..
            } => {
                let meta = RequestMeta::now();
                self.evict(displaced, evicted, &meta);
                self.append(joined, None, &meta);
            }
            Outcome::Resumed {
                replaced: Some(attachment),
                ..
            } => self.close_stream(attachment, CloseReason::TakenOver),
            Outcome::Lost => {
                if let Some(attachment) = detached {
                    self.start_grace(attachment, at);
                }
            }
            Outcome::Ended => {
                self.handle.set_deleted_by_moderator(false);
                // Whoever has just begun to read it may do so again.
                self.close_all(CloseReason::RoomEnded);
            }
            _ => {}
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
        // An event is the same on all replicas, of which the others do not trace it.
        if self.submissions.is_none() {
            event.trace.get_or_insert_with(|| trace.context());
        }
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

    fn info(&self, after: Option<ParticipantId>, limit: usize, at: WallTime) -> RoomInfo {
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
                    is_connected: self.room.is_attached(*id),
                })
                .collect(),
            bans: self.room.bans(at).cloned().collect(),
            is_closed: self.room.is_closed(),
        }
    }

    /// Forgets all but the newest `len` message ids.
    pub(super) fn keep_newest_message_ids(&mut self, len: usize) {
        self.room.keep_newest_message_ids(len);
    }

    /// Injects the faults that are switched on, before the requests of a batch are applied.
    pub(super) fn inject_faults(&mut self, requests: &mut [Envelope]) {
        if failpoint::is_enabled("skip-dedupe") {
            self.room.keep_newest_message_ids(0);
        }
        if !failpoint::is_enabled("swap-requests") {
            return;
        }
        let sender = |envelope: &Envelope| match &envelope.request {
            Request::Say { say, .. } => Some(say.attachment),
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
