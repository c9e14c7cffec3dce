//! Pages: consecutive events of a log as one slice of bytes, independent of the records in which they are stored.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use super::{LogId, Record, Store, StoreError, frames};
use crate::domain::Sequence;

/// Consecutive events of a log, framed for the wire.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// The events, each with its gRPC length prefix.
    pub bytes: Bytes,
    /// The sequence of the first event.
    pub first: Sequence,
    /// The number of events.
    pub events: u32,
}

impl Page {
    /// Returns the sequence of the last event, or the one before `first` if the page is empty.
    #[must_use]
    pub fn last(&self) -> Sequence {
        self.first.last_of(self.events)
    }

    /// The first events, of at most `max_bytes` but at least one. They are copied unless they are all of them, so that whoever
    /// does not read a short page does not make the server keep a long one.
    fn first_events(self, max_bytes: usize) -> Self {
        if self.bytes.len() <= max_bytes {
            return self;
        }
        let (mut len, mut events) = (0, 0);
        for frame in frames(self.bytes.clone()) {
            if events > 0 && len + frame.len() > max_bytes {
                break;
            }
            len += frame.len();
            events += 1;
        }
        Self {
            bytes: Bytes::copy_from_slice(&self.bytes[..len]),
            first: self.first,
            events,
        }
    }
}

/// Reads the events after `after` up to and including `upto`, oldest first, until they would exceed `max_bytes`, but at least one.
/// Also stops before a record that does not fit in whole, unless it is the first. The page is empty if the log does not hold the
/// event after `after`.
///
/// Blocks if [`Store::is_blocking`] returns true.
///
/// # Errors
///
/// Fails if the store cannot be read or a record is damaged.
pub fn read_page(
    store: &dyn Store,
    log: LogId,
    after: Sequence,
    upto: Sequence,
    max_bytes: usize,
) -> Result<Page, StoreError> {
    let records = store.records(log, after, max_bytes)?;
    Ok(extract(&records, after, upto)?.first_events(max_bytes))
}

/// Like [`read_page`], but keeps the newest events of the range, up to `max_bytes` and at least one, instead of the oldest.
/// Reads the whole range.
///
/// # Errors
///
/// Fails if the store cannot be read or a record is damaged.
pub fn read_page_back(
    store: &dyn Store,
    log: LogId,
    after: Sequence,
    upto: Sequence,
    max_bytes: usize,
) -> Result<Page, StoreError> {
    let mut page = read_page(store, log, after, upto, max_bytes)?;
    let mut last = page.last();
    let (mut newest, mut len) = (VecDeque::new(), 0);
    // Usually the first page already covers the range and is returned unchanged.
    while page.events > 0 && !(newest.is_empty() && last == upto) {
        for frame in frames(page.bytes) {
            len += frame.len();
            newest.push_back(frame);
            while len > max_bytes
                && newest.len() > 1
                && let Some(oldest) = newest.pop_front()
            {
                len -= oldest.len();
            }
        }
        page = read_page(store, log, last, upto, max_bytes)?;
        last = page.last();
    }
    if newest.is_empty() {
        return Ok(page);
    }
    let mut bytes = BytesMut::with_capacity(len);
    let first = Sequence::new((last.get() + 1).saturating_sub(newest.len() as u64));
    let events = u32::try_from(newest.len()).unwrap_or(u32::MAX);
    newest.iter().for_each(|frame| bytes.extend_from_slice(frame));
    Ok(Page {
        bytes: bytes.freeze(),
        first,
        events,
    })
}

/// Returns the events of `records` after `after` up to and including `upto` as one page. Copies them only if they span
/// several records.
fn extract(records: &[Record], after: Sequence, upto: Sequence) -> Result<Page, StoreError> {
    let mut page = Page {
        bytes: Bytes::new(),
        first: after.next(),
        events: 0,
    };
    let mut joined = BytesMut::new();
    for record in records {
        let next = page.last().next();
        if record.first > next || upto < next {
            break;
        }
        if record.last() < next {
            continue;
        }
        let (slice, events) = slice(record, next, upto)?;
        page.events += events;
        if page.bytes.is_empty() && joined.is_empty() {
            page.bytes = slice;
        } else {
            if joined.is_empty() {
                joined.extend_from_slice(&page.bytes);
            }
            joined.extend_from_slice(&slice);
        }
    }
    if !joined.is_empty() {
        page.bytes = joined.freeze();
    }
    Ok(page)
}

/// Returns the frames of the events from `from` to `upto`, both included, and their number.
fn slice(record: &Record, from: Sequence, upto: Sequence) -> Result<(Bytes, u32), StoreError> {
    if from == record.first && record.last() <= upto {
        return Ok((record.frames.clone(), record.events));
    }
    let mut skip = from.get() - record.first.get();
    let wanted = record.last().min(upto).get() - from.get() + 1;
    let (mut start, mut end, mut events) = (0, 0, 0);
    for frame in frames(record.frames.clone()) {
        if skip > 0 {
            skip -= 1;
            start += frame.len();
            end = start;
        } else if u64::from(events) < wanted {
            events += 1;
            end += frame.len();
        } else {
            break;
        }
    }
    if u64::from(events) < wanted {
        return Err(StoreError::Record {
            sequence: record.first,
            why: "it has fewer events than its header says",
        });
    }
    let frames = record.frames.slice(start..end);
    // Copied, so that a client that does not read a short page does not keep a whole record in memory.
    let is_most = frames.len() > record.frames.len() / 2;
    let frames = if is_most {
        frames
    } else {
        Bytes::copy_from_slice(&frames)
    };
    Ok((frames, events))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::record::tests::record;
    use super::*;

    proptest! {
        #[test]
        fn a_page_holds_exactly_the_requested_events(sizes in prop::collection::vec(1..5_u8, 1..6), after in 0..20_u64, upto in 0..24_u64) {
            let mut records = Vec::new();
            let mut first = 1;
            for size in sizes {
                records.push(record(first, size));
                first += u64::from(size);
            }
            let page = extract(&records, Sequence::new(after), Sequence::new(upto)).unwrap();
            let expected: Vec<u8> = (after + 1..=upto.min(first - 1)).map(|n| n.to_le_bytes()[0]).collect();
            let got: Vec<u8> = frames(page.bytes.clone()).map(|frame| frame[5]).collect();
            prop_assert_eq!(page.events as usize, expected.len());
            prop_assert_eq!(&got, &expected);
            for max_bytes in 0..page.bytes.len() {
                let start = page.clone().first_events(max_bytes);
                let events = (max_bytes / frames(page.bytes.clone()).next().unwrap().len()).max(1);
                let got: Vec<u8> = frames(start.bytes.clone()).map(|frame| frame[5]).collect();
                prop_assert_eq!((start.first, start.events as usize), (page.first, events));
                prop_assert_eq!(&got, &expected[..events]);
            }
        }
    }
}
