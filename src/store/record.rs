//! Records: the events of one batch, and what recovery needs beyond the wire format.
//!
//! Encoding, all numbers big-endian:
//!
//! | bytes | content |
//! |---|---|
//! | 4 | CRC-32 of everything that follows |
//! | 4 | number of events |
//! | 4 | length of the next field |
//! | 4 each | indexes of the JOINs whose clients can resume |
//! | rest | the events, framed for the wire |

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::StoreError;
use crate::domain::Sequence;

const HEADER: usize = 12;

/// The length of the prefix that gRPC puts before each message: a compression flag and a length.
const PREFIX: usize = 5;

/// The events of one batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The sequence of the first event.
    pub first: Sequence,
    /// The number of events.
    pub events: u32,
    /// The indexes within the record, from 0, of the JOINs whose clients can resume.
    pub resumable: Vec<u32>,
    /// The events, framed for the wire.
    pub frames: Bytes,
}

impl Record {
    /// Returns the sequence of the last event.
    #[must_use]
    pub fn last(&self) -> Sequence {
        Sequence::new((self.first.get() + u64::from(self.events)).saturating_sub(1))
    }

    /// Returns whether the first event was broadcast before `time`, a Unix time. False if its broadcast time is unknown.
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
        let indexes = 4 * self.resumable.len();
        let mut bytes = BytesMut::with_capacity(HEADER + indexes + self.frames.len());
        bytes.put_u32(0);
        bytes.put_u32(self.events);
        bytes.put_u32(u32::try_from(indexes).unwrap_or(u32::MAX));
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
            return Err(damaged("it is shorter than a header"));
        }
        if bytes.get_u32() != crc32fast::hash(&bytes) {
            return Err(damaged("its checksum is wrong"));
        }
        let events = bytes.get_u32();
        let indexes = bytes.get_u32() as usize;
        if indexes > bytes.len() || !indexes.is_multiple_of(4) {
            return Err(damaged("a length in its header is wrong"));
        }
        let resumable = bytes
            .split_to(indexes)
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

/// Splits `bytes` into gRPC frames: messages, each with its length prefix. Stops at the first incomplete frame.
pub fn frames(mut bytes: Bytes) -> impl Iterator<Item = Bytes> {
    std::iter::from_fn(move || {
        let length = bytes.get(1..PREFIX)?;
        let length = u32::from_be_bytes(length.try_into().ok()?) as usize;
        (bytes.len() >= PREFIX + length).then(|| bytes.split_to(PREFIX + length))
    })
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Returns a frame with a one-byte message.
    fn frame(byte: u8) -> [u8; 6] {
        [0, 0, 0, 0, 1, byte]
    }

    pub(in crate::store) fn record(first: u64, events: u8) -> Record {
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
    fn decoding_reverses_encoding() {
        let record = record(5, 3);
        assert_eq!(Record::decode(record.first, record.encode()), Ok(record));
    }

    proptest! {
        #[test]
        fn a_flipped_bit_is_detected(at in 0..42_usize, bit in 0..8_u8) {
            let record = record(5, 3);
            let mut bytes = record.encode().to_vec();
            prop_assume!(at < bytes.len());
            bytes[at] ^= 1 << bit;
            prop_assert!(Record::decode(record.first, bytes.into()).is_err());
        }
    }
}
