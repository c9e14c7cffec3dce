//! One participant's stream in one room.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use super::call::Call;
use super::clock::LamportClock;
use super::error::Error;
use super::join::Join;
use super::message_id::MessageId;
use crate::proto::{EventType, JoinMsgLeave, ServerMessage, Welcome};

/// A participant in a room: a [`Speaker`] and a [`Listener`] that share a Lamport clock. Dropping it (or both halves)
/// cuts the stream, which the server announces as a leave.
#[derive(Debug)]
pub struct Conversation {
    speaker: Speaker,
    listener: Listener,
    welcome: Option<Welcome>,
}

/// The half that says things.
#[derive(Debug)]
pub struct Speaker {
    /// `None` once the participant has left.
    queue: Option<mpsc::Sender<JoinMsgLeave>>,
    shared: Arc<Shared>,
}

/// The half that hears things.
#[derive(Debug)]
pub struct Listener {
    stream: Streaming<ServerMessage>,
    /// An event that came in before the conversation was handed out.
    first: Option<ServerMessage>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    clock: Mutex<LamportClock>,
    left: AtomicBool,
}

impl Shared {
    // A clock is a number and right after every operation, so a panic of another holder does not spoil it.
    fn tick(&self) -> i64 {
        self.clock.lock().unwrap_or_else(PoisonError::into_inner).tick()
    }

    fn merge(&self, received: i64) {
        self.clock
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .merge(received);
    }

    fn now(&self) -> i64 {
        self.clock.lock().unwrap_or_else(PoisonError::into_inner).now()
    }
}

impl Conversation {
    /// Sends the JOIN and waits for the server's first word: a refusal comes in its place.
    pub(super) async fn begin(channel: Channel, join: Join) -> Result<Self, Status> {
        let shared = Arc::new(Shared::default());
        let Call {
            queue,
            stream,
            mut first,
        } = Call::begin(channel, join.frame(shared.tick())).await?;
        let welcome = first.welcome.take();
        let mut listener = Listener {
            stream,
            first: None,
            shared: Arc::clone(&shared),
        };
        // A server that knows no welcome begins with an event.
        if welcome.is_none() || first.sequence != 0 {
            listener.first = Some(first);
        } else {
            shared.merge(first.timestamp);
        }
        Ok(Self {
            speaker: Speaker {
                queue: Some(queue),
                shared,
            },
            listener,
            welcome,
        })
    }

    /// What the server said first: ids, limits in force. `None` from a server of the first version.
    #[must_use]
    pub const fn welcome(&self) -> Option<&Welcome> {
        self.welcome.as_ref()
    }

    /// See [`Speaker::say`].
    ///
    /// # Errors
    /// As there.
    pub async fn say(&mut self, text: impl Into<String>) -> Result<MessageId, Error> {
        self.speaker.say(text).await
    }

    /// See [`Listener::next`].
    ///
    /// # Errors
    /// As there.
    pub async fn next(&mut self) -> Result<Option<ServerMessage>, Error> {
        self.listener.next().await
    }

    /// See [`Speaker::leave`].
    ///
    /// # Errors
    /// As there.
    pub async fn leave(&mut self) -> Result<(), Error> {
        self.speaker.leave().await
    }

    /// The two halves, to speak and hear at the same time.
    #[must_use]
    pub fn into_split(self) -> (Speaker, Listener) {
        (self.speaker, self.listener)
    }
}

impl Speaker {
    /// Says `text`, and answers with the message's id: what the server broadcasts (or refuses) under this id is this
    /// message, and the broadcast is its acknowledgement. Waits while [`QUEUE`](super::QUEUE) messages are on their way out.
    ///
    /// # Errors
    /// [`Error::Over`] after [`leave`](Self::leave), or when the stream ended.
    ///
    /// # Cancellation
    /// Dropping the future before it is ready says nothing and does not move the clock.
    pub async fn say(&mut self, text: impl Into<String>) -> Result<MessageId, Error> {
        let queue = self.queue.as_ref().ok_or(Error::Over)?;
        let place = queue.reserve().await.map_err(|_| Error::Over)?;
        let message_id = MessageId::random();
        // The time is taken last: in the order of the queue, times only rise.
        place.send(JoinMsgLeave {
            timestamp: self.shared.tick(),
            msg: text.into(),
            r#type: EventType::Message.into(),
            message_id: message_id.as_str().to_owned(),
            ..JoinMsgLeave::default()
        });
        Ok(message_id)
    }

    /// Leaves the room. What was said before is still sent, its acknowledgements still come; then the server ends the
    /// stream, and [`Listener::next`] answers `None`. Leaving twice is leaving once.
    ///
    /// # Errors
    /// [`Error::Over`] when the stream ended.
    ///
    /// # Cancellation
    /// Dropping the future before it is ready leaves the participant in the room.
    pub async fn leave(&mut self) -> Result<(), Error> {
        let Some(queue) = &self.queue else {
            return Ok(());
        };
        let place = queue.reserve().await.map_err(|_| Error::Over)?;
        self.shared.left.store(true, Ordering::Release);
        place.send(JoinMsgLeave {
            timestamp: self.shared.tick(),
            r#type: EventType::Leave.into(),
            ..JoinMsgLeave::default()
        });
        self.queue = None;
        Ok(())
    }

    /// The participant's Lamport time.
    #[must_use]
    pub fn now(&self) -> i64 {
        self.shared.now()
    }
}

impl Listener {
    /// The next message, as the server sent it; its time is merged into the clock. `None` when the conversation ended
    /// because this participant left.
    ///
    /// # Errors
    /// What ended the conversation otherwise: [`Error::Lost`], [`Error::Unavailable`] and so on, and [`Error::Ended`]
    /// when the server gave no reason. After an error there is nothing more to hear.
    ///
    /// # Cancellation
    /// Safe: no message is lost.
    pub async fn next(&mut self) -> Result<Option<ServerMessage>, Error> {
        let message = match self.first.take() {
            Some(first) => Some(first),
            None => self.stream.message().await?,
        };
        match message {
            Some(message) => {
                self.shared.merge(message.timestamp);
                Ok(Some(message))
            }
            None if self.shared.left.load(Ordering::Acquire) => Ok(None),
            None => Err(Error::Ended),
        }
    }
}
