//! Recovery of a room from its log.

use super::frame;
use crate::domain::limits::DEDUP_WINDOW_LEN;
use crate::domain::{ReplayError, Room, RoomName, Rules, Sequence, WallTime};
use crate::store::{Log, Record, Store, StoreError, decode_snapshot, frames};

/// How much of the log is read at a time, in bytes.
const READ_BYTES: usize = 1 << 20;

/// A room as recovered from its log.
pub(super) struct Recovered {
    pub(super) room: Room,
    pub(super) log: Log,
    /// The last event that the newest snapshot covers.
    pub(super) snapshot_sequence: Sequence,
    /// The bytes of the events after it.
    pub(super) bytes_since_snapshot: u64,
}

/// Recovers a room from its newest snapshot and the events after it, and verifies that none of the events that it reads is
/// missing. Creates the log if there is none. Blocks on the disk.
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
    let snapshot = store
        .snapshot(log.id)?
        .as_deref()
        .map(decode_snapshot)
        .transpose()?;
    let snapshot_sequence = snapshot.as_ref().map_or(Sequence::ZERO, |snapshot| snapshot.last);
    let room = snapshot.map_or_else(
        || Room::new(rules),
        |snapshot| Room::from_snapshot(rules, snapshot),
    );
    let recovery = Recovery {
        store,
        name,
        log: &log,
        snapshot_sequence,
        room,
    };
    let (room, bytes_since_snapshot) = recovery.run()?;
    Ok(Recovered {
        room,
        log,
        snapshot_sequence,
        bytes_since_snapshot,
    })
}

struct Recovery<'a> {
    store: &'a dyn Store,
    name: &'a RoomName,
    log: &'a Log,
    /// The last event that the snapshot covers.
    snapshot_sequence: Sequence,
    room: Room,
}

impl Recovery<'_> {
    /// Replays the log to its end. Returns the room, and the bytes of the events that the snapshot does not cover.
    fn run(mut self) -> Result<(Room, u64), StoreError> {
        let mut bytes_since_snapshot = 0;
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
                if after > self.snapshot_sequence {
                    bytes_since_snapshot += record.frames.len() as u64;
                }
            }
        }
        if after < self.snapshot_sequence {
            return Err(self.gap(after, self.snapshot_sequence.next()));
        }
        Ok((self.room, bytes_since_snapshot))
    }

    /// The event after which to read. Of the events that the snapshot covers, only those in the deduplication window
    /// matter.
    fn start(&self) -> Result<Sequence, StoreError> {
        let first = self.store.bounds(self.log.id)?.first;
        let oldest = first.previous();
        if oldest > self.snapshot_sequence {
            return Err(self.gap(self.snapshot_sequence, first));
        }
        let needed = self
            .snapshot_sequence
            .get()
            .saturating_sub(DEDUP_WINDOW_LEN as u64);
        // Start with the whole record in which the window starts.
        let after = oldest.max(Sequence::new(needed));
        let records = self.store.records(self.log.id, after, 1)?;
        Ok(records.first().map_or(after, |record| record.first.previous()))
    }

    /// Whether events between `after` and `record` are lost. Events that the snapshot covers can be absent without being
    /// lost: retention may delete them during recovery, because other rooms write meanwhile.
    fn is_gap(&self, after: Sequence, record: &Record) -> Result<bool, StoreError> {
        Ok(record.first != after.next()
            && (record.first.previous() > self.snapshot_sequence
                || record.first > self.store.bounds(self.log.id)?.first))
    }

    fn replay(&mut self, record: &Record) -> Result<(), StoreError> {
        let damaged = |why| StoreError::Record {
            sequence: record.first,
            why,
        };
        let mut sequence = record.first;
        for (index, frame) in frames(record.frames.clone()).enumerate() {
            let event = frame::read_event(&frame).ok_or_else(|| damaged("an event cannot be decoded"))?;
            if event.sequence != sequence {
                return Err(damaged("an event has the wrong sequence"));
            }
            if sequence <= self.snapshot_sequence {
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
            return Err(damaged("it has the wrong number of events"));
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
