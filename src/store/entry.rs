//! Entries: what the journal consists of.
//!
//! An entry is a header of [`ENTRY_HEADER_LEN`] bytes and a body, padded with zeros to a multiple of [`ALIGNMENT`]. All numbers
//! are big-endian:
//!
//! | bytes | content |
//! |---|---|
//! | 4 | CRC-32C of the segment's number (4 bytes) and everything that follows, without the padding |
//! | 4 | length of header and body |
//! | 1 | kind |
//! | 1 | status of the room, of [`EntryKind::Record`] |
//! | 2 | zero |
//! | 4 | offset in the segment at which the write began that this entry was part of |
//! | 4 | room's log |
//! | 4 | number of events |
//! | 8 | sequence |
//! | 8 | Unix time in milliseconds |
//! | rest | body |
//!
//! The checksum covers the number of the segment, so that stale bytes of another segment are never taken for entries.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::{LogId, RoomStatus};
use crate::domain::{Sequence, WallTime};

/// The length of an entry's header, in bytes.
pub(super) const ENTRY_HEADER_LEN: usize = 40;

/// Entries start at multiples of this, which makes the search for entries after damage fast.
const ALIGNMENT: u32 = 8;

/// The kinds of entries, with the meaning of `sequence`, `at` and the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum EntryKind {
    /// A [`Record`](super::Record): its first sequence, the time of its newest event, the record.
    Record = 1,
    /// A snapshot of a room: the newest event that it covers, [`needed_until`](super::EncodedSnapshot::needed_until); the snapshot.
    Snapshot = 2,
    /// The room of a log: its first retained sequence, when it was created; its epoch (8 bytes) and its name. Written before
    /// the first entry of a log, and again whenever the epoch changes.
    Room = 3,
    /// A log was trimmed: the first sequence that is retained.
    Trim = 4,
    /// A log was deleted: its room has none any more.
    Deletion = 5,
    /// Writes that follow are not synced: the kernel's boot id.
    Unsynced = 6,
    /// Everything before is synced: the store was closed, or opened to sync each write.
    Synced = 7,
    // 8 is reserved for the position up to which a replica has applied the command log.
}

impl EntryKind {
    const ALL: [Self; 7] = [
        Self::Record,
        Self::Snapshot,
        Self::Room,
        Self::Trim,
        Self::Deletion,
        Self::Unsynced,
        Self::Synced,
    ];
}

/// The header of an entry, without what is computed when it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: EntryKind,
    pub(super) status: RoomStatus,
    pub(super) log: LogId,
    pub(super) events: u32,
    pub(super) sequence: Sequence,
    pub(super) at: WallTime,
}

impl Header {
    /// A header without events.
    pub(super) fn new(kind: EntryKind, log: LogId, sequence: Sequence) -> Self {
        Self {
            kind,
            status: RoomStatus::default(),
            log,
            events: 0,
            sequence,
            at: WallTime::default(),
        }
    }

    /// The last sequence of [`EntryKind::Record`].
    pub(super) fn last(&self) -> Sequence {
        self.sequence.last_of(self.events)
    }
}

/// An entry that was read.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) header: Header,
    /// The offset at which the write began that the entry was part of.
    pub(super) write_start: u32,
    pub(super) body: Bytes,
}

impl Entry {
    /// The length of header and body, without the padding.
    pub(super) fn len(&self) -> u32 {
        // The length was read from a field of this size.
        u32::try_from(ENTRY_HEADER_LEN + self.body.len()).unwrap_or(u32::MAX)
    }
}

/// The length that an entry of `len` bytes takes in a segment.
pub(super) const fn padded(len: u32) -> u32 {
    len.next_multiple_of(ALIGNMENT)
}

/// Appends an entry to `buffer`, and returns its length without the padding. `write_start` is the offset in segment `segment`
/// at which the write begins.
pub(super) fn encode(
    buffer: &mut BytesMut,
    segment: u32,
    write_start: u32,
    header: Header,
    body: &[&[u8]],
) -> u32 {
    let start = buffer.len();
    let len: usize = ENTRY_HEADER_LEN + body.iter().map(|part| part.len()).sum::<usize>();
    // The size of one append is bounded far below 4 GiB.
    let len = u32::try_from(len).unwrap_or(u32::MAX);
    buffer.put_u32(0);
    buffer.put_u32(len);
    buffer.put_u8(header.kind as u8);
    buffer.put_u8(header.status.to_bits());
    buffer.put_u16(0);
    buffer.put_u32(write_start);
    buffer.put_u32(header.log.0);
    buffer.put_u32(header.events);
    buffer.put_u64(header.sequence.get());
    buffer.put_u64(header.at.as_millis());
    for part in body {
        buffer.put_slice(part);
    }
    let checksum = checksum(segment, &buffer[start + 4..]);
    buffer[start..start + 4].copy_from_slice(&checksum.to_be_bytes());
    buffer.put_bytes(0, (padded(len) - len) as usize);
    len
}

