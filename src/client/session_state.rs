//! The state of a session that persists across connections.
//!
//! It does no I/O, reads no clock, and uses randomness only for message ids. The session reports received messages and why
//! a connection ended; the state decides what to send, what to yield, and whether to reconnect.

use std::sync::Arc;
use std::time::Duration;

use super::clock::LamportClock;
use super::cursor::{Cursor, Observation};
use super::error::ClientError;
use super::event::Gap;
use super::outbox::{Outbox, SendObserver};
use super::retry::parse_retry_delay;
use crate::domain::{MessageId, TraceContext};
use crate::proto::{EventType, JoinMsgLeave, NoticeCode, ResumePoint, ServerMessage, Welcome};

/// Capacity of the queue between a `ChatCall` and its transport, in messages.
pub(super) const SEND_QUEUE_LEN: usize = 256;

/// The participant's name and the room to join.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JoinOptions {
    name: String,
    room: String,
    trace: Option<TraceContext>,
}

impl JoinOptions {
    /// Options to join the server's default room as `name`.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            ..Self::default()
        }
    }

    /// Sets the room to join. An empty string stands for the default room.
    #[must_use]
    pub fn room(self, room: impl Into<String>) -> Self {
        Self {
            room: room.into(),
            ..self
        }
    }

    /// Sets the W3C trace context to send with each JOIN. Default: none.
    #[must_use]
    pub fn trace(self, trace: TraceContext) -> Self {
        Self {
            trace: Some(trace),
            ..self
        }
    }

    /// The JOIN message with the Lamport timestamp `timestamp`.
    pub(super) fn join_message(&self, timestamp: i64) -> JoinMsgLeave {
        let trace = |field: fn(&TraceContext) -> &str| {
            self.trace
                .as_ref()
                .map_or_else(String::new, |trace| field(trace).to_owned())
        };
        JoinMsgLeave {
            client_name: self.name.clone(),
            room: self.room.clone(),
            timestamp,
            r#type: EventType::Join.into(),
            wants_welcome: true,
            traceparent: trace(TraceContext::traceparent),
            tracestate: trace(TraceContext::tracestate),
            ..JoinMsgLeave::default()
        }
    }
}

/// The state of a session. Invariants:
///
/// - Messages are sent in order. LEAVE comes last, when none is in flight.
/// - Messages that are unacknowledged when a connection is lost are retransmitted on the next one under the same ids,
///   after the missed events have been read and before new messages.
/// - Each event of the log is yielded once.
#[derive(Debug)]
pub(super) struct SessionState {
    join: JoinOptions,
    clock: LamportClock,
    /// Whether the participant has been admitted at least once.
    has_joined: bool,
    /// The most recent welcome, with the session token.
    welcome: Option<Welcome>,
    cursor: Cursor,
    outbox: Outbox,
    /// Nothing is sent before the cursor has passed this position. Until then the log may still contain messages that an
    /// earlier connection sent, and the server's deduplication window for message ids is finite.
    send_after: Option<ResumePoint>,
    leave: Leave,
    /// Whether the server has rejected a message as too fast: until all messages are acknowledged, one is in flight at a time, so
    /// that no later one overtakes it.
    is_throttled: bool,
    /// Whether nothing is sent until [`resume_sending`](Self::resume_sending) is called.
    is_paused: bool,
    /// The reconnect delay that the server asked for in a notice.
    requested_delay: Option<Duration>,
    /// Set if another connection has taken over the session: the text of the server's notice.
    taken_over: Option<String>,
    clock_was_reset: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leave {
    No,
    Requested,
    Sent,
}

/// What to do with a received message.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Incoming {
    /// A gap in the log before the message.
    pub(super) gap: Option<Gap>,
    /// The message to yield, unless it is a duplicate or only concerns the connection.
    pub(super) message: Option<ServerMessage>,
    /// Whether the message proves that the connection works, so that the backoff is reset.
    pub(super) is_progress: bool,
    /// How long nothing may be sent, because the server has rejected a message as too fast.
    pub(super) pause: Option<Duration>,
}

/// What to do after a connection has ended.
#[derive(Debug)]
pub(super) enum DisconnectAction {
    /// The participant has left: the session ends.
    Left,
    /// The session ends with this error.
    Fatal(ClientError),
    /// Reconnect because of this error, after at least this delay.
    Retry(ClientError, Option<Duration>),
}

impl SessionState {
    /// The maximum number of unacknowledged messages: together with a LEAVE, they fill the transport's queue.
    pub(super) const WINDOW: usize = SEND_QUEUE_LEN - 1;

