//! Reading a room without joining it.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::Instant;
use tokio_stream::Stream;
use tonic::Streaming;

use super::connection::{ConnectOptions, Connection};
use super::connection_state::ConnectionState;
use super::cursor::{Cursor, Observation};
use super::error::ClientError;
use super::event::Event;
use super::history::retained_after;
use super::retry::{Backoff, RetryPolicy, parse_retry_delay};
use super::server_address::ServerAddress;
use crate::proto::subscribe_request::Start;
use crate::proto::{GetHistoryRequest, NoticeCode, ResumePoint, ServerMessage, SubscribeRequest};

/// Where a [`Subscription`] starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartPosition {
    /// After the newest event.
    Now,
    /// With this many of the newest events, or with all of them if there are fewer.
    Last(u32),
}

/// A stream of a room's events, for readers that do not join it.
///
/// A subscription survives the loss of its connection as a [`Session`](super::Session) does: it reconnects as its
/// [`RetryPolicy`] permits and resumes after the last event it has yielded. Each event is yielded once and in order;
/// events that the server no longer retains are reported as an [`Event::Gap`].
///
/// It makes progress only while it is polled: it spawns no task. The stream ends only after an error, which is the reason
/// why it cannot continue.
///
/// # Cancel safety
/// Dropping a future that waits for the next item (`StreamExt::next`) loses no event.
#[derive(Debug)]
pub struct Subscription {
    connector: Connector,
    backoff: Backoff,
    cursor: Cursor,
    connection: ConnectionState<SubscribeCall>,
    /// Whether a connection has been established at least once.
    is_started: bool,
    /// The reconnect delay that the server asked for in a notice.
    requested_delay: Option<Duration>,
    /// Events that have not been yielded yet; at most two.
    events: VecDeque<Event>,
}

/// Opens the stream, at first and after each loss of the connection.
#[derive(Debug, Clone)]
struct Connector {
    server: ServerAddress,
    options: ConnectOptions,
    room: String,
    start: StartPosition,
}

/// An open `Subscribe` stream.
struct SubscribeCall {
    stream: Streaming<ServerMessage>,
    /// The position after which the stream starts, if known.
    start: Option<ResumePoint>,
}

impl Subscription {
    /// Connects to `server` and subscribes to `room`; an empty string stands for the default room. Makes one attempt:
    /// `retry` applies to later interruptions.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`] or [`ClientError::Timeout`] if the server does not answer, [`ClientError::Rejected`]
    /// with [`tonic::Code::NotFound`] if the room does not exist, or any other failure of a call.
    ///
    /// # Cancel safety
    /// Safe: subscribing has no effect on the room.
    pub async fn open(
        server: &ServerAddress,
        options: &ConnectOptions,
        retry: RetryPolicy,
        room: impl Into<String>,
        start: StartPosition,
    ) -> Result<Self, ClientError> {
        let connector = Connector {
            server: server.clone(),
            options: options.clone(),
            room: room.into(),
            start,
        };
        let call = connector.clone().connect(None).await?;
        let mut subscription = Self {
            connector,
            backoff: Backoff::new(retry),
            cursor: Cursor::START,
            connection: ConnectionState::Closed,
            is_started: false,
            requested_delay: None,
            events: VecDeque::new(),
        };
        subscription.on_connected(call);
        Ok(subscription)
    }

    fn on_connected(&mut self, call: SubscribeCall) {
        self.backoff.connected(Instant::now());
        let recovered = call.start == self.cursor.position();
        if std::mem::replace(&mut self.is_started, true) {
            self.events.push_back(Event::Resumed { recovered });
        }
        let gap = call
            .start
            .and_then(|start| self.cursor.resume_at(start, recovered));
        self.events.extend(gap.map(Event::Gap));
        self.connection = ConnectionState::Open(Box::new(call));
    }

    fn on_message(&mut self, message: ServerMessage) {
        if let Some(notice) = &message.notice
            && matches!(notice.code(), NoticeCode::Reconnect | NoticeCode::FellBehind)
        {
            self.requested_delay = notice.retry_delay.map(parse_retry_delay);
            return;
        }
        match self.cursor.observe(&message) {
            Observation::Next => {}
            Observation::After(gap) => self.events.push_back(Event::Gap(gap)),
            Observation::Duplicate => return,
        }
        self.backoff.reset();
        self.events.push_back(Event::Message(Box::new(message)));
    }

