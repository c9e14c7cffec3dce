//! The items of the streams [`Session`](super::Session), [`Subscription`](super::Subscription) and
//! [`History`](super::History).

use std::fmt;
use std::time::Duration;

use super::error::ClientError;
use crate::proto::ServerMessage;

/// An event of a room, or a change of the connection to it.
#[derive(Debug)]
pub enum Event {
    /// An event of the room (`sequence` > 0), yielded once and in order, or a private notice of the server
    /// (`sequence` = 0).
    Message(Box<ServerMessage>),
    /// The connection is lost; the next attempt to connect starts after `delay`. Yielded before each attempt.
    Reconnecting {
        /// The number of the attempt since the connection last worked, from 1.
        attempt: u32,
        /// The delay before the attempt.
        delay: Duration,
        /// Why the connection was lost or the previous attempt failed.
        cause: ClientError,
    },
    /// The connection is re-established.
    Resumed {
        /// Whether the stream continues without a gap. If it does not, a [`Gap`](Self::Gap) follows.
        recovered: bool,
    },
    /// Events are missing between the previous message and the next one.
    Gap(Gap),
}

/// Events of a room that the stream cannot yield. The [`Display`](fmt::Display) form is a clause for users.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gap {
    /// The server no longer retains these events.
    Expired {
        /// The sequence number of the first missing event.
        first: u64,
        /// The sequence number of the last missing event.
        last: u64,
    },
    /// The server lost the end of its log: these events, which the client has seen, are no longer part of it, and their
    /// sequence numbers will be reused for other events.
    Truncated {
        /// The sequence number of the first lost event.
        first: u64,
        /// The sequence number of the last event that the client has seen.
        last: u64,
    },
    /// The log was replaced by one of another epoch. The events after the last seen one are lost.
    NewEpoch {
        /// The sequence number, in the old epoch, of the last event that the client has seen.
        seen: u64,
        /// The sequence number, in the new epoch, after which the stream continues.
        after: u64,
    },
    /// Events may be missing: the server implements only the first version of the protocol, which does not number events.
    Unknown,
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Expired { first, last } if first == last => {
                write!(f, "event {first} is missing: the server no longer retains it")
            }
            Self::Expired { first, last } => write!(
                f,
                "events {first} to {last} are missing: the server no longer retains them"
            ),
            Self::Truncated { first, last } => {
                write!(
                    f,
                    "the server lost the end of the room's log: events {first} to {last} no longer exist"
                )
            }
            Self::NewEpoch { seen, after } => write!(
                f,
                "the events after {seen} are missing: the room's log was lost and replaced; its events follow from {}",
                after.saturating_add(1)
            ),
            Self::Unknown => write!(f, "events may be missing: the server does not number them"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_displayed_as_sentences() {
        for (gap, text) in [
            (
                Gap::Expired { first: 6, last: 6 },
                "event 6 is missing: the server no longer retains it",
            ),
            (
                Gap::Expired { first: 6, last: 9 },
                "events 6 to 9 are missing: the server no longer retains them",
            ),
            (
                Gap::NewEpoch { seen: 9, after: 0 },
                "the events after 9 are missing: the room's log was lost and replaced; its events follow from 1",
            ),
        ] {
            assert_eq!(gap.to_string(), text);
        }
    }
}
