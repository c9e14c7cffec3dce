//! A participant that stays in a room across reconnects.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use tokio::time::{Instant, Sleep, sleep};
use tokio_stream::Stream;

use super::connection::{ChatCall, ConnectOptions, Connection};
use super::connection_state::ConnectionState;
use super::error::ClientError;
use super::event::Event;
use super::outbox::SendObserver;
use super::retry::{Backoff, RetryPolicy};
use super::server_address::ServerAddress;
use super::session_state::{DisconnectAction, Incoming, JoinOptions, SessionState};
use crate::domain::MessageId;
use crate::proto::{JoinMsgLeave, ServerMessage, Welcome};

/// A participant of a room, and the stream of the room's events.
///
/// A session survives the loss of its connection. It reconnects as its [`RetryPolicy`] permits, resumes after the last
/// event it has received, reads the events it has missed, and then retransmits its unacknowledged messages under the same
/// message ids and in the same order, before any new message. Each event of the room is yielded once and in order; events
/// that the server can no longer provide are reported as an [`Event::Gap`].
///
/// The session is a [`Stream`] of [`Event`]s and makes progress only while it is polled: it spawns no task. If it is not
/// polled while events are waiting, the server eventually ends its stream. The stream ends after [`leave`](Self::leave),
/// or after an error, which is the reason why the session cannot continue. Its memory use is bounded by
/// [`WINDOW`](Self::WINDOW) unacknowledged texts and the transport's buffers.
///
/// Dropping a session resets its stream without leaving the room. The participant leaves when the server's grace period
/// for resuming has expired.
///
/// # Cancel safety
/// Dropping a future that waits for the next item (`StreamExt::next`) loses no event.
#[derive(Debug)]
pub struct Session {
    server: ServerAddress,
    options: ConnectOptions,
    state: SessionState,
    backoff: Backoff,
    connection: ConnectionState<ChatCall>,
    /// Until when nothing is sent, because the server has rejected a message as too fast.
    pause: Option<Pin<Box<Sleep>>>,
    /// Events that have not been yielded yet; at most three.
    events: VecDeque<Event>,
}

impl Session {
    /// The maximum number of unacknowledged messages.
    pub const WINDOW: usize = SessionState::WINDOW;

    /// Connects to `server` and joins a room. Makes one attempt: `retry` applies to later interruptions.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`] or [`ClientError::Timeout`] if the server does not answer, [`ClientError::Rejected`] if
    /// it does not admit the participant, or any other failure of a call.
    ///
    /// # Cancel safety
    /// Dropping the future resets the stream. If the server had already admitted the participant, the room sees it join
    /// and leave.
    pub async fn join(
        server: &ServerAddress,
        options: &ConnectOptions,
        retry: RetryPolicy,
        join: JoinOptions,
    ) -> Result<Self, ClientError> {
        let mut state = SessionState::new(join);
        let call = connect(server.clone(), options.clone(), state.join_message()).await?;
        let mut session = Self {
            server: server.clone(),
            options: options.clone(),
            state,
            backoff: Backoff::new(retry),
            connection: ConnectionState::Closed,
            pause: None,
            events: VecDeque::new(),
        };
        session.on_connected(call, false);
        Ok(session)
    }

    /// The server's most recent welcome: the participant id, the limits in force, and where the stream started. `None`
    /// if the server implements only the first version of the protocol, which has no welcome.
    #[must_use]
    pub const fn welcome(&self) -> Option<&Welcome> {
        self.state.welcome()
    }

    /// Whether fewer than [`WINDOW`](Self::WINDOW) messages are unacknowledged, so that [`send`](Self::send) does not fail
    /// with [`ClientError::WindowFull`].
    #[must_use]
    pub fn has_capacity(&self) -> bool {
        self.state.has_capacity()
    }

    /// The number of unacknowledged messages.
    #[must_use]
    pub fn unacknowledged(&self) -> usize {
        self.state.unacknowledged()
    }

    /// The participant's Lamport time.
    #[must_use]
    pub const fn lamport_time(&self) -> i64 {
        self.state.lamport_time()
    }

    /// Sends `text` to the room and returns its message id. Returns immediately. While there is no connection, the message
    /// is queued.
    ///
    /// A later [`Event::Message`] with this message id is the server's answer: the broadcast event or a notice with the code
    /// `MESSAGE_REPEATED` acknowledges the message; any other notice rejects it. A message that the server rejects as too fast
    /// is sent again after the delay that the server asks for, and no notice is yielded.
    ///
    /// # Errors
    /// [`ClientError::WindowFull`] if [`WINDOW`](Self::WINDOW) messages are unacknowledged. [`ClientError::Closed`] after
    /// [`leave`](Self::leave), and after the session has failed.
    pub fn send(&mut self, text: impl Into<String>) -> Result<MessageId, ClientError> {
        self.send_with_observer(text, None)
    }

