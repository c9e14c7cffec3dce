//! Makes the data directory of a single server of the rooms of a cluster.

use std::path::Path;
use std::sync::Arc;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::checkpoint::Checkpoint;
use crate::hub::RestoredRoom;
use crate::store::{
    Append, DiskOptions, DiskStore, Durability, NoObserver, Retention, RoomStatus, Store as _, StoreError,
    encode_snapshot,
};
use crate::wall_clock::wall_time;

/// Nothing is removed: the server does that, as it is told to.
const RETENTION: Retention = Retention {
    max_events: 1 << 50,
    max_bytes: 1 << 50,
    max_age: None,
    max_total_bytes: 1 << 50,
};

/// How many rooms are written at a time, so that they share the syncs.
const CONCURRENT_ROOMS: usize = 256;

/// How many bytes of events are written at a time.
const APPEND_BYTES: usize = 4 << 20;

/// Writes the rooms of a checkpoint into a new data directory, with their epochs, sequences, clocks and bans. Returns how many there are. Blocks.
///
/// Whoever was in a room is lost for the server that starts with the directory, and leaves after the grace period.
///
/// # Errors
///
/// The directory is not empty, or cannot be written. After an error or a crash it is not a data directory.
pub(crate) async fn export(checkpoint: Checkpoint, path: &Path) -> Result<usize, StoreError> {
    let options = DiskOptions {
        durability: Durability::Sync,
        retention: RETENTION,
        max_rooms: usize::MAX,
        accept_loss: false,
    };
    let store = DiskStore::create(path, options, Arc::new(NoObserver))?;
    let count = checkpoint.rooms.len();
    stream::iter(checkpoint.rooms)
        .map(|room| write(&store, room))
        .buffer_unordered(CONCURRENT_ROOMS)
        .try_collect::<()>()
        .await?;
    store.finish()?;
    Ok(count)
}

async fn write(store: &DiskStore, room: RestoredRoom) -> Result<(), StoreError> {
    let RestoredRoom {
        name,
        epoch,
        mut room,
        records,
    } = room;
    let status = RoomStatus {
        is_occupied: !room.participants().is_empty(),
        has_messages: room.has_messages(),
    };
    let snapshot = encode_snapshot(&room.take_snapshot());
    let first = records
        .first()
        .map_or(snapshot.last.next(), |oldest| oldest.first);
    let log = store.restore(&name, epoch, first, wall_time())?;
    let (mut part, mut bytes) = (Vec::new(), 0);
    for record in records {
        if bytes > 0 && bytes + record.frames.len() > APPEND_BYTES {
            let append = Append {
                records: std::mem::take(&mut part),
                snapshot: None,
                status,
            };
            store.append(log, append).await?;
            bytes = 0;
        }
        bytes += record.frames.len();
        part.push(record);
    }
    // A log that ends after its snapshot is whole, and one that ends before has lost something: so the snapshot comes last.
    let append = Append {
        records: part,
        snapshot: Some(snapshot),
        status,
    };
    store.append(log, append).await?;
    Ok(())
}
