//! What is kept of a log.

use super::layout::{decode_first, first_key, record_key, record_place};
use super::tables::Tables;
use super::{Bounds, LogId, Record, StoreError, decode_snapshot};
use crate::domain::{ReplayError, RoomName, Sequence};

/// What is kept of a log.
#[derive(Clone, Copy)]
pub(super) struct Kept {
    pub(super) first: Sequence,
    pub(super) last: Sequence,
    pub(super) bytes: u64,
    /// Up to where a snapshot makes the records dispensable.
    pub(super) snapshot: Sequence,
}

impl Kept {
    /// Of a log in which nothing has happened.
    pub(super) const EMPTY: Self = Self {
        first: Bounds::EMPTY.first,
        last: Bounds::EMPTY.last,
        bytes: 0,
        snapshot: Sequence::ZERO,
    };

    /// How many events there are.
    pub(super) const fn events(&self) -> u64 {
        (self.last.get() + 1).saturating_sub(self.first.get())
    }

    /// Counts what `tables` have of the log of `room`, and makes sure that nothing is missing in it: reads all of it. Also
    /// gives up to where there must have been events, whether there are or not.
    pub(super) fn count(
        tables: &Tables,
        room: &RoomName,
        log: LogId,
    ) -> Result<(Self, Sequence), StoreError> {
        let (mut kept, mut claim) = (Self::EMPTY, Sequence::ZERO);
        let range = record_key(log, Sequence::ZERO)..=record_key(log, Sequence::new(u64::MAX));
        for (index, entry) in tables.records.range(range).enumerate() {
            let (key, value) = entry.into_inner()?;
            let record = Record::decode(record_place(&key)?, value.to_vec().into())?;
            if index == 0 {
                kept.first = record.first;
            } else if record.first != kept.last.next() {
                return Err(StoreError::Log {
                    room: room.clone(),
                    why: ReplayError::Gap {
                        after: kept.last,
                        next: record.first,
                    },
                });
            }
            kept.last = record.last();
            kept.bytes += value.len() as u64;
        }
        // What was let go of was noted with it. What is not there and was not let go of is lost.
        if let Some(first) = tables.snapshots.get(first_key(log))? {
            let first = decode_first(&first)?;
            claim = first.previous();
            if kept.last >= kept.first && kept.first > first {
                return Err(StoreError::Log {
                    room: room.clone(),
                    why: ReplayError::Gap {
                        after: first.previous(),
                        next: kept.first,
                    },
                });
            }
        }
        if let Some(snapshot) = tables.snapshots.get(log.0.to_be_bytes())? {
            kept.snapshot = decode_snapshot(&snapshot)?.last;
        }
        Ok((kept, claim.max(kept.snapshot)))
    }
}