/// Decodes the entry at the start of `bytes`, which were read from segment `segment`. `None` if there is no valid entry.
pub(super) fn decode(segment: u32, bytes: &Bytes) -> Option<Entry> {
    let len = u32::from_be_bytes(bytes.get(4..8)?.try_into().ok()?) as usize;
    // No text has such a byte, so the search for entries after damage seldom computes a checksum in vain.
    let kind = bytes.get(8)?;
    let kind = EntryKind::ALL.into_iter().find(|known| *known as u8 == *kind)?;
    if len < ENTRY_HEADER_LEN || len > bytes.len() {
        return None;
    }
    let mut bytes = bytes.slice(..len);
    let expected = bytes.get_u32();
    if checksum(segment, &bytes) != expected {
        return None;
    }
    bytes.advance(5);
    let status = RoomStatus::from_bits(bytes.get_u8());
    bytes.advance(2);
    let write_start = bytes.get_u32();
    let header = Header {
        kind,
        status,
        log: LogId(bytes.get_u32()),
        events: bytes.get_u32(),
        sequence: Sequence::new(bytes.get_u64()),
        at: WallTime::from_millis(bytes.get_u64()),
    };
    Some(Entry {
        header,
        write_start,
        body: bytes,
    })
}

fn checksum(segment: u32, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&segment.to_be_bytes()), bytes)
}

/// Iterates over the entries of a segment's bytes, starting at an offset, until the first invalid one.
pub(super) struct Entries {
    segment: u32,
    bytes: Bytes,
    offset: u32,
}

impl Entries {
    /// `bytes` are those of segment `segment` from its start.
    pub(super) const fn new(segment: u32, bytes: Bytes, offset: u32) -> Self {
        Self {
            segment,
            bytes,
            offset,
        }
    }

    /// The offset of the next entry, or where the iteration has stopped.
    pub(super) const fn offset(&self) -> u32 {
        self.offset
    }

    /// Continues at the next valid entry after an invalid one. Returns `None` if there is none.
    pub(super) fn resynchronize(&mut self) -> Option<Entry> {
        while (self.offset as usize) + ENTRY_HEADER_LEN <= self.bytes.len() {
            if let Some(entry) = self.peek() {
                return Some(entry);
            }
            self.offset += ALIGNMENT;
        }
        None
    }

    fn peek(&self) -> Option<Entry> {
        let rest = self.bytes.len().checked_sub(self.offset as usize)?;
        (rest >= ENTRY_HEADER_LEN).then(|| decode(self.segment, &self.bytes.slice(self.offset as usize..)))?
    }
}

impl Iterator for Entries {
    /// An entry and its offset.
    type Item = (u32, Entry);

    fn next(&mut self) -> Option<Self::Item> {
        let entry = self.peek()?;
        let offset = self.offset;
        self.offset = offset.checked_add(padded(entry.len()))?;
        Some((offset, entry))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(sequence: u64) -> Header {
        Header {
            kind: EntryKind::Record,
            status: RoomStatus {
                is_occupied: true,
                has_messages: false,
            },
            log: LogId(7),
            events: 3,
            sequence: Sequence::new(sequence),
            at: WallTime::from_millis(99),
        }
    }

    #[test]
    fn entries_are_read_back_until_the_first_invalid_one() {
        let mut bytes = BytesMut::new();
        for sequence in 0..4 {
            encode(&mut bytes, 5, 64, header(sequence), &[b"body", b"!"]);
        }
        let second_end = bytes.len() / 2;
        bytes[second_end + 20] ^= 1;
        let mut entries = Entries::new(5, bytes.freeze(), 0);
        let read: Vec<_> = entries.by_ref().collect();
        assert_eq!(read.len(), 2);
        for (sequence, (_, entry)) in (0..).zip(read) {
            assert_eq!(entry.header, header(sequence));
            assert_eq!((&entry.body[..], entry.write_start), (b"body!".as_slice(), 64));
        }
        assert_eq!(entries.offset() as usize, second_end);
        let after_damage = entries.resynchronize().map(|entry| entry.header);
        assert_eq!(after_damage, Some(header(3)));
    }

    proptest! {
        #[test]
        fn a_flipped_bit_is_detected(at in 0..45_usize, bit in 0..8_u8) {
            let mut bytes = BytesMut::new();
            let len = encode(&mut bytes, 5, 64, header(1), &[b"body!"]) as usize;
            prop_assume!(at < len);
            bytes[at] ^= 1 << bit;
            prop_assert!(decode(5, &bytes.freeze()).is_none());
        }

        #[test]
        fn an_entry_of_another_segment_is_invalid(segment in 0..9_u32) {
            let mut bytes = BytesMut::new();
            encode(&mut bytes, 5, 64, header(1), &[b"body!"]);
            prop_assert_eq!(decode(segment, &bytes.freeze()).is_some(), segment == 5);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut entries = Entries::new(1, bytes.into(), 0);
            entries.by_ref().for_each(drop);
            prop_assert!(entries.resynchronize().is_none());
        }
    }
}
