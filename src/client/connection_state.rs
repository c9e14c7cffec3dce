//! The connection of a [`Session`](super::Session) or [`Subscription`](super::Subscription) and its reconnects.

use std::fmt;
use std::pin::Pin;
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

use super::error::ClientError;
use super::event::Event;
use super::retry::Backoff;

/// The state of a connection that is re-established after it is lost. `C` is the open call.
pub(super) enum ConnectionState<C> {
    Open(Box<C>),
    /// Waiting for the delay before the next attempt.
    Waiting(Pin<Box<Sleep>>),
    Connecting(Pin<Box<dyn Future<Output = Result<C, ClientError>> + Send>>),
    /// No further attempt is made.
    Closed,
}

impl<C> ConnectionState<C> {
    /// Schedules the next attempt, at least `min_delay` from now, and returns the event that announces it. `cause` is why
    /// the connection was lost or the previous attempt failed.
    ///
    /// # Errors
    /// Returns `cause` and closes the connection if the retry policy permits no further attempt.
    pub(super) fn schedule_retry(
        &mut self,
        backoff: &mut Backoff,
        cause: ClientError,
        min_delay: Option<Duration>,
    ) -> Result<Event, ClientError> {
        let now = Instant::now();
        let Some(attempt) = backoff.next(now, min_delay, &mut rand::rng()) else {
            *self = Self::Closed;
            return Err(cause);
        };
        *self = Self::Waiting(Box::pin(sleep_until(now + attempt.delay)));
        Ok(Event::Reconnecting {
            attempt: attempt.number,
            delay: attempt.delay,
            cause,
        })
    }
}

impl<C> fmt::Debug for ConnectionState<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open(_) => "Open",
            Self::Waiting(_) => "Waiting",
            Self::Connecting(_) => "Connecting",
            Self::Closed => "Closed",
        })
    }
}
