//! A room of a replica that continues at some position in the command log.

use super::recovery::{self, Recovered};
use crate::domain::{Epoch, Room, RoomName, Rules, WallTime};
use crate::store::{MemoryStore, Record, RoomStatus, Store, StoreError, encode_snapshot};

/// A room as it was at some position in the command log of all replicas, and what is retained of its log.
#[derive(Debug)]
pub(crate) struct RestoredRoom {
    pub(crate) name: RoomName,
    pub(crate) epoch: Epoch,
    /// Decides as it did.
    pub(crate) room: Room,
    /// Contiguous, up to the room's newest event unless there are none.
    pub(crate) records: Vec<Record>,
}

impl RestoredRoom {
    /// Adds the log to `store`.
    pub(super) fn into_recovered(self, store: &MemoryStore) -> Result<Recovered, StoreError> {
        let Self {
            name,
            epoch,
            mut room,
            records,
        } = self;
        let status = RoomStatus {
            is_occupied: !room.participants().is_empty(),
            has_messages: room.has_messages(),
        };
        // Retention removes only what a snapshot covers.
        let snapshot = encode_snapshot(&room.take_snapshot());
        let snapshot_sequence = snapshot.last;
        let log = store.restore(&name, epoch, records, snapshot, status)?;
        Ok(Recovered {
            room,
            log,
            snapshot_sequence,
            bytes_since_snapshot: 0,
        })
    }
}

/// A room as a server would continue it that begins with `store`. Its participants are lost. Blocks on the disk.
///
/// # Errors
///
/// The log is damaged, or the store cannot be read.
pub(crate) fn recover_for_import(
    store: &dyn Store,
    rules: Rules,
    name: &RoomName,
    at: WallTime,
) -> Result<(Epoch, Room), StoreError> {
    let Recovered { mut room, log, .. } = recovery::recover(store, rules, name, at)?;
    room.finish_recovery();
    Ok((log.epoch, room))
}
