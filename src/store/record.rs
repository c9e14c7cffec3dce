//! Records: the events of one batch, and what recovery needs beyond the wire format.
//!
//! Encoding, all numbers big-endian: the number of JOINs whose clients can resume (4 bytes), their indexes (4 each), and the
//! events, framed for the wire. The sequence, the number of events and the time are in the header of the entry.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::StoreError;
use crate::domain::{Sequence, WallTime};

/// The length of the prefix that gRPC puts before each message: a compression flag and a length.
const PREFIX: usize = 5;

/// Events of one batch, up to about 64 KiB.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The sequence of the first event.
    pub first: Sequence,
    /// The number of events.
    pub events: u32,
    /// When the newest event was broadcast.
    pub at: WallTime,
    /// The indexes within the record, from 0, of the JOINs whose clients can resume.
    pub resumable: Vec<u32>,
    /// The events, framed for the wire.
    pub frames: Bytes,
}

impl Record {
    /// Returns the sequence of the last event.
    #[must_use]
    pub fn last(&self) -> Sequence {
        self.first.last_of(self.events)
    }

    /// The encoding of everything before the frames.
    pub(super) fn encode_prefix(&self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(4 + 4 * self.resumable.len());
        bytes.put_u32(u32::try_from(self.resumable.len()).unwrap_or(u32::MAX));
        for index in &self.resumable {
            bytes.put_u32(*index);
        }
        bytes.freeze()
    }

    /// Decodes the body of an entry.
    pub(super) fn decode(
        first: Sequence,
        events: u32,
        at: WallTime,
        mut bytes: Bytes,
    ) -> Result<Self, StoreError> {
        let damaged = StoreError::Record {
            sequence: first,
            why: "a length in it is wrong",
        };
        if bytes.len() < 4 {
            return Err(damaged);
        }
        let indexes = 4 * bytes.get_u32() as usize;
        if indexes > bytes.len() {
            return Err(damaged);
        }
        let resumable = bytes
            .split_to(indexes)
            .chunks_exact(4)
            .map(|mut index| index.get_u32())
            .collect();
        Ok(Self {
            first,
            events,
            at,
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
            at: WallTime::from_millis(77),
            resumable: vec![0, 7],
            frames: frames.into(),
        }
    }

    #[test]
    fn decoding_reverses_encoding() {
        let record = record(5, 3);
        let bytes = [record.encode_prefix(), record.frames.clone()].concat();
        let decoded = Record::decode(record.first, record.events, record.at, bytes.into());
        assert_eq!(decoded, Ok(record));
        assert!(Record::decode(Sequence::ZERO, 1, WallTime::default(), vec![0, 0, 0, 9, 1].into()).is_err());
    }
}
