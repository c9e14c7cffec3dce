//! What the gRPC server reports to telemetry. The hub has an observer of its own: [`crate::hub::Observer`].

use std::error::Error;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::proxy_protocol::ProxyHeaderError;
use crate::domain::{LamportTime, RoomName, Sequence, Timestamp, TraceContext};
use crate::proto::EventType;
use crate::reason::Reason;

/// The participant that a stream belongs to.
#[derive(Debug, Clone)]
pub struct ParticipantInfo {
    /// The name of the room.
    pub room: String,
    /// The participant's id in the room.
    pub participant: i32,
    /// The participant's name.
    pub name: String,
    /// The address of the client.
    pub peer: Option<SocketAddr>,
    /// The trace of the participant's JOIN, if it is recorded.
    pub trace: Option<Arc<TraceContext>>,
}

/// An accepted JOIN.
#[derive(Debug, Clone, Copy)]
pub struct JoinAccepted<'a> {
    /// When the JOIN was decoded.
    pub received_at: Instant,
    /// The trace context that the client sent with the JOIN.
    pub trace: Option<&'a TraceContext>,
    /// The Lamport time that the client sent with the JOIN.
    pub client_time: Timestamp,
    /// The room's Lamport time at the JOIN event, or at the resumption of a session.
    pub time: LamportTime,
    /// The sequence of the JOIN event. `None` for a resumed session: resuming produces no event.
    pub sequence: Option<Sequence>,
}

/// A stream that has ended.
#[derive(Debug, Clone, Copy)]
pub struct StreamEnded<'a> {
    /// The method.
    pub method: StreamingMethod,
    /// Why it ended.
    pub reason: Reason,
    /// The address of the client.
    pub peer: Option<SocketAddr>,
    /// The participant; `None` if no JOIN was accepted on this stream.
    pub participant: Option<&'a ParticipantInfo>,
    /// The message of the status, which can be empty.
    pub detail: &'a str,
}

/// The methods that respond with a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StreamingMethod {
    /// `Chat`.
    Chat,
    /// `Subscribe`.
    Subscribe,
}

impl StreamingMethod {
    /// All streaming methods, in the order of their discriminants, which index the counters.
    pub const ALL: [Self; 2] = [Self::Chat, Self::Subscribe];

    /// The method's name in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Chat => "Chat",
            Self::Subscribe => "Subscribe",
        }
    }
}

/// What a moderator has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ModerationAction {
    /// Removed participants.
    Remove,
    /// Banned somebody.
    Ban,
    /// Ended a ban.
    Unban,
    /// Closed a room.
    Close,
    /// Reopened a room.
    Reopen,
    /// Deleted a room.
    Delete,
}

impl ModerationAction {
    /// All actions, in the order of their discriminants, which index the counters.
    pub const ALL: [Self; 6] = [
        Self::Remove,
        Self::Ban,
        Self::Unban,
        Self::Close,
        Self::Reopen,
        Self::Delete,
    ];

    /// The action in metrics and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Remove => "remove",
            Self::Ban => "ban",
            Self::Unban => "unban",
            Self::Close => "close",
            Self::Reopen => "reopen",
            Self::Delete => "delete",
        }
    }
}

/// A moderator's decision that has been carried out, for the audit log.
#[derive(Debug, Clone, Copy)]
pub struct ModerationReport<'a> {
    /// The moderator: the subject of the token.
    pub subject: &'a str,
    /// The address of the moderator.
    pub peer: Option<SocketAddr>,
    /// The room.
    pub room: &'a RoomName,
    /// What was done.
    pub action: ModerationAction,
    /// To whom; empty if to the room.
    pub target: &'a str,
    /// How long a ban holds.
    pub duration: Option<Duration>,
    /// Why, as the moderator says; may be empty.
    pub reason: &'a str,
    /// How many participants leave because of it.
    pub removed: usize,
}

/// A limit on connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionLimit {
    /// On all connections of the server.
    Server(usize),
    /// On the connections from one address.
    Address(usize),
}

/// Why the server closed a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CutReason {
    /// It had no stream for too long.
    Idle,
    /// It sent too many frames that carry no data.
    Flood,
    /// Its streams have not read much of what it sent, a header block or a TLS record has no end, it has not accepted the answers to many
    /// requests, or it has sent many at a time, and the server holds too much of that.
    Unread,
}

