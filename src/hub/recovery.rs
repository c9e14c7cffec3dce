//! Recovery of a room from its log.

use super::frame;
use crate::domain::limits::DEDUP_WINDOW_LEN;
use crate::domain::{ReplayError, Room, RoomName, Rules, Sequence, WallTime};
use crate::store::{Log, Record, Store, StoreError, decode_snapshot, frames};

/// How much of a log is read at a time, in bytes.
const READ_BYTES: usize = 1 << 20;

/// A room as recovered from its log.
pub(super) struct Recovered {
    pub(super) room: Room,
    pub(super) log: Log,
    /// The last event that the newest snapshot covers.
    pub(super) snapshot_sequence: Sequence,
    /// The bytes of the events after it.
    pub(super) bytes_since_snapshot: usize,
}

/// Recovers a room from its newest snapshot and the events after it, and verifies that no event is missing in what is
/// read. Creates the log if there is none. Blocks on the disk.
///
/// # Errors
///
/// The log is damaged, or the store cannot be read.
pub(super) fn recover(
    store: &dyn Store,
    rules: Rules,
    name: &RoomName,
    at: WallTime,
) -> Result<Recovered, StoreError> {
    let log = store.open(name, at)?;
    let snapshot = log.snapshot.as_deref().map(decode_snapshot).transpose()?;
    let covered = snapshot.as_ref().map_or(Sequence::ZERO, |snapshot| snapshot.last);
    let room = snapshot.map_or_else(|| Room::new(rules), |snapshot| Room::restore(rules, snapshot));
    let mut recovery = Recovery {
        store,
        name,
        log: &log,
        covered,
        room,
        bytes_since_snapshot: 0,
    };
    recovery.run()?;
    let Recovery {
        room,
        bytes_since_snapshot,
        ..
    } = recovery;
    Ok(Recovered {
        room,
        log,
        snapshot_sequence: covered,
        bytes_since_snapshot,
    })
}

struct Recovery<'a> {
    store: &'a dyn Store,
    name: &'a RoomName,
    log: &'a Log,
    /// The last event that the snapshot covers.
    covered: Sequence,
    room: Room,
    bytes_since_snapshot: usize,
}

impl Recovery<'_> {
    /// Replays the log to its end.
    fn run(&mut self) -> Result<(), StoreError> {
        let mut after = self.start()?;
        loop {
            let records = self.store.records(self.log.id, after, READ_BYTES)?;
            if records.is_empty() {
                break;
            }
            for record in records {
                if self.is_gap(after, &record)? {
                    return Err(self.gap(after, record.first));
                }
                self.replay(&record)?;
                after = record.last();
                if after > self.covered {
                    self.bytes_since_snapshot += record.frames.len();
                }
            }
        }
        if after < self.covered {
            return Err(self.gap(after, self.covered.next()));
        }
        Ok(())
    }

    /// The event after which to read. Of the events that the snapshot covers, only those in the deduplication window
    /// matter.
    fn start(&self) -> Result<Sequence, StoreError> {
        let first = self.store.bounds(self.log.id)?.first;
        let oldest = first.previous();
        if oldest > self.covered {
            return Err(self.gap(self.covered, first));
        }
        let needed = self.covered.get().saturating_sub(DEDUP_WINDOW_LEN as u64);
        // Start with the whole record in which the window starts.
        let after = oldest.max(Sequence::new(needed));
        let records = self.store.records(self.log.id, after, 1)?;
        Ok(records.first().map_or(after, |record| record.first.previous()))
    }

    /// Whether events between `after` and `record` are missing. Retention can delete events while they are read, because
    /// other rooms write meanwhile; but only events that the snapshot covers.
    fn is_gap(&self, after: Sequence, record: &Record) -> Result<bool, StoreError> {
        Ok(record.first != after.next()
            && (record.first.previous() > self.covered
                || record.first > self.store.bounds(self.log.id)?.first))
    }

    fn replay(&mut self, record: &Record) -> Result<(), StoreError> {
        let damaged = |why| StoreError::Record {
            sequence: record.first,
            why,
        };
        let mut sequence = record.first;
        for (index, frame) in frames(record.frames.clone()).enumerate() {
            let event = frame::read_event(&frame).ok_or_else(|| damaged("an event cannot be read"))?;
            if event.sequence != sequence {
                return Err(damaged("an event is out of place"));
            }
            if sequence <= self.covered {
                self.room.remember_message_id(&event);
            } else {
                let mut resumable = record.resumable.iter();
                let is_resumable = resumable.any(|resumable| *resumable as usize == index);
                self.room
                    .replay(&event, is_resumable)
                    .map_err(|why| self.damaged(why))?;
            }
            sequence = sequence.next();
        }
        if sequence != record.last().next() {
            return Err(damaged("it has fewer events than it says"));
        }
        Ok(())
    }

    fn gap(&self, after: Sequence, next: Sequence) -> StoreError {
        self.damaged(ReplayError::Gap { after, next })
    }

    fn damaged(&self, why: ReplayError) -> StoreError {
        StoreError::Log {
            room: self.name.clone(),
            why,
        }
    }
}
