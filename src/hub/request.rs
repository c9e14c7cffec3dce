//! The parameters and results of requests to a room.

use std::sync::Arc;
use std::time::Instant;

use tokio::task::JoinError;

use crate::domain::{
    Attachment, Ban, Epoch, Join, LamportTime, Name, Participant, ParticipantId, Rejection, RoomName,
    Sequence, TraceContext,
};
use crate::proto::ServerMessage;
use crate::store::{Bounds, StoreError};

/// A request to join a room, or to resume a session in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinRequest {
    /// The room; created if it does not exist.
    pub room: RoomName,
    /// The JOIN. Its session is set by the room, from `session_token`.
    pub join: Join,
    /// The token of the session to resume. An invalid or expired token is not an error: the request then joins anew.
    pub session_token: Option<String>,
    /// The last event that the client has seen. The stream continues after it if the log still has what follows.
    pub resume_point: Option<ResumePoint>,
    /// How many of the newest events to start with when the stream does not continue after `resume_point`.
    pub history: u32,
}

/// A position in a room's log, as a client names it. Not validated: neither part need exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResumePoint {
    /// The epoch of the log.
    pub epoch: u64,
    /// The last event that the client has seen; [`Sequence::ZERO`] if it has seen none.
    pub sequence: Sequence,
}

/// Where a subscription starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StartPosition {
    /// At the end of the log: only new events.
    Tail,
    /// After this event.
    After(ResumePoint),
    /// At this many events before the end of the log, or at the oldest retained event if there are fewer.
    Last(u32),
}

/// When a command arrived, and through which stream or call.
#[derive(Debug, Clone)]
pub(crate) struct RequestMeta {
    /// When the command was decoded.
    pub(crate) received_at: Instant,
    /// The trace of the stream or call that carried the command, if that is traced.
    pub(crate) stream_trace: Option<Arc<TraceContext>>,
}

impl RequestMeta {
    /// The metadata of a command that the server itself issues.
    pub(crate) fn now() -> Self {
        Instant::now().into()
    }
}

impl From<Instant> for RequestMeta {
    fn from(received_at: Instant) -> Self {
        Self {
            received_at,
            stream_trace: None,
        }
    }
}

/// The room as a participant finds it when its stream starts.
#[derive(Debug, Clone)]
pub(crate) struct JoinInfo {
    /// The participant's id.
    pub(crate) participant: ParticipantId,
    /// The participant's name.
    pub(crate) name: Name,
    /// The epoch of the room's log.
    pub(crate) epoch: Epoch,
    /// Where the stream starts.
    pub(crate) start: StreamStart,
    /// Sequence and time of the participant's own JOIN; `None` if a session was resumed, which is no event.
    pub(crate) joined: Option<(Sequence, LamportTime)>,
    /// The token to resume the session with; `None` if the client did not ask for a resumable one.
    pub(crate) session_token: Option<String>,
    /// Which of the participant's streams this is.
    pub(super) attachment: Attachment,
}

/// Where a participant's stream starts. Bounds and time do not include the participant's own JOIN.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StreamStart {
    /// The retained part of the log.
    pub(crate) bounds: Bounds,
    /// The stream's first event is the one after this.
    pub(crate) after: Sequence,
    /// Whether `after` is the resume point that the client named.
    pub(crate) is_recovered: bool,
    /// The room's Lamport time.
    pub(crate) time: LamportTime,
}

/// The outcome of an accepted post.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum PostOutcome {
    /// It was broadcast.
    Broadcast(Box<ServerMessage>),
    /// It had been broadcast before, with this sequence.
    Repeated(Sequence),
}

/// A page of a room's roster, as of one event of its log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RoomInfo {
    /// The newest event.
    pub(crate) sequence: Sequence,
    /// The room's Lamport time.
    pub(crate) time: LamportTime,
    /// The participants, by ascending id.
    pub(crate) participants: Vec<RosterEntry>,
    /// The bans that have not ended.
    pub(crate) bans: Vec<Ban>,
    /// Whether a moderator has closed the room.
    pub(crate) is_closed: bool,
}

/// One participant of a room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RosterEntry {
    /// The participant's id.
    pub(crate) id: ParticipantId,
    /// The participant.
    pub(crate) participant: Participant,
    /// Whether it has a stream; if not, it may still resume its session.
    pub(crate) is_connected: bool,
}

/// Why the hub could not serve a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HubError {
    /// The room rejected the command.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// The limit on rooms is reached, so none can be created.
    #[error("there are {0} rooms, which is the limit; join one of them")]
    TooManyRooms(usize),
    /// The room does not exist.
    #[error("there is no room {:?}; a room is created when somebody joins it or posts to it", .0.as_str())]
    NoRoom(RoomName),
    /// The room has ended while the request was on its way to it. A request that may begin another room can be made again.
    #[error("the room has ended, because nobody was in it; connect again")]
    RoomEnded,
    /// The log does not have the events after the requested position.
    #[error("the room's log does not have the events after that position; epoch {epoch} has events {} to {}", bounds.first, bounds.last)]
    NotKept {
        /// The log's epoch.
        epoch: Epoch,
        /// The part of the log that is retained.
        bounds: Bounds,
    },
    /// The server is shutting down and accepts no new requests.
    #[error("the server is draining")]
    Draining,
    /// This replica does not receive its own messages from the command log of all replicas, and so does not know what the others do.
    #[error("this server is cut off from the other servers of its cluster; connect again")]
    Suspended,
    /// The room's log is damaged.
    #[error("the room's log is damaged; the operator must restore it from a copy")]
    Damaged,
    /// The room's actor or the store has failed.
    #[error("the room has failed")]
    Failed,
}

impl From<JoinError> for HubError {
    fn from(_: JoinError) -> Self {
        Self::Failed
    }
}

impl From<StoreError> for HubError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::TooManyRooms(rooms) => Self::TooManyRooms(rooms),
            error if error.is_damage() => Self::Damaged,
            _ => Self::Failed,
        }
    }
}
