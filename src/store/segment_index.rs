//! The index of a segment: where the records of each log are, and what else the segment says about the log.

use std::collections::BTreeMap;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::entry::{EntryKind, Header, padded};
use super::{LogId, RoomStatus};
use crate::domain::{Sequence, WallTime};

/// The length of a stored [`IndexEntry`], in bytes.
pub(super) const INDEX_ENTRY_LEN: u32 = 20;

/// The length of a stored [`LogSummary`], in bytes.
pub(super) const SUMMARY_LEN: u32 = 76;

const MILLIS_PER_DAY: u64 = 86_400_000;

/// Where a record is in its segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct IndexEntry {
    /// The record's first sequence.
    pub(super) first: Sequence,
    pub(super) offset: u32,
    /// The length of the entry, without the padding.
    pub(super) len: u32,
    /// The Unix time of the record's newest event, in seconds.
    pub(super) at: u32,
}

/// Where an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct EntryLocation {
    pub(super) segment: u32,
    pub(super) offset: u32,
    /// The length of the entry, without the padding.
    pub(super) len: u32,
}

impl EntryLocation {
    /// The bytes that the entry takes in its segment.
    pub(super) const fn size(&self) -> u64 {
        padded(self.len) as u64
    }
}

/// The records of one log in a sealed segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LogRecords {
    pub(super) log: LogId,
    /// How many index entries are before the log's first.
    pub(super) index_at: u32,
    pub(super) count: u32,
    /// The size of the records, in bytes, with their index entries.
    pub(super) bytes: u32,
    pub(super) first: Sequence,
    pub(super) last: Sequence,
    /// The oldest time of a record, as [`IndexEntry::at`].
    pub(super) oldest_at: u32,
    /// The time of the newest record.
    pub(super) newest_at: u32,
}

/// The index of one log in a segment: where its records are, and the newest of its other entries.
#[derive(Debug, Clone, Default)]
pub(super) struct LogIndex {
    pub(super) entries: Vec<IndexEntry>,
    /// The oldest time of a record, as [`IndexEntry::at`]; zero if there is none.
    oldest_at: u32,
    /// The size of the records, in bytes, with their index entries.
    pub(super) bytes: u64,
    /// The newest event in the segment.
    last: Sequence,
    metadata: LogMetadata,
}

/// What the newest entries of a log in a segment say about it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct LogMetadata {
    /// The status with the newest record.
    pub(super) status: RoomStatus,
    pub(super) trimmed_to: Option<Sequence>,
    /// The snapshot, and the newest event that it covers.
    pub(super) snapshot: Option<(EntryLocation, Sequence)>,
    pub(super) needed_until: NeededUntil,
    pub(super) room: Option<EntryLocation>,
    pub(super) is_deleted: bool,
}

/// Until when a log must not end although nobody uses it, as its newest snapshot says: in days since 1970, rounded up. The highest
/// number means for ever.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct NeededUntil(u16);

impl NeededUntil {
    /// The log may end as soon as nobody uses it.
    pub(super) const UNSET: Self = Self(0);

    fn new(time: WallTime) -> Self {
        Self(u16::try_from(time.as_millis().div_ceil(MILLIS_PER_DAY)).unwrap_or(u16::MAX))
    }

    pub(super) const fn has_passed(self, at: WallTime) -> bool {
        self.0 < u16::MAX && at.as_millis() >= self.0 as u64 * MILLIS_PER_DAY
    }
}

/// The index of a segment.
pub(super) type SegmentIndex = BTreeMap<LogId, LogIndex>;

/// What a sealed segment has of one log, without the index entries.
pub(super) struct LogSummary {
    pub(super) records: LogRecords,
    pub(super) metadata: LogMetadata,
}

impl IndexEntry {
    fn new(location: EntryLocation, header: &Header) -> Self {
        Self {
            first: header.sequence,
            offset: location.offset,
            len: location.len,
            at: seconds(header.at),
        }
    }

    /// `base` is the first sequence of the log in segment `segment`.
    pub(super) fn encode(&self, bytes: &mut BytesMut, segment: u32, base: Sequence) {
        let start = bytes.len();
        // A segment has less than 4 GiB, and so fewer events than that.
        bytes.put_u32(u32::try_from(self.first.get() - base.get()).unwrap_or(u32::MAX));
        bytes.put_u32(self.offset);
        bytes.put_u32(self.len);
        bytes.put_u32(self.at);
        let checksum = checksum(segment, base, &bytes[start..]);
        bytes.put_u32(checksum);
    }

    pub(super) fn decode(mut bytes: &[u8], segment: u32, base: Sequence) -> Option<Self> {
        let (content, stored) = bytes.split_last_chunk()?;
        if checksum(segment, base, content) != u32::from_be_bytes(*stored) {
            return None;
        }
        Some(Self {
            first: Sequence::new(base.get() + u64::from(bytes.get_u32())),
            offset: bytes.get_u32(),
            len: bytes.get_u32(),
            at: bytes.get_u32(),
        })
    }

    /// The bytes that the record takes in its segment, with its index entry.
    pub(super) const fn cost(&self) -> u64 {
        padded(self.len) as u64 + INDEX_ENTRY_LEN as u64
    }
}

impl LogIndex {
    /// Adds an entry of the log.
    pub(super) fn add(&mut self, location: EntryLocation, header: &Header) {
        if header.kind == EntryKind::Record {
            let indexed = IndexEntry::new(location, header);
            if self.entries.is_empty() || indexed.at < self.oldest_at {
                self.oldest_at = indexed.at;
            }
            self.bytes += indexed.cost();
            self.entries.push(indexed);
            self.last = header.last();
        }
        self.metadata.add(location, header);
    }

