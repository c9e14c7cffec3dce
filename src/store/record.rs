//! A record: the events of one batch, with what the wire does not show.
//!
//! As bytes: a checksum (CRC-32 of what follows), the number of events, the length of the extra part, the extra part
//! (the indexes of JOINs that are resumable, four bytes each), the framed events. All numbers are big-endian.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::{Page, StoreError};
use crate::domain::Sequence;

const HEADER: usize = 12;

/// gRPC's prefix of each message.
const PREFIX: usize = 5;

/// The events of one batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The place of the first event.
    pub first: Sequence,
    /// How many there are.
    pub events: u32,
    /// Which of them (counted from 0) are JOINs of clients that can resume.
    pub resumable: Vec<u32>,
    /// The events, framed for the wire.
    pub frames: Bytes,
}

impl Record {
    /// The place of the last event.
    #[must_use]
    pub fn last(&self) -> Sequence {
        Sequence::new((self.first.get() + u64::from(self.events)).saturating_sub(1))
    }

    /// Whether its first event was broadcast before `time` (since 1970), as the wire shows it.
    pub(super) fn is_older_than(&self, time: Duration) -> bool {
        use prost::Message;

        let first = frames(self.frames.clone()).next();
        let broadcast = first
            .and_then(|frame| crate::proto::ServerMessage::decode(frame.slice(PREFIX..)).ok())
            .and_then(|message| message.broadcast_time)
            .and_then(|at| {
                Some(Duration::new(
                    at.seconds.try_into().ok()?,
                    at.nanos.try_into().ok()?,
                ))
            });
        broadcast.is_some_and(|at| at < time)
    }

    pub(super) fn encode(&self) -> Bytes {
        let extra = 4 * self.resumable.len();
        let mut bytes = BytesMut::with_capacity(HEADER + extra + self.frames.len());
        bytes.put_u32(0);
        bytes.put_u32(self.events);
        bytes.put_u32(u32::try_from(extra).unwrap_or(u32::MAX));
        for index in &self.resumable {
            bytes.put_u32(*index);
        }
        bytes.put_slice(&self.frames);
        let checksum = crc32fast::hash(&bytes[4..]);
        bytes[..4].copy_from_slice(&checksum.to_be_bytes());
        bytes.freeze()
    }

    pub(super) fn decode(first: Sequence, mut bytes: Bytes) -> Result<Self, StoreError> {
        let damaged = |why| StoreError::Record { sequence: first, why };
        if bytes.len() < HEADER {
            return Err(damaged("it is shorter than its header"));
        }
        if bytes.get_u32() != crc32fast::hash(&bytes) {
            return Err(damaged("its checksum is wrong"));
        }
        let events = bytes.get_u32();
        let extra = bytes.get_u32() as usize;
        if extra > bytes.len() || !extra.is_multiple_of(4) {
            return Err(damaged("its extra part does not fit"));
        }
        let resumable = bytes
            .split_to(extra)
            .chunks_exact(4)
            .map(|mut index| index.get_u32())
            .collect();
        Ok(Self {
            first,
            events,
            resumable,
            frames: bytes,
        })
    }
}

/// The frames in `bytes`, each with its prefix, until something is no frame.
pub fn frames(mut bytes: Bytes) -> impl Iterator<Item = Bytes> {
    std::iter::from_fn(move || {
        let length = bytes.get(1..PREFIX)?;
        let length = u32::from_be_bytes(length.try_into().ok()?) as usize;
        (bytes.len() >= PREFIX + length).then(|| bytes.split_to(PREFIX + length))
    })
}

/// The part of `records` that is after `after` and not after `upto`, in one piece.
pub(super) fn page(records: &[Record], after: Sequence, upto: Sequence) -> Result<Page, StoreError> {
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
        let (mut skip, mut take) = (
            next.get() - record.first.get(),
            record.last().min(upto).get() - next.get() + 1,
        );
        let piece = if skip == 0 && record.last() <= upto {
            page.events += record.events;
            record.frames.clone()
        } else {
            // The frames before and behind are cut off.
            let (mut start, mut end) = (0, 0);
            for frame in frames(record.frames.clone()) {
                if skip > 0 {
                    skip -= 1;
                    start += frame.len();
                    end = start;
                } else if take > 0 {
                    take -= 1;
                    page.events += 1;
                    end += frame.len();
                } else {
                    break;
                }
            }
            if take > 0 {
                return Err(StoreError::Record {
                    sequence: record.first,
                    why: "it has fewer events than it says",
                });
            }
            record.frames.slice(start..end)
        };
        if page.bytes.is_empty() && joined.is_empty() {
            page.bytes = piece;
        } else {
            if joined.is_empty() {
                joined.extend_from_slice(&page.bytes);
            }
            joined.extend_from_slice(&piece);
        }
    }
    if !joined.is_empty() {
        page.bytes = joined.freeze();
    }
    Ok(page)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A frame whose message is one byte.
    fn frame(byte: u8) -> [u8; 6] {
        [0, 0, 0, 0, 1, byte]
    }

    fn record(first: u64, events: u8) -> Record {
        let frames: Vec<u8> = (0..events)
            .flat_map(|i| frame(first.to_le_bytes()[0].wrapping_add(i)))
            .collect();
        Record {
            first: Sequence::new(first),
            events: events.into(),
            resumable: vec![0, 7],
            frames: frames.into(),
        }
    }

    #[test]
    fn a_record_comes_back_as_it_was() {
        let record = record(5, 3);
        assert_eq!(Record::decode(record.first, record.encode()), Ok(record));
    }

    proptest! {
        #[test]
        fn a_flipped_bit_is_found(at in 0..42_usize, bit in 0..8_u8) {
            let record = record(5, 3);
            let mut bytes = record.encode().to_vec();
            prop_assume!(at < bytes.len());
            bytes[at] ^= 1 << bit;
            prop_assert!(Record::decode(record.first, bytes.into()).is_err());
        }

        #[test]
        fn a_page_holds_what_was_asked_for(sizes in prop::collection::vec(1..5_u8, 1..6), after in 0..20_u64, upto in 0..24_u64) {
            let mut records = Vec::new();
            let mut first = 1;
            for size in sizes {
                records.push(record(first, size));
                first += u64::from(size);
            }
            let page = page(&records, Sequence::new(after), Sequence::new(upto)).unwrap();
            let expected: Vec<u8> = (after + 1..=upto.min(first - 1)).map(|n| n.to_le_bytes()[0]).collect();
            let got: Vec<u8> = frames(page.bytes.clone()).map(|frame| frame[5]).collect();
            prop_assert_eq!(page.events as usize, expected.len());
            prop_assert_eq!(got, expected);
        }
    }
}
