//! Posting messages without joining a room.

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
        })
    }

    /// Posts further messages as `name`.
    pub fn set_name(&mut self, name: impl Into<String>) {
        self.name = name.into();
    }

    /// Posts `text` and waits for its acknowledgement. Retries transient errors as the retry policy permits, except if the room
    /// does not exist and there are too many rooms.
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
        let message_id = MessageId::random();
        let mut backoff = Backoff::new(self.retry.clone());
        loop {
            let error = match self.attempt(text, &message_id, observer).await {
                Err(error) if error.is_transient() && !error.is_room_limit() => error,
                result => return result,
            };
            let Some(attempt) = backoff.next(Instant::now(), error.retry_after(), &mut rand::rng()) else {
                return Err(error);
            };
            sleep(attempt.delay).await;
            // If this fails, the next attempt uses the old connection, and counts if it fails too.
            if let Ok(connection) = Connection::open(&self.server, &self.options).await {
                self.connection = connection;
            }
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
