//! A room out of its log.

use crate::domain::limits::MESSAGE_IDS_REMEMBERED;
use crate::domain::{ReplayError, Room, RoomName, Rules, Sequence, WallTime};
use crate::store::{Log, Record, Store, StoreError, decode_snapshot, frames};

use super::frame;

/// How much of a log is read at a time, in bytes.
const PORTION: usize = 1 << 20;

/// A room as its log tells it.
pub(super) struct Recovered {
    pub(super) room: Room,
    pub(super) log: Log,
    /// The place of the newest stored snapshot.
    pub(super) covered: Sequence,
    /// How many bytes are stored after it.
    pub(super) since_snapshot: usize,
}

/// Follows the log of `name` from its newest snapshot to its end, and makes sure that nothing is missing in what it
/// reads. Makes the log if there is none. Waits for the disk.
pub(super) fn recover(
    store: &dyn Store,
    rules: Rules,
    name: &RoomName,
    at: WallTime,
) -> Result<Recovered, StoreError> {
    let log = store.open(name, at)?;
    let snapshot = log
        .snapshot
        .as_ref()
        .map(|bytes| decode_snapshot(bytes))
        .transpose()?;
    let covered = snapshot.as_ref().map_or(Sequence::ZERO, |snapshot| snapshot.last);
    let mut room = snapshot.map_or_else(|| Room::new(rules), |snapshot| Room::restore(rules, snapshot));
    let damaged = |why: ReplayError| StoreError::Log {
        room: name.clone(),
        why,
    };
    let bounds = store.bounds(log.id)?;
    let mut after = bounds.first.previous();
    if after > covered {
        return Err(damaged(ReplayError::Hole {
            after: covered,
            next: bounds.first,
        }));
    }
    // Before the snapshot only the newest message ids matter; from the beginning of the record in which they begin.
    let needed = covered.get().saturating_sub(MESSAGE_IDS_REMEMBERED as u64);
    let first = store.records(log.id, after.max(Sequence::new(needed)), 1)?;
    after = first.first().map_or(after, |record| record.first.previous());
    let mut since_snapshot = 0;
    loop {
        let records = store.records(log.id, after, PORTION)?;
        if records.is_empty() {
            break;
        }
        for record in records {
            // What other rooms store meanwhile may make this one let go of its oldest: all of it before the snapshot.
            let is_hole = record.first != after.next()
                && (record.first.previous() > covered || record.first > store.bounds(log.id)?.first);
            if is_hole {
                return Err(damaged(ReplayError::Hole {
                    after,
                    next: record.first,
                }));
            }
            replay(&mut room, &record, covered).map_err(|error| match error {
                Damage::Replay(why) => damaged(why),
                Damage::Record(error) => error,
            })?;
            after = record.last();
            if after > covered {
                since_snapshot += record.frames.len();
            }
        }
    }
    if after < covered {
        return Err(damaged(ReplayError::Hole {
            after,
            next: covered.next(),
        }));
    }
    Ok(Recovered {
        room,
        log,
        covered,
        since_snapshot,
    })
}

enum Damage {
    Replay(ReplayError),
    Record(StoreError),
}

fn replay(room: &mut Room, record: &Record, covered: Sequence) -> Result<(), Damage> {
    let unreadable = |why| {
        Damage::Record(StoreError::Record {
            sequence: record.first,
            why,
        })
    };
    let mut sequence = record.first;
    for (index, frame) in frames(record.frames.clone()).enumerate() {
        let event = frame::read_event(&frame).ok_or_else(|| unreadable("an event cannot be read"))?;
        if event.sequence != sequence {
            return Err(unreadable("an event is out of place"));
        }
        if sequence <= covered {
            room.recall(&event);
        } else {
            let is_resumable = record
                .resumable
                .iter()
                .any(|resumable| *resumable as usize == index);
            room.replay(&event, is_resumable).map_err(Damage::Replay)?;
        }
        sequence = sequence.next();
    }
    if sequence != record.last().next() {
        return Err(unreadable("it has fewer events than it says"));
    }
    Ok(())
}
