//! Who posts messages without being in a room.

use tokio::time::{Instant, sleep};
use tonic::Code;

use super::address::ServerAddress;
use super::backoff::{Backoff, Retry};
use super::clock::LamportClock;
use super::connection::{Connection, Settings};
use super::error::Error;
use super::join::Join;
use super::message_id::MessageId;
use super::sending::Sending;
use crate::proto::{SendMessageRequest, ServerMessage};

/// Who posts messages without being in a room. Each goes out under an id of its own, and under the same id again when its
/// answer was lost or the server was not available, so that it is broadcast once.
#[derive(Debug)]
pub struct Poster {
    server: ServerAddress,
    settings: Settings,
    retry: Retry,
    connection: Connection,
    who: Join,
    clock: LamportClock,
}

/// What became of a posted message.
#[derive(Debug, Clone, PartialEq)]
pub struct Posted {
    /// The broadcast as everybody received it.
    pub broadcast: ServerMessage,
    /// Whether it had been broadcast by an attempt whose answer was lost.
    pub repeated: bool,
}

impl Poster {
    /// Connects to `server`, to post as who and where `who` says. This first time nothing is tried twice.
    ///
    /// # Errors
    /// As [`Connection::open`].
    ///
    /// # Cancellation
    /// Dropping the future gives the attempt up.
    pub async fn open(
        server: &ServerAddress,
        settings: &Settings,
        retry: Retry,
        who: Join,
    ) -> Result<Self, Error> {
        Ok(Self {
            connection: Connection::open(server, settings).await?,
            server: server.clone(),
            settings: settings.clone(),
            retry,
            who,
            clock: LamportClock::START,
        })
    }

    /// Posts `text`, with as many attempts as patience allows.
    ///
    /// # Errors
    /// [`Error::Refused`] when the server will not have it; what ended the last attempt when patience was at its end.
    /// The message may have been broadcast then.
    ///
    /// # Cancellation
    /// The message may have been broadcast, and will not be sent again.
    pub async fn post(&mut self, text: &str) -> Result<Posted, Error> {
        self.post_followed(text, None).await
    }

    /// As [`post`](Self::post), and `sending`, if there is one, is told of the message's way.
    ///
    /// # Errors
    /// As there.
    ///
    /// # Cancellation
    /// As there.
    pub async fn post_followed(
        &mut self,
        text: &str,
        sending: Option<&dyn Sending>,
    ) -> Result<Posted, Error> {
        let message_id = MessageId::random();
        let mut backoff = Backoff::new(self.retry.clone());
        loop {
            let error = match self.attempt(text, &message_id, sending).await {
                Err(error) if error.is_outage() => error,
                answer => return answer,
            };
            let Some(attempt) = backoff.next(Instant::now(), error.retry_after(), &mut rand::rng()) else {
                return Err(error);
            };
            sleep(attempt.delay).await;
            // A connection that cannot be had is like one that gives no answer.
            if let Ok(connection) = Connection::open(&self.server, &self.settings).await {
                self.connection = connection;
            }
        }
    }

    async fn attempt(
        &mut self,
        text: &str,
        message_id: &MessageId,
        sending: Option<&dyn Sending>,
    ) -> Result<Posted, Error> {
        let timestamp = self.clock.tick();
        let mut request = self.who.post(text, message_id.as_str(), timestamp);
        if let Some(sending) = sending {
            let context = sending.context();
            request.traceparent = context.traceparent().to_owned();
            request.tracestate = context.tracestate().to_owned();
            sending.sent(timestamp);
        }
        let answer = self.connection.send_message(request).await?;
        let Some(broadcast) = answer.broadcast else {
            return Err(Error::Failed {
                code: Code::Internal,
                reason: "the answer to a message has no broadcast".to_owned(),
            });
        };
        self.clock.merge(broadcast.timestamp);
        Ok(Posted {
            broadcast,
            repeated: answer.repeated,
        })
    }
}

impl Join {
    fn post(&self, text: &str, message_id: &str, timestamp: i64) -> SendMessageRequest {
        let frame = self.frame(timestamp);
        SendMessageRequest {
            room: frame.room,
            client_name: frame.client_name,
            msg: text.to_owned(),
            timestamp,
            message_id: message_id.to_owned(),
            ..SendMessageRequest::default()
        }
    }
}
