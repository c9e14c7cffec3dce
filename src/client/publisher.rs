//! Posting messages without joining a room.

use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tonic::Code;

use super::clock::LamportClock;
use super::connection::{ConnectOptions, Connection};
use super::error::ClientError;
use super::outbox::SendObserver;
use super::retry::{Backoff, RetryPolicy};
use super::server_address::ServerAddress;
use crate::domain::MessageId;
use crate::proto::{SendMessageRequest, ServerMessage};

/// Posts messages to a room without joining it.
///
/// Each message has an id. When the response is lost or the server is unavailable, the message is sent again under the same
/// id, so that the server can discard duplicates and the message is broadcast at most once.
#[derive(Debug)]
pub struct Publisher {
    server: ServerAddress,
    options: ConnectOptions,
    retry: RetryPolicy,
    connection: Connection,
    name: String,
    room: String,
    clock: LamportClock,
    throttled: watch::Sender<bool>,
}

/// The acknowledgement of a published message.
#[derive(Debug, Clone, PartialEq)]
pub struct PublishAck {
    /// The event, as the room received it. If the message was repeated and the server no longer retains its event, only
    /// the sequence number, epoch and message id are set, and `sender_id` is 0.
    pub broadcast: ServerMessage,
    /// Whether an earlier attempt, whose response was lost, had already broadcast the message.
    pub repeated: bool,
}

impl Publisher {
    /// Connects to `server` in order to post to `room` as `name`; an empty room stands for the default room. Makes one
    /// attempt to connect, and to get an answer: `retry` applies to publishing.
    ///
    /// # Errors
    /// The errors of [`Connection::open`], or [`ClientError::Timeout`] if the server does not answer.
    ///
    /// # Cancel safety
    /// Dropping the future aborts the attempt.
    pub async fn open(
        server: &ServerAddress,
        options: &ConnectOptions,
        retry: RetryPolicy,
        name: impl Into<String>,
        room: impl Into<String>,
    ) -> Result<Self, ClientError> {
        let connection = Connection::open(server, options).await?;
        let health = connection.health("").await;
        // Any other error is an answer, too: the server need not offer this service.
        if let Err(
            error @ (ClientError::Unreachable { .. } | ClientError::Timeout { .. } | ClientError::Tls { .. }),
        ) = health
        {
            return Err(error);
        }
        Ok(Self {
            connection,
            server: server.clone(),
            options: options.clone(),
            retry,
            name: name.into(),
            room: room.into(),
            clock: LamportClock::START,
            throttled: watch::Sender::new(false),
        })
    }

    /// Posts further messages as `name`.
    pub fn set_name(&mut self, name: impl Into<String>) {
        self.name = name.into();
    }

    /// Whether the server has answered that the message that is being published has to wait, for example because there are too many.
    /// It is sent again on the same connection, after the delay that the server asks for.
    #[must_use]
    pub fn throttled(&self) -> watch::Receiver<bool> {
        self.throttled.subscribe()
    }

    /// Posts `text` and waits for its acknowledgement. Retries transient errors as the retry policy permits, except if the room
    /// does not exist and there are too many rooms. If the token has expired, it is read again, once for each message.
    ///
    /// # Errors
    /// [`ClientError::Rejected`] if the server rejects the message. Otherwise the error of the last attempt; the message
    /// may have been broadcast nevertheless.
    ///
    /// # Cancel safety
    /// Not safe: if the future is dropped, the message may or may not be broadcast. Another call uses a new message id, so
    /// repeating the text may broadcast it twice.
    pub async fn publish(&mut self, text: &str) -> Result<PublishAck, ClientError> {
        self.publish_with_observer(text, None).await
    }

    /// Like [`publish`](Self::publish); `observer` supplies the message's trace context and is notified of each attempt.
    ///
    /// # Errors
    /// The errors of [`publish`](Self::publish).
    ///
    /// # Cancel safety
    /// Not safe, for the same reasons as [`publish`](Self::publish).
    pub async fn publish_with_observer(
        &mut self,
        text: &str,
        observer: Option<&dyn SendObserver>,
    ) -> Result<PublishAck, ClientError> {
        let published = self.publish_with_retries(text, observer).await;
        self.throttled.send_replace(false);
        published
    }

    async fn publish_with_retries(
        &mut self,
        text: &str,
        observer: Option<&dyn SendObserver>,
    ) -> Result<PublishAck, ClientError> {
        let message_id = MessageId::random();
        let mut backoff = Backoff::new(self.retry.clone());
        let mut token_was_renewed = false;
        let mut clock_was_reset = false;
        loop {
            let error = match self.attempt(text, &message_id, observer).await {
                Err(error) => error,
                acknowledged => return acknowledged,
            };
            if error.is_token_expired() && !token_was_renewed {
                token_was_renewed = true;
                self.reconnect().await;
                continue;
            }
            // If the log was replaced, the room's clock may be far behind that of the old log, as for a session.
            if error.is_timestamp_out_of_range() && !clock_was_reset {
                clock_was_reset = true;
                self.clock = LamportClock::START;
                continue;
            }
            if !error.is_transient() || error.is_room_limit() {
                return Err(error);
            }
            let is_throttled = matches!(error, ClientError::Rejected(_));
            self.throttled.send_replace(is_throttled);
            let Some(attempt) = backoff.next(Instant::now(), error.retry_after(), &mut rand::rng()) else {
                return Err(error);
            };
            sleep(attempt.delay).await;
            if !is_throttled {
                self.reconnect().await;
            }
        }
    }

    /// Opens a new connection, with the current token. If this fails, the next attempt uses the old connection, and counts if it
    /// fails too.
    async fn reconnect(&mut self) {
        if let Ok(connection) = Connection::open(&self.server, &self.options).await {
            self.connection = connection;
        }
    }

    async fn attempt(
        &mut self,
        text: &str,
        message_id: &MessageId,
        observer: Option<&dyn SendObserver>,
    ) -> Result<PublishAck, ClientError> {
        let timestamp = self.clock.tick();
        let mut request = SendMessageRequest {
            room: self.room.clone(),
            client_name: self.name.clone(),
            msg: text.to_owned(),
            timestamp,
            message_id: message_id.as_str().to_owned(),
            ..SendMessageRequest::default()
        };
        if let Some(observer) = observer {
            let context = observer.trace_context();
            request.traceparent = context.traceparent().to_owned();
            request.tracestate = context.tracestate().to_owned();
            observer.on_sent(timestamp);
        }
        let response = self.connection.send_message(request).await?;
        let Some(broadcast) = response.broadcast else {
            return Err(ClientError::Internal {
                code: Code::Internal,
                message: "the response to SendMessage has no broadcast".to_owned(),
            });
        };
        self.clock.merge(broadcast.timestamp);
        Ok(PublishAck {
            broadcast,
            repeated: response.repeated,
        })
    }
}
