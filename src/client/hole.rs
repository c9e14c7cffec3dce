//! What a client does not get to see.

use std::fmt;

/// A part of a room's log that is missing from what a client sees. Displayed as a line for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hole {
    /// These events happened, and the server does not keep them any more.
    Events {
        /// The sequence of the first that is missing.
        first: u64,
        /// The sequence of the last that is missing.
        last: u64,
    },
    /// The server lost the newest part of its log: these events were seen and are not in the log any more; other events
    /// take their sequences.
    Rewound {
        /// The sequence of the first that the log lost.
        first: u64,
        /// The sequence of the last that was seen.
        last: u64,
    },
    /// The log that was read is gone, and with it whatever followed the last event seen; another one took its place.
    NewLog {
        /// The sequence, in the old log, of the last event that was seen.
        seen: u64,
        /// Events continue after this sequence of the new log.
        after: u64,
    },
    /// Something may be missing, and this server cannot say what: it knows no sequences.
    Unknown,
}

impl fmt::Display for Hole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Events { first, last } if first == last => {
                write!(
                    f,
                    "event {first} is missing: the server does not keep it any more"
                )
            }
            Self::Events { first, last } => write!(
                f,
                "events {first} to {last} are missing: the server does not keep them any more"
            ),
            Self::Rewound { first, last } => {
                write!(
                    f,
                    "the server lost the end of the room's log: events {first} to {last} are void"
                )
            }
            Self::NewLog { seen, after } => write!(
                f,
                "the events after {seen} are missing: the room's log was lost; events of a new log follow from {}",
                after.saturating_add(1)
            ),
            Self::Unknown => write!(
                f,
                "what happened meanwhile is missing: the server cannot tell what it was"
            ),
        }
    }
}
