//! A participant who stays in a room whatever the connection does.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tonic::Streaming;

use super::address::ServerAddress;
use super::backoff::{Backoff, Retry};
use super::call::Call;
use super::connection::{Connection, Settings};
use super::continuity::{Continuity, Heard, Interruption};
use super::error::Error;
use super::event::Event;
use super::join::Join;
use super::message_id::MessageId;
use super::sending::Sending;
use crate::proto::{JoinMsgLeave, ServerMessage};

/// A participant who stays in a room whatever the connection does: when it is lost, when the server is draining or when
/// the reader fell behind, it connects again (see [`Retry`]), resumes after the last event it saw, and, when it has read
/// what it missed, sends again what is not acknowledged even then, under the same ids and in the same order, before
/// anything new. Every event of the room comes once; what the server cannot give any more is named as a
/// [`Hole`](super::Hole).
///
/// Everything happens while [`next`](Self::next) is awaited; there is no task behind it. Memory is bounded: by
/// [`WINDOW`](Self::WINDOW) texts that are not acknowledged, and what the transport buffers.
///
/// Dropping it cuts the stream. The server then announces a leave at once, or, if the session could have been resumed,
/// after its grace.
#[derive(Debug)]
pub struct Presence {
    server: ServerAddress,
    settings: Settings,
    continuity: Continuity,
    backoff: Backoff,
    line: Line,
    /// What happened and was not told yet; never more than three.
    untold: VecDeque<Event>,
}

type Attempt = Pin<Box<dyn Future<Output = Result<Call, Error>> + Send>>;

/// The way to the server.
enum Line {
    Open(Box<OpenLine>),
    /// An attempt begins at this time.
    Waiting(Instant),
    Connecting(Attempt),
    /// It was the last one: the participant left, or cannot go on.
    Closed,
}

struct OpenLine {
    stream: Streaming<ServerMessage>,
    /// `None` when nothing more is taken; the stream will say why.
    queue: Option<mpsc::Sender<JoinMsgLeave>>,
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open(_) => "Open",
            Self::Waiting(_) => "Waiting",
            Self::Connecting(_) => "Connecting",
            Self::Closed => "Closed",
        })
    }
}

impl Presence {
    /// How many messages may be unacknowledged.
    pub const WINDOW: usize = Continuity::WINDOW;

    /// Connects to `server` and joins. This first time nothing is tried twice: whoever starts wants to know.
    ///
    /// # Errors
    /// As [`Connection::open`] and [`Connection::join`].
    ///
    /// # Cancellation
    /// Dropping the future closes the stream; if the server had let the participant in, it sees them leave.
    pub async fn join(
        server: &ServerAddress,
        settings: &Settings,
        retry: Retry,
        join: Join,
    ) -> Result<Self, Error> {
        let mut continuity = Continuity::new(join);
        let call = connect(server.clone(), settings.clone(), continuity.join()).await?;
        let mut presence = Self {
            server: server.clone(),
            settings: settings.clone(),
            continuity,
            backoff: Backoff::new(retry),
            line: Line::Closed,
            untold: VecDeque::new(),
        };
        presence.enter(call, false);
        Ok(presence)
    }

