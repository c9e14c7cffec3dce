//! Who reads a room without being in it.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tonic::Streaming;

use super::address::ServerAddress;
use super::backoff::{Backoff, Retry};
use super::connection::{Connection, Settings};
use super::cursor::{Cursor, Sight};
use super::error::Error;
use super::event::Event;
use super::history::kept_after;
use crate::proto::subscribe_request::Start as WireStart;
use crate::proto::{GetHistoryRequest, NoticeCode, ResumePoint, ServerMessage, SubscribeRequest};

/// Where to begin to read a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// With what comes next.
    Now,
    /// With this many of the newest events.
    Last(u32),
}

/// Who reads a room without being in it, whatever the connection does: it connects again as a [`Presence`] does, and goes
/// on after the last event it saw.
///
/// Everything happens while [`next`](Self::next) is awaited; there is no task behind it.
///
/// [`Presence`]: super::Presence
#[derive(Debug)]
pub struct Follower {
    plan: Plan,
    backoff: Backoff,
    cursor: Cursor,
    line: Line,
    /// Whether there was a connection before.
    is_begun: bool,
    /// How long the server asked to stay away.
    asked_delay: Option<Duration>,
    /// What happened and was not told yet; never more than two.
    untold: VecDeque<Event>,
}

/// What every attempt needs.
#[derive(Debug, Clone)]
struct Plan {
    server: ServerAddress,
    settings: Settings,
    room: String,
    start: Start,
}

/// A stream of events, and where it begins if that is known.
struct Attached {
    stream: Streaming<ServerMessage>,
    at: Option<ResumePoint>,
}

type Attempt = Pin<Box<dyn Future<Output = Result<Attached, Error>> + Send>>;

enum Line {
    Open(Box<Streaming<ServerMessage>>),
    /// An attempt begins at this time.
    Waiting(Instant),
    Connecting(Attempt),
    /// It was the last one.
    Closed,
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

impl Follower {
    /// Connects to `server` and begins to read `room` (empty = the default room). This first time nothing is tried
    /// twice.
    ///
    /// # Errors
    /// As [`Connection::open`]; [`Error::Refused`] when there is no such room; what else can happen to a call.
    ///
    /// # Cancellation
    /// Dropping the future gives the attempt up.
    pub async fn open(
        server: &ServerAddress,
        settings: &Settings,
        retry: Retry,
        room: impl Into<String>,
        start: Start,
    ) -> Result<Self, Error> {
        let plan = Plan {
            server: server.clone(),
            settings: settings.clone(),
            room: room.into(),
            start,
        };
        let attached = plan.clone().attach(None).await?;
        let mut follower = Self {
            plan,
            backoff: Backoff::new(retry),
            cursor: Cursor::START,
            line: Line::Closed,
            is_begun: false,
            asked_delay: None,
            untold: VecDeque::new(),
        };
        follower.enter(attached);
        Ok(follower)
    }

    /// What happens next in the room, or to the connection.
    ///
    /// # Errors
    /// Why it cannot go on, as with [`Presence::next`](super::Presence::next).
    ///
    /// # Cancellation
    /// Safe: nothing is lost.
    pub async fn next(&mut self) -> Result<Event, Error> {
        loop {
            if let Some(event) = self.untold.pop_front() {
                return Ok(event);
            }
            match &mut self.line {
                Line::Open(stream) => match stream.message().await {
                    Ok(Some(message)) => {
                        if let Some(notice) = &message.notice
                            && matches!(notice.code(), NoticeCode::Reconnect | NoticeCode::FellBehind)
                        {
                            self.asked_delay = notice.retry_delay.and_then(|delay| delay.try_into().ok());
                        } else {
                            self.hear(message);
                        }
                    }
                    Ok(None) => self.interrupted(Error::Ended)?,
                    Err(status) => self.interrupted(status.into())?,
                },
                Line::Waiting(until) => {
                    sleep_until(*until).await;
                    self.connect();
                }
                Line::Connecting(attempt) => match attempt.await {
                    Ok(attached) => self.enter(attached),
                    Err(error) => self.interrupted(error)?,
                },
                Line::Closed => return Err(Error::Over),
            }
        }
    }

