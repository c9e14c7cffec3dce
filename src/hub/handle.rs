//! The interface to a room's actor: the requests in its mailbox, the room's handle, and the [`Member`] that a participant's
//! stream holds.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use tokio::sync::oneshot;

use super::feed::{CloseReason, FeedItem};
use super::mailbox::{Mailbox, MailboxClosed, MailboxPool, Sender, Weight};
use super::observer::Observer;
use super::read_permits::ReadPermits;
use super::reader::Reader;
use super::replication::OrderedQueue;
use super::request::{HubError, JoinInfo, JoinRequest, PostOutcome, RequestMeta, RoomInfo, StartPosition};
use crate::domain::{
    Attachment, Command, Epoch, LamportTime, Leave, Message, Moderation, Origin, ParticipantId, Post,
    Rejection, RoomName, Say, Timestamp, TraceContext,
};

/// The capacity of a room's mailbox, in bytes: several thousand short messages, enough to amortize the wake-up of a batch,
/// and few enough that a message does not wait long behind them.
const MAILBOX_CAPACITY: usize = 1 << 20;

/// Roughly the size of a request without its text, its session token and its trace context, in bytes.
const REQUEST_WEIGHT: usize = 256;

/// What a JOIN and a post take of a mailbox instead, so that it holds no more of them than a room handles in some tens of milliseconds.
const JOIN_WEIGHT: usize = 2 * 1024;
const POST_WEIGHT: usize = 1024;

/// Requests by how much CPU a room needs for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RequestCost {
    /// Computes the skeletons of a name, and a session token.
    Join,
    /// Computes the skeletons of a name.
    Post,
    /// May iterate over the participants.
    Roster,
    /// Takes constant time, as a message does.
    Constant,
}

impl RequestCost {
    pub(super) const fn of_command(command: &Command) -> Self {
        match command {
            Command::Join(_) => Self::Join,
            Command::Post(_) => Self::Post,
            Command::Moderate(_) => Self::Roster,
            _ => Self::Constant,
        }
    }
}

/// Where the answer to a request goes. Nobody needs the answer if the receiver is gone.
pub(super) type Reply<T> = oneshot::Sender<Result<T, HubError>>;

/// Reports a moderator's decision, with the number of participants that leave because of it.
pub(super) type ModerationReporter = Box<dyn FnOnce(usize) + Send + Sync>;

/// A message to a room's actor.
pub(super) enum Request {
    Join {
        request: Box<JoinRequest>,
        meta: RequestMeta,
        reply: Reply<Member>,
    },
    Say {
        say: Say,
        meta: RequestMeta,
    },
    Post {
        post: Box<Post>,
        meta: RequestMeta,
        reply: Reply<PostOutcome>,
    },
    Leave {
        leave: Leave,
        meta: RequestMeta,
    },
    /// The participant's stream is gone without a LEAVE.
    Disconnected(Attachment),
    Subscribe {
        start: StartPosition,
        origin: Origin,
        reply: Reply<Reader>,
    },
    /// Answered with the number of participants that leave.
    Moderate {
        moderation: Box<Moderation>,
        /// Called with that number once the decision is durable, whether or not anybody waits for the answer.
        report: ModerationReporter,
        reply: Reply<usize>,
    },
    /// Asks for at most `limit` participants, by id, starting after the participant `after`.
    Info {
        after: Option<ParticipantId>,
        limit: usize,
        reply: Reply<RoomInfo>,
    },
    /// Ends every subscriber's stream after the events accepted so far.
    Close(CloseReason),
}

/// A request, and the room that it is meant for.
pub(super) struct Envelope {
    /// The epoch of the room that its sender knows; `None` if there was no room. With several replicas, a room of another epoch does not
    /// take it.
    pub(super) epoch: Option<Epoch>,
    pub(super) request: Request,
}

impl Envelope {
    /// Whether anybody needs the request: its caller still waits, or it has another effect.
    pub(super) fn is_needed(&self) -> bool {
        match &self.request {
            // One that resumes a session takes it over from the stream before.
            Request::Join { request, reply, .. } => !reply.is_closed() || request.session_token.is_some(),
            Request::Info { reply, .. } => !reply.is_closed(),
            _ => true,
        }
    }
}

impl Request {
    /// When the request was decoded, if it carries a command from the wire.
    pub(super) fn received_at(&self) -> Option<Instant> {
        match self {
            Self::Join { meta, .. }
            | Self::Say { meta, .. }
            | Self::Post { meta, .. }
            | Self::Leave { meta, .. } => Some(meta.received_at),
            Self::Disconnected(_)
            | Self::Subscribe { .. }
            | Self::Moderate { .. }
            | Self::Info { .. }
            | Self::Close(_) => None,
        }
    }

    /// Who a JOIN or a post comes from.
    pub(super) fn origin(&self) -> Option<&Origin> {
        match self {
            Self::Join { request, .. } => Some(&request.join.origin),
            Self::Post { post, .. } => Some(&post.origin),
            _ => None,
        }
    }