/// A limit because of which a client waits, instead of being rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Throttle {
    /// A new connection is not served yet, because many of its address were cut.
    Cuts,
    /// Nothing is read from a connection, because its address sends too many short frames.
    ShortFrames,
    /// Nothing is read from a connection until less of what it has sent is unread.
    Unread,
    /// A busy or new connection waits for others of its address.
    Turns,
    /// A query waits for others.
    Queries,
}

impl Throttle {
    /// All of them, in the order of their discriminants, which index the counters.
    pub const ALL: [Self; 5] = [
        Self::Cuts,
        Self::ShortFrames,
        Self::Unread,
        Self::Turns,
        Self::Queries,
    ];

    /// The limit in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cuts => "cuts",
            Self::ShortFrames => "short_frames",
            Self::Unread => "unread",
            Self::Turns => "turns",
            Self::Queries => "queries",
        }
    }
}

/// Why a connection did not become an HTTP/2 connection.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// It did not begin with the HTTP/2 preface, or not in time.
    #[error("no valid HTTP/2 preface")]
    NotHttp2,
    /// The TLS handshake was not completed within `--handshake-timeout`.
    #[error("the TLS handshake was not completed within --handshake-timeout")]
    Timeout,
    /// The client does not use TLS, and the server does.
    #[error("the client does not use TLS, which this port requires")]
    PlainText,
    /// The client uses TLS, and the server does not.
    #[error("the client uses TLS, which this port does not; it needs --tls-cert and --tls-key")]
    UnexpectedTls,
    /// The connection of a proxy does not begin with a valid header of the PROXY protocol.
    #[error("the PROXY protocol, which this proxy must use: {0}")]
    ProxyHeader(ProxyHeaderError),
    /// There were too many TLS handshakes from the address.
    #[error("too many TLS handshakes from this address")]
    TooManyHandshakes,
    /// The TLS handshake failed.
    #[error("the TLS handshake failed: {0}")]
    Handshake(io::Error),
}

/// Receives what happens on connections and streams. Implementations must be cheap and must not block.
pub trait Observer: Send + Sync + 'static {
    /// A connection was accepted.
    fn connection_opened(&self);
    /// An accepted connection has ended.
    fn connection_closed(&self);
    /// A connection was rejected because the limit is reached.
    fn connection_rejected(&self, peer: SocketAddr, limit: ConnectionLimit);
    /// The server closed a connection.
    fn connection_cut(&self, peer: SocketAddr, reason: CutReason);
    /// A client begins to wait because of a limit.
    fn throttled(&self, throttle: Throttle);
    /// A connection could not be accepted, most often for lack of file descriptors.
    fn accept_failed(&self, error: &io::Error);
    /// A connection was closed because it did not become an HTTP/2 connection.
    fn connection_setup_failed(&self, peer: SocketAddr, error: &SetupError);
    /// The files with the server's certificate were read again and are in use. The certificate expires at `not_after`.
    fn tls_reloaded(&self, not_after: Option<SystemTime>);
    /// The files with the server's certificate were read again and are not valid. What was in use before still is.
    fn tls_reload_failed(&self, error: &dyn Error);
    /// A stream was opened.
    fn stream_started(&self, method: StreamingMethod);
    /// A message of a Chat stream was decoded.
    fn received(&self, kind: EventType);
    /// A call, a stream or a message was rejected before it reached a room.
    fn rejected(&self, reason: Reason);
    /// A call was rejected because its token is missing or not valid. `detail` is the message of the status.
    fn authentication_failed(&self, peer: Option<SocketAddr>, reason: Reason, detail: &str);
    /// A moderator's decision has been carried out.
    fn moderated(&self, report: &ModerationReport<'_>);
    /// A JOIN was accepted. Returns the context of the span that records it, or `None` if it is not sampled.
    fn joined(&self, participant: &ParticipantInfo, accepted: &JoinAccepted<'_>)
    -> Option<Arc<TraceContext>>;
    /// A stream ended.
    fn stream_ended(&self, ended: &StreamEnded<'_>);
}

/// Reports that clients begin to wait, if anybody is to learn it.
#[derive(Clone, Default)]
pub(super) struct ThrottleReporter(Option<Arc<dyn Fn(Throttle) + Send + Sync>>);

impl ThrottleReporter {
    /// Calls `on_throttle` for each report.
    pub(super) fn new(on_throttle: impl Fn(Throttle) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(on_throttle)))
    }

    pub(super) fn report(&self, throttle: Throttle) {
        if let Some(on_throttle) = &self.0 {
            on_throttle(throttle);
        }
    }
}

impl fmt::Debug for ThrottleReporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ThrottleReporter").finish_non_exhaustive()
    }
}
