//! What happened in a room.

use std::collections::VecDeque;

use super::connection::Connection;
use super::error::Error;
use super::event::Event;
use super::hole::Hole;
use crate::proto::get_history_request::Page;
use crate::proto::{GetHistoryRequest, GetHistoryResponse};

/// How many events are asked for at once: what a server gives when nobody says how many.
const PAGE: u64 = 100;

/// Which part of a room's log to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Excerpt {
    /// At most this many events: the oldest of them when [`after`](Self::after) is set, else the newest.
    pub limit: u64,
    /// Only what follows this sequence.
    pub after: Option<u64>,
    /// Only what precedes this sequence.
    pub before: Option<u64>,
}

/// A part of a room's log, read page by page, oldest first. Memory is bounded by a page.
#[derive(Debug)]
pub struct History {
    connection: Connection,
    room: String,
    epoch: u64,
    /// Up to here all is read.
    read: u64,
    /// The last to read.
    last: u64,
    untold: VecDeque<Event>,
}

/// The sequence after which everything is kept.
pub(super) const fn kept_after(page: &GetHistoryResponse) -> u64 {
    match page.first_sequence {
        // Nothing is kept.
        0 => page.last_sequence,
        first => first - 1,
    }
}

/// Which events to read: those after the first number up to the second.
fn range(excerpt: Excerpt, kept_after: u64, newest: u64) -> (u64, u64) {
    let after = excerpt.after.unwrap_or(0).max(kept_after);
    let last = excerpt
        .before
        .map_or(newest, |before| newest.min(before.saturating_sub(1)))
        .max(after);
    if excerpt.after.is_some() {
        (after, last.min(after.saturating_add(excerpt.limit)))
    } else {
        (after.max(last.saturating_sub(excerpt.limit)), last)
    }
}

impl History {
    /// Looks up what the server keeps of `room` (empty = the default room).
    ///
    /// # Errors
    /// [`Error::Refused`] when there is no such room, and what else can happen to a call.
    ///
    /// # Cancellation
    /// Loses nothing.
    pub async fn open(
        connection: &Connection,
        room: impl Into<String>,
        excerpt: Excerpt,
    ) -> Result<Self, Error> {
        let room = room.into();
        let request = GetHistoryRequest {
            room: room.clone(),
            page: None,
            limit: 1,
        };
        let newest = connection.get_history(request).await?;
        let kept_after = kept_after(&newest);
        let (read, last) = range(excerpt, kept_after, newest.last_sequence);
        let mut history = Self {
            connection: connection.clone(),
            room,
            epoch: newest.epoch,
            read,
            last,
            untold: VecDeque::new(),
        };
        if let Some(after) = excerpt.after
            && excerpt.limit > 0
        {
            let first_missing = after.saturating_add(1);
            history.missing(first_missing, kept_after);
        }
        Ok(history)
    }

    /// The next event, or a hole where the server let go of events that were asked for. `None` after the last.
    ///
    /// # Errors
    /// [`Error::NotKept`] when the log is another one than at the beginning, and what else can happen to a call.
    ///
    /// # Cancellation
    /// Safe: nothing is lost.
    pub async fn next(&mut self) -> Result<Option<Event>, Error> {
        while self.untold.is_empty() && self.read < self.last {
            let limit = (self.last - self.read).min(PAGE);
            let request = GetHistoryRequest {
                room: self.room.clone(),
                page: Some(Page::AfterSequence(self.read)),
                limit: u32::try_from(limit).unwrap_or(u32::MAX),
            };
            let page = self.connection.get_history(request).await?;
            self.take(page)?;
        }
        Ok(self.untold.pop_front())
    }

    fn take(&mut self, page: GetHistoryResponse) -> Result<(), Error> {
        if page.epoch != self.epoch {
            return Err(Error::NotKept {
                reason: "the room's log was lost while it was read, and a new one begun".to_owned(),
            });
        }
        let before = self.read;
        for message in page.messages {
            let sequence = message.sequence;
            if sequence > self.last {
                break;
            }
            if sequence > self.read {
                self.missing(self.read.saturating_add(1), sequence - 1);
                self.read = sequence;
                self.untold.push_back(Event::Message(Box::new(message)));
            }
        }
        if self.read == before {
            // Nothing of what was asked for is kept.
            self.missing(before.saturating_add(1), self.last);
            self.read = self.last;
        }
        Ok(())
    }

    fn missing(&mut self, first: u64, last: u64) {
        if first <= last {
            self.untold.push_back(Event::Hole(Hole::Events { first, last }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(limit: u64, after: Option<u64>, before: Option<u64>) -> Vec<u64> {
        let excerpt = Excerpt { limit, after, before };
        let (after, last) = range(excerpt, 10, 20);
        (after..last).map(|sequence| sequence + 1).collect()
    }

    #[test]
    fn the_newest_are_read_unless_a_beginning_is_named() {
        assert_eq!(events(3, None, None), [18, 19, 20]);
        assert_eq!(events(100, None, None), (11..=20).collect::<Vec<u64>>());
        assert_eq!(events(3, None, Some(15)), [12, 13, 14]);
        assert_eq!(events(3, Some(12), None), [13, 14, 15]);
        assert_eq!(events(3, Some(2), None), [11, 12, 13]);
        assert_eq!(events(9, Some(12), Some(15)), [13, 14]);
    }

    #[test]
    fn nothing_is_read_where_nothing_is() {
        for (after, before) in [
            (Some(20), None),
            (Some(99), None),
            (None, Some(11)),
            (None, Some(0)),
            (Some(15), Some(12)),
            (Some(u64::MAX), None),
        ] {
            assert!(events(3, after, before).is_empty(), "{after:?} {before:?}");
        }
        assert!(events(0, None, None).is_empty());
        let all = Excerpt {
            limit: 5,
            after: None,
            before: None,
        };
        assert_eq!(range(all, 0, 0), (0, 0));
        // Nothing of what happened is kept.
        let page = GetHistoryResponse {
            last_sequence: 9,
            ..GetHistoryResponse::default()
        };
        assert_eq!(range(all, kept_after(&page), 9), (9, 9));
    }
}