    /// Like [`send`](Self::send); `observer` supplies the message's trace context and is notified when it is sent.
    ///
    /// # Errors
    /// The errors of [`send`](Self::send).
    pub fn send_with_observer(
        &mut self,
        text: impl Into<String>,
        observer: Option<Arc<dyn SendObserver>>,
    ) -> Result<MessageId, ClientError> {
        if matches!(self.connection, ConnectionState::Closed) {
            return Err(ClientError::Closed);
        }
        let message_id = self.state.enqueue(text.into(), observer)?;
        self.flush();
        Ok(message_id)
    }

    /// Requests to leave the room when the messages sent so far are acknowledged or rejected. Returns immediately.
    ///
    /// Keep polling the stream: it yields the outstanding acknowledgements, reconnects if necessary, and then ends. Further
    /// calls have no effect.
    pub fn leave(&mut self) {
        self.state.leave();
        self.flush();
    }

    /// Sends as many messages as fit into the transport's queue. The next poll of the stream sends the rest.
    fn flush(&mut self) {
        if let ConnectionState::Open(call) = &mut self.connection {
            call.poll_flush(&mut Context::from_waker(Waker::noop()), &mut self.state);
        }
    }

    /// Called when the server has admitted the participant.
    fn on_connected(&mut self, mut call: ChatCall, is_reconnect: bool) {
        let mut first = call.first.take().unwrap_or_default();
        let welcome = first.welcome.take();
        // In the first version of the protocol there is no welcome: the first message is an event.
        let is_event = welcome.is_none() || first.sequence != 0;
        let gap = self.state.on_joined(welcome);
        self.backoff.connected(Instant::now());
        if is_reconnect {
            self.events.push_back(Event::Resumed {
                recovered: gap.is_none(),
            });
        }
        self.events.extend(gap.map(Event::Gap));
        self.connection = ConnectionState::Open(Box::new(call));
        if is_event {
            self.on_message(first);
        } else {
            self.state.merge_time(first.timestamp);
        }
        self.flush();
    }

    fn on_message(&mut self, message: ServerMessage) {
        let Incoming {
            gap,
            message,
            is_progress,
            pause,
        } = self.state.on_message(message);
        if let Some(pause) = pause {
            self.pause = Some(Box::pin(sleep(pause)));
        }
        if is_progress {
            self.backoff.reset();
        }
        self.events.extend(gap.map(Event::Gap));
        self.events
            .extend(message.map(|message| Event::Message(Box::new(message))));
    }

    /// Called when the stream has ended or an attempt to connect has failed.
    fn on_disconnect(&mut self, error: Option<ClientError>) -> Result<(), ClientError> {
        self.connection = ConnectionState::Closed;
        self.pause = None;
        match self.state.on_disconnect(error) {
            DisconnectAction::Left => Ok(()),
            DisconnectAction::Fatal(error) => Err(error),
            DisconnectAction::Retry(cause, min_delay) => {
                let event = self
                    .connection
                    .schedule_retry(&mut self.backoff, cause, min_delay)?;
                self.events.push_back(event);
                Ok(())
            }
        }
    }

    /// Advances the connection by one step, which may queue events or close it.
    fn poll_step(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ClientError>> {
        match &mut self.connection {
            ConnectionState::Open(call) => {
                if let Some(pause) = &mut self.pause
                    && pause.as_mut().poll(cx).is_ready()
                {
                    self.pause = None;
                    self.state.resume_sending();
                }
                call.poll_flush(cx, &mut self.state);
                match ready!(Pin::new(&mut call.incoming).poll_next(cx)) {
                    Some(Ok(message)) => self.on_message(message),
                    Some(Err(status)) => self.on_disconnect(Some(status.into()))?,
                    None => self.on_disconnect(None)?,
                }
            }
            ConnectionState::Waiting(_) | ConnectionState::Connecting(_) if self.state.is_done() => {
                // Reconnecting only in order to leave is unnecessary.
                self.connection = ConnectionState::Closed;
            }
            ConnectionState::Waiting(delay) => {
                ready!(delay.as_mut().poll(cx));
                let join = self.state.join_message();
                let attempt = connect(self.server.clone(), self.options.clone(), join);
                self.connection = ConnectionState::Connecting(Box::pin(attempt));
            }
            ConnectionState::Connecting(attempt) => match ready!(attempt.as_mut().poll(cx)) {
                Ok(call) => self.on_connected(call, true),
                Err(error) => self.on_disconnect(Some(error))?,
            },
            ConnectionState::Closed => {}
        }
        Poll::Ready(Ok(()))
    }
}

impl Stream for Session {
    type Item = Result<Event, ClientError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Poll::Ready(Some(Ok(event)));
            }
            if matches!(self.connection, ConnectionState::Closed) {
                return Poll::Ready(None);
            }
            if let Err(error) = ready!(self.poll_step(cx)) {
                return Poll::Ready(Some(Err(error)));
            }
        }
    }
}

async fn connect(
    server: ServerAddress,
    options: ConnectOptions,
    join: JoinMsgLeave,
) -> Result<ChatCall, ClientError> {
    Connection::open(&server, &options).await?.chat(join).await
}