    pub(super) const fn new(join: JoinOptions) -> Self {
        Self {
            join,
            clock: LamportClock::START,
            has_joined: false,
            welcome: None,
            cursor: Cursor::START,
            outbox: Outbox::new(),
            send_after: None,
            leave: Leave::No,
            is_throttled: false,
            is_paused: false,
            requested_delay: None,
            taken_over: None,
            clock_was_reset: false,
        }
    }

    pub(super) const fn welcome(&self) -> Option<&Welcome> {
        self.welcome.as_ref()
    }

    pub(super) const fn lamport_time(&self) -> i64 {
        self.clock.now()
    }

    pub(super) fn has_capacity(&self) -> bool {
        self.outbox.len() < Self::WINDOW
    }

    pub(super) fn unacknowledged(&self) -> usize {
        self.outbox.len()
    }

    /// Queues a message and returns its id.
    ///
    /// # Errors
    /// `Closed` after [`leave`](Self::leave), `WindowFull` without [capacity](Self::has_capacity).
    pub(super) fn enqueue(
        &mut self,
        text: String,
        observer: Option<Arc<dyn SendObserver>>,
    ) -> Result<MessageId, ClientError> {
        if self.is_leaving() {
            return Err(ClientError::Closed);
        }
        if !self.has_capacity() {
            return Err(ClientError::WindowFull);
        }
        Ok(self.outbox.push(text, observer))
    }

    /// Accepts no further messages, and sends LEAVE when the last one is answered.
    pub(super) fn leave(&mut self) {
        if self.leave == Leave::No {
            self.leave = Leave::Requested;
        }
    }

    const fn is_leaving(&self) -> bool {
        !matches!(self.leave, Leave::No)
    }

    /// Whether LEAVE is to be sent now. A message that is rejected as too fast is sent again, which LEAVE must not overtake.
    fn may_send_leave(&self) -> bool {
        self.leave == Leave::Requested && self.outbox.in_flight() == 0
    }

    /// Whether a connection is no longer needed: the participant is leaving and no message is unacknowledged.
    pub(super) fn is_done(&self) -> bool {
        self.is_leaving() && self.outbox.len() == 0
    }

    /// The first message of a new connection.
    pub(super) fn join_message(&mut self) -> JoinMsgLeave {
        let token = self.welcome.as_ref().map(|welcome| &welcome.session_token);
        JoinMsgLeave {
            resume: self.cursor.position(),
            session_token: token.cloned().unwrap_or_default(),
            ..self.join.join_message(self.clock.tick())
        }
    }

    /// Called when the server has admitted the participant. Returns the events that are missing after a reconnect.
    pub(super) fn on_joined(&mut self, welcome: Option<Welcome>) -> Option<Gap> {
        let is_reconnect = std::mem::replace(&mut self.has_joined, true);
        self.outbox.rewind();
        self.is_paused = false;
        self.send_after = None;
        if self.is_leaving() {
            self.leave = Leave::Requested;
        }
        let Some(welcome) = welcome else {
            return is_reconnect.then_some(Gap::Unknown);
        };
        let start = ResumePoint {
            epoch: welcome.epoch,
            sequence: welcome.sequence,
        };
        let gap = self.cursor.resume_at(start, welcome.recovered);
        if self.outbox.len() > 0 {
            self.send_after = Some(ResumePoint {
                sequence: welcome.last_sequence,
                ..start
            });
        }
        self.welcome = Some(welcome);
        gap
    }

    /// Whether unread events of the log may contain messages that are waiting to be retransmitted.
    fn is_catching_up(&self) -> bool {
        self.send_after
            .is_some_and(|position| !self.cursor.has_passed(position))
    }

    /// Whether messages have to wait.
    fn is_held(&self) -> bool {
        self.is_catching_up() || self.is_paused || self.is_throttled && self.outbox.in_flight() > 0
    }

    /// Called after the pause that [`Incoming::pause`] asks for.
    pub(super) const fn resume_sending(&mut self) {
        self.is_paused = false;
    }

    /// Whether [`next_message`](Self::next_message) has something to send.
    pub(super) fn has_unsent(&self) -> bool {
        !self.is_held() && (self.outbox.has_unsent() || self.may_send_leave())
    }

