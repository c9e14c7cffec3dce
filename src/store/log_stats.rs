//! What the store keeps in memory about each log.

use super::tables::{Tables, decode_first_sequence, decode_record_key, first_sequence_key, record_key};
use super::{Bounds, LogId, Record, StoreError, decode_snapshot};
use crate::domain::{ReplayError, RoomName, Sequence};

/// The bounds and size of a log.
#[derive(Clone, Copy)]
pub(super) struct LogStats {
    pub(super) first: Sequence,
    pub(super) last: Sequence,
    /// The size of the encoded records, in bytes.
    pub(super) bytes: u64,
    /// The sequence up to which the newest snapshot covers the log.
    pub(super) snapshot: Sequence,
}

impl LogStats {
    pub(super) const EMPTY: Self = Self {
        first: Bounds::EMPTY.first,
        last: Bounds::EMPTY.last,
        bytes: 0,
        snapshot: Sequence::ZERO,
    };

    /// Returns the number of events.
    pub(super) const fn events(&self) -> u64 {
        (self.last.get() + 1).saturating_sub(self.first.get())
    }

    /// Reads the whole log of `room` and verifies that it has no gap. Also returns the highest sequence that the log is
    /// known to have reached, even if its records are lost.
    pub(super) fn scan_and_verify(
        tables: &Tables,
        room: &RoomName,
        log: LogId,
    ) -> Result<(Self, Sequence), StoreError> {
        let gap = |after, next| StoreError::Log {
            room: room.clone(),
            why: ReplayError::Gap { after, next },
        };
        let (mut stats, mut reached) = (Self::EMPTY, Sequence::ZERO);
        let range = record_key(log, Sequence::ZERO)..=record_key(log, Sequence::new(u64::MAX));
        for (index, entry) in tables.records.range(range).enumerate() {
            let (key, value) = entry.into_inner()?;
            let record = Record::decode(decode_record_key(&key)?, value.to_vec().into())?;
            if index == 0 {
                stats.first = record.first;
            } else if record.first != stats.last.next() {
                return Err(gap(stats.last, record.first));
            }
            stats.last = record.last();
            stats.bytes += value.len() as u64;
        }
        // Retention stores the first sequence that it keeps. If the log starts later, records are lost.
        if let Some(first) = tables.snapshots.get(first_sequence_key(log))? {
            let first = decode_first_sequence(&first)?;
            reached = first.previous();
            if stats.last >= stats.first && stats.first > first {
                return Err(gap(first.previous(), stats.first));
            }
        }
        if let Some(snapshot) = tables.snapshots.get(log.0.to_be_bytes())? {
            stats.snapshot = decode_snapshot(&snapshot)?.last;
        }
        Ok((stats, reached.max(stats.snapshot)))
    }
}
