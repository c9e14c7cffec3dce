//! What the transport tells of itself, beside what the hub tells: see [`crate::hub::Observer`].

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use super::reason::Reason;
use crate::domain::{LamportTime, Sequence, Timestamp, TraceContext};
use crate::proto::EventType;

/// Who a stream belongs to, once its JOIN was accepted.
#[derive(Debug, Clone)]
pub struct ParticipantInfo {
    /// The room.
    pub room: String,
    /// The participant's id there.
    pub participant: i32,
    /// The participant's name.
    pub name: String,
    /// The trace of its JOIN, where that is recorded.
    pub trace: Option<Arc<TraceContext>>,
}

/// A JOIN that was accepted.
#[derive(Debug, Clone, Copy)]
pub struct JoinAccepted<'a> {
    /// When it was decoded.
    pub received: Instant,
    /// The trace context that the client sent with it.
    pub sender: Option<&'a TraceContext>,
    /// The client's Lamport time, as it was sent.
    pub claimed: Timestamp,
    /// The room's Lamport time of it.
    pub time: LamportTime,
    /// Its place in the log; none where an earlier stay goes on, which nobody else hears of.
    pub sequence: Option<Sequence>,
}

/// The methods whose answers are streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Method {
    /// Takes part in a room.
    Chat,
    /// Reads a room.
    Subscribe,
}

impl Method {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Chat, Self::Subscribe];

    /// Its name in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Chat => "Chat",
            Self::Subscribe => "Subscribe",
        }
    }
}

/// Why a Chat stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StreamEnd {
    /// The client sent a LEAVE.
    Left,
    /// The client ended its side without a LEAVE.
    Closed,
    /// The connection or the stream was cut.
    Lost,
    /// The reader fell behind what the server keeps, or took nothing for too long.
    Slow,
    /// The client came back on another connection.
    TakenOver,
    /// The server is draining.
    Drain,
    /// What the client sent was refused.
    Refused,
    /// The server is at fault.
    Error,
}

impl StreamEnd {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Left,
        Self::Closed,
        Self::Lost,
        Self::Slow,
        Self::TakenOver,
        Self::Drain,
        Self::Refused,
        Self::Error,
    ];

    /// Its name in metrics and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Left => "left",
            Self::Closed => "closed",
            Self::Lost => "lost",
            Self::Slow => "slow",
            Self::TakenOver => "taken_over",
            Self::Drain => "drain",
            Self::Refused => "refused",
            Self::Error => "error",
        }
    }
}

/// Listens to the transport. Cheap and without blocking, like the hub's observer.
pub trait Observer: Send + Sync + 'static {
    /// A connection was accepted (`true`) or has ended (`false`).
    fn connection(&self, open: bool);
    /// A connection was turned away because there are as many as may be.
    fn connection_refused(&self, peer: SocketAddr, limit: usize);
    /// A connection was closed since it did not speak HTTP/2, or did not speak at all.
    fn connection_not_http2(&self, peer: SocketAddr);
    /// A stream began.
    fn stream_started(&self, method: Method);
    /// Something was decoded off a Chat stream.
    fn received(&self, kind: EventType);
    /// Something was refused before it came to a room.
    fn rejected(&self, reason: Reason);
    /// A JOIN was accepted. The answer is the trace in which that is recorded, if it is, for whoever follows what the
    /// stream brings.
    fn joined(&self, visitor: &ParticipantInfo, arrival: &JoinAccepted<'_>) -> Option<Arc<TraceContext>>;
    /// A Chat stream ended. `detail` is the status message, empty where there is nothing to say.
    fn stream_ended(&self, end: StreamEnd, visitor: Option<&ParticipantInfo>, detail: &str);
}
