//! Reading past events of a room.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio_stream::Stream;

use super::connection::Connection;
use super::error::ClientError;
use super::event::{Event, Gap};
use crate::proto::get_history_request::Page;
use crate::proto::{GetHistoryRequest, GetHistoryResponse};

/// Events per page: the server's default.
const PAGE_LEN: u64 = 100;

/// Selects the events of a room's log to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HistoryQuery {
    /// The maximum number of events. If more match, the oldest are read if [`after`](Self::after) is set, otherwise the
    /// newest.
    pub limit: u64,
    /// Read only events with a greater sequence number than this.
    pub after: Option<u64>,
    /// Read only events with a smaller sequence number than this.
    pub before: Option<u64>,
}

type PageRequest = Pin<Box<dyn Future<Output = Result<GetHistoryResponse, ClientError>> + Send>>;

/// A stream of past events of a room, oldest first. It yields [`Event::Message`], and [`Event::Gap`] for requested
/// events that the server no longer retains.
///
/// The events are read page by page, so that memory use is bounded by the size of a page. The stream ends after the last
/// event that was in the log when it was opened, or after an error: [`ClientError::OutOfRange`] if the log was replaced by
/// one of another epoch in the meantime, or any failure of a unary call. It does not retry.
///
/// # Cancel safety
/// Dropping a future that waits for the next item (`StreamExt::next`) loses no event.
pub struct History {
    connection: Connection,
    room: String,
    epoch: u64,
    /// Events up to this sequence number have been read.
    position: u64,
    /// The sequence number of the last event to read.
    last: u64,
    request: Option<PageRequest>,
    events: VecDeque<Event>,
}

/// The sequence number after which the server retains all events.
pub(super) const fn retained_after(page: &GetHistoryResponse) -> u64 {
    match page.first_sequence {
        // No events are retained.
        0 => page.last_sequence,
        first => first - 1,
    }
}

/// The range of sequence numbers to read: after the first number, up to and including the second.
fn range(query: HistoryQuery, retained_after: u64, newest: u64) -> (u64, u64) {
    let after = query.after.unwrap_or(0).max(retained_after);
    let last = query
        .before
        .map_or(newest, |before| newest.min(before.saturating_sub(1)))
        .max(after);
    if query.after.is_some() {
        (after, last.min(after.saturating_add(query.limit)))
    } else {
        (after.max(last.saturating_sub(query.limit)), last)
    }
}

impl History {
    /// Opens the history of `room`, after asking the server which of its events are retained. An empty string stands for
    /// the default room.
    ///
    /// # Errors
    /// [`ClientError::Rejected`] with [`tonic::Code::NotFound`] if the room does not exist, or any failure of a unary
    /// call.
    ///
    /// # Cancel safety
    /// Safe: the call has no effect on the server.
    pub async fn open(
        connection: &Connection,
        room: impl Into<String>,
        query: HistoryQuery,
    ) -> Result<Self, ClientError> {
        let room = room.into();
        let request = GetHistoryRequest {
            room: room.clone(),
            page: None,
            limit: 1,
        };
        let newest = connection.get_history(request).await?;
        let retained_after = retained_after(&newest);
        let (position, last) = range(query, retained_after, newest.last_sequence);
        let mut history = Self {
            connection: connection.clone(),
            room,
            epoch: newest.epoch,
            position,
            last,
            request: None,
            events: VecDeque::new(),
        };
        if let Some(after) = query.after
            && query.limit > 0
        {
            history.push_gap(after.saturating_add(1), retained_after);
        }
        Ok(history)
    }

    fn request_page(&self) -> PageRequest {
        let limit = (self.last - self.position).min(PAGE_LEN);
        let request = GetHistoryRequest {
            room: self.room.clone(),
            page: Some(Page::AfterSequence(self.position)),
            limit: u32::try_from(limit).unwrap_or(u32::MAX),
        };
        let connection = self.connection.clone();
        Box::pin(async move { connection.get_history(request).await })
    }

    fn on_page(&mut self, page: GetHistoryResponse) -> Result<(), ClientError> {
        if page.epoch != self.epoch {
            return Err(ClientError::OutOfRange {
                message: "the room's log was lost and replaced while it was read".to_owned(),
            });
        }
        let before = self.position;
        for message in page.messages {
            let sequence = message.sequence;
            if sequence > self.last {
                break;
            }
            if sequence > self.position {
                self.push_gap(self.position.saturating_add(1), sequence - 1);
                self.position = sequence;
                self.events.push_back(Event::Message(Box::new(message)));
            }
        }
        if self.position == before {
            // The remaining events have expired.
            self.push_gap(before.saturating_add(1), self.last);
            self.position = self.last;
        }
        Ok(())
    }

    /// Reports the events from `first` to `last` as missing, if there are any.
    fn push_gap(&mut self, first: u64, last: u64) {
        if first <= last {
            self.events.push_back(Event::Gap(Gap::Expired { first, last }));
        }
    }
}

impl Stream for History {
    type Item = Result<Event, ClientError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        while self.events.is_empty() && self.position < self.last {
            let mut request = self.request.take().unwrap_or_else(|| self.request_page());
            let Poll::Ready(page) = request.as_mut().poll(cx) else {
                self.request = Some(request);
                return Poll::Pending;
            };
            if let Err(error) = page.and_then(|page| self.on_page(page)) {
                self.position = self.last;
                return Poll::Ready(Some(Err(error)));
            }
        }
        Poll::Ready(self.events.pop_front().map(Ok))
    }
}

impl fmt::Debug for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("History")
            .field("room", &self.room)
            .field("position", &self.position)
            .field("last", &self.last)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(limit: u64, after: Option<u64>, before: Option<u64>) -> Vec<u64> {
        let query = HistoryQuery { limit, after, before };
        let (after, last) = range(query, 10, 20);
        (after..last).map(|sequence| sequence + 1).collect()
    }

    #[test]
    fn the_newest_events_are_read_unless_a_start_is_given() {
        assert_eq!(events(3, None, None), [18, 19, 20]);
        assert_eq!(events(100, None, None), (11..=20).collect::<Vec<u64>>());
        assert_eq!(events(3, None, Some(15)), [12, 13, 14]);
        assert_eq!(events(3, Some(12), None), [13, 14, 15]);
        assert_eq!(events(3, Some(2), None), [11, 12, 13]);
        assert_eq!(events(9, Some(12), Some(15)), [13, 14]);
    }

    #[test]
    fn a_range_without_events_is_empty() {
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
        let all = HistoryQuery {
            limit: 5,
            after: None,
            before: None,
        };
        assert_eq!(range(all, 0, 0), (0, 0));
        // All events have expired.
        let page = GetHistoryResponse {
            last_sequence: 9,
            ..GetHistoryResponse::default()
        };
        assert_eq!(range(all, retained_after(&page), 9), (9, 9));
    }
}