    fn on_disconnect(&mut self, error: ClientError) -> Result<(), ClientError> {
        self.connection = ConnectionState::Closed;
        let requested_delay = self.requested_delay.take();
        // Once a position is known, more errors are retried: the room may be created again, and if the server has just
        // expired the next event, the next attempt looks up where to continue.
        let has_read = self.cursor.position().is_some();
        let is_retryable = error.is_retryable() || matches!(error, ClientError::OutOfRange { .. });
        if !(error.is_transient() || has_read && is_retryable) {
            return Err(error);
        }
        let min_delay = error.retry_after().max(requested_delay);
        let event = self
            .connection
            .schedule_retry(&mut self.backoff, error, min_delay)?;
        self.events.push_back(event);
        Ok(())
    }

    /// Advances the connection by one step, which may queue events or close it.
    fn poll_step(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ClientError>> {
        match &mut self.connection {
            ConnectionState::Open(call) => match ready!(Pin::new(&mut call.stream).poll_next(cx)) {
                Some(Ok(message)) => self.on_message(message),
                Some(Err(status)) => self.on_disconnect(status.into())?,
                None => self.on_disconnect(ClientError::StreamEnded)?,
            },
            ConnectionState::Waiting(delay) => {
                ready!(delay.as_mut().poll(cx));
                let attempt = self.connector.clone().connect(self.cursor.position());
                self.connection = ConnectionState::Connecting(Box::pin(attempt));
            }
            ConnectionState::Connecting(attempt) => match ready!(attempt.as_mut().poll(cx)) {
                Ok(call) => self.on_connected(call),
                Err(error) => self.on_disconnect(error)?,
            },
            ConnectionState::Closed => {}
        }
        Poll::Ready(Ok(()))
    }
}

impl Stream for Subscription {
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

impl Connector {
    /// Connects, and subscribes to the events after `seen`, or after the first later position from which the server retains
    /// all events.
    async fn connect(self, seen: Option<ResumePoint>) -> Result<SubscribeCall, ClientError> {
        let connection = Connection::open(&self.server, &self.options).await?;
        let start = match (seen, self.start) {
            (Some(seen), _) => Some(self.first_retained_after(&connection, seen).await?),
            // The position of the newest event, so that the stream can resume even if it is lost before the first event.
            (None, StartPosition::Now | StartPosition::Last(0)) => Some(self.newest(&connection).await?),
            (None, StartPosition::Last(_)) => {
                // Reports an error before the stream begins, such as that there is no such room.
                self.newest(&connection).await?;
                None
            }
        };
        let request_start = match (start, self.start) {
            (Some(start), _) => Some(Start::After(start)),
            (None, StartPosition::Last(count)) => Some(Start::Last(count)),
            (None, StartPosition::Now) => None,
        };
        let request = SubscribeRequest {
            room: self.room,
            start: request_start,
        };
        let stream = connection.subscribe(request).await?;
        Ok(SubscribeCall { stream, start })
    }

    /// The position of the room's newest event.
    async fn newest(&self, connection: &Connection) -> Result<ResumePoint, ClientError> {
        let page = connection.get_history(self.smallest_page()).await?;
        Ok(ResumePoint {
            epoch: page.epoch,
            sequence: page.last_sequence,
        })
    }

    /// Returns `seen`, or the first later position from which the server retains all events.
    async fn first_retained_after(
        &self,
        connection: &Connection,
        seen: ResumePoint,
    ) -> Result<ResumePoint, ClientError> {
        let page = connection.get_history(self.smallest_page()).await?;
        let retained_after = retained_after(&page);
        let sequence = if page.epoch == seen.epoch {
            seen.sequence
                .clamp(retained_after, page.last_sequence.max(retained_after))
        } else {
            retained_after
        };
        Ok(ResumePoint {
            epoch: page.epoch,
            sequence,
        })
    }

    fn smallest_page(&self) -> GetHistoryRequest {
        GetHistoryRequest {
            room: self.room.clone(),
            page: None,
            limit: 1,
        }
    }
}