    fn connect(&mut self) {
        let attempt = self.plan.clone().attach(self.cursor.place());
        self.line = Line::Connecting(Box::pin(attempt));
    }

    fn enter(&mut self, Attached { stream, at }: Attached) {
        self.backoff.connected(Instant::now());
        self.line = Line::Open(Box::new(stream));
        let recovered = at == self.cursor.place();
        if self.is_begun {
            self.untold.push_back(Event::Resumed { recovered });
        }
        self.is_begun = true;
        let hole = at.and_then(|at| self.cursor.go_on_at(at, recovered));
        self.untold.extend(hole.map(Event::Hole));
    }

    fn hear(&mut self, message: ServerMessage) {
        match self.cursor.see(&message) {
            Sight::Next => {}
            Sight::After(hole) => self.untold.push_back(Event::Hole(hole)),
            Sight::Again => return,
        }
        self.backoff.settled();
        self.untold.push_back(Event::Message(Box::new(message)));
    }

    fn interrupted(&mut self, error: Error) -> Result<(), Error> {
        self.line = Line::Closed;
        let asked = self.asked_delay.take();
        // What was there before may be there again: the room; and what the server let go of just now is asked for first.
        let has_read = self.cursor.place().is_some();
        let passes = error.may_pass() || matches!(error, Error::NotKept { .. });
        if !(error.is_outage() || has_read && passes) {
            return Err(error);
        }
        let now = Instant::now();
        let at_least = error.retry_after().max(asked);
        let Some(attempt) = self.backoff.next(now, at_least, &mut rand::rng()) else {
            return Err(error);
        };
        self.line = Line::Waiting(now + attempt.delay);
        self.untold.push_back(Event::Reconnecting {
            attempt: attempt.number,
            delay: attempt.delay,
            because: error,
        });
        Ok(())
    }
}

impl Plan {
    /// Connects, and begins to read after `seen`; or, when the server does not keep what follows it, as early as it can.
    async fn attach(self, seen: Option<ResumePoint>) -> Result<Attached, Error> {
        let connection = Connection::open(&self.server, &self.settings).await?;
        let at = match (seen, self.start) {
            (Some(seen), _) => Some(self.place_after(&connection, seen).await?),
            // Where now is has to be known to come back to it, even if nothing happens until then.
            (None, Start::Now | Start::Last(0)) => Some(self.newest(&connection).await?),
            (None, Start::Last(_)) => None,
        };
        let start = match (at, self.start) {
            (Some(at), _) => Some(WireStart::After(at)),
            (None, Start::Last(count)) => Some(WireStart::Last(count)),
            (None, Start::Now) => None,
        };
        let request = SubscribeRequest {
            room: self.room,
            start,
        };
        let stream = connection.subscribe(request).await?;
        Ok(Attached { stream, at })
    }

    /// The place of the room's newest event.
    async fn newest(&self, connection: &Connection) -> Result<ResumePoint, Error> {
        let page = connection.get_history(self.smallest_page()).await?;
        Ok(ResumePoint {
            epoch: page.epoch,
            sequence: page.last_sequence,
        })
    }

    /// The place from which the server can go on for somebody who has seen `seen`: that one, if it keeps what follows.
    async fn place_after(&self, connection: &Connection, seen: ResumePoint) -> Result<ResumePoint, Error> {
        let page = connection.get_history(self.smallest_page()).await?;
        let kept_after = kept_after(&page);
        let sequence = if page.epoch == seen.epoch {
            seen.sequence
                .clamp(kept_after, page.last_sequence.max(kept_after))
        } else {
            kept_after
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