    /// What it costs the room.
    pub(super) const fn cost(&self) -> RequestCost {
        match self {
            Self::Join { .. } => RequestCost::Join,
            Self::Post { .. } => RequestCost::Post,
            Self::Moderate { .. } | Self::Subscribe { .. } | Self::Info { .. } | Self::Close(_) => {
                RequestCost::Roster
            }
            Self::Say { .. } | Self::Leave { .. } | Self::Disconnected(_) => RequestCost::Constant,
        }
    }

    /// Answers a request that cannot be served.
    pub(super) fn fail(self, error: HubError) {
        match self {
            Self::Join { reply, .. } => drop(reply.send(Err(error))),
            Self::Post { reply, .. } => drop(reply.send(Err(error))),
            Self::Subscribe { reply, .. } => drop(reply.send(Err(error))),
            Self::Moderate { reply, .. } => drop(reply.send(Err(error))),
            Self::Info { reply, .. } => drop(reply.send(Err(error))),
            Self::Say { .. } | Self::Leave { .. } | Self::Disconnected(_) | Self::Close(_) => {}
        }
    }
}

impl Weight for Envelope {
    fn weight(&self) -> usize {
        let variable = match &self.request {
            Request::Say { say, .. } => message_len(&say.message),
            Request::Post { post, .. } => message_len(&post.message),
            Request::Join { request, .. } => {
                let token_len = request.session_token.as_ref().map_or(0, String::len);
                token_len + trace_len(request.join.trace.as_ref())
            }
            _ => 0,
        };
        let weight = match self.request.cost() {
            RequestCost::Join => JOIN_WEIGHT,
            RequestCost::Post => POST_WEIGHT,
            RequestCost::Roster | RequestCost::Constant => REQUEST_WEIGHT,
        };
        weight + variable
    }
}

fn message_len(message: &Message) -> usize {
    let text_len = message.text.as_ref().map_or(0, |text| text.as_str().len());
    text_len + trace_len(message.trace.as_ref())
}

fn trace_len(trace: Option<&TraceContext>) -> usize {
    trace.map_or(0, |trace| trace.traceparent().len() + trace.tracestate().len())
}

/// A running room: its mailbox, and the statistics that can be read without its actor.
pub(super) struct RoomHandle {
    pub(super) name: RoomName,
    pub(super) mailbox: Arc<Mailbox<Envelope>>,
    /// What the command log of all replicas has for the room, if there are several.
    pub(super) ordered: Option<OrderedQueue>,
    time: AtomicI64,
    participants: AtomicU32,
    is_deleted_by_moderator: AtomicBool,
}

impl RoomHandle {
    pub(super) fn new(
        name: RoomName,
        mailboxes: Arc<MailboxPool<Envelope>>,
        is_replicated: bool,
    ) -> Arc<Self> {
        Arc::new(Self {
            name,
            ordered: is_replicated.then(OrderedQueue::new),
            mailbox: Arc::new(Mailbox::new(MAILBOX_CAPACITY, mailboxes)),
            time: AtomicI64::new(0),
            participants: AtomicU32::new(0),
            is_deleted_by_moderator: AtomicBool::new(false),
        })
    }

    /// Closes the mailbox, and answers the requests in it with an error.
    pub(super) fn reject_all(&self, error: &HubError) {
        self.mailbox.close();
        let mut requests = Vec::new();
        let mut cx = Context::from_waker(Waker::noop());
        while self.mailbox.poll_take(&mut cx, &mut requests) == Poll::Ready(true) {
            for Envelope { request, .. } in requests.drain(..) {
                request.fail(error.clone());
            }
        }
    }

    /// Whether nothing can be sent to it any more because nobody needed it.
    pub(super) fn is_closed(&self) -> bool {
        self.ordered.as_ref().is_some_and(OrderedQueue::is_closed)
    }

    /// Notes whether the room that is gone was deleted by a moderator, or has ended.
    pub(super) fn set_deleted_by_moderator(&self, is_deleted_by_moderator: bool) {
        self.is_deleted_by_moderator
            .store(is_deleted_by_moderator, Ordering::Release);
    }

    /// The error of a request to a room that is gone.
    pub(super) fn gone_error(&self) -> HubError {
        if self.is_deleted_by_moderator.load(Ordering::Acquire) {
            Rejection::RoomDeleted.into()
        } else {
            HubError::RoomEnded
        }
    }

    /// Why the streams of a room that is gone are closed.
    pub(super) fn gone_reason(&self) -> CloseReason {
        if self.is_deleted_by_moderator.load(Ordering::Acquire) {
            CloseReason::Rejected(Rejection::RoomDeleted)
        } else {
            CloseReason::RoomEnded
        }
    }