    /// The next message to send on the current connection.
    pub(super) fn next_message(&mut self) -> Option<JoinMsgLeave> {
        if self.is_held() {
            return None;
        }
        if let Some(unsent) = self.outbox.next_unsent() {
            let timestamp = self.clock.tick();
            let mut message = JoinMsgLeave {
                timestamp,
                msg: unsent.text.clone(),
                r#type: EventType::Message.into(),
                message_id: unsent.message_id.as_str().to_owned(),
                ..JoinMsgLeave::default()
            };
            if let Some(observer) = &unsent.observer {
                let context = observer.trace_context();
                message.traceparent = context.traceparent().to_owned();
                message.tracestate = context.tracestate().to_owned();
                observer.on_sent(timestamp);
            }
            if self.welcome.is_none() {
                // A server that implements only the first version of the protocol acknowledges nothing.
                self.outbox.remove(&message.message_id);
            }
            return Some(message);
        }
        if self.may_send_leave() {
            self.leave = Leave::Sent;
            return Some(JoinMsgLeave {
                timestamp: self.clock.tick(),
                r#type: EventType::Leave.into(),
                ..JoinMsgLeave::default()
            });
        }
        None
    }

    /// Processes a message from the server.
    pub(super) fn on_message(&mut self, message: ServerMessage) -> Incoming {
        self.clock.merge(message.timestamp);
        if let Some(pause) = retry_delay(&message)
            && self.outbox.requeue_from(&message.message_id)
        {
            self.is_throttled = true;
            self.is_paused = true;
            return Incoming {
                gap: None,
                message: None,
                is_progress: false,
                pause: Some(pause),
            };
        }
        let was_pending = self.outbox.remove(&message.message_id);
        self.is_throttled &= self.outbox.len() > 0;
        let is_control = self.on_control_notice(&message);
        let (gap, is_new) = match self.cursor.observe(&message) {
            Observation::Next => (None, true),
            Observation::After(gap) => (Some(gap), true),
            Observation::Duplicate => (None, false),
        };
        let own_id = self.welcome.as_ref().map_or(0, |welcome| welcome.participant_id);
        let is_own_presence = message.sender_id == own_id && message.r#type() != EventType::Message;
        let is_event = message.sequence != 0 && is_new && !is_own_presence;
        Incoming {
            gap,
            is_progress: was_pending || is_event,
            message: (is_new && !is_control).then_some(message),
            pause: None,
        }
    }

    /// Merges the timestamp of a message that is not an event.
    pub(super) fn merge_time(&mut self, timestamp: i64) {
        self.clock.merge(timestamp);
    }

    /// Applies a notice that concerns the connection. Returns whether `message` is one.
    fn on_control_notice(&mut self, message: &ServerMessage) -> bool {
        let Some(notice) = &message.notice else {
            return false;
        };
        match notice.code() {
            NoticeCode::Reconnect | NoticeCode::FellBehind => {
                self.requested_delay = notice.retry_delay.map(parse_retry_delay);
                true
            }
            NoticeCode::TakenOver => {
                self.taken_over = Some(message.msg_stream.clone());
                true
            }
            _ => false,
        }
    }

    /// Called when the connection has ended or an attempt to connect has failed. `error` is `None` if the server ended the
    /// stream without an error.
    pub(super) fn on_disconnect(&mut self, error: Option<ClientError>) -> DisconnectAction {
        let requested_delay = self.requested_delay.take();
        if let Some(message) = self.taken_over.take() {
            return DisconnectAction::Fatal(ClientError::TakenOver { message });
        }
        let Some(error) = error else {
            return if self.leave == Leave::Sent || self.is_done() {
                DisconnectAction::Left
            } else {
                DisconnectAction::Retry(ClientError::StreamEnded, requested_delay)
            };
        };
        if !error.is_retryable() {
            // If the log was replaced, the room's clock may be far behind the timestamps of the old log. It is correct to
            // start over, because no event of the new log depends on an event of the old one.
            if error.is_timestamp_out_of_range() && !self.clock_was_reset {
                self.clock_was_reset = true;
                self.clock = LamportClock::START;
                return DisconnectAction::Retry(error, requested_delay);
            }
            return DisconnectAction::Fatal(error);
        }
        if self.is_done() {
            return DisconnectAction::Left;
        }
        let min_delay = error.retry_after().max(requested_delay);
        DisconnectAction::Retry(error, min_delay)
    }
}

/// The delay after which a message that the server has rejected as too fast can be sent again.
fn retry_delay(message: &ServerMessage) -> Option<Duration> {
    let notice = message.notice.as_ref()?;
    let delay = notice
        .retry_delay
        .filter(|_| notice.code() == NoticeCode::TooFast)?;
    Some(parse_retry_delay(delay))
}

#[cfg(test)]
#[path = "session_state_tests.rs"]
mod tests;