    /// Whether another message may be said before one is acknowledged.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.continuity.has_room()
    }

    /// How many messages are not acknowledged.
    #[must_use]
    pub fn unacknowledged(&self) -> usize {
        self.continuity.unacknowledged()
    }

    /// The participant's Lamport time.
    #[must_use]
    pub const fn now(&self) -> i64 {
        self.continuity.now()
    }

    /// Says `text`, and answers with the message's id: what the server broadcasts (or refuses) under this id is this
    /// message, and the broadcast is its acknowledgement (or a notice that it was broadcast before). It is sent at
    /// once, or after what is to be sent again when there is a connection again. Does not wait.
    ///
    /// # Errors
    /// [`Error::Full`] when [`WINDOW`](Self::WINDOW) messages are not acknowledged; [`Error::Over`] after
    /// [`leave`](Self::leave), and when the participant cannot go on.
    pub fn say(&mut self, text: impl Into<String>) -> Result<MessageId, Error> {
        self.say_followed(text, None)
    }

    /// As [`say`](Self::say), and `sending`, if there is one, is told of the message's way.
    ///
    /// # Errors
    /// As there.
    pub fn say_followed(
        &mut self,
        text: impl Into<String>,
        sending: Option<Arc<dyn Sending>>,
    ) -> Result<MessageId, Error> {
        if matches!(self.line, Line::Closed) {
            return Err(Error::Over);
        }
        let message_id = self.continuity.say(text.into(), sending)?;
        self.send_now();
        Ok(message_id)
    }

    /// Leaves the room. What was said before is still sent and its acknowledgements still come, if need be over another
    /// connection; then [`next`](Self::next) answers `None`. Leaving twice is leaving once. Does not wait.
    pub fn leave(&mut self) {
        self.continuity.leave();
        self.send_now();
    }

    /// What happens next. `None` when the participant has left.
    ///
    /// # Errors
    /// Why it cannot go on: what the server will not have, or what ended the last of many connections when patience was
    /// at its end. Afterwards there is nothing more ([`Error::Over`]).
    ///
    /// # Cancellation
    /// Safe: nothing is lost, and nothing is sent twice that was not lost.
    pub async fn next(&mut self) -> Result<Option<Event>, Error> {
        loop {
            if let Some(event) = self.untold.pop_front() {
                return Ok(Some(event));
            }
            match &mut self.line {
                Line::Open(open) => match open.step(&mut self.continuity).await {
                    Step::Sent => {}
                    Step::Heard(message) => self.hear(*message),
                    Step::Ended(end) => self.interrupted(end)?,
                },
                Line::Waiting(_) | Line::Connecting(_) if self.continuity.is_done() => {
                    // There is nobody to say goodbye to, and nothing else to say.
                    self.line = Line::Closed;
                }
                Line::Waiting(until) => {
                    sleep_until(*until).await;
                    let join = self.continuity.join();
                    let attempt = connect(self.server.clone(), self.settings.clone(), join);
                    self.line = Line::Connecting(Box::pin(attempt));
                }
                Line::Connecting(attempt) => match attempt.await {
                    Ok(call) => self.enter(call, true),
                    Err(error) => self.interrupted(Some(error))?,
                },
                Line::Closed if self.continuity.is_leaving() => return Ok(None),
                Line::Closed => return Err(Error::Over),
            }
        }
    }

    /// A connection stands and the server has let the participant in.
    fn enter(&mut self, call: Call, is_return: bool) {
        let Call {
            queue,
            stream,
            mut first,
        } = call;
        let welcome = first.welcome.take();
        // A server that knows no welcome begins with an event.
        let is_event = welcome.is_none() || first.sequence != 0;
        let back = self.continuity.welcomed(welcome);
        self.backoff.connected(Instant::now());
        if is_return {
            self.untold.push_back(Event::Resumed {
                recovered: back.recovered,
            });
        }
        self.untold.extend(back.hole.map(Event::Hole));
        self.line = Line::Open(Box::new(OpenLine {
            stream,
            queue: Some(queue),
        }));
        if is_event {
            self.hear(first);
        } else {
            self.continuity.heard_time(first.timestamp);
        }
        self.send_now();
    }

    fn hear(&mut self, message: ServerMessage) {
        let Heard {
            hole,
            message,
            is_progress,
        } = self.continuity.heard(message);
        if is_progress {
            self.backoff.settled();
        }
        self.untold.extend(hole.map(Event::Hole));
        self.untold
            .extend(message.map(|message| Event::Message(Box::new(message))));
    }

    fn interrupted(&mut self, end: Option<Error>) -> Result<(), Error> {
        self.line = Line::Closed;
        match self.continuity.interrupted(end) {
            Interruption::Left => Ok(()),
            Interruption::Final(error) => Err(error),
            Interruption::Passing(because, at_least) => {
                let now = Instant::now();
                let Some(attempt) = self.backoff.next(now, at_least, &mut rand::rng()) else {
                    return Err(because);
                };
                self.line = Line::Waiting(now + attempt.delay);
                self.untold.push_back(Event::Reconnecting {
                    attempt: attempt.number,
                    delay: attempt.delay,
                    because,
                });
                Ok(())
            }
        }
    }

    /// Sends what can be sent without waiting.
    fn send_now(&mut self) {
        if let Line::Open(open) = &self.line
            && let Some(queue) = &open.queue
        {
            while self.continuity.has_unsent()
                && let Ok(place) = queue.try_reserve()
            {
                place.send(self.continuity.send().expect("something is unsent"));
            }
        }
    }
}

/// What an open line does.
enum Step {
    Sent,
    Heard(Box<ServerMessage>),
    Ended(Option<Error>),
}

impl OpenLine {
    /// Sends or hears one message. Cancelling loses nothing.
    async fn step(&mut self, continuity: &mut Continuity) -> Step {
        let queue = self.queue.as_ref().filter(|_| continuity.has_unsent());
        let is_closed = tokio::select! {
            message = self.stream.message() => return match message {
                Ok(Some(message)) => Step::Heard(Box::new(message)),
                Ok(None) => Step::Ended(None),
                Err(status) => Step::Ended(Some(status.into())),
            },
            place = reserve(queue) => match place {
                Ok(place) => {
                    place.send(continuity.send().expect("something is unsent"));
                    false
                }
                Err(_) => true,
            },
        };
        if is_closed {
            self.queue = None;
        }
        Step::Sent
    }
}

/// A place in the queue; never, when there is nothing to send.
async fn reserve(
    queue: Option<&mpsc::Sender<JoinMsgLeave>>,
) -> Result<mpsc::Permit<'_, JoinMsgLeave>, mpsc::error::SendError<()>> {
    match queue {
        Some(queue) => queue.reserve().await,
        None => std::future::pending().await,
    }
}

async fn connect(server: ServerAddress, settings: Settings, join: JoinMsgLeave) -> Result<Call, Error> {
    Connection::open(&server, &settings).await?.call(join).await
}