    /// The size of those records that contain events from `first` on, in bytes, with their index entries.
    pub(super) fn retained(&self, first: Sequence) -> u64 {
        if self.last < first {
            return 0;
        }
        let after = self.entries.partition_point(|indexed| indexed.first <= first);
        let retained = self.entries.get(after.saturating_sub(1)..).unwrap_or_default();
        retained.iter().map(IndexEntry::cost).sum()
    }

    /// Summarizes the records, before which there are `index_at` index entries.
    pub(super) fn records(&self, log: LogId, index_at: u32) -> LogRecords {
        LogRecords {
            log,
            index_at,
            count: u32::try_from(self.entries.len()).unwrap_or(u32::MAX),
            bytes: u32::try_from(self.bytes).unwrap_or(u32::MAX),
            first: self
                .entries
                .first()
                .map_or(Sequence::ZERO, |indexed| indexed.first),
            last: self.last,
            oldest_at: self.oldest_at,
            newest_at: self.entries.last().map_or(0, |indexed| indexed.at),
        }
    }

    /// Appends the stored form of the summary with `records`.
    pub(super) fn encode(&self, bytes: &mut BytesMut, records: &LogRecords) {
        let metadata = &self.metadata;
        bytes.put_u32(records.log.0);
        bytes.put_u16(metadata.needed_until.0);
        bytes.put_u8(metadata.status.to_bits());
        bytes.put_u8(metadata.is_deleted.into());
        bytes.put_u32(records.index_at);
        bytes.put_u32(records.count);
        bytes.put_u32(records.bytes);
        bytes.put_u64(records.first.get());
        bytes.put_u64(records.last.get());
        bytes.put_u32(records.oldest_at);
        bytes.put_u32(records.newest_at);
        bytes.put_u64(metadata.trimmed_to.unwrap_or_default().get());
        let (snapshot, covered) = metadata.snapshot.unzip();
        bytes.put_u64(covered.unwrap_or_default().get());
        for location in [snapshot, metadata.room] {
            bytes.put_u32(location.map_or(0, |location| location.offset));
            bytes.put_u32(location.map_or(0, |location| location.len));
        }
    }

    pub(super) const fn metadata(&self) -> &LogMetadata {
        &self.metadata
    }
}

impl LogRecords {
    /// The records of a single entry: one, or none if it is of another kind.
    pub(super) fn of_entry(location: EntryLocation, header: &Header) -> Self {
        let is_record = header.kind == EntryKind::Record;
        let indexed = IndexEntry::new(location, header);
        Self {
            log: header.log,
            index_at: 0,
            count: is_record.into(),
            bytes: u32::try_from(indexed.cost()).unwrap_or(u32::MAX),
            first: indexed.first,
            last: header.last(),
            oldest_at: indexed.at,
            newest_at: indexed.at,
        }
    }
}

impl LogMetadata {
    /// Adds an entry of the log.
    pub(super) fn add(&mut self, location: EntryLocation, header: &Header) {
        match header.kind {
            EntryKind::Record => self.status = header.status,
            EntryKind::Snapshot => {
                self.snapshot = Some((location, header.sequence));
                self.needed_until = NeededUntil::new(header.at);
            }
            EntryKind::Room => self.room = Some(location),
            EntryKind::Trim => self.trimmed_to = Some(header.sequence),
            EntryKind::Deletion => self.is_deleted = true,
            EntryKind::Unsynced | EntryKind::Synced => {}
        }
    }
}

/// Decodes the next [`SUMMARY_LEN`] bytes, which are of segment `segment`.
pub(super) fn decode_summary(bytes: &mut Bytes, segment: u32) -> LogSummary {
    let log = LogId(bytes.get_u32());
    let needed_until = NeededUntil(bytes.get_u16());
    let (status, is_deleted) = (bytes.get_u8(), bytes.get_u8());
    let records = LogRecords {
        log,
        index_at: bytes.get_u32(),
        count: bytes.get_u32(),
        bytes: bytes.get_u32(),
        first: Sequence::new(bytes.get_u64()),
        last: Sequence::new(bytes.get_u64()),
        oldest_at: bytes.get_u32(),
        newest_at: bytes.get_u32(),
    };
    let trimmed_to = Some(Sequence::new(bytes.get_u64())).filter(|first| *first > Sequence::ZERO);
    let covered = Sequence::new(bytes.get_u64());
    let [snapshot, room] = [(); 2].map(|()| {
        let (offset, len) = (bytes.get_u32(), bytes.get_u32());
        (len > 0).then_some(EntryLocation { segment, offset, len })
    });
    let metadata = LogMetadata {
        status: RoomStatus::from_bits(status),
        trimmed_to,
        snapshot: snapshot.map(|location| (location, covered)),
        needed_until,
        room,
        is_deleted: is_deleted != 0,
    };
    LogSummary { records, metadata }
}

fn checksum(segment: u32, base: Sequence, bytes: &[u8]) -> u32 {
    let checksum = crc32c::crc32c(&segment.to_be_bytes());
    let checksum = crc32c::crc32c_append(checksum, &base.get().to_be_bytes());
    crc32c::crc32c_append(checksum, bytes)
}

/// A Unix time in seconds, as [`IndexEntry::at`].
pub(super) fn seconds(at: WallTime) -> u32 {
    u32::try_from(at.as_millis() / 1000).unwrap_or(u32::MAX)
}