    /// Updates what [`RoomHandle::stats`] returns.
    pub(super) fn publish_stats(&self, time: LamportTime, participants: usize) {
        self.time.store(time.get(), Ordering::Relaxed);
        self.participants
            .store(u32::try_from(participants).unwrap_or(u32::MAX), Ordering::Relaxed);
    }

    /// The Lamport time and the number of participants as of the latest batch.
    pub(super) fn stats(&self) -> (i64, u32) {
        (
            self.time.load(Ordering::Relaxed),
            self.participants.load(Ordering::Relaxed),
        )
    }
}

/// A participant's stream in a room: reads the room's events and sends the participant's commands.
///
/// It exists only once the JOIN was accepted or the session was resumed. Dropping it detaches the stream: a resumable
/// participant can then resume within the grace period, any other leaves. No matter how streams end, the room's log has
/// exactly one LEAVE for each JOIN.
///
/// A resumed session has a new `Member`. Each one is an [`Attachment`] of its own, so that the room can tell the requests of
/// an earlier stream from those of the current one.
pub struct Member {
    room: Arc<RoomHandle>,
    sender: Sender<Envelope>,
    reader: Reader,
    observer: Arc<dyn Observer>,
    /// A message that did not fit into the mailbox yet.
    unsent: Option<Envelope>,
    is_detached: bool,
    stream_trace: Option<Arc<TraceContext>>,
    info: JoinInfo,
}

impl Member {
    pub(super) fn new(
        room: Arc<RoomHandle>,
        reader: Reader,
        observer: Arc<dyn Observer>,
        info: JoinInfo,
    ) -> Self {
        observer.participant_connected();
        let sender = Sender::new(Arc::clone(&room.mailbox));
        Self {
            room,
            sender,
            reader,
            observer,
            unsent: None,
            is_detached: false,
            stream_trace: None,
            info,
        }
    }

    /// Sets the trace to which the stream's spans belong. Applies to the commands that follow.
    pub(crate) fn set_stream_trace(&mut self, stream_trace: Option<Arc<TraceContext>>) {
        self.stream_trace = stream_trace;
    }

    fn meta(&self, received_at: Instant) -> RequestMeta {
        RequestMeta {
            received_at,
            stream_trace: self.stream_trace.clone(),
        }
    }

    pub(crate) const fn info(&self) -> &JoinInfo {
        &self.info
    }

    pub(crate) fn room(&self) -> &RoomName {
        &self.room.name
    }

    /// The room's Lamport time as of its latest batch.
    pub(crate) fn time(&self) -> i64 {
        self.room.stats().0
    }

    /// The next item for this participant; see [`Reader::poll_next`].
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<FeedItem> {
        self.reader.poll_next(cx)
    }

    /// Shares permits with other readers; see [`Reader::share`].
    pub(crate) fn share_reads(&mut self, permits: ReadPermits) {
        self.reader.share(permits);
    }

    /// The unread bytes; see [`Reader::lag`].
    pub(crate) fn lag(&self) -> u64 {
        self.reader.lag()
    }

    /// Ready when [`Member::say`] may be called: the previous message is in the mailbox.
    ///
    /// # Errors
    ///
    /// The room has stopped and accepts nothing more.
    pub(crate) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), MailboxClosed>> {
        self.sender.poll_push(cx, &mut self.unsent)
    }

    /// Roughly the bytes of the message that does not fit into the mailbox yet.
    pub(crate) fn unsent_weight(&self) -> usize {
        self.unsent.as_ref().map_or(0, Weight::weight)
    }

    /// Sends a message to the room. Its position in the room's order is decided once [`Member::poll_ready`] is ready again.
    pub(crate) fn say(&mut self, message: Message, received_at: Instant) {
        let say = Say {
            attachment: self.info.attachment,
            message,
        };
        let meta = self.meta(received_at);
        self.unsent = Some(self.envelope(Request::Say { say, meta }));
    }

    /// Leaves the room. Events that precede the LEAVE can still be read; then the stream closes.
    pub(crate) fn leave(&mut self, timestamp: Option<Timestamp>, trace: Option<TraceContext>) {
        let leave = Leave {
            attachment: self.info.attachment,
            timestamp,
            trace,
        };
        self.send_last(Request::Leave {
            leave,
            meta: self.meta(Instant::now()),
        });
    }

    /// Detaches the stream without leaving: a resumable participant can resume within the grace period, any other leaves.
    /// Events that the room accepted before can still be read; then the stream closes.
    pub(crate) fn detach(&mut self) {
        self.send_last(Request::Disconnected(self.info.attachment));
    }

    fn envelope(&self, request: Request) -> Envelope {
        Envelope {
            epoch: Some(self.info.epoch),
            request,
        }
    }

    /// Sends the stream's last request, unless it has been sent.
    fn send_last(&mut self, request: Request) {
        if !std::mem::replace(&mut self.is_detached, true) {
            // A room that has stopped has closed this stream already.
            self.sender.push_last(self.envelope(request)).ok();
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.detach();
        self.observer.participant_disconnected();
    }
}
